/** The ledger itself: its head for paper, the paper held against it, and how a lost one is rebuilt. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { type Entry, Ledger, type Line } from "#services/Ledger";
import { Reporter } from "#services/Reporter";
import { type Manifest, parseReceipt } from "#src/proof/manifest";
import type { Session } from "#src/wire/names";
import { line } from "#src/say/shown";
import { command } from "#src/dom0/cli/command";
import { destinationFor, startDestination, takeLock } from "#src/dom0/qube/destination";
import { failed } from "#src/dom0/failure";
import { keepRunning, to } from "#src/dom0/cli/flags";
import { fromPaper } from "#src/dom0/books/head";
import { looked, unsound } from "#src/dom0/books/known";
import { note } from "#src/dom0/books/noted";
import { checkReceipt, currentHead, inLedger } from "#src/dom0/books/record";
import {
  type Archive,
  fetchRecord,
  listArchives,
  type Vouched,
  withinADay,
} from "#src/dom0/far/remote";
import { checkServer } from "#src/dom0/far/upload";
import { print } from "#src/dom0/qube/visit";

export interface LedgerOptions {
  readonly to: string | undefined;
  readonly keepRunning: boolean;
}

const minute = (instant: string): string => `${instant.slice(0, 16).replace("T", " ")} UTC`;

const describe = ({ entry, number }: Line): string =>
  `line ${number}, ${minute(entry.finished)}, ${entry.name}`;

const head = Effect.gen(function* () {
  // A head on paper would vouch for what was lost.
  if (!(yield* looked).sound) return yield* unsound;
  const current = yield* currentHead;
  if (current === undefined) return yield* failed("usage", "the ledger is empty: it has no head");
  yield* print(`${current.head}\n${describe(current.last)}\n`);
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
    yield* say("warning", line`not sound, since the paper was written: lines ${broken.join(", ")}`);
  }
  const since = lines.filter(({ number }) => number > paper.line).length;
  yield* print(`on paper: ${describe(there)}\nunchanged up to there; ${since} lines since\n`);
  if (broken.length > 0) {
    return yield* failed("integrity", "the ledger was damaged or changed after that line");
  }
});

/** What was learnt from the server about an archive, as a line that says so. */
const entryOf = (
  { manifest, manifestText, receipt, receiptText, signature }: Vouched,
  destination: string,
): Omit<Entry, "version" | "previous"> => {
  const ids = new Set(manifest.members.slice(3).map(({ path }) => path.split("/")[0]!));
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
    receipt: receiptText,
    signature,
    finished: receipt.stored,
    rebuilt: true,
  };
};

/** What stands before the time in a name that qbackup made. */
const prefixOf = ({ name }: Manifest): string =>
  /^(.*)\d{4}-\d{2}-\d{2}T\d{4}\.backup(?:-[0-9a-f]{6})?$/.exec(name)?.[1] ?? name;

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
      line`the ledger was damaged or changed (lines ${[...new Set([...damaged, ...unlinked])].sort((a, b) => a - b).join(", ")}): what can be read of it is linked anew; as it was, it is kept in ${kept}`,
    );
  }
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const sessions = new Set<string>();
  const names = new Map<string, Pick<Manifest, "size" | "treehash">>();
  for (const {
    destination: through,
    manifest,
    name,
    receipt,
    server,
    session,
    signature,
  } of entries) {
    const holds = yield* checkReceipt({ receipt, signature }, server, manifest).pipe(
      Effect.as(parseReceipt(receipt)),
      Effect.orElseSucceed(() => undefined),
    );
    if (holds === undefined) continue;
    sessions.add(session);
    if (through === destination) names.set(name, holds);
  }
  return { sessions, names };
});

/** Bytes of lines that one rebuilding adds at most: the ledger itself takes no more than 256 MiB. */
const addedLimit = 134_217_728;
const callsAtOnce = 4;

