/** `recipe NAME`: the runs over packs that an archive is, as text in frames. */
import { Schema } from "effect";
import { type Form, named, Named } from "#src/wire/form";
import { Alive, End, Failed, Ready } from "#src/wire/reply";

export const recipe = {
  ...named,
  reply: Schema.Union([Ready, End, Alive, Failed]),
} satisfies Form<Named, unknown>;
