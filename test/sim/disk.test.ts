/**
 * One put, and the disk fails it at every single step: the power goes, or the call does not succeed.
 * What the simulation meets by chance is tried here to the last.
 */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { Disk } from "#layers/memory/MemorySafeFs";
import { blockSize } from "#src/wire/limits";
import { planFor } from "#test/sim/plan";
import { tell } from "#test/sim/story";
import { archiveOf } from "#test/support/archive";
import { rng } from "#test/support/random";
import { ask, listed, memoryWorld, sessionOf, smallChunk, upload } from "#test/support/shell";

/** A block and a rest: the second put has something to go on from. */
const archive = archiveOf({
  seed: 5,
  chunk: smallChunk,
  files: [{ path: "vm7/private.img", size: blockSize }],
});
/** Less than a block, for what is tried most often. */
const small = archiveOf({ seed: 6, chunk: smallChunk, files: [{ path: "vm7/root.img", size: 9 }] });
const name = "a.backup";

const changes = new Set([
  "make",
  "create",
  "write",
  "truncate",
  "protect",
  "sync",
  "link",
  "replace",
  "remove",
  "sync-directory",
]);
/** How many calls that change the disk one put makes. */
const count = (disk: Disk): number => disk.log.filter((one) => changes.has(one.operation)).length;
/** A full disk still lets things be removed and flushed. */
const needsSpace = new Set(["make", "create", "write", "link", "replace"]);
/** Fails the call number `at` of those that change the disk, and those after it. */
const failAt = (disk: Disk, at: number, as: "off" | "io" | "no-space", times = 1): void => {
  let n = -1;
  disk.fault = (call) => {
    if (!changes.has(call.operation)) return undefined;
    n += 1;
    if (n < at || n >= at + times) return undefined;
    return as === "no-space" && !needsSpace.has(call.operation) ? undefined : as;
  };
};
const calmly = (disk: Disk): void => {
  disk.fault = () => undefined;
};

const isWhole = (bytes: Buffer): boolean => bytes.equals(archive) || bytes.equals(small);

const whole = Effect.fnUntraced(function* (disk: Disk) {
  const { archives } = yield* listed(memoryWorld(disk));
  for (const one of archives) {
    assert.isFalse(one.damaged, `${one.name} is listed as damaged`);
    // Its own name comes behind the record, and is made again where a crash took it.
    const bytes = disk.bytes(one.name) ?? disk.bytes(`.qbackup/packs/${one.session}`)!;
    assert.isTrue(isWhole(bytes), `${one.name} is not what was sent`);
  }
  for (const file of disk.files()) {
    if (file.startsWith(".qbackup/") || file.endsWith(".manifest.json")) continue;
    assert.isTrue(isWhole(disk.bytes(file)!), `${file} is half an archive`);
  }
  return archives.length === 1;
});

const once = Effect.fnUntraced(function* (disk: Disk, bytes = archive, run = 1) {
  const world = memoryWorld(disk);
  const about = yield* ask(world, "about");
  const [met] = about.replies;
  if (met?.type !== "about") return { code: about.code, last: met };
  const { server } = met;
  const put = { archive: bytes, name, run, server, session: sessionOf(run) };
  const { code, replies } = yield* upload(world, put);
  return { code, last: replies.at(-1) };
});
/** The put that puts it right: of the same session, or of a new one where the server removed that. */
const again = Effect.fnUntraced(function* (disk: Disk, bytes = archive) {
  const next = yield* once(disk, bytes);
  const gone = next.last?.type === "error" && next.last.code === "gone";
  return gone ? yield* once(disk, bytes, 2) : next;
});

const losses: ReadonlyArray<readonly [string, () => (() => number) | undefined]> = [
  ["nothing unsynced is left", () => undefined],
  ["all of it is left", () => () => 0.999],
  ...[1, 2, 3, 4].map((seed) => [`a part is left (${seed})`, () => rng(seed).next] as const),
];

