/** qbackup in dom0: the command line, and the command that it names. */
import { Cause, Effect, Layer } from "effect";
import { CliConfig, CliError, CliOutput, Command as Cli } from "effect/cli";
import { Invocation } from "#services/Invocation";
import { Qubes } from "#services/Qubes";
import { Reporter } from "#services/Reporter";
import { exitCode } from "#src/wire/exit";
import { printable } from "#src/wire/names";
import { line } from "#src/wire/shown";
import { version } from "#src/wire/version";
import { type Parsed, parse, reworded } from "./argv.ts";
import { Preamble } from "./call.ts";
import { toCli } from "./command.ts";
import { commands } from "./commands.ts";
import { failed, lastResort, type RunFailed } from "./failure.ts";
import { commandHelp, programHelp } from "./help.ts";
import { closeTo, commandMeant } from "./near.ts";

/** Whether a person asked for lines on the terminal: `-o`, or a command whose only use is to look. */
export const onTerminal = (argv: ReadonlyArray<string>): boolean => {
  const parsed = parse(commands, argv);
  return (
    parsed.kind !== "call" ||
    parsed.command.name !== "run" ||
    parsed.args.slice(0, parsed.args.indexOf("--")).includes("--terminal=true")
  );
};

/** effect/cli says nothing by itself: errors become one line in our words, the help is ours. */
const silent = Layer.mergeAll(
  CliConfig.layer({ builtIns: [] }),
  CliOutput.layerPresenter({ present: () => Effect.void }),
);

/**
 * A first word that is near to a command, or is one, and no qube was meant as the command. Where Qubes does not
 * answer, the run itself will say so.
 */
const checkWord = Effect.fnUntraced(function* (word: string) {
  const meant = commandMeant(word, commands);
  if (meant === undefined) return;
  const all = yield* Effect.option((yield* Qubes).list);
  if (all._tag === "None" || all.value.some(({ name }) => name === word)) return;
  const shown = printable(word, 40);
  if (commands.some(({ name }) => name === word)) {
    return yield* failed(
      "usage",
      `no such qube: ${shown}`,
      `a command comes before its flags: qbackup ${shown} ...`,
    );
  }
  const qube = closeTo(
    word,
    all.value.map(({ name }) => name),
  );
  return yield* failed(
    "usage",
    `no such qube or command: ${shown}`,
    qube === undefined
      ? `did you mean "${meant}"? A qube of that name is backed up with "qbackup run ${shown}"`
      : `did you mean "${meant}", or the qube ${qube}?`,
  );
});

const perform = Effect.fnUntraced(function* <R>({
  args,
  command,
  word,
  wrong,
}: Extract<Parsed<R>, { kind: "call" }>) {
  const refuse = (failure: RunFailed) =>
    Effect.andThen(command.refused ?? Effect.void, Effect.fail(failure));
  if (word !== undefined) yield* Effect.catch(checkWord(word), refuse);
  if (wrong !== undefined) return yield* refuse(wrong);
  yield* Cli.runWith(toCli(command), { version })(args).pipe(
    Effect.provide(silent),
    Effect.catchIf(CliError.isCliError, (error) => refuse(reworded(error, command))),
  );
});

/** The program: its value is the exit code. */
export const dom0 = Effect.gen(function* () {
  const { args, stdout } = yield* Invocation;
  const reporter = yield* Reporter;
  const print = (data: string) => Effect.ignore(stdout.write(new TextEncoder().encode(data)));
  const parsed = parse(commands, args);
  const help = line`see "qbackup ${parsed.kind === "call" ? `${parsed.command.name} ` : ""}--help"`;
  const work =
    parsed.kind === "version"
      ? print(`qbackup ${version}\n`)
      : parsed.kind === "help"
        ? print(parsed.of === undefined ? programHelp(commands) : commandHelp(parsed.of))
        : perform(parsed);
  return yield* work.pipe(
    Effect.as(exitCode("done")),
    Effect.catchTag("RunFailed", (error) =>
      Effect.gen(function* () {
        yield* reporter.say("error", error.message);
        const { exit, hint } = error;
        yield* reporter.say("hint", hint ?? (exit === "usage" ? help : lastResort[exit]));
        return exitCode(error.exit);
      }),
    ),
    Effect.catchDefect((defect) =>
      Effect.gen(function* () {
        const what = printable(Cause.pretty(Cause.die(defect)).replaceAll("\n", " "), 600);
        yield* reporter.say("error", line`a bug in qbackup: ${what}`);
        yield* reporter.say("hint", lastResort.bug);
        return exitCode("bug");
      }),
    ),
    Effect.provideServiceEffect(
      Preamble,
      Effect.sync(() => new Set()),
    ),
  );
});
