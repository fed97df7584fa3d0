/**
 * Ed25519 keys: dom0's, which signs tickets and manifests, and the server's, which signs receipts and
 * tombstones. How they are made, written and shown, and what they sign. docs/protocol.md, Signatures.
 */
import {
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  sign,
  verify,
} from "node:crypto";
import { isPublicKey, isSignature, PublicKey, Signature } from "#src/wire/names";

/** DER before the 32 bytes of a key: PKCS #8 for the private one, SPKI for the public (RFC 8410). */
const pkcs8 = Buffer.from("302e020100300506032b657004220420", "hex");
const spki = Buffer.from("302a300506032b6570032100", "hex");

/** Which text is signed: without that, a signature over one could pass for one over another. */
export type Signed = "manifest" | "ticket" | "receipt" | "tombstone";

const messageOf = (what: Signed, text: string): Buffer => Buffer.from(`qbackup-${what}-1\n${text}`);

const privateKeyOfSeed = (seed: Uint8Array): KeyObject =>
  createPrivateKey({ key: Buffer.concat([pkcs8, seed]), format: "der", type: "pkcs8" });

/** The private key made of 32 random bytes, as PEM (PKCS #8), the form that is stored. */
export const privateKeyPem = (seed: Uint8Array): string =>
  privateKeyOfSeed(seed).export({ format: "pem", type: "pkcs8" }).toString();

/** The 32 bytes that a stored key was made of; undefined when it is not an Ed25519 private key. */
export const seedOf = (pem: string): Uint8Array | undefined => {
  const key = privateKeyOf(pem);
  return key === undefined
    ? undefined
    : key.export({ format: "der", type: "pkcs8" }).subarray(pkcs8.length);
};

const privateKeyOf = (pem: string): KeyObject | undefined => {
  try {
    const key = createPrivateKey(pem);
    return key.asymmetricKeyType === "ed25519" ? key : undefined;
  } catch {
    return undefined;
  }
};

export interface SigningKey {
  readonly publicKey: PublicKey;
  readonly sign: (what: Signed, text: string) => Signature;
}

/** Reads the stored form; undefined when it is not an Ed25519 private key. */
export const readPrivateKey = (pem: string): SigningKey | undefined => {
  const key = privateKeyOf(pem);
  return key === undefined ? undefined : signingKey(key);
};

/** The private key made of 32 random bytes. */
export const signingKeyOf = (seed: Uint8Array): SigningKey => signingKey(privateKeyOfSeed(seed));

const signingKey = (key: KeyObject): SigningKey => {
  const raw = createPublicKey(key).export({ format: "der", type: "spki" }).subarray(spki.length);
  return {
    publicKey: PublicKey.make(raw.toString("base64url")),
    sign: (what, text) =>
      Signature.make(sign(null, messageOf(what, text), key).toString("base64url")),
  };
};

/** Is this a signature by `key` over `text` as what it is? False for nonsense. */
export const signatureHolds = (
  key: string,
  what: Signed,
  text: string,
  signature: string,
): boolean => {
  if (!isPublicKey(key) || !isSignature(signature)) return false;
  try {
    const spkiKey = Buffer.concat([spki, Buffer.from(key, "base64url")]);
    return verify(
      null,
      messageOf(what, text),
      createPublicKey({ key: spkiKey, format: "der", type: "spki" }),
      Buffer.from(signature, "base64url"),
    );
  } catch {
    return false;
  }
};

/** What two people compare: SHA-256 of the key's 32 bytes, in hex. */
export const fingerprint = (key: PublicKey): string =>
  createHash("sha256").update(Buffer.from(key, "base64url")).digest("hex");

/**
 * The key of the lock on `what`, in hex. Nobody without the server's private key (its PEM) can tell
 * it, so nobody else on the machine can take the lock first or ask its holder to step down.
 */
export const lockKey = (pem: string, what: string): string =>
  createHmac("sha256", pem).update(what).digest("hex");