describe("the power fails in the middle of a put", () => {
  it.effect.each(losses)("%s", ([, loss]) =>
    Effect.gen(function* () {
      const sound = new Disk();
      assert.strictEqual((yield* once(sound)).code, 0);
      const steps = count(sound);
      assert.isAbove(steps, 25);
      for (let at = 0; at <= steps; at++) {
        const disk = new Disk();
        failAt(disk, at, "off");
        const { last } = yield* once(disk);
        disk.crash(loss());
        calmly(disk);
        const there = yield* whole(disk);
        if (last?.type === "stored") assert.isTrue(there, `step ${at}: stored, and gone`);
        // And in the middle of the put that puts it right, too.
        const next = yield* again(disk);
        assert.strictEqual(next.code, 0, `step ${at}: the repeated put: ${JSON.stringify(next)}`);
        assert.strictEqual(next.last?.type, "stored");
        disk.crash(loss());
        assert.isTrue(yield* whole(disk), `step ${at}: stored again, and gone`);
      }
    }),
  );
  it.effect("and once more in the middle of the repeated put", () =>
    Effect.gen(function* () {
      const sound = new Disk();
      yield* once(sound, small);
      const steps = count(sound);
      for (let first = 0; first <= steps; first++) {
        for (let second = first % 4; second <= steps + 12; second += 4) {
          const random = rng(first * 1000 + second).next;
          const disk = new Disk();
          failAt(disk, first, "off");
          yield* once(disk, small);
          disk.crash(random);
          failAt(disk, second, "off");
          const { last } = yield* once(disk, small);
          disk.crash(random);
          calmly(disk);
          const there = yield* whole(disk);
          const when = `steps ${first} and ${second}`;
          if (last?.type === "stored") assert.isTrue(there, `${when}: stored, and gone`);
          const next = yield* again(disk, small);
          assert.strictEqual(next.code, 0, `${when}: ${JSON.stringify(next)}`);
          assert.isTrue(yield* whole(disk), when);
        }
      }
    }),
  );
});

describe("a call on the disk does not succeed", () => {
  for (const reason of ["no-space", "io"] as const) {
    for (const times of [1, 1000]) {
      it.effect(`${reason}, ${times === 1 ? "once" : "from then on"}`, () =>
        Effect.gen(function* () {
          const sound = new Disk();
          yield* once(sound);
          const steps = count(sound);
          for (let at = 0; at < steps; at++) {
            const disk = new Disk();
            failAt(disk, at, reason, times);
            const { code, last } = yield* once(disk);
            const when = `step ${at}: ${JSON.stringify(last)}`;
            calmly(disk);
            const there = yield* whole(disk);
            if (code === 0) {
              // What failed was only the tidying up behind the commit.
              assert.isTrue(there, when);
              assert.strictEqual(last?.type, "stored", when);
            } else {
              assert.strictEqual(code, 5, when);
              assert.isTrue(last?.type === "error", when);
              if (last?.type === "error") {
                assert.strictEqual(last.code, reason === "io" ? "internal" : "no-space", when);
              }
              // On a disk that takes nothing any more, a name cannot be taken back either.
              if (reason !== "io" || times === 1) assert.isFalse(there, when);
              // Where the disk still lets files be removed, the upload's space is given back, but for
              // one that is whole: only its trailer was refused.
              const left = disk.bytes(`.qbackup/incoming/${sessionOf(1)}`) ?? Buffer.alloc(0);
              if (times === 1 && left.length > 0) assert.isTrue(left.equals(archive), when);
            }
            const next = yield* again(disk);
            assert.strictEqual(next.code, 0, `${when}; again: ${JSON.stringify(next)}`);
            // What the failed put had left unflushed, the repeated one has made good.
            disk.crash();
            assert.isTrue(yield* whole(disk), when);
          }
        }),
      );
      it(`${reason}, ${times === 1 ? "once" : "from then on"}: what dom0 makes of it`, () => {
        const rest = planFor(1);
        const calm = { ...rest, links: [], deaths: [], clocks: [], pauses: [], archive: 2 };
        for (let at = 1; at <= 90; at++) {
          const disk = { at, count: times, reason };
          const told = tell(1, { ...calm, qvm: { kind: "sound" }, disk, rest: 1000 });
          assert.deepStrictEqual([...told.violations], [], `at ${at}`);
          assert.include([0, 5], told.codes[0], `at ${at}`);
        }
      });
    }
  }
});
