/** What members cost: by the real layer, and by the one that costs nothing. */
import { assert, it } from "@effect/vitest";
import { Effect, type Layer } from "effect";
import { randomBytes, scryptSync } from "node:crypto";
import { gunzipSync } from "node:zlib";
import { memorySealing } from "#layers/memory/MemorySealing";
import { nodeSealing } from "#layers/process/NodeSealing";
import { Sealing } from "#services/Sealing";
import { keysSize, saltSize, slotCost } from "#src/archive/seal";

const [one, other] = [Buffer.from("one"), Buffer.from("other")];
const salts = [Buffer.alloc(saltSize, 1), Buffer.alloc(saltSize, 2)] as const;

const contract = (name: string, layer: Layer.Layer<Sealing>) => {
  const test = <E>(title: string, what: (it: Sealing["Service"]) => Effect.Effect<void, E>) =>
    it.live(`${name}: ${title}`, () => Effect.flatMap(Sealing, what).pipe(Effect.provide(layer)));
  test("gives keys by passphrase and salt", ({ keys }) =>
    Effect.gen(function* () {
      const made = yield* Effect.all([
        keys(one, salts[0]),
        keys(one, salts[1]),
        keys(other, salts[0]),
      ]);
      assert.strictEqual(new Set(made.map((key) => Buffer.from(key).toString("hex"))).size, 3);
      for (const key of made) assert.strictEqual(key.length, keysSize);
      assert.deepStrictEqual(yield* keys(one, salts[0]), made[0]);
    }));
  test("gives one gzip member of the parts, that gunzip knows, and keeps none of them", ({
    gzip,
  }) =>
    Effect.gen(function* () {
      for (const parts of [
        [],
        [one, other],
        [Buffer.alloc(70_000, "text "), Buffer.alloc(0), one],
        [randomBytes(200_000)],
        [randomBytes(700_000), Buffer.alloc(700_000, "text "), randomBytes(7)],
      ] as Array<Array<Uint8Array>>) {
        const plain = Buffer.concat(parts);
        const packed = Buffer.concat(yield* gzip(parts));
        assert.isTrue(gunzipSync(packed).equals(plain));
        assert.lengthOf(parts, 0);
      }
    }));
};
contract("NodeSealing", nodeSealing);
contract("MemorySealing", memorySealing);

it.live("NodeSealing: has the keys of scrypt", () =>
  Effect.gen(function* () {
    const keys = yield* (yield* Sealing).keys(one, salts[0]);
    assert.isTrue(scryptSync(one, salts[0], keysSize, slotCost).equals(keys));
  }).pipe(Effect.provide(nodeSealing)),
);
it.live("NodeSealing: makes smaller what gets smaller, and only wraps the rest", () =>
  Effect.gen(function* () {
    const sealing = yield* Sealing;
    const gzip = (parts: ReadonlyArray<Uint8Array>) =>
      Effect.map(sealing.gzip([...parts]), (pieces) => Buffer.concat(pieces));
    const [text, noise] = [Buffer.alloc(4_194_304, "some text, "), randomBytes(4_194_304)];
    assert.isBelow((yield* gzip([text])).length, 100_000);
    assert.isBelow((yield* gzip([noise])).length, noise.length + 1000);
    // Wrapped, a part of it stands there as it was.
    assert.isTrue((yield* gzip([noise])).includes(noise.subarray(0, 1000)));
    assert.isFalse((yield* gzip([text])).includes(text.subarray(0, 1000)));
    // By what is tried of it: four places, the last one at the end.
    const mixed = Buffer.concat([noise.subarray(0, 2_097_152), text.subarray(0, 2_097_152)]);
    assert.isBelow((yield* gzip([mixed])).length, mixed.length * 0.6);
    // Wherever one part ends and the next begins.
    const parts = Array.from({ length: 40 }, (_, i) =>
      mixed.subarray(i * 105_000, (i + 1) * 105_000),
    );
    assert.strictEqual((yield* gzip(parts)).equals(yield* gzip([mixed])), true);
    // And whatever is not to be, so that how long it is follows from how much it is alone.
    const stored = (parts: ReadonlyArray<Uint8Array>) =>
      Effect.map(sealing.gzip([...parts], true), (pieces) => Buffer.concat(pieces));
    const plain = yield* stored([text]);
    assert.isTrue(plain.includes(text.subarray(0, 1000)));
    assert.strictEqual(plain.length, (yield* stored([noise])).length);
    assert.isTrue(gunzipSync(plain).equals(text));
  }).pipe(Effect.provide(nodeSealing)),
);
