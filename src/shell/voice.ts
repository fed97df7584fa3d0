/** Talking to the client: one reply at a time, a sign of life when there is nothing else to say. */
import { Clock, Effect, Semaphore } from "effect";
import type { BytesError } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { replier, type Reply } from "#src/wire/reply";
import { LinkLost } from "#src/store/failure";

/** How often the watch looks, in milliseconds: its limits are late by at most that. */
const glance = 5000;
/** After that much silence of ours the client is told that we are alive. In milliseconds. */
const aliveAfter = 15_000;
/** A link on which less than `trickle` bytes and no whole frame came for that long is broken. */
const silenceLimit = 60_000;
const trickle = 4096;
/** What a client must at least take in that time. In bytes. */
const piece = 262_144;

export interface Voice {
  /** Fails when the reply cannot be written within 60 s; after that it says nothing more. */
  readonly say: (reply: Reply) => Effect.Effect<void, LinkLost>;
  /** Writes what is no line: frames. Fails as `say` does, a quarter of a MiB at a time. */
  readonly send: (bytes: Uint8Array) => Effect.Effect<void, LinkLost>;
  /** Marks that from here on it is the client's turn, or (false) that something of it arrived. */
  readonly listening: (is: boolean) => void;
  /** Never succeeds. Says `alive` now and then, and fails when the client is gone. */
  readonly watch: Effect.Effect<never, LinkLost>;
}

export const makeVoice = Effect.gen(function* () {
  const { stdin, stdout } = yield* Invocation;
  const write = replier(stdout);
  const turn = Semaphore.makeUnsafe(1);
  let broken = false;
  let spoken = yield* Clock.currentTimeMillis;
  let heard = 0;
  let listening = false;
  let arrivals = 0;

  const lost = (why: string) => Effect.fail(new LinkLost({ why }));
  /** One write, while it is our turn; the first that fails is the last. */
  const written = (writing: Effect.Effect<void, BytesError>, what: string) =>
    Effect.suspend(() =>
      broken
        ? lost("the client is gone")
        : writing.pipe(
            Effect.catchTag("BytesError", () => lost("the client is gone")),
            Effect.timeoutOrElse({
              duration: silenceLimit,
              orElse: () => lost(`the client takes no ${what}`),
            }),
            Effect.tapError(() => Effect.sync(() => (broken = true))),
          ),
    );
  const say: Voice["say"] = (reply) =>
    turn.withPermits(1)(
      Effect.gen(function* () {
        yield* written(write(reply), "replies");
        spoken = yield* Clock.currentTimeMillis;
        heard = stdin.received();
      }),
    );
  const send: Voice["send"] = (bytes) =>
    turn.withPermits(1)(
      Effect.gen(function* () {
        for (let at = 0; at < bytes.length; at += piece) {
          yield* written(stdout.write(bytes.subarray(at, at + piece)), "bytes");
        }
        spoken = yield* Clock.currentTimeMillis;
      }),
    );

  const watch = Effect.gen(function* () {
    let since = yield* Clock.currentTimeMillis;
    let bytes = stdin.received();
    let frames = arrivals;
    for (;;) {
      yield* Effect.sleep(glance);
      const now = yield* Clock.currentTimeMillis;
      const received = stdin.received();
      if (!listening || frames !== arrivals || received - bytes >= trickle) {
        since = now;
        bytes = received;
        frames = arrivals;
      } else if (now - since >= silenceLimit) {
        return yield* lost("the client has been silent for a minute");
      }
      if (now - spoken >= aliveAfter && (!listening || received !== heard)) {
        yield* say({ type: "alive" });
      }
    }
  });

  const voice: Voice = {
    say,
    send,
    listening: (is) => {
      listening = is;
      if (!is) arrivals += 1;
    },
    watch,
  };
  return voice;
});
