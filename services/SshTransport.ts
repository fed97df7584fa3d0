/** The ssh client of the carrier. */
import { Context, type Effect, Schema, type Scope } from "effect";
import type { Sink, Source } from "#services/Bytes";

/** Why ssh ended; "done" says nothing about the command, whose exit code is beside it. */
export type SshReason =
  | "done"
  | "host-key-unknown"
  | "host-key-changed"
  | "refused-key"
  /** ssh itself will not work: a file of its configuration, its permissions, what both ends can do. */
  | "misconfigured"
  | "unreachable"
  | "lost"
  | "no-ssh";

/** ssh could not even be started; `why` is printable. */
export class SshMissing extends Schema.TaggedError<SshMissing>()("SshMissing", {
  why: Schema.String,
}) {}

/** How ssh ended; `said` is its stderr, printable. */
export interface SshEnded {
  readonly code: number;
  readonly reason: SshReason;
  readonly said: ReadonlyArray<string>;
}

/** What ssh reads, if not this process's own stdin. */
export interface SshInput {
  /** The file or device of that path. */
  readonly disk?: string;
  /**
   * These bytes, handed on as they come. Their end may mean that the caller is gone: from then on, ssh
   * that gets rid of no bytes is ended, for it would wait for ever.
   */
  readonly from?: Source;
}

export class SshTransport extends Context.Service<
  SshTransport,
  {
    /**
     * Runs `command` at `destination` (user@host, or a name from ~/.ssh/config) with this process's
     * own stdin and stdout, which ssh inherits: no byte of them passes through here.
     */
    readonly handOver: (
      destination: string,
      command: string,
      input?: SshInput,
    ) => Effect.Effect<SshEnded>;
    /** The same, but both ends of the call are here. It dies with the scope. */
    readonly read: (
      destination: string,
      command: string,
    ) => Effect.Effect<
      { readonly stdin: Sink; readonly stdout: Source; readonly ended: Effect.Effect<SshEnded> },
      SshMissing,
      Scope.Scope
    >;
  }
>()("qbackup/services/SshTransport") {}
