/**
 * The members of a pack, as text: `PATH SIZE LENGTH DIGEST\n` each, in the order of the pack. And the
 * root of an archive, which is over the lines of its members. docs/protocol.md, Members and Roots.
 */
import { createHash } from "node:crypto";
import { treeHasher } from "./treehash.ts";
import { parseNumber } from "#src/wire/names";

/** Members that an archive or a pack can have. */
export const memberLimit = 1_048_576;
/** Bytes of the longest line, its newline included. */
export const tableLineLimit = 99 + 1 + 16 + 1 + 16 + 1 + 64 + 1;

export interface Member {
  readonly path: string;
  /** Of the data; in bytes. */
  readonly size: number;
  /** Of the tar headers, the data and the padding together; in bytes. */
  readonly length: number;
  /** SHA-256 tree hash of those bytes, in hex. */
  readonly digest: string;
}

const form = /^([A-Za-z0-9._@/-]{1,99}) ([0-9]+) ([0-9]+) ([0-9a-f]{64})$/;
const tarBlock = 512;

/** With its newline. */
export const lineOf = ({ digest, length, path, size }: Member): string =>
  `${path} ${size} ${length} ${digest}\n`;

/** Reads a line without its newline; undefined for any but the one way of writing it. */
export const parseMember = (text: string): Member | undefined => {
  const match = form.exec(text);
  if (match === null) return undefined;
  const size = parseNumber(match[2]!);
  const length = parseNumber(match[3]!);
  if (size === undefined || length === undefined) return undefined;
  if (length % tarBlock !== 0 || length < size + tarBlock) return undefined;
  return { path: match[1]!, size, length, digest: match[4]! };
};

/** Lines of one leaf of a root. */
const linesOfLeaf = 32;

/** Takes the lines of an archive's members in order, each with its newline. */
export const rootHasher = () => {
  const tree = treeHasher();
  let leaf = createHash("sha256");
  let held = 0;
  let members = 0;
  const close = () => {
    tree.push(leaf.digest());
    leaf = createHash("sha256");
    held = 0;
  };
  return {
    push: (line: string): void => {
      leaf.update(line);
      members += 1;
      held += 1;
      if (held === linesOfLeaf) close();
    },
    members: () => members,
    /** Hex; undefined where there is no member. To be asked for once, at the end. */
    root: (): string | undefined => {
      if (held > 0) close();
      return tree.root();
    },
  };
};
