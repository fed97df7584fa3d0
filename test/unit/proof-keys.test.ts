/** The keys: what they sign, how they are written and shown. */
import { assert, describe, it } from "@effect/vitest";
import * as crypto from "node:crypto";
import {
  fingerprint,
  lockKey,
  privateKeyPem,
  readPrivateKey,
  type Signed,
  seedOf,
  signatureHolds,
} from "#src/proof/keys";
import type { PublicKey } from "#src/wire/names";
import { vectors } from "#test/support/vectors";

const kinds: ReadonlyArray<Signed> = ["manifest", "ticket", "receipt", "tombstone"];

describe("a key", () => {
  const seed = crypto.createHash("sha256").update("seed").digest();
  const key = readPrivateKey(privateKeyPem(seed))!;
  // RFC 8032, section 7.1, test 1.
  const rfc = Buffer.from(
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "hex",
  );
  const other = readPrivateKey(privateKeyPem(rfc))!;
  it("is the one of its 32 bytes", () =>
    assert.strictEqual(
      Buffer.from(other.publicKey, "base64url").toString("hex"),
      "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    ));
  it.each(vectors.texts)(
    "a signature over a $what is the published one",
    ({ signature, signer, text, what }) => {
      const { seed: secret } = vectors.keys.find((one) => one.public === signer)!;
      const pair = readPrivateKey(privateKeyPem(Buffer.from(secret, "hex")))!;
      assert.strictEqual(pair.publicKey, signer);
      assert.strictEqual(pair.sign(what, text), signature);
      assert.isTrue(signatureHolds(signer, what, text, signature));
    },
  );
  it("a signature holds for its text, its kind and its key alone", () => {
    for (const what of kinds) {
      const signature = key.sign(what, "text");
      assert.isTrue(signatureHolds(key.publicKey, what, "text", signature));
      assert.isFalse(signatureHolds(key.publicKey, what, "text ", signature));
      assert.isFalse(signatureHolds(other.publicKey, what, "text", signature));
      for (const another of kinds.filter((one) => one !== what)) {
        assert.isFalse(signatureHolds(key.publicKey, another, "text", signature));
      }
      for (const nonsense of [
        "",
        "x",
        signature.slice(4),
        `${signature}==`,
        "A".repeat(86),
        "_".repeat(86),
      ]) {
        assert.isFalse(signatureHolds(key.publicKey, what, "text", nonsense));
        assert.isFalse(signatureHolds(nonsense, what, "text", signature));
      }
      // Canonical, or none: the same bytes in another spelling.
      const last = signature.at(-1)!;
      const bent = signature.slice(0, -1) + String.fromCharCode(last.charCodeAt(0) + 1);
      assert.isTrue(Buffer.from(bent, "base64url").equals(Buffer.from(signature, "base64url")));
      assert.isFalse(signatureHolds(key.publicKey, what, "text", bent));
      const odd =
        key.publicKey.slice(0, -1) + String.fromCharCode(key.publicKey.charCodeAt(42) + 1);
      assert.isTrue(Buffer.from(odd, "base64url").equals(Buffer.from(key.publicKey, "base64url")));
      assert.isFalse(signatureHolds(odd, what, "text", signature));
    }
    // 32 bytes that are no point of the curve.
    assert.isFalse(
      signatureHolds("_".repeat(42) + "8", "ticket", "text", key.sign("ticket", "text")),
    );
  });
  it("is shown as the SHA-256 of its bytes", () => {
    for (const { fingerprint: print, public: publicKey } of vectors.keys) {
      assert.strictEqual(fingerprint(publicKey as PublicKey), print);
    }
  });
  it("is an Ed25519 key in PKCS #8, read back as it was made, and no other kind", () => {
    const pem = privateKeyPem(seed);
    assert.match(
      pem,
      /^-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END PRIVATE KEY-----\n$/,
    );
    assert.strictEqual(crypto.createPrivateKey(pem).asymmetricKeyType, "ed25519");
    assert.match(key.publicKey, /^[A-Za-z0-9_-]{43}$/);
    assert.match(key.sign("ticket", "text"), /^[A-Za-z0-9_-]{86}$/);
    assert.isTrue(seed.equals(seedOf(pem)!));
    for (const { privateKey } of [
      crypto.generateKeyPairSync("ed448"),
      crypto.generateKeyPairSync("x25519"),
      crypto.generateKeyPairSync("ec", { namedCurve: "P-256" }),
    ]) {
      const another = privateKey.export({ format: "pem", type: "pkcs8" }).toString();
      assert.isUndefined(readPrivateKey(another), String(privateKey.asymmetricKeyType));
      assert.isUndefined(seedOf(another));
    }
    const half = crypto.createPublicKey(pem).export({ format: "pem", type: "spki" }).toString();
    for (const none of [half, "nonsense", ""]) {
      assert.isUndefined(readPrivateKey(none));
      assert.isUndefined(seedOf(none));
    }
  });
  it("makes a name for each lock that nobody else can tell", () => {
    const expected = crypto.createHmac("sha256", "the key").update("what").digest("hex");
    assert.strictEqual(lockKey("the key", "what"), expected);
    assert.match(expected, /^[0-9a-f]{64}$/);
    assert.notStrictEqual(lockKey("the key", "what else"), expected);
    assert.notStrictEqual(lockKey("another key", "what"), expected);
  });
});
