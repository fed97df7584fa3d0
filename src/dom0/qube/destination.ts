/** The destination qube: which one, running for as long as it is needed, and stopped again. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Ledger } from "#services/Ledger";
import { Locks } from "#services/Locks";
import { type Power, Qubes, type QubesError } from "#services/Qubes";
import { Reporter } from "#services/Reporter";
import { RunMark } from "#services/RunMark";
import { Settings } from "#services/Settings";
import type { Session } from "#src/wire/names";
import { line } from "#src/say/shown";
import { type Count, countOf, flagName, type List, type Text } from "#src/dom0/cli/command";
import { alarmAfter, passphraseFile, to } from "#src/dom0/cli/flags";
import { toldIfSlow } from "#src/dom0/cli/heard";
import { failed } from "#src/dom0/failure";
import { pendingIn, remark } from "#src/dom0/books/record";
import { inLedger, warned } from "#src/dom0/books/unusable";

/** A flag for which a setting stands where it is not given. */
type Settable<F> = F & { readonly setting: string };

/** What was given, or else what the flag's setting says. */
export const settingOr = Effect.fnUntraced(function* (
  given: string | undefined,
  { setting }: Settable<Text | List>,
) {
  if (given !== undefined && given !== "") return given;
  return yield* saidBy(setting);
});

/** What a wrong value of settingOr came from: the flag that was given, or else its setting. */
export const saidIn = (
  given: string | undefined,
  name: string,
  { setting }: Settable<Text>,
): string => (given !== undefined && given !== "" ? `--${flagName(name)}` : setting);

const saidBy = Effect.fnUntraced(function* (setting: string) {
  return yield* (yield* Settings)
    .get(setting)
    .pipe(
      Effect.mapError(({ line, message }) =>
        failed(
          "usage",
          message,
          line > 0
            ? "give it a literal value"
            : `mend that file, or set ${setting} in the environment`,
        ),
      ),
    );
});

/** As settingOr, of a number; within the flag's own limits, or its default. */
export const countOr = Effect.fnUntraced(function* (
  given: number | undefined,
  name: string,
  flag: Settable<Count> & { readonly default: number },
) {
  if (given !== undefined) return given;
  const { least, most, setting, unit } = flag;
  const found = yield* saidBy(setting);
  if (found === undefined) return flag.default;
  return (
    countOf(flag, found) ??
    (yield* failed(
      "usage",
      `${setting} is no number of ${unit} from ${least} to ${most}: ${found}`,
      `set it to a number in that range, or give --${flagName(name)}`,
    ))
  );
});

const mustBeSet = Effect.fnUntraced(function* (
  given: string | undefined,
  flag: Settable<Text> & { readonly short: string },
  what: string,
) {
  return (
    (yield* settingOr(given, flag)) ??
    (yield* failed(
      "usage",
      `${what} is not set`,
      `give -${flag.short} ${flag.value}, or set ${flag.setting} in ~/.bashrc`,
    ))
  );
});

export const destinationFor = Effect.fnUntraced(function* (given: string | undefined) {
  const destination = yield* mustBeSet(given, to, "the destination qube");
  if (destination !== "dom0") return destination;
  return yield* failed(
    "usage",
    "dom0 cannot carry backups: it has no network",
    `name the qube that holds the ssh key: -${to.short} ${to.value}`,
  );
});

/** After how many days without anything read back an alarm is due. */
export const alarmAfterFor = (given: number | undefined) =>
  countOr(given, "alarmAfter", alarmAfter);

export const settingsFor = Effect.fnUntraced(function* (options: {
  readonly to: string | undefined;
  readonly passphraseFile: string | undefined;
}) {
  const destination = yield* destinationFor(options.to);
  const file = yield* mustBeSet(options.passphraseFile, passphraseFile, "the passphrase file");
  return { destination, passphraseFile: file };
});

/** The name of the lock on what may be done only one at a time with a ledger. */
export const lockOf = (place: string): string => `a run with the ledger in ${place}`;

/** One run at a time for each ledger; held until the scope closes. A verb that only looks steps aside. */
export const takeLock = Effect.gen(function* () {
  const { place } = yield* Ledger;
  yield* (yield* Locks).hold(lockOf(place), { stepDownWithin: "1 second" }).pipe(
    Effect.catchTags({
      LockBusy: () =>
        failed("locked", "another run is under way", "it shows in: journalctl -t qbackup"),
      LockFailed: (error) => failed("bug", `no lock: ${String(error.cause)}`),
    }),
  );
});

