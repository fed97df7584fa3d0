/** What every Notifier layer does. */
import { assert, it } from "@effect/vitest";
import { Effect, type Layer } from "effect";
import { Notifier } from "#services/Notifier";

export interface Shown {
  readonly urgency: string;
  readonly summary: string;
  readonly body: string;
}

export const notifierContract = (
  name: string,
  make: () => { readonly layer: Layer.Layer<Notifier>; readonly shown: () => ReadonlyArray<Shown> },
) =>
  it.live(`${name}: shows notifications as they are`, () => {
    const { layer, shown } = make();
    return Effect.gen(function* () {
      const { notify } = yield* Notifier;
      yield* notify("critical", "backup failed", "--body; $(look) <b>");
      yield* notify("low", "-done", "1.2 GiB");
      assert.deepStrictEqual(shown(), [
        { urgency: "critical", summary: "backup failed", body: "--body; $(look) <b>" },
        { urgency: "low", summary: "-done", body: "1.2 GiB" },
      ]);
    }).pipe(Effect.provide(layer));
  });
