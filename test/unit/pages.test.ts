/** The manual page and the completion: as the commands are, and as man and bash take them. */
import { assert, it } from "@effect/vitest";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { commands } from "#src/dom0/cli/commands";
import { flagName } from "#src/dom0/cli/command";
import { made } from "#test/docs";
import { unless, without } from "#test/support/unless";

it.each(Object.keys(made))("%s is what the commands make of it; else: npm run docs", (file) => {
  assert.strictEqual(fs.readFileSync(file, "utf8"), made[file]!());
});

it(
  "the page has every command and flag, and groff has nothing to say",
  unless(without("groff")),
  () => {
    const page = spawnSync("groff", ["-man", "-Tascii", "-P-cbou", "-ww", "install/qbackup.1"], {
      encoding: "utf8",
    });
    assert.deepStrictEqual([page.status, page.stderr], [0, ""]);
    for (const command of commands) {
      assert.include(page.stdout, `   qbackup ${command.name}\n`);
      for (const key of Object.keys(command.flags)) {
        assert.match(page.stdout, new RegExp(`^ +(-[a-zA-Z], )?--${flagName(key)}\\b`, "m"));
      }
    }
  },
);

/** What bash offers for the last word; Qubes has the qubes vault and work, and one that is evil. */
const offered = (...words: ReadonlyArray<string>): ReadonlyArray<string> => {
  const source = `. install/qbackup.bash
qvm-ls() { [ "$*" = --raw-list ] && printf '%s\\n' vault work 'e$(echo>&2 evil)'; }
compopt() { :; }
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_qbackup
[ \${#COMPREPLY[@]} -eq 0 ] || printf '%s\\n' "\${COMPREPLY[@]}"`;
  const done = spawnSync("bash", ["-c", source, "bash", ...words], { encoding: "utf8" });
  assert.deepStrictEqual([done.status, done.stderr], [0, ""]);
  return done.stdout.split("\n").filter((line) => line !== "");
};

it.each([
  [["qbackup", "li"], ["list"]],
  [
    ["qbackup", "v"],
    ["verify", "vault"],
  ],
  [["qbackup", "vault", "w"], ["work"]],
  [["qbackup", "run", "l"], []],
  [
    ["qbackup", "help", "re"],
    ["restore", "recovery-sheet"],
  ],
  [["qbackup", "--wi"], ["--window"]],
  [["qbackup", "vault", "--q"], ["--qubes-timeout"]],
  [["qbackup", "list", "--re"], ["--receipts"]],
  [["qbackup", "list", "--wi"], []],
  [["qbackup", "list", "v"], []],
  [
    ["qbackup", "ledger", ""],
    ["head", "check", "rebuild", "forget"],
  ],
  [["qbackup", "list", "-t", "v"], ["vault"]],
  [["qbackup", "list", "--to", "=", "v"], ["vault"]],
  [
    ["qbackup", "list", "--to", "="],
    ["vault", "work", "e$(echo>&2", "evil)"],
  ],
  [["qbackup", "-p", "LICEN"], ["LICENSE"]],
  [["qbackup", "--window", "v"], []],
  [["qbackup", "restore", "x", "--exclude", "wo"], ["work"]],
])("%j: %j", (words, expected) => assert.deepStrictEqual(offered(...words), expected));

it("every flag of every command is offered", () => {
  for (const command of commands) {
    const names = Object.keys(command.flags).map((key) => `--${flagName(key)}`);
    assert.sameMembers(
      [...offered("qbackup", command.name, "--")],
      [...names, "--help", "--version"],
    );
  }
});
