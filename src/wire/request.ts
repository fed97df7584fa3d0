/**
 * The requests, and the two ways of writing them: a JSON line for the qrexec service, whose argument
 * is the verb, and the ssh command `qbackup/1 VERB [TOKEN...]`.
 *
 * One table says what verbs there are; what is not in it is refused by both readers.
 */
import { Option, Schema } from "effect";
import type { Form, ReplyOf, RequestOf } from "./form.ts";
import { isName } from "./names.ts";
import { replyReader } from "./reply.ts";
import { about } from "./verbs/about.ts";
import { check } from "./verbs/check.ts";
import { list } from "./verbs/list.ts";
import { manifest } from "./verbs/manifest.ts";
import { put } from "./verbs/put.ts";
import { read } from "./verbs/read.ts";
import { recipe } from "./verbs/recipe.ts";
import { table } from "./verbs/table.ts";

const forms = { about, put, list, manifest, recipe, table, read, check };

export type Verb = keyof typeof forms;
/** What the server may say to a verb. */
export type Reply<V extends Verb = Verb> = { [W in V]: ReplyOf<(typeof forms)[W]> }[V];
/** What is asked for. */
export type Request<V extends Verb = Verb> = {
  [W in V]: { readonly verb: W } & RequestOf<(typeof forms)[W]>;
}[V];

const formOf = (verb: Verb) => forms[verb] as Form<object, unknown>;

export const verbs = Object.keys(forms) as ReadonlyArray<Verb>;
export const isVerb = (word: string): word is Verb => Object.hasOwn(forms, word);

/** Why a request is refused, in the wire's own error codes. */
export interface Refusal {
  readonly code: "bad-request" | "bad-name" | "unsupported";
  readonly message: string;
}
export type Parsed = { readonly request: Request } | { readonly refusal: Refusal };

const refuse = (code: Refusal["code"], message: string): Parsed => ({ refusal: { code, message } });

/** The ssh command of a request. Every word in it is of a charset that no shell gives a meaning to. */
export const toCommand = (request: Request): string =>
  ["qbackup/1", request.verb, ...formOf(request.verb).words(request)].join(" ");

/** Does this command claim to be of the wire at all? The rest may be a bare path. */
export const isWireCommand = (command: string): boolean => /^qbackup\/\d/.test(command);

/** Verbs whose first word is an archive's name. */
const aboutNames: ReadonlySet<Verb> = new Set<Verb>(["put", "manifest", "recipe", "check"]);

/** Reads `qbackup/1 VERB [TOKEN...]`: single spaces, no quoting, nothing before or after. */
export const parseCommand = (command: string): Parsed => {
  const [head, verb, ...words] = command.split(" ");
  if (head !== "qbackup/1") {
    return isWireCommand(command)
      ? refuse("unsupported", "this server speaks version 1 of the wire")
      : refuse("bad-request", "not a request of qbackup");
  }
  if (verb === undefined || !isVerb(verb)) return refuse("bad-request", "no such verb");
  const parsed = formOf(verb).parse(words);
  if (parsed !== undefined) return { request: { verb, ...parsed } as Request };
  const [name] = words;
  return aboutNames.has(verb) && name !== undefined && !isName(name)
    ? refuse("bad-name", "the name is not one that an archive can have")
    : refuse("bad-request", `the words after ${verb} are not what it takes`);
};

/** The request line for the qrexec service, without its newline. */
export const toLine = (request: Request): string => JSON.stringify({ ...request, verb: undefined });

/** Reads the service argument (the verb) and the request line (its parameters). */
export const parseLine = (verb: string, line: string): Parsed => {
  if (!isVerb(verb)) return refuse("bad-request", "no such verb");
  const decode = Schema.decodeUnknownOption(Schema.fromJsonString(formOf(verb).schema), {
    onExcessProperty: "error",
  });
  const parsed = decode(line);
  return Option.isSome(parsed)
    ? { request: { verb, ...parsed.value } as Request }
    : refuse("bad-request", `the request line is not what ${verb} takes`);
};

const readers: { readonly [V in Verb]?: (line: string) => unknown } = {};
for (const verb of verbs) {
  Object.assign(readers, { [verb]: replyReader(formOf(verb).reply) });
}
/** Reads a line as a reply to this verb, and to no other; undefined when it is none. */
export const parseReply = <V extends Verb>(verb: V, line: string): Reply<V> | undefined =>
  readers[verb]!(line) as Reply<V> | undefined;
