/** Talking to the client: one reply at a time, a sign of life when there is nothing else to say. */
import { Clock, Effect, type Scope, Semaphore } from "effect";
import type { BytesError, Sink } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import type { Locks } from "#services/Locks";
import type { SafeFs } from "#services/SafeFs";
import { giveUpFrame, keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { aliveAfter, floor as standardFloor, silenceLimit } from "#src/wire/limits";
import { replier } from "#src/wire/reply";
import type { Reply } from "#src/wire/request";
import { failed, type Failure, LinkLost, type Refused } from "#src/store/failure";
import type { Store } from "#src/store/store";
import type { Options } from "./invocation.ts";
import type { Log } from "./journal.ts";

/** What a verb has to work with. */
export interface Conversation<S extends Store> {
  readonly store: S;
  readonly voice: Voice;
  readonly options: Options;
  readonly log: Log;
}
export type Done = Effect.Effect<void, Failure, Invocation | SafeFs | Locks | Scope.Scope>;

/** How often the watch looks, in milliseconds: its limits are late by at most that. */
const glance = 5000;
/** A link on which less than this and no whole frame came within the silence limit is broken. In bytes. */
const trickle = 4096;
/** What a client must at least take within the silence limit. In bytes. */
const piece = 65_536;

/** Milliseconds by a clock that nobody sets: what waiting is measured by. */
export const monotonic = Effect.map(Clock.monotonicTimeNanos, (now) => Number(now) / 1e6);

export interface Voice {
  /** Fails when replies cannot be written within 60 s; after that it says nothing more. */
  readonly say: (...replies: ReadonlyArray<Reply>) => Effect.Effect<void, LinkLost>;
  /** Says why not, as the code and the sentence of a refusal and what more belongs to them. */
  readonly refuse: (refused: Refused) => Effect.Effect<void, LinkLost>;
  /** Writes what is no line. Fails as `say` does, for each 64 KiB, and below the floor. */
  readonly send: (bytes: Uint8Array) => Effect.Effect<void, LinkLost>;
  /** From here on the client reads frames, or (false) lines again: signs of life and errors follow. */
  readonly framed: (is: boolean) => void;
  /** Marks that from here on it is the client's turn, or (false) that something of it arrived. */
  readonly listening: (is: boolean) => void;
  /** Never succeeds. Says now and then that it is alive, and fails when the client is gone. */
  readonly watch: Effect.Effect<never, LinkLost>;
  /** Bytes so far, of all that came and went. */
  readonly through: () => Through;
}
/** Bytes of a connection, in both directions. */
export interface Through {
  readonly received: number;
  readonly sent: number;
}

/** Tells when a stream has brought less than `least` bytes a second in an hour in which bytes waited. */
export const slowness = (least = standardFloor.bytes / standardFloor.seconds) => {
  const wanted = least * standardFloor.seconds;
  let mark = 0;
  let waited = 0;
  /** `through`: bytes so far; `time`: milliseconds of waiting since it was asked last. */
  return (through: number, time: number): boolean => {
    waited += time;
    if (through - mark >= wanted) {
      mark = through;
      waited = 0;
    }
    return waited >= standardFloor.seconds * 1000;
  };
};

/** `floor`: bytes a second, over an hour, that a stream has to bring at least. */
export const makeVoice = Effect.fnUntraced(function* (floor?: number) {
  const { stdin, stdout } = yield* Invocation;
  let written = 0;
  const out: Sink = {
    write: (bytes) =>
      Effect.tap(stdout.write(bytes), () => Effect.sync(() => (written += bytes.length))),
    end: stdout.end,
  };
  const write = replier(out);
  const turn = Semaphore.makeUnsafe(1);
  const tooSlow = { in: slowness(floor), out: slowness(floor) };
  let broken = false;
  let spoken = yield* monotonic;
  let heard = 0;
  let listening = false;
  let arrivals = 0;
  /** What had come when the client's turn began: with more than that, a frame is under way. */
  let begun = 0;
  let sent = 0;
  let framed = false;

  const lost = (why: string) => Effect.fail(new LinkLost({ why }));
  /** One write, while it is our turn; the first that fails is the last. */
  const unbroken = (writing: Effect.Effect<void, BytesError | LinkLost>) =>
    Effect.suspend(() =>
      broken
        ? lost("the client is gone")
        : writing.pipe(
            Effect.catchTag("BytesError", () => lost("the client is gone")),
            Effect.tapError(() => Effect.sync(() => (broken = true))),
          ),
    );
  const spoke = Effect.map(monotonic, (now) => {
    spoken = now;
    heard = stdin.received();
  });
  const saying = (...replies: ReadonlyArray<Reply>) =>
    Effect.andThen(
      unbroken(
        Effect.timeoutOrElse(write(...replies), {
          duration: `${silenceLimit} seconds`,
          orElse: () => lost("the client takes no replies"),
        }),
      ),
      spoke,
    );
  const sending = Effect.fnUntraced(function* (bytes: Uint8Array) {
    let begun = yield* monotonic;
    const pieces = Effect.gen(function* () {
      for (let at = 0; at < bytes.length; at += piece) {
        const some = bytes.subarray(at, at + piece);
        yield* out.write(some);
        sent += some.length;
        const now = yield* monotonic;
        if (tooSlow.out(sent, now - begun)) {
          return yield* lost("the client takes bytes too slowly");
        }
        begun = now;
      }
    });
    // One watch over all pieces: to set a limit for each of them costs as much as writing it.
    const tooLong = Effect.gen(function* () {
      for (let left = silenceLimit * 1000; left > 0;) {
        yield* Effect.sleep(left);
        left = begun + silenceLimit * 1000 - (yield* monotonic);
      }
      return yield* lost("the client takes no bytes");
    });
    yield* unbroken(Effect.raceFirst(pieces, tooLong));
    yield* spoke;
  });

  const watch = Effect.gen(function* () {
    let since = yield* monotonic;
    let bytes = stdin.received();
    let frames = arrivals;
    for (;;) {
      yield* Effect.sleep(glance);
      const now = yield* monotonic;
      const received = stdin.received();
      if (!listening || frames !== arrivals || received - bytes >= trickle) {
        since = now;
        bytes = received;
        frames = arrivals;
      } else if (now - since >= silenceLimit * 1000) {
        return yield* lost("the client has been silent for a minute");
      }
      if (tooSlow.in(received, listening && received > begun ? glance : 0)) {
        return yield* lost("the client sends too slowly");
      }
      if (now - spoken >= aliveAfter * 1000 && (!listening || received !== heard)) {
        yield* turn.withPermits(1)(
          Effect.suspend(() => (framed ? sending(keepAliveFrame) : saying({ type: "alive" }))),
        );
      }
    }
  });

  const voice: Voice = {
    say: (...replies) => turn.withPermits(1)(saying(...replies)),
    refuse: (refused) =>
      turn.withPermits(1)(
        Effect.gen(function* () {
          // Whoever reads frames is told by one that a line comes now.
          if (framed) yield* sending(giveUpFrame);
          yield* saying(failed(refused));
        }),
      ),
    send: (bytes) => turn.withPermits(1)(sending(bytes)),
    framed: (is) => {
      framed = is;
    },
    listening: (is) => {
      listening = is;
      if (is) begun = stdin.received();
      else arrivals += 1;
    },
    watch,
    through: () => ({ received: stdin.received(), sent: written }),
  };
  return voice;
});

/** Frames of a text that `read` gives piece by piece (none at its end), and the end of them. */
export const sendText = Effect.fnUntraced(function* <E>(
  voice: Voice,
  read: (into: Uint8Array, at: number) => Effect.Effect<number, E>,
) {
  yield* voice.say({ type: "ready" });
  voice.framed(true);
  const frame = new Uint8Array(4 + piece);
  for (let at = 0; ;) {
    const n = yield* read(frame.subarray(4), at);
    if (n === 0) break;
    frame.set(lengthPrefix(n));
    yield* voice.send(frame.subarray(0, 4 + n));
    at += n;
  }
  yield* voice.send(lengthPrefix(0));
  voice.framed(false);
  yield* voice.say({ type: "end" });
});
