/** Each fault of the simulation still has its place in the source; that it is found, test/sim shows. */
import { assert, it } from "@effect/vitest";
import * as fs from "node:fs";
import { planted } from "#test/sim/planted";

it.each(planted.map((one) => [one.name, one] as const))("%s", (_name, { changes }) => {
  for (const { file, from } of changes) {
    assert.lengthOf(fs.readFileSync(file, "utf8").split(from), 2, `${file} has not once: ${from}`);
  }
});
