/** What may be shown to a person, whoever wrote it. */
import { assert, describe, it } from "@effect/vitest";
import { line, printable } from "#src/say/shown";

describe("a line", () => {
  it("what is shown is one short printable line", () => {
    assert.strictEqual(printable("a\x1b[31mb\r\nc\u202e"), "a?[31mb?c?");
    assert.isAtMost(printable("é".repeat(100_000)).length, 203);
    assert.isAtMost(printable("x".repeat(100_000)).length, 203);
  });
  it("what is shown is cut at its limit, and only there", () => {
    assert.strictEqual(printable("x".repeat(200)), "x".repeat(200));
    assert.strictEqual(printable("x".repeat(201)), `${"x".repeat(200)}...`);
    assert.strictEqual(printable("abcd", 4), "abcd");
    assert.strictEqual(printable("abcde", 4), "abcd...");
    assert.strictEqual(printable(" ~\x7f\x1f"), " ~?");
    // Only so much of a text is looked at: four times of what is shown.
    assert.strictEqual(printable(`${"\n".repeat(15)}x`, 4), "?x");
    assert.strictEqual(printable(`${"\n".repeat(16)}x`, 4), "?");
  });
  it("made of a template is clean as a whole, and has 4,000 characters at most", () => {
    assert.strictEqual(line`${"a\nb"}: ${7} bytes`, "a?b: 7 bytes");
    assert.strictEqual(line`${"x".repeat(4000)}`, "x".repeat(4000));
    assert.strictEqual(line`${"x".repeat(4001)}`, `${"x".repeat(4000)}...`);
  });
});
