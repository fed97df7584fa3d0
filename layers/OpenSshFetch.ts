/** ssh of OpenSSH, as a child whose stdout is read here. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { child, type Env } from "#layers/Child";
import { fromReadable } from "#layers/FdBytes";
import { classify, sshOptions } from "#layers/OpenSshTransport";
import { SshFetch, SshMissing } from "#services/SshFetch";

/** `env` is ssh's environment, and its PATH finds ssh. */
export const openSshFetch = (env: Env = process.env): Layer.Layer<SshFetch> =>
  Layer.succeed(SshFetch, {
    read: Effect.fnUntraced(function* (destination, command) {
      const it = yield* child(["ssh", ...sshOptions, "--", destination, command], {
        stdio: ["ignore", "pipe", "pipe"],
        env: { ...env, LC_ALL: "C", SSH_ASKPASS: undefined, SSH_ASKPASS_REQUIRE: undefined },
      }).pipe(Effect.mapError(({ message }) => new SshMissing({ why: message })));
      return {
        stdout: fromReadable(it.proc.stdout!),
        ended: Effect.map(it.ended, ({ code, said }) => ({
          code,
          reason: code === 255 ? classify(said) : ("done" as const),
          said,
        })),
      };
    }),
  });
