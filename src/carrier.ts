/** qubes.BackupCarrier, the qrexec service: the program and its layers. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { nodeInvocation } from "#layers/NodeInvocation";
import { runRole } from "#layers/NodeMain";
import { openSshTransport } from "#layers/OpenSshTransport";
import { shellSettings } from "#layers/ShellSettings";
import { stderrReporter } from "#layers/StderrReporter";
import { carrier } from "#src/carrier/carrier";

runRole(
  carrier.pipe(
    Effect.provide(
      Layer.mergeAll(
        nodeInvocation(1), // what follows the request line belongs to ssh
        shellSettings(),
        openSshTransport(),
        stderrReporter("qubes.BackupCarrier"),
      ),
    ),
  ),
);
