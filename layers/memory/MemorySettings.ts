/** Settings from a table, for tests. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { Settings } from "#services/Settings";

export const memorySettings = (values: Readonly<Record<string, string>>): Layer.Layer<Settings> =>
  Layer.succeed(Settings, {
    get: (name) => Effect.sync(() => (Object.hasOwn(values, name) && values[name]) || undefined),
  });
