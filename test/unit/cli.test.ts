/** The command line of dom0: every way of writing it, and what is said of a wrong one. */
import { NodeServices } from "@effect/platform-node";
import { assert, describe, it } from "@effect/vitest";
import { Effect, Layer } from "effect";
import { Command as Cli } from "effect/cli";
import * as fs from "node:fs";
import { memoryBooks } from "#layers/memory/MemoryBooks";
import { memoryNotifier, type Notification } from "#layers/memory/MemoryNotifier";
import { Itself } from "#services/Itself";
import { memorySealing } from "#layers/memory/MemorySealing";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { BytesError } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { Locks } from "#services/Locks";
import { Qrexec } from "#services/Qrexec";
import { Qubes, QubesError } from "#services/Qubes";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { Settings } from "#services/Settings";
import { parse } from "#src/dom0/cli/argv";
import { command, type Count, type Flag, flagName, toCli } from "#src/dom0/cli/command";
import { commands } from "#src/dom0/cli/commands";
import { dom0, manner } from "#src/dom0/cli/main";
import { closeTo, commandMeant } from "#src/dom0/cli/near";
import { exitCodes } from "#src/say/exit";
import { version } from "#src/say/version";
import { rng } from "#test/support/random";

/** What a command line comes to: the command and what effect/cli gets to read, or another kind. */
const form = (argv: ReadonlyArray<string>): ReadonlyArray<string> => {
  const parsed = parse(commands, argv);
  return parsed.kind === "call"
    ? parsed.wrong === undefined
      ? [parsed.command.name, ...parsed.args]
      : ["wrong", parsed.wrong.message]
    : parsed.kind === "help"
      ? ["help", ...(parsed.of === undefined ? [] : [parsed.of.name])]
      : [parsed.kind];
};

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
      ["-f", "a", "-f", "a"],
      ["run", "--prefix=a", "--"],
    ],
    [
      ["-f", "a", "-f", "b"],
      ["wrong", "-f is given twice: a and b"],
    ],
    [
      ["restore", "--exclude", "a", "x", "--exclude=b,c"],
      ["restore", "--exclude=a,b,c", "--", "x"],
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
    [
      ["list", "-xt", "net"],
      ["list", "--keep-running=true", "--to=net", "--"],
    ],
    [
      ["ledger", "-h"],
      ["help", "ledger"],
    ],
    [["-h"], ["help"]],
    [["vault", "-xh"], ["help"]],
    [
      ["run", "-h", "vault"],
      ["help", "run"],
    ],
    [["--nonsense", "-h"], ["help"]],
    [
      ["--", "-h"],
      ["run", "--", "-h"],
    ],
    [["help"], ["help"]],
    [
      ["help", "list"],
      ["help", "list"],
    ],
    [["help", "constructor"], ["help"]],
    [["--version"], ["version"]],
    [["list", "--version"], ["version"]],
    [["constructor"], ["run", "--", "constructor"]],
    [["--constructor"], ["wrong", "there is no flag --constructor"]],
  ])("%j", (argv, expected) => assert.deepStrictEqual(form(argv), expected));

  it("whatever the words are, they have a form, and it is its own", () => {
    const words = [
      "run list ledger help status vault -- - -h -xo -f -t --to --to=a --json --json= --blocks=1",
      "--window 16 -Zx --exclude=a --exclude b,c --no-json __proto__ --__proto__=x -= \u00e9",
    ].flatMap((line) => ["", ...line.split(" ")]);
    const { int, pick } = rng(1);
    for (let i = 0; i < 20_000; i++) {
      const argv = Array.from({ length: int(0, 6) }, () => pick(words));
      const first = form(argv);
      if (first[0] === "wrong" || first[0] === "help" || first[0] === "version") continue;
      // As a person writes it: a switch has no value.
      const again = form(first.map((word) => word.replace(/=true$/, "")));
      assert.deepStrictEqual(again, first, argv.join(" "));
    }
  });

  it("lines go to the terminal when asked for", () => {
    for (const stderrIsTTY of [true, false]) {
      const tty = { stderrIsTTY };
      const run = { ...tty, terminal: false, unwatched: false };
      assert.deepStrictEqual(manner(["-o", "vault"], tty), { ...run, terminal: true });
      assert.deepStrictEqual(manner(["list"], tty), {
        ...tty,
        terminal: true,
        unwatched: !stderrIsTTY,
      });
      assert.deepStrictEqual(manner(["vault"], tty), run);
      assert.deepStrictEqual(manner(["--", "--terminal=true"], tty), run);
    }
  });
});

