/** Keys and compression in the threads of libuv, of which there are four where nobody said otherwise. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { scrypt } from "node:crypto";
import { createGzip, deflateRaw } from "node:zlib";
import { Sealing } from "#services/Sealing";
import { keysSize, slotCost } from "#src/archive/seal";

/** Bytes of each of the places that are tried, and how many places. */
const probe = { bytes: 16_384, places: 4 } as const;
/** Where less than that part is gained, compressing takes ten times the time of all the rest for nothing. */
const worth = 0.03;

/** Neither of them fails for what it is given here. */
const called = (call: (done: (error: Error | null, result: Buffer) => void) => void) =>
  Effect.callback<Buffer>((done) =>
    call((error, result) => done(error === null ? Effect.succeed(result) : Effect.die(error))),
  );

/** So many bytes of the parts together, from byte `at` on. */
const cut = (
  parts: ReadonlyArray<Uint8Array>,
  at: number,
  bytes: number,
): ReadonlyArray<Uint8Array> => {
  let start = 0;
  return parts.flatMap((part) => {
    const from = at - start;
    start += part.length;
    return from < part.length && from + bytes > 0
      ? [part.subarray(Math.max(0, from), from + bytes)]
      : [];
  });
};

const placesOf = (parts: ReadonlyArray<Uint8Array>): Buffer => {
  const size = parts.reduce((sum, { length }) => sum + length, 0);
  const step = Math.floor((size - probe.bytes) / (probe.places - 1));
  return Buffer.concat(
    step < probe.bytes
      ? parts
      : Array.from({ length: probe.places }, (_, i) => cut(parts, i * step, probe.bytes)).flat(),
  );
};

const getsSmaller = (tried: Buffer) =>
  Effect.map(
    called((done) => deflateRaw(tried, { level: 1 }, done)),
    (smaller) => smaller.length <= tried.length * (1 - worth),
  );

/** Bytes of a piece of what comes out. */
const pieceSize = 262_144;

export const nodeSealing: Layer.Layer<Sealing> = Layer.succeed(Sealing, {
  keys: (passphrase, salt) => called((done) => scrypt(passphrase, salt, keysSize, slotCost, done)),
  gzip: Effect.fnUntraced(function* (parts: Array<Uint8Array>, stored = false) {
    const level = stored || !(yield* getsSmaller(placesOf(parts))) ? 0 : 1;
    return yield* Effect.callback<Array<Uint8Array>>((done) => {
      const stream = createGzip({ level, chunkSize: pieceSize });
      const pieces: Array<Uint8Array> = [];
      stream.on("data", (piece: Buffer) => pieces.push(piece));
      stream.on("error", (error) => done(Effect.die(error)));
      stream.on("end", () => done(Effect.succeed(pieces)));
      const next = () => {
        const part = parts.shift();
        if (part === undefined) stream.end();
        else stream.write(part, next);
      };
      next();
      return Effect.sync(() => stream.destroy());
    });
  }),
});
