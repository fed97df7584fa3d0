/** Disks that are full, fill up, or fail: the server's, call by call and for real, and dom0's. */
import { execFileSync } from "node:child_process";
import { afterAll, afterEach, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { noMount, unless } from "#test/support/unless";
import { type Whole, whole, type WholeOptions } from "#test/support/whole";
import { counting, noStrace, type Point, pointsOf, stopping } from "./strace.ts";
import { listedHere, uploadHere } from "./here.ts";
import {
  archive,
  below,
  contents,
  holdsOnly,
  inTurns,
  listed,
  type Parcel,
  pause,
  type Put,
  removeScratch,
  scratch,
  sessionOf,
  upload,
} from "./wire.ts";
import { tally } from "#test/support/tally";
import { until } from "#test/support/until";

const mounts: Array<string> = [];
/** A file system of that size, at a directory that is there; for root. */
/** As the directory that it covers is: in one that is everybody's no store takes an archive. */
const mount = (at: string, options: string): void => {
  const { gid, mode, uid } = fs.statSync(at);
  const as = `mode=${(mode & 0o777).toString(8)},uid=${uid},gid=${gid}`;
  execFileSync("mount", ["-t", "tmpfs", "-o", `${options},${as}`, "none", at]);
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

/** What is there of an upload, beside what any store has; and of nothing else. */
const leftOf = (store: string, { session }: Parcel): ReadonlyArray<string> => {
  const left = contents(store);
  const own = new RegExp(
    `^\\.qbackup/incoming/${session}(\\.(digests|table|ticket|recipe|record))?$`,
  );
  assert.deepStrictEqual(
    left.filter((name) => !own.test(name)),
    [],
    "left",
  );
  return left;
};

/**
 * What a refusal leaves: nothing, and the session is gone if it was told that it may send; or the upload
 * as it was, and the same session goes on with all that was acknowledged. Then another one comes.
 */
const takenUp = async (store: string, refused: Put, acked: number): Promise<Parcel> => {
  assert.strictEqual(await listedHere(store), 0, "it is listed all the same");
  const left = leftOf(store, parcel);
  const same = await uploadHere(store, parcel);
  if (same.error?.["code"] === "gone") {
    assert.deepStrictEqual(left, [], "gone, and left");
    const other = { ...parcel, session: sessionOf(2) };
    assert.isDefined((await uploadHere(store, other)).stored);
    return other;
  }
  assert.isDefined(same.stored, `the retry: ${JSON.stringify(same.error)}`);
  const offset = Number(same.first!["offset"]);
  if (left.length > 0) assert.isAtLeast(offset, Math.max(acked, refused.acked), "acknowledged");
  else assert.notStrictEqual(refused.first?.type, "ready", "told to send, and forgotten");
  return parcel;
};

/** Behind its record it is an archive, whether its own name and what tidies up succeed or not. */
const namedLater = async (store: string, { ran, stored }: Put): Promise<string | undefined> => {
  assert.strictEqual(ran.code, 0, ran.stderr);
  assert.strictEqual(await listedHere(store), 1, "said to be stored, and not listed");
  const after = holdsOnly(store, [parcel]);
  if (after === undefined) return undefined;
  // The session is still there, so that the next one who comes makes good what is missing.
  assert.include(contents(store), `.qbackup/incoming/${parcel.session}`, after);
  assert.strictEqual((await uploadHere(store, parcel)).stored?.["receipt"], stored?.["receipt"]);
  return holdsOnly(store, [parcel]);
};

/** Refused as it should be; then, on a disk that works, it goes well. */
const refusedAt = async (
  point: Point,
  error: "ENOSPC" | "EIO" | "EDQUOT",
  before: (store: string) => Promise<number>,
): Promise<string | undefined> => {
  const store = scratch();
  try {
    const acked = await before(store);
    const said = await upload(store, parcel, {}, stopping(point, `error=${error}`));
    if (said.stored !== undefined) return await namedLater(store, said);
    const wanted = error === "EIO" ? "internal" : "no-space";
    assert.strictEqual(said.error?.["code"], wanted, JSON.stringify(said.error ?? said.stored));
    assert.strictEqual(said.ran.code, 5);
    const lines = complaints(said.ran.stderr);
    assert.lengthOf(lines, 1, said.ran.stderr);
    assert.match(lines[0]!, /^qbackup-shell: error: the server's disk /);
    // What a flush could not bring to the disk is lost, whatever a later one says.
    const flushed = /^f(data)?sync$/.test(point.syscall) && said.first?.type === "ready";
    if (flushed) assert.deepStrictEqual(contents(store), []);
    return holdsOnly(store, [await takenUp(store, said, acked)]);
  } finally {
    fs.rmSync(store, { recursive: true, force: true });
  }
};

describe("the server's disk", unless(noStrace), () => {
  const situations: Record<string, (store: string) => Promise<number>> = {
    "of a new upload": async () => 0,
    "of one that goes on": async (store) =>
      (await uploadHere(store, parcel, { cutAt: 8 * 1_048_576 + 500_000 })).acked,
  };
  it.each(Object.entries(situations))(
    "fails or is full at a write, flush or link %s: exit 5, one line, and nothing is left or lost",
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
  ];
  const own = (n: number): Parcel => ({ ...parcel, name: `${n}.backup`, session: sessionOf(n) });
  const refused = (said: Put, what: string) => {
    assert.strictEqual(said.error?.["code"], "no-space", `${what}: ${JSON.stringify(said.stored)}`);
    assert.strictEqual(said.ran.code, 5, what);
    assert.deepStrictEqual(complaints(said.ran.stderr), [
      "qbackup-shell: error: the server's disk is full",
    ]);
  };
  it("is full at each stage in turn: no-space, exit 5, and all of the space comes back", async () => {
    const store = scratch();
    mount(store, "size=100m");
    const filler = path.join(store, ".filler");
    const stats = () => fs.statfsSync(store);
    const fillTo = (free: number) => {
      const { bavail, bsize } = stats();
      execFileSync("fallocate", ["-l", String(bavail * bsize - free), filler]);
    };
    // Makes what a store has of its own.
    assert.isDefined((await upload(store, own(1))).stored);
    const before = stats();
    for (const [i, [stage, free]] of levels.entries()) {
      const at = own(2 + i);
      refused(await upload(store, at, { ready: () => fillTo(free) }), stage);
      fs.rmSync(filler);
      // All but the note that it is gone, and the highest ticket of its series.
      const notes = 2 * (i + 1);
      assert.strictEqual(stats().bfree, before.bfree - notes, `${stage}: space is lost`);
      assert.strictEqual(stats().ffree, before.ffree - notes, `${stage}: names are lost`);
      assert.isUndefined(holdsOnly(store, [own(1)]));
      assert.strictEqual((await upload(store, at)).error?.["code"], "gone");
    }
    // Nearly full from the beginning: told before a byte is sent.
    execFileSync("fallocate", ["-l", "50m", filler]);
    const last = own(20);
    execFileSync("fallocate", ["-l", String(stats().bavail * page - 5_000_000), `${filler}2`]);
    assert.strictEqual((await upload(store, last)).first?.["code"], "no-space");
    for (const each of [filler, `${filler}2`]) fs.rmSync(each);
    assert.isDefined((await upload(store, last)).stored);
    assert.isUndefined(holdsOnly(store, [own(1), last]));
  });

  it("has no names left for the links of the commit: it goes on when there are some", async () => {
    const store = scratch();
    mount(store, "size=400m,nr_inodes=160");
    assert.isDefined((await upload(store, own(1))).stored);
    const free = () => fs.statfsSync(store).ffree;
    for (const left of [0, 1, 2, 3]) {
      const at = own(2 + left);
      const fillers: Array<string> = [];
      const said = await upload(store, at, {
        ready: () => {
          while (free() > left) {
            fillers.push(path.join(store, `.filler${fillers.length}`));
            fs.writeFileSync(fillers.at(-1)!, "");
          }
        },
      });
      refused(said, `${left} left`);
      for (const each of fillers) fs.rmSync(each);
      const [there, ...others] = await listed(store);
      assert.deepStrictEqual([there?.name, others.length], ["1.backup", left]);
      // All of it came, and its trailer may come again.
      const again = await upload(store, at);
      assert.strictEqual(again.first?.["offset"], parcel.archive.length);
      assert.isDefined(again.stored);
      assert.isUndefined(
        holdsOnly(
          store,
          Array.from({ length: 2 + left }, (_, i) => own(1 + i)),
        ),
      );
    }
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
    assert.match(
      ran.stderr,
      /^qbackup: hint: it needs a larger disk, or less of what else is on it/m,
    );
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
    mount(w.state, "size=6m");
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
