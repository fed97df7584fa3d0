/** How much of the disk a store takes, and how much an upload may have. */
import { Effect } from "effect";
import { Locks } from "#services/Locks";
import type { Directory, Entry, SafeFsError } from "#services/SafeFs";
import { isSession } from "#src/wire/names";
import { recordName } from "./settled.ts";
import { find, type Store, whereFound } from "./store.ts";
import { ticketOf } from "./tickets.ts";

/** Bytes of the disk that stay free; more than a client may send before the first sync would tell. */
const leastFree = 67_108_864;

/** Bytes of the files among them. */
const bytesOf = (entries: ReadonlyMap<string, Entry>): number => {
  let bytes = 0;
  for (const { kind, size } of entries.values()) bytes += kind === "file" ? size : 0;
  return bytes;
};

/** Bytes of all that is committed, and of the books: everything but the uploads. */
const settled = Effect.fnUntraced(function* (own: Directory) {
  const entries = yield* own.entries;
  let size = bytesOf(entries);
  for (const [name, { kind }] of entries) {
    if (kind !== "directory" || name === "incoming") continue;
    const directory = yield* whereFound(own.directory(name));
    if (directory !== undefined) size += bytesOf(yield* directory.entries);
  }
  return size;
}, Effect.scoped);

/** What of an upload is counted, in bytes. */
interface Part {
  /** All that lies in `incoming/`. */
  readonly bytes: number;
  /** What of that lies in `packs/`, too, as from the middle of a commit on. */
  readonly linked: number;
}

/** The uploads, by session. */
const uploads = Effect.fnUntraced(function* (own: Directory) {
  const found = new Map<string, Part>();
  const incoming = yield* whereFound(own.directory("incoming"));
  if (incoming === undefined) return found;
  const packs = yield* whereFound(own.directory("packs"));
  for (const [name, { kind, size }] of yield* incoming.entries) {
    if (kind !== "file") continue;
    const session = name.slice(0, 32);
    const linked =
      name === session && packs !== undefined && (yield* find(packs, session)) !== undefined;
    const before = found.get(session) ?? { bytes: 0, linked: 0 };
    found.set(session, {
      bytes: before.bytes + size,
      linked: before.linked + (linked ? size : 0),
    });
  }
  return found;
}, Effect.scoped);

/** What a commit that has not come to its end has put under the names of packs, in bytes. */
const published = Effect.fnUntraced(function* (own: Directory, session: string) {
  let size = 0;
  for (const name of ["packs", "digests", "tables", "recipes", "records"]) {
    const directory = yield* whereFound(own.directory(name));
    const file = name === "records" ? recordName(session) : session;
    const entry = directory === undefined ? undefined : yield* find(directory, file);
    size += entry?.size ?? 0;
  }
  return size;
}, Effect.scoped);

/** Bytes that an upload is going to have: a live one what its ticket says, another what it has. */
const reserved = Effect.fnUntraced(function* (
  { lockKey, own }: Store,
  session: string,
  size: number,
): Effect.fn.Return<number, SafeFsError, Locks> {
  if (own === undefined || lockKey === undefined || !isSession(session)) return size;
  const locks = yield* Locks;
  const live = yield* Effect.scoped(locks.hold(lockKey(`session:${session}`))).pipe(
    Effect.as(false),
    Effect.orElseSucceed(() => true),
  );
  if (!live) return size;
  const ticket = yield* Effect.scoped(
    Effect.flatMap(own.directory("incoming"), (incoming) => ticketOf(incoming, session)),
  );
  return Math.max(size, ticket?.ticket.bytes ?? 0);
});

/** What there is for one upload more. */
export interface Room {
  /** In bytes. */
  readonly bytes: number;
  /** Which limit it is that leaves no more. */
  readonly short: "quota" | "no-space";
  /** Bytes that uploads under way may have yet. */
  readonly reserved: number;
}

/** How full a store is. `quota` is in bytes. */
export interface Gauge {
  /**
   * What an upload may have that begins now; the bytes of the uploads `freed` count for nothing: its
   * own, and those that could go. All uploads that are under way have what their tickets ask for.
   */
  readonly room: (freed?: ReadonlyArray<string>) => Effect.Effect<Room, SafeFsError, Locks>;
  /**
   * How many bytes more the store may have as it is on disk; too many are a negative number. What is
   * committed is counted anew only where the number of packs has changed, or `all` is true.
   */
  readonly left: (all?: boolean) => Effect.Effect<number, SafeFsError>;
}

export const gauge = (store: Store, quota: number | undefined): Gauge => {
  const { own, root } = store;
  let counted: { readonly packs: number; readonly bytes: number } | undefined;
  const committed = Effect.fnUntraced(function* (directory: Directory, all: boolean) {
    const packs = yield* whereFound(directory.directory("packs"));
    const length = packs === undefined ? 0 : (yield* packs.names).length;
    if (all || counted?.packs !== length) {
      counted = { packs: length, bytes: yield* settled(directory) };
    }
    return counted.bytes;
  }, Effect.scoped);
  return {
    room: Effect.fnUntraced(function* (freed = []) {
      const without = new Set(freed);
      const free = yield* (own ?? root).free;
      let used = own === undefined || quota === undefined ? 0 : yield* committed(own, false);
      let coming = 0;
      let back = 0;
      for (const [of, { bytes, linked }] of own === undefined ? [] : yield* uploads(own)) {
        if (without.has(of)) {
          back += bytes;
          if (linked > 0 && quota !== undefined) used -= yield* published(own!, of);
          continue;
        }
        // What lies in `packs/` too is counted there.
        const all = yield* reserved(store, of, bytes);
        used += all - linked;
        coming += all - bytes;
      }
      const onDisk = free + back - leastFree - coming;
      const allowed = (quota ?? Number.MAX_SAFE_INTEGER) - used;
      return {
        bytes: Math.max(0, Math.min(onDisk, allowed)),
        short: allowed <= onDisk ? "quota" : "no-space",
        reserved: coming,
      };
    }),
    left: Effect.fnUntraced(function* (all = false) {
      if (own === undefined || quota === undefined) return Number.MAX_SAFE_INTEGER;
      let size = yield* committed(own, all);
      for (const { bytes, linked } of (yield* uploads(own)).values()) size += bytes - linked;
      return quota - size;
    }),
  };
};
