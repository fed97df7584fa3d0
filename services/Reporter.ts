/** What a person or the journal is told. Never fails: a report that cannot be made is dropped. */
import { Context, type Effect } from "effect";
import type { Line, Shown } from "#src/say/shown";

/** `hint` says what to do about the error before it. */
export type Level = "info" | "warning" | "error" | "hint";

/** Where a run stands; drawn as a bar on a terminal, as a line now and then elsewhere. */
export interface Progress {
  /** What is being done, a word or two. */
  readonly doing: Line;
  /**
   * qvm-backup's own figure, which may pass 100 and is not linear (docs/qubes.md, Progress); of slots the share of
   * the volumes that was gone through, holes and all.
   */
  readonly percent?: number | undefined;
  readonly bytes: number;
  /** Bytes that were read for them, where those are others. */
  readonly read?: number | undefined;
  /** Bytes of those that are not as they were. */
  readonly changed?: number | undefined;
  /** Bytes in all, where known. */
  readonly total?: number | undefined;
  /** What it waits for at the moment, where it is not simply going on. */
  readonly waits?: Line | undefined;
}

export class Reporter extends Context.Service<
  Reporter,
  {
    /** `text` stands in the code, or was cleaned: no plain string fits. */
    readonly say: <T extends string>(level: Level, text: T & Shown<T>) => Effect.Effect<void>;
    readonly progress: (now: Progress) => Effect.Effect<void>;
    /** Takes the bar away, for what is written to the same terminal past this. */
    readonly clear: Effect.Effect<void>;
  }
>()("qbackup/services/Reporter") {}
