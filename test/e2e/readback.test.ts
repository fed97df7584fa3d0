/** list, verify, audit and the ledger's verbs as they are built, through a real ssh to a real server. */
import { afterEach, assert, describe, it, vi } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { dist, execute, type Whole, whole, type WholeOptions } from "#test/support/whole";

vi.setConfig({ testTimeout: 120_000 });

let now: Whole | undefined;
const setUp = async (options: WholeOptions = {}) => (now = await whole(options));
afterEach(() => {
  now?.stop();
  now = undefined;
});

/** Runs `qbackup ARGS` to its end; nothing that it started is left. */
const qbackup = async (w: Whole, ...args: ReadonlyArray<string>) => {
  const ran = await w.start(args[0]!, "-t", "net", ...args.slice(1)).ended;
  assert.strictEqual(w.world.qube("net").state, "Halted");
  assert.notMatch(ran.stdout + ran.stderr, /[^\x20-\x7e\n]/);
  return ran;
};
const backup = async (w: Whole, prefix: string, ...qubes: ReadonlyArray<string>) => {
  const ran = await w.run("-f", prefix, ...qubes);
  assert.strictEqual(ran.code, 0, ran.stderr);
  return w.ledger().at(-1)!.name;
};
const proofs = (json: string) =>
  new Map(
    (JSON.parse(json) as Array<{ name: string; proof: string }>).map((row) => [
      row.name,
      row.proof,
    ]),
  );
/** Changes a stored file as somebody does who has the server. */
const change = (w: Whole, name: string, how: (bytes: Buffer) => Buffer) => {
  const file = path.join(w.server.store, name);
  const bytes = fs.readFileSync(file);
  fs.chmodSync(file, 0o640);
  fs.writeFileSync(file, how(bytes));
  return () => fs.writeFileSync(file, bytes);
};

const big = (size: number): WholeOptions => ({
  qubes: [
    { name: "work", size },
    { name: "vault", size: 3_000_000 },
    { name: "net", size: 0, include: false },
  ],
  settings: { raw: true },
});

describe("the way back", () => {
  it("proves what is there, finds what is not, and rebuilds a ledger", async () => {
    const w = await setUp(big(9_000_000));
    const one = await backup(w, "one-", "work", "vault");
    const two = await backup(w, "two-", "vault");
    const sums = (await qbackup(w, "list", "--receipts", "--json")).stdout;
    assert.deepStrictEqual([...proofs(sums).values()], ["proven", "proven"]);

    const verify = await qbackup(w, "verify", one);
    assert.strictEqual(verify.code, 0, verify.stderr);
    assert.match(verify.stdout, new RegExp(`^${one}: verified\n.* blocks, .* members, tree hash`));
    const word = await qbackup(w, "verify", "--on-server", one);
    assert.strictEqual(word.code, 0, word.stderr);
    assert.match(word.stdout, /the server says/);
    const audit = await qbackup(w, "audit", "--budget", "5");
    assert.strictEqual(audit.code, 0, audit.stderr);
    assert.match(audit.stdout, /blocks .* chosen at random, came back proven/);
    const list = await qbackup(w, "list");
    assert.match(
      list.stdout,
      new RegExp(`^${one} .* proven +20\\d\\d-\\S+.* work`, "m"),
      list.stdout,
    );
    const paper = (await qbackup(w, "ledger", "head")).stdout.split("\n")[0]!;
    const sheet = await qbackup(w, "recovery-sheet");
    assert.include(sheet.stdout, paper);
    assert.include(sheet.stdout, one);

    for (const how of [
      (bytes: Buffer) => ((bytes[5_000_000]! ^= 1), bytes),
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
    assert.strictEqual((await qbackup(w, "list")).code, 0);

    // An older archive with its manifest in the place of a newer one.
    const file = (name: string) => path.join(w.server.store, name);
    fs.renameSync(file(one), file("aside"));
    fs.renameSync(file(`${one}.manifest.json`), file("aside.json"));
    fs.copyFileSync(file(two), file(one));
    fs.copyFileSync(file(`${two}.manifest.json`), file(`${one}.manifest.json`));
    const swapped = await qbackup(w, "list");
    assert.strictEqual(swapped.code, 6);
    assert.include(swapped.stderr, `${one} is changed: the content of ${two}`);
    assert.strictEqual((await qbackup(w, "verify", one)).code, 6);
    assert.strictEqual((await qbackup(w, "audit")).code, 6);
    fs.renameSync(file("aside"), file(one));
    fs.renameSync(file("aside.json"), file(`${one}.manifest.json`));
    assert.strictEqual((await qbackup(w, "verify", one)).code, 0);

    fs.rmSync(w.state, { recursive: true });
    const unknown = await qbackup(w, "list", "--json");
    assert.deepStrictEqual([...proofs(unknown.stdout).values()], ["unknown", "unknown"]);
    assert.strictEqual((await qbackup(w, "verify", one)).code, 2);
    const forced = await qbackup(w, "verify", "--force", one);
    assert.strictEqual(forced.code, 0, forced.stderr);
    assert.match(forced.stdout, /not proven/);
    const rebuilt = await qbackup(w, "ledger", "rebuild");
    assert.strictEqual(rebuilt.code, 0, rebuilt.stderr);
    assert.match(rebuilt.stdout, /^2 lines added/);
    const after = await qbackup(w, "list", "--json");
    assert.deepStrictEqual([...proofs(after.stdout).values()], ["rebuilt", "rebuilt"]);
    assert.strictEqual((await qbackup(w, "verify", two)).code, 0);
    assert.strictEqual((await qbackup(w, "ledger", "check", paper)).code, 6);
  });

  it("draws a bar on a terminal, and its result not beside it", async () => {
    const w = await setUp(big(9_000_000));
    const name = await backup(w, "", "work");
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
      assert.match(stdout, /\r(verify|audit)ing {2}\[#*\.*\] +\d+\.\d\d% +\d+\.\d MiB /);
      assert.match(stdout, new RegExp(`\r +\r${result}`));
    }
  });

  it("goes on where a link was cut, again and again, and waits for no dead one", async () => {
    const w = await setUp({
      ...big(40_000_000),
      // Every connection carries some 5 to 15 MB back and no more.
      sshScript: `eval "/usr/bin/ssh $OPTIONS \\"\\$@\\"" | dd bs=65536 count=250 status=none`,
    });
    const name = await backup(w, "", "work", "vault");
    const ran = await qbackup(w, "verify", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.isAtLeast(ran.stderr.match(/the link broke/g)?.length ?? 0, 2, ran.stderr);
    fs.writeFileSync(path.join(w.dir, "bin/ssh"), "#!/bin/sh\nexit 255\n", { mode: 0o755 });
    for (const args of [["verify", name], ["audit"], ["list"], ["verify", "--on-server", name]]) {
      const dead = await qbackup(w, ...args);
      assert.strictEqual(dead.code, 4, dead.stderr);
      assert.strictEqual(dead.stdout, "");
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
    const large = await backup(w, "large-", "work", "vault");
    const small = await backup(w, "small-", "vault");
    const [few, many] = [await peak(w, small), await peak(w, large)];
    assert.isBelow(many - few, 60_000, `kB: ${few} for 3 MB, ${many} for 253 MB`);
  });
});
