/**
 * What qubesd gives its compressor, made in tests: as GNU tar writes it (of files), as its own program does
 * (of block devices), and what must come of either. Written from what those write, not from src.
 */
import { padTo, sumUp } from "#test/support/tar";

export interface Piece {
  readonly offset: number;
  readonly length: number;
}

const octal = (value: number, digits: number) => value.toString(8).padStart(digits, "0");
/** As GNU tar writes what eleven digits do not hold. */
export const big = (value: number): Buffer => {
  const field = Buffer.alloc(12);
  field[0] = 0x80;
  field.writeBigUInt64BE(BigInt(value), 4);
  return field;
};
const number = (value: number, base256: boolean): Buffer =>
  base256 || value >= 8 ** 11 ? big(value) : Buffer.from(`${octal(value, 11)}\0`);

export interface Options {
  /** Numbers in base 256 where octal would do, too. */
  readonly base256?: boolean;
}

/** One header in the dialect of GNU tar. */
export const gnuHeader = (
  name: string,
  type: string,
  size: number,
  { base256 = false }: Options = {},
  more: (header: Buffer) => void = () => {},
): Buffer => {
  const h = Buffer.alloc(512);
  h.write(name, 0, "latin1");
  h.write("0000600\x000000000\x000000000\0", 100, "latin1");
  number(size, base256).copy(h, 124);
  h.write("15300726470\0", 136, "latin1");
  h.write(type, 156, "latin1");
  h.write("ustar  \0root", 257, "latin1");
  h.write("root", 297, "latin1");
  more(h);
  return sumUp(h);
};

/** The header, and those behind it, of a sparse file; its data not. */
export const gnuSparse = (
  name: string,
  size: number,
  pieces: ReadonlyArray<Piece>,
  options: Options = {},
): Buffer => {
  const { base256 = false } = options;
  const data = pieces.reduce((sum, { length }) => sum + length, 0);
  const entries = [...pieces, { offset: size, length: 0 }].map(({ length, offset }) =>
    Buffer.concat([number(offset, base256), number(length, base256)]),
  );
  const rest = entries.slice(4);
  const first = gnuHeader(name, "S", data, options, (h) => {
    Buffer.concat(entries.slice(0, 4)).copy(h, 386);
    h[482] = rest.length > 0 ? 1 : 0;
    number(size, base256).copy(h, 483);
  });
  const others: Array<Buffer> = [];
  for (let at = 0; at < rest.length; at += 21) {
    const h = Buffer.alloc(512);
    Buffer.concat(rest.slice(at, at + 21)).copy(h);
    h[504] = at + 21 < rest.length ? 1 : 0;
    others.push(h);
  }
  return Buffer.concat([first, ...others]);
};

const dataOf = (content: Buffer, pieces: ReadonlyArray<Piece>) =>
  padTo(
    Buffer.concat(pieces.map(({ length, offset }) => content.subarray(offset, offset + length))),
    512,
  );
/** As GNU tar ends what it writes: two blocks of zeros at least, then zeros to a whole record. */
export const ended = (...parts: ReadonlyArray<Buffer>): Buffer =>
  padTo(Buffer.concat([...parts, Buffer.alloc(1024)]), 10_240);

/** `content` by GNU tar, which was told that there is nothing but zeros beside these pieces. */
export const gnuTar = (
  name: string,
  content: Buffer,
  pieces: ReadonlyArray<Piece>,
  options: Options = {},
): Buffer => {
  const whole = pieces.length === 1 && pieces[0]!.length === content.length;
  return whole || content.length === 0
    ? ended(gnuHeader(name, "0", content.length, options), padTo(content, 512))
    : ended(gnuSparse(name, content.length, pieces, options), dataOf(content, pieces));
};

export const paxRecord = (key: string, value: string | number): string => {
  const text = ` ${key}=${value}\n`;
  let length = text.length;
  while (`${length}${text}`.length !== length) length++;
  return `${length}${text}`;
};
const ustar = (name: string, type: string, size: number, mode: string): Buffer => {
  const h = Buffer.alloc(512);
  h.write(name, 0, "latin1");
  h.write(`${mode}\x000000000\x000000000\0`, 100, "latin1");
  h.write(`${octal(size, 11)}\x0000000000000\0`, 124, "latin1");
  h.write(type, 156, "latin1");
  h.write("ustar\x0000", 257, "latin1");
  return sumUp(h);
};
/** An extended header, as Python's tarfile writes it. */
export const paxHeader = (records: ReadonlyArray<string>): Buffer => {
  const text = Buffer.from(records.join(""));
  return Buffer.concat([ustar("././@PaxHeader", "x", text.length, "0000000"), padTo(text, 512)]);
};

const zeros = Buffer.alloc(4_194_304);
const isZero = (bytes: Buffer): boolean => bytes.equals(zeros.subarray(0, bytes.length));

/** Where a block has something else than zeros, as qubesd's program looks at it. */
export const piecesOf = (content: Buffer): ReadonlyArray<Piece> => {
  const pieces: Array<{ readonly offset: number; length: number }> = [];
  for (let offset = 0; offset < content.length; offset += 512) {
    const block = content.subarray(offset, offset + 512);
    if (isZero(block)) continue;
    const last = pieces.at(-1);
    if (last !== undefined && last.offset + last.length === offset) last.length += block.length;
    else pieces.push({ offset, length: block.length });
  }
  const last = pieces.at(-1);
  return last !== undefined && last.offset + last.length === content.length
    ? pieces
    : [...pieces, { offset: content.length, length: 0 }];
};

/** What stands before the data of qubesd's program: the headers, and the map. */
export const writerHead = (
  name: string,
  size: number,
  pieces: ReadonlyArray<Piece>,
  /** As it is when the size is too large for a header's digits. */
  sizeInRecord = false,
): Buffer => {
  const text = [`${pieces.length}\n`, ...pieces.map((one) => `${one.offset}\n${one.length}\n`)];
  const map = padTo(Buffer.from(text.join("")), 512);
  const data = pieces.reduce((sum, { length }) => sum + length, map.length);
  const large = sizeInRecord || data >= 8 ** 11;
  const [directory, base] = name.split("/");
  return Buffer.concat([
    paxHeader([
      paxRecord("GNU.sparse.major", 1),
      paxRecord("GNU.sparse.minor", 0),
      paxRecord("GNU.sparse.name", name),
      paxRecord("GNU.sparse.realsize", size),
      ...(large ? [paxRecord("size", data)] : []),
    ]),
    ustar(`${directory}/GNUSparseFile.1234/${base}`, "0", large ? 0 : data, "0000644"),
    map,
  ]);
};

/** `content` by qubesd's program, which neither fills up the last block nor a record. */
export const tarwriter = (name: string, content: Buffer, sizeInRecord = false): Buffer => {
  const pieces = piecesOf(content);
  return Buffer.concat([
    writerHead(name, content.length, pieces, sizeInRecord),
    ...pieces.map(({ length, offset }) => content.subarray(offset, offset + length)),
    Buffer.alloc(1024),
  ]);
};

/** What a file must come to: its slots that are not zeros, by number. */
export const slotsOf = (content: Buffer, slot: number): ReadonlyMap<number, Buffer> => {
  const slots = new Map<number, Buffer>();
  for (let index = 0; index * slot < content.length; index++) {
    const bytes = content.subarray(index * slot, (index + 1) * slot);
    if (!isZero(bytes)) slots.set(index, bytes);
  }
  return slots;
};
