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
