/**
 * What a killed run left open: it may have sent its trailer, so the server may have committed, but
 * no receipt was written down. The same session is told `stored` once more; or, where the server had
 * not committed, its upload is given up.
 */
import { Effect } from "effect";
import { Ledger } from "#services/Ledger";
import { Reporter } from "#services/Reporter";
import { giveUpFrame } from "#src/wire/frames";
import { line } from "#src/say/shown";
import type { RunFailed } from "#src/dom0/failure";
import {
  checkReceipt,
  complete,
  inLedger,
  remark,
  withoutSubmission,
} from "#src/dom0/books/record";
import {
  answer,
  callEnded,
  LinkBroken,
  noLink,
  openCall,
  refused,
  patience,
  pauseAfter,
  undecided,
} from "./call.ts";

const tries = 3;

/** What came back is no proof, and will be none the next time: a mark that stayed would stop every run. */
export const isSettled = ({ about, exit }: RunFailed): boolean =>
  exit === "integrity" && about !== "carrier";

/** `minutes` is how long it waits for a network that is not there yet. */
export const settle = Effect.fnUntraced(function* (destination: string, minutes: number) {
  const reporter = yield* Reporter;
  const submission = (yield* inLedger((yield* Ledger).unfinished))?.submission;
  if (submission === undefined) return;
  const { name, session, server, manifest } = submission;
  if (submission.destination !== destination) {
    yield* reporter.say(
      "warning",
      line`a run through ${submission.destination} broke off at its end: ${name} may be on its server, but is not proven`,
    );
    return yield* remark(withoutSubmission);
  }

  const patient = yield* patience(minutes);
  for (let attempt = 1; ; attempt++) {
    const broken = yield* Effect.gen(function* () {
      const { call, next } = yield* openCall(destination, { verb: "put", name, session });
      const reply = yield* answer(next).pipe(Effect.timeout("10 minutes"));
      if (reply === undefined) return yield* callEnded(call, destination);
      if (reply.type === "stored") {
        yield* checkReceipt(reply, server, manifest).pipe(
          Effect.andThen(complete(submission, reply)),
          Effect.tapError((failure) =>
            isSettled(failure) ? remark(withoutSubmission) : Effect.void,
          ),
        );
        yield* reporter.say(
          "info",
          line`${name}, whose run broke off at its end, is stored and proven`,
        );
        return undefined;
      }
      if (reply.type === "error" && reply.code === "busy")
        return new LinkBroken({ reason: "the server is busy" });
      // What was submitted is asked for again.
      if (reply.type === "error" && undecided(reply)) {
        return yield* refused(reply, call, destination);
      }
      if (reply.type === "ready") {
        yield* Effect.ignore(call.stdin.write(giveUpFrame));
        yield* call.ended.pipe(Effect.timeoutOption("5 seconds"));
      }
      yield* reporter.say(
        "warning",
        reply.type === "ready" && "server" in reply && reply.server !== server
          ? line`${name}, whose run broke off at its end, may be on the server that was behind ${destination} then, but is not proven`
          : line`${name}, whose run broke off at its end, was not stored`,
      );
      return yield* remark(withoutSubmission);
    }).pipe(
      Effect.scoped,
      Effect.catchTags({
        LinkBroken: (broken) => Effect.succeed(broken),
        BytesError: () => Effect.succeed(new LinkBroken({ reason: "the link broke" })),
        WireError: (error) => Effect.succeed(new LinkBroken({ reason: error.reason })),
        TimeoutError: () => Effect.succeed(new LinkBroken({ reason: "no answer came" })),
      }),
    );
    if (broken === undefined) return;
    if (attempt >= tries && !(yield* patient(broken))) return yield* noLink(broken);
    const wait = yield* pauseAfter(attempt + 1);
    yield* reporter.say(
      "warning",
      line`no link yet: ${broken.reason}; again in ${wait.toFixed(1)} s`,
    );
    yield* Effect.sleep(`${Math.round(wait * 1000)} millis`);
  }
});
