/** What replies have in common: JSON, one object a line, at most 4 KiB. docs/protocol.md, Replies. */
import { Effect, Option, Schema } from "effect";
import type { BytesError, Sink } from "#services/Bytes";
import { lineLimit } from "./limits.ts";
import { Instant, Signature } from "./names.ts";

export const codes = [
  "bad-request",
  "bad-name",
  "exists",
  "not-found",
  "gone",
  "no-directory",
  "no-space",
  "quota",
  "incomplete",
  "digest-mismatch",
  "signature",
  "stale",
  "not-permitted",
  "busy",
  "unsupported",
  "damaged",
  "pruned",
  "internal",
] as const;
export type Code = (typeof codes)[number];

export const Alive = Schema.Struct({ type: Schema.Literal("alive") });
/** Text of tables and recipes, and the conversation of `read`, come behind it. */
export const Ready = Schema.Struct({ type: Schema.Literal("ready") });
/** All of it was said. */
export const End = Schema.Struct({ type: Schema.Literal("end") });

export const Failed = Schema.Struct({
  type: Schema.Literal("error"),
  code: Schema.Literals(codes),
  message: Schema.String,
  /** `carrier` marks what the carrier says on its own account. */
  from: Schema.optionalKey(Schema.String),
  /** With `stale`: the highest ticket of that signer and series, its text and its signature. */
  ticket: Schema.optionalKey(Schema.String.check(Schema.isMaxLength(2048))),
  signature: Schema.optionalKey(Signature),
  /** With `gone`: when that upload was removed, and why. */
  since: Schema.optionalKey(Instant),
  why: Schema.optionalKey(Schema.String.check(Schema.isMaxLength(200))),
});
export type Failed = typeof Failed.Type;

/** A reader of the replies of one verb, and of no other. */
export const replyReader = <A>(schema: Schema.Codec<A, unknown>) => {
  const decode = Schema.decodeUnknownOption(Schema.fromJsonString(schema));
  return (line: string): A | undefined => Option.getOrUndefined(decode(line));
};

const text = new TextEncoder();

/**
 * Writes replies, several at once where there are several. The first one starts with a newline, because
 * a login shell may have printed an unfinished line before it.
 */
export const replier = (sink: Sink) => {
  let first = true;
  return (...replies: ReadonlyArray<{ readonly type: string }>): Effect.Effect<void, BytesError> =>
    Effect.suspend(() => {
      const lines = replies.map((reply) => text.encode(`${JSON.stringify(reply)}\n`));
      if (lines.some((line) => line.length > lineLimit)) {
        return Effect.die(new Error("a reply of more than 4 KiB"));
      }
      const start = text.encode(first ? "\n" : "");
      first = false;
      return sink.write(Buffer.concat([start, ...lines]));
    });
};
