/**
 * What a killed run left open: it may have sent its trailer, so the server may have committed, but
 * no receipt was written down. The same ticket is told `stored` once more; or, where the server had
 * not committed, its upload is given up under the ticket of a later run, or left to it: after that, nobody
 * who kept the trailer back can have it committed any more.
 */
import { Effect } from "effect";
import { KnownServers } from "#services/KnownServers";
import { Reporter } from "#services/Reporter";
import { type Pending, RunMark } from "#services/RunMark";
import { parseManifest, type SignedTicket } from "#src/proof/texts";
import type { Code } from "#src/wire/reply";
import { giveUpFrame } from "#src/wire/frames";
import { line } from "#src/say/shown";
import type { RunFailed } from "#src/dom0/failure";
import {
  checkReceipt,
  complete,
  pendingIn,
  remark,
  settled,
  withEarlier,
} from "#src/dom0/books/record";
import { inLedger } from "#src/dom0/books/unusable";
import { isFailed, LinkBroken, orNoServer, reach, refusal, undecided } from "./call.ts";
import { fetchRecord, unlessLink } from "./remote.ts";
import { persist } from "./retry.ts";
import { newTicket, ownKeys } from "./server.ts";

/** What the server refuses only after it has looked whether it has committed that session. */
const notStored: ReadonlySet<Code> = new Set([
  "stale",
  "gone",
  "exists",
  "quota",
  "no-space",
  "no-directory",
]);

/** What came back is no proof, and will be none the next time: a mark that stayed would stop every run. */
export const isSettled = ({ about, exit }: RunFailed): boolean =>
  exit === "integrity" && about !== "carrier";

/** So many are kept of runs to other servers, 2 KiB each; nobody has as many ways to as many servers. */
const mostKept = 8;

/** Whose key the server shows; nothing was signed with it yet. */
const whoIs = (destination: string, minutes: number) =>
  persist(
    Effect.gen(function* () {
      const { first } = yield* reach(destination, { verb: "about" }, { minutes: 10 });
      return isFailed(first) ? yield* refusal(first) : first.server;
    }).pipe(orNoServer),
    { startTimeout: minutes },
  );

/** What is pending of the server behind `destination`; the rest of it is kept for runs to come. */
const pendingHere = Effect.fnUntraced(function* (destination: string, minutes: number) {
  const { say } = yield* Reporter;
  const mark = yield* inLedger((yield* RunMark).read);
  const pending = pendingIn(mark);
  const through = (one: Pending) => one.submission.destination === destination;
  if (pending.every(through)) return pending;
  // Another qube may lead to the same server, also one through which no receipt has come yet.
  const pinned = yield* inLedger((yield* KnownServers).pinned(destination));
  const server = pinned ?? (yield* whoIs(destination, minutes));
  const isHere = (one: Pending) => through(one) || one.submission.server === server;
  const elsewhere = pending.filter((one) => !isHere(one));
  const given = elsewhere.slice(0, -mostKept);
  yield* remark(withEarlier(pending.filter((one) => !given.includes(one))));
  for (const { submission } of elsewhere) {
    const { destination: by, name, session } = submission;
    // It is said once of each, and once more where nothing asks for it any more.
    const over = given.some((one) => one.submission.session === session);
    if (!over && mark?.submission?.session !== session) continue;
    yield* say(
      "warning",
      line`a run through ${by} broke off at its end: ${name} may be on its server, but is not proven`,
    );
    yield* say(
      "hint",
      over
        ? line`qbackup list -t ${by} shows it if it is; then qbackup ledger rebuild -t ${by} fetches its receipt`
        : line`the next run through ${by} asks for its receipt; qbackup ledger rebuild -t ${by} fetches it, too`,
    );
  }
  return pending.filter(isHere);
});

/** Asks the server behind `destination` what became of one. */
const settleOne = Effect.fnUntraced(function* (
  destination: string,
  minutes: number,
  { submission, ticket }: Pending,
) {
  const { say } = yield* Reporter;
  const { name, server, manifest } = submission;

  /** What the server says to this ticket; on `ready` its upload is given up if `forget`. */
  const put = (asked: SignedTicket, forget: boolean) =>
    persist(
      Effect.gen(function* () {
        const { call, first } = yield* reach(
          destination,
          { verb: "put", ...asked },
          { minutes: 10 },
        );
        if (first.type === "ready" && forget) {
          yield* Effect.ignore(call.stdin.write(giveUpFrame));
          yield* call.ended.pipe(Effect.timeoutOption("5 seconds"));
        }
        // What was submitted is asked for again.
        if (isFailed(first) && undecided(first)) return yield* refusal(first);
        return first;
      }).pipe(Effect.catchTag("WireError", ({ reason }) => new LinkBroken({ reason }))),
      { startTimeout: minutes },
    );

  const keys = yield* ownKeys;
  // Made with a key that was changed since, no later number can be given to it.
  const ours = ticket.signer === keys.signer;
  let reply = yield* put(ticket, !ours);
  if (reply.type === "ready" && ours) {
    const later = yield* newTicket({ keys, series: ticket.series }, server, ticket.run, ticket);
    // A run in slots goes on with what was sent; the number alone makes the old ticket worthless.
    reply = yield* put(later, parseManifest(manifest)?.format !== "slots");
  }
  const unsaid = isFailed(reply) && !notStored.has(reply.code) ? reply : undefined;
  // A store that takes no such ticket any more, because one of the two keys is another now, has its receipts still.
  const record = unsaid && (yield* unlessLink(fetchRecord(destination, name)));
  const kept = record?.manifestText === manifest;
  const stored = kept
    ? { receipt: record.receiptText, signature: record.signature }
    : reply.type === "stored"
      ? reply
      : undefined;
  const former = unsaid?.code === "signature";
  if (stored !== undefined) {
    yield* checkReceipt(stored, server, manifest).pipe(
      Effect.andThen(complete(submission, stored, undefined, former)),
      Effect.tapError((failure) =>
        isSettled(failure) ? remark(settled(submission.session)) : Effect.void,
      ),
    );
    return yield* say("info", line`${name}, whose run broke off at its end, is stored and proven`);
  }
  if (unsaid !== undefined) {
    yield* say(
      "warning",
      line`whether ${name}, whose run broke off at its end, is stored is not known: ${refusal(unsaid).message}`,
    );
    yield* say(
      "hint",
      "qbackup list shows it if it is; then qbackup ledger rebuild fetches its receipt",
    );
  } else {
    yield* say("warning", line`${name}, whose run broke off at its end, was not stored`);
  }
  yield* remark(settled(submission.session));
});

/** `minutes` is how long it waits for a network that is not there yet. */
export const settle = Effect.fnUntraced(function* (destination: string, minutes: number) {
  for (const one of yield* pendingHere(destination, minutes)) {
    yield* settleOne(destination, minutes, one);
  }
});
