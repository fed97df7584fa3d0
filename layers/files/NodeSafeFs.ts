/**
 * Files through `/proc/self/fd/N/component`: what openat would do, which node does not have. A
 * directory stays open for as long as names are looked up in it, so nobody can exchange one for a
 * link in between, and O_NOFOLLOW refuses a link in the place of the component itself.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as fs from "node:fs";
import { constants, homedir } from "node:os";
import { type Directory, type Entry, type File, SafeFs, SafeFsError } from "#services/SafeFs";

type Reason = SafeFsError["reason"];

const reasons: Readonly<Record<string, Reason>> = {
  EEXIST: "exists",
  ENOENT: "not-found",
  ELOOP: "not-plain",
  EMLINK: "unsupported",
  ENOTDIR: "not-plain",
  EISDIR: "not-plain",
  ENXIO: "not-plain", // a FIFO opened for writing without a reader, a socket
  ENODEV: "not-plain",
  ENOSPC: "no-space",
  EFBIG: "too-large",
  EACCES: "not-permitted",
  EPERM: "not-permitted",
  EROFS: "read-only",
  EMFILE: "too-many-files",
  ENFILE: "too-many-files",
  EXDEV: "unsupported",
  ENOSYS: "unsupported",
  EOPNOTSUPP: "unsupported",
  ENOTSUP: "unsupported",
};

const failure = (operation: string, cause: unknown, reason?: Reason): SafeFsError => {
  const { code = "", errno = 0 } = (cause as NodeJS.ErrnoException | null) ?? {};
  // A file system without hard links answers EPERM, of all things.
  const linked = operation === "link" && code === "EPERM" ? "unsupported" : undefined;
  // libuv has no name for it, so its code is a sentence.
  const quota = errno === -constants.errno.EDQUOT ? "no-space" : undefined;
  return new SafeFsError({
    reason: reason ?? linked ?? quota ?? reasons[code] ?? "io",
    operation,
    cause,
  });
};

/**
 * A call of node:fs as an effect. It cannot be interrupted, because the call goes on in libuv's pool:
 * its buffer and its descriptor must stay what they are until it is done.
 */
const call = <A>(
  operation: string,
  start: (done: (error: NodeJS.ErrnoException | null, value: A) => void) => void,
): Effect.Effect<A, SafeFsError> =>
  Effect.uninterruptible(
    Effect.callback<A, SafeFsError>((resume) => {
      start((error, value) =>
        resume(error === null ? Effect.succeed(value) : Effect.fail(failure(operation, error))),
      );
    }),
  );
const act = (
  operation: string,
  start: (done: (error: NodeJS.ErrnoException | null) => void) => void,
): Effect.Effect<void, SafeFsError> => call<void>(operation, start as never);

const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } =
  fs.constants;
const plain = O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;

const open = (operation: string, path: string, flags: number, mode = 0) =>
  Effect.acquireRelease(
    call<number>(operation, (done) => fs.open(path, flags, mode, done)),
    (fd) => Effect.ignore(act("close", (done) => fs.close(fd, done))),
  );

const entry = (stat: fs.Stats): Entry => ({
  kind: stat.isFile() ? "file" : stat.isDirectory() ? "directory" : "other",
  size: stat.size,
  allocated: stat.blocks * 512,
  inode: stat.ino,
  mode: stat.mode & 0o7777,
  modified: stat.mtimeMs,
  owner: stat.uid,
  device: stat.dev,
});

const file = (fd: number): File => ({
  stat: Effect.map(
    call<fs.Stats>("stat", (done) => fs.fstat(fd, done)),
    entry,
  ),
  read: Effect.fnUntraced(function* (into: Uint8Array, at: number) {
    for (let got = 0; ;) {
      const n = yield* call<number>("read", (done) =>
        fs.read(fd, into, got, into.length - got, at + got, done),
      );
      got += n;
      if (n === 0 || got === into.length) return got;
    }
  }),
  write: Effect.fnUntraced(function* (bytes: Uint8Array, at: number) {
    for (let put = 0; put < bytes.length;) {
      put += yield* call<number>("write", (done) =>
        fs.write(fd, bytes, put, bytes.length - put, at + put, done),
      );
    }
  }),
  truncate: (size) => act("truncate", (done) => fs.ftruncate(fd, size, done)),
  sync: act("sync", (done) => fs.fdatasync(fd, done)),
  syncAll: act("sync", (done) => fs.fsync(fd, done)),
  protect: (mode) => act("protect", (done) => fs.fchmod(fd, mode, done)),
});

/** Where `name` lies in the open directory `fd`. */
const below = (fd: number, name: string): string => {
  if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) {
    throw new Error("a name that is not a single component");
  }
  return `/proc/self/fd/${fd}/${name}`;
};

const openDirectory = (path: string) =>
  Effect.map(open("open", path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW), directory);

const notPlain = new Error("not a regular file");
/** At once, on this thread: a few calls that are short each, and five turns of libuv's pool are not. */
const small = (path: string, limit: number): Uint8Array | undefined => {
  const fd = fs.openSync(path, O_RDONLY | plain);
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isFile()) throw notPlain;
    if (stat.size > limit) return undefined;
    const bytes = Buffer.allocUnsafe(stat.size);
    let held = 0;
    for (let n = 1; n > 0 && held < bytes.length; held += n) {
      n = fs.readSync(fd, bytes, held, bytes.length - held, held);
    }
    return bytes.subarray(0, held);
  } finally {
    fs.closeSync(fd);
  }
};

