/**
 * What lies where. Archives and their records lie where a person expects them; `.qbackup/` is the
 * server's own: `incoming/` has the uploads (SESSION its bytes, SESSION.digests the SHA-256 of each
 * block), `digests/` those digests for as long as the archive is kept, `identity` the private key.
 */
import { Effect, Result, type Scope } from "effect";
import { type Directory, type Entry, type File, SafeFs, type SafeFsError } from "#services/SafeFs";
import { Invocation } from "#services/Invocation";
import { trailerLimit } from "#src/wire/frames";
import { lockKey, privateKeyPem, readPrivateKey, type SigningKey } from "#src/proof/keys";
import { parseRecord, type Record } from "#src/proof/manifest";
import { manifestSuffix, type Name } from "#src/wire/names";
import { type Refused, refuse } from "./failure.ts";

/** A store as it is found: before the first upload it has no directories and no key of its own. */
export interface Store {
  readonly root: Directory;
  readonly key: SigningKey | undefined;
  /** There is an identity, and it cannot be read: nothing can be signed, but all of it can be read. */
  readonly sealed: boolean;
}
export interface WritableStore extends Store {
  readonly own: Directory;
  readonly incoming: Directory;
  readonly digests: Directory;
  readonly key: SigningKey;
  readonly lockKey: (what: string) => string;
}

const identity = "identity";
/** A record holds its manifest as a JSON string inside JSON, so it may be longer than a trailer. */
const recordLimit = 3 * trailerLimit;

/** Undefined where there is nothing of that name. */
export const whereFound = <A, R>(
  effect: Effect.Effect<A, SafeFsError, R>,
): Effect.Effect<A | undefined, SafeFsError, R> =>
  Effect.catchIf(
    effect,
    (error) => error.reason === "not-found",
    () => Effect.undefined,
  );

export const find = (
  directory: Directory,
  name: string,
): Effect.Effect<Entry | undefined, SafeFsError> => whereFound(directory.stat(name));

/** Takes a name away, if it is there at all. */
export const clear = (directory: Directory, name: string): Effect.Effect<void, SafeFsError> =>
  Effect.asVoid(whereFound(directory.remove(name)));

/** The whole file, or undefined where it has more than `limit` bytes. */
export const readText = Effect.fnUntraced(function* (file: File, limit: number) {
  const { size } = yield* file.stat;
  if (size > limit) return undefined;
  const bytes = new Uint8Array(size);
  const n = yield* file.read(bytes, 0);
  return new TextDecoder().decode(bytes.subarray(0, n));
});

const readKey = Effect.fnUntraced(function* (
  own: Directory,
  again = true,
): Effect.fn.Return<{ key: SigningKey; pem: string } | undefined, Refused | SafeFsError> {
  const pem = yield* Effect.scoped(
    whereFound(Effect.flatMap(own.open(identity, "read"), (file) => readText(file, 4096))),
  );
  if (pem === undefined) {
    const found = yield* find(own, identity);
    if (found === undefined) return undefined;
    // Another connection has made it just now: the first two of a store may come at once.
    return found.kind === "file" && again ? yield* readKey(own, false) : yield* noKey;
  }
  const key = readPrivateKey(pem);
  return key === undefined ? yield* noKey : { key, pem };
});
const noKey = refuse("internal", "the file with the server's identity holds no key");
const empty = refuse("internal", "the store is empty: is its disk mounted?");
const gone = refuse(
  "internal",
  "the store has lost its identity: put .qbackup/identity back from a copy of the store",
);

/** Under a name of its own first, so that whoever sees `identity` sees all of it. */
const makeKey = Effect.fnUntraced(function* (own: Directory, incoming: Directory) {
  const { entropy } = yield* Invocation;
  const temporary = `${Buffer.from(entropy(16)).toString("hex")}.identity`;
  yield* Effect.scoped(
    Effect.gen(function* () {
      const file = yield* incoming.create(temporary, 0o600);
      yield* file.write(new TextEncoder().encode(privateKeyPem(entropy(32))), 0);
      yield* file.syncAll;
    }),
  );
  yield* incoming.link(temporary, own, identity).pipe(
    // Somebody was faster: theirs it is.
    Effect.catchIf(
      (error) => error.reason === "exists",
      () => Effect.void,
    ),
  );
  yield* own.sync;
  yield* Effect.ignore(incoming.remove(temporary));
});