/** Runs the program where nothing but the command line may be looked at, and the names of the qubes. */
const cli = Effect.fnUntraced(function* (
  args: ReadonlyArray<string>,
  qubes: ReadonlyArray<string> = ["dom0", "vault", "work", "last"],
  unwritable?: string,
) {
  const said: Said = { lines: [], progress: [] };
  const notes: Array<Notification> = [];
  let out = "";
  const table = qubes.map((name, qid) => ({
    name,
    qid,
    state: "Halted",
    class: "AppVM",
    included: true,
  }));
  const code = yield* dom0.pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args,
          env: {},
          stdin: { read: () => Effect.die("stdin is read"), received: () => 0 },
          stdout: {
            write: (b) =>
              unwritable === undefined
                ? Effect.sync(() => void (out += Buffer.from(b).toString()))
                : Effect.fail(
                    new BytesError({
                      cause: Object.assign(new Error(`${unwritable}: write`), { code: unwritable }),
                    }),
                  ),
            end: Effect.void,
          },
          entropy: () => new Uint8Array(16),
        }),
        memoryReporter(said),
        memoryBooks(),
        Layer.mock(Locks, {}),
        memoryNotifier(notes),
        Layer.mock(Qrexec, {}),
        Layer.mock(Qubes, {
          list:
            qubes.length > 0
              ? Effect.succeed(table)
              : Effect.fail(new QubesError({ doing: "list the qubes", detail: "" })),
        }),
        Layer.mock(QvmBackup, {}),
        Layer.mock(QvmRestore, {}),
        memorySealing,
        Layer.mock(Itself, { runtime: "" }),
        Layer.mock(Settings, { get: () => Effect.succeed(undefined) }),
        NodeServices.layer,
      ),
    ),
  );
  return { code, out, notes, lines: said.lines.map(({ level, text }) => `${level}: ${text}`) };
});

/** One error, one hint, each a printable line; nothing on stdout; exit 2. */
const refusal = Effect.fnUntraced(function* (
  args: ReadonlyArray<string>,
  qubes?: ReadonlyArray<string>,
) {
  const { code, lines, out } = yield* cli(args, qubes);
  assert.deepStrictEqual([code, out], [2, ""], lines.join("\n"));
  assert.lengthOf(lines, 2, lines.join("\n"));
  assert.match(lines[0]!, /^error: [\x20-\x7e]+$/);
  assert.match(lines[1]!, /^hint: [\x20-\x7e]+$/);
  return { error: lines[0]!.slice(7), hint: lines[1]!.slice(6) };
});

const see = (name: string): string => `see "qbackup ${name} --help"`;

