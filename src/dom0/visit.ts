/** For the verbs that only look at what is on the server: the destination qube, for as long as it takes. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Ledger } from "#services/Ledger";
import { Locks } from "#services/Locks";
import type { Session } from "#src/wire/names";
import { startDestination, takeLock } from "./destination.ts";

/** Has the destination qube run until the scope closes. */
export const visit = Effect.fnUntraced(function* (options: {
  readonly destination: string;
  readonly keepRunning: boolean;
  /** Not beside a run: fails while one is under way. */
  readonly exclusive?: boolean;
}) {
  const { place } = yield* Ledger;
  // While a run is under way the qube runs anyway, and stopping it is the run's business.
  if (options.exclusive === true) yield* takeLock;
  const alone =
    options.exclusive === true ||
    (yield* (yield* Locks).hold(`a run with the ledger in ${place}`).pipe(
      Effect.as(true),
      Effect.catch(() => Effect.succeed(false)),
    ));
  if (!alone) return;
  const session = Buffer.from((yield* Invocation).entropy(16)).toString("hex") as Session;
  yield* startDestination({ ...options, session });
});

/** Writes data for whoever called; nobody may be reading it any more. */
export const print = Effect.fnUntraced(function* (text: string) {
  const { stdout } = yield* Invocation;
  yield* Effect.ignore(stdout.write(new TextEncoder().encode(text)));
});

/** Columns as wide as their widest cell, two spaces between them. */
export const columns = (lines: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = lines[0]!.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)));
  return lines
    .map(
      (line) =>
        `${line
          .map((cell, i) => cell.padEnd(widths[i]!))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
};
