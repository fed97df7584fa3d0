/** The ledger itself: its head for paper, the paper held against it, and how a lost one is rebuilt. */
import { Effect } from "effect";
import { KnownServers } from "#services/KnownServers";
import { type Entry, Ledger, type Line } from "#services/Ledger";
import { Reporter } from "#services/Reporter";
import { Signer } from "#services/Signer";
import { fingerprint } from "#src/proof/keys";
import type { Members } from "#src/proof/members";
import { type Manifest, parseManifest } from "#src/proof/texts";
import type { PublicKey } from "#src/wire/names";
import { line } from "#src/say/shown";
import { command } from "#src/dom0/cli/command";
import { awaiting } from "#src/dom0/cli/view";
import { destinationFor, startDestination, takeLock } from "#src/dom0/qube/destination";
import { failed, type RunFailed } from "#src/dom0/failure";
import { expectServer, keepRunning, to } from "#src/dom0/cli/flags";
import { fromPaper, onPaper } from "#src/dom0/books/head";
import { elsewhere, goBackTo, looked, some, unsound } from "#src/dom0/books/known";
import { note } from "#src/dom0/books/noted";
import { readPruned } from "#src/dom0/books/pruned";
import { checkReceipt } from "#src/dom0/books/record";
import { inLedger } from "#src/dom0/books/unusable";
import { openFar, trustedBy, wantOf } from "#src/dom0/far/fetch";
import { type Archive, fetchRecord, listArchives, type Vouched } from "#src/dom0/far/remote";
import { checkFingerprint, checkServer } from "#src/dom0/far/server";
import { newSession } from "#src/dom0/far/upload";
import { print } from "#src/dom0/cli/print";
import { checkList } from "#src/dom0/tool/structure";

export interface LedgerOptions {
  readonly to: string | undefined;
  readonly keepRunning: boolean;
  /** A fingerprint, in hex. */
  readonly expectServer: string | undefined;
}

const minute = (instant: string): string => `${instant.slice(0, 16).replace("T", " ")} UTC`;

const describe = ({ entry, number }: Line): string =>
  `line ${number}, ${minute(entry.finished)}, ${entry.name}`;

const head = Effect.gen(function* () {
  // A head on paper would vouch for what was lost.
  const { lines, sound } = yield* looked;
  if (!sound) return yield* unsound;
  const last = lines.at(-1);
  if (last === undefined)
    return yield* failed(
      "usage",
      "the ledger is empty: it has no head",
      "the first backup begins it; one that was lost comes back with qbackup ledger rebuild",
    );
  yield* print(`${onPaper(last.number, last.hash)}\n${describe(last)}\n`);
});

const check = Effect.fnUntraced(function* (text: string) {
  const { say } = yield* Reporter;
  const paper = fromPaper(text);
  if (paper === undefined) {
    return yield* failed(
      "usage",
      "that is no head of a ledger, or a sign of it is wrong",
      "as qbackup ledger head prints it: a number and six groups of four",
    );
  }
  const { damaged, lines, unlinked } = yield* inLedger((yield* Ledger).chain);
  const last = lines.at(-1)?.number ?? 0;
  const unlike = (what: string) =>
    failed(
      "integrity",
      what,
      "the ledger was cut short, changed or exchanged since, or rebuilt; the paper can be of another machine too",
    );
  const there = lines.find(({ hash }) => hash.startsWith(paper.hash));
  if (there === undefined) {
    return yield* paper.line > last
      ? unlike(`the paper has line ${paper.line}, but the ledger ends with line ${last}`)
      : unlike(`line ${paper.line} of the ledger is not the one on paper`);
  }
  if (there.number !== paper.line) {
    return yield* unlike(`line ${paper.line} of the paper is line ${there.number} of the ledger`);
  }
  const broken = [...damaged, ...unlinked].sort((a, b) => a - b);
  const [before] = broken.filter((number) => number <= paper.line);
  if (before !== undefined) {
    return yield* unlike(`the paper's line is there, but line ${before}, before it, is not sound`);
  }
  if (broken.length > 0) {
    yield* say("warning", line`not sound, since the paper was written: lines ${some(broken)}`);
  }
  const since = lines.filter(({ number }) => number > paper.line).length;
  yield* print(`on paper: ${describe(there)}\nunchanged up to there; ${since} lines since\n`);
  if (broken.length > 0) {
    return yield* failed("integrity", "the ledger was damaged or changed after that line");
  }
});

