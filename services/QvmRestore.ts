/**
 * qvm-backup-restore, fed from here. It reads its archive in three passes, opening it anew for each:
 * the header pair, then qubes.xml, then the directories of the qubes (docs/qubes.md, Restoring). How
 * the bytes get to it (FIFOs, because it opens a path) stays inside the layer.
 */
import { Context, type Effect, type Scope } from "effect";
import type { Sink } from "#services/Bytes";
import type { QubesError } from "#services/Qubes";

export interface RestorePlan {
  /** Decrypt everything and restore nothing. */
  readonly verifyOnly: boolean;
  /** Empty: all that are in the archive. */
  readonly qubes: ReadonlyArray<string>;
  /** Absolute. */
  readonly passphraseFile: string;
  /** More options of qvm-backup-restore, given to it as they are. */
  readonly options: ReadonlyArray<string>;
  /** Is shown each line that it says, raw, as it comes. */
  readonly see: (line: string) => void;
}

/** How qvm-backup-restore ended. In a real restore 0 is no proof: it only logs what goes wrong. */
export interface Ended {
  readonly code: number;
  /** The last lines that it said, printable, one string each. */
  readonly said: ReadonlyArray<string>;
}

export interface Restoring {
  /**
   * Waits until the archive is opened, for the first time or once more, and gives what is read of it
   * from then on; undefined when the tool has exited instead. One reading at a time: the sink before
   * must have been ended. A write fails once the reader has stopped, which it may do early.
   */
  readonly opened: Effect.Effect<Sink | undefined, QubesError>;
  readonly ended: Effect.Effect<Ended>;
}

export class QvmRestore extends Context.Service<
  QvmRestore,
  {
    /**
     * Starts it. When the scope closes before it has ended, it is stopped first and its source closed
     * then, so that it never takes bytes that broke off for an archive that ends there.
     */
    readonly start: (plan: RestorePlan) => Effect.Effect<Restoring, QubesError, Scope.Scope>;
    /**
     * The directories that it unpacks into, where one that was killed has left them: plain data. None
     * while any qvm-backup-restore runs, for it may be its own.
     */
    readonly leftovers: Effect.Effect<ReadonlyArray<string>>;
    /**
     * Has it restore in a disposable, which fetches the archive by itself: `command` runs in `qube` as
     * its default user and prints the whole archive.
     */
    readonly startParanoid: (
      plan: RestorePlan,
      qube: string,
      command: string,
    ) => Effect.Effect<Pick<Restoring, "ended">, QubesError, Scope.Scope>;
  }
>()("qbackup/services/QvmRestore") {}
