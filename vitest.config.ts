/**
 * The suites, a project each. `npm test` runs those of people who change something: unit (pure, or whole
 * programs in one process, on a clock of their own), layers (each against the real thing), smoke (a few
 * runs of the built files). The others are long proofs: `npm run proof` and .ci/run.
 *
 * Limits stand here and nowhere else. They bound what hangs, and are no measure of speed: a test that is
 * slow because the machine is busy must pass.
 */
import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";
import { SkippedReporter } from "./test/support/skipped.ts";
import { casesOfEachProject } from "./test/support/tally.ts";

const project = (name: string, limit: number) => ({
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    testTimeout: limit,
    hookTimeout: limit,
    retry: 0,
  },
});

export default defineConfig({
  test: {
    // One more than there are cores: much of it waits.
    maxWorkers: availableParallelism() + 1,
    reporters: ["default", casesOfEachProject, new SkippedReporter()],
    projects: [
      project("unit", 300_000),
      project("layers", 300_000),
      project("smoke", 300_000),
      project("e2e", 600_000),
      project("sim", 1_200_000),
      project("fire", 1_200_000),
    ],
  },
});
