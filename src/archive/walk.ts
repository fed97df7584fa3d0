/**
 * The structure of a Qubes version 4 backup, walked as it streams by: of each member, and of the list
 * that the members make.
 *
 * An archive is a run of small tar archives, one for each member, without an end mark, and
 * qvm-backup-restore does not notice missing parts. So every rule that can be checked without the
 * passphrase is checked here; what an archive *should* contain only dom0 knows, and passes as
 * `expected`. Facts: docs/qubes.md, Archive, and the genuine samples.
 */
import { createHash } from "node:crypto";
import { Option, Schema } from "effect";
import { printable } from "#src/say/shown";
import { type Member, memberLimit } from "#src/proof/table";
import type { Manifest } from "#src/proof/texts";
import { parseNumber, Sha256 } from "#src/wire/names";
import { isZero, tarBlock as block } from "./ustar.ts";

/** Bytes of a full chunk as it lies in the archive: 100 MiB and what scrypt adds. */
export const fullChunk = 104_857_728;
/** Every member starts on a multiple of this: GNU tar's record. */
const record = 10_240;
/** scrypt's header: what it starts with, its parameters, its checksum over the first 48 bytes. */
const scryptHeader = 64;
/** What scrypt adds to the plain text, so the least that a member can have. */
const scryptOverhead = 128;
/** More than GNU tar ever writes for three times. */
const paxLimit = 4096;
const headerLimit = 4096;

/** What can be wrong. */
export const faults = [
  "not-an-archive",
  "tar-header",
  "padding",
  "unknown-member",
  "order",
  "duplicate",
  "gap",
  "short-chunk",
  "long-chunk",
  "lost-tail",
  "backup-header",
  "scrypt-header",
  "too-many-members",
  "truncated",
  "missing-qube",
  "unexpected-qube",
] as const;

/** What is wrong; `at` is the offset of the member in bytes. */
export class ArchiveFault extends Schema.TaggedError<ArchiveFault>()("ArchiveFault", {
  fault: Schema.Literals(faults),
  detail: Schema.String,
  at: Schema.Int,
}) {
  override get message(): string {
    return `${this.detail} (at byte ${this.at})`;
  }
}

export type Format = Manifest["format"];
/** A member as its tar header alone tells; sizes in bytes, as in a table. */
export type Begun = Omit<Member, "digest">;

export interface WalkOptions {
  /**
   * `pack`: what an upload brings, members of either format in any order, some of them twice; only
   * the list that a recipe makes of them has an order.
   */
  readonly format?: Format | "pack";
  /** Bytes of a full chunk; only small samples have another one. */
  readonly fullChunk?: number;
  /** The directories that must be there, and no others: `vm7`, `dom0-home`. */
  readonly expected?: ReadonlySet<string>;
  /**
   * It only lists the files that went elsewhere, by a compressor that is a path (docs/qubes.md, Tap):
   * what scrypt made of nothing is not looked at, for a scrypt that was killed leaves nothing at all.
   */
  readonly listing?: boolean;
}

const heads = ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"] as const;
const isHead = (path: string): boolean => (heads as ReadonlyArray<string>).includes(path);
/** The files that a qube can have (R4.3); `empty` stands for a qube without any. */
const chunked =
  /^(?:(vm[1-9][0-9]{0,9})\/(?:private\.img|root\.img|firewall\.xml|notes\.txt|whitelisted-appmenus\.list|empty)|(dom0-home)\/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})\.([0-9]{3}|[1-9][0-9]{3,6})\.enc$/;
/** Is it a file that a Qubes backup can have, before it is cut into chunks: `vm7/private.img`? */
export const isFile = (name: string): boolean => chunked.test(`${name}.000.enc`);

/** The time of a backup and the number of a process. */
export const BackupId = Schema.String.check(Schema.isPattern(/^[0-9]{8}T[0-9]{6}-[0-9]{1,10}$/));