const rebuild = Effect.fnUntraced(function* (options: LedgerOptions) {
  const { say } = yield* Reporter;
  const ledger = yield* Ledger;
  const destination = yield* destinationFor(options.to);
  yield* takeLock;
  const session = Buffer.from((yield* Invocation).entropy(16)).toString("hex") as Session;
  yield* startDestination({ destination, session, keepRunning: options.keepRunning });

  const listed = yield* listArchives(destination, undefined);
  const archives = listed.filter(({ verified }) => verified);
  archives.sort((a, b) => (a.stored < b.stored ? -1 : 1));
  const { names, sessions: there } = yield* inThere(destination);
  // The key that signed last is the server's present one, so that is the one to pin, if none is.
  const newest = archives.at(-1);
  if (newest !== undefined && (yield* inLedger(ledger.pinned(destination))) === undefined) {
    const vouched = yield* fetchRecord(destination, newest.name);
    if (vouched !== undefined) yield* checkServer(destination, vouched.manifest.server);
  }
  const pinned = yield* inLedger(ledger.pinned(destination));
  let added = 0;
  let bytes = 0;
  let refused = 0;
  /** What speaks against what the server says of one; undefined when it is in the ledger, now or before. */
  const take = Effect.fnUntraced(function* ({ name, size, treehash }: Archive, vouched?: Vouched) {
    if (vouched === undefined) return "it has no receipt";
    const { manifest, manifestText } = vouched;
    if (manifest.server !== pinned) return "another key signed it";
    if (manifest.size !== size || manifest.treehash !== treehash) return "list and receipt differ";
    if (there.has(manifest.session)) return undefined;
    // Or a server could have its own archive take the place of one that is known.
    if (names.has(name)) return "the ledger has another archive under that name";
    bytes += manifestText.length;
    if (bytes > addedLimit) {
      return yield* failed("integrity", "the server has more manifests than a ledger can hold");
    }
    there.add(manifest.session);
    added += 1;
    yield* inLedger(ledger.append(entryOf(vouched, destination)));
    return undefined;
  });
  const fetched = (archive: Archive) =>
    fetchRecord(destination, archive.name).pipe(
      Effect.map((vouched) => ({ archive, vouched, reason: undefined })),
      Effect.catchIf(
        ({ exit }) => exit === "integrity" || exit === "refused",
        ({ message }) => Effect.succeed({ archive, vouched: undefined, reason: message }),
      ),
    );
  const unknown = archives.filter(({ name, size, treehash }) => {
    const known = names.get(name);
    return known === undefined || known.size !== size || known.treehash !== treehash;
  });
  yield* withinADay(
    Effect.gen(function* () {
      // A few at a time: a call is mostly waiting. Added in their order.
      for (let at = 0; at < unknown.length; at += callsAtOnce) {
        const some = unknown.slice(at, at + callsAtOnce);
        const records = yield* Effect.forEach(some, fetched, { concurrency: callsAtOnce });
        for (const { archive, reason, vouched } of records) {
          const why = reason ?? (yield* take(archive, vouched));
          if (why === undefined) continue;
          refused += 1;
          yield* say("warning", line`${archive.name} is not taken into the ledger: ${why}`);
        }
      }
    }),
  );
  const silent = listed.length - archives.length;
  yield* print(
    `${added} lines added, marked as rebuilt; ${archives.length - added - refused} archives were in the ledger already\n`,
  );
  if (silent > 0)
    yield* say("warning", line`${silent} archives have no receipt: they are listed as unverified`);
  if (added > 0) {
    yield* say(
      "warning",
      "what the new lines say is the server's word. No longer proven: that nothing was removed or put back before today, and that these archives are what dom0 sent",
    );
    yield* say("hint", "now write the new head on paper: qbackup ledger head");
  }
  if (refused > 0) {
    return yield* failed("integrity", `${refused} archives are not taken into the ledger`);
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
    return yield* failed("usage", "the ledger does not know an archive of that name");
  }
  yield* note(known, (before, now) => ({ ...before, forgotten: now }));
  yield* print(`${known.length} archives are missed no more once they are gone\n`);
});

export const ledgerCommand = command({
  name: "ledger",
  summary: "the record in dom0: its head for paper, and what mends it",
  about: `The ledger in dom0 has a line for each finished run, each linked to the one
before. What "rebuild" adds is marked: it is the server's word.`,
  flags: { to, keepRunning },
  args: { words: { label: "WORDS", least: 0, most: Infinity } },
  actions: {
    head: { words: "", help: "the ledger's last line in a few letters, to be written on paper" },
    check: {
      words: "HEAD",
      help: "is the line on paper still where it was, and everything before it?",
    },
    rebuild: {
      words: "",
      help: "add what the server has receipts for and the ledger does not: after a loss of the ledger. Of a damaged ledger it keeps what can be read",
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
  run: ({ action, words, ...options }) => {
    switch (action) {
      case "head":
        return head;
      case "check":
        return check(words.join(" "));
      case "rebuild":
        return rebuild(options);
      case "forget":
        return forget(options, words);
    }
  },
});
