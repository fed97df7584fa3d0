/** What a member of slots costs processor time for: done beside everything else, on all cores. */
import { Context, type Effect } from "effect";

export class Sealing extends Context.Service<
  Sealing,
  {
    /** The keys of a member, `keysSize` bytes, at what slots cost (src/archive/seal.ts). */
    readonly keys: (passphrase: Uint8Array, salt: Uint8Array) => Effect.Effect<Uint8Array>;
    /**
     * One gzip member of these parts together, in pieces; what does not get smaller is only wrapped, or, with
     * `stored`, whatever it is, so that its length says nothing but how much it is. The parts are its own from
     * then on, and it takes out of the array what it is done with: of a cell of many slots there is not room
     * for both.
     */
    readonly gzip: (parts: Array<Uint8Array>, stored?: boolean) => Effect.Effect<Array<Uint8Array>>;
  }
>()("qbackup/services/Sealing") {}
