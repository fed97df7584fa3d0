/** A crash of the server in the middle of a put, whenever: what was acknowledged or stored is there. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { TestClock } from "effect/testing";
import { Disk } from "#layers/memory/MemorySafeFs";
import { rng } from "#test/support/random";
import { archiveOf } from "#test/support/archive";
import type { Reply } from "#src/wire/request";
import { firstNight, secondNight } from "#test/support/nights";
import {
  codeOf,
  framesOf,
  kept,
  leftovers,
  listed,
  medium,
  memoryWorld,
  nth,
  open,
  run,
  serverKey,
  tiny,
  type Upload,
  upload,
} from "#test/support/shell";

describe("a crash", () => {
  /** The moments of an undisturbed put, as calls on the disk. */
  const moments = Effect.gen(function* () {
    const disk = new Disk();
    const server = yield* serverKey(memoryWorld(disk));
    const before = disk.log.length;
    yield* upload(memoryWorld(disk), { archive: medium, server });
    return disk.log.length - before;
  });

  it.effect(
    "at any moment loses nothing that was acknowledged or stored, and lists nothing half",
    () =>
      Effect.gen(function* () {
        const count = yield* moments;
        assert.isAbove(count, 40);
        for (let at = 0; at < count; at++) {
          for (const seed of [undefined, 1, 2, 3, 4]) {
            const disk = new Disk();
            const server = yield* serverKey(memoryWorld(disk));
            let seen = 0;
            disk.fault = () => (seen++ === at ? "off" : undefined);
            const before = yield* upload(memoryWorld(disk), { archive: medium, server });
            disk.fault = () => undefined;
            disk.crash(seed === undefined ? undefined : rng(seed * 1000 + at).next);
            const what = `moment ${at}, seed ${seed}`;
            const world = memoryWorld(disk);
            for (const archive of (yield* listed(world)).archives) {
              assert.isFalse(archive.damaged, what);
              const pack = disk.bytes(`.qbackup/packs/${archive.session}`)!;
              assert.isTrue(pack.equals(medium), what);
              assert.isTrue(disk.bytes(archive.name)?.equals(medium) ?? true, what);
            }
            const acknowledged = before.replies.reduce(
              (most, reply) => (reply.type === "ack" ? Math.max(most, reply.offset) : most),
              0,
            );
            const after = yield* upload(world, { archive: medium });
            assert.strictEqual(codeOf(after.replies), "stored", what);
            if (after.offset !== undefined) assert.isAtLeast(after.offset, acknowledged, what);
            const stored = before.replies.find(({ type }) => type === "stored");
            if (stored !== undefined) assert.deepStrictEqual(after.replies, [stored], what);
            const { archives } = yield* listed(world);
            assert.deepStrictEqual(
              archives.map(({ damaged, name }) => [name, damaged]),
              [["a.backup", false]],
              what,
            );
            assert.isTrue(disk.bytes("a.backup")!.equals(medium), what);
          }
        }
      }),
  );

  it.effect("of the process alone, at any moment, is made good by the next put", () =>
    Effect.gen(function* () {
      const count = yield* moments;
      for (let at = 0; at < count; at++) {
        const disk = new Disk();
        const server = yield* serverKey(memoryWorld(disk));
        let seen = 0;
        disk.fault = () => (seen++ >= at ? "io" : undefined);
        // What a killed process cannot do any more fails here, its clearing up too.
        yield* upload(memoryWorld(disk), { archive: medium, server });
        disk.fault = () => undefined;
        const world = memoryWorld(disk);
        const { replies } = yield* upload(world, { archive: medium });
        assert.strictEqual(codeOf(replies), "stored", `moment ${at}`);
        disk.crash();
        const { archives } = yield* listed(world);
        assert.isFalse(archives[0]?.damaged, `moment ${at}`);
        assert.isTrue(disk.bytes("a.backup")!.equals(medium), `moment ${at}`);
      }
    }),
  );

  it.effect("acknowledged bytes survive it, in many stories", () =>
    Effect.gen(function* () {
      for (let seed = 1; seed <= 80; seed++) {
        const random = rng(seed);
        const disk = new Disk();
        const world = memoryWorld(disk);
        yield* Effect.scoped(
          Effect.gen(function* () {
            const time = 0;
            const client = yield* open(world, { time });
            yield* client.next;
            const bytes = framesOf(medium).subarray(0, 3_200_000);
            for (let at = 0; at < bytes.length;) {
              const n = random.int(1, 1_200_000);
              yield* client.stdin.write(bytes.subarray(at, at + n));
              at += n;
              yield* TestClock.adjust(random.int(0, 1500));
            }
            yield* client.kill;
            const acks = (yield* client.rest).flatMap((r) => (r.type === "ack" ? [r.offset] : []));
            disk.crash(random.next);
            const { offset } = yield* upload(memoryWorld(disk), { archive: medium, time });
            assert.isAtLeast(offset!, Math.max(0, ...acks), `seed ${seed}`);
            assert.isTrue(disk.bytes("a.backup")!.equals(medium), `seed ${seed}`);
          }),
        );
      }
    }),
  );

  it.effect("when the digests of hundreds of small members are on their way, in many stories", () =>
    Effect.gen(function* () {
      const plain = 1000;
      const files = [{ path: "vm1/private.img", size: 300_000 }];
      const archive = archiveOf({ seed: 7, chunk: plain, files });
      const stream = framesOf(archive);
      const length = stream.length - 4;
      for (let seed = 1; seed <= 30; seed++) {
        const random = rng(seed);
        const disk = new Disk();
        const world = () => ({ ...memoryWorld(disk), fullChunk: plain + 128 });
        yield* Effect.scoped(
          Effect.gen(function* () {
            const client = yield* open(world(), { time: 0 });
            yield* client.next;
            const cut = random.int(20_000, length / 3);
            yield* client.stdin.write(stream.subarray(0, cut));
            yield* TestClock.adjust("2 seconds");
            const ack = yield* client.next;
            assert.strictEqual(ack?.type, "ack");
            disk.fault = ({ name, operation }) =>
              operation === "sync" && name.endsWith(".digests") ? "off" : undefined;
            yield* client.stdin.write(stream.subarray(cut, random.int((2 * length) / 3, length)));
            yield* TestClock.adjust("2 seconds");
            yield* client.kill;
            disk.fault = () => undefined;
            disk.crash(random.next);
            // That it goes on from where both are of one mind, this looks at by itself.
            const { offset } = yield* upload(world(), { archive, time: 0 });
            assert.isAtLeast(offset!, ack?.type === "ack" ? ack.offset : 0, `seed ${seed}`);
            assert.isTrue(disk.bytes("a.backup")!.equals(archive), `seed ${seed}`);
          }),
        );
      }
    }),
  );
});

