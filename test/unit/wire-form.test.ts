/** What the verbs about one archive have in common. */
import { assert, it } from "@effect/vitest";
import { Schema } from "effect";
import { named } from "#src/wire/form";
import type { Name } from "#src/wire/names";

it("one word, a name, and nothing else", () => {
  const name = "a/b.backup" as Name;
  assert.deepStrictEqual(named.words({ name }), [name]);
  assert.deepStrictEqual(named.parse([name]), { name });
  for (const words of [[], [""], [".a"], [name, name], [name, ""], ["", name]]) {
    assert.isUndefined(named.parse(words), words.join(" "));
  }
  const is = Schema.is(named.schema);
  assert.isTrue(is({ name }));
  for (const none of [{}, { name: "../x" }, { name: 1 }, null]) assert.isFalse(is(none));
});
