import { assert, describe, it } from "@effect/vitest";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import * as Effect from "effect/Effect";
import * as Fiber from "effect/Fiber";
import * as Layer from "effect/Layer";
import * as Schema from "effect/Schema";
import { TestClock } from "effect/testing";
import { afterAll, beforeAll } from "vitest";
import { memoryReporter, type Said } from "#layers/MemoryReporter";
import { memorySettings } from "#layers/MemorySettings";
import { cipherOptions, classify, sshOptions } from "#layers/OpenSshTransport";
import { type ExpectedSsh, recordingSsh } from "#layers/RecordingSsh";
import { Invocation } from "#services/Invocation";
import type { SshReason } from "#services/SshTransport";
import { carrier, requestLimit } from "#src/carrier/carrier";
import { isDestination } from "#src/carrier/destination";
import { version } from "#src/wire/version";
import { bundle, script, type Sshd, start, startSshd, temporary } from "#test/support/carrier";
import { noSshd, unless } from "#test/support/unless";
import { until } from "#test/support/until";

const session = "0123456789abcdef0123456789abcdef";
const put = { name: "appvms/a-2026.backup", session };
const putLine = JSON.stringify(put);
const putCommand = `qbackup/1 put ${put.name} ${session}`;

interface World {
  readonly args?: ReadonlyArray<string>;
  readonly env?: Readonly<Record<string, string>>;
  /** Undefined: dom0 never writes. */
  readonly stdin?: string | undefined;
  readonly settings?: Readonly<Record<string, string>>;
  readonly ssh?: ReadonlyArray<ExpectedSsh>;
}

/** The program in memory: its exit status, what it wrote and said, and the bytes it left unread. */
const run = ({ args = [], env = {}, settings, ssh = [], ...world }: World) =>
  Effect.gen(function* () {
    const said: Said = { lines: [], progress: [] };
    const input = Buffer.from(world.stdin ?? "");
    let at = 0;
    let stdout = "";
    const invocation = Layer.succeed(Invocation, {
      args,
      env,
      stdin: {
        received: () => at,
        read: (into) =>
          "stdin" in world && world.stdin === undefined
            ? Effect.never
            : Effect.sync(() => {
                const n = input.copy(into, 0, at);
                at += n;
                return n;
              }),
      },
      stdout: {
        write: (bytes) => Effect.sync(() => void (stdout += Buffer.from(bytes).toString())),
        end: Effect.void,
      },
      entropy: () => new Uint8Array(),
    });
    const code = yield* carrier.pipe(
      Effect.provide(
        Layer.mergeAll(
          invocation,
          memorySettings(settings ?? { SSH_CONN: "backup@server" }),
          recordingSsh(...ssh),
          memoryReporter(said),
        ),
      ),
    );
    const lines = said.lines.map(({ level, text }) => `${level}: ${text}`);
    return { code, stdout, lines, left: input.subarray(at).toString() };
  });

const done = { code: 0, reason: "done", said: [] } as const;
const ask = (command: string, answer: ExpectedSsh["answer"] = done) => ({
  destination: "backup@server",
  command,
  answer,
});

