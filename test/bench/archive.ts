/**
 * Archives of sound structure and any size, as fast as a pipe takes them: full chunks of 100 MiB that
 * differ in their headers only. As a program: `node archive.ts BYTES > archive`.
 */
import * as fs from "node:fs";
import { archiveOf, memberOf, scryptOf } from "#test/support/archive";

const chunk = 104_857_600;
/** What stands around a member's data at most: headers, scrypt, padding to a record. */
const overhead = 12_800;
const salt = Buffer.alloc(32, 7);
const file = (n: number) => `vm7/private.img.${String(n).padStart(3, "0")}.enc`;

/** Bytes that nothing can compress. */
const noise = (size: number): Buffer => {
  const bytes = Buffer.alloc(size);
  const part = archiveOf({ seed: size, files: [{ path: "vm7/private.img", size: 1_000_000 }] });
  for (let at = 0; at < size; at += part.length) part.copy(bytes, at, 0, size - at);
  return bytes;
};

/** The same member under the name of the nth chunk. */
const renumber = (member: Buffer, n: number): void => {
  const digits = `.${String(n).padStart(3, "0")}.enc`;
  for (const at of [0, 1024]) {
    const header = member.subarray(at, at + 512);
    header.write(digits, header.indexOf(".enc\0") - 4, "latin1");
    header.write("        ", 148, "latin1");
    const sum = header.reduce((total, byte) => total + byte, 0);
    header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  }
};

/** The pieces of an archive of about `size` bytes with one qube, vm7; each is valid until the next. */
export function* archive(size: number): Generator<Buffer> {
  const heads = archiveOf({ seed: 1, files: [] });
  yield heads;
  let left = size - heads.length;
  let n = 0;
  if (left > chunk + overhead) {
    const full = memberOf(file(0), scryptOf(noise(chunk), salt));
    for (; left > full.length + overhead; n++, left -= full.length) {
      renumber(full, n);
      yield full;
    }
  }
  yield memberOf(file(n), scryptOf(noise(Math.max(0, Math.min(left, chunk) - overhead)), salt));
}

export const writeAll = (fd: number, bytes: Uint8Array): void => {
  for (let at = 0; at < bytes.length;) at += fs.writeSync(fd, bytes, at);
};

if (import.meta.main) {
  for (const piece of archive(Number(process.argv[2]))) writeAll(1, piece);
}
