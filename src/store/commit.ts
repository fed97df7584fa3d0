/**
 * How an upload becomes an archive. The link of its record is the commit point: before it nothing is
 * listed, after it everything that vouches for the archive is on disk already. Whatever a crash leaves,
 * the same session finds and finishes, or starts again.
 */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { type LockBusy, type LockFailed, Locks } from "#services/Locks";
import type { Directory, SafeFsError } from "#services/SafeFs";
import { FullChunk } from "#src/archive/parameters";
import { archiveSize, type Begun, type Format, ListWalk } from "#src/archive/walk";
import { runLine, type Runs } from "#src/proof/recipe";
import { rootHasher } from "#src/proof/table";
import { uploadLimit } from "#src/wire/limits";
import { manifestSuffix, type Session } from "#src/wire/names";
import { type Failure, Refused, refuse } from "./failure.ts";
import { openPack } from "./packs.ts";
import { isSigned, type Record, recordText } from "./record.ts";
import { filesOf, recordName, type Settled } from "./settled.ts";
import { clear, find, type Place, type WritableStore } from "./store.ts";
import { members } from "./tables.ts";
import { type Upload, withdraw } from "./upload.ts";

/** A holder of a lock is given this long to let go. In milliseconds. */
const patience = 10_000;

const busy = (error: LockBusy | LockFailed): Refused =>
  error._tag === "LockFailed"
    ? new Refused({ code: "internal", message: "the server could not take a lock" })
    : new Refused({
        code: "busy",
        message: error.stranger
          ? "another program on the server holds the name of this store's lock"
          : "another connection is still at it",
      });

/** Takes the lock on `what` until the scope closes; `asked` returns when another one wants it. */
export const hold = Effect.fnUntraced(function* (store: WritableStore, what: string) {
  const locks = yield* Locks;
  return yield* Effect.mapError(
    locks.hold(store.lockKey(what), { stepDownWithin: patience }),
    busy,
  );
});

/** One of the few uploads that a store takes at once. */
export const seat = Effect.fnUntraced(function* (store: WritableStore) {
  const locks = yield* Locks;
  for (let i = 0; i < uploadLimit; i++) {
    const taken = yield* locks.hold(store.lockKey(`upload:${i}`)).pipe(
      Effect.as(true),
      Effect.catchTags({
        LockBusy: () => Effect.succeed(false),
        LockFailed: (error) => Effect.fail(busy(error)),
      }),
    );
    if (taken) return;
  }
  return yield* refuse("busy", `${uploadLimit} uploads into this store are under way already`);
});

const exists = refuse("exists", "there is something of that name already");

/** Refused where something bears the name of the archive, or of its record. */
export const nameIsFree = Effect.fnUntraced(function* ({ base, directory, record }: Place) {
  for (const name of [base, record]) {
    if ((yield* find(directory, name)) !== undefined) return yield* exists;
  }
});

/** Taken away by a profile's leave, and no archive's record: their names begin with a letter or digit. */
const probeName = `_qbackup-probe${manifestSuffix}`;

/** Whether others may write into one of the directories that lead to a name: to take it away, too. */
const isExposed = Effect.fnUntraced(function* (root: Directory, name: string) {
  let directory = root;
  for (const part of [undefined, ...name.split("/").slice(0, -1)]) {
    if (part !== undefined) directory = yield* directory.directory(part);
    if (((yield* directory.self).mode & 0o002) !== 0) return true;
  }
  return false;
}, Effect.scoped);

