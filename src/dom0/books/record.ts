/** What dom0 writes down: the mark of a run under way, the receipt that it accepts, the ledger. */
import { Clock, Effect } from "effect";
import { Ledger, type Submission } from "#services/Ledger";
import { type Pending, RunMark, type Unfinished } from "#services/RunMark";
import { signatureHolds } from "#src/proof/keys";
import { parseReceipt, receiptDiffers } from "#src/proof/texts";
import { instantOf, type PublicKey, type Session } from "#src/wire/names";
import { failed } from "#src/dom0/failure";
import { checkServer } from "#src/dom0/far/server";
import { inLedger, warned } from "./unusable.ts";
import type { Stored } from "#src/dom0/far/upload";

/** Changes the mark of the run under way; nothing where there is none. */
export const remark = Effect.fnUntraced(function* (
  change: (mark: Unfinished) => Unfinished | undefined,
) {
  const { read, write } = yield* RunMark;
  const mark = yield* inLedger(read);
  if (mark !== undefined) yield* inLedger(write(change(mark)));
});

/** The server's part in it is over: there is no receipt left to be fetched. */
export const withoutSubmission = ({
  backedUp: _known,
  submission: _settled,
  ticket: _used,
  ...mark
}: Unfinished): Unfinished => mark;

/** All that servers are to be asked about, the oldest first. */
export const pendingIn = (mark: Unfinished | undefined): ReadonlyArray<Pending> => {
  const { backedUp, earlier = [], submission, ticket } = mark ?? {};
  if (submission === undefined || ticket === undefined) return earlier;
  return [...earlier, { submission, ticket, ...(backedUp === undefined ? {} : { backedUp }) }];
};

/** Those are pending from runs before, and no others; of this one nothing is. */
export const withEarlier =
  (pending: ReadonlyArray<Pending>) =>
  (mark: Unfinished): Unfinished => {
    const { earlier: _known, ...rest } = withoutSubmission(mark);
    return pending.length === 0 ? rest : { ...rest, earlier: pending };
  };

/** The server's part in that one is over. */
export const settled =
  (session: Session) =>
  (mark: Unfinished): Unfinished => {
    const { earlier: _known, ...rest } =
      mark.submission?.session === session ? withoutSubmission(mark) : mark;
    const earlier = mark.earlier?.filter(({ submission }) => submission.session !== session) ?? [];
    return earlier.length === 0 ? rest : { ...rest, earlier };
  };

/** Is this what that server signed, for exactly what was counted here? */
export const checkReceipt = Effect.fnUntraced(function* (
  { receipt: text, signature }: Pick<Stored, "receipt" | "signature">,
  server: PublicKey,
  manifestText: string,
) {
  const receipt = parseReceipt(text);
  if (receipt === undefined)
    return yield* failed("integrity", "the server's receipt is not readable");
  if (!signatureHolds(server, "receipt", text, signature)) {
    return yield* failed("integrity", "the receipt is not signed by the pinned server");
  }
  const differs = receiptDiffers(receipt, manifestText);
  if (differs !== undefined) {
    return yield* failed("integrity", `the receipt is for something else: its ${differs} differs`);
  }
});

/**
 * Writes the run, whose receipt was checked, into the ledger; from then on it is finished. `hint` is what
 * to do where the ledger cannot be used. `former`: its server has another key by now, and that one is not pinned.
 */
export const complete = Effect.fnUntraced(function* (
  submission: Submission,
  stored: Pick<Stored, "receipt" | "signature">,
  hint = "put that right and run again: the next run fetches the receipt anew",
  former = false,
) {
  const ledger = yield* Ledger;
  const unwritten = ({ message }: { readonly message: string }) =>
    failed("usage", `the archive ${submission.name} is stored, but ${message}`, hint);
  const finished = instantOf(yield* Clock.currentTimeMillis);
  if (!former) {
    yield* checkServer(submission.destination, submission.server).pipe(
      Effect.mapError((error) => (error.exit === "usage" ? unwritten(error) : error)),
    );
  }
  // A run that died right behind its line in the ledger has left its mark: it is not to come twice.
  const { entries } = yield* Effect.mapError(ledger.entries, unwritten);
  if (entries.some(({ session }) => session === submission.session)) {
    return yield* remark(settled(submission.session));
  }
  yield* ledger
    .append({
      finished,
      ...submission,
      receipt: stored.receipt,
      receiptSignature: stored.signature,
    })
    .pipe(Effect.mapError(unwritten));
  // The line is there: a mark that stays costs the next run a question, and no more.
  yield* remark(settled(submission.session)).pipe(Effect.catch(warned));
});
