/** A program that does what a test says, in place of this one: what it was asked is recorded. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { type Ended, Itself, ItselfError } from "#services/Itself";

export interface ItselfScript {
  /** Filled in: the command lines, in words, and the settings that came with each. */
  readonly asked: Array<{
    readonly args: ReadonlyArray<string>;
    readonly settings: Readonly<Record<string, string>>;
  }>;
  /** What comes of a command line; undefined for one that cannot be run. */
  answer: (args: ReadonlyArray<string>) => Effect.Effect<Partial<Ended> | undefined>;
}

export const itselfScript = (answer: ItselfScript["answer"]): ItselfScript => ({
  asked: [],
  answer,
});

export const memoryItself = (script: ItselfScript): Layer.Layer<Itself> =>
  Layer.succeed(Itself, {
    runtime: "node v0.0.0",
    run: Effect.fnUntraced(function* (args, settings) {
      script.asked.push({ args, settings });
      const ended = yield* script.answer(args);
      if (ended === undefined) return yield* new ItselfError({ detail: "it is not there" });
      return { code: 0, stdout: "", said: [], ...ended };
    }),
  });
