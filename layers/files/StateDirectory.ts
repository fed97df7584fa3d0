/**
 * The directory of dom0's books: 0700, its files 0600, never reached through a link, nothing in it that
 * somebody else could have put there. What is written is on disk, directory entries included, before a
 * call returns; and room for the end of a run is kept while one is under way.
 */
import * as Effect from "effect/Effect";
import * as Semaphore from "effect/Semaphore";
import { randomBytes } from "node:crypto";
import { constants, existsSync, mkdirSync, type Stats } from "node:fs";
import * as fs from "node:fs/promises";
import * as path from "node:path";
import type { Env } from "#layers/process/Child";
import { LedgerError } from "#services/Ledger";
import { printable } from "#src/say/shown";

const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = constants;

/** XDG base directories: `$XDG_STATE_HOME/qbackup`; a relative value is to be ignored. */
export const statePath = (env: Env, home: string): string => {
  const base = env["XDG_STATE_HOME"];
  const state =
    base !== undefined && path.isAbsolute(base) ? base : path.join(home, ".local/state");
  return path.join(state, "qbackup");
};

const free = "free space in dom0's home, then run it again";
const own = "it must belong to the user who runs qbackup, and only to that one";
const seeDisk = "see journalctl -b, and the file system of dom0's home";

/** By the kernel's code: what it means, and what to do. */
const reasons: Readonly<Record<string, readonly [reason: string, hint: string]>> = {
  ENOSPC: ["the disk is full", free],
  EDQUOT: ["the disk quota is used up", free],
  EROFS: ["the file system is read-only", seeDisk],
  EACCES: ["permission denied", own],
  EPERM: ["permission denied", own],
  EIO: ["the disk reports an error", seeDisk],
  ELOOP: ["it is a link", "put the file itself there, or remove the link"],
};

/** Thrown inside, with a finished sentence part, and what to do about it. */
export class Refusal extends Error {
  readonly hint: string | undefined;
  constructor(reason: string, hint?: string) {
    super(reason);
    this.hint = hint;
  }
}

const codeOf = (cause: unknown) => (cause as NodeJS.ErrnoException).code;

/** For `catch`: undefined where there is none. */
export const absent = (cause: unknown) => {
  if (codeOf(cause) === "ENOENT") return undefined;
  throw cause;
};

const reason = (cause: unknown): string => {
  const { code, path: file } = cause as NodeJS.ErrnoException;
  const [text] = reasons[code ?? ""] ?? [];
  if (text === undefined) return printable(cause instanceof Error ? cause.message : String(cause));
  return file === undefined ? text : `${printable(file)}: ${text}`;
};
const hintFor = (cause: unknown): string | undefined =>
  cause instanceof Refusal ? cause.hint : reasons[codeOf(cause) ?? ""]?.[1];

/** Ours alone to change: not a link, not somebody else's, not writable by others. */
const vet = (what: string, stats: Stats): void => {
  const me = process.getuid!();
  if (stats.uid !== me) {
    throw new Refusal(
      `${printable(what)} belongs to user ${stats.uid}, not to ${me}`,
      "run qbackup as its owner",
    );
  }
  if ((stats.mode & 0o022) !== 0) {
    throw new Refusal(`${printable(what)} can be changed by others`, "chmod go-w it");
  }
};

/** Bytes kept free for the end of a run: its mark, written anew beside the old one, its line, a pin. */
const reserved = 1 << 20;

/** As ENOSPC, where only a part could be written. */
class Full extends Refusal {}
const isFull = (cause: unknown): boolean =>
  cause instanceof Full || codeOf(cause) === "ENOSPC" || codeOf(cause) === "EDQUOT";

/** Owner of what a user namespace does not map: nobody's, and no sign of a person. */
const unmapped = 65_534;

/** What is made above all that is there belongs to whoever runs this: not in somebody else's home. */
const vetAbove = async (directory: string): Promise<void> => {
  const me = process.getuid!();
  for (let at = directory; ; at = path.dirname(at)) {
    const { uid } = await fs.stat(at).catch(() => ({ uid: 0 }));
    if (uid !== me && uid !== 0 && uid !== unmapped) {
      throw new Refusal(
        `${printable(directory)} would lie in a directory of user ${uid}, and this runs as ${me}`,
        "run qbackup as its owner, without sudo",
      );
    }
    if (at === path.dirname(at)) return;
  }
};

/**
 * Makes a directory, 0700, and what is missing above it, each by itself: where a file system takes none
 * (/proc), node's own way of doing so never ends.
 */
export const makeDirectories = (directory: string): void => {
  const missing: Array<string> = [];
  for (let at = directory; !existsSync(at); at = path.dirname(at)) missing.unshift(at);
  for (const one of missing) {
    try {
      mkdirSync(one, { mode: 0o700 });
    } catch (cause) {
      // Another program may have made it just now.
      if (codeOf(cause) === "EEXIST") continue;
      if (codeOf(cause) !== "ENOENT") throw cause;
      throw new Refusal(
        `${printable(path.dirname(one))} takes no directory`,
        "HOME or XDG_STATE_HOME must name a directory on a disk",
      );
    }
  }
};