/** Refuses at once what the commit could only refuse after hours: it is tried with an empty file. */
export const rehearse = Effect.fnUntraced(function* (
  { incoming, root }: WritableStore,
  { directory, name }: Place,
): Effect.fn.Return<void, Refused | SafeFsError, Invocation> {
  if (yield* isExposed(root, name)) {
    return yield* refuse(
      "internal",
      "other accounts of the server may write into the store's directories: chmod -R o-w STORE",
    );
  }
  if (!(yield* directory.writable)) {
    return yield* refuse("not-permitted", "the account may not write into that directory");
  }
  const [there, here] = [yield* directory.self, yield* incoming.self];
  if (there.device !== here.device) {
    return yield* refuse(
      "unsupported",
      "that directory lies on another file system than the store",
    );
  }
  const { entropy } = yield* Invocation;
  const probe = `${Buffer.from(entropy(16)).toString("hex")}.probe`;
  yield* Effect.gen(function* () {
    const file = yield* incoming.create(probe, 0o600);
    yield* file.protect(0o440).pipe(
      Effect.catchIf(
        ({ reason }) => reason === "not-permitted" || reason === "unsupported",
        () =>
          refuse(
            "unsupported",
            "the server's file system does not let the account change the mode of its own files",
          ),
      ),
    );
    // One that is there was left by a crash, or another connection does the same just now.
    yield* clear(directory, probeName);
    yield* incoming.link(probe, directory, probeName).pipe(
      Effect.catchIf(
        ({ reason }) => reason === "exists",
        () => Effect.void,
      ),
    );
    yield* clear(directory, probeName);
    yield* directory.sync;
  }).pipe(Effect.scoped, Effect.ensuring(Effect.ignore(clear(incoming, probe))));
});

/** Gives it the name `as` in `to`, whatever a commit that a crash ended has left there. */
const publish = Effect.fnUntraced(function* (
  { incoming }: WritableStore,
  name: string,
  to: Directory,
  as: string,
) {
  const there = yield* find(to, as);
  if (there !== undefined && there.inode === (yield* incoming.stat(name)).inode) return;
  yield* clear(to, as);
  yield* incoming.link(name, to, as);
});

/** What an archive is as a whole. */
export interface Whole {
  readonly members: number;
  readonly root: string;
  /** Bytes, as a plain file. */
  readonly size: number;
}

/** Walks the archive that a recipe makes of an upload and of packs, and counts it. */
const composed = Effect.fnUntraced(function* (
  store: WritableStore,
  session: Session,
  runs: Runs,
  format: Format,
): Effect.fn.Return<Whole, Refused | SafeFsError> {
  const list = new ListWalk({ format, fullChunk: yield* FullChunk });
  const hasher = rootHasher();
  let bytes = 0;
  const own = { session, directory: store.incoming, name: filesOf(session).table };
  const see = (member: Begun, line: string) => {
    hasher.push(`${line}\n`);
    bytes += member.length;
    return list.next(member);
  };
  yield* members(store, runs, see, own).pipe(
    Effect.catchTag("ArchiveFault", ({ message }) => refuse("incomplete", message)),
  );
  const fault = list.finish();
  const root = hasher.root();
  if (fault !== undefined || root === undefined) {
    return yield* refuse("incomplete", fault?.message ?? "the archive has no members");
  }
  return { members: hasher.members(), root, size: archiveSize(format, bytes) };
});

const tarBlock = 512;

/**
 * Looks that what the runs need of other packs is there: the packs as long as they were, and no hole
 * where one of these members begins. What was punched out of a pack takes its tar header with it.
 */
const allThere = Effect.fnUntraced(function* (store: WritableStore, own: Session, runs: Runs) {
  const missing = refuse("damaged", "a part of the archive that it builds on is not in the store");
  /** Which of the runs are in a pack. */
  const within = new Map<Session, Array<number>>();
  let index = 0;
  for (const { session } of runs) {
    const some = within.get(session);
    if (some === undefined) within.set(session, [index]);
    else some.push(index);
    index += 1;
  }
  within.delete(own);
  // One after the other: there may be more packs than files may be open.
  for (const [session, some] of within) {
    const whole = Effect.gen(function* () {
      const {
        file,
        index: { members: most, starts },
      } = yield* openPack(store, session);
      const { allocated, size } = yield* file.stat;
      if (size < starts[most]!) return yield* missing;
      if (allocated >= size) return;
      const header = new Uint8Array(tarBlock);
      for (const of of some) {
        const { count, first } = runs.at(of)!;
        for (let member = first; member < first + count; member++) {
          yield* file.read(header, starts[member]!);
          if (header.every((byte) => byte === 0)) return yield* missing;
        }
      }
    });
    yield* Effect.scoped(whole);
  }
});

