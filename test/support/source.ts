/** Bytes as a link brings them, without a link. */
import { Effect } from "effect";
import type { Source } from "#services/Bytes";

/** A source that tells how many of its bytes nobody has taken. */
export interface HeldSource extends Source {
  readonly left: () => number;
}

/** `bytes` in pieces of at most `step`: a read gives as few as it may. */
export const source = (bytes: Uint8Array, step = bytes.length): HeldSource => {
  let at = 0;
  return {
    left: () => bytes.length - at,
    received: () => at,
    read: (into, atLeast = 1) =>
      Effect.sync(() => {
        let got = 0;
        while (got < atLeast && at < bytes.length) {
          const n = Math.min(step, into.length - got, bytes.length - at);
          into.set(bytes.subarray(at, at + n), got);
          at += n;
          got += n;
        }
        return got;
      }),
  };
};
