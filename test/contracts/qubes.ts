/** What every Qubes layer does. */
import { assert, it } from "@effect/vitest";
import { Effect, type Layer } from "effect";
import { type Qube, Qubes } from "#services/Qubes";

/** The qubes that the layer under test is to be made over, beside dom0; templates do not matter. */
export const world: ReadonlyArray<Qube> = [
  { name: "sys-backup", qid: 7, state: "Halted", class: "AppVM", included: false },
  { name: "work", qid: 2, state: "Running", class: "AppVM", included: true },
  { name: "asleep", qid: 3, state: "Paused", class: "AppVM", included: false },
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
        ["asleep", 3, false],
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
      assert.strictEqual(yield* qubes.power("sys-backup"), "off");
      assert.strictEqual(yield* qubes.power("work"), "on");
      yield* qubes.start("sys-backup");
      yield* qubes.start("sys-backup");
      assert.strictEqual(yield* qubes.power("sys-backup"), "on");
      yield* qubes.shutdown("sys-backup");
      yield* qubes.shutdown("sys-backup");
      assert.strictEqual(yield* qubes.power("sys-backup"), "off");
    }),
  );
  test(
    "tells a paused qube from one that is on, and does not wake it to start it",
    Effect.gen(function* () {
      const qubes = yield* Qubes;
      assert.strictEqual(yield* qubes.power("asleep"), "paused");
      yield* qubes.start("asleep");
      assert.strictEqual(yield* qubes.power("asleep"), "paused");
    }),
  );
  test(
    "an unknown qube does not run, and cannot be started",
    Effect.gen(function* () {
      const qubes = yield* Qubes;
      assert.strictEqual(yield* qubes.power("nobody"), "off");
      const error = yield* Effect.flip(qubes.start("nobody"));
      assert.include(error.message, "could not start nobody");
    }),
  );
  test(
    "makes a qube that no backup takes unasked, tags it, fills it, and removes it with its tag",
    Effect.gen(function* () {
      const qubes = yield* Qubes;
      assert.deepStrictEqual(yield* qubes.marked("throw-away"), []);
      yield* qubes.create("thrown");
      yield* qubes.mark("thrown", "throw-away");
      assert.deepStrictEqual(yield* qubes.marked("throw-away"), ["thrown"]);
      const made = (yield* qubes.list).find(({ name }) => name === "thrown");
      assert.deepInclude(made, { class: "AppVM", included: false, state: "Halted" });
      yield* qubes.fill("thrown", new Uint8Array(3_000_000).fill(7));
      yield* qubes.remove("thrown");
      assert.isUndefined((yield* qubes.list).find(({ name }) => name === "thrown"));
      assert.deepStrictEqual(yield* qubes.marked("throw-away"), []);
    }),
  );
  test(
    "makes no second qube of a name, and says of one that is not there that it could do nothing",
    Effect.gen(function* () {
      const qubes = yield* Qubes;
      const twice = yield* Effect.flip(qubes.create("work"));
      assert.match(twice.message, /^could not make the qube work: .*VM work already exists$/);
      for (const [what, text] of [
        [qubes.mark("nobody", "throw-away"), "could not tag nobody: "],
        [
          qubes.fill("nobody", new Uint8Array(512)),
          "could not fill the private volume of nobody: ",
        ],
        [qubes.remove("nobody"), "could not remove nobody: "],
      ] as const) {
        assert.include((yield* Effect.flip(what)).message, text);
      }
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
