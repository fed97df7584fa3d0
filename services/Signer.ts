/** dom0's own keys, which never leave it: what makes an upload dom0's. */
import { Context, type Effect } from "effect";
import type { LedgerError } from "#services/Ledger";
import type { Asked } from "#src/proof/series";
import type { Signed } from "#src/proof/keys";
import type { PublicKey, Series, Signature } from "#src/wire/names";

/** The private halves, as they are written on paper: 32 bytes each. */
export interface Secrets {
  readonly signing: Uint8Array;
  readonly series: Uint8Array;
}

export interface Keys {
  readonly signer: PublicKey;
  /** Made by this call: nobody has seen this key yet. */
  readonly fresh: boolean;
  readonly sign: (what: Signed, text: string) => Signature;
  readonly seriesOf: (asked: Asked) => Series;
}

export class Signer extends Context.Service<
  Signer,
  {
    /** The keys, made where there are none; on disk when it returns. */
    readonly keys: Effect.Effect<Keys, LedgerError>;
    /** The public key, or undefined where there is none yet: nothing is made. */
    readonly existing: Effect.Effect<PublicKey | undefined, LedgerError>;
    /**
     * The next run of this series for this server: above every one that was given before and above
     * `least`. On disk when it returns.
     */
    readonly nextRun: (
      server: PublicKey,
      series: Series,
      least: number,
    ) => Effect.Effect<number, LedgerError>;
    /** For paper. */
    readonly secrets: Effect.Effect<Secrets | undefined, LedgerError>;
    /** Takes these; those that were there are kept beside them under another name. */
    readonly take: (secrets: Secrets) => Effect.Effect<void, LedgerError>;
  }
>()("qbackup/services/Signer") {}
