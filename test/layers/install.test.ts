import { assert, describe, it } from "@effect/vitest";
import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { exitCodes } from "#src/say/exit";
import { afterAll, beforeEach } from "vitest";
import { freePort, keygen, runSshd, script, sshdPath, temporary } from "#test/support/carrier";
import { noSshd, notRoot, unless, without } from "#test/support/unless";

/** What dom0 gets: the Makefile, what is installed, and dist/; no sources, no npm. */
const tree = temporary();
const stage = path.join(tree, "stage");
for (const name of ["Makefile", "install", "apparmor"]) {
  fs.cpSync(name, path.join(tree, name), { recursive: true });
}
fs.mkdirSync(path.join(tree, "dist"));
// The shell stands in for the real one: it says how it was called, and knows which identity a store has.
const stub = `case $1 in
identity) cat "$3/.made" 2>/dev/null || exit 5 ;;
init) echo "a new identity" >"$3/.made" || exit ;;
esac
printf '%s\\n' "\${SSH_ORIGINAL_COMMAND-}" "$*" "NODE_OPTIONS=\${NODE_OPTIONS-unset}" "$(id -un)"`;
for (const name of ["qbackup", "qubes.BackupCarrier", "qbackup-shell"]) {
  script(path.join(tree, "dist", name), stub);
}
fs.chmodSync(tree, 0o755);
afterAll(() => fs.rmSync(tree, { recursive: true }));

const make = (...args: ReadonlyArray<string>) => {
  const done = spawnSync("make", ["--silent", ...args], { cwd: tree, encoding: "utf8" });
  return { status: done.status, text: `${done.stdout}${done.stderr}` };
};
const must = (...args: ReadonlyArray<string>) => {
  const done = make(...args);
  assert.strictEqual(done.status, 0, done.text);
  return done.text;
};
/** The files below a folder with their permissions. */
const files = (folder: string): ReadonlyArray<string> =>
  fs.existsSync(folder)
    ? fs
        .readdirSync(folder, { recursive: true, encoding: "utf8" })
        .filter((file) => fs.statSync(path.join(folder, file)).isFile())
        .map(
          (file) => `${(fs.statSync(path.join(folder, file)).mode & 0o777).toString(8)} /${file}`,
        )
        .sort()
    : [];

/** Every directory from a folder on that not everybody may look into, with its permissions. */
const closed = (folder: string): ReadonlyArray<string> =>
  ["", ...fs.readdirSync(folder, { recursive: true, encoding: "utf8" })]
    .map((name) => path.join(folder, name))
    .filter((name) => fs.statSync(name).isDirectory())
    .map((name) => `${(fs.statSync(name).mode & 0o7777).toString(8)} ${name}`)
    .filter((line) => !line.startsWith("755 "));

beforeEach(() => fs.rmSync(stage, { recursive: true, force: true }));

const targets: ReadonlyArray<
  readonly [target: string, args: ReadonlyArray<string>, installed: ReadonlyArray<string>]
> = [
  [
    "dom0",
    [],
    [
      "644 /etc/qubes/policy.d/30-qbackup.policy",
      "644 /usr/lib/systemd/system/qbackup-audit@.service",
      "644 /usr/lib/systemd/system/qbackup-audit@.timer",
      "644 /usr/lib/systemd/system/qbackup-verify@.service",
      "644 /usr/lib/systemd/system/qbackup-verify@.timer",
      "644 /usr/lib/systemd/system/qbackup@.service",
      "644 /usr/lib/systemd/system/qbackup@.timer",
      "644 /usr/share/bash-completion/completions/qbackup",
      "644 /usr/share/man/man1/qbackup.1",
      "755 /usr/bin/qbackup",
      "755 /usr/bin/qbackup-recover",
    ],
  ],
  ["templatevm", [], ["755 /etc/qubes-rpc/qubes.BackupCarrier"]],
  ["appvm", [], ["755 /usr/local/etc/qubes-rpc/qubes.BackupCarrier"]],
  [
    "server",
    ["user=backup"],
    [
      "644 /etc/ssh/sshd_config.d/00-qbackup-backup.conf",
      "755 /usr/bin/qbackup-recover",
      "755 /usr/bin/qbackup-shell",
    ],
  ],
  ["server-sshd", ["user=backup"], ["644 /etc/ssh/sshd_config.d/00-qbackup-backup.conf"]],
  ["server-aa", [], ["644 /etc/apparmor.d/qbackup-shell"]],
];

