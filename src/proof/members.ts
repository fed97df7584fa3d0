/**
 * The members of an archive, out of its recipe and the tables of its packs, as they come from whoever
 * has them: text in pieces of any size. What was made of it is worth as much as its root, which the
 * caller compares with a manifest. There may be a million members, so they lie in columns.
 */
import type { Session } from "#src/wire/names";
import { blockSize } from "#src/wire/limits";
import { textLines } from "./lines.ts";
import { packLimit, parseRun, recipeLineLimit } from "./recipe.ts";
import {
  lineOf,
  type Member,
  memberLimit,
  parseMember,
  rootHasher,
  tableLineLimit,
} from "./table.ts";
import { digestSize, leafOf, rootFrom } from "./treehash.ts";

/** A member of an archive, and where it lies: the `member`th (from 0) of the pack of `session`. */
export interface Placed extends Member {
  readonly session: Session;
  readonly member: number;
}

/** Blocks of so many bytes of a member. */
export const blocksOf = (length: number): number => Math.ceil(length / blockSize);

/** The block that came for a member with its siblings behind it; undefined if they do not prove it. */
export const provenBlock = (
  { digest, length }: Pick<Member, "digest" | "length">,
  index: number,
  came: Uint8Array,
): Uint8Array | undefined => {
  const block = came.subarray(0, Math.min(blockSize, length - index * blockSize));
  const proof = came.subarray(block.length);
  return rootFrom(leafOf(block), index, blocksOf(length), proof) === digest ? block : undefined;
};

/** A reader of text that comes in pieces: false, from then on, once it is not what it must be. */
export interface TextReader {
  readonly push: (bytes: Uint8Array) => boolean;
  /** Whether it was sound up to its end, and all of it. */
  readonly finish: () => boolean;
}

/** Which members of which packs an archive has, and no more of it: firsts and ends of runs, by session. */
const holder = (packed: ReadonlyMap<Session, Uint32Array>) => {
  return (session: Session, member: number): boolean => {
    const bounds = packed.get(session) ?? [];
    let low = 0;
    let high = bounds.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (bounds[middle]! <= member) low = middle + 1;
      else high = middle;
    }
    return low % 2 === 1;
  };
};

/** Bytes of a piece in which paths lie. */
const piece = 65_536;

/**
 * For an archive of `count` members: first its recipe is read, then the table of each of `sessions`,
 * in any order; then `root` and `at` speak.
 */
