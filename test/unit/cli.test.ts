/** The command line of dom0: every way of writing it, and what is said of a wrong one. */
import { NodeServices } from "@effect/platform-node";
import { assert, describe, it } from "@effect/vitest";
import { Effect, Layer } from "effect";
import { memoryReporter, type Said } from "#layers/MemoryReporter";
import { Invocation } from "#services/Invocation";
import { Ledger } from "#services/Ledger";
import { Locks } from "#services/Locks";
import { Notifier } from "#services/Notifier";
import { Qrexec } from "#services/Qrexec";
import { Qubes } from "#services/Qubes";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { Settings } from "#services/Settings";
import { normalise, onTerminal } from "#src/dom0/argv";
import { dom0 } from "#src/dom0/main";

describe("one form for all", () => {
  it.each([
    [[], ["run", "--"]],
    [["vault"], ["run", "--", "vault"]],
    [
      ["-f", "my-", "-t", "net", "-p", "/p", "vault", "work"],
      ["run", "--prefix=my-", "--to=net", "--passphrase-file=/p", "--", "vault", "work"],
    ],
    [
      ["-fmy-", "vault"],
      ["run", "--prefix=my-", "--", "vault"],
    ],
    [
      ["-xo", "vault"],
      ["run", "--keep-running=true", "--terminal=true", "--", "vault"],
    ],
    [
      ["-xof", "my-"],
      ["run", "--keep-running=true", "--terminal=true", "--prefix=my-", "--"],
    ],
    [
      ["vault", "-x"],
      ["run", "--keep-running=true", "--", "vault"],
    ],
    [
      ["-x", "no"],
      ["run", "--keep-running=true", "--", "no"],
    ],
    [
      ["-x", "1"],
      ["run", "--keep-running=true", "--", "1"],
    ],
    [
      ["-f", "a", "-f", "b"],
      ["run", "--prefix=b", "--"],
    ],
    [
      ["-f", "-x"],
      ["run", "--prefix=-x", "--"],
    ],
    [
      ["--", "list"],
      ["run", "--", "list"],
    ],
    [
      ["run", "list"],
      ["run", "--", "list"],
    ],
    [
      ["vault", "list"],
      ["run", "--", "vault", "list"],
    ],
    [
      ["--", "-x"],
      ["run", "--", "-x"],
    ],
    [["list"], ["list", "--"]],
    [
      ["list", "--json", "appvms/"],
      ["list", "--json=true", "--", "appvms/"],
    ],
    [
      ["list", "-t", "net", "--json"],
      ["list", "--to=net", "--json=true", "--"],
    ],
    [
      ["verify", "--on-server", "a.backup", "-t", "net"],
      ["verify", "--on-server=true", "--to=net", "--", "a.backup"],
    ],
    [
      ["audit", "--blocks", "5", "a", "b"],
      ["audit", "--blocks=5", "--", "a", "b"],
    ],
    [
      ["ledger", "check", "37-ABCD"],
      ["ledger", "--", "check", "37-ABCD"],
    ],
    [["ledger", "-h"], ["--help"]],
    [["-h"], ["--help"]],
    [["run", "-h", "vault"], ["--help"]],
    [["help"], ["--help"]],
    [["--version"], ["--version"]],
    [["constructor"], ["run", "--", "constructor"]],
    [["--constructor"], ["run", "--constructor", "--"]],
  ])("%j", (argv, expected) => assert.deepStrictEqual(normalise(argv), expected));

  it("lines go to the terminal when asked for", () => {
    assert.isTrue(onTerminal(["-o", "vault"]));
    assert.isTrue(onTerminal(["list"]));
    assert.isFalse(onTerminal(["vault"]));
    assert.isFalse(onTerminal(["--", "--terminal=true"]));
  });
});

