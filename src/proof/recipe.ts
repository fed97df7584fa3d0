/**
 * What an archive is made of: runs of members of packs. As it is stored, `SESSION FIRST COUNT\n` a line;
 * as an upload says it, `new FIRST COUNT\n` (of its own pack) or `base FIRST COUNT\n` (of the archive
 * that it builds on, by that one's order). docs/protocol.md, Recipes.
 */
import { isSession, parseNumber, type Session } from "#src/wire/names";
import { memberLimit } from "./table.ts";

/** Bytes of the longest line of either form, its newline included. */
export const recipeLineLimit = 32 + 1 + 7 + 1 + 7 + 1;

/** Packs that an archive is made of at most: each is an upload, and this is one a night for 179 years. */
export const packLimit = 65_536;

/** `count` members of the pack of `session`, from its member `first` (from 0) on; at least one. */
export interface Run {
  readonly session: Session;
  readonly first: number;
  readonly count: number;
}
/** The same, before it is known which packs they are in. */
export interface Wish {
  readonly of: "new" | "base";
  readonly first: number;
  readonly count: number;
}

const parse = (text: string) => {
  const [of, ...numbers] = text.split(" ");
  const [first, count] = numbers.map((number) => parseNumber(number));
  return numbers.length !== 2 ||
    first === undefined ||
    count === undefined ||
    count === 0 ||
    first + count > memberLimit
    ? undefined
    : { of, first, count };
};

/** Reads a stored line without its newline; undefined for anything else. */
export const parseRun = (text: string): Run | undefined => {
  const run = parse(text);
  return run !== undefined && isSession(run.of)
    ? { session: run.of, first: run.first, count: run.count }
    : undefined;
};

/** Reads a line of an upload, without its newline; undefined for anything else. */
export const parseWish = (text: string): Wish | undefined => {
  const run = parse(text);
  return run?.of === "new" || run?.of === "base" ? { ...run, of: run.of } : undefined;
};

/** With its newline. */
export const runLine = ({ count, first, session }: Run): string => `${session} ${first} ${count}\n`;
export const wishLine = ({ count, first, of }: Wish): string => `${of} ${first} ${count}\n`;

/** Runs in their order. There may be a million, so they need not be objects that are kept. */
export interface Runs extends Iterable<Run> {
  readonly length: number;
  /** The run `index` (from 0), of those that there are. */
  readonly at: (index: number) => Run | undefined;
}

/** Collects runs; what continues the one before is made one with it. Twelve bytes a run. */
export const recipe = () => {
  const sessions: Array<Session> = [];
  const indexOf = new Map<Session, number>();
  /** Of each run its session's index, its first member and how many there are. */
  let columns = new Uint32Array(3 * 16);
  let length = 0;
  let members = 0;
  const at = (index: number): Run | undefined => {
    if (index >= length) return undefined;
    const from = 3 * index;
    return {
      session: sessions[columns[from]!]!,
      first: columns[from + 1]!,
      count: columns[from + 2]!,
    };
  };
  const runs: Runs = {
    get length() {
      return length;
    },
    at,
    *[Symbol.iterator]() {
      for (let i = 0; i < length; i++) yield at(i)!;
    },
  };
  const sessionIndex = (session: Session): number => {
    let index = indexOf.get(session);
    if (index === undefined) {
      index = sessions.push(session) - 1;
      indexOf.set(session, index);
    }
    return index;
  };
  return {
    runs: (): Runs => runs,
    members: () => members,
    /** How many packs they are in. */
    packs: () => sessions.length,
    push: ({ count, first, session }: Run): void => {
      members += count;
      const index = sessionIndex(session);
      const last = 3 * (length - 1);
      if (columns[last] === index && columns[last + 1]! + columns[last + 2]! === first) {
        columns[last + 2]! += count;
        return;
      }
      if (3 * length === columns.length) {
        const grown = new Uint32Array(2 * columns.length);
        grown.set(columns);
        columns = grown;
      }
      columns.set([index, first, count], 3 * length);
      length += 1;
    },
  };
};

/**
 * Turns what an upload says into runs: `own` is its session, `members` what its pack has, `base` the
 * runs of the archive that it builds on. Gives undefined for a wish that leads outside of them, or
 * that makes the archive longer than it may be.
 */
export const resolver = (own: Session, members: number, base: Runs) => {
  /** Where each run of the base begins, by the base's order; and its end. */
  const starts = new Float64Array(base.length + 1);
  let counted = 0;
  for (const { count } of base) {
    starts[counted + 1] = starts[counted]! + count;
    counted += 1;
  }
  const baseMembers = starts[base.length]!;
  /** The run that has the base's member `index`. */
  const holding = (index: number): number => {
    let low = 0;
    let high = base.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (starts[middle]! <= index) low = middle;
      else high = middle - 1;
    }
    return low;
  };
  const made = recipe();
  return {
    made,
    push: ({ count, first, of }: Wish): true | undefined => {
      if (first + count > (of === "new" ? members : baseMembers)) return undefined;
      if (made.members() + count > memberLimit) return undefined;
      if (of === "new") {
        made.push({ session: own, first, count });
        return made.packs() <= packLimit || undefined;
      }
      let at = first;
      for (let i = holding(first); at < first + count; i++) {
        const run = base.at(i)!;
        const skip = at - starts[i]!;
        const some = Math.min(run.count - skip, first + count - at);
        made.push({ session: run.session, first: run.first + skip, count: some });
        at += some;
      }
      return made.packs() <= packLimit || undefined;
    },
  };
};
