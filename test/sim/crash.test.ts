/** A crash of the server in the middle of a put, whenever: what was acknowledged or stored is there. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { TestClock } from "effect/testing";
import { Disk } from "#layers/memory/MemorySafeFs";
import { rng } from "#test/support/random";
import {
  codeOf,
  framesOf,
  listed,
  medium,
  memoryWorld,
  open,
  serverKey,
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
});
