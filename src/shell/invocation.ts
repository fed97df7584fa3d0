/**
 * Who called, and for what: argv and SSH_ORIGINAL_COMMAND become one value, or a refusal.
 *
 * Only a forced command is served. Its client's words are in SSH_ORIGINAL_COMMAND, and argv is the
 * administrator's: the options themselves, or, where this program is also the login shell, `-c` and
 * the option line. A login shell without a forced command gets `-c` and the client's own words: then
 * sshd would also let the client signal this process (SIGUSR1 opens node's debugger), forward ports
 * and use sftp, so nothing is served.
 *
 * sshd sets SSH_ORIGINAL_COMMAND itself, and over what a client sent. Without a forced command, and
 * with an AcceptEnv that takes it, a client could set it: such an sshd takes NODE_OPTIONS too, and
 * nothing that a program checks for itself would help.
 */
import { Schema } from "effect";
import { printable } from "#src/say/shown";
import { lineLimit } from "#src/wire/limits";
import { isName, isPublicKey, type Name, type PublicKey, Sha256 } from "#src/wire/names";
import type { Code } from "#src/wire/reply";
import { isVerb, isWireCommand, parseCommand, type Request, type Verb } from "#src/wire/request";

export interface Options {
  /** The store; undefined is the account's home. */
  readonly root?: string;
  /** Bytes that the store may hold, uploads included. */
  readonly quota?: number;
  /** Refuse a store without an identity; otherwise the first upload makes one. */
  readonly noInit?: true;
  /** What this key may ask for, `about` in any case; undefined is everything. */
  readonly allow?: ReadonlySet<Verb>;
  /** Bytes a second that a stream has to bring in an hour. */
  readonly floor?: number;
  /** Take the bare form where there are signers, too. */
  readonly allowUnsigned?: true;
}

/** What the owner of the server wants with the signers of a store. */
export type SignersWish =
  | { readonly do: "show" }
  | { readonly do: "add"; readonly key: PublicKey }
  /** By the key itself, or by its fingerprint. */
  | { readonly do: "remove"; readonly key: string };

export type Call =
  | { readonly kind: "request"; readonly request: Request; readonly options: Options }
  /** The bare form, a path alone: standard input is the archive. */
  | { readonly kind: "bare"; readonly name: Name; readonly options: Options }
  /** On the server itself: show the identity; `init` makes it where there is none. */
  | { readonly kind: "identity" | "init"; readonly options: Options }
  | { readonly kind: "signers"; readonly wish: SignersWish; readonly options: Options }
  | { readonly kind: "help" | "version" | "login" }
  /** `wire`: the client speaks the wire, so it is told on standard output too. */
  | {
      readonly kind: "refused";
      readonly refusal: { readonly code: Code; readonly message: string };
      readonly wire: boolean;
      /** As far as they could be read. */
      readonly options?: Options;
      /** What the key may not ask for, where that is the reason. */
      readonly asked?: Call & { kind: "request" | "bare" };
    };

const refused = (code: Code, message: string, wire = false): Call & { kind: "refused" } => ({
  kind: "refused",
  refusal: { code, message },
  wire,
});

const scale: Readonly<Record<string, number>> = {
  "": 1,
  K: 2 ** 10,
  M: 2 ** 20,
  G: 2 ** 30,
  T: 2 ** 40,
};

/** Bytes, with K, M, G or T for powers of 1024. */
const parseSize = (text: string): number | undefined => {
  const match = /^([1-9][0-9]{0,14})([KMGT]?)$/.exec(text);
  const bytes = match === null ? Number.NaN : Number(match[1]) * scale[match[2]!]!;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
};

/** Absolute, without `..`, and of a charset that needs no quoting anywhere. */
const parseRoot = (text: string): string | undefined =>
  /^\/[A-Za-z0-9._+@/-]{0,1023}$/.test(text) && !text.split("/").includes("..") ? text : undefined;

/** Verbs with commas between them, each once. */
const parseVerbs = (text: string): ReadonlySet<Verb> | undefined => {
  const words = text.split(",");
  const verbs = new Set(words.filter(isVerb));
  return verbs.size === words.length ? verbs : undefined;
};

const only = <K extends keyof Options>(key: K, value: Options[K] | undefined) =>
  value === undefined ? undefined : { [key]: value };

/** What each option means; undefined: it has no such value. */
const known: Readonly<Record<string, (value: () => string) => Options | undefined>> = {
  "--root": (value) => only("root", parseRoot(value())),
  "--quota": (value) => only("quota", parseSize(value())),
  "--floor": (value) => only("floor", parseSize(value())),
  "--allow": (value) => only("allow", parseVerbs(value())),
  "--no-init": () => ({ noInit: true }),
  "--allow-unsigned": () => ({ allowUnsigned: true }),
};

/** A text for what is no option, has no such value, or stands there twice: which, and why. */
const parseOptions = (words: ReadonlyArray<string>): Options | string => {
  const seen = new Set<string>();
  let options: Options = {};
  const rest = [...words];
  for (let option = rest.shift(); option !== undefined; option = rest.shift()) {
    if (!Object.hasOwn(known, option)) return `there is no option ${printable(option, 40)}`;
    if (seen.has(option)) return `${option} stands there twice`;
    seen.add(option);
    let value = "";
    const more = known[option]!(() => (value = rest.shift() ?? ""));
    if (more === undefined) return `${option} cannot be ${printable(value, 40) || "empty"}`;
    options = { ...options, ...more };
  }
  return options;
};

