/** How much of the disk a store takes. */
import { Effect } from "effect";
import { Locks } from "#services/Locks";
import type { Directory, SafeFsError } from "#services/SafeFs";
import { isPrefix } from "#src/wire/names";
import { clean, inTheWayAfter } from "./clean.ts";
import { type Refused, refuse } from "./failure.ts";
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
/** What an upload may take. */
export interface Room {
  /** Bytes that it may have in all, as counted before it began. */
  readonly bytes: number;
  /** Counts again, after uploads that stand in its way are gone; they are left in peace before. */
  readonly more: Effect.Effect<number, Refused | SafeFsError>;
}

/**
 * The room for the upload `session`; refused when there is none to speak of. What nobody came back for
 * must not take it: it would stay for ever, as only an upload that begins removes it.
 */
export const roomFor = Effect.fnUntraced(function* (
  store: WritableStore,
  quota: number | undefined,
  session: string,
): Effect.fn.Return<Room, Refused | SafeFsError, Locks> {
  const locks = yield* Locks;
  const more = Effect.ignore(clean(store, session, inTheWayAfter)).pipe(
    Effect.andThen(counted(store, quota, session)),
    Effect.provideService(Locks, locks),
  );
  // Against a quota the room is counted before the upload begins, so what goes later would not count.
  if (quota !== undefined) yield* Effect.ignore(clean(store, session));
  const bytes = yield* Effect.catchTag(counted(store, quota, session), "Refused", () => more);
  return { bytes, more };
});

/** Bytes; less than a client may send before the first sync would tell. */
const leastFree = 67_108_864;
