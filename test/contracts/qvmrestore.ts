/** What every QvmRestore layer does. */
import { assert, it } from "@effect/vitest";
import { Effect, Exit, type Layer, type Scope } from "effect";
import { QvmRestore, type Restoring } from "#services/QvmRestore";

/** A qvm-backup-restore to be played. */
export interface Play {
  /** Bytes after which a reading ends, by its number. */
  readonly stopsAfter?: ReadonlyArray<number | undefined>;
  /** Exits instead of the reading of this number. */
  readonly exitsBefore?: number;
  /** Takes no byte in the reading of this number, and never exits. */
  readonly hangsIn?: number;
  readonly neverOpens?: number;
  readonly says?: ReadonlyArray<string>;
  readonly code?: number;
}
export interface Played {
  readonly layer: Layer.Layer<QvmRestore>;
  /** What each reading got. */
  readonly fed: (reading: number) => Buffer;
}

const lines: Array<string> = [];
export const plan = {
  verifyOnly: true,
  qubes: ["work"],
  passphraseFile: "/tmp/passphrase",
  options: ["--ignore-missing"],
  see: (line: string) => void lines.push(line),
};

const parts = [Buffer.alloc(20_480, "a"), Buffer.alloc(10_240, "b"), Buffer.alloc(300_000, "c")];

/** Feeds the readings as they come; gives how many there were. */
const feed = Effect.fnUntraced(function* (restoring: Restoring) {
  let readings = 0;
  for (;;) {
    const sink = yield* restoring.opened;
    if (sink === undefined) return readings;
    const bytes = parts[readings]!;
    readings += 1;
    yield* Effect.gen(function* () {
      for (let at = 0; at < bytes.length; at += 50_000)
        yield* sink.write(bytes.subarray(at, at + 50_000));
    }).pipe(Effect.ignore);
    yield* sink.end;
  }
});

export const qvmRestoreContract = (name: string, make: (play: Play) => Played) => {
  const test = (
    title: string,
    play: Play,
    what: (
      service: QvmRestore["Service"],
      played: Played,
    ) => Effect.Effect<void, unknown, Scope.Scope>,
  ) =>
    it.live(`${name}: ${title}`, () => {
      const played = make(play);
      return Effect.gen(function* () {
        yield* what(yield* QvmRestore, played);
      }).pipe(Effect.scoped, Effect.provide(played.layer), Effect.timeout("20 seconds"));
    });

  test(
    "hands each reading its bytes, and shows what it says",
    { says: ["a", "b"] },
    (service, it) =>
      Effect.gen(function* () {
        lines.length = 0;
        const restoring = yield* service.start(plan);
        assert.strictEqual(yield* feed(restoring), 3);
        assert.deepStrictEqual(yield* restoring.ended, { code: 0, said: ["a", "b"] });
        parts.forEach((bytes, i) => assert.isTrue(it.fed(i).equals(bytes), `reading ${i}`));
        assert.deepStrictEqual(lines, ["a", "b"]);
      }),
  );
  test(
    "is told when a reader stops early",
    { stopsAfter: [10_240, undefined, 100_000] },
    (service, it) =>
      Effect.gen(function* () {
        const restoring = yield* service.start(plan);
        assert.strictEqual(yield* feed(restoring), 3);
        assert.strictEqual((yield* restoring.ended).code, 0);
        assert.isTrue(it.fed(1).equals(parts[1]!));
      }),
  );
  test("is told when the tool exits in between", { exitsBefore: 1, code: 1 }, (service) =>
    Effect.gen(function* () {
      const restoring = yield* service.start(plan);
      assert.strictEqual(yield* feed(restoring), 1);
      assert.strictEqual((yield* restoring.ended).code, 1);
    }),
  );
  for (const play of [{ neverOpens: 0 }, { neverOpens: 2 }, { hangsIn: 2 }]) {
    test(`can be interrupted: ${JSON.stringify(play)}`, play, (service) =>
      Effect.gen(function* () {
        const restoring = yield* Effect.gen(function* () {
          const restoring = yield* service.start(plan);
          const exit = yield* feed(restoring).pipe(Effect.timeout("500 millis"), Effect.exit);
          assert.isTrue(Exit.isFailure(exit));
          return restoring;
        }).pipe(Effect.scoped);
        // It was stopped, and another can be started.
        assert.notStrictEqual((yield* restoring.ended).code, 0);
        yield* Effect.scoped(service.start(plan));
      }),
    );
  }
};
