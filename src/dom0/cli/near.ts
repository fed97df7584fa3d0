/** What a person may have meant with a word that nobody knows. */
import type { Command } from "./command.ts";

/** Letters to insert, remove, replace or swap with their neighbour until the words are the same. */
const distance = (a: string, b: string): number => {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let least = Math.min(rows[i - 1]![j]! + 1, row[j - 1]! + 1, rows[i - 1]![j - 1]! + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        least = Math.min(least, rows[i - 2]![j - 2]! + 1);
      }
      row.push(least);
    }
    rows.push(row);
  }
  return rows[a.length]![b.length]!;
};

/** Longer words are no slip of anything here, and comparing them takes the square of their length. */
const longest = 64;

/**
 * The nearest of `known` that `word` is a slip of: one letter in three may be wrong, and at most
 * three; or the word is how it begins. Undefined where there is none.
 */
export const closeTo = (word: string, known: ReadonlyArray<string>): string | undefined => {
  if (word.length < 2 || word.length > longest) return undefined;
  const near = known
    .map((name) => ({ name, off: distance(word, name) }))
    .filter(({ name, off }) => off <= Math.min(3, Math.max(1, Math.floor(name.length / 3))))
    .sort((a, b) => a.off - b.off);
  return (
    near[0]?.name ?? (word.length >= 3 ? known.find((name) => name.startsWith(word)) : undefined)
  );
};

/** Words that other programs have for what this one does, and what does it here. */
const elsewhere: Readonly<Record<string, string>> = {
  backup: "qbackup run",
  create: "qbackup run",
  start: "qbackup run",
  status: "qbackup list",
  show: "qbackup list",
  ls: "qbackup list",
  snapshots: "qbackup list",
  check: "qbackup verify",
  test: "qbackup verify",
  doctor: "qbackup audit",
  extract: "qbackup restore",
  sheet: "qbackup recovery-sheet",
  version: "qbackup --version",
  commands: "qbackup -h",
  usage: "qbackup -h",
  config: "qbackup -h",
  init: "qbackup -h",
  prune: "qbackup -h",
};

/** The command that a person has in mind whose `word` is none of ours; undefined for most words. */
export const commandMeant = (
  word: string,
  commands: ReadonlyArray<Command>,
): string | undefined => {
  if (Object.hasOwn(elsewhere, word)) return elsewhere[word];
  const near = closeTo(word, [...commands.map(({ name }) => name), "help"]);
  return near === undefined ? undefined : `qbackup ${near}`;
};
