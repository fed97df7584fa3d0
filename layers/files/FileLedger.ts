/**
 * The ledger as files:
 * - `ledger.jsonl`: a line for each finished run, each with the hash of the line before;
 * - `ledger.torn`: line ends that a crash tore, kept for the owner to look at;
 * - `ledger.jsonl.damaged.N`: what a ledger was before it was mended, kept too.
 *
 * It is read a piece at a time, and written at its end alone: it may grow as it likes.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import * as crypto from "node:crypto";
import { constants, type Stats } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { absent, Refusal, type StateDirectory } from "#layers/files/StateDirectory";
import { Entry, Ledger, type Line } from "#services/Ledger";
import { isInstant, manifestSuffix } from "#src/wire/names";

const { O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_WRONLY } = constants;

const decodeEntry = Schema.decodeUnknownOption(Schema.fromJsonString(Entry));
const encodeEntry = Schema.encodeSync(Entry);

/** Bytes of a line that is still one: a run of 10,000 qubes has less. */
const lineLimit = 1 << 20;

const hex32 = /^[0-9a-f]{32}$/;
const hex64 = /^[0-9a-f]{64}$/;
/** The last letter has bits that no byte fills: they are 0. */
const key = /^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/;
const signature = /^[A-Za-z0-9_-]{85}[AQgw]$/;
const name =
  /^(?=.{1,512}$)[A-Za-z0-9][A-Za-z0-9._+-]{0,127}(?:\/[A-Za-z0-9][A-Za-z0-9._+-]{0,127}){0,7}$/;
/** Days that every month has; of the others, `isInstant` knows. */
const instant =
  /^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])T(?:[01][0-9]|2[0-3])(?::[0-5][0-9]){2}Z$/;
const isText = (value: unknown): value is string => typeof value === "string";
const fits = (form: RegExp, value: unknown) => isText(value) && form.test(value);
const fields = Object.keys(Entry.fields);
/** What every line has; and what stands behind it in those that are plain. */
const least = fields.indexOf("rebuilt");
const ends = [[], ["rebuilt"], ["bytes"], ["bytes", "passphrase"]].map((end) => end.join("\n"));
const counts = "read,sent,seconds";
const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;

const isPlainQube = (qube: Entry["qubes"][number] | null): boolean =>
  typeof qube === "object" &&
  qube !== null &&
  Object.keys(qube).length === 2 &&
  isText(qube.name) &&
  Number.isSafeInteger(qube.qid);

/**
 * Is it plainly an entry, with nothing else in it? What `Entry` says, as this program writes it: 20
 * times as fast, for most of the lines. Where it says no, `Entry` is to be asked.
 */
export const isPlainEntry = (value: unknown): value is Entry => {
  if (typeof value !== "object" || value === null) return false;
  const keys = Object.keys(value);
  if (!ends.includes(keys.slice(least).join("\n"))) return false;
  if (!keys.every((key, i) => (i >= least ? fields.includes(key) : key === fields[i])))
    return false;
  const entry = value as Entry;
  const { asked, bytes } = entry;
  return (
    entry.version === 1 &&
    (entry.previous === null || fits(hex64, entry.previous)) &&
    (fits(instant, entry.finished) || isInstant(entry.finished)) &&
    fits(name, entry.name) &&
    !entry.name.endsWith(manifestSuffix) &&
    fits(hex32, entry.session) &&
    isText(entry.destination) &&
    fits(key, entry.server) &&
    typeof asked === "object" &&
    asked !== null &&
    Object.keys(asked).length === 3 &&
    Array.isArray(asked.qubes) &&
    asked.qubes.every(isText) &&
    typeof asked.includeDom0 === "boolean" &&
    isText(asked.prefix) &&
    Array.isArray(entry.qubes) &&
    entry.qubes.every(isPlainQube) &&
    isText(entry.manifest) &&
    fits(signature, entry.signature) &&
    isText(entry.receipt) &&
    fits(signature, entry.receiptSignature) &&
    (entry.rebuilt === undefined || entry.rebuilt === true) &&
    (entry.passphrase === undefined || isCount(entry.passphrase)) &&
    (bytes === undefined ||
      (typeof bytes === "object" &&
        bytes !== null &&
        Object.keys(bytes).join() === counts &&
        isCount(bytes.read) &&
        isCount(bytes.sent) &&
        isCount(bytes.seconds)))
  );
};

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
};

