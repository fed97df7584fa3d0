/** Proofs of single blocks against the tree hash. */
import { assert, it } from "@effect/vitest";
import * as crypto from "node:crypto";
import { proofLength, proofOf, rootFrom, treeHasher, treeLevels } from "#src/archive/treehash";

const leaf = (i: number) => crypto.createHash("sha256").update(String(i)).digest();

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
