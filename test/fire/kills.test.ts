/**
 * kill -9: of qbackup-shell at every system call by which it changes its store, of everything on the
 * way at random moments, and of qbackup at every step of its own books.
 */
import { afterAll, afterEach, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { parseManifest } from "#src/proof/texts";
import { processesWith } from "#test/support/programs";
import { rng } from "#test/support/random";
import { linesOf, rootOf, tableOf } from "#test/support/reference";
import { unless } from "#test/support/unless";
import { dist, execute, type Ran, type Whole, whole } from "#test/support/whole";
import {
  bookPointsOf,
  counting,
  noStrace,
  onBooks,
  type Point,
  pointsOf,
  stopping,
} from "./strace.ts";
import { listedHere, uploadHere } from "./here.ts";
import {
  archive,
  below,
  holdsOnly,
  inTurns,
  type Parcel,
  pause,
  type Put,
  removeScratch,
  scratch,
  seed,
  sessionOf,
  upload,
} from "./wire.ts";
import { tally } from "#test/support/tally";
import { until } from "#test/support/until";

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
  const { acked } = await uploadHere(store, parcel, { cutAt: part });
  return acked;
};

/** How the call is made that is killed; `before` gives what was acknowledged before it. */
const situations = {
  "of a new upload": async () => 0,
  "of one that goes on": cutOff,
} satisfies Record<string, (store: string) => Promise<number>>;

/** The same session comes again. */
const again = async (store: string, acked: number): Promise<string | undefined> => {
  const next = await uploadHere(store, parcel);
  if (next.stored === undefined) return `the retry failed: ${JSON.stringify(next.error)}`;
  const offset = next.first?.type === "ready" ? Number(next.first["offset"]) : undefined;
  if (offset !== undefined && offset < acked) return `${acked} acknowledged, ${offset} there`;
  return undefined;
};

