/**
 * The members of an archive, out of its recipe and the tables of its packs, as they come from whoever
 * has them: text in pieces of any size. What was made of it is worth as much as its root, which the
 * caller compares with a manifest. There may be a million members, so they lie in columns.
 */
import type { Session } from "#src/wire/names";
import { blockSize } from "#src/wire/limits";
import { textLines } from "./lines.ts";
import { parseRun, recipeLineLimit } from "./recipe.ts";
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

/** Where a session stands among those of the archive, and its members. */
interface Pack {
  readonly index: number;
  readonly parts: Array<Part>;
}

interface Part {
  readonly first: number;
  readonly count: number;
  /** Which member of the archive the first of them is. */
  readonly at: number;
}

/** Which members of which packs an archive has, and no more of it: firsts and counts by session. */
const holder = (packs: ReadonlyMap<Session, Pack>) => {
  const packed = new Map(
    [...packs].map(([session, { parts }]) => [
      session,
      Uint32Array.from(parts.flatMap(({ count, first }) => [first, first + count])),
    ]),
  );
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

/**
 * For an archive of `count` members: first its recipe is read, then the table of each of `sessions`,
 * in any order; then `root` and `at` speak.
 */
export const archiveMembers = (count: number) => {
  const packs = new Map<Session, Pack>();
  const sessions: Array<Session> = [];
  const sessionOf = new Uint32Array(count);
  const memberOf = new Uint32Array(count);
  const sizes = new Float64Array(count);
  const lengths = new Float64Array(count);
  const digests = Buffer.alloc(count * digestSize);
  const pathAt = new Uint32Array(count);
  const pathLength = new Uint8Array(count);
  let paths = Buffer.alloc(0);
  let pathsEnd = 0;
  let listed = 0;

  const keep = (at: number, { digest, length, path, size }: Member) => {
    sizes[at] = size;
    lengths[at] = length;
    digests.write(digest, at * digestSize, "hex");
    // A table that is read again, because a link broke, takes no more room.
    if (pathLength[at]! < path.length) {
      if (pathsEnd + path.length > paths.length) {
        const grown = Buffer.alloc(paths.length * 2 + path.length);
        paths.copy(grown);
        paths = grown;
      }
      pathAt[at] = pathsEnd;
      pathsEnd += path.length;
    }
    pathLength[at] = paths.write(path, pathAt[at]!, "latin1");
  };

  const recipe = (): TextReader => {
    packs.clear();
    sessions.length = 0;
    listed = 0;
    const lines = textLines(recipeLineLimit, (text) => {
      const run = parseRun(text);
      if (run === undefined || listed + run.count > count) return false;
      let pack = packs.get(run.session);
      if (pack === undefined) {
        pack = { index: sessions.length, parts: [] };
        packs.set(run.session, pack);
        sessions.push(run.session);
      }
      pack.parts.push({ first: run.first, count: run.count, at: listed });
      for (let member = run.first; member < run.first + run.count; member++) {
        sessionOf[listed] = pack.index;
        memberOf[listed] = member;
        listed += 1;
      }
      return true;
    });
    return {
      push: lines.push,
      finish: () => {
        if (!lines.finish() || listed !== count) return false;
        // A table is read once, from its first line to its last.
        for (const { parts } of packs.values()) {
          parts.sort((a, b) => a.first - b.first);
          if (
            parts.some((one, i) => i > 0 && one.first < parts[i - 1]!.first + parts[i - 1]!.count)
          ) {
            return false;
          }
        }
        return true;
      },
    };
  };

  const table = (session: Session): TextReader => {
    const wanted = packs.get(session)?.parts ?? [];
    let line = 0;
    let next = 0;
    const lines = textLines(tableLineLimit, (text) => {
      const index = line;
      line += 1;
      if (line > memberLimit) return false;
      const part = wanted[next];
      if (part === undefined || index < part.first) return true;
      const member = parseMember(text);
      if (member === undefined) return false;
      keep(part.at + index - part.first, member);
      if (index === part.first + part.count - 1) next += 1;
      return true;
    });
    return { push: lines.push, finish: () => lines.finish() && next === wanted.length };
  };

  const at = (index: number): Placed => ({
    session: sessions[sessionOf[index]!]!,
    member: memberOf[index]!,
    path: paths.toString("latin1", pathAt[index]!, pathAt[index]! + pathLength[index]!),
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
    holds: () => holder(packs),
    sessionOf: (index: number): Session => sessions[sessionOf[index]!]!,
    memberOf: (index: number): number => memberOf[index]!,
    /** Bytes of all members. */
    bytes: (): number => lengths.reduce((sum, length) => sum + length, 0),
    /** Blocks of all members. */
    blocks: (): number => lengths.reduce((sum, length) => sum + blocksOf(length), 0),
    /** Over the lines of the members, in the archive's order; hex. */
    root: (): string | undefined => {
      const hasher = rootHasher();
      for (let i = 0; i < count; i++) hasher.push(lineOf(at(i)));
      return hasher.root();
    },
  };
};
export type Members = ReturnType<typeof archiveMembers>;