/** Reads a line without its newline; undefined where it is none. */
export const parseLine = (text: string): Entry | undefined => {
  const value = parsed(text);
  return isPlainEntry(value) ? value : Option.getOrUndefined(decodeEntry(text));
};

/** An entry as its line, without the newline. */
export const ledgerLine = (
  entry: Omit<Entry, "version" | "previous">,
  previous: string | null,
): string => JSON.stringify(encodeEntry({ version: 1, previous, ...entry }));

/** One-shot hashing came with node 20.12; before that, an object a line. */
const hash: (line: Uint8Array) => string =
  typeof crypto.hash === "function"
    ? (line) => crypto.hash("sha256", line, "hex")
    : (line) => crypto.createHash("sha256").update(line).digest("hex");

/** A line as it stands, readable or not. */
interface Raw {
  readonly number: number;
  /** Where it begins, in bytes. */
  readonly at: number;
  /** Without its newline; undefined where they are too many. A view that lasts until `see` returns. */
  readonly bytes: Buffer | undefined;
  /** It ends with a newline. */
  readonly ended: boolean;
}

/** Takes the ledger from byte `from` on, where a line begins, in pieces of any size. */
const rawLines = (see: (line: Raw) => void, from = 0) => {
  let number = 1;
  let at = from;
  let held: Array<Buffer> = [];
  let length = 0;
  const line = (ended: boolean) => {
    const bytes = held.length === 1 ? held[0] : Buffer.concat(held);
    see({ number, at, bytes: length < lineLimit ? bytes : undefined, ended });
    number += 1;
    at += length + 1;
    held = [];
    length = 0;
  };
  return {
    push: (piece: Buffer): void => {
      let start = 0;
      for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, start)) {
        held.push(piece.subarray(start, end));
        length += end - start;
        line(true);
        start = end + 1;
      }
      length += piece.length - start;
      // Of one that is too long already, the bytes are only counted.
      if (start < piece.length && length < lineLimit) held.push(Buffer.from(piece.subarray(start)));
    },
    finish: (): void => {
      if (length > 0) line(false);
    },
  };
};

const entryIn = ({ bytes }: Raw): Entry | undefined =>
  bytes === undefined ? undefined : parseLine(bytes.toString("utf8"));

export interface Ledgered {
  readonly lines: ReadonlyArray<Line>;
  /** Numbers of lines that cannot be read, from 1. */
  readonly damaged: ReadonlyArray<number>;
  /** Numbers of lines that do not link to the readable line before them: one was changed or removed. */
  readonly unlinked: ReadonlyArray<number>;
  /** The hash that the next line has to link to. */
  readonly last: string | null;
  /** Where an unreadable last line without a newline begins, in bytes. */
  readonly torn: number | undefined;
  /** The last line is whole, but for its newline. */
  readonly open: boolean;
}

/**
 * Reads ledger.jsonl in pieces, from byte `from` on; whatever is in it, the lines that can be read are.
 * `within`: that is in the middle of a line, which is left out.
 */
const ledgerReader = (from = 0, within = false) => {
  const lines: Array<Line> = [];
  const damaged: Array<number> = [];
  const unlinked: Array<number> = [];
  let last: string | null = null;
  let torn: number | undefined;
  let open = false;
  const { finish, push } = rawLines((raw) => {
    if (within && raw.number === 1) return;
    const entry = entryIn(raw);
    if (entry === undefined) {
      damaged.push(raw.number);
      if (!raw.ended) torn = raw.at;
      return;
    }
    if (entry.previous !== last) unlinked.push(raw.number);
    last = hash(raw.bytes!);
    lines.push({ number: raw.number, hash: last, entry });
    open = !raw.ended;
  }, from);
  return {
    push,
    finish: (): Ledgered => {
      finish();
      return { lines, damaged, unlinked, last, torn, open };
    },
  };
};

/** As one piece. */
export const parseLedger = (bytes: Buffer): Ledgered => {
  const reader = ledgerReader();
  reader.push(bytes);
  return reader.finish();
};

/** Takes ledger.jsonl in pieces, and gives its readable lines as a chain; those linked are not touched. */
const relinker = () => {
  let last: string | null = null;
  let text: Array<Buffer> = [];
  const { finish, push } = rawLines((raw) => {
    const entry = entryIn(raw);
    if (entry === undefined) return;
    const { previous, version: _, ...rest } = entry;
    const line = previous === last ? Buffer.from(raw.bytes!) : Buffer.from(ledgerLine(rest, last));
    last = hash(line);
    text.push(line, Buffer.from("\n"));
  });
  /** What has come together since the last time. */
  const taken = () => {
    const bytes = Buffer.concat(text);
    text = [];
    return bytes;
  };
  return {
    push: (piece: Buffer): Buffer => {
      push(piece);
      return taken();
    },
    finish: (): Buffer => {
      finish();
      return taken();
    },
  };
};

