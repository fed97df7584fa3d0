/**
 * How a file is cut so that most of it stays where it is from one night to the next. docs/slots.md.
 *
 * A volume has slots of 4 MiB; slots become cells once, and cell k is chunk k of the volume for ever.
 * Chunk 0 is the head of the inner tar, with the map that says which slots are there; it comes to be last,
 * because only what was read through is known to be zeros.
 */
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
  /** Something else than zeros. */
  readonly data: boolean;
}

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

/** Cuts a volume of `size` bytes anew, as its slots come, in order. `slot`: other bytes than a slot has. */
export const volumeCutter = (name: string, size: number, slot = slotSize) => {
  /** Slots with data, in runs. */
  const runs: Array<{ readonly first: number; count: number }> = [];
  let chunks = 0;
  let slots = 0;
  let zeros = 0;
  const cell = (span: number, data: boolean): Cell => {
    const first = slots;
    chunks += 1;
    slots += span;
    return { chunk: chunks, first, span, data };
  };
  /** Those for the zeros that came. */
  const empty = (beforeData: boolean): ReadonlyArray<Cell> => {
    const spans = spansOf(zeros, slots > 0, beforeData);
    zeros = 0;
    return spans.map((span) => cell(span, false));
  };
  return {
    zeros: (count: number): void => {
      zeros += count;
    },
    /** A slot with data: gives its cell, and before it those for the zeros that came before. */
    data: (): ReadonlyArray<Cell> => {
      const cells = [...empty(true), cell(1, true)];
      const { first } = cells.at(-1)!;
      const last = runs.at(-1);
      if (last !== undefined && last.first + last.count === first) last.count += 1;
      else runs.push({ first, count: 1 });
      return cells;
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
