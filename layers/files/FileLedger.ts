/**
 * The ledger as files in one directory, mode 0600 in 0700, never reached through a link:
 * - `ledger.jsonl`: a line for each finished run, each with the hash of the line before;
 * - `ledger.torn`: line ends that a crash tore, kept for the owner to look at;
 * - `ledger.damaged.N`: what a ledger was before it was mended, kept too;
 * - `unfinished.json`: the run under way, and `reserve`, which keeps room for its end;
 * - `audits.json`: what came back of which archive, and when;
 * - `known_servers`: `QUBE KEY` lines as in ssh's known_hosts; the first match wins.
 *
 * What is written is on disk, directory entries included, before a call returns.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import * as Semaphore from "effect/Semaphore";
import { createHash, randomBytes } from "node:crypto";
import { constants, type Stats } from "node:fs";
import * as fs from "node:fs/promises";
import * as path from "node:path";
import type { Env } from "#layers/process/Child";
import { Audit, Entry, Ledger, LedgerError, type Line, Unfinished } from "#services/Ledger";
import { Qube } from "#services/Qubes";
import { PublicKey, Session } from "#src/wire/names";
import { printable } from "#src/say/shown";

const {
  O_APPEND,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
} = constants;

/** XDG base directories: `$XDG_STATE_HOME/qbackup`; a relative value is to be ignored. */
export const stateDirectory = (env: Env, home: string): string => {
  const base = env["XDG_STATE_HOME"];
  const state =
    base !== undefined && path.isAbsolute(base) ? base : path.join(home, ".local/state");
  return path.join(state, "qbackup");
};

const decodeEntry = Schema.decodeUnknownOption(Schema.fromJsonString(Entry));
const encodeEntry = Schema.encodeSync(Entry);
const decodeUnfinished = Schema.decodeUnknownOption(Schema.fromJsonString(Unfinished));
const encodeUnfinished = Schema.encodeSync(Unfinished);
const Audits = Schema.Record(Session, Audit);
const decodeAudits = Schema.decodeUnknownOption(Schema.fromJsonString(Audits));
const isKey = Schema.is(PublicKey);
const isQube = Schema.is(Qube.fields.name);

const hash = (line: Buffer) => createHash("sha256").update(line).digest("hex");

/** An entry as its line, without the newline. */
export const ledgerLine = (
  entry: Omit<Entry, "version" | "previous">,
  previous: string | null,
): string => JSON.stringify(encodeEntry({ version: 1, previous, ...entry }));

