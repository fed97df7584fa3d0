/** Answers the ssh calls that a test expects, in their order, and fails on any other. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { isDeepStrictEqual } from "node:util";
import { type SshInput, SshTransport } from "#services/SshTransport";

export interface ExpectedSsh {
  readonly destination: string;
  readonly command: string;
  readonly disk?: string;
  readonly answer: Effect.Success<ReturnType<SshTransport["Service"]["handOver"]>>;
}

/** A call that is not the next expected one is a defect; so is one that never came. */
export const recordingSsh = (...expected: ReadonlyArray<ExpectedSsh>): Layer.Layer<SshTransport> =>
  Layer.effect(
    SshTransport,
    Effect.acquireRelease(
      Effect.sync(() => {
        const left = [...expected];
        return {
          left,
          read: () => Effect.die(new Error("ssh was to be read")),
          handOver: (destination: string, command: string, { disk }: SshInput = {}) =>
            Effect.suspend(() => {
              const next = left.shift();
              const wanted = [next?.destination, next?.command, next?.disk];
              return next !== undefined && isDeepStrictEqual([destination, command, disk], wanted)
                ? Effect.succeed(next.answer)
                : Effect.die(new Error(`unexpected ssh: ${destination} ${command} ${disk ?? ""}`));
            }),
        };
      }),
      ({ left }) =>
        left.length === 0
          ? Effect.void
          : Effect.die(
              new Error(`ssh was not called for: ${left.map((c) => c.command).join(", ")}`),
            ),
    ),
  );
