/**
 * An archive on its way in: its bytes, the digest of each block, the tree hash and the structure walk
 * so far, and how much of it a power loss would leave.
 *
 * The order is everything: blocks are synced before their digests are appended, and the digests before
 * anybody is told. So a digest on disk means that its block is there, and an upload can go on from
 * its digests without reading what it has.
 */
import { Effect, Latch, type Scope, Semaphore } from "effect";
import type { File, SafeFsError } from "#services/SafeFs";
import { FullChunk } from "#src/archive/parameters";
import { digestSize, leafOf, treeHasher } from "#src/proof/treehash";
import { Walk } from "#src/archive/walk";
import { blockSize } from "#src/wire/frames";
import type { Session } from "#src/wire/names";
import { Refused, refuse } from "./failure.ts";
import type { Room } from "./usage.ts";
import { clear, find, whereFound, type WritableStore } from "./store.ts";

/** Bytes after which a sync begins, and at which the client has to wait for it. */
const syncAfter = 8 * blockSize;
const unsyncedLimit = 64 * blockSize;
/** A sync begins this long after something unsynced came, too. In milliseconds. */
const syncWithin = 2000;
/** Blocks at the end of an upload that are read again before it goes on; more than were ever unsynced. */
const doubted = 72;

export interface Upload {
  readonly session: Session;
  readonly data: File;
  readonly walk: Walk;
  /** Bytes taken so far. */
  readonly size: () => number;
  /** Bytes that a power loss would leave, a multiple of 1 MiB. */
  readonly durable: () => number;
  /** Hex; undefined while there is nothing. */
  readonly treehash: () => string | undefined;
  /** Takes a block (1 MiB, the last one may be shorter); waits while too much is unsynced. */
  readonly add: (block: Uint8Array) => Effect.Effect<void, Refused | SafeFsError>;
  /** Returns when what was taken before is durable. */
  readonly flush: Effect.Effect<void, SafeFsError>;
  /** Fails where a flush has failed: any error of a flush ends an upload for good. */
  readonly sound: Effect.Effect<void, SafeFsError>;
  /** Flushes again and again, and runs `synced` after each; ends only by failing. */
  readonly flushing: <E>(synced: Effect.Effect<void, E>) => Effect.Effect<never, E | SafeFsError>;
}

export const digestsOf = (session: string): string => `${session}.digests`;
export const recordOf = (session: string): string => `${session}.record`;
export const probeOf = (session: string): string => `${session}.probe`;

/** Forgets an upload; of a committed one only the names that it came in under. */
export const discard = Effect.fnUntraced(function* (
  { digests, incoming }: WritableStore,
  session: string,
): Effect.fn.Return<void, SafeFsError> {
  const data = yield* find(incoming, session);
  const rest = Effect.forEach(
    [recordOf, probeOf, digestsOf],
    (of) => clear(incoming, of(session)),
    {
      discard: true,
    },
  );
  if (data?.links === 1) {
    // Its bytes go last: while they are there, it can be seen that they are nobody's archive.
    yield* clear(digests, session);
    yield* rest;
    yield* clear(incoming, session);
  } else {
    yield* clear(incoming, session);
    yield* rest;
  }
});

const create = Effect.fnUntraced(function* (store: WritableStore, session: Session) {
  const { incoming } = store;
  yield* discard(store, session);
  return yield* Effect.gen(function* () {
    const data = yield* incoming.create(session, 0o600);
    const digests = yield* incoming.create(digestsOf(session), 0o600);
    return { data, digests, blocks: 0 };
  }).pipe(Effect.tapError(() => Effect.ignore(discard(store, session))));
});

/** Opens what is there, and cuts it back to the blocks that are proven to be there. */
const reopen = Effect.fnUntraced(function* (store: WritableStore, session: Session) {
  const { incoming, own, root } = store;
  // An upload that was cut off while it was being committed may be read-only already.
  yield* Effect.scoped(
    Effect.flatMap(incoming.open(session, "read"), (file) => file.protect(0o600)),
  );
  const data = yield* incoming.open(session, "write");
  const digests =
    (yield* whereFound(incoming.open(digestsOf(session), "write"))) ??
    (yield* incoming.create(digestsOf(session), 0o600));
  const sizes = {
    data: (yield* data.stat).size,
    digests: (yield* digests.stat).size,
  };
  let blocks = Math.min(Math.floor(sizes.data / blockSize), Math.floor(sizes.digests / digestSize));
  const block = new Uint8Array(blocks === 0 ? 0 : blockSize);
  const digest = new Uint8Array(digestSize);
  for (let i = Math.max(0, blocks - doubted); i < blocks; i++) {
    yield* data.read(block, i * blockSize);
    yield* digests.read(digest, i * digestSize);
    if (!leafOf(block).equals(digest)) blocks = i;
  }
  if (sizes.data !== blocks * blockSize) yield* data.truncate(blocks * blockSize);
  if (sizes.digests !== blocks * digestSize) yield* digests.truncate(blocks * digestSize);
  yield* data.sync;
  yield* digests.sync;
  yield* Effect.forEach([incoming, own, root], (directory) => directory.sync, { discard: true });
  return { data, digests, blocks };
});

