/**
 * Files below one root, reached component by component and never through a link.
 *
 * There is no call that takes a path, none that follows a link, and but for `replace` none that
 * overwrites: a name is one component, looked up in a directory that is held open, so nothing can be
 * exchanged between a check and its use. What is written survives a power loss only after `sync` of the file *and* of
 * each directory whose entries changed.
 */
import { Context, type Effect, Schema, type Scope } from "effect";

/** Why a file operation failed, as far as a caller can act on it. */
export class SafeFsError extends Schema.TaggedError<SafeFsError>()("SafeFsError", {
  reason: Schema.Literals([
    "exists",
    "not-found",
    /** A component is a link, or no directory, or the file no regular file. */
    "not-plain",
    "no-space",
    /** A file would be larger than the file system, or a limit of this process, allows. */
    "too-large",
    "not-permitted",
    /** The file system is mounted read-only. */
    "read-only",
    /** This process or this machine has as many files open as it may. */
    "too-many-files",
    /** The file system cannot do it (hard links across devices, say). */
    "unsupported",
    "io",
  ]),
  operation: Schema.String,
  cause: Schema.Defect(),
}) {}

/** What an entry is, without following it. Sizes in bytes, times in milliseconds since 1970. */
export interface Entry {
  readonly kind: "file" | "directory" | "other";
  readonly size: number;
  /** Bytes that it takes on the disk: fewer than its size where it has holes, or is compressed. */
  readonly allocated: number;
  /** Which file of its device it is. What else bears its name later is another one. */
  readonly inode: number;
  /** The permission bits. */
  readonly mode: number;
  readonly modified: number;
  /** The uid of its owner. */
  readonly owner: number;
  /** The device it lies on; hard links do not cross devices. */
  readonly device: number;
}

/** A regular file, open. Offsets and sizes in bytes. */
export interface File {
  readonly stat: Effect.Effect<Entry, SafeFsError>;
  /** Fills `into` from `at`; fewer bytes only at the end of the file. */
  readonly read: (into: Uint8Array, at: number) => Effect.Effect<number, SafeFsError>;
  /** Writes all of `bytes` at `at`. The buffer belongs to the caller again when it returns. */
  readonly write: (bytes: Uint8Array, at: number) => Effect.Effect<void, SafeFsError>;
  readonly truncate: (size: number) => Effect.Effect<void, SafeFsError>;
  /** The data and its size are on disk. After a failure the file's content is unknown: give it up. */
  readonly sync: Effect.Effect<void, SafeFsError>;
  /** As `sync`, and the mode too. */
  readonly syncAll: Effect.Effect<void, SafeFsError>;
  readonly protect: (mode: number) => Effect.Effect<void, SafeFsError>;
}

/** A directory, open. Every `name` is a single component; anything else is a defect of the caller. */
export interface Directory {
  /** This directory itself. */
  readonly self: Effect.Effect<Entry, SafeFsError>;
  readonly directory: (name: string) => Effect.Effect<Directory, SafeFsError, Scope.Scope>;
  /** Opens it, making it first (with `mode`) where it is missing. */
  readonly ensure: (
    name: string,
    mode: number,
  ) => Effect.Effect<Directory, SafeFsError, Scope.Scope>;
  /** Makes a new file for reading and writing; `exists` for whatever bears the name, links too. */
  readonly create: (name: string, mode: number) => Effect.Effect<File, SafeFsError, Scope.Scope>;
  readonly open: (
    name: string,
    access: "read" | "write",
  ) => Effect.Effect<File, SafeFsError, Scope.Scope>;
  /**
   * All of a small file, opened as `open` does it; undefined where it has more than `limit` bytes. For
   * very many of them: `open`, `stat` and `read` take several times as long.
   */
  readonly bytes: (
    name: string,
    limit: number,
  ) => Effect.Effect<Uint8Array | undefined, SafeFsError>;
  readonly stat: (name: string) => Effect.Effect<Entry, SafeFsError>;
  readonly names: Effect.Effect<ReadonlyArray<string>, SafeFsError>;
  /** All that lies here, by name. For very many: a `stat` of each takes several times as long. */
  readonly entries: Effect.Effect<ReadonlyMap<string, Entry>, SafeFsError>;
  /** A second name for the file `name`, in `to`; never replaces, never follows. */
  readonly link: (name: string, to: Directory, as: string) => Effect.Effect<void, SafeFsError>;
  /** Gives the file `name` the name `as` in place of its own; what file bore that name is gone. */
  readonly replace: (name: string, as: string) => Effect.Effect<void, SafeFsError>;
  /** Takes a file's name away. */
  readonly remove: (name: string) => Effect.Effect<void, SafeFsError>;
  /** May this process make entries here? */
  readonly writable: Effect.Effect<boolean, SafeFsError>;
  /** The entries made and removed here are on disk. */
  readonly sync: Effect.Effect<void, SafeFsError>;
  /** Bytes that an unprivileged writer can still use here; a huge number where nobody counts them. */
  readonly free: Effect.Effect<number, SafeFsError>;
}

export class SafeFs extends Context.Service<
  SafeFs,
  {
    /** Opens the root of the store; `undefined` is the home of the account. */
    readonly root: (path: string | undefined) => Effect.Effect<Directory, SafeFsError, Scope.Scope>;
  }
>()("qbackup/services/SafeFs") {}