const headerFields = {
  version: Schema.Literal("4"),
  encrypted: Schema.Literal("True"),
  compressed: Schema.Literals(["True", "False"]),
  "compression-filter": Schema.optionalKey(
    Schema.String.check(Schema.isPattern(/^[A-Za-z0-9._+-]{1,64}$/)),
  ),
  "hmac-algorithm": Schema.Literal("scrypt"),
  "crypto-algorithm": Schema.optionalKey(Schema.Literal("scrypt")),
  "backup-id": BackupId,
};
/** By what it is the header of; slots have the root over the members behind the two heads sealed in their header. */
const decodeBackupHeader = {
  "qvm-backup": Schema.decodeUnknownOption(Schema.Struct(headerFields), {
    onExcessProperty: "error",
  }),
  slots: Schema.decodeUnknownOption(
    Schema.Struct({
      ...headerFields,
      "qbackup-seal": Sha256,
      "qbackup-run": Schema.String.check(
        Schema.makeFilter((text: string) => parseNumber(text) !== undefined),
      ),
    }),
    { onExcessProperty: "error" },
  ),
  listing: Schema.decodeUnknownOption(
    Schema.Struct({
      ...headerFields,
      "compression-filter": Schema.String.check(Schema.isPattern(/^\/[A-Za-z0-9/._-]{1,200}$/)),
    }),
    { onExcessProperty: "error" },
  ),
};

const isBackupHeader = (text: string, format: Format | "listing"): boolean => {
  const lines = text.split("\n");
  if (lines.pop() !== "" || lines[0] !== "version=4") return false;
  const pairs = lines.map((line): [string, string] => {
    const at = line.indexOf("=");
    return [line.slice(0, Math.max(at, 0)), line.slice(at + 1)];
  });
  return (
    new Set(pairs.map(([key]) => key)).size === pairs.length &&
    Option.isSome(decodeBackupHeader[format](Object.fromEntries(pairs)))
  );
};

/** What backup-header of slots says of the members behind the two heads: their root, and of which run they are. */
export interface Seal {
  readonly root: string;
  readonly run: number;
}
const sealIn = (header: string): Seal => {
  // Of a header that was decoded: there is no other key, and no value, in which it could stand.
  const said = (key: string) => new RegExp(`${key}=(.*)`).exec(header)![1]!;
  return { root: said("qbackup-seal"), run: parseNumber(said("qbackup-run"))! };
};

/** `digits` octal digits and the given end: the one way in which GNU tar writes a number. */
const octal = (header: Buffer, at: number, digits: number, end = "\0"): number | undefined => {
  const field = header.toString("latin1", at, at + digits + end.length);
  return field.endsWith(end) && /^[0-7]+$/.test(field.slice(0, digits))
    ? Number.parseInt(field.slice(0, digits), 8)
    : undefined;
};
/** A text padded with NULs, one at least, without any after the first one but NULs. */
const padded = (header: Buffer, at: number, length: number): string | undefined => {
  const field = header.subarray(at, at + length);
  const end = field.indexOf(0);
  // Where there is no NUL, nor is the last byte one, which stands at -1. And the text is not cut out of a
  // longer one, which would live as long: there may be a million of them.
  return isZero(field.subarray(end)) ? field.toString("latin1", 0, end) : undefined;
};

interface TarHeader {
  readonly type: "x" | "0";
  readonly path: string;
  readonly size: number;
  /** As slots have it: without anything that differs from one day, or one machine, to another. */
  readonly bare: boolean;
}

