/** Locks in a table that several programs of one process share, as processes share a machine. */
import * as Deferred from "effect/Deferred";
import * as Duration from "effect/Duration";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import type * as Scope from "effect/Scope";
import { LockBusy, Locks, type Reach } from "#services/Locks";

interface Holder {
  readonly asked: Deferred.Deferred<void>;
  readonly released: Deferred.Deferred<void>;
}
export type LockTable = Map<string, Holder>;

/** `reach` is where they are: who is elsewhere has another table. */
export const memoryLocks = (table: LockTable = new Map(), reach?: Reach): Layer.Layer<Locks> =>
  Layer.succeed(Locks, {
    reach: Effect.succeed(reach),
    hold: Effect.fnUntraced(function* (key, options): Effect.fn.Return<
      { readonly asked: Effect.Effect<void> },
      LockBusy,
      Scope.Scope
    > {
      const take = Effect.acquireRelease(
        Effect.sync(() => {
          if (table.has(key)) return undefined;
          const mine = {
            asked: Deferred.makeUnsafe<void>(),
            released: Deferred.makeUnsafe<void>(),
          };
          table.set(key, mine);
          return mine;
        }),
        (mine) =>
          Effect.sync(() => {
            if (mine === undefined) return;
            table.delete(key);
            Deferred.doneUnsafe(mine.released, Effect.void);
          }),
      );
      const wait = Effect.gen(function* () {
        for (;;) {
          const mine = yield* take;
          if (mine !== undefined) return mine;
          const holder = table.get(key);
          if (holder === undefined) continue;
          if (options?.stepDownWithin === undefined)
            return yield* new LockBusy({ stranger: false });
          Deferred.doneUnsafe(holder.asked, Effect.void);
          yield* Deferred.await(holder.released);
        }
      });
      const mine = yield* options?.stepDownWithin === undefined
        ? wait
        : Effect.timeoutOrElse(wait, {
            duration: Duration.fromInputUnsafe(options.stepDownWithin),
            orElse: () => new LockBusy({ stranger: false }),
          });
      return { asked: Deferred.await(mine.asked) };
    }),
  });
