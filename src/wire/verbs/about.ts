/** `about [SIGNER SERIES]`: what the server is; with both, the highest ticket that it admitted of them. */
import { Schema } from "effect";
import type { Form } from "#src/wire/form";
import { signerLimit } from "#src/wire/limits";
import { Count, Instant, isPublicKey, isSeries, PublicKey, Series } from "#src/wire/names";
import { Sha256, Signature } from "#src/wire/names";
import { Alive, Failed } from "#src/wire/reply";

const Request = Schema.Struct({
  of: Schema.optionalKey(Schema.Struct({ signer: PublicKey, series: Series })),
});
type Request = typeof Request.Type;

export const About = Schema.Struct({
  type: Schema.Literal("about"),
  version: Schema.String.check(Schema.isMaxLength(64)),
  server: PublicKey,
  /** Fingerprints of the keys whose tickets it takes; null: the first one that comes reserves the store. */
  signers: Schema.NullOr(Schema.Array(Sha256).check(Schema.isMaxLength(signerLimit))),
  /** In bytes; null where none is set. */
  quota: Schema.NullOr(Count),
  /** Bytes that an upload may have now. */
  room: Count,
  /** Bytes that there may be besides once the uploads under way have ended: they keep them until then. */
  reserved: Count,
  clock: Instant,
  /** The AppArmor profile that it runs under; null for none. */
  confined: Schema.NullOr(Schema.String.check(Schema.isMaxLength(200))),
  /** Null where none was admitted, or none was asked for. */
  ticket: Schema.NullOr(
    Schema.Struct({ text: Schema.String.check(Schema.isMaxLength(2048)), signature: Signature }),
  ),
});

export const about = {
  schema: Request,
  words: ({ of }) => (of === undefined ? [] : [of.signer, of.series]),
  parse: (words) => {
    const [signer, series, ...rest] = words;
    if (words.length === 0) return {};
    return rest.length === 0 && isPublicKey(signer) && isSeries(series)
      ? { of: { signer, series } }
      : undefined;
  },
  reply: Schema.Union([About, Alive, Failed]),
} satisfies Form<Request, unknown>;