describe("what is said of a wrong command line", () => {
  it.effect.each([
    [["--nonsense"], "there is no flag --nonsense", see("run")],
    [["-z"], "there is no flag -z", see("run")],
    [["-xz", "vault"], "there is no flag -z", see("run")],
    [["-q"], "there is no flag -q", see("run")],
    [["-l"], "there is no flag -l", see("run")],
    [["-V"], "there is no flag -V", `did you mean --version? S${see("run").slice(1)}`],
    [
      ["list", "--jsno"],
      "there is no flag --jsno",
      `did you mean --json? S${see("list").slice(1)}`,
    ],
    [["--\u001b[31m\nx"], "there is no flag --?[31m?x", see("run")],
    [["--window", "5"], "--window must be between 16 and 4096 (MiB), not 5", see("run")],
    [["--window", "x"], "--window must be between 16 and 4096 (MiB), not x", see("run")],
    [["--window", "1e2"], "--window must be between 16 and 4096 (MiB), not 1e2", see("run")],
    [["--window", "0x40"], "--window must be between 16 and 4096 (MiB), not 0x40", see("run")],
    [["--window="], "--window must be between 16 and 4096 (MiB), not empty", see("run")],
    [["--window"], "--window needs a value: --window MIB", see("run")],
    [["vault", "-f"], "-f needs a value: -f PREFIX", see("run")],
    [["-t", "a", "--to", "b"], "--to is given twice: a and b", see("run")],
    [["list", "--json=1"], "--json takes no value", see("list")],
    [
      ["list", "--blocks", "5"],
      "--blocks belongs to qbackup audit, not to qbackup list",
      see("list"),
    ],
    [
      ["--json", "vault"],
      "--json belongs to qbackup list, verify and audit, not to qbackup run",
      see("run"),
    ],
    [["list", "a", "b"], "too many arguments for qbackup list: b", see("list")],
    [["recovery-sheet", "b"], "too many arguments for qbackup recovery-sheet: b", undefined],
    [
      ["restore", "--force"],
      "qbackup restore needs NAME",
      `"qbackup list" shows the names. S${see("restore").slice(1)}`,
    ],
    [
      ["verify", "--on-server", "--decrypt", "x"],
      "--on-server and --decrypt exclude each other",
      see("verify"),
    ],
    [
      ["audit", "--blocks", "1", "--budget", "1"],
      "--budget and --blocks exclude each other",
      see("audit"),
    ],
    [["ledger"], "say what to do: qbackup ledger head, check, rebuild or forget", see("ledger")],
    [
      ["ledger", "rebild"],
      "qbackup ledger does not know the word rebild; it knows head, check, rebuild and forget",
      `did you mean rebuild? S${see("ledger").slice(1)}`,
    ],
    [["ledger", "head", "x"], "too many arguments for qbackup ledger: x", see("ledger")],
    [["ledger", "check"], "qbackup ledger check needs HEAD", see("ledger")],
    [["ledger", "forget", "-x"], "qbackup ledger forget needs NAME...", see("ledger")],
  ] as const)("%j", ([args, error, hint]) =>
    Effect.gen(function* () {
      const said = yield* refusal(args);
      assert.strictEqual(said.error, error);
      if (hint !== undefined) assert.strictEqual(said.hint, hint);
    }),
  );
  it.effect.each([
    [["verify", "-t", "net", "../x"], /not a name/],
    [["verify", "-t", "net"], /verify needs NAME, or --newest/],
    [["ledger", "check", "37-ABCD"], /no head of a ledger/],
    [["recovery-sheet"], /the destination qube is not set/],
    [["vault"], /the destination qube is not set/],
    [["-t", "dom0", "vault"], /dom0 cannot carry backups: it has no network/],
    [["list", "-t", "dom0"], /dom0 cannot carry backups: it has no network/],
    [["-t", "net", "vault"], /the passphrase file is not set/],
    [["-t", "net", "-p", "/p", "-f", "../", "vault"], /prefix/],
    [["-t", "net", "-p", "/p", "-f", ".ssh/", "vault"], /prefix/],
    [["list", "-t", "net", "../"], /not a valid archive name prefix/],
  ] as const)("%j is refused by the command itself", ([args, text]) =>
    Effect.map(refusal(args), ({ error, hint }) => {
      assert.match(error, text);
      assert.notInclude(hint, "qbackup -h");
    }),
  );
});

it.effect.each([
  [["--windw=64", "vault"]],
  [["--window=1", "vault"]],
  [["-f", "a", "-f", "b"]],
  [["lst"]],
  [["--", "vault"]],
] as const)("a scheduled run that is refused is heard of once: %j", ([args]) =>
  Effect.map(cli(args), ({ code, notes }) => {
    assert.strictEqual(code, 2);
    assert.deepStrictEqual(
      notes.map(({ urgency }) => urgency),
      ["critical"],
    );
    assert.match(notes[0]!.summary, /exit code 2/);
  }),
);
it.effect("of another command that is refused, too, where no terminal looks on", () =>
  Effect.map(cli(["list", "--windw=64"]), ({ notes }) =>
    assert.deepStrictEqual(
      notes.map(({ summary }) => summary),
      ["qbackup list failed (exit code 2)"],
    ),
  ),
);

describe("stdout that takes nothing", () => {
  const printing = [["-h"], ["list", "-h"], ["--version"], ["recovery-sheet", "-t", "net"]];
  it.effect("because its disk is full: exit 2, and why", () =>
    Effect.gen(function* () {
      for (const args of printing) {
        const { code, lines } = yield* cli(args, undefined, "ENOSPC");
        assert.strictEqual(code, 2, lines.join("\n"));
        assert.include(
          lines,
          "error: not all that was to be printed could be written: ENOSPC: write",
        );
      }
    }),
  );
  it.effect("because nobody reads it any more: that is no failure", () =>
    Effect.gen(function* () {
      for (const args of printing) {
        const { code, lines } = yield* cli(args, undefined, "EPIPE");
        assert.strictEqual(code, 0, lines.join("\n"));
      }
    }),
  );
});

