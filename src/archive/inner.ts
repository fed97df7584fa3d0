/**
 * What qubesd gives its compressor for each file of a backup, read as it comes: one tar stream, whose
 * header alone tells what it is. Of a file, GNU tar's or that of qubesd's own program for block devices,
 * the contents come out in slots, the same for both, however they say where there is nothing but zeros.
 * A directory (dom0's home) comes out as the stream that it is, cut into pieces of a slot's size.
 *
 * A program that was ended in the middle looks like one that is done, so a stream counts only if it is
 * complete by itself: all of what its map promises, then the zeros at its end. docs/qubes.md, Inner streams.
 */
import { Schema } from "effect";
import { printable } from "#src/say/shown";
import { memberLimit } from "#src/proof/table";
import { parseNumber } from "#src/wire/names";
import { slotSize, widest } from "./slots.ts";
import { isZero, padding, tarBlock } from "./ustar.ts";
import { isFile } from "./walk.ts";

/** `at`: bytes of the stream that were read. */
export class InnerFault extends Schema.TaggedError<InnerFault>()("InnerFault", {
  detail: Schema.String,
  at: Schema.Int,
}) {
  override get message(): string {
    return `${this.detail} (at byte ${this.at})`;
  }
}

export type Step =
  /** The first one. `size` is in bytes; undefined for a directory, whose stream ends where it ends. */
  | { readonly type: "file"; readonly name: string; readonly size: number | undefined }
  /** So many slots of zeros come next. */
  | { readonly type: "zeros"; readonly count: number }
  /** A slot with something else in it. The bytes are those of the next one after the next step. */
  | { readonly type: "slot"; readonly index: number; readonly bytes: Uint8Array }
  /** The last one: the stream was complete. */
  | { readonly type: "end" };

/** Bytes of an extended header, or of a long name: much more than either has. */
const extendedLimit = 65_536;
/** Extended headers before a file: each has one for its times, or for its name, at most. */
const extendedMost = 4;
/**
 * Bytes in which the map of one file is kept, some three for each piece of data. A program of qubesd's
 * that made a longer one would need gigabytes for it.
 */
const mapLimit = 67_108_864;

/** Bytes of the largest file that an archive can hold, with all its members being its widest cells. */
const largest = memberLimit * widest * slotSize;

/** A number of a header: octal digits or, behind a bit that is set, the number itself. */
const numberAt = (header: Buffer, at: number, length: number): number | undefined => {
  const field = header.subarray(at, at + length);
  if (field[0] === 0x80) {
    const value = field.subarray(1).reduce((sum, byte) => sum * 256 + byte, 0);
    return Number.isSafeInteger(value) ? value : undefined;
  }
  const text = field.toString("latin1");
  return /^[0-7]+[ \0]*$/.test(text) ? Number.parseInt(text, 8) : undefined;
};
const textAt = (bytes: Buffer, at: number, length: number): string =>
  bytes.toString("latin1", at, at + length).split("\0")[0]!;

/** Records of an extended header, `LENGTH KEY=VALUE` and a newline; undefined where they are none. */
const paxRecords = (bytes: Buffer): ReadonlyMap<string, string> | undefined => {
  const records = new Map<string, string>();
  for (let at = 0; at < bytes.length;) {
    const blank = bytes.indexOf(" ", at);
    const length = parseNumber(bytes.toString("latin1", at, blank));
    if (length === undefined || length > bytes.length - at) return undefined;
    const record = bytes.toString("utf8", blank + 1, at + length);
    const sign = record.indexOf("=");
    if (sign < 1 || !record.endsWith("\n")) return undefined;
    records.set(record.slice(0, sign), record.slice(sign + 1, -1));
    at += length;
  }
  return records;
};

/**
 * Where a file of `size` bytes has data, in order, some bytes for each piece of it: there may be millions,
 * but near each other. At most `limit` bytes.
 */
