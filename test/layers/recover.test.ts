/** The way back without Qubes and without qbackup, under Debian's own sh; other shells: test/e2e. */
import { execFileSync } from "node:child_process";
import { assert, it } from "vitest";
import * as fs from "node:fs";
import { recoverContract, script } from "#test/contracts/recover";
import { unless, without } from "#test/support/unless";

recoverContract(["dash"], true);

it("is clean for shellcheck", unless(without("shellcheck")), () => {
  execFileSync("shellcheck", ["-s", "sh", "-S", "warning", script], { stdio: "pipe" });
});
it("is short enough to be copied", () => {
  assert.isBelow(fs.readFileSync(script, "utf8").split("\n").length, 480);
});