describe("requests", () => {
  const requests: ReadonlyArray<readonly [verb: string, line: string, command: string]> = [
    ["put", putLine, putCommand],
    ["list", "{}", "qbackup/1 list"],
    ["list", '{"prefix":"appvms/"}', "qbackup/1 list appvms/"],
    ["manifest", '{"name":"a"}', "qbackup/1 manifest a"],
    ["read", '{"name":"a","first":0,"count":12}', "qbackup/1 read a 0 12"],
    ["check", '{"name":"a"}', "qbackup/1 check a"],
  ];
  it.effect.each(requests)("+%s %s becomes %s", ([verb, line, command]) =>
    Effect.gen(function* () {
      const stdin = `${line}\nthe rest\n`;
      const result = yield* run({ args: [verb], stdin, ssh: [ask(command)] });
      assert.deepStrictEqual(result, { code: 0, stdout: "", lines: [], left: "the rest\n" });
    }),
  );

  it.effect("--version and --help are for a person in the qube, not for a caller", () =>
    Effect.gen(function* () {
      const text = `qubes.BackupCarrier ${version}`;
      assert.deepStrictEqual(yield* run({ args: ["--version"], stdin: "{}\n" }), {
        code: 0,
        stdout: `${text}\n`,
        lines: [],
        left: "{}\n",
      });
      for (const args of [["--help"], ["-h"]]) {
        const { code, lines, stdout } = yield* run({ args });
        assert.deepStrictEqual([code, lines], [0, []]);
        assert.isTrue(stdout.startsWith(`${text}: `));
        assert.match(stdout, /SSH_CONN=account@server/);
      }
      const env = { QREXEC_REMOTE_DOMAIN: "dom0" };
      const called = yield* run({ args: ["--version"], env, stdin: "{}\n" });
      assert.strictEqual(called.code, 2);
      assert.match(called.stdout, /"code":"unsupported"/);
    }),
  );

  it.effect("the argument may come in the environment alone", () =>
    Effect.gen(function* () {
      const env = { QREXEC_SERVICE_ARGUMENT: "list", QREXEC_REMOTE_DOMAIN: "dom0" };
      const { code } = yield* run({ env, stdin: "{}\n", ssh: [ask("qbackup/1 list")] });
      assert.strictEqual(code, 0);
    }),
  );

  it.effect("without an argument, a disk is sent under the bare name", () =>
    Effect.gen(function* () {
      const stdin = "appvms/old.backup\n";
      const wanted = { ...ask("appvms/old.backup"), disk: "/dev/xvdi" };
      assert.strictEqual((yield* run({ args: [""], stdin, ssh: [wanted] })).code, 0);
      const settings = { SSH_CONN: "backup@server", DISK_PATH: "/dev/xvdj" };
      const other = { ...wanted, disk: "/dev/xvdj" };
      assert.strictEqual((yield* run({ stdin, settings, ssh: [other] })).code, 0);
    }),
  );
});

describe("refusals", () => {
  const refusals: ReadonlyArray<
    readonly [what: string, world: World, code: string, message: RegExp]
  > = [
    [
      "a caller that is not dom0",
      { args: ["list"], env: { QREXEC_REMOTE_DOMAIN: "work" } },
      "not-permitted",
      /only dom0/,
    ],
    ["an unknown verb", { args: ["remove"], stdin: "{}\n" }, "unsupported", /no service remove/],
    ["no line", { args: ["list"], stdin: "" }, "bad-request", /no request line came/],
    ["a broken line", { args: ["list"], stdin: "{" }, "bad-request", /breaks off/],
    ["a long line", { args: ["list"], stdin: `${"x".repeat(5000)}\n` }, "bad-request", /longer/],
    [
      "a field too many",
      { args: ["list"], stdin: '{"x":1}\n' },
      "bad-request",
      /not what list takes/,
    ],
    ["a name upwards", { args: ["check"], stdin: '{"name":"../x"}\n' }, "bad-request", /not what/],
    ["a bare name upwards", { stdin: "../x\n" }, "bad-name", /not a name/],
    ["a bare name with words", { stdin: "a b\n" }, "bad-name", /not a name/],
    [
      "no SSH_CONN",
      { args: ["list"], stdin: "{}\n", settings: {} },
      "internal",
      /SSH_CONN is not set/,
    ],
    [
      "an option in SSH_CONN",
      { args: ["list"], stdin: "{}\n", settings: { SSH_CONN: "-oX=y" } },
      "internal",
      /not a destination/,
    ],
  ];
  it.effect.each(refusals)("%s", ([, world, code, message]) =>
    Effect.gen(function* () {
      const result = yield* run(world);
      assert.strictEqual(result.code, 2);
      const [empty, line, ...rest] = result.stdout.split("\n");
      assert.deepStrictEqual([empty, rest], ["", [""]]);
      const reply = JSON.parse(line!) as Record<string, string>;
      assert.deepInclude(reply, { type: "error", code, from: "carrier" });
      assert.match(reply["message"]!, message);
      assert.include(result.lines[0]!, `error: ${reply["message"]}`);
    }),
  );

  it.effect("a request line that never comes, with what may have taken it", () =>
    Effect.gen(function* () {
      const fiber = yield* Effect.forkChild(run({ args: ["put"], stdin: undefined }));
      yield* TestClock.adjust(`${requestLimit - 1} seconds`);
      assert.isUndefined(fiber.pollUnsafe());
      yield* TestClock.adjust("1 seconds");
      const { code, lines } = yield* Fiber.join(fiber);
      assert.strictEqual(code, 2);
      assert.match(lines.join("\n"), /error: no request line.*\nhint: .*~\/\.profile/);
    }),
  );
});