/** Runs the program where nothing but the command line may be looked at. */
const cli = Effect.fnUntraced(function* (...args: ReadonlyArray<string>) {
  const said: Said = { lines: [], progress: [] };
  let out = "";
  const code = yield* dom0.pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args,
          env: {},
          stdin: { read: () => Effect.die("stdin is read"), received: () => 0 },
          stdout: {
            write: (b) => Effect.sync(() => void (out += Buffer.from(b).toString())),
            end: Effect.void,
          },
          entropy: () => new Uint8Array(16),
        }),
        memoryReporter(said),
        Layer.mock(Ledger, { place: "/state" }),
        Layer.mock(Locks, {}),
        Layer.mock(Notifier, { notify: () => Effect.void }),
        Layer.mock(Qrexec, {}),
        Layer.mock(Qubes, {}),
        Layer.mock(QvmBackup, {}),
        Layer.mock(QvmRestore, {}),
        Layer.mock(Settings, { get: () => Effect.succeed(undefined) }),
        NodeServices.layer,
      ),
    ),
  );
  return { code, out, lines: said.lines.map(({ level, text }) => `${level}: ${text}`) };
});

describe("what is said", () => {
  it.effect("-h: the whole help on stdout, exit 0", () =>
    Effect.gen(function* () {
      const { code, lines, out } = yield* cli("-h");
      assert.strictEqual(code, 0);
      assert.deepStrictEqual(lines, []);
      for (const word of [
        "usage:",
        "-f, --prefix",
        "QBKP_DEST_VM",
        "exit codes:",
        "6  integrity",
        "129, 130, 143",
      ])
        assert.include(out, word);
      assert.isAtMost(Math.max(...out.split("\n").map((line) => line.length)), 100);
      assert.deepStrictEqual(yield* cli("run", "--help"), { code, lines, out });
    }),
  );
  it.effect("VERB -h: what belongs to that verb, and every verb is in the whole", () =>
    Effect.gen(function* () {
      const whole = yield* cli("-h");
      assert.isAtMost(whole.out.split("\n").length, 60);
      for (const verb of ["list", "verify", "audit", "ledger", "recovery-sheet"]) {
        assert.include(whole.out, `qbackup ${verb}`);
        const { code, lines, out } = yield* cli(verb, "-h");
        assert.deepStrictEqual([code, lines], [0, []]);
        assert.match(out, new RegExp(`^usage: qbackup ${verb} `));
        assert.isAtMost(out.split("\n").length, 30);
        assert.isAtMost(Math.max(...out.split("\n").map((line) => line.length)), 100);
        assert.strictEqual((yield* cli("help", verb)).out, out);
      }
      assert.strictEqual((yield* cli("help", "constructor")).out, whole.out);
    }),
  );
  it.effect("--version", () =>
    Effect.map(cli("--version"), ({ code, out }) =>
      assert.deepStrictEqual([code, out], [0, "qbackup 1.0.0\n"]),
    ),
  );
  it.effect.each([
    [["--nonsense"], /--nonsense/],
    [["-z"], /-z/],
    [["--window", "8"], /--window/],
    [["--window", "x"], /window/],
    [["--link-timeout", "0"], /--link-timeout/],
    [["-f"], /prefix/],
    [["list", "a", "b"], /b/],
    [["verify"], /name/],
    [["verify", "-t", "net", "../x"], /not a name/],
    [["verify", "-t", "net", "--on-server", "--decrypt", "x"], /exclude each other/],
    [["audit", "--blocks", "0"], /--blocks/],
    [["audit", "--budget", "x"], /budget/],
    [["ledger"], /what is to be done/],
    [["ledger", "check", "37-ABCD"], /no head of a ledger/],
    [["recovery-sheet"], /the destination qube is not set/],
    [["vault"], /the destination qube is not set/],
    [["-t", "net", "vault"], /the passphrase file is not set/],
    [["-t", "net", "-p", "/p", "-f", "../", "vault"], /prefix/],
    [["-t", "net", "-p", "/p", "-f", ".ssh/", "vault"], /prefix/],
    [["list", "-t", "net", "../"], /not the beginning of a name/],
  ] as const)("%j: one clear line, a hint, exit 2", ([args, text]) =>
    Effect.map(cli(...args), ({ code, lines, out }) => {
      assert.strictEqual(code, 2, lines.join("\n"));
      assert.strictEqual(out, "");
      assert.lengthOf(
        lines.filter((line) => line.startsWith("error: ")),
        1,
        lines.join("\n"),
      );
      assert.match(lines[0]!, text);
      assert.isTrue(
        lines.every((line) => /^(error|hint): [\x20-\x7e]+$/.test(line)),
        lines.join("\n"),
      );
    }),
  );
});