const extents = (size: number, limit: number) => {
  let bytes = Buffer.alloc(4096);
  let used = 0;
  let end = 0;
  let data = 0;
  const put = (value: number): void => {
    let rest = value;
    for (; rest >= 128; rest = Math.floor(rest / 128)) bytes[used++] = 128 + (rest % 128);
    bytes[used++] = rest;
  };
  return {
    size,
    /** Bytes of all pieces together. */
    data: () => data,
    /** False for a piece that is not behind the one before, or not in the file; or for one too many. */
    add: (offset: number, length: number): boolean => {
      if (offset < end || length > size - offset) return false;
      // Two numbers of at most seven bytes.
      if (used + 14 > bytes.length) {
        if (bytes.length >= limit) return false;
        bytes = Buffer.concat([bytes, Buffer.alloc(bytes.length)]);
      }
      put(offset - end);
      put(length);
      end = offset + length;
      data += length;
      return true;
    },
    *[Symbol.iterator]() {
      let at = 0;
      const take = (): number => {
        let value = 0;
        for (let weight = 1; ; weight *= 128) {
          const byte = bytes[at++]!;
          value += (byte % 128) * weight;
          if (byte < 128) return value;
        }
      };
      for (let from = 0; at < used;) {
        const offset = from + take();
        const length = take();
        from = offset + length;
        yield { offset, length };
      }
    },
  };
};
type Extents = ReturnType<typeof extents>;

interface Head {
  readonly type: string;
  readonly size: number;
  readonly header: Buffer;
}

/**
 * Bytes are given with `push`, in pieces of any size, and then `next` gives one step after the other: a
 * fault that ends it all, or undefined where it needs more bytes. Until then the bytes are not the
 * caller's. `end` says that no more come. Of tests alone: `slot`, other bytes than a slot has; `limit`,
 * other bytes than the map of a file may take.
 */
