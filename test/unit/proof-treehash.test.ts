/** The tree hash against published vectors, and proofs of single blocks against it. */
import { assert, describe, it } from "@effect/vitest";
import * as crypto from "node:crypto";
import {
  leafOf,
  proofLength,
  proofOf,
  rootFrom,
  treeHasher,
  treeLevels,
} from "#src/proof/treehash";
import { blockSize } from "#src/wire/limits";
import { bytesOf, vectors } from "#test/support/vectors";

const leaf = (i: number) => crypto.createHash("sha256").update(String(i)).digest();

const treeOf = (bytes: Uint8Array) => {
  const tree = treeHasher();
  for (let at = 0; at < bytes.length; at += blockSize) {
    tree.push(leafOf(bytes.subarray(at, at + blockSize)));
  }
  return tree.root();
};

describe("tree hash", () => {
  // As published with client libraries of Amazon S3 Glacier.
  it.each([
    ["Hello World", "a591a6d40bf420404a011733cfb7b190d62c65bf0bcda32b57b277d9ad9f146e"],
    ["a".repeat(blockSize), "9bc1b2a288b26af7257a36277ae3816a7d4f16e89c1e7e77d0a5c48bad62b360"],
    ["a".repeat(2 * blockSize), "560c2c9333c719cb00cfdffee3ba293db17f58743cdd1f7e4055373ae6300afa"],
  ])("vector %#", (text, hash) => assert.strictEqual(treeOf(Buffer.from(text)), hash));

  it("is what going level by level gives, for every count of leaves to 70", () => {
    const sha = (...parts: ReadonlyArray<Uint8Array>) =>
      crypto.createHash("sha256").update(Buffer.concat(parts)).digest();
    const byLevels = (leaves: ReadonlyArray<Buffer>): Buffer => {
      if (leaves.length === 1) return leaves[0]!;
      const up: Array<Buffer> = [];
      for (let i = 0; i < leaves.length; i += 2) {
        up.push(i + 1 < leaves.length ? sha(leaves[i]!, leaves[i + 1]!) : leaves[i]!);
      }
      return byLevels(up);
    };
    for (let n = 1; n <= 70; n++) {
      const leaves = Array.from({ length: n }, (_, i) => sha(Buffer.from(`${n} ${i}`)));
      const tree = treeHasher();
      leaves.forEach((leaf) => tree.push(leaf));
      assert.strictEqual(tree.root(), byLevels(leaves).toString("hex"), `${n} leaves`);
      assert.strictEqual(tree.leaves(), n);
    }
  });

  it.each(vectors.digests)("of $count bytes is the published one", ({ count, digest }) =>
    assert.strictEqual(treeOf(bytesOf(count)), digest),
  );

  it("has nothing to say of nothing", () => assert.isUndefined(treeHasher().root()));
});

it.each(vectors.proofs)(
  "the proof of block $block of $count bytes is the published one",
  (vector) => {
    const { block, count, siblings } = vector;
    const bytes = bytesOf(count);
    const leaves: Array<Buffer> = [];
    for (let at = 0; at < count; at += blockSize) {
      leaves.push(leafOf(bytes.subarray(at, at + blockSize)));
    }
    const proof = proofOf(treeLevels(Buffer.concat(leaves)), block);
    assert.strictEqual(Buffer.from(proof).toString("hex"), siblings.join(""));
    const { digest } = vectors.digests.find((one) => one.count === count)!;
    assert.strictEqual(rootFrom(leaves[block]!, block, leaves.length, proof), digest);
  },
);

it("every leaf of every tree up to 70 leaves is proven by its proof, and by no other", () => {
  for (let n = 1; n <= 70; n++) {
    const tree = treeHasher();
    const leaves = Array.from({ length: n }, (_, i) => leaf(i));
    leaves.forEach((one) => tree.push(one));
    const root = tree.root();
    const levels = treeLevels(Buffer.concat(leaves));
    for (let i = 0; i < n; i++) {
      const proof = proofOf(levels, i);
      assert.strictEqual(proof.length, 32 * proofLength(i, n));
      assert.strictEqual(rootFrom(leaf(i), i, n, proof), root);
      assert.notStrictEqual(rootFrom(leaf(i + 1), i, n, proof), root);
      if (proof.length > 0) {
        const bent = Uint8Array.from(proof);
        bent[i % proof.length]! ^= 1;
        assert.notStrictEqual(rootFrom(leaf(i), i, n, bent), root);
        assert.isUndefined(rootFrom(leaf(i), i, n, proof.subarray(32)));
      }
      assert.isUndefined(rootFrom(leaf(i), i, n, Buffer.concat([proof, leaf(0)])));
      // Another place in the tree is another claim; a twin of the same leaf would make it true.
      for (const j of [i - 1, i + 1]) {
        if (j >= 0 && j < n) assert.notStrictEqual(rootFrom(leaf(i), j, n, proof), root);
      }
      assert.isUndefined(rootFrom(leaf(i), n, n, proof));
    }
  }
});
