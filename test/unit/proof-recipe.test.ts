/** Recipes: their lines, and how what an upload says becomes what is stored. */
import { assert, describe, it } from "@effect/vitest";
import {
  packLimit,
  parseRun,
  parseWish,
  recipe,
  recipeLineLimit,
  resolver,
  type Run,
  runLine,
  type Wish,
  wishLine,
} from "#src/proof/recipe";
import { memberLimit } from "#src/proof/table";
import { linesOf } from "#test/support/reference";
import { vectors } from "#test/support/vectors";

const session = (digit: string) => digit.repeat(32) as Run["session"];
const own = session("9");

describe("a line", () => {
  it("of a stored recipe names a session", () => {
    const run = { session: own, first: 3, count: 4 };
    assert.strictEqual(runLine(run), `${own} 3 4\n`);
    assert.deepStrictEqual(parseRun(`${own} 3 4`), run);
    for (const of of ["new", "base", own.slice(1), `${own}9`, own.replace("9", "g")]) {
      assert.isUndefined(parseRun(`${of} 3 4`), of);
    }
  });
  it("of an upload says new or base", () => {
    for (const of of ["new", "base"] as const) {
      const wish = { of, first: 3, count: 4 };
      assert.strictEqual(wishLine(wish), `${of} 3 4\n`);
      assert.deepStrictEqual(parseWish(`${of} 3 4`), wish);
    }
    for (const of of [own, "old", "New", "newer", ""])
      assert.isUndefined(parseWish(`${of} 3 4`), of);
  });
  it.each([
    ["", false],
    [" 0", false],
    [" 0 0", false],
    [" 0 1", true],
    [" 0 1 ", false],
    [" 0 1\n", false],
    [" 0 1 1", false],
    ["  0 1", false],
    [" 00 1", false],
    [" 0 01", false],
    [" -1 1", false],
    [" 0 -1", false],
    [" 0 1.5", false],
    [" x 1", false],
    [` 0 ${memberLimit}`, true],
    [` 0 ${memberLimit + 1}`, false],
    [` 1 ${memberLimit}`, false],
    [` 1 ${memberLimit - 1}`, true],
    [` ${memberLimit - 1} 1`, true],
    [` ${memberLimit} 1`, false],
    [" 0 10000000", false],
    [" 10000000 1", false],
  ])("%j behind its first word: %s", (rest, good) => {
    assert.strictEqual(parseRun(own + rest) !== undefined, good);
    assert.strictEqual(parseWish(`new${rest}`) !== undefined, good);
    assert.isUndefined(parseWish(` new${rest}`));
  });
  it("the longest one is as long as its limit, which no sound one reaches", () => {
    assert.strictEqual(`${own} 1048575 1048576\n`.length, recipeLineLimit);
    assert.isBelow(
      runLine({ session: own, first: memberLimit - 1, count: 1 }).length,
      recipeLineLimit,
    );
  });
});

it("runs that go on are one, those that do not are kept apart", () => {
  const made = recipe();
  const [a, b] = [session("a"), session("b")];
  assert.deepStrictEqual([...made.runs()], []);
  for (const [of, first, count] of [
    [a, 0, 2],
    [a, 2, 3],
    [a, 6, 1],
    [b, 7, 1],
    [b, 8, 1],
    [b, 8, 1],
    [a, 9, 1],
    [b, 30, 2],
    [b, 32, 2],
  ] as const) {
    made.push({ session: of, first, count });
  }
  assert.deepStrictEqual(
    [...made.runs()],
    [
      { session: a, first: 0, count: 5 },
      { session: a, first: 6, count: 1 },
      { session: b, first: 7, count: 2 },
      { session: b, first: 8, count: 1 },
      { session: a, first: 9, count: 1 },
      { session: b, first: 30, count: 4 },
    ],
  );
  assert.strictEqual(made.members(), 14);
  assert.strictEqual(made.packs(), 2);
  assert.strictEqual(made.runs().length, 6);
  assert.deepStrictEqual(made.runs().at(4), { session: a, first: 9, count: 1 });
  assert.isUndefined(made.runs().at(6));
});

