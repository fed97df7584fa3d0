/**
 * The one way back: the members of an archive, proven by the root that dom0 trusts, and their blocks,
 * each proven by its member's digest before a byte of it is used. Verification, audit and restore are
 * made of it.
 */
import { Effect, Exit, Fiber, Latch, Scope, Semaphore } from "effect";
import { Ledger } from "#services/Ledger";
import type { Call } from "#services/Qrexec";
import { archiveSize } from "#src/archive/walk";
import {
  archiveMembers,
  blocksOf,
  type Members,
  type Placed,
  provenBlock,
  type TextReader,
} from "#src/proof/members";
import { type Manifest, parseManifest } from "#src/proof/texts";
import { printable } from "#src/say/shown";
import { asking, type Due } from "#src/wire/asking";
import { frames } from "#src/wire/frames";
import { aliveAfter, blockSize, proofLimit } from "#src/wire/limits";
import { readExactLine } from "#src/wire/lines";
import type { Name, Session } from "#src/wire/names";
import type { Failed } from "#src/wire/reply";
import { parseReply, type Request } from "#src/wire/request";
import type { Ask } from "#src/wire/verbs/read";
import { failed, type RunFailed, spoiled } from "#src/dom0/failure";
import { inLedger } from "#src/dom0/books/unusable";
import { LinkBroken, reach, refusal } from "./call.ts";
import { linkTimeout, persist, watchProgress, watchSilence } from "./retry.ts";

/** What dom0 knows of an archive, and on whose word nothing depends but its own. */
export interface Trusted extends Pick<
  Manifest,
  "name" | "session" | "size" | "members" | "root" | "format"
> {
  /** The qube that carries it. */
  readonly destination: string;
}

export const trustedBy = (
  { format, members, name, root, session, size }: Manifest,
  destination: string,
): Trusted => ({ name, session, size, members, root, format, destination });

/** The archive of this name as the ledger has it: the latest line, with its manifest. */
export const fromLedger = Effect.fnUntraced(function* (name: string, destination: string) {
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const entry = entries.findLast((e) => e.name === name && e.destination === destination);
  const manifest = entry === undefined ? undefined : parseManifest(entry.manifest);
  if (entry === undefined || manifest === undefined) return undefined;
  return { trusted: trustedBy(manifest, destination), manifest, entry };
});

/** Blocks of a member that are to be read. */
export interface Want extends Ask {
  readonly of: Placed;
}
/** All blocks of a member, or `count` of them from `block` on. */
export const wantOf = (of: Placed, block = 0, count = blocksOf(of.length) - block): Want => ({
  session: of.session,
  member: of.member,
  block,
  count,
  of,
});

/** All blocks of all members, in their order. */
export const allOf = function* (list: Members) {
  for (let i = 0; i < list.count; i++) yield wantOf(list.at(i));
};

/** The server has not, or not any more, what was backed up. */
export const somethingElse = (name: Name): RunFailed =>
  failed("integrity", `the server has something else under the name ${name}`);

/** What it means that the server does not give a block of a member which the archive must have. */
const notGiven = (reply: Failed, what: string, digest: string): RunFailed =>
  reply.code === "damaged" || reply.code === "pruned" || reply.code === "not-found"
    ? spoiled(`${what} is lost: the server says ${reply.code}`, [digest])
    : refusal(reply);

/** Bytes of tables that are kept in case that another archive needs them. */
const keptTables = 64 * blockSize;
/** Calls for tables: each costs a connection, which is mostly waiting. */
const callsAtOnce = 4;

/** A conversation under way. */
interface Link {
  readonly scope: Scope.Closeable;
  readonly call: Call;
  readonly next: ReturnType<typeof frames>["next"];
  readonly rest: Parameters<typeof frames>[0];
}

