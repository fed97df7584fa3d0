/**
 * The table at the end of .ci/run: what the suites have tried, beside the least that it may be. The
 * least only grows: a suite that tries less than it once did has lost something.
 */
import * as fs from "node:fs";
import { argv } from "node:process";

/** Of the commit before the suites became projects: its `npm test` and its long suites together. */
const least: Readonly<Record<string, number>> = {
  stories: 10_240,
  kills: 240,
  "system calls": 523,
  "fuzz inputs": 6_120_000,
  mutants: 40,
  cases: 1_280,
};

const counted = new Map<string, number>();
for (const line of fs.readFileSync(argv[2]!, "utf8").trim().split("\n")) {
  const [what, number] = line.split("\t") as [string, string];
  for (const row of [what, ...(what.startsWith("cases: ") ? ["cases"] : [])]) {
    counted.set(row, (counted.get(row) ?? 0) + Number(number));
  }
}

const rows = [...new Set([...counted.keys(), ...Object.keys(least)])].sort();
const lines = rows.map((what) => {
  const [number, floor] = [counted.get(what) ?? 0, least[what]];
  const short = floor !== undefined && number < floor;
  return { short, text: [what, `${number}`, `${floor ?? ""}`, short ? "LESS THAN IT WAS" : ""] };
});
for (const [what, number, floor, word] of [
  ["tried", "now", "at least", ""],
  ...lines.map(({ text }) => text),
] as ReadonlyArray<ReadonlyArray<string>>) {
  process.stdout.write(
    `${what!.padEnd(20)}${number!.padStart(12)}${floor!.padStart(12)}  ${word!}`.trimEnd() + "\n",
  );
}
process.exitCode = lines.some(({ short }) => short) ? 1 : 0;
