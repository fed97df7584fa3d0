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

/** Random numbers are asked for so many at once. */
const drawsAtOnce = 256;

/**
 * `count` of all blocks that are shown to it, every such set as likely as the others, before it is
 * known how many there will be: each block draws a number of 48 bits, and the smallest stay. Holds no
 * more than `count` of them.
 */
export const drawing = <T>(entropy: Entropy, count: number) => {
  /** The greatest number first: a binary heap. */
  const heap: Array<{ readonly number: number; readonly item: T; readonly block: number }> = [];
  let seen = 0;
  let bytes: Uint8Array = new Uint8Array(0);
  let at = 0;
  const draw = (): number => {
    if (at === bytes.length) {
      bytes = entropy(6 * drawsAtOnce);
      at = 0;
    }
    let number = 0;
    for (const end = at + 6; at < end; at++) number = number * 256 + bytes[at]!;
    return number;
  };
  const up = (from: number) => {
    for (let i = from; i > 0;) {
      const parent = (i - 1) >>> 1;
      if (heap[parent]!.number >= heap[i]!.number) return;
      [heap[parent], heap[i]] = [heap[i]!, heap[parent]!];
      i = parent;
    }
  };
  const down = () => {
    for (let i = 0; ;) {
      let greatest = i;
      for (const child of [2 * i + 1, 2 * i + 2]) {
        if (child < heap.length && heap[child]!.number > heap[greatest]!.number) greatest = child;
      }
      if (greatest === i) return;
      [heap[greatest], heap[i]] = [heap[i]!, heap[greatest]!];
      i = greatest;
    }
  };
  return {
    /** The blocks of one member; `item` is made for those alone that stay for now. */
    see: (blocks: number, item: () => T): void => {
      for (let block = 0; block < blocks; block++) {
        const number = draw();
        seen += 1;
        if (heap.length < count) {
          heap.push({ number, item: item(), block });
          up(heap.length - 1);
        } else if (count > 0 && number < heap[0]!.number) {
          heap[0] = { number, item: item(), block };
          down();
        }
      }
    },
    /** Blocks that it was shown. */
    seen: (): number => seen,
    drawn: (): ReadonlyArray<{ readonly item: T; readonly block: number }> => heap,
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