/** What was learnt from the server about an archive, as a line that says so. */
const entryOf = (
  { manifest, manifestSignature, manifestText, receipt, receiptText, signature }: Vouched,
  list: Members,
  destination: string,
): Omit<Entry, "version" | "previous"> => {
  const ids = new Set<string>();
  for (let i = 0; i < list.count; i++) {
    const [id, file] = list.at(i).path.split("/");
    if (file !== undefined) ids.add(id!);
  }
  const qubes = [...ids].flatMap((id) => {
    if (id === "dom0-home") return [{ name: "dom0", qid: 0 }];
    const qid = /^vm([1-9][0-9]{0,9})$/.exec(id)?.[1];
    return qid === undefined ? [] : [{ name: id, qid: Number(qid) }];
  });
  return {
    name: manifest.name,
    session: manifest.session,
    destination,
    server: manifest.server,
    asked: { qubes: [], includeDom0: ids.has("dom0-home"), prefix: prefixOf(manifest) },
    qubes,
    manifest: manifestText,
    signature: manifestSignature,
    finished: receipt.stored,
    receipt: receiptText,
    receiptSignature: signature,
    rebuilt: true,
  };
};

/** What stands before the time in a name that qbackup made. */
const prefixOf = ({ name }: Manifest): string =>
  /^(.*)\d{4}-\d{2}-\d{2}T\d{4}(?:-[0-9a-f]{6})?\.backup$/.exec(name)?.[1] ?? name;

/**
 * The archives that are in the ledger already: sessions, and the names that are theirs. A line whose
 * own receipt does not hold was changed: it counts as lost.
 */
const inThere = Effect.fnUntraced(function* (destination: string) {
  const { damaged, unlinked } = yield* inLedger((yield* Ledger).chain);
  if (damaged.length + unlinked.length > 0) {
    const kept = yield* inLedger((yield* Ledger).mend);
    yield* (yield* Reporter).say(
      "warning",
      line`the ledger was damaged or changed (lines ${some([...new Set([...damaged, ...unlinked])].sort((a, b) => a - b))}): what can be read of it is linked anew; as it was, it is kept in ${kept}`,
    );
  }
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const sessions = new Set<string>();
  const names = new Map<string, Manifest>();
  for (const entry of entries) {
    const { manifest: text, name, receipt, receiptSignature, server, session } = entry;
    const manifest = parseManifest(text);
    const holds = yield* checkReceipt({ receipt, signature: receiptSignature }, server, text).pipe(
      Effect.as(true),
      Effect.orElseSucceed(() => false),
    );
    if (manifest === undefined || !holds) continue;
    sessions.add(session);
    if (entry.destination === destination) names.set(name, manifest);
  }
  return { sessions, names };
});

/** Names that are told one by one; of more, how many. */
const toldMost = 20;

/** Says `NAME WHAT` for the first of them, and how many more there were. */
const teller = (what: string) => {
  let count = 0;
  return {
    see: Effect.fnUntraced(function* (name: string) {
      count += 1;
      if (count <= toldMost) yield* (yield* Reporter).say("warning", line`${name} ${what}`);
    }),
    finish: Effect.gen(function* () {
      if (count <= toldMost) return;
      yield* (yield* Reporter).say("warning", line`${count - toldMost} more ${what}`);
    }),
  };
};