describe("a first word that is no command", () => {
  it.effect.each([
    ["lst", "qbackup list"],
    ["verfy", "qbackup verify"],
    ["restor", "qbackup restore"],
    ["recovery", "qbackup recovery-sheet"],
    ["rnu", "qbackup run"],
    ["status", "qbackup list"],
    ["doctor", "qbackup audit"],
    ["version", "qbackup --version"],
    ["hlep", "qbackup help"],
    ["backup", "qbackup run"],
    ["prune", "qbackup -h"],
  ] as const)("%s: asked about, whatever follows", ([word, command]) =>
    Effect.gen(function* () {
      for (const more of [[], ["x"], ["--on-server", "x"], ["--window", "1"]]) {
        const { error, hint } = yield* refusal([word, ...more], ["dom0", "mail"]);
        assert.strictEqual(error, `no such qube or command: ${word}`);
        assert.strictEqual(
          hint,
          `did you mean "${command}"? A qube of that name is backed up with "qbackup run ${word}"`,
        );
      }
    }),
  );
  it.effect("a qube of exactly that name is backed up, and one that is as near is named too", () =>
    Effect.gen(function* () {
      assert.match((yield* refusal(["lst"], ["lst"])).error, /the destination qube is not set/);
      assert.include((yield* refusal(["lst"])).hint, '"qbackup list", or the qube last?');
    }),
  );
  it.effect("flags before it change nothing, but a command stands first", () =>
    Effect.gen(function* () {
      assert.strictEqual(
        (yield* refusal(["-ot", "net", "lst"])).error,
        "no such qube or command: lst",
      );
      assert.deepStrictEqual(yield* refusal(["-t", "net", "list", "x"]), {
        error: "no such qube: list",
        hint: "a command comes before its flags: qbackup list ...",
      });
      const there = yield* refusal(["-o", "list"], ["list"]);
      assert.match(there.error, /the destination qube is not set/);
    }),
  );
  it.effect("where Qubes does not answer, or it was meant as a qube, nobody is asked", () =>
    Effect.gen(function* () {
      for (const args of [
        ["lst"],
        ["run", "lst"],
        ["-o", "--", "lst"],
        ["--", "lst"],
        ["vault", "lst"],
      ])
        assert.match(
          (yield* refusal(args, args[0] === "lst" ? [] : undefined)).error,
          /the destination qube is not set/,
        );
    }),
  );
  it("what is near: a slip or a beginning, not a word of its own", () => {
    const names = ["list", "verify", "run", "vault"];
    for (const name of names) {
      assert.strictEqual(closeTo(name, names), name);
      for (let i = 0; i < name.length; i++) {
        assert.strictEqual(closeTo(`${name.slice(0, i)}q${name.slice(i)}`, names), name);
        assert.strictEqual(closeTo(`${name.slice(0, i)}q${name.slice(i + 1)}`, names), name);
      }
    }
    assert.strictEqual(closeTo("vualt", names), "vault");
    for (const word of ["", "v", "work", "personal", "sys-net", "l".repeat(100_000)])
      assert.isUndefined(closeTo(word, names), word);
    for (const word of ["vault", "work", "personal", "sys-net", "toString", "constructor"])
      assert.isUndefined(commandMeant(word, commands), word);
  });
});

/** Every flag of every command. */
const every = commands.flatMap((command) =>
  Object.entries<Flag>(command.flags).map(([key, flag]) => ({
    command,
    flag,
    name: flagName(key),
  })),
);
const counts = every.flatMap(({ command, flag, name }) =>
  flag.type === "count" ? [{ command, flag: flag satisfies Count, name }] : [],
);