/** The walk over bytes that are on disk already: only what it looks at is read. */
const rewalk = Effect.fnUntraced(function* (walk: Walk, data: File, size: number) {
  const buffer = new Uint8Array(size === 0 ? 0 : 32_768);
  while (walk.offset < size) {
    const skip = Math.min(walk.skippable, size - walk.offset);
    if (skip > 0) {
      walk.skip(skip);
      continue;
    }
    const n = yield* data.read(
      buffer.subarray(0, Math.min(buffer.length, size - walk.offset)),
      walk.offset,
    );
    const fault = n === 0 ? undefined : walk.push(buffer.subarray(0, n));
    if (n === 0 || fault !== undefined) {
      return yield* refuse("incomplete", fault?.message ?? "the upload is shorter than it was");
    }
  }
});

/** The caller holds the lock on the session, and holds it for as long as the scope is open. */
export const openUpload = Effect.fnUntraced(function* (
  store: WritableStore,
  session: Session,
  room: Room,
): Effect.fn.Return<Upload, Refused | SafeFsError, Scope.Scope> {
  const { incoming, own, root } = store;
  const found = yield* find(incoming, session);
  if (found?.links !== 1 && (found !== undefined || (yield* find(store.digests, session)))) {
    return yield* refuse("bad-request", "that session has its archive already");
  }
  const opened = yield* found === undefined
    ? create(store, session)
    : // A flush that fails here is a failed flush, too.
      Effect.tapError(reopen(store, session), () => Effect.ignore(discard(store, session)));
  const { data, digests } = opened;

  const tree = treeHasher();
  const leaves = new Uint8Array(Math.min(opened.blocks, 32_768) * digestSize);
  while (tree.leaves() < opened.blocks) {
    const n = yield* digests.read(
      leaves.subarray(0, (opened.blocks - tree.leaves()) * digestSize),
      tree.leaves() * digestSize,
    );
    for (let at = 0; at < n; at += digestSize) tree.push(leaves.subarray(at, at + digestSize));
  }
  const walk = new Walk({ fullChunk: yield* FullChunk });
  yield* rewalk(walk, data, opened.blocks * blockSize).pipe(
    Effect.tapError(() => Effect.ignore(discard(store, session))),
  );

  let limit = room.bytes;
  let taken = opened.blocks * blockSize;
  let synced = taken;
  /** Blocks whose digests are on disk, and the digests of those after them. */
  let proven = opened.blocks;
  let fresh: Array<Uint8Array> = [];
  /** The directory entries of a new upload are not on disk before the first flush. */
  let rooted = opened.blocks > 0;
  const some = Latch.makeUnsafe(false);
  const many = Latch.makeUnsafe(false);
  const roomy = Latch.makeUnsafe(true);
  const turn = Semaphore.makeUnsafe(1);
  /** What a flush failed with. A later one may succeed, and what the first lost is lost all the same. */
  let failed: SafeFsError | undefined;

  const flush = turn.withPermits(1)(
    Effect.uninterruptible(
      Effect.gen(function* () {
        if (failed !== undefined) return yield* failed;
        if (synced === taken && rooted) return;
        const upTo = taken;
        const batch = fresh;
        fresh = [];
        yield* data.sync;
        yield* digests.write(Buffer.concat(batch), proven * digestSize);
        yield* digests.sync;
        if (!rooted) {
          for (const directory of [incoming, own, root]) yield* directory.sync;
          rooted = true;
        }
        proven += batch.length;
        synced = upTo;
        if (taken - synced < syncAfter) many.closeUnsafe();
        if (taken === synced) some.closeUnsafe();
        roomy.openUnsafe();
      }).pipe(
        // Kept, because whoever ran this flush may have been interrupted while it went on.
        Effect.tapError((error) =>
          Effect.sync(() => {
            failed = error;
          }),
        ),
      ),
    ),
  );

  return {
    session,
    data,
    walk,
    size: () => taken,
    durable: () => Math.floor(synced / blockSize) * blockSize,
    treehash: tree.root,
    add: Effect.fnUntraced(function* (block: Uint8Array) {
      if (taken + block.length > limit) limit = yield* room.more;
      if (taken + block.length > limit) {
        return yield* refuse("quota", "the store has no room left for this account");
      }
      while (taken - synced >= unsyncedLimit) {
        roomy.closeUnsafe();
        yield* roomy.await;
      }
      const fault = walk.push(block);
      if (fault !== undefined) return yield* refuse("incomplete", fault.message);
      // On its way to the disk while it is hashed: that takes another thread, and no longer.
      const [, leaf] = yield* Effect.all(
        [data.write(block, taken), Effect.sync(() => leafOf(block))],
        { concurrency: 2 },
      );
      tree.push(leaf);
      fresh.push(leaf);
      taken += block.length;
      some.openUnsafe();
      if (taken - synced >= syncAfter) many.openUnsafe();
    }),
    flush,
    sound: Effect.suspend(() => (failed === undefined ? Effect.void : failed)),
    flushing: Effect.fnUntraced(function* (after) {
      for (;;) {
        yield* some.await;
        yield* Effect.timeoutOption(many.await, syncWithin);
        yield* flush;
        yield* after;
      }
    }),
  };
});
