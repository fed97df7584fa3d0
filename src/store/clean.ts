/** Removes uploads that nobody came back for: their streams cannot be made again. */
import { Clock, Effect } from "effect";
import { Locks } from "#services/Locks";
import { find, type WritableStore } from "./store.ts";
import { discard } from "./upload.ts";

const hour = 60 * 60 * 1000;
/**
 * A laptop that sleeps comes back hours later, and a clock that is set may jump by some. In milliseconds.
 */
const abandonedAfter = 24 * hour;
/** But where there is no room for a new upload, an old one waits no longer than this. In milliseconds. */
export const inTheWayAfter = 2 * hour;
/** Uploads that one run removes at most. */
const most = 256;

/** A file of an upload, or of an identity that was never linked. */
const leftover = /^([0-9a-f]{32})(?:\.[a-z]+)?$/;

/** `own` is spared: its client is here, however late. */
export const clean = Effect.fnUntraced(function* (
  store: WritableStore,
  own: string,
  after = abandonedAfter,
) {
  const { incoming } = store;
  const locks = yield* Locks;
  const names = new Map<string, Array<string>>();
  for (const name of yield* incoming.names) {
    const session = leftover.exec(name)?.[1];
    if (session !== undefined && session !== own)
      names.set(session, [...(names.get(session) ?? []), name]);
  }
  /** When one of its files was last written to; undefined once there are none. */
  const touched = (session: string) =>
    Effect.gen(function* () {
      const entries = yield* Effect.forEach(names.get(session) ?? [], (name) =>
        find(incoming, name),
      );
      const times = entries.flatMap((entry) => (entry === undefined ? [] : [entry.modified]));
      return times.length === 0 ? undefined : Math.max(...times);
    });
  const abandoned = Effect.fnUntraced(function* (session: string) {
    const last = yield* touched(session);
    return last !== undefined && (yield* Clock.currentTimeMillis) - last >= after;
  });
  let removed = 0;
  for (const session of names.keys()) {
    if (!(yield* abandoned(session))) continue;
    yield* Effect.scoped(
      Effect.gen(function* () {
        yield* locks.hold(store.lockKey(`session:${session}`));
        if (!(yield* abandoned(session))) return;
        yield* discard(store, session);
        for (const name of names.get(session) ?? []) yield* Effect.ignore(incoming.remove(name));
      }),
    ).pipe(Effect.ignore); // held, or the disk will not have it: the next run looks again
    removed += 1;
    if (removed >= most) return;
  }
});
