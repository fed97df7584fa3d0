/** `npm run docs`: writes the files that are made from the commands. test/unit/pages.test.ts holds them. */
import * as fs from "node:fs";
import { commands } from "#src/dom0/cli/commands";
import { completion, manual } from "#src/dom0/cli/pages";

export const made: Readonly<Record<string, () => string>> = {
  "install/qbackup.1": () => manual(commands),
  "install/qbackup.bash": () => completion(commands),
};

if (import.meta.main) {
  for (const [file, text] of Object.entries(made)) fs.writeFileSync(file, text());
}
