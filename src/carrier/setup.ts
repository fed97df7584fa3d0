/** How this qube is set up for the carrier, and how it says what is missing. */
import { Effect, Schema } from "effect";
import { Settings } from "#services/Settings";
import { type Code, codes } from "#src/wire/reply";
import { Line, line, printable } from "#src/say/shown";
import { isDestination } from "./destination.ts";

/** Refused before ssh started, when stdout is still ours. */
export class Refused extends Schema.TaggedError<Refused>()("Refused", {
  code: Schema.Literals(codes),
  reason: Line,
  hint: Schema.optionalKey(Line),
}) {}

/** What others said in these texts is cleaned here. */
export const refuse = (code: Code, reason: string, hint?: string) =>
  new Refused({
    code,
    reason: line`${reason}`,
    ...(hint === undefined ? {} : { hint: line`${hint}` }),
  });

export const setting = Effect.fnUntraced(function* (name: string) {
  const settings = yield* Settings;
  return yield* settings
    .get(name)
    .pipe(
      Effect.mapError((error) =>
        refuse("internal", error.message, `write it as a plain ${name}=value on a line of its own`),
      ),
    );
});

/** Where SSH_CONN says that the server is. */
export const destination = Effect.gen(function* () {
  const text = yield* setting("SSH_CONN");
  if (text === undefined) {
    return yield* refuse(
      "internal",
      "SSH_CONN is not set",
      "in this qube, put SSH_CONN=account@server into ~/.bashrc",
    );
  }
  if (isDestination(text)) return text;
  return yield* refuse(
    "internal",
    `SSH_CONN is not a destination: ${printable(text)}`,
    "account@server, a Host of ~/.ssh/config, or ssh://account@server:port",
  );
});
