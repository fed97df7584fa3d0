/** The commands of qbackup: the one list. */
import type { Effect } from "effect";
import { auditCommand } from "#src/dom0/verbs/audit";
import type { Command } from "./command.ts";
import { keyCommand } from "#src/dom0/verbs/key";
import { ledgerCommand } from "#src/dom0/verbs/ledger";
import { listCommand } from "#src/dom0/verbs/list";
import { passphraseCommand } from "#src/dom0/verbs/passphrase";
import { restoreCommand } from "#src/dom0/verbs/restore";
import { runCommand } from "#src/dom0/verbs/run";
import { selftestCommand } from "#src/dom0/verbs/selftest";
import { sheetCommand } from "#src/dom0/verbs/sheet";
import { verifyCommand } from "#src/dom0/verbs/verify";

const all = [
  runCommand,
  listCommand,
  verifyCommand,
  auditCommand,
  restoreCommand,
  ledgerCommand,
  keyCommand,
  passphraseCommand,
  sheetCommand,
  selftestCommand,
] as const;

/** In the order in which the help has them. */
export const commands: ReadonlyArray<
  Command<Effect.Services<ReturnType<(typeof all)[number]["run"]>>>
> = all;
