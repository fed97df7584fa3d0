import { assert, describe, it } from "@effect/vitest";
import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeEach } from "vitest";
import {
  freePort,
  keygen,
  noSshd,
  runSshd,
  script,
  sshdPath,
  temporary,
} from "#test/support/carrier";

/** What dom0 gets: the Makefile, what is installed, and dist/; no sources, no npm. */
const tree = temporary();
const stage = path.join(tree, "stage");
for (const name of ["Makefile", "install", "apparmor"]) {
  fs.cpSync(name, path.join(tree, name), { recursive: true });
}
fs.mkdirSync(path.join(tree, "dist"));
// The shell stands in for the real one: it says how it was called.
const stub = `printf '%s\\n' "\${SSH_ORIGINAL_COMMAND-}" "$*" "NODE_OPTIONS=\${NODE_OPTIONS-unset}" "$(id -un)"`;
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

beforeEach(() => fs.rmSync(stage, { recursive: true, force: true }));

const targets: ReadonlyArray<
  readonly [target: string, args: ReadonlyArray<string>, installed: ReadonlyArray<string>]
> = [
  [
    "dom0",
    [],
    [
      "644 /etc/qubes/policy.d/30-qbackup.policy",
      "644 /usr/lib/systemd/system/qbackup@.service",
      "644 /usr/lib/systemd/system/qbackup@.timer",
      "644 /usr/share/bash-completion/completions/qbackup",
      "644 /usr/share/man/man1/qbackup.1",
      "755 /usr/bin/qbackup",
    ],
  ],
  ["templatevm", [], ["755 /etc/qubes-rpc/qubes.BackupCarrier"]],
  ["appvm", [], ["755 /usr/local/etc/qubes-rpc/qubes.BackupCarrier"]],
  ["server", ["user=backup"], ["755 /usr/bin/qbackup-shell"]],
  ["server-sshd", ["user=backup"], ["644 /etc/ssh/sshd_config.d/qbackup-backup.conf"]],
  ["server-aa", [], ["644 /etc/apparmor.d/qbackup-shell"]],
];

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
      read("etc/ssh/sshd_config.d/qbackup-backup.conf"),
      `ForceCommand ${prefix}/bin/qbackup-shell --root `,
    );
    for (const file of files(stage)) {
      const text = read(file.slice(4));
      assert.notMatch(text, /@(PREFIX|USER|STORES?)@/, file);
    }
  });

  it("make alone explains itself; nothing is built where no sources are", () => {
    assert.match(must(), /make server user=NAME/);
    assert.strictEqual(must("build"), "");
  });

  it.each([
    ["server", "user=Robert'; x"],
    ["server", "user="],
    ["server-sshd", "user=-r"],
    ["server-sshd", "user=b store=relative"],
    ["server-aa", "store=/a,b"],
  ])("%s %s is refused", (target, words) => {
    const done = make(target, `DESTDIR=${stage}`, ...words.split(/ (?=store)/));
    assert.notStrictEqual(done.status, 0);
    assert.match(done.text, /qbackup: error: /);
    assert.deepStrictEqual(files(stage), []);
  });
});

const has = (program: string) =>
  ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].some((folder) =>
    fs.existsSync(path.join(folder, program)),
  );

it.skipIf(!has("apparmor_parser")).each([
  ["/usr", ""],
  ["/usr/local", "/srv/backups"],
  ["/opt/q", "/srv/a /srv/b/*"],
])("the profile is well formed for %s %s", (prefix, store) => {
  must("server-aa", `DESTDIR=${stage}`, `PREFIX=${prefix}`, `store=${store}`);
  const profile = path.join(stage, "etc/apparmor.d/qbackup-shell");
  execFileSync("apparmor_parser", ["-Q", "-K", profile], {
    stdio: "pipe",
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
  });
});

it.skipIf(!has("systemd-analyze"))("systemd takes the units", () => {
  must("dom0", `DESTDIR=${stage}`);
  script(path.join(tree, "qbackup"), "true");
  const units = path.join(stage, "usr/lib/systemd/system");
  const service = path.join(units, "qbackup@.service");
  const text = fs
    .readFileSync(service, "utf8")
    .replace("/usr/bin/qbackup", path.join(tree, "qbackup"));
  fs.writeFileSync(service, text);
  const done = spawnSync(
    "systemd-analyze",
    [
      "verify",
      "--man=no",
      path.join(units, "qbackup@a.timer"),
      path.join(units, "qbackup@a.service"),
    ],
    { encoding: "utf8", env: { ...process.env, SYSTEMD_UNIT_PATH: `${units}:` } },
  );
  assert.notMatch(done.stderr, /qbackup@/);
});

const notRoot =
  noSshd ??
  (os.userInfo().uid !== 0
    ? "needs root"
    : fs.existsSync("/usr/bin/node") && has("useradd")
      ? undefined
      : "needs /usr/bin/node and useradd");

