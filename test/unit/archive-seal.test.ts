/** Members of slots: files that scrypt(1) opens, in headers that the walk takes. */
import { assert, describe, it } from "@effect/vitest";
import { createCipheriv, createHash, createHmac, scryptSync } from "node:crypto";
import {
  keysSize,
  type Made,
  member,
  memberPassphrase,
  saltSize,
  sealedMember,
  slotCost,
} from "#src/archive/seal";
import { MemberWalk } from "#src/archive/walk";
import { slotOf } from "#test/support/archive";
import { rng } from "#test/support/random";

const path = "vm7/private.img.017.enc";
const salt = Buffer.from(Array.from({ length: saltSize }, (_, i) => i));
const keys = Buffer.from(Array.from({ length: keysSize }, (_, i) => 255 - i));

/** Opens a file of scrypt(1) with derived keys; throws where it is none. */
const opened = (file: Buffer): Buffer => {
  assert.isAtLeast(file.length, 128);
  assert.strictEqual(file.toString("latin1", 0, 7), "scrypt\0");
  const sum = createHash("sha256").update(file.subarray(0, 48)).digest();
  assert.isTrue(sum.subarray(0, 16).equals(file.subarray(48, 64)));
  const macOf = (bytes: Buffer) => createHmac("sha256", keys.subarray(32)).update(bytes).digest();
  assert.isTrue(macOf(file.subarray(0, 64)).equals(file.subarray(64, 96)));
  assert.isTrue(macOf(file.subarray(0, -32)).equals(file.subarray(-32)));
  const cipher = createCipheriv("aes-256-ctr", keys.subarray(0, 32), Buffer.alloc(16));
  return cipher.update(file.subarray(96, -32));
};

const bytesOf = ({ length, pieces }: Made) => {
  const bytes = Buffer.concat([...pieces]);
  assert.strictEqual(bytes.length, length);
  return bytes;
};
const sealedBytes = (...plain: Array<Uint8Array>) => bytesOf(sealedMember(path, salt, keys, plain));

describe("a sealed member", () => {
  it("is what it was made of, at its place in an archive", () => {
    for (const size of [0, 1, 383, 384, 385, 5000, 70_000]) {
      const plain = rng(size).bytes(size);
      const parts: Array<Uint8Array> = [plain.subarray(0, 400), plain.subarray(400)];
      const made = sealedMember(path, salt, keys, parts);
      assert.strictEqual(made.path, path);
      assert.strictEqual(made.size, size + 128);
      assert.strictEqual(made.length, 512 + Math.ceil((size + 128) / 512) * 512);
      const bytes = bytesOf(made);
      const file = bytes.subarray(512, 512 + made.size);
      assert.isTrue(opened(file).equals(plain));
      assert.isTrue(bytes.equals(slotOf(path, file)));
      assert.isTrue(file.subarray(16, 48).equals(salt));
      assert.isTrue(bytes.equals(sealedBytes(plain)));
      assert.lengthOf(parts, 0);
    }
  });
  it("takes 1,024 bytes where it is empty", () => {
    assert.strictEqual(sealedBytes().length, 1024);
  });
  it("says what its keys cost", () => {
    const bytes = sealedBytes(Buffer.from("x"));
    assert.strictEqual(
      bytes.toString("hex", 512, 528),
      "73637279707400" + "0e" + "00000008" + "00000001",
    );
    assert.deepStrictEqual(slotCost, { N: 2 ** 14, r: 8, p: 1 });
  });
  it("opens with keys that are derived from its passphrase", () => {
    const passphrase = memberPassphrase("20261128T030000-7", path, Buffer.from("secret"));
    const derived = scryptSync(passphrase, salt, keysSize, slotCost);
    const bytes = bytesOf(sealedMember(path, salt, derived, [Buffer.from("plain")]));
    const mac = createHmac("sha256", derived.subarray(32)).update(bytes.subarray(512, 576));
    assert.isTrue(mac.digest().equals(bytes.subarray(576, 608)));
    assert.deepStrictEqual([saltSize, keysSize], [32, 64]);
  });
  it("passes the walk of a member", () => {
    const walk = new MemberWalk({ format: "pack" });
    for (const size of [0, 400]) walk.take(sealedBytes(Buffer.alloc(size)));
    assert.isUndefined(walk.fault);
    assert.isTrue(walk.atMemberEnd);
    assert.strictEqual(walk.format, "slots");
  });
});

it("a member that is not encrypted is its data", () => {
  const parts = [Buffer.from("version"), Buffer.from("=4\n")];
  const made = member("backup-header", parts);
  assert.strictEqual(made.path, "backup-header");
  assert.strictEqual(made.size, 10);
  assert.isTrue(bytesOf(made).equals(slotOf("backup-header", Buffer.concat(parts))));
});

it.each([
  ["vm7/private.img.017.enc", "20261128T030000-7!vm7/private.img.017!"],
  ["qubes.xml.000.enc", "20261128T030000-7!qubes.xml.000!"],
  ["dom0-home/user.1000.enc", "20261128T030000-7!dom0-home/user.1000!"],
  ["backup-header.hmac", "backup-header!"],
])("the passphrase of %s begins with %s", (of, begin) => {
  const passphrase = Buffer.from("gr\xfc\xdfe \xff", "latin1");
  const whole = memberPassphrase("20261128T030000-7", of, passphrase);
  assert.isTrue(whole.equals(Buffer.concat([Buffer.from(begin), passphrase])));
});