export const archiveMembers = (count: number) => {
  /** Where a session stands among those of the archive. */
  const packs = new Map<Session, number>();
  const sessions: Array<Session> = [];
  /** How many members of each. */
  const held: Array<number> = [];
  const sessionOf = new Uint32Array(count);
  const memberOf = new Uint32Array(count);
  /** The archive's members by pack, and in the order of each: a table is read once, from its first line on. */
  const order = new Uint32Array(count);
  const sizes = new Float64Array(count);
  const lengths = new Float64Array(count);
  const digests = Buffer.alloc(count * digestSize);
  const pathAt = new Uint32Array(count);
  const pathLength = new Uint8Array(count);
  /** Pieces of one size, each path in one of them; grown by one, so nothing is ever copied. */
  const paths: Array<Buffer> = [];
  /** Bytes that are taken of the last piece. */
  let used = piece;
  let listed = 0;

  const pieceOf = (at: number): readonly [Buffer, number] => {
    const start = pathAt[at]!;
    return [paths[Math.floor(start / piece)]!, start % piece];
  };
  const pathOf = (at: number): string => {
    const [of, start] = pieceOf(at);
    return of.toString("latin1", start, start + pathLength[at]!);
  };
  const keep = (at: number, { digest, length, path, size }: Member) => {
    sizes[at] = size;
    lengths[at] = length;
    digests.write(digest, at * digestSize, "hex");
    // A table that is read again, because a link broke, takes no more room.
    if (pathLength[at]! < path.length) {
      if (used + path.length > piece) {
        paths.push(Buffer.alloc(piece));
        used = 0;
      }
      pathAt[at] = (paths.length - 1) * piece + used;
      used += path.length;
    }
    const [of, start] = pieceOf(at);
    pathLength[at] = of.write(path, start, "latin1");
  };

  const recipe = (): TextReader => {
    packs.clear();
    sessions.length = 0;
    held.length = 0;
    listed = 0;
    const lines = textLines(recipeLineLimit, (text) => {
      const run = parseRun(text);
      if (run === undefined || listed + run.count > count) return false;
      let pack = packs.get(run.session);
      if (pack === undefined) {
        if (sessions.length === packLimit) return false;
        pack = sessions.push(run.session) - 1;
        packs.set(run.session, pack);
        held.push(0);
      }
      held[pack]! += run.count;
      for (let member = run.first; member < run.first + run.count; member++) {
        sessionOf[listed] = pack;
        memberOf[listed] = member;
        order[listed] = listed;
        listed += 1;
      }
      return true;
    });
    return {
      push: lines.push,
      finish: () => {
        if (!lines.finish() || listed !== count) return false;
        order.sort((a, b) => sessionOf[a]! - sessionOf[b]! || memberOf[a]! - memberOf[b]!);
        return order.every((index, i) => {
          const before = order[i - 1];
          return (
            before === undefined ||
            sessionOf[before] !== sessionOf[index] ||
            memberOf[before] !== memberOf[index]
          );
        });
      },
    };
  };

  /** Where the members of a pack stand in `order`: from the first of them to behind the last. */
  const span = (session: Session): readonly [from: number, to: number] => {
    const pack = packs.get(session);
    if (pack === undefined) return [0, 0];
    let from = 0;
    for (let i = 0; i < pack; i++) from += held[i]!;
    return [from, from + held[pack]!];
  };

  const table = (session: Session): TextReader => {
    let [next, end] = span(session);
    let line = 0;
    const lines = textLines(tableLineLimit, (text) => {
      const index = line;
      line += 1;
      if (line > memberLimit) return false;
      if (next === end || index < memberOf[order[next]!]!) return true;
      const member = parseMember(text);
      if (member === undefined) return false;
      keep(order[next]!, member);
      next += 1;
      return true;
    });
    return { push: lines.push, finish: () => lines.finish() && next === end };
  };

  /** First and end of each of its runs in a pack, by session. */
  const bounds = () => {
    const packed = new Map<Session, Uint32Array>();
    let at = 0;
    for (const [pack, session] of sessions.entries()) {
      const end = at + held[pack]!;
      const runs: Array<number> = [];
      for (; at < end; at++) {
        const member = memberOf[order[at]!]!;
        if (runs.at(-1) === member) runs[runs.length - 1] = member + 1;
        else runs.push(member, member + 1);
      }
      packed.set(session, Uint32Array.from(runs));
    }
    return packed;
  };

  const at = (index: number): Placed => ({
    session: sessions[sessionOf[index]!]!,
    member: memberOf[index]!,
    path: pathOf(index),
    size: sizes[index]!,
    length: lengths[index]!,
    digest: digests.toString("hex", index * digestSize, (index + 1) * digestSize),
  });

  return {
    count,
    recipe,
    table,
    /** Of the packs that it has members of, in order of their first one. */
    sessions: (): ReadonlyArray<Session> => sessions,
    at,
    /** The bytes of member `index`, without the rest of it. */
    lengthOf: (index: number): number => lengths[index]!,
    /** A test for members that outlives all the rest of this. */
    holds: () => holder(bounds()),
    sessionOf: (index: number): Session => sessions[sessionOf[index]!]!,
    memberOf: (index: number): number => memberOf[index]!,
    /** Bytes of all members. */
    bytes: (): number => lengths.reduce((sum, length) => sum + length, 0),
    /** Blocks of all members. */
    blocks: (): number => lengths.reduce((sum, length) => sum + blocksOf(length), 0),
    /** Over the lines of the members from the `from`th (from 0) on, in the archive's order; hex. */
    root: (from = 0): string | undefined => {
      const hasher = rootHasher();
      for (let i = from; i < count; i++) hasher.push(lineOf(at(i)));
      return hasher.root();
    },
  };
};
export type Members = ReturnType<typeof archiveMembers>;
