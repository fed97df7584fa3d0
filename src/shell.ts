/** qbackup-shell, the login shell or forced command of a backup account: the program and its layers. */
import "#layers/NoDebugger";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { nodeInvocation } from "#layers/NodeInvocation";
import { runRole } from "#layers/NodeMain";
import { nodeSafeFs } from "#layers/NodeSafeFs";
import { stderrReporter } from "#layers/StderrReporter";
import { unixLocks } from "#layers/UnixLocks";
import { shell } from "#src/shell/main";

// The files' modes are chosen by whoever makes them; a umask of 0777 would make a store that cannot be used.
process.umask(0o027);

runRole(
  shell.pipe(
    Effect.provide(
      Layer.mergeAll(nodeInvocation(), nodeSafeFs, stderrReporter("qbackup-shell"), unixLocks),
    ),
  ),
);