export interface Ledgered {
  readonly entries: ReadonlyArray<Entry>;
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

/** Reads ledger.jsonl; whatever is in it, the lines that can be read are. */
export const parseLedger = (bytes: Buffer): Ledgered => {
  const lines: Array<Line> = [];
  const damaged: Array<number> = [];
  const unlinked: Array<number> = [];
  let last: string | null = null;
  let torn: number | undefined;
  let open = false;
  for (let at = 0, number = 1; at < bytes.length; number += 1) {
    const newline = bytes.indexOf(10, at);
    const line = bytes.subarray(at, newline < 0 ? bytes.length : newline);
    const entry = Option.getOrUndefined(decodeEntry(line.toString("utf8")));
    if (entry === undefined) {
      damaged.push(number);
      if (newline < 0) torn = at;
    } else {
      if (entry.previous !== last) unlinked.push(number);
      last = hash(line);
      lines.push({ number, hash: last, entry });
      open = newline < 0;
    }
    at = newline < 0 ? bytes.length : newline + 1;
  }
  return { entries: lines.map(({ entry }) => entry), lines, damaged, unlinked, last, torn, open };
};

/** The readable lines of ledger.jsonl as a chain; those that are linked already are not touched. */
export const relinked = (bytes: Buffer): string => {
  let text = "";
  let last: string | null = null;
  for (const line of bytes.toString("utf8").split("\n")) {
    const entry = Option.getOrUndefined(decodeEntry(line));
    if (entry === undefined) continue;
    const { previous, version: _, ...rest } = entry;
    const linked: string = previous === last ? line : ledgerLine(rest, last);
    last = hash(Buffer.from(linked));
    text += `${linked}\n`;
  }
  return text;
};

const reasons: Readonly<Record<string, string>> = {
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  EROFS: "the file system is read-only",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EIO: "the disk reports an error",
  ELOOP: "it is a link: put the file itself there, or remove the link",
};

/** Thrown inside, with a finished sentence part. */
class Refusal extends Error {}

const absent = (cause: unknown) => {
  if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
  throw cause;
};

const reason = (cause: unknown): string => {
  const { code, path: file } = cause as NodeJS.ErrnoException;
  const text = code === undefined ? undefined : reasons[code];
  if (text === undefined) return printable(cause instanceof Error ? cause.message : String(cause));
  return file === undefined ? text : `${printable(file)}: ${text}`;
};

/** Ours alone to change: not a link, not somebody else's, not writable by others. */
const vet = (what: string, stats: Stats): void => {
  const me = process.getuid!();
  if (stats.uid !== me) {
    throw new Refusal(
      `${printable(what)} belongs to user ${stats.uid}, not to ${me}: run qbackup as its owner`,
    );
  }
  if ((stats.mode & 0o022) !== 0) {
    throw new Refusal(`${printable(what)} can be changed by others: chmod go-w it`);
  }
};

/**
 * Bytes kept free for the end of a run: its mark and its line hold its manifest, 150 bytes for each
 * 100 MiB of the archive, and the mark is written anew beside the old one. Enough for some TiB.
 */
const reserved = 4 << 20;

/** As ENOSPC, where only a part could be written. */
class Full extends Refusal {}
const isFull = (cause: unknown): boolean => {
  const { code } = cause as NodeJS.ErrnoException;
  return cause instanceof Full || code === "ENOSPC" || code === "EDQUOT";
};

/** Owner of what a user namespace does not map: nobody's, and no sign of a person. */
const unmapped = 65_534;

/** What is made above all that is there belongs to whoever runs this: not in somebody else's home. */
const vetAbove = async (directory: string): Promise<void> => {
  const me = process.getuid!();
  for (let at = directory; ; at = path.dirname(at)) {
    const { uid } = await fs.stat(at).catch(() => ({ uid: 0 }));
    if (uid !== me && uid !== 0 && uid !== unmapped) {
      throw new Refusal(
        `${printable(directory)} would lie in a directory of user ${uid}, and this runs as ${me}: run qbackup as its owner, without sudo`,
      );
    }
    if (at === path.dirname(at)) return;
  }
};

/** More than this is no ledger of ours: some 100,000 runs. */
const most = 1 << 28;

/** `directory` is absolute; it is made when first needed. */
export const fileLedger = (directory: string): Layer.Layer<Ledger> =>
  Layer.sync(Ledger, () => {
    const file = (name: string) => path.join(directory, name);
    const one = Semaphore.makeUnsafe(1);
    const attempt = <A>(doing: string, what: () => Promise<A>) =>
      Effect.tryPromise({
        try: what,
        catch: (cause) => new LedgerError({ doing, reason: reason(cause) }),
      }).pipe(Effect.uninterruptible, one.withPermits(1));

    /** The directory, open, for its fsync; undefined where there is none and none is to be made. */
    const withDirectory = async <A>(make: boolean, use: (dir: fs.FileHandle) => Promise<A>) => {
      if (make && (await fs.lstat(directory).catch(absent)) === undefined) {
        await vetAbove(directory);
        await fs.mkdir(directory, { recursive: true, mode: 0o700 });
      }
      let dir: fs.FileHandle;
      try {
        dir = await fs.open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      } catch (cause) {
        const { code } = cause as NodeJS.ErrnoException;
        if (code === "ENOENT" && !make) return undefined;
        if (code !== "ENOTDIR" && code !== "ELOOP") throw cause;
        throw new Refusal(`${printable(directory)} is a link, or no directory: move it away`);
      }
      try {
        vet(directory, await dir.stat());
        return await use(dir);
      } finally {
        await dir.close();
      }
    };

    const withFile = async <A>(
      name: string,
      flags: number,
      use: (handle: fs.FileHandle) => Promise<A>,
    ) => {
      // O_NONBLOCK: a FIFO put in its place must not make this wait.
      const handle = await fs.open(file(name), flags | O_NOFOLLOW | O_NONBLOCK, 0o600);
      try {
        const stats = await handle.stat();
        if (!stats.isFile()) throw new Refusal(`${printable(file(name))} is no regular file`);
        vet(file(name), stats);
        return await use(handle);
      } finally {
        await handle.close();
      }
    };

    const content = async (handle: fs.FileHandle, name: string) => {
      if ((await handle.stat()).size > most) {
        throw new Refusal(`${printable(file(name))} is too large: move it away`);
      }
      return handle.readFile();
    };

    const read = (name: string) =>
      withDirectory(false, () =>
        withFile(name, O_RDONLY, (handle) => content(handle, name)).catch(absent),
      );

    /** In one call, so that a crash tears one line at most. */
    const writeAll = async (handle: fs.FileHandle, bytes: Buffer) => {
      const { bytesWritten } = await handle.write(bytes);
      if (bytesWritten < bytes.length) throw new Full("the disk is full");
    };

    let holdsReserve = false;
    const release = async () => {
      if (holdsReserve) await fs.rm(file("reserve"), { force: true });
      holdsReserve = false;
    };
    const hold = () =>
      withDirectory(true, async (dir) => {
        await fs.rm(file("reserve"), { force: true }); // of a run that was killed
        holdsReserve = true;
        try {
          await withFile("reserve", O_WRONLY | O_CREAT | O_EXCL, async (handle) => {
            // Random, for file systems that store zeros as holes.
            await writeAll(handle, randomBytes(reserved));
            await handle.sync();
          });
          await dir.sync();
        } catch (cause) {
          await release();
          throw cause;
        }
      });
    /** What must be written has the room that was kept for it. */
    const atLast = async <A>(write: () => Promise<A>): Promise<A> => {
      try {
        return await write();
      } catch (cause) {
        if (!isFull(cause) || !holdsReserve) throw cause;
        await release();
        return write();
      }
    };

    /** The old content or the new one, never a part. */
    const replace = (name: string, text: string) =>
      withDirectory(true, async (dir) => {
        // A link in its place would be replaced, not followed; but then somebody has been here.
        await withFile(name, O_RDONLY, async () => {}).catch(absent);
        const next = `${name}.new`;
        await fs.rm(file(next), { force: true });
        try {
          await withFile(next, O_WRONLY | O_CREAT | O_EXCL, async (handle) => {
            await writeAll(handle, Buffer.from(text));
            await handle.sync();
          });
          await fs.rename(file(next), file(name));
        } catch (cause) {
          await fs.rm(file(next), { force: true }).catch(() => {});
          throw cause;
        }
        await dir.sync();
      });

    const append = (entry: Omit<Entry, "version" | "previous">) =>
      withDirectory(true, async (dir) => {
        await withFile("ledger.jsonl", O_RDWR | O_APPEND | O_CREAT, async (handle) => {
          const bytes = await content(handle, "ledger.jsonl");
          const { last, open, torn } = parseLedger(bytes);
          if (torn !== undefined) {
            await withFile("ledger.torn", O_WRONLY | O_APPEND | O_CREAT, async (copy) => {
              await writeAll(copy, Buffer.concat([bytes.subarray(torn), Buffer.from("\n")]));
              await copy.sync();
            });
            await dir.sync();
            await handle.truncate(torn);
          }
          const line = ledgerLine(entry, last);
          try {
            await writeAll(
              handle,
              Buffer.from(`${open && torn === undefined ? "\n" : ""}${line}\n`),
            );
            await handle.sync();
          } catch (cause) {
            await handle.truncate(torn ?? bytes.length).catch(() => {});
            throw cause;
          }
        });
        await dir.sync();
      });

    const mend = async () => {
      const bytes = (await read("ledger.jsonl")) ?? Buffer.alloc(0);
      for (let n = 1; ; n += 1) {
        const kept = file(`ledger.damaged.${n}`);
        try {
          await fs.link(file("ledger.jsonl"), kept);
        } catch (cause) {
          if ((cause as NodeJS.ErrnoException).code === "EEXIST" && n < 1000) continue;
          throw cause;
        }
        await replace("ledger.jsonl", relinked(bytes));
        return kept;
      }
    };

    const pins = async () => {
      const text = (await read("known_servers"))?.toString("utf8") ?? "";
      const lines = text === "" ? [] : text.replace(/\n$/, "").split("\n");
      return lines.map((line, i) => {
        if (/^\s*(#.*)?$/.test(line)) return { line };
        const [qube, key, ...more] = line.trim().split(/\s+/);
        if (more.length === 0 && isQube(qube) && isKey(key)) return { line, qube, key };
        throw new Refusal(
          `${printable(file("known_servers"))}:${i + 1}: expected a qube's name and a server's key`,
        );
      });
    };

    const audits = async (): Promise<ReadonlyMap<string, Audit>> => {
      const bytes = await read("audits.json");
      if (bytes === undefined) return new Map();
      const known = Option.getOrUndefined(decodeAudits(bytes.toString("utf8")));
      if (known !== undefined) return new Map(Object.entries(known));
      throw new Refusal(
        `${printable(file("audits.json"))} is damaged: look at it, then remove it; nothing in it is needed for a restore`,
      );
    };

    return {
      place: directory,
      entries: attempt("read the ledger", async () => {
        const bytes = (await read("ledger.jsonl")) ?? Buffer.alloc(0);
        const { damaged, entries } = parseLedger(bytes);
        return { entries, damaged };
      }),
      chain: attempt("read the ledger", async () => {
        const bytes = (await read("ledger.jsonl")) ?? Buffer.alloc(0);
        const { damaged, lines, unlinked } = parseLedger(bytes);
        return { lines, damaged, unlinked };
      }),
      audits: attempt("read what was audited", audits),
      audited: (sessions, change) =>
        Effect.asVoid(
          attempt("note what was audited", async () => {
            const known = new Map(await audits());
            for (const session of sessions) {
              known.set(session, change(known.get(session) ?? {}, session));
            }
            return replace("audits.json", `${JSON.stringify(Object.fromEntries(known))}\n`);
          }),
        ),
      append: (entry) =>
        Effect.asVoid(attempt("add the run to the ledger", () => atLast(() => append(entry)))),
      mend: attempt("mend the ledger", mend),
      reserve: Effect.acquireRelease(
        Effect.asVoid(attempt("keep room for the end of the run", hold)),
        () => Effect.ignore(attempt("give the room back", release)),
      ),
      unfinished: attempt("read what the last run left", async () => {
        const bytes = await read("unfinished.json");
        if (bytes === undefined) return undefined;
        const run = Option.getOrUndefined(decodeUnfinished(bytes.toString("utf8")));
        if (run !== undefined) return run;
        throw new Refusal(
          `${printable(file("unfinished.json"))} is damaged: look at it, then remove it`,
        );
      }),
      mark: (run) =>
        Effect.asVoid(
          attempt("note the state of the run", async () => {
            if (run !== undefined) {
              const text = `${JSON.stringify(encodeUnfinished(run))}\n`;
              return atLast(() => replace("unfinished.json", text));
            }
            return withDirectory(false, async (dir) => {
              await fs.rm(file("unfinished.json"), { force: true });
              await dir.sync();
            });
          }),
        ),
      pinned: (destination) =>
        attempt(
          "read the known servers",
          async () => (await pins()).find(({ qube }) => qube === destination)?.key,
        ),
      pin: (destination, server) =>
        Effect.asVoid(
          attempt("remember the server's key", async () => {
            if (!isQube(destination) || !isKey(server)) throw new Refusal("it is no name and key");
            const lines = await pins();
            const line = `${destination} ${server}`;
            const at = lines.findIndex(({ qube }) => qube === destination);
            const text = lines.map((old, i) => (i === at ? line : old.line));
            const all = `${(at < 0 ? [...text, line] : text).join("\n")}\n`;
            return atLast(() => replace("known_servers", all));
          }),
        ),
    };
  });
