/** ssh in memory, for tests: the far end of each call is a program of this runtime. */
import * as Effect from "effect/Effect";
import * as Fiber from "effect/Fiber";
import * as Layer from "effect/Layer";
import { memoryPipe } from "#layers/memory/MemoryPipe";
import type { Invocation } from "#services/Invocation";
import { type SshReason, SshTransport } from "#services/SshTransport";

/** What the far end runs; its value is the exit code, or why ssh itself failed. */
export type FarEnd = (
  invocation: Invocation["Service"],
  command: string,
) => Effect.Effect<number | SshReason>;

/** `commands` is filled in with each call's destination and command. */
export const memorySsh = (far: FarEnd, commands: Array<string>): Layer.Layer<SshTransport> =>
  Layer.succeed(SshTransport, {
    handOver: () => Effect.die(new Error("ssh was to be handed over to")),
    read: Effect.fnUntraced(function* (destination: string, command: string) {
      commands.push(`${destination} ${command}`);
      const up = memoryPipe();
      const down = memoryPipe();
      const fiber = yield* far(
        {
          args: ["-c", command],
          env: {},
          stdin: up.source,
          stdout: down.sink,
          entropy: () => new Uint8Array(0),
        },
        command,
      ).pipe(Effect.ensuring(Effect.andThen(down.sink.end, up.cut)), Effect.forkScoped);
      const ended = Effect.map(Fiber.join(fiber), (end) =>
        typeof end === "number"
          ? { code: end, reason: "done" as const, said: [] }
          : { code: 255, reason: end, said: [] },
      );
      return { stdin: up.sink, stdout: down.source, ended };
    }),
  });
