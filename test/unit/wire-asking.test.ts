/** The client's side of `read`: how far it asks ahead, and what is asked for again on another link. */
import { assert, describe, it } from "@effect/vitest";
import { asking } from "#src/wire/asking";
import { unansweredLimit } from "#src/wire/limits";
import type { Ask } from "#src/wire/verbs/read";
import { rng } from "#test/support/random";
import { linesOf } from "#test/support/reference";

const session = "0123456789abcdef0123456789abcdef" as Ask["session"];
const want = (member: number, block: number, count: number): Ask => ({
  session,
  member,
  block,
  count,
});
const line = (member: number, block: number, count: number) =>
  `${session} ${member} ${block} ${count}\n`;
/** Answers `n` blocks, and tells which they were. */
const answer = (asked: ReturnType<typeof asking<Ask>>, n: number) =>
  Array.from({ length: n }, () => {
    const due = asked.due()!;
    asked.answered();
    return [due.want.member, due.block];
  });

describe("what is asked for", () => {
  it("each want in lines of eight blocks at most, in order", () => {
    const asked = asking([want(3, 2, 20), want(4, 0, 1)].values());
    assert.isUndefined(asked.due());
    assert.strictEqual(
      asked.lines(),
      line(3, 2, 8) + line(3, 10, 8) + line(3, 18, 4) + line(4, 0, 1),
    );
    assert.strictEqual(asked.lines(), "");
    const blocks = answer(asked, 21);
    assert.deepStrictEqual(blocks, [...Array.from({ length: 20 }, (_, i) => [3, 2 + i]), [4, 0]]);
    assert.isUndefined(asked.due());
    assert.strictEqual(asked.lines(), "");
  });
  it("the want itself comes back with each of its blocks", () => {
    const one = { ...want(3, 0, 2), use: "x" };
    const asked = asking([one].values());
    asked.lines();
    assert.strictEqual(asked.due()?.want, one);
  });
  it("32 blocks at most are on their way", () => {
    const asked = asking([want(0, 0, 100)].values());
    assert.strictEqual(asked.lines(), [0, 8, 16, 24].map((at) => line(0, at, 8)).join(""));
    answer(asked, 7);
    assert.strictEqual(asked.lines(), "");
    answer(asked, 1);
    assert.strictEqual(asked.lines(), line(0, 32, 8));
  });
  it("16 lines at most are unanswered, and no want is taken before there is room", () => {
    let taken = 0;
    const wants = (function* () {
      for (; taken < 100;) yield want(taken++, 0, 1);
    })();
    const asked = asking(wants);
    assert.lengthOf(linesOf(asked.lines()), unansweredLimit);
    assert.strictEqual(taken, unansweredLimit + 1);
    assert.strictEqual(asked.lines(), "");
    answer(asked, 3);
    assert.strictEqual(asked.lines(), [16, 17, 18].map((n) => line(n, 0, 1)).join(""));
    assert.strictEqual(taken, unansweredLimit + 4);
  });
  it("a block that is held takes up room until it is used", () => {
    const asked = asking([want(0, 0, 100)].values());
    asked.lines();
    for (let n = 0; n < 8; n++) asked.answered(true);
    assert.strictEqual(asked.lines(), "");
    for (let n = 0; n < 7; n++) asked.used();
    assert.strictEqual(asked.lines(), "");
    asked.used();
    assert.strictEqual(asked.lines(), line(0, 32, 8));
  });
  it("it is done once everything was asked for and answered", () => {
    assert.isTrue(asking<Ask>([].values()).done());
    const asked = asking([want(0, 0, 2)].values());
    assert.isFalse(asked.done());
    asked.lines();
    answer(asked, 1);
    assert.isFalse(asked.done());
    answer(asked, 1);
    assert.isTrue(asked.done());
  });
  it("a line is unanswered until its last block is there", () => {
    const asked = asking(Array.from({ length: 20 }, (_, n) => want(n, 0, 2)).values());
    assert.lengthOf(linesOf(asked.lines()), 16);
    answer(asked, 1);
    assert.strictEqual(asked.lines(), "");
    answer(asked, 1);
    assert.strictEqual(asked.lines(), line(16, 0, 2));
  });
});

describe("on another link", () => {
  it("what did not come is asked for again, first and in its order", () => {
    const asked = asking([want(1, 0, 10), want(2, 0, 3), want(3, 0, 30)].values());
    asked.lines();
    answer(asked, 9);
    asked.anew();
    assert.strictEqual(
      asked.lines(),
      line(1, 9, 1) + line(2, 0, 3) + line(3, 0, 8) + line(3, 8, 8) + line(3, 16, 8),
    );
    assert.strictEqual(asked.lines(), "");
    assert.deepStrictEqual(answer(asked, 2), [
      [1, 9],
      [2, 0],
    ]);
  });
  it("nothing is asked for twice where nothing is due, nor twice on one link", () => {
    const asked = asking([want(1, 0, 1)].values());
    asked.anew();
    assert.strictEqual(asked.lines(), line(1, 0, 1));
    asked.anew();
    asked.anew();
    assert.strictEqual(asked.lines(), line(1, 0, 1));
    answer(asked, 1);
    asked.anew();
    assert.strictEqual(asked.lines(), "");
  });
});

it("whatever breaks when, every block comes once and in order", () => {
  for (let seed = 1; seed <= 300; seed++) {
    const r = rng(seed);
    const wants = Array.from({ length: r.int(0, 30) }, (_, n) =>
      want(n, r.int(0, 5), r.int(1, 40)),
    );
    const asked = asking(wants.values());
    /** Blocks that the server was asked for on this link, and has not given. */
    let pending: Array<string> = [];
    const came: Array<string> = [];
    for (;;) {
      for (const text of linesOf(asked.lines())) {
        const [, member, block, count] = text.trimEnd().split(" ").map(Number) as [
          0,
          number,
          number,
          number,
        ];
        for (let i = 0; i < count; i++) pending.push(`${member} ${block + i}`);
      }
      assert.isAtMost(pending.length, 32);
      const due = asked.due();
      if (due === undefined) break;
      if (r.next() < 0.05) {
        asked.anew();
        pending = [];
        continue;
      }
      assert.strictEqual(`${due.want.member} ${due.block}`, pending.shift());
      came.push(`${due.want.member} ${due.block}`);
      asked.answered();
    }
    const all = wants.flatMap(({ block, count, member }) =>
      Array.from({ length: count }, (_, i) => `${member} ${block + i}`),
    );
    assert.deepStrictEqual(came, all);
  }
});
