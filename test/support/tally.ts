/**
 * How much the suites have tried, for whoever asks: `QBACKUP_TALLY=FILE` in the environment, and each
 * suite adds lines `WHAT<TAB>NUMBER` to that file. test/tally.ts makes a table of it.
 */
import * as fs from "node:fs";
import { env } from "node:process";
import type { Reporter, TestModule } from "vitest/node";

export const tally = (what: string, number: number): void => {
  const file = env["QBACKUP_TALLY"];
  if (file !== undefined) fs.appendFileSync(file, `${what}\t${number}\n`);
};

/** Tells how many cases of each project passed. */
export const casesOfEachProject: Reporter = {
  onTestRunEnd: (modules: ReadonlyArray<TestModule>) => {
    for (const module of modules) {
      tally(`cases: ${module.project.name}`, [...module.children.allTests("passed")].length);
    }
  },
};