/** Which runs of each series there is something of: what is between them failed, or was left out. */
const seriesSeen = () => {
  const runs = new Map<string, Set<number>>();
  return {
    see: ({ run, series }: Pick<Manifest, "run" | "series">): void => {
      const seen = runs.get(series) ?? new Set();
      runs.set(series, seen.add(run));
    },
    /** `3, 5-7`, by series. */
    gaps: (): ReadonlyArray<readonly [series: string, gaps: string]> =>
      [...runs].flatMap(([series, seen]) => {
        const sorted = [...seen].sort((a, b) => a - b);
        const gaps = sorted.flatMap((run, i) => {
          const [from, to] = [(sorted[i - 1] ?? run - 1) + 1, run - 1];
          return from > to ? [] : [from === to ? `${from}` : `${from}-${to}`];
        });
        return gaps.length === 0 ? [] : [[series, some(gaps)] as const];
      }),
  };
};

/**
 * What the headers say of archives that dom0 signed: Qubes' own tool gives each its own backup-id, and a
 * series of slots has one for as long as its chain. It tells what the archives cannot be told by.
 */
const backupIds = () => {
  const plain = new Map<string, string>();
  const chains = new Map<string, { readonly id: string; readonly name: string }>();
  return ({ format, name, series }: Manifest, id: string): string | undefined => {
    if (format === "slots") {
      const before = chains.get(series);
      chains.set(series, { id, name });
      return before === undefined || before.id === id
        ? undefined
        : `has another backup-id than ${before.name}: a new chain began between them`;
    }
    const other = plain.get(id);
    plain.set(id, name);
    return other === undefined ? undefined : `has the backup-id of ${other}: one is a copy`;
  };
};

/** The backup-id in an archive's first member, which has all of its header in its first block. */
const backupIdIn = (block: Uint8Array): string | undefined =>
  /^backup-id=([0-9]{8}T[0-9]{6}-[0-9]{1,10})$/m.exec(Buffer.from(block).toString("latin1"))?.[1];

const callsAtOnce = 4;

/** The key that was lost, without which nobody's archives can be told from this dom0's. */
const ownKey = Effect.gen(function* () {
  const own = yield* inLedger((yield* Signer).existing);
  if (own !== undefined) return own;
  return yield* failed(
    "usage",
    "the key that signs backups is not here, so no archive can be told to be of this dom0",
    `bring it back from paper: qbackup key import; or from a copy of ${(yield* Ledger).place}, its signing_key and series_key`,
  );
});

/** Whether a key is that of the server that is meant: the pinned one, or the one that is expected. */
const serverOf = Effect.fnUntraced(function* (destination: string, given: string | undefined) {
  yield* checkFingerprint(given);
  const expected = given?.toLowerCase();
  const pinned = yield* inLedger((yield* KnownServers).pinned(destination));
  if (pinned === undefined && expected === undefined) {
    return yield* failed(
      "usage",
      `no server is known behind ${destination}, and its word is all that there would be`,
      "qbackup ledger rebuild --expect-server FINGERPRINT: the recovery sheet has it",
    );
  }
  if (pinned !== undefined && expected !== undefined && fingerprint(pinned) !== expected) {
    return yield* failed(
      "integrity",
      `the server behind ${destination} has the key fingerprint ${fingerprint(pinned)}, and ${expected} was expected`,
    );
  }
  return (key: PublicKey) =>
    pinned === undefined ? fingerprint(key) === expected : key === pinned;
});

