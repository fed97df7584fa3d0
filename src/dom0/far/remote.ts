/**
 * What the server says about its archives: the list, and the record of one. It is bounded in size and
 * in time, and it is the server's word: what of it is believed is decided elsewhere.
 */
import { Effect } from "effect";
import type { BytesError, Source } from "#services/Bytes";
import type { Entry } from "#services/Ledger";
import type { Call } from "#services/Qrexec";
import { blockSize, trailerLimit } from "#src/wire/frames";
import { WireError } from "#src/wire/lines";
import {
  type Manifest,
  parseManifest,
  parseReceipt,
  parseRecord,
  type Receipt,
} from "#src/proof/manifest";
import type { Name, Prefix } from "#src/wire/names";
import type { Reply } from "#src/wire/reply";
import type { Request } from "#src/wire/request";
import { failed, type RunFailed } from "#src/dom0/failure";
import { checkReceipt } from "#src/dom0/books/record";
import { callEnded, type LinkBroken, noLink, openCall, refused } from "./call.ts";

export type Archive = Extract<Reply, { type: "archive" }>;
type Next = Effect.Effect<Reply | undefined, BytesError | WireError>;

/** More lines than any store has; a server that says more is not believed. */
const archiveLimit = 100_000;
/** The manifest in it may need an escape for many a character. */
const recordLimit = 2 * trailerLimit + 65_536;
/** Seconds without a reply. */
const silenceLimit = 90;
/** What may take long has a sign of life each few seconds; that alone must not keep us for ever. */
const answerLimit = "30 minutes";

/** Where nothing is tried again, a link that broke is the end. */
const forGood = (failure: RunFailed | LinkBroken): RunFailed =>
  failure._tag === "RunFailed" ? failure : noLink(failure);

/** The next reply that is no error; `missing` is what `not-found` means to the caller. */
export const nextReply = (
  next: Next,
  call: Call,
  destination: string,
  missing?: RunFailed,
): Effect.Effect<Reply, RunFailed | BytesError | WireError> =>
  next.pipe(
    Effect.timeoutOrElse({
      duration: `${silenceLimit} seconds`,
      orElse: () => failed("link", `no answer from the server within ${silenceLimit} s`),
    }),
    Effect.flatMap((reply) => {
      if (reply === undefined) {
        return Effect.mapError(callEnded(call, destination), forGood);
      }
      if (reply.type !== "error") return Effect.succeed(reply);
      return reply.code === "not-found" && missing !== undefined
        ? missing
        : Effect.mapError(refused(reply, call, destination), forGood);
    }),
  );

export const misplaced = (reply: Reply): RunFailed =>
  failed("integrity", `the server said ${reply.type} where that has no place`);

/** Many calls, each of which may last its time: a server must not keep us for all of them. */
export const withinADay = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
): Effect.Effect<A, E | RunFailed, R> =>
  Effect.timeoutOrElse(effect, {
    duration: "24 hours",
    orElse: () => failed("link", "the server has not come to an end within a day"),
  });

/** A call with one answer: what ends it, in time, has a name. */
export const ask = <A, R>(
  destination: string,
  request: Request,
  answer: (
    next: Next,
    call: Call,
    rest: Source,
  ) => Effect.Effect<A, RunFailed | BytesError | WireError, R>,
  limit: `${number} minutes` = answerLimit,
) =>
  Effect.flatMap(openCall(destination, request), ({ call, next, rest }) =>
    answer(next, call, rest),
  ).pipe(
    Effect.scoped,
    Effect.timeoutOrElse({
      duration: limit,
      orElse: () => failed("link", `the server has not come to an end within ${limit}`),
    }),
    Effect.catchTags({
      BytesError: () => failed("link", "the link broke"),
      WireError: (error) =>
        failed("integrity", `what came back is not of the wire: ${error.reason}`),
    }),
  );

/** The archives whose names begin with `prefix`, as the server lists them. */
export const listArchives = (destination: string, prefix: Prefix | undefined) =>
  ask(destination, { verb: "list", ...(prefix === undefined ? {} : { prefix }) }, (next, call) =>
    Effect.gen(function* () {
      const archives = new Map<string, Archive>();
      for (;;) {
        const reply = yield* nextReply(next, call, destination);
        if (reply.type === "alive") continue;
        if (reply.type === "end" && (reply.count ?? archives.size) === archives.size) {
          return [...archives.values()];
        }
        if (reply.type !== "archive" || archives.size >= archiveLimit)
          return yield* misplaced(reply);
        if (archives.has(reply.name)) {
          return yield* failed("integrity", `the server lists ${reply.name} twice`);
        }
        if (!reply.name.startsWith(prefix ?? "")) {
          return yield* failed("integrity", `the server lists ${reply.name}, unasked`);
        }
        archives.set(reply.name, reply);
      }
    }),
  );

