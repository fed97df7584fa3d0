/** Which modules faults are planted in, and the suites that have to notice. */
import * as fs from "node:fs";
import * as path from "node:path";
import type { Mutant } from "#test/mutation/mutants";

/** Only what is pure: no services, no time, nothing outside of its arguments. */
export const modules: ReadonlyArray<string> = [
  "src/archive/treehash.ts",
  "src/archive/walk.ts",
  "src/dom0/head.ts",
  "src/dom0/sample.ts",
];

/** A module's own suites bear its name: `src/wire/names.ts`, `test/unit/wire-names[-more].test.ts`. */
export const suitesOf = (module: string): ReadonlyArray<string> => {
  const name = module.split("/").slice(1).join("-").replace(/\.ts$/, "");
  const own = new RegExp(`^${name}(?:-[a-z]+)*\\.test\\.ts$`);
  return fs
    .readdirSync("test/unit")
    .filter((file) => own.test(file))
    .map((file) => path.join("test/unit", file));
};

/** A fault that no test has to notice. */
export interface Excused extends Pick<Mutant, "file" | "line" | "fault"> {
  readonly why: string;
}
export const keyOf = ({ fault, file, line }: Pick<Mutant, "file" | "line" | "fault">): string =>
  JSON.stringify([file, line, fault]);
