/**
 * How an upload becomes an archive. The link of the archive's name is the commit point: before it
 * nothing is listed, after it everything that vouches for the archive is on disk already. Whatever
 * a crash leaves, the same session finds and finishes, or starts again.
 */
import { DateTime, Effect } from "effect";
import { Locks } from "#services/Locks";
import type { SafeFsError } from "#services/SafeFs";
import { parseReceipt, type Record } from "#src/proof/manifest";
import { manifestSuffix, type Session } from "#src/wire/names";
import { signatureHolds } from "#src/proof/keys";
import { Refused, refuse } from "./failure.ts";
import { clear, find, type Place, readRecord, type WritableStore } from "./store.ts";
import { discard, probeOf, recordOf, type Upload } from "./upload.ts";

/** Whoever holds the lock is given this long to let go. In milliseconds. */
const patience = 10_000;

/** Takes the lock on `what` until the scope closes; `asked` returns when another one wants it. */
export const hold = Effect.fnUntraced(function* (store: WritableStore, what: string) {
  const locks = yield* Locks;
  return yield* locks.hold(store.lockKey(what), { stepDownWithin: patience }).pipe(
    Effect.catchTags({
      LockBusy: () => refuse("busy", "another connection is still at it"),
      LockFailed: () => refuse("internal", "the server could not take a lock"),
    }),
  );
});

/** Now, in UTC. */
export const instant: Effect.Effect<string> = Effect.map(DateTime.now, DateTime.formatIso);

const exists = refuse("exists", "there is something of that name already");

/** What stands under a name: nothing, the archive of that session, or (refused) something else. */
export const standing = Effect.fnUntraced(function* (
  store: WritableStore,
  place: Place,
  session: Session,
  /** Does the caller hold the lock on the session? */
  locked: boolean,
): Effect.fn.Return<
  { readonly receipt: string; readonly signature: string } | undefined,
  Refused | SafeFsError
> {
  const { base, directory, record: recordName } = place;
  const archive = yield* find(directory, base);
  if (archive === undefined) {
    // A record without its archive is what a crash leaves; anything else under that name is not.
    const record = yield* find(directory, recordName);
    return record === undefined || record.kind === "file" ? undefined : yield* exists;
  }
  const record = yield* readRecord(directory, base);
  const { receipt, receiptSignature: signature } = record ?? {};
  const said = typeof receipt === "string" ? parseReceipt(receipt) : undefined;
  const ours =
    archive.kind === "file" &&
    typeof receipt === "string" &&
    typeof signature === "string" &&
    said?.session === session &&
    said.name === place.name &&
    said.size === archive.size &&
    signatureHolds(store.key.server, receipt, signature);
  if (!ours) return yield* exists;
  if ((yield* find(store.incoming, session))?.links === 1) {
    // Somebody put a file there by hand between our record and our archive.
    if (!locked) return undefined;
    yield* directory.remove(recordName);
    yield* directory.sync;
    return yield* exists;
  }
  // Whoever committed it may have died before this.
  yield* directory.sync;
  return { receipt, signature };
});

/** Refuses at once what the commit could only refuse after hours. */
export const admit = Effect.fnUntraced(function* (store: WritableStore, place: Place) {
  if (!(yield* place.directory.writable)) {
    return yield* refuse("not-permitted", "the account may not write into that directory");
  }
  const [there, here] = [yield* place.directory.self, yield* store.incoming.self];
  if (there.device !== here.device) {
    return yield* refuse(
      "unsupported",
      "that directory lies on another file system than the store",
    );
  }
});

/** Taken away by a profile's leave, and no archive's record: their names begin with a letter or digit. */
const probeName = `_qbackup-probe${manifestSuffix}`;

/**
 * Tries with an empty file what the commit will do to the upload: better refused now than after hours.
 * The caller holds the lock on the session.
 */
export const rehearse = Effect.fnUntraced(function* (
  { incoming }: WritableStore,
  { directory }: Place,
  session: Session,
): Effect.fn.Return<void, Refused | SafeFsError> {
  const probe = probeOf(session);
  yield* clear(incoming, probe);
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

/** The caller holds the lock on the session, and everything in `upload` is synced. */
export const commit = Effect.fnUntraced(function* (
  store: WritableStore,
  place: Place,
  upload: Upload,
  record: Record,
) {
  const { digests, incoming } = store;
  const { base, directory, record: recordName } = place;
  const { data, session } = upload;
  yield* data.protect(0o440);
  yield* data.syncAll;

  yield* clear(digests, session);
  yield* incoming.link(`${session}.digests`, digests, session);
  yield* digests.sync;

  yield* clear(incoming, recordOf(session));
  yield* Effect.scoped(
    Effect.gen(function* () {
      const file = yield* incoming.create(recordOf(session), 0o440);
      yield* file.write(new TextEncoder().encode(JSON.stringify(record)), 0);
      yield* file.syncAll;
    }),
  );

  yield* Effect.scoped(
    Effect.gen(function* () {
      yield* hold(store, `name:${place.name}`);
      if ((yield* find(directory, base)) !== undefined) return yield* exists;
      yield* clear(directory, recordName);
      yield* incoming.link(recordOf(session), directory, recordName);
      yield* Effect.gen(function* () {
        yield* directory.sync;
        yield* incoming.link(session, directory, base).pipe(
          Effect.catchIf(
            (error) => error.reason === "exists",
            () => exists,
          ),
        );
        // From here on it is an archive, unless the disk says that it is not.
        yield* directory.sync.pipe(Effect.tapError(() => Effect.ignore(clear(directory, base))));
      }).pipe(Effect.tapError(() => Effect.ignore(clear(directory, recordName))));
    }),
  );
  yield* Effect.ignore(discard(store, session));
});
