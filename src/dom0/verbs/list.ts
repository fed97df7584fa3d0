/** What lies on the server, held against dom0's own ledger. */
import { Clock, Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { KnownServers } from "#services/KnownServers";
import { Ledger } from "#services/Ledger";
import type { Audit } from "#services/ReadBacks";
import { Reporter } from "#services/Reporter";
import { Signer } from "#services/Signer";
import { humanSize, localMinute } from "#src/say/format";
import { isPrefix, type PublicKey, type Session } from "#src/wire/names";
import { line, printable } from "#src/say/shown";
import { command } from "#src/dom0/cli/command";
import { alarmAfterFor, destinationFor } from "#src/dom0/qube/destination";
import { failed } from "#src/dom0/failure";
import { alarmAfter, json, keepRunning, to } from "#src/dom0/cli/flags";
import {
  elsewhere,
  goBackTo,
  type Known,
  knownArchives,
  some,
  storedOf,
  unsound,
} from "#src/dom0/books/known";
import { alarmUnread, faultOf, note } from "#src/dom0/books/noted";
import { newestOf, readPruned, tombstoneDiffers, tooYoung } from "#src/dom0/books/pruned";
import { inLedger } from "#src/dom0/books/unusable";
import {
  type Archive,
  fetchRecord,
  listArchives,
  type Listed,
  recordDiffers,
} from "#src/dom0/far/remote";
import { columns, visit } from "#src/dom0/qube/visit";
import { print } from "#src/dom0/cli/print";

export interface ListOptions {
  readonly to: string | undefined;
  readonly keepRunning: boolean;
  readonly json: boolean;
  /** Fetches every archive's receipt as well, and holds it against the ledger's. */
  readonly receipts: boolean;
  /** Days. */
  readonly alarmAfter: number | undefined;
  readonly prefix: string | undefined;
}

/** What can be said of an archive; `listCommand` tells people what each means. */
type Proof =
  | "proven"
  | "receipt"
  | "rebuilt"
  | "unknown"
  | "foreign"
  | "unsigned"
  | "changed"
  | "damaged"
  | "missing"
  | "pruned";
const alarming: ReadonlySet<Proof> = new Set(["changed", "damaged", "missing"]);

interface Row {
  readonly name: string;
  readonly stored: string;
  readonly size: number;
  readonly members: number;
  readonly root: string;
  readonly proof: Proof;
  /** Why it is not proven, where that can be said. */
  readonly note?: string;
  /** What the note says is not to be passed over, whatever `proof` is. */
  readonly alarm?: true;
  readonly qubes: ReadonlyArray<string>;
  /** When it was last read back from here: all of it, or so many blocks of it. */
  readonly verified?: string;
  readonly audited?: { readonly at: string; readonly blocks: number; readonly of: number };
  /** Since when it could not be read back. */
  readonly unread?: string;
}

const readBack = ({ sampled, unread, whole }: Audit) => ({
  ...(unread === undefined ? {} : { unread }),
  ...(whole === undefined ? {} : { verified: whole }),
  ...(sampled === undefined ? {} : { audited: sampled }),
});

/** The ledger's archives behind one qube, and what the look at the server needs to know of them. */
interface Books {
  readonly known: ReadonlyMap<string, Known>;
  /** Names by root: what turns up under another one is called by its own. */
  readonly byRoot: ReadonlyMap<string, string>;
  readonly own: PublicKey | undefined;
  readonly server: PublicKey | undefined;
  readonly newest: ReturnType<typeof newestOf>;
  /** Milliseconds since 1970. */
  readonly now: number;
}

/** What the server's line says against an archive of the ledger; undefined when nothing. */
const differs = (archive: Archive, mine: Known, { byRoot }: Books): string | undefined => {
  const { manifest } = mine;
  if (
    archive.root !== manifest.root ||
    archive.size !== manifest.size ||
    archive.members !== manifest.members
  ) {
    const other = byRoot.get(archive.root);
    return other === undefined ? "other content" : `the content of ${other}`;
  }
  // It has not changed its mind about the content: it has nothing that was signed for it.
  if (archive.signer === null) return "the server has lost what was signed for it";
  if (archive.signer !== manifest.signer) return "it is signed by another key";
  if (archive.series !== manifest.series || archive.run !== manifest.run) {
    return "another run, or another series";
  }
  return archive.session === manifest.session && archive.stored === storedOf(mine)
    ? undefined
    : "another receipt: it was stored again";
};

const saysDamaged = "the server found it damaged when it last checked";

const rowOf = (archive: Archive, books: Books): Row => {
  const { members, name, root, signer, size, stored } = archive;
  const said = { name, stored, size, members, root };
  const mine = books.known.get(name);
  if (mine === undefined) {
    const proof = signer === null ? "unsigned" : signer === books.own ? "unknown" : "foreign";
    // What dom0 signs it signs with its name: only the server can have given it another.
    const other = proof === "unknown" ? books.byRoot.get(root) : undefined;
    const note =
      other !== undefined
        ? `it has the content of ${other}: renamed or copied`
        : archive.damaged
          ? saysDamaged
          : undefined;
    return { ...said, proof, qubes: [], ...(note === undefined ? {} : { note, alarm: true }) };
  }
  const both = { ...said, qubes: mine.entry.qubes.map((qube) => qube.name) };
  const note = differs(archive, mine, books);
  if (note !== undefined) return { ...both, proof: "changed", note };
  const checked = { ...both, ...readBack(mine.audit) };
  const { sampled, whole } = mine.audit;
  const fault = faultOf(mine.audit);
  if (fault !== undefined) {
    const why =
      fault.of === "bytes"
        ? `it did not come back as it was on ${day(fault.at)}`
        : `a member did not decrypt on ${day(fault.at)}: back up again`;
    return { ...checked, proof: "damaged", note: why };
  }
  if (archive.damaged) return { ...checked, proof: "damaged", note: saysDamaged };
  if (mine.entry.rebuilt === true) return { ...checked, proof: "rebuilt" };
  return { ...checked, proof: sampled === undefined && whole === undefined ? "receipt" : "proven" };
};

/** An archive of the ledger that the server does not list; a sound tombstone says where it went. */
const absentRow = (mine: Known, { pruned }: Pick<Listed, "pruned">, books: Books): Row => {
  const { audit, entry, manifest } = mine;
  const row = {
    name: entry.name,
    stored: storedOf(mine) ?? entry.finished,
    size: manifest.size,
    members: manifest.members,
    root: manifest.root,
    qubes: entry.qubes.map((qube) => qube.name),
    ...readBack(audit),
  };
  if (pruned.length === 0) {
    return { ...row, proof: "missing", note: "the server does not list it any more" };
  }
  const server = books.server ?? entry.server;
  const tombstone = pruned
    .map((one) => readPruned(one, server))
    .find((one) => one?.session === manifest.session);
  if (tombstone === undefined) {
    const why = "the server says that it was pruned, but has not signed that";
    return { ...row, proof: "missing", note: why };
  }
  const field = tombstoneDiffers(tombstone, mine);
  if (field !== undefined) {
    const why = `what the server signed as pruned is something else: its ${field} differs`;
    return { ...row, proof: "missing", note: why };
  }
  const why = `pruned on ${day(tombstone.pruned)} by the rule: ${tombstone.rule}`;
  const wrong = books.newest.isLast(tombstone)
    ? "the newest of its series was removed"
    : tooYoung(tombstone, books.now)
      ? "it was removed before its time"
      : undefined;
  return wrong === undefined
    ? { ...row, proof: "pruned", note: why }
    : { ...row, proof: "pruned", note: `${wrong}: ${why}`, alarm: true };
};

/** What the server's receipt gives away; undefined when nothing. */
const receiptOf = Effect.fnUntraced(function* (
  destination: string,
  { name }: Archive,
  { known, server }: Books,
) {
  const mine = known.get(name);
  if (mine !== undefined) return yield* recordDiffers(destination, mine.entry);
  return yield* fetchRecord(destination, name).pipe(
    Effect.map((theirs) => {
      if (theirs === undefined) return "the server has no receipt for it";
      return server !== undefined && theirs.manifest.server !== server
        ? "signed by another key"
        : undefined;
    }),
    Effect.catchIf(
      ({ exit }) => exit === "integrity" || exit === "refused",
      ({ message }) => Effect.succeed(message),
    ),
  );
});

const day = (instant: string): string => instant.slice(0, 10);

/**
 * `failed DAY`: not since then. `DAY`: all of it then. `DAY 12/459`: so many of its blocks. Two days are
 * the oldest and the newest reading.
 */
const lastRead = ({ audited, unread, verified }: Row): string => {
  if (unread !== undefined) return `failed ${day(unread)}`;
  const days = [verified, audited?.at].flatMap((at) => (at === undefined ? [] : [at])).sort();
  const [oldest, newest = oldest] = days;
  if (oldest === undefined || newest === undefined) return "-";
  const shown = day(oldest) === day(newest) ? [day(newest)] : [day(oldest), day(newest)];
  if (audited !== undefined && newest === audited.at) {
    shown.push(`${audited.blocks}/${audited.of}`);
  }
  return shown.join(" ");
};

/** After a rebuild only the qubes' numbers in the archive are known, which a restore does not take. */
const qubesOf = ({ proof, qubes }: Row): string =>
  proof === "rebuilt" ? `${qubes.length} qubes` : printable(qubes.join(" "), 60);

/** A line for each; on a terminal that is too narrow for that, two. */
const table = (rows: ReadonlyArray<Row>, head: boolean, width = Infinity): string => {
  const lines = [
    ...(head ? [["NAME", "STORED", "SIZE", "PROOF", "READ BACK", "QUBES"]] : []),
    ...rows.map((row) => [
      row.name,
      localMinute(row.stored),
      humanSize(row.size),
      row.proof,
      lastRead(row),
      qubesOf(row),
    ]),
  ];
  const whole = columns(lines);
  if (whole.split("\n").every((text) => text.length <= width)) return whole;
  const details = columns(lines.map(([, ...rest]) => ["", ...rest])).split("\n");
  return lines.map(([name], i) => `${name}\n${details[i]!.slice(0, width)}\n`).join("");
};

/** Rows as they come, without holding those that were printed. */
const printer = (asJson: boolean, width: number | undefined) => {
  let printed = 0;
  return {
    rows: (rows: ReadonlyArray<Row>) => {
      if (rows.length === 0) return Effect.void;
      const first = printed === 0;
      printed += rows.length;
      if (!asJson) return print(table(rows, first, width));
      const text = rows.map((row) => JSON.stringify(row, undefined, 2).replace(/^/gm, "  "));
      return print(`${first ? "[\n" : ",\n"}${text.join(",\n")}`);
    },
    /** `found`: what was looked for, if only what was pruned by a rule. */
    finish: (found: boolean) => {
      if (asJson) return print(printed === 0 ? "[]\n" : "\n]\n");
      return printed === 0 && found ? print(table([], true, width)) : Effect.void;
    },
  };
};

const callsAtOnce = 4;

export const list = Effect.fnUntraced(function* (options: ListOptions) {
  if (options.prefix !== undefined && options.prefix !== "" && !isPrefix(options.prefix)) {
    return yield* failed(
      "usage",
      "not a valid archive name prefix",
      "give the beginning of a name, as qbackup list shows them",
    );
  }
  const destination = yield* destinationFor(options.to);
  const alarm = alarmUnread(destination, yield* alarmAfterFor(options.alarmAfter));
  yield* alarm(theList(options, destination));
});

const theList = Effect.fnUntraced(function* (options: ListOptions, destination: string) {
  const { prefix = "" } = options;
  const { say } = yield* Reporter;

  yield* visit({ destination, keepRunning: options.keepRunning });
  const { known, sound } = yield* knownArchives(destination);
  const own = yield* inLedger((yield* Signer).existing);
  const books: Books = {
    known,
    byRoot: new Map([...known].map(([name, { manifest }]) => [manifest.root, name])),
    own,
    server: yield* inLedger((yield* KnownServers).pinned(destination)),
    newest: newestOf(known.values(), own, prefix === ""),
    now: yield* Clock.currentTimeMillis,
  };
  const names = [...known.keys()].filter((name) => name.startsWith(prefix)).sort();
  const count = { rows: 0, alarms: 0, missing: 0, unknown: 0, unsigned: 0, foreign: 0, pruned: 0 };
  const buried: Array<Session> = [];
  const others = yield* elsewhere(destination);
  /** The qubes through which those were sent that the ledger knows from another one only. */
  const through: Array<string> = [];
  const out = printer(options.json, (yield* Invocation).columns);

  /** What of the ledger stands before `name`, which the server has not listed: all, at the end. */
  let at = 0;
  const missed = (before?: string): ReadonlyArray<Row> => {
    const rows: Array<Row> = [];
    for (; at < names.length && (before === undefined || names[at]! < before); at++) {
      const mine = known.get(names[at]!)!;
      if (mine.audit.forgotten === undefined) rows.push(absentRow(mine, { pruned: [] }, books));
    }
    return rows;
  };
  const rowsOf = (listed: Listed): ReadonlyArray<Row> => {
    const { archive, name, pruned } = listed;
    const before = missed(name);
    if (names[at] === name) at += 1;
    for (const one of pruned) {
      const tombstone = books.server && readPruned(one, books.server);
      if (tombstone !== undefined) books.newest.isGone(tombstone);
      count.pruned += 1;
    }
    if (archive !== undefined) {
      books.newest.lives(archive);
      const row = rowOf(archive, books);
      const other = row.proof === "unknown" ? others.get(archive.session) : undefined;
      if (other !== undefined) through.push(other);
      return [...before, row];
    }
    const mine = known.get(name);
    if (mine === undefined || mine.audit.forgotten !== undefined) return before;
    const row = absentRow(mine, listed, books);
    if (row.proof === "pruned" && row.alarm === undefined) buried.push(mine.entry.session);
    return [...before, row];
  };
  const show = Effect.fnUntraced(function* (rows: ReadonlyArray<Row>) {
    // What went by a rule is not news: a number tells.
    yield* out.rows(
      options.json ? rows : rows.filter(({ alarm, proof }) => proof !== "pruned" || alarm === true),
    );
    for (const { alarm, name, note: why, proof, unread } of rows) {
      count.rows += 1;
      if (alarm === true || alarming.has(proof)) count.alarms += 1;
      if (proof === "missing" || proof === "unknown") count[proof] += 1;
      if (proof === "unsigned" || proof === "foreign") count[proof] += 1;
      if (why !== undefined && (proof !== "pruned" || alarm === true)) {
        yield* say("warning", line`${name} is ${proof}: ${why}`);
      }
      if (unread !== undefined) {
        yield* say("warning", line`${name} could not be read back since ${day(unread)}`);
      }
    }
  });

  yield* listArchives(
    destination,
    prefix !== "" && isPrefix(prefix) ? prefix : undefined,
    Effect.fnUntraced(function* (page) {
      const archives = new Map(page.map(({ archive, name }) => [name as string, archive]));
      const rows = yield* Effect.forEach(
        page.flatMap(rowsOf),
        (row) =>
          Effect.gen(function* () {
            const archive = archives.get(row.name);
            const skipped = row.proof === "changed" || row.proof === "unsigned";
            if (!options.receipts || archive === undefined || skipped) return row;
            const why = yield* receiptOf(destination, archive, books);
            return why === undefined
              ? row
              : ({ ...row, proof: "changed", note: why } satisfies Row);
          }),
        { concurrency: callsAtOnce },
      );
      yield* show(rows);
    }),
  );
  yield* show(missed());
  yield* out.finish(count.rows > 0 || prefix === "");
  if (count.rows === 0 && prefix !== "") {
    return yield* failed(
      "usage",
      `no archive on the server has a name that begins with ${prefix}`,
      "qbackup list shows all names",
    );
  }
  const lost = books.newest.lost();
  for (const { name, series } of lost) {
    yield* say(
      "warning",
      line`the newest archive of the series ${series} was removed: ${name}, and none that is there is newer`,
    );
  }
  yield* note(buried, (before, now) => ({ ...before, forgotten: now }));
  if (count.pruned > 0) {
    yield* say(
      "info",
      line`${count.pruned} archives were pruned by the rules of the server's owner`,
    );
  }
  if (count.unsigned > 0) {
    yield* say(
      "warning",
      line`${count.unsigned} archives are not signed by any dom0: whoever had the ssh key can have made them`,
    );
  }
  if (count.foreign > 0) {
    yield* say(
      "warning",
      line`${count.foreign} archives are signed by another key than ${own === undefined ? "this dom0, which has none yet" : "this dom0's"}`,
    );
    yield* say(
      "hint",
      "another dom0 may use this store; a key of this one that was lost comes back from paper: qbackup key import",
    );
  }
  if (through.length > 0) {
    yield* say(
      "warning",
      line`${through.length} of the unknown archives the ledger has as sent through ${some([...new Set(through)])}`,
    );
    yield* say("hint", line`${goBackTo(through)}`);
  } else if (known.size === 0 && count.unknown + count.foreign > 0) {
    yield* say(
      "warning",
      line`the ledger in ${(yield* Ledger).place} has nothing that went through ${destination}: it is new here, or was lost`,
    );
    yield* say(
      "hint",
      line`bring back its copy; or, if it was lost, qbackup ledger rebuild -t ${destination}`,
    );
  }
  if (count.alarms + lost.length > 0) {
    return yield* failed(
      "integrity",
      "not every archive of the ledger is there, and sound",
      count.missing > 0
        ? "what was removed there on purpose: qbackup ledger forget NAME..."
        : "see each warning above; qbackup verify NAME reads an archive back",
    );
  }
  if (!sound) return yield* unsound;
}, Effect.scoped);

export const listCommand = command({
  name: "list",
  summary: "what the server has, held against the ledger in dom0",
  about: `Shows what the server says it has, held against the ledger in dom0: archives
whose names begin with PREFIX, or all. PROOF is one of:

  proven      the ledger has the server's signed receipt for this content, and
              it was read back: READ BACK says when
  receipt     the ledger has that receipt, but nothing of it was read back yet
  rebuilt     so it has, but it took it from the server after a loss: the
              server's word
  unknown     signed by this dom0, but this ledger never heard of it
  foreign     signed by another key than this dom0's
  unsigned    signed by nobody: an archive of the old scripts
  changed     the ledger has this name with something else
  damaged     something else came back when it was last read, a member did not
              decrypt (verify, audit, restore), or the server found it so
  missing     the ledger has it, the server does not
  pruned      the server has signed that its owner let it go by a rule, which no
              program here does yet

READ BACK: when the archive was read in full, or how many of its blocks were
sampled; of two days, the first is the oldest reading. "failed" and a day where
it could not be read since then. What the server says it has, it may have lost
all the same: verify and audit find that. What was pruned is only counted, but
for the newest of a series and what had less than a week: those are alarms.`,
  flags: {
    to,
    keepRunning,
    json,
    alarmAfter,
    receipts: {
      type: "switch",
      help: "fetch every receipt too, and hold it against the ledger's (a call for each archive)",
    },
  },
  args: { prefix: { label: "PREFIX", least: 0, most: 1 } },
  exits: {
    qubes: "the destination qube could not be started",
    link: "the link failed",
    refused: "the server refused",
    integrity: "an archive is changed, damaged or missing, or the ledger is damaged",
  },
  run: list,
});
