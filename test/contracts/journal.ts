/** What every Journal layer does. */
import { assert, it } from "@effect/vitest";
import { Effect, type Layer } from "effect";
import { Journal } from "#services/Journal";
import { line } from "#src/say/shown";

export const journalContract = (
  name: string,
  /** `lines`: what was written since, without what the layer puts before it. */
  make: () => { readonly layer: Layer.Layer<Journal>; readonly lines: () => ReadonlyArray<string> },
) => {
  it.live(`${name}: keeps each line once, in order`, () => {
    const { layer, lines } = make();
    return Effect.gen(function* () {
      const { write } = yield* Journal;
      const texts = Array.from({ length: 5 }, (_, i) => line`verb=put name=a${i} verdict=begun`);
      for (const text of texts) yield* write({ text, store: undefined });
      assert.deepStrictEqual(lines(), texts);
    }).pipe(Effect.provide(layer));
  });

  it.live(`${name}: loses and tears none of two sessions at once`, () => {
    const { layer, lines } = make();
    return Effect.gen(function* () {
      const session = (letter: string) =>
        Effect.gen(function* () {
          const { write } = yield* Journal;
          for (let i = 0; i < 20; i++) {
            yield* write({ text: line`${letter.repeat(300)} ${i}`, store: undefined });
          }
        }).pipe(Effect.provide(layer, { local: true }));
      yield* Effect.all([session("a"), session("b")], { concurrency: 2 });
      for (const letter of ["a", "b"]) {
        const own = lines().filter((text) => text.startsWith(letter));
        const written = Array.from({ length: 20 }, (_, i) => `${letter.repeat(300)} ${i}`);
        assert.deepStrictEqual(own, written);
      }
    });
  });
};
