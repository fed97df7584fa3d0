/** Keeps the lines of the server's log, for tests. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { type Entry, Journal } from "#services/Journal";

export const memoryJournal = (entries: Array<Entry> = []): Layer.Layer<Journal> =>
  Layer.succeed(Journal, {
    write: (entry) =>
      Effect.sync(() => {
        entries.push(entry);
      }),
  });
