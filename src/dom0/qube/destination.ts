/** The destination qube: which one, running for as long as it is needed, and stopped again. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Ledger } from "#services/Ledger";
import { Locks } from "#services/Locks";
import { type Power, Qubes, type QubesError } from "#services/Qubes";
import { Reporter } from "#services/Reporter";
import { RunMark } from "#services/RunMark";
import { Settings } from "#services/Settings";
import { parseNumber, type Session } from "#src/wire/names";
import { line } from "#src/say/shown";
import { alarmAfter } from "#src/dom0/cli/flags";
import { failed } from "#src/dom0/failure";
import { inLedger, remark } from "#src/dom0/books/record";

/** What was given, or else what the setting says. */
export const settingOr = Effect.fnUntraced(function* (given: string | undefined, name: string) {
  if (given !== undefined && given !== "") return given;
  return yield* (yield* Settings)
    .get(name)
    .pipe(Effect.mapError((error) => failed("usage", error.message, "give it a literal value")));
});

const setting = Effect.fnUntraced(function* (
  given: string | undefined,
  name: string,
  flag: string,
  what: string,
) {
  return (
    (yield* settingOr(given, name)) ??
    (yield* failed("usage", `${what} is not set`, `give ${flag}, or set ${name} in ~/.bashrc`))
  );
});

export const destinationFor = (to: string | undefined) =>
  setting(to, "QBKP_DEST_VM", "-t VM", "the destination qube");

/** After how many days without anything read back an alarm is due. */
export const alarmAfterFor = Effect.fnUntraced(function* (given: number | undefined) {
  if (given !== undefined) return given;
  const { least, most, setting, unit } = alarmAfter;
  const found = yield* settingOr(undefined, setting);
  if (found === undefined) return alarmAfter.default;
  const days = parseNumber(found);
  if (days !== undefined && days >= least && days <= most) return days;
  return yield* failed(
    "usage",
    `${setting} is no number of ${unit} from ${least} to ${most}: ${found}`,
    "set it to a number in that range, or give --alarm-after",
  );
});

export const settingsFor = Effect.fnUntraced(function* (options: {
  readonly to: string | undefined;
  readonly passphraseFile: string | undefined;
}) {
  const destination = yield* destinationFor(options.to);
  const passphraseFile = yield* setting(
    options.passphraseFile,
    "QBKP_PASS_FILE",
    "-p FILE",
    "the passphrase file",
  );
  return { destination, passphraseFile };
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

/** Hours that a run which nobody looks at waits for another: no night's work takes longer. */
const unattended = 12;
/** Between two looks; a run that only just ended has waited for nobody. */
const again = "15 seconds";

/**
 * As takeLock, but waits for so many hours. A run by a timer or cron waits unless it is told not to: its
 * qubes would not be backed up otherwise, every night. A person is told at once.
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
  const fromQubes = <A>(effect: Effect.Effect<A, { readonly message: string }>) =>
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
    mark.write({
      session,
      destination,
      started,
      ...(left?.submission === undefined ? {} : { submission: left.submission }),
      ...(left?.ticket === undefined ? {} : { ticket: left.ticket }),
      ...(left?.backedUp === undefined ? {} : { backedUp: left.backedUp }),
    }),
  );
  yield* Effect.addFinalizer(() =>
    Effect.gen(function* () {
      if (options.takenOver?.() === true) return;
      if (started && !options.keepRunning) yield* fromQubes(qubes.shutdown(destination));
      // What the server may have committed stays noted until its receipt was fetched.
      yield* remark((noted) =>
        noted.submission === undefined ? undefined : { ...noted, started: false },
      );
    }).pipe(Effect.catch((failure) => reporter.say("warning", failure.message))),
  );
  if (!running) yield* fromQubes(qubes.start(destination));
  return { started };
});
