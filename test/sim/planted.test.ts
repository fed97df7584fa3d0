/** Each planted fault is found within the stories that it is given. */
import { assert, it } from "@effect/vitest";
import { env } from "node:process";
import { find, planted } from "#test/sim/planted";

// Each is a run of the simulation of its own; a few by default, all of them where there is time.
const chosen = env["PLANTED"] === "all" ? planted : planted.filter(({ quick }) => quick);

it.each(chosen.map((one) => [one.name, one] as const))("%s", async (_name, one) => {
  const found = await find(one, one.within);
  assert.isDefined(found, `not found within ${one.within} stories`);
});
