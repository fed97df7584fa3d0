/** What every layer of Settings does. */
import { assert, describe, it } from "@effect/vitest";
import * as Effect from "effect/Effect";
import type * as Layer from "effect/Layer";
import { Settings } from "#services/Settings";

export const settingsContract = (
  name: string,
  make: (values: Readonly<Record<string, string>>) => Layer.Layer<Settings>,
): unknown =>
  describe(`Settings: ${name}`, () => {
    const get = (values: Readonly<Record<string, string>>, wanted: string) =>
      Settings.use((settings) => settings.get(wanted)).pipe(Effect.provide(make(values)));

    it.effect("gives what is set, and nothing for what is not", () =>
      Effect.gen(function* () {
        const values = { SSH_CONN: "backup@server", DISK_PATH: "/dev/x y", EMPTY: "" };
        assert.strictEqual(yield* get(values, "SSH_CONN"), "backup@server");
        assert.strictEqual(yield* get(values, "DISK_PATH"), "/dev/x y");
        assert.isUndefined(yield* get(values, "EMPTY"));
        assert.isUndefined(yield* get(values, "SSH"));
        assert.isUndefined(yield* get(values, "constructor"));
      }),
    );
  });