const rebuild = Effect.fnUntraced(function* (options: LedgerOptions) {
  const { progress, say } = yield* Reporter;
  const ledger = yield* Ledger;
  const destination = yield* destinationFor(options.to);
  const own = yield* ownKey;
  const isServer = yield* serverOf(destination, options.expectServer);
  yield* takeLock;
  const session = yield* newSession;
  yield* awaiting(line`waiting for ${destination} to start`);
  yield* startDestination({ destination, session, keepRunning: options.keepRunning });
  yield* awaiting(line`waiting for the server`);

  const { names, sessions: there } = yield* inThere(destination);
  const far = yield* openFar(destination);
  const runs = seriesSeen();
  for (const manifest of names.values()) runs.see(manifest);
  const idOf = backupIds();
  const unsigned = teller("is not taken into the ledger: no dom0 has signed it");
  const foreign = teller("is not taken into the ledger: another dom0 has signed it");
  const count = { added: 0, known: 0, refused: 0 };
  const others = yield* elsewhere(destination);
  /** The qubes through which those were sent that are here, and known as sent through another one. */
  const through: Array<string> = [];

  /** What speaks against what the server says of one; undefined when it is in the ledger now. */
  const take = Effect.fnUntraced(function* (archive: Archive, vouched: Vouched | undefined) {
    if (vouched === undefined) return "nothing was signed for it";
    const { manifest } = vouched;
    if (!isServer(manifest.server)) return "another server's key signed it";
    if (manifest.signer !== own) return "another dom0 has signed it";
    if (
      (["session", "series", "run", "size", "members", "root"] as const).some(
        (field) => archive[field] !== manifest[field],
      )
    ) {
      return "list and manifest differ";
    }
    if (there.has(manifest.session)) {
      const other = others.get(manifest.session);
      if (other !== undefined) through.push(other);
      count.known += 1;
      return undefined;
    }
    // Or a server could have its own archive take the place of one that is known.
    if (names.has(archive.name)) return "the ledger has another archive under that name";
    const trusted = trustedBy(manifest, destination);
    const list = yield* far.members(trusted);
    yield* checkList(trusted, list);
    let id: string | undefined;
    yield* far.blocks([wantOf(list.at(0), 0, 1)], (_want, _block, bytes) =>
      Effect.sync(() => void (id = backupIdIn(bytes))),
    );
    if (id === undefined) return "its header has no backup-id";
    const odd = idOf(manifest, id);
    if (odd !== undefined) yield* say("warning", line`${archive.name} ${odd}`);
    yield* checkServer(destination, manifest.server);
    yield* inLedger(ledger.append(entryOf(vouched, list, destination)));
    there.add(manifest.session);
    names.set(archive.name, manifest);
    runs.see(manifest);
    count.added += 1;
    return undefined;
  });
  /** What only concerns this archive is no reason to leave out the others. */
  const reasons = <A, R>(effect: Effect.Effect<A, RunFailed, R>) =>
    effect.pipe(
      Effect.map((value) => ({ value, reason: undefined })),
      Effect.catchIf(
        ({ about, exit }) => about !== "carrier" && (exit === "integrity" || exit === "refused"),
        ({ message }) => Effect.succeed({ value: undefined, reason: message }),
      ),
    );
  const refuse = Effect.fnUntraced(function* (name: string, why: string) {
    count.refused += 1;
    yield* say("warning", line`${name} is not taken into the ledger: ${why}`);
  });
  const takeAll = Effect.fnUntraced(function* (archives: ReadonlyArray<Archive>) {
    // A few records at a time: a call is mostly waiting. Added in the order in which they were stored.
    for (let at = 0; at < archives.length; at += callsAtOnce) {
      const those = archives.slice(at, at + callsAtOnce);
      const records = yield* Effect.forEach(
        those,
        ({ name }) => reasons(fetchRecord(destination, name)),
        { concurrency: callsAtOnce },
      );
      for (const [i, { reason, value }] of records.entries()) {
        const archive = those[i]!;
        yield* progress({ doing: line`reading ${archive.name}`, bytes: 0 });
        const taken = reason === undefined ? yield* reasons(take(archive, value)) : { reason };
        const why = taken.reason ?? ("value" in taken ? taken.value : undefined);
        if (why !== undefined) yield* refuse(archive.name, why);
      }
    }
  });

  yield* listArchives(
    destination,
    undefined,
    Effect.fnUntraced(function* (page) {
      const unknown: Array<Archive> = [];
      for (const { archive } of page) {
        if (archive === undefined) continue;
        const { name, root, signer, size } = archive;
        const mine = names.get(name);
        if (signer === null) yield* unsigned.see(name);
        else if (signer !== own) yield* foreign.see(name);
        else if (mine?.size === size && mine.root === root) count.known += 1;
        else unknown.push(archive);
      }
      unknown.sort((a, b) => Date.parse(a.stored) - Date.parse(b.stored));
      yield* takeAll(unknown);
      // Of the first page the server is known by now, if anything on it is this dom0's.
      const server = yield* inLedger((yield* KnownServers).pinned(destination));
      for (const said of page.flatMap(({ pruned }) => pruned)) {
        const tombstone = server && readPruned(said, server);
        if (tombstone?.signer === own) runs.see(tombstone);
      }
    }),
  );
  yield* unsigned.finish;
  yield* foreign.finish;
  yield* print(
    `${count.added} lines added, marked as rebuilt; ${count.known} archives were in the ledger already\n`,
  );
  if (through.length > 0) {
    yield* say(
      "warning",
      line`${through.length} of them the ledger has as sent through ${some([...new Set(through)])}, and so not for ${destination}`,
    );
    yield* say("hint", line`${goBackTo(through)}`);
  }
  for (const [series, gaps] of runs.gaps()) {
    yield* say(
      "warning",
      line`of the series ${series} nothing is there of the runs ${gaps}: they failed, or were removed`,
    );
  }
  if (count.added > 0) {
    yield* say(
      "warning",
      "what the new lines say, dom0 has signed; that they are all, and the newest, is the server's word",
    );
    yield* say("hint", "now write the new head on paper: qbackup ledger head");
  }
  if (count.refused > 0) {
    return yield* failed("integrity", `${count.refused} archives are not taken into the ledger`);
  }
}, Effect.scoped);

