/**
 * What dom0 says an archive is (the manifest), and what the server says it keeps (the receipt). Both
 * are JSON text that is kept byte for byte, because that text is what is hashed and signed.
 */
import { createHash } from "node:crypto";
import { Option, Schema } from "effect";
import { Count, Instant, Name, PublicKey, Session, Sha256, Signature } from "#src/wire/names";

export const memberLimit = 65_536;

/** Start and length of a member's own tar archive in the whole; `size` of its data. In bytes. */
export const Member = Schema.Struct({
  path: Schema.String.check(Schema.isMaxLength(256)),
  start: Count,
  length: Count,
  size: Count,
});
export type Member = typeof Member.Type;

export const Manifest = Schema.Struct({
  version: Schema.Literal(1),
  name: Name,
  session: Session,
  /** The key of the server that the archive was meant for. */
  server: PublicKey,
  size: Count,
  treehash: Sha256,
  created: Instant,
  members: Schema.Array(Member).check(Schema.isMaxLength(memberLimit)),
});
export type Manifest = typeof Manifest.Type;

export const Receipt = Schema.Struct({
  version: Schema.Literal(1),
  name: Name,
  session: Session,
  size: Count,
  treehash: Sha256,
  /** SHA-256 of the manifest's text. */
  manifest: Sha256,
  stored: Instant,
});
export type Receipt = typeof Receipt.Type;

/** Ends an upload. `signature` is reserved for a signature by dom0; null for none. */
export const Trailer = Schema.Struct({
  // Half a surrogate pair has no bytes of its own: two such texts would have the same hash.
  manifest: Schema.String.check(Schema.isPattern(/^\P{Surrogate}*$/u)),
  signature: Schema.NullOr(Schema.String),
});

/** What lies beside a committed archive; all null where nobody vouched for it (the bare form). */
export const Record = Schema.Struct({
  manifest: Schema.NullOr(Schema.String),
  signature: Schema.NullOr(Schema.String),
  receipt: Schema.NullOr(Schema.String),
  receiptSignature: Schema.NullOr(Signature),
  /** Of an archive without a manifest: what the server itself counted. */
  size: Schema.optionalKey(Count),
  treehash: Schema.optionalKey(Sha256),
  stored: Schema.optionalKey(Instant),
});
export type Record = typeof Record.Type;

/**
 * Objects and arrays in a text that came from somebody. JSON.parse makes each of them before anybody
 * looks at any, at up to fifty bytes for one: 16 MiB of brackets took 700 MiB.
 */
const isModest = (text: string): boolean => {
  let opened = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if ((code === 0x5b || code === 0x7b) && ++opened > memberLimit + 64) return false;
  }
  return true;
};

const reader =
  <A>(schema: Schema.Codec<A, unknown>) =>
  (text: string): A | undefined =>
    isModest(text)
      ? Option.getOrUndefined(Schema.decodeOption(Schema.fromJsonString(schema))(text))
      : undefined;

export const parseManifest = reader(Manifest);
export const parseReceipt = reader(Receipt);
export const parseTrailer = reader(Trailer);
export const parseRecord = reader(Record);

export const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

/** What differs between a manifest and what the reader itself saw; undefined when nothing does. */
export const manifestDiffers = (
  manifest: Manifest,
  seen: Omit<Manifest, "version" | "created">,
): keyof Manifest | undefined => {
  for (const field of ["name", "session", "server", "size", "treehash"] as const) {
    if (manifest[field] !== seen[field]) return field;
  }
  const same =
    manifest.members.length === seen.members.length &&
    manifest.members.every((member, i) => {
      const other = seen.members[i];
      return (
        other !== undefined &&
        member.path === other.path &&
        member.start === other.start &&
        member.length === other.length &&
        member.size === other.size
      );
    });
  return same ? undefined : "members";
};

/** What differs between a receipt and the manifest it should be for; undefined when nothing does. */
export const receiptDiffers = (
  receipt: Receipt,
  manifestText: string,
): keyof Receipt | undefined => {
  const manifest = parseManifest(manifestText);
  if (manifest === undefined || receipt.manifest !== sha256(manifestText)) return "manifest";
  const fields = ["name", "session", "size", "treehash"] as const;
  return fields.find((field) => receipt[field] !== manifest[field]);
};
