/** The passphrase file: looked at before anything starts, and read where qbackup itself encrypts. */
import { Effect } from "effect";
import type { QubesError } from "#services/Qubes";
import { QvmBackup } from "#services/QvmBackup";
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
