/** For the verbs that only look at what is on the server: the destination qube, for as long as it takes. */
import { Effect, Exit, Scope } from "effect";
import { Ledger } from "#services/Ledger";
import { Locks } from "#services/Locks";
import { Qubes } from "#services/Qubes";
import { line } from "#src/say/shown";
import { awaiting } from "#src/dom0/cli/view";
import { newSession } from "#src/dom0/far/upload";
import { lockOf, startDestination } from "./destination.ts";

/**
 * Has the destination qube run until the scope closes. A look may take hours, and a backup is not to
 * fail for it: a run that asks for the lock gets it, and the care for the qube too.
 */
export const visit = Effect.fnUntraced(function* (options: {
  readonly destination: string;
  readonly keepRunning: boolean;
  /** The caller holds the lock on runs, and goes on holding it: none may begin meanwhile. */
  readonly alone?: boolean;
}) {
  const { destination, keepRunning } = options;
  const { place } = yield* Ledger;
  const locks = yield* Locks;
  const qubes = yield* Qubes;
  const session = yield* newSession;
  yield* awaiting(line`waiting for ${destination} to start`);
  if (options.alone === true) {
    yield* startDestination({ destination, keepRunning, session });
    return yield* awaiting(line`waiting for the server`);
  }
  const lock = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void));
  const held = yield* locks.hold(lockOf(place)).pipe(Scope.provide(lock), Effect.option);
  // While a run is under way the qube runs anyway, and stopping it is the run's business.
  if (held._tag === "None") return yield* awaiting(line`waiting for the server`);
  let over = false;
  let mine = false;
  // The run may have stopped the qube before this was through with it, so that a call started it anew.
  yield* Effect.addFinalizer(() =>
    over && mine && !keepRunning
      ? locks
          .hold(lockOf(place))
          .pipe(Effect.andThen(qubes.shutdown(destination)), Effect.scoped, Effect.ignore)
      : Effect.void,
  );
  const { started } = yield* startDestination({
    destination,
    keepRunning,
    session,
    takenOver: () => over,
  });
  mine = started;
  yield* held.value.asked.pipe(
    Effect.andThen(
      Effect.suspend(() => {
        over = true;
        return Scope.close(lock, Exit.void);
      }),
    ),
    Effect.forkScoped,
  );
  yield* awaiting(line`waiting for the server`);
});

/** Columns as wide as their widest cell, two spaces between them. */
export const columns = (lines: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = lines[0]!.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)));
  return lines
    .map(
      (line) =>
        `${line
          .map((cell, i) => cell.padEnd(widths[i]!))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
};
