/** Books that cannot be read or written: how that is told. */
import { Effect } from "effect";
import { Reporter } from "#services/Reporter";
import { line } from "#src/say/shown";
import { failed } from "#src/dom0/failure";

/** A ledger that cannot be used is a matter of this machine's set-up: a full disk, a planted link. */
export const inLedger = <A, R>(
  effect: Effect.Effect<A, { readonly message: string; readonly hint?: string }, R>,
) =>
  Effect.mapError(effect, ({ hint, message }) =>
    failed("usage", message, hint ?? "put that right, then run it again"),
  );

/** Warns of what could not be done with the books, where that changes nothing else. */
export const warned = Effect.fnUntraced(function* ({
  hint,
  message,
}: {
  readonly message: string;
  readonly hint?: string;
}) {
  const { say } = yield* Reporter;
  yield* say("warning", line`${message}`);
  if (hint !== undefined) yield* say("hint", line`${hint}`);
});
