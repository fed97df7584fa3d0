/** Text of many lines, in pieces of any size. */
import { assert, it } from "@effect/vitest";
import { textLines } from "#src/proof/lines";

/** The lines that were seen, whether all was sound, and whether it ended so. */
const read = (
  text: string,
  { limit = 8, step = 1000, take = (() => true) as (line: string) => boolean } = {},
) => {
  const seen: Array<string> = [];
  const lines = textLines(limit, (line) => {
    seen.push(line);
    return take(line);
  });
  const bytes = Buffer.from(text, "latin1");
  let sound = true;
  for (let at = 0; at < bytes.length; at += step) sound = lines.push(bytes.subarray(at, at + step));
  return { seen, sound, whole: lines.finish() };
};

it("each line is given without its newline, whatever the pieces", () => {
  for (const step of [1, 2, 3, 7, 100]) {
    assert.deepStrictEqual(read("a b\nc\n1234567\nd\n", { step }), {
      seen: ["a b", "c", "1234567", "d"],
      sound: true,
      whole: true,
    });
  }
  assert.deepStrictEqual(read(""), { seen: [], sound: true, whole: true });
});
it("a line has so many bytes, its newline included", () => {
  for (const step of [1, 3, 100]) {
    assert.deepStrictEqual(read("1234567\nx\n", { step }).seen, ["1234567", "x"]);
    const long = { seen: ["x"], sound: false, whole: false };
    assert.deepStrictEqual(read("x\n12345678\ny\n", { step }), long);
    // It is not waited for: it might never end.
    assert.deepStrictEqual(read("x\n12345678", { step }), long);
  }
});
it("a line without an end is no whole text, but no fault yet", () => {
  assert.deepStrictEqual(read("x\ny"), { seen: ["x"], sound: true, whole: false });
  assert.deepStrictEqual(read("x\n1234567"), { seen: ["x"], sound: true, whole: false });
});
it("every sign from space to tilde may stand in it, and no other", () => {
  for (let code = 0; code < 256; code++) {
    const sign = String.fromCharCode(code);
    if (sign === "\n") continue;
    const good = code >= 0x20 && code <= 0x7e;
    assert.strictEqual(read(`a${sign}b\n`).whole, good, JSON.stringify(sign));
    assert.deepStrictEqual(read(`${sign}\n`).seen, good ? [sign] : []);
  }
  assert.isFalse(read("\n").sound);
  assert.isFalse(read("a\n\nb\n").sound);
});
it("nothing is seen behind what is not sound", () => {
  const take = (line: string) => line !== "b";
  for (const step of [1, 100]) {
    assert.deepStrictEqual(read("a\nb\nc\n", { step, take }), {
      seen: ["a", "b"],
      sound: false,
      whole: false,
    });
    assert.deepStrictEqual(read("a\n\0\nc\n", { step }).seen, ["a"]);
  }
});
it("pieces of larger arrays are read as what they are", () => {
  const lines = textLines(8, (line) => line === "bc");
  assert.isTrue(lines.push(new Uint8Array(Buffer.from("abc\nd")).subarray(1, 4)));
  assert.isTrue(lines.finish());
});
