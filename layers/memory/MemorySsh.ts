/** ssh answers from memory, for tests: what each command prints, in the order of the calls. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import type { Source } from "#services/Bytes";
import { type SshReason, SshTransport } from "#services/SshTransport";

export interface SshAnswer {
  readonly bytes: Uint8Array;
  readonly code?: number;
  readonly reason?: SshReason;
}

/** `commands` is filled in. A call that has no answer prints nothing and exits 255. */
export const memorySsh = (
  answers: ReadonlyArray<SshAnswer>,
  commands: Array<string>,
): Layer.Layer<SshTransport> =>
  Layer.succeed(SshTransport, {
    handOver: () => Effect.die(new Error("ssh was to be handed over to")),
    read: (destination, command) =>
      Effect.sync(() => {
        const answer = answers[commands.length];
        commands.push(`${destination} ${command}`);
        const {
          bytes,
          code = 0,
          reason = "done",
        } = answer ?? {
          bytes: new Uint8Array(0),
          code: 255,
          reason: "unreachable" as const,
        };
        let at = 0;
        const stdout: Source = {
          received: () => at,
          read: (into) =>
            Effect.sync(() => {
              const n = Math.min(into.length, bytes.length - at);
              into.set(bytes.subarray(at, at + n));
              at += n;
              return n;
            }),
        };
        return { stdout, ended: Effect.succeed({ code, reason, said: [] }) };
      }),
  });
