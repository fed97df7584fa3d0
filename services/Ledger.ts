/**
 * dom0's own record: what was backed up, what the server signed for it, which server is the right
 * one. It lies under the XDG state directory and is never reached through a link.
 */
import { Context, type Effect, Schema, type Scope } from "effect";
import { Count, Instant, Name, PublicKey, Session, Sha256, Signature } from "#src/wire/names";

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
  /**
   * Not written by a run: taken from the server later, because the ledger was lost. That this is what
   * dom0 sent is then the server's word alone, and qubes have ids for names.
   */
  rebuilt: Schema.optionalKey(Schema.Literal(true)),
});
export type Entry = typeof Entry.Type;

/** A readable line of the ledger: its number in the file, from 1, and the hash that the next links to. */
export interface Line {
  readonly number: number;
  readonly hash: string;
  readonly entry: Entry;
}

/** What is known of an archive since it was stored: what came back from the server, and when. */
export const Audit = Schema.Struct({
  /** The last time that blocks chosen at random came back proven, and how many. */
  sampled: Schema.optionalKey(Schema.Struct({ at: Instant, blocks: Count })),
  /** The last time that all of it came back proven. */
  whole: Schema.optionalKey(Instant),
  /** Something else came back than what was backed up; only a `whole` clears it. */
  failed: Schema.optionalKey(Instant),
  /** A member does not decrypt, so it was made broken; only a decryption of all of it clears it. */
  undecryptable: Schema.optionalKey(Instant),
  /** Since then nothing of it could be read, whatever the reason was; what comes back clears it. */
  unread: Schema.optionalKey(Instant),
  /** The owner has removed it from the server, or means to: nobody is to miss it. */
  forgotten: Schema.optionalKey(Instant),
});
export type Audit = typeof Audit.Type;

/** What a run leaves while it is under way, for the next one to put right if it is killed. */
export const Unfinished = Schema.Struct({
  session: Session,
  destination: Schema.String,
  /** The destination qube was started by the run, and is to be shut down after it. */
  started: Schema.Boolean,
  /** Set once the trailer may have been sent: the server may have committed it. */
  submission: Schema.optionalKey(Submission),
  /**
   * With a submission: what Qubes called the last backup of these qubes before, in seconds since 1970.
   * Qubes calls them backed up from then on, and is to be told better if they are not.
   */
  backedUp: Schema.optionalKey(
    Schema.Array(Schema.Struct({ name: Schema.String, at: Schema.optionalKey(Schema.Int) })),
  ),
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
    /** The same lines as a chain. `unlinked` are numbers of lines that do not link to the one before. */
    readonly chain: Effect.Effect<
      {
        readonly lines: ReadonlyArray<Line>;
        readonly damaged: ReadonlyArray<number>;
        readonly unlinked: ReadonlyArray<number>;
      },
      LedgerError
    >;
    /** On disk when it returns, linked to the line before. */
    readonly append: (
      entry: Omit<Entry, "version" | "previous">,
    ) => Effect.Effect<void, LedgerError>;
    /**
     * Links the readable lines anew, in their order, and leaves out the others; a line is as it was up
     * to the first that was not sound. The value says where the ledger as it was is kept.
     */
    readonly mend: Effect.Effect<string, LedgerError>;
    /**
     * Keeps room for what a run will have to write at its end, until the scope closes: a disk that
     * fills up meanwhile does not take it. Fails where there is no such room, or where the ledger would
     * lie in the home of somebody else.
     */
    readonly reserve: Effect.Effect<void, LedgerError, Scope.Scope>;
    readonly unfinished: Effect.Effect<Unfinished | undefined, LedgerError>;
    /** Replaces the mark as a whole; on disk when it returns. */
    readonly mark: (run: Unfinished | undefined) => Effect.Effect<void, LedgerError>;
    /** By the archive's session. */
    readonly audits: Effect.Effect<ReadonlyMap<string, Audit>, LedgerError>;
    /** Changes what is known of these sessions; on disk when it returns. */
    readonly audited: (
      sessions: ReadonlyArray<Session>,
      change: (before: Audit, session: Session) => Audit,
    ) => Effect.Effect<void, LedgerError>;
    /** The key pinned for the server behind this qube. */
    readonly pinned: (destination: string) => Effect.Effect<string | undefined, LedgerError>;
    readonly pin: (destination: string, server: string) => Effect.Effect<void, LedgerError>;
  }
>()("qbackup/services/Ledger") {}
