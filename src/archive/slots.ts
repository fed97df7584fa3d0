/**
 * How a file is cut so that most of it stays where it is from one night to the next. docs/slots.md.
 *
 * A volume has slots of 4 MiB; slots become cells once, and cell k is chunk k of the volume for ever.
 * Chunk 0 is the head of the inner tar, with the map that says which slots are there; it comes to be last,
 * because only what was read through is known to be zeros.
 */
import { createCipheriv } from "node:crypto";
import { padding, sizeLimit, ustar } from "./ustar.ts";

/** Bytes of a slot; a volume's last one may be shorter. */
export const slotSize = 4_194_304;
/** Slots of the widest cell: with data in all of them its chunk has 64 MiB. */
export const widest = 16;
/** Slots beside data, on each side, that are cells of their own though they are zeros: data grows there. */
const edge = 8;

/** Images of disks, for which all this is made; what else a qube has is small. */
export const isVolume = (name: string): boolean => name.startsWith("vm") && name.endsWith(".img");

/** The member that chunk `chunk` (from 0 on) of a file is. */
export const chunkPath = (name: string, chunk: number): string =>
  `${name}.${`${chunk}`.padStart(3, "0")}.enc`;

export interface Cell {
  /** From 1 on. */
  readonly chunk: number;
  /** Its first slot, from 0 on, and how many. */
  readonly first: number;
  readonly span: number;
  /** Which of its slots have something else than zeros: a bit for each, the first one lowest. */
  readonly present: number;
  /** Those slots. Of a cell of one slot the bytes are the caller's. */
  readonly data: ReadonlyArray<Uint8Array>;
}

/** How many bits of it are set. */
const bitsOf = (present: number): number => {
  let bits = 0;
  for (let rest = present; rest !== 0; rest &= rest - 1) bits += 1;
  return bits;
};

/**
 * How many of a file's chunks, from the first one on, stay as they are; `known`: those of the archive before.
 * A wide cell that was filled is sent whole for each slot of it that changes. So where more than a quarter
 * of the slots with data are in wide cells, what is behind the first such cell is cut anew. What is in wide
 * cells after that night came since: so such nights cost at most four times what came.
 */
export const stayingChunks = (known: Iterable<Pick<Cell, "span" | "present">>): number => {
  let chunks = 0;
  let all = 0;
  let wide = 0;
  /** Those before the first wide cell with data. */
  let before: number | undefined;
  for (const { present, span } of known) {
    const slots = bitsOf(present);
    if (span > 1 && slots > 0) {
      before ??= chunks;
      wide += slots;
    }
    all += slots;
    chunks += 1;
  }
  return wide * 4 > all ? before! : chunks;
};

/**
 * Cells for so many slots of zeros: a number costs the restore a tenth of a second even where nothing is
 * behind it, so far from data one stands for many.
 */
const spansOf = (
  count: number,
  behindData: boolean,
  beforeData: boolean,
): ReadonlyArray<number> => {
  const first = Math.min(behindData ? edge : 0, count);
  const last = Math.min(beforeData ? edge : 0, count - first);
  const spans = Array.from({ length: first }, () => 1);
  let between = count - first - last;
  for (let span = widest; span >= 1; span /= 2) {
    for (; between >= span; between -= span) spans.push(span);
  }
  return [...spans, ...Array.from({ length: last }, () => 1)];
};

/** A record of an extended header. Its length counts itself, and for what is said here has two digits. */
const paxRecord = (text: string): string => `${text.length + 4} ${text}\n`;

const padded = (text: string): Buffer => {
  const bytes = Buffer.from(text);
  return Buffer.concat([bytes, Buffer.alloc(padding(bytes.length))]);
};

/**
 * Cuts a volume of `size` bytes, as its slots come, in order. `layout`: the spans of the cells that it has
 * already, from the first one on; what is behind them is cut anew, and what is behind its end falls away.
 * `slot`: other bytes than a slot has.
 */
