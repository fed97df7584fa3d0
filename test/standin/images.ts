/** The content of volumes: made up from a seed, never held in memory, the same at every reading. */
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import { sha256 } from "./state.ts";
import type { Qube, Volume } from "./state.ts";

const PAGE = 4096;
export const BLOCK = 1024 * 1024;

export interface Extent {
  readonly offset: number;
  readonly length: number;
}

export interface Image {
  readonly size: number;
  /** Where the data are; what lies between are holes. */
  readonly extents: ReadonlyArray<Extent>;
  readonly read: (offset: number, length: number) => Buffer;
}

const page = (bytes: number): number => Math.ceil(bytes / PAGE) * PAGE;

/** Two runs of data, one at the start and one in the middle, of whole pages, as a disk has them. */
const extentsOf = (size: number, data: number): Array<Extent> => {
  if (data >= size) return size === 0 ? [] : [{ offset: 0, length: size }];
  if (data === 0) return [];
  const first = Math.min(page(Math.ceil(data / 2)), size);
  const middle = page(Math.ceil(size / 2));
  const second = Math.min(page(data - Math.min(data, first)), size - middle);
  if (second <= 0 || first >= middle) return [{ offset: 0, length: Math.min(page(data), size) }];
  return [
    { offset: 0, length: first },
    { offset: middle, length: second },
  ];
};

/** AES in counter mode can start anywhere. Every fourth page is text, so that gzip has some work. */
const pseudoRandom = (seed: string) => {
  const key = sha256(seed);
  return (offset: number, length: number): Buffer => {
    const start = Math.floor(offset / PAGE) * PAGE;
    const bytes = Buffer.alloc(page(offset - start + length));
    const counter = Buffer.alloc(16);
    counter.writeBigUInt64BE(BigInt(start / 16), 8);
    const random = crypto.createCipheriv("aes-256-ctr", key, counter).update(bytes);
    for (let at = 0; at < random.length; at += PAGE) {
      const number = (start + at) / PAGE;
      if (number % 4 === 3) random.fill(`${seed}, page ${number}\n`, at, at + PAGE);
    }
    return random.subarray(offset - start, offset - start + length);
  };
};

/** `described` is the size of a block device, of which the file system tells none. */
const fromFile = (file: string, described: number): Image => {
  const stat = fs.statSync(file);
  const size = stat.isBlockDevice() ? described : stat.size;
  return {
    size,
    extents: extentsOf(size, size),
    read: (offset, length) => {
      const bytes = Buffer.alloc(length);
      const fd = fs.openSync(file, "r");
      try {
        fs.readSync(fd, bytes, 0, length, offset);
      } finally {
        fs.closeSync(fd);
      }
      return bytes;
    },
  };
};

export const imageOf = (qube: Pick<Qube, "name">, name: string, volume: Volume): Image => {
  if (volume.file !== undefined) return fromFile(volume.file, volume.size);
  const { size } = volume;
  const extents = extentsOf(size, volume.data ?? size);
  const content = pseudoRandom(volume.seed ?? `${qube.name} ${name}`);
  return {
    size,
    extents,
    read: (offset, length) => {
      const bytes = Buffer.alloc(length);
      for (const extent of extents) {
        const from = Math.max(offset, extent.offset);
        const to = Math.min(offset + length, extent.offset + extent.length);
        if (from < to) content(from, to - from).copy(bytes, from - offset);
      }
      return bytes;
    },
  };
};

/** What qubesd takes for the size of a volume: the disk that it uses. */
export const usageOf = (image: Image): number =>
  image.extents.reduce((sum, extent) => sum + extent.length, 0);

export function* blocksOf(image: Image): Generator<Buffer> {
  for (const { offset, length } of image.extents) {
    for (let at = 0; at < length; at += BLOCK) {
      yield image.read(offset + at, Math.min(BLOCK, length - at));
    }
  }
}

/** The whole image with its holes, to compare a restored one with. */
export const writeImage = (image: Image, file: string): void => {
  const fd = fs.openSync(file, "w");
  try {
    for (const { offset, length } of image.extents) {
      for (let at = 0; at < length; at += BLOCK) {
        const bytes = image.read(offset + at, Math.min(BLOCK, length - at));
        fs.writeSync(fd, bytes, 0, bytes.length, offset + at);
      }
    }
    fs.ftruncateSync(fd, image.size);
  } finally {
    fs.closeSync(fd);
  }
};