/** What is read from the server behind one qube, for as long as the scope lasts. */
export const openFar = Effect.fnUntraced(function* (destination: string) {
  let link: Link | undefined;
  /** It is made while the members are asked for. */
  let early: Fiber.Fiber<void> | undefined;
  const own = yield* Effect.scope;
  /** The server has answered once. */
  let begun = false;
  /** Bytes that came and were of use. */
  let through = 0;
  /** Texts that are waited for; a block that is. */
  let texts = 0;
  let waiting = false;
  /** Every block that came was what was backed up. */
  let proven = true;
  const writing = yield* Semaphore.make(1);

  /** What can never be waited for too long, and in what time it is to get through. */
  const guarded = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.raceFirst(
      effect,
      watchProgress({
        through: () => through,
        awaited: () => waiting || texts > 0,
        bytesAwaited: () => waiting || texts > 0,
        up: () => link !== undefined || texts > 0,
        linkTimeout,
        soFar: () =>
          proven ? "what was read by then is proven" : "not all that was read by then is sound",
      }),
    );
  const persistence = {
    through: () => through,
    begun: () => begun,
    soFar: () => "the link broke",
  };

  /** A call whose first reply is `ready`; what an error means in its place. */
  const opened = Effect.fnUntraced(function* (
    request: Request<"read"> | Request<"recipe"> | Request<"table">,
    means: (reply: Failed) => RunFailed,
  ) {
    const { call, first, rest } = yield* reach(destination, request, { before: begun });
    if (first.type === "error") return yield* means(first);
    if (first.type !== "ready") {
      return yield* failed("integrity", `the server began with ${first.type}`);
    }
    return { call, rest };
  });

  /** Text in frames, into a reader that is made anew for each try. */
  const text = Effect.fnUntraced(function* (
    request: Request<"recipe"> | Request<"table">,
    reader: () => TextReader,
    name: Name,
    see: (bytes: Uint8Array) => void = () => {},
  ) {
    const once = Effect.gen(function* () {
      const into = reader();
      const { rest } = yield* opened(request, (reply) =>
        reply.code === "not-found"
          ? failed("integrity", `${name} is not on the server any more`)
          : reply.code === "damaged"
            ? failed("integrity", `the server says that ${name} is damaged`)
            : refusal(reply),
      );
      begun = true;
      const { next } = frames(rest, blockSize);
      const reading = Effect.gen(function* () {
        for (;;) {
          const frame = yield* next;
          if (frame.kind === "keep-alive") continue;
          if (frame.kind === "zero") {
            return into.finish() ? undefined : yield* somethingElse(name);
          }
          if (frame.kind !== "bytes") return yield* new LinkBroken({ reason: "the link ended" });
          through += frame.bytes.length;
          if (!into.push(frame.bytes)) return yield* somethingElse(name);
          see(frame.bytes);
        }
      });
      yield* Effect.raceFirst(watchSilence(rest.received), reading);
    });
    texts += 1;
    yield* guarded(persist(once, persistence)).pipe(
      Effect.ensuring(Effect.sync(() => (texts -= 1))),
    );
  });

  /** Tables as they came, the one that was not asked for the longest first. */
  const tables = new Map<Session, ReadonlyArray<Uint8Array>>();
  let kept = 0;
  /** Of archives that are looked at side by side, one fetches a table for all. */
  const fetching = new Map<Session, Semaphore.Semaphore>();
  const tableOnce = (list: Members, session: Session, name: Name) => {
    const turn = fetching.get(session) ?? Semaphore.makeUnsafe(1);
    fetching.set(session, turn);
    return turn.withPermits(1)(table(list, session, name));
  };
  const table = Effect.fnUntraced(function* (list: Members, session: Session, name: Name) {
    const known = tables.get(session);
    if (known !== undefined) {
      tables.delete(session);
      tables.set(session, known);
      const reader = list.table(session);
      const sound = known.every((bytes) => reader.push(bytes)) && reader.finish();
      return sound ? undefined : yield* somethingElse(name);
    }
    let pieces: Array<Uint8Array> = [];
    let bytes = 0;
    const reader = () => {
      pieces = [];
      bytes = 0;
      return list.table(session);
    };
    yield* text({ verb: "table", session }, reader, name, (piece) => {
      bytes += piece.length;
      if (bytes <= keptTables) pieces.push(Uint8Array.from(piece));
      else pieces = [];
    });
    if (bytes > keptTables) return;
    kept += bytes;
    tables.set(session, pieces);
    for (const [old, its] of tables) {
      if (kept <= keptTables) break;
      tables.delete(old);
      kept -= its.reduce((sum, piece) => sum + piece.length, 0);
    }
  });

  const write = (call: Call, line: string) =>
    writing.withPermits(1)(call.stdin.write(new TextEncoder().encode(line)));

  const connect = Effect.gen(function* () {
    const scope = yield* Scope.make();
    return yield* Effect.gen(function* () {
      const { call, rest } = yield* opened({ verb: "read" }, refusal);
      // Between two passes of a restore nothing may be asked for, for long.
      yield* Effect.sleep(`${aliveAfter} seconds`).pipe(
        Effect.andThen(write(call, ".\n")),
        Effect.forever,
        Effect.ignore,
        Effect.forkScoped,
      );
      const { next } = frames(rest, blockSize + proofLimit);
      return { scope, call, next, rest } satisfies Link;
    }).pipe(
      Scope.provide(scope),
      Effect.onExit((exit) => (Exit.isSuccess(exit) ? Effect.void : Scope.close(scope, exit))),
    );
  });
  /** The conversation, unless it is there. */
  const linked = Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      link ??= yield* restore(connect);
      return link;
    }),
  );

  /**
   * The members of an archive, in its order; `reading`: blocks of them are read next. Fails with
   * `integrity` for any other than were backed up.
   */
  const members = Effect.fnUntraced(function* (trusted: Trusted, reading = true) {
    const { name } = trusted;
    // A connection is mostly waiting. Where this one fails, reading makes it again, and says why.
    if (reading && early === undefined) early = yield* Effect.forkIn(Effect.ignore(linked), own);
    const list = archiveMembers(trusted.members);
    yield* text({ verb: "recipe", name }, list.recipe, name);
    yield* Effect.forEach(list.sessions(), (session) => tableOnce(list, session, name), {
      concurrency: callsAtOnce,
      discard: true,
    });
    if (
      list.root() !== trusted.root ||
      archiveSize(trusted.format, list.bytes()) !== trusted.size
    ) {
      return yield* somethingElse(name);
    }
    return list;
  });

  const hangUp = Effect.suspend(() => {
    const old = link;
    link = undefined;
    return old === undefined ? Effect.void : Scope.close(old.scope, Exit.void);
  });
  // A server that is asked to end is through with it at once; one that is not there is not waited for.
  yield* Effect.addFinalizer(() =>
    Effect.suspend(() =>
      link === undefined
        ? Effect.void
        : write(link.call, "\n").pipe(
            Effect.andThen(link.call.stdin.end),
            Effect.andThen(link.call.ended),
            Effect.timeoutOption("3 seconds"),
            Effect.ignore,
          ),
    ).pipe(Effect.andThen(hangUp)),
  );

  /**
   * Reads blocks in order, some ahead, and gives each to `use`, proven; the bytes are `use`'s until it
   * is through. A link that breaks is made again from the next block. A block that is not what was backed
   * up, or that the server does not give, is for `lost`, which by itself ends it.
   */
  const blocks = Effect.fnUntraced(function* <W extends Want, R>(
    wants: Iterable<W>,
    use: (want: W, block: number, bytes: Uint8Array) => Effect.Effect<void, RunFailed, R>,
    lost: (want: W, block: number, failure: RunFailed) => Effect.Effect<void, RunFailed, R> = (
      _want,
      _block,
      failure,
    ) => failure,
  ) {
    const asked = asking(wants[Symbol.iterator]());
    /** What came and waits to be used: a tool that pauses must not hold the server up. */
    const came: Array<{ readonly due: Due<W>; readonly bytes: Uint8Array | RunFailed }> = [];
    /** Room of blocks that were used, for others: as much anew for each would be a third of the work. */
    const spare: Array<ArrayBuffer> = [];
    const copyOf = (bytes: Uint8Array): Uint8Array => {
      const copy = new Uint8Array(spare.pop() ?? new ArrayBuffer(blockSize), 0, bytes.length);
      copy.set(bytes);
      return copy;
    };
    const there = Latch.makeUnsafe(false);
    const room = Latch.makeUnsafe(false);
    let over = false;
    const arrived = (due: Due<W>, bytes: Uint8Array | RunFailed) => {
      asked.answered(true);
      proven &&= bytes instanceof Uint8Array;
      came.push({ due, bytes });
      waiting = false;
      there.openUnsafe();
    };
    const once = Effect.gen(function* () {
      if (asked.done()) return;
      waiting = true;
      if (early !== undefined) yield* Fiber.await(early);
      if (link === undefined) asked.anew();
      const { call, next, rest } = yield* linked;
      begun = true;
      const reading = Effect.gen(function* () {
        for (;;) {
          room.closeUnsafe();
          const lines = asked.lines();
          waiting = true;
          if (lines !== "") yield* write(call, lines);
          const due = asked.due();
          if (due === undefined) {
            waiting = false;
            if (asked.done()) return;
            yield* room.await;
            continue;
          }
          const { block, want } = due;
          const what = `block ${block} of ${printable(want.of.path)}`;
          const frame = yield* next;
          if (frame.kind === "keep-alive") continue;
          if (frame.kind === "bytes") {
            const bytes = provenBlock(want.of, block, frame.bytes);
            through += frame.bytes.length;
            arrived(
              due,
              bytes === undefined
                ? spoiled(`${what} is not what was backed up`, [want.of.digest])
                : copyOf(bytes),
            );
            continue;
          }
          if (frame.kind !== "give-up") return yield* new LinkBroken({ reason: "the link ended" });
          const line = yield* readExactLine(rest);
          const reply = line === undefined ? undefined : parseReply("read", line);
          if (reply?.type !== "error") {
            return yield* new LinkBroken({ reason: "the server broke off" });
          }
          through += 1;
          arrived(due, notGiven(reply, what, want.of.digest));
        }
      });
      yield* Effect.raceFirst(
        watchSilence(rest.received, () => waiting),
        reading,
      );
    }).pipe(
      // What was asked for and is still on its way must not be taken for the answer to something else.
      Effect.onExit((exit) => (Exit.isSuccess(exit) ? Effect.void : hangUp)),
    );
    const fetching = guarded(persist(once, persistence)).pipe(
      Effect.ensuring(
        Effect.sync(() => {
          waiting = false;
          over = true;
          there.openUnsafe();
        }),
      ),
    );
    const using = Effect.gen(function* () {
      for (;;) {
        there.closeUnsafe();
        const first = came.shift();
        if (first === undefined) {
          if (over) return;
          yield* there.await;
          continue;
        }
        const { bytes, due } = first;
        if (bytes instanceof Uint8Array) {
          yield* use(due.want, due.block, bytes);
          spare.push(bytes.buffer as ArrayBuffer);
        } else yield* lost(due.want, due.block, bytes);
        asked.used();
        room.openUnsafe();
      }
    });
    yield* Effect.all([fetching, using], { concurrency: 2, discard: true });
  });

  return { members, blocks };
});
export type Far = Effect.Success<ReturnType<typeof openFar>>;
