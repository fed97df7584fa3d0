/**
 * The members of a version 4 archive, in order, each made ready as a file of its own in qubesd's
 * temporary directory, as the genuine code does it (docs/qubes.md, Archive).
 */
import * as child_process from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { Readable } from "node:stream";
import * as zlib from "node:zlib";
import { imageOf, usageOf } from "./images.ts";
import { qubesXml } from "./qubesxml.ts";
import { encryption, fillerHead, SCRYPT_HEAD, SCRYPT_TAIL } from "./scrypt.ts";
import type { Qube, Settings } from "./state.ts";
import { deviceTar, innerLength, innerTar, OUTER_HEAD, outerHead, outerLength } from "./tar.ts";
import type { Content, TarVersion } from "./tar.ts";

/** A file that goes into the archive, cut into one or more members. */
interface PlannedFile {
  readonly name: string;
  readonly content: Content;
  readonly qid: number | null;
  readonly size: number;
}

export interface Plan {
  readonly files: ReadonlyArray<PlannedFile>;
  readonly included: ReadonlyArray<Qube>;
  readonly sizes: ReadonlyMap<number, number>;
  readonly total: number;
}

export interface Member {
  readonly name: string;
  /** Bytes of data. */
  readonly size: number;
  /** The member as a tar archive, or in raw archives its beginning. */
  readonly file: string;
  /** Bytes that the sender makes up and puts behind `file` (raw archives only). */
  readonly filler: number;
  readonly qid: number | null;
  /** The number of the chunk; null for the two headers. */
  readonly chunk: number | null;
  readonly lastOfFile: boolean;
  readonly lastOfAll: boolean;
}

const treeSize = (directory: string): number =>
  fs.existsSync(directory)
    ? fs.readdirSync(directory, { withFileTypes: true }).reduce((sum, entry) => {
        const full = path.join(directory, entry.name);
        if (entry.isDirectory()) return sum + treeSize(full);
        return sum + (entry.isFile() ? fs.lstatSync(full).size : 0);
      }, 4096)
    : 0;

const filesOf = (dir: string, settings: Settings, qube: Qube): Array<PlannedFile> => {
  const { qid } = qube;
  if (qid === 0) {
    const directory = path.join(dir, "home", "dom0");
    const name = `dom0-home/${settings.dom0User}`;
    return [{ name, content: { kind: "tree", directory }, qid, size: treeSize(directory) }];
  }
  const files: Array<PlannedFile> = [];
  for (const volume of ["root", "private"]) {
    const described = qube.volumes[volume];
    if (described === undefined) continue;
    const image = imageOf(qube, volume, described);
    const content: Content = { kind: "image", image };
    files.push({ name: `vm${qid}/${volume}.img`, content, qid, size: usageOf(image) });
  }
  for (const [name, text] of Object.entries(qube.files)) {
    const content: Content = { kind: "text", text, qubesXml: false };
    files.push({ name: `vm${qid}/${name}`, content, qid, size: Buffer.byteLength(text) });
  }
  if (files.length === 0) {
    const content: Content = { kind: "text", text: "", qubesXml: false };
    files.push({ name: `vm${qid}/empty`, content, qid, size: 0 });
  }
  return files;
};

/** qubes.xml describes every qube; `included`, in this order, are those whose files follow. */
export const planBackup = (
  dir: string,
  settings: Settings,
  qubes: ReadonlyArray<Qube>,
  included: ReadonlyArray<Qube>,
): Plan => {
  // dom0's home is always the last.
  const ordered = [
    ...included.filter((qube) => qube.qid !== 0),
    ...included.filter((qube) => qube.qid === 0),
  ];
  const files = ordered.flatMap((qube) => filesOf(dir, settings, qube));
  const sizes = new Map<number, number>();
  for (const { qid, size } of files) {
    if (qid !== null) sizes.set(qid, (sizes.get(qid) ?? 0) + size);
  }
  const text = qubesXml(settings, qubes, sizes);
  const xml: PlannedFile = {
    name: "qubes.xml",
    content: { kind: "text", text, qubesXml: true },
    qid: null,
    size: Buffer.byteLength(text),
  };
  return {
    files: [xml, ...files],
    included: ordered,
    sizes,
    total: [...sizes.values()].reduce((sum, size) => sum + size, 0),
  };
};

export interface Recipe {
  readonly settings: Settings;
  readonly passphrase: string;
  readonly backupId: string;
  /** A program, or null for no compression. */
  readonly filter: string | null;
  /** Where members are made ready. */
  readonly tmp: string;
  /** Ends what reads the volumes. */
  readonly cancelled: AbortSignal;
}

