/**
 * Members of slots as they are made here: files of scrypt(1), which qvm-backup-restore opens, each with a
 * salt of its own and bound to its place by the passphrase. docs/qubes.md, scrypt.
 */
import { createCipheriv, createHash, createHmac } from "node:crypto";
import { padding, tarBlock, ustar } from "./ustar.ts";

/** What the keys of a member cost to derive: 60 ms and 16 MiB. For crypto.scrypt, with its name for logN. */
export const slotCost = { N: 16_384, r: 8, p: 1 } as const;
/** Bytes of a salt, and of the keys that are derived with it: one for the cipher, one for the HMACs. */
export const saltSize = 32;
export const keysSize = 64;
const macSize = 32;

/** A member as it lies in a pack, and what its table line says besides its digest; sizes in bytes. */
export interface Made {
  readonly path: string;
  readonly size: number;
  /** With its header and what fills its last block. */
  readonly length: number;
  /** To be taken once: they are made as they are asked for. */
  readonly pieces: Iterable<Uint8Array>;
}

const sizeOf = (parts: ReadonlyArray<Uint8Array>): number =>
  parts.reduce((sum, { length }) => sum + length, 0);

const laidOut = (path: string, size: number, data: Iterable<Uint8Array>): Made => ({
  path,
  size,
  length: tarBlock + size + padding(size),
  pieces: (function* () {
    yield ustar(path, size);
    yield* data;
    yield Buffer.alloc(padding(size));
  })(),
});

/** A member that is not encrypted, as `backup-header` alone is. */
export const member = (path: string, data: ReadonlyArray<Uint8Array>): Made =>
  laidOut(path, sizeOf(data), data);

/** What the keys of the member at `path` are derived from. */
export const memberPassphrase = (backupId: string, path: string, passphrase: Uint8Array): Buffer =>
  Buffer.concat([
    Buffer.from(
      path === "backup-header.hmac"
        ? "backup-header!"
        : `${backupId}!${path.slice(0, -".enc".length)}!`,
    ),
    passphrase,
  ]);

/**
 * `keys` were derived with `salt` at `slotCost`; a salt is for one member, or its keystream is there twice.
 * What was encrypted of `plain` is taken out of it: of a wide cell there is not room for both.
 */
export const sealedMember = (
  path: string,
  salt: Uint8Array,
  keys: Uint8Array,
  plain: Array<Uint8Array>,
): Made => {
  const parameters = Buffer.alloc(16);
  parameters.write("scrypt\0");
  parameters[7] = Math.log2(slotCost.N);
  parameters.writeUInt32BE(slotCost.r, 8);
  parameters.writeUInt32BE(slotCost.p, 12);
  const said = Buffer.concat([parameters, salt]);
  const sum = createHash("sha256").update(said).digest().subarray(0, 16);
  const macKey = keys.subarray(32);
  const head = Buffer.concat([said, sum]);
  const headMac = createHmac("sha256", macKey).update(head).digest();
  const size = head.length + headMac.length + sizeOf(plain) + macSize;
  const encrypted = function* () {
    const cipher = createCipheriv("aes-256-ctr", keys.subarray(0, 32), Buffer.alloc(16));
    const mac = createHmac("sha256", macKey).update(head).update(headMac);
    yield head;
    yield headMac;
    for (let part = plain.shift(); part !== undefined; part = plain.shift()) {
      const secret = cipher.update(part);
      mac.update(secret);
      yield secret;
    }
    yield mac.digest();
  };
  return laidOut(path, size, encrypted());
};
