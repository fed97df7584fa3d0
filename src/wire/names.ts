/**
 * The words of the wire: names, sessions, keys, numbers, times. Each has a charset and a length, and
 * nothing that is hidden, absolute or upwards can be said in them. docs/protocol.md, Words.
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

/** 32 lowercase hex digits, chosen at random by dom0: one upload, and the pack that it becomes. */
export const Session = Schema.String.check(Schema.isPattern(/^[0-9a-f]{32}$/)).pipe(
  Schema.brand("Session"),
);
export type Session = typeof Session.Type;

/** What retention counts together: `[PREFIX-]HEX16`, PREFIX of the characters that names have. */
export const Series = Schema.String.check(
  Schema.isPattern(/^(?:[A-Za-z0-9](?:[A-Za-z0-9._+/-]{0,510}[A-Za-z0-9])?-)?[0-9a-f]{16}$/),
).pipe(Schema.brand("Series"));
export type Series = typeof Series.Type;

/** SHA-256 in lowercase hex. */
export const Sha256 = Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/));

/** So many bytes in base64url without padding, in the one form that their encoder writes. */
const base64url = (bytes: number) => {
  const digits = Math.ceil((bytes * 4) / 3);
  return Schema.String.check(
    Schema.isPattern(new RegExp(`^[A-Za-z0-9_-]{${digits}}$`)),
    Schema.makeFilter(
      (text: string) => Buffer.from(text, "base64url").toString("base64url") === text,
    ),
  );
};

/** An Ed25519 public key: its 32 bytes. */
export const PublicKey = base64url(32).pipe(Schema.brand("PublicKey"));
export type PublicKey = typeof PublicKey.Type;

/** An Ed25519 signature: its 64 bytes. */
export const Signature = base64url(64).pipe(Schema.brand("Signature"));
export type Signature = typeof Signature.Type;

/** A count or an offset in bytes, exact in a double. JSON can say -0, which nobody counts to: refused. */
export const Count = Schema.Int.check(
  Schema.isGreaterThanOrEqualTo(0),
  Schema.makeFilter((value: number) => !Object.is(value, -0)),
);

/** UTC to the second, `YYYY-MM-DDTHH:MM:SSZ`, a moment that there is. */
export const Instant = Schema.String.check(
  // A year of more than four digits has a sign.
  Schema.isPattern(/^[0-9]/),
  Schema.makeFilter((text: string) => {
    const at = Date.parse(text);
    // 30 February is read as a day in March.
    return !Number.isNaN(at) && instantOf(at) === text;
  }),
);

export const isName = Schema.is(Name);
export const isPrefix = Schema.is(Prefix);
export const isSession = Schema.is(Session);
export const isSeries = Schema.is(Series);
export const isPublicKey = Schema.is(PublicKey);
export const isSignature = Schema.is(Signature);
export const isInstant = Schema.is(Instant);

/** A moment (milliseconds since 1970) as the wire writes it; what is below a second is cut off. */
export const instantOf = (milliseconds: number): string =>
  `${new Date(milliseconds).toISOString().slice(0, 19)}Z`;

/** A decimal number without sign or leading zero, exact in a double; undefined for anything else. */
export const parseNumber = (text: string): number | undefined => {
  if (!/^(?:0|[1-9][0-9]{0,15})$/.test(text)) return undefined;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : undefined;
};
