/** A share of the fuzzing (`npm run fuzz` does all of it), and the inputs that once were trouble. */
import { assert, describe, it } from "@effect/vitest";
import * as fs from "node:fs";
import { mutate } from "#test/fuzz/mutate";
import { strike, targets } from "#test/fuzz/targets";

const share = 20_000;

describe.each(targets.map((target) => [target.name, target] as const))("%s", (name, target) => {
  it(`takes or refuses ${share} inputs in good order`, { timeout: 120_000 }, () => {
    const { stackTraceLimit } = Error;
    // Refusals are errors, many of them; nobody looks at where they came from.
    Error.stackTraceLimit = 0;
    try {
      for (let seed = 1; seed <= share; seed++) {
        try {
          strike(target, seed, mutate);
        } catch (error) {
          const again = `again with: TARGET=${name} SEED=${seed} npm run fuzz`;
          throw new Error(`${String(error)}\n${again}`, { cause: error });
        }
      }
    } finally {
      Error.stackTraceLimit = stackTraceLimit;
    }
  });
});

const regressions = JSON.parse(
  fs.readFileSync(new URL("regressions.json", import.meta.url), "utf8"),
) as ReadonlyArray<{ readonly target: string; readonly why: string; readonly base64: string }>;

describe("inputs that were kept", () => {
  it.each(regressions)("$target: $why", ({ base64, target }) => {
    const found = targets.find(({ name }) => name === target);
    assert.isDefined(found);
    for (let seed = 0; seed < 50; seed++) {
      strike(found, seed, () => Buffer.from(base64, "base64"));
    }
  });
});
