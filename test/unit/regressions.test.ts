/** The inputs that once were trouble for a parser; `npm run fuzz` looks for others. */
import { assert, it } from "@effect/vitest";
import * as fs from "node:fs";
import { strike, targets } from "#test/fuzz/targets";

const regressions = JSON.parse(
  fs.readFileSync(new URL("../fuzz/regressions.json", import.meta.url), "utf8"),
) as ReadonlyArray<{ readonly target: string; readonly why: string; readonly base64: string }>;

it.each(regressions)("$target: $why", ({ base64, target }) => {
  const found = targets.find(({ name }) => name === target);
  assert.isDefined(found);
  for (let seed = 0; seed < 50; seed++) strike(found, seed, () => Buffer.from(base64, "base64"));
});
