/** qbackup in dom0: the command line, and the verb that it names. */
import { Cause, Effect, Layer, Option } from "effect";
import { Argument, CliConfig, CliOutput, Command, Flag, GlobalFlag } from "effect/cli";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { exitCode } from "#src/wire/exit";
import { printable } from "#src/wire/names";
import { line } from "#src/wire/shown";
import { normalise } from "./argv.ts";
import { audit } from "./audit.ts";
import { lastResort, RunFailed } from "./failure.ts";
import { helpFor, version } from "./help.ts";
import { ledger } from "./ledger.ts";
import { list } from "./list.ts";
import { restore } from "./restore.ts";
import { run } from "./run.ts";
import { recoverySheet } from "./sheet.ts";
import { verify } from "./verify.ts";

const boolean = (name: string) => Flag.Boolean(name).pipe(Flag.withDefault(false));
const text = (name: string) => Flag.String(name).pipe(Flag.optional);
const within = (name: string, least: number, most: number) =>
  Flag.Int(name).pipe(
    Flag.filter(
      (n) => n >= least && n <= most,
      (n) => `--${name} is ${n}, but must be from ${least} to ${most}`,
    ),
  );
const number = (name: string, value: number, least: number, most: number) =>
  within(name, least, most).pipe(Flag.withDefault(value));

/** Minutes in a month: a limit beyond that is a slip. */
const month = 43_200;

const runCommand = Command.make(
  "run",
  {
    prefix: text("prefix"),
    to: text("to"),
    passphraseFile: text("passphrase-file"),
    keepRunning: boolean("keep-running"),
    terminal: boolean("terminal"),
    includeDom0: boolean("include-dom0"),
    window: number("window", 64, 16, 4096),
    linkTimeout: number("link-timeout", 30, 1, month),
    qubesTimeout: number("qubes-timeout", 60, 1, month),
    qubes: Argument.String("vms").pipe(Argument.variadic()),
  },
  ({ passphraseFile, prefix, to, ...options }) =>
    run({
      ...options,
      prefix: Option.getOrElse(prefix, () => ""),
      to: Option.getOrUndefined(to),
      passphraseFile: Option.getOrUndefined(passphraseFile),
    }),
);

const listCommand = Command.make(
  "list",
  {
    to: text("to"),
    keepRunning: boolean("keep-running"),
    json: boolean("json"),
    receipts: boolean("receipts"),
    prefix: Argument.String("prefix").pipe(Argument.optional),
  },
  ({ prefix, to, ...options }) =>
    list({ ...options, to: Option.getOrUndefined(to), prefix: Option.getOrUndefined(prefix) }),
);

const verifyCommand = Command.make(
  "verify",
  {
    to: text("to"),
    passphraseFile: text("passphrase-file"),
    keepRunning: boolean("keep-running"),
    json: boolean("json"),
    onServer: boolean("on-server"),
    decrypt: boolean("decrypt"),
    force: boolean("force"),
    qubesTimeout: number("qubes-timeout", 60, 1, month),
    name: Argument.String("name"),
  },
  ({ passphraseFile, to, ...options }) =>
    verify({
      ...options,
      to: Option.getOrUndefined(to),
      passphraseFile: Option.getOrUndefined(passphraseFile),
    }),
);

/** A block is 1 MiB; more than a million of them is no sample. */
const many = 1_000_000;

const auditCommand = Command.make(
  "audit",
  {
    to: text("to"),
    keepRunning: boolean("keep-running"),
    json: boolean("json"),
    blocks: within("blocks", 1, many).pipe(Flag.optional),
    budget: within("budget", 1, many).pipe(Flag.optional),
    names: Argument.String("names").pipe(Argument.variadic()),
  },
  ({ blocks, budget, to, ...options }) =>
    audit({
      ...options,
      to: Option.getOrUndefined(to),
      blocks: Option.getOrUndefined(blocks),
      budget: Option.getOrUndefined(budget),
    }),
);

