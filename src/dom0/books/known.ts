/** The archives that the ledger knows. */
import { Effect } from "effect";
import { type Entry, Ledger } from "#services/Ledger";
import { type Audit, ReadBacks } from "#services/ReadBacks";
import { Reporter } from "#services/Reporter";
import { type Manifest, parseManifest, parseReceipt } from "#src/proof/texts";
import { line } from "#src/say/shown";
import { failed } from "#src/dom0/failure";
import { inLedger } from "./unusable.ts";

export interface Known {
  readonly entry: Entry;
  readonly manifest: Manifest;
  readonly audit: Audit;
}

/** When the server stored it, by its receipt; undefined where that is not readable. */
export const storedOf = ({ entry }: Pick<Known, "entry">): string | undefined =>
  parseReceipt(entry.receipt)?.stored;

/** A ledger can be damaged in more places than a line holds. */
export const some = (numbers: ReadonlyArray<number | string>): string =>
  numbers.length > 20
    ? `${numbers.slice(0, 20).join(", ")} and ${numbers.length - 20} more`
    : numbers.join(", ");

/** The ledger's lines, and whether they are all there and unchanged; says which are not. */
export const looked = Effect.gen(function* () {
  const { damaged, lines, unlinked } = yield* inLedger((yield* Ledger).chain);
  const { say } = yield* Reporter;
  if (damaged.length > 0) {
    yield* say("warning", line`the ledger's lines cannot all be read: ${some(damaged)}`);
  }
  if (unlinked.length > 0) {
    yield* say(
      "warning",
      line`the ledger was changed: lines that do not follow the one before: ${some(unlinked)}`,
    );
  }
  return { lines, sound: damaged.length === 0 && unlinked.length === 0 };
});

/**
 * The ledger's archives behind this qube, by name; of two lines for one name the later counts. `sound`
 * is false where lines are lost or were changed: what is known is then not all, or not certain.
 */
export const knownArchives = Effect.fnUntraced(function* (destination: string) {
  const { lines, sound } = yield* looked;
  const audits = yield* inLedger((yield* ReadBacks).all);
  const known = new Map<string, Known>();
  for (const { entry } of lines) {
    const manifest = parseManifest(entry.manifest);
    if (entry.destination !== destination || manifest === undefined) continue;
    known.set(entry.name, { entry, manifest, audit: audits.get(entry.session) ?? {} });
  }
  return { known, sound };
});

/** What the ledger has as sent through another qube than this one: through which, by session. */
export const elsewhere = Effect.fnUntraced(function* (destination: string) {
  const { entries } = yield* inLedger((yield* Ledger).entries);
  return new Map<string, string>(
    entries
      .filter((entry) => entry.destination !== destination)
      .map((entry) => [entry.session, entry.destination]),
  );
});

/** The one thing to do about that. */
export const goBackTo = (others: Iterable<string>): string =>
  `give -t ${some([...new Set(others)].sort()).replaceAll(", ", " or -t ")}; a qube that was renamed since needs that name again, which the ledger goes by`;

/** Whatever else was found, this is not to be passed over. */
export const unsound = failed(
  "integrity",
  "the ledger was damaged or changed: what it does not know any more is not missed",
  "bring back its copy; or qbackup ledger rebuild, which fetches lost lines from the server",
);
