/**
 * One connection after the other until the work is done, and how long that may take. All that dom0 asks
 * of a server goes through here: nothing waits for ever, nothing drips for ever, and nothing is tried
 * for ever.
 */
import { Clock, Effect, Random, type Scope } from "effect";
import type { BytesError } from "#services/Bytes";
import { Notifier } from "#services/Notifier";
import { Reporter } from "#services/Reporter";
import { minutesOf } from "#src/say/format";
import { type Line, line } from "#src/say/shown";
import { floor, silenceLimit } from "#src/wire/limits";
import type { WireError } from "#src/wire/lines";
import { failed, type RunFailed } from "#src/dom0/failure";
import { LinkBroken } from "./call.ts";

/** Tries until something answers, where nothing says that the network only has to come. */
const firstTries = 3;
/** Minutes in which a network is waited for that is not there yet, at boot or after a night's sleep. */
export const startTimeout = 10;
/** Minutes without progress after which a link is given up. */
export const linkTimeout = 30;

/** The link is given up: the carrier's cause speaks for itself, another needs to say where it belongs. */
const noLink = ({ busy, hint, network, reason }: LinkBroken): RunFailed =>
  busy === true
    ? failed("link", reason, hint ?? "run again once those have ended")
    : failed("link", network === true ? reason : `no link to the server: ${reason}`, hint);

/** Seconds before try number `tries` + 1: half a second, doubled up to a minute, a random part more or less. */
const pauseAfter = (tries: number): Effect.Effect<number> =>
  Effect.map(Random.next, (random) => Math.min(60, 0.5 * 2 ** (tries - 1)) * (0.75 + 0.5 * random));

export interface Persistence {
  /** What is through so far; a link that brought more of it than there was makes the next break a first one. */
  readonly through?: () => number;
  /**
   * Whether the server has answered once: from then on time alone is the limit, and whoever says so runs
   * `watchProgress` beside. Without it, three tries in a row that bring nothing are all.
   */
  readonly begun?: () => boolean;
  /** Minutes in which a network is waited for that is not there yet, and a server that is busy. */
  readonly startTimeout?: number;
  /** What a person is told of a link that broke, up to the reason. */
  readonly soFar?: () => string;
}

/**
 * Makes one connection after the other with `once` until it succeeds, or fails with what no second try
 * mends. Nothing has answered yet while only ssh's own word counts that it reached nobody: what is set
 * up wrongly is not mended by waiting. The clock is the monotonic one, which stands still while the
 * machine sleeps.
 */
export const persist = <A, R>(
  once: Effect.Effect<A, RunFailed | LinkBroken | BytesError | WireError, R>,
  { begun, soFar, startTimeout: minutes = 0, through = () => 0 }: Persistence = {},
): Effect.Effect<A, RunFailed, Exclude<R, Scope.Scope> | Reporter> =>
  Effect.gen(function* () {
    const { say } = yield* Reporter;
    const began = yield* Clock.monotonicTimeNanos;
    let tries = 0;
    for (;;) {
      const before = through();
      const outcome = yield* once.pipe(
        Effect.scoped,
        Effect.map((value) => ({ value })),
        Effect.catchTags({
          LinkBroken: (broken) => Effect.succeed(broken),
          BytesError: () => Effect.succeed(new LinkBroken({ reason: "the link broke" })),
          WireError: ({ reason }) => failed("integrity", `malformed reply: ${reason}`),
        }),
      );
      if ("value" in outcome) return outcome.value;
      tries = through() > before ? 1 : tries + 1;
      if (begun?.() !== true && tries >= firstTries) {
        const waited = Number((yield* Clock.monotonicTimeNanos) - began);
        const passes = outcome.network === true || outcome.busy === true;
        if (!passes || waited >= minutes * 60e9) return yield* noLink(outcome);
      }
      const wait = yield* pauseAfter(tries);
      const what = begun?.() === true || through() > 0 ? soFar?.() : undefined;
      yield* say(
        "warning",
        line`${what ?? (outcome.busy === true ? "not yet" : "no link yet")}: ${outcome.reason}; again in ${wait.toFixed(1)} s`,
      );
      yield* Effect.sleep(`${Math.round(wait * 1000)} millis`);
    }
  });

