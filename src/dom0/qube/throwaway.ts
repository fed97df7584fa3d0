/** The qube that a self-test makes and removes again: how it is told from a person's own. */
import type { Entry } from "#services/Ledger";

/** Its name, and the one under which qvm-backup-restore brings it back while it exists. */
export const throwAway = "qbackup-selftest";
export const broughtBack = `${throwAway}-1`;
/** The tag of both: what has it, a self-test has made. */
export const madeByTest = "qbackup-selftest";

/** What the names of its archives begin with, behind which comes the format. */
export const testPrefix = "selftest-";

/**
 * An archive of a self-test: proven like any other, but it says nothing of a person's own. A rebuilt line has
 * ids for names.
 */
export const isOfTest = ({
  asked,
  qubes,
  rebuilt,
}: Pick<Entry, "asked" | "qubes" | "rebuilt">): boolean =>
  rebuilt === true
    ? /^selftest-(?:qvm-backup|slots)-$/.test(asked.prefix)
    : qubes.length === 1 && qubes[0]!.name === throwAway;
