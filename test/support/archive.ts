/**
 * Archives of sound structure, made quickly: real tar headers and scrypt headers with a right
 * checksum, random bytes where the cipher text would be. Nothing in them can be decrypted; for what
 * is, take the genuine samples or the stand-in Qubes.
 */
import * as crypto from "node:crypto";
import { rng } from "#test/support/random";
import { padTo, tarHeader as header } from "#test/support/tar";

/** One member: a tar archive of its own, as GNU tar writes it. */
export const memberOf = (path: string, data: Buffer): Buffer => {
  const times = Buffer.from(
    "30 mtime=1795403064.971171142\n30 atime=1795403068.816282351\n30 ctime=1795403064.971171142\n",
  );
  const slash = path.lastIndexOf("/");
  const pax = `${slash < 0 ? "." : path.slice(0, slash)}/PaxHeaders/${path.slice(slash + 1)}`;
  return padTo(
    Buffer.concat([
      header(pax, "x", times.length),
      padTo(times, 512),
      header(path, "0", data.length),
      padTo(data, 512),
      Buffer.alloc(1024),
    ]),
    10_240,
  );
};

/** One member as slots have it: nothing in its header but path and size, no end blocks. */
export const slotOf = (path: string, data: Buffer): Buffer =>
  Buffer.concat([
    header(path, "0", data.length, (h) => {
      h.write("00000000000\0", 136, "latin1");
      h.fill(0, 265, 345);
    }),
    padTo(data, 512),
  ]);

/** `plain` as scrypt would wrap it: 128 bytes more, with a true header checksum. */
export const scryptOf = (plain: Buffer, salt: Buffer): Buffer => {
  const head = Buffer.alloc(64);
  head.write("scrypt\0", 0, "latin1");
  head[7] = 10;
  head.writeUInt32BE(8, 8);
  head.writeUInt32BE(1, 12);
  salt.copy(head, 16, 0, 32);
  crypto.createHash("sha256").update(head.subarray(0, 48)).digest().copy(head, 48, 0, 16);
  return Buffer.concat([head, salt.subarray(0, 32), plain, salt.subarray(0, 32)]);
};

export interface ArchiveOptions {
  readonly seed: number;
  /** In order; `size` is what the file has after compression, in bytes. */
  readonly files: ReadonlyArray<{ readonly path: string; readonly size: number }>;
  /** Plain bytes of a full chunk; Qubes has 100 MiB. */
  readonly chunk?: number;
  /** The backup-id in its header. */
  readonly id?: string;
  /** The compressor in its header. */
  readonly filter?: string;
}

/** An archive with the three heads and these files, the same for the same options. */
export const archiveOf = ({
  chunk = 104_857_600,
  files,
  filter = "gzip",
  id = "20261123T030424-14807",
  seed,
}: ArchiveOptions): Buffer => {
  const random = rng(seed);
  const salt = () => crypto.createHash("sha256").update(String(random.next())).digest();
  // Cheap random bytes: a keystream, because the walk must not be able to compress or guess them.
  const body = (size: number) =>
    crypto
      .createCipheriv("aes-128-ctr", salt().subarray(0, 16), Buffer.alloc(16))
      .update(Buffer.alloc(size));
  const text = `version=4\nencrypted=True\ncompressed=True\ncompression-filter=${filter}\nhmac-algorithm=scrypt\nbackup-id=${id}\n`;
  const parts = [
    memberOf("backup-header", Buffer.from(text)),
    memberOf("backup-header.hmac", scryptOf(body(119), salt())),
    memberOf("qubes.xml.000.enc", scryptOf(body(1000), salt())),
  ];
  for (const { path, size } of files) {
    // An exact multiple has an empty chunk behind it: the last one is always smaller than a full one.
    for (let n = 0, at = 0; at <= size; n++, at += chunk) {
      const name = `${path}.${String(n).padStart(3, "0")}.enc`;
      parts.push(memberOf(name, scryptOf(body(Math.min(chunk, size - at)), salt())));
    }
  }
  return Buffer.concat(parts);
};