/** Reads a header in canonical form; otherwise the name of the field that is not. */
const parseTarHeader = (header: Buffer): TarHeader | string => {
  const sum = octal(header, 148, 6, "\0 ");
  let total = 8 * 32;
  for (let i = 0; i < block; i++) if (i < 148 || i >= 156) total += header[i]!;
  if (sum === undefined || sum !== total) return "checksum";
  if (header.toString("latin1", 257, 265) !== "ustar\x0000") return "magic";
  const type = String.fromCharCode(header[156]!);
  if (type !== "x" && type !== "0") return "type";
  if (octal(header, 100, 7) !== 0o644) return "mode";
  if (octal(header, 108, 7) !== 0 || octal(header, 116, 7) !== 0) return "owner";
  const size = octal(header, 124, 11);
  if (size === undefined) return "size";
  const time = octal(header, 136, 11);
  if (time === undefined) return "time";
  if (!isZero(header.subarray(157, 257))) return "link";
  // qubesd runs as root; an extended header bears no names.
  const names = [padded(header, 265, 32), padded(header, 297, 32)];
  if (names.some((name) => name !== "" && name !== "root")) return "owner";
  const devices = header.toString("latin1", 329, 345);
  const none = "\0".repeat(16);
  if (devices !== none && devices !== "0000000\x000000000\0") return "device";
  if (!isZero(header.subarray(345, block))) return "prefix";
  const path = padded(header, 0, 100);
  const bare = type === "0" && time === 0 && names.every((name) => name === "") && devices === none;
  return path === undefined || path === "" ? "path" : { type, path, size, bare };
};

/** Its own length in bytes, what it is the time of, seconds. GNU tar refuses what 64 bits do not hold. */
const paxTime = /^([0-9]{2}) [amc]time=-?[0-9]{1,18}(?:\.[0-9]{1,9})?\n/;

/** Times are all that an extended header may say: it could rename or resize the member otherwise. */
const isPaxTimes = (text: string): boolean => {
  for (let at = 0; at < text.length;) {
    const match = paxTime.exec(text.slice(at));
    if (match === null || Number(match[1]) !== match[0].length) return false;
    at += match[0].length;
  }
  return true;
};

const roundUp = (n: number, step: number): number => Math.ceil(n / step) * step;

/** Bytes of an archive as a plain file, whose members have so many together. */
export const archiveSize = (format: Format, bytes: number): number =>
  format === "slots" ? roundUp(bytes + 2 * block, record) : bytes;

/** Does a member of this format take so many bytes? What stands before its data may vary. */
const isLengthOf = (format: Format, { length, size }: Begun): boolean => {
  const least = block + roundUp(size, block);
  return format === "slots"
    ? length === least
    : length % record === 0 && length >= least + 2 * block;
};

/** In an archive that only lists: does a member behind the first stand for a file that went elsewhere? */
const onlyListed = (path: string): boolean => path !== heads[1];

/** What is wrong with a member by its path and size alone, whatever stands around it. */
const odd = (
  { path, size }: Begun,
  fullChunk: number,
  listing: boolean,
): { readonly fault: ArchiveFault["fault"]; readonly detail: string } | undefined => {
  const shown = () => printable(path);
  if (!isHead(path) && !chunked.test(path)) {
    const detail = `${shown()} is not a member that a Qubes backup has`;
    return { fault: "unknown-member", detail };
  }
  if (path === heads[0]) {
    return size === 0 || size > headerLimit
      ? { fault: "backup-header", detail: `backup-header has ${size} bytes` }
      : undefined;
  }
  if (size < scryptOverhead && !(listing && onlyListed(path))) {
    const detail = `${shown()} has ${size} bytes, fewer than scrypt writes`;
    return { fault: "short-chunk", detail };
  }
  if (size > fullChunk) {
    const detail = `${shown()} has ${size} bytes, more than a chunk can have`;
    return { fault: "long-chunk", detail };
  }
  return undefined;
};

/** Which names were there, by 64 bits of their hash, which no two of an archive share by chance. */
class Names {
  #slots = new BigUint64Array(64);
  #free = 32;

