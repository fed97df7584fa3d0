/** `unfinished.json`: the run under way; and `reserve`, which keeps room for its end. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import { Refusal, type StateDirectory } from "#layers/files/StateDirectory";
import { RunMark, Unfinished } from "#services/RunMark";
import { printable } from "#src/say/shown";

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Unfinished));
const encode = Schema.encodeSync(Unfinished);

export const fileRunMark = (state: StateDirectory): Layer.Layer<RunMark> =>
  Layer.succeed(RunMark, {
    reserve: Effect.acquireRelease(
      Effect.asVoid(state.attempt("keep room for the end of the run", state.hold)),
      () => Effect.ignore(state.attempt("give the room back", state.release)),
    ),
    read: state.attempt("read what the last run left", async () => {
      const bytes = await state.read("unfinished.json");
      if (bytes === undefined) return undefined;
      const run = Option.getOrUndefined(decode(bytes.toString("utf8")));
      if (run !== undefined) return run;
      throw new Refusal(
        `${printable(state.file("unfinished.json"))} is damaged`,
        "look at it, then remove it",
      );
    }),
    write: (run) =>
      Effect.asVoid(
        state.attempt("note the state of the run", async () => {
          if (run === undefined) return state.remove("unfinished.json");
          const text = `${JSON.stringify(encode(run))}\n`;
          return state.atLast(() => state.replaceText("unfinished.json", text));
        }),
      ),
  });
