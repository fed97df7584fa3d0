/** The ledger's head as it stands on paper. */
import { assert, describe, it } from "vitest";
import * as crypto from "node:crypto";
import { fromPaper, onPaper } from "#src/dom0/books/head";

describe("a head on paper", () => {
  const hash = crypto.createHash("sha256").update("x").digest("hex");
  it("is read as it was written, in any case, with spaces, with i or l for 1 and o for 0", () => {
    for (let line = 1; line < 3000; line += 37) {
      const hash = crypto.createHash("sha256").update(`${line}`).digest("hex");
      const paper = onPaper(line, hash);
      assert.match(paper, /^[1-9]\d*(-[0-9A-HJKMNP-TV-Z]{4}){6}$/);
      const head = { line, hash: hash.slice(0, 25) };
      assert.deepStrictEqual(fromPaper(paper), head);
      const sloppy = paper.toLowerCase().replaceAll("-", " ").replaceAll("v", "u");
      assert.deepStrictEqual(fromPaper(`  ${sloppy} `), head);
      const [number, ...rest] = paper.split("-");
      const joined = `${number}-${rest.join("").replaceAll("1", "l").replaceAll("0", "o")}`;
      assert.deepStrictEqual(fromPaper(joined), head);
      assert.deepStrictEqual(fromPaper(joined.replaceAll("l", "i")), head);
    }
  });
  it("is the same for all time, for it stands on paper", () => {
    assert.strictEqual(onPaper(37, hash), "37-5NRH-CGNQ-4TR4-80B2-FJMZ-YD3D");
  });
  it("may have any number of signs that mean nothing around its letters, but for the first", () => {
    const [number, ...rest] = onPaper(37, hash).split("-");
    const head = { line: 37, hash: hash.slice(0, 25) };
    for (const between of ["-", " ", "\n", " - ", " ".repeat(100)]) {
      const whole = [number, ...rest, ""].join(between);
      assert.deepStrictEqual(fromPaper(`\n ${whole}`), head, JSON.stringify(between));
      assert.isUndefined(fromPaper(`-${whole}`), JSON.stringify(between));
    }
    assert.isUndefined(fromPaper(`${number}${rest.join("-")}`));
  });
  it("has a line of nine digits at most", () => {
    const line = 999_999_999;
    assert.strictEqual(fromPaper(onPaper(line, hash))?.line, line);
    assert.isUndefined(fromPaper(onPaper(line + 1, hash)));
  });
  it("shows every slip of one sign, two that changed places, and nonsense", () => {
    const paper = onPaper(37, hash);
    let slips = 0;
    for (let at = 0; at < paper.length; at++) {
      for (const sign of "0123456789ABCDEFGHJKMNPQRSTVWXYZ-") {
        if (sign === paper[at]) continue;
        const read = fromPaper(`${paper.slice(0, at)}${sign}${paper.slice(at + 1)}`);
        if (read !== undefined) slips += 1;
      }
    }
    // 20 bits of check: of some 1,000 slips none gets through, of a million one would.
    assert.strictEqual(slips, 0);
    const swapped = paper.replace(/(.)(.)$/, "$2$1");
    if (swapped !== paper) assert.isUndefined(fromPaper(swapped));
    const nonsense = [
      "",
      "37",
      "0-",
      "x".repeat(1000),
      `37-${"-".repeat(24)}`,
      `0${paper.slice(1)}`,
    ];
    const around = [`x${paper}`, `${paper}!`, `38${paper.slice(2)}`];
    const length = [`${paper}-0000`, `${paper}0`, paper.slice(0, -1), `37-0${paper.slice(3)}`];
    for (const text of [...nonsense, ...around, ...length])
      assert.isUndefined(fromPaper(text), text);
  });
});
