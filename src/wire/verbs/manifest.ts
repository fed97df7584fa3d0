/** `manifest NAME`: what dom0 and the server signed for an archive. */
import { Schema } from "effect";
import { type Form, named, Named } from "#src/wire/form";
import { Signature } from "#src/wire/names";
import { Alive, Failed } from "#src/wire/reply";

export const Signed = Schema.Struct({
  type: Schema.Literal("manifest"),
  manifest: Schema.String,
  /** dom0's, over the manifest. */
  signature: Signature,
  receipt: Schema.String,
  /** The server's, over the receipt. */
  receiptSignature: Signature,
});

export const manifest = {
  ...named,
  reply: Schema.Union([Signed, Alive, Failed]),
} satisfies Form<Named, unknown>;
