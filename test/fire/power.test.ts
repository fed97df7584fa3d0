/**
 * The power fails on the server, after any of the system calls by which the built qbackup-shell takes
 * an archive in: they are recorded in one real put, and replayed without what was not synced.
 */
import { afterAll, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { rng } from "#test/support/random";
import { unless } from "#test/support/unless";
import { recording, replay } from "./replay.ts";
import { noStrace } from "./strace.ts";
import {
  archive,
  below,
  command,
  listed,
  type Parcel,
  keyIn,
  removeScratch,
  scratch,
  seed,
  serve,
  sessionOf,
  streamOf,
  upload,
} from "./wire.ts";
import { tally } from "#test/support/tally";
import { until } from "#test/support/until";

afterAll(removeScratch);

/** More than the 8 MiB after which the server flushes: a part of it is acknowledged on the way. */
const parcel: Parcel = { name: "a.backup", session: sessionOf(1), archive: archive(8_900_000) };

/** What may be on the disk by then, of what was not synced. */
const losses = {
  "none of it is there": () => () => true,
  "all of it is there": () => () => false,
  "a part of it is there": (n: number) => {
    const random = rng(seed * 1000 + n);
    return () => random.next() < 0.5;
  },
} satisfies Record<string, (n: number) => () => boolean>;

/** One put to its end, with an acknowledgement on the way. Gives a copy of the store before it. */
const record = async (store: string, log: string): Promise<string> => {
  const server = keyIn(store);
  const before = scratch();
  fs.cpSync(store, before, { recursive: true });
  const call = serve(store, command(parcel, server), recording(log));
  assert.strictEqual((await call.next())?.type, "ready");
  const bytes = streamOf(parcel, server);
  // Its three heads are less than that.
  const first = 8 * (4 + 1_048_576) + 40_000;
  await call.send(bytes.subarray(0, first));
  await until("some of it is acknowledged", () => call.acked() > 0);
  await call.send(bytes.subarray(first));
  assert.strictEqual((await call.next())?.type, "stored");
  call.end();
  assert.strictEqual((await call.ended).code, 0);
  return before;
};

const afterwards = async (
  store: string,
  told: { readonly acked: number; readonly stored: boolean },
): Promise<string | undefined> => {
  for (const name of below(store)) {
    if (name.startsWith(".qbackup") || name.endsWith(".manifest.json")) continue;
    if (!fs.readFileSync(path.join(store, name)).equals(parcel.archive)) return `half of ${name}`;
  }
  const before = await listed(store);
  if (told.stored && before.length !== 1) return "said to be stored, and lost";
  const again = await upload(store, parcel);
  if (again.stored === undefined)
    return `again: ${JSON.stringify([again.first, again.error, again.ran])}`;
  const offset = again.first?.type === "ready" ? Number(again.first["offset"]) : undefined;
  if (offset !== undefined && offset < told.acked) {
    return `${told.acked} bytes acknowledged, and ${offset} there`;
  }
  const after = await listed(store);
  if (after.length !== 1) return "not listed in the end";
  return fs.readFileSync(path.join(store, parcel.name)).equals(parcel.archive)
    ? undefined
    : "differs";
};

describe("the server loses power", unless(noStrace), () => {
  it.each(Object.entries(losses))(
    "after a system call of a put: of what was not synced, %s",
    async (_, loss) => {
      const store = scratch();
      const log = path.join(scratch(), "log");
      const before = await record(store, log);
      const { crash, steps, version } = replay(log, store, before);
      let acked = 0;
      let stored = false;
      const wrong: Array<string> = [];
      for (const [i, { apply, said, text }] of steps.entries()) {
        const was = version();
        apply();
        const offsets = [...(said ?? "").matchAll(/"offset":(\d+)/g)].map((found) =>
          Number(found[1]),
        );
        acked = Math.max(acked, ...offsets);
        stored ||= said?.includes('"stored"') === true;
        if (version() === was && said === undefined) continue;
        tally("system calls", 1);
        const left = scratch();
        crash(left, loss(i));
        // One by one: they all have the identity, and so the locks, of the one that was recorded.
        // oxlint-disable-next-line no-await-in-loop
        const what = await afterwards(left, { acked, stored });
        if (what !== undefined) wrong.push(`${i}. ${text}: ${what}`);
        fs.rmSync(left, { recursive: true, force: true });
      }
      assert.deepStrictEqual(wrong, []);
      assert.isTrue(stored, "the log does not show that it was stored");
      assert.isAtLeast(acked, 8 * 1_048_576);
      assert.isAbove(steps.length, 60);
      // The replay is faithful: with nothing lost it is what the program left.
      const same = scratch();
      crash(same, () => false);
      assert.deepStrictEqual(below(same), below(store));
      for (const name of below(store)) {
        const [is, was] = [same, store].map((dir) => fs.lstatSync(path.join(dir, name)));
        assert.strictEqual(is!.mode, was!.mode, name);
        if (!is!.isFile()) continue;
        const [now, then] = [same, store].map((dir) => fs.readFileSync(path.join(dir, name)));
        assert.isTrue(now!.equals(then!), name);
      }
    },
  );
});
