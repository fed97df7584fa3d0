/**
 * The structure of a Qubes version 4 backup, walked as it streams by.
 *
 * An archive is a run of small tar archives, one for each member, without an end mark, and
 * qvm-backup-restore does not notice missing parts. So every rule that can be checked without the
 * passphrase is checked here; what an archive *should* contain only dom0 knows, and passes as
 * `expected`. Facts: docs/qubes.md, Archive, and the genuine samples.
 */
import { createHash } from "node:crypto";
import { Option, Schema } from "effect";
import { printable } from "#src/say/shown";
import { type Member, memberLimit } from "#src/proof/manifest";

/** Bytes of a full chunk as it lies in the archive: 100 MiB and what scrypt adds. */
export const fullChunk = 104_857_728;
/** Every member starts on a multiple of this: GNU tar's record. */
const record = 10_240;
const block = 512;
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

export interface WalkOptions {
  /** Bytes of a full chunk; only small samples have another one. */
  readonly fullChunk?: number;
  /** The directories that must be there, and no others: `vm7`, `dom0-home`. */
  readonly expected?: ReadonlySet<string>;
}

const heads = ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"] as const;
/** The files that a qube can have (R4.3); `empty` stands for a qube without any. */
const chunked =
  /^(?:(vm[1-9][0-9]{0,9})\/(?:private\.img|root\.img|firewall\.xml|notes\.txt|whitelisted-appmenus\.list|empty)|(dom0-home)\/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})\.([0-9]{3}|[1-9][0-9]{3,5})\.enc$/;

const BackupHeader = Schema.Struct({
  version: Schema.Literal("4"),
  encrypted: Schema.Literal("True"),
  compressed: Schema.Literals(["True", "False"]),
  "compression-filter": Schema.optionalKey(
    Schema.String.check(Schema.isPattern(/^[A-Za-z0-9._+-]{1,64}$/)),
  ),
  "hmac-algorithm": Schema.Literal("scrypt"),
  "crypto-algorithm": Schema.optionalKey(Schema.Literal("scrypt")),
  "backup-id": Schema.String.check(Schema.isPattern(/^[0-9]{8}T[0-9]{6}-[0-9]{1,10}$/)),
});
const decodeBackupHeader = Schema.decodeUnknownOption(BackupHeader, { onExcessProperty: "error" });

const isBackupHeader = (text: string): boolean => {
  const lines = text.split("\n");
  if (lines.pop() !== "" || lines[0] !== "version=4") return false;
  const pairs = lines.map((line): [string, string] => {
    const at = line.indexOf("=");
    return [line.slice(0, Math.max(at, 0)), line.slice(at + 1)];
  });
  return (
    new Set(pairs.map(([key]) => key)).size === pairs.length &&
    Option.isSome(decodeBackupHeader(Object.fromEntries(pairs)))
  );
};

const isZero = (bytes: Uint8Array): boolean => {
  // Buffer.compare against zeros is native; a loop over the padding of every member is not.
  return Buffer.compare(bytes, zeros.subarray(0, bytes.length)) === 0;
};
const zeros = new Uint8Array(record);

/** `digits` octal digits and the given end: the one way in which GNU tar writes a number. */
const octal = (header: Buffer, at: number, digits: number, end = "\0"): number | undefined => {
  const field = header.toString("latin1", at, at + digits + end.length);
  return field.endsWith(end) && /^[0-7]+$/.test(field.slice(0, digits))
    ? Number.parseInt(field.slice(0, digits), 8)
    : undefined;
};
/** A text padded with NULs, without any after the first one but NULs. */
const padded = (header: Buffer, at: number, length: number): string | undefined => {
  const text = header.toString("latin1", at, at + length).replace(/\0+$/, "");
  return text.includes("\0") ? undefined : text;
};

