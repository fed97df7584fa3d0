/** Which modules faults are planted in, and the suites that have to notice. */
import * as fs from "node:fs";
import * as path from "node:path";
import type { Mutant } from "#test/mutation/mutants";

/** Constants, in which nothing can be wrong that a test would know better. */
const constants = ["src/archive/parameters.ts", "src/say/version.ts", "src/wire/limits.ts"];

/** What is pure, without services and time; and of the store what says who may upload into it. */
export const modules: ReadonlyArray<string> = [
  ...["archive", "proof", "say", "wire"].flatMap((folder) =>
    fs
      .readdirSync(`src/${folder}`, { encoding: "utf8", recursive: true })
      .filter((file) => file.endsWith(".ts"))
      .sort()
      .map((file) => `src/${folder}/${file}`),
  ),
  "src/carrier/destination.ts",
  "src/dom0/books/head.ts",
  "src/dom0/far/sample.ts",
  "src/store/signers.ts",
  "src/store/tickets.ts",
].filter((file) => !constants.includes(file));

/**
 * A module's own suites bear its name: `src/wire/names.ts`, `test/unit/wire-names[-more].test.ts`;
 * `src/wire/verbs/put.ts`, `test/unit/wire-verbs-put.test.ts`.
 */
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
