/** Lines of tables, and the root over them. */
import { assert, describe, it } from "@effect/vitest";
import { lineOf, memberLimit, parseMember, rootHasher, tableLineLimit } from "#src/proof/table";
import { sha256 } from "#src/proof/texts";
import { linesOf } from "#test/support/reference";
import { lineOfRoot, vectors } from "#test/support/vectors";

const digest = "ab".repeat(32);
const line = (path: string, size: number | string, length: number | string, hash = digest) =>
  `${path} ${size} ${length} ${hash}`;

describe("a line", () => {
  it.each(vectors.archives)("of $file is read, and written again", ({ table }) => {
    for (const one of linesOf(table)) {
      const member = parseMember(one.slice(0, -1))!;
      assert.strictEqual(lineOf(member), one);
    }
  });
  it("has path, size, length and digest", () => {
    assert.deepStrictEqual(parseMember(line("vm7/private.img.000.enc", 128, 1024)), {
      path: "vm7/private.img.000.enc",
      size: 128,
      length: 1024,
      digest,
    });
  });
  it("a path has 1 to 99 bytes of these", () => {
    const path = (text: string) => parseMember(line(text, 1, 1024)) !== undefined;
    assert.isTrue(path("a".repeat(99)));
    assert.isFalse(path("a".repeat(100)));
    assert.isFalse(path(""));
    for (let code = 0; code < 256; code++) {
      const sign = String.fromCharCode(code);
      assert.strictEqual(path(sign), /[A-Za-z0-9._@/-]/.test(sign), JSON.stringify(sign));
    }
  });
  it("a length is of whole blocks of tar, and holds a header and the data at least", () => {
    const fits = (size: number, length: number) =>
      parseMember(line("a", size, length)) !== undefined;
    assert.isTrue(fits(0, 512));
    assert.isFalse(fits(0, 0));
    assert.isFalse(fits(1, 512));
    assert.isTrue(fits(512, 1024));
    assert.isFalse(fits(513, 1024));
    assert.isFalse(fits(0, 513));
    assert.isFalse(fits(0, 1025));
    assert.isFalse(fits(0, 768));
  });
  it("there is one way of writing it", () => {
    for (const bad of [
      "",
      line("a", "01", 1024),
      line("a", 1, "01024"),
      line("a", "-1", 1024),
      line("a", 1, "1e3"),
      line("a", "", 1024),
      line("a", 1, ""),
      line("a", 1, "9007199254740992"),
      line("a", "9007199254740992", 1024),
      line("a", 1, "99999999999999999"),
      line("a", 1, 1024, digest.toUpperCase()),
      line("a", 1, 1024, digest.slice(1)),
      line("a", 1, 1024, `${digest}0`),
      ` ${line("a", 1, 1024)}`,
      `${line("a", 1, 1024)} `,
      `${line("a", 1, 1024)}\n`,
      line("a", 1, 1024).replace(" ", "  "),
      line("a", 1, 1024).replace(" ", "\t"),
    ]) {
      assert.isUndefined(parseMember(bad), JSON.stringify(bad));
    }
  });
  it("the longest one is as long as its limit", () => {
    const most = 2 ** 53 - 512;
    const size = most - 512;
    const text = lineOf({ path: "a".repeat(99), size, length: most, digest });
    assert.isDefined(parseMember(text.slice(0, -1)));
    assert.strictEqual(text.length, tableLineLimit);
  });
  it("an archive has 1,048,576 members at most", () => assert.strictEqual(memberLimit, 1_048_576));
});

describe("a root", () => {
  it.each(vectors.archives)("of $file is the published one", ({ members, root, table }) => {
    const hasher = rootHasher();
    for (const one of linesOf(table)) hasher.push(one);
    assert.strictEqual(hasher.members(), members);
    assert.strictEqual(hasher.root(), root);
  });
  it.each(vectors.roots)("over $lines lines is the published one", ({ lines, root }) => {
    const hasher = rootHasher();
    assert.strictEqual(hasher.members(), 0);
    for (let i = 0; i < lines; i++) hasher.push(lineOfRoot(i, sha256));
    assert.strictEqual(hasher.root(), root);
    assert.strictEqual(hasher.members(), lines);
  });
  it("of nothing is none", () => assert.isUndefined(rootHasher().root()));
});
