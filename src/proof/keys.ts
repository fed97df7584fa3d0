/** The server's Ed25519 key: how it is made, written, shown, and what it signs. */
import {
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  sign,
  verify,
} from "node:crypto";

/** DER before the 32 bytes of a key: PKCS #8 for the private one, SPKI for the public (RFC 8410). */
const pkcs8 = Buffer.from("302e020100300506032b657004220420", "hex");
const spki = Buffer.from("302a300506032b6570032100", "hex");

/** The private key made of 32 random bytes, as PEM (PKCS #8), the form that is stored. */
export const privateKeyPem = (seed: Uint8Array): string =>
  createPrivateKey({ key: Buffer.concat([pkcs8, seed]), format: "der", type: "pkcs8" })
    .export({ format: "pem", type: "pkcs8" })
    .toString();

export interface SigningKey {
  /** Base64 of the 32 bytes of the public key. */
  readonly server: string;
  /** Base64 of the signature over the UTF-8 of `text`. */
  readonly sign: (text: string) => string;
}

/** Reads the stored form; undefined when it is not an Ed25519 private key. */
export const readPrivateKey = (pem: string): SigningKey | undefined => {
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch {
    return undefined;
  }
  if (key.asymmetricKeyType !== "ed25519") return undefined;
  const server = createPublicKey(key)
    .export({ format: "der", type: "spki" })
    .subarray(spki.length)
    .toString("base64");
  return { server, sign: (text) => sign(null, Buffer.from(text), key).toString("base64") };
};

/** Is this base64 signature over `text` by the public key `server` (base64)? False for nonsense. */
export const signatureHolds = (server: string, text: string, signature: string): boolean => {
  try {
    const key = createPublicKey({
      key: Buffer.concat([spki, Buffer.from(server, "base64")]),
      format: "der",
      type: "spki",
    });
    return verify(null, Buffer.from(text), key, Buffer.from(signature, "base64"));
  } catch {
    return false;
  }
};

/**
 * The short form that two people compare: `qbackup:` and eight groups, 128 bits of the key's SHA-256.
 * It must not look like the key of an ssh host (`SHA256:...`), which is compared at another place.
 */
export const fingerprint = (server: string): string => {
  const hash = createHash("sha256").update(Buffer.from(server, "base64")).digest("hex");
  return `qbackup:${hash.match(/.{4}/g)!.slice(0, 8).join("-")}`;
};

/**
 * The key of the lock on `what`, in hex. Nobody without the server's private key (its PEM) can tell
 * it, so nobody else on the machine can take the lock first or ask its holder to step down.
 */
export const lockKey = (pem: string, what: string): string =>
  createHmac("sha256", pem).update(what).digest("hex");
