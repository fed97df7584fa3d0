/**
 * dom0's own record: what was backed up, what the server signed for it, which server is the right
 * one. It lies under the XDG state directory and is never reached through a link.
 */
import { Context, type Effect, Schema } from "effect";
import { Instant, Name, PublicKey, Session, Sha256, Signature } from "#src/wire/names";

/** The ledger cannot be read or written; `reason` is a finished sentence part. */
export class LedgerError extends Schema.TaggedError<LedgerError>()("LedgerError", {
  doing: Schema.String,
  reason: Schema.String,
}) {
  override get message(): string {
    return `could not ${this.doing}: ${this.reason}`;
  }
}

/** What a run is about, known before the server has answered for it. */
export const Submission = Schema.Struct({
  name: Name,
  session: Session,
  /** The qube that carried it. */
  destination: Schema.String,
  server: PublicKey,
  /** What was asked for: no qubes means the default set. */
  asked: Schema.Struct({
    qubes: Schema.Array(Schema.String),
    includeDom0: Schema.Boolean,
    prefix: Schema.String,
  }),
  /** The qubes behind the ids in the archive's paths. */
  qubes: Schema.Array(Schema.Struct({ name: Schema.String, qid: Schema.Int })),
  /** The manifest's text, byte for byte. */
  manifest: Schema.String,
});
export type Submission = typeof Submission.Type;

/** A finished run: one line. */
export const Entry = Schema.Struct({
  version: Schema.Literal(1),
  /** SHA-256 of the line before, without its newline; null in the first. */
  previous: Schema.NullOr(Sha256),
  finished: Instant,
  ...Submission.fields,
  receipt: Schema.String,
  signature: Signature,
});
export type Entry = typeof Entry.Type;

/** What a run leaves while it is under way, for the next one to put right if it is killed. */
export const Unfinished = Schema.Struct({
  session: Session,
  destination: Schema.String,
  /** The destination qube was started by the run, and is to be shut down after it. */
  started: Schema.Boolean,
  /** Set once the trailer may have been sent: the server may have committed it. */
  submission: Schema.optionalKey(Submission),
});
export type Unfinished = typeof Unfinished.Type;

export class Ledger extends Context.Service<
  Ledger,
  {
    /** Where it lies, for messages, and as the name of the lock on runs. */
    readonly place: string;
    /**
     * The finished runs, oldest first. `damaged` names lines that cannot be read (by number); a torn
     * last line, which a crash leaves, is among them and is put right by the next `append`.
     */
    readonly entries: Effect.Effect<
      { readonly entries: ReadonlyArray<Entry>; readonly damaged: ReadonlyArray<number> },
      LedgerError
    >;
    /** On disk when it returns, linked to the line before. */
    readonly append: (
      entry: Omit<Entry, "version" | "previous">,
    ) => Effect.Effect<void, LedgerError>;
    readonly unfinished: Effect.Effect<Unfinished | undefined, LedgerError>;
    /** Replaces the mark as a whole; on disk when it returns. */
    readonly mark: (run: Unfinished | undefined) => Effect.Effect<void, LedgerError>;
    /** The key pinned for the server behind this qube. */
    readonly pinned: (destination: string) => Effect.Effect<string | undefined, LedgerError>;
    readonly pin: (destination: string, server: string) => Effect.Effect<void, LedgerError>;
  }
>()("qbackup/services/Ledger") {}
