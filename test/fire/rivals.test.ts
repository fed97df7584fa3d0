/** Two clients for one name, and a store full of what clients never came back for. */
import { afterAll, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import {
  archive,
  below,
  command,
  holdsOnly,
  keyIn,
  listed,
  type Parcel,
  removeScratch,
  scratch,
  serve,
  sessionOf,
  upload,
} from "./wire.ts";
import { until } from "#test/support/until";

afterAll(removeScratch);

describe("two at once", () => {
  it("for one name: one wins, the other hears so, and leaves nothing of its own there", async () => {
    for (let round = 0; round < 20; round++) {
      const store = scratch();
      const parcels = [1, 2].map((n): Parcel => {
        return { name: "a.backup", session: sessionOf(n), archive: archive(3_000_000, n) };
      });
      // Neither sends a byte before both were told that they may.
      let ready = 0;
      const both = () => {
        ready += 1;
        return until("both are ready", () => ready === 2);
      };
      const [first, second] = (await Promise.all(
        parcels.map((parcel) => upload(store, parcel, { ready: both })),
      )) as [Awaited<ReturnType<typeof upload>>, Awaited<ReturnType<typeof upload>>];
      const winner = first.stored === undefined ? 1 : 0;
      const [won, lost] = winner === 0 ? [first, second] : [second, first];
      assert.isDefined(won.stored, JSON.stringify(won.error));
      assert.isUndefined(lost.stored, "both were told that they are stored");
      assert.strictEqual(lost.error?.["code"], "exists");
      assert.strictEqual(lost.ran.code, 5);
      const there = fs.readFileSync(path.join(store, "a.backup"));
      assert.isTrue(there.equals(parcels[winner]!.archive));
      const record = JSON.parse(
        fs.readFileSync(path.join(store, "a.backup.manifest.json"), "utf8"),
      );
      assert.include(record.receipt, parcels[winner]!.session);
      assert.lengthOf(await listed(store), 1);
      // The loser may come back under another name: its upload is still there.
      const renamed = { ...parcels[1 - winner]!, name: "b.backup", run: 2 };
      const again = await upload(store, renamed);
      assert.isAtLeast(Number(again.first?.["offset"]), 2 * 1_048_576);
      assert.isDefined(again.stored, JSON.stringify(again.error));
      assert.isUndefined(holdsOnly(store, [parcels[winner]!, renamed]));
    }
  });

  it("with one session: the newcomer takes over, and the archive is the same", async () => {
    const store = scratch();
    const parcel: Parcel = { name: "a.backup", session: sessionOf(1), archive: archive(9_900_000) };
    const old = serve(store, command(parcel, keyIn(store)));
    const first = await old.next();
    assert.strictEqual(first?.type, "ready");
    const next = await upload(store, parcel);
    assert.isDefined(next.stored, JSON.stringify(next.error));
    assert.strictEqual((await old.ended).code, 4);
    assert.isUndefined(holdsOnly(store, [parcel]));
    assert.lengthOf(await listed(store), 1);
  });
});

describe("a thousand abandoned uploads", () => {
  /** What one put removes at most; src/store/clean.ts. */
  const most = 256;
  it("go, so many at each put, and no put has to do with all of them", async () => {
    const store = scratch();
    const parcelOf = (n: number): Parcel => ({
      name: `${n}.backup`,
      session: sessionOf(n),
      archive: archive(20_000, n),
    });
    assert.isDefined((await upload(store, parcelOf(1))).stored);
    const incoming = path.join(store, ".qbackup/incoming");
    const long = Date.now() / 1000 - 25 * 3600;
    for (let n = 0; n < 1000; n++) {
      const session = sessionOf(0xf0000 + n);
      for (const name of [session, `${session}.digests`]) {
        fs.writeFileSync(path.join(incoming, name), "");
        fs.utimesSync(path.join(incoming, name), long, long);
      }
    }
    const abandoned = () =>
      new Set(
        below(incoming)
          .map((name) => name.slice(0, 32))
          .filter((session) => session > sessionOf(0xf0000 - 1)),
      ).size;
    let before = abandoned();
    assert.strictEqual(before, 1000);
    for (let n = 2; before > 0; n++) {
      const left = Math.max(0, before - most);
      // It is removed while the upload is under way, not before it may send.
      const said = await upload(store, parcelOf(n), {
        ready: () => until("as many as one put takes", () => abandoned() <= left),
      });
      assert.isDefined(said.stored, JSON.stringify(said.error));
      assert.strictEqual(abandoned(), left);
      before = left;
    }
    assert.deepStrictEqual(below(incoming), []);
  });
});
