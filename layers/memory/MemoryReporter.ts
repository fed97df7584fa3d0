/** Keeps what was said, for tests. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { type Level, type Progress, Reporter } from "#services/Reporter";

export interface Said {
  readonly lines: Array<{ readonly level: Level; readonly text: string }>;
  readonly progress: Array<Progress>;
}

export const memoryReporter = (said: Said = { lines: [], progress: [] }): Layer.Layer<Reporter> =>
  Layer.succeed(Reporter, {
    say: (level: Level, text: string) => Effect.sync(() => void said.lines.push({ level, text })),
    progress: (now) => Effect.sync(() => void said.progress.push(now)),
    clear: Effect.void,
  });
