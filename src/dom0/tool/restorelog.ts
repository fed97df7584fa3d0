/**
 * What qvm-backup-restore says, line by line, and what it means. In a real restore its exit code is 0
 * whatever becomes of the data: these lines are all that tells (docs/qubes.md, What it does not
 * notice).
 */
import { type Line, printable } from "#src/say/shown";

/** More than that are not kept. */
const most = 1000;

/** Its loggers and its argument parser put their names in front. */
const prefix = /^(?:(?:qubesadmin[\w.]*|app|qvm-backup-restore): )?(?:error: |ERROR: )?/;
const begins = /^-> (?:Restoring|Verifying) (\S+)\.\.\.$/;
const homeBegins = /^Restoring home of user /;
/** A qube that is named has its data, but something about it is not as it was. */
const setting = [
  /^Error setting (\S+?)\.(?:features\[.*\]|\w+) to /,
  /^Error adding tag .* to (\S+): /,
  /^Error (?:attaching|assigning) device .* to (\S+): /,
  /^Failed to set application list for ([A-Za-z0-9_.-]+)/,
  // A qube's own logger: the name is all that stands in front.
  /^(?:vm\.)?([A-Za-z][A-Za-z0-9_.-]{0,63}): Failed to set (?:firewall|notes)$/,
];
/**
 * Nobody but qubesd sets such a tag, and the qube has its own. In dom0 that of dom0 is found to be there; a
 * disposable cannot see whether it is (docs/qubes.md, Paranoid mode).
 */