interface TarHeader {
  readonly type: "x" | "0";
  readonly path: string;
  readonly size: number;
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
  if (octal(header, 136, 11) === undefined) return "time";
  if (!isZero(header.subarray(157, 257))) return "link";
  // qubesd runs as root; an extended header bears no names.
  for (const at of [265, 297]) {
    const name = padded(header, at, 32);
    if (name !== "" && name !== "root") return "owner";
  }
  const devices = header.toString("latin1", 329, 345);
  if (devices !== "\0".repeat(16) && devices !== "0000000\x000000000\0") return "device";
  if (!isZero(header.subarray(345, block))) return "prefix";
  const path = padded(header, 0, 100);
  return path === undefined || path === "" ? "path" : { type, path, size };
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

/** Where the walk stands inside a member. */
type State =
  | { readonly at: "header"; readonly pax: boolean }
  | { readonly at: "pax"; readonly size: number }
  /** The first bytes of the data, which say something about it. */
  | { readonly at: "head"; readonly tar: TarHeader; readonly want: number }
  | { readonly at: "data" }
  | { readonly at: "padding" };

const roundUp = (n: number, step: number): number => Math.ceil(n / step) * step;

/**
 * A walk over one archive. Feed it with `push` in pieces of any size; each gives the fault that ends
 * the walk, or undefined. `finish` gives the members, or what is missing.
 */
export class Walk {
  readonly #fullChunk: number;
  readonly #expected: ReadonlySet<string> | undefined;
  readonly #members: Array<Member> = [];
  readonly #files = new Set<string>();
  readonly #seen = new Set<string>();
  #state: State = { at: "header", pax: false };
  /** Bytes collected for the present header or head. */
  readonly #held = Buffer.alloc(Math.max(paxLimit, headerLimit, block));
  #heldBytes = 0;
  #offset = 0;
  #memberStart = 0;
  /** Bytes to come in the state "data" or "padding". */
  #left = 0;
  #after = 0;
  #file: { readonly name: string; readonly chunk: number; readonly full: boolean } | undefined;
  #fault: ArchiveFault | undefined;

  constructor(options: WalkOptions = {}) {
    this.#fullChunk = options.fullChunk ?? fullChunk;
    this.#expected = options.expected;
  }

