/** Disks that are full, fill up, or fail: the server's, call by call and for real, and dom0's. */
import { execFileSync } from "node:child_process";
import { afterAll, afterEach, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { noMount, unless } from "#test/support/unless";
import { type Whole, whole, type WholeOptions } from "#test/support/whole";
import { counting, noStrace, type Point, pointsOf, stopping } from "./strace.ts";
import {
  archive,
  below,
  contents,
  holdsOnly,
  inTurns,
  listed,
  type Parcel,
  pause,
  removeScratch,
  scratch,
  sessionOf,
  upload,
} from "./wire.ts";
import { tally } from "#test/support/tally";
import { until } from "#test/support/until";

const mounts: Array<string> = [];
/** A file system of that size, at a directory that is there; for root. */
const mount = (at: string, options: string): void => {
  execFileSync("mount", ["-t", "tmpfs", "-o", options, "none", at]);
  mounts.push(at);
};
const unmount = (): void => {
  for (const at of mounts.splice(0)) execFileSync("umount", ["-l", at]);
};
afterEach(unmount);
afterAll(removeScratch);

const parcel: Parcel = {
  name: "a.backup",
  session: sessionOf(1),
  archive: archive(9_900_000),
};
/** Writes until there is no room for a page more, whoever else is writing there. */
const fillUp = (file: string): void => {
  const fd = fs.openSync(file, "a");
  try {
    for (const size of [1_048_576, 4096]) {
      const zeros = Buffer.alloc(size);
      try {
        while (fs.writeSync(fd, zeros) > 0);
      } catch {
        // Full, for pieces of that size.
      }
    }
  } finally {
    fs.closeSync(fd);
  }
};
const complaints = (stderr: string): ReadonlyArray<string> =>
  stderr.split("\n").filter((line) => line !== "");

/** Refused as it should be, with nothing left of it; then, on a disk that works, it goes well. */
const refusedAt = async (
  point: Point,
  error: "ENOSPC" | "EIO" | "EDQUOT",
  before: (store: string) => Promise<unknown>,
) => {
  const store = scratch();
  try {
    await before(store);
    const tracer = stopping(point, `error=${error}`);
    const said = await upload(store, parcel, {}, tracer);
    const wanted = error === "EIO" ? "internal" : "no-space";
    if (said.error?.["code"] !== wanted) {
      return `said ${JSON.stringify(said.error ?? said.stored)}, exit ${said.ran.code}`;
    }
    if (said.ran.code !== 5) return `exit ${said.ran.code}`;
    const lines = complaints(said.ran.stderr);
    if (lines.length !== 1 || !lines[0]!.startsWith("qbackup-shell: error: the server's disk ")) {
      return `stderr: ${said.ran.stderr}`;
    }
    if ((await listed(store)).length > 0) return "it is listed all the same";
    const left = contents(store);
    if (left.length > 0) return `left: ${left.join(", ")}`;
    // An upload of which the disk has lost something is told to be gone; then another one comes.
    const same = await upload(store, parcel);
    const other = { ...parcel, session: sessionOf(2) };
    const gone = same.error?.["code"] === "gone";
    const again = gone ? await upload(store, other) : same;
    if (again.stored === undefined) return `the retry: ${JSON.stringify(again.error)}`;
    return holdsOnly(store, [gone ? other : parcel]);
  } finally {
    fs.rmSync(store, { recursive: true, force: true });
  }
};

describe("the server's disk", unless(noStrace), () => {
  const situations: Record<string, (store: string) => Promise<unknown>> = {
    "of a new upload": async () => {},
    "of one that goes on": (store) => upload(store, parcel, { cutAt: 8 * 1_048_576 + 500_000 }),
  };
  it.each(Object.entries(situations))(
    "fails or is full at a write, flush or link %s: exit 5, one line, nothing left",
    async (_, before) => {
      const store = scratch();
      await before(store);
      const log = path.join(scratch(), "log");
      const counted = await upload(store, parcel, {}, counting(log));
      assert.isDefined(counted.stored, counted.ran.stderr);
      const points = pointsOf(log).filter(({ needsDisk }) => needsDisk);
      assert.isAbove(points.length, 15);
      const errors = ["ENOSPC", "EIO", "EDQUOT"] as const;
      const cases = points.flatMap((point) => errors.map((error) => ({ point, error })));
      tally("system calls", cases.length);
      const wrong = await inTurns(cases, async ({ error, point }) => {
        const said = await refusedAt(point, error, before);
        return said === undefined ? undefined : `${error}, ${point.nth}. ${point.text}: ${said}`;
      });
      assert.deepStrictEqual(wrong, []);
    },
  );
});

describe("a small file system below the store", unless(noMount()), () => {
  const page = 4096;
  const pages = (bytes: number) => Math.ceil(bytes / page) * page;
  /** What is free when the bytes of the archive begin to come. */
  const levels: ReadonlyArray<readonly [string, free: number]> = [
    ["the data, at its beginning", 100_000],
    ["the data, in its middle", 5_000_000],
    ["the data, in its last block", pages(parcel.archive.length) - page],
    // The bytes just fit; the digests, which come at the first flush, do not.
    ["the digests", 8 * 1_048_576],
    ["the record", pages(parcel.archive.length) + page],
  ];
  it("is full at each stage in turn: no-space, exit 5, and all of the space comes back", async () => {
    const store = scratch();
    mount(store, "size=100m");
    // Makes what a store has of its own.
    await upload(store, parcel, { cutAt: 0 });
    const stats = () => fs.statfsSync(store);
    const before = stats();
    for (const [stage, free] of levels) {
      const filler = path.join(store, ".filler");
      const said = await upload(store, parcel, {
        ready: () => {
          const { bavail, bsize } = stats();
          execFileSync("fallocate", ["-l", String(bavail * bsize - free), filler]);
        },
      });
      assert.strictEqual(
        said.error?.["code"],
        "no-space",
        `${stage}: ${JSON.stringify(said.stored)}`,
      );
      assert.strictEqual(said.ran.code, 5, stage);
      assert.deepStrictEqual(complaints(said.ran.stderr), [
        "qbackup-shell: error: the server's disk is full",
      ]);
      fs.rmSync(filler);
      assert.strictEqual(stats().bfree, before.bfree, `${stage}: space is lost`);
      assert.strictEqual(stats().ffree, before.ffree, `${stage}: names are lost`);
      assert.deepStrictEqual(await listed(store), []);
    }
    // Nearly full from the beginning: told before a byte is sent.
    execFileSync("fallocate", ["-l", "50m", path.join(store, ".filler")]);
    const early = await upload(store, parcel);
    assert.strictEqual(early.first?.["code"], "no-space");
    fs.rmSync(path.join(store, ".filler"));
    assert.isDefined((await upload(store, parcel)).stored);
    assert.isUndefined(holdsOnly(store, [parcel]));
  });

  it("has no names left for the links of the commit", async () => {
    const store = scratch();
    mount(store, "size=100m,nr_inodes=64");
    await upload(store, parcel, { cutAt: 0 });
    const before = fs.statfsSync(store).ffree;
    for (const left of [0, 1, 2, 3]) {
      const fillers: Array<string> = [];
      const said = await upload(store, parcel, {
        ready: () => {
          while (fs.statfsSync(store).ffree > left) {
            fillers.push(path.join(store, `.filler${fillers.length}`));
            fs.writeFileSync(fillers.at(-1)!, "");
          }
        },
      });
      assert.strictEqual(said.error?.["code"], "no-space", `${left} left`);
      assert.strictEqual(said.ran.code, 5);
      for (const each of fillers) fs.rmSync(each);
      assert.strictEqual(fs.statfsSync(store).ffree, before, `${left} left: names are lost`);
      assert.deepStrictEqual(await listed(store), []);
    }
    assert.isDefined((await upload(store, parcel)).stored);
  });
});

describe("dom0, from end to end", unless(noMount()), () => {
  let now: Whole | undefined;
  afterEach(() => {
    unmount();
    now?.stop();
    now = undefined;
  });
  const setUp = async (options: WholeOptions = {}) => (now = await whole(options));
  const errors = (stderr: string) =>
    complaints(stderr).filter((line) => line.startsWith("qbackup: error: "));
  const tidy = (w: Whole) => {
    assert.isFalse(fs.existsSync(path.join(w.state, "run")));
    assert.strictEqual(w.world.qube("net").state, "Halted");
    assert.deepStrictEqual(w.world.profiles(), []);
  };
  const big = {
    qubes: [
      { name: "work", size: 24_000_000 },
      { name: "net", size: 0, include: false },
    ],
    settings: { raw: true },
  } satisfies WholeOptions;

  it("the server's disk fills in the middle: exit 5, one line, nothing stored", async () => {
    const w = await setUp(big);
    mount(w.server.store, "size=100m");
    execFileSync("chown", [`${w.server.account}:`, w.server.store]);
    w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 9_000_000 });
    const { ended } = w.start("-t", "net", "-p", w.passphraseFile, "work");
    const incoming = path.join(w.server.store, ".qbackup/incoming");
    await until(
      "some of it is there",
      () =>
        fs.existsSync(incoming) &&
        below(incoming).some((name) => fs.statSync(path.join(incoming, name)).size > 3_000_000),
    );
    const filler = path.join(w.server.store, ".filler");
    fillUp(filler);
    const ran = await ended;
    assert.strictEqual(ran.code, 5, ran.stderr);
    assert.deepStrictEqual(errors(ran.stderr), [
      "qbackup: error: the server refused (no-space): the server's disk is full",
    ]);
    assert.match(ran.stderr, /^qbackup: hint: free space on the server$/m);
    assert.deepStrictEqual(below(incoming), []);
    assert.notInclude((await w.ssh("qbackup/1 list")).stdout, "archive");
    assert.lengthOf(w.ledger(), 0);
    tidy(w);
    fs.rmSync(filler);
    w.world.faults();
    assert.strictEqual((await w.run("work")).code, 0);
  });

  it("qubesd's temporary directory fills in the middle: exit 3, and nothing is stored", async () => {
    const tmp = scratch();
    mount(tmp, "size=300m");
    const w = await setUp({ ...big, settings: { ...big.settings, tmpdir: tmp } });
    w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 2_000_000 });
    const { ended } = w.start("-t", "net", "-p", w.passphraseFile, "work");
    await until("it runs", () => w.world.processes("tar").length > 0);
    await pause(500);
    execFileSync("fallocate", ["-l", "100m", path.join(tmp, "filler")]);
    const ran = await ended;
    assert.strictEqual(ran.code, 3, ran.stderr);
    assert.lengthOf(errors(ran.stderr), 1);
    assert.match(ran.stderr, /error: only .* are left in .*: chunks may have been cut short/);
    assert.notInclude((await w.ssh("qbackup/1 list")).stdout, "archive");
    assert.deepStrictEqual(below(path.join(w.server.store, ".qbackup/incoming")), []);
    tidy(w);
  });

  it("the ledger's disk is full: at the start, before the trailer, and behind it", async () => {
    const w = await setUp();
    fs.mkdirSync(w.state, { recursive: true, mode: 0o700 });
    // More than the room that a run keeps for its end.
    mount(w.state, "size=6m,mode=700");
    const filler = path.join(w.state, "filler");
    fillUp(filler);
    const early = await w.run("work");
    assert.notStrictEqual(early.code, 0);
    assert.lengthOf(errors(early.stderr), 1, early.stderr);
    assert.lengthOf(w.world.calls("qvm-backup"), 0);
    tidy(w);
    fs.rmSync(filler);

    // Full while data streams: the room for its end was kept, so it is stored and written down.
    w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 40_000 });
    const { ended } = w.start("-t", "net", "-p", w.passphraseFile, "work");
    await until("it is under way", () => w.world.calls("qvm-backup").length > 0);
    fillUp(filler);
    const late = await ended;
    assert.strictEqual(late.code, 0, late.stderr);
    assert.lengthOf(w.ledger(), 1);
    tidy(w);
    fs.rmSync(filler);
    w.world.faults();

    // Full behind the trailer's mark: stored, and maybe not written down. The next run makes it good.
    const slow = w.start("-t", "net", "-p", w.passphraseFile, "work");
    const mark = path.join(w.state, "unfinished.json");
    await until("the trailer may go", () => {
      try {
        return fs.readFileSync(mark, "utf8").includes("submission");
      } catch {
        return slow.child.exitCode !== null;
      }
    });
    fillUp(filler);
    const last = await slow.ended;
    assert.include([0, 2], last.code, last.stderr);
    fs.rmSync(filler);
    const healed = await w.run("work");
    assert.strictEqual(healed.code, 0, healed.stderr);
    const names = w.ledger().map(({ name }) => name);
    assert.lengthOf(names, 3);
    assert.strictEqual(new Set(names).size, 3, `twice in the ledger: ${names.join(", ")}`);
    tidy(w);
  });
});
