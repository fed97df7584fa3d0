/** qbackup in dom0: the command line, and the command that it names. */
import { Cause, Effect, Layer } from "effect";
import { CliConfig, CliError, CliOutput, Command as Cli } from "effect/cli";
import { Invocation } from "#services/Invocation";
import { Notifier } from "#services/Notifier";
import { Qubes } from "#services/Qubes";
import { Reporter } from "#services/Reporter";
import { exitCode, exitCodes } from "#src/say/exit";
import { line, printable } from "#src/say/shown";
import { version } from "#src/say/version";
import { type Parsed, parse, reworded } from "./argv.ts";
import { Preamble } from "#src/dom0/far/call";
import { toCli } from "./command.ts";
import { commands } from "./commands.ts";
import { aboutBug, failed, nextStep, type RunFailed } from "#src/dom0/failure";
import { answeringInterrupts } from "./heard.ts";
import { commandHelp, programHelp } from "./help.ts";
import { closeTo, commandMeant } from "./near.ts";
import { allWritten, print, Unwritten } from "./print.ts";
import { watched } from "./view.ts";

/**
 * Where lines go: to the terminal for a run with `-o`, and for commands whose only use is to look. Of
 * these the journal has them too where stderr is no terminal: a timer may have started them.
 */
export const manner = (argv: ReadonlyArray<string>, tty: { readonly stderrIsTTY: boolean }) => {
  const parsed = parse(commands, argv);
  if (parsed.kind !== "call" || parsed.command.name !== "run") {
    return { ...tty, terminal: true, unwatched: !tty.stderrIsTTY };
  }
  const asked = parsed.args.slice(0, parsed.args.indexOf("--")).includes("--terminal=true");
  return { ...tty, terminal: asked, unwatched: false };
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
  const work = Cli.runWith(toCli(command), { version })(args).pipe(
    Effect.provide(silent),
    Effect.catchIf(CliError.isCliError, (error) => refuse(reworded(error, command))),
  );
  // A run has more to show.
  yield* command.name === "run" ? answeringInterrupts(work) : answeringInterrupts(watched(work));
});

/** Nobody may be looking at a command that a timer has started; a run has its own way to tell. */
const told = Effect.fnUntraced(function* (name: string, { about, exit }: RunFailed) {
  const { watched } = yield* Invocation;
  if (watched === true || name === "run") return;
  const { notify } = yield* Notifier;
  const [code, meaning] = exitCodes[exit];
  yield* exit === "integrity" && about !== "carrier"
    ? notify("critical", "Backups are damaged", "See: qbackup list")
    : notify(
        "critical",
        `qbackup ${name} failed (exit code ${code})`,
        `${meaning}. See: journalctl -t qbackup`,
      );
});

/** The program: its value is the exit code. */
export const dom0 = Effect.gen(function* () {
  const { args } = yield* Invocation;
  const reporter = yield* Reporter;
  const parsed = parse(commands, args);
  const work =
    parsed.kind === "version"
      ? print(`qbackup ${version}\n`)
      : parsed.kind === "help"
        ? print(parsed.of === undefined ? programHelp(commands) : commandHelp(parsed.of))
        : perform(parsed);
  return yield* work.pipe(
    Effect.andThen(allWritten),
    Effect.as(exitCode("done")),
    Effect.catchTag("RunFailed", (error) =>
      Effect.gen(function* () {
        yield* reporter.say("error", error.message);
        yield* reporter.say("hint", nextStep(error));
        if (parsed.kind === "call") yield* told(parsed.command.name, error);
        return exitCode(error.exit);
      }),
    ),
    Effect.catchDefect((defect) =>
      Effect.gen(function* () {
        const what = printable(Cause.pretty(Cause.die(defect)).replaceAll("\n", " "), 600);
        yield* reporter.say("error", line`a bug in qbackup: ${what}`);
        yield* reporter.say("hint", aboutBug);
        return exitCode("bug");
      }),
    ),
    Effect.provideServiceEffect(
      Preamble,
      Effect.sync(() => new Set()),
    ),
    Effect.provideServiceEffect(
      Unwritten,
      Effect.sync(() => new Set()),
    ),
  );
});
