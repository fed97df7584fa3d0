/** The passphrase file: looked at before anything starts, and read where qbackup itself encrypts. */
import { Effect, Redacted } from "effect";
import { Chains } from "#services/Chains";
import { Invocation } from "#services/Invocation";
import { type Entry, Ledger } from "#services/Ledger";
import type { QubesError } from "#services/Qubes";
import { QvmBackup } from "#services/QvmBackup";
import { Sealing } from "#services/Sealing";
import { parseManifest, sha256 } from "#src/proof/texts";
import { inLedger } from "#src/dom0/books/unusable";
import { passphraseFile } from "#src/dom0/cli/flags";
import { failed } from "#src/dom0/failure";

const unusable = ({ message }: QubesError) =>
  failed(
    "usage",
    message,
    `the passphrase is the first line of a file that only its user can read: -p FILE, or ${passphraseFile.setting} in ~/.bashrc, names it`,
  );

export const checkPassphrase = Effect.fnUntraced(function* (file: string) {
  return yield* Effect.mapError((yield* QvmBackup).checkPassphrase(file), unusable);
});

/** What is in it, for this program alone. */
export const passphraseOf = Effect.fnUntraced(function* (file: string) {
  return yield* Effect.mapError((yield* QvmBackup).passphrase(file), unusable);
});

/** By what it is known again with a salt, both in hex: at the price of a member of slots. */
export const checkerFor = Effect.fnUntraced(function* (passphrase: Redacted.Redacted<Uint8Array>) {
  const { keys } = yield* Sealing;
  return (salt: string): Effect.Effect<string> =>
    Effect.map(keys(Redacted.value(passphrase), Buffer.from(salt, "hex")), (derived) =>
      sha256(Buffer.from(derived).toString("hex")),
    );
});

/**
 * The number of this passphrase in the ledger, by the notes of an archive that was made with it; undefined
 * where none of the newest ones was.
 */
const numberByNotes = Effect.fnUntraced(function* (
  entries: ReadonlyArray<Entry>,
  checkOf: (salt: string) => Effect.Effect<string>,
) {
  const chains = yield* Chains;
  const seen = new Set<string>();
  for (const { manifest, passphrase, server, session } of entries.toReversed()) {
    const series = parseManifest(manifest)?.series;
    if (series === undefined || passphrase === undefined || seen.has(`${server} ${series}`))
      continue;
    seen.add(`${server} ${series}`);
    const { newest } = yield* inLedger(chains.read({ server, series }));
    if (newest?.session === session && (yield* checkOf(newest.key)) === newest.check) {
      return passphrase;
    }
  }
  return undefined;
});

/** Which of those that there were, counted from 1; one that is new is noted. */
export const passphraseNumber = Effect.fnUntraced(function* (
  passphrase: Redacted.Redacted<Uint8Array>,
) {
  const chains = yield* Chains;
  const checkOf = yield* checkerFor(passphrase);
  const marks = yield* inLedger(chains.passphrases);
  const numbers = marks.map(({ number }, i) => number ?? i + 1);
  for (const [i, { check, salt }] of [...marks.entries()].reverse()) {
    if ((yield* checkOf(salt)) === check) return numbers[i]!;
  }
  const { entries } = yield* inLedger((yield* Ledger).entries);
  // The marks may have been lost: no number is to stand for two passphrases.
  const highest = Math.max(0, ...numbers, ...entries.map(({ passphrase = 0 }) => passphrase));
  const number = (yield* numberByNotes(entries, checkOf)) ?? highest + 1;
  const salt = Buffer.from((yield* Invocation).entropy(32)).toString("hex");
  yield* inLedger(chains.addPassphrase({ salt, check: yield* checkOf(salt), number }));
  return number;
});

/** Those of these archives, oldest first, that another passphrase opens; nothing is known of some. */
export const underAnother = <E extends Pick<Entry, "passphrase">>(
  entries: ReadonlyArray<E>,
  passphrase: number | undefined,
): ReadonlyArray<E> =>
  entries.filter((one) => one.passphrase !== undefined && one.passphrase !== passphrase);
