/** `table SESSION`: the members of a committed pack, as text in frames. It never changes. */
import { Schema } from "effect";
import type { Form } from "#src/wire/form";
import { isSession, Session } from "#src/wire/names";
import { Alive, End, Failed, Ready } from "#src/wire/reply";

const Request = Schema.Struct({ session: Session });

export const table = {
  schema: Request,
  words: ({ session }) => [session],
  parse: ([session, ...rest]) =>
    rest.length === 0 && isSession(session) ? { session } : undefined,
  reply: Schema.Union([Ready, End, Alive, Failed]),
} satisfies Form<typeof Request.Type, unknown>;
