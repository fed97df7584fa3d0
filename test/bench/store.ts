/**
 * What a store of many archives costs: `list` of all of it, and a small `put` beside one in an empty store,
 * with a quota: node test/bench/store.ts [ARCHIVES [MEMBERS]]. Needs the built dist/qbackup-shell. Time
 * and memory are the program's own, beside those of a program that only shows its version.
 */
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { archiveOf, slotOf } from "#test/support/archive";
import { commandFor, streamOf } from "#test/support/shell";
import { ontoFolder, serverPair, storeMaker } from "#test/support/stores";

const [archives = 10_000, members = 50_000] = process.argv.slice(2).map(Number);
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-store-"));
const empty = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-empty-"));
const session = (n: number) => n.toString(16).padStart(32, "0");

const say = (text: string) => process.stdout.write(`${text}\n`);
const write = ontoFolder(folder);
const maker = storeMaker(write);
storeMaker(ontoFolder(empty));
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
const run = (
  home: string,
  args: ReadonlyArray<string>,
  command?: string,
  input: Uint8Array = Buffer.alloc(0),
) => {
  const began = process.hrtime.bigint();
  const { stderr, stdout } = spawnSync(
    process.execPath,
    ["-r", hook, "dist/qbackup-shell", ...args],
    {
      env: { HOME: home, ...(command === undefined ? {} : { SSH_ORIGINAL_COMMAND: command }) },
      input,
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
    stdout,
    stderr,
  };
};
/** A whole upload of a small archive, with a run of its own. */
const put = (home: string, number: number) => {
  const now = Date.now();
  const archive = archiveOf({ seed: 1, files: [{ path: "vm7/private.img", size: 4096 }] });
  const upload = {
    archive,
    name: `small-${number}.backup`,
    session: session(archives + number),
    run: number,
    bytes: archive.length,
  };
  const done = run(
    home,
    ["--quota", "1T"],
    commandFor(upload, serverPair.publicKey, now),
    streamOf(upload, serverPair.publicKey, now, 0),
  );
  if (!done.stdout.includes('"stored"')) throw new Error(`not stored: ${done.stdout}`);
  return done;
};
try {
  const idle = run(folder, ["--version"]);
  const listed = run(folder, [], "qbackup/1 list");
  say(`${archives} archives of ${members} members: ${listed.lines - 2} listed`);
  say(
    `list ${listed.seconds.toFixed(2)} s (${listed.cpu.toFixed(2)} s of processor time); the program's start ${idle.seconds.toFixed(2)} s`,
  );
  say(
    `memory ${listed.rss.toFixed(0)} MiB; at the program's start ${idle.rss.toFixed(0)} MiB; more by ${(listed.rss - idle.rss).toFixed(0)}`,
  );
  const rounds = [1, 2, 3].map((n) => [put(empty, n), put(folder, n)] as const);
  const least = (which: 0 | 1, of: "seconds" | "cpu") =>
    Math.min(...rounds.map((round) => round[which][of])).toFixed(2);
  for (const [which, what] of [
    [0, "an empty store"],
    [1, "this one"],
  ] as const) {
    say(
      `a put into ${what}: ${least(which, "seconds")} s (${least(which, "cpu")} s of processor time), best of 3`,
    );
  }
} finally {
  for (const made of [folder, empty]) fs.rmSync(made, { recursive: true, force: true });
}
