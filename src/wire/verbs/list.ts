/**
 * `list [PREFIX [AFTER]]`: the archives of the store in order of name, at most 10,000 behind AFTER;
 * PREFIX `-` is every archive. Where some were pruned, their tombstones.
 */
import { Schema } from "effect";
import type { Form } from "#src/wire/form";
import {
  Count,
  Instant,
  isName,
  isPrefix,
  Name,
  Prefix,
  PublicKey,
  Series,
  Session,
  Sha256,
  Signature,
} from "#src/wire/names";
import { Alive, Failed } from "#src/wire/reply";

const Request = Schema.Struct({
  prefix: Schema.optionalKey(Prefix),
  after: Schema.optionalKey(Name),
});
type Request = typeof Request.Type;

/** What came in the bare form has no signer, no series and no run. */
export const Archive = Schema.Struct({
  type: Schema.Literal("archive"),
  name: Name,
  session: Session,
  signer: Schema.NullOr(PublicKey),
  series: Schema.NullOr(Series),
  run: Schema.NullOr(Count),
  /** In bytes. */
  size: Count,
  members: Count,
  root: Sha256,
  stored: Instant,
  /** The server found it so when it last looked. */
  damaged: Schema.Boolean,
});
export const Pruned = Schema.Struct({
  type: Schema.Literal("pruned"),
  name: Name,
  tombstone: Schema.String,
  signature: Signature,
});
export const End = Schema.Struct({ type: Schema.Literal("end"), more: Schema.Boolean });

export const list = {
  schema: Request,
  words: ({ after, prefix }) =>
    after === undefined ? (prefix === undefined ? [] : [prefix]) : [prefix ?? "-", after],
  parse: (words) => {
    const [prefix, after, ...rest] = words;
    if (rest.length > 0) return undefined;
    if (prefix !== undefined && prefix !== "-" && !isPrefix(prefix)) return undefined;
    if (after !== undefined && !isName(after)) return undefined;
    return {
      ...(prefix === undefined || prefix === "-" ? {} : { prefix }),
      ...(after === undefined ? {} : { after }),
    };
  },
  reply: Schema.Union([Archive, Pruned, End, Alive, Failed]),
} satisfies Form<Request, unknown>;
