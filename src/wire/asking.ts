/**
 * The client's side of `read`: which lines may be written, and to which block the next answer belongs.
 * Of what was asked for on a link that broke, the rest is asked for anew on the next one.
 */
import { blockSize, unansweredLimit } from "./limits.ts";
import { type Ask, askLine } from "./verbs/read.ts";

/** Blocks of one line: so that a line that is refused costs few error lines. */
const blocksOfLine = 8;
/** Bytes asked for and not used yet: 1 Gbit/s over a quarter of a second, and what a client buffers. */
const aheadLimit = 32 * blockSize;

/** An answer that is due. */
export interface Due<W extends Ask> {
  readonly want: W;
  /** The block of its member. */
  readonly block: number;
}

/** Asks for the blocks of `wants` in their order; the next of them is taken only when there is room. */
export const asking = <W extends Ask>(wants: Iterator<W>) => {
  /** Asked for, the oldest first; `from` is the first block that did not come yet. */
  const unanswered: Array<{ readonly want: W; from: number; readonly to: number }> = [];
  let ahead = 0;
  let current: { readonly want: W; from: number; readonly to: number } | undefined;
  let again: Array<string> = [];
  const lineFor = (want: W, from: number, to: number) =>
    askLine({ session: want.session, member: want.member, block: from, count: to - from });
  const take = () => {
    if (current === undefined) {
      const next = wants.next();
      if (next.done !== true) {
        const { block, count } = next.value;
        current = { want: next.value, from: block, to: block + count };
      }
    }
    return current;
  };
  return {
    /** The lines that may be written now, each with its newline; none where enough is on its way. */
    lines: (): string => {
      let text = again.join("");
      again = [];
      for (let next = take(); next !== undefined; next = take()) {
        const to = Math.min(next.to, next.from + blocksOfLine);
        const bytes = (to - next.from) * blockSize;
        if (unanswered.length >= unansweredLimit || ahead + bytes > aheadLimit) break;
        text += lineFor(next.want, next.from, to);
        unanswered.push({ want: next.want, from: next.from, to });
        ahead += bytes;
        next.from = to;
        if (to === next.to) current = undefined;
      }
      return text;
    },
    /** What the next answer is for; undefined once there is nothing more to come. */
    due: (): Due<W> | undefined => {
      const [first] = unanswered;
      return first === undefined ? undefined : { want: first.want, block: first.from };
    },
    /** The answer that was due is here; a block that is `held` takes up room until it is `used`. */
    answered: (held = false): void => {
      const first = unanswered[0]!;
      first.from += 1;
      if (!held) ahead -= blockSize;
      if (first.from === first.to) unanswered.shift();
    },
    used: (): void => {
      ahead -= blockSize;
    },
    /** Everything was asked for and answered. */
    done: (): boolean => unanswered.length === 0 && take() === undefined,
    /** The link is a new one. */
    anew: (): void => {
      again = unanswered.map(({ from, to, want }) => lineFor(want, from, to));
    },
  };
};
