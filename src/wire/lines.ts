/** Lines from an untrusted peer: bounded, and read ahead of nobody. */
import { Clock, Effect, Schema } from "effect";
import type { BytesError, Source } from "#services/Bytes";
import { aliveMost, lineLimit, preambleLimit } from "./limits.ts";
import { type Line, printable } from "#src/say/shown";

/** The peer wrote something that is not of the wire: `reason` is ours, and nothing of theirs. */
export class WireError extends Schema.TaggedError<WireError>()("WireError", {
  reason: Schema.String,
}) {
  override get message(): string {
    return this.reason;
  }
}

/** A mark of byte order would be taken away without a word, and is no part of any line. */
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text of a line, or undefined if it is not UTF-8. */
const decode = (bytes: Uint8Array): string | undefined => {
  try {
    return strict.decode(bytes);
  } catch {
    return undefined;
  }
};

/**
 * Reads one line byte by byte, so that what follows it stays unread (it is somebody else's).
 * Undefined at the end of the bytes. The newline is not part of it.
 */
export const readExactLine = Effect.fnUntraced(function* (
  source: Source,
  limit = lineLimit,
): Effect.fn.Return<string | undefined, BytesError | WireError> {
  const line = new Uint8Array(limit);
  for (let n = 0; n < limit; n++) {
    if ((yield* source.read(line.subarray(n, n + 1))) === 0) {
      return n === 0 ? undefined : yield* new WireError({ reason: "the line breaks off" });
    }
    if (line[n] === 0x0a) {
      const text = decode(line.subarray(0, n));
      return text ?? (yield* new WireError({ reason: "the line is not UTF-8" }));
    }
  }
  return yield* new WireError({ reason: `the line is longer than ${limit} bytes` });
});

/**
 * To be asked at each of a peer's words that say nothing new. There is one in 15 seconds, and they wait for a
 * reader who is busy: far more of them are no sign of life, but a peer that keeps us at work for nothing.
 */
export const wordsOfNothing = (): Effect.Effect<void, WireError> => {
  let began: bigint | undefined;
  let count = 0;
  return Effect.flatMap(Clock.monotonicTimeNanos, (now) => {
    began ??= now;
    count += 1;
    return count <= aliveMost + Number(now - began) / 1e9
      ? Effect.void
      : new WireError({ reason: "signs of life without end" });
  });
};

/**
 * Reads replies, which are what `parse` makes of a line. Up to 64 lines and 16 KiB before the first one are skipped and handed to
 * `skipped`, printable; after it every line must be a reply. Fails at the end of the bytes with
 * `ended`, which is for the caller to judge.
 */
export const replies = <Reply extends { readonly type: string }>(
  source: Source,
  parse: (line: string) => Reply | undefined,
  skipped: (line: Line) => Effect.Effect<void>,
) => {
  const buffer = new Uint8Array(preambleLimit.bytes + lineLimit);
  let start = 0;
  let end = 0;
  let preamble = 0;
  let lines = 0;
  let begun = false;
  const nothing = wordsOfNothing();

  /** The next line within `limit` bytes, as a view that the next call overwrites. */
  const nextLine = Effect.fnUntraced(function* (limit: number) {
    let scanned = start;
    for (;;) {
      const at = buffer.subarray(0, end).indexOf(0x0a, scanned);
      if (at >= 0 && at - start < limit) {
        const line = buffer.subarray(start, at);
        start = at + 1;
        return line;
      }
      // A newline beyond the limit has more bytes than that in front of it.
      if (end - start >= limit) {
        return yield* new WireError({ reason: `a line of more than ${limit} bytes` });
      }
      scanned = end;
      if (start > 0) {
        buffer.copyWithin(0, start, end);
        scanned -= start;
        end -= start;
        start = 0;
      }
      const n = yield* source.read(buffer.subarray(end, limit));
      if (n === 0) return undefined;
      end += n;
    }
  });

  const next: Effect.Effect<Reply | undefined, BytesError | WireError> = Effect.gen(function* () {
    for (;;) {
      // What is left of the preamble may stand in front of a first reply of full length.
      const room = begun ? 0 : preambleLimit.bytes - preamble;
      const line = yield* nextLine(room + lineLimit);
      if (line === undefined) return undefined;
      const text = decode(line);
      const reply = line.length < lineLimit && text !== undefined ? parse(text) : undefined;
      if (reply !== undefined) {
        begun = true;
        if (reply.type === "alive") yield* nothing;
        return reply;
      }
      if (begun) return yield* new WireError({ reason: "a line that is no reply" });
      preamble += line.length + 1;
      // The newline in front of the first reply is the wire's own.
      if (line.length > 0) lines += 1;
      if (lines > preambleLimit.lines || preamble >= preambleLimit.bytes) {
        return yield* new WireError({ reason: "too much text before the first reply" });
      }
      if (line.length > 0) yield* skipped(printable(text ?? "(not UTF-8)"));
    }
  });

  /** The bytes behind the last reply, for what is not lines: what was read ahead comes first. */
  const rest: Source = {
    received: source.received,
    read: (into, atLeast = 1) =>
      Effect.suspend(() => {
        const n = Math.min(end - start, into.length);
        into.set(buffer.subarray(start, start + n));
        start += n;
        return n >= atLeast
          ? Effect.succeed(n)
          : Effect.map(source.read(into.subarray(n), atLeast - n), (more) => n + more);
      }),
  };

  return { next, rest };
};
