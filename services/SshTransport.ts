/** The ssh client of the carrier. */
import { Context, type Effect } from "effect";

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

export class SshTransport extends Context.Service<
  SshTransport,
  {
    /**
     * Runs `command` at `destination` (user@host, or a name from ~/.ssh/config) with this process's
     * own stdin and stdout, which ssh inherits: no byte of them passes through here. With `disk`, the
     * file or device of that path is the stdin instead. `said` is ssh's stderr, printable.
     */
    readonly handOver: (
      destination: string,
      command: string,
      disk?: string,
    ) => Effect.Effect<{
      readonly code: number;
      readonly reason: SshReason;
      readonly said: ReadonlyArray<string>;
    }>;
  }
>()("qbackup/services/SshTransport") {}
