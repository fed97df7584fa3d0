/** The frames of an upload and of a download, to the byte. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import {
  blockFrames,
  blockSize,
  type Frame,
  frames,
  giveUpFrame,
  keepAliveFrame,
  lengthPrefix,
  trailerLimit,
} from "#src/wire/frames";
import { rng } from "#test/support/random";
import { source } from "#test/support/source";

const run = Effect.runSync;

describe("frames", () => {
  const block = (n: number, fill = 7) => Buffer.concat([lengthPrefix(n), Buffer.alloc(n, fill)]);
  const readAll = (bytes: Uint8Array, step: number) => {
    const { next } = frames(source(bytes, step));
    const seen: Array<Frame["kind"] | number | string> = [];
    const go = Effect.gen(function* () {
      for (;;) {
        const frame = yield* next;
        seen.push(
          frame.kind === "block"
            ? frame.bytes.length
            : frame.kind === "end"
              ? Buffer.from(frame.trailer).toString()
              : frame.kind,
        );
        if (frame.kind === "end" || frame.kind === "cut" || frame.kind === "give-up") return;
      }
    });
    run(Effect.catch(go, (error) => Effect.sync(() => void seen.push(error._tag))));
    return seen;
  };
  it.each([3, 4096, 65_536, 3_000_000])("in pieces of %d bytes", (step) => {
    const bytes = Buffer.concat([
      keepAliveFrame,
      block(blockSize),
      keepAliveFrame,
      block(blockSize),
      block(10),
      keepAliveFrame,
      lengthPrefix(0),
      lengthPrefix(2),
      Buffer.from("{}"),
    ]);
    const whole = ["keep-alive", blockSize, "keep-alive", blockSize, 10, "keep-alive", "{}"];
    assert.deepStrictEqual(readAll(bytes, step), whole);
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
      [bytes.length - 1, 6],
    ] as const) {
      const seen = readAll(bytes.subarray(0, cut), step);
      assert.deepStrictEqual(seen, [...whole.slice(0, n), "cut"], `cut at ${cut}`);
    }
  });
  it("the numbers are these", () => {
    assert.deepStrictEqual([...keepAliveFrame], [0x80, 0, 0, 0]);
    assert.deepStrictEqual([...giveUpFrame], [0xff, 0xff, 0xff, 0xff]);
    assert.deepStrictEqual([...lengthPrefix(blockSize)], [0, 0x10, 0, 0]);
    assert.deepStrictEqual(readAll(giveUpFrame, 4), ["give-up"]);
  });
  it("lengths that may not be", () => {
    assert.deepStrictEqual(readAll(lengthPrefix(blockSize + 1), 4), ["WireError"]);
    assert.deepStrictEqual(readAll(lengthPrefix(0x80000001), 4), ["WireError"]);
    assert.deepStrictEqual(readAll(Buffer.concat([block(5), block(5)]), 64), [5, "WireError"]);
    assert.deepStrictEqual(readAll(Buffer.concat([lengthPrefix(0), lengthPrefix(0)]), 64), [
      "WireError",
    ]);
    assert.deepStrictEqual(
      readAll(Buffer.concat([lengthPrefix(0), lengthPrefix(trailerLimit + 1)]), 64),
      ["WireError"],
    );
  });
  it("a long trailer arrives whole", () => {
    const trailer = Buffer.alloc(5_000_000, "x");
    const seen = readAll(
      Buffer.concat([lengthPrefix(0), lengthPrefix(trailer.length), trailer]),
      65_536,
    );
    assert.strictEqual(seen[0], trailer.toString());
  });
  it("random bytes never make it throw", () => {
    for (let seed = 0; seed < 3000; seed++) {
      const r = rng(seed);
      const bytes = r.bytes(r.int(0, 64));
      if (r.next() < 0.5) bytes.fill(0, 0, r.int(0, Math.min(3, bytes.length)));
      readAll(bytes, r.int(1, 64));
    }
  });
  it("the limits, to the byte", () => {
    assert.strictEqual(blockSize, 2 ** 20);
    assert.strictEqual(trailerLimit, 2 ** 24);
    const trailer = (bytes: number, sent = bytes) =>
      readAll(
        Buffer.concat([lengthPrefix(0), lengthPrefix(bytes), Buffer.alloc(sent, "x")]),
        2 ** 24,
      ).map((seen) => (typeof seen === "string" && /^x+$/.test(seen) ? seen.length : seen));
    // Where the buffer for it grows, too.
    for (const bytes of [1, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, trailerLimit]) {
      assert.deepStrictEqual(trailer(bytes), [bytes]);
      assert.deepStrictEqual(trailer(bytes, bytes - 1), ["cut"], String(bytes));
    }
    assert.deepStrictEqual(trailer(trailerLimit + 1), ["WireError"]);
    for (const length of [blockSize + 1, 0x7fffffff, 0x80000001, 0xfffffffe]) {
      assert.deepStrictEqual(readAll(lengthPrefix(length), 4), ["WireError"]);
    }
    assert.deepStrictEqual(readAll(Buffer.concat([block(1), lengthPrefix(0)]), 64), [1, "cut"]);
  });
  it("a length may come in parts, behind a block too", () => {
    const bytes = Buffer.concat([
      block(10),
      keepAliveFrame,
      lengthPrefix(0),
      lengthPrefix(1),
      Buffer.from("x"),
    ]);
    for (let step = 1; step <= 16; step++) {
      assert.deepStrictEqual(readAll(bytes, step), [10, "keep-alive", "x"], String(step));
    }
  });
  it("only the last block may be short", () => {
    const blocks = (...sizes: ReadonlyArray<number>) =>
      readAll(Buffer.concat(sizes.map((size) => block(size))), blockSize);
    assert.deepStrictEqual(blocks(blockSize, blockSize, 1), [blockSize, blockSize, 1, "cut"]);
    assert.deepStrictEqual(blocks(blockSize - 1, blockSize), [blockSize - 1, "WireError"]);
    assert.deepStrictEqual(blocks(blockSize - 1, 1), [blockSize - 1, "WireError"]);
  });
  it("a block costs one read, and the trailer's memory grows with its bytes", () => {
    const asked: Array<number> = [];
    const watched = (bytes: Uint8Array) => {
      const from = source(bytes);
      asked.length = 0;
      return frames({
        ...from,
        read: (into, atLeast) => {
          asked.push(into.length);
          return from.read(into, atLeast);
        },
      });
    };
    const kinds = (reader: ReturnType<typeof frames>, n: number) =>
      Array.from({ length: n }, () => run(reader.next).kind).join(" ");
    const three = watched(Buffer.concat([block(blockSize), block(blockSize), block(5)]));
    assert.strictEqual(kinds(three, 3), "block block block");
    assert.deepStrictEqual(asked, [4, blockSize + 4, blockSize + 4, 9]);
    const claims = watched(
      Buffer.concat([lengthPrefix(0), lengthPrefix(trailerLimit), Buffer.alloc(70_000)]),
    );
    assert.strictEqual(kinds(claims, 1), "cut");
    assert.deepStrictEqual(asked, [4, 4, 65_536, 3 * 65_536]);
  });
  it("a block's bytes are its own, also where a short one follows", () => {
    const bytes = Buffer.concat([block(blockSize, 1), block(3, 2)]);
    const { next } = frames(source(bytes, 1000));
    const first = run(next);
    assert.isTrue(first.kind === "block" && first.bytes.every((byte) => byte === 1));
    const second = run(next);
    assert.deepStrictEqual(second.kind === "block" && [...second.bytes], [2, 2, 2]);
    // All blocks of an upload lie in the same memory, one after the other.
    assert.isTrue(
      first.kind === "block" &&
        second.kind === "block" &&
        first.bytes.buffer === second.bytes.buffer,
    );
  });
});

describe("frames of a download", () => {
  const longest = blockSize + 33 * 32;
  const kinds = (bytes: Uint8Array, step = 65_536) => {
    const { next } = blockFrames(source(bytes, step));
    const seen: Array<string | number> = [];
    for (;;) {
      const frame = run(
        Effect.catch(next, (error) => Effect.succeed({ kind: error._tag } as const)),
      );
      if (frame.kind !== "block") return [...seen, frame.kind];
      assert.isTrue(frame.bytes.every((byte) => byte === 7));
      seen.push(frame.bytes.length);
    }
  };
  const block = (n: number) => Buffer.concat([lengthPrefix(n), Buffer.alloc(n, 7)]);
  it("blocks with their proofs, and the two ends", () => {
    const whole = Buffer.concat([block(longest), block(1), block(blockSize)]);
    assert.deepStrictEqual(kinds(Buffer.concat([whole, lengthPrefix(0)])), [
      longest,
      1,
      blockSize,
      "end",
    ]);
    assert.deepStrictEqual(kinds(Buffer.concat([block(2), giveUpFrame])), [2, "error"]);
    assert.deepStrictEqual(kinds(whole), [longest, 1, blockSize, "cut"]);
  });
  it("in whatever pieces they come", () => {
    const whole = Buffer.concat([block(10), block(2), lengthPrefix(0)]);
    for (let step = 1; step <= 16; step++) {
      assert.deepStrictEqual(kinds(whole, step), [10, 2, "end"], String(step));
    }
  });
  it("longer than a block and the longest proof is none", () => {
    assert.deepStrictEqual(kinds(block(longest + 1)), ["WireError"]);
    assert.deepStrictEqual(kinds(keepAliveFrame), ["WireError"]);
    assert.deepStrictEqual(kinds(lengthPrefix(0xfffffffe)), ["WireError"]);
  });
  it("a cut anywhere is one", () => {
    for (const cut of [0, 1, 3, 4, 5, 13]) {
      assert.deepStrictEqual(kinds(block(10).subarray(0, cut)), ["cut"], String(cut));
    }
  });
});
