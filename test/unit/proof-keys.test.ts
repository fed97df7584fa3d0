/** The server's key: what it signs, how it is written and shown. */
import { assert, describe, it } from "@effect/vitest";
import * as crypto from "node:crypto";
import {
  fingerprint,
  lockKey,
  privateKeyPem,
  readPrivateKey,
  signatureHolds,
} from "#src/proof/keys";

describe("the server's key", () => {
  const seed = crypto.createHash("sha256").update("seed").digest();
  const key = readPrivateKey(privateKeyPem(seed))!;
  it("a signature holds for its text and key alone", () => {
    // RFC 8032, section 7.1, test 1.
    const rfc = readPrivateKey(
      privateKeyPem(
        Buffer.from("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "hex"),
      ),
    )!;
    assert.strictEqual(
      Buffer.from(rfc.server, "base64").toString("hex"),
      "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    );
    assert.isTrue(
      rfc.sign("").length === 88 &&
        Buffer.from(rfc.sign(""), "base64").toString("hex").startsWith("e5564300c360ac72"),
    );
    const signature = key.sign("text");
    assert.isTrue(signatureHolds(key.server, "text", signature));
    assert.isFalse(signatureHolds(key.server, "text ", signature));
    assert.isFalse(signatureHolds(rfc.server, "text", signature));
    for (const nonsense of ["", "x", signature.slice(4), "A".repeat(88)]) {
      assert.isFalse(signatureHolds(key.server, "text", nonsense));
      assert.isFalse(signatureHolds(nonsense, "text", signature));
    }
    // The same for all time, for it stands on paper; and nothing that ssh would show.
    assert.strictEqual(
      fingerprint("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
      "qbackup:630d-cd29-66c4-3366-9112-5448-bbb2-5b4f",
    );
    assert.match(fingerprint(key.server), /^qbackup:[0-9a-f]{4}(?:-[0-9a-f]{4}){7}$/);
    assert.isUndefined(readPrivateKey("nonsense"));
  });
  it("is an Ed25519 key in PKCS #8, read back as it was made, and no other kind", () => {
    const pem = privateKeyPem(seed);
    assert.match(
      pem,
      /^-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END PRIVATE KEY-----\n$/,
    );
    assert.strictEqual(crypto.createPrivateKey(pem).asymmetricKeyType, "ed25519");
    assert.match(key.server, /^[A-Za-z0-9+/]{43}=$/);
    assert.match(key.sign("text"), /^[A-Za-z0-9+/]{86}==$/);
    for (const { privateKey } of [
      crypto.generateKeyPairSync("ed448"),
      crypto.generateKeyPairSync("x25519"),
      crypto.generateKeyPairSync("ec", { namedCurve: "P-256" }),
    ]) {
      const other = privateKey.export({ format: "pem", type: "pkcs8" }).toString();
      assert.isUndefined(readPrivateKey(other), String(privateKey.asymmetricKeyType));
    }
    const half = crypto.createPublicKey(pem).export({ format: "pem", type: "spki" }).toString();
    assert.isUndefined(readPrivateKey(half));
  });
  it("makes a name for each lock that nobody else can tell", () => {
    const expected = crypto.createHmac("sha256", "the key").update("what").digest("hex");
    assert.strictEqual(lockKey("the key", "what"), expected);
    assert.match(expected, /^[0-9a-f]{64}$/);
    assert.notStrictEqual(lockKey("the key", "what else"), expected);
    assert.notStrictEqual(lockKey("another key", "what"), expected);
  });
});
