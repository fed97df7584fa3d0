/** What is chosen at random for an audit. */
import { assert, describe, it } from "vitest";
import * as crypto from "node:crypto";
import { below, certainty, choose, drawing, stretches } from "#src/dom0/far/sample";
import { rng } from "#test/support/random";

describe("the choice", () => {
  it("is even: every number as often as another, also where the range is no multiple", () => {
    const random = rng(5);
    for (const limit of [1, 2, 3, 7, 10, 459]) {
      const draws = 2000 * limit;
      const counts = Array.from({ length: limit }, () => 0);
      for (let i = 0; i < draws; i++) counts[below(random.bytes, limit)]! += 1;
      const chi = counts.reduce((sum, n) => sum + (n - 2000) ** 2 / 2000, 0);
      assert.isBelow(chi, limit + 5 * Math.sqrt(2 * limit), `of ${limit}`);
    }
  });
  it("draws again where the range's ragged end would favour small numbers", () => {
    // 2^48 = 3 * 93824992236885 + 1: of the highest number nothing even can be made.
    const given = [Buffer.alloc(6, 255), Buffer.from([0, 0, 0, 0, 0, 5])];
    assert.strictEqual(
      below(() => given.shift()!, 3),
      2,
    );
    assert.lengthOf(given, 0);
  });
  it("takes six bytes for a number, the first of them counting most", () => {
    const asked: Array<number> = [];
    const from = (first: ReadonlyArray<number>) => (n: number) => {
      asked.push(n);
      return asked.length === 1 ? Uint8Array.from(first.slice(0, n)) : new Uint8Array(n);
    };
    assert.strictEqual(below(from([1, 2, 3, 4, 5, 6]), 2 ** 47), 0x010203040506);
    asked.length = 0;
    // For a power of two nothing is drawn again, not even the highest number.
    assert.strictEqual(below(from(Array(6).fill(255)), 2 ** 47), 2 ** 47 - 1);
    assert.deepStrictEqual(asked, [6]);
  });
  it("is a set of its size, sorted, each set as likely as another", () => {
    const random = rng(6);
    const sets = new Map<string, number>();
    for (let i = 0; i < 12_000; i++) {
      const chosen = choose(random.bytes, 2, 4);
      assert.lengthOf(new Set(chosen), 2);
      assert.isTrue(chosen[0]! < chosen[1]! && chosen[0]! >= 0 && chosen[1]! < 4);
      sets.set(chosen.join(), (sets.get(chosen.join()) ?? 0) + 1);
    }
    assert.strictEqual(sets.size, 6);
    for (const [set, n] of sets) assert.isBelow(Math.abs(n - 2000), 200, set);
    assert.deepStrictEqual(choose(random.bytes, 9, 4), [0, 1, 2, 3]);
  });
  it("is not to be foreseen: it is made of the kernel's bytes alone", () => {
    const one = choose((n) => crypto.randomBytes(n), 50, 1_000_000);
    const two = choose((n) => crypto.randomBytes(n), 50, 1_000_000);
    assert.notDeepEqual(one, two);
  });
  it("finds what it says: a loss of 1 % with 459 blocks, measured", () => {
    assert.isAtLeast(certainty(459, 0.01), 0.99);
    assert.isBelow(certainty(458, 0.01), 0.99);
    const random = rng(7);
    const [blocks, trials] = [10_000, 1000];
    let found = 0;
    for (let trial = 0; trial < trials; trial++) {
      // Lost in one piece or in many: it makes no difference.
      const from = random.int(0, blocks - 100);
      const step = trial % 2 === 0 ? 1 : 97;
      const lost = new Set(Array.from({ length: 100 }, (_, i) => (from + i * step) % blocks));
      if (choose(random.bytes, 459, blocks).some((block) => lost.has(block))) found += 1;
    }
    assert.isAtLeast(found, 980);
  });
  it("of members that come by, before it is known how many: each set as likely as another", () => {
    const random = rng(8);
    const sets = new Map<string, number>();
    for (let i = 0; i < 12_000; i++) {
      const { drawn, see } = drawing<string>(random.bytes, 2);
      see(1, () => "a");
      see(0, () => assert.fail("it has no block"));
      see(3, () => "b");
      const set = drawn()
        .map(({ block, item }) => `${item}${block}`)
        .sort()
        .join();
      sets.set(set, (sets.get(set) ?? 0) + 1);
    }
    assert.strictEqual(sets.size, 6);
    for (const [set, n] of sets) assert.isBelow(Math.abs(n - 2000), 200, set);
  });
  it("of members that come by: no more than were asked for, and all where there are fewer", () => {
    const random = rng(9);
    for (const [count, blocks] of [
      [0, 5],
      [3, 0],
      [5, 5],
      [7, 5],
      [50, 10_000],
    ] as const) {
      const { drawn, see } = drawing<number>(random.bytes, count);
      for (let member = 0; member < 10; member++) {
        see(
          Math.floor((blocks * (member + 1)) / 10) - Math.floor((blocks * member) / 10),
          () => member,
        );
      }
      const some = drawn().map(({ block, item }) => `${item} ${block}`);
      assert.lengthOf(new Set(some), Math.min(count, blocks));
      assert.lengthOf(some, Math.min(count, blocks));
    }
  });
  it("is read in stretches, and nothing else", () => {
    assert.deepStrictEqual(stretches([]), []);
    assert.deepStrictEqual(stretches([1, 2, 5, 7, 9, 10, 20]), [
      { first: 1, count: 2 },
      { first: 5, count: 1 },
      { first: 7, count: 1 },
      { first: 9, count: 2 },
      { first: 20, count: 1 },
    ]);
  });
});
