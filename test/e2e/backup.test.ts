/** The built programs, all three, with a real FIFO, a real sshd, real signals and real kills. */
import { execFileSync, spawn } from "node:child_process";
import { assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { big, failed, listed, setUp, stored, tidy } from "#test/support/runs";
import { noMount, noScrypt, notRoot, unless, without } from "#test/support/unless";
import { commandFor } from "#test/support/shell";
import { dist, execute, type Whole } from "#test/support/whole";
import { tally } from "#test/support/tally";
import { until } from "#test/support/until";

describe("a backup", () => {
  it("runs from cron: no DISPLAY, no session bus, settings from ~/.bashrc, errors in its mail", async () => {
    const w = await setUp();
    fs.writeFileSync(
      path.join(w.world.home("dom0"), ".bashrc"),
      `export QBKP_DEST_VM=net\nQBKP_PASS_FILE="${w.passphraseFile}"\n`,
    );
    const env = {
      HOME: w.world.home("dom0"),
      PATH: w.world.env["PATH"]!,
      LOGNAME: "user",
      SHELL: "/bin/sh",
    };
    const ran = await execute([dist("qbackup"), "work"], { env, cwd: "/" }).ended;
    assert.strictEqual(ran.code, 0, ran.stderr);
    const [notification] = w.world.notifications();
    assert.strictEqual(notification!.display, ":0");
    assert.match(notification!.bus ?? "", /^unix:path=\/run\/user\/\d+\/bus$/);
    const wrong = await execute([dist("qbackup"), "nobody"], { env, cwd: "/" }).ended;
    assert.strictEqual(wrong.code, 2);
    assert.match(wrong.stderr, /^qbackup: error: no such qube: nobody\n/);
  });

  it("draws a bar on a terminal, in place", async () => {
    const w = await setUp(big());
    w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 9_000_000 });
    const command = `${dist("qbackup")} -t net -p ${w.passphraseFile} work vault`;
    const env = {
      ...w.world.env,
      HOME: w.world.home("dom0"),
      XDG_STATE_HOME: path.dirname(w.state),
      TERM: "xterm",
    };
    const { code, stdout } = await execute(["script", "-qec", command, "/dev/null"], { env }).ended;
    assert.strictEqual(code, 0, stdout);
    const drawn = stdout.split("\r").filter((part) => /MiB sent/.test(part));
    assert.isAbove(drawn.length, 2, stdout);
    assert.match(stdout, /\[#*\.*\] +\d+\.\d\d% +\d+\.\d MiB sent +\d+\.\d [KM]iB\/s +0:0\d:\d\d/);
    assert.match(stdout, /[\r\n]qbackup: stored /);
  });

  it("keeps the time of a run that finds the name taken, and adds the session to the name", async () => {
    const w = await setUp();
    await stored(w, await w.run("work"));
    const { manifest } = await stored(w, await w.run("work"));
    if (w.ledger()[0]!.name.slice(0, 16) === manifest.name.slice(0, 16))
      assert.match(manifest.name, /-[0-9a-f]{6}\.backup$/);
    assert.lengthOf(await listed(w), 2);
  });

  it(
    "compressed with zstd comes back with Qubes and without",
    unless(without("zstd"), noScrypt),
    async () => {
      const w = await setUp();
      const { bytes, manifest } = await stored(w, await w.run("--compress-filter=zstd", "work"));
      assert.include(bytes.toString("latin1"), "\ncompression-filter=zstd\n");
      const args = ["-t", "net", "-p", w.passphraseFile, "--verify-only", manifest.name];
      const ran = await w.start("restore", ...args).ended;
      assert.strictEqual(ran.code, 0, ran.stderr);
      const listed = execFileSync(
        "sh",
        ["install/qbackup-recover", "list", path.join(w.server.store, manifest.name)],
        { encoding: "utf8", env: { ...w.world.env, PASSPHRASE_FILE: w.passphraseFile } },
      );
      assert.match(listed, /^vm\d+\/ +work /m);
      const refused = await w.run("--compress-filter=no-such-program", "work");
      assert.strictEqual(refused.code, 2, refused.stderr);
      assert.match(refused.stderr, /no-such-program is not there/);
    },
  );

  it("two at once: one that may not wait exits 7 at once, one that nobody looks at comes after", async () => {
    const w = await setUp();
    w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 25_000 });
    const first = w.start("-t", "net", "-p", w.passphraseFile, "work");
    await until("the first runs", () => w.world.processes("tar").length > 0);
    const second = await w.run("--wait-for=0", "work");
    assert.strictEqual(second.code, 7, second.stderr);
    assert.match(second.stderr, /another run is under way/);
    assert.isAbove(w.world.processes("tar").length, 0, "the second waited for the first");
    const third = w.start("-t", "net", "-p", w.passphraseFile, "vault");
    await stored(w, await first.ended);
    assert.strictEqual((await third.ended).code, 0);
    assert.lengthOf(await listed(w), 2);
  });
});