describe.skipIf(noSshd !== undefined)(`sshd ${noSshd ?? ""}`, { timeout: 30_000 }, () => {
  const user = `qbt${process.pid}`;
  const dropIn = path.join(stage, `etc/ssh/sshd_config.d/qbackup-${user}.conf`);
  /** A configuration that trusts its clients far too much, and the drop-in in front of it. */
  const config = (port: number) => {
    const at = (name: string) => path.join(tree, name);
    for (const key of ["host", "key"]) if (!fs.existsSync(at(key))) keygen(at(key));
    fs.writeFileSync(
      at("sshd_config"),
      `Include ${dropIn}
ListenAddress 127.0.0.1:${port}
HostKey ${at("host")}
PidFile none
UsePAM no
AcceptEnv *
PermitTTY yes
AllowTcpForwarding yes
Subsystem sftp internal-sftp
SetEnv FOO=bar
`,
    );
    return at("sshd_config");
  };

  it("takes the drop-in, and what follows it is for everybody again", () => {
    must("server-sshd", `DESTDIR=${stage}`, `user=${user}`, "store=/srv/b");
    if (os.userInfo().uid === 0) fs.mkdirSync("/run/sshd", { recursive: true });
    const file = config(2222);
    const effective = (name: string) =>
      execFileSync(sshdPath, ["-T", "-f", file, "-C", `user=${name},host=h,addr=10.0.0.1`], {
        encoding: "utf8",
        stdio: "pipe",
      });
    const ours = effective(user);
    for (const line of [
      "forcecommand /usr/bin/qbackup-shell --root /srv/b",
      "disableforwarding yes",
      "permittty no",
      "permituserrc no",
      "setenv NODE_OPTIONS=",
    ]) {
      assert.include(ours, line);
    }
    const others = effective("somebody");
    assert.include(others, "forcecommand none");
    assert.include(others, "permittty yes");
  });

  it.skipIf(notRoot !== undefined)(`a real account, in and out ${notRoot ?? ""}`, async () => {
    const prefix = path.join(tree, "prefix");
    const shell = path.join(prefix, "bin/qbackup-shell");
    let stop = async () => {};
    try {
      const made = must("server", `user=${user}`, `PREFIX=${prefix}`);
      assert.include(made, `made the account ${user}`);
      assert.include(made, `identity --root /home/${user}\n`);
      assert.include(made, `NODE_OPTIONS=unset\n${user}\n`);
      const entry = () => execFileSync("getent", ["passwd", user], { encoding: "utf8" });
      assert.match(entry(), new RegExp(`:/home/${user}:${shell}\n$`));
      assert.strictEqual(fs.statSync(`/home/${user}`).mode & 0o777, 0o700);

      const again = must("server", `user=${user}`, `PREFIX=${prefix}`);
      assert.notInclude(again, "made the account");
      const before = entry();
      const elsewhere = must("server", `user=${user}`, `PREFIX=${prefix}2`);
      assert.include(elsewhere, `usermod --shell ${prefix}2/bin/qbackup-shell ${user}`);
      assert.strictEqual(entry(), before);

      must("server-sshd", `DESTDIR=${stage}`, `user=${user}`, `PREFIX=${prefix}`);
      const port = await freePort();
      stop = await runSshd(config(port), port);
      const ssh = `/home/${user}/.ssh`;
      fs.mkdirSync(ssh, { mode: 0o700 });
      fs.copyFileSync(path.join(tree, "key.pub"), path.join(ssh, "authorized_keys"));
      execFileSync("chown", ["-R", user, ssh]);

      const login = (...args: ReadonlyArray<string>) =>
        spawnSync(
          "ssh",
          ["-F", "none", "-p", String(port), "-i", path.join(tree, "key"), "-l", user]
            .concat(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .concat([
              "-o",
              "IdentityAgent=none",
              "-o",
              "SendEnv=NODE_OPTIONS",
              "-o",
              "BatchMode=yes",
            ])
            .concat(args),
          { encoding: "utf8", env: { ...process.env, NODE_OPTIONS: "--version" }, timeout: 20_000 },
        ).stdout.replaceAll("\r", "");
      const forced = `-c ${shell} --root /home/${user}\nNODE_OPTIONS=\n${user}\n`;
      assert.strictEqual(login("127.0.0.1", "qbackup/1 list"), `qbackup/1 list\n${forced}`);
      assert.strictEqual(login("127.0.0.1", "a; reboot"), `a; reboot\n${forced}`);
      assert.strictEqual(login("-s", "127.0.0.1", "sftp"), `internal-sftp\n${forced}`);
      assert.strictEqual(login("-W", "127.0.0.1:1", "127.0.0.1"), "");
    } finally {
      await stop();
      spawnSync("userdel", ["--remove", user]);
    }
  });
});
