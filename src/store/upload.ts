/**
 * An upload: the pack that comes, the digests of its blocks and the table of its members. What it says
 * is durable, a power loss leaves; what is there behind that, it cuts off when it goes on.
 */
import { Clock, Effect, Latch, Option, Schema, type Scope, Semaphore } from "effect";
import type { File, SafeFsError } from "#services/SafeFs";
import { FullChunk } from "#src/archive/parameters";
import { type Begun, type Format, ListWalk, MemberWalk } from "#src/archive/walk";
import { packHasher } from "#src/proof/pack";
import { lineOf } from "#src/proof/table";
import { digestSize, leafOf } from "#src/proof/treehash";
import { ackAfter, blockSize } from "#src/wire/limits";
import { Instant, instantOf, type Session } from "#src/wire/names";
import { LinkLost, noRoom, type Refused, refuse } from "./failure.ts";
import { filesOf, letGo, recordName, settledOf } from "./settled.ts";
import { clear, find, readText, whereFound, type WritableStore, writeText } from "./store.ts";

/** Bytes at which the client has to wait for a sync. */
const unsyncedLimit = 64 * blockSize;
/** Bytes at the end of an upload that are read again before it goes on: never was more of it unsynced. */
const doubted = unsyncedLimit + blockSize;

/** So much is on disk together with its digests. */
export interface Durable {
  /** Bytes; the end of a block. */
  readonly offset: number;
  /** The running hash over them. */
  readonly running: string;
}

export interface Upload {
  readonly session: Session;
  /** Undefined until the first tar header came. */
  readonly format: () => Format | undefined;
  /** Bytes taken so far. */
  readonly size: () => number;
  /** Members that are whole. */
  readonly members: () => number;
  /** Nothing is there of a member that is not whole. */
  readonly atMemberEnd: () => boolean;
  readonly durable: () => Durable;
  /** Takes a block of one member (1 MiB, a member's last one may be shorter); waits while too much is unsynced. */
  readonly add: (block: Uint8Array) => Effect.Effect<void, Refused | SafeFsError>;
  /** Returns when what was taken before is durable. */
  readonly flush: Effect.Effect<void, LinkLost | SafeFsError>;
  /** Fails where a flush has failed: any error of a flush ends an upload for good. */
  readonly sound: Effect.Effect<void, LinkLost | SafeFsError>;
  /** Flushes again and again, and runs `synced` after each; ends only by failing. */
  readonly flushing: <E, R>(
    synced: Effect.Effect<void, E, R>,
  ) => Effect.Effect<never, E | LinkLost | SafeFsError, R>;
  /** As `flush`, and the table too. */
  readonly seal: Effect.Effect<void, LinkLost | SafeFsError>;
  /** From now on so many bytes more may come; fewer than none ends it. */
  readonly allow: (more: number) => Effect.Effect<void, Refused>;
}

/** What is kept of an upload that was removed. */
const Gone = Schema.Struct({ since: Instant, why: Schema.String.check(Schema.isMaxLength(200)) });
type Gone = typeof Gone.Type;
const decodeGone = Schema.decodeUnknownOption(Schema.fromJsonString(Gone));
const goneLimit = 1024;

/** Since when and why an upload is no more; undefined where nothing is known of it. */
export const goneOf = Effect.fnUntraced(function* (
  { gone }: WritableStore,
  session: Session,
): Effect.fn.Return<Gone | undefined, SafeFsError> {
  const text = yield* Effect.scoped(
    whereFound(Effect.flatMap(gone.open(session, "read"), (file) => readText(file, goneLimit))),
  );
  return Option.getOrUndefined(decodeGone(text));
});

/**
 * Takes away, durably, what a commit that did not come to its end has put under the names of packs: a
 * pack whose upload is gone would pass for one that is committed. Where this program may not (a profile
 * of AppArmor lets it remove no packs), it stays and is in nobody's way.
 */
