/** Keys and compression in the threads of libuv, of which there are four where nobody said otherwise. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { scrypt } from "node:crypto";
import { deflateRaw, gzip } from "node:zlib";
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

const placesOf = (bytes: Buffer): Buffer => {
  const step = Math.floor((bytes.length - probe.bytes) / (probe.places - 1));
  return step < probe.bytes
    ? bytes
    : Buffer.concat(
        Array.from({ length: probe.places }, (_, i) =>
          bytes.subarray(i * step, i * step + probe.bytes),
        ),
      );
};

export const nodeSealing: Layer.Layer<Sealing> = Layer.succeed(Sealing, {
  keys: (passphrase, salt) => called((done) => scrypt(passphrase, salt, keysSize, slotCost, done)),
  gzip: Effect.fnUntraced(function* (parts: ReadonlyArray<Uint8Array>) {
    const bytes = Buffer.concat(parts);
    const tried = placesOf(bytes);
    const smaller = yield* called((done) => deflateRaw(tried, { level: 1 }, done));
    const level = smaller.length > tried.length * (1 - worth) ? 0 : 1;
    return yield* called((done) => gzip(bytes, { level }, done));
  }),
});
