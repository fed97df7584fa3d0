/** What came back from the server of which archive, and when: every attempt and what came of it. */
import { Context, type Effect, Schema } from "effect";
import type { LedgerError } from "#services/Ledger";
import { Count, Instant, type Session, Sha256 } from "#src/wire/names";

/** What is known of an archive since it was stored: what came back from the server, and when. */
export const Audit = Schema.Struct({
  /** The last time that blocks chosen at random came back proven, how many, and of how many. */
  sampled: Schema.optionalKey(Schema.Struct({ at: Instant, blocks: Count, of: Count })),
  /** The last time that all of it came back proven. */
  whole: Schema.optionalKey(Instant),
  /** Something else came back than what was backed up; only a `whole` clears it. */
  failed: Schema.optionalKey(Instant),
  /** Of which members, by their digests; absent where of none that is known. */
  spoiled: Schema.optionalKey(Schema.Array(Sha256)),
  /** There may be others among them. */
  vague: Schema.optionalKey(Schema.Literal(true)),
  /** They are too many to be noted one by one. */
  many: Schema.optionalKey(Schema.Literal(true)),
  /** A member does not decrypt, so it was made broken; only a decryption of all of it clears it. */
  undecryptable: Schema.optionalKey(Instant),
  /** Since then nothing of it could be read, whatever the reason was; what comes back clears it. */
  unread: Schema.optionalKey(Instant),
  /** The owner has removed it from the server, or means to: nobody is to miss it. */
  forgotten: Schema.optionalKey(Instant),
});
export type Audit = typeof Audit.Type;

export class ReadBacks extends Context.Service<
  ReadBacks,
  {
    /** By the archive's session. */
    readonly all: Effect.Effect<ReadonlyMap<string, Audit>, LedgerError>;
    /** Changes what is known of these sessions; on disk when it returns. */
    readonly change: (
      sessions: ReadonlyArray<Session>,
      change: (before: Audit, session: Session) => Audit,
    ) => Effect.Effect<void, LedgerError>;
  }
>()("qbackup/services/ReadBacks") {}
