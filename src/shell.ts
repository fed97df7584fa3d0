/** qbackup-shell, the login shell or forced command of a backup account: the program and its layers. */
import "#layers/process/NoDebugger";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { nodeInvocation } from "#layers/process/NodeInvocation";
import { runRole } from "#layers/process/NodeMain";
import { nodeSafeFs } from "#layers/files/NodeSafeFs";
import { serverJournal } from "#layers/files/ServerJournal";
import { stderrReporter } from "#layers/desktop/StderrReporter";
import { unixLocks } from "#layers/files/UnixLocks";
import { shell } from "#src/shell/main";

// The files' modes are chosen by whoever makes them; a umask of 0777 would make a store that cannot be used.
process.umask(0o027);

const name = "qbackup-shell";
runRole(
  shell.pipe(
    Effect.provide(
      Layer.mergeAll(
        nodeInvocation(),
        nodeSafeFs,
        serverJournal(name),
        stderrReporter(name),
        unixLocks,
      ),
    ),
  ),
);
