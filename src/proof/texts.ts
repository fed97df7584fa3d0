/**
 * The texts that are signed: what dom0 says an archive is (the manifest) and what it asks for (the
 * ticket), what the server says it keeps (the receipt) and what it removed (the tombstone). Each has
 * one way of being written, and is kept and sent byte for byte. docs/protocol.md, Texts.
 */
import { createHash } from "node:crypto";
import { Option, Schema } from "effect";
import {
  Count,
  Instant,
  Name,
  parseNumber,
  PublicKey,
  Series,
  Session,
  Sha256,
  Signature,
} from "#src/wire/names";
import { memberLimit } from "./table.ts";

const Members = Count.check(Schema.isLessThanOrEqualTo(memberLimit), Schema.isGreaterThan(0));
const Format = Schema.Literals(["qvm-backup", "slots"]);

/** Fields in the order in which they are written. */
export const Manifest = Schema.Struct({
  type: Schema.Literal("qbackup manifest"),
  version: Schema.Literal(1),
  name: Name,
  session: Session,
  /** The key of the server that the archive was meant for. */
  server: PublicKey,
  /** dom0's key. */
  signer: PublicKey,
  series: Series,
  /** Grows with each run of the series. */
  run: Count,
  created: Instant,
  /** Of the whole archive, as a plain file; in bytes. */
  size: Count,
  members: Members,
  root: Sha256,
  format: Format,
  /** By when dom0 promises the next archive of the series. */
  next: Schema.NullOr(Instant),
});
export type Manifest = typeof Manifest.Type;

export const Receipt = Schema.Struct({
  type: Schema.Literal("qbackup receipt"),
  version: Schema.Literal(1),
  name: Name,
  session: Session,
  members: Members,
  root: Sha256,
  size: Count,
  /** SHA-256 of the manifest's text. */
  manifest: Sha256,
  stored: Instant,
});
export type Receipt = typeof Receipt.Type;

export const Tombstone = Schema.Struct({
  type: Schema.Literal("qbackup tombstone"),
  version: Schema.Literal(1),
  name: Name,
  session: Session,
  signer: PublicKey,
  series: Series,
  run: Count,
  root: Sha256,
  stored: Instant,
  pruned: Instant,
  /** The rule of retention by which it went. */
  rule: Schema.String.check(Schema.isPattern(/^[\x20-\x7e]{1,200}$/)),
});
export type Tombstone = typeof Tombstone.Type;

/** Bytes that the text may have; its fields come to fewer, whatever is in them. */
export const manifestLimit = 2048;
export const tombstoneLimit = 2048;

const writer =
  <A>(schema: Schema.Codec<A, unknown> & { readonly fields: object }) =>
  (value: A): string => {
    const of: Record<string, unknown> = Object.fromEntries(Object.entries(value as object));
    return JSON.stringify(Object.fromEntries(Object.keys(schema.fields).map((k) => [k, of[k]])));
  };
/** Takes only what the writer would have written: what is signed has one form. */
const reader = <A>(schema: Schema.Codec<A, unknown> & { readonly fields: object }) => {
  const decode = Schema.decodeOption(Schema.fromJsonString(schema));
  const write = writer(schema);
  return (text: string): A | undefined => {
    const value = Option.getOrUndefined(decode(text));
    return value !== undefined && write(value) === text ? value : undefined;
  };
};

export const manifestText = writer(Manifest);
export const parseManifest = reader(Manifest);
export const receiptText = writer(Receipt);
export const parseReceipt = reader(Receipt);
export const tombstoneText = writer(Tombstone);
export const parseTombstone = reader(Tombstone);

/** What opens an upload: only who has dom0's key can write one. */
export const Ticket = Schema.Struct({
  name: Name,
  session: Session,
  /** `-`, or the session of the archive to whose members the recipe may refer. */
  base: Schema.Union([Schema.Literal("-"), Session]),
  series: Series,
  run: Count,
  /** Bytes that the pack will have at most. */
  bytes: Count,
  time: Instant,
  signer: PublicKey,
});
export type Ticket = typeof Ticket.Type;
/** As it travels: the text and with it the server's key are made anew by who checks it. */
export const SignedTicket = Schema.Struct({ ...Ticket.fields, signature: Signature });
export type SignedTicket = typeof SignedTicket.Type;

/** The words between the verb and the key, in their order on the wire. */
export const ticketWords = (ticket: Ticket): ReadonlyArray<string> => [
  ticket.name,
  ticket.session,
  ticket.base,
  ticket.series,
  `${ticket.run}`,
  `${ticket.bytes}`,
  ticket.time,
  ticket.signer,
];
/** What is signed. */
export const ticketText = (ticket: Ticket, server: PublicKey): string =>
  ["put", ...ticketWords(ticket), server].join(" ");

const isTicket = Schema.is(Ticket);
/** Reads the eight words; undefined when they are not a ticket's. */
export const parseTicketWords = (words: ReadonlyArray<string>): Ticket | undefined => {
  if (words.length !== 8) return undefined;
  const [name, session, base, series, run, bytes, time, signer] = words;
  const ticket = {
    name,
    session,
    base,
    series,
    run: parseNumber(run!),
    bytes: parseNumber(bytes!),
    time,
    signer,
  };
  return isTicket(ticket) ? ticket : undefined;
};
/** Reads a signed text back: the ticket, and the server that it was for. */
export const parseTicket = (
  text: string,
): { readonly ticket: Ticket; readonly server: PublicKey } | undefined => {
  const words = text.split(" ");
  const ticket = words[0] === "put" ? parseTicketWords(words.slice(1, -1)) : undefined;
  const server = words.at(-1);
  return ticket !== undefined && Schema.is(PublicKey)(server) ? { ticket, server } : undefined;
};

export const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

/** The first field of a receipt that is not as in the manifest it should be for; undefined: none. */
export const receiptDiffers = (receipt: Receipt, manifest: string): keyof Receipt | undefined => {
  const said = parseManifest(manifest);
  if (said === undefined || receipt.manifest !== sha256(manifest)) return "manifest";
  return (["name", "session", "members", "root", "size"] as const).find(
    (field) => receipt[field] !== said[field],
  );
};