describe("one definition of each command", () => {
  it("the commands, and every flag once in each", () => {
    assert.deepStrictEqual(
      commands.map(({ name }) => name),
      [
        "run",
        "list",
        "verify",
        "audit",
        "restore",
        "ledger",
        "key",
        "passphrase",
        "recovery-sheet",
        "selftest",
      ],
    );
    for (const { command, flag, name } of every) {
      const same = every.filter((other) => other.name === name);
      // One table tells which flags take a value, before the command's own is known.
      assert.lengthOf(new Set(same.map((other) => other.flag.type === "switch")), 1, name);
      const letters = every.filter(
        (other) => other.command === command && other.flag.short === flag.short,
      );
      if (flag.short !== undefined) assert.lengthOf(letters, 1, `-${flag.short}`);
      // And what a letter means.
      for (const other of every)
        if (flag.short !== undefined && other.flag.short === flag.short)
          assert.strictEqual(other.name, name);
        else if (other.name === name) assert.strictEqual(other.flag.short, flag.short);
      assert.notInclude(["h", "V"], flag.short);
      for (const keys of command.either ?? [])
        for (const key of keys) assert.property(command.flags, key);
    }
  });
  it.effect("it is given what was asked for, and defaults only for what was not", () =>
    Effect.gen(function* () {
      const seen: Array<unknown> = [];
      const one = command({
        name: "one",
        summary: "",
        about: "",
        flags: {
          quick: { type: "switch", help: "" },
          longName: { type: "text", value: "T", help: "" },
          each: { type: "list", value: "E", help: "" },
          size: { type: "count", value: "N", least: 1, most: 9, unit: "", default: 4, help: "" },
          limit: { type: "count", value: "N", least: 1, most: 9, unit: "", help: "" },
        },
        args: {
          first: { label: "FIRST", least: 1, most: 1 },
          second: { label: "SECOND", least: 0, most: 1 },
          rest: { label: "REST", least: 0, most: Infinity },
        },
        exits: {},
        run: (values) => Effect.sync(() => void seen.push(values)),
      });
      for (const line of [
        "one a",
        "one a b c d --quick --long-name=t --each e,f --size 9 --limit=1",
      ]) {
        const parsed = parse([one], line.split(" "));
        assert.strictEqual(parsed.kind, "call");
        if (parsed.kind === "call")
          yield* Cli.runWith(toCli(parsed.command), { version })(parsed.args);
      }
      assert.deepStrictEqual(seen, [
        {
          quick: false,
          longName: undefined,
          each: [],
          size: 4,
          limit: undefined,
          first: "a",
          second: undefined,
          rest: [],
        },
        {
          quick: true,
          longName: "t",
          each: ["e", "f"],
          size: 9,
          limit: 1,
          first: "a",
          second: "b",
          rest: ["c", "d"],
        },
      ]);
    }).pipe(Effect.provide(NodeServices.layer)),
  );
  it.effect.each(counts)("$command.name --$name: from the least to the most", (it) =>
    Effect.gen(function* () {
      const { command, flag, name } = it;
      // One that no archive can have: the command itself refuses it, once its flags are read.
      const words = Object.values(command.args).flatMap(({ least }) => (least > 0 ? ["../x"] : []));
      const said = (value: number) => refusal([command.name, `--${name}=${value}`, ...words]);
      const limits = `--${name} must be between ${flag.least} and ${flag.most} (${flag.unit}), not `;
      for (const value of [flag.least - 1, flag.most + 1])
        assert.strictEqual((yield* said(value)).error, limits + value);
      for (const value of [flag.least, flag.most])
        assert.match((yield* said(value)).error, /that is not |the destination qube is not set/);
      if (flag.default !== undefined) {
        assert.isAtLeast(flag.default, flag.least);
        assert.isAtMost(flag.default, flag.most);
      }
    }),
  );
  it.effect.each(every.filter(({ flag }) => flag.type !== "switch"))(
    "$command.name --$name: needs its value, and is the same by its letter",
    ({ command, flag, name }) =>
      Effect.gen(function* () {
        const short = flag.short === undefined ? `--${name}` : `-${flag.short}`;
        const { error } = yield* refusal([command.name, short]);
        assert.match(error, new RegExp(`^${short} needs a value: ${short} [A-Z]+$`));
        const long = form([command.name, `--${name}`, "16", "head"]);
        assert.deepStrictEqual(form([command.name, short, "16", "head"]), long);
        assert.include(long, `--${name}=16`);
      }),
  );
  it.effect.each(commands)("qbackup $name -h names all that it has, in 80 columns", (command) =>
    Effect.gen(function* () {
      const { code, lines, out } = yield* cli([command.name, "-h"]);
      assert.deepStrictEqual([code, lines], [0, []]);
      assert.match(out, new RegExp(`^usage: qbackup ${command.name} \\[-h`));
      const rows = out.split("\n");
      for (const row of rows) {
        assert.isAtMost(row.length, 80, row);
        assert.notMatch(row, / $|[^ -~]/, row);
      }
      // Apart from the usage, in which they all are as well.
      const text = out.slice(out.indexOf("\n\n")).replaceAll(/\s+/g, " ");
      for (const [key, flag] of Object.entries<Flag>(command.flags)) {
        const value = flag.type === "switch" ? "" : ` ${flag.value}`;
        const letter = flag.short === undefined ? "" : `-${flag.short}, `;
        assert.include(text, `${letter}--${flagName(key)}${value} ${flag.help}`);
        if (flag.setting !== undefined) {
          assert.match(
            text,
            new RegExp(`--${flagName(key)} (?:(?! --?[a-z])[^])*\\[${flag.setting}\\]`),
          );
        }
        if (flag.type === "count") {
          const usual = flag.default === undefined ? "" : `; default ${flag.default}`;
          assert.include(text, `(${flag.unit}, ${flag.least} to ${flag.most}${usual})`);
        }
      }
      for (const { label } of Object.keys(command.actions).length > 0
        ? []
        : Object.values(command.args))
        assert.include(rows.slice(0, rows.indexOf("")).join(" "), label);
      for (const [action, { help, words }] of Object.entries(command.actions))
        assert.include(text, ` ${action} ${words === "" ? "" : `${words} `}${help} `);
      for (const [name, meaning] of Object.entries(command.exits)) {
        assert.property(exitCodes, name);
        assert.include(text, ` ${exitCodes[name as keyof typeof exitCodes][0]} ${meaning}`);
      }
      for (const code of [0, 1, 2]) assert.match(text, new RegExp(` ${code} [a-z]`));
      assert.strictEqual((yield* cli(["help", command.name])).out, out);
    }),
  );
  it.effect("-h: the commands and the flags of a backup on stdout, exit 0", () =>
    Effect.gen(function* () {
      const { code, lines, out } = yield* cli(["-h"]);
      assert.deepStrictEqual([code, lines], [0, []]);
      const rows = out.split("\n");
      for (const row of rows) assert.isAtMost(row.length, 80, row);
      assert.isAtMost(rows.length, 72);
      for (const { name, summary } of commands)
        assert.isTrue(
          rows.some((row) => row.startsWith(`  ${name} `) && row.endsWith(` ${summary}`)),
          name,
        );
      for (const text of [
        "usage: qbackup [-hxo] [-f PREFIX] [-t VM] [-p FILE] [VMS...]",
        "-f, --prefix PREFIX",
        "--version",
        "QBKP_DEST_VM",
        "6  integrity",
        "129, 130, 143",
      ])
        assert.include(out, text);
      for (const args of [["help"], ["vault", "--help"], ["help", "constructor"]])
        assert.strictEqual((yield* cli(args)).out, out);
    }),
  );
  it.effect("--version: package.json's", () =>
    Effect.gen(function* () {
      const file = JSON.parse(fs.readFileSync("package.json", "utf8")) as { version: string };
      assert.strictEqual(version, file.version);
      for (const args of [["--version"], ["list", "--version"]]) {
        const { code, out } = yield* cli(args);
        assert.deepStrictEqual([code, out], [0, `qbackup ${version}\n`]);
      }
    }),
  );
  it("the documents' commands and flags are there", () => {
    const readme = ["README.md", "docs/usage.md", "docs/installation.md", "docs/troubleshooting.md"]
      .map((file) => fs.readFileSync(file, "utf8"))
      .join("\n");
    for (const [code, meaning] of Object.values(exitCodes))
      assert.include(readme.replaceAll("`", ""), `| ${code} | ${meaning} |`);
    const names = commands.map(({ name }) => name);
    const flags = new Set([...every.map(({ name }) => name), "help", "version"]);
    let seen = 0;
    for (const [, line] of readme.matchAll(/(?:^|`)(?:sudo )?qbackup ([^`\n#]*)/gm)) {
      const parsed = parse(commands, line!.trim().split(/\s+/));
      if (/^[a-z]/.test(line!)) {
        const [word] = line!.split(/[\s|]/);
        if (word !== "vault" && word !== "run") assert.include(names, word, line);
      }
      for (const [, flag] of line!.matchAll(/(?:^|[\s[])--([a-z0-9-]+)/g))
        assert.isTrue(flags.has(flag!), `${line}: --${flag}`);
      if (!/[[|.]/.test(line!)) {
        seen++;
        if (parsed.kind === "call") assert.isUndefined(parsed.wrong, line);
      }
    }
    assert.isAtLeast(seen, 5);
  });
});
