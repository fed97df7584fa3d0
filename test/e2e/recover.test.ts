/** The way back without Qubes and without qbackup, under the shells of other systems. */
import { recoverContract } from "#test/contracts/recover";

recoverContract(["busybox", "sh"], false);
recoverContract(["bash", "--posix"], false);
