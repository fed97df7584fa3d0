/**
 * Files as scrypt(1) writes them: "scrypt", 0, logN, r, p, salt, the first half of the SHA-256 of
 * that, an HMAC over it all, AES-256-CTR of the data, and a last HMAC. 128 bytes more than the data.
 */
import * as crypto from "node:crypto";

export const SCRYPT_HEAD = 96;
export const SCRYPT_TAIL = 32;

export interface Cost {
  readonly logN: number;
  readonly r: number;
  readonly p: number;
}

const parameters = ({ logN, r, p }: Cost): { head: Buffer; salt: Buffer } => {
  const salt = crypto.randomBytes(32);
  const head = Buffer.alloc(48);
  head.write("scrypt\0", 0);
  head.writeUInt8(logN, 7);
  head.writeUInt32BE(r, 8);
  head.writeUInt32BE(p, 12);
  salt.copy(head, 16);
  const sum = crypto.createHash("sha256").update(head).digest().subarray(0, 16);
  return { head: Buffer.concat([head, sum]), salt };
};

export interface Encryption {
  readonly head: Buffer;
  readonly update: (plain: Buffer) => Buffer;
  readonly tail: () => Buffer;
}

export const encryption = (passphrase: string, cost: Cost): Encryption => {
  const { head, salt } = parameters(cost);
  const N = 2 ** cost.logN;
  const maxmem = 256 * N * cost.r + 1024 * 1024;
  const keys = crypto.scryptSync(Buffer.from(passphrase), salt, 64, {
    N,
    r: cost.r,
    p: cost.p,
    maxmem,
  });
  const cipher = crypto.createCipheriv("aes-256-ctr", keys.subarray(0, 32), Buffer.alloc(16));
  const hmac = crypto.createHmac("sha256", keys.subarray(32));
  const headHmac = crypto.createHmac("sha256", keys.subarray(32)).update(head).digest();
  const whole = Buffer.concat([head, headHmac]);
  hmac.update(whole);
  return {
    head: whole,
    update: (plain) => {
      const bytes = cipher.update(plain);
      hmac.update(bytes);
      return bytes;
    },
    tail: () => hmac.digest(),
  };
};

/** A head that is right as far as it can be checked without the passphrase. */
export const fillerHead = (cost: Cost): Buffer =>
  Buffer.concat([parameters(cost).head, crypto.randomBytes(32)]);
