/**
 * The README's commands, as they stand there, from an empty machine to a backup that is proven and
 * scheduled; the server, the qubes and dom0 are played on one. Genuine are make, the install targets,
 * sshd with an account, ssh and systemctl's enabling. Played are Qubes (the stand-in), a package
 * manager that looks whether the package's program is there, and the copying from machine to machine.
 */
import { assert, it } from "vitest";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { blocksOf } from "#test/support/readme";
import { type Login, type Machine, machine, noMachine, root } from "#test/support/machine";
import { noSshd, unless, without } from "#test/support/unless";
import { dist, passphrase, type Ran } from "#test/support/whole";

const checkout = path.resolve(import.meta.dirname, "../..");
/** The qubes' user is one account, whose home for ssh is that of the carrier. */
const qube = (name: string): Login => ({ user: "user", home: `/qubes/home/${name}` });
/** dom0's user, who is root by another name, since the stand-in's qubesd is one with its caller. */
const dom0: Login = { user: "joanna", home: "/qubes/home/dom0" };
const places: Readonly<Record<string, Login>> = {
  template: qube("tpl"),
  build: qube("build"),
  carrier: qube("backups-vm"),
  server: root,
  dom0,
};

/** Installs nothing, and fails for a package whose program is not there. */
const packages = `#!/bin/sh
[ "\${0##*/}" = qubes-dom0-update ] || shift
for package; do
	case $package in
	nodejs) program=/usr/bin/node ;;
	openssh-server) program=/usr/sbin/sshd ;;
	*) program=$(command -v "$package") ;;
	esac
	[ -x "$program" ] || { echo "no package $package" >&2; exit 100; }
done
`;
const played: Readonly<Record<string, string>> = {
  apt: packages,
  "qubes-dom0-update": packages,
  scp: `#!/bin/sh\n[ "$2" = root@remote.server.my: ] && cp "$1" /root/\n`,
  "qvm-copy": `#!/bin/sh
folder=/qubes/home/backups-vm/QubesIncoming/build
mkdir -p "$folder" && cp "$1" "$folder/" && chown -R user: "\${folder%/*}"
`,
  // Enabling is a matter of files; nothing can be started where systemd is not the first process.
  systemctl: `#!/bin/sh
if [ "$1 $2" = "enable --now" ]; then shift 2; SYSTEMD_OFFLINE=1 exec /usr/bin/systemctl enable "$@"; fi
exec /qubes/bin/systemctl "$@"
`,
  answer: "#!/bin/sh\ncat /tmp/answer\n",
};

const succeeds = async (ran: Promise<Ran>, what: string) => {
  const { code, stderr, stdout } = await ran;
  assert.strictEqual(code, 0, `${what}\n${stdout}${stderr}`);
  return `${stdout}${stderr}`;
};

