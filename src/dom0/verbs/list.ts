/** What lies on the server, held against dom0's own ledger. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { type Audit, Ledger } from "#services/Ledger";
import { Reporter } from "#services/Reporter";
import { humanSize, localMinute } from "#src/say/format";
import { blockSize } from "#src/wire/frames";
import { parseReceipt } from "#src/proof/manifest";
import { isPrefix, type Prefix } from "#src/wire/names";
import { line, printable } from "#src/say/shown";
import { command } from "#src/dom0/cli/command";
import { alarmAfterFor, destinationFor } from "#src/dom0/qube/destination";
import { failed } from "#src/dom0/failure";
import { alarmAfter, json, keepRunning, to } from "#src/dom0/cli/flags";
import { type Known, knownArchives, unsound } from "#src/dom0/books/known";
import { alarmUnread } from "#src/dom0/books/noted";
import { inLedger } from "#src/dom0/books/record";
import {
  type Archive,
  fetchRecord,
  listArchives,
  recordDiffers,
  withinADay,
} from "#src/dom0/far/remote";
import { columns, print, visit } from "#src/dom0/qube/visit";

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

/**
 * proven: the ledger has the server's receipt for this content. rebuilt: it has, but took it from the
 * server after a loss. unknown: the server calls it verified, but this ledger has never heard of it.
 * unverified: nobody vouches for it. changed: the ledger has the name, with something else. damaged:
 * something else came back when it was last read. missing: the ledger has it, the server does not.
 */
type Proof = "proven" | "rebuilt" | "unknown" | "unverified" | "changed" | "damaged" | "missing";
const alarming: ReadonlySet<Proof> = new Set(["changed", "damaged", "missing"]);

interface Row {
  readonly name: string;
  readonly stored: string;
  readonly size: number;
  readonly treehash: string | null;
  readonly proof: Proof;
  /** Why it is not proven, where that can be said. */
  readonly note?: string;
  readonly qubes: ReadonlyArray<string>;
  /** When it was last read back from here: all of it, or so many blocks of it. */
  readonly verified?: string;
  readonly audited?: { readonly at: string; readonly blocks: number };
  /** Since when it could not be read back. */
  readonly unread?: string;
}

const readBack = ({ sampled, unread, whole }: Audit) => ({
  ...(unread === undefined ? {} : { unread }),
  ...(whole === undefined ? {} : { verified: whole }),
  ...(sampled === undefined ? {} : { audited: sampled }),
});

/** What the server's line says against an archive of the ledger; undefined when nothing. */
const differs = (
  archive: Archive,
  { entry, manifest }: Known,
  known: ReadonlyMap<string, Known>,
): string | undefined => {
  // It has not changed its mind about the content: it knows nothing of it.
  if (archive.treehash === null && archive.size === manifest.size) {
    return "the server has lost its record";
  }
  if (archive.treehash !== manifest.treehash || archive.size !== manifest.size) {
    const other = [...known.values()].find(
      (one) => one.manifest.treehash === archive.treehash && one.manifest.size === archive.size,
    );
    return other === undefined ? "other content" : `the content of ${other.entry.name}`;
  }
  if (!archive.verified) return "the server has lost its receipt, or the key that signed it";
  return parseReceipt(entry.receipt)?.stored === archive.stored
    ? undefined
    : "another receipt: it was stored again";
};

const rowOf = (
  archive: Archive,
  mine: Known | undefined,
  known: ReadonlyMap<string, Known>,
): Row => {
  const { name, size, stored, treehash } = archive;
  const said = { name, stored, size, treehash };
  if (mine === undefined) {
    return { ...said, proof: archive.verified ? "unknown" : "unverified", qubes: [] };
  }
  const both = { ...said, qubes: mine.entry.qubes.map((qube) => qube.name) };
  const note = differs(archive, mine, known);
  if (note !== undefined) return { ...both, proof: "changed", note };
  const checked = { ...both, ...readBack(mine.audit) };
  const { failed: changed, undecryptable } = mine.audit;
  if (changed !== undefined) {
    return { ...checked, proof: "damaged", note: `read back as something else on ${day(changed)}` };
  }
  if (undecryptable !== undefined) {
    const note = `a member did not decrypt on ${day(undecryptable)}: back up again`;
    return { ...checked, proof: "damaged", note };
  }
  return { ...checked, proof: mine.entry.rebuilt === true ? "rebuilt" : "proven" };
};

