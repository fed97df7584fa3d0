/**
 * The head of the ledger in a form that a person can write on paper and type again: the number of
 * the last line, 100 bits of its hash, and 20 bits that show a slip of the pen.
 *
 * 100 bits, because whoever wants another ledger to have the same head must find a second preimage.
 */
import { sha256 } from "#src/proof/texts";
import { fromGroups, groups } from "./paper.ts";

/** Hex digits of the hash that it holds, and of the check. */
const held = 25;
const check = 5;

export interface Head {
  /** The number of the line, from 1. */
  readonly line: number;
  /** The beginning of its hash, in hex. */
  readonly hash: string;
}

const checkOf = ({ hash, line }: Head): string => sha256(`${line} ${hash}`).slice(0, check);

/** `37-7K3M-Q2XR-0ZJ8-W4VN-5TB6-HD1C`, of a line's number and its hash. */
export const onPaper = (line: number, fullHash: string): string => {
  const hash = fullHash.slice(0, held);
  return `${line}-${groups(hash + checkOf({ line, hash }))}`;
};

/** Reads it as a person writes it; undefined where a sign is wrong. */
export const fromPaper = (text: string): Head | undefined => {
  const match = /^\s*([1-9][0-9]{0,8})[-\s]((?:[-\s]*[0-9A-Za-z]){24})[-\s]*$/.exec(text);
  if (match === null) return undefined;
  const hex = fromGroups(match[2]!, held + check)!;
  const head = { line: Number(match[1]), hash: hex.slice(0, held) };
  return checkOf(head) === hex.slice(held) ? head : undefined;
};