  /** Bytes walked so far. */
  get offset(): number {
    return this.#offset;
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

  push(bytes: Uint8Array): ArchiveFault | undefined {
    let at = 0;
    while (at < bytes.length && this.#fault === undefined) {
      const state = this.#state;
      if (state.at === "data") {
        const n = Math.min(this.#left, bytes.length - at);
        this.skip(n);
        at += n;
      } else if (state.at === "padding") {
        const n = Math.min(this.#left, bytes.length - at, record);
        if (!isZero(bytes.subarray(at, at + n))) {
          return this.#fail("padding", "bytes that are not zero behind a member");
        }
        at += n;
        this.#offset += n;
        this.#left -= n;
        if (this.#left === 0) this.#endMember();
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
        if (this.#heldBytes === want) {
          this.#heldBytes = 0;
          const held = this.#held.subarray(0, want);
          if (state.at === "header") this.#header(held, state.pax);
          else if (state.at === "pax") this.#paxData(held, state.size);
          else this.#head(held, state.tar);
        }
      }
    }
    return this.#fault;
  }

  /** Says that the bytes end here. */
  finish(): ReadonlyArray<Member> | ArchiveFault {
    if (this.#fault !== undefined) return this.#fault;
    if (this.#offset === 0) return this.#fail("not-an-archive", "there is nothing in it");
    if (this.#state.at !== "header" || this.#state.pax || this.#heldBytes > 0) {
      return this.#fail("truncated", "the archive ends inside a member");
    }
    if (this.#members.length < heads.length) {
      return this.#fail("truncated", `the archive ends before ${heads[this.#members.length]}`);
    }
    const tail = this.#closeFile();
    if (tail !== undefined) return tail;
    if (this.#seen.size === 0) return this.#fail("missing-qube", "the archive has no qube in it");
    const missing = [...(this.#expected ?? [])].filter((id) => !this.#seen.has(id));
    if (missing.length > 0) {
      return this.#fail("missing-qube", `the archive has nothing of ${missing.join(", ")}`);
    }
    return this.#members;
  }

  #fail(fault: ArchiveFault["fault"], detail: string): ArchiveFault {
    return (this.#fault ??= new ArchiveFault({ fault, detail, at: this.#memberStart }));
  }

  #header(bytes: Buffer, pax: boolean): void {
    const tar = parseTarHeader(bytes);
    if (typeof tar === "string") {
      const first = this.#members.length === 0 && !pax;
      this.#fail(
        first ? "not-an-archive" : "tar-header",
        first ? "this is no Qubes backup" : `a tar header whose ${tar} is not in canonical form`,
      );
    } else if (tar.type === "x") {
      if (pax) this.#fail("tar-header", "two extended headers before one member");
      else if (tar.size === 0 || tar.size > paxLimit)
        this.#fail("tar-header", "an extended header of odd size");
      else this.#state = { at: "pax", size: tar.size };
    } else this.#begin(tar);
  }

  #paxData(bytes: Buffer, size: number): void {
    if (!isZero(bytes.subarray(size)) || !isPaxTimes(bytes.toString("latin1", 0, size))) {
      this.#fail("tar-header", "an extended header that says more than times");
    } else this.#state = { at: "header", pax: true };
  }

  /** Decides whether a member may stand here, by its path and size alone. */
  #begin(tar: TarHeader): void {
    if (this.#members.length >= memberLimit) {
      this.#fail("too-many-members", `more than ${memberLimit} members`);
      return;
    }
    const index = this.#members.length;
    const shown = printable(tar.path);
    const head = heads[index];
    if (head !== undefined) {
      if (tar.path !== head) {
        this.#fail(index === 0 ? "not-an-archive" : "order", `${shown} stands where ${head} must`);
        return;
      }
    } else {
      const fault = this.#chunk(tar, shown);
      if (fault !== undefined) return;
    }
    const encrypted = index > 0;
    if (encrypted && tar.size < scryptOverhead) {
      this.#fail("short-chunk", `${shown} has ${tar.size} bytes, fewer than scrypt writes`);
      return;
    }
    if (tar.size > this.#fullChunk) {
      this.#fail("long-chunk", `${shown} has ${tar.size} bytes, more than a chunk can have`);
      return;
    }
    if (index === 0 && (tar.size === 0 || tar.size > headerLimit)) {
      this.#fail("backup-header", `backup-header has ${tar.size} bytes`);
      return;
    }
    const start = this.#memberStart;
    const dataStart = this.#offset - start;
    const length = roundUp(dataStart + roundUp(tar.size, block) + 2 * block, record);
    this.#members.push({ path: tar.path, start, length, size: tar.size });
    this.#after = length - dataStart - tar.size;
    this.#state = { at: "head", tar, want: encrypted ? scryptHeader : tar.size };
  }

  /** The rules for what stands behind the three heads. */
  #chunk(tar: TarHeader, shown: string): ArchiveFault | undefined {
    const match = chunked.exec(tar.path);
    if (match === null) {
      if (this.#members.some((member) => member.path === tar.path)) {
        return this.#fail("duplicate", `${shown} is there twice`);
      }
      return this.#fail("unknown-member", `${shown} is not a member that a Qubes backup has`);
    }
    const id = match[1] ?? match[2]!;
    const number = Number(match[3]);
    const name = tar.path.slice(0, tar.path.length - match[3]!.length - ".enc".length - 1);
    const file = this.#file;
    if (file?.name === name) {
      if (number <= file.chunk) return this.#fail("duplicate", `${shown} is there twice`);
      if (number !== file.chunk + 1) {
        return this.#fail("gap", `${shown} stands where chunk ${file.chunk + 1} must`);
      }
      if (!file.full) {
        return this.#fail("short-chunk", `chunk ${file.chunk} of ${printable(name)} is cut short`);
      }
    } else {
      const tail = this.#closeFile();
      if (tail !== undefined) return tail;
      if (this.#files.has(name)) {
        return this.#fail("duplicate", `${shown} comes after the end of its file`);
      }
      if (number !== 0) return this.#fail("gap", `${shown} is there, but not the chunks before it`);
      if (this.#expected !== undefined && !this.#expected.has(id)) {
        return this.#fail("unexpected-qube", `${shown} is of a qube that was not asked for`);
      }
      if (id !== "dom0-home" && this.#seen.has("dom0-home")) {
        return this.#fail("order", `${shown} stands behind dom0-home`);
      }
      this.#files.add(name);
      this.#seen.add(id);
    }
    this.#file = { name, chunk: number, full: tar.size === this.#fullChunk };
    return undefined;
  }

  /** The last chunk of a file is always smaller than a full one: a full one has lost its tail. */
  #closeFile(): ArchiveFault | undefined {
    const file = this.#file;
    return file?.full === true
      ? this.#fail(
          "lost-tail",
          `${printable(file.name)} ends with a full chunk, so its tail is lost`,
        )
      : undefined;
  }

  #head(bytes: Buffer, tar: TarHeader): void {
    if (tar.path === "backup-header") {
      if (!isBackupHeader(bytes.toString("latin1"))) {
        this.#fail("backup-header", "backup-header is not that of an encrypted version 4 backup");
        return;
      }
    } else {
      const sum = createHash("sha256").update(bytes.subarray(0, 48)).digest().subarray(0, 16);
      if (bytes.toString("latin1", 0, 7) !== "scrypt\0" || !sum.equals(bytes.subarray(48))) {
        this.#fail("scrypt-header", `${printable(tar.path)} does not begin as scrypt writes it`);
        return;
      }
    }
    this.#left = tar.size - bytes.length;
    this.#state = { at: "data" };
  }

  #pad(): void {
    this.#left = this.#after;
    this.#state = { at: "padding" };
  }

  #endMember(): void {
    this.#memberStart = this.#offset;
    this.#state = { at: "header", pax: false };
  }
}
