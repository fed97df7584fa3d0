/**
 * What dom0 remembers of its archives of slots, by server and series: one chain each. And by what it knows
 * the passphrases again that they were made with.
 */
import { Context, type Effect, Schema } from "effect";
import type { LedgerError } from "#services/Ledger";
import type { Chain, Journal, Remembered } from "#src/archive/chain";
import { Count, type PublicKey, type Series, Sha256 } from "#src/wire/names";

/** Which chain. */
export interface Which {
  readonly server: PublicKey;
  readonly series: Series;
}

/** All that is there of a chain. */
export interface Links {
  /** The archive that the next one builds on. */
  readonly newest: Chain | undefined;
  /** One whose receipt had not come when this was written. */
  readonly proposed: Chain | undefined;
  /** The upload under way. */
  readonly journal: Journal | undefined;
  /** Something is there that cannot be read. */
  readonly damaged: boolean;
}

/** Of a passphrase: `check` is made of its keys with this salt, at the price of a member of slots. */
export const PassphraseMark = Schema.Struct({
  salt: Sha256,
  check: Sha256,
  /** By which the ledger names it; absent: its place among them, counted from 1. */
  number: Schema.optionalKey(Count),
});
export type PassphraseMark = typeof PassphraseMark.Type;

export class Chains extends Context.Service<
  Chains,
  {
    readonly read: (which: Which) => Effect.Effect<Links, LedgerError>;
    /** Begins the journal of an upload in place of the one that is there. On disk when it returns. */
    readonly begin: (which: Which, journal: Journal) => Effect.Effect<void, LedgerError>;
    /** The next member of its pack. On disk when it returns. */
    readonly note: (
      which: Which,
      path: string,
      cell: Remembered,
    ) => Effect.Effect<void, LedgerError>;
    /** What the newest archive is, should it become one. On disk when it returns. */
    readonly propose: (which: Which, chain: Chain) => Effect.Effect<void, LedgerError>;
    /** What was proposed is the newest archive, and the journal of its upload is over. */
    readonly adopt: (which: Which) => Effect.Effect<void, LedgerError>;
    /** Nothing of the chain is remembered any more. */
    readonly forget: (which: Which) => Effect.Effect<void, LedgerError>;
    /** All passphrases that there were, oldest first. */
    readonly passphrases: Effect.Effect<ReadonlyArray<PassphraseMark>, LedgerError>;
    /** One more. On disk when it returns. */
    readonly addPassphrase: (mark: PassphraseMark) => Effect.Effect<void, LedgerError>;
  }
>()("qbackup/services/Chains") {}