/** What is written down of an archive once it is known as a whole. */
export interface Commit<R> {
  readonly place: Place;
  readonly format: Format;
  readonly runs: Runs;
  /** Makes the record, or refuses what does not fit. */
  readonly record: (whole: Whole) => Effect.Effect<Record, Refused | SafeFsError>;
  /** Looks once more, under the locks, whether it may be. */
  readonly admissible: Effect.Effect<void, Refused | SafeFsError, R>;
}

/**
 * The caller holds the lock on the session, and does what a crash would leave undone: `settle`. What is
 * refused stays as it was before. Under the store's lock nobody sees a pack without its record.
 */
export const commit = Effect.fnUntraced(function* <R>(
  store: WritableStore,
  upload: Upload,
  { admissible, format, place, record: makeRecord, runs }: Commit<R>,
): Effect.fn.Return<Settled, Failure, R | Locks> {
  const { digests, incoming, packs, recipes, records, tables } = store;
  const { session } = upload;
  const names = filesOf(session);
  if (!upload.atMemberEnd()) {
    return yield* refuse("incomplete", "the upload ends inside a member");
  }
  yield* upload.seal;
  const record = yield* makeRecord(yield* composed(store, session, runs, format));
  yield* allThere(store, session, runs);
  yield* write(incoming, names.recipe, 0o600, pieces(runs));
  yield* write(incoming, names.record, 0o440, [recordText(record)]);
  yield* Effect.scoped(
    Effect.gen(function* () {
      yield* hold(store, "store");
      yield* hold(store, `name:${place.name}`);
      yield* admissible;
      yield* nameIsFree(place);
      yield* publish(store, session, packs, session);
      yield* publish(store, names.digests, digests, session);
      yield* publish(store, names.table, tables, session);
      yield* publish(store, names.recipe, recipes, session);
      yield* publish(store, names.record, records, recordName(session));
      for (const directory of [incoming, packs, digests, tables, recipes, records]) {
        yield* directory.sync;
      }
      yield* incoming.link(names.record, place.directory, place.record).pipe(
        Effect.catchIf(
          ({ reason }) => reason === "exists",
          () => exists,
        ),
      );
      // From here on it is an archive, unless the disk says that it is not.
      yield* place.directory.sync.pipe(
        Effect.tapError(() => Effect.ignore(clear(place.directory, place.record))),
      );
    }),
  ).pipe(Effect.tapError(() => Effect.ignore(withdraw(store, session))));
  return {
    session,
    place,
    record: isSigned(record) ? record : undefined,
    plain: format === "qvm-backup",
  };
});

/** A new file of this text, durable but for its name. */
const write = Effect.fnUntraced(function* (
  directory: Directory,
  name: string,
  mode: number,
  text: Iterable<string>,
): Effect.fn.Return<void, SafeFsError> {
  yield* clear(directory, name);
  yield* Effect.scoped(
    Effect.gen(function* () {
      const file = yield* directory.create(name, 0o600);
      let at = 0;
      for (const piece of text) {
        const bytes = Buffer.from(piece);
        yield* file.write(bytes, at);
        at += bytes.length;
      }
      yield* file.protect(mode);
      yield* file.syncAll;
    }),
  );
});

/** Lines that are written at once. */
const batch = 4096;

/** The lines of a stored recipe, many at a time. */
const pieces = function* (runs: Runs): Generator<string> {
  let lines: Array<string> = [];
  for (const run of runs) {
    lines.push(runLine(run));
    if (lines.length < batch) continue;
    yield lines.join("");
    lines = [];
  }
  yield lines.join("");
};
