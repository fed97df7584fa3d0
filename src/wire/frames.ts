/**
 * Frames, in both directions: a 4-byte big-endian length and that many bytes. Three lengths are none:
 * 0 ends what goes before it, one says only "still here", and one gives up. docs/protocol.md, Frames.
 */
import { Effect } from "effect";
import type { BytesError, Source } from "#services/Bytes";
import { WireError, wordsOfNothing } from "./lines.ts";

const keepAlive = 0x80000000;
const giveUp = 0xffffffff;

/** The length before so many bytes; 0 is a frame of its own. */
export const lengthPrefix = (length: number): Uint8Array => {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, length);
  return bytes;
};
/** A frame without bytes that says only: still here. */
export const keepAliveFrame = lengthPrefix(keepAlive);
/** From a client: the server is to forget the upload. From a server: an error line follows. */
export const giveUpFrame = lengthPrefix(giveUp);

export type Frame =
  /** At least one byte; valid until the next frame is asked for. */
  | { readonly kind: "bytes"; readonly bytes: Uint8Array }
  | { readonly kind: "zero" }
  | { readonly kind: "keep-alive" }
  | { readonly kind: "give-up" }
  /** The bytes stop here; between frames or inside one, it makes no difference. */
  | { readonly kind: "cut" };

/**
 * Reads frames of at most `limit` bytes into one buffer; a longer one is a `WireError`. Bytes and the
 * length behind them are taken in one read, and nothing beyond that: what follows a frame without
 * bytes is still in `source`.
 */
export const frames = (source: Source, limit: number) => {
  let buffer = new Uint8Array(0);
  const prefix = new Uint8Array(4);
  const view = new DataView(prefix.buffer);
  let held = 0;
  const nothing = wordsOfNothing();

  const next: Effect.Effect<Frame, BytesError | WireError> = Effect.gen(function* () {
    if (held < 4) held += yield* source.read(prefix.subarray(held), 4 - held);
    if (held < 4) return { kind: "cut" };
    held = 0;
    const size = view.getUint32(0);
    if (size === 0) return { kind: "zero" };
    if (size === keepAlive) {
      yield* nothing;
      return { kind: "keep-alive" };
    }
    if (size === giveUp) return { kind: "give-up" };
    if (size > limit) return yield* new WireError({ reason: `a frame of ${size} bytes` });
    if (buffer.length < size + 4) buffer = new Uint8Array(size + 4);
    const n = yield* source.read(buffer.subarray(0, size + 4), size);
    if (n < size) return { kind: "cut" };
    held = n - size;
    prefix.set(buffer.subarray(size, n));
    return { kind: "bytes", bytes: buffer.subarray(0, size) };
  });

  return { next };
};
