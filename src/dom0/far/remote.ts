/**
 * What the server says about its archives: the list, and what was signed for one. It is bounded in size
 * and in time, and it is the server's word: what of it is believed is decided elsewhere.
 */
import { Effect } from "effect";
import type { BytesError } from "#services/Bytes";
import type { Entry } from "#services/Ledger";
import type { Call } from "#services/Qrexec";
import { signatureHolds } from "#src/proof/keys";
import { type Manifest, parseManifest, parseReceipt, type Receipt } from "#src/proof/texts";
import { listPage, silenceLimit } from "#src/wire/limits";
import type { WireError } from "#src/wire/lines";
import { type Name, Prefix, type Signature } from "#src/wire/names";
import type { Failed } from "#src/wire/reply";
import type { Reply, Request } from "#src/wire/request";
import { failed, type RunFailed } from "#src/dom0/failure";
import { checkReceipt } from "#src/dom0/books/record";
import { callEnded, LinkBroken, reach, refused } from "./call.ts";
import { persist } from "./retry.ts";

/** An archive as the server lists it. */
export type Archive = Extract<Reply<"list">, { type: "archive" }>;
/** What it lists in place of one that it has removed. */
export type Pruned = Extract<Reply<"list">, { type: "pruned" }>;

type Next<R> = Effect.Effect<R | undefined, BytesError | WireError>;
/** What a call can end with that may go better the next time, and what not. */
type Ending = RunFailed | LinkBroken | BytesError | WireError;
/** What a reply is when the server is neither long about it nor refuses. */
type Said<R> = Exclude<R, { readonly type: "alive" } | Failed>;

const isSaid = <R extends { readonly type: string }>(reply: R): reply is Said<R> & R =>
  reply.type !== "alive" && reply.type !== "error";

/** The next reply but for signs of life; `missing` is what `not-found` means to the caller. */
export const nextReply = Effect.fnUntraced(function* <R extends { readonly type: string }>(
  next: Next<R>,
  call: Call,
  destination: string,
  missing?: RunFailed,
): Effect.fn.Return<Said<R>, Ending> {
  for (;;) {
    const reply = yield* Effect.timeoutOrElse(next, {
      duration: `${silenceLimit} seconds`,
      orElse: () => new LinkBroken({ reason: `no sign of the server for ${silenceLimit} s` }),
    });
    if (reply === undefined) return yield* callEnded(call, destination);
    if (isSaid(reply)) return reply;
    if (reply.type === "alive") continue;
    const error = reply as R & Failed;
    return yield* error.code === "not-found" && missing !== undefined
      ? missing
      : refused(error, call, destination);
  }
});

export const misplaced = (reply: { readonly type: string }): RunFailed =>
  failed("integrity", `unexpected reply from the server: ${reply.type}`);

/** Many calls, each of which may last its time: a server must not keep us for all of them. */
export const withinADay = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
): Effect.Effect<A, E | RunFailed, R> =>
  Effect.timeoutOrElse(effect, {
    duration: "24 hours",
    orElse: () => failed("link", "the server did not finish within a day"),
  });

/** A call with one answer, within so many minutes: what breaks off is asked for again. */
export const ask = <const Q extends Request, A, R>(
  destination: string,
  request: Q,
  answer: (next: Next<Reply<Q["verb"]>>, call: Call) => Effect.Effect<A, Ending, R>,
  minutes = 30,
) =>
  persist(
    Effect.gen(function* () {
      const { call, first, next } = yield* reach(destination, request, { minutes });
      let begun = false;
      const all: Next<Reply<Q["verb"]>> = Effect.suspend(() => {
        if (begun) return next;
        begun = true;
        return Effect.succeed(first);
      });
      return yield* answer(all, call);
    }),
  ).pipe(
    Effect.timeoutOrElse({
      duration: `${minutes} minutes`,
      orElse: () => failed("link", `the server did not finish within ${minutes} minutes`),
    }),
  );

/** What the server has under one name, and what it has removed that was called so. */
export interface Listed {
  readonly name: Name;
  readonly archive: Archive | undefined;
  readonly pruned: ReadonlyArray<Pruned>;
}

/** More archives than any store has: a server that says more is not believed. */
const archiveLimit = 1_000_000;
/** Tombstones of one name, which each had its minute. */
const prunedLimit = 1000;

/** One page behind `after`; there is `more` too where the call broke off. */
const pageBehind = Effect.fnUntraced(function* (
  destination: string,
  prefix: Prefix | undefined,
  after: Name | undefined,
) {
  const some: Array<Listed> = [];
  const request = {
    verb: "list",
    ...(prefix === undefined ? {} : { prefix }),
    ...(after === undefined ? {} : { after }),
  } as const;
  const more = yield* ask(destination, request, (next, call) =>
    Effect.gen(function* () {
      let name: Name | undefined;
      let archive: Archive | undefined;
      let pruned: Array<Pruned> = [];
      for (;;) {
        const reply = yield* nextReply(next, call, destination);
        if (reply.type === "end" || reply.name !== name) {
          if (name !== undefined) some.push({ name, archive, pruned });
          if (reply.type === "end") return reply.more;
          if (some.length > listPage) {
            return yield* failed("integrity", "the server lists more than was asked for");
          }
          const before: string = name ?? after ?? "";
          if (reply.name <= before || !reply.name.startsWith(prefix ?? "")) {
            return yield* failed("integrity", `the server lists ${reply.name}, unasked`);
          }
          name = reply.name;
          archive = undefined;
          pruned = [];
        }
        if (reply.type === "archive" ? archive !== undefined : pruned.length >= prunedLimit) {
          return yield* failed("integrity", `the server lists ${reply.name} twice`);
        }
        if (reply.type === "archive") archive = reply;
        else pruned.push(reply);
      }
    }).pipe(
      // What came whole is not asked for again.
      Effect.catchIf(
        ({ _tag }) => some.length > 0 && (_tag === "LinkBroken" || _tag === "BytesError"),
        () => Effect.succeed(true),
      ),
    ),
  );
  return { some, more };
});