/** A book that is read as a whole is smaller than this; the ledger is read line by line. */
const most = 1 << 28;

/** `directory` is absolute; it is made when first needed. One value for all books that lie in it. */
export const stateDirectory = (directory: string) => {
  const file = (name: string) => path.join(directory, name);
  const one = Semaphore.makeUnsafe(1);
  /** One at a time, to its end: `doing` and why it failed make a sentence. */
  const attempt = <A>(doing: string, what: () => Promise<A>): Effect.Effect<A, LedgerError> =>
    Effect.tryPromise({
      try: what,
      catch: (cause) => {
        const hint = hintFor(cause);
        return new LedgerError({
          doing,
          reason: reason(cause),
          ...(hint === undefined ? {} : { hint }),
        });
      },
    }).pipe(Effect.uninterruptible, one.withPermits(1));

  /** The directory, open, for its fsync; undefined where there is none and none is to be made. */
  const withDirectory = async <A>(make: boolean, use: (dir: fs.FileHandle) => Promise<A>) => {
    if (make && (await fs.lstat(directory).catch(absent)) === undefined) {
      await vetAbove(directory);
      makeDirectories(directory);
    }
    let dir: fs.FileHandle;
    try {
      dir = await fs.open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    } catch (cause) {
      const code = codeOf(cause);
      if (code === "ENOENT" && !make) return undefined;
      if (code !== "ENOTDIR" && code !== "ELOOP") throw cause;
      throw new Refusal(`${printable(directory)} is a link, or no directory`, "move it away");
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
    use: (handle: fs.FileHandle, stats: Stats) => Promise<A>,
  ) => {
    // O_NONBLOCK: a FIFO put in its place must not make this wait.
    const handle = await fs.open(file(name), flags | O_NOFOLLOW | O_NONBLOCK, 0o600);
    try {
      const stats = await handle.stat();
      if (!stats.isFile())
        throw new Refusal(`${printable(file(name))} is no regular file`, "move it away");
      vet(file(name), stats);
      return await use(handle, stats);
    } finally {
      await handle.close();
    }
  };

  /** A whole file; undefined where there is none. `secret`: one that nobody else may read either. */
  const read = (name: string, secret = false) =>
    withDirectory(false, () =>
      withFile(name, O_RDONLY, (handle, { mode, size }) => {
        if (secret && (mode & 0o077) !== 0) {
          throw new Refusal(`${printable(file(name))} can be read by others`, "chmod 600 it");
        }
        if (size > most) throw new Refusal(`${printable(file(name))} is too large`, "move it away");
        return handle.readFile();
      }).catch(absent),
    );

  /** In one call, so that a crash tears one line at most. */
  const writeAll = async (handle: fs.FileHandle, bytes: Uint8Array) => {
    const { bytesWritten } = await handle.write(bytes);
    if (bytesWritten < bytes.length) throw new Full("the disk is full", free);
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

  /** What `write` writes takes the place of the file: the old content or the new one, never a part. */
  const replace = (name: string, write: (handle: fs.FileHandle) => Promise<void>) =>
    withDirectory(true, async (dir) => {
      // A link in its place would be replaced, not followed; but then somebody has been here.
      await withFile(name, O_RDONLY, async () => {}).catch(absent);
      const next = `${name}.new`;
      await fs.rm(file(next), { force: true });
      try {
        await withFile(next, O_WRONLY | O_CREAT | O_EXCL, async (handle) => {
          await write(handle);
          await handle.sync();
        });
        await fs.rename(file(next), file(name));
      } catch (cause) {
        await fs.rm(file(next), { force: true }).catch(() => {});
        throw cause;
      }
      await dir.sync();
    });

  /** Gives the file a second name, `NAME.WHAT.N` with the first N that is free; undefined: there is none. */
  const keep = (name: string, what: string): Promise<string | undefined> =>
    withDirectory(false, async () => {
      for (let n = 1; ; n += 1) {
        const kept = file(`${name}.${what}.${n}`);
        try {
          await fs.link(file(name), kept);
          return kept;
        } catch (cause) {
          if (codeOf(cause) === "ENOENT") return undefined;
          if (codeOf(cause) !== "EEXIST" || n >= 1000) throw cause;
        }
      }
    });

  const remove = (name: string) =>
    withDirectory(false, async (dir) => {
      await fs.rm(file(name), { force: true });
      await dir.sync();
    });

  return {
    directory,
    file,
    attempt,
    withDirectory,
    withFile,
    read,
    writeAll,
    hold,
    release,
    atLast,
    replace,
    replaceText: (name: string, text: string | Uint8Array) =>
      replace(name, (handle) => writeAll(handle, Buffer.from(text))),
    keep,
    remove,
  };
};
export type StateDirectory = ReturnType<typeof stateDirectory>;
