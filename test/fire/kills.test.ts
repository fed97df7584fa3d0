/** kill -9 of qbackup-shell at every system call by which it changes its store. */
import { afterAll, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
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
  put,
  removeScratch,
  scratch,
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
      const chosen = points.filter((_, i) => full || (i >= commit && i % 3 === 1) || i % 12 === 5);
      const wrong = await inTurns(chosen, async (point, index) => {
        const said = await killedAt(point, before, index);
        return said === undefined ? undefined : `${point.nth}. ${point.text}: ${said}`;
      });
      assert.deepStrictEqual(wrong, []);
    },
    600_000,
  );
});
