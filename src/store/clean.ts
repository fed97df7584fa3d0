/** Removes uploads that nobody came back for, and says for long that it did. */
import { Clock, Effect, type Scope } from "effect";
import { Locks } from "#services/Locks";
import type { Directory, SafeFsError } from "#services/SafeFs";
import { type Format, MemberWalk } from "#src/archive/walk";
import type { Ticket } from "#src/proof/texts";
import { isSession, type Session } from "#src/wire/names";
import { settle, settledOf } from "./settled.ts";
import { find, whereFound, type WritableStore } from "./store.ts";
import { ticketOf } from "./tickets.ts";
import { discard } from "./upload.ts";

const hour = 60 * 60 * 1000;
const day = 24 * hour;
/** A stream of qvm-backup's cannot be made again: only where its link broke is it gone on with. */
const streamKept = day;
/** A later run goes on with slots, under a ticket of its own. */
const slotsKept = 30 * day;
/** How long it is told that an upload was removed. */
const goneKept = 400 * day;
/** What one run removes at most. */
const most = 256;

/** A file of an upload, or of an identity that was never linked. */
const leftover = /^([0-9a-f]{32})(?:\.[a-z]+(?:\.new)?)?$/;

/** When an entry was last written to, in milliseconds; undefined where there is none. */
const touched = (directory: Directory, name: string) =>
  Effect.map(find(directory, name), (entry) => entry?.modified);

/** Which format a pack is begun in, by its first tar header; undefined where there is none. */
export const formatOf = (
  incoming: Directory,
  session: Session,
): Effect.Effect<Format | undefined, SafeFsError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const file = yield* whereFound(incoming.open(session, "read"));
      if (file === undefined) return undefined;
      const walk = new MemberWalk({ format: "pack" });
      const header = new Uint8Array(512);
      walk.take(header.subarray(0, yield* file.read(header, 0)));
      return walk.format;
    }),
  );

/** Is it still of use to somebody? */
const kept = Effect.fnUntraced(function* (
  { incoming }: WritableStore,
  session: Session,
  names: ReadonlyArray<string>,
  now: number,
) {
  const asked = yield* touched(incoming, `${session}.ticket`);
  if ((yield* formatOf(incoming, session)) === "slots") return now - (asked ?? 0) < slotsKept;
  const times = yield* Effect.forEach(names, (name) => touched(incoming, name));
  return now - Math.max(0, ...times.map((time) => time ?? 0)) < streamKept;
});

/** Names in `incoming/` by the session that they begin with. */
const leftovers = Effect.fnUntraced(function* ({ incoming }: WritableStore) {
  const found = new Map<Session, Array<string>>();
  for (const name of yield* incoming.names) {
    const session = leftover.exec(name)?.[1];
    if (isSession(session)) found.set(session, [...(found.get(session) ?? []), name]);
  }
  return found;
});

/** Runs `work` with the lock on a session; nothing where it is held, or where the disk will not have it. */
const unlessLive = <A>(
  store: WritableStore,
  session: Session,
  work: Effect.Effect<A, SafeFsError, Scope.Scope>,
): Effect.Effect<A | undefined, never, Locks> =>
  Locks.pipe(
    Effect.flatMap((locks) => locks.hold(store.lockKey(`session:${session}`))),
    Effect.andThen(work),
    Effect.scoped,
    Effect.orElseSucceed(() => undefined),
  );

/** Sessions of uploads that are kept no longer, as `clean` removes them. */
export const expired = Effect.fnUntraced(function* (
  store: WritableStore,
): Effect.fn.Return<ReadonlyArray<Session>, SafeFsError, Locks> {
  const now = yield* Clock.currentTimeMillis;
  const found: Array<Session> = [];
  for (const [session, names] of yield* leftovers(store)) {
    const over = Effect.gen(function* () {
      if ((yield* settledOf(store, session)) !== undefined) return false;
      return !(yield* kept(store, session, names, now));
    });
    if ((yield* unlessLive(store, session, over)) === true) found.push(session);
  }
  return found;
});

/** Removes what has been kept for long enough; `own` is spared: its client is here, however late. */
export const clean = Effect.fnUntraced(function* (
  store: WritableStore,
  own: string,
): Effect.fn.Return<void, SafeFsError, Locks> {
  const { gone, incoming } = store;
  const now = yield* Clock.currentTimeMillis;
  let removed = 0;
  for (const [session, names] of yield* leftovers(store)) {
    if (session === own || removed >= most) continue;
    const work = Effect.gen(function* () {
      const settled = yield* settledOf(store, session);
      if (settled !== undefined) return yield* settle(store, settled);
      if (yield* kept(store, session, names, now)) return false;
      // Nobody knows of one that never had a ticket, or a byte.
      const known =
        (yield* find(incoming, session)) !== undefined &&
        (yield* ticketOf(incoming, session)) !== undefined;
      const why = known ? "no link came back to it" : undefined;
      yield* discard(store, session, why);
      for (const name of names) yield* Effect.ignore(incoming.remove(name));
      return true;
    });
    if ((yield* unlessLive(store, session, work)) !== false) removed += 1;
  }
  for (const session of yield* gone.names) {
    const at = yield* touched(gone, session);
    if (removed >= most || at === undefined || now - at < goneKept) continue;
    yield* Effect.ignore(gone.remove(session));
    removed += 1;
  }
});

/** Kept uploads of the series of `ticket`, the oldest first: not its own, nor another signer's, nor a live one. */
export const spare = Effect.fnUntraced(function* (
  store: WritableStore,
  { series, session: own, signer }: Ticket,
): Effect.fn.Return<ReadonlyArray<Session>, SafeFsError, Locks> {
  const { incoming } = store;
  const found: Array<{ readonly session: Session; readonly at: number }> = [];
  for (const session of (yield* leftovers(store)).keys()) {
    const ticket = session === own ? undefined : (yield* ticketOf(incoming, session))?.ticket;
    if (ticket?.signer !== signer || ticket.series !== series) continue;
    const at = (yield* touched(incoming, `${session}.ticket`)) ?? 0;
    if ((yield* unlessLive(store, session, Effect.succeed(true))) === true) {
      found.push({ session, at });
    }
  }
  return found.toSorted((a, b) => a.at - b.at).map(({ session }) => session);
});

/** Removes one of these; where somebody has gone on with it just now, it stays. */
export const makeRoom = (
  store: WritableStore,
  session: Session,
): Effect.Effect<void, never, Locks> =>
  Effect.asVoid(
    unlessLive(
      store,
      session,
      discard(store, session, "its room was needed for a newer one of the same series"),
    ),
  );