export const withdraw = Effect.fnUntraced(function* (
  { digests, packs, recipes, records, tables }: WritableStore,
  session: string,
): Effect.fn.Return<void, SafeFsError> {
  const published = [
    [packs, session],
    [digests, session],
    [tables, session],
    [recipes, session],
    [records, recordName(session)],
  ] as const;
  for (const [directory, name] of published) {
    if ((yield* find(directory, name)) === undefined) continue;
    yield* Effect.catchIf(
      clear(directory, name),
      ({ reason }) => reason === "not-permitted",
      () => Effect.void,
    );
    yield* directory.sync;
  }
});

/**
 * Forgets an upload, and says why to whoever asks; of one that became an archive, only the names that it
 * came in under. The caller holds the lock on the session.
 */
export const discard = Effect.fnUntraced(function* (
  store: WritableStore,
  session: Session,
  why?: string,
): Effect.fn.Return<void, SafeFsError> {
  const archived = (yield* Effect.scoped(settledOf(store, session))) !== undefined;
  const note = Effect.gen(function* () {
    if (archived || why === undefined) return;
    const said: Gone = { since: instantOf(yield* Clock.currentTimeMillis), why };
    yield* writeText(store.gone, session, JSON.stringify(said));
  });
  const noted = yield* Effect.isSuccess(note);
  if (!archived) yield* withdraw(store, session);
  yield* letGo(store, session);
  // A full disk has had no room for it before.
  if (!noted) yield* Effect.ignore(note);
});

/** A walk over a pack, and the member that it is in. */
const packWalk = (full: number) => {
  const list = new ListWalk({ format: "pack", fullChunk: full });
  let begun: Begun | undefined;
  const walk = new MemberWalk({
    format: "pack",
    fullChunk: full,
    begin: (member) => {
      begun = member;
      return list.next(member);
    },
  });
  return { walk, begun: () => begun! };
};

/** Bytes that are read at once where the walk wants to see them. */
const glance = 32_768;

/**
 * Walks the blocks of a pack on disk that are whole, at most so many, and gives each to `see`. Only what
 * the walk looks at is read; it ends before the first block that is not there, or is none.
 */
const traverse = Effect.fnUntraced(function* <E>(
  walk: MemberWalk,
  data: File,
  limits: { readonly bytes: number; readonly blocks: number },
  see: (start: number, length: number) => Effect.Effect<void, E>,
) {
  const buffer = new Uint8Array(Math.min(glance, limits.bytes));
  /** Walks on to this offset; false where that is not possible. */
  const walkTo = Effect.fnUntraced(function* (end: number) {
    while (walk.offset < end && end <= limits.bytes) {
      const skip = Math.min(walk.skippable, end - walk.offset);
      if (skip > 0) {
        walk.skip(skip);
        continue;
      }
      const most = Math.min(buffer.length, end - walk.offset);
      const n = yield* data.read(buffer.subarray(0, most), walk.offset);
      if (n === 0) return false;
      walk.take(buffer.subarray(0, n));
      if (walk.fault !== undefined) return false;
    }
    return walk.offset === end;
  });
  for (let i = 0; i < limits.blocks; i++) {
    const start = walk.offset;
    while (walk.end === undefined) if (!(yield* walkTo(walk.offset + tarBlock))) return;
    const end = Math.min(start + blockSize, walk.end);
    if (!(yield* walkTo(end))) return;
    yield* see(start, end - start);
  }
});
const tarBlock = 512;

/** An offset between two blocks, and how many there are before it. */
interface Mark {
  readonly bytes: number;
  readonly blocks: number;
}

/**
 * How much of an upload is proven to be there: its blocks have digests, and the last of them, which a
 * power loss may have torn, fit these. Also where the last member before that ends.
 */
