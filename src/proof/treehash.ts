/**
 * The SHA-256 tree hash of Amazon S3 Glacier: SHA-256 of each 1 MiB block, then pairs of digests
 * hashed together level by level, an odd one carried up, until one is left.
 *
 * Only ever compare a tree hash together with the size: the depth of every proof follows from it.
 */
import * as crypto from "node:crypto";

export const digestSize = 32;

/** One-shot hashing came with node 20.12; before that, an object a block. */
export const leafOf: (block: Uint8Array) => Buffer =
  typeof crypto.hash === "function"
    ? (block) => crypto.hash("sha256", block, "buffer")
    : (block) => crypto.createHash("sha256").update(block).digest();

const parentOf = (left: Uint8Array, right: Uint8Array): Buffer =>
  crypto.createHash("sha256").update(left).update(right).digest();

/**
 * Takes leaves in order and holds one digest for each level: memory does not grow with the archive.
 * Merging equal levels as they fill, and what is left over from the right at the end, gives the same
 * tree as going level by level.
 */
export const treeHasher = () => {
  const pending: Array<{ readonly level: number; readonly digest: Uint8Array }> = [];
  let leaves = 0;
  return {
    push: (leaf: Uint8Array): void => {
      leaves += 1;
      let level = 0;
      let digest: Uint8Array = Uint8Array.from(leaf);
      for (let top = pending.at(-1); top?.level === level; top = pending.at(-1)) {
        pending.pop();
        digest = parentOf(top.digest, digest);
        level += 1;
      }
      pending.push({ level, digest });
    },
    leaves: () => leaves,
    /** Hex; undefined where there is no leaf, because nothing has no tree hash. */
    root: (): string | undefined => {
      const root = pending.reduceRight<Uint8Array | undefined>(
        (right, { digest }) => (right === undefined ? digest : parentOf(digest, right)),
        undefined,
      );
      return root === undefined ? undefined : Buffer.from(root).toString("hex");
    },
  };
};
export type TreeHasher = ReturnType<typeof treeHasher>;

/** Digests in the proof of leaf `index` of `leaves`: one for each level on which it has a sibling. */
export const proofLength = (index: number, leaves: number): number => {
  let length = 0;
  for (let at = index, width = leaves; width > 1; at >>>= 1, width = (width + 1) >>> 1) {
    if ((at ^ 1) < width) length += 1; // an odd last one is carried up alone
  }
  return length;
};

/**
 * The root (hex) that a leaf and its proof lead to: siblings from leaf to root, 32 bytes each. Only
 * as good as `leaves`, which follows from the size that is trusted; undefined for a proof of the
 * wrong length.
 */
export const rootFrom = (
  leaf: Uint8Array,
  index: number,
  leaves: number,
  proof: Uint8Array,
): string | undefined => {
  if (index >= leaves || proof.length !== proofLength(index, leaves) * digestSize) return undefined;
  let digest = leaf;
  let taken = 0;
  for (let at = index, width = leaves; width > 1; at >>>= 1, width = (width + 1) >>> 1) {
    if ((at ^ 1) >= width) continue;
    const sibling = proof.subarray(taken, taken + digestSize);
    taken += digestSize;
    digest = (at & 1) === 0 ? parentOf(digest, sibling) : parentOf(sibling, digest);
  }
  return Buffer.from(digest).toString("hex");
};

/** All levels of the tree above `leaves` (32 bytes each, joined), the leaves themselves first. */
export const treeLevels = (leaves: Uint8Array): ReadonlyArray<Uint8Array> => {
  const levels = [leaves];
  for (let below = leaves; below.length > digestSize; below = levels.at(-1)!) {
    const width = below.length / digestSize;
    const level = new Uint8Array(((width + 1) >>> 1) * digestSize);
    for (let i = 0; i < width; i += 2) {
      const left = below.subarray(i * digestSize, (i + 1) * digestSize);
      const right = below.subarray((i + 1) * digestSize, (i + 2) * digestSize);
      level.set(right.length === 0 ? left : parentOf(left, right), (i / 2) * digestSize);
    }
    levels.push(level);
  }
  return levels;
};

/** The proof of leaf `index`, out of `treeLevels`. */
export const proofOf = (levels: ReadonlyArray<Uint8Array>, index: number): Uint8Array => {
  const parts: Array<Uint8Array> = [];
  for (let at = index, level = 0; level < levels.length - 1; at >>>= 1, level++) {
    const sibling = levels[level]!.subarray((at ^ 1) * digestSize, ((at ^ 1) + 1) * digestSize);
    if (sibling.length > 0) parts.push(sibling);
  }
  return Buffer.concat(parts);
};