/** Qubes and the account of each place; nothing of qbackup but its sources in the build qube. */
const prepare = async (m: Machine) => {
  const must = (script: string) => succeeds(m.run(root, script), script);
  for (const [name, text] of Object.entries(played)) {
    fs.writeFileSync(m.at(`/usr/local/bin/${name}`), text, { mode: 0o755 });
  }
  fs.copyFileSync(dist("test/standin"), m.at("/tmp/standin"));
  // A number of its own, and so has the account that comes next: other tests end all that a number owns.
  await must(`useradd -M -N -u 59000 -d ${places["carrier"]!.home} -s /bin/bash user
useradd -M -N -o -u 0 -d ${dom0.home} -s /bin/bash ${dom0.user}
node /tmp/standin init /qubes --qube vault:200K --qube work:300K --qube build:0 --qube backups-vm:0 \\
  --set user='"user"' --set dom0User='"${dom0.user}"'
for tool in /qubes/bin/*; do [ -e "/usr/local/bin/\${tool##*/}" ] || ln -s "$tool" /usr/local/bin/; done
for each in build backups-vm; do qvm-prefs "$each" include_in_backups False; done
# The carrier's file system is the machine's.
rmdir /qubes/root/backups-vm/usr/local/etc/qubes-rpc
ln -s /usr/local/etc/qubes-rpc /qubes/root/backups-vm/usr/local/etc/
mkdir -p /qubes/home/build/qbackup
echo "127.0.0.1 remote.server.my" >> /etc/hosts
# Done by the package of sshd when it is installed.
ssh-keygen -A; mkdir -p /run/sshd; /usr/sbin/sshd`);
  const files = execFileSync(
    "git",
    ["ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    { cwd: checkout, encoding: "utf8" },
  );
  const sources = m.at("/qubes/home/build/qbackup");
  for (const file of files.split("\0").filter((name) => fs.existsSync(name))) {
    fs.cpSync(file, path.join(sources, file));
  }
  // What npm would fetch.
  fs.cpSync(fs.realpathSync("node_modules"), path.join(sources, "node_modules"), {
    recursive: true,
    verbatimSymlinks: true,
  });
  await must("chown -R user: /qubes/home/build");
};

it(
  "the README, word for word: proven, scheduled, and the schedule's own runs proven too",
  unless(noSshd, without("systemctl"), without("make"), without("git"), noMachine()),
  async () => {
    const m = await machine();
    try {
      await prepare(m);
      let said = "";
      /** A line as its place's user types it; sudo is played, since that is not what is tried here. */
      const type = async (place: string, typed: string) => {
        const login = places[place]!;
        const key = /^ {2}(ssh-ed25519 AAAA.*)$/m.exec(said)?.[1];
        const line = typed.replace("ssh-ed25519 AAAA...", key ?? "none was shown");
        const privileged = /^(sudo|scp|qvm-copy) /.test(line);
        const fingerprint = /^ {2}ED25519 {2}(SHA256:\S+)$/m.exec(said)?.[1] ?? "";
        fs.writeFileSync(m.at("/tmp/answer"), `${fingerprint}\n`);
        // What reads from the terminal gets one.
        const asks = line.includes("/dev/stdin");
        const ran = await m.run(
          privileged ? { user: "root", home: login.home } : login,
          privileged
            ? `sudo() { SUDO_USER=$USER HOME=/root "$@"; }; ${line}`
            : asks
              ? `script -qec '${line}' /dev/null`
              : line,
          {
            env: {
              USER: login.user,
              SSH_ASKPASS: "/usr/local/bin/answer",
              SSH_ASKPASS_REQUIRE: "force",
            },
            input: asks ? `${passphrase}\n` : "",
          },
        );
        const text = `${ran.stdout}${ran.stderr}`;
        said += text;
        if (line.startsWith("ssh ")) {
          assert.include(text, "this account keeps backups", text);
        } else assert.strictEqual(ran.code, 0, `${place}: ${line}\n${text}`);
        return text;
      };
      const checksums: Array<string> = [];
      let listed = "";
      for (const { place, text } of blocksOf(fs.readFileSync("README.md", "utf8"))) {
        for (const line of text.trim().split("\n")) {
          const shown = await type(place, line);
          const sum = /^([0-9a-f]{64}) /m.exec(shown)?.[1];
          if (sum !== undefined && /bundle|sha256sum/.test(line)) checksums.push(sum);
          if (line === "qbackup list") listed = shown;
        }
      }
      assert.match(listed, / receipt /);
      // What a person compares.
      assert.lengthOf(checksums, 2);
      assert.strictEqual(checksums[0], checksums[1]);
      // Shown on the server when it is installed, and in dom0 at the first contact.
      const [onServer, inDom0] = [
        /^ *fingerprint +([0-9a-f]{64})$/m,
        /new here has the key fingerprint ([0-9a-f]{64})/,
      ].map((shown) => shown.exec(said)?.[1]);
      assert.isDefined(onServer, said);
      assert.strictEqual(inDom0, onServer, said);

      // Once more changes nothing, and another value is not taken in silence.
      const files = ["/qubes/home/dom0/.bashrc", "/home/backup-awesome-user/.ssh/authorized_keys"];
      const texts = () => files.map((file) => fs.readFileSync(m.at(file), "utf8"));
      const before = texts();
      await type("dom0", "sudo make -C qbackup dom0 to=backups-vm");
      await type(
        "server",
        "make -C qbackup server user=backup-awesome-user key='ssh-ed25519 AAAA...'",
      );
      const as = { user: "root", home: dom0.home };
      const other = await m.run(as, "make -C qbackup dom0 to=other", {
        env: { SUDO_USER: dom0.user },
      });
      assert.notStrictEqual(other.code, 0);
      assert.match(other.stderr, /sets QBKP_DEST_VM to something else already: backups-vm/);
      assert.deepStrictEqual(texts(), before);

      // systemd's part: what is enabled is run as the unit says.
      const wanted = "/etc/systemd/system/timers.target.wants";
      const timers = fs.readdirSync(m.at(wanted)).filter((name) => name.startsWith("qbackup"));
      // The backup first: what reads back finds both archives.
      const jobs = ["", "-audit", "-verify"].map((job) => `qbackup${job}@${dom0.user}.timer`);
      assert.sameMembers(timers, jobs);
      for (const timer of jobs) {
        const target = fs.readlinkSync(m.at(path.join(wanted, timer)));
        assert.match(fs.readFileSync(m.at(target), "utf8"), /^OnCalendar=/m);
        const unit = fs.readFileSync(m.at(target.replace(/timer$/, "service")), "utf8");
        assert.match(unit, /^User=%i$/m);
        const [, command] = /^ExecStart=(.*)$/m.exec(unit)!;
        await succeeds(m.run(dom0, `cd /; exec ${command}`), command!);
      }
      const list = await succeeds(m.run(dom0, "qbackup list --json"), "list");
      const rows = JSON.parse(list) as ReadonlyArray<{ name: string; proof: string }>;
      assert.deepStrictEqual(
        rows.map(({ proof }) => proof),
        ["proven", "proven"],
      );
    } finally {
      m.stop();
    }
  },
);
