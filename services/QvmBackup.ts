/**
 * qvm-backup, as a stream. How the bytes get out (a FIFO, because qubesd opens a path) stays inside
 * the layer, and so does the care that qubesd never hangs on it.
 */
import { Context, type Effect, type Scope } from "effect";
import type { Source } from "#services/Bytes";
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
     * first line is not blank. The passphrase itself leaves the layer in no way.
     */
    readonly checkPassphrase: (file: string) => Effect.Effect<PassphraseFile, QubesError>;
    /**
     * Whether this program compresses, and gives back with `-d` what it was given: only then can a
     * restore read what was made with it.
     */
    readonly compresses: (program: string) => Effect.Effect<boolean>;
    /** Puts right what a killed run left: cancels its qvm-backup, removes its FIFO. Says what it did. */
    readonly recover: Effect.Effect<ReadonlyArray<string>, QubesError>;
  }
>()("qbackup/services/QvmBackup") {}
