/** What whoever presses Ctrl-C, or stops a unit, is told. */
import { Effect, Exit } from "effect";
import { Reporter } from "#services/Reporter";
import { type Line, line } from "#src/say/shown";

/** Says at once that it was heard: to cancel a tool and to stop a qube takes a while. */
export const answeringInterrupts = Effect.fnUntraced(function* <A, E, R>(
  work: Effect.Effect<A, E, R>,
) {
  const { say } = yield* Reporter;
  let over = false;
  const heard = Effect.suspend(() =>
    over
      ? Effect.void
      : say("warning", "interrupted: what was started is being stopped, which may take a minute"),
  );
  const ended = Effect.onExit(work, (exit) =>
    Effect.sync(() => {
      over = !Exit.hasInterrupts(exit);
    }),
  );
  // In this order: what the work itself says at its end comes behind it.
  return yield* Effect.raceFirst(
    Effect.onInterrupt(Effect.never, () => heard),
    ended,
  );
});

/** Says that this is waited for, where it takes longer than a person waits without a word. */
export const toldIfSlow =
  (what: Line) =>
  <A, E, R>(work: Effect.Effect<A, E, R>) =>
    Effect.raceFirst(
      work,
      Effect.flatMap(Reporter, ({ say }) => say("info", line`still waiting: ${what}`)).pipe(
        Effect.delay("15 seconds"),
        Effect.andThen(Effect.never),
      ),
    );
