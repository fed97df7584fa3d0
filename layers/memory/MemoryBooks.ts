/** dom0's books in memory, for tests: the same lines as in the files, on a disk that can be made to fail. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { createHash } from "node:crypto";
import { chainName } from "#layers/files/FileChains";
import { ledgerLine, parseLedger, relinked } from "#layers/files/FileLedger";
import { keysOf, runAfter } from "#layers/files/FileSigner";
import { Chains, type PassphraseMark, type Which } from "#services/Chains";
import { KnownServers } from "#services/KnownServers";
import { Ledger, LedgerError } from "#services/Ledger";
import { type Audit, ReadBacks } from "#services/ReadBacks";
import { RunMark, type Unfinished } from "#services/RunMark";
import { type Secrets, Signer } from "#services/Signer";
import { chainBytes, journalLine, journalText, parseChain, parseJournal } from "#src/archive/chain";
import { signingKeyOf } from "#src/proof/keys";
import type { PublicKey } from "#src/wire/names";

/** What outlives the program that wrote it. */
export interface BooksDisk {
  /** What ledger.jsonl holds. */
  text: string;
  unfinished: Unfinished | undefined;
  readonly pins: Map<string, PublicKey>;
  readonly audits: Map<string, Audit>;
  secrets: Secrets | undefined;
  /** Those that were there before others were taken. */
  readonly old: Array<Secrets>;
  /** By `SERVER SERIES`, the highest run given. */
  readonly runs: Map<string, number>;
  /** By their names, the files of chains. */
  readonly chains: Map<string, Buffer>;
  /** By what those are known again that there were. */
  readonly passphrases: Array<PassphraseMark>;
  /**
   * In order: `entries`, `chain`, `append NAME`, `mend`; `audits`, `audited`; `reserve`, `unfinished`,
   * `mark`, `unmark`; `pinned QUBE`, `pin QUBE`; `keys`, `existing`, `run SERIES`, `secrets`, `take`;
   * `chain`, `begin`, `note PATH`, `propose`, `adopt` (and `adopted`, when the journal goes), `forget`.
   */
  readonly calls: Array<string>;
  /** The reason that a call fails for, and what helps; it works where there is none. Asked for every call. */
  fails: (call: string) => string | readonly [reason: string, hint: string] | undefined;
}

export const booksDisk = (): BooksDisk => ({
  text: "",
  unfinished: undefined,
  pins: new Map(),
  audits: new Map(),
  secrets: undefined,
  old: [],
  runs: new Map(),
  chains: new Map(),
  passphrases: [],
  calls: [],
  fails: () => undefined,
});

/** Keys that are made here are the same in every run of a test. */
const seed = (what: string) => createHash("sha256").update(`${what} of a test`).digest();

