/** Plain lines on stderr: for the carrier and the server, whose stderr a person sees at the far end. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { writeSync } from "node:fs";
import { type Level, Reporter } from "#services/Reporter";

/** `program: error: ...`; a note has no level in front of it. */
export const stderrReporter = (program: string): Layer.Layer<Reporter> =>
  Layer.succeed(Reporter, {
    say: (level: Level, text: string) =>
      Effect.sync(() => {
        try {
          writeSync(2, `${program}: ${level === "info" ? "" : `${level}: `}${text}\n`);
        } catch {
          // EAGAIN or EPIPE: nobody reads it, and a report must not fail what it reports on.
        }
      }),
    progress: () => Effect.void,
    clear: Effect.void,
  });
