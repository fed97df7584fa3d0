/** What every Locks promises. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Exit, Fiber, type Layer, Scope } from "effect";
import { Locks } from "#services/Locks";

export const locksContract = (name: string, make: () => Layer.Layer<Locks>): void => {
  let keys = 0;
  const fresh = () => `contract ${name} ${process.pid} ${keys++}`;
  const test = (what: string, body: Effect.Effect<void, unknown, Locks | Scope.Scope>) =>
    it.live(what, () => Effect.scoped(body).pipe(Effect.provide(make())));
  const hold = (key: string, stepDownWithin?: number) =>
    Locks.use((locks) => locks.hold(key, stepDownWithin === undefined ? {} : { stepDownWithin }));
  const isBusy = (key: string, stepDownWithin?: number) =>
    Effect.scoped(hold(key, stepDownWithin)).pipe(
      Effect.as(false),
      Effect.catchTag("LockBusy", () => Effect.succeed(true)),
    );

  describe(`Locks: ${name}`, () => {
    test(
      "one holder at a time, and other keys are other locks",
      Effect.gen(function* () {
        const key = fresh();
        yield* hold(key);
        assert.isTrue(yield* isBusy(key));
        assert.isFalse(yield* isBusy(fresh()));
      }),
    );

    test(
      "is free again when the scope closes",
      Effect.gen(function* () {
        const key = fresh();
        for (let i = 0; i < 20; i++) yield* Effect.scoped(hold(key));
        assert.isFalse(yield* isBusy(key));
      }),
    );

    test(
      "an asked holder is told, and the asker has the lock once it lets go",
      Effect.gen(function* () {
        const key = fresh();
        const scope = yield* Scope.make();
        const { asked } = yield* Scope.provide(hold(key), scope);
        const letsGo = yield* Effect.forkScoped(
          Effect.andThen(asked, Scope.close(scope, Exit.void)),
        );
        yield* hold(key, 5000);
        yield* Fiber.join(letsGo);
        assert.isTrue(yield* isBusy(key));
      }),
    );

    test(
      "a holder that does not let go keeps it",
      Effect.gen(function* () {
        const key = fresh();
        const { asked } = yield* hold(key);
        assert.isTrue(yield* isBusy(key, 300));
        yield* asked;
        assert.isTrue(yield* isBusy(key));
      }),
    );

    test(
      "nobody asks a holder by failing to take it",
      Effect.gen(function* () {
        const key = fresh();
        const { asked } = yield* hold(key);
        assert.isTrue(yield* isBusy(key));
        const told = yield* Effect.timeoutOption(asked, 100);
        assert.isTrue(told._tag === "None");
      }),
    );

    test(
      "a holder that does not let go is none of a stranger's",
      Effect.gen(function* () {
        const key = fresh();
        yield* hold(key);
        for (const wait of [undefined, 200]) {
          const error = yield* Effect.flip(Effect.scoped(hold(key, wait)));
          assert.deepInclude(error, { _tag: "LockBusy", stranger: false });
        }
      }),
    );

    test(
      "many who want it get it one after another",
      Effect.gen(function* () {
        const key = fresh();
        let inside = 0;
        let served = 0;
        yield* Effect.forEach(
          Array.from({ length: 8 }),
          () =>
            Effect.scoped(
              Effect.gen(function* () {
                yield* hold(key, 20_000);
                inside += 1;
                assert.strictEqual(inside, 1);
                yield* Effect.sleep(5);
                inside -= 1;
                served += 1;
              }),
            ),
          { concurrency: "unbounded", discard: true },
        );
        assert.strictEqual(served, 8);
      }),
    );
  });
};
