/** The mark of the run under way, for the next one to find where it was killed. */
import { Context, type Effect, Schema, type Scope } from "effect";
import { type LedgerError, Submission } from "#services/Ledger";
import { SignedTicket } from "#src/proof/texts";
import { Session } from "#src/wire/names";

/** What qubes Qubes called backed up before, and when, in seconds since 1970. */
const BackedUp = Schema.Array(
  Schema.Struct({ name: Schema.String, at: Schema.optionalKey(Schema.Int) }),
);

/** What may be an archive of the server's, and was not proven to be one. */
export const Pending = Schema.Struct({
  submission: Submission,
  /** With which the server is asked for its receipt. */
  ticket: SignedTicket,
  backedUp: Schema.optionalKey(BackedUp),
});
export type Pending = typeof Pending.Type;

/** What a run leaves while it is under way, for the next one to put right if it is killed. */
export const Unfinished = Schema.Struct({
  session: Session,
  destination: Schema.String,
  /** The destination qube was started by the run, and is to be shut down after it. */
  started: Schema.Boolean,
  /** Set once the trailer may have been sent: the server may have committed it. */
  submission: Schema.optionalKey(Submission),
  /** With a submission: the ticket with which the server is asked for its receipt. */
  ticket: Schema.optionalKey(SignedTicket),
  /**
   * With a submission: what Qubes called the last backup of these qubes before. Qubes calls them backed up
   * from then on, and is to be told better if they are not.
   */
  backedUp: Schema.optionalKey(BackedUp),
  /** Of runs before it, whose servers no run has come to since; the oldest first. */
  earlier: Schema.optionalKey(Schema.Array(Pending)),
});
export type Unfinished = typeof Unfinished.Type;

export class RunMark extends Context.Service<
  RunMark,
  {
    /**
     * Keeps room for what a run will have to write at its end, until the scope closes: a disk that
     * fills up meanwhile does not take it. Fails where there is no such room, or where the books would
     * lie in the home of somebody else.
     */
    readonly reserve: Effect.Effect<void, LedgerError, Scope.Scope>;
    readonly read: Effect.Effect<Unfinished | undefined, LedgerError>;
    /** Replaces the mark as a whole; on disk when it returns. */
    readonly write: (run: Unfinished | undefined) => Effect.Effect<void, LedgerError>;
  }
>()("qbackup/services/RunMark") {}
