/**
 * Whose tickets a store takes: `.qbackup/signers`, a public key a line. Where there is no such file, the
 * first one that comes is taken; where its owner left none in it, nobody is.
 */
import { Effect } from "effect";
import type { Directory, SafeFsError } from "#services/SafeFs";
import { signerLimit } from "#src/wire/limits";
import { isPublicKey, type PublicKey } from "#src/wire/names";
import { type Refused, refuse } from "./failure.ts";
import { readText, whereFound, writeText } from "./store.ts";

const name = "signers";
/** Of a key in base64url, and its newline. */
const lineLength = 44;

/** Undefined where there is no such file. One that is no list of keys is refused. */
export const readSigners = Effect.fnUntraced(function* (
  own: Directory,
): Effect.fn.Return<ReadonlyArray<PublicKey> | undefined, Refused | SafeFsError> {
  const text = yield* Effect.scoped(
    whereFound(
      Effect.flatMap(own.open(name, "read"), (file) =>
        Effect.map(readText(file, signerLimit * lineLength), (read) => read ?? "too long"),
      ),
    ),
  );
  if (text === undefined) return undefined;
  const lines = text.split("\n");
  const keys = lines.filter(isPublicKey);
  return lines.pop() === "" && keys.length === lines.length
    ? keys
    : yield* refuse("internal", "the file .qbackup/signers of the store is damaged");
});

/** Replaces them all at once, durably. The caller holds the store's lock. */
export const writeSigners = (
  own: Directory,
  keys: ReadonlyArray<PublicKey>,
): Effect.Effect<void, SafeFsError> => writeText(own, name, keys.map((key) => `${key}\n`).join(""));
