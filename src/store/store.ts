/**
 * What lies where. Archives and their records lie where a person expects them; `.qbackup/` is the
 * server's own:
 *
 * - `incoming/`: uploads. SESSION its bytes, SESSION.digests the SHA-256 of each block, SESSION.table
 *   its members, SESSION.ticket what opened it last;
 * - `packs/`, `digests/`, `tables/`: what uploads brought, by session, once they are committed;
 * - `recipes/`, `records/`: of the archive that was committed with that session, its recipe, and its
 *   record under a second name, by which it is found by its session;
 * - `held/`: the archive that an upload builds on; `gone/`: since when and why an upload is no more;
 * - `runs/`: the highest ticket of each series; `signers`, `identity`, `owner`.
 */
import { DateTime, Effect, Result, type Scope } from "effect";
import { type Directory, type Entry, type File, SafeFs, type SafeFsError } from "#services/SafeFs";
import { Invocation } from "#services/Invocation";
import { Locks } from "#services/Locks";
import { lockKey, privateKeyPem, readPrivateKey, type SigningKey } from "#src/proof/keys";
import { manifestSuffix, type Name } from "#src/wire/names";
import { type Refused, refuse } from "./failure.ts";

/** A store as it is found: before the first upload it has no directories and no key of its own. */
export interface Store {
  readonly root: Directory;
  readonly own: Directory | undefined;
  readonly key: SigningKey | undefined;
  /** The key of a lock of this store; undefined where the identity cannot be read. */
  readonly lockKey: ((what: string) => string) | undefined;
  /** There is an identity, and it cannot be read: nothing can be signed, but all of it can be read. */
  readonly sealed: boolean;
}

const directories = [
  "incoming",
  "packs",
  "digests",
  "tables",
  "recipes",
  "records",
  "held",
  "runs",
  "gone",
] as const;
export interface WritableStore
  extends Store, Readonly<{ [D in (typeof directories)[number]]: Directory }> {
  readonly own: Directory;
  readonly key: SigningKey;
  readonly lockKey: (what: string) => string;
}

const identity = "identity";

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
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(0, n));
});

/** Writes a small file as a whole, over what bore the name before; durable when it returns. */
export const writeText = Effect.fnUntraced(function* (
  directory: Directory,
  name: string,
  text: string,
): Effect.fn.Return<void, SafeFsError> {
  const temporary = `${name}.new`;
  yield* clear(directory, temporary);
  yield* Effect.scoped(
    Effect.gen(function* () {
      const file = yield* directory.create(temporary, 0o600);
      yield* file.write(new TextEncoder().encode(text), 0);
      yield* file.syncAll;
    }),
  ).pipe(
    Effect.andThen(directory.replace(temporary, name)),
    // On a full disk nobody may ever come back for it.
    Effect.tapError(() => Effect.ignore(clear(directory, temporary))),
  );
  yield* directory.sync;
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
  const found = yield* Effect.result(whereFound(root.directory(".qbackup")));
  const closed = { root, own: undefined, key: undefined, lockKey: undefined };
  if (Result.isFailure(found)) return { ...closed, sealed: true };
  const own = found.success;
  if (own === undefined) return noInit ? yield* empty : { ...closed, sealed: false };
  const read = yield* Effect.result(readKey(own));
  if (Result.isFailure(read)) return { ...closed, own, sealed: true };
  const { key, pem } = read.success ?? {};
  return {
    root,
    own,
    key,
    lockKey: pem === undefined ? undefined : (what) => lockKey(pem, what),
    sealed: false,
  };
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
  SafeFs | Invocation | Locks | Scope.Scope
> {
  const root = yield* (yield* SafeFs).root(path);
  if (noInit) {
    // Before anything is made: this may be the bare directory that the store's disk belongs on.
    const there = yield* whereFound(root.directory(".qbackup"));
    if (there === undefined) return yield* empty;
    if ((yield* find(there, identity)) === undefined) return yield* gone;
  }
  const own = yield* root.ensure(".qbackup", 0o700);
  yield* looksPrivate(own);
  yield* claim(own);
  const made = {} as { [D in (typeof directories)[number]]: Directory };
  for (const name of directories) made[name] = yield* own.ensure(name, 0o700);
  let found = yield* readKey(own);
  if (found === undefined) {
    if (noInit) return yield* gone;
    yield* makeKey(own, made.incoming);
    found = yield* readKey(own);
  }
  if (found === undefined) return yield* noKey;
  const { key, pem } = found;
  return { ...made, root, own, key, sealed: false, lockKey: (what) => lockKey(pem, what) };
});

/** What others may look into, or put something into, is no safe place for keys and backups. */
const looksPrivate = Effect.fnUntraced(function* (own: Directory) {
  const { mode, owner } = yield* own.self;
  const { uid = owner } = yield* Invocation;
  if (owner !== uid) {
    return yield* refuse("internal", "the store's .qbackup belongs to another account");
  }
  if ((mode & 0o077) !== 0) {
    return yield* refuse(
      "internal",
      "the store's .qbackup is open to other accounts: chmod -R go= .qbackup",
    );
  }
});

const ownerFile = "owner";
/** How long a store belongs to whoever used it last. In milliseconds. */
const ownedFor = 10 * 60 * 1000;

/**
 * Says that this store is used from here. Locks do not reach beyond a network namespace, so two of one
 * machine must not serve the same store: refused where another one has used it within ten minutes.
 */
export const claim = Effect.fnUntraced(function* (
  own: Directory,
): Effect.fn.Return<void, Refused | SafeFsError, Locks> {
  const reach = yield* (yield* Locks).reach;
  if (reach === undefined) return;
  const now = yield* DateTime.now;
  yield* Effect.scoped(
    Effect.gen(function* () {
      const file =
        (yield* whereFound(own.open(ownerFile, "write"))) ??
        (yield* Effect.catchIf(
          own.create(ownerFile, 0o600),
          ({ reason }) => reason === "exists",
          () => own.open(ownerFile, "write"),
        ));
      const [boot, namespace, used = ""] = ((yield* readText(file, 512)) ?? "").split(" ");
      const age = now.epochMilliseconds - Date.parse(used);
      if (boot === reach.boot && namespace !== reach.namespace && Math.abs(age) < ownedFor) {
        return yield* refuse(
          "busy",
          "another network namespace of the server has used this store within ten minutes",
        );
      }
      const line = new TextEncoder().encode(
        `${reach.boot} ${reach.namespace} ${DateTime.formatIso(now)} \n`,
      );
      yield* file.write(line, 0);
      yield* file.truncate(line.length);
    }),
  );
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
