/** This very program, run once more, with a command line as a person would give it. */
import { Context, type Effect, Schema } from "effect";

/** It could not be started, or not be run to its end. What it ends with, whatever that is, is no such error. */
export class ItselfError extends Schema.TaggedError<ItselfError>()("ItselfError", {
  detail: Schema.String,
}) {
  override get message(): string {
    return `could not run qbackup: ${this.detail}`;
  }
}

export interface Ended {
  /** 128 + n for signal n. */
  readonly code: number;
  readonly stdout: string;
  /** The last lines of its stderr, printable, one string each. */
  readonly said: ReadonlyArray<string>;
}

export class Itself extends Context.Service<
  Itself,
  {
    /** What it runs on, for a report: `node v24.1.0`. */
    readonly runtime: string;
    /**
     * Runs `qbackup ARGS` to its end, without a terminal, with `settings` in its environment besides. When it
     * is interrupted, or this program dies, it is ended by SIGTERM, and may take its time to put back what it
     * has started.
     */
    readonly run: (
      args: ReadonlyArray<string>,
      settings: Readonly<Record<string, string>>,
    ) => Effect.Effect<Ended, ItselfError>;
  }
>()("qbackup/services/Itself") {}