/** `signers [add KEY|remove KEY]`, the words behind the first; and what is left of them. */
const parseSigners = (
  words: ReadonlyArray<string>,
): { readonly wish: SignersWish; readonly rest: ReadonlyArray<string> } | string => {
  const [what, key = "", ...rest] = words;
  const none = `${printable(key, 50) || "nothing"} is no key: qbackup key show prints it, in dom0`;
  if (what === "add") return isPublicKey(key) ? { wish: { do: "add", key }, rest } : none;
  if (what !== "remove") return { wish: { do: "show" }, rest: words };
  return isPublicKey(key) || isSha256(key) ? { wish: { do: "remove", key }, rest } : none;
};
const isSha256 = Schema.is(Sha256);

/** `[/abs/path/]qbackup-shell` and its options, single spaces; a text for anything else. */
const parseOptionLine = (line: string): Options | string => {
  const [program = "", ...words] = line.split(" ");
  return /^(?:\/(?:[A-Za-z0-9._+-]+\/)*)?qbackup-shell$/.test(program)
    ? parseOptions(words)
    : "it is another program";
};

const parseRequest = (command: string, options: Options): Call => {
  const call = requestOf(command, options);
  return call.kind === "refused" ? { ...call, options } : call;
};
const requestOf = (command: string, options: Options): Call => {
  const wire = isWireCommand(command);
  if (new TextEncoder().encode(command).length > lineLimit) {
    return refused("bad-request", `a request of more than ${lineLimit} bytes`, wire);
  }
  if (wire) {
    const parsed = parseCommand(command);
    if ("refusal" in parsed) return { kind: "refused", refusal: parsed.refusal, wire };
    const { request } = parsed;
    const asked = { kind: "request", request, options } as const;
    if (may(options, request.verb)) return asked;
    const message = `this key may not ask for ${request.verb}`;
    return { ...refused("not-permitted", message, wire), asked };
  }
  if (command === "" || /\s/.test(command)) {
    return refused("bad-request", "this account keeps backups and runs no commands");
  }
  if (!isName(command) || command.startsWith("qbackup/")) {
    return refused("bad-name", "this account keeps backups, and an archive cannot have that name");
  }
  // It adds an archive, as `put` does.
  const asked = { kind: "bare", name: command, options } as const;
  return may(options, "put")
    ? asked
    : { ...refused("not-permitted", "this key may not store anything"), asked };
};
/** What the server is, whoever may use it has to know. */
const may = ({ allow }: Options, verb: Verb): boolean =>
  verb === "about" || allow === undefined || allow.has(verb);

/** Of the options, the owner's commands take only where the store is; a text for anything else. */
const placeAlone = (words: ReadonlyArray<string>): Options | string => {
  const options = parseOptions(words);
  if (typeof options === "string") return options;
  const other = Object.keys(options).some((key) => key !== "root");
  return other ? "of the options, the owner's commands take --root alone" : options;
};

const unforced =
  "nothing is served: sshd forces no command on this account; on the server, as root: make server user=ACCOUNT";
/** What root types on the server for these words, with the names still to be filled in. */
export const onServer = (words: string): string =>
  `runuser -u ACCOUNT -- /usr/bin/qbackup-shell ${words} --root STORE`;
const ownerOnly = (word: string) =>
  `this account's login shell runs no commands; as root: ${onServer(word === "signers" ? "signers add KEY" : word)}`;

const wrong = (why: string) => refused("bad-request", `${why}; see --help`);

/** `original` is SSH_ORIGINAL_COMMAND. */
export const parseInvocation = (
  args: ReadonlyArray<string>,
  original: string | undefined,
): Call => {
  const [first, second, ...more] = args;
  if (first === "-c") {
    if (second === undefined || more.length > 0) {
      return refused("bad-request", "a login shell takes one command after -c");
    }
    const line = parseOptionLine(second);
    if (original === undefined) {
      // A forced command, but the client asked for none.
      if (typeof line !== "string") return { kind: "login" };
      const [, word] = /^\S*qbackup-shell (identity|init|signers)\b/.exec(second) ?? [];
      return word === undefined
        ? refused("internal", unforced, isWireCommand(second))
        : refused("bad-request", ownerOnly(word));
    }
    return typeof line === "string"
      ? refused("bad-request", `the forced command is not qbackup-shell with its options: ${line}`)
      : parseRequest(original, line);
  }
  if (original === undefined) {
    if (args.length === 1 && (first === "--help" || first === "-h")) return { kind: "help" };
    if (args.length === 1 && first === "--version") return { kind: "version" };
    if (first === "identity" || first === "init") {
      const options = placeAlone(args.slice(1));
      return typeof options === "string" ? wrong(options) : { kind: first, options };
    }
    if (first === "signers") {
      const signers = parseSigners(args.slice(1));
      if (typeof signers === "string") return wrong(signers);
      const options = placeAlone(signers.rest);
      return typeof options === "string"
        ? wrong(options)
        : { kind: "signers", wish: signers.wish, options };
    }
    if (first !== undefined && !first.startsWith("-")) {
      return wrong(`there is no command ${printable(first, 40)}, but identity, init and signers`);
    }
  }
  const options = parseOptions(args);
  if (typeof options === "string") return wrong(options);
  return original === undefined ? { kind: "login" } : parseRequest(original, options);
};