/**
 * The archives whose names begin with `prefix`, in order of name, a page at a time: no more than that
 * is in memory, and the call is over when `see` gets it.
 */
export const listArchives = Effect.fnUntraced(function* <R>(
  destination: string,
  prefix: Prefix | undefined,
  see: (page: ReadonlyArray<Listed>) => Effect.Effect<void, RunFailed, R>,
) {
  let after: Name | undefined;
  for (let count = 0; count < archiveLimit;) {
    const { more, some } = yield* pageBehind(destination, prefix, after);
    yield* see(some);
    if (!more) return;
    if (some.length === 0) {
      return yield* failed("integrity", "the server says that there is more, and lists nothing");
    }
    count += some.length;
    after = some.at(-1)!.name;
  }
  return yield* failed("integrity", "the server lists more archives than any store has");
}, withinADay);

/** What the server lists under this name at present. */
export const contentOf = (destination: string, name: Name) =>
  ask(destination, { verb: "list", prefix: Prefix.make(name) }, (next, call) =>
    Effect.gen(function* () {
      for (let lines = 0; lines <= prunedLimit; lines++) {
        const reply = yield* nextReply(next, call, destination);
        // In order of name, this one is the first.
        if (reply.type === "end" || reply.name !== name) break;
        if (reply.type === "archive") return reply;
      }
      return yield* failed(
        "refused",
        `the server has no archive ${name}`,
        "qbackup list shows all",
      );
    }),
  );

/** What dom0 and the server signed for an archive. */
export interface Vouched {
  readonly manifestText: string;
  readonly manifest: Manifest;
  /** Of the key that the manifest names, over the manifest. */
  readonly manifestSignature: Signature;
  readonly receiptText: string;
  readonly receipt: Receipt;
  /** The server's, over the receipt. */
  readonly signature: Signature;
}

/**
 * What was signed for an archive, if its parts agree and are signed by the keys that the manifest names;
 * whether those are the right ones, the caller must see. Undefined where nothing was signed.
 */
export const fetchRecord = Effect.fnUntraced(function* (destination: string, name: Name) {
  const none = failed("refused", `nothing was signed for ${name}`);
  const record = yield* ask(destination, { verb: "manifest", name }, (next, call) =>
    nextReply(next, call, destination, none),
  ).pipe(
    Effect.catchIf(
      (failure) => failure === none,
      () => Effect.undefined,
    ),
  );
  if (record === undefined) return undefined;
  const manifest = parseManifest(record.manifest);
  const receipt = parseReceipt(record.receipt);
  if (manifest === undefined || receipt === undefined) {
    return yield* failed("integrity", `the server's record of ${name} is malformed`);
  }
  if (manifest.name !== name) {
    return yield* failed(
      "integrity",
      `what the server has as ${name} was backed up as ${manifest.name}: it was renamed`,
    );
  }
  if (!signatureHolds(manifest.signer, "manifest", record.manifest, record.signature)) {
    return yield* failed("integrity", `the manifest of ${name} is not signed by the key it names`);
  }
  yield* checkReceipt(
    { receipt: record.receipt, signature: record.receiptSignature },
    manifest.server,
    record.manifest,
  );
  const vouched: Vouched = {
    manifestText: record.manifest,
    manifest,
    manifestSignature: record.signature,
    receiptText: record.receipt,
    receipt,
    signature: record.receiptSignature,
  };
  return vouched;
});

/** What the server says wrong, or refuses, is as if it had none; a link that is gone is not. */
export const unlessLink = <A, R>(it: Effect.Effect<A, RunFailed, R>) =>
  Effect.catchIf(
    it,
    ({ exit }) => exit !== "link",
    () => Effect.undefined,
  );

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

/** Minutes that a server may take for reading a GiB: 1 MiB/s, and some to begin with. */
const minutesFor = (size: number): number => 10 + 18 * Math.ceil(size / 1_073_741_824);

/** Has the server read it all again: whether it finds what the manifest says. `missing`: it has none of that name. */
export const checkThere = (
  destination: string,
  { members, name, root, size }: Pick<Manifest, "members" | "name" | "root" | "size">,
  missing: RunFailed,
) =>
  Effect.map(
    ask(
      destination,
      { verb: "check", name },
      (next, call) => nextReply(next, call, destination, missing),
      minutesFor(size),
    ),
    (checked) => checked.size === size && checked.root === root && checked.members === members,
  );
