/** That a seed is a story, and stories that chance would seldom tell; `npm run sim` tells the others. */
import { assert, it } from "@effect/vitest";
import { planFor } from "#test/sim/plan";
import { tell } from "#test/sim/story";

it("the same seed tells the same story, another one another", () => {
  for (const seed of [3, 11, 17, 29, 40, 58]) {
    const once = tell(seed);
    const again = tell(seed);
    assert.deepStrictEqual(again.trace, once.trace);
    assert.deepStrictEqual(again.codes, once.codes);
  }
  assert.notDeepEqual(tell(3).trace, tell(4).trace);
});

it("a story in which nothing goes wrong ends well", () => {
  const calm = {
    ...planFor(1),
    links: [],
    deaths: [],
    clocks: [],
    pauses: [],
    qvm: { kind: "sound" },
    archive: 3,
  } as const;
  const { codes, violations } = tell(1, calm);
  assert.deepStrictEqual([...violations], []);
  assert.deepStrictEqual([...codes], [0, 0]);
});

it("the key that dom0 has pinned is there for ever, whenever the server that made it died", () => {
  const rest = planFor(1);
  const pauses = [{ at: 100, millis: 20_000 }];
  const calm = { ...rest, links: [], clocks: [], archive: 2, rest: 1000, syncing: 1, pauses };
  const death = { moment: "after", told: true, away: 10 } as const;
  for (let first = 4; first <= 12; first++) {
    for (let second = first + 8; second <= first + 14; second++) {
      const deaths = [
        { ...death, at: first },
        { ...death, at: second, power: "nothing" as const },
      ];
      const { violations } = tell(1, { ...calm, qvm: { kind: "sound" }, deaths });
      assert.deepStrictEqual([...violations], [], `deaths at ${first} and ${second}`);
    }
  }
});

it("dom0's machine is suspended for an hour, whenever: the run goes on where it was", () => {
  const rest = planFor(1);
  const pauses = [{ at: 1_500_000, millis: 40_000 }];
  const calm = { ...rest, deaths: [], clocks: [], archive: 3, syncing: 1, pauses, rest: 1000 };
  for (let after = 20; after < 60_000; after = Math.ceil(after * 1.35)) {
    for (const serverKnows of [undefined, "ended", "failed"] as const) {
      // Nobody tells a machine that is asleep; the server may be told, or find out by the silence.
      const broken = { when: { after }, dom0Knows: false, serverKnows, keep: false };
      const told = tell(1, {
        ...calm,
        qvm: { kind: "sound" },
        links: [{ ...rest.sound, broken }],
        suspended: { after, millis: 3_600_000 },
      });
      const when = `after ${after} ms`;
      assert.deepStrictEqual([...told.violations], [], when);
      assert.deepStrictEqual([...told.codes], [0, 0], when);
      assert.isAbove(told.seconds, 3600, when);
    }
  }
});
