/** The replies: JSON, one object a line, each at most 4 KiB. Fields a reader does not know are ignored. */
import { Effect, Option, Schema } from "effect";
import type { BytesError, Sink } from "#services/Bytes";
import { Count, Instant, Name, PublicKey, Sha256, Signature } from "./names.ts";
import { lineLimit } from "./request.ts";

export const codes = [
  "bad-request",
  "bad-name",
  "exists",
  "not-found",
  "no-directory",
  "no-space",
  "quota",
  "incomplete",
  "digest-mismatch",
  "signature",
  "not-permitted",
  "busy",
  "unsupported",
  "internal",
] as const;
export type Code = (typeof codes)[number];

/** `put` may begin or go on: `offset` bytes are durable, a multiple of 1 MiB; `server` its key. */
export const Ready = Schema.Struct({
  type: Schema.Literal("ready"),
  offset: Count,
  server: PublicKey,
});
/** `manifest`: a frame of `size` bytes follows, a record as JSON. */
export const ManifestReady = Schema.Struct({ type: Schema.Literal("ready"), size: Count });
/** `read`: frames of blocks with their proofs follow. */
export const ReadReady = Schema.Struct({
  type: Schema.Literal("ready"),
  size: Count,
  treehash: Sha256,
});
/** `offset` bytes are on disk together with their digests. */
export const Ack = Schema.Struct({ type: Schema.Literal("ack"), offset: Count });
export const Alive = Schema.Struct({ type: Schema.Literal("alive") });
/** The archive is committed: the text of the receipt and the server's signature over it. */
export const Stored = Schema.Struct({
  type: Schema.Literal("stored"),
  receipt: Schema.String,
  signature: Signature,
});
/** A line of `list`. `treehash` is null where an archive came without one (not by qbackup). */
export const Archive = Schema.Struct({
  type: Schema.Literal("archive"),
  name: Name,
  size: Count,
  treehash: Schema.NullOr(Sha256),
  stored: Instant,
  verified: Schema.Boolean,
});
export const End = Schema.Struct({ type: Schema.Literal("end"), count: Schema.optionalKey(Count) });
/** `check`: the server read, hashed and walked it again, and this is what it found. */
export const Checked = Schema.Struct({
  type: Schema.Literal("checked"),
  size: Count,
  treehash: Sha256,
  members: Count,
});
/** `from: "carrier"` marks what the carrier says on its own account. */
export const Failed = Schema.Struct({
  type: Schema.Literal("error"),
  code: Schema.Literals(codes),
  message: Schema.String,
  from: Schema.optionalKey(Schema.String),
});

export const Reply = Schema.Union([
  Ready,
  ReadReady,
  ManifestReady,
  Ack,
  Alive,
  Stored,
  Archive,
  Checked,
  End,
  Failed,
]);
export type Reply = typeof Reply.Type;

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Reply));

/** Reads a line; undefined when it is no reply. */
export const parseReply = (line: string): Reply | undefined => Option.getOrUndefined(decode(line));

const text = new TextEncoder();

/**
 * Writes replies. The first one starts with a newline, because a login shell may have printed an
 * unfinished line before it.
 */
export const replier = (sink: Sink) => {
  let first = true;
  return (reply: Reply): Effect.Effect<void, BytesError> =>
    Effect.suspend(() => {
      const line = `${first ? "\n" : ""}${JSON.stringify(reply)}\n`;
      first = false;
      return line.length > lineLimit
        ? Effect.die(new Error("a reply of more than 4 KiB"))
        : sink.write(text.encode(line));
    });
};
