import { assert, describe, it } from "@effect/vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import * as Effect from "effect/Effect";
import * as Fiber from "effect/Fiber";
import * as Layer from "effect/Layer";
import * as Schema from "effect/Schema";
import { TestClock } from "effect/testing";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { memorySettings } from "#layers/memory/MemorySettings";
import { cipherOptions, classify, sshOptions } from "#layers/ssh/OpenSshTransport";
import { type ExpectedSsh, recordingSsh } from "#layers/memory/RecordingSsh";
import { Invocation } from "#services/Invocation";
import type { SshReason } from "#services/SshTransport";
import { carrier, requestLimit } from "#src/carrier/carrier";
import { isDestination } from "#src/carrier/destination";
import { version } from "#src/say/version";
import { temporary } from "#test/support/carrier";

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
    ["about", "{}", "qbackup/1 about"],
    [
      "about",
      JSON.stringify({ of: { signer: put.signer, series: put.series } }),
      `qbackup/1 about ${put.signer} ${put.series}`,
    ],
    ["list", "{}", "qbackup/1 list"],
    ["list", '{"prefix":"appvms/"}', "qbackup/1 list appvms/"],
    ["list", '{"after":"a"}', "qbackup/1 list - a"],
    ["manifest", '{"name":"a"}', "qbackup/1 manifest a"],
    ["recipe", '{"name":"a"}', "qbackup/1 recipe a"],
    ["table", JSON.stringify({ session: put.session }), `qbackup/1 table ${put.session}`],
    ["read", "{}", "qbackup/1 read"],
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
    [
      "words of a ticket left out",
      { args: ["put"], stdin: '{"name":"a"}\n' },
      "bad-request",
      /put/,
    ],
    [
      "a ticket of other words",
      { args: ["put"], stdin: `${JSON.stringify({ ...put, signer: `${key}=` })}\n` },
      "bad-request",
      /not what put takes/,
    ],
    ["words for read", { args: ["read"], stdin: '{"name":"a"}\n' }, "bad-request", /not what read/],
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
