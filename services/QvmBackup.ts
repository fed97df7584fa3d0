/**
 * qvm-backup, as a stream. How the bytes get out (a FIFO, because qubesd opens a path) stays inside
 * the layer, and so does the care that qubesd never hangs on it.
 */
import { Context, type Effect, type Redacted, type Scope } from "effect";
import type { BytesError, Source } from "#services/Bytes";
import type { QubesError } from "#services/Qubes";

export interface Plan {
  /**
   * Each by name, dom0 too, and never none: without a name qvm-backup takes its default set, which may
   * have changed since it was looked at.
   */
  readonly qubes: ReadonlyArray<string>;
  /** Absolute. */
  readonly passphraseFile: string;
  /** The program that compresses; gzip where none is named. */
  readonly compressFilter?: string | undefined;
  /**
   * qubesd gives each file to this program, and not to one that compresses: `nextFile` has them, and the
   * archive no more than an empty chunk for each.
   */
  readonly tapped?: boolean;
}

/** The tar stream of one file of the backup, as qubesd hands it over (docs/qubes.md, Inner streams). */
export interface Tapped {
  readonly stream: Source;
  /** qubesd goes on to the next file once this was said; where it never is, the backup fails. */
  readonly done: Effect.Effect<void>;
}

/** How qvm-backup ended. 0 is no proof that the bytes are whole (docs/qubes.md, Exit code). */
export interface Ended {
  readonly code: number;
  /** The last lines that it said, printable, one string each. */
  readonly said: ReadonlyArray<string>;
}

export interface Running {
  /** Ends when qvm-backup has exited and every byte was read, also when it never wrote one. */
  readonly archive: Source;
  /**
   * Waits for the next file of a tapped backup, one behind the other; undefined once qvm-backup has
   * exited. That all were there, and each of them whole, is for the caller to find out.
   */
  readonly nextFile: Effect.Effect<Tapped | undefined, BytesError>;
  readonly ended: Effect.Effect<Ended>;
  /** The percentage that it last showed, and how often it showed one: a sign of life. */
  readonly progress: () => { readonly percent: number | undefined; readonly shown: number };
}

export interface PassphraseFile {
  /** Absolute. */
  readonly path: string;
  /** Set where others may read the file. */
  readonly warning: string | undefined;
  /** Of the passphrase as qvm-backup takes it: what a person counts on the paper. */
  readonly characters: number;
  /** Why no new backup should be encrypted with it; a restore must take it all the same. */
  readonly unfit: string | undefined;
  /** What a person may not have meant by the file, a sentence each. */
  readonly doubts: ReadonlyArray<string>;
}

export class QvmBackup extends Context.Service<
  QvmBackup,
  {
    /**
     * Starts it. When the scope closes before it has ended, it is cancelled with SIGINT, the only
     * signal that stops qubesd too (docs/qubes.md, Cancelling), and nothing of it is left.
     */
    readonly start: (plan: Plan) => Effect.Effect<Running, QubesError, Scope.Scope>;
    /**
     * Whether qvm-backup will find a passphrase in this file: a regular file, readable, UTF-8, whose
     * first line is not blank. Nothing of the passphrase itself is said.
     */
    readonly checkPassphrase: (file: string) => Effect.Effect<PassphraseFile, QubesError>;
    /** The passphrase as qvm-backup would take it from this file, for who encrypts in its place. */
    readonly passphrase: (file: string) => Effect.Effect<Redacted.Redacted<Uint8Array>, QubesError>;
    /**
     * Whether this program compresses, and gives back with `-d` what it was given: only then can a
     * restore read what was made with it.
     */
    readonly compresses: (program: string) => Effect.Effect<boolean>;
    /** Puts right what a killed run left: cancels its qvm-backup, removes its FIFO. Says what it did. */
    readonly recover: Effect.Effect<ReadonlyArray<string>, QubesError>;
  }
>()("qbackup/services/QvmBackup") {}
