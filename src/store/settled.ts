/** The archive that a session was committed as, found by the session. */
import { Effect, Option, type Scope } from "effect";
import type { SafeFsError } from "#services/SafeFs";
import { signatureHolds } from "#src/proof/keys";
import { parseManifest } from "#src/proof/texts";
import { manifestSuffix, type Session } from "#src/wire/names";
import { isSigned, readRecord, type SignedRecord } from "./record.ts";
import { clear, find, locate, type Place, type WritableStore } from "./store.ts";
import { isPruned } from "./packs.ts";

export interface Settled {
  readonly session: Session;
  readonly place: Place;
  /** Undefined in the bare form: nobody signed anything. */
  readonly record: SignedRecord | undefined;
  /** Does it lie in the store as a plain file, too? */
  readonly plain: boolean;
}

/** The files of an upload, besides its bytes. */
export const filesOf = (session: string) => ({
  digests: `${session}.digests`,
  table: `${session}.table`,
  recipe: `${session}.recipe`,
  record: `${session}.record`,
  ticket: `${session}.ticket`,
});

/** The second name of a record, in `records/`. */
export const recordName = (session: string): string => `${session}${manifestSuffix}`;

/**
 * Undefined where nothing was committed with this session, or the record is no more. What is beside
 * the archive decides, and its receipt, by this store's key or the one that it had then: it is written
 * last, and names of files or their number say nothing about it.
 */
export const settledOf = Effect.fnUntraced(function* (
  store: WritableStore,
  session: Session,
): Effect.fn.Return<Settled | undefined, SafeFsError, Scope.Scope> {
  const record = yield* readRecord(store.records, session);
  if (record === undefined) return undefined;
  const manifest = isSigned(record) ? parseManifest(record.manifest) : undefined;
  const name = isSigned(record) ? manifest?.name : record.name;
  if (name === undefined) return undefined;
  const place = yield* Effect.catchTag(locate(store.root, name), "Refused", () => Effect.undefined);
  if (place === undefined) return undefined;
  const standing = yield* readRecord(place.directory, place.base);
  if (standing === undefined) return undefined;
  if (!isSigned(record)) {
    return !isSigned(standing) && standing.session === session
      ? { session, place, record: undefined, plain: true }
      : undefined;
  }
  return isSigned(standing) &&
    standing.receipt === record.receipt &&
    manifest?.session === session &&
    signatureHolds(manifest.server, "receipt", record.receipt, record.receiptSignature)
    ? { session, place, record, plain: manifest.format === "qvm-backup" }
    : undefined;
});

/** Takes away the names that an upload came in under, and nothing of an archive that it became. */
export const letGo = Effect.fnUntraced(function* (
  { held, incoming }: WritableStore,
  session: string,
): Effect.fn.Return<void, SafeFsError> {
  // Its bytes go first: while they are there, readers ask its ticket whether it is an archive.
  yield* clear(incoming, session);
  for (const name of Object.values(filesOf(session))) yield* clear(incoming, name);
  yield* clear(held, session);
});

/** Gives an archive its own name, where it has one; false where another file bears that. */
const named = Effect.fnUntraced(function* (
  store: WritableStore,
  { place: { base, directory }, plain, session }: Settled,
): Effect.fn.Return<boolean, SafeFsError> {
  if (!plain || (yield* isPruned(store, session))) return true;
  const pack = yield* find(store.packs, session);
  if (pack === undefined) return true;
  const there = yield* find(directory, base);
  if (there !== undefined) return there.inode === pack.inode;
  return yield* store.packs.link(session, directory, base).pipe(
    Effect.as(true),
    Effect.catchIf(
      ({ reason }) => reason === "exists",
      () => Effect.succeed(false),
    ),
  );
});

/**
 * What is left to be done once the record stands: a crash may have come between, so it is done as often
 * as the archive is asked for. False where another file has its own name: that one is left alone.
 */
export const settle = Effect.fnUntraced(function* (
  store: WritableStore,
  settled: Settled,
): Effect.fn.Return<boolean, SafeFsError> {
  const free = yield* Effect.option(named(store, settled));
  // Who committed it may have died before this.
  yield* settled.place.directory.sync;
  // Where the disk had no room for its name, these say that it is still to be made.
  if (Option.isSome(free)) yield* Effect.ignore(letGo(store, settled.session));
  return Option.getOrElse(free, () => true);
});