describe("the link", () => {
  it("qrexec-client killed in the middle, with qvm-run exiting 0", async () => {
    const w = await setUp(big());
    w.world.faults({ tool: "qvm-run", kind: "kill-client", after: 9_000_000, times: 2 });
    await stored(w, await w.run("work", "vault"));
  });

  it("login shells on both sides that talk before the first reply", async () => {
    const w = await setUp();
    fs.writeFileSync(
      path.join(w.world.home("net"), ".profile"),
      "echo 'Welcome to net'; printf 'no newline'\n",
    );
    const ran = await w.run("-o", "work");
    await stored(w, ran);
    assert.match(ran.stderr, /printed: Welcome to net/);
  });

  /** Ends with one error, one thing to do, and no second try where that would not help. */
  const refused = async (code: number, text: RegExp, change: (w: Whole) => void) => {
    const w = await setUp();
    change(w);
    // A network that may yet come would be waited for.
    const ran = await w.run("--start-timeout=0", "work");
    await failed(w, ran, code, text);
    assert.lengthOf(ran.stderr.match(/error: /g) ?? [], 1, ran.stderr);
    const told = ran.stderr.slice(ran.stderr.indexOf("error: "));
    assert.lengthOf(told.match(/hint: /g) ?? [], 1, ran.stderr);
    assert.notMatch(ran.stderr, /bytes were safe/);
    if (code !== 4) assert.notMatch(ran.stderr, /again in|network/);
    assert.lengthOf(w.world.calls("qvm-backup"), 0);
  };
  const sshOption = (w: Whole, option: string) =>
    fs.writeFileSync(
      path.join(w.dir, "bin/ssh"),
      `#!/bin/sh\nexec /usr/bin/ssh ${option} ${w.server.ssh.join(" ")} "$@"\n`,
      { mode: 0o755 },
    );
  it("an unknown host key", () =>
    refused(2, /does not know the host key of .*hint: in net run "ssh /s, (w) =>
      sshOption(w, "-o UserKnownHostsFile=/dev/null"),
    ));
  it("a changed host key", () =>
    refused(6, /host key of .* is not the one.*hint: somebody may be in between/s, (w) => {
      const known = w.server.ssh.find((word) => word.startsWith("UserKnownHostsFile="))!;
      const [host] = fs.readFileSync(known.slice(known.indexOf("=") + 1), "utf8").split(" ");
      const other = path.join(w.dir, "other");
      execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", other]);
      const [kind, key] = fs.readFileSync(`${other}.pub`, "utf8").split(" ");
      fs.writeFileSync(`${other}.hosts`, `${host} ${kind} ${key}\n`);
      sshOption(w, `-o UserKnownHostsFile=${other}.hosts`);
    }));
  it("a refused key", () =>
    refused(2, /does not accept the ssh key of net.*hint: add the public key/s, (w) =>
      sshOption(w, "-i /dev/null -o IdentityAgent=none -o PubkeyAuthentication=no"),
    ));
  it("an unreachable host", () =>
    refused(4, /could not connect to .*: connect to host .*: Connection refused/, (w) =>
      sshOption(w, "-o Port=1"),
    ));
  it("no SSH_CONN", () =>
    refused(2, /SSH_CONN is not set.*hint: in net, put SSH_CONN=/s, (w) =>
      fs.writeFileSync(path.join(w.world.home("net"), ".bashrc"), ""),
    ));
  it("no service in the qube", () =>
    refused(2, /no service qubes.BackupCarrier/, (w) =>
      fs.rmSync(path.join(w.world.dir, "root/net/etc/qubes-rpc/qubes.BackupCarrier")),
    ));
  it("an older carrier, which knows no verbs", () =>
    refused(
      4,
      /older scripts/,
      (w) =>
        void w.world.service("net", "qubes.BackupCarrier", {
          text: "#!/bin/sh\nread -r path\nexit 0\n",
        }),
    ));
});

