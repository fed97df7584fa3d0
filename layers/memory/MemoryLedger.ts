/** A ledger in memory, for tests: the same lines as in the file, on a disk that can be made to fail. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { ledgerLine, parseLedger, relinked } from "#layers/files/FileLedger";
import { type Audit, Ledger, LedgerError, type Unfinished } from "#services/Ledger";

/** What outlives the program that wrote it. */
export interface LedgerDisk {
  /** What ledger.jsonl holds. */
  text: string;
  unfinished: Unfinished | undefined;
  readonly pins: Map<string, string>;
  readonly audits: Map<string, Audit>;
  /** `entries`, `chain`, `audits`, `audited`, `append NAME`, `mend`, `reserve`, `unfinished`, `mark`, `unmark`, `pinned QUBE`, `pin QUBE`, in order. */
  readonly calls: Array<string>;
  /** The reason that a call fails for; it works where there is none. Asked for every call. */
  fails: (call: string) => string | undefined;
}

export const ledgerDisk = (): LedgerDisk => ({
  text: "",
  unfinished: undefined,
  pins: new Map(),
  audits: new Map(),
  calls: [],
  fails: () => undefined,
});

export const memoryLedger = (disk: LedgerDisk = ledgerDisk()): Layer.Layer<Ledger> => {
  const call = <A>(name: string, what: () => A) =>
    Effect.suspend(() => {
      disk.calls.push(name);
      const reason = disk.fails(name);
      if (reason !== undefined) return Effect.fail(new LedgerError({ doing: name, reason }));
      return Effect.succeed(what());
    });
  const parsed = () => parseLedger(Buffer.from(disk.text));
  return Layer.succeed(Ledger, {
    place: "/memory/qbackup",
    entries: call("entries", () => {
      const { damaged, entries } = parsed();
      return { entries, damaged };
    }),
    chain: call("chain", () => {
      const { damaged, lines, unlinked } = parsed();
      return { lines, damaged, unlinked };
    }),
    audits: call("audits", () => new Map(disk.audits)),
    audited: (sessions, change) =>
      call("audited", () => {
        for (const session of sessions) {
          disk.audits.set(session, change(disk.audits.get(session) ?? {}, session));
        }
      }),
    append: (entry) =>
      call(`append ${entry.name}`, () => {
        const { last, open, torn } = parsed();
        if (torn !== undefined) disk.text = Buffer.from(disk.text).subarray(0, torn).toString();
        disk.text += `${open ? "\n" : ""}${ledgerLine(entry, last)}\n`;
      }),
    mend: call("mend", () => {
      disk.text = relinked(Buffer.from(disk.text));
      return "/memory/qbackup/ledger.damaged.1";
    }),
    reserve: call("reserve", () => {}),
    unfinished: call("unfinished", () => disk.unfinished),
    mark: (run) =>
      call(run === undefined ? "unmark" : "mark", () => {
        disk.unfinished = run;
      }),
    pinned: (destination) => call(`pinned ${destination}`, () => disk.pins.get(destination)),
    pin: (destination, server) =>
      call(`pin ${destination}`, () => void disk.pins.set(destination, server)),
  });
};
