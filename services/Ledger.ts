/**
 * dom0's own record of its finished runs. It lies under the XDG state directory, with the other books
 * (KnownServers, ReadBacks, RunMark, Signer), and is never reached through a link.
 */
import { Context, type Effect, Schema } from "effect";
import { Count, Instant, Name, PublicKey, Session, Sha256, Signature } from "#src/wire/names";

/** One of dom0's books cannot be read or written; `reason` is a finished sentence part. */
export class LedgerError extends Schema.TaggedError<LedgerError>()("LedgerError", {
  doing: Schema.String,
  reason: Schema.String,
  /** What to do about just that, where it is known. */
  hint: Schema.optionalKey(Schema.String),
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
  /** The manifest's text, byte for byte, and dom0's signature over it. */
  manifest: Schema.String,
  signature: Signature,
  /** The bytes that were read for it in that run, those that were made to be sent, and in how many seconds. */
  bytes: Schema.optionalKey(Schema.Struct({ read: Count, sent: Count, seconds: Count })),
  /** Of slots: which of the passphrases that dom0 has known it was made with, counted from 1. */
  passphrase: Schema.optionalKey(Count),
});
export type Submission = typeof Submission.Type;

const { bytes, passphrase, ...submitted } = Submission.fields;

/** A finished run: one line, some 2 KiB, whatever the size of the archive. */
export const Entry = Schema.Struct({
  version: Schema.Literal(1),
  /** SHA-256 of the line before, without its newline; null in the first. */
  previous: Schema.NullOr(Sha256),
  finished: Instant,
  ...submitted,
  receipt: Schema.String,
  receiptSignature: Signature,
  /**
   * Not written by a run: taken from the server later, because the ledger was lost. That this is the
   * newest, and all, is then the server's word alone, and qubes have ids for names.
   */
  rebuilt: Schema.optionalKey(Schema.Literal(true)),
  bytes,
  passphrase,
});
export type Entry = typeof Entry.Type;

/** A readable line of the ledger: its number in the file, from 1, and the hash that the next links to. */
export interface Line {
  readonly number: number;
  readonly hash: string;
  readonly entry: Entry;
}

export class Ledger extends Context.Service<
  Ledger,
  {
    /** The directory of all the books, for messages, and as the name of the lock on runs. */
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
  }
>()("qbackup/services/Ledger") {}