describe("Qubes", () => {
  const fault = (
    name: string,
    fault: Record<string, unknown>,
    code: number,
    text: RegExp,
    ...args: ReadonlyArray<string>
  ) =>
    it(name, async () => {
      const w = await setUp();
      w.world.faults({ tool: "qvm-backup", ...fault } as never);
      await failed(w, await w.run(...args, "work", "vault"), code, text);
    });
  fault(
    "qvm-backup exits 1 half-way",
    { kind: "fail", after: 150_000, text: "out of luck" },
    3,
    /exit code 1: .*out of luck/,
  );
  fault("qvm-backup dies with a traceback", { kind: "traceback" }, 3, /exit code 1/);
  fault("qvm-backup writes nothing and exits 0", { kind: "write-nothing" }, 6, /nothing in it/);
  fault(
    "qvm-backup exits 0 without ever opening the FIFO",
    { kind: "write-nothing", open: false },
    6,
    /nothing in it/,
  );
  fault(
    "qvm-backup drops the tail and exits 0",
    { kind: "drop-tail", members: 1 },
    6,
    /nothing of vm/,
  );
  fault("a member is left out", { kind: "missing-member" }, 6, /not whole|no whole archive/);
  fault("a member comes twice", { kind: "doubled-member" }, 6, /is there twice/);
  fault("members are swapped", { kind: "swapped-members", member: "backup-header.hmac" }, 6, /./);
  fault("a tar header is broken", { kind: "broken-tar" }, 6, /tar header/);
  fault("a scrypt header is broken", { kind: "broken-scrypt" }, 6, /scrypt/);
  fault("a qube too many", { kind: "unexpected-qube" }, 6, /not asked for/);
  fault("a whole qube is missing", { kind: "missing-qube" }, 6, /nothing of vm/);
  fault(
    "a qube is removed",
    { kind: "removed", vm: "work" },
    3,
    /work is gone: removed or renamed/,
  );
  fault(
    "a qube is removed once qvm-backup has looked",
    { kind: "removed", vm: "work", stage: "execute" },
    3,
    /work is gone: removed or renamed/,
  );
  fault("bytes behind the end", { kind: "trailing-garbage" }, 6, /./);
  it("qubesd's temporary directory is too small", unless(noMount()), async () => {
    const tmp = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-small-"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=100m", "none", tmp]);
    try {
      const w = await setUp({ settings: { tmpdir: tmp } });
      const text = /only .* are free in .*, where qubesd puts its temporary files/;
      await failed(w, await w.run("work"), 3, text);
      assert.lengthOf(w.world.calls("qvm-backup"), 0);
    } finally {
      execFileSync("umount", ["-l", tmp]);
      fs.rmdirSync(tmp);
    }
  });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    it(`hangs, and a person sends ${signal}`, async () => {
      const w = await setUp();
      w.world.faults({ tool: "qvm-backup", kind: "hang-after", after: 50_000 });
      const { child, ended } = w.start("-t", "net", "-p", w.passphraseFile, "work");
      await until(
        "qvm-backup hangs",
        () => w.world.processes("tar").length > 0 || w.world.profiles().length > 0,
      );
      await new Promise((resolve) => setTimeout(resolve, 300));
      child.kill(signal);
      const ran = await ended;
      assert.strictEqual(ran.code, { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[signal], ran.stderr);
      assert.deepStrictEqual(await listed(w), []);
      await tidy(w);
    });
  }
  it("an unknown qube, a missing passphrase file, an empty one: nothing starts", async () => {
    const w = await setUp();
    const empty = path.join(w.dir, "empty");
    fs.writeFileSync(empty, "\n");
    for (const [args, text] of [
      [["-p", w.passphraseFile, "nobody"], /no such qube: nobody/],
      [["-p", "/nonexistent", "work"], /passphrase file/],
      [["-p", empty, "work"], /blank/],
      [["-p", w.passphraseFile, "-f", "../x", "work"], /prefix/],
      [["-p", w.passphraseFile, "-f", "missing/", "work"], /no-directory/],
    ] as const) {
      const ran = await w.start("-t", "net", ...args).ended;
      assert.strictEqual(ran.code, args.includes("missing/" as never) ? 5 : 2, ran.stderr);
      assert.match(ran.stderr, text);
    }
    assert.lengthOf(w.world.calls("qvm-backup"), 0);
    await tidy(w);
  });
});

