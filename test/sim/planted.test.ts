/** Each planted fault is found within the stories that it is given. */
import { assert, it } from "@effect/vitest";
import { find, planted } from "#test/sim/planted";

it.each(planted.map((one) => [one.name, one] as const))("%s", async (_name, one) => {
  const found = await find(one, one.within);
  assert.isDefined(found, `not found within ${one.within} stories`);
});