describe("a crash in the middle of a put", () => {
  /** A disk with a first night on it, and a second one that builds on that. */
  const alone: Upload = { archive: tiny, ...nth(1), time: 0 };
  const upon: Upload = { ...secondNight, time: 0 };
  const prepared = Effect.fnUntraced(function* (what: Upload) {
    const disk = new Disk();
    yield* run(memoryWorld(disk), { args: ["init"] });
    if (what === upon) yield* upload(memoryWorld(disk), { ...firstNight, time: 0 });
    return disk;
  });
  /** What must hold at any time: what is listed is whole, and what is not has no name. */
  const sound = Effect.fnUntraced(function* (disk: Disk, put: Upload, what: string) {
    const { archives } = yield* listed(memoryWorld(disk));
    for (const { damaged, name, session } of archives) {
      assert.isFalse(damaged, what);
      const { archive } = session === put.session ? put : firstNight;
      assert.isTrue(disk.bytes(`.qbackup/packs/${session}`)!.equals(archive), what);
      const plain = disk.bytes(name);
      if (plain !== undefined) assert.isTrue(plain.equals(archive), what);
    }
    for (const file of disk.files()) {
      if (file.startsWith(".qbackup/") || file.endsWith(".manifest.json")) continue;
      assert.include(
        archives.map(({ name }) => `${name}`),
        file,
        what,
      );
    }
    return archives.length;
  });
  const losses: ReadonlyArray<readonly [string, (at: number) => (() => number) | undefined]> = [
    ["nothing unsynced is left", () => undefined],
    ["all of it is left", () => () => 0.999],
    ["a part of it is left", (at) => rng(at).next],
    ["another part of it is left", (at) => rng(at + 1000).next],
  ];

  for (const [nights, put] of [
    ["first", alone],
    ["second", upon],
  ] as const) {
    const some = put === alone ? losses : losses.slice(1, 3);
    it.effect.each(some)(`of the ${nights} night loses nothing that was said: %s`, ([, loss]) =>
      Effect.gen(function* () {
        const calm = yield* prepared(put);
        const before = calm.log.length;
        yield* upload(memoryWorld(calm), put);
        const moments = calm.log.length - before;
        assert.isAbove(moments, 100);
        for (let at = 0; at < moments; at++) {
          const disk = yield* prepared(put);
          let seen = 0;
          disk.fault = () => (seen++ === at ? "off" : undefined);
          const said = yield* upload(memoryWorld(disk), put).pipe(
            Effect.catchDefect(() => Effect.succeed({ replies: [] as Array<Reply<"put">> })),
          );
          disk.fault = () => undefined;
          disk.crash(loss(at));
          const what = `moment ${at}: ${JSON.stringify(calm.log[before + at])}`;
          const there = yield* sound(disk, put, what);
          const stored = said.replies.find(({ type }) => type === "stored");
          if (stored !== undefined) assert.strictEqual(there, put === alone ? 1 : 2, what);
          // Asked again it is stored, or was; and after another loss it still is.
          const again = yield* upload(memoryWorld(disk), put);
          assert.strictEqual(codeOf(again.replies), "stored", what);
          if (stored !== undefined) assert.deepStrictEqual(again.replies, [stored], what);
          disk.crash(loss(at));
          assert.strictEqual(yield* sound(disk, put, what), put === alone ? 1 : 2, what);
          // Lower tickets stay worth nothing.
          const stale = yield* upload(memoryWorld(disk), { archive: tiny, ...nth(0), time: 0 });
          assert.strictEqual(codeOf(stale.replies), "stale", what);
        }
      }),
    );
  }

  it.effect("of the process alone, at any moment, is made good by the next put", () =>
    Effect.gen(function* () {
      const calm = yield* prepared(alone);
      const before = calm.log.length;
      yield* upload(memoryWorld(calm), alone);
      for (let at = 0; at < calm.log.length - before; at++) {
        const disk = yield* prepared(alone);
        let seen = 0;
        // What a killed process cannot do any more fails here, its clearing up too.
        disk.fault = () => (seen++ >= at ? "io" : undefined);
        yield* upload(memoryWorld(disk), alone).pipe(Effect.catchDefect(() => Effect.void));
        disk.fault = () => undefined;
        const what = `moment ${at}: ${JSON.stringify(calm.log[before + at])}`;
        yield* sound(disk, alone, what);
        const again = yield* upload(memoryWorld(disk), alone);
        assert.strictEqual(codeOf(again.replies), "stored", what);
        // What a try of the commit has left is removed a day later.
        assert.notMatch(leftovers(disk).join(), /incoming\/0{31}|held|gone/, what);
        disk.crash();
        assert.strictEqual(yield* sound(disk, alone, what), 1, what);
      }
    }),
  );

  it.effect("in the bare form leaves all of it or nothing, and the next one stores it", () =>
    Effect.gen(function* () {
      const calm = new Disk();
      yield* run(memoryWorld(calm), { command: "x" }, tiny);
      for (let at = 0; at < calm.log.length; at++) {
        for (const torn of [false, true]) {
          const disk = new Disk();
          let seen = 0;
          disk.fault = () => (seen++ === at ? "off" : undefined);
          yield* run(memoryWorld(disk), { command: "x" }, tiny);
          disk.fault = () => undefined;
          disk.crash(torn ? rng(at).next : undefined);
          const world = memoryWorld(disk);
          const there = (yield* listed(world)).archives.length === 1;
          // A day later the next one finishes or removes what this one has left.
          yield* TestClock.adjust("25 hours");
          assert.strictEqual((yield* run(world, { command: "y" }, tiny)).code, 0, String(at));
          const { archives } = yield* listed(world);
          assert.strictEqual(archives.length, there ? 2 : 1, String(at));
          for (const { damaged, name } of archives) {
            assert.isFalse(damaged);
            assert.isTrue(disk.bytes(name)!.equals(tiny), String(at));
          }
          assert.deepStrictEqual(
            leftovers(disk).join(),
            "",
            `${at} ${JSON.stringify(calm.log[at])}`,
          );
          assert.strictEqual(kept(disk).length, 7 * archives.length, String(at));
        }
      }
    }),
  );
});
