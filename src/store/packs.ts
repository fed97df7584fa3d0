/** Packs: the bytes that uploads brought, which nobody changes once they are committed. */
import { Effect, Exit, Scope } from "effect";
import type { File, SafeFsError } from "#services/SafeFs";
import { memberLimit, parseMember } from "#src/proof/table";
import { digestSize, leafOf, treeLevels } from "#src/proof/treehash";
import { blockSize } from "#src/wire/limits";
import type { Session } from "#src/wire/names";
import { type Refused, refuse } from "./failure.ts";
import { nameOf, readRecord, saidOf } from "./record.ts";
import { find, locate, type Store } from "./store.ts";
import { memberAt, openTable, ownDirectory, ownFile, type Table } from "./tables.ts";

/** Where the members of a pack lie. */
export interface Index {
  readonly members: number;
  /** Where each begins, in bytes; and, as the last one, the end of the pack. */
  readonly starts: Float64Array;
  /** How many blocks of the pack come before each; and, as the last one, all of them. */
  readonly blocks: Uint32Array;
}

export interface Pack {
  readonly session: Session;
  readonly file: File;
  /** The SHA-256 of each block, joined, in the order of the pack. */
  readonly digests: File;
  readonly table: Table;
  readonly index: Index;
}

/** Makes the index of a pack of its table's lines, in order; `size` is the table's, in bytes. */
const indexer = (size: number) => {
  // No line is shorter than this, so no table makes more room needed than it takes itself.
  const most = Math.min(memberLimit, Math.floor(size / leastLine));
  const starts = new Float64Array(most + 1);
  const blocks = new Uint32Array(most + 1);
  let members = 0;
  return {
    /** False for what is no line of a member. */
    push: (line: string): boolean => {
      const member = members < most ? parseMember(line) : undefined;
      if (member === undefined) return false;
      starts[members + 1] = starts[members]! + member.length;
      blocks[members + 1] = blocks[members]! + Math.ceil(member.length / blockSize);
      members += 1;
      return true;
    },
    made: (): Index => ({
      members,
      starts: starts.subarray(0, members + 1),
      blocks: blocks.subarray(0, members + 1),
    }),
  };
};
const leastLine = 1 + 1 + 1 + 1 + 3 + 1 + 2 * digestSize + 1;

/**
 * Is what lies under `packs/` an archive's? It is put there before the record, which is the commit,
 * and the upload's own name goes after that: so where both are there, the record decides. It is found
 * by its second name, which was there before it.
 */
export const isCommitted = Effect.fnUntraced(function* (
  store: Pick<Store, "root">,
  session: Session,
): Effect.fn.Return<boolean, SafeFsError> {
  return yield* Effect.scoped(
    Effect.gen(function* () {
      const packs = yield* ownDirectory(store, "packs");
      if (packs === undefined || (yield* find(packs, session))?.kind !== "file") return false;
      const incoming = yield* ownDirectory(store, "incoming");
      if (incoming === undefined || (yield* find(incoming, session)) === undefined) return true;
      const records = yield* ownDirectory(store, "records");
      const second = records === undefined ? undefined : yield* readRecord(records, session);
      const name = second === undefined ? undefined : nameOf(second);
      if (name === undefined) return false;
      const record = yield* locate(store.root, name).pipe(
        Effect.flatMap(({ base, directory }) => readRecord(directory, base)),
        Effect.catchTag("Refused", () => Effect.undefined),
      );
      return record !== undefined && saidOf(record, name)?.session === session;
    }),
  );
});

/** Was the archive of this session pruned? Its pack may be there all the same, for others. */
export const isPruned = (
  store: Pick<Store, "root">,
  session: Session,
): Effect.Effect<boolean, SafeFsError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const tombstones = yield* ownDirectory(store, "tombstones");
      return tombstones !== undefined && (yield* find(tombstones, session)) !== undefined;
    }),
  );

/** Why there is no such pack: `pruned` where its archive was, `not-found` otherwise. */
export const missingPack = Effect.fnUntraced(function* (
  store: Pick<Store, "root">,
  session: Session,
): Effect.fn.Return<never, Refused | SafeFsError> {
  return yield* (yield* isPruned(store, session))
    ? refuse("pruned", "that pack was pruned")
    : refuse("not-found", "there is no such pack in the store");
});