/** What a dead call left goes with the first upload after a day. */
const cleaned = async (store: string, kept: Parcel): Promise<string | undefined> => {
  const incoming = path.join(store, ".qbackup/incoming");
  const long = Date.now() / 1000 - 25 * 3600;
  for (const name of below(incoming)) fs.utimesSync(path.join(incoming, name), long, long);
  const third = { ...parcel, name: "b.backup", session: sessionOf(3) };
  await upload(store, third, {
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
  const committed = (await listedHere(store)) > 0;
  const next = await uploadHere(store, other);
  if (committed && next.error?.["code"] !== "exists") return "an archive was replaced";
  if (!committed && next.stored === undefined) {
    return `the next one failed: ${JSON.stringify(next.error)}`;
  }
  return cleaned(store, committed ? parcel : other);
};

/** What is wrong with what a kill left, and with who comes next. */
const afterKill = async (
  store: string,
  killed: Put,
  acked: number,
  index: number,
): Promise<string | undefined> => {
  const safe = Math.max(acked, killed.acked);
  const seen = await listedHere(store);
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
  // It reads and hashes what it finds.
  await listedHere(store);
  return undefined;
};

/**
 * What is wrong after a kill at that call. How many there are is not the same each time: the last flush
 * may come before the stream's end, or with it. Where this one does not come, the archive must be there.
 */
const killedAt = async (
  point: Point,
  before: (store: string) => Promise<number>,
  index: number,
): Promise<{ readonly killed: boolean; readonly wrong?: string | undefined }> => {
  const store = scratch();
  try {
    const acked = await before(store);
    const killed = await upload(store, parcel, {}, stopping(point, "signal=SIGKILL"));
    if (killed.ran.code !== null) {
      const whole = killed.ran.code === 0 && killed.stored !== undefined;
      const wrong = whole ? holdsOnly(store, [parcel]) : `exit ${killed.ran.code}`;
      return { killed: false, wrong };
    }
    return { killed: true, wrong: await afterKill(store, killed, acked, index) };
  } finally {
    fs.rmSync(store, { recursive: true, force: true });
  }
};

describe("kill -9", unless(noStrace), () => {
  it.each(Object.entries(situations))("at a system call %s", async (_, before) => {
    const store = scratch();
    await before(store);
    const log = path.join(scratch(), "log");
    const counted = await upload(store, parcel, {}, counting(log));
    assert.isDefined(counted.stored, counted.ran.stderr);
    const points = pointsOf(log);
    assert.isAbove(points.length, 30);
    tally("system calls", points.length);
    let kills = 0;
    const found = await inTurns(points, async (point, index) => {
      const { killed, wrong } = await killedAt(point, before, index);
      if (killed) kills += 1;
      return wrong === undefined ? undefined : `${point.nth}. ${point.text}: ${wrong}`;
    });
    assert.deepStrictEqual(found, []);
    tally("kills", kills);
    assert.isAtLeast(kills, Math.floor(points.length * 0.95));
  });
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
  const childrenOf = (pid: number): ReadonlyArray<number> =>
    fs
      .readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")
      .split(" ")
      .filter((text) => text !== "")
      .map(Number);
  /** A run that did its job, and left nothing. */
  const stored = (each: Whole, ran: Ran): void => {
    assert.strictEqual(ran.code, 0, ran.stderr);
    const entry = each.ledger().at(-1)!;
    const manifest = parseManifest(entry.manifest)!;
    const bytes = fs.readFileSync(path.join(each.server.store, entry.name));
    assert.strictEqual(bytes.length, manifest.size);
    assert.strictEqual(rootOf(linesOf(tableOf(bytes))), manifest.root);
    assert.isFalse(fs.existsSync(path.join(each.state, "run")));
    assert.isFalse(fs.existsSync(path.join(each.state, "unfinished.json")));
    assert.strictEqual(each.world.qube("net").state, "Halted");
    assert.deepStrictEqual(each.world.profiles(), []);
  };

  it("of the shell, sshd's session, ssh, the carrier and qrexec-client in turn: the archive is the same", async () => {
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
      // The session's own sshd: the one that listens stays.
      () => childrenOf(each.server.pid),
      () => processesWith(each.server.knownHosts),
      () => each.world.processes("service").map(({ pid }) => pid),
      () => each.world.processes("qrexec-client").map(({ pid }) => pid),
    ];
    const incoming = path.join(each.server.store, ".qbackup/incoming");
    const come = () =>
      fs.existsSync(incoming)
        ? below(incoming).reduce((most, name) => {
            const file = fs.statSync(path.join(incoming, name), { throwIfNoEntry: false });
            return Math.max(most, file?.size ?? 0);
          }, 0)
        : 0;
    for (let round = 0; round < 30 && child.exitCode === null; round++) {
      // A link that brings nothing is tried less and less often; and before the first `ready` a few
      // failures end the run, and rightly.
      const before = come();
      await until("more has come", () => come() > before + 1_000_000 || child.exitCode !== null);
      const pids = on[round % on.length]!;
      await until("there is one to kill", () => pids().length > 0 || child.exitCode !== null);
      await pause(random.int(0, 700));
      for (const pid of pids()) kill(pid);
      tally("kills", 1);
    }
    const ran = await ended;
    stored(each, ran);
    assert.isAtLeast(ran.stderr.match(/the link broke/g)?.length ?? 0, 3, ran.stderr);
  });

  /**
   * After a kill of qbackup: qubesd answers, the next run does its job, and what is listed
   * is what dom0 has a line about, once.
   */
  const putRight = async (each: Whole, when: string): Promise<string | undefined> => {
    const asked = await execute(["qvm-ls", "--raw-list"], { env: each.world.env, limit: 20_000 })
      .ended;
    if (asked.code !== 0) return `qubesd hangs ${when}`;
    // What a qvm-backup that died early leaves lies elsewhere in this world than where qbackup looks.
    const profiles = path.join(each.dir, "qubes/etc/qubes/backup");
    for (const name of each.world.profiles()) fs.rmSync(path.join(profiles, name));
    const next = await each.run("work");
    if (next.code !== 0) return `the run ${when} exits with ${next.code}: ${next.stderr}`;
    stored(each, next);
    const listed = (await each.ssh("qbackup/1 list")).stdout
      .split("\n")
      .filter((line) => line.includes('"type":"archive"'))
      .map((line) => (JSON.parse(line) as { name: string }).name);
    assert.sameMembers(
      each.ledger().map(({ name }) => name),
      listed,
      when,
    );
    return undefined;
  };

  it(
    "of qbackup at each call on its files, and at each start of a program",
    unless(noStrace),
    async () => {
      /** qbackup and all that it starts are traced; of them, only what is said is stopped. */
      const traced = (each: Whole, ...options: ReadonlyArray<string>) => {
        const argv = [dist("qbackup"), "-t", "net", "-p", each.passphraseFile, "work"];
        const env = {
          ...each.world.env,
          HOME: each.world.home("dom0"),
          XDG_STATE_HOME: path.dirname(each.state),
          UV_THREADPOOL_SIZE: "1",
          UV_USE_IO_URING: "0",
        };
        return execute(["strace", "-f", "-qq", ...options, ...argv], { env }).ended;
      };
      const worlds = [await whole(), await whole()];
      try {
        const counted = async () => {
          const log = path.join(scratch(), "log");
          const ran = await traced(worlds[0]!, "-y", "-o", log, "-e", `trace=${onBooks}`);
          assert.strictEqual(ran.code, 0, ran.stderr);
          return bookPointsOf(log, worlds[0]!.state);
        };
        // What only a first run does, a first run is killed at; all else in worlds that had others.
        const atFirst = await counted();
        const later = await counted();
        const keyOf = ({ nth, path: file, syscall }: (typeof later)[number]) =>
          `${syscall} ${nth} ${file ?? ""}`;
        const again = new Set(later.map(keyOf));
        const points = [
          ...later.map((point) => ({ point, fresh: false })),
          ...atFirst
            .filter((point) => !again.has(keyOf(point)))
            .map((point) => ({ point, fresh: true })),
        ];
        assert.isAbove(points.length, 40);
        tally("system calls", points.length);
        let killed = 0;
        const wrong = await inTurns(points, async ({ fresh, point }) => {
          const { nth, path: file, syscall, text } = point;
          const each = fresh ? await whole() : worlds.pop()!;
          try {
            const when = `after ${nth}. ${text}`;
            const only = file === undefined ? [] : ["-P", path.join(each.state, file)];
            const inject = `inject=${syscall}:signal=SIGKILL:when=${nth}`;
            const to = ["-o", "/dev/null", "-e", `trace=${syscall}`, "-e", inject];
            const ran = await traced(each, ...to, ...only);
            if (ran.code === null) killed += 1;
            return await putRight(each, when);
          } finally {
            if (fresh) each.stop();
            else worlds.push(each);
          }
        });
        assert.deepStrictEqual(wrong, []);
        tally("kills", killed);
        // Where another program was killed in its stead, or a call did not come again, it is told.
        assert.isAtLeast(killed, Math.floor(points.length * 0.8));
      } finally {
        for (const each of worlds) each.stop();
      }
    },
  );

  it("of qbackup at every moment around the start of qvm-backup: qubesd never hangs", async () => {
    const each = (w = await whole());
    each.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 400_000 });
    const fifo = path.join(each.state, "run/archive");
    const rounds = 40;
    let hit = 0;
    for (let round = 0; round < rounds; round++) {
      // The one that the killed run before has left is still there at first.
      const made = () => fs.statSync(fifo, { throwIfNoEntry: false })?.ino;
      const before = made();
      const { child, ended } = each.start("-t", "net", "-p", each.passphraseFile, "work");
      // Nothing that can be waited for comes before the FIFO; from there on, in small steps.
      await until(
        "there is the FIFO",
        () => ![before, undefined].includes(made()) || child.exitCode !== null,
      );
      await pause((round * 400) / rounds);
      if (made() !== undefined && child.exitCode === null) hit += 1;
      child.kill("SIGKILL");
      await ended;
      // A qvm-backup that nobody stopped has asked qubesd by then.
      await pause(600);
      const asked = await execute(["qvm-ls", "--raw-list"], { env: each.world.env, limit: 10_000 })
        .ended;
      assert.strictEqual(asked.code, 0, `qubesd hangs after a kill in round ${round}`);
    }
    tally("kills", rounds);
    assert.isAtLeast(hit, Math.floor(rounds / 2));
    each.world.faults();
    assert.isUndefined(await putRight(each, "after the kills"));
  });
});
