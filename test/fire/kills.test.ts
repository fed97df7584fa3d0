/**
 * kill -9: of qbackup-shell at every system call by which it changes its store, of everything on the
 * way at random moments, and of qbackup at every step of its own books.
 */
import { afterAll, afterEach, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { parseManifest } from "#src/wire/manifest";
import { treeHash } from "#test/support/peer";
import { processesWith } from "#test/support/programs";
import { rng } from "#test/support/random";
import { dist, execute, type Ran, type Whole, whole } from "#test/support/whole";
import { counting, noStrace, type Point, pointsOf, stopping } from "./strace.ts";
import {
  archive,
  below,
  command,
  full,
  holdsOnly,
  inTurns,
  listed,
  type Parcel,
  pause,
  put,
  removeScratch,
  scratch,
  seed,
  serve,
  sessionOf,
  until,
} from "./wire.ts";

afterAll(removeScratch);

/** More than the 8 MiB after which the server flushes, so that some of it is acknowledged on the way. */
const parcel: Parcel = {
  name: "a.backup",
  session: sessionOf(1),
  archive: archive(9_900_000),
};
const part = 8 * 1_048_576 + 500_000;

/** An upload that was cut off before: what a later call goes on from. */
const cutOff = async (store: string) => {
  const { acked } = await put(serve(store, command(parcel)), parcel, { cutAt: part });
  return acked;
};

/** How the call is made that is killed; `before` gives what was acknowledged before it. */
const situations = {
  "of a new upload": async () => 0,
  "of one that goes on": cutOff,
} satisfies Record<string, (store: string) => Promise<number>>;

/** The same session comes again. */
const again = async (store: string, acked: number): Promise<string | undefined> => {
  const next = await put(serve(store, command(parcel)), parcel);
  if (next.stored === undefined) return `the retry failed: ${JSON.stringify(next.error)}`;
  const offset = next.first?.type === "ready" ? Number(next.first["offset"]) : undefined;
  if (offset !== undefined && offset < acked) return `${acked} acknowledged, ${offset} there`;
  return undefined;
};

/** What a dead call left goes with the first upload after two hours. */
const cleaned = async (store: string, kept: Parcel): Promise<string | undefined> => {
  const incoming = path.join(store, ".qbackup/incoming");
  const long = Date.now() / 1000 - 3 * 3600;
  for (const name of below(incoming)) fs.utimesSync(path.join(incoming, name), long, long);
  const third = { ...parcel, name: "b.backup", session: sessionOf(3) };
  await put(serve(store, command(third)), third, {
    ready: () =>
      until("the dead upload is cleaned away", () =>
        below(incoming).every((name) => name.startsWith(third.session)),
      ),
  });
  return holdsOnly(store, [kept, third]);
};

/** Another session comes in its stead. */
const anotherOne = async (store: string): Promise<string | undefined> => {
  const other = { ...parcel, session: sessionOf(2) };
  const committed = (await listed(store)).length > 0;
  const next = await put(serve(store, command(other)), other);
  if (committed && next.error?.["code"] !== "exists") return "an archive was replaced";
  if (!committed && next.stored === undefined) {
    return `the next one failed: ${JSON.stringify(next.error)}`;
  }
  return cleaned(store, committed ? parcel : other);
};

const killedAt = async (
  point: Point,
  before: (store: string) => Promise<number>,
  index: number,
): Promise<string | undefined> => {
  const store = scratch();
  try {
    const acked = await before(store);
    const killed = await put(
      serve(store, command(parcel), stopping(point, "signal=SIGKILL")),
      parcel,
    );
    if (killed.ran.code !== null) return `not killed, but exit ${killed.ran.code}`;
    const safe = Math.max(acked, killed.acked);
    const seen = (await listed(store)).length;
    if (killed.stored !== undefined && seen !== 1) return "said to be stored, and not listed";
    if (index % 3 === 2) {
      const wrong = await anotherOne(store);
      if (wrong !== undefined) return wrong;
    } else {
      let wrong = await again(store, safe);
      // One that died behind its commit leaves names that take no space, for as long as any upload.
      if (wrong === undefined && holdsOnly(store, [parcel]) !== undefined) {
        wrong = await cleaned(store, parcel);
      }
      if (wrong !== undefined) return wrong;
      if (!fs.readFileSync(path.join(store, parcel.name)).equals(parcel.archive)) return "differs";
    }
    // `listed` reads and hashes what it finds.
    return (await listed(store)).every(({ verified }) => verified) ? undefined : "unverified";
  } finally {
    fs.rmSync(store, { recursive: true, force: true });
  }
};

describe.skipIf(noStrace !== undefined)(`kill -9 ${noStrace ?? ""}`, () => {
  it.each(Object.entries(situations))(
    "at a system call %s",
    async (_, before) => {
      const store = scratch();
      await before(store);
      const log = path.join(scratch(), "log");
      const counted = await put(serve(store, command(parcel), counting(log)), parcel);
      assert.isDefined(counted.stored, counted.ran.stderr);
      const points = pointsOf(log);
      assert.isAbove(points.length, 30);
      // Those around the commit are the ones where the order matters most.
      const commit = points.findIndex(({ syscall }) => syscall === "fchmod");
      const chosen = points.filter((_, i) => full || (i >= commit && i % 4 === 1) || i % 16 === 5);
      const wrong = await inTurns(chosen, async (point, index) => {
        const said = await killedAt(point, before, index);
        return said === undefined ? undefined : `${point.nth}. ${point.text}: ${said}`;
      });
      assert.deepStrictEqual(wrong, []);
    },
    600_000,
  );
});

describe("kill -9 from end to end", () => {
  let w: Whole | undefined;
  afterEach(() => {
    w?.stop();
    w = undefined;
  });
  const kill = (pid: number): void => {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It ended between the look and the kill.
    }
  };
  /** A run that did its job, and left nothing. */
  const stored = (each: Whole, ran: Ran): void => {
    assert.strictEqual(ran.code, 0, ran.stderr);
    const entry = each.ledger().at(-1)!;
    const manifest = parseManifest(entry.manifest)!;
    const bytes = fs.readFileSync(path.join(each.server.store, entry.name));
    assert.strictEqual(bytes.length, manifest.size);
    assert.strictEqual(treeHash(bytes), manifest.treehash);
    assert.isFalse(fs.existsSync(path.join(each.state, "run")));
    assert.isFalse(fs.existsSync(path.join(each.state, "unfinished.json")));
    assert.strictEqual(each.world.qube("net").state, "Halted");
    assert.deepStrictEqual(each.world.profiles(), []);
  };

  it("of the shell, ssh, the carrier and qrexec-client in turn: the archive is the same", async () => {
    const each = (w = await whole({
      qubes: [
        { name: "work", size: 30_000_000 },
        { name: "net", size: 0, include: false },
      ],
      settings: { raw: true },
    }));
    each.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 4_000_000 });
    const random = rng(seed);
    const { child, ended } = each.start("-o", "-t", "net", "-p", each.passphraseFile, "work");
    const on = [
      () => processesWith(path.join(each.dir, "bin/qbackup-shell")),
      () => processesWith(each.server.knownHosts),
      () => each.world.processes("service").map(({ pid }) => pid),
      () => each.world.processes("qrexec-client").map(({ pid }) => pid),
    ];
    // Before the first `ready` a few failures end the run, and rightly.
    const incoming = path.join(each.server.store, ".qbackup/incoming");
    await until(
      "it has begun",
      () =>
        fs.existsSync(incoming) &&
        below(incoming).some((name) => fs.statSync(path.join(incoming, name)).size > 1_000_000),
      30_000,
    );
    for (let round = 0; round < (full ? 24 : 8) && child.exitCode === null; round++) {
      const pids = on[round % on.length]!;
      await until(
        "there is one to kill",
        () => pids().length > 0 || child.exitCode !== null,
        30_000,
      );
      await pause(random.int(200, 900));
      for (const pid of pids()) kill(pid);
    }
    const ran = await ended;
    stored(each, ran);
    assert.isAtLeast(ran.stderr.match(/the link broke/g)?.length ?? 0, 3, ran.stderr);
  }, 300_000);

  it.skipIf(noStrace !== undefined)(
    "of qbackup at the steps of its books: the next run puts all right",
    async () => {
      const each = (w = await whole());
      const files = ["unfinished.json", "unfinished.json.new", "ledger.jsonl", "known_servers.new"];
      const at = (name: string) => path.join(each.state, name);
      /** qbackup and all that it starts are traced; only what touches its books is stopped. */
      const traced = (syscall: string, nth: number, of: ReadonlyArray<string>) =>
        execute(
          [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            ...of.flatMap((file) => ["-P", file]),
            "-e",
            `trace=${syscall}`,
            "-e",
            `inject=${syscall}:signal=SIGKILL:when=${nth}`,
            dist("qbackup"),
            "-t",
            "net",
            "-p",
            each.passphraseFile,
            "work",
          ],
          {
            env: {
              ...each.world.env,
              HOME: each.world.home("dom0"),
              XDG_STATE_HOME: path.dirname(each.state),
              UV_THREADPOOL_SIZE: "1",
              UV_USE_IO_URING: "0",
            },
          },
        ).ended;
      const run = path.join(each.state, "run");
      const books = files.map(at);
      const steps = [
        ["openat", [1, 4, 6, 9], books],
        ["rename", [1, 2, 3], books],
        ["fsync", [1, 2, 3, 4], [...books, each.state]],
        ["unlink", [1, 2, 3], books],
        ["write", [1, 2, 3, 4], books],
        ["openat", [1, 2, 3], [path.join(run, "archive"), path.join(run, "qvm-backup.json")]],
        ["unlink", [1], [path.join(run, "archive")]],
        ["rmdir", [1], [run]],
      ] as const;
      let killed = 0;
      const all = steps.flatMap(([syscall, nths, of]) => nths.map((nth) => ({ syscall, nth, of })));
      for (const [i, { nth, of, syscall }] of all.entries()) {
        if (!full && ![5, 17, 19].includes(i)) continue;
        const ran = await traced(syscall, nth, of);
        if (ran.code === null) killed += 1;
        else assert.strictEqual(ran.code, 0, `${syscall} ${nth}: ${ran.stderr}`);
        const asked = await execute(["qvm-ls", "--raw-list"], {
          env: each.world.env,
          limit: 20_000,
        }).ended;
        assert.strictEqual(asked.code, 0, `qubesd hangs after ${syscall} ${nth}`);
        const next = await each.run("work");
        assert.strictEqual(next.code, 0, `after ${syscall} ${nth}: ${next.stderr}`);
        stored(each, next);
        // Each archive that is listed as verified is one that dom0 has a line about, once.
        const listed = (await each.ssh("qbackup/1 list")).stdout
          .split("\n")
          .filter((line) => line.includes('"verified":true'))
          .map((line) => (JSON.parse(line) as { name: string }).name);
        const known = each.ledger().map(({ name }) => name);
        assert.sameMembers(known, listed, `after ${syscall} ${nth}`);
      }
      assert.isAtLeast(killed, full ? 10 : 2);
    },
    600_000,
  );
});
