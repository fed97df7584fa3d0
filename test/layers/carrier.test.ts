/** The built carrier with the system's ssh and a real sshd: its bytes, its signals, its end. */
import { afterAll, assert, beforeAll, describe, it } from "vitest";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import { bundle, script, type Sshd, start, startSshd, temporary } from "#test/support/carrier";
import { noSshd, unless } from "#test/support/unless";
import { until } from "#test/support/until";

const key = "A".repeat(43);
const put = {
  name: "appvms/a-2026.backup",
  session: "0123456789abcdef0123456789abcdef",
  base: "-",
  series: "appvms-0123456789abcdef",
  run: 7,
  bytes: 1_000_000,
  time: "2026-01-31T04:00:00Z",
  signer: key,
  signature: "A".repeat(86),
};
const putLine = JSON.stringify(put);
const putCommand = `qbackup/1 put ${Object.values(put).join(" ")}`;

describe("with a real ssh", unless(noSshd), () => {
  const directory = temporary();
  const received = path.join(directory, "received");
  const asked = path.join(directory, "asked");
  let program: string;
  let sshd: Sshd;
  beforeAll(async () => {
    program = await bundle(directory);
    sshd = await startSshd(
      directory,
      `printf '%s' "$SSH_ORIGINAL_COMMAND" > ${asked}
      case $SSH_ORIGINAL_COMMAND in
        *check*) echo $PPID; exec cat > ${received} ;;
        *list*) echo $PPID; exec cat /dev/zero ;;
        *read*) echo $PPID; exec sh -c 'read line; [ "$line" = zeros ] && exec cat /dev/zero; echo "asked: $line"; exec cat' ;;
        *) cat > ${received}; echo stored; echo "from the server" >&2; exit 5 ;;
      esac`,
    );
  });
  afterAll(async () => {
    await sshd?.stop();
    fs.rmSync(directory, { recursive: true });
  });

  const call = (args: ReadonlyArray<string>, env: Record<string, string> = {}) =>
    start(program, args, {
      HOME: directory,
      PATH: `${sshd.bin}:/usr/bin:/bin`,
      SSH_CONN: "server",
      QREXEC_REMOTE_DOMAIN: "dom0",
      ...env,
    });
  const putCall = async (env: Record<string, string> = {}) => {
    const { child, ended } = call(["put"], env);
    child.stdin!.end(`${putLine}\n`);
    return ended;
  };

  it("every byte after the request line arrives, in the same write and later", async () => {
    const bytes = randomBytes(3_000_001);
    const { child, ended } = call(["put"]);
    child.stdin!.write(Buffer.concat([Buffer.from(`${putLine}\n`), bytes.subarray(0, 50_000)]));
    await new Promise((wait) => setTimeout(wait, 300));
    child.stdin!.end(bytes.subarray(50_000));
    const { code, stdout, stderr } = await ended;
    assert.deepStrictEqual([code, stdout.toString()], [5, "stored\n"]);
    assert.strictEqual(stderr, "qubes.BackupCarrier: | from the server\n");
    assert.strictEqual(fs.readFileSync(asked, "utf8"), putCommand);
    assert.isTrue(fs.readFileSync(received).equals(bytes));
  });

  it("a request line in pieces", async () => {
    const pieces = call(["put"]);
    for (const part of [putLine.slice(0, 9), putLine.slice(9), "\n", "tail"]) {
      pieces.child.stdin!.write(part);
      await new Promise((wait) => setTimeout(wait, 30));
    }
    pieces.child.stdin!.end();
    assert.strictEqual((await pieces.ended).code, 5);
    assert.strictEqual(fs.readFileSync(received, "utf8"), "tail");
  });

  it("a configuration of the user that would get in the way does not", async () => {
    sshd.configure(
      "Host *",
      "  ControlMaster auto",
      `  ControlPath ${directory}/control-%r`,
      "  ControlPersist 60",
      "  RequestTTY force",
      "  RemoteCommand echo no",
      "  LocalForward 127.0.0.1:1 127.0.0.1:1",
      "  ExitOnForwardFailure yes",
      "  StrictHostKeyChecking no",
      "  LogLevel QUIET",
    );
    const ended = await putCall({ SSH_ASKPASS: "/bin/false", DISPLAY: ":0" });
    sshd.configure();
    assert.deepStrictEqual([ended.code, ended.stdout.toString()], [5, "stored\n"]);
    assert.strictEqual(fs.readFileSync(asked, "utf8"), putCommand);
    assert.notInclude(fs.readdirSync(directory).join(" "), "control-");
  });

  it("a disk is sent whole under a bare name", async () => {
    const disk = path.join(directory, "disk");
    const bytes = randomBytes(1_000_000);
    fs.writeFileSync(disk, bytes);
    const { child, ended } = call([], { DISK_PATH: disk });
    child.stdin!.write("old/form.backup\n");
    assert.strictEqual((await ended).code, 5);
    assert.strictEqual(fs.readFileSync(asked, "utf8"), "old/form.backup");
    assert.isTrue(fs.readFileSync(received).equals(bytes));
  });

  it.each([
    ["/nowhere/disk", /cannot be sent: there is no such file/],
    ["/dev/null", /cannot be sent: it is neither a disk nor a file/],
  ])("the disk %s is refused", async (disk, line) => {
    const { child, ended } = call([], { DISK_PATH: disk });
    child.stdin!.end("a\n");
    const { code, stderr, stdout } = await ended;
    assert.strictEqual(code, 2);
    assert.match(stderr, line);
    assert.match(stdout.toString(), /^\n\{"type":"error".*"from":"carrier"\}\n$/);
  });

  const failure = async (exit: number, line: RegExp, env: Record<string, string> = {}) => {
    const { code, stderr, stdout } = await putCall(env);
    assert.match(stderr, line);
    assert.match(stderr, /^qubes.BackupCarrier: hint: /m);
    assert.deepStrictEqual([code, stdout.toString()], [exit, ""]);
  };
  it("an unknown host key is refused", async () => {
    sshd.trust("none");
    await failure(2, /does not know the host key of server/);
    sshd.trust("right");
  });
  it("a changed host key is refused", async () => {
    sshd.trust("wrong");
    await failure(6, /host key of server is not the one/);
    sshd.trust("right");
  });
  it("a key that the server does not take", async () => {
    sshd.configure("Host *", `  IdentityFile ${directory}/other`);
    fs.renameSync(path.join(directory, "user"), path.join(directory, "away"));
    await failure(2, /does not accept the ssh key of this qube/);
    fs.renameSync(path.join(directory, "away"), path.join(directory, "user"));
    sshd.configure();
  });
  it("nobody listens", async () => {
    sshd.configure("Host server", "  Port 1");
    await failure(
      4,
      /could not connect to server: connect to host 127.0.0.1 port 1: Connection refused/,
    );
    sshd.configure();
  });
  it("a name that does not resolve", () =>
    failure(4, /could not connect to nowhere.invalid: Could not resolve/, {
      SSH_CONN: "nowhere.invalid",
    }));
  it("a configuration that ssh does not take", async () => {
    sshd.configure("Host *", "  NoSuchOption yes");
    await failure(2, /ssh cannot work as it is set up: .*bad configuration options/);
    sshd.configure();
  });
  it("a server and an ssh that have nothing in common", async () => {
    sshd.configure("Host *", "  HostKeyAlgorithms rsa-sha2-512");
    await failure(2, /ssh cannot work as it is set up: .*no matching host key type/);
    sshd.configure();
  });
  it("no ssh at all", async () => {
    const { code, stdout } = await putCall({ PATH: path.join(directory, "nothing") });
    assert.strictEqual(code, 2);
    assert.include(stdout.toString(), "there is no ssh in PATH");
  });

  /** A call whose session is under way, with the process ids of ssh and of the session's sshd. */
  const underWay = async (verb: "check" | "list" | "read" = "check") => {
    const running = call([verb]);
    running.child.stdin!.write(verb === "check" ? '{"name":"a"}\n' : "{}\n");
    const [line] = (await once(running.child.stdout!, "data")) as [Buffer];
    const children = fs.readFileSync(
      `/proc/${running.child.pid}/task/${running.child.pid}/children`,
      "utf8",
    );
    return { ...running, ssh: Number(children.trim()), session: Number(line.toString()) };
  };
  const alive = (pid: number) =>
    fs.existsSync(`/proc/${pid}`) &&
    !/^State:\s+Z/m.test(fs.readFileSync(`/proc/${pid}/status`, "utf8"));
  const gone = async (pid: number) => {
    await until("ssh ends", () => !alive(pid));
    return !alive(pid);
  };

  it.each([
    ["SIGTERM", 143],
    ["SIGHUP", 129],
    ["SIGKILL", null],
  ] as const)("ssh dies with a carrier that gets %s", async (signal, status) => {
    const { child, ended, ssh } = await underWay();
    assert.isTrue(alive(ssh));
    child.kill(signal);
    assert.strictEqual((await ended).code, status);
    assert.isTrue(await gone(ssh));
  });

  it("the carrier ends when ssh is killed", async () => {
    const { ended, ssh } = await underWay();
    process.kill(ssh, "SIGKILL");
    const { code, stderr } = await ended;
    assert.strictEqual(code, 4);
    assert.match(stderr, /the connection to server broke off/);
  });

  it("a connection that dies is told from one that never was", async () => {
    const { ended, session } = await underWay();
    process.kill(session, "SIGKILL");
    const { code, stderr } = await ended;
    assert.strictEqual(code, 4);
    assert.match(stderr, /the connection to server broke off/);
  });

  it("dom0 closing its end ends the session", async () => {
    const { child, ended } = await underWay();
    child.stdin!.end("bytes that no reader takes");
    assert.strictEqual((await ended).code, 0);
    assert.strictEqual(fs.readFileSync(received, "utf8"), "");
  });

  it("read is a conversation: each word arrives as it is said, and is answered", async () => {
    const { child, ended } = await underWay("read");
    let said = "";
    child.stdout!.on("data", (some: Buffer) => (said += some.toString()));
    child.stdin!.write("one\n");
    await until("it is answered", () => said === "asked: one\n");
    child.stdin!.write("two\n");
    await until("the next is, too", () => said === "asked: one\ntwo\n");
    child.stdin!.end();
    assert.strictEqual((await ended).code, 0);
  });

  // They mostly wait: both at once.
  it.concurrent.each(["list", "read"] as const)(
    "a caller of %s that is gone, of whom nobody tells: ssh is ended, though its stdout stays open",
    async (verb) => {
      // As qrexec's agent does it: stdin ends, and stdout stays open, full and unread.
      const { child, ended, session, ssh } = await underWay(verb);
      if (verb === "read") child.stdin!.write("zeros\n");
      child.stdout!.pause();
      child.stdin!.end();
      if (child.exitCode === null) await once(child, "exit");
      assert.isTrue(await gone(ssh));
      assert.isTrue(await gone(session));
      child.stdout!.resume();
      const { code, stderr } = await ended;
      assert.strictEqual(code, 4, stderr);
    },
  );
  it("a caller that will only listen is told all", async () => {
    const { child, ended } = call(["manifest"]);
    child.stdin!.end('{"name":"a"}\n');
    const { code, stdout } = await ended;
    assert.deepStrictEqual([code, stdout.toString()], [5, "stored\n"]);
  });

  it("the paranoid restore's ssh is started as that of an upload, and dies with it", async () => {
    const bin = path.join(directory, "recording");
    fs.mkdirSync(bin);
    const words = (name: string) => path.join(directory, `words-${name}`);
    const asked = async (name: string, args: ReadonlyArray<string>, input: string) => {
      script(path.join(bin, "ssh"), `printf '%s\\n' "$@" > ${words(name)}; exit 3`);
      const { child, ended } = call(args, { PATH: `${bin}:/usr/bin:/bin` });
      child.stdin!.end(input);
      await ended;
      const all = fs.readFileSync(words(name), "utf8").split("\n");
      return all.slice(0, all.indexOf("--"));
    };
    const fetching = ["fetch", "a.backup", "qvm-backup", "5", "1", "0".repeat(64)];
    const upload = await asked("put", ["put"], `${putLine}\n`);
    assert.isAbove(upload.length, 20);
    assert.deepStrictEqual(await asked("fetch", fetching, ""), upload);

    const pid = words("pid");
    script(path.join(bin, "ssh"), `echo $$ > ${pid}.new; mv ${pid}.new ${pid}; exec sleep 600`);
    const { child, ended } = call(fetching, { PATH: `${bin}:/usr/bin:/bin` });
    while (!fs.existsSync(pid)) await new Promise((wait) => setTimeout(wait, 20));
    const ssh = Number(fs.readFileSync(pid, "utf8"));
    assert.isTrue(alive(ssh));
    child.kill("SIGKILL");
    await ended;
    assert.isTrue(await gone(ssh));
  });
});

