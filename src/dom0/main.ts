/** qbackup in dom0: the command line, and the verb that it names. */
import { Cause, Effect, Layer, Option } from "effect";
import { Argument, CliConfig, CliOutput, Command, Flag, GlobalFlag } from "effect/cli";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { exitCode } from "#src/wire/exit";
import { printable } from "#src/wire/names";
import { normalise } from "./argv.ts";
import { RunFailed } from "./failure.ts";
import { help, version } from "./help.ts";
import { list } from "./list.ts";
import { run } from "./run.ts";

const boolean = (name: string) => Flag.Boolean(name).pipe(Flag.withDefault(false));
const text = (name: string) => Flag.String(name).pipe(Flag.optional);
const number = (name: string, value: number, least: number, most: number) =>
  Flag.Int(name).pipe(
    Flag.filter(
      (n) => n >= least && n <= most,
      (n) => `--${name} is ${n}, but must be from ${least} to ${most}`,
    ),
    Flag.withDefault(value),
  );

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
    prefix: Argument.String("prefix").pipe(Argument.optional),
  },
  ({ prefix, to, ...options }) =>
    list({ ...options, to: Option.getOrUndefined(to), prefix: Option.getOrUndefined(prefix) }),
);

const root = Command.make("qbackup").pipe(Command.withSubcommands([runCommand, listCommand]));

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
          ? print(help)
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
          if (error.hint !== undefined) yield* reporter.say("hint", error.hint);
          return exitCode(error.exit);
        });
      }
      return usage(error._tag === "ShowHelp" ? error.errors : [error]);
    }),
    Effect.catchDefect((defect) =>
      Effect.gen(function* () {
        const what = printable(Cause.pretty(Cause.die(defect)).replaceAll("\n", " "), 600);
        yield* reporter.say("error", `a bug in qbackup: ${what}`);
        return exitCode("bug");
      }),
    ),
  );
});