describe("kill -9", () => {
  it("of qbackup at random moments: qubesd never hangs, and the next run puts all right", async () => {
    const w = await setUp();
    for (let round = 0; round < 6; round++) {
      w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 400_000 });
      const { child, ended } = w.start("-t", "net", "-p", w.passphraseFile, "work", "vault");
      const startedAt = Date.now();
      await until(
        "the run is at its point",
        () => Date.now() - startedAt > 400 + round * 350 || child.exitCode !== null,
      );
      child.kill("SIGKILL");
      tally("kills", 1);
      await ended;
      // qubesd answers: it is not stuck in opening a FIFO.
      const asked = await execute(["qvm-ls", "--raw-list"], { env: w.world.env, limit: 10_000 })
        .ended;
      assert.strictEqual(asked.code, 0, `qubesd hangs after a kill in round ${round}`);
    }
    w.world.faults();
    await stored(w, await w.run("work", "vault"));
  });
});

describe("the forms of the tool before this one", () => {
  it("its dom0 script: one line with the path, the archive on a disk; listed as unsigned", async () => {
    const w = await setUp({ serverOptions: "--allow-unsigned" });
    const { bytes } = await stored(w, await w.run("work"));
    const disk = path.join(w.dir, "disk");
    fs.writeFileSync(disk, bytes);
    fs.appendFileSync(path.join(w.world.home("net"), ".bashrc"), `export DISK_PATH=${disk}\n`);
    const call = await execute(
      ["qvm-run", "--pass-io", "--no-gui", "--service", "net", "qubes.BackupCarrier"],
      { env: w.world.env, input: Buffer.from("old-2026-01-31T0400.backup\n") },
    ).ended;
    assert.strictEqual(call.code, 0, call.stderr);
    assert.isTrue(
      fs.readFileSync(path.join(w.server.store, "old-2026-01-31T0400.backup")).equals(bytes),
    );
    assert.containsSubset(await listed(w), [{ name: "old-2026-01-31T0400.backup", signer: null }]);
    const list = await w.start("list", "-t", "net").ended;
    assert.match(list.stdout, /^old-2026-01-31T0400\.backup .* unsigned\b/m);
  });
  it("its carrier: ssh with a bare path and the bytes on stdin; nothing that is no archive", async () => {
    const w = await setUp({ serverOptions: "--allow-unsigned" });
    const { bytes } = await stored(w, await w.run("work"));
    assert.strictEqual((await w.ssh("seed.backup", bytes)).code, 0);
    assert.notStrictEqual((await w.ssh("seed.backup", bytes)).code, 0, "overwritten");
    for (const [command, input] of [
      ["ls", Buffer.alloc(0)],
      ["ls", Buffer.from("x".repeat(20_480))],
      ["cut.backup", bytes.subarray(0, 50_000)],
    ] as const) {
      const ran = await w.ssh(command, input);
      assert.notStrictEqual(ran.code, 0, command);
    }
    assert.deepStrictEqual(w.stored().filter((name) => !name.includes("manifest")).length, 2);
  });
  it("are refused by a store that has a signer, unless its owner allows them", async () => {
    const w = await setUp();
    const { bytes } = await stored(w, await w.run("work"));
    const before = w.stored();
    const ran = await w.ssh("seed.backup", bytes);
    assert.strictEqual(ran.code, 5, ran.stderr);
    assert.match(ran.stderr, /takes signed backups only.*--allow-unsigned/);
    assert.deepStrictEqual(w.stored(), before);
  });
});

describe.each(["both", "forced-command"] as const)("an account whose shell comes as %s", (as) => {
  const reason = as === "both" ? notRoot : undefined;
  it("takes a backup, answers list, and does nothing else", unless(reason), async () => {
    const w = await setUp({ as });
    await stored(w, await w.run("work"));
    const before = fs.readdirSync(w.server.store, { recursive: true }).length;
    for (const command of [
      "id",
      "cat /etc/passwd",
      "sh",
      "$(id)",
      "`id`",
      "a;id",
      ".ssh/authorized_keys",
      "../x",
      "/tmp/x",
      "-c id",
      "scp -t .",
      "rsync --server . .",
      "git-upload-pack x",
      "qbackup/1 put ../x 0",
      "constructor",
      "x\ny",
      "",
    ]) {
      const ran = await w.ssh(command, Buffer.from("x"));
      assert.notStrictEqual(ran.code, 0, command);
      assert.notInclude(ran.stdout, "uid=");
    }
    assert.strictEqual(fs.readdirSync(w.server.store, { recursive: true }).length, before);
  });
});