it("no function of a script is defined twice: sh would take the second one without a word", () => {
  for (const name of fs.readdirSync("install").filter((file) => !/\.(?:1|bash)$/.test(file))) {
    const text = fs.readFileSync(path.join("install", name), "utf8");
    const defined = [...text.matchAll(/^([a-z_]+)\(\) [({]/gm)].map(([, each]) => each);
    assert.deepStrictEqual(defined, [...new Set(defined)], name);
  }
});

describe("staged", () => {
  it.each(targets)(
    "%s installs its files, whatever the umask, and takes them away",
    (target, args, installed) => {
      const umask = process.umask(0o077);
      try {
        must(target, `DESTDIR=${stage}`, ...args);
      } finally {
        process.umask(umask);
      }
      assert.deepStrictEqual(files(stage), installed);
      assert.deepStrictEqual(closed(stage), []);
      if (target === "server") must("uninstall-server-sshd", `DESTDIR=${stage}`, ...args);
      must(`uninstall-${target}`, `DESTDIR=${stage}`, ...args);
      assert.deepStrictEqual(files(stage), []);
    },
  );

  it("PREFIX moves the programs, and is said in what names them", () => {
    const prefix = "/opt/qbackup";
    for (const [target, args] of targets) {
      must(target, `DESTDIR=${stage}`, `PREFIX=${prefix}`, ...args);
    }
    const read = (file: string) => fs.readFileSync(path.join(stage, file), "utf8");
    assert.include(
      read(`${prefix}/lib/systemd/system/qbackup@.service`),
      `ExecStart=${prefix}/bin/qbackup\n`,
    );
    assert.include(
      read("etc/apparmor.d/qbackup-shell"),
      `profile qbackup-shell ${prefix}/bin/qbackup-shell {`,
    );
    assert.include(
      read("etc/ssh/sshd_config.d/00-qbackup-backup.conf"),
      `ForceCommand ${prefix}/bin/qbackup-shell --root `,
    );
    for (const file of files(stage)) {
      const text = read(file.slice(4));
      assert.notMatch(text, /@(PREFIX|USER|STORES?|OPTIONS)@/, file);
    }
  });

  it("make alone explains itself; nothing is built where no sources are", () => {
    assert.match(must(), /make server user=NAME/);
    assert.strictEqual(must("build"), "");
  });

  it("stages below a folder with blanks and quotes in its name", () => {
    const odd = path.join(tree, `s t'"$x`);
    for (const [target, args] of targets)
      must(target, `DESTDIR=${odd.replaceAll("$", "$$$$")}`, ...args);
    const installed = targets.flatMap(([, , names]) => names);
    assert.deepStrictEqual(files(odd), [...new Set(installed)].sort());
    for (const [target, args] of targets) {
      must(`uninstall-${target}`, `DESTDIR=${odd.replaceAll("$", "$$$$")}`, ...args);
    }
    assert.deepStrictEqual(files(odd), []);
  });

  it("store and quota stand in the drop-in, and stay there unless they are given anew", () => {
    const dropIn = path.join(stage, "etc/ssh/sshd_config.d/00-qbackup-b.conf");
    const forced = () => /ForceCommand .*/.exec(fs.readFileSync(dropIn, "utf8"))?.[0];
    must("server", `DESTDIR=${stage}`, "user=b", "store=/srv/b/", "quota=500G");
    const first = "ForceCommand /usr/bin/qbackup-shell --root /srv/b --no-init --quota 500G";
    assert.strictEqual(forced(), first);
    must("server", `DESTDIR=${stage}`, "user=b");
    assert.strictEqual(forced(), first);
    must("server", `DESTDIR=${stage}`, "user=b", "quota=1T", "store=/srv/c");
    const moved = first.replace("500G", "1T").replace("/srv/b", "/srv/c");
    assert.strictEqual(forced(), moved);
    const options = "--allow put,list,read --floor 2K --allow-unsigned";
    must("server", `DESTDIR=${stage}`, "user=b", `options=${options}`);
    assert.strictEqual(forced(), `${moved} ${options}`);
    must("server", `DESTDIR=${stage}`, "user=b");
    assert.strictEqual(forced(), `${moved} ${options}`);
    must("server", `DESTDIR=${stage}`, "user=b", "options=none");
    assert.strictEqual(forced(), moved);
  });

  it("the profile covers every store that was set up, whatever is said when it is made anew", () => {
    const folder = path.join(stage, "etc/ssh/sshd_config.d");
    const profile = path.join(stage, "etc/apparmor.d/qbackup-shell");
    /** What the profile covers by its own word, which is what was told. */
    const covered = (...args: ReadonlyArray<string>) => {
      const told = must(...args, `DESTDIR=${stage}`);
      const [, stores] = /^@\{QBACKUP_STORES\} = (.*)$/m.exec(fs.readFileSync(profile, "utf8"))!;
      assert.include(told, `The profile covers: ${stores}\n`);
      return stores!.split(" ");
    };
    assert.deepStrictEqual(covered("server-aa"), ["/home/*"]);
    assert.deepStrictEqual(covered("server", "server-aa", "user=a", "store=/srv/a"), ["/srv/a"]);
    // The same once more, without the word: the store stays where it is, and stays covered.
    assert.deepStrictEqual(covered("server", "server-aa", "user=a"), ["/srv/a"]);
    assert.deepStrictEqual(covered("server", "server-aa", "user=b"), ["/srv/a", "/home/b"]);
    assert.deepStrictEqual(covered("server", "server-aa", "user=c", "store=/srv/c"), [
      "/srv/c",
      "/srv/a",
      "/home/b",
    ]);
    // A list, and what it has not.
    assert.deepStrictEqual(covered("server-aa", "store=/srv/* /data/b"), [
      "/srv/*",
      "/data/b",
      "/home/b",
    ]);
    assert.deepStrictEqual(covered("server-aa"), ["/srv/*", "/data/b", "/home/b"]);
    // One that was taken out of the profile comes back, since its account is set up; the default as well.
    fs.rmSync(profile);
    assert.deepStrictEqual(covered("server-aa"), ["/home/*", "/srv/a", "/srv/c"]);
    // Of an account that is gone nothing is left but what the profile had.
    fs.rmSync(path.join(folder, "00-qbackup-a.conf"));
    assert.deepStrictEqual(covered("server-aa"), ["/home/*", "/srv/a", "/srv/c"]);
    // What cannot be kept is not thrown away in silence.
    const before = fs.readFileSync(profile, "utf8").replace("/srv/a", "@{HOME}/x");
    fs.writeFileSync(profile, before);
    const refused = make("server-aa", `DESTDIR=${stage}`);
    assert.notStrictEqual(refused.status, 0);
    assert.match(
      refused.text,
      /error: \S*qbackup-shell covers \/home\/\* @\{HOME\}\/x .*\n.*hint: .*store=/,
    );
    assert.strictEqual(fs.readFileSync(profile, "utf8"), before);
  });

  const long = "a".repeat(33);
  it.each([
    ["server", "user=Robert'; x"],
    ["server", "user="],
    ["server", "user=-r"],
    ["server", "user=root"],
    ["server", `user=${long}`],
    ["server", "user=b\nx"],
    ["server", "user=B\nb"],
    ["server-sshd", "user=-r"],
    ["server-sshd", "user=b\nMatch all"],
    ["uninstall-server-sshd", "user=../../x"],
    ["server-sshd", "user=b", "store=relative"],
    ["server", "user=b", "store=/"],
    ["server", "user=b", "store=//"],
    ["server", "user=b", "store=/srv/../etc"],
    ["server", "user=b", "store=/srv/.."],
    ["server", "user=b", "store=/srv/./b"],
    ["server", "user=b", "store=/srv"],
    ["server", "user=b", "store=/home/"],
    ["server", "user=b", "store=/etc/ssh"],
    ["server", "user=b", "store=/srv/b\n/x"],
    ["server", "user=b", "store=/srv/a b"],
    ["server", "user=b", "store=/srv/a'b"],
    ["server", "user=b", "quota=lots"],
    ["server", "user=b", "quota=5M --root /"],
    ["server", "user=b", "options=--root /"],
    ["server", "user=b", "options=--allow"],
    ["server", "user=b", "options=--allow list;id"],
    ["server", "user=b", "options=--allow  list"],
    ["server", "user=b", "options=--allow list\nMatch all"],
    ["server", "user=b", "options=none --floor 2K"],
    ["server", "user=b", "signer=x"],
    ["server", "user=b", `signer=${"a".repeat(44)}`],
    ["server", "user=b", `signer=${"a".repeat(42)} `],
    ["server", "user=b", "key=ssh-ed25519"],
    ["server", "user=b", "key=restrict ssh-ed25519 AAAAC3Nz"],
    ["server", "user=b", "key=ssh-ed25519 AAAAC3Nz a\nssh-ed25519 AAAAC3Nz b"],
    ["server", "user=b", "key=ssh-ed25519 AAAAC3Nz a\n"],
    ["server", "user=b", "PREFIX=/usr|x"],
    ["appvm", "to=a@b"],
    ["dom0", "PREFIX=relative"],
    ["dom0", "PREFIX=/a\n/b"],
    ["server-aa", "store=/a,b"],
    ["server-aa", "store=/"],
    ["server-aa", "store=/srv/a /"],
    ["server-aa", "store=/*"],
    ["server-aa", "store=/srv/../**"],
    ["server-aa", "store=/etc/*"],
    ["server-aa", "store=/srv/a\n/usr/bin/* rwx,"],
  ])("%j %j %j is refused", (target, ...words) => {
    const done = make(target, `DESTDIR=${stage}`, ...words.filter((word) => word !== undefined));
    assert.notStrictEqual(done.status, 0);
    assert.match(done.text, /qbackup: error: /);
    assert.deepStrictEqual(files(stage), []);
  });
});

it.each([
  ["/usr", ""],
  ["/usr/local", "/srv/backups"],
  ["/opt/q", "/srv/a /srv/b/*"],
])("the profile is well formed for %s %s", unless(without("apparmor_parser")), (prefix, store) => {
  must("server-aa", `DESTDIR=${stage}`, `PREFIX=${prefix}`, `store=${store}`);
  const profile = path.join(stage, "etc/apparmor.d/qbackup-shell");
  execFileSync("apparmor_parser", ["-Q", "-K", profile], {
    stdio: "pipe",
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
  });
});

it("a bundle is the same bytes from the same files, whoever has them, and is all that is needed", () => {
  const sums = [0o022, 0o077].map((umask) => {
    const copy = path.join(temporary(), "copy");
    const before = process.umask(umask);
    try {
      for (const name of ["Makefile", "install", "apparmor", "dist"]) {
        fs.cpSync(path.join(tree, name), path.join(copy, name), { recursive: true });
      }
      fs.copyFileSync("bundle.mjs", path.join(copy, "bundle.mjs"));
      // Of another day, and one that may not be read by others.
      fs.utimesSync(path.join(copy, "install/sshd.conf"), umask, umask);
      fs.chmodSync(path.join(copy, "install/sshd.conf"), 0o666 & ~umask);
      const done = spawnSync("make", ["--silent", "bundle"], { cwd: copy, encoding: "utf8" });
      assert.strictEqual(done.status, 0, done.stderr);
      // tar has nothing to say of it, and gives back what was packed.
      const opened = spawnSync("tar", ["-xf", "dist/qbackup.tar"], { cwd: copy, encoding: "utf8" });
      assert.strictEqual(opened.stderr, "");
      for (const name of ["install/server.sh", "dist/qbackup"]) {
        const there = fs.readFileSync(path.join(copy, "qbackup", name));
        assert.isTrue(there.equals(fs.readFileSync(path.join(tree, name))), name);
      }
      const staged = spawnSync("make", ["dom0", `DESTDIR=${stage}`], {
        cwd: path.join(copy, "qbackup"),
        encoding: "utf8",
      });
      assert.strictEqual(staged.status, 0, staged.stderr);
      return /^[0-9a-f]{64}(?= )/m.exec(done.stdout)![0];
    } finally {
      process.umask(before);
      fs.rmSync(path.dirname(copy), { recursive: true });
    }
  });
  assert.strictEqual(sums[0], sums[1]);
});

it.each([
  ["check_appvm", "nobody", /to=ACCOUNT@HOST/],
  ["check_appvm", "-oProxyCommand@y", /to=ACCOUNT@HOST/],
  ["check_appvm", "a@$(reboot)", /plain characters only/],
  ["check_appvm", "a@b\nX=1", /plain characters only/],
  ["check_dom0", "a b", /plain characters only/],
  ["check_dom0", "a@b", /to=QUBE/],
  ["check_dom0", "-t", /to=QUBE/],
  ["check_dom0", "backups-vm", /^$/],
  ["check_appvm", "account@server.example", /^$/],
  ["check_appvm", "ssh://account@server.example:2222", /^$/],
] as const)("%s of to=%j", (check, to, told) => {
  // Somebody whose ~/.bashrc says nothing of it.
  const env = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", SUDO_USER: "nobody", DESTDIR: "", to };
  const done = spawnSync("sh", ["install/client.sh", check], { encoding: "utf8", env });
  assert.match(done.stderr, told);
  assert.strictEqual(done.status === 0, done.stderr === "");
});

describe("the settings of somebody who has some already", () => {
  /** Runs a function of client.sh in a home with these files; what it says, and what they are then. */
  const client = (does: string, to: string, there: Readonly<Record<string, string>>) => {
    const home = path.join(temporary(), "home");
    fs.mkdirSync(path.join(home, ".ssh"), { recursive: true });
    fs.writeFileSync(path.join(home, ".ssh/id_ed25519"), "");
    fs.writeFileSync(path.join(home, ".ssh/id_ed25519.pub"), "ssh-ed25519 AAAA\n");
    for (const [name, text] of Object.entries(there)) {
      fs.writeFileSync(path.join(home, name), text.replaceAll("@HOME@", home));
    }
    const bin = path.join(home, "../bin");
    fs.mkdirSync(bin);
    script(path.join(bin, "getent"), `echo "me:x:0:0::${home}:/bin/sh"`);
    const done = spawnSync("sh", ["install/client.sh", does], {
      encoding: "utf8",
      env: {
        PATH: `${bin}:/usr/sbin:/usr/bin:/sbin:/bin`,
        SUDO_USER: os.userInfo().username,
        DESTDIR: "",
        to,
      },
    });
    const file = path.join(home, ".bashrc");
    const bashrc = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
    fs.rmSync(path.dirname(home), { recursive: true });
    const told = (done.stdout + done.stderr).replaceAll(home, "~");
    return { bashrc: bashrc.replaceAll(home, "~"), status: done.status, told };
  };
  const next =
    "Next: the passphrase, one line and then Ctrl-D: install -m 600 /dev/stdin ~/.qbackup-passphrase\n";
  const inUse = "QBKP_PASS_FILE=~/.qbackup-passphrase\n";

  // /etc/hostname stands for a passphrase file of before, elsewhere: it is only looked whether it is there.
  it.each([
    [{}, next],
    [{ ".bashrc": inUse }, next],
    [{ ".bashrc": 'export QBKP_PASS_FILE="$HOME/.qbackup-passphrase"\n' }, next],
    [{ ".bashrc": "QBKP_PASS_FILE=${HOME}/.qbackup-passphrase # mine\n" }, next],
    [{ ".bashrc": "QBKP_PASS_FILE=@HOME@/.qbackup-passphrase\n" }, next],
    [{ ".qbackup-passphrase": "secret\n" }, ""],
    [
      { ".bashrc": "QBKP_PASS_FILE=/etc/hostname\n" },
      "The passphrase is in /etc/hostname: leave it there\n",
    ],
    [
      { ".bashrc": "QBKP_PASS_FILE='/etc/hostname'\n" },
      "The passphrase is in /etc/hostname: leave it there\n",
    ],
    // What is read first counts, and the last one in it.
    [
      { ".bash_profile": "QBKP_PASS_FILE=/etc/hostname\n", ".bashrc": inUse },
      "The passphrase is in /etc/hostname: leave it there\n",
    ],
    [
      { ".profile": "export QBKP_PASS_FILE=/etc/hostname\n" },
      "The passphrase is in /etc/hostname: leave it there\n",
    ],
    [
      { ".bashrc": "QBKP_PASS_FILE=/nothing/there\n" },
      "The passphrase belongs into /nothing/there, which is not there yet\n",
    ],
  ] as const)("dom0: %j", (there, told) => {
    const done = client("dom0", "backups-vm", { ...there });
    assert.strictEqual(done.status, 0, done.told);
    const last = done.told.split("\n").filter((line) => line !== "" && !line.startsWith("~/"));
    assert.strictEqual(last.map((line) => `${line}\n`).join(""), told);
    // No second assignment of what is set anywhere that is read.
    const set = Object.values(there).join("").includes("QBKP_PASS_FILE=");
    const added = "QBKP_DEST_VM=backups-vm\n" + (set ? "" : inUse);
    const before = (there as { readonly ".bashrc"?: string })[".bashrc"] ?? "";
    assert.strictEqual(done.bashrc, before.replaceAll("@HOME@", "~") + added);
  });

  it.each([
    ["dom0", "backups-vm", 'QBKP_DEST_VM="backups-vm"'],
    ["dom0", "backups-vm", "export QBKP_DEST_VM='backups-vm' # the carrier"],
    ["dom0", "backups-vm", "QBKP_DEST_VM=backups-vm; export QBKP_DEST_VM"],
    ["appvm", "a@b.example", 'SSH_CONN="a@b.example"'],
  ] as const)("%s to=%s is what %s says", (target, to, line) => {
    const there = { ".bashrc": `${line}\n` };
    const checked = client(`check_${target}`, to, there);
    assert.deepStrictEqual([checked.status, checked.told], [0, ""]);
    const done = client(target, to, there);
    assert.strictEqual(done.bashrc.split("\n")[0], line);
    assert.lengthOf(
      done.bashrc.match(new RegExp(target === "dom0" ? "_DEST_VM=" : "SSH_CONN=", "g"))!,
      1,
    );
    const other = client(`check_${target}`, `x${to}`, there);
    assert.strictEqual(other.status, 1);
    assert.include(other.told, `something else already: ${to}\n`);
  });
});

describe("systemd", unless(without("systemd-analyze")), () => {
  // Worth another try: a link that failed; for what only reads, also a backup that is under way.
  it.each([
    ["qbackup", [4]],
    ["qbackup-audit", [4, 7]],
    ["qbackup-verify", [4, 7]],
  ] as const)("takes the units of %s, and tries again after %j alone", (unit, again) => {
    must("dom0", `DESTDIR=${stage}`);
    script(path.join(tree, "qbackup"), "true");
    const units = path.join(stage, "usr/lib/systemd/system");
    const service = path.join(units, `${unit}@.service`);
    const text = fs
      .readFileSync(service, "utf8")
      .replace("/usr/bin/qbackup", path.join(tree, "qbackup"));
    fs.writeFileSync(service, text);
    const done = spawnSync(
      "systemd-analyze",
      ["verify", "--man=no", ...["timer", "service"].map((kind) => `${units}/${unit}@a.${kind}`)],
      { encoding: "utf8", env: { ...process.env, SYSTEMD_UNIT_PATH: `${units}:` } },
    );
    assert.notMatch(done.stderr, /qbackup/);
    const prevented = /^RestartPreventExitStatus=(.*)$/m.exec(text)![1]!.split(" ");
    assert.include(text, "\nRestart=on-failure\n");
    for (const [code] of Object.values(exitCodes)) {
      const tried = code === 0 || again.some((one) => one === code);
      assert.strictEqual(prevented.includes(`${code}`), !tried, `${code}`);
    }
  });
});

// Where nothing is installed, nothing is taken away by this.
it(
  "uninstalling says what it leaves, and what is to be reloaded",
  unless(fs.existsSync("/etc/qubes") ? "this is a Qubes machine" : undefined),
  () => {
    const prefix = `PREFIX=${path.join(tree, "nothing")}`;
    for (const [target, told] of [
      ["dom0", /daemon-reload[^]*timers[^]*crontab[^]*state\/qbackup[^]*qbackup-passphrase/],
      ["appvm", /SSH_CONN in ~\/\.bashrc, and the ssh key/],
      ["templatevm", /TemplateVM is shut down/],
      ["server", /the archives, and the identity that signed their receipts/],
    ] as const) {
      assert.match(must(`uninstall-${target}`, prefix), told);
    }
  },
);

describe("sshd", unless(noSshd), () => {
  const user = `qbt${randomBytes(6).toString("hex")}`;
  let count = 0;
  /** A configuration of its own: its lines, and the folder where a drop-in of `user` goes. */
  const scene = (lines: (folder: string) => ReadonlyArray<string>, port = 2222) => {
    const dir = path.join(tree, `sshd${count++}`);
    const folder = path.join(dir, "sshd_config.d");
    fs.mkdirSync(folder, { recursive: true });
    const at = (name: string) => path.join(dir, name);
    for (const key of ["host", "key"]) keygen(at(key));
    fs.writeFileSync(
      at("sshd_config"),
      [
        ...lines(folder),
        `ListenAddress 127.0.0.1:${port}`,
        `HostKey ${at("host")}`,
        `PidFile ${at("pid")}`,
        "UsePAM no",
        "Subsystem sftp internal-sftp",
        "",
      ].join("\n"),
    );
    return {
      at,
      dir,
      folder,
      config: at("sshd_config"),
      dropIn: path.join(folder, `00-qbackup-${user}.conf`),
    };
  };
  type Scene = ReturnType<typeof scene>;
  const sshdPart = ({ config }: Scene, ...more: ReadonlyArray<string>) =>
    make("server-sshd", "store=/srv/b", `user=${user}`, `sshd_config=${config}`, ...more);
  const effective = ({ config }: Scene, name: string) => {
    if (os.userInfo().uid === 0) fs.mkdirSync("/run/sshd", { recursive: true });
    return execFileSync(sshdPath, ["-T", "-f", config, "-C", `user=${name},host=h,addr=10.0.0.1`], {
      encoding: "utf8",
      stdio: "pipe",
    });
  };
  /** Lines in a block of their own in front: of two blocks that match, the first one wins. */
  const earlier = (line: string) => (folder: string) => [
    "Match User qbt*",
    line,
    "Match all",
    include(folder),
  ];
  const include = (folder: string) => `Include ${folder}/*.conf`;
  /** Far too much trust in clients, but nothing that comes before the drop-in. */
  const trusting = ["AcceptEnv *", "PermitTTY yes", "AllowTcpForwarding yes", "SetEnv FOO=bar"];

  it("takes the drop-in, and what follows it is for everybody again", () => {
    const at = scene((folder) => [include(folder), ...trusting]);
    const done = sshdPart(at);
    assert.strictEqual(done.status, 0, done.text);
    assert.include(done.text, "all of it is in force");
    assert.match(done.text, /warning: .*AcceptEnv \*/);
    assert.include(done.text, `${at.config}:2:AcceptEnv *`);
    const ours = effective(at, user);
    for (const line of [
      "forcecommand /usr/bin/qbackup-shell --root /srv/b --no-init",
      "disableforwarding yes",
      "permittty no",
      "permituserrc no",
      "setenv NODE_OPTIONS=",
    ]) {
      assert.include(ours, line);
    }
    const others = effective(at, "somebody");
    assert.include(others, "forcecommand none");
    assert.include(others, "permittty yes");
    // The name of before goes, once this one is in force.
    const former = path.join(at.folder, `qbackup-${user}.conf`);
    fs.renameSync(at.dropIn, former);
    assert.strictEqual(sshdPart(at).status, 0);
    assert.deepStrictEqual(fs.readdirSync(at.folder), [path.basename(at.dropIn)]);
  });

  // Each is a configuration in which sshd reads the drop-in without a word, and does something else.
  const rivals: ReadonlyArray<
    readonly [what: string, lines: (folder: string) => ReadonlyArray<string>, told: RegExp]
  > = [
    [
      "an earlier Match with its own SetEnv, and AcceptEnv *",
      (folder) => [
        "AcceptEnv *",
        "Match User qbt*",
        "  SetEnv FOO=bar",
        "Match all",
        include(folder),
      ],
      /SetEnv: it has FOO=bar\n +\S*sshd_config:3: {2}SetEnv FOO=bar/,
    ],
    [
      "an Include inside of a Match block",
      (folder) => [
        "Match User somebody",
        "  X11Forwarding no",
        `  ${include(folder)}`,
        "Match all",
      ],
      /the Include in line 3 of \S*sshd_config holds only inside of the block that begins in line 1: Match User somebody/,
    ],
    [
      "an Include inside of a Match block for addresses, ours among them",
      (folder) => ["Match Address 192.0.2.0/24", include(folder), "Match all"],
      /addr=192\.0\.2|holds only inside of the block/,
    ],
    [
      "no Include at all",
      () => ["PermitTTY yes"],
      /does not include \S+; add this as its first line: Include /,
    ],
    [
      "an Include of another pattern",
      (folder) => [`Include ${folder}/[5-9]*.conf`],
      /does not include \S+00-qbackup-\S+; add this as its first line/,
    ],
    [
      "an earlier ForceCommand",
      earlier("ForceCommand /bin/false"),
      /ForceCommand: it has \/bin\/false, not .*\n +\S*sshd_config:2:ForceCommand/,
    ],
    [
      "an earlier Match for some clients' addresses",
      (folder) => [
        "Match Address 10.1.0.0/16,fd00::/8",
        "PermitTTY yes",
        "Match all",
        include(folder),
      ],
      /addr=(10\.1\.0\.0|fd00::),.*\n +PermitTTY: it has yes, not no\n +\S*sshd_config:2:PermitTTY yes/,
    ],
    [
      "an earlier Match for a port",
      (folder) => ["Match LocalPort 2200", "AllowTcpForwarding yes", "Match all", include(folder)],
      /lport=2200.*\n +AllowTcpForwarding: it has yes/,
    ],
    [
      "an earlier Match for a host, written with =",
      (folder) => ["Match host=*.example.org", "X11Forwarding yes", "Match all", include(folder)],
      /host=1\.example\.org.*\n +X11Forwarding: it has yes/,
    ],
    [
      "an agent let through",
      earlier("AllowAgentForwarding yes"),
      /AllowAgentForwarding: it has yes/,
    ],
    ["a tunnel", earlier("PermitTunnel yes"), /PermitTunnel: it has yes/],
    ["sockets", earlier("AllowStreamLocalForwarding yes"), /AllowStreamLocal/],
    ["forwarding", earlier("DisableForwarding no"), /DisableForwarding: /],
    ["PermitOpen", earlier("PermitOpen any"), /PermitOpen: it has any/],
    ["PermitListen", earlier("PermitListen any"), /PermitListen: it has any/],
    ["an rc file", earlier("PermitUserRC yes"), /PermitUserRC: it has yes/],
    [
      "a root of its own",
      earlier("ChrootDirectory /srv"),
      /ChrootDirectory: it has \/srv, where there is no qbackup-shell\n +\S*sshd_config:2:/,
    ],
    ["no keys", earlier("PubkeyAuthentication no"), /PubkeyAuthentication: it has no, so no key/],
    [
      "an environment file",
      (folder) => [include(folder), "PermitUserEnvironment yes"],
      /PermitUserEnvironment: it has yes, not no\n +\S*sshd_config:2:PermitUserEnvironment yes/,
    ],
  ];
  it.each(rivals)("%s: found, named, and the drop-in taken away again", (_, lines, told) => {
    const at = scene(lines);
    const done = sshdPart(at);
    assert.notStrictEqual(done.status, 0, done.text);
    assert.match(done.text, /qbackup: error: sshd would not do what /);
    assert.match(done.text, told);
    assert.deepStrictEqual(fs.readdirSync(at.folder), []);
  });

  it("a rival in another file is named, and a drop-in that was there stays as it was", () => {
    const at = scene((folder) => [include(folder)]);
    assert.strictEqual(sshdPart(at).status, 0);
    const before = fs.readFileSync(at.dropIn, "utf8");
    fs.writeFileSync(path.join(at.folder, "00-a.conf"), `Match User ${user}\n  GatewayPorts yes\n`);
    const done = sshdPart(at, "quota=5M");
    assert.notStrictEqual(done.status, 0, done.text);
    assert.match(
      done.text,
      /GatewayPorts: it has yes, not no\n +\S*00-a\.conf:2: {2}GatewayPorts yes/,
    );
    assert.strictEqual(fs.readFileSync(at.dropIn, "utf8"), before);
  });

  it("an sshd that lets only some accounts in is pointed out", () => {
    for (const [line, told] of [
      [
        "AllowUsers admin alice@10.0.0.1",
        /look whether AllowUsers lets qbt[0-9a-f]+ in:\n +\S*sshd_config:2:/,
      ],
      ["DenyUsers qbt*", /look whether DenyUsers lets/],
      ["AllowGroups wheel", /look whether AllowGroups lets/],
      ["AllowUsers admin qbt*", undefined],
    ] as const) {
      const done = sshdPart(scene((folder) => [include(folder), line]));
      assert.strictEqual(done.status, 0, done.text);
      if (told === undefined) assert.notMatch(done.text, /look whether/);
      else assert.match(done.text, told);
    }
  });

  it("a store that is a link to a directory of the system is refused", () => {
    const link = path.join(tree, "link");
    fs.symlinkSync("/etc", link);
    const at = scene((folder) => [include(folder)]);
    const done = sshdPart(at, `store=${link}`);
    assert.notStrictEqual(done.status, 0);
    assert.match(done.text, /is not for backups alone/);
    assert.deepStrictEqual(fs.readdirSync(at.folder), []);
  });

  it("a configuration that sshd does not start with is told, and left as it was", () => {
    const at = scene((folder) => [include(folder), "NoSuchKeyword yes"]);
    const done = sshdPart(at);
    assert.notStrictEqual(done.status, 0);
    assert.match(done.text, /NoSuchKeyword/);
    assert.deepStrictEqual(fs.readdirSync(at.folder), []);
  });

  it("a real account, in and out", unless(notRoot, without("useradd")), async () => {
    const prefix = path.join(tree, "prefix");
    const shell = path.join(prefix, "bin/qbackup-shell");
    const port = await freePort();
    const at = scene((folder) => [include(folder), ...trusting], port);
    // A running sshd, which has not read the drop-in.
    const stop = await runSshd(at.config, port);
    const install = (...args: ReadonlyArray<string>) =>
      make("server", `user=${user}`, `PREFIX=${prefix}`, `sshd_config=${at.config}`, ...args);
    const entry = () => spawnSync("getent", ["passwd", user], { encoding: "utf8" }).stdout;
    try {
      // A rival: nothing is made, no account either.
      fs.writeFileSync(path.join(at.folder, "00-a.conf"), `Match User ${user}\nPermitTTY yes\n`);
      const refused = install();
      assert.notStrictEqual(refused.status, 0, refused.text);
      assert.match(refused.text, /PermitTTY: it has yes/);
      assert.deepStrictEqual([entry(), fs.existsSync(shell)], ["", false]);
      fs.rmSync(path.join(at.folder, "00-a.conf"));

      const made = install();
      assert.strictEqual(made.status, 0, made.text);
      assert.include(made.text, `made the account ${user}`);
      assert.include(made.text, `init --root /home/${user}\n`);
      assert.include(made.text, `NODE_OPTIONS=unset\n${user}\n`);
      const shown = `runuser -u ${user} -- ${shell} identity --root /home/${user}`;
      assert.include(made.text, shown);
      assert.include(execFileSync("sh", ["-c", shown], { encoding: "utf8" }), "identity --root");
      // The order: the drop-in in force, sshd has it, then the account.
      const order = ["is in force", "kill -HUP", "made the account", "To see it again"].map(
        (text) => made.text.indexOf(text),
      );
      assert.deepStrictEqual(
        order.toSorted((a, b) => a - b),
        order,
      );
      assert.isAtLeast(order[0]!, 0);
      assert.match(entry(), new RegExp(`:/home/${user}:${shell}\n$`));
      assert.strictEqual(fs.statSync(`/home/${user}`).mode & 0o777, 0o700);

      const signer = "A".repeat(43);
      const again = install(`signer=${signer}`);
      assert.strictEqual(again.status, 0, again.text);
      // As the account: what root writes into its store, it could not use.
      assert.include(again.text, `signers add ${signer} --root /home/${user}\n`);
      assert.include(again.text, `NODE_OPTIONS=unset\n${user}\n`);
      assert.notInclude(again.text, "made the account");
      const before = entry();
      const elsewhere = install(`PREFIX=${prefix}2`);
      assert.notStrictEqual(elsewhere.status, 0);
      assert.include(elsewhere.text, `usermod --shell ${prefix}2/bin/qbackup-shell ${user}`);
      assert.strictEqual(entry(), before);
      assert.include(fs.readFileSync(at.dropIn, "utf8"), `ForceCommand ${shell} `);

      // A key is let in only once sshd has read the drop-in: which sshd it is, this file says.
      const keys = `/home/${user}/.ssh/authorized_keys`;
      const key = fs.readFileSync(at.at("key.pub"), "utf8").trim();
      fs.renameSync(at.at("pid"), at.at("pid.away"));
      const untold = install(`key=${key}`);
      assert.notStrictEqual(untold.status, 0, untold.text);
      assert.match(untold.text, /the key was not let in: an sshd is running/);
      assert.isFalse(fs.existsSync(keys));
      fs.renameSync(at.at("pid.away"), at.at("pid"));
      for (let times = 0; times < 2; times++) {
        const letIn = install(`key=${key}`);
        assert.strictEqual(letIn.status, 0, letIn.text);
        assert.isBelow(letIn.text.indexOf("kill -HUP"), letIn.text.indexOf("lets the key in"));
        assert.strictEqual(fs.readFileSync(keys, "utf8"), `${key}\n`);
        assert.strictEqual(fs.statSync(keys).mode & 0o777, 0o600);
      }

      const login = (...args: ReadonlyArray<string>) =>
        spawnSync(
          "ssh",
          ["-F", "none", "-p", String(port), "-i", at.at("key"), "-l", user]
            .concat(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .concat(["-o", "IdentityAgent=none", "-o", "SendEnv=NODE_OPTIONS"])
            .concat(["-o", "BatchMode=yes"])
            .concat(args),
          { encoding: "utf8", env: { ...process.env, NODE_OPTIONS: "--version" }, timeout: 60_000 },
        ).stdout.replaceAll("\r", "");
      const forced = `-c ${shell} --root /home/${user} --no-init\nNODE_OPTIONS=\n${user}\n`;
      assert.strictEqual(login("127.0.0.1", "qbackup/1 list"), `qbackup/1 list\n${forced}`);
      assert.strictEqual(login("127.0.0.1", "a; reboot"), `a; reboot\n${forced}`);
      assert.strictEqual(login("-s", "127.0.0.1", "sftp"), `internal-sftp\n${forced}`);
      assert.strictEqual(login("-W", "127.0.0.1:1", "127.0.0.1"), "");

      const away = make("uninstall-server-sshd", `user=${user}`, `sshd_config=${at.config}`);
      assert.strictEqual(away.status, 0, away.text);
      assert.match(away.text, /systemctl reload/);
      assert.match(away.text, new RegExp(`the account ${user} can still log in`));
      const left = make("uninstall-server", `PREFIX=${prefix}`, `sshd_config=${at.config}`);
      assert.include(left.text, `the account ${user}, its keys in /home/${user}/.ssh`);
      assert.deepStrictEqual(files(prefix), []);
    } finally {
      await stop();
      spawnSync("userdel", ["--remove", user]);
    }
  });

  /** What the page has root type on the new machine for a store that moves there. */
  const moving = /## A store that moves[^]*?```\n([^]*?)```/
    .exec(fs.readFileSync("docs/stolen.md", "utf8"))![1]!
    .trim()
    .split("\n");
  it.each(["its home", "elsewhere"])(
    "a store that moves, as the page says it, to %s",
    unless(notRoot, without("useradd")),
    async (where) => {
      const account = `${user}m`;
      const store = where === "elsewhere" ? path.join(tree, "moved") : `/home/${account}`;
      const prefix = path.join(tree, "prefix3");
      const port = await freePort();
      const at = scene((folder) => [include(folder)], port);
      const key = fs.readFileSync(at.at("key.pub"), "utf8").trim();
      // As another machine had it, of an account that has another number here.
      const old = path.join(tree, "old");
      fs.mkdirSync(path.join(old, ".qbackup"), { recursive: true });
      fs.writeFileSync(path.join(old, ".made"), "the identity of before\n");
      execFileSync("chown", ["-R", "4321:4321", old]);
      execFileSync("chmod", ["-R", "go=", old]);
      const stop = await runSshd(at.config, port);
      try {
        let told = "";
        for (const line of moving) {
          const typed = line
            .replace(
              /^rsync -aH OLD:STORE\/ STORE\/$/,
              `mkdir -p ${store} && cp -a ${old}/. ${store}/`,
            )
            .replace(" server-aa ", " ") // it is this machine's
            .replace("make -C qbackup", `make --silent PREFIX=${prefix} sshd_config=${at.config}`)
            .replace("/usr/bin/", `${prefix}/bin/`)
            .replace(/'ssh-ed25519 .*'/, `'${key}'`)
            .replaceAll("ACCOUNT", account)
            .replaceAll("STORE", store);
          const done = spawnSync("sh", ["-c", typed], { cwd: tree, encoding: "utf8" });
          told = `${done.stdout}${done.stderr}`;
          assert.strictEqual(done.status, 0, `${typed}\n${told}`);
        }
        assert.match(told, /The server's identity, to compare.*\nthe identity of before\n/);
        assert.include(told, "lets the key in\n");
        const home = `/home/${account}`;
        assert.strictEqual(fs.readFileSync(`${home}/.ssh/authorized_keys`, "utf8"), `${key}\n`);
        const { mode, uid } = fs.statSync(path.join(store, ".qbackup"));
        assert.deepStrictEqual([mode & 0o777, uid], [0o700, fs.statSync(home).uid]);
        assert.strictEqual(fs.statSync(store).mode & 0o777, 0o700);
        const forced = `ForceCommand ${prefix}/bin/qbackup-shell --root ${store} --no-init\n`;
        const dropIn = path.join(at.folder, `00-qbackup-${account}.conf`);
        assert.include(fs.readFileSync(dropIn, "utf8"), forced);
        // No second identity anywhere.
        if (where === "elsewhere") assert.isFalse(fs.existsSync(`${home}/.made`));
      } finally {
        await stop();
        spawnSync("userdel", ["--remove", account]);
        fs.rmSync(old, { recursive: true });
        fs.rmSync(store, { recursive: true, force: true });
      }
    },
  );
});
