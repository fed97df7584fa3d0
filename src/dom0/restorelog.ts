/**
 * What qvm-backup-restore says, line by line, and what it means. In a real restore its exit code is 0
 * whatever becomes of the data: these lines are all that tells (Qubes contract, section 3).
 */
import { printable } from "#src/wire/names";

/** More than that are not kept. */
const most = 1000;

/** Its loggers and its argument parser put their names in front. */
const prefix = /^(?:(?:qubesadmin[\w.]*|app|qvm-backup-restore): )?(?:error: |ERROR: )?/;
const begins = /^-> (?:Restoring|Verifying) (\S+)\.\.\.$/;
const homeBegins = /^Restoring home of user /;
/** A qube is there and has its data, but something about it is not as it was. */
const remark =
  /^(?:Error setting |Error adding tag |Error attaching device |Failed to set application list for |\*\*\* Error while setting restore directory owner)/;
/** A qube that is named is not whole, or not there. */
const named = [
  /^Failed to restore volume \S+(?: \(size [^)]*\))? of VM (\S+): /,
  /^Failed to resize volume \S+ of VM (\S+) /,
  /^Error restoring VM (\S+), skipping: /,
];
/** A member's path, wherever it was unpacked to. */
const member = /(?:^|[^A-Za-z0-9_.-])(vm[1-9][0-9]{0,9}|dom0-home)\//g;
/** Whatever else begins like that is no good news. */
const trouble =
  /^(?:\*\*\* )?(?:error|failed|failure|unable|unexpected|premature|corrupted|traceback|invalid|too little|cannot|could not|exception|EOF from tar)(?=[\s:,.]|$)/i;
/** A row of the table of qubes, which may be called anything. */
const row = /^\s*[A-Za-z][A-Za-z0-9_.-]{0,63} \|/;

export interface RestoreLog {
  readonly see: (line: string) => void;
  /** Lines so far: a sign of life. */
  readonly count: () => number;
  readonly done: () => boolean;
  /** The qubes that it has begun with. */
  readonly begun: ReadonlySet<string>;
  /** The qubes that it named when something went wrong with their data. */
  readonly failed: ReadonlySet<string>;
  /** What went wrong with data, printable. */
  readonly faults: ReadonlyArray<string>;
  /** What a person should see, printable, each line once. */
  readonly take: () => ReadonlyArray<{
    readonly level: "info" | "warning";
    readonly text: string;
  }>;
}

/** `nameOf` gives the qube behind a directory of the archive. */
export const restoreLog = (nameOf: (id: string) => string): RestoreLog => {
  const begun = new Set<string>();
  const failed = new Set<string>();
  const faults: Array<string> = [];
  let shown: Array<{ readonly level: "info" | "warning"; readonly text: string }> = [];
  let count = 0;
  let done = false;
  const show = (level: "info" | "warning", text: string) => {
    if (shown.length < most) shown.push({ level, text });
  };
  return {
    see: (line) => {
      count += 1;
      if (row.test(line)) return;
      const marked = /(?:^|: )(?:error|ERROR): /.test(line.slice(0, 80));
      const text = line.replace(prefix, "").trim();
      const beginning = begins.exec(text);
      if (beginning !== null) begun.add(beginning[1]!);
      if (homeBegins.test(text)) begun.add("dom0");
      if (text === "-> Done.") done = true;
      if (text.startsWith("-> ") || homeBegins.test(text)) return show("info", printable(text));
      if (remark.test(text)) return show("warning", printable(text));
      const who = named.flatMap((pattern) => pattern.exec(text)?.[1] ?? []);
      // Paths in a line that is no error (a listing, say) accuse nobody.
      const bad =
        who.length > 0 || marked || trouble.test(text) || text.includes("failed to decrypt");
      if (!bad) return;
      const ids = [...text.matchAll(member)].map((match) => nameOf(match[1]!));
      for (const name of [...who, ...ids]) if (failed.size < most) failed.add(name);
      if (faults.length < most) faults.push(printable(text));
      show("warning", printable(text));
    },
    count: () => count,
    done: () => done,
    begun,
    failed,
    faults,
    take: () => {
      const taken = shown;
      shown = [];
      return taken;
    },
  };
};