/** Counts its own steps instead of reading a clock: a suspended machine has not waited. */
const eachSecond = <E>(look: () => Effect.Effect<never, E> | undefined): Effect.Effect<never, E> =>
  Effect.gen(function* () {
    for (;;) {
      yield* Effect.sleep("1 second");
      const found = look();
      if (found !== undefined) return yield* found;
    }
  });

/**
 * Fails when a connection is silent for too long while it is waited for. `received` counts every byte
 * that came, signs of life too.
 */
export const watchSilence = (
  received: () => number,
  awaited: () => boolean = () => true,
): Effect.Effect<never, LinkBroken> => {
  let quiet = 0;
  let seen = -1;
  return eachSecond(() => {
    const now = received();
    quiet = awaited() && now === seen ? quiet + 1 : 0;
    seen = now;
    return quiet < silenceLimit
      ? undefined
      : Effect.fail(new LinkBroken({ reason: `no sign of the server for ${silenceLimit} s` }));
  });
};

export interface Progress {
  /** Bytes that are through: acknowledged, or read and proven. */
  readonly through: () => number;
  /** Something of the far side is waited for. */
  readonly awaited: () => boolean;
  /** Bytes are waited for, and not only a word: only then does the floor count. */
  readonly bytesAwaited: () => boolean;
  readonly up: () => boolean;
  /** Minutes without anything through. */
  readonly linkTimeout: number;
  /** KiB a second. */
  readonly floor?: number;
  /** What a person is told to be safe, or read, by then. */
  readonly soFar: () => string;
}

/** The floor that is kept where nothing else is asked for, in KiB a second. */
export const standardFloor = floor.bytes / floor.seconds / 1024;

const seeLink = "see whether the carrier has a network and the server answers; then run again";

/**
 * Fails when nothing gets through for `linkTimeout`, or less than the floor in an hour of waiting. The
 * time in which the link is down is the business of `linkTimeout`, but not more often than once in that
 * hour: a link that is made only to break again is as slow as one that drips.
 */
export const watchProgress = (options: Progress): Effect.Effect<never, RunFailed> => {
  const { linkTimeout: minutes, floor: least = standardFloor } = options;
  const wanted = least * 1024 * floor.seconds;
  let seen = options.through();
  let quiet = 0;
  let mark = seen;
  let waited = 0;
  let excused = 0;
  return eachSecond(() => {
    const now = options.through();
    quiet = options.awaited() && now === seen ? quiet + 1 : 0;
    seen = now;
    if (quiet >= minutes * 60) {
      return Effect.fail(
        failed("link", `no progress for ${minutesOf(minutes)}: ${options.soFar()}`, seeLink),
      );
    }
    if (now - mark >= wanted) {
      mark = now;
      waited = 0;
      excused = 0;
    }
    if (!options.bytesAwaited()) return undefined;
    if (!options.up() && excused < minutes * 60) excused += 1;
    else waited += 1;
    return waited < floor.seconds
      ? undefined
      : Effect.fail(
          failed(
            "link",
            `in an hour of waiting less than ${least} KiB/s got through: ${options.soFar()}`,
            "see what makes the link so slow; where it is meant to be, give a lower --floor",
          ),
        );
  });
};

/** Tells once, aloud, that something goes on for more than a day. Never returns. */
export const tellAfterADay = Effect.fnUntraced(function* (what: Line, soFar: () => string) {
  yield* Effect.sleep("24 hours");
  const { say } = yield* Reporter;
  const { notify } = yield* Notifier;
  yield* say("warning", line`${what}: still not done after 24 h; ${soFar()}`);
  yield* notify("critical", "Still not done after 24 hours", "See: journalctl -t qbackup");
  return yield* Effect.never;
});
