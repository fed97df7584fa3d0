/** What every QvmBackup layer does. */
import { assert, it } from "@effect/vitest";
import { Effect, Exit, type Layer, type Scope } from "effect";
import { QvmBackup, type Running } from "#services/QvmBackup";

/** A qvm-backup to be played: what it writes (`after` in milliseconds), and how it ends. */
export interface Play {
  readonly chunks: ReadonlyArray<{
    readonly size: number;
    readonly after?: number;
    readonly percent?: number;
  }>;
  readonly code?: number;
  readonly said?: ReadonlyArray<string>;
  readonly hangs?: boolean;
}

/** The bytes of a play: a pattern in which a lost, doubled or moved byte shows. */
export const pattern = (size: number): Buffer =>
  Buffer.from(
    Uint8Array.from({ length: size }, (_, i) => (i * 7 + (i >> 8) * 3 + (i >> 16)) & 255),
  );

export const sizeOf = ({ chunks }: Play): number => chunks.reduce((sum, c) => sum + c.size, 0);

export const plan = { qubes: ["work"], passphraseFile: "/tmp/passphrase" };

/** Reads to the end in blocks, as the pump does. */
export const drain = Effect.fnUntraced(function* (running: Running, block = 65_536) {
  const parts: Array<Buffer> = [];
  for (;;) {
    const into = Buffer.alloc(block);
    const n = yield* running.archive.read(into, block);
    parts.push(into.subarray(0, n));
    if (n < block) return Buffer.concat(parts);
  }
});

export const qvmBackupContract = (name: string, make: (play: Play) => Layer.Layer<QvmBackup>) => {
  const test = (
    title: string,
    play: Play,
    what: (service: QvmBackup["Service"]) => Effect.Effect<void, unknown, Scope.Scope>,
  ) =>
    it.live(`${name}: ${title}`, () =>
      Effect.gen(function* () {
        yield* what(yield* QvmBackup);
      }).pipe(Effect.scoped, Effect.provide(make(play))),
    );

  const play: Play = {
    chunks: [{ size: 300_000 }, { size: 1, after: 30, percent: 12.5 }, { size: 70_000, after: 30 }],
    code: 0,
    said: ["a word"],
  };
  test("hands over every byte, then the end", play, (service) =>
    Effect.gen(function* () {
      const running = yield* service.start(plan);
      const bytes = yield* drain(running);
      assert.isTrue(bytes.equals(pattern(sizeOf(play))));
      assert.strictEqual(running.archive.received(), bytes.length);
      assert.strictEqual(yield* running.archive.read(Buffer.alloc(10), 10), 0);
      const ended = yield* running.ended;
      assert.strictEqual(ended.code, 0);
      assert.deepStrictEqual([...ended.said], ["a word"]);
      assert.deepStrictEqual(running.progress(), { percent: 12.5, shown: 1 });
    }),
  );
  test(
    "loses no byte to a read that is interrupted",
    { chunks: [{ size: 9 }, { size: 9, after: 200 }] },
    (service) =>
      Effect.gen(function* () {
        const running = yield* service.start(plan);
        const first = Buffer.alloc(9);
        yield* running.archive.read(first, 9);
        yield* running.archive.read(Buffer.alloc(9), 1).pipe(Effect.timeoutOption("20 millis"));
        assert.isTrue(Buffer.concat([first, yield* drain(running)]).equals(pattern(18)));
      }),
  );
  test(
    "ends without a byte when qvm-backup refuses",
    { chunks: [], code: 1, said: ["no"] },
    (service) =>
      Effect.gen(function* () {
        const running = yield* service.start(plan);
        assert.strictEqual((yield* drain(running)).length, 0);
        assert.deepStrictEqual(yield* running.ended, { code: 1, said: ["no"] });
      }),
  );
  test(
    "cancels it when the scope closes",
    { chunks: [{ size: 200_000 }], hangs: true },
    (service) =>
      Effect.gen(function* () {
        const running = yield* Effect.gen(function* () {
          const running = yield* service.start(plan);
          yield* running.archive.read(Buffer.alloc(100_000), 100_000);
          return running;
        }).pipe(Effect.scoped);
        assert.notStrictEqual((yield* running.ended).code, 0);
        // And another can be started.
        yield* Effect.scoped(service.start(plan));
      }),
  );
  test("can be interrupted while it waits for bytes", { chunks: [], hangs: true }, (service) =>
    Effect.gen(function* () {
      const exit = yield* Effect.flatMap(service.start(plan), drain).pipe(
        Effect.scoped,
        Effect.timeout("300 millis"),
        Effect.exit,
      );
      assert.isTrue(Exit.isFailure(exit));
    }),
  );
  test("has nothing to recover where nothing was left", { chunks: [] }, (service) =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* service.recover, []);
    }),
  );
};
