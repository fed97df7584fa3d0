/** The ssh client of the carrier where it reads itself what a command prints. */
import { Context, type Effect, Schema, type Scope } from "effect";
import type { Source } from "#services/Bytes";
import type { SshReason } from "#services/SshTransport";

/** ssh could not even be started; `why` is printable. */
export class SshMissing extends Schema.TaggedError<SshMissing>()("SshMissing", {
  why: Schema.String,
}) {}

export class SshFetch extends Context.Service<
  SshFetch,
  {
    /** Runs `command` at `destination` without a stdin. The call dies with the scope. */
    readonly read: (
      destination: string,
      command: string,
    ) => Effect.Effect<
      {
        readonly stdout: Source;
        readonly ended: Effect.Effect<{
          readonly code: number;
          readonly reason: SshReason;
          readonly said: ReadonlyArray<string>;
        }>;
      },
      SshMissing,
      Scope.Scope
    >;
  }
>()("qbackup/services/SshFetch") {}