/** Before the key is announced: whoever made it may have died before its name was on disk. */
export const keepKey = ({ own, root }: WritableStore): Effect.Effect<void, SafeFsError> =>
  Effect.andThen(own.sync, root.sync);

/** What an open store is asked for, as the options say it. */
export interface Opening {
  readonly root?: string;
  readonly noInit?: true;
}

/** Nothing here needs the private key, so nothing fails for want of it. */
export const openForReading = Effect.fnUntraced(function* ({
  noInit,
  root: path,
}: Opening): Effect.fn.Return<Store, Refused | SafeFsError, SafeFs | Scope.Scope> {
  const root = yield* (yield* SafeFs).root(path);
  const own = yield* Effect.result(whereFound(root.directory(".qbackup")));
  if (Result.isFailure(own)) return { root, key: undefined, sealed: true };
  if (own.success === undefined) {
    return noInit ? yield* empty : { root, key: undefined, sealed: false };
  }
  const key = yield* Effect.result(readKey(own.success));
  return Result.isFailure(key)
    ? { root, key: undefined, sealed: true }
    : { root, key: key.success?.key, sealed: false };
});

/** The identity as it is, or undefined: made by nobody here. */
export const readIdentity = Effect.fnUntraced(function* (path: string | undefined) {
  const root = yield* (yield* SafeFs).root(path);
  const own = yield* whereFound(root.directory(".qbackup"));
  return own === undefined ? undefined : (yield* readKey(own))?.key;
});

export const openForWriting = Effect.fnUntraced(function* ({
  noInit,
  root: path,
}: Opening): Effect.fn.Return<
  WritableStore,
  Refused | SafeFsError,
  SafeFs | Invocation | Scope.Scope
> {
  const root = yield* (yield* SafeFs).root(path);
  if (noInit) {
    // Before anything is made: this may be the bare directory that the store's disk belongs on.
    const there = yield* whereFound(root.directory(".qbackup"));
    if (there === undefined) return yield* empty;
    if ((yield* find(there, identity)) === undefined) return yield* gone;
  }
  const own = yield* root.ensure(".qbackup", 0o700);
  const incoming = yield* own.ensure("incoming", 0o700);
  const digests = yield* own.ensure("digests", 0o700);
  let found = yield* readKey(own);
  if (found === undefined) {
    if (noInit) return yield* gone;
    yield* makeKey(own, incoming);
    found = yield* readKey(own);
  }
  if (found === undefined) return yield* noKey;
  const { key, pem } = found;
  return {
    root,
    own,
    incoming,
    digests,
    key,
    sealed: false,
    lockKey: (what) => lockKey(pem, what),
  };
});

/** Where an archive lies, or will: its directory, held open, and the two names in it. */
export interface Place {
  readonly name: Name;
  readonly directory: Directory;
  readonly base: string;
  readonly record: string;
}

export const locate = Effect.fnUntraced(function* (
  root: Directory,
  name: Name,
): Effect.fn.Return<Place, Refused | SafeFsError, Scope.Scope> {
  const parts = name.split("/");
  const base = parts.pop()!;
  let directory = root;
  for (const part of parts) {
    directory = yield* directory.directory(part).pipe(
      Effect.catchIf(
        (error) => error.reason === "not-found" || error.reason === "not-plain",
        () => refuse("no-directory", "the server has no such directory"),
      ),
    );
  }
  return { name, directory, base, record: `${base}${manifestSuffix}` };
});

/** The record beside an archive; undefined where there is none that can be read. */
export const readRecord = Effect.fnUntraced(function* (
  directory: Directory,
  base: string,
): Effect.fn.Return<Record | undefined, SafeFsError> {
  const text = yield* Effect.scoped(
    Effect.flatMap(directory.open(`${base}${manifestSuffix}`, "read"), (file) =>
      readText(file, recordLimit),
    ),
  ).pipe(
    Effect.catchIf(
      ({ reason }) =>
        reason === "not-found" || reason === "not-plain" || reason === "not-permitted",
      () => Effect.undefined,
    ),
  );
  return text === undefined ? undefined : parseRecord(text);
});
