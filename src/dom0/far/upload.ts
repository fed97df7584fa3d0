/**
 * One archive on its way: a window of blocks that the server has not yet acknowledged, and a link
 * that is made again whenever it breaks.
 *
 * The blocks of the window are the only copy of what qvm-backup wrote, for its stream cannot be made
 * twice; so a block leaves the window only when the server says that it is on disk, and the server
 * is never believed about a byte that it was not sent. Waiting for room in the window is what
 * qvm-backup feels as back-pressure.
 */
import { Deferred, Effect, Fiber, identity, Latch } from "effect";
import type { BytesError } from "#services/Bytes";
import { Ledger } from "#services/Ledger";
import type { Call } from "#services/Qrexec";
import { Reporter } from "#services/Reporter";
import { minutesOf } from "#src/say/format";
import { blockSize, giveUpFrame, keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { fingerprint } from "#src/proof/keys";
import type { WireError } from "#src/wire/lines";
import { isName, type Name, type Session } from "#src/wire/names";
import type { Reply } from "#src/wire/reply";
import { line } from "#src/say/shown";
import {
  answer,
  callEnded,
  keepAliveAfter,
  LinkBroken,
  mayPass,
  noLink,
  openCall,
  patience,
  pauseAfter,
  refusal,
  refused,
  unanswered,
} from "./call.ts";
import { failed, type RunFailed } from "#src/dom0/failure";

/** The reply that ends an upload. */
export interface Stored {
  readonly receipt: string;
  readonly signature: string;
}

export interface Upload {
  /** As asked for, or with six digits of the session in it if that name was taken. */
  readonly name: Name;
  /** The server's public key: the pinned one, or the first. */
  readonly server: string;
  /** A buffer for the next block, with room for its length in front; waits for room in the window. */
  readonly buffer: Effect.Effect<Uint8Array>;
  /** Hands the buffer back with `size` bytes of a block in it (from byte 4 on). */
  readonly push: (buffer: Uint8Array, size: number) => Effect.Effect<void>;
  /** Says that the blocks are all, and returns when the server has stored them. */
  readonly finish: (trailer: Uint8Array) => Effect.Effect<Stored, RunFailed>;
  /** Never returns but with what ended the link for good; to be raced with whatever feeds it. */
  readonly broken: Effect.Effect<never, RunFailed>;
  /** In bytes; and whether there is a link at the moment. */
  readonly progress: () => { readonly sent: number; readonly acked: number; readonly up: boolean };
}

export interface UploadOptions {
  readonly destination: string;
  readonly name: Name;
  readonly session: Session;
  /** Blocks of 1 MiB that may wait for an acknowledgement. */
  readonly window: number;
  /** Minutes in which the first link is waited for while the carrier's ssh reaches nobody. */
  readonly startTimeout: number;
  /** Minutes without progress, while bytes wait or the link is down, after which it gives up. */
  readonly linkTimeout: number;
}

const firstTries = 3;
/** Seconds. */
const silenceLimit = 60;
/** A link that broke is told by EPIPE at once; an error line may still be on its way. */
const lastWords = 2;

const configuration = (error: { readonly message: string }) => failed("usage", error.message);

/** The server behind `destination` is no other than the pinned one; gives whether one is pinned. */
const compareServer = Effect.fnUntraced(function* (destination: string, server: string) {
  const ledger = yield* Ledger;
  const pinned = yield* ledger.pinned(destination).pipe(Effect.mapError(configuration));
  if (pinned === undefined || pinned === server) return pinned !== undefined;
  return yield* failed(
    "integrity",
    `the server's key changed: it was ${fingerprint(pinned)}, now it is ${fingerprint(server)}`,
    `ask the server's owner what \`runuser -u ACCOUNT -- /usr/bin/qbackup-shell identity --root STORE\` prints there, as root; only if it is the new key, remove the line of ${destination} from ${ledger.place}/known_servers`,
  );
});

/**
 * The server behind `destination` is the one that it was the first time; pinned then. The caller has
 * something that was signed with this key: one that was only shown may be what a forger or a bad link
 * made of the server's, and would lock the true server out.
 */
export const checkServer = Effect.fnUntraced(function* (destination: string, server: string) {
  if (yield* compareServer(destination, server)) return;
  const ledger = yield* Ledger;
  yield* ledger.pin(destination, server).pipe(Effect.mapError(configuration));
  const reporter = yield* Reporter;
  yield* reporter.say(
    "info",
    line`first contact: pinned the server behind ${destination}, ${fingerprint(server)}`,
  );
  yield* reporter.say(
    "hint",
    "compare it with what `make server` printed, or `runuser -u ACCOUNT -- /usr/bin/qbackup-shell identity --root STORE` prints there, as root",
  );
});

/** A name beside one that is taken: six digits of the session, before the `.backup` that it ends in. */
const nextTo = (name: Name, session: Session): string =>
  `${name.replace(/\.backup$/, "")}-${session.slice(0, 6)}${name.endsWith(".backup") ? ".backup" : ""}`;

interface Block {
  readonly buffer: Uint8Array;
  readonly start: number;
  readonly size: number;
}

/** Makes the link and keeps it; returns when the server is ready for the first byte. */
export const openUpload = Effect.fnUntraced(function* (options: UploadOptions) {
  const { destination, session } = options;
  const reporter = yield* Reporter;

  const blocks: Array<Block> = [];
  const spare: Array<Uint8Array> = [];
  let lent = 0;
  /** Offsets: acknowledged, sent at least once, handed over by the producer. */
  let acked = 0;
  let sent = 0;
  let pushed = 0;
  let trailer: Uint8Array | undefined;
  let trailerSent = false;
  let name = options.name;
  let server: string | undefined;
  let up = false;
  /** Seconds without progress although there was something to do. */
  let stalled = 0;
  /** Says "not wanted any more" to the server over the present link. */
  let giveUp: Effect.Effect<void> = Effect.void;

  const room = Latch.makeUnsafe(true);
  const work = Latch.makeUnsafe(false);
  const ready = yield* Deferred.make<void>();
  const stored = yield* Deferred.make<Stored>();
  const over = yield* Deferred.make<never, RunFailed>();

  const acknowledge = Effect.fnUntraced(function* (offset: number) {
    if (offset % blockSize !== 0 || offset < acked || offset > sent) {
      return yield* failed(
        "integrity",
        `the server speaks of ${offset} bytes, but ${acked} were acknowledged and ${sent} sent`,
      );
    }
    if (offset === acked) return;
    acked = offset;
    stalled = 0;
    for (let first = blocks[0]; first !== undefined; first = blocks[0]) {
      if (first.start + first.size > acked) break;
      spare.push(first.buffer);
      blocks.shift();
    }
    yield* room.open;
  });

  /** Sends what is in the window from `from` on, then what is pushed, then the trailer. */
  const send = Effect.fnUntraced(function* (call: Call, from: number) {
    let cursor = from;
    for (;;) {
      // By offset, not by index: acknowledgements shift the window while this waits.
      const block = blocks[Math.floor((cursor - (blocks[0]?.start ?? 0)) / blockSize)];
      if (block !== undefined && cursor < pushed) {
        sent = Math.max(sent, cursor + block.size);
        yield* call.stdin.write(block.buffer.subarray(0, 4 + block.size));
        cursor += block.size;
      } else if (trailer !== undefined) {
        trailerSent = true;
        giveUp = Effect.void;
        yield* call.stdin.write(lengthPrefix(0));
        yield* call.stdin.write(lengthPrefix(trailer.length));
        yield* call.stdin.write(trailer);
        return yield* Effect.never;
      } else {
        work.closeUnsafe();
        const idle = yield* work.await.pipe(Effect.timeoutOption(`${keepAliveAfter} seconds`));
        if (idle._tag === "None") yield* call.stdin.write(keepAliveFrame);
      }
    }
  });

  /** Makes sense of every reply until one ends the upload. */
  const receive = Effect.fnUntraced(function* (
    next: Effect.Effect<Reply | undefined, BytesError | WireError>,
  ) {
    for (;;) {
      const reply = yield* next.pipe(
        Effect.timeoutOrElse({
          duration: `${silenceLimit} seconds`,
          orElse: () => new LinkBroken({ reason: `no sign of the server for ${silenceLimit} s` }),
        }),
      );
      if (reply === undefined) return yield* new LinkBroken({ reason: "the link ended" });
      if (reply.type === "ack") yield* acknowledge(reply.offset);
      else if (reply.type === "stored" && trailerSent) return reply;
      else if (reply.type === "error" && reply.code === "busy") {
        return yield* new LinkBroken({ reason: "the server is busy with an older connection" });
      } else if (reply.type === "error") return yield* refusal(reply);
      else if (reply.type !== "alive") {
        return yield* failed("integrity", `the server said ${reply.type} where that has no place`);
      }
    }
  });

  /** One connection, from its first reply to its end. */
  const once = Effect.gen(function* () {
    const { call, next } = yield* openCall(destination, { verb: "put", name, session });
    const orPass = server === undefined ? identity : Effect.mapError(mayPass);
    const first = yield* answer(next).pipe(
      Effect.catchTag("TimeoutError", () => orPass(unanswered(call, destination))),
      // Signs of life alone are no answer, however many there are.
      Effect.timeoutOrElse({
        duration: `${options.linkTimeout} minutes`,
        orElse: () =>
          failed(
            "link",
            `for ${minutesOf(options.linkTimeout)} the server only said that it is alive`,
            "see what holds the server up; then run again",
          ),
      }),
    );
    if (first === undefined) return yield* orPass(callEnded(call, destination));
    if (first.type === "stored" && trailerSent) return first;
    if (first.type === "error") {
      if (first.code === "busy") {
        return yield* new LinkBroken({ reason: "the server is busy with an older connection" });
      }
      const other = nextTo(name, session);
      if (
        first.code === "exists" &&
        server === undefined &&
        name === options.name &&
        isName(other)
      ) {
        yield* reporter.say("info", line`the server has ${name} already; storing as ${other}`);
        name = other;
        return yield* new LinkBroken({ reason: "the name is taken" });
      }
      return yield* orPass(refused(first, call, destination));
    }
    if (first.type !== "ready" || !("offset" in first)) {
      return yield* failed("integrity", `the server began with ${first.type}`);
    }
    if (server === undefined) {
      if (!(yield* compareServer(destination, first.server))) {
        yield* reporter.say(
          "info",
          line`a server that is new here shows ${fingerprint(first.server)}; it is pinned with its first receipt`,
        );
      }
    } else if (server !== first.server) {
      return yield* failed("integrity", "the server's key changed in the middle of the upload");
    }
    server = first.server;
    if (first.offset < acked) {
      return yield* failed(
        "integrity",
        `the server has no more than ${first.offset} bytes of ${acked} that it said were safe`,
        "it forgets an upload that rests for hours, as when this machine sleeps: run again. If it did not rest, ask its owner",
      );
    }
    yield* acknowledge(first.offset);
    up = true;
    giveUp = Effect.ignore(call.stdin.write(giveUpFrame));
    yield* Deferred.succeed(ready, undefined);

    const receiver = yield* Effect.forkScoped(receive(next));
    const sender = send(call, first.offset).pipe(
      // What the server said last explains a broken pipe better than the pipe does.
      Effect.catch((broken) =>
        Fiber.join(receiver).pipe(
          Effect.timeoutOrElse({ duration: `${lastWords} seconds`, orElse: () => broken }),
        ),
      ),
    );
    return yield* Effect.raceFirst(Fiber.join(receiver), sender).pipe(
      Effect.catchTag("LinkBroken", (broken) =>
        broken.reason === "the link ended"
          ? callEnded(call, destination).pipe(Effect.mapError(mayPass))
          : Effect.fail(broken),
      ),
    );
  }).pipe(
    Effect.scoped,
    Effect.catchTags({
      BytesError: () => new LinkBroken({ reason: "the link broke" }),
      // Before the server has shown its key it may be any program that talks.
      WireError: (error) =>
        failed(
          server === undefined ? "link" : "integrity",
          `what came back is not of the wire: ${error.reason}`,
        ),
    }),
    Effect.ensuring(
      Effect.sync(() => {
        up = false;
        giveUp = Effect.void;
      }),
    ),
  );

  const keepLink = Effect.gen(function* () {
    const patient = yield* patience(options.startTimeout);
    let tries = 0;
    for (;;) {
      const before = acked;
      const asked = name;
      const broken = yield* Effect.flip(
        once.pipe(
          Effect.flatMap((reply) => Deferred.succeed(stored, reply)),
          Effect.andThen(Effect.never),
        ),
      );
      if (broken._tag === "RunFailed") return yield* broken;
      if (name !== asked) continue;
      tries = acked > before ? 1 : tries + 1;
      if (server === undefined && tries >= firstTries && !(yield* patient(broken))) {
        return yield* noLink(broken);
      }
      const wait = yield* pauseAfter(tries);
      yield* reporter.say(
        "warning",
        server === undefined
          ? line`no link yet: ${broken.reason}; again in ${wait.toFixed(1)} s`
          : line`the link broke after ${acked} bytes were safe: ${broken.reason}; again in ${wait.toFixed(1)} s`,
      );
      yield* Effect.sleep(`${Math.round(wait * 1000)} millis`);
    }
  });

  /** Counts its own steps instead of reading a clock: a suspended machine has not been stalled. */
  const watch = Effect.gen(function* () {
    for (;;) {
      yield* Effect.sleep("1 second");
      // Before the server has answered for the first time, the tries have a limit of their own.
      const idle = server === undefined || (up && acked === pushed && trailer === undefined);
      stalled = idle ? 0 : stalled + 1;
      if (stalled >= options.linkTimeout * 60) {
        return yield* failed(
          "link",
          `no progress for ${minutesOf(options.linkTimeout)}: ${acked} bytes are safe on the server`,
          "see whether the carrier has a network and the server answers; then run again",
        );
      }
    }
  });

  yield* Effect.raceFirst(keepLink, watch).pipe(
    Effect.catch((failure) => Deferred.fail(over, failure)),
    Effect.forkScoped,
  );
  // Behind the fork, so that it runs while the link is still there.
  yield* Effect.addFinalizer(() => Effect.timeoutOption(giveUp, "5 seconds"));
  const broken = Deferred.await(over);
  yield* Effect.raceFirst(Deferred.await(ready), broken);

  const upload: Upload = {
    get name() {
      return name;
    },
    server: server!,
    buffer: Effect.gen(function* () {
      while (blocks.length + lent >= options.window) {
        room.closeUnsafe();
        yield* room.await;
      }
      lent += 1;
      return spare.pop() ?? new Uint8Array(4 + blockSize);
    }),
    push: (buffer, size) =>
      Effect.suspend(() => {
        lent -= 1;
        buffer.set(lengthPrefix(size));
        blocks.push({ buffer, start: pushed, size });
        pushed += size;
        return work.open;
      }),
    finish: (bytes) =>
      Effect.suspend(() => {
        trailer = bytes;
        stalled = 0;
        return Effect.andThen(work.open, Effect.raceFirst(Deferred.await(stored), broken));
      }),
    broken,
    progress: () => ({ sent, acked, up }),
  };
  return upload;
});
