/** list, verify, audit and the ledger's verbs as they are built, through a real ssh to a real server. */
import { assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout } from "node:timers/promises";
import { fingerprint } from "#src/proof/keys";
import { processesWith } from "#test/support/programs";
import { backup, big, change, proofs, qbackup, setUp } from "#test/support/runs";
import { dist, execute, type Whole } from "#test/support/whole";

const waitFor = async (is: () => boolean) => {
  while (!is()) await setTimeout(50);
};

describe("a call whose caller is gone", () => {
  // Of a caller that was killed qrexec's agent tells nobody, and keeps the stdout open.
  for (const signal of ["SIGINT", "SIGKILL"] as const) {
    it(`${signal} on verify leaves nothing in the carrier, and nothing on the server`, async () => {
      const w = await setUp(big(60_000_000));
      const { name } = await backup(w, "work");
      const ours = () => {
        const here = new Set(processesWith(w.dir));
        return processesWith("qbackup/1 read").filter((pid) => here.has(pid));
      };
      const { child, ended } = w.start("verify", "-t", "net", name);
      await waitFor(() => ours().length > 0);
      child.kill(signal);
      await ended;
      await waitFor(() => ours().length === 0);
      await waitFor(() => processesWith(path.join(w.dir, "bin")).length === 0);
    });
  }
});

