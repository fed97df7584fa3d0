/**
 * What a killed run left open: it may have sent its trailer, so the server may have committed, but
 * no receipt was written down. The same ticket is told `stored` once more; or, where the server had
 * not committed, its upload is given up under the ticket of a later run, or left to it: after that, nobody
 * who kept the trailer back can have it committed any more.
 */
import { Effect } from "effect";
import { Reporter } from "#services/Reporter";
import { RunMark } from "#services/RunMark";
import { parseManifest, type SignedTicket } from "#src/proof/texts";
import type { Code } from "#src/wire/reply";
import { giveUpFrame } from "#src/wire/frames";
import { line } from "#src/say/shown";
import type { RunFailed } from "#src/dom0/failure";
import { checkReceipt, complete, remark, withoutSubmission } from "#src/dom0/books/record";
import { inLedger } from "#src/dom0/books/unusable";
import { isFailed, LinkBroken, reach, refusal, undecided } from "./call.ts";
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

/** `minutes` is how long it waits for a network that is not there yet. */
export const settle = Effect.fnUntraced(function* (destination: string, minutes: number) {
  const { say } = yield* Reporter;
  const { submission, ticket } = (yield* inLedger((yield* RunMark).read)) ?? {};
  if (submission === undefined || ticket === undefined) return;
  const { name, server, manifest } = submission;
  if (submission.destination !== destination) {
    yield* say(
      "warning",
      line`a run through ${submission.destination} broke off at its end: ${name} may be on its server, but is not proven`,
    );
    return yield* remark(withoutSubmission);
  }

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
  if (reply.type === "stored") {
    yield* checkReceipt(reply, server, manifest).pipe(
      Effect.andThen(complete(submission, reply)),
      Effect.tapError((failure) => (isSettled(failure) ? remark(withoutSubmission) : Effect.void)),
    );
    return yield* say("info", line`${name}, whose run broke off at its end, is stored and proven`);
  }
  if (isFailed(reply) && !notStored.has(reply.code)) {
    yield* say(
      "warning",
      line`whether ${name}, whose run broke off at its end, is stored is not known: ${refusal(reply).message}`,
    );
    yield* say(
      "hint",
      "qbackup list shows it if it is; then qbackup ledger rebuild fetches its receipt",
    );
  } else {
    yield* say("warning", line`${name}, whose run broke off at its end, was not stored`);
  }
  yield* remark(withoutSubmission);
});
