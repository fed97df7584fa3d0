/** `check NAME`: the server reads, hashes and walks an archive again; what it finds is kept. */
import { Schema } from "effect";
import { type Form, named, Named } from "#src/wire/form";
import { Count, Sha256 } from "#src/wire/names";
import { Alive, Failed } from "#src/wire/reply";

export const Checked = Schema.Struct({
  type: Schema.Literal("checked"),
  /** In bytes. */
  size: Count,
  members: Count,
  root: Sha256,
});

export const check = {
  ...named,
  reply: Schema.Union([Checked, Alive, Failed]),
} satisfies Form<Named, unknown>;