describe("the way back", () => {
  it("finds an archive that was cut, or changed for another; and rebuilds a ledger", async () => {
    const w = await setUp(big(9_000_000, 3_000_000));
    const one = (await backup(w, "-f", "one-", "work", "vault")).name;
    const two = (await backup(w, "-f", "two-", "vault")).name;
    const paper = (await qbackup(w, "ledger", "head")).stdout.split("\n")[0]!;
    for (const how of [
      (bytes: Buffer) => bytes.subarray(0, -10_240),
      () => fs.readFileSync(path.join(w.server.store, two)),
    ]) {
      const back = change(w, one, (bytes) => how(Buffer.from(bytes)));
      for (const args of [
        ["verify", one],
        ["audit", "--blocks", "99"],
      ]) {
        const ran = await qbackup(w, ...args);
        assert.strictEqual(ran.code, 6, ran.stdout + ran.stderr);
        assert.match(ran.stderr, /^qbackup: error: /m);
        assert.notMatch(ran.stdout, new RegExp(`${one}.*(verified|proven)`));
      }
      assert.strictEqual((await qbackup(w, "verify", "--on-server", one)).code, 6);
      assert.strictEqual((await qbackup(w, "list")).code, 6);
      back();
    }
    assert.strictEqual((await qbackup(w, "verify", one)).code, 0);
    // What the server found stays until it looks again.
    assert.strictEqual((await qbackup(w, "list")).code, 6);
    assert.strictEqual((await qbackup(w, "verify", "--on-server", one)).code, 0);
    assert.strictEqual((await qbackup(w, "list")).code, 0);

    // An older archive with its manifest in the place of a newer one.
    const file = (name: string) => path.join(w.server.store, name);
    const record = (name: string) => file(`${name}.manifest.json`);
    fs.renameSync(record(one), file("aside.json"));
    fs.copyFileSync(record(two), record(one));
    const swapped = await qbackup(w, "list");
    assert.strictEqual(swapped.code, 6);
    assert.match(swapped.stderr, new RegExp(`${one} is (?:missing|changed|damaged): `));
    const lines = w.world.journal().length;
    assert.strictEqual((await qbackup(w, "verify", one)).code, 6);
    assert.strictEqual((await qbackup(w, "audit")).code, 6);
    // Neither had a terminal: so they are in the journal, and on the desktop.
    const errors = w.world
      .journal()
      .slice(lines)
      .filter((line) => / user\.err error: /.test(line));
    assert.lengthOf(errors, 2);
    assert.isAtLeast(w.world.notifications().length, 2);
    fs.renameSync(file("aside.json"), record(one));
    assert.strictEqual((await qbackup(w, "verify", one)).code, 0);

    // All is lost but the keys, which are on paper.
    for (const book of fs.readdirSync(w.state)) {
      if (!book.endsWith("_key")) fs.rmSync(path.join(w.state, book), { recursive: true });
    }
    const unknown = await qbackup(w, "list", "--json");
    assert.deepStrictEqual([...proofs(unknown.stdout).values()], ["unknown", "unknown"]);
    assert.strictEqual((await qbackup(w, "verify", one)).code, 2);
    const forced = await qbackup(w, "verify", "--force", one);
    assert.strictEqual(forced.code, 0, forced.stderr);
    assert.match(forced.stdout, /not proven/);
    const [about] = (await w.ssh("qbackup/1 about")).stdout.trim().split("\n");
    const server = fingerprint(JSON.parse(about!).server);
    const rebuilt = await qbackup(w, "ledger", "rebuild", "--expect-server", server);
    assert.strictEqual(rebuilt.code, 0, rebuilt.stderr);
    assert.match(rebuilt.stdout, /^2 lines added/);
    const after = await qbackup(w, "list", "--json");
    assert.deepStrictEqual([...proofs(after.stdout).values()], ["rebuilt", "rebuilt"]);
    assert.strictEqual((await qbackup(w, "verify", two)).code, 0);
    assert.strictEqual((await qbackup(w, "ledger", "check", paper)).code, 6);
  });

  it("draws a bar on a terminal, and its result not beside it", async () => {
    const w = await setUp(big(9_000_000, 3_000_000));
    const name = (await backup(w, "work")).name;
    const env = {
      ...w.world.env,
      HOME: w.world.home("dom0"),
      XDG_STATE_HOME: path.dirname(w.state),
      TERM: "xterm",
    };
    for (const [words, result] of [
      [`verify -t net ${name}`, `${name}: verified`],
      ["audit -t net --budget 5", "NAME +BLOCKS"],
    ] as const) {
      const command = `stty cols 100; ${dist("qbackup")} ${words}`;
      const { code, stdout } = await execute(["script", "-qec", command, "/dev/null"], { env })
        .ended;
      assert.strictEqual(code, 0, stdout);
      assert.match(stdout, /\r(verify|audit)ing {2}\[#*\.*\] +\d+\.\d\d% +\d+(?:\.\d [KM]iB| B) /);
      assert.match(stdout, new RegExp(`\r +\r${result}`));
    }
  });

  it("goes on where a link was cut, again and again, and waits for no dead one", async () => {
    const w = await setUp({
      ...big(40_000_000, 3_000_000),
      // Every connection carries some 5 to 15 MB back and no more.
      sshScript: `eval "/usr/bin/ssh $OPTIONS \\"\\$@\\"" | dd bs=65536 count=250 status=none`,
    });
    const name = (await backup(w, "work", "vault")).name;
    const ran = await qbackup(w, "verify", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.isAtLeast(ran.stderr.match(/the link broke/g)?.length ?? 0, 2, ran.stderr);
    fs.writeFileSync(path.join(w.dir, "bin/ssh"), "#!/bin/sh\nexit 255\n", { mode: 0o755 });
    for (const args of [["verify", name], ["audit"], ["list"], ["verify", "--on-server", name]]) {
      const dead = await qbackup(w, ...args);
      assert.strictEqual(dead.code, 4, dead.stderr);
      // An audit says of each archive what became of it.
      if (args[0] === "audit") assert.match(dead.stdout, /^20.* unread$/m);
      else assert.strictEqual(dead.stdout, "");
    }
  });

  it("needs no more memory for a large archive than for a small one", async () => {
    const peak = async (w: Whole, name: string) => {
      const { child, ended } = w.start("verify", "-t", "net", name);
      let most = 0;
      const timer = setInterval(() => {
        try {
          const status = fs.readFileSync(`/proc/${child.pid}/status`, "utf8");
          most = Number(/^VmHWM:\s+(\d+)/m.exec(status)?.[1] ?? most);
        } catch {
          // It has ended.
        }
      }, 20);
      const ran = await ended;
      clearInterval(timer);
      assert.strictEqual(ran.code, 0, ran.stderr);
      return most;
    };
    const w = await setUp(big(250_000_000));
    const large = (await backup(w, "-f", "large-", "work", "vault")).name;
    const small = (await backup(w, "-f", "small-", "vault")).name;
    const [few, many] = [await peak(w, small), await peak(w, large)];
    assert.isBelow(many - few, 60_000, `kB: ${few} for 3 MB, ${many} for 253 MB`);
  });
});
