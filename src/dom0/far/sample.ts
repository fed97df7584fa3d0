/** Which blocks an audit asks for: chosen by dom0, evenly, and not to be foreseen by a server. */

type Entropy = (bytes: number) => Uint8Array;

/** A whole number from 0 up to, not including, `limit` (at most 2^47), each as likely as the others. */
export const below = (entropy: Entropy, limit: number): number => {
  const range = 2 ** 48;
  // Numbers at the ragged end of the range would favour the small remainders: they are drawn again.
  const even = range - (range % limit);
  for (;;) {
    const bytes = entropy(6);
    const drawn = bytes.reduce((sum, byte) => sum * 256 + byte, 0);
    if (drawn < even) return drawn % limit;
  }
};

/** `count` different numbers below `limit`, every such set as likely as the others, sorted (R. Floyd). */
export const choose = (entropy: Entropy, count: number, limit: number): ReadonlyArray<number> => {
  const chosen = new Set<number>();
  for (let top = limit - Math.min(count, limit); top < limit; top++) {
    const drawn = below(entropy, top + 1);
    chosen.add(chosen.has(drawn) ? top : drawn);
  }
  return [...chosen].sort((a, b) => a - b);
};

/**
 * `count` of all blocks that are shown to it, every such set as likely as the others, before it is
 * known how many there will be: the n-th block takes the place of one of those that stay, any of them,
 * in `count` of n cases (A. Waterman). Holds no more than `count` of them.
 */
export const drawing = <T>(entropy: Entropy, count: number) => {
  const drawn: Array<{ readonly item: T; readonly block: number }> = [];
  let seen = 0;
  return {
    /** The blocks of one member; `item` is made for those alone that stay for now. */
    see: (blocks: number, item: () => T): void => {
      for (let block = 0; block < blocks; block++) {
        const place = seen < count ? seen : below(entropy, seen + 1);
        if (place < count) drawn[place] = { item: item(), block };
        seen += 1;
      }
    },
    drawn: (): ReadonlyArray<{ readonly item: T; readonly block: number }> => drawn,
  };
};

/** How surely `count` random blocks show that this share of all blocks is lost: at least so much. */
export const certainty = (count: number, lost: number): number => 1 - (1 - lost) ** count;

export interface Stretch {
  readonly first: number;
  readonly count: number;
}

/** Sorted block numbers as stretches to read in one go, and nothing but these blocks. */
export const stretches = (blocks: ReadonlyArray<number>): ReadonlyArray<Stretch> => {
  const found: Array<{ first: number; count: number }> = [];
  for (const block of blocks) {
    const last = found.at(-1);
    if (last !== undefined && block === last.first + last.count) last.count += 1;
    else found.push({ first: block, count: 1 });
  }
  return found;
};
