/** The two shapes in which bulk bytes move: a reader and a writer, no more. */
import { type Effect, Schema } from "effect";

/** The other end is gone, or the descriptor failed; `cause` says how. */
export class BytesError extends Schema.TaggedError<BytesError>()("BytesError", {
  cause: Schema.Defect(),
}) {}

/** Bytes in order, for one reader at a time. */
export interface Source {
  /**
   * Fills `into` until at least `atLeast` bytes (default 1) are there, and gives their number.
   * Fewer only at the end of the bytes, then 0. Interrupting it loses nothing but what it had
   * already put into `into`.
   */
  readonly read: (into: Uint8Array, atLeast?: number) => Effect.Effect<number, BytesError>;
  /** Bytes taken so far, those of a read still under way included: lets a watchdog see progress. */
  readonly received: () => number;
}

/** Bytes in order, for one writer at a time. */
export interface Sink {
  /** When it returns the buffer belongs to the caller again. */
  readonly write: (bytes: Uint8Array) => Effect.Effect<void, BytesError>;
  /** Says that no more bytes come. Never fails: the reader may be gone. */
  readonly end: Effect.Effect<void>;
}
