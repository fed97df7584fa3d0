/** qbackup, in dom0: the program and its layers. */
import { NodeServices } from "@effect/platform-node";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { homedir } from "node:os";
import { desktopReporter, stderrIsJournal } from "#layers/desktop/DesktopReporter";
import { fifoQvmBackup } from "#layers/qubes/FifoQvmBackup";
import { fifoQvmRestore } from "#layers/qubes/FifoQvmRestore";
import { fileLedger, stateDirectory } from "#layers/files/FileLedger";
import { nodeInvocation } from "#layers/process/NodeInvocation";
import { runRole } from "#layers/process/NodeMain";
import { notifySend } from "#layers/desktop/NotifySend";
import { qubesCli } from "#layers/qubes/QubesCli";
import { qvmRunQrexec } from "#layers/qubes/QvmRunQrexec";
import { shellSettings } from "#layers/settings/ShellSettings";
import { unixLocks } from "#layers/files/UnixLocks";
import { dom0, manner } from "#src/dom0/cli/main";

const { argv, env, stderr } = process;
const state = stateDirectory(env, homedir());
const how = manner(argv.slice(2), { stderrIsTTY: stderr.isTTY });
const underSystemd = stderrIsJournal(env);
const told = desktopReporter({ program: "qbackup", underSystemd, ...how });
const backup = fifoQvmBackup({ runDirectory: `${state}/run` });
const restore = fifoQvmRestore({ directory: `${state}/restore` });
const qubes = Layer.mergeAll(qubesCli(), backup, restore);
const own = Layer.mergeAll(fileLedger(state), shellSettings(), unixLocks, NodeServices.layer);
const out = Layer.mergeAll(nodeInvocation(), qvmRunQrexec(), notifySend(), told);
runRole(dom0.pipe(Effect.provide(Layer.mergeAll(qubes, own, out))));
