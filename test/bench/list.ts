/**
 * What `list` costs in a store of many archives: node test/bench/list.ts [ARCHIVES [MEMBERS]]. Needs the
 * built dist/qbackup-shell. Time and memory are the program's own, beside those of a program that
 * only shows its version.
 */
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { slotOf } from "#test/support/archive";
import { ontoFolder, storeMaker } from "#test/support/stores";

const [archives = 10_000, members = 50_000] = process.argv.slice(2).map(Number);
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-list-"));
const session = (n: number) => n.toString(16).padStart(32, "0");

const say = (text: string) => process.stdout.write(`${text}\n`);
const write = ontoFolder(folder);
const maker = storeMaker(write);
// One pack and one table for all: `list` must not read them, however long they are.
const first = session(1);
maker.pack(
  first,
  Buffer.concat(Array.from({ length: members }, (_, i) => slotOf(`vm1/x.${i}`, Buffer.alloc(0)))),
);
for (const directory of ["packs", "tables", "digests"]) {
  for (let n = 2; n <= archives; n++) {
    const at = path.join(folder, ".qbackup", directory);
    fs.linkSync(path.join(at, first), path.join(at, session(n)));
  }
}
for (let n = 1; n <= archives; n++) {
  const name = `work-${new Date(Date.UTC(2026, 0, 1) + n * 3_600_000).toISOString().slice(0, 13)}.backup`;
  // Archives of qvm-backup's format lie there as plain files, too.
  fs.linkSync(path.join(folder, ".qbackup/packs", session(n)), path.join(folder, name));
  maker.archive({
    name,
    session: session(n),
    run: n,
    format: "slots",
    recipe: `${first} 0 ${members}\n`,
  });
}

const hook = path.join(folder, "rss.cjs");
fs.writeFileSync(
  hook,
  `process.on("exit", () => {
  const { readFileSync, writeSync } = require("node:fs");
  // Not resourceUsage().maxRSS: that has what the parent had, too.
  const [, peak] = /VmHWM:\\s+(\\d+)/.exec(readFileSync("/proc/self/status", "utf8"));
  const { systemCPUTime, userCPUTime } = process.resourceUsage();
  writeSync(2, "\\nUSAGE " + peak + " " + (userCPUTime + systemCPUTime) + "\\n");
});
`,
);
const run = (args: ReadonlyArray<string>, command?: string) => {
  const began = process.hrtime.bigint();
  const { stderr, stdout } = spawnSync(
    process.execPath,
    ["-r", hook, "dist/qbackup-shell", ...args],
    {
      env: { HOME: folder, ...(command === undefined ? {} : { SSH_ORIGINAL_COMMAND: command }) },
      input: "",
      maxBuffer: 2 ** 28,
      encoding: "utf8",
    },
  );
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  const [, rss, cpu] = /USAGE (\d+) (\d+)/.exec(stderr) ?? [];
  return {
    seconds,
    rss: Number(rss) / 1024,
    cpu: Number(cpu) / 1e6,
    lines: stdout.split("\n").length - 1,
    stderr,
  };
};
try {
  const idle = run(["--version"]);
  const listed = run(["--root", folder], "qbackup/1 list");
  say(`${archives} archives of ${members} members: ${listed.lines - 2} listed`);
  say(
    `list ${listed.seconds.toFixed(2)} s (${listed.cpu.toFixed(2)} s of processor time); the program's start ${idle.seconds.toFixed(2)} s`,
  );
  say(
    `memory ${listed.rss.toFixed(0)} MiB; at the program's start ${idle.rss.toFixed(0)} MiB; more by ${(listed.rss - idle.rss).toFixed(0)}`,
  );
} finally {
  fs.rmSync(folder, { recursive: true, force: true });
}