/** What the server has under this name at present: size and tree hash. */
export const contentOf = (destination: string, name: Name) =>
  ask(destination, { verb: "read", name, first: 0, count: 0 }, (next, call) =>
    Effect.gen(function* () {
      let reply = yield* nextReply(next, call, destination);
      while (reply.type === "alive") reply = yield* nextReply(next, call, destination);
      return reply.type === "ready" && "treehash" in reply && reply.size > 0
        ? reply
        : yield* misplaced(reply);
    }),
  );

/** Bytes that came in a frame of known size; grown as they come, so that a peer pays for the memory. */
const frameOf = Effect.fnUntraced(function* (rest: Source, size: number) {
  const prefix = new Uint8Array(4);
  if ((yield* rest.read(prefix, 4)) < 4) return undefined;
  if (new DataView(prefix.buffer).getUint32(0) !== size) {
    return yield* new WireError({ reason: "a frame of another size than was said" });
  }
  let bytes = new Uint8Array(Math.min(size, blockSize));
  for (let at = 0; ;) {
    const n = yield* rest.read(bytes.subarray(at), Math.min(65_536, bytes.length - at)).pipe(
      Effect.timeoutOrElse({
        duration: `${silenceLimit} seconds`,
        orElse: () => failed("link", `silence for ${silenceLimit} s`),
      }),
    );
    if (n === 0) return undefined;
    at += n;
    if (at === size) return bytes;
    if (at < bytes.length) continue;
    const grown = new Uint8Array(Math.min(size, bytes.length * 4));
    grown.set(bytes);
    bytes = grown;
  }
});

/** What the server keeps beside an archive. */
export interface Vouched {
  readonly manifestText: string;
  readonly manifest: Manifest;
  readonly receiptText: string;
  readonly receipt: Receipt;
  readonly signature: string;
}

/**
 * The record of an archive, if its parts agree and its receipt is signed by the key that its manifest
 * names; whether that key is the right one, the caller must see. Undefined where there is no receipt.
 */
export const fetchRecord = Effect.fnUntraced(function* (destination: string, name: Name) {
  const text = yield* ask(destination, { verb: "manifest", name }, (next, call, rest) =>
    Effect.gen(function* () {
      let reply = yield* nextReply(next, call, destination);
      while (reply.type === "alive") reply = yield* nextReply(next, call, destination);
      if (reply.type !== "ready" || !("size" in reply) || "treehash" in reply)
        return yield* misplaced(reply);
      if (reply.size === 0 || reply.size > recordLimit) {
        return yield* failed("integrity", `the server has a record of ${reply.size} bytes`);
      }
      const bytes = yield* frameOf(rest, reply.size);
      return bytes === undefined
        ? yield* failed("link", "the link ended before the answer did")
        : new TextDecoder().decode(bytes);
    }),
  );
  const record = parseRecord(text);
  if (record === undefined) {
    return yield* failed("integrity", `the server's record of ${name} is not readable`);
  }
  const { manifest: manifestText, receipt: receiptText, receiptSignature: signature } = record;
  if (manifestText === null || receiptText === null || signature === null) return undefined;
  const manifest = parseManifest(manifestText);
  const receipt = parseReceipt(receiptText);
  if (manifest === undefined || receipt === undefined || manifest.name !== name) {
    return yield* failed("integrity", `the server's record of ${name} is not for this archive`);
  }
  yield* checkReceipt({ receipt: receiptText, signature }, manifest.server, manifestText);
  const vouched: Vouched = { manifestText, manifest, receiptText, receipt, signature };
  return vouched;
});

/** What the server's record says against the ledger's line; undefined when nothing. */
export const recordDiffers = Effect.fnUntraced(function* (destination: string, mine: Entry) {
  return yield* fetchRecord(destination, mine.name).pipe(
    Effect.map((theirs) => {
      if (theirs === undefined) return "the server has no receipt for it";
      if (theirs.manifest.server !== mine.server) return "signed by another key";
      if (theirs.manifest.session !== mine.session) return "another session's archive";
      if (theirs.manifestText !== mine.manifest) return "another manifest";
      return theirs.receiptText === mine.receipt ? undefined : "another receipt";
    }),
    Effect.catchIf(
      ({ exit }) => exit === "integrity" || exit === "refused",
      ({ message }) => Effect.succeed(message),
    ),
  );
});