const forget = Effect.fnUntraced(function* (options: LedgerOptions, names: ReadonlyArray<string>) {
  const ledger = yield* Ledger;
  const { entries } = yield* inLedger(ledger.entries);
  const destination = yield* destinationFor(options.to);
  const sessions = names.map((name) =>
    entries.findLast((entry) => entry.name === name && entry.destination === destination),
  );
  const known = sessions.flatMap((entry) => (entry === undefined ? [] : [entry.session]));
  if (names.length === 0 || known.length < names.length) {
    return yield* failed(
      "usage",
      `the ledger does not know all of these names behind ${destination}`,
      "qbackup list shows the names",
    );
  }
  yield* note(known, (before, now) => ({ ...before, forgotten: now }));
  yield* print(`${known.length} archives are missed no more once they are gone\n`);
});

export const ledgerCommand = command({
  name: "ledger",
  summary: "the record in dom0: its head for paper, and what mends it",
  about: `The ledger in dom0 has a line for each finished run, each linked to the one
before. What "rebuild" adds is marked: it is the server's word.`,
  flags: { to, keepRunning, expectServer },
  args: { words: { label: "WORDS", least: 0, most: Infinity } },
  actions: {
    head: { words: "", help: "the ledger's last line in a few letters, to be written on paper" },
    check: {
      words: "HEAD",
      help: "is the line on paper still where it was, and everything before it?",
    },
    rebuild: {
      words: "",
      help: "add what dom0 signed, the server has and the ledger does not: after a loss of the ledger. Of a damaged ledger it keeps what can be read",
    },
    forget: {
      words: "NAME...",
      help: "these archives were removed from the server on purpose: list and audit do not miss them",
    },
  },
  exits: {
    qubes: "the destination qube could not be started (rebuild)",
    link: "the link failed (rebuild)",
    refused: "the server refused (rebuild)",
    integrity: "the ledger is not what is on paper, or the server's records contradict it",
    locked: "another run is under way (rebuild)",
  },
  run: ({ action, words, ...options }) =>
    Effect.gen(function* () {
      switch (action) {
        case "head":
          return yield* head;
        case "check":
          return yield* check(words.join(" "));
        case "rebuild":
          return yield* rebuild(options);
        case "forget":
          return yield* forget(options, words);
      }
    }),
});
