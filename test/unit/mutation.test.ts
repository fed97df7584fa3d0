/** The planter of faults itself: what it plants, and that its excuses are of faults that are there. */
import { assert, describe, it } from "@effect/vitest";
import * as fs from "node:fs";
import { excused } from "#test/mutation/excused";
import { mutantsOf, patternFaults, withMutant } from "#test/mutation/mutants";
import { keyOf, modules, suitesOf } from "#test/mutation/pure";

const faulty = (text: string) => mutantsOf("x.ts", text).map((mutant) => withMutant(text, mutant));

describe("what is planted", () => {
  it.each([
    ["a < b", ["a <= b", "a >= b"]],
    ["a <= 7", ["a < 7", "a > 7", "a <= 8", "a <= 6"]],
    ["a === b", ["a !== b"]],
    ["a - b", ["a + b"]],
    ["a && b", ["a || b", "a", "b"]],
    ['const x = "word"', ['const x = ""']],
    ['const x = "words for people"', []],
    ["!a", ["a"]],
    ["a ? b : c", ["true ? b : c", "false ? b : c", "!(a) ? b : c"]],
    ["if (a) b", ["if (true) b", "if (false) b", "if (!(a)) b"]],
    ["f(a)", [";"]],
    ["x.check(a, b)", ["x.check(b)", "x.check(a)", ";"]],
    ["x.min", ["x.max"]],
    ["x.toString", []],
    [
      "/^a{2,3}$/",
      ["/a{2,3}$/", "/^a{3,3}$/", "/^a{1,3}$/", "/^a{2,4}$/", "/^a{2,2}$/", "/^a{2,3}/"],
    ],
    ["type X = 7 | 8", []],
    ['import "./x.ts"', []],
  ] as const)("%s", (text, expected) => {
    assert.sameMembers(faulty(text), [...expected]);
  });
  it("patterns: classes, alternatives, signs that stand for themselves", () => {
    const broken = (pattern: string) =>
      [...patternFaults(pattern)].map(
        ({ end, start, to }) => pattern.slice(0, start) + to + pattern.slice(end),
      );
    assert.sameMembers(broken("[a-z.]"), ["[.]", "[a-z]"]);
    assert.sameMembers(broken("[^\\x20-\\x7e]"), ["[\\x20-\\x7e]"]);
    assert.sameMembers(broken("(?:a|b)c"), ["(?:b)c", "(?:a)c"]);
    assert.sameMembers(broken("\\$\\{"), []);
    assert.sameMembers(broken("${x}?"), ["${x}"]);
  });
  it("each fault of a line has a name of its own", () => {
    const names = mutantsOf("x.ts", "f(1, 1)").map(({ fault }) => fault);
    assert.include(names, "1 -> 2");
    assert.include(names, "1 -> 2 #2");
    assert.lengthOf(new Set(names), names.length);
  });
});

it("every module has suites of its name", () => {
  for (const module of modules) assert.isNotEmpty(suitesOf(module), module);
});

it("every excuse is of a fault that is planted, and says why", () => {
  const planted = new Set(
    modules.flatMap((file) => mutantsOf(file, fs.readFileSync(file, "utf8"))).map(keyOf),
  );
  for (const excuse of excused) {
    assert.isTrue(planted.has(keyOf(excuse)), `no such fault: ${keyOf(excuse)}`);
    assert.isAbove(excuse.why.length, 20, keyOf(excuse));
  }
  assert.lengthOf(new Set(excused.map(keyOf)), excused.length);
});