const ofItsMaker = /^Error adding tag created-by-\S+ to \S+: /;
/** A qube that is named is not whole, or not there. */
const named = [
  /^Failed to restore volume \S+(?: \(size [^)]*\))? of VM (\S+): /,
  /^Failed to resize volume \S+ of VM (\S+) /,
  /^Error restoring VM (\S+), skipping: /,
];
const ofHome = /^\*\*\* Error while setting restore directory owner/;
const homeFailed = /\bInner tar error for dom0-home\b/;
/** A frame of a traceback: it failed at the home, whatever it was that failed. */
const atHome = /, in _handle_dom0$/;
/** With nothing to do it asks its tar for nothing, and takes what that says to it for an error. */
const nothingAsked = "--occurrence is meaningless";
/** It announces what went wrong, or knows only which of its processes did. */
const vague = /:$|^Error while processing .*: \w+ failed$/;
/** In the paranoid mode the carrier's own words come behind those of what has called it. */
const carrier = /^qubes\.BackupCarrier: error: /;
/** What tar listed, behind a line that promises what tar said. */
const listing = /^[-dlbcps][-rwxsStT]{9} /;
/** No data came through after this. */
const brokeOff = /^Error extracting data: /;
/** What a logger says, which is no exception: those of Python begin with a module's name, too. */
const logged = /^(?:qubesadmin\.backup[\w.]*|app|qvm-backup-restore): /;
const traceback = /^Traceback \(most recent call last\):/;
/** A member's path, wherever it was unpacked to. */
const member = /(?:^|[^A-Za-z0-9_.-])((vm[1-9][0-9]{0,9}|dom0-home)\/[^\s:'"/]*)/g;
/** Whatever else begins like that is no good news. */
const trouble =
  /^(?:\*\*\* )?(?:error|failed|failure|unable|unexpected|premature|corrupted|traceback|invalid|too little|cannot|could not|exception|EOF from tar)(?=[\s:,.]|$)/i;
/** A row of the table of qubes, which may be called anything, with what is remarked on it. */
const row = /^\s*([A-Za-z][A-Za-z0-9_.-]{0,63}) \|(?:.*? <-- (.*))?/;
const excluded = "Excluded from restore";
/** The lines around it. They come when Python empties its buffer, amid whatever is said meanwhile. */
const frame = /^(?:The following VMs are included in the backup:|(?:-+\+)+)$/;
const renaming = /Will be renamed to '([A-Za-z][A-Za-z0-9_.-]{0,63})'$/;
const replacing = /^Template change to /;

export interface RestoreLog {
  readonly see: (line: string) => void;
  /** Lines so far: a sign of life. */
  readonly count: () => number;
  readonly done: () => boolean;
  /** It had nothing to restore. */
  readonly idle: () => boolean;
  /** The qubes that it has begun with. */
  readonly begun: ReadonlySet<string>;
  /** The qubes that it named when something went wrong with their data. */
  readonly failed: ReadonlySet<string>;
  /** What went wrong with data, printable. */
  readonly faults: ReadonlyArray<string>;
  /** The one of them that says most: not one that only announces what went wrong. */
  readonly cause: () => string | undefined;
  /** The qubes that have their data, but not all of their settings. */
  readonly altered: ReadonlySet<string>;
  /** What became of settings, printable. */
  readonly remarks: ReadonlyArray<string>;
  /** Set when it gave up in the middle of the data: the paths of members that it named then. */
  readonly brokenOff: () => ReadonlyArray<string> | undefined;
  /** By the qube's name in the archive, its name here. */
  readonly renamed: ReadonlyMap<string, string>;
  /** The qubes that it found a reason to leave out, with that. */
  readonly leftOut: ReadonlyMap<string, string>;
  /** What a person should see, printable, each line once. */
  readonly take: () => ReadonlyArray<{
    readonly level: "info" | "warning";
    readonly text: Line;
  }>;
}

/** `nameOf` gives the qube behind a directory of the archive. */
export const restoreLog = (nameOf: (id: string) => string): RestoreLog => {
  const begun = new Set<string>();
  const failed = new Set<string>();
  const faults: Array<string> = [];
  const altered = new Set<string>();
  const remarks: Array<string> = [];
  const renamed = new Map<string, string>();
  const leftOut = new Map<string, string>();
  let brokenOff: ReadonlyArray<string> | undefined;
  let shown: Array<{ readonly level: "info" | "warning"; readonly text: Line }> = [];
  let count = 0;
  let done = false;
  let idle = false;
  /** The line before announced something: what is indented behind it, tells it. */
  let announced = false;
  /** In a traceback: where its last line goes, the only one that tells what it was about. */
  let tracing: Array<string> | undefined;
  /** The line before was about a setting; a traceback right behind it belongs to it. */
  let behind = false;
  const show = (level: "info" | "warning", text: Line) => {
    if (shown.length < most) shown.push({ level, text });
  };
  const note = (into: Array<string>, text: string) => {
    if (into.length < most) into.push(printable(text));
    show("warning", printable(text));
  };
  const add = (names: Set<string>, more: ReadonlyArray<string>) => {
    for (const name of more) if (names.size < most) names.add(name);
  };
  const table = (name: string, remark: string) => {
    const as = renaming.exec(remark)?.[1];
    if (as !== undefined && renamed.size < most) renamed.set(name, as);
    if (as === undefined && !replacing.test(remark) && leftOut.size < most)
      leftOut.set(name, printable(remark));
    show("info", printable(`${name}: ${remark}`));
  };
  const who = (patterns: ReadonlyArray<RegExp>, text: string) =>
    patterns.flatMap((pattern) => pattern.exec(text)?.[1] ?? []);
  return {
    see: (line) => {
      count += 1;
      const [isRow, qube = "", remark] = row.exec(line) ?? [];
      if (isRow !== undefined) {
        return remark === undefined || remark === excluded ? undefined : table(qube, remark);
      }
      if (frame.test(line)) return;
      const marked = /(?:^|: )(?:error|ERROR): /.test(line.slice(0, 80));
      const text = line.replace(prefix, "").trim();
      if (tracing !== undefined) {
        if (atHome.test(text)) add(failed, ["dom0"]);
        if (/^\s/.test(line) || text === "") return;
        const into = tracing;
        tracing = undefined;
        if (!logged.test(line)) {
          if (homeFailed.test(text)) add(failed, ["dom0"]);
          if (into === faults && faults.length < most) faults.pop();
          return note(into, text);
        }
      }
      const afterRemark = behind;
      behind = false;
      const detail = announced && /^\s+\S/.test(line) && !listing.test(text);
      announced = false;
      if (detail) return note(faults, text);
      if (begun.size === 0 && text.includes(nothingAsked)) return void (idle = true);
      if (traceback.test(text)) {
        tracing = afterRemark ? remarks : faults;
        // It may die before it says more.
        return afterRemark ? undefined : note(faults, text);
      }
      const beginning = begins.exec(text);
      if (beginning !== null) begun.add(beginning[1]!);
      if (homeBegins.test(text)) begun.add("dom0");
      if (text === "-> Done.") done = true;
      if (text.startsWith("-> ") || homeBegins.test(text)) return show("info", printable(text));
      if (ofItsMaker.test(text)) return show("info", printable(text));
      const changed = ofHome.test(text) ? ["dom0"] : who(setting, text);
      if (changed.length > 0) {
        add(altered, changed);
        behind = true;
        return note(remarks, text);
      }
      const lost = homeFailed.test(text) ? ["dom0"] : who(named, text);
      // Paths in a line that is no error (a listing, say) accuse nobody.
      const bad =
        lost.length > 0 || marked || trouble.test(text) || text.includes("failed to decrypt");
      if (!bad) return;
      const members = [...text.matchAll(member)];
      add(failed, [...lost, ...members.map((match) => nameOf(match[2]!))]);
      if (brokeOff.test(text)) brokenOff ??= members.map((match) => match[1]!);
      announced = text.endsWith(":");
      note(faults, text);
    },
    count: () => count,
    done: () => done,
    idle: () => idle,
    begun,
    failed,
    faults,
    cause: () =>
      faults.find((fault) => carrier.test(fault)) ??
      faults.find((fault) => !vague.test(fault)) ??
      faults[0],
    altered,
    remarks,
    brokenOff: () => brokenOff,
    renamed,
    leftOut,
    take: () => {
      const taken = shown;
      shown = [];
      return taken;
    },
  };
};