const proven = Effect.fnUntraced(function* (data: File, digests: File, full: number) {
  const { walk } = packWalk(full);
  const limits = {
    bytes: (yield* data.stat).size,
    blocks: Math.floor((yield* digests.stat).size / digestSize),
  };
  let end: Mark = { bytes: 0, blocks: 0 };
  let whole = end;
  /** The blocks that end among the last bytes; before those, some that are not cut off the list yet. */
  let last: Array<{ readonly at: Mark; readonly length: number; readonly whole: Mark }> = [];
  const trim = () => {
    last = last.filter(({ at, length }) => at.bytes + length > end.bytes - doubted);
  };
  yield* traverse(walk, data, limits, (bytes, length) =>
    Effect.sync(() => {
      last.push({ at: end, length, whole });
      end = { bytes: bytes + length, blocks: end.blocks + 1 };
      if (walk.atMemberEnd) whole = end;
      if (end.bytes - last[0]!.at.bytes > 2 * doubted) trim();
    }),
  );
  trim();
  const block = new Uint8Array(last.reduce((most, { length }) => Math.max(most, length), 0));
  const first = end.blocks - last.length;
  const kept = new Uint8Array(last.length * digestSize);
  yield* digests.read(kept, first * digestSize);
  for (const { at, length, whole: before } of last) {
    const bytes = block.subarray(0, length);
    yield* data.read(bytes, at.bytes);
    const digest = kept.subarray((at.blocks - first) * digestSize).subarray(0, digestSize);
    if (!leafOf(bytes).equals(digest)) return { end: at, whole: before };
  }
  return { end, whole };
});

/** Digests, or lines of a table, that are read or written at once. */
const batch = 8192;

export interface Opening {
  /** Bytes that the upload may have at most. */
  readonly bytes: number;
  /** Which limit that is, where no ticket says it. */
  readonly short?: "quota" | "no-space";
  /** Counts how many bytes more the store has room for. */
  readonly more: Effect.Effect<number, Refused | SafeFsError>;
  /** It goes on under another ticket: only whole members are of use there. */
  readonly continued: boolean;
}

/**
 * Opens an upload that is there, or begins one. The caller holds the lock on the session for as long
 * as the scope is open.
 */