const ledgerCommand = Command.make(
  "ledger",
  {
    to: text("to"),
    keepRunning: boolean("keep-running"),
    words: Argument.String("action").pipe(Argument.variadic()),
  },
  ({ to, ...options }) => ledger({ ...options, to: Option.getOrUndefined(to) }),
);

const sheetCommand = Command.make("recovery-sheet", { to: text("to") }, ({ to }) =>
  recoverySheet({ to: Option.getOrUndefined(to) }),
);

const restoreCommand = Command.make(
  "restore",
  {
    to: text("to"),
    passphraseFile: text("passphrase-file"),
    keepRunning: boolean("keep-running"),
    verifyOnly: boolean("verify-only"),
    force: boolean("force"),
    paranoid: boolean("paranoid"),
    exclude: text("exclude"),
    skipDom0Home: boolean("skip-dom0-home"),
    renameConflicting: boolean("rename-conflicting"),
    skipConflicting: boolean("skip-conflicting"),
    skipBroken: boolean("skip-broken"),
    ignoreMissing: boolean("ignore-missing"),
    ignoreUsernameMismatch: boolean("ignore-username-mismatch"),
    ignoreSizeLimit: boolean("ignore-size-limit"),
    compressionFilter: text("compression-filter"),
    qubesTimeout: number("qubes-timeout", 60, 1, month),
    name: Argument.String("name"),
    qubes: Argument.String("vms").pipe(Argument.variadic()),
  },
  ({ compressionFilter, exclude, passphraseFile, to, ...options }) =>
    restore({
      ...options,
      to: Option.getOrUndefined(to),
      passphraseFile: Option.getOrUndefined(passphraseFile),
      exclude: Option.match(exclude, { onNone: () => [], onSome: (names) => names.split(",") }),
      compressionFilter: Option.getOrUndefined(compressionFilter),
    }),
);

const root = Command.make("qbackup").pipe(
  Command.withSubcommands([
    runCommand,
    listCommand,
    verifyCommand,
    auditCommand,
    ledgerCommand,
    sheetCommand,
    restoreCommand,
  ]),
);

/** The program: its value is the exit code. */
export const dom0 = Effect.gen(function* () {
  const { args, stdout } = yield* Invocation;
  const reporter = yield* Reporter;
  const print = (data: string) => Effect.ignore(stdout.write(new TextEncoder().encode(data)));
  const output = Layer.mergeAll(
    CliConfig.layer({ builtIns: [GlobalFlag.Help, GlobalFlag.Version] }),
    CliOutput.layerPresenter({
      present: (event) =>
        event._tag === "Help"
          ? print(helpFor(args))
          : event._tag === "Version"
            ? print(`qbackup ${version}\n`)
            : Effect.void, // told below, as one line
    }),
  );
  const usage = Effect.fnUntraced(function* (errors: ReadonlyArray<{ readonly message: string }>) {
    for (const error of errors) yield* reporter.say("error", printable(error.message));
    if (errors.length > 0) yield* reporter.say("hint", "qbackup -h tells what there is");
    return errors.length > 0 ? exitCode("usage") : exitCode("done");
  });
  return yield* Command.runWith(root, { version })(normalise(args)).pipe(
    Effect.as(exitCode("done")),
    Effect.provide(output),
    Effect.catch((error) => {
      if (error instanceof RunFailed) {
        return Effect.gen(function* () {
          yield* reporter.say("error", error.message);
          yield* reporter.say("hint", error.hint ?? lastResort[error.exit]);
          return exitCode(error.exit);
        });
      }
      return usage(error._tag === "ShowHelp" ? error.errors : [error]);
    }),
    Effect.catchDefect((defect) =>
      Effect.gen(function* () {
        const what = printable(Cause.pretty(Cause.die(defect)).replaceAll("\n", " "), 600);
        yield* reporter.say("error", line`a bug in qbackup: ${what}`);
        yield* reporter.say("hint", lastResort.bug);
        return exitCode("bug");
      }),
    ),
  );
});
