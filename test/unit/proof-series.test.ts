/** What retention counts together, and what it tells the server. */
import { assert, it } from "@effect/vitest";
import * as crypto from "node:crypto";
import { seriesOf } from "#src/proof/series";
import { isSeries } from "#src/wire/names";
import { vectors } from "#test/support/vectors";

const key = Buffer.from(vectors.series_key, "hex");
const of = (prefix: string, qubes: ReadonlyArray<string> = [], includeDom0 = false) =>
  seriesOf(key, { prefix, qubes, includeDom0 });

it.each(vectors.series)("$series is the published one", ({ dom0, prefix, qubes, series }) =>
  assert.strictEqual(of(prefix, qubes, dom0), series),
);
it("the same qubes in another order, or one twice, are the same series", () => {
  const one = of("a", ["vault", "work"]);
  assert.strictEqual(of("a", ["work", "vault"]), one);
  assert.strictEqual(of("a", ["work", "vault", "work"]), one);
});
it("anything else is another one", () => {
  const all = [
    of("a"),
    of("b"),
    of(""),
    of("a", ["work"]),
    of("a", ["work"], true),
    of("a", [], true),
    of("a", ["wor", "k"]),
    of("a", ["@dom0"]),
    seriesOf(Buffer.alloc(32), { prefix: "a", qubes: [], includeDom0: false }),
  ];
  // A qube cannot be called @dom0: that name stands for dom0's home.
  assert.strictEqual(all[7], all[5]);
  assert.strictEqual(new Set(all).size, all.length - 1);
});
it("names are sorted by their bytes", () => {
  // As UTF-16, U+1F600 comes before U+FF5E.
  const names = ["\uff5e", "\u{1f600}"];
  assert.strictEqual(of("", names), of("", names.toReversed()));
  const mac = crypto.createHmac("sha256", key).update("\uff5e\n\u{1f600}\n").digest("hex");
  assert.strictEqual(of("", names), mac.slice(0, 16));
});
it("the prefix loses what is no letter and no digit at its end, and all of it if nothing is left", () => {
  const digits = of("");
  assert.match(digits, /^[0-9a-f]{16}$/);
  for (const [prefix, before] of [
    ["laptop-", "laptop-"],
    ["laptop/", "laptop-"],
    ["a.b_c+d", "a.b_c+d-"],
    ["dir/laptop._+-/", "dir/laptop-"],
    ["-", ""],
    ["x", "x-"],
    ["X", "X-"],
    ["x9-", "x9-"],
  ] as const) {
    assert.strictEqual(of(prefix), before + digits, prefix);
    assert.isTrue(isSeries(of(prefix)));
  }
});