/** A committed pack; otherwise `pruned`, `not-found`, or `damaged` where a part of it is away. */
export const openPack = Effect.fnUntraced(function* (
  store: Pick<Store, "root">,
  session: Session,
): Effect.fn.Return<Pack, Refused | SafeFsError, Scope.Scope> {
  if (!(yield* isCommitted(store, session))) return yield* missingPack(store, session);
  const broken = refuse("damaged", "the table or the digests of that pack are damaged");
  const file = yield* ownFile(store, "packs", session);
  const digests = yield* ownFile(store, "digests", session);
  if (file === undefined || digests === undefined) return yield* broken;
  const text = yield* ownFile(store, "tables", session);
  if (text === undefined) return yield* broken;
  const { made, push } = indexer((yield* text.stat).size);
  const table = yield* Effect.catchTag(openTable(text, push), "Refused", () => broken);
  return { session, file, digests, index: made(), table };
});

/** Packs that are held open at once. */
const mostPacks = 16;
/** Members of the packs that are held open at once, 12 bytes each; the one that comes is besides. */
const mostMembers = 1.5 * memberLimit;

/** Opens packs, and keeps those open that were asked for last; they close with the scope. */
export const packCache = Effect.fnUntraced(function* (
  store: Pick<Store, "root">,
): Effect.fn.Return<
  (session: Session) => Effect.Effect<Pack, Refused | SafeFsError>,
  never,
  Scope.Scope
> {
  const parent = yield* Effect.scope;
  /** What was asked for last stands last. */
  const held = new Map<Session, { readonly pack: Pack; readonly scope: Scope.Closeable }>();
  let members = 0;
  const open = Effect.fnUntraced(function* (session: Session) {
    const scope = yield* Scope.fork(parent);
    const pack = yield* openPack(store, session).pipe(
      Scope.provide(scope),
      Effect.onExit((exit) => (Exit.isFailure(exit) ? Scope.close(scope, exit) : Effect.void)),
    );
    held.set(session, { pack, scope });
    members += pack.index.members;
    for (const [of, one] of held) {
      if (of === session || (held.size <= mostPacks && members <= mostMembers)) break;
      held.delete(of);
      members -= one.pack.index.members;
      yield* Scope.close(one.scope, Exit.void);
    }
    return pack;
  });
  return (session) => {
    const there = held.get(session);
    if (there === undefined) return open(session);
    held.delete(session);
    held.set(session, there);
    return Effect.succeed(there.pack);
  };
});

/** Gives each block of a member to `see`, in a buffer of its caller's; false where the pack ends before. */
export const eachBlock = Effect.fnUntraced(function* <E = never, R = never>(
  { file, index }: Pack,
  member: number,
  buffer: Uint8Array,
  see: (block: Uint8Array) => Effect.Effect<void, E, R>,
): Effect.fn.Return<boolean, E | SafeFsError, R> {
  const end = index.starts[member + 1]!;
  for (let at = index.starts[member]!; at < end; at += blockSize) {
    const wanted = Math.min(blockSize, end - at);
    const block = buffer.subarray(0, wanted);
    if ((yield* file.read(block, at)) < wanted) return false;
    yield* see(block);
  }
  return true;
});

const treeOf = (leaves: Uint8Array, root: string): ReadonlyArray<Uint8Array> | undefined => {
  const levels = treeLevels(leaves);
  return Buffer.from(levels.at(-1)!).toString("hex") === root ? levels : undefined;
};

/**
 * The tree over the blocks of a member: from the digests that were kept, or, where they are not what
 * they were, from its bytes. Undefined where these are not what they were, either.
 */
export const treeOfMember = Effect.fnUntraced(function* (
  pack: Pack,
  member: number,
): Effect.fn.Return<ReadonlyArray<Uint8Array> | undefined, Refused | SafeFsError> {
  const { digests, index } = pack;
  const { digest } = yield* memberAt(pack.table, member);
  const first = index.blocks[member]!;
  const leaves = new Uint8Array((index.blocks[member + 1]! - first) * digestSize);
  yield* digests.read(leaves, first * digestSize);
  const kept = treeOf(leaves, digest);
  if (kept !== undefined) return kept;
  let at = 0;
  yield* eachBlock(pack, member, new Uint8Array(blockSize), (block) =>
    Effect.sync(() => {
      leaves.set(leafOf(block), at);
      at += digestSize;
    }),
  );
  return treeOf(leaves, digest);
});
