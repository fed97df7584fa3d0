/** The self-test by the built programs: both formats there and back, and what is left when it is ended. */
import { assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { kill, listed, qbackup, setUp, tidy, tidyRestore } from "#test/support/runs";
import { processesWith } from "#test/support/programs";
import { noScrypt, noSshd, unless, without } from "#test/support/unless";
import { passphrase, type Whole, type WholeOptions } from "#test/support/whole";
import { until } from "#test/support/until";

const options = (blockDevices = false): WholeOptions => ({
  qubes: [
    { name: "work", size: 300_000 },
    { name: "net", size: 0, include: false },
  ],
  settings: { keepsRestored: true, blockDevices },
});
const start = (w: Whole, ...args: ReadonlyArray<string>) =>
  w.start("selftest", "-t", "net", "-p", w.passphraseFile, "--yes", ...args);
const names = (w: Whole) => w.world.state().qubes.map(({ name }) => name);
const own = ["dom0", "tpl", "work", "net"];

/** Nothing that it made is left in this world, and nothing of a person's is missing. */
const cleared = async (w: Whole) => {
  assert.deepStrictEqual(names(w), own);
  await tidy(w);
  await tidyRestore(w);
};
const archives = async (w: Whole) =>
  (await listed(w)).map(({ name }) => name.replace(/2\d{3}-.*/, "")).sort();

describe("selftest", unless(noSshd, noScrypt, without("python3")), () => {
  it.each(["files", "block devices"])(
    "goes there and back in both formats, of %s, and leaves two archives and nothing else",
    async (kind) => {
      const w = await setUp(options(kind === "block devices"));
      fs.appendFileSync(path.join(w.world.home("dom0"), ".bashrc"), "QBKP_EXPECT_EVERY=36h\n");
      const ran = await start(w).ended;
      assert.strictEqual(ran.code, 0, ran.stdout + ran.stderr);
      await cleared(w);
      assert.deepStrictEqual(await archives(w), ["selftest-qvm-backup-", "selftest-slots-"]);
      assert.match(ran.stdout, /\nall of it works here: 12 steps in [0-9]+ s\n$/);
      // What can be sent with a report.
      assert.notMatch(ran.stdout, /\bnet\b|\bwork\b|\btpl\b|\/home\//);
      assert.notInclude(ran.stdout, passphrase);
      for (const { manifest } of w.ledger()) assert.isNull(JSON.parse(manifest).next);

      // It is not taken for a backup of a person's own.
      const newest = await qbackup(w, "verify", "--newest");
      assert.strictEqual(newest.code, 2, newest.stderr);
      const sheet = await qbackup(w, "recovery-sheet");
      assert.notInclude(sheet.stdout, "selftest-");
      const first = await w.run("work", "-o");
      assert.strictEqual(first.code, 0, first.stderr);
      assert.match(first.stderr, /hint: this was the first backup/);
    },
  );

  it("leaves nothing when it is interrupted in the middle of an upload", async () => {
    const w = await setUp(options());
    const { child, ended } = start(w);
    await until("something arrives", () => w.arrived() > 100_000);
    assert.include(names(w), "qbackup-selftest");
    child.kill("SIGINT");
    const ran = await ended;
    assert.strictEqual(ran.code, 130, ran.stdout + ran.stderr);
    await cleared(w);
  });

  it("killed, it takes its commands with it, and the next one removes what it left", async () => {
    const w = await setUp(options());
    const { child, ended } = start(w);
    await until("it is being restored", () => names(w).includes("qbackup-selftest-1"));
    child.kill("SIGKILL");
    await ended;
    await until("its commands end", () => processesWith(w.passphraseFile).length === 0);
    assert.include(names(w), "qbackup-selftest");
    const ran = await start(w).ended;
    assert.strictEqual(ran.code, 0, ran.stdout + ran.stderr);
    assert.match(ran.stderr, /warning: a self-test that was killed left qbackup-selftest: /);
    await cleared(w);
  });

  it("tells which step failed, and removes what it made", async () => {
    const w = await setUp(options());
    w.world.faults({
      tool: "qvm-backup-restore",
      kind: "fail-qube",
      vm: "qbackup-selftest",
      times: 1,
    });
    const ran = await start(w).ended;
    assert.strictEqual(ran.code, 3, ran.stdout + ran.stderr);
    assert.match(
      ran.stdout,
      /FAILED {2}qvm-backup: restore as qbackup-selftest-1, .*: exit code 3: /,
    );
    assert.match(ran.stdout, /ok {6}slots: compare with what was backed up/);
    await cleared(w);
    assert.strictEqual(kill(w.passphraseFile), 0);
  });

  it("asks where nobody can answer: nothing is done", async () => {
    const w = await setUp(options());
    const ran = await w.start("selftest", "-t", "net", "-p", w.passphraseFile).ended;
    assert.strictEqual(ran.code, 2, ran.stderr);
    assert.match(ran.stderr, /error: nobody is at a terminal/);
    assert.deepStrictEqual(names(w), own);
    assert.deepStrictEqual(w.world.calls("qvm-create"), []);
  });
});
