/**
 * The record of an archive, `NAME.manifest.json`: what dom0 and this server signed for it, or, of the
 * bare form, what the server itself counted. And the tombstone of one that was pruned.
 */
import { Effect, Option, Schema } from "effect";
import type { Directory, SafeFsError } from "#services/SafeFs";
import {
  type Manifest,
  parseManifest,
  parseReceipt,
  parseTombstone,
  receiptDiffers,
  type Tombstone,
  tombstoneLimit,
} from "#src/proof/texts";
import { memberLimit } from "#src/proof/table";
import {
  Count,
  Instant,
  isSignature,
  manifestSuffix,
  type Name,
  type PublicKey,
  type Series,
  Session,
  Sha256,
  Signature,
} from "#src/wire/names";
import { readText } from "./store.ts";

/** Bytes that a record may have. */
export const recordLimit = 8192;

const Signed = Schema.Struct({
  manifest: Schema.String,
  signature: Signature,
  receipt: Schema.String,
  receiptSignature: Signature,
});
const Bare = Schema.Struct({
  session: Session,
  size: Count,
  members: Count.check(Schema.isLessThanOrEqualTo(memberLimit)),
  root: Sha256,
  stored: Instant,
});
const AnyRecord = Schema.Union([Signed, Bare]);
export type SignedRecord = typeof Signed.Type;
export type BareRecord = typeof Bare.Type;
export type Record = typeof AnyRecord.Type;

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(AnyRecord));
/** Undefined for what is no record. */
export const parseRecord = (text: string): Record | undefined =>
  Option.getOrUndefined(decode(text));
export const recordText = (record: Record): string => JSON.stringify(record);

export const isSigned = (record: Record): record is SignedRecord => "manifest" in record;

/** What a record says of its archive. Of the bare form nobody signed anything. */
export interface Said {
  readonly session: Session;
  readonly signer: PublicKey | null;
  readonly series: Series | null;
  readonly run: number | null;
  /** Bytes of the whole archive, as a plain file. */
  readonly size: number;
  readonly members: number;
  readonly root: string;
  readonly stored: string;
  /** Undefined in the bare form. */
  readonly format?: Manifest["format"];
}

/** Undefined where manifest and receipt do not belong together, or are for another name. */
export const saidOf = (record: Record, name: Name): Said | undefined => {
  if (!isSigned(record)) return { ...record, signer: null, series: null, run: null };
  const manifest = parseManifest(record.manifest);
  const receipt = parseReceipt(record.receipt);
  if (manifest?.name !== name || receipt === undefined) return undefined;
  if (receiptDiffers(receipt, record.manifest) !== undefined) return undefined;
  const { format, members, root, run, series, session, signer, size } = manifest;
  return { session, signer, series, run, size, members, root, stored: receipt.stored, format };
};

/** A small file as text; undefined where it is not there, no plain file, not readable, or too long. */
const textIn = (directory: Directory, name: string, limit: number) =>
  Effect.scoped(Effect.flatMap(directory.open(name, "read"), (file) => readText(file, limit))).pipe(
    Effect.catchIf(
      ({ reason }) =>
        reason === "not-found" || reason === "not-plain" || reason === "not-permitted",
      () => Effect.undefined,
    ),
  );

/** The record of the archive `base` in its directory; undefined where there is none that can be read. */
export const readRecord = (
  directory: Directory,
  base: string,
): Effect.Effect<Record | undefined, SafeFsError> =>
  Effect.map(textIn(directory, `${base}${manifestSuffix}`, recordLimit), (text) =>
    text === undefined ? undefined : parseRecord(text),
  );

/** As it is kept: the text, a newline, the signature of this server. */
export interface Stone {
  readonly text: string;
  readonly signature: Signature;
  readonly said: Tombstone;
}

/** The tombstone of an archive by its session; undefined where there is none that can be read. */
export const readTombstone = (
  tombstones: Directory,
  session: string,
): Effect.Effect<Stone | undefined, SafeFsError> =>
  Effect.map(textIn(tombstones, session, tombstoneLimit + 128), (file) => {
    const [text = "", signature = ""] = file?.split("\n") ?? [];
    const said = parseTombstone(text);
    return said?.session === session && isSignature(signature)
      ? { text, signature, said }
      : undefined;
  });