export const volumeCutter = (
  name: string,
  size: number,
  layout: Iterable<number> = [],
  slot = slotSize,
) => {
  const slots = Math.ceil(size / slot);
  /** Slots with data, in runs. */
  const runs: Array<{ readonly first: number; count: number }> = [];
  let chunks = 0;
  /** Slots that are in cells. */
  let cut = 0;
  /** Behind them, where there is no layout: slots of zeros that no data has come behind yet. */
  let zeros = 0;
  const spans = layout[Symbol.iterator]();
  const nextKnown = () => {
    const { done, value } = spans.next();
    if (done === true || cut === slots) return undefined;
    return {
      first: cut,
      span: Math.min(value, slots - cut),
      present: 0,
      data: [] as Array<Uint8Array>,
    };
  };
  /** The cell of the layout that is under way. */
  let known = nextKnown();
  /** So many of its slots came: gives it, if those were its last ones. */
  const pass = (count: number): ReadonlyArray<Cell> => {
    const cell = known!;
    cut += count;
    if (cut < cell.first + cell.span) return [];
    chunks += 1;
    known = nextKnown();
    return [{ chunk: chunks, ...cell }];
  };
  const cell = (span: number, data: ReadonlyArray<Uint8Array>): Cell => {
    const first = cut;
    chunks += 1;
    cut += span;
    return { chunk: chunks, first, span, present: data.length, data };
  };
  /** Those for the zeros that came. */
  const empty = (beforeData: boolean): ReadonlyArray<Cell> => {
    const found = spansOf(zeros, cut > 0, beforeData);
    zeros = 0;
    return found.map((span) => cell(span, []));
  };
  return {
    /** The next slot is in a cell with others, and is kept until those came. */
    isWide: (): boolean => known !== undefined && known.span > 1,
    /** Gives the cells that end with them, those that are known. */
    zeros: (count: number): ReadonlyArray<Cell> => {
      const cells: Array<Cell> = [];
      let left = count;
      while (left > 0 && known !== undefined) {
        const some = Math.min(left, known.first + known.span - cut);
        left -= some;
        cells.push(...pass(some));
      }
      zeros += left;
      return cells;
    },
    /** A slot with data: gives the cells that end with it, and before them those for the zeros before. */
    data: (bytes: Uint8Array): ReadonlyArray<Cell> => {
      const index = cut + zeros;
      const last = runs.at(-1);
      if (last !== undefined && last.first + last.count === index) last.count += 1;
      else runs.push({ first: index, count: 1 });
      if (known === undefined) return [...empty(true), cell(1, [bytes])];
      known.present |= 1 << (index - known.first);
      known.data.push(known.span === 1 ? bytes : new Uint8Array(bytes));
      return pass(1);
    },
    /** All slots came: gives the cells at the end. */
    end: (): ReadonlyArray<Cell> => empty(false),
    /** Once all came: the plain text of chunk 0. */
    head: (): Buffer => {
      const extents = runs.map(({ count, first }) => ({
        offset: first * slot,
        length: Math.min(count * slot, size - first * slot),
      }));
      const last = extents.at(-1);
      // It says where the file ends, or tar would make it shorter.
      const ends = last === undefined || last.offset + last.length < size;
      const map = padded(
        [
          `${extents.length + (ends ? 1 : 0)}\n`,
          ...extents.map(({ length, offset }) => `${offset}\n${length}\n`),
          ...(ends ? [`${size}\n0\n`] : []),
        ].join(""),
      );
      const data = extents.reduce((sum, { length }) => sum + length, map.length);
      const [directory, base] = name.split("/");
      const records = [
        "GNU.sparse.major=1",
        "GNU.sparse.minor=0",
        `GNU.sparse.name=${name}`,
        `GNU.sparse.realsize=${size}`,
        ...(data >= sizeLimit ? [`size=${data}`] : []),
      ]
        .map(paxRecord)
        .join("");
      return Buffer.concat([
        ustar(`${directory}/PaxHeaders/${base}`, records.length, "x"),
        padded(records),
        ustar(`${directory}/GNUSparseFile.0/${base}`, data >= sizeLimit ? 0 : data),
        map,
      ]);
    },
  };
};

/**
 * By what a cell is known again without being kept: of its number, of which of its slots have data (a bit
 * for each, the first one lowest), and of that data. 16 bytes, worth nothing without the chain's key.
 *
 * GMAC, at a fifth of what HMAC-SHA256 costs. Whoever sees two tags of one nonce can make others, and here a
 * nonce comes again each night: it is sound only because no tag leaves dom0, and because the key is of one
 * chain. Who chooses data and sees no tag makes two cells have the same one with a chance of its blocks in
 * 2^128, 2^-106 for the largest.
 */
export const cellMac = (
  key: Uint8Array,
  chunk: number,
  present: number,
  data: ReadonlyArray<Uint8Array>,
): Buffer => {
  const nonce = Buffer.alloc(12);
  nonce.writeUInt32BE(chunk, 0);
  nonce.writeUInt16BE(present, 4);
  const mac = createCipheriv("aes-256-gcm", key, nonce);
  for (const bytes of data) mac.setAAD(bytes);
  mac.final();
  return mac.getAuthTag();
};
