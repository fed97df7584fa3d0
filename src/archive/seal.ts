/**
 * Members of slots as they are made here: files of scrypt(1), which qvm-backup-restore opens, each with a
 * salt of its own and bound to its place by the passphrase. docs/qubes.md, scrypt.
 */
import { createCipheriv, createHash, createHmac } from "node:crypto";
import { padding, ustar } from "./ustar.ts";

/** What the keys of a member cost to derive: 60 ms and 16 MiB. For crypto.scrypt, with its name for logN. */
export const slotCost = { N: 16_384, r: 8, p: 1 } as const;
/** Bytes of a salt, and of the keys that are derived with it: one for the cipher, one for the HMACs. */
export const saltSize = 32;
export const keysSize = 64;

/** A member as it lies in a pack, and what its table line says besides its digest; sizes in bytes. */
export interface Made {
  readonly path: string;
  readonly size: number;
  readonly bytes: Buffer;
}

/** A member that is not encrypted, as `backup-header` alone is. */
export const member = (path: string, data: ReadonlyArray<Uint8Array>): Made => {
  const size = data.reduce((sum, part) => sum + part.length, 0);
  const bytes = Buffer.concat([ustar(path, size), ...data, Buffer.alloc(padding(size))]);
  return { path, size, bytes };
};

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

/** `keys` were derived with `salt` at `slotCost`; a salt is for one member, or its keystream is there twice. */
export const sealedMember = (
  path: string,
  salt: Uint8Array,
  keys: Uint8Array,
  plain: Uint8Array,
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
  const cipher = createCipheriv("aes-256-ctr", keys.subarray(0, 32), Buffer.alloc(16));
  const secret = cipher.update(plain);
  const mac = createHmac("sha256", macKey).update(head).update(headMac).update(secret).digest();
  return member(path, [head, headMac, secret, mac]);
};