/** Hours for which what nobody looks at waits for a run: no night's work takes longer. */
const unattended = 12;
/** Between two looks; a run that only just ended has waited for nobody. */
const again = "15 seconds";

/**
 * As takeLock, but waits for so many hours. What a timer or cron has started waits unless it is told not to:
 * otherwise these qubes would not be backed up, every night, or nothing decrypted for a month. A person is told
 * at once.
 */
export const waitForLock = Effect.fnUntraced(function* (hours: number | undefined) {
  const { watched } = yield* Invocation;
  const limit = hours ?? (watched === true ? 0 : unattended);
  const { say } = yield* Reporter;
  for (let waited = 0; ; waited += 15) {
    const busy = yield* takeLock.pipe(
      Effect.as(undefined),
      Effect.catchIf(
        ({ exit }) => exit === "locked",
        (failure) => Effect.succeed(failure),
      ),
    );
    if (busy === undefined) return;
    if (waited >= limit * 3600) return yield* busy;
    if (waited === 0)
      yield* say("info", line`another run is under way: waiting for it, up to ${limit} h`);
    yield* Effect.sleep(again);
  }
});

/**
 * Has the destination qube run until the scope closes, and stops it then if it did not run before,
 * or if a killed run had started it. The mark in the ledger comes first, so that a kill in between
 * is put right by the next run.
 */
export const startDestination = Effect.fnUntraced(function* (options: {
  readonly destination: string;
  readonly session: Session;
  readonly keepRunning: boolean;
  /** Whether the qube is on, where that is being asked already. */
  readonly power?: Effect.Effect<Power, QubesError>;
  /** Whether somebody else has taken the qube over meanwhile, and the mark with it. */
  readonly takenOver?: () => boolean;
}) {
  const { destination, session } = options;
  const qubes = yield* Qubes;
  const mark = yield* RunMark;
  const reporter = yield* Reporter;
  const fromQubes = <A, R>(effect: Effect.Effect<A, { readonly message: string }, R>) =>
    Effect.mapError(effect, (error) => failed("qubes", error.message));

  const left = yield* inLedger(mark.read);
  const power = yield* fromQubes(options.power ?? qubes.power(destination));
  if (power === "paused") {
    // Whoever paused it had a reason, and qvm-run would unpause it without a word.
    return yield* failed(
      "qubes",
      `the destination qube ${destination} is paused`,
      `qvm-unpause ${destination}, or shut it down; then run again`,
    );
  }
  const running = power === "on";
  // Before anything is noted of it. A run has looked at all qubes anyway.
  if (!running && options.power === undefined) {
    const all = yield* fromQubes(qubes.list);
    if (!all.some(({ name }) => name === destination)) {
      return yield* failed(
        "usage",
        `the destination qube does not exist: ${destination}`,
        "qvm-ls lists the qubes",
      );
    }
  }
  const adopted = left?.started === true && left.destination === destination;
  if (left?.started === true && !adopted) {
    yield* reporter.say("warning", line`a killed run left ${left.destination} running`);
    yield* qubes
      .shutdown(left.destination)
      .pipe(
        Effect.catch(({ message }) =>
          reporter.say("warning", line`${message}; it is left running: qvm-shutdown it`),
        ),
      );
  }
  const started = !running || adopted;
  yield* inLedger(
    // What servers are to be asked about stays.
    mark.write({ ...left, session, destination, started }),
  );
  const stopped = toldIfSlow(line`Qubes stops ${destination}`)(qubes.shutdown(destination));
  yield* Effect.addFinalizer(() =>
    Effect.gen(function* () {
      if (options.takenOver?.() === true) return;
      if (started && !options.keepRunning) yield* fromQubes(stopped);
      // What the server may have committed stays noted until its receipt was fetched.
      yield* remark((noted) =>
        pendingIn(noted).length === 0 ? undefined : { ...noted, started: false },
      );
    }).pipe(Effect.catch(warned)),
  );
  if (!running) yield* fromQubes(qubes.start(destination));
  return { started };
});
