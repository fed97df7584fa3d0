/** How much of the disk a store takes. */
import { Effect } from "effect";
import type { Directory, SafeFsError } from "#services/SafeFs";
import { isPrefix } from "#src/wire/names";
import { clean } from "./clean.ts";
import { refuse } from "./failure.ts";
import { find, type WritableStore } from "./store.ts";

/** Names have at most so many components. */
export const deepest = 8;

/** Uploads that are committed lie under two names, and count once. */
const sizeOf = Effect.fnUntraced(function* (directory: Directory, except?: string) {
  let size = 0;
  for (const name of yield* directory.names) {
    const entry = name === except ? undefined : yield* find(directory, name);
    if (entry?.kind === "file" && entry.links === 1) size += entry.size;
  }
  return size;
});

const visibleSize = (directory: Directory, path: string): Effect.Effect<number, SafeFsError> =>
  Effect.gen(function* () {
    let size = 0;
    for (const name of yield* directory.names) {
      const inside = `${path}${name}/`;
      if (!isPrefix(inside)) continue;
      const entry = yield* find(directory, name);
      if (entry?.kind === "file") size += entry.size;
      if (entry?.kind !== "directory" || inside.split("/").length > deepest) continue;
      size += yield* Effect.scoped(
        Effect.flatMap(directory.directory(name), (next) => visibleSize(next, inside)),
      ).pipe(Effect.orElseSucceed(() => 0));
    }
    return size;
  });

const counted = Effect.fnUntraced(function* (
  store: WritableStore,
  quota: number | undefined,
  session: string,
) {
  if ((yield* store.incoming.free) < leastFree) {
    return yield* refuse("no-space", "the server's disk is nearly full");
  }
  if (quota === undefined) return Number.MAX_SAFE_INTEGER;
  const used =
    (yield* visibleSize(store.root, "")) +
    (yield* sizeOf(store.incoming, session)) +
    (yield* sizeOf(store.digests));
  return used < quota
    ? quota - used
    : yield* refuse("quota", "the store has no room left for this account");
});
/**
 * Bytes that the upload `session` may have in all; refused when there is no room to speak of. What
 * nobody came back for must not take it: it would stay for ever, as only an upload that begins
 * removes it.
 */
export const roomFor = Effect.fnUntraced(function* (
  store: WritableStore,
  quota: number | undefined,
  session: string,
) {
  const cleaned = Effect.ignore(clean(store, session));
  // Against a quota the room is counted once, so what goes later would not count.
  if (quota !== undefined) yield* cleaned;
  return yield* counted(store, quota, session).pipe(
    Effect.catchTag("Refused", () => Effect.andThen(cleaned, counted(store, quota, session))),
  );
});

/** Bytes; less than a client may send before the first sync would tell. */
const leastFree = 67_108_864;
