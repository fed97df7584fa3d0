/** A seeded generator (mulberry32): the same seed, the same story. */
export interface Rng {
  /** From 0 up to, not including, 1. */
  readonly next: () => number;
  /** A whole number from `from` to `to`, both included. */
  readonly int: (from: number, to: number) => number;
  readonly pick: <A>(from: ReadonlyArray<A>) => A;
  readonly bytes: (n: number) => Buffer;
}

export const rng = (seed: number): Rng => {
  let state = seed | 0;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
  const int = (from: number, to: number) => from + Math.floor(next() * (to - from + 1));
  return {
    next,
    int,
    pick: (from) => from[int(0, from.length - 1)]!,
    bytes: (n) => {
      const bytes = Buffer.allocUnsafe(n);
      for (let i = 0; i < n; i++) bytes[i] = int(0, 255);
      return bytes;
    },
  };
};