export const memoryBooks = (disk: BooksDisk = booksDisk()) => {
  const call = <A>(name: string, what: () => A) =>
    Effect.suspend(() => {
      disk.calls.push(name);
      const fails = disk.fails(name);
      if (fails !== undefined) {
        const [reason, hint] = typeof fails === "string" ? [fails] : fails;
        return Effect.fail(
          new LedgerError({ doing: name, reason, ...(hint === undefined ? {} : { hint }) }),
        );
      }
      return Effect.succeed(what());
    });
  const parsed = () => parseLedger(Buffer.from(disk.text));
  const ledger = Layer.succeed(Ledger, {
    place: "/memory/qbackup",
    entries: call("entries", () => {
      const { damaged, lines } = parsed();
      return { entries: lines.map(({ entry }) => entry), damaged };
    }),
    chain: call("chain", () => {
      const { damaged, lines, unlinked } = parsed();
      return { lines, damaged, unlinked };
    }),
    append: (entry) =>
      call(`append ${entry.name}`, () => {
        const { last, open, torn } = parsed();
        if (torn !== undefined) disk.text = Buffer.from(disk.text).subarray(0, torn).toString();
        disk.text += `${open ? "\n" : ""}${ledgerLine(entry, last)}\n`;
      }),
    mend: call("mend", () => {
      disk.text = relinked(Buffer.from(disk.text)).toString();
      return "/memory/qbackup/ledger.jsonl.damaged.1";
    }),
  });
  const readBacks = Layer.succeed(ReadBacks, {
    all: call("audits", () => new Map(disk.audits)),
    change: (sessions, change) =>
      call("audited", () => {
        for (const session of sessions) {
          disk.audits.set(session, change(disk.audits.get(session) ?? {}, session));
        }
      }),
  });
  const runMark = Layer.succeed(RunMark, {
    reserve: call("reserve", () => {}),
    read: call("unfinished", () => disk.unfinished),
    write: (run) =>
      call(run === undefined ? "unmark" : "mark", () => {
        disk.unfinished = run;
      }),
  });
  const knownServers = Layer.succeed(KnownServers, {
    pinned: (destination) => call(`pinned ${destination}`, () => disk.pins.get(destination)),
    pin: (destination, server) =>
      call(`pin ${destination}`, () => void disk.pins.set(destination, server)),
  });
  const signer = Layer.succeed(Signer, {
    keys: call("keys", () => {
      const fresh = disk.secrets === undefined;
      disk.secrets ??= { signing: seed("signing key"), series: seed("series key") };
      return keysOf(disk.secrets, fresh);
    }),
    existing: call("existing", () =>
      disk.secrets === undefined ? undefined : signingKeyOf(disk.secrets.signing).publicKey,
    ),
    nextRun: (server, series, least) =>
      call(`run ${series}`, () => {
        const run = runAfter(disk.runs.get(`${server} ${series}`), least);
        disk.runs.set(`${server} ${series}`, run);
        return run;
      }),
    secrets: call("secrets", () => disk.secrets),
    take: (secrets) =>
      call("take", () => {
        if (disk.secrets !== undefined) disk.old.push(disk.secrets);
        disk.secrets = secrets;
      }),
  });
  const file = (which: Which, what = "") => `chain.${chainName(which)}${what}`;
  const chains = Layer.succeed(Chains, {
    read: (which) =>
      call("chain", () => {
        const was = disk.chains.get(file(which));
        const will = disk.chains.get(file(which, ".next"));
        const now = disk.chains.get(file(which, ".journal"));
        const newest = was && parseChain(was);
        return {
          newest,
          proposed: will && parseChain(will),
          journal: now && parseJournal(now.toString("latin1")),
          damaged: was !== undefined && newest === undefined,
        };
      }),
    begin: (which, journal) =>
      call("begin", () => {
        disk.chains.set(file(which, ".journal"), Buffer.from(journalText(journal)));
      }),
    note: (which, path, cell) =>
      call(`note ${path}`, () => {
        const before = disk.chains.get(file(which, ".journal"))!;
        const line = Buffer.from(journalLine(path, cell));
        disk.chains.set(file(which, ".journal"), Buffer.concat([before, line]));
      }),
    propose: (which, chain) =>
      call("propose", () => {
        disk.chains.set(file(which, ".next"), chainBytes(chain));
      }),
    adopt: (which) =>
      Effect.andThen(
        call("adopt", () => {
          disk.chains.set(file(which), disk.chains.get(file(which, ".next"))!);
          disk.chains.delete(file(which, ".next"));
        }),
        call("adopted", () => {
          disk.chains.delete(file(which, ".journal"));
        }),
      ),
    forget: (which) =>
      call("forget", () => {
        for (const what of ["", ".next", ".journal"]) disk.chains.delete(file(which, what));
      }),
    passphrases: call("passphrases", () => [...disk.passphrases]),
    addPassphrase: (mark) => call("add passphrase", () => void disk.passphrases.push(mark)),
  });
  return Layer.mergeAll(ledger, readBacks, runMark, knownServers, signer, chains);
};
