/**
 * An archive of slots, put together of members that were just made and of such as lie in an older archive:
 * their order is the archive's, whatever theirs was in the pack. docs/protocol.md, Recipes and Roots.
 */
import { type Wish, wishLine } from "#src/proof/recipe";
import { lineOf, type Member, rootHasher } from "#src/proof/table";
import { archiveSize } from "./walk.ts";

/** A member, and where it is: the `at`th (from 0) of the pack that is sent, or of the base archive. */
export interface Chosen {
  readonly member: Member;
  readonly of: Wish["of"];
  readonly at: number;
}

export interface Composed {
  /** Of the archive as a plain file; in bytes. */
  readonly size: number;
  readonly members: number;
  /** Hex; undefined where there is no member. */
  readonly root: string | undefined;
  /** What an upload says of it: lines of wishes. */
  readonly recipe: string;
}

export const composed = (chosen: Iterable<Chosen>): Composed => {
  const hasher = rootHasher();
  const lines: Array<string> = [];
  let run: Wish | undefined;
  let bytes = 0;
  for (const { at, member, of } of chosen) {
    hasher.push(lineOf(member));
    bytes += member.length;
    if (run?.of === of && run.first + run.count === at) run = { ...run, count: run.count + 1 };
    else {
      if (run !== undefined) lines.push(wishLine(run));
      run = { of, first: at, count: 1 };
    }
  }
  if (run !== undefined) lines.push(wishLine(run));
  return {
    size: archiveSize("slots", bytes),
    members: hasher.members(),
    root: hasher.root(),
    recipe: lines.join(""),
  };
};

/** Members before the first file: backup-header and its proof. */
export const headCount = 2;

/**
 * The text of `backup-header`. `seal` is the root of all members behind the two heads: the passphrase
 * authenticates this text, and so them, where members of many nights have one backup-id.
 */
export const backupHeader = (backupId: string, seal: string, run: number): string =>
  [
    "version=4",
    "encrypted=True",
    "compressed=True",
    "compression-filter=gzip",
    "hmac-algorithm=scrypt",
    `backup-id=${backupId}`,
    `qbackup-seal=${seal}`,
    `qbackup-run=${run}`,
    "",
  ].join("\n");

/** Bytes for which a restore takes two files more. */
const bytesOfTwo = 104_857_600;

const pathOf = /<feature name="backup-path">([^</]+)/;
const sizeOf = /(?<=<feature name="backup-size">)[0-9]+(?=<)/;

/**
 * qubes.xml as it must be in an archive of slots. A restore through a qube counts the files that come
 * against what this says a qube's files have together, and ends early without a word where there are more:
 * so that is raised to what lets `members` files pass. By the directory of the qube, `vm7` or `dom0-home`.
 * Undefined where one of them is not to be found.
 */
export const raiseSizes = (
  xml: string,
  members: ReadonlyMap<string, number>,
): string | undefined => {
  const found = new Set<string>();
  const raised = xml.replace(/<features>.*?<\/features>/gs, (features) => {
    const directory = pathOf.exec(features)?.[1];
    if (directory === undefined) return features;
    const count = members.get(directory);
    if (count === undefined) return features;
    return features.replace(sizeOf, (size) => {
      found.add(directory);
      return `${Math.max(Number(size), bytesOfTwo * (Math.ceil(count / 2) + 1))}`;
    });
  });
  return found.size === members.size ? raised : undefined;
};
