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
  it("go, a few at each put, and no put waits for that", async () => {
    const store = scratch();
    const parcelOf = (n: number): Parcel => ({
      name: `${n}.backup`,
      session: sessionOf(n),
      archive: archive(20_000, n),
    });
    /** Milliseconds to `ready`, the median of several. */
    const latency = async (from: number, ready?: (n: number) => Promise<unknown>) => {
      const times: Array<number> = [];
      for (let n = from; n < from + 5; n++) {
        const started = performance.now();
        const said = await upload(store, parcelOf(n), {
          ready: () => {
            times.push(performance.now() - started);
            return ready?.(n);
          },
        });
        assert.isDefined(said.stored, JSON.stringify(said.error));
      }
      return times.sort((a, b) => a - b)[2]!;
    };
    const alone = await latency(1);
    const incoming = path.join(store, ".qbackup/incoming");
    const long = Date.now() / 1000 - 25 * 3600;
    for (let n = 0; n < 1000; n++) {
      const session = sessionOf(0xf0000 + n);
      for (const name of [session, `${session}.digests`]) {
        fs.writeFileSync(path.join(incoming, name), "");
        fs.utimesSync(path.join(incoming, name), long, long);
      }
    }
    let before = below(incoming).length;
    const crowded = await latency(100, (n) =>
      until("some of them go", () => {
        const left = below(incoming).filter((name) => !name.startsWith(sessionOf(n)));
        const fewer = left.length < before || left.length === 0;
        if (fewer) before = left.length;
        return fewer;
      }),
    );
    // A generous bound: this machine may have other things to do.
    assert.isBelow(crowded, 5 * alone + 500, `${alone} ms alone, ${crowded} ms among them`);
    for (let n = 200; below(incoming).length > 0 && n < 210; n++) {
      const parcel = parcelOf(n);
      await upload(store, parcel, {
        ready: () =>
          until("as many as one put takes", () => {
            const left = below(incoming).filter((name) => !name.startsWith(parcel.session));
            return left.length === 0 || left.length <= Math.max(0, before - 512);
          }).then(() => {
            before = below(incoming).length;
          }),
      });
    }
    assert.deepStrictEqual(below(incoming), []);
  });
});
