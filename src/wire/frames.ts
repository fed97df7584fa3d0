/** The frames of an upload: a 4-byte big-endian length and that many bytes. */
import { Effect } from "effect";
import type { BytesError, Source } from "#services/Bytes";
import { WireError } from "./lines.ts";

/** Bytes of every block but the last: of a frame, of a leaf of the tree hash, of an offset's step. */
export const blockSize = 1_048_576;
/** Bytes that a trailer may have. */
export const trailerLimit = 16 * blockSize;

const keepAlive = 0x80000000;
const giveUp = 0xffffffff;

/** The length before a block, a trailer, or (0) the end of the data. */
export const lengthPrefix = (length: number): Uint8Array => {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, length);
  return bytes;
};
/** A frame without bytes that says only: still here. */
export const keepAliveFrame = lengthPrefix(keepAlive);
/** Ends the upload and has the server forget it. */
export const giveUpFrame = lengthPrefix(giveUp);

export type Frame =
  | { readonly kind: "block"; readonly bytes: Uint8Array }
  | { readonly kind: "keep-alive" }
  | { readonly kind: "end"; readonly trailer: Uint8Array }
  | { readonly kind: "give-up" }
  /** The bytes stop here; between frames or inside one, it makes no difference. */
  | { readonly kind: "cut" };

/**
 * Reads frames into one buffer: the bytes of a frame are valid until the next one is asked for.
 * A read takes a block together with the prefix that follows it, so a block costs one read.
 */
export const frames = (source: Source) => {
  let buffer: Uint8Array | undefined;
  const prefix = new Uint8Array(4);
  const view = new DataView(prefix.buffer);
  let held = 0;
  let short = false;

  const length = Effect.fnUntraced(function* () {
    if (held < 4) held += yield* source.read(prefix.subarray(held), 4 - held);
    if (held < 4) return undefined;
    held = 0;
    return view.getUint32(0);
  });

  const next: Effect.Effect<Frame, BytesError | WireError> = Effect.gen(function* () {
    const size = yield* length();
    if (size === undefined) return { kind: "cut" };
    if (size === keepAlive) return { kind: "keep-alive" };
    if (size === giveUp) return { kind: "give-up" };
    if (size === 0) {
      const trailerSize = yield* length();
      if (trailerSize === undefined) return { kind: "cut" };
      if (trailerSize === 0 || trailerSize > trailerLimit) {
        return yield* new WireError({ reason: `a trailer of ${trailerSize} bytes` });
      }
      // Grown as bytes come, so that a peer pays for the memory that it makes us hold.
      let trailer = new Uint8Array(Math.min(trailerSize, 65_536));
      for (let at = 0; ;) {
        const n = yield* source.read(trailer.subarray(at), trailer.length - at);
        at += n;
        if (at === trailerSize) return { kind: "end", trailer };
        if (at < trailer.length) return { kind: "cut" };
        const grown = new Uint8Array(Math.min(trailerSize, trailer.length * 4));
        grown.set(trailer);
        trailer = grown;
      }
    }
    if (size > blockSize) return yield* new WireError({ reason: `a frame of ${size} bytes` });
    if (short) return yield* new WireError({ reason: "a block after one that was not full" });
    short = size < blockSize;
    // No block is longer than the first: those behind one that was not full were refused above.
    buffer ??= new Uint8Array(size + 4);
    const n = yield* source.read(buffer.subarray(0, size + 4), size);
    if (n < size) return { kind: "cut" };
    held = n - size;
    prefix.set(buffer.subarray(size, n));
    return { kind: "block", bytes: buffer.subarray(0, size) };
  });

  return { next };
};

/** More digests than the deepest tree has: 2^53 bytes are 2^33 blocks. */
const proofLimit = 33 * 32;

/** A frame of `read`: a block and its proof, or one of its two ends. */
export type BlockFrame =
  | { readonly kind: "block"; readonly bytes: Uint8Array }
  /** An end line follows. */
  | { readonly kind: "end" }
  /** An error line follows. */
  | { readonly kind: "error" }
  | { readonly kind: "cut" };

/** Reads the frames of `read`; bytes are valid until the next one is asked for. */
export const blockFrames = (source: Source) => {
  const buffer = new Uint8Array(blockSize + proofLimit);
  const prefix = new Uint8Array(4);
  const view = new DataView(prefix.buffer);
  const next: Effect.Effect<BlockFrame, BytesError | WireError> = Effect.gen(function* () {
    if ((yield* source.read(prefix, 4)) < 4) return { kind: "cut" };
    const size = view.getUint32(0);
    if (size === 0) return { kind: "end" };
    if (size === giveUp) return { kind: "error" };
    if (size > buffer.length) return yield* new WireError({ reason: `a frame of ${size} bytes` });
    const bytes = buffer.subarray(0, size);
    return (yield* source.read(bytes, size)) < size ? { kind: "cut" } : { kind: "block", bytes };
  });
  return { next };
};