/** What the user is told. */
export class Unarchived extends Error {}

/** Writes one member's archive, growing. What no longer fits on the disk is lost without a word. */
class Staging {
  readonly file: string;
  readonly #fd: number;
  #at = OUTER_HEAD;
  #full = false;

  readonly #tar: TarVersion;

  constructor(file: string, tar: TarVersion) {
    this.file = file;
    this.#tar = tar;
    this.#fd = fs.openSync(file, "w");
  }

  append(bytes: Buffer): void {
    let done = 0;
    while (done < bytes.length && !this.#full) {
      try {
        const written = fs.writeSync(this.#fd, bytes, done, bytes.length - done, this.#at);
        done += written;
        this.#at += written;
      } catch (error) {
        // The exit code of scrypt is not looked at (docs/qubes.md, Temporary files).
        if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
        this.#full = true;
      }
    }
  }

  finish(name: string): number {
    const size = this.#at - OUTER_HEAD;
    const head = outerHead(name, size, this.#tar);
    fs.writeSync(this.#fd, head, 0, head.length, 0);
    fs.ftruncateSync(this.#fd, outerLength(size));
    fs.closeSync(this.#fd);
    return size;
  }
}

let staged = 0;
const stagedFile = (recipe: Recipe): string => path.join(recipe.tmp, `member-${staged++}`);

const stage = (recipe: Recipe, name: string, parts: ReadonlyArray<Buffer>) => {
  const staging = new Staging(stagedFile(recipe), recipe.settings.tar);
  for (const part of parts) staging.append(part);
  return { name, size: staging.finish(name), file: staging.file, filler: 0 };
};

const headers = (recipe: Recipe): Array<Member> => {
  const text = Buffer.from(
    [
      "version=4",
      "encrypted=True",
      `compressed=${recipe.filter === null ? "False" : "True"}`,
      `compression-filter=${recipe.filter ?? "gzip"}`,
      "hmac-algorithm=scrypt",
      `backup-id=${recipe.backupId}`,
      "",
    ].join("\n"),
  );
  const name = "backup-header";
  const sealed = encryption(`${name}!${recipe.passphrase}`, recipe.settings);
  const body = sealed.update(text);
  const rest = { qid: null, chunk: null, lastOfFile: true, lastOfAll: false };
  return [
    { ...stage(recipe, name, [text]), ...rest },
    { ...stage(recipe, `${name}.hmac`, [sealed.head, body, sealed.tail()]), ...rest },
  ];
};

/**
 * The stream of a file through the compressor, which GNU tar runs by a shell. When that ends badly, or
 * before it has read all, so does tar; the program for block devices only notices the latter.
 */
async function* compressed(recipe: Recipe, file: PlannedFile): AsyncGenerator<Buffer> {
  const { content, name } = file;
  const { cancelled, filter, settings } = recipe;
  const device = content.kind === "image" && settings.blockDevices;
  const source = device ? deviceTar(name, content.image) : innerTar(name, content);
  const plain = Readable.from(source, { objectMode: false, highWaterMark: 4 * 1024 * 1024 });
  if (filter === null) return yield* plain;
  if (filter === "gzip") return yield* plain.pipe(zlib.createGzip({ chunkSize: 256 * 1024 }));
  const [program, ...args] = device ? [filter] : ["/bin/sh", "-c", filter];
  const child = child_process.spawn(program!, args, {
    stdio: ["pipe", "pipe", "ignore"],
    cwd: "/",
    env: { PATH: "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", LANG: "C.UTF-8" },
  });
  const exited = new Promise<boolean>((resolve) => {
    child.on("error", () => resolve(false));
    child.on("close", (code) => resolve(code === 0));
  });
  let cut = false;
  child.stdin.on("error", () => (cut = true));
  const stop = () => {
    plain.destroy();
    child.stdin.destroy();
  };
  cancelled.addEventListener("abort", stop);
  plain.on("error", () => {});
  plain.pipe(child.stdin);
  yield* child.stdout;
  const well = await exited;
  cancelled.removeEventListener("abort", stop);
  if (cut || !(well || device)) {
    throw new Unarchived(`Failed to archive ${name} file`);
  }
}

const numbered = (file: PlannedFile, chunk: number): string =>
  `${file.name}.${String(chunk).padStart(3, "0")}.enc`;

/**
 * Chunks of one file. A chunk that is exactly full is followed by another one, be it empty: so the
 * last one is always smaller than a full one.
 */
async function* chunksOf(recipe: Recipe, file: PlannedFile, lastFile: boolean) {
  const { settings } = recipe;
  const stream = compressed(recipe, file);
  const source = stream[Symbol.asyncIterator]();
  let rest: Buffer = Buffer.alloc(0);
  for (let chunk = 0, last = false; !last; chunk++) {
    const name = numbered(file, chunk);
    const passphrase = `${recipe.backupId}!${name.replace(/\.enc$/, "")}!${recipe.passphrase}`;
    const sealed = encryption(passphrase, settings);
    const staging = new Staging(stagedFile(recipe), recipe.settings.tar);
    staging.append(sealed.head);
    let room = settings.chunkSize;
    while (room > 0) {
      if (rest.length === 0) {
        const next = await source.next();
        if (next.done === true) break;
        rest = next.value;
        continue;
      }
      const part = rest.subarray(0, room);
      rest = rest.subarray(part.length);
      room -= part.length;
      staging.append(sealed.update(part));
    }
    last = room > 0;
    staging.append(sealed.tail());
    yield member(file, chunk, last, lastFile, {
      name,
      size: staging.finish(name),
      file: staging.file,
      filler: 0,
    });
  }
}

const member = (
  file: PlannedFile,
  chunk: number,
  last: boolean,
  lastFile: boolean,
  made: Pick<Member, "name" | "size" | "file" | "filler">,
): Member => ({
  ...made,
  qid: file.qid,
  chunk,
  lastOfFile: last,
  lastOfAll: last && lastFile,
});

function* rawChunksOf(recipe: Recipe, file: PlannedFile, lastFile: boolean): Generator<Member> {
  const { settings } = recipe;
  let left = innerLength(file.name, file.content);
  for (let chunk = 0, last = false; !last; chunk++) {
    const plain = Math.min(left, settings.chunkSize);
    left -= plain;
    last = plain < settings.chunkSize;
    const name = numbered(file, chunk);
    const made = rawMember(recipe, name, plain + SCRYPT_HEAD + SCRYPT_TAIL);
    yield member(file, chunk, last, lastFile, made);
  }
}

const rawMember = (recipe: Recipe, name: string, size: number) => {
  const file = stagedFile(recipe);
  fs.writeFileSync(
    file,
    Buffer.concat([outerHead(name, size, recipe.settings.tar), fillerHead(recipe.settings)]),
  );
  return { name, size, file, filler: size - SCRYPT_HEAD };
};

export async function* membersOf(recipe: Recipe, plan: Plan): AsyncGenerator<Member> {
  yield* headers(recipe);
  for (const [index, file] of plan.files.entries()) {
    const lastFile = index === plan.files.length - 1;
    // qubes.xml is small and always genuine.
    if (recipe.settings.raw && index > 0) yield* rawChunksOf(recipe, file, lastFile);
    else yield* chunksOf(recipe, file, lastFile);
  }
}

/** The same bytes under another name or cut to another size; still well formed. */
export const remade = (
  recipe: Recipe,
  from: Member,
  change: { readonly name?: string; readonly size?: number },
): Member => {
  const name = change.name ?? from.name;
  const size = Math.min(change.size ?? from.size, from.size);
  const filler = Math.max(0, from.filler - (from.size - size));
  const file = stagedFile(recipe);
  fs.copyFileSync(from.file, file);
  const fd = fs.openSync(file, "r+");
  const head = outerHead(name, size, recipe.settings.tar);
  fs.writeSync(fd, head, 0, head.length, 0);
  if (from.filler === 0) {
    // What was cut off must not shine through in the padding.
    fs.ftruncateSync(fd, OUTER_HEAD + size);
    fs.ftruncateSync(fd, outerLength(size));
  }
  fs.closeSync(fd);
  return { ...from, name, size, file, filler };
};

/** Turns one byte of a member over. */
export const damaged = (from: Member, offset: number): Member => {
  const fd = fs.openSync(from.file, "r+");
  const byte = Buffer.alloc(1);
  fs.readSync(fd, byte, 0, 1, offset);
  byte.writeUInt8(byte.readUInt8(0) ^ 1, 0);
  fs.writeSync(fd, byte, 0, 1, offset);
  fs.closeSync(fd);
  return from;
};

export const backupId = (): string => {
  const zone = new Date().getTimezoneOffset() * 60_000;
  const text = new Date(Date.now() - zone).toISOString().replace(/[-:]/g, "").slice(0, 15);
  return `${text}-${process.pid}`;
};
