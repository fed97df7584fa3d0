/**
 * Archives that the server's owner let go by a rule. The server signs a tombstone for each, so it can
 * be held to it: what was too young, or the last of its kind, it had no right to remove.
 */
import { signatureHolds } from "#src/proof/keys";
import { parseTombstone, type Tombstone } from "#src/proof/texts";
import type { PublicKey } from "#src/wire/names";
import type { Archive, Pruned } from "#src/dom0/far/remote";
import { type Known, storedOf } from "./known.ts";

/** Days for which an archive stays, whatever the rule says. */
const leastAge = 7;
/** Series that the server may name without a word of the ledger. */
const seriesLimit = 10_000;

/** A tombstone that `server` signed for just this name; undefined for anything else. */
export const readPruned = (said: Pruned, server: PublicKey): Tombstone | undefined => {
  const tombstone = parseTombstone(said.tombstone);
  return tombstone?.name === said.name &&
    signatureHolds(server, "tombstone", said.tombstone, said.signature)
    ? tombstone
    : undefined;
};

/** The first field in which a tombstone is not about what the ledger has; undefined: none. */
export const tombstoneDiffers = (tombstone: Tombstone, mine: Known): string | undefined =>
  (["session", "signer", "series", "run", "root"] as const).find(
    (field) => tombstone[field] !== mine.manifest[field],
  ) ?? (tombstone.stored === storedOf(mine) ? undefined : "stored");

/** Whether one was removed before its time; `now` in milliseconds since 1970. */
export const tooYoung = (
  { pruned, stored }: Pick<Tombstone, "pruned" | "stored">,
  now: number,
): boolean => Math.min(Date.parse(pruned), now) - Date.parse(stored) < leastAge * 86_400_000;

/**
 * Looks for series of `own` that lost their newest archive. `whole`: all archives are going to be
 * listed, so that one that is not among them is not there.
 */
export const newestOf = (known: Iterable<Known>, own: PublicKey | undefined, whole: boolean) => {
  /** The ledger's, by series and format: slots and plain archives do not stand in for each other. */
  const mine = new Map<string, { readonly run: number; readonly session: string }>();
  for (const { manifest } of known) {
    const of = `${manifest.series} ${manifest.format}`;
    if ((mine.get(of)?.run ?? -1) < manifest.run) mine.set(of, manifest);
  }
  const last = new Set([...mine.values()].map(({ session }) => session));
  const living = new Map<string, number>();
  const gone = new Map<string, Tombstone>();
  const higher = (map: ReadonlyMap<string, unknown>, series: string, run: number, than = -1) =>
    run > than && (map.has(series) || map.size < seriesLimit);
  return {
    lives: ({ run, series, signer }: Archive): void => {
      if (signer !== own || series === null || run === null) return;
      if (higher(living, series, run, living.get(series))) living.set(series, run);
    },
    isGone: (tombstone: Tombstone): void => {
      const { run, series, signer } = tombstone;
      if (signer === own && higher(gone, series, run, gone.get(series)?.run))
        gone.set(series, tombstone);
    },
    /** Of the ledger: nothing newer of its series and format was ever stored. */
    isLast: ({ session }: Pick<Tombstone, "session">): boolean => last.has(session),
    /** Those that only the list tells. */
    lost: (): ReadonlyArray<Tombstone> =>
      whole
        ? [...gone.values()].filter(
            (tombstone) =>
              !last.has(tombstone.session) && tombstone.run > (living.get(tombstone.series) ?? -1),
          )
        : [],
  };
};
