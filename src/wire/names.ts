/**
 * The words of the wire: names, sessions, numbers. Each has a charset and a length, and nothing that
 * is hidden, absolute or upwards can be said in them.
 */
import { Schema } from "effect";

const component = "[A-Za-z0-9][A-Za-z0-9._+-]{0,127}";

export const manifestSuffix = ".manifest.json";

/** An archive's name: one to eight components, at most 512 bytes, not a manifest's name. */
export const Name = Schema.String.check(
  Schema.isMaxLength(512),
  Schema.isPattern(new RegExp(`^${component}(?:/${component}){0,7}$`)),
  Schema.makeFilter((name: string) => !name.endsWith(manifestSuffix)),
).pipe(Schema.brand("Name"));
export type Name = typeof Name.Type;

/** The beginning of names: as a name, but it may stop anywhere, after a `/` too. */
export const Prefix = Schema.String.check(
  Schema.isMaxLength(512),
  Schema.isPattern(new RegExp(`^${component}(?:/${component}){0,7}/?$`)),
).pipe(Schema.brand("Prefix"));
export type Prefix = typeof Prefix.Type;

/** 32 lowercase hex digits, chosen at random by dom0 for one archive. */
export const Session = Schema.String.check(Schema.isPattern(/^[0-9a-f]{32}$/)).pipe(
  Schema.brand("Session"),
);
export type Session = typeof Session.Type;

/** SHA-256 in lowercase hex. */
export const Sha256 = Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/));

/** An Ed25519 public key: its 32 bytes in base64. */
export const PublicKey = Schema.String.check(Schema.isPattern(/^[A-Za-z0-9+/]{43}=$/));

/** An Ed25519 signature: its 64 bytes in base64. */
export const Signature = Schema.String.check(Schema.isPattern(/^[A-Za-z0-9+/]{86}==$/));

/** A count or an offset in bytes, exact in a double. JSON can say -0, which nobody counts to: refused. */
export const Count = Schema.Int.check(
  Schema.isGreaterThanOrEqualTo(0),
  Schema.makeFilter((value: number) => !Object.is(value, -0)),
);

/** Is it a time that there is? Date.parse takes 30 February for 2 March, and 24:00 for the next day. */
const exists = (text: string): boolean => {
  const at = Date.parse(text);
  return !Number.isNaN(at) && new Date(at).toISOString().slice(0, 19) === text.slice(0, 19);
};

/** UTC, ISO 8601, to the second or finer. */
export const Instant = Schema.String.check(
  Schema.isPattern(/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:Z|\+00:00)$/),
  Schema.makeFilter(exists),
);

export const isName = Schema.is(Name);
export const isPrefix = Schema.is(Prefix);
export const isSession = Schema.is(Session);

/** A decimal number without sign or leading zero, exact in a double; undefined for anything else. */
export const parseNumber = (text: string): number | undefined => {
  if (!/^(?:0|[1-9][0-9]{0,15})$/.test(text)) return undefined;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : undefined;
};
