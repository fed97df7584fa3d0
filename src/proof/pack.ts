/**
 * The digests of a pack as its blocks come: one for each member, and the running hash over all so far,
 * by which both sides of a link know that they have the same. docs/protocol.md, Running hash.
 */
import { createHash } from "node:crypto";
import { digestSize, treeHasher } from "./treehash.ts";

export const packHasher = () => {
  let wholes = createHash("sha256");
  let whole = 0;
  let tree = treeHasher();
  let leaves: Array<Uint8Array> = [];
  return {
    /** A block of the member under way: 1 MiB, or what is left of it. Its SHA-256, raw. */
    block: (leaf: Uint8Array): void => {
      tree.push(leaf);
      leaves.push(Uint8Array.from(leaf));
    },
    /** The member is whole: gives its digest, raw, and begins the next one. */
    endMember: (): Uint8Array => {
      const digest = Buffer.from(tree.root()!, "hex");
      wholes.update(digest);
      whole += 1;
      tree = treeHasher();
      leaves = [];
      return digest;
    },
    /** A member that was whole before, whose blocks are not looked at again. */
    skipMember: (digest: Uint8Array): void => {
      wholes.update(digest.subarray(0, digestSize));
      whole += 1;
    },
    /** Whole members so far. */
    whole: () => whole,
    /** Blocks of the member under way. */
    blocks: () => leaves.length,
    /** SHA-256 (hex) over the digests of the whole members, then of the blocks of the unfinished one. */
    running: (): string => {
      const hash = wholes.copy();
      for (const leaf of leaves) hash.update(leaf);
      return hash.digest("hex");
    },
  };
};
export type PackHasher = ReturnType<typeof packHasher>;