describe("a disk that only root may read", () => {
  const directory = temporary();
  const disk = path.join(directory, "disk");
  let program: string;
  beforeAll(async () => {
    fs.chmodSync(directory, 0o755);
    program = await bundle(directory);
    script(path.join(directory, "ssh"), "cat");
    fs.writeFileSync(disk, "the bytes", { mode: 0 });
  });
  afterAll(() => fs.rmSync(directory, { recursive: true }));

  const send = async (sudo: string) => {
    script(path.join(directory, "sudo"), sudo);
    const { child, ended } = start(
      program,
      [],
      { HOME: directory, PATH: `${directory}:/usr/bin:/bin`, SSH_CONN: "h", DISK_PATH: disk },
      process.getuid!() === 0 ? 65_534 : undefined,
    );
    child.stdin!.end("a\n");
    return ended;
  };

  it("is read through a sudo that asks for nothing", async () => {
    const { code, stdout } = await send(
      `case "$*" in "-n test -b ${disk}") ;; "-n cat -- ${disk}") printf 'the bytes' ;; *) exit 1 ;; esac`,
    );
    assert.deepStrictEqual([code, stdout.toString()], [0, "the bytes"]);
  });

  it("is refused without one, with what would help", async () => {
    const { code, stderr } = await send("exit 1");
    assert.strictEqual(code, 2);
    assert.match(stderr, /disk cannot be sent: permission denied\n.*hint: .*group disk/);
  });
});
