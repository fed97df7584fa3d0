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
  Name,
  type PublicKey,
  type Series,
  Session,
  Sha256,
  Signature,
} from "#src/wire/names";
import { type Refused, refuse } from "./failure.ts";
import { clear, find, locate, type Store, whereFound, writeText } from "./store.ts";

/** Bytes that a record may have. */
export const recordLimit = 8192;

const Signed = Schema.Struct({
  manifest: Schema.String,
  signature: Signature,
  receipt: Schema.String,
  receiptSignature: Signature,
});
const Bare = Schema.Struct({
  name: Name,
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

/** The name that a record is for; undefined where its manifest is none. */
export const nameOf = (record: Record): Name | undefined =>
  isSigned(record) ? parseManifest(record.manifest)?.name : record.name;

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
  /** In the bare form nobody says it, and there is no other. */
  readonly format: Manifest["format"];
}

/** Undefined where manifest and receipt do not belong together, or are for another name. */
export const saidOf = (record: Record, name: Name): Said | undefined => {
  if (!isSigned(record)) {
    const { name: of, ...said } = record;
    if (of !== name) return undefined;
    return { ...said, signer: null, series: null, run: null, format: "qvm-backup" };
  }
  const manifest = parseManifest(record.manifest);
  const receipt = parseReceipt(record.receipt);
  if (manifest?.name !== name || receipt === undefined) return undefined;
  if (receiptDiffers(receipt, record.manifest) !== undefined) return undefined;
  const { format, members, root, run, series, session, signer, size } = manifest;
  return { session, signer, series, run, size, members, root, stored: receipt.stored, format };
};

/** A small file as text; undefined where it is not there, no plain file, not readable, or too long. */
const textIn = (directory: Directory, name: string, limit: number) =>
  directory.bytes(name, limit).pipe(
    Effect.map((bytes) => bytes && new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes)),
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

/**
 * The archive of a name: its record, and what that says. Otherwise `pruned` where it was, `damaged` where
 * its record is none, `not-found`.
 */
export const archiveOf = Effect.fnUntraced(function* (
  store: Pick<Store, "root">,
  name: Name,
): Effect.fn.Return<{ readonly record: Record; readonly said: Said }, Refused | SafeFsError> {
  return yield* Effect.scoped(
    Effect.gen(function* () {
      const own = yield* whereFound(store.root.directory(".qbackup"));
      const stones = own && (yield* whereFound(own.directory("tombstones")));
      const place = yield* locate(store.root, name).pipe(
        Effect.catchTag("Refused", () => Effect.undefined),
      );
      const there =
        place !== undefined && (yield* find(place.directory, place.record))?.kind === "file";
      if (there) {
        const record = yield* readRecord(place.directory, place.base);
        const said = record === undefined ? undefined : saidOf(record, name);
        if (record === undefined || said === undefined) {
          return yield* refuse("damaged", "the record of that archive is damaged");
        }
        // A tombstone comes first where an archive is pruned: its record may still be there.
        const gone = stones !== undefined && (yield* find(stones, said.session)) !== undefined;
        return gone ? yield* pruned : { record, said };
      }
      for (const session of stones === undefined ? [] : yield* stones.names) {
        if ((yield* readTombstone(stones!, session))?.said.name === name) return yield* pruned;
      }
      return yield* refuse("not-found", "there is no archive of that name");
    }),
  );
});
const pruned = refuse("pruned", "that archive was pruned");

const findings = "damaged";

/** Keeps what a check found of the archive of a session, or (undefined) that it is whole; durably. */
export const keepFinding = Effect.fnUntraced(function* (
  { root }: Pick<Store, "root">,
  session: Session,
  finding: string | undefined,
): Effect.fn.Return<void, SafeFsError> {
  yield* Effect.scoped(
    Effect.gen(function* () {
      if (finding === undefined) {
        const own = yield* whereFound(root.directory(".qbackup"));
        const damaged = own && (yield* whereFound(own.directory(findings)));
        if (damaged === undefined || (yield* find(damaged, session)) === undefined) return;
        yield* clear(damaged, session);
        return yield* damaged.sync;
      }
      const own = yield* root.ensure(".qbackup", 0o700);
      yield* writeText(yield* own.ensure(findings, 0o700), session, `${finding}\n`);
      yield* own.sync;
    }),
  );
});
