/**
 * `read`: a conversation. The client writes `SESSION MEMBER BLOCK COUNT\n` for blocks of one member of
 * a pack; the server answers each in order, a frame a block: the block, then its siblings. In place of
 * one that it cannot give, an error frame and an error line. An empty line ends it.
 */
import { Schema } from "effect";
import type { Form } from "#src/wire/form";
import { isSession, parseNumber, type Session } from "#src/wire/names";
import { Alive, Failed, Ready } from "#src/wire/reply";

/** No parameters; a struct without fields would take anything. */
const Request = Schema.Record(Schema.String, Schema.Never);

/** `count` blocks, from block `block` on, of member `member` of the pack of `session`; all from 0. */
export interface Ask {
  readonly session: Session;
  readonly member: number;
  readonly block: number;
  readonly count: number;
}
/** With its newline. */
export const askLine = ({ block, count, member, session }: Ask): string =>
  `${session} ${member} ${block} ${count}\n`;
/** Bytes of the longest line, its newline included. */
export const askLimit = 32 + 3 * 17 + 1;

/** Reads a line without its newline; undefined for anything else, `alive` for a sign of life. */
export const parseAsk = (line: string): Ask | "alive" | "end" | undefined => {
  if (line === "") return "end";
  if (line === ".") return "alive";
  const [session, ...numbers] = line.split(" ");
  const [member, block, count = 0] = numbers.map((text) => parseNumber(text));
  return numbers.length === 3 &&
    isSession(session) &&
    member !== undefined &&
    block !== undefined &&
    count > 0
    ? { session, member, block, count }
    : undefined;
};

export const read = {
  schema: Request,
  words: () => [],
  parse: (words) => (words.length === 0 ? {} : undefined),
  reply: Schema.Union([Ready, Alive, Failed]),
} satisfies Form<typeof Request.Type, unknown>;
