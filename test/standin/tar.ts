/**
 * Two tar dialects, byte for byte as the genuine samples have them: the outer one of GNU tar
 * --posix (docs/qubes.md, Archive), one archive for each member, and the inner one of GNU tar --sparse.
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { blocksOf } from "./images.ts";
import type { Extent, Image } from "./images.ts";

export const RECORD = 10240;
const BLOCK = 512;

export const roundUp = (size: number, to: number): number => Math.ceil(size / to) * to;

const octal = (value: number, digits: number): string =>
  `${value.toString(8).padStart(digits, "0")}\0`;

/** Twelve bytes; what eleven octal digits cannot say is in base 256, as GNU tar does it. */
const bigNumber = (value: number): Buffer => {
  if (value < 8 ** 11) return Buffer.from(octal(value, 11), "latin1");
  const bytes = Buffer.alloc(12);
  bytes.writeUInt8(0x80, 0);
  bytes.writeBigUInt64BE(BigInt(value), 4);
  return bytes;
};

interface Fields {
  readonly name: string;
  readonly mode: number;
  readonly gid?: number;
  readonly size: number;
  readonly mtime: number;
  readonly type: string;
  readonly magic: string;
  readonly user?: string;
  readonly group?: string;
}

const header = (fields: Fields, more: (block: Buffer) => void = () => {}): Buffer => {
  const block = Buffer.alloc(BLOCK);
  block.write(fields.name, 0, 100);
  block.write(octal(fields.mode, 7), 100);
  block.write(octal(0, 7), 108);
  block.write(octal(fields.gid ?? 0, 7), 116);
  bigNumber(fields.size).copy(block, 124);
  block.write(octal(fields.mtime, 11), 136);
  block.write(fields.type, 156);
  block.write(fields.magic, 257, "latin1");
  block.write(fields.user ?? "", 265);
  block.write(fields.group ?? "", 297);
  more(block);
  block.fill(" ", 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${octal(sum, 6)} `, 148);
  return block;
};

/** Nanoseconds since the epoch as GNU tar writes them into a pax record: no zeros at the end. */
const time = (nanoseconds: bigint): string => {
  const fraction = (nanoseconds % 1_000_000_000n).toString().padStart(9, "0").replace(/0+$/, "");
  return `${nanoseconds / 1_000_000_000n}${fraction === "" ? "" : `.${fraction}`}`;
};

/** The length that begins a pax record counts itself. */
const paxRecord = (text: string): string => {
  let length = text.length + 2;
  while (`${length} ${text}\n`.length !== length) length++;
  return `${length} ${text}\n`;
};

const now = (): bigint => BigInt(Date.now()) * 1_000_000n + (process.hrtime.bigint() % 1_000_000n);

/** The bytes in front of a member's data: pax header, its records, ustar header. */
export const OUTER_HEAD = 3 * BLOCK;

/**
 * Of a file that is no device, GNU tar 1.34 writes the numbers of its device as zeros; 1.35, which
 * dom0 of Qubes 4.3 has, leaves them empty.
 */
export type TarVersion = "1.34" | "1.35";

export const outerHead = (name: string, size: number, version: TarVersion): Buffer => {
  const written = now();
  // What is sent was made a moment ago and is read for the first time now.
  const times = [
    `mtime=${time(written)}`,
    `atime=${time(written - 64_000_017n)}`,
    `ctime=${time(written)}`,
  ];
  const records = times.map(paxRecord).join("");
  const mtime = Number(written / 1_000_000_000n);
  const shared = { mode: 0o644, mtime, magic: "ustar\x0000" };
  const paxName = `${path.posix.dirname(name)}/PaxHeaders/${path.posix.basename(name)}`;
  const pax = {
    ...shared,
    name: paxName,
    size: records.length,
    type: "x",
  };
  const file = { ...shared, name, size, type: "0", user: "root", group: "root" };
  return Buffer.concat([
    header(pax),
    Buffer.from(records.padEnd(BLOCK, "\0"), "latin1"),
    header(file, (block) => {
      if (version !== "1.34") return;
      block.write(octal(0, 7), 329);
      block.write(octal(0, 7), 337);
    }),
  ]);
};

/** A member's own archive: at least two zero blocks, then zeros up to a whole record. */
export const outerLength = (size: number): number =>
  roundUp(OUTER_HEAD + roundUp(size, BLOCK) + 2 * BLOCK, RECORD);

const GNU = "ustar  \0";

const inner = (
  name: string,
  fields: Omit<Fields, "name" | "magic" | "mtime">,
  more?: (block: Buffer) => void,
): Array<Buffer> => {
  const shared = { mtime: Math.floor(Date.now() / 1000), magic: GNU, user: "root", group: "root" };
  const head = header({ ...shared, ...fields, name }, more);
  if (Buffer.byteLength(name) <= 100) return [head];
  const long = Buffer.from(`${name}\0`);
  const size = long.length;
  const link = header({ ...shared, name: "././@LongLink", mode: 0o644, size, type: "L" });
  return [link, padded(long), head];
};

const padded = (bytes: Buffer): Buffer =>
  Buffer.concat([bytes, Buffer.alloc(roundUp(bytes.length, BLOCK) - bytes.length)]);

/** An image; with holes, in the old GNU sparse form (type S), of which four extents fit a header. */
function* innerImage(name: string, image: Image): Generator<Buffer> {
  const whole = image.extents.reduce((sum, extent) => sum + extent.length, 0);
  const sparse = whole < image.size;
  const mode = 0o600;
  yield* inner(name, { mode, size: whole, type: sparse ? "S" : "0" }, (block) => {
    if (!sparse) return;
    [...image.extents, { offset: image.size, length: 0 }].forEach((extent, index) => {
      bigNumber(extent.offset).copy(block, 386 + 24 * index);
      bigNumber(extent.length).copy(block, 386 + 24 * index + 12);
    });
    bigNumber(image.size).copy(block, 483);
  });
  yield* blocksOf(image);
  yield Buffer.alloc(roundUp(whole, BLOCK) - whole);
}

/** Where a block device has something else than zeros, by blocks; the last piece reaches its end. */
const piecesOf = (image: Image): Array<Extent> => {
  const step = 2048 * BLOCK;
  const zeros = Buffer.alloc(step);
  const isZero = (bytes: Buffer) => zeros.subarray(0, bytes.length).equals(bytes);
  const pieces: Array<{ offset: number; length: number }> = [];
  for (const { offset, length } of image.extents) {
    for (let from = offset; from < offset + length; from += step) {
      const bytes = image.read(from, Math.min(step, offset + length - from));
      // Most of an image is zeros, at which one look is enough.
      if (isZero(bytes)) continue;
      for (let at = 0; at < bytes.length; at += BLOCK) {
        const block = bytes.subarray(at, at + BLOCK);
        if (isZero(block)) continue;
        const last = pieces.at(-1);
        if (last !== undefined && last.offset + last.length === from + at) {
          last.length += block.length;
        } else pieces.push({ offset: from + at, length: block.length });
      }
    }
  }
  const last = pieces.at(-1);
  if (last === undefined || last.offset + last.length < image.size) {
    pieces.push({ offset: image.size, length: 0 });
  }
  return pieces;
};

/** As `qubes.tarwriter` has it: the sparse form 1.0 of pax, and no more at the end than two blocks. */
export function* deviceTar(name: string, image: Image): Generator<Buffer> {
  const pieces = piecesOf(image);
  const text = [
    `${pieces.length}\n`,
    ...pieces.map(({ length, offset }) => `${offset}\n${length}\n`),
  ];
  const map = padded(Buffer.from(text.join("")));
  const size = pieces.reduce((sum, { length }) => sum + length, map.length);
  const large = size >= 8 ** 11;
  const records = [
    "GNU.sparse.major=1",
    "GNU.sparse.minor=0",
    `GNU.sparse.name=${name}`,
    `GNU.sparse.realsize=${image.size}`,
    ...(large ? [`size=${size}`] : []),
  ];
  const pax = Buffer.from(records.map(paxRecord).join(""));
  const shared = { mtime: 0, magic: "ustar\x0000" };
  const file = `${path.posix.dirname(name)}/GNUSparseFile.${process.pid}/${path.posix.basename(name)}`;
  yield header({ ...shared, name: "././@PaxHeader", mode: 0, size: pax.length, type: "x" });
  yield padded(pax);
  yield header({ ...shared, name: file, mode: 0o644, size: large ? 0 : size, type: "0" });
  yield map;
  for (const { length, offset } of pieces) {
    for (let at = 0; at < length; at += 2 ** 20) {
      yield image.read(offset + at, Math.min(2 ** 20, length - at));
    }
  }
  yield Buffer.alloc(2 * BLOCK);
}

function* innerTree(name: string, source: string): Generator<Buffer> {
  const stat = fs.lstatSync(source);
  if (stat.isDirectory()) {
    yield* inner(`${name}/`, { mode: stat.mode & 0o7777, size: 0, type: "5" });
    for (const entry of fs.readdirSync(source).sort()) {
      yield* innerTree(`${name}/${entry}`, path.join(source, entry));
    }
  } else if (stat.isFile()) {
    const bytes = fs.readFileSync(source);
    yield* inner(name, { mode: stat.mode & 0o7777, size: bytes.length, type: "0" });
    yield padded(bytes);
  }
}

export type Content =
  | { readonly kind: "image"; readonly image: Image }
  | { readonly kind: "text"; readonly text: string; readonly qubesXml: boolean }
  | { readonly kind: "tree"; readonly directory: string };

/** The inner archive of one file of the backup, up to a whole record. */
export function* innerTar(name: string, content: Content): Generator<Buffer> {
  let length = 0;
  const blocks = (function* () {
    if (content.kind === "image") yield* innerImage(name, content.image);
    else if (content.kind === "tree") yield* innerTree(name, content.directory);
    else {
      const bytes = Buffer.from(content.text);
      const owner = content.qubesXml
        ? { mode: 0o660, gid: 0o1724, group: "qubes" }
        : { mode: 0o644 };
      yield* inner(name, { ...owner, size: bytes.length, type: "0" });
      yield padded(bytes);
    }
    yield Buffer.alloc(2 * BLOCK);
  })();
  for (const block of blocks) {
    length += block.length;
    yield block;
  }
  yield Buffer.alloc(roundUp(length, RECORD) - length);
}

export const innerLength = (name: string, content: Content): number => {
  if (content.kind !== "image") {
    let length = 0;
    for (const block of innerTar(name, content)) length += block.length;
    return length;
  }
  const data = content.image.extents.reduce((sum, extent) => sum + extent.length, 0);
  return roundUp(BLOCK + roundUp(data, BLOCK) + 2 * BLOCK, RECORD);
};
