/** What is printed for whoever called: data, on stdout. */
import { Context, Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { failed } from "#src/dom0/failure";

/** Why not all of it could be written, in a run of the program. */
export const Unwritten = Context.Reference<Set<string>>("qbackup/dom0/Unwritten", {
  defaultValue: () => new Set(),
});

/** Nobody reads it any more: that is the reader's own wish. */
const unread: ReadonlySet<unknown> = new Set(["EPIPE", "ECONNRESET", "ERR_STREAM_DESTROYED"]);

/** Writes data for whoever called. What cannot be written is no reason to stop: see `allWritten`. */
export const print = Effect.fnUntraced(function* (text: string) {
  const { stdout } = yield* Invocation;
  const missed = yield* Unwritten;
  yield* (yield* Reporter).clear;
  yield* stdout.write(new TextEncoder().encode(text)).pipe(
    Effect.catch(({ cause }) =>
      Effect.sync(() => {
        const { code, message } = cause as { readonly code?: unknown; readonly message?: string };
        if (!unread.has(code)) missed.add(message ?? String(cause));
      }),
    ),
  );
});

/** Fails where something was printed that did not get through: a page that is not on the disk is none. */
export const allWritten = Effect.gen(function* () {
  const [why] = yield* Unwritten;
  if (why === undefined) return;
  return yield* failed(
    "usage",
    `not all that was to be printed could be written: ${why}`,
    "where stdout leads there must be room for it: then run it again",
  );
});
