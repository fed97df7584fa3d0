/** What every Qubes layer does. */
import { assert, it } from "@effect/vitest";
import { Effect, type Layer } from "effect";
import { type Qube, Qubes } from "#services/Qubes";

/** The qubes that the layer under test is to be made over, beside dom0; templates do not matter. */
export const world: ReadonlyArray<Qube> = [
  { name: "sys-backup", qid: 7, state: "Halted", class: "AppVM", included: false },
  { name: "work", qid: 2, state: "Running", class: "AppVM", included: true },
];

export const qubesContract = (name: string, make: () => Layer.Layer<Qubes>) => {
  const test = (title: string, what: Effect.Effect<void, unknown, Qubes>) =>
    it.live(`${name}: ${title}`, () => Effect.provide(what, make()));

  test(
    "lists dom0 and every qube, with its id and whether it is included",
    Effect.gen(function* () {
      const list = yield* (yield* Qubes).list;
      const named = list.filter(({ class: kind }) => kind !== "TemplateVM");
      assert.deepStrictEqual(named.map(({ included, name, qid }) => [name, qid, included]).sort(), [
        ["dom0", 0, true],
        ["sys-backup", 7, false],
        ["work", 2, true],
      ]);
      assert.strictEqual(list.find(({ name }) => name === "dom0")?.class, "AdminVM");
    }),
  );
  test(
    "starts and shuts down, and takes both for done when they are",
    Effect.gen(function* () {
      const qubes = yield* Qubes;
      assert.isFalse(yield* qubes.running("sys-backup"));
      assert.isTrue(yield* qubes.running("work"));
      yield* qubes.start("sys-backup");
      yield* qubes.start("sys-backup");
      assert.isTrue(yield* qubes.running("sys-backup"));
      yield* qubes.shutdown("sys-backup");
      yield* qubes.shutdown("sys-backup");
      assert.isFalse(yield* qubes.running("sys-backup"));
    }),
  );
  test(
    "an unknown qube does not run, and cannot be started",
    Effect.gen(function* () {
      const qubes = yield* Qubes;
      assert.isFalse(yield* qubes.running("nobody"));
      const error = yield* Effect.flip(qubes.start("nobody"));
      assert.include(error.message, "could not start nobody");
    }),
  );
  test(
    "tells where qubesd's temporary files go, and what is free there",
    Effect.gen(function* () {
      const { free, path } = yield* (yield* Qubes).scratch;
      assert.match(path, /^\//);
      assert.isAbove(yield* free, 0);
    }),
  );
};
