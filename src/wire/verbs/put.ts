/** `put` and a signed ticket: takes an archive in. The words are the ticket's, and its signature. */
import { Schema } from "effect";
import { parseTicketWords, SignedTicket, ticketWords } from "#src/proof/texts";
import type { Form } from "#src/wire/form";
import { Count, isSignature, Sha256, Signature } from "#src/wire/names";
import { Alive, Failed } from "#src/wire/reply";

/** It may begin or go on: `offset` bytes of the pack are durable, and `running` is over them. */
export const Ready = Schema.Struct({
  type: Schema.Literal("ready"),
  offset: Count,
  running: Sha256,
});
/** So many bytes are on disk together with their digests; `offset` is the end of a frame. */
export const Ack = Schema.Struct({
  type: Schema.Literal("ack"),
  offset: Count,
  running: Sha256,
});
/** The archive is committed: the text of the receipt, and the server's signature over it. */
export const Stored = Schema.Struct({
  type: Schema.Literal("stored"),
  receipt: Schema.String,
  signature: Signature,
});

export const put = {
  schema: SignedTicket,
  words: (ticket) => [...ticketWords(ticket), ticket.signature],
  parse: (words) => {
    const ticket = parseTicketWords(words.slice(0, -1));
    const signature = words.at(-1);
    return ticket !== undefined && isSignature(signature) ? { ...ticket, signature } : undefined;
  },
  reply: Schema.Union([Ready, Ack, Stored, Alive, Failed]),
} satisfies Form<SignedTicket, unknown>;
