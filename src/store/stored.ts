/** An archive that is in the store: its bytes, what its record says, the digests of its blocks. */
import { Effect, type Scope } from "effect";
import type { Directory, File, SafeFsError } from "#services/SafeFs";
import { digestSize, leafOf, treeLevels } from "#src/proof/treehash";
import { blockSize } from "#src/wire/frames";
import { parseManifest, parseReceipt, type Record } from "#src/proof/manifest";
import type { Name } from "#src/wire/names";
import { type Refused, refuse } from "./failure.ts";
import { locate, readRecord, type Store } from "./store.ts";

export interface Stored {
  readonly file: File;
  /** In bytes, as the file has it now. */
  readonly size: number;
  readonly record: Record | undefined;
  /** What the record says the archive is; undefined where nobody said anything. */
  readonly said: { readonly size: number; readonly treehash: string } | undefined;
}

export const openStored = Effect.fnUntraced(function* (
  store: Store,
  name: Name,
): Effect.fn.Return<Stored, Refused | SafeFsError, Scope.Scope> {
  const missing = refuse("not-found", "there is no archive of that name");
  const { base, directory } = yield* locate(store.root, name).pipe(
    Effect.catchIf(
      (error) => error._tag === "Refused" && error.code === "no-directory",
      () => missing,
    ),
  );
  const file = yield* directory.open(base, "read").pipe(
    Effect.catchIf(
      ({ reason }) => reason === "not-found" || reason === "not-plain",
      () => missing,
    ),
  );
  const record = yield* readRecord(directory, base);
  const receipt = typeof record?.receipt === "string" ? parseReceipt(record.receipt) : undefined;
  const said =
    receipt ??
    (record?.size === undefined || record.treehash === undefined
      ? undefined
      : { size: record.size, treehash: record.treehash });
  return { file, size: (yield* file.stat).size, record, said };
});

/** The digests that were kept when the archive came in; undefined where there are none that fit. */
const keptDigests = Effect.fnUntraced(function* (root: Directory, session: string, blocks: number) {
  const own = yield* root.directory(".qbackup");
  const file = yield* (yield* own.directory("digests")).open(session, "read");
  const bytes = new Uint8Array(blocks * digestSize);
  const { size } = yield* file.stat;
  return size === bytes.length && (yield* file.read(bytes, 0)) === size ? bytes : undefined;
}, Effect.scoped);

/** Gives every block of the file to `see`, in one buffer. */
export const eachBlock = Effect.fnUntraced(function* <E, R>(
  { file, size }: Stored,
  see: (block: Uint8Array, index: number) => Effect.Effect<void, E, R>,
) {
  const buffer = new Uint8Array(blockSize);
  for (let at = 0; at < size; at += blockSize) {
    const n = yield* file.read(buffer.subarray(0, Math.min(blockSize, size - at)), at);
    if (n === 0) return;
    yield* see(buffer.subarray(0, n), at / blockSize);
  }
});

/**
 * The tree over an archive's blocks: from the digests that were kept, or, where there are none, or
 * they are not what they were, from the bytes, which takes as long as reading them.
 */
export const treeOf = Effect.fnUntraced(function* (store: Store, stored: Stored) {
  const blocks = Math.ceil(stored.size / blockSize);
  const { record, said } = stored;
  const session =
    typeof record?.manifest === "string" ? parseManifest(record.manifest)?.session : undefined;
  // They only save time: where they cannot be read, the bytes can.
  const kept =
    session === undefined
      ? undefined
      : yield* Effect.orElseSucceed(keptDigests(store.root, session, blocks), () => undefined);
  if (kept !== undefined) {
    const levels = treeLevels(kept);
    const root = Buffer.from(levels.at(-1)!).toString("hex");
    if (said === undefined || said.size !== stored.size || said.treehash === root) return levels;
  }
  const digests = new Uint8Array(blocks * digestSize);
  yield* eachBlock(stored, (block, index) =>
    Effect.sync(() => digests.set(leafOf(block), index * digestSize)),
  );
  return treeLevels(digests);
});