export const innerReader = (slot = slotSize, limit = mapLimit) => {
  let input: Uint8Array = new Uint8Array(0);
  /** Where the next bytes belong that are waited for, and how many of them were put there. */
  let wanted: Uint8Array | undefined;
  let there = 0;
  /** Fewer bytes than that are not worth a read of their own. */
  const direct = slot / 64;
  let ended = false;
  let read = 0;
  const refused = (detail: string) => new InnerFault({ detail, at: read });

  type Parser<A> = Generator<Step | undefined, A, void>;
  /** At most so many bytes, at least one. */
  const some = function* (most: number): Parser<Uint8Array> {
    while (input.length === 0) {
      if (ended) throw refused("the stream ends early");
      yield undefined;
    }
    const part = input.subarray(0, most);
    input = input.subarray(part.length);
    read += part.length;
    return part;
  };
  const fill = function* (into: Uint8Array): Parser<void> {
    for (let at = 0; at < into.length;) {
      if (input.length === 0 && !ended) {
        wanted = into.subarray(at);
        yield undefined;
        wanted = undefined;
        at += there;
        read += there;
        there = 0;
        continue;
      }
      const part = yield* some(into.length - at);
      into.set(part, at);
      at += part.length;
    }
  };
  const block = function* (): Parser<Buffer> {
    const bytes = Buffer.alloc(tarBlock);
    yield* fill(bytes);
    return bytes;
  };
  /** What is left are zeros, and two blocks of them at least, counted from the end of the data. */
  const zerosToEnd = function* (
    before: number,
    each: (part: Uint8Array) => Parser<void> | undefined,
  ): Parser<void> {
    let count = before;
    for (;;) {
      while (input.length === 0 && !ended) yield undefined;
      if (input.length === 0) break;
      const part = yield* some(slotSize);
      if (!isZero(part)) throw refused("something stands behind the end of the stream");
      count += part.length;
      yield* each(part) ?? [];
    }
    if (count < 2 * tarBlock) throw refused("the stream ends without its end mark");
  };

  const parseHead = (header: Buffer): Head => {
    const sum = header.reduce((total, byte) => total + byte, 0);
    const blanks = header.subarray(148, 156).reduce((total, byte) => total - byte + 32, 0);
    const size = numberAt(header, 124, 12);
    if (
      numberAt(header, 148, 8) !== sum + blanks ||
      size === undefined ||
      header.toString("latin1", 257, 262) !== "ustar"
    ) {
      throw refused("this is no header of a tar stream");
    }
    return { type: String.fromCharCode(header[156]!), size, header };
  };

  /** The pieces of data that a header of GNU tar's sparse type, and the blocks behind it, tell of. */
  const gnuMap = function* (head: Head): Parser<Extents> {
    const map = extents(sound(numberAt(head.header, 483, 12)), limit);
    let [from, entries, bytes] = [386, 4, head.header];
    for (;;) {
      for (let n = 0; n < entries && bytes[from + 24 * n + 12] !== 0; n++) {
        const at = from + 24 * n;
        const offset = numberAt(bytes, at, 12);
        const length = numberAt(bytes, at + 12, 12);
        if (offset === undefined || length === undefined || !map.add(offset, length)) {
          throw refused("a map of a sparse file that is none");
        }
      }
      // Behind the entries there is a byte that says whether there are more of them.
      if (bytes[from + 24 * entries] === 0) return map;
      [from, entries, bytes] = [0, 21, yield* block()];
    }
  };

  /** The same from the beginning of the data, where the form of 1.0 has it; and how long it is there. */
  const paxMap = function* (size: number): Parser<readonly [Extents, number]> {
    let text = "";
    let blocks = 0;
    const number = function* (): Parser<number> {
      for (;;) {
        const end = text.indexOf("\n");
        const value = parseNumber(text.slice(0, Math.max(end, 0)));
        if (value !== undefined) {
          text = text.slice(end + 1);
          return value;
        }
        if (end !== -1 || text.length > 16) throw refused("a map of a sparse file that is none");
        text += (yield* block()).toString("latin1");
        blocks += 1;
      }
    };
    const map = extents(size, limit);
    const entries = yield* number();
    for (let n = 0; n < entries; n++) {
      const offset = yield* number();
      if (!map.add(offset, yield* number())) throw refused("a map of a sparse file that is none");
    }
    return [map, blocks * tarBlock];
  };

  const file = function* (name: string, map: Extents): Parser<void> {
    const { size } = map;
    yield { type: "file", name, size };
    const bytes = Buffer.alloc(Math.min(slot, size));
    /** Those that were said. */
    let said = 0;
    let open = 0;
    /** Bytes of that slot that are there; behind them are those of another one. */
    let held = 0;
    const lengthOf = (of: number) => Math.min(slot, size - of * slot);
    const close = function* (): Parser<void> {
      const contents = bytes.subarray(0, lengthOf(open)).fill(0, held);
      if (isZero(contents)) return;
      if (open > said) yield { type: "zeros", count: open - said };
      yield { type: "slot", index: open, bytes: contents };
      said = open + 1;
    };
    for (const { length, offset } of map) {
      for (let at = offset; at < offset + length;) {
        const inside = at % slot;
        const its = (at - inside) / slot;
        if (its !== open) {
          yield* close();
          open = its;
          held = 0;
        }
        bytes.fill(0, held, inside);
        const part = bytes.subarray(inside, Math.min(slot, inside + offset + length - at));
        yield* fill(part);
        held = inside + part.length;
        at += part.length;
      }
    }
    yield* close();
    const slots = Math.ceil(size / slot);
    if (slots > said) yield { type: "zeros", count: slots - said };
    yield* zerosToEnd(0, () => undefined);
  };

  /** A stream that is kept as it is; `before` was read of it. It is read for its end alone. */
  const tree = function* (name: string, first: Head, before: ReadonlyArray<Buffer>): Parser<void> {
    yield { type: "file", name, size: undefined };
    const bytes = Buffer.alloc(slot);
    let held = 0;
    let index = 0;
    const keep = function* (part: Uint8Array): Parser<void> {
      for (let at = 0; at < part.length;) {
        const n = Math.min(part.length - at, slot - held);
        bytes.set(part.subarray(at, at + n), held);
        at += n;
        held += n;
        if (held < slot) continue;
        yield { type: "slot", index, bytes };
        index += 1;
        held = 0;
      }
    };
    for (const part of before) yield* keep(part);
    let resized: number | undefined;
    for (let head = first; ;) {
      for (let more = head.type === "S" && head.header[482] !== 0; more;) {
        const further = yield* block();
        yield* keep(further);
        more = further[504] !== 0;
      }
      if (head.type === "x") {
        const data = yield* extended(head.size);
        yield* keep(data);
        resized = sizeIn(recordsIn(data.subarray(0, head.size)));
      } else {
        const size = resized ?? head.size;
        resized = undefined;
        for (let left = size + padding(size); left > 0;) {
          const part = yield* some(left);
          yield* keep(part);
          left -= part.length;
        }
      }
      const next = yield* block();
      yield* keep(next);
      if (isZero(next)) break;
      head = parseHead(next);
    }
    yield* zerosToEnd(tarBlock, keep);
    if (held > 0) yield { type: "slot", index, bytes: bytes.subarray(0, held) };
  };

  const extended = function* (size: number): Parser<Buffer> {
    if (size > extendedLimit) throw refused("an extended header that is too long");
    const bytes = Buffer.alloc(size + padding(size));
    yield* fill(bytes);
    return bytes;
  };
  const recordsIn = (bytes: Buffer): ReadonlyMap<string, string> => {
    const records = paxRecords(bytes);
    if (records === undefined) throw refused("an extended header that is none");
    return records;
  };
  /** What overrides the size of a header, where it is too large for one. */
  const sizeIn = (records: ReadonlyMap<string, string>): number | undefined => {
    const size = records.get("size");
    return size === undefined ? undefined : sound(parseNumber(size));
  };
  const sound = (size: number | undefined): number => {
    if (size === undefined || size > largest) throw refused("a size that no file can have");
    return size;
  };

  const stream = function* (): Parser<void> {
    const before: Array<Buffer> = [];
    let records: ReadonlyMap<string, string> = new Map();
    let long: string | undefined;
    let resized: number | undefined;
    let head: Head;
    for (let seen = 0; ; seen++) {
      const bytes = yield* block();
      before.push(bytes);
      head = parseHead(bytes);
      if (head.type !== "x" && head.type !== "L") break;
      if (seen === extendedMost) throw refused("too many extended headers");
      const data = yield* extended(head.size);
      before.push(data);
      if (head.type === "L") long = textAt(data, 0, head.size);
      else {
        records = recordsIn(data.subarray(0, head.size));
        resized = sizeIn(records);
      }
    }
    const name =
      records.get("GNU.sparse.name") ?? records.get("path") ?? long ?? textAt(head.header, 0, 100);
    const size = sound(resized ?? head.size);
    const tidy = head.type === "5" ? name.replace(/\/$/, "") : name;
    if (tidy !== "qubes.xml" && !isFile(tidy)) {
      throw refused(`${printable(tidy, 120)} is no file that a Qubes backup has`);
    }
    if (head.type === "5") yield* tree(tidy, head, before);
    else if (head.type === "S") {
      const map = yield* gnuMap(head);
      if (map.data() !== size) throw refused("a sparse file whose map is not of its data");
      yield* file(tidy, map);
    } else if (head.type !== "0" && head.type !== "\0") throw refused("this is no file");
    else if (records.get("GNU.sparse.major") === "1" && records.get("GNU.sparse.minor") === "0") {
      const whole = parseNumber(records.get("GNU.sparse.realsize") ?? "");
      const [map, length] = yield* paxMap(sound(whole));
      if (length + map.data() !== size) throw refused("a sparse file whose map is not of its data");
      yield* file(tidy, map);
    } else if ([...records.keys()].some((key) => key.startsWith("GNU.sparse."))) {
      throw refused("a sparse file of an unknown form");
    } else {
      const map = extents(size, limit);
      map.add(0, size);
      yield* file(tidy, map);
    }
    yield { type: "end" };
  };

  const steps = stream();
  let fault: InnerFault | undefined;
  return {
    push: (bytes: Uint8Array): void => {
      input = bytes;
    },
    /**
     * Where the next bytes belong, if that is known and many of them belong there: who reads them right there, in
     * place of a `push`, says with `filled` how many came, and they are not copied.
     */
    room: (): Uint8Array | undefined =>
      wanted !== undefined && wanted.length >= direct ? wanted : undefined,
    filled: (bytes: number): void => {
      there = bytes;
    },
    end: (): void => {
      ended = true;
    },
    next: (): Step | InnerFault | undefined => {
      if (fault !== undefined) return fault;
      try {
        return steps.next().value ?? undefined;
      } catch (error) {
        if (!(error instanceof InnerFault)) throw error;
        return (fault = error);
      }
    },
  };
};