describe("a login shell without a forced command", unless(notRoot), () => {
  it("serves nothing, in one line that says what is missing", async () => {
    const w = await setUp({ as: "login-shell" });
    for (const command of [
      "qbackup/1 list",
      `qbackup/1 put a.backup ${"0".repeat(32)}`,
      "a.backup",
      "id",
      "qbackup-shell identity",
      "qbackup-shell --root /tmp",
    ]) {
      const ran = await w.ssh(command, Buffer.from("x".repeat(20_480)));
      assert.include([2, 5], ran.code, command);
      assert.match(ran.stderr, /^qbackup-shell: error: [^\n]+\n$/, command);
      if (command.startsWith("qbackup/1 ")) {
        assert.match(ran.stderr, /sshd forces no command on this account; .*make server user=/);
        assert.match(ran.stdout, /^\n\{"type":"error","code":"internal",[^\n]*\}\n$/);
      } else assert.strictEqual(ran.stdout, "");
    }
    assert.deepStrictEqual(fs.readdirSync(w.server.store), []);
    const run = await w.run("work");
    assert.strictEqual(run.code, 5, run.stderr);
    assert.match(run.stderr, /sshd forces no command on this account/);
    assert.deepStrictEqual(fs.readdirSync(w.server.store), []);
  });
});

/** The command of a put that the built shell takes for this store. */
const putInto = async (dir: string) => {
  const { stdout } = await execute([dist("qbackup-shell"), "--root", dir], {
    env: { ...process.env, SSH_ORIGINAL_COMMAND: "qbackup/1 about" },
  }).ended;
  const { server } = JSON.parse(stdout) as { readonly server: string };
  return commandFor({}, server, Date.now());
};

describe("a debugger", () => {
  it("is opened by no signal", async () => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-usr1-"));
    const child = spawn(dist("qbackup-shell"), ["--root", dir], {
      env: { ...process.env, SSH_ORIGINAL_COMMAND: await putInto(dir) },
    });
    try {
      let said = "";
      child.stdout.on("data", (bytes: Buffer) => (said += bytes.toString()));
      let told = "";
      child.stderr.on("data", (bytes: Buffer) => (told += bytes.toString()));
      await until("it is ready", () => said.includes('"ready"'));
      child.kill("SIGUSR1");
      // Ten turns: node's own debugger would have said where it listens by then.
      for (let turn = 1; turn <= 10; turn++) {
        child.stdin.write(Buffer.from("80000000", "hex"));
        await until("it answers", () => said.split('"alive"').length > turn);
      }
      assert.strictEqual(told, "");
      assert.isNull(child.exitCode);
    } finally {
      child.kill("SIGKILL");
      fs.rmSync(dir, { recursive: true, force: true });
    }
  });
});

describe("a umask of 0777", () => {
  it("does no harm to the store", async () => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-umask-"));
    try {
      for (const put of [false, true]) {
        const command = put ? await putInto(dir) : "qbackup/1 about";
        const words = `umask 0777; exec "$0" --root ${dir}`;
        const ran = await execute(["sh", "-c", words, dist("qbackup-shell")], {
          env: { ...process.env, SSH_ORIGINAL_COMMAND: command },
        }).ended;
        assert.match(ran.stdout, /"type":"(?:ready|about)"/, ran.stderr);
      }
      const mode = (name: string) => (fs.statSync(path.join(dir, name)).mode & 0o777).toString(8);
      const directories = ["", "incoming", "packs", "digests", "tables", "recipes", "runs"];
      for (const name of directories) assert.strictEqual(mode(`.qbackup/${name}`), "700", name);
      for (const name of ["identity", "signers"])
        assert.strictEqual(mode(`.qbackup/${name}`), "600");
    } finally {
      fs.rmSync(dir, { recursive: true, force: true });
    }
  });
});