  /** False where it was there already. */
  add(name: string): boolean {
    const hash = createHash("sha256").update(name).digest().readBigUInt64LE();
    if (!this.#put(hash)) return false;
    this.#free -= 1;
    if (this.#free === 0) {
      const held = this.#slots;
      this.#slots = new BigUint64Array(2 * held.length);
      this.#free = held.length / 2;
      for (const each of held) if (each !== 0n) this.#put(each);
    }
    return true;
  }

  #put(hash: bigint): boolean {
    let at = Number(hash % BigInt(this.#slots.length));
    while (this.#slots[at] !== 0n) {
      if (this.#slots[at] === hash) return false;
      at = (at + 1) % this.#slots.length;
    }
    this.#slots[at] = hash;
    return true;
  }
}

/**
 * A walk over the list of an archive's members: `next` for each, in order, gives the fault that ends
 * the walk, or undefined; `finish` gives what is missing. Holds some 16 bytes for each file: the names
 * of a million would be 200 MiB.
 */
export class ListWalk {
  readonly #format: Format | "pack";
  readonly #fullChunk: number;
  readonly #expected: ReadonlySet<string> | undefined;
  readonly #listing: boolean;
  readonly #files = new Names();
  /** Those of the expected directories that were not there yet. */
  readonly #missing: Set<string>;
  #home = false;
  #members = 0;
  /** Bytes of the members before. */
  #at = 0;
  #file: { readonly name: string; readonly chunk: number; readonly full: boolean } | undefined;
  #fault: ArchiveFault | undefined;

  constructor(options: WalkOptions = {}) {
    this.#format = options.format ?? "qvm-backup";
    this.#fullChunk = options.fullChunk ?? fullChunk;
    this.#expected = options.expected;
    this.#listing = options.listing === true;
    this.#missing = new Set(options.expected);
  }

  get fault(): ArchiveFault | undefined {
    return this.#fault;
  }

  next(member: Begun): ArchiveFault | undefined {
    if (this.#fault !== undefined) return this.#fault;
    if (this.#members >= memberLimit) {
      return this.#fail("too-many-members", `more than ${memberLimit} members`);
    }
    if (this.#format !== "pack" && this.#misplaced(member) !== undefined) return this.#fault;
    const wrong = odd(member, this.#fullChunk, this.#listing);
    if (wrong !== undefined) return this.#fail(wrong.fault, wrong.detail);
    if (this.#format !== "pack" && !isLengthOf(this.#format, member)) {
      return this.#fail("padding", `${member.path} is not of the format ${this.#format}`);
    }
    this.#members += 1;
    this.#at += member.length;
    return undefined;
  }

  /** Says that no more members come. */
  finish(): ArchiveFault | undefined {
    if (this.#fault !== undefined || this.#format === "pack") return this.#fault;
    if (this.#members === 0) return this.#fail("not-an-archive", "there is nothing in it");
    if (this.#members < heads.length) {
      return this.#fail("truncated", `the archive ends before ${heads[this.#members]}`);
    }
    const tail = this.#closeFile();
    if (tail !== undefined) return tail;
    if (this.#file === undefined)
      return this.#fail("missing-qube", "the archive has no qube in it");
    return this.#missing.size > 0
      ? this.#fail("missing-qube", `the archive has nothing of ${[...this.#missing].join(", ")}`)
      : undefined;
  }

  #fail(fault: ArchiveFault["fault"], detail: string): ArchiveFault {
    return (this.#fault = new ArchiveFault({ fault, detail, at: this.#at }));
  }

  /** The rules of where a member may stand. */
  #misplaced({ path, size }: Begun): ArchiveFault | undefined {
    const head = heads[this.#members];
    if (head !== undefined) {
      return path === head
        ? undefined
        : this.#fail(
            this.#members === 0 ? "not-an-archive" : "order",
            `${printable(path)} stands where ${head} must`,
          );
    }
    if (isHead(path)) return this.#fail("duplicate", `${path} is there twice`);
    const match = chunked.exec(path);
    // It is no member at all, whatever its place.
    if (match === null) return undefined;
    // What fits the pattern is printable.
    const id = match[1] ?? match[2]!;
    const number = Number(match[3]);
    const name = path.slice(0, path.length - match[3]!.length - ".enc".length - 1);
    const file = this.#file;
    if (file?.name === name) {
      if (number <= file.chunk) return this.#fail("duplicate", `${path} is there twice`);
      if (number !== file.chunk + 1) {
        return this.#fail("gap", `${path} stands where chunk ${file.chunk + 1} must`);
      }
      if (!file.full && this.#format === "qvm-backup") {
        return this.#fail("short-chunk", `chunk ${file.chunk} of ${name} is cut short`);
      }
    } else {
      const tail = this.#closeFile();
      if (tail !== undefined) return tail;
      if (!this.#files.add(name)) {
        return this.#fail("duplicate", `${path} comes after the end of its file`);
      }
      if (number !== 0) return this.#fail("gap", `${path} is there, but not the chunks before it`);
      if (this.#expected !== undefined && !this.#expected.has(id)) {
        return this.#fail("unexpected-qube", `${path} is of a qube that was not asked for`);
      }
      if (id !== "dom0-home" && this.#home) {
        return this.#fail("order", `${path} stands behind dom0-home`);
      }
      this.#home = id === "dom0-home";
      this.#missing.delete(id);
    }
    this.#file = { name, chunk: number, full: size === this.#fullChunk };
    return undefined;
  }

  /** qvm-backup's last chunk of a file is always smaller than a full one: a full one has lost its tail. */
  #closeFile(): ArchiveFault | undefined {
    return this.#file?.full === true && this.#format === "qvm-backup"
      ? this.#fail("lost-tail", `${this.#file.name} ends with a full chunk, so its tail is lost`)
      : undefined;
  }
}

/** Where the walk stands inside a member. */
type State =
  | { readonly at: "header"; readonly pax: boolean }
  | { readonly at: "pax"; readonly size: number }
  /** The first bytes of the data, which say something about it. */
  | { readonly at: "head"; readonly path: string; readonly want: number }
  | { readonly at: "data" }
  | { readonly at: "padding" }
  /** The zeros at the end of a plain archive of slots, which belong to no member. */
  | { readonly at: "end" };

export interface MemberOptions extends Omit<WalkOptions, "expected"> {
  /** Is shown each member once its tar header was read, and may refuse it. */
  readonly begin?: (member: Begun) => ArchiveFault | undefined;
}

/**
 * A walk over the bytes of members, one behind the other: what each must be, wherever it stands. Of a
 * pack, the first header tells which format all of it has.
 */
export class MemberWalk {
  readonly #asked: Format | "pack";
  readonly #listing: boolean;
  readonly #fullChunk: number;
  readonly #begin: (member: Begun) => ArchiveFault | undefined;
  #format: Format | undefined;
  #state: State = { at: "header", pax: false };
  /** Bytes collected for the present header or head. */
  readonly #held = Buffer.alloc(Math.max(paxLimit, headerLimit, block));
  #heldBytes = 0;
  #offset = 0;
  #start = 0;
  #end: number | undefined;
  /** Bytes to come in the states "data", "padding" and "end". */
  #left = 0;
  #after = 0;
  #fault: ArchiveFault | undefined;
  #seal: Seal | undefined;

  constructor(options: MemberOptions = {}) {
    this.#asked = options.format ?? "qvm-backup";
    this.#listing = options.listing === true;
    this.#format = this.#asked === "pack" ? undefined : this.#asked;
    this.#fullChunk = options.fullChunk ?? fullChunk;
    this.#begin =
      options.begin ??
      ((member) => {
        const wrong = odd(member, this.#fullChunk, this.#listing);
        return wrong && new ArchiveFault({ ...wrong, at: this.#start });
      });
  }

  get fault(): ArchiveFault | undefined {
    return this.#fault;
  }
  /** Undefined only for a pack whose first header was not read yet. */
  get format(): Format | undefined {
    return this.#format;
  }
  /** Of slots, once backup-header was walked. */
  get seal(): Seal | undefined {
    return this.#seal;
  }
  /** Bytes walked so far. */
  get offset(): number {
    return this.#offset;
  }
  /** The offset at which the member under way ends; undefined until its tar header was read. */
  get end(): number | undefined {
    return this.#end;
  }
  /** Just behind the last byte of a member. */
  get atMemberEnd(): boolean {
    return this.#offset > 0 && this.#offset === this.#start && this.#fault === undefined;
  }
  /** Bytes that come next and that the walk does not look at: they may be `skip`ped instead. */
  get skippable(): number {
    return this.#fault === undefined && this.#state.at === "data" ? this.#left : 0;
  }
  skip(bytes: number): void {
    if (bytes > this.skippable) throw new RangeError("skipped more than may be skipped");
    this.#offset += bytes;
    this.#left -= bytes;
    if (this.#left === 0) this.#pad();
  }

  /**
   * Walks at most to the end of the member under way and gives how many bytes it took: the rest is for
   * the next call. Where there is a `fault`, it takes nothing more.
   */
  take(bytes: Uint8Array): number {
    let at = 0;
    while (at < bytes.length && this.#fault === undefined) {
      const state = this.#state;
      if (state.at === "data") {
        const n = Math.min(this.#left, bytes.length - at);
        this.skip(n);
        at += n;
      } else if (state.at === "padding" || state.at === "end") {
        const n = Math.min(this.#left, bytes.length - at, record);
        if (n === 0 || !isZero(bytes.subarray(at, at + n))) {
          this.#fail(
            "padding",
            `bytes that are not zero behind ${state.at === "end" ? "the last" : "a"} member`,
          );
          break;
        }
        at += n;
        this.#offset += n;
        this.#left -= n;
        if (this.#left === 0 && state.at === "padding") this.#next();
      } else {
        const want =
          state.at === "header"
            ? block
            : state.at === "pax"
              ? roundUp(state.size, block)
              : state.want;
        const n = Math.min(want - this.#heldBytes, bytes.length - at);
        this.#held.set(bytes.subarray(at, at + n), this.#heldBytes);
        this.#heldBytes += n;
        at += n;
        this.#offset += n;
        if (this.#heldBytes < want) continue;
        this.#heldBytes = 0;
        const held = this.#held.subarray(0, want);
        if (state.at === "header") this.#header(held, state.pax);
        else if (state.at === "pax") this.#paxData(held, state.size);
        else this.#head(held, state.path);
      }
      if (this.#offset === this.#start) return at;
    }
    return at;
  }

  /** Says that the bytes end here. */
  finish(): ArchiveFault | undefined {
    if (this.#fault !== undefined) return this.#fault;
    if (this.#state.at === "end" ? this.#left === 0 : this.#offset === this.#start) {
      return this.#asked !== "slots" || this.#start === 0 || this.#state.at === "end"
        ? undefined
        : this.#fail("truncated", "the archive ends without the zeros behind its last member");
    }
    return this.#fail("truncated", "the archive ends inside a member");
  }

  #fail(fault: ArchiveFault["fault"], detail: string): ArchiveFault {
    return (this.#fault = new ArchiveFault({ fault, detail, at: this.#start }));
  }

  #header(bytes: Buffer, pax: boolean): void {
    if (this.#asked === "slots" && this.#start !== 0 && isZero(bytes)) {
      this.#left = archiveSize("slots", this.#start) - this.#offset;
      this.#state = { at: "end" };
      return;
    }
    const tar = parseTarHeader(bytes);
    if (typeof tar === "string") {
      const first = this.#start === 0 && !pax;
      this.#fail(
        first ? "not-an-archive" : "tar-header",
        first ? "this is no Qubes backup" : `a tar header whose ${tar} is not in canonical form`,
      );
      return;
    }
    this.#format ??= tar.bare ? "slots" : "qvm-backup";
    if (this.#format === "slots" && !tar.bare) {
      this.#fail("tar-header", "a tar header that says more than slots have");
    } else if (tar.type === "x") {
      if (pax) this.#fail("tar-header", "two extended headers before one member");
      else if (tar.size === 0 || tar.size > paxLimit)
        this.#fail("tar-header", "an extended header of odd size");
      else this.#state = { at: "pax", size: tar.size };
    } else this.#begun(tar, this.#format);
  }

  #paxData(bytes: Buffer, size: number): void {
    if (!isZero(bytes.subarray(size)) || !isPaxTimes(bytes.toString("latin1", 0, size))) {
      this.#fail("tar-header", "an extended header that says more than times");
    } else this.#state = { at: "header", pax: true };
  }

  #begun({ path, size }: TarHeader, format: Format): void {
    const dataStart = this.#offset - this.#start;
    const data = dataStart + roundUp(size, block);
    const length = format === "slots" ? data : roundUp(data + 2 * block, record);
    this.#fault = this.#begin({ path, size, length });
    this.#end = this.#start + length;
    this.#after = length - dataStart - size;
    const head = this.#listing && onlyListed(path) ? 0 : scryptHeader;
    this.#state = { at: "head", path, want: path === heads[0] ? size : head };
  }

  #head(bytes: Buffer, path: string): void {
    if (path === heads[0]) {
      const text = bytes.toString("latin1");
      if (!isBackupHeader(text, this.#listing ? "listing" : this.#format!)) {
        this.#fail("backup-header", "backup-header is not that of an encrypted version 4 backup");
        return;
      }
      if (this.#format === "slots") this.#seal = sealIn(text);
    } else if (bytes.length > 0) {
      const sum = createHash("sha256").update(bytes.subarray(0, 48)).digest().subarray(0, 16);
      if (bytes.toString("latin1", 0, 7) !== "scrypt\0" || !sum.equals(bytes.subarray(48))) {
        this.#fail("scrypt-header", `${printable(path)} does not begin as scrypt writes it`);
        return;
      }
    }
    this.#left = this.#end! - this.#after - this.#offset;
    // A header has no data behind its head: its padding comes next, of which there always is some.
    this.#state = { at: "data" };
  }

  #pad(): void {
    this.#left = this.#after;
    this.#state = { at: "padding" };
    // A member of slots may end with its data.
    if (this.#left === 0) this.#next();
  }

  #next(): void {
    this.#start = this.#offset;
    this.#end = undefined;
    this.#state = { at: "header", pax: false };
  }
}

/**
 * A walk over one archive, or over a pack. Feed it with `push` in pieces of any size, which gives the
 * fault that ends the walk, or undefined; or with `take`, member by member. `finish` gives the members,
 * or what is missing.
 */
export class Walk {
  readonly #list: ListWalk;
  readonly #bytes: MemberWalk;
  readonly #members: Array<Begun> = [];

  constructor(options: WalkOptions = {}) {
    this.#list = new ListWalk(options);
    this.#bytes = new MemberWalk({
      ...options,
      begin: (member) => {
        const fault = this.#list.next(member);
        if (fault === undefined) this.#members.push(member);
        return fault;
      },
    });
  }

  get fault(): ArchiveFault | undefined {
    return this.#bytes.fault;
  }
  /** As of a MemberWalk. */
  get format(): Format | undefined {
    return this.#bytes.format;
  }
  get offset(): number {
    return this.#bytes.offset;
  }
  get end(): number | undefined {
    return this.#bytes.end;
  }
  get atMemberEnd(): boolean {
    return this.#bytes.atMemberEnd;
  }
  get skippable(): number {
    return this.#bytes.skippable;
  }
  skip(bytes: number): void {
    this.#bytes.skip(bytes);
  }
  take(bytes: Uint8Array): number {
    return this.#bytes.take(bytes);
  }
  /** Those that have begun: of the last one, perhaps only the tar header was there yet. */
  get members(): ReadonlyArray<Begun> {
    return this.#members;
  }

  push(bytes: Uint8Array): ArchiveFault | undefined {
    for (let at = 0; at < bytes.length && this.fault === undefined;) {
      at += this.take(bytes.subarray(at));
    }
    return this.fault;
  }

  /** Says that the bytes end here. */
  finish(): ReadonlyArray<Begun> | ArchiveFault {
    return this.#bytes.finish() ?? this.#list.finish() ?? this.#members;
  }
}
