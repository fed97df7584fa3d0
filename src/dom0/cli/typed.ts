/** What a person types. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { readExactLine } from "#src/wire/lines";

/** Minutes to type a line. */
const typingLimit = 10;

/** One line; `?` for what is none. Undefined where nobody types any, or not in ten minutes. */
export const typedLine = Effect.gen(function* () {
  const { stdin } = yield* Invocation;
  return yield* readExactLine(stdin).pipe(
    Effect.catchTags({
      WireError: () => Effect.succeed("?"),
      BytesError: () => Effect.undefined,
    }),
    Effect.timeoutOrElse({ duration: `${typingLimit} minutes`, orElse: () => Effect.undefined }),
  );
});
