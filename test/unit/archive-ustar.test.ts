/** Headers of slots: what the walk takes, and what tar makes of them. */
import { assert, it } from "@effect/vitest";
import { isZero, padding, sizeLimit, tarBlock, ustar } from "#src/archive/ustar";
import { slotOf } from "#test/support/archive";
import { sumUp } from "#test/support/tar";

it("are those of an archive of slots", () => {
  for (const [path, bytes] of [
    ["backup-header", 119],
    ["vm7/private.img.000.enc", 0],
    ["x".repeat(99), 4096],
  ] as const) {
    const header = ustar(path, bytes);
    assert.isTrue(header.equals(slotOf(path, Buffer.alloc(bytes)).subarray(0, 512)), path);
  }
});
it("hold sizes up to their limit", () => {
  assert.strictEqual(ustar("x", sizeLimit - 1).toString("latin1", 124, 136), "77777777777\0");
  assert.strictEqual(sizeLimit.toString(8), `1${"0".repeat(11)}`);
});
it("may be of what is said of the next one", () => {
  const other = Buffer.from(ustar("x", 5));
  other.write("x", 156);
  assert.isTrue(ustar("x", 5, "x").equals(sumUp(other)));
});
it.each([
  [0, 0],
  [1, 511],
  [511, 1],
  [512, 0],
  [513, 511],
])("%i bytes have %i behind them", (size, behind) => {
  assert.strictEqual(padding(size), behind);
  assert.strictEqual((size + behind) % tarBlock, 0);
});
it("tells zeros from anything else, wherever that stands", () => {
  for (const length of [0, 1, 512, 65_535, 65_536, 65_537, 131_072, 200_000]) {
    const bytes = Buffer.alloc(length);
    assert.isTrue(isZero(bytes), `${length}`);
    for (const at of [0, 1, 65_535, 65_536, 65_537, 131_071, length - 1]) {
      if (at < 0 || at >= length) continue;
      bytes[at] = 1;
      assert.isFalse(isZero(bytes), `${at} of ${length}`);
      bytes[at] = 0;
    }
  }
});