/** What the server's receipt gives away; undefined when nothing. */
const receiptOf = Effect.fnUntraced(function* (
  destination: string,
  { name }: Archive,
  mine: Known | undefined,
) {
  if (mine !== undefined) return yield* recordDiffers(destination, mine.entry);
  const pinned = yield* inLedger((yield* Ledger).pinned(destination));
  return yield* fetchRecord(destination, name).pipe(
    Effect.map((theirs) => {
      if (theirs === undefined) return "the server has no receipt for it";
      return pinned !== undefined && theirs.manifest.server !== pinned
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

/** `failed 2026-01-31`: not since then. `2026-01-31`: all of it then; `2026-01-31 12/459`: so many of its blocks. */
const lastRead = ({ audited, size, unread, verified }: Row): string =>
  unread !== undefined
    ? `failed ${day(unread)}`
    : audited !== undefined && (verified === undefined || verified < audited.at)
      ? `${day(audited.at)} ${audited.blocks}/${Math.ceil(size / blockSize)}`
      : verified === undefined
        ? "-"
        : day(verified);

/** After a rebuild only the qubes' numbers in the archive are known, which a restore does not take. */
const qubesOf = ({ proof, qubes }: Row): string =>
  proof === "rebuilt" ? `${qubes.length} qubes` : printable(qubes.join(" "), 60);

/** A line for each; on a terminal that is too narrow for that, two. */
const table = (rows: ReadonlyArray<Row>, width = Infinity): string => {
  const [head, ...cells] = [
    ["NAME", "STORED", "SIZE", "PROOF", "READ BACK", "QUBES"],
    ...rows.map((row) => [
      row.name,
      localMinute(row.stored),
      humanSize(row.size),
      row.proof,
      lastRead(row),
      qubesOf(row),
    ]),
  ];
  const whole = columns([head!, ...cells]);
  if (whole.split("\n").every((text) => text.length <= width)) return whole;
  const details = columns([head!, ...cells].map(([, ...rest]) => ["", ...rest])).split("\n");
  return [head!, ...cells].map(([name], i) => `${name}\n${details[i]!.slice(0, width)}\n`).join("");
};

export const list = Effect.fnUntraced(function* (options: ListOptions) {
  if (options.prefix !== undefined && options.prefix !== "" && !isPrefix(options.prefix)) {
    return yield* failed("usage", "not a valid archive name prefix");
  }
  const destination = yield* destinationFor(options.to);
  const alarm = alarmUnread(destination, yield* alarmAfterFor(options.alarmAfter));
  yield* alarm(theList(options, destination));
});

const theList = Effect.fnUntraced(function* (options: ListOptions, destination: string) {
  const { prefix = "" } = options;
  const { say } = yield* Reporter;

  yield* visit({ destination, keepRunning: options.keepRunning });
  const archives = yield* listArchives(destination, prefix === "" ? undefined : (prefix as Prefix));
  const { known, sound } = yield* knownArchives(destination);
  const rows = yield* Effect.forEach(
    archives,
    (archive) =>
      Effect.gen(function* () {
        const mine = known.get(archive.name);
        const row = rowOf(archive, mine, known);
        if (!options.receipts || row.proof === "changed" || row.proof === "unverified") return row;
        const note = yield* receiptOf(destination, archive, mine);
        return note === undefined ? row : ({ ...row, proof: "changed", note } satisfies Row);
      }),
    { concurrency: 4 },
  ).pipe(withinADay);
  const there = new Set(archives.map(({ name }) => name as string));
  const missing = [...known.values()]
    .filter(({ audit, entry }) => !there.has(entry.name) && audit.forgotten === undefined)
    .filter(({ entry }) => entry.name.startsWith(prefix))
    .map(({ audit, entry, manifest }): Row => ({
      name: entry.name,
      stored: entry.finished,
      size: manifest.size,
      treehash: manifest.treehash,
      proof: "missing",
      note: "the server does not list it any more",
      qubes: entry.qubes.map((qube) => qube.name),
      ...readBack(audit),
    }));
  const all = [...rows, ...missing].sort((a, b) => (a.name < b.name ? -1 : 1));
  const width = (yield* Invocation).columns;
  yield* print(options.json ? `${JSON.stringify(all, undefined, 2)}\n` : table(all, width));
  if (all.length === 0 && prefix !== "") {
    return yield* failed(
      "usage",
      `no archive on the server has a name that begins with ${prefix}`,
      "qbackup list shows all names",
    );
  }
  if (known.size === 0 && all.some(({ proof }) => proof === "unknown")) {
    yield* say(
      "warning",
      line`the ledger in ${(yield* Ledger).place} has nothing that went through ${destination}: it is new here, or was lost`,
    );
    yield* say(
      "hint",
      line`bring back its copy; or, if it was lost, qbackup ledger rebuild -t ${destination}`,
    );
  }
  for (const { name, note, proof } of all) {
    if (note !== undefined) yield* say("warning", line`${name} is ${proof}: ${note}`);
  }
  for (const { name, unread } of all) {
    if (unread !== undefined) {
      yield* say("warning", line`${name} could not be read back since ${day(unread)}`);
    }
  }
  if (all.some(({ proof }) => alarming.has(proof))) {
    return yield* failed(
      "integrity",
      "the server does not hold all that the ledger says it does",
      missing.length > 0
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

  proven      the ledger has the server's signed receipt for this content
  rebuilt     so it has, but it took it from the server after a loss: the
              server's word
  unknown     the server calls it verified, but this ledger never heard of it
  unverified  nobody vouches for it: an archive of the old scripts
  changed     the ledger has this name with something else
  damaged     something else came back when it was last read, or a member did
              not decrypt (verify, audit, restore)
  missing     the ledger has it, the server does not

READ BACK: when the archive was last read in full, or how many of its blocks
were sampled; "failed" and a day where it could not be read since then. What the
server says it has, it may have lost all the same: verify and audit find that.`,
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
