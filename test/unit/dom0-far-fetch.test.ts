/** The conversation in which blocks come back: one for all, and never a burden on the server. */
import { assert, describe, it } from "@effect/vitest";
import { Clock, Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import { inProcessQrexec, memoryPipe } from "#layers/memory/MemoryPipe";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { failed } from "#src/dom0/failure";
import { allOf, type Far, openFar, trustedBy, wantOf } from "#src/dom0/far/fetch";
import { parseManifest } from "#src/proof/texts";
import { type Lies, peer } from "#test/support/peer";
import { anArchive, keep, type World, world } from "#test/support/readback";

const mebibyte = 1_048_576;

/** Runs `use` with the far side of a world, whose server hangs up on who takes nothing for a minute. */
const withFar = Effect.fnUntraced(function* <A, E>(
  w: World,
  use: (far: Far) => Effect.Effect<A, E, Layer.Success<ReturnType<typeof layersOf>>>,
  {
    hours = 2,
    late = 0,
    lies = {},
  }: { readonly hours?: number; readonly late?: number; readonly lies?: Lies } = {},
) {
  const said: Said = { lines: [], progress: [] };
  const heard: Array<string> = [];
  const fiber = yield* openFar("net").pipe(
    Effect.flatMap(use),
    Effect.scoped,
    Effect.provide(layersOf(w, lies, said, heard, late), { local: true }),
    Effect.forkChild,
  );
  for (let i = 0; i < hours * 720 && fiber.pollUnsafe() === undefined; i++) {
    yield* TestClock.adjust("5 seconds");
  }
  return { value: yield* Fiber.join(fiber), said, heard };
});
/** `late`: seconds that each call takes to be made. */
const layersOf = (w: World, lies: Lies, said: Said, heard: Array<string>, late: number) => {
  const honest = peer(w.shelf, lies);
  return Layer.mergeAll(
    memoryReporter(said),
    inProcessQrexec(
      ({ stdin, stdout, ...invocation }, service) =>
        Effect.delay(
          honest(
            {
              ...invocation,
              stdin: {
                ...stdin,
                read: (into, atLeast) =>
                  Effect.tap(stdin.read(into, atLeast), (n) =>
                    Effect.sync(() => {
                      if (service.endsWith("+read"))
                        heard.push(Buffer.from(into.subarray(0, n)).toString("latin1"));
                    }),
                  ),
              },
              stdout: {
                ...stdout,
                write: (bytes) =>
                  stdout.write(bytes).pipe(
                    Effect.timeoutOrElse({
                      duration: "1 minute",
                      orElse: () => Effect.die(new Error("nothing was taken for a minute")),
                    }),
                  ),
              },
            },
            service,
          ),
          `${late} seconds`,
        ),
      Effect.sync(() => ({ up: memoryPipe(), down: memoryPipe() })),
    ),
  );
};
const stored = (w: World, size: number) => {
  const { bytes, manifest } = keep(w, "a.backup", anArchive(1, size));
  return { bytes, trusted: trustedBy(parseManifest(manifest)!, "net") };
};

describe("a conversation", () => {
  it.effect("is begun while it is asked what the archive has", () =>
    Effect.gen(function* () {
      const w = world();
      const { trusted } = stored(w, mebibyte);
      const reading = (far: Far) =>
        Effect.gen(function* () {
          const began = yield* Clock.currentTimeMillis;
          const list = yield* far.members(trusted);
          yield* far.blocks(allOf(list), () => Effect.void);
          return (yield* Clock.currentTimeMillis) - began;
        });
      const { value } = yield* withFar(w, reading, { late: 20 });
      // The recipe and then the table: not a third one.
      assert.isAtLeast(value, 40_000);
      assert.isBelow(value, 60_000);
      assert.strictEqual(w.shelf.asked.get("read"), 1);
    }),
  );
  it.effect("outlives a user of blocks who pauses for minutes, again and again", () =>
    Effect.gen(function* () {
      const w = world();
      const { bytes, trusted } = stored(w, 50 * mebibyte);
      const { heard, said, value } = yield* withFar(w, (far) =>
        Effect.gen(function* () {
          const list = yield* far.members(trusted);
          const parts: Array<Uint8Array> = [];
          yield* far.blocks(allOf(list), (_want, _block, came) => {
            parts.push(Uint8Array.from(came));
            return parts.length % 20 === 5 ? Effect.sleep("10 minutes") : Effect.void;
          });
          // Between the passes of a restore nothing is asked for, for long.
          yield* Effect.sleep("10 minutes");
          yield* far.blocks([wantOf(list.at(0))], (_want, _block, came) =>
            Effect.sync(() => void parts.push(Uint8Array.from(came))),
          );
          return Buffer.concat(parts);
        }),
      );
      assert.isTrue(value.equals(Buffer.concat([bytes, bytes.subarray(0, 10_240)])));
      assert.strictEqual(w.shelf.asked.get("read"), 1);
      assert.lengthOf(said.lines, 0);
      const lines = heard.join("").split("\n");
      assert.isAtLeast(lines.filter((text) => text === ".").length, 4 * 10);
      // An empty line ends it.
      assert.deepStrictEqual(lines.slice(-2), ["", ""]);
    }),
  );
  it.effect("holds no more than 32 blocks for a user who takes none", () =>
    Effect.gen(function* () {
      const w = world();
      const { trusted } = stored(w, 60 * mebibyte);
      let sent = 0;
      const { value } = yield* withFar(
        w,
        (far) =>
          Effect.gen(function* () {
            const list = yield* far.members(trusted);
            return yield* far
              .blocks(allOf(list), () =>
                Effect.andThen(Effect.sleep("1 hour"), failed("qubes", "never mind")),
              )
              .pipe(Effect.flip);
          }),
        {
          lies: {
            frame: (frame) => {
              sent += 1;
              return frame;
            },
          },
        },
      );
      assert.strictEqual(value.exit, "qubes");
      // The heads, and three lines of eight; one more would not fit.
      assert.strictEqual(sent, 3 + 3 * 8);
    }),
  );
  it.effect("goes on behind a block that is lost, where the user of blocks does", () =>
    Effect.gen(function* () {
      const w = world();
      const { bytes, trusted } = stored(w, 6 * mebibyte);
      bytes[40_000]! ^= 1;
      const { value } = yield* withFar(w, (far) =>
        Effect.gen(function* () {
          const list = yield* far.members(trusted);
          const good: Array<number> = [];
          const lost: Array<string> = [];
          yield* far.blocks(
            allOf(list),
            ({ member }) => Effect.sync(() => void good.push(member)),
            ({ member }, block, { exit, message }) =>
              Effect.sync(() => void lost.push(`${member} ${block} ${exit} ${message}`)),
          );
          return { good, lost, blocks: list.blocks() };
        }),
      );
      assert.deepStrictEqual(value.lost, [
        "3 0 integrity block 0 of vm2/private.img.000.enc is lost: the server says damaged",
      ]);
      assert.lengthOf(value.good, value.blocks - 1);
      assert.strictEqual(w.shelf.asked.get("read"), 1);
    }),
  );
});