export const relinked = (bytes: Buffer): Buffer => {
  const chain = relinker();
  return Buffer.concat([chain.push(bytes), chain.finish()]);
};

const pieceSize = 1 << 18;

/** The bytes from `from` on, in a buffer that is used again for each piece. */
async function* piecesOf(handle: FileHandle, from = 0): AsyncGenerator<Buffer> {
  const buffer = Buffer.alloc(pieceSize);
  for (let at = from; ;) {
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, at);
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    at += bytesRead;
  }
}

const readFrom = async (handle: FileHandle, from = 0, within = false): Promise<Ledgered> => {
  const reader = ledgerReader(from, within);
  for await (const piece of piecesOf(handle, from)) reader.push(piece);
  return reader.finish();
};

/** What the next line links to, and what is wrong with the last one; as little is read as tells it. */
const endOf = async (handle: FileHandle, size: number): Promise<Ledgered> => {
  for (let bytes = 1 << 14; bytes < size; bytes *= 8) {
    const end = await readFrom(handle, size - bytes, true);
    if (end.lines.length > 0) return end;
  }
  return readFrom(handle);
};

export const fileLedger = (state: StateDirectory): Layer.Layer<Ledger> => {
  /** What was read last, for as long as anything else holds it, and of which state of the file. */
  let held: { readonly of: string; readonly ledgered: WeakRef<Ledgered> } | undefined;
  const readWhole = async (handle: FileHandle, { ctimeMs, ino, mtimeMs, size }: Stats) => {
    const of = [ino, size, mtimeMs, ctimeMs].join(" ");
    const known = held?.of === of ? held.ledgered.deref() : undefined;
    const ledgered = known ?? (await readFrom(handle));
    held = { of, ledgered: new WeakRef(ledgered) };
    return ledgered;
  };
  const read = async () =>
    (await state.withDirectory(false, () =>
      state.withFile("ledger.jsonl", O_RDONLY, readWhole).catch(absent),
    )) ?? ledgerReader().finish();

  const append = (entry: Omit<Entry, "version" | "previous">) =>
    state.withDirectory(true, async (dir) => {
      await state.withFile(
        "ledger.jsonl",
        O_RDWR | O_APPEND | O_CREAT,
        async (handle, { size }) => {
          const { last, open, torn } = await endOf(handle, size);
          if (torn !== undefined) {
            await state.withFile("ledger.torn", O_WRONLY | O_APPEND | O_CREAT, async (copy) => {
              for await (const piece of piecesOf(handle, torn)) await state.writeAll(copy, piece);
              await state.writeAll(copy, Buffer.from("\n"));
              await copy.sync();
            });
            await dir.sync();
            await handle.truncate(torn);
          }
          const line = ledgerLine(entry, last);
          try {
            const newline = open && torn === undefined ? "\n" : "";
            await state.writeAll(handle, Buffer.from(`${newline}${line}\n`));
            await handle.sync();
          } catch (cause) {
            await handle.truncate(torn ?? size).catch(() => {});
            throw cause;
          }
        },
      );
      await dir.sync();
    });

  const mend = async () => {
    const kept = await state.keep("ledger.jsonl", "damaged");
    if (kept === undefined) throw new Refusal("there is no ledger");
    await state.replace("ledger.jsonl", (handle) =>
      state.withFile("ledger.jsonl", O_RDONLY, async (old) => {
        const chain = relinker();
        for await (const piece of piecesOf(old)) await state.writeAll(handle, chain.push(piece));
        await state.writeAll(handle, chain.finish());
      }),
    );
    return kept;
  };

  return Layer.succeed(Ledger, {
    place: state.directory,
    entries: state.attempt("read the ledger", async () => {
      const { damaged, lines } = await read();
      return { entries: lines.map(({ entry }) => entry), damaged };
    }),
    chain: state.attempt("read the ledger", async () => {
      const { damaged, lines, unlinked } = await read();
      return { lines, damaged, unlinked };
    }),
    append: (entry) =>
      Effect.asVoid(
        state.attempt("add the run to the ledger", () => state.atLast(() => append(entry))),
      ),
    mend: state.attempt("mend the ledger", mend),
  });
};
