/** The frames of both directions, to the byte. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { type Frame, frames, giveUpFrame, keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { aliveMost, blockSize, proofLimit } from "#src/wire/limits";
import { rng } from "#test/support/random";
import { source } from "#test/support/source";

const run = Effect.runSync;
const block = (n: number, fill = 7) => Buffer.concat([lengthPrefix(n), Buffer.alloc(n, fill)]);

/** Of each frame its kind, or how many bytes it has; to the end, or what was wrong. */
const readAll = (bytes: Uint8Array, step = bytes.length, limit = blockSize) => {
  const { next } = frames(source(bytes, step), limit);
  const seen: Array<Frame["kind"] | number | string> = [];
  const go = Effect.gen(function* () {
    for (;;) {
      const frame = yield* next;
      seen.push(frame.kind === "bytes" ? frame.bytes.length : frame.kind);
      if (frame.kind === "cut" || frame.kind === "give-up") return;
    }
  });
  run(Effect.catch(go, (error) => Effect.sync(() => void seen.push(error._tag))));
  return seen;
};

describe("frames", () => {
  it("that say nothing are no work without end", () => {
    const most = readAll(Buffer.alloc(4 * aliveMost, keepAliveFrame));
    assert.deepStrictEqual([most.length, most.at(-1)], [aliveMost + 1, "cut"]);
    const more = readAll(Buffer.alloc(4 * (aliveMost + 1000), keepAliveFrame));
    assert.isAtMost(more.length, aliveMost + 10);
    assert.strictEqual(more.at(-1), "WireError");
  });
  it.each([3, 4096, 65_536, 3_000_000])("in pieces of %d bytes", (step) => {
    const bytes = Buffer.concat([
      keepAliveFrame,
      block(blockSize),
      keepAliveFrame,
      block(10),
      block(blockSize),
      keepAliveFrame,
      lengthPrefix(0),
      block(2),
      lengthPrefix(0),
    ]);
    const whole = ["keep-alive", blockSize, "keep-alive", 10, blockSize, "keep-alive", "zero", 2];
    assert.deepStrictEqual(readAll(bytes, step), [...whole, "zero", "cut"]);
    // Cut there, so many of them are whole.
    for (const [cut, n] of [
      [0, 0],
      [1, 0],
      [3, 0],
      [4, 1],
      [5, 1],
      [8, 1],
      [1000, 1],
      [blockSize + 7, 1],
      [blockSize + 8, 2],
      [blockSize + 9, 2],
      [blockSize + 12, 3],
      [blockSize + 25, 3],
      [blockSize + 26, 4],
      [bytes.length - 1, 8],
    ] as const) {
      const seen = readAll(bytes.subarray(0, cut), step);
      assert.deepStrictEqual(seen, [...whole.slice(0, n), "cut"], `cut at ${cut}`);
    }
  });
  it("the numbers are these", () => {
    assert.deepStrictEqual([...keepAliveFrame], [0x80, 0, 0, 0]);
    assert.deepStrictEqual([...giveUpFrame], [0xff, 0xff, 0xff, 0xff]);
    assert.deepStrictEqual([...lengthPrefix(blockSize)], [0, 0x10, 0, 0]);
    assert.deepStrictEqual([...lengthPrefix(0)], [0, 0, 0, 0]);
    assert.deepStrictEqual(readAll(giveUpFrame), ["give-up"]);
  });
  it.each([1, 64, blockSize, blockSize + proofLimit])(
    "as long as the reader says, to the byte: %d",
    (limit) => {
      assert.deepStrictEqual(readAll(block(limit), undefined, limit), [limit, "cut"]);
      for (const length of [limit + 1, 0x7fffffff, 0x80000001, 0xfffffffe]) {
        assert.deepStrictEqual(readAll(lengthPrefix(length), 4, limit), ["WireError"]);
      }
    },
  );
  it("a length may come in parts, behind bytes too", () => {
    const bytes = Buffer.concat([block(10), keepAliveFrame, block(1), lengthPrefix(0)]);
    for (let step = 1; step <= 16; step++) {
      const seen = readAll(bytes, step);
      assert.deepStrictEqual(seen, [10, "keep-alive", 1, "zero", "cut"], String(step));
    }
  });
  it("random bytes never make it throw", () => {
    for (let seed = 0; seed < 3000; seed++) {
      const r = rng(seed);
      const bytes = r.bytes(r.int(0, 64));
      if (r.next() < 0.5) bytes.fill(0, 0, r.int(0, Math.min(3, bytes.length)));
      readAll(bytes, r.int(1, 64));
    }
  });
  it("a block costs one read with the length behind it, and a buffer only where it is the longest yet", () => {
    for (let seed = 0; seed < 100; seed++) {
      const r = rng(seed);
      const sizes = Array.from({ length: 20 }, () => r.int(1, 40));
      const from = source(Buffer.concat(sizes.map((size) => block(size))));
      const asked: Array<number> = [];
      const buffers: Array<ArrayBufferLike> = [];
      const { next } = frames(
        {
          ...from,
          read: (into, atLeast) => {
            asked.push(into.length);
            if (!buffers.includes(into.buffer)) buffers.push(into.buffer);
            return from.read(into, atLeast);
          },
        },
        40,
      );
      for (const size of sizes) {
        const frame = run(next);
        assert.strictEqual(frame.kind === "bytes" && frame.bytes.length, size);
      }
      assert.deepStrictEqual(asked, [4, ...sizes.map((size) => size + 4)], `seed ${seed}`);
      const longest = sizes.filter((size, i) => size > Math.max(0, ...sizes.slice(0, i)));
      assert.deepStrictEqual(
        buffers.map(({ byteLength }) => byteLength),
        [4, ...longest.map((size) => size + 4)],
        `seed ${seed}`,
      );
    }
  });
  it("takes nothing of what follows a frame without bytes", () => {
    for (const end of [lengthPrefix(0), giveUpFrame]) {
      const from = source(Buffer.concat([block(10), end, Buffer.from("a line\n")]));
      const { next } = frames(from, blockSize);
      run(next);
      run(next);
      assert.strictEqual(from.left(), 7);
    }
  });
  it("a block's bytes are its own, also where a short one follows", () => {
    const bytes = Buffer.concat([block(blockSize, 1), block(3, 2)]);
    const { next } = frames(source(bytes, 1000), blockSize);
    const first = run(next);
    assert.isTrue(first.kind === "bytes" && first.bytes.every((byte) => byte === 1));
    const second = run(next);
    assert.deepStrictEqual(second.kind === "bytes" && [...second.bytes], [2, 2, 2]);
  });
});
