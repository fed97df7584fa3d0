/**
 * The requests, and the two ways of writing them: a JSON line for the qrexec service, whose argument
 * is the verb, and the ssh command `qbackup/1 VERB [TOKEN...]`.
 *
 * One table says what verbs there are; what is not in it is refused by both readers.
 */
import { Option, Schema } from "effect";
import { isName, isPrefix, isSession, Name, parseNumber, Prefix, Session, Count } from "./names.ts";

/** Bytes of a request line or a reply line, newline included. */
export const lineLimit = 4096;

export const Put = Schema.Struct({ name: Name, session: Session });
export const List = Schema.Struct({ prefix: Schema.optionalKey(Prefix) });
export const Manifest = Schema.Struct({ name: Name });
export const Read = Schema.Struct({ name: Name, first: Count, count: Count });
export const Check = Schema.Struct({ name: Name });

export type Request =
  | ({ readonly verb: "put" } & typeof Put.Type)
  | ({ readonly verb: "list" } & typeof List.Type)
  | ({ readonly verb: "manifest" } & typeof Manifest.Type)
  | ({ readonly verb: "read" } & typeof Read.Type)
  | ({ readonly verb: "check" } & typeof Check.Type);
export type Verb = Request["verb"];

/** Writes a request's words and reads them back; undefined when they are not its words. */
interface Form<V extends Verb> {
  readonly schema: Schema.Codec<Omit<Extract<Request, { verb: V }>, "verb">, unknown>;
  readonly words: (request: Extract<Request, { verb: V }>) => ReadonlyArray<string>;
  readonly parse: (
    words: ReadonlyArray<string>,
  ) => Omit<Extract<Request, { verb: V }>, "verb"> | undefined;
}

const named = (words: ReadonlyArray<string>): { readonly name: Name } | undefined => {
  const [name, ...rest] = words;
  return rest.length === 0 && isName(name) ? { name } : undefined;
};

const forms: { readonly [V in Verb]: Form<V> } = {
  put: {
    schema: Put,
    words: (r) => [r.name, r.session],
    parse: ([name, session, ...rest]) =>
      rest.length === 0 && isName(name) && isSession(session) ? { name, session } : undefined,
  },
  list: {
    schema: List,
    words: (r) => (r.prefix === undefined ? [] : [r.prefix]),
    parse: ([prefix, ...rest]) =>
      prefix === undefined ? {} : rest.length === 0 && isPrefix(prefix) ? { prefix } : undefined,
  },
  manifest: { schema: Manifest, words: (r) => [r.name], parse: named },
  read: {
    schema: Read,
    words: (r) => [r.name, String(r.first), String(r.count)],
    parse: ([name, from, number, ...rest]) => {
      const first = parseNumber(from ?? "");
      const count = parseNumber(number ?? "");
      return rest.length === 0 && isName(name) && first !== undefined && count !== undefined
        ? { name, first, count }
        : undefined;
    },
  },
  check: { schema: Check, words: (r) => [r.name], parse: named },
};

export const isVerb = (word: string): word is Verb => Object.hasOwn(forms, word);

/** Why a request is refused, in the wire's own error codes. */
export interface Refusal {
  readonly code: "bad-request" | "bad-name" | "unsupported";
  readonly message: string;
}
export type Parsed = { readonly request: Request } | { readonly refusal: Refusal };

const refuse = (code: Refusal["code"], message: string): Parsed => ({ refusal: { code, message } });

/** The ssh command of a request. Every word in it is of a charset that no shell gives a meaning to. */
export const toCommand = (request: Request): string => {
  const form = forms[request.verb] as Form<Verb>;
  return ["qbackup/1", request.verb, ...form.words(request)].join(" ");
};

/** Does this command claim to be of the wire at all? The rest may be a bare path. */
export const isWireCommand = (command: string): boolean => /^qbackup\/\d/.test(command);

/** Reads `qbackup/1 VERB [TOKEN...]`: single spaces, no quoting, nothing before or after. */
export const parseCommand = (command: string): Parsed => {
  const [head, verb, ...words] = command.split(" ");
  if (head !== "qbackup/1") {
    return isWireCommand(command)
      ? refuse("unsupported", "this server speaks version 1 of the wire")
      : refuse("bad-request", "not a request of qbackup");
  }
  if (verb === undefined || !isVerb(verb)) return refuse("bad-request", "no such verb");
  const form = forms[verb] as Form<Verb>;
  const parsed = form.parse(words);
  if (parsed !== undefined) return { request: { verb, ...parsed } as Request };
  const [name] = words;
  return verb !== "list" && name !== undefined && !isName(name)
    ? refuse("bad-name", "the name is not one that an archive can have")
    : refuse("bad-request", `the words after ${verb} are not what it takes`);
};

/** The request line for the qrexec service, without its newline. */
export const toLine = (request: Request): string => JSON.stringify({ ...request, verb: undefined });

/** Reads the service argument (the verb) and the request line (its parameters). */
export const parseLine = (verb: string, line: string): Parsed => {
  if (!isVerb(verb)) return refuse("bad-request", "no such verb");
  const form = forms[verb] as Form<Verb>;
  const decode = Schema.decodeUnknownOption(Schema.fromJsonString(form.schema), {
    onExcessProperty: "error",
  });
  const parsed = decode(line);
  return Option.isSome(parsed)
    ? { request: { verb, ...parsed.value } as Request }
    : refuse("bad-request", `the request line is not what ${verb} takes`);
};