describe("how ssh ended", () => {
  const reasons: ReadonlyArray<readonly [SshReason, number, RegExp]> = [
    ["host-key-unknown", 2, /does not know the host key of backup@server/],
    ["host-key-changed", 6, /is not the one that ssh knows/],
    ["refused-key", 2, /does not accept the ssh key of this qube/],
    ["misconfigured", 2, /ssh cannot work as it is set up: what ssh said/],
    ["unreachable", 4, /could not connect to backup@server: what ssh said/],
    ["lost", 4, /broke off/],
  ];
  it.effect.each(reasons)(
    "%s has a line, a hint and an exit status of its own",
    ([reason, exit, error]) =>
      Effect.gen(function* () {
        const answer = { code: 255, reason, said: ["what ssh said"] };
        const ssh = [ask(putCommand, answer)];
        const result = yield* run({ args: ["put"], stdin: `${putLine}\n`, ssh });
        assert.deepStrictEqual([result.code, result.stdout], [exit, ""]);
        const [said, ...lines] = result.lines;
        assert.strictEqual(said, "info: | what ssh said");
        assert.match(lines.join("\n"), new RegExp(`^error: .*${error.source}.*\nhint: .+$`));
      }),
  );

  it.effect("the server's exit status and words are passed on", () =>
    Effect.gen(function* () {
      const ssh = [
        ask(putCommand, { code: 5, reason: "done", said: ["qbackup-shell: error: full"] }),
      ];
      const result = yield* run({ args: ["put"], stdin: `${putLine}\n`, ssh });
      assert.deepStrictEqual(
        [result.code, result.lines],
        [5, ["info: | qbackup-shell: error: full"]],
      );
    }),
  );

  it.effect.each([126, 127])("but not %d, which is qrexec's own", (code) =>
    Effect.gen(function* () {
      const said = ["bash: line 1: qbackup/1: No such file or directory"];
      const ssh = [ask(putCommand, { code, reason: "done", said })];
      const result = yield* run({ args: ["put"], stdin: `${putLine}\n`, ssh });
      assert.deepStrictEqual([result.code, result.lines.length], [2, 3]);
      assert.match(
        result.lines[1]!,
        /^error: backup@server does not run qbackup-shell: bash: line 1/,
      );
    }),
  );

  it.effect("ssh that could not be started is said to dom0 as well", () =>
    Effect.gen(function* () {
      const ssh = [
        ask(putCommand, { code: 127, reason: "no-ssh", said: ["there is no ssh in PATH"] }),
      ];
      const result = yield* run({ args: ["put"], stdin: `${putLine}\n`, ssh });
      assert.strictEqual(result.code, 2);
      assert.include(result.stdout, '"message":"ssh was not started: there is no ssh in PATH"');
    }),
  );
});

