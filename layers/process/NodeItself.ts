/** The same node with the same script, as a child of this process. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { run } from "#layers/process/Child";
import { Itself, ItselfError } from "#services/Itself";

/** No command takes longer, but for one that hangs. */
const limit = "1 day";
/** To cancel a tool, and to stop a qube, which is killed after a minute. */
const grace = "5 minutes";

/** `script` is the program: what node was started with. */
export const nodeItself = (script = process.argv[1]!): Layer.Layer<Itself> =>
  Layer.succeed(Itself, {
    runtime: `node ${process.version}`,
    run: (args, settings) =>
      run(["setpriv", "--pdeathsig", "TERM", "--", process.execPath, script, ...args], {
        limit,
        grace,
        // Not its group: what it has started itself, it ends itself.
        ask: ({ proc }) => Effect.sync(() => proc.kill("SIGTERM")),
        env: { ...process.env, ...settings },
      }).pipe(Effect.mapError((error) => new ItselfError({ detail: error.message }))),
  });
