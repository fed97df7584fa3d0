/**
 * Time and turns, both simulated: one queue of things to do and one list of sleepers. Nothing here
 * waits for the real world, so a story runs as fast as it can be computed, and the same seed gives
 * the same story. Which of several fibers that could run is next, that seed decides too.
 */
import { Clock, Duration, Effect, Fiber, type Scheduler } from "effect";
import type { Rng } from "#test/support/random";

interface Sleeper {
  readonly at: number;
  readonly wake: () => void;
}

/** A machine that is suspended: when, after the beginning, and for how long. In milliseconds. */
export interface Suspension {
  readonly after: number;
  readonly millis: number;
}

/** Turns that no story needs: who takes more goes round in circles. */
const turnLimit = 4_000_000;

export class Universe implements Scheduler.Scheduler {
  readonly executionMode = "async";
  /** Milliseconds since 1970. */
  now = Date.UTC(2026, 10, 23, 4, 0, 0);
  readonly begin = this.now;
  turns = 0;
  readonly #tasks: Array<() => void> = [];
  /** The earliest last; of equals, the one that slept first is nearer to the end. */
  readonly #sleepers: Array<Sleeper> = [];
  readonly #random: Rng;
  /** How often it is not the first one's turn. */
  readonly #disorder: number;

  constructor(random: Rng, disorder: number) {
    this.#random = random;
    this.#disorder = disorder;
  }

  shouldYield(fiber: Fiber.Fiber<unknown, unknown>): boolean {
    return fiber.currentOpCount >= 2048;
  }
  makeDispatcher(): Scheduler.SchedulerDispatcher {
    return { scheduleTask: (task) => void this.#tasks.push(task), flush: () => this.#settle() };
  }

  #settle(): void {
    for (;;) {
      const n = this.#tasks.length;
      if (n === 0) return;
      if ((this.turns += 1) > turnLimit) throw new Error("it goes round in circles");
      const other = n > 1 && this.#disorder > 0 && this.#random.next() < this.#disorder;
      const [task] = this.#tasks.splice(other ? this.#random.int(1, n - 1) : 0, 1);
      task!();
    }
  }

  /** Seconds since the story began. */
  get seconds(): number {
    return (this.now - this.begin) / 1000;
  }

  /**
   * Runs until `fiber` has ended; false when simulated time passes `seconds` before, or when all wait
   * for each other: somebody waits for ever.
   */
  run(fiber: Fiber.Fiber<unknown, unknown>, seconds: number): boolean {
    const limit = this.now + seconds * 1000;
    for (;;) {
      this.#settle();
      if (fiber.pollUnsafe() !== undefined) return true;
      const next = this.#sleepers.pop();
      if (next === undefined || next.at > limit) return false;
      this.now = next.at;
      next.wake();
    }
  }

  /**
   * The clock of a machine that is `wrong()` milliseconds ahead; its sleeps are right all the same,
   * but for a machine that is itself asleep meanwhile: what it waits for comes so much later.
   */
  clock(wrong: () => number = () => 0, suspended?: Suspension): Clock.Clock {
    const millis = () => this.now + wrong();
    const nanos = () => BigInt(Math.round(millis())) * 1_000_000n;
    return {
      currentTimeMillisUnsafe: millis,
      currentTimeMillis: Effect.sync(millis),
      currentTimeNanosUnsafe: nanos,
      currentTimeNanos: Effect.sync(nanos),
      monotonicTimeNanosUnsafe: () => BigInt(Math.round(this.now)) * 1_000_000n,
      monotonicTimeNanos: Effect.sync(() => BigInt(Math.round(this.now)) * 1_000_000n),
      sleep: (duration) =>
        Effect.callback<void>((resume) => {
          let at = this.now + Duration.toMillis(duration);
          const falls = suspended === undefined ? Infinity : this.begin + suspended.after;
          if (falls >= this.now && falls < at) at += suspended!.millis;
          if (!Number.isFinite(at)) return;
          if (at <= this.now) return resume(Effect.void);
          const sleeper: Sleeper = { at, wake: () => resume(Effect.void) };
          let low = 0;
          for (let high = this.#sleepers.length; low < high;) {
            const middle = (low + high) >>> 1;
            if (this.#sleepers[middle]!.at > at) low = middle + 1;
            else high = middle;
          }
          this.#sleepers.splice(low, 0, sleeper);
          return Effect.sync(() => {
            const index = this.#sleepers.indexOf(sleeper);
            if (index >= 0) this.#sleepers.splice(index, 1);
          });
        }),
    };
  }
}
