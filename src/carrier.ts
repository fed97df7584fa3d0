/** qubes.BackupCarrier, the qrexec service: the program and its layers. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { nodeInvocation } from "#layers/process/NodeInvocation";
import { runRole } from "#layers/process/NodeMain";
import { openSshTransport } from "#layers/ssh/OpenSshTransport";
import { shellSettings } from "#layers/settings/ShellSettings";
import { stderrReporter } from "#layers/desktop/StderrReporter";
import { carrier } from "#src/carrier/carrier";
import { fetch } from "#src/carrier/fetch";

type Needs = Effect.Services<typeof fetch | typeof carrier>;
// qrexec gives a service one argument at most: with more, the qube's own user runs this.
const role: Effect.Effect<number, never, Needs> = process.argv.length > 3 ? fetch : carrier;
const stdio = nodeInvocation(1); // what follows the request line belongs to ssh
const told = stderrReporter("qubes.BackupCarrier");
runRole(
  role.pipe(Effect.provide(Layer.mergeAll(stdio, shellSettings(), openSshTransport(), told))),
);