describe("destinations", () => {
  it.each([
    "h",
    "u@h",
    "backup.x@s-1.example.org",
    "10.0.0.1",
    "u@::1",
    "ssh://h",
    "ssh://u@h:2222",
    "ssh://u@[::1]:22",
  ])("%s", (text) => assert.isTrue(isDestination(text)));
  it.each([
    "",
    "-h",
    "-oProxyCommand=x",
    "u@-h",
    "@h",
    "u@",
    "a b",
    "h\n",
    "h;x",
    "$(x)@h",
    "u@h:22",
    "ssh://h:0",
    "ssh://-h",
    "ssh://h/x",
    "h%h",
    "u@h@i",
    "sftp://h",
  ])("not %j", (text) => assert.isFalse(isDestination(text)));
  it.prop("nothing that ssh or a shell gives a meaning to", { text: Schema.String }, ({ text }) => {
    if (isDestination(text)) assert.match(text, /^(?!-)[A-Za-z0-9_.:@/[\]-]+$/);
  });
});

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
  const underWay = async (verb: "check" | "list" = "check") => {
    const running = call([verb]);
    running.child.stdin!.write(verb === "list" ? "{}\n" : '{"name":"a"}\n');
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

  it("a caller that is gone, of whom nobody tells: ssh is ended, though its stdout stays open", async () => {
    // As qrexec's agent does it: stdin ends, and stdout stays open, full and unread.
    const { child, ended, session, ssh } = await underWay("list");
    child.stdout!.pause();
    child.stdin!.end();
    await once(child, "exit");
    assert.isTrue(await gone(ssh));
    assert.isTrue(await gone(session));
    child.stdout!.resume();
    const { code, stderr } = await ended;
    assert.strictEqual(code, 4, stderr);
  });
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
    const fetching = ["fetch", "a.backup", "5", "0".repeat(64)];
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

it("knows ssh's own words", () => {
  const words: ReadonlyArray<readonly [string, SshReason]> = [
    [
      "No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.",
      "host-key-unknown",
    ],
    [
      "Host key for h has changed and you have requested strict checking.\nHost key verification failed.",
      "host-key-changed",
    ],
    ["u@h: Permission denied (publickey).", "refused-key"],
    ["ssh: Could not resolve hostname h: Name or service not known", "unreachable"],
    ["ssh: connect to host h port 22: Connection timed out", "unreachable"],
    [
      "kex_exchange_identification: Connection closed by remote host\nConnection closed by 10.0.0.1 port 22",
      "unreachable",
    ],
    [
      "/home/user/.ssh/config: line 3: Bad configuration option: prot\n/home/user/.ssh/config: terminating, 1 bad configuration options",
      "misconfigured",
    ],
    ["Bad owner or permissions on /home/user/.ssh/config", "misconfigured"],
    [
      "Unable to negotiate with 10.0.0.1 port 22: no matching host key type found. Their offer: ssh-rsa",
      "misconfigured",
    ],
    ["Timeout, server h not responding.", "lost"],
    ["client_loop: send disconnect: Broken pipe", "lost"],
    ["Connection to h closed by remote host.", "lost"],
  ];
  for (const [text, reason] of words) assert.strictEqual(classify(text.split("\n")), reason, text);
  assert.notInclude(sshOptions.join(" "), "accept-new");
});

it("prefers AES-GCM where the processor has AES and no file speaks of ciphers", () => {
  const directory = temporary();
  const etc = path.join(directory, "etc");
  const cpu = path.join(directory, "cpuinfo");
  fs.mkdirSync(path.join(directory, ".ssh"));
  fs.mkdirSync(path.join(etc, "ssh_config.d"), { recursive: true });
  const preferred = (
    files: Readonly<Record<string, string>>,
    flags = "flags\t\t: fpu aes avx\n",
  ) => {
    fs.writeFileSync(cpu, flags);
    for (const [name, text] of Object.entries(files))
      fs.writeFileSync(path.join(directory, name), text);
    const options = cipherOptions(directory, etc, cpu);
    for (const name of Object.keys(files)) fs.rmSync(path.join(directory, name));
    return options.length > 0;
  };
  const debian = {
    "etc/ssh_config": "Include /etc/ssh/ssh_config.d/*.conf\nHost *\n#   Ciphers aes128-ctr\n",
  };
  assert.isTrue(preferred({}));
  assert.isTrue(preferred(debian));
  assert.isTrue(preferred({ ...debian, ".ssh/config": "Host backup\n  Port 2222\n" }));
  assert.isTrue(preferred({}, "Features\t: fp asimd aes\n"));
  assert.isFalse(preferred({}, "flags : fpu\nmodel name : aes\n"));
  assert.isFalse(preferred({ ".ssh/config": "Host x\n  ciphers aes256-ctr\n" }));
  assert.isFalse(preferred({ ".ssh/config": "Include more\n" }));
  assert.isFalse(
    preferred({
      ...debian,
      "etc/ssh_config.d/50-policy.conf": "Include /etc/crypto-policies/back-ends/openssh.config\n",
    }),
  );
  fs.rmSync(directory, { recursive: true });
});
