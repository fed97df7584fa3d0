/**
 * One archive on its way: a window of blocks that the server has not yet acknowledged, and a link
 * that is made again whenever it breaks.
 *
 * The blocks of the window are the only copy of what qvm-backup wrote, for its stream cannot be made
 * twice; so a block leaves the window only when the server says that it is on disk, and says so of
 * exactly these bytes: it is never believed about a byte that it was not sent. Waiting for room in the
 * window is what qvm-backup feels as back-pressure.
 */
import { Deferred, Effect, Fiber, Latch } from "effect";
import type { BytesError } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import type { Call } from "#services/Qrexec";
import { Reporter } from "#services/Reporter";
import { packHasher } from "#src/proof/pack";
import type { Member } from "#src/proof/table";
import type { SignedTicket, Ticket } from "#src/proof/texts";
import { giveUpFrame, keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { aliveAfter, blockSize } from "#src/wire/limits";
import { type WireError, wordsOfNothing } from "#src/wire/lines";
import { isName, type Name, type PublicKey, Session } from "#src/wire/names";
import type { Failed } from "#src/wire/reply";
import type { Reply } from "#src/wire/request";
import { humanSize } from "#src/say/format";
import { line, printable } from "#src/say/shown";
import { callEnded, isFailed, LinkBroken, mayPass, orNoServer, reach, refusal } from "./call.ts";
import { failed, rejected, type RunFailed, undecidedYet } from "#src/dom0/failure";
import { persist, watchProgress, watchSilence } from "./retry.ts";
import { askWho, type Meeting, meet, newTicket, type Room, roomNow, staleRun } from "./server.ts";

/** The reply that ends an upload. */
export type Stored = Extract<Reply<"put">, { readonly type: "stored" }>;

/** What stands behind the members. */
export interface Trailer {
  readonly manifest: string;
  /** Over the manifest: its 64 bytes. */
  readonly signature: Uint8Array;
  /** Lines of wishes. */
  readonly recipe: string;
}

export interface Upload {
  /** As asked for, or with six digits of the session in it if that name was taken. */
  readonly name: () => Name;
  /** The ticket as it stands; another one may take its place. */
  readonly ticket: () => SignedTicket;
  /** The same, which from now on stays: the manifest is made by it. */
  readonly settledTicket: () => SignedTicket;
  /** The server's public key: the pinned one, or the first. */
  readonly server: PublicKey;
  /** Members of the pack that were there already, the first of those that were noted. */
  readonly there: number;
  /** Bytes that were handed over. */
  readonly made: () => number;
  /** A buffer for the next block, with room for its length in front; waits for room in the window. */
  readonly buffer: Effect.Effect<Uint8Array>;
  /** Hands it back with `size` bytes of a block in it (from byte 4 on), and the running hash behind them. */
  readonly push: (buffer: Uint8Array, size: number, running: string) => Effect.Effect<void>;
  /** Says that the blocks are all, and returns when the server has stored them. */
  readonly finish: (trailer: Trailer) => Effect.Effect<Stored, RunFailed>;
  /** Never returns but with what ended the link for good; to be raced with whatever feeds it. */
  readonly broken: Effect.Effect<never, RunFailed>;
  /** In bytes; and whether there is a link at the moment. */
  readonly progress: () => { readonly sent: number; readonly acked: number; readonly up: boolean };
}

/** What an upload is of. */
export interface Beginning {
  readonly session: Session;
  /** The archive that it builds on. */
  readonly base: Ticket["base"];
  /**
   * The members of its pack that earlier runs have sent, in order: the first ones of them may be there.
   * Undefined where this run is the first that knows of it.
   */
  readonly noted: ReadonlyArray<Pick<Member, "digest" | "length">> | undefined;
  /** Its run is above this one, whatever the server has seen. */
  readonly above?: number;
}

export interface UploadOptions extends Meeting {
  readonly name: Name;
  /** Asked for once it is known who the server is; `room` is how many bytes an upload may have there. */
  readonly beginning: (server: PublicKey, room: Room) => Effect.Effect<Beginning, RunFailed>;
  /** Another one: the server has not what it builds on, or not what was sent of it. */
  readonly another: (missing: "base" | "session") => Effect.Effect<Beginning, RunFailed>;
  /** A later run goes on with what was sent in this one, however this one ends. */
  readonly kept: boolean;
  /** What the archive can have at most, in bytes; undefined where that is not known. */
  readonly most: number | undefined;
  /** What the archive is likely to have at least, in bytes: with less room than that it waits a while. */
  readonly least: number;
  /** Blocks that may wait for an acknowledgement. */
  readonly window: number;
  /** Minutes without progress, while bytes wait or the link is down, after which it gives up. */
  readonly linkTimeout: number;
  /** KiB a second that must get through while bytes wait. */
  readonly floor: number;
}

/** A link that broke is told by EPIPE at once; why it did may still be on its way. Seconds. */
const lastWords = 4;
/** Tickets that are tried in one run, each for a reason that the server gave. */
const ticketTries = 8;

/** What the server says of an upload that was begun by another signer, or for another series. */
const ofAnother = /^that session is of another series$/;

export const newSession = Effect.map(Invocation, ({ entropy }) =>
  Session.make(Buffer.from(entropy(16)).toString("hex")),
);

/** A name beside one that is taken: six digits of the session, before the `.backup` that it ends in. */
const nextTo = (name: Name, session: Session): string =>
  `${name.replace(/\.backup$/, "")}-${session.slice(0, 6)}${name.endsWith(".backup") ? ".backup" : ""}`;

/** Bytes of the members that earlier runs have sent. */
const bytesOf = ({ noted = [] }: Beginning): number =>
  noted.reduce((sum, { length }) => sum + length, 0);

/** All the room that there is, less what other things may take of it meanwhile. */
const mostOf = (room: number): number => room - Math.ceil(room / 64);

/** A text as long as there are members, cut to what a frame may have. */
const piecesOf = (text: Buffer): ReadonlyArray<Buffer> =>
  Array.from({ length: Math.ceil(text.length / blockSize) }, (_, i) =>
    text.subarray(i * blockSize, (i + 1) * blockSize),
  );

interface Block {
  readonly buffer: Uint8Array;
  readonly start: number;
  /** Offset behind it. */
  readonly end: number;
  /** The running hash there. */
  readonly running: string;
}

/** Of no bytes at all. */
const runningOfNone = packHasher().running();

/**
 * How many of these members make the first `offset` bytes of a pack, with that running hash; undefined where
 * none do.
 */
const countOf = (
  noted: NonNullable<Beginning["noted"]>,
  offset: number,
  running: string,
): number | undefined => {
  const pack = packHasher();
  let at = 0;
  for (const { digest, length } of noted) {
    if (at >= offset) break;
    at += length;
    pack.skipMember(Buffer.from(digest, "hex"));
  }
  return at === offset && pack.running() === running ? pack.whole() : undefined;
};

/** Makes the link and keeps it; returns when the server is ready for the first byte. */
export const openUpload = Effect.fnUntraced(function* (options: UploadOptions) {
  const { destination } = options;
  const reporter = yield* Reporter;
  const { highest, room: roomThere, server } = yield* meet(options);
  let beginning = yield* options.beginning(server, roomThere);
  /**
   * Bytes of the pack that the server is taken to have: they take no more room, and of an earlier run's not
   * all may be of use. Before it is ready, it is those that were noted, or none.
   */
  let already = bytesOf(beginning);
  /** The server has not the room for all that was noted and the rest: how much it has is to be seen first. */
  let unsure = false;
  /** In bytes; as it last said. It is not asked where what the archive can have at most is known. */
  let free = options.most === undefined ? yield* roomThere : 0;
  const within = (room: number) => already + mostOf(room);
  const most = () => options.most && already + options.most;
  /**
   * BYTES of the ticket: the server keeps so much free for the upload, and takes no more. What the
   * archive can have at most is asked for first, for which the server removes what it may; if that is
   * not enough, what there is.
   */
  let bytes = most() ?? within(free);
  const ticketFor = (least: number, name: Name) => {
    const { base, session } = beginning;
    return newTicket(options, server, least, { name, session, base, bytes });
  };
  let ticket = yield* ticketFor(Math.max(highest, beginning.above ?? 0), options.name);
  const fits = (room: number) => within(room) >= Math.max(1, options.least);
  /** Nobody knows how much it will be, and there is too little for what it was the last time. */
  let tight = most() === undefined && !fits(free);
  let tickets = 1;
  /** The manifest is made, or being made, by this ticket. */
  let settled = false;

  const blocks: Array<Block> = [];
  const spare: Array<Uint8Array> = [];
  let lent = 0;
  /** Blocks that have left the window. */
  let gone = 0;
  /** Offsets: acknowledged, sent at least once, handed over by the producer. */
  let acked = 0;
  let ackedRunning = runningOfNone;
  const nothing = wordsOfNothing();
  let sent = 0;
  let pushed = 0;
  let trailer: ReadonlyArray<Uint8Array> | undefined;
  let trailerSent = false;
  /** The server was ready once, and had so many members, and bytes, of the pack. */
  let begun = false;
  let there = 0;
  let before = 0;
  let up = false;
  let givenUp = false;
  /** Says "not wanted any more" to the server over the present link. */
  let giveUp: Effect.Effect<void> = Effect.void;

  const room = Latch.makeUnsafe(true);
  const work = Latch.makeUnsafe(false);
  const ready = yield* Deferred.make<void>();
  const stored = yield* Deferred.make<Stored>();
  const over = yield* Deferred.make<never, RunFailed>();

  const acknowledge = Effect.fnUntraced(function* (offset: number, running: string) {
    const at = offset === acked ? -1 : blocks.findIndex(({ end }) => end === offset);
    if (offset !== acked && (at < 0 || offset > sent)) {
      return yield* failed(
        "integrity",
        `the server speaks of ${offset} bytes, but ${acked} were acknowledged and ${sent} sent`,
      );
    }
    const here = at < 0 ? ackedRunning : blocks[at]!.running;
    if (running !== here) {
      return yield* failed(
        "integrity",
        `the first ${offset} bytes are not on the server as they were sent: they were changed on the way`,
        "the carrier qube or the link to the server changes bytes: look at them, and run again",
      );
    }
    if (at < 0) return yield* nothing;
    acked = offset;
    ackedRunning = here;
    for (const { buffer } of blocks.splice(0, at + 1)) spare.push(buffer);
    gone += at + 1;
    yield* room.open;
  });

  /** Sends what is in the window from number `from` on, then what is pushed, then the trailer. */
  const send = Effect.fnUntraced(function* (call: Call, from: number) {
    let number = from;
    for (;;) {
      // Acknowledgements shift the window while this waits.
      const block = blocks[number - gone];
      if (block !== undefined) {
        sent = Math.max(sent, block.end);
        yield* call.stdin.write(block.buffer.subarray(0, 4 + block.end - block.start));
        number += 1;
      } else if (trailer !== undefined) {
        trailerSent = true;
        giveUp = Effect.void;
        for (const part of trailer) yield* call.stdin.write(part);
        return yield* Effect.never;
      } else {
        work.closeUnsafe();
        const idle = yield* work.await.pipe(Effect.timeoutOption(`${aliveAfter} seconds`));
        if (idle._tag === "None") yield* call.stdin.write(keepAliveFrame);
      }
    }
  });

  /** Makes sense of every reply until one ends the upload. */
  const receive = Effect.fnUntraced(function* (
    call: Call,
    next: Effect.Effect<Reply<"put"> | undefined, BytesError | WireError>,
  ) {
    for (;;) {
      const reply = yield* next;
      if (reply === undefined) {
        return yield* Effect.mapError(callEnded(call, destination), mayPass);
      }
      if (reply.type === "ack") yield* acknowledge(reply.offset, reply.running);
      else if (reply.type === "stored" && trailerSent) return reply;
      else if (isFailed(reply)) {
        return yield* reply.code === "busy"
          ? new LinkBroken({ reason: "the server is busy with an older connection" })
          : refusal(reply);
      } else if (reply.type !== "alive") {
        return yield* failed("integrity", `unexpected reply from the server: ${reply.type}`);
      }
    }
  });

  /** All that there is; where others keep the rest for the moment, it is waited for. */
  const whatThereIs = Effect.gen(function* () {
    const { reserved, room } = yield* roomNow(options);
    free = room;
    if (fits(room) || reserved === 0) return Math.min(within(room), most() ?? Infinity);
    return yield* new LinkBroken({
      reason: "other uploads to that server keep its room for themselves",
      busy: true,
    });
  });

  /** Another upload in the place of this one, of which nothing is there. */
  const other = Effect.fnUntraced(function* (missing: "base" | "session") {
    beginning = yield* options.another(missing);
    already = bytesOf(beginning);
    unsure = false;
    bytes = most() ?? within(free);
    // What was there of the old one may be room by now.
    tight = most() === undefined && !begun;
    return yield* ticketFor(ticket.run, ticket.name);
  });

  /** Another ticket, for what the server refused of the last one; undefined where none helps. */
  const otherTicket = Effect.fnUntraced(function* (refused: Failed) {
    const { name, run, session } = ticket;
    if (settled || tickets >= ticketTries) return undefined;
    // A server with another key takes no ticket for this one: that is the cause then.
    if (!begun && (refused.code === "signature" || refused.code === "not-permitted")) {
      yield* askWho(options);
    }
    if (refused.code === "stale") {
      const least = yield* staleRun(options, server, refused);
      return yield* ticketFor(Math.max(least, run), name);
    }
    if (refused.code === "exists" && !begun && name === options.name) {
      const beside = nextTo(name, session);
      if (!isName(beside)) return undefined;
      yield* reporter.say("info", line`the server has ${name} already; storing as ${beside}`);
      return yield* ticketFor(run, beside);
    }
    if ((refused.code === "quota" || refused.code === "no-space") && !begun) {
      if (bytes === most()) {
        bytes = yield* whatThereIs;
        return bytes > 0 ? yield* ticketFor(run, name) : undefined;
      }
      if (already === 0) return undefined;
      already = 0;
      unsure = true;
      tight = true;
      return ticket;
    }
    // Nothing of it has left the window, so another upload can take its place.
    if (refused.code === "gone" && acked === 0) {
      yield* reporter.say("warning", line`${removed(refused)}; it begins anew`);
      return yield* other("session");
    }
    if (refused.code === "not-permitted" && ofAnother.test(refused.message) && !begun) {
      yield* reporter.say(
        "warning",
        "the server takes the upload that an earlier run began for another's; it begins anew",
      );
      return yield* other("session");
    }
    if (refused.code === "not-found" && ticket.base !== "-" && !begun) {
      return yield* other("base");
    }
    return undefined;
  });

  /** One connection, from its first reply to its end; undefined where another ticket is to be tried. */
  const once = Effect.gen(function* () {
    if (tight) {
      bytes = yield* whatThereIs;
      ticket = yield* ticketFor(ticket.run, ticket.name);
      tight = false;
    }
    const reached = reach(
      destination,
      { verb: "put", ...ticket },
      { before: begun, minutes: options.linkTimeout },
    );
    // The pinned server was not asked before.
    const { call, first, next } = yield* begun ? reached : orNoServer(reached);
    if (first.type === "stored" && trailerSent) return first;
    if (!begun && (first.type === "ready" || first.type === "stored")) {
      const { noted } = beginning;
      const count =
        first.type === "ready" ? countOf(noted ?? [], first.offset, first.running) : undefined;
      // Of a dom0 that was put back to what it was, it may even have become an archive meanwhile.
      if (count === undefined && noted !== undefined) {
        yield* reporter.say(
          "warning",
          "what the server has of the upload that an earlier run began is not what was noted here of it; it begins anew",
        );
        if (first.type === "ready") {
          yield* Effect.ignore(call.stdin.write(giveUpFrame));
          yield* Effect.timeoutOption(call.ended, "5 seconds");
        }
        ticket = yield* other("session");
        tickets += 1;
        return undefined;
      }
      if (first.type === "ready" && unsure && first.offset > 0) {
        already = first.offset;
        unsure = false;
        bytes = Math.min(within(free), most() ?? Infinity);
        ticket = yield* ticketFor(ticket.run, ticket.name);
        tickets += 1;
        return undefined;
      }
      if (first.type === "ready" && count !== undefined) {
        there = count;
        before = first.offset;
        [acked, sent, pushed, ackedRunning] = [before, before, before, first.running];
      }
    }
    if (isFailed(first)) {
      const next = yield* otherTicket(first);
      // It may have been settled on the old one while the number of this one went to the disk.
      if (next === undefined || settled) {
        const why =
          first.code === "gone"
            ? rejected("refused", removed(first), "run again: the backup begins anew")
            : refusal(first);
        // An older connection, which has the trailer, may be at its commit while this one is refused.
        return yield* trailerSent ? undecidedYet(why) : why;
      }
      ticket = next;
      tickets += 1;
      return undefined;
    }
    if (first.type !== "ready") {
      return yield* failed("integrity", `unexpected reply from the server: ${first.type}`);
    }
    if (first.offset < acked) {
      return yield* failed(
        "integrity",
        `the server has no more than ${first.offset} bytes of ${acked} that it said were safe`,
        "ask its owner; then run again",
      );
    }
    if (!trailerSent) giveUp = Effect.ignore(call.stdin.write(giveUpFrame));
    yield* acknowledge(first.offset, first.running);
    up = true;
    begun = true;
    yield* Deferred.succeed(ready, undefined);

    const receiver = yield* Effect.forkScoped(receive(call, next));
    const sender = send(call, gone).pipe(
      // What the server said last explains a broken pipe better than the pipe does.
      Effect.catch((broken) =>
        Fiber.join(receiver).pipe(
          Effect.timeoutOrElse({ duration: `${lastWords} seconds`, orElse: () => broken }),
        ),
      ),
    );
    return yield* Effect.raceFirst(Fiber.join(receiver), sender).pipe(
      Effect.raceFirst(watchSilence(call.stdout.received)),
    );
  }).pipe(
    // What is not as it was sent is of no use to anybody: the server is to forget it.
    Effect.tapError((failure) =>
      failure._tag === "RunFailed" && failure.exit === "integrity"
        ? Effect.timeoutOption(giveUp, "5 seconds")
        : Effect.void,
    ),
    Effect.ensuring(
      Effect.sync(() => {
        up = false;
        giveUp = Effect.void;
      }),
    ),
    // A server that was told so hangs up: that is no link that broke.
    Effect.catch((failure) => (givenUp ? Effect.never : Effect.fail(failure))),
  );

  /** The ticket is for what the server had room for, and the archive was not sure to fit. */
  const tooLarge = () =>
    rejected(
      "refused",
      `the server has no room for this archive: it is larger than ${humanSize(bytes)}`,
      "free space on the server, or have its owner raise the quota",
    );
  const soFar = () => `${acked} bytes are safe on the server`;
  const keepLink = Effect.gen(function* () {
    for (;;) {
      const reply = yield* persist(once, {
        through: () => acked,
        begun: () => begun,
        startTimeout: options.startTimeout,
        soFar: () => `the link broke after ${acked} bytes were safe`,
      });
      if (reply !== undefined) return yield* Deferred.succeed(stored, reply);
    }
  });

  const watch = watchProgress({
    through: () => acked,
    // Before the server was ready for the first time, the tries have a limit of their own.
    awaited: () => begun && !(up && acked === pushed && trailer === undefined),
    bytesAwaited: () => begun && acked < pushed,
    up: () => up,
    linkTimeout: options.linkTimeout,
    floor: options.floor,
    soFar,
  });

  yield* Effect.raceFirst(keepLink.pipe(Effect.andThen(Effect.never)), watch).pipe(
    Effect.catch((failure) => Deferred.fail(over, failure)),
    Effect.forkScoped,
  );
  // Behind the fork, so that it runs while the link is still there.
  // What is kept is for a later run.
  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      givenUp = true;
      return options.kept ? Effect.void : Effect.timeoutOption(giveUp, "5 seconds");
    }),
  );
  const broken = Deferred.await(over);
  yield* Effect.raceFirst(Deferred.await(ready), broken);

  const upload: Upload = {
    name: () => ticket.name,
    ticket: () => ticket,
    settledTicket: () => {
      settled = true;
      return ticket;
    },
    server,
    there,
    made: () => pushed - before,
    buffer: Effect.gen(function* () {
      while (blocks.length + lent >= options.window) {
        room.closeUnsafe();
        yield* room.await;
      }
      lent += 1;
      return spare.pop() ?? new Uint8Array(4 + blockSize);
    }),
    push: (buffer, size, running) =>
      Effect.suspend(() => {
        lent -= 1;
        buffer.set(lengthPrefix(size));
        blocks.push({ buffer, start: pushed, end: pushed + size, running });
        pushed += size;
        return pushed > bytes && bytes !== most() ? Deferred.fail(over, tooLarge()) : work.open;
      }),
    finish: ({ manifest, recipe, signature }) =>
      Effect.suspend(() => {
        const text = (bytes: Uint8Array) => [lengthPrefix(bytes.length), bytes];
        trailer = [
          lengthPrefix(0),
          ...[Buffer.from(manifest), signature, ...piecesOf(Buffer.from(recipe))].flatMap(text),
          lengthPrefix(0),
        ];
        return Effect.andThen(work.open, Effect.raceFirst(Deferred.await(stored), broken));
      }),
    broken,
    progress: () => ({ sent, acked, up }),
  };
  return upload;
});

const removed = ({ since, why }: Failed): string =>
  `the server removed this upload${since === undefined ? "" : ` on ${since}`}${why === undefined ? "" : `: ${printable(why)}`}`;
