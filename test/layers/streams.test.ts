/** Streams that node opened itself, read as a Source: every byte once, whoever is interrupted. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Fiber } from "effect";
import { PassThrough } from "node:stream";
import { fromReadable } from "#layers/process/FdBytes";
import { rng } from "#test/support/random";

const mark = 1000;
/** A stream that takes no more than that ahead. */
const opened = () => {
  const stream = new PassThrough({ readableHighWaterMark: mark, writableHighWaterMark: mark });
  return { stream, source: fromReadable(stream) };
};
const turn = Effect.promise(() => new Promise<void>((done) => setImmediate(done)));

describe("a stream", () => {
  it.live.each(Array.from({ length: 40 }, (_, seed) => seed))(
    "gives every byte once, in pieces and with interruptions of seed %d",
    (seed) =>
      Effect.gen(function* () {
        const random = rng(seed);
        const bytes = Buffer.from(Array.from({ length: 20_000 }, (_, at) => (at * 7 + seed) % 251));
        const { source, stream } = opened();
        yield* Effect.forkChild(
          Effect.gen(function* () {
            for (let at = 0; at < bytes.length;) {
              const part = bytes.subarray(at, at + random.int(1, 3 * mark));
              at += part.length;
              stream.write(part);
              if (random.next() < 0.5) yield* turn;
            }
            stream.end();
          }),
        );
        const got: Array<Buffer> = [];
        for (;;) {
          const into = Buffer.alloc(random.int(1, 4 * mark));
          const atLeast = random.int(1, into.length);
          const reading = yield* Effect.forkChild(source.read(into, atLeast));
          if (random.next() < 0.4) {
            if (random.next() < 0.5) yield* turn;
            yield* Fiber.interrupt(reading);
          }
          const exit = yield* Fiber.await(reading);
          if (exit._tag === "Failure") continue;
          if (exit.value < atLeast) {
            got.push(into.subarray(0, exit.value));
            break;
          }
          got.push(Buffer.from(into.subarray(0, exit.value)));
        }
        assert.isTrue(Buffer.concat(got).equals(bytes));
        assert.strictEqual(source.received(), bytes.length);
        assert.strictEqual(yield* source.read(new Uint8Array(10)), 0);
      }),
  );

  it.live("takes little more than its mark from who writes, until it is read", () =>
    Effect.gen(function* () {
      const { source, stream } = opened();
      let written = 0;
      while (stream.write(Buffer.alloc(100)) && written < 100 * mark) {
        written += 100;
        yield* turn;
      }
      assert.isBelow(written, 4 * mark);
      assert.isAtLeast(source.received(), mark);
      const into = new Uint8Array(written);
      assert.strictEqual(yield* source.read(into, written), written);
    }),
  );

  it.live("fails where it failed, and says nothing of a short read", () =>
    Effect.gen(function* () {
      const { source, stream } = opened();
      stream.write(Buffer.alloc(10));
      yield* turn;
      stream.destroy(new Error("gone"));
      const failed = yield* Effect.flip(source.read(new Uint8Array(20), 20));
      assert.include(String(failed.cause), "gone");
    }),
  );
});
