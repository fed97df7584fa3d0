/** `list`: which part of the archives, and what is said of each. */
import { assert, it } from "@effect/vitest";
import { parseCommand, parseLine, parseReply } from "#src/wire/request";
import { answers, needs, refuses, writes } from "#test/support/form";
import { vectors } from "#test/support/vectors";

const name = "a/b.backup";
const session = "0123456789abcdef0123456789abcdef";
const archive = {
  type: "archive",
  name,
  session,
  signer: vectors.keys[0]!.public,
  series: "a-0123456789abcdef",
  run: 3,
  size: 5,
  members: 4,
  root: "ab".repeat(32),
  stored: "2026-11-28T03:00:00Z",
  damaged: false,
};

it("asks for all, for a beginning of names, and for what is behind a name", () => {
  writes("list", {});
  writes("list", { prefix: "a/" }, "a/");
  writes("list", { prefix: "a/", after: name }, "a/", name);
  writes("list", { after: name }, "-", name);
  needs("list", { prefix: "a/", after: name }, ["prefix", "after"]);
  refuses("list", "bad-request", " ", " ../", " a/ b/", ` a/ ${name} x`, ` ${name} `, " a b -");
});
it("a dash is every archive, on ssh alone", () => {
  assert.deepStrictEqual<object>(parseCommand("qbackup/1 list -"), { request: { verb: "list" } });
  assert.isTrue("refusal" in parseLine("list", '{"prefix":"-"}'));
});
it("is answered with archives, tombstones and an end", () => {
  const { signature } = vectors.texts[0]!;
  answers("list", [
    archive,
    { type: "pruned", name, tombstone: "t", signature },
    { type: "end", more: false },
  ]);
});
it("nobody signed for what came as a bare path, but everything else is known of it", () => {
  const read = (more: object) => parseReply("list", JSON.stringify({ ...archive, ...more }));
  assert.isDefined(read({ signer: null, series: null, run: null }));
  for (const field of Object.keys(archive)) {
    const free = ["signer", "series", "run"].includes(field);
    assert.strictEqual(read({ [field]: null }) !== undefined, free, field);
  }
});