/** At once, as `small`; what went away since its name was read is not there. */
const entriesOf = (path: string): ReadonlyMap<string, Entry> => {
  const found = new Map<string, Entry>();
  for (const name of fs.readdirSync(path)) {
    const stat = fs.lstatSync(`${path}/${name}`, { throwIfNoEntry: false });
    if (stat !== undefined) found.set(name, entry(stat));
  }
  return found;
};

/** The descriptors of this layer's directories, for `link`, which takes two of them. */
const descriptors = new WeakMap<Directory, number>();

const directory = (fd: number): Directory => {
  const here: Directory = {
    self: Effect.map(
      call<fs.Stats>("stat", (done) => fs.fstat(fd, done)),
      entry,
    ),
    directory: (name) => Effect.suspend(() => openDirectory(below(fd, name))),
    ensure: (name, mode) =>
      Effect.suspend(() => {
        const path = below(fd, name);
        return act("make", (done) => fs.mkdir(path, mode, done)).pipe(
          Effect.catchIf(
            (error) => error.reason === "exists",
            () => Effect.void,
          ),
          Effect.andThen(openDirectory(path)),
        );
      }),
    create: (name, mode) =>
      Effect.suspend(() =>
        Effect.map(open("create", below(fd, name), O_RDWR | O_CREAT | O_EXCL | plain, mode), file),
      ),
    open: (name, access) =>
      Effect.gen(function* () {
        const flags = (access === "read" ? O_RDONLY : O_RDWR) | plain;
        const opened = yield* open("open", below(fd, name), flags);
        const stat = yield* call<fs.Stats>("stat", (done) => fs.fstat(opened, done));
        return stat.isFile() ? file(opened) : yield* failure("open", notPlain, "not-plain");
      }),
    bytes: (name, limit) =>
      Effect.suspend(() => {
        const path = below(fd, name);
        return Effect.try({
          try: () => small(path, limit),
          catch: (cause) => failure("open", cause, cause === notPlain ? "not-plain" : undefined),
        });
      }),
    stat: (name) =>
      Effect.suspend(() => {
        const path = below(fd, name);
        return Effect.map(
          call<fs.Stats>("stat", (done) => fs.lstat(path, done)),
          entry,
        );
      }),
    names: call<Array<string>>("names", (done) => fs.readdir(`/proc/self/fd/${fd}`, done)),
    entries: Effect.try({
      try: () => entriesOf(`/proc/self/fd/${fd}`),
      catch: (cause) => failure("names", cause),
    }),
    link: (name, to, as) =>
      Effect.suspend(() => {
        const target = descriptors.get(to);
        if (target === undefined) throw new Error("a directory of another layer");
        const [from, path] = [below(fd, name), below(target, as)];
        return act("link", (done) => fs.link(from, path, done));
      }),
    replace: (name, as) =>
      Effect.suspend(() => {
        const [from, path] = [below(fd, name), below(fd, as)];
        return act("replace", (done) => fs.rename(from, path, done));
      }),
    remove: (name) =>
      Effect.suspend(() => {
        const path = below(fd, name);
        return act("remove", (done) => fs.unlink(path, done));
      }),
    writable: act("access", (done) =>
      fs.access(`/proc/self/fd/${fd}`, fs.constants.W_OK | fs.constants.X_OK, done),
    ).pipe(
      Effect.as(true),
      Effect.catchIf(
        (error) => error.reason === "not-permitted",
        () => Effect.succeed(false),
      ),
    ),
    sync: act("sync", (done) => fs.fsync(fd, done)),
    free: Effect.map(
      call<fs.StatsFs>("free", (done) => fs.statfs(`/proc/self/fd/${fd}`, done)),
      // Some network file systems and those of a program's own do not know how large they are.
      ({ bavail, blocks, bsize }) => (blocks === 0 ? Number.MAX_SAFE_INTEGER : bavail * bsize),
    ),
  };
  descriptors.set(here, fd);
  return here;
};

export const nodeSafeFs: Layer.Layer<SafeFs> = Layer.sync(SafeFs, () => ({
  root: Effect.fnUntraced(function* (path) {
    const root = path ?? (process.env["HOME"] || homedir());
    if (!root.startsWith("/")) {
      return yield* failure("root", new Error("the root is no absolute path"), "not-plain");
    }
    // The administrator chose this path, so links are followed on the way to it, once.
    const fd = yield* open("root", root, O_RDONLY | O_DIRECTORY);
    const [real, seen] = yield* Effect.all([
      call<fs.Stats>("stat", (done) => fs.fstat(fd, done)),
      call<fs.Stats>("stat", (done) => fs.stat(`/proc/self/fd/${fd}/.`, done)),
    ]).pipe(Effect.mapError(({ cause }) => failure("root", cause, "unsupported")));
    if (real.ino !== seen.ino || real.dev !== seen.dev) {
      return yield* failure("root", new Error("/proc is not that of this system"), "unsupported");
    }
    return directory(fd);
  }),
}));
