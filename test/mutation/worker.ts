/** Runs suites on planted faults, one after the other, as its parent asks. One that hangs ends it. */
import * as path from "node:path";
import { createVitest } from "vitest/node";
import { place, type Planted } from "#test/mutation/vitest.config";

export interface Task {
  readonly file: string;
  readonly text: string;
  readonly suites: ReadonlyArray<string>;
  /** Milliseconds of processor time after which it hangs. */
  readonly enough: number;
}
/** `unloadable`: the module could not even be loaded, which nobody can fail to notice. */
export interface Answer {
  readonly outcome: "killed" | "survived" | "unloadable" | "hung" | "nothing ran";
  /** The first test that failed. */
  readonly by?: string;
  /** Milliseconds of processor time. */
  readonly took: number;
}

const world = globalThis as { [place]?: Planted };
const answer = (reply: Answer): void => void process.send!(reply);
const worked = (): number => (process.cpuUsage().user + process.cpuUsage().system) / 1000;

const vitest = await createVitest({ watch: false, config: "test/mutation/vitest.config.ts" });

process.on("disconnect", () => process.exit());
process.on("message", async ({ enough, file, suites, text }: Task) => {
  const began = worked();
  const watch = setInterval(() => {
    if (worked() - began < enough) return;
    process.send!({ outcome: "hung", took: worked() - began } satisfies Answer, () =>
      process.exit(),
    );
  }, 200);
  // The module before this one is as it was again.
  for (const changed of [world[place]?.file, path.resolve(file)]) {
    if (changed !== undefined) vitest.invalidateFile(changed);
  }
  world[place] = { file: path.resolve(file), text };
  const specifications = await vitest.globTestSpecifications([...suites]);
  const run = await vitest.runTestSpecifications(specifications);
  clearInterval(watch);
  // It remembers the suites of all runs.
  const ours = new Set(specifications.map(({ moduleId }) => moduleId));
  const testModules = run.testModules.filter(({ moduleId }) => ours.has(moduleId));
  const tests = testModules.flatMap((module) => [...module.children.allTests()]);
  const failed = tests.find((test) => test.result().state === "failed");
  const passed = tests.filter((test) => test.result().state === "passed").length;
  const broken = testModules.some((module) => module.errors().length > 0);
  const took = worked() - began;
  if (failed !== undefined) answer({ outcome: "killed", by: failed.fullName, took });
  else if (broken) answer({ outcome: "unloadable", took });
  else answer({ outcome: passed > 0 ? "survived" : "nothing ran", took });
});
process.send!("ready");
