/** `list [PREFIX]`: the archives, sorted by name, said one by one as they are found. */
import { DateTime, Effect, type Scope } from "effect";
import type { Directory, Entry, SafeFsError } from "#services/SafeFs";
import { Walk } from "#src/archive/walk";
import { signatureHolds } from "#src/proof/keys";
import { parseManifest, parseReceipt, receiptDiffers, type Record } from "#src/proof/manifest";
import { isName, isPrefix, manifestSuffix, type Name } from "#src/wire/names";
import type { Reply } from "#src/wire/reply";
import type { LinkLost } from "#src/store/failure";
import { find, readRecord, type Store } from "#src/store/store";
import { deepest } from "#src/store/usage";
import type { Conversation } from "#src/shell/verbs";

type Archive = Extract<Reply, { type: "archive" }>;

/** Enough to see the first member. */
const firstBytes = 10_240;

/** Does it begin as a Qubes backup does? */
const isArchive = Effect.fnUntraced(function* (directory: Directory, base: string) {
  const file = yield* directory.open(base, "read");
  const bytes = new Uint8Array(firstBytes);
  const n = yield* file.read(bytes, 0);
  return n === firstBytes && new Walk().push(bytes) === undefined;
}, Effect.scoped);

/**
 * What the record says, as far as the server's own signature or its own count backs it. Where this
 * account may not read the identity, the key that an archive's manifest names has to do.
 */
const vouched = (
  { key, sealed }: Store,
  name: Name,
  size: number,
  record: Record,
): Omit<Archive, "type" | "name"> | undefined => {
  const { manifest, receipt, receiptSignature } = record;
  if (manifest === null || receipt === null || receiptSignature === null) {
    return record.stored === undefined
      ? undefined
      : { size, treehash: record.treehash ?? null, stored: record.stored, verified: false };
  }
  const said = parseReceipt(receipt);
  if (said === undefined) return undefined;
  const server = sealed ? parseManifest(manifest)?.server : key?.server;
  const verified =
    server !== undefined &&
    signatureHolds(server, receipt, receiptSignature) &&
    receiptDiffers(said, manifest) === undefined &&
    said.name === name &&
    said.size === size;
  return { size, treehash: said.treehash, stored: said.stored, verified };
};

const describe = Effect.fnUntraced(function* (
  store: Store,
  directory: Directory,
  base: string,
  name: Name,
  { modified, size }: Entry,
): Effect.fn.Return<Archive | undefined, SafeFsError> {
  const record = yield* readRecord(directory, base);
  const known = record === undefined ? undefined : vouched(store, name, size, record);
  if (known !== undefined) return { type: "archive", name, ...known };
  if (!(yield* isArchive(directory, base))) return undefined;
  const stored = DateTime.formatIso(DateTime.makeUnsafe(Math.floor(modified)));
  return { type: "archive", name, size, treehash: null, stored, verified: false };
});

export const list = Effect.fnUntraced(function* (
  { prefix = "" }: { readonly prefix?: string },
  { store, voice }: Conversation<Store>,
) {
  let count = 0;
  const visit = (
    directory: Directory,
    path: string,
  ): Effect.Effect<void, SafeFsError | LinkLost, Scope.Scope> =>
    Effect.gen(function* () {
      const entries: Array<{ readonly key: string; readonly base: string; readonly entry: Entry }> =
        [];
      for (const base of yield* directory.names) {
        const name = path + base;
        const near = name.startsWith(prefix) || prefix.startsWith(`${name}/`);
        if (!near || !isPrefix(name)) continue;
        const entry = yield* find(directory, base);
        if (entry === undefined || entry.kind === "other") continue;
        // Sorted as if everything in a directory stood here already.
        entries.push({ key: entry.kind === "directory" ? `${base}/` : base, base, entry });
      }
      entries.sort((a, b) => (a.key < b.key ? -1 : 1));
      for (const { base, entry } of entries) {
        const name = path + base;
        if (entry.kind === "file") {
          if (base.endsWith(manifestSuffix) || !isName(name) || !name.startsWith(prefix)) continue;
          const archive = yield* describe(store, directory, base, name, entry).pipe(unlessGone);
          if (archive === undefined) continue;
          yield* voice.say(archive);
          count += 1;
        } else if (name.split("/").length < deepest) {
          yield* directory.directory(base).pipe(
            unlessGone,
            Effect.flatMap((inner) =>
              inner === undefined ? Effect.void : visit(inner, `${name}/`),
            ),
            Effect.scoped,
          );
        }
      }
    });
  yield* visit(store.root, "");
  yield* voice.say({ type: "end", count });
});

/** What went away meanwhile, or may not be read, is not listed. */
const unlessGone = <A, R>(
  effect: Effect.Effect<A, SafeFsError, R>,
): Effect.Effect<A | undefined, SafeFsError, R> =>
  Effect.catchIf(
    effect,
    ({ reason }) => reason === "not-found" || reason === "not-permitted" || reason === "not-plain",
    () => Effect.undefined,
  );
