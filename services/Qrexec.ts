/** Calls from dom0 to a qrexec service in a qube. */
import { Context, type Effect, Schema, type Scope } from "effect";
import type { Sink, Source } from "#services/Bytes";

/** The call could not even be started. */
export class QrexecError extends Schema.TaggedError<QrexecError>()("QrexecError", {
  cause: Schema.Defect(),
}) {}

export interface Call {
  readonly stdin: Sink;
  readonly stdout: Source;
  /**
   * Returns when the call is over. The exit code proves nothing: with its qrexec-client killed,
   * qvm-run exits 0 (measured). `said` is the service's stderr, capped and printable.
   */
  readonly ended: Effect.Effect<{ readonly code: number; readonly said: ReadonlyArray<string> }>;
}

export class Qrexec extends Context.Service<
  Qrexec,
  {
    /** `service` is name and argument: `qubes.BackupCarrier+put`. The call dies with the scope. */
    readonly call: (qube: string, service: string) => Effect.Effect<Call, QrexecError, Scope.Scope>;
  }
>()("qbackup/services/Qrexec") {}
