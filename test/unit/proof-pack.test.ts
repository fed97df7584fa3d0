/** The digests of a pack, and the running hash over what there is of it. */
import { assert, it } from "@effect/vitest";
import { packHasher } from "#src/proof/pack";
import { leafOf } from "#src/proof/treehash";
import { leavesOf, linesOf, membersOf } from "#test/support/reference";
import { bytesOf, sampleOf, vectors } from "#test/support/vectors";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

it.each(vectors.archives)("the members of $file have the published digests", ({ file, table }) => {
  const hasher = packHasher();
  const lines = linesOf(table);
  const running = new Map(
    vectors.running
      .filter(({ archive }) => archive === file)
      .map((vector) => [vector.whole_members, vector.running]),
  );
  for (const [i, { bytes }] of membersOf(sampleOf(file)).entries()) {
    assert.strictEqual(hasher.whole(), i);
    if (running.has(i)) assert.strictEqual(hasher.running(), running.get(i));
    assert.strictEqual(hasher.blocks(), 0);
    hasher.block(leafOf(bytes));
    assert.strictEqual(hasher.blocks(), 1);
    assert.strictEqual(`${hex(hasher.endMember())}\n`, lines[i]!.slice(-65));
  }
  if (running.has(lines.length)) assert.strictEqual(hasher.running(), running.get(lines.length));
});
it("of a member that is not whole, the running hash has the blocks", () => {
  const { blocks = 0, count = 0, running } = vectors.running.find((vector) => vector.count)!;
  const leaves = leavesOf(bytesOf(count));
  const hasher = packHasher();
  leaves.slice(0, blocks).forEach(hasher.block);
  assert.strictEqual(hasher.running(), running);
  assert.strictEqual(hasher.blocks(), blocks);
  leaves.slice(blocks).forEach(hasher.block);
  const { digest } = vectors.digests.find((one) => one.count === count)!;
  assert.strictEqual(hex(hasher.endMember()), digest);
  assert.strictEqual(hasher.blocks(), 0);
  // One block that is the whole member says the same as that member, whole.
  const one = packHasher();
  one.block(leaves[0]!);
  const begun = one.running();
  one.endMember();
  assert.strictEqual(one.running(), begun);
});
it("a member that was whole before is as one that was hashed", () => {
  const leaf = leafOf(Buffer.from("x"));
  const [hashed, skipped] = [packHasher(), packHasher()];
  hashed.block(leaf);
  hashed.endMember();
  skipped.skipMember(Buffer.concat([leaf, Buffer.from("what lies behind it")]));
  assert.strictEqual(skipped.running(), hashed.running());
  assert.strictEqual(skipped.whole(), 1);
  for (const hasher of [hashed, skipped]) hasher.block(leaf);
  assert.strictEqual(skipped.running(), hashed.running());
});
it("keeps what it was given, also where the bytes are used again", () => {
  const [again, own] = [packHasher(), packHasher()];
  const leaf = Buffer.alloc(32, 1);
  again.block(leaf);
  leaf.fill(2);
  own.block(Buffer.alloc(32, 1));
  assert.strictEqual(again.running(), own.running());
});
