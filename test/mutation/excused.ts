/**
 * Faults that no test has to notice, with the reason. By the line's text, so that lines may move; an
 * entry whose fault is not there any more makes the suite red.
 */
import type { Excused } from "#test/mutation/pure";

const of = (
  file: string,
  why: string,
  ...faults: ReadonlyArray<readonly [line: string, fault: string]>
): ReadonlyArray<Excused> => faults.map(([line, fault]) => ({ file, line, fault, why }));

const treehash = "src/archive/treehash.ts";

export const excused: ReadonlyArray<Excused> = [
  ...of(
    treehash,
    "both ways give the same digest; which one there is depends on the version of node",
    ['typeof crypto.hash === "function"', 'typeof crypto.hash === "function" -> true'],
    ['typeof crypto.hash === "function"', 'typeof crypto.hash === "function" -> false'],
    [
      'typeof crypto.hash === "function"',
      'typeof crypto.hash === "function" -> typeof crypto.hash !== "function"',
    ],
    ['typeof crypto.hash === "function"', '"function" -> ""'],
    [': (block) => crypto.createHash("sha256").update(block).digest();', '"sha256" -> ""'],
  ),
  ...of(
    treehash,
    "levels are only compared with each other: where they begin and by how much they grow is all one",
    ["let level = 0;", "0 -> 1"],
    ["level += 1;", "level += 1 -> level -= 1"],
    ["level += 1;", "1 -> 2"],
  ),
  ...of(
    treehash,
    "one step more takes an empty piece, and adds nothing",
    ["for (let i = 0; i < width; i += 2) {", "i < width -> i <= width"],
    [
      "for (let at = index, level = 0; level < levels.length - 1; at >>>= 1, level++) {",
      "level < levels.length - 1 -> level <= levels.length - 1",
    ],
    ["for (let at = index, level = 0; level < levels.length - 1; at >>>= 1, level++) {", "1 -> 0"],
    ["if (sibling.length > 0) parts.push(sibling);", "sibling.length > 0 -> true"],
    ["if (sibling.length > 0) parts.push(sibling);", "sibling.length > 0 -> sibling.length >= 0"],
    ["if (sibling.length > 0) parts.push(sibling);", "0 -> 1"],
  ),
  ...of("src/wire/frames.ts", "the first block makes the buffer as large as it has to be", [
    "let buffer = new Uint8Array(0);",
    "0 -> 1",
  ]),
];