export const openUpload = Effect.fnUntraced(function* (
  store: WritableStore,
  session: Session,
  { bytes: most, continued, more, short }: Opening,
): Effect.fn.Return<Upload, Refused | SafeFsError, Scope.Scope> {
  const { held, incoming, own, root } = store;
  const full = yield* FullChunk;
  const names = filesOf(session);
  const found = (yield* find(incoming, session)) !== undefined;
  const ensure = Effect.fnUntraced(function* (name: string) {
    return (
      (yield* whereFound(incoming.open(name, "write"))) ?? (yield* incoming.create(name, 0o600))
    );
  });
  if (!found) for (const name of [names.digests, names.table]) yield* clear(incoming, name);
  const data = yield* ensure(session);
  const digests = yield* ensure(names.digests);
  const table = yield* ensure(names.table);
  const { inode } = yield* data.stat;

  const { begun, walk } = packWalk(full);
  const hasher = packHasher();
  /** Lines of members that are whole, and not in the table yet. */
  let lines: Array<string> = [];
  let tableSize = 0;
  const endMember = () => {
    const digest = Buffer.from(hasher.endMember()).toString("hex");
    lines.push(lineOf({ ...begun(), digest }));
  };
  const writeTable = Effect.fnUntraced(function* () {
    if (lines.length === 0) return;
    const text = Buffer.from(lines.join(""), "latin1");
    lines = [];
    yield* table.write(text, tableSize);
    tableSize += text.length;
  });

  yield* table.truncate(0);
  let start: Mark = { bytes: 0, blocks: 0 };
  if (found) {
    const there = yield* proven(data, digests, full);
    start = continued ? there.whole : there.end;
    yield* data.truncate(start.bytes);
    yield* digests.truncate(start.blocks * digestSize);
    const leaves = new Uint8Array(Math.min(batch, start.blocks) * digestSize);
    let blocks = 0;
    yield* traverse(walk, data, start, () =>
      Effect.gen(function* () {
        const at = (blocks % batch) * digestSize;
        if (at === 0) yield* digests.read(leaves, blocks * digestSize);
        hasher.block(leaves.subarray(at, at + digestSize));
        blocks += 1;
        if (walk.atMemberEnd) endMember();
        if (lines.length >= batch) yield* writeTable();
      }),
    );
    if (blocks < start.blocks)
      return yield* refuse("internal", "the upload changes while it is read");
    yield* data.sync;
    yield* digests.sync;
    for (const directory of [incoming, held, own, root]) yield* directory.sync;
  }

  let limit = most;
  let taken = start.bytes;
  let durable: Durable = { offset: taken, running: hasher.running() };
  /** Blocks whose digests are on disk, and the digests of those after them. */
  let written = start.blocks;
  let fresh: Array<Uint8Array> = [];
  /** The directory entries of a new upload are not on disk before the first flush. */
  let rooted = found;
  const some = Latch.makeUnsafe(false);
  const many = Latch.makeUnsafe(false);
  const roomy = Latch.makeUnsafe(true);
  const turn = Semaphore.makeUnsafe(1);
  /** What a flush failed with. A later one may succeed, and what the first lost is lost all the same. */
  let failed: LinkLost | SafeFsError | undefined;

  const flush = turn.withPermits(1)(
    Effect.uninterruptible(
      Effect.gen(function* () {
        if (failed !== undefined) return yield* failed;
        if (durable.offset === taken && rooted) return;
        const upTo: Durable = { offset: taken, running: hasher.running() };
        const leaves = fresh;
        fresh = [];
        yield* data.sync;
        yield* digests.write(Buffer.concat(leaves), written * digestSize);
        yield* digests.sync;
        yield* writeTable();
        if (!rooted) {
          for (const directory of [incoming, held, own, root]) yield* directory.sync;
          rooted = true;
        }
        if ((yield* find(incoming, session))?.inode !== inode) {
          return yield* new LinkLost({ why: "the upload is not in the store any more" });
        }
        written += leaves.length;
        durable = upTo;
        if (taken - durable.offset < ackAfter.bytes) many.closeUnsafe();
        if (taken === durable.offset) some.closeUnsafe();
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
    format: () => walk.format,
    size: () => taken,
    members: () => hasher.whole(),
    atMemberEnd: () => walk.offset === 0 || walk.atMemberEnd,
    durable: () => durable,
    add: Effect.fnUntraced(function* (block: Uint8Array) {
      if (taken + block.length > most) {
        return yield* short === undefined
          ? refuse("bad-request", "more bytes than the ticket says")
          : noRoom(short);
      }
      if (taken + block.length > limit) limit = Math.min(most, taken + (yield* more));
      if (taken + block.length > limit) return yield* noRoom("quota");
      while (taken - durable.offset >= unsyncedLimit) {
        roomy.closeUnsafe();
        yield* roomy.await;
      }
      const n = walk.take(block);
      const { atMemberEnd, fault } = walk;
      if (fault !== undefined) return yield* refuse("incomplete", fault.message);
      if (n < block.length)
        return yield* refuse("bad-request", "a frame with more than one member");
      if (!atMemberEnd && n < blockSize) {
        return yield* refuse("bad-request", "a frame with less than a block of its member");
      }
      // On its way to the disk while it is hashed: that takes another thread, and no longer.
      const [, leaf] = yield* Effect.all(
        [data.write(block, taken), Effect.sync(() => leafOf(block))],
        { concurrency: 2 },
      );
      hasher.block(leaf);
      fresh.push(leaf);
      if (atMemberEnd) endMember();
      taken += block.length;
      some.openUnsafe();
      if (taken - durable.offset >= ackAfter.bytes) many.openUnsafe();
    }),
    flush,
    sound: Effect.suspend(() => (failed === undefined ? Effect.void : Effect.fail(failed))),
    flushing: Effect.fnUntraced(function* (after) {
      for (;;) {
        yield* some.await;
        yield* Effect.timeoutOption(many.await, ackAfter.seconds * 1000);
        yield* flush;
        yield* after;
      }
    }),
    seal: Effect.gen(function* () {
      yield* flush;
      yield* writeTable();
      for (const file of [data, digests, table]) yield* file.syncAll;
    }),
    allow: (left) => {
      limit = Math.min(most, taken + left);
      return left < 0 ? noRoom("quota") : Effect.void;
    },
  };
});
