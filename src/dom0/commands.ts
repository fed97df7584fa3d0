/** The commands of qbackup: the one list. */
import type { Effect } from "effect";
import { auditCommand } from "./audit.ts";
import type { Command } from "./command.ts";
import { ledgerCommand } from "./ledger.ts";
import { listCommand } from "./list.ts";
import { restoreCommand } from "./restore.ts";
import { runCommand } from "./run.ts";
import { sheetCommand } from "./sheet.ts";
import { verifyCommand } from "./verify.ts";

const all = [
  runCommand,
  listCommand,
  verifyCommand,
  auditCommand,
  restoreCommand,
  ledgerCommand,
  sheetCommand,
] as const;

/** In the order in which the help has them. */
export const commands: ReadonlyArray<
  Command<Effect.Services<ReturnType<(typeof all)[number]["run"]>>>
> = all;