describe("what an upload says", () => {
  const [a, b] = [session("a"), session("b")];
  const base: ReadonlyArray<Run> = [
    { session: a, first: 10, count: 3 },
    { session: b, first: 0, count: 1 },
    { session: a, first: 20, count: 4 },
  ];
  const resolved = (text: string, members = 5, of = base) => {
    const { made, push } = resolver(own, members, of);
    const sound = linesOf(text).every((line) => push(parseWish(line.trimEnd())!) === true);
    return sound ? [...made.runs()].map(runLine).join("") : undefined;
  };
  it("becomes what is stored, as published", () =>
    assert.strictEqual(
      resolver(vectors.recipe.stored.slice(0, 32) as Run["session"], 6, []).push(
        parseWish(vectors.recipe.on_the_wire.trimEnd())!,
      ),
      true,
    ));
  it.each([
    ["new 0 5\n", `${own} 0 5\n`],
    ["new 3 2\nnew 0 1\n", `${own} 3 2\n${own} 0 1\n`],
    ["new 0 2\nnew 2 2\n", `${own} 0 4\n`],
    ["base 0 8\n", `${a} 10 3\n${b} 0 1\n${a} 20 4\n`],
    ["base 0 3\n", `${a} 10 3\n`],
    ["base 1 1\n", `${a} 11 1\n`],
    ["base 2 3\n", `${a} 12 1\n${b} 0 1\n${a} 20 1\n`],
    ["base 3 1\n", `${b} 0 1\n`],
    ["base 4 4\n", `${a} 20 4\n`],
    ["base 7 1\n", `${a} 23 1\n`],
    ["base 0 1\nbase 1 2\n", `${a} 10 3\n`],
    ["new 4 1\nbase 3 2\nnew 0 1\n", `${own} 4 1\n${b} 0 1\n${a} 20 1\n${own} 0 1\n`],
  ])("%j becomes %j", (text, stored) => assert.strictEqual(resolved(text), stored));
  it("leads nowhere but into the pack and the base", () => {
    assert.isUndefined(resolved("new 0 6\n"));
    assert.isUndefined(resolved("new 5 1\n"));
    assert.isUndefined(resolved("base 0 9\n"));
    assert.isUndefined(resolved("base 8 1\n"));
    assert.isUndefined(resolved("new 0 1\nbase 8 1\n"));
    assert.isUndefined(resolved("base 0 1\n", 5, []));
    assert.isUndefined(resolved("new 0 1\n", 0));
  });
  it("makes an archive that is no longer than one may be", () => {
    const all: ReadonlyArray<Run> = [{ session: a, first: 0, count: memberLimit }];
    const { made, push } = resolver(own, memberLimit, all);
    const wish = (of: Wish["of"], count: number) => push({ of, first: 0, count });
    assert.isTrue(wish("new", memberLimit - 1));
    assert.isUndefined(wish("base", 2));
    assert.isUndefined(wish("new", 2));
    assert.isTrue(wish("base", 1));
    assert.isUndefined(wish("base", 1));
    assert.strictEqual(made.members(), memberLimit);
  });
  it("makes an archive of no more packs than one may have", () => {
    assert.strictEqual(packLimit, 65_536);
    const runs = Array.from({ length: packLimit }, (_, i): Run => ({
      session: i.toString(16).padStart(32, "0") as Run["session"],
      first: 0,
      count: 1,
    }));
    const all = resolver(own, 1, runs);
    assert.isTrue(all.push({ of: "base", first: 0, count: packLimit }));
    assert.isUndefined(all.push({ of: "new", first: 0, count: 1 }));
    const other = resolver(own, 1, runs);
    assert.isTrue(other.push({ of: "new", first: 0, count: 1 }));
    assert.isTrue(other.push({ of: "base", first: 0, count: packLimit - 1 }));
    assert.isUndefined(other.push({ of: "base", first: packLimit - 1, count: 1 }));
    const last = resolver(own, 1, runs);
    assert.isTrue(last.push({ of: "base", first: 0, count: packLimit - 1 }));
    assert.isTrue(last.push({ of: "new", first: 0, count: 1 }));
  });
  it("finds its way in a base of a million runs", () => {
    const runs = Array.from({ length: memberLimit }, (_, i): Run => ({
      session: i % 2 === 0 ? a : b,
      first: i,
      count: 1,
    }));
    const { made, push } = resolver(own, 0, runs);
    for (let first = memberLimit - 1; first > 0; first -= 4097)
      push({ of: "base", first, count: 1 });
    assert.isTrue(
      [...made.runs()].every(({ first, session: of }) => of === (first % 2 === 0 ? a : b)),
    );
    assert.strictEqual(made.members(), Math.ceil((memberLimit - 1) / 4097));
  });
});
