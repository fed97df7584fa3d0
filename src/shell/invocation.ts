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
import { isName, type Name } from "#src/wire/names";
import type { Code } from "#src/wire/reply";
import { isWireCommand, lineLimit, parseCommand, type Request } from "#src/wire/request";

export interface Options {
  /** The store; undefined is the account's home. */
  readonly root?: string;
  /** Bytes that the store may hold, uploads included. */
  readonly quota?: number;
  /** Refuse a store without an identity; otherwise the first upload makes one. */
  readonly noInit?: true;
}

export type Call =
  | { readonly kind: "request"; readonly request: Request; readonly options: Options }
  /** The bare form, a path alone: standard input is the archive. */
  | { readonly kind: "bare"; readonly name: Name; readonly options: Options }
  /** On the server itself: show the identity; `init` makes it where there is none. */
  | { readonly kind: "identity" | "init"; readonly options: Options }
  | { readonly kind: "help" | "version" | "login" }
  /** `wire`: the client speaks the wire, so it is told on standard output too. */
  | {
      readonly kind: "refused";
      readonly refusal: { readonly code: Code; readonly message: string };
      readonly wire: boolean;
    };

const refused = (code: Code, message: string, wire = false): Call => ({
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
const isRoot = (text: string): boolean =>
  /^\/[A-Za-z0-9._+@/-]{0,1023}$/.test(text) && !text.split("/").includes("..");

const parseOptions = (words: ReadonlyArray<string>): Options | undefined => {
  let options: Options = {};
  const rest = [...words];
  for (let option = rest.shift(); option !== undefined; option = rest.shift()) {
    if (option === "--no-init" && options.noInit === undefined) {
      options = { ...options, noInit: true };
      continue;
    }
    const value = rest.shift() ?? "";
    if (option === "--root" && options.root === undefined && isRoot(value)) {
      options = { ...options, root: value };
    } else if (option === "--quota" && options.quota === undefined) {
      const quota = parseSize(value);
      if (quota === undefined) return undefined;
      options = { ...options, quota };
    } else return undefined;
  }
  return options;
};

/** `[/abs/path/]qbackup-shell [--root DIR] [--quota SIZE] [--no-init]`, single spaces. */
const parseOptionLine = (line: string): Options | undefined => {
  const [program = "", ...words] = line.split(" ");
  return /^(?:\/(?:[A-Za-z0-9._+-]+\/)*)?qbackup-shell$/.test(program)
    ? parseOptions(words)
    : undefined;
};

const parseRequest = (command: string, options: Options): Call => {
  const wire = isWireCommand(command);
  if (new TextEncoder().encode(command).length > lineLimit) {
    return refused("bad-request", `a request of more than ${lineLimit} bytes`, wire);
  }
  if (wire) {
    const parsed = parseCommand(command);
    return "request" in parsed
      ? { kind: "request", request: parsed.request, options }
      : { kind: "refused", refusal: parsed.refusal, wire };
  }
  if (command === "" || /\s/.test(command)) {
    return refused("bad-request", "this account keeps backups and runs no commands");
  }
  if (!isName(command) || command.startsWith("qbackup/")) {
    return refused("bad-name", "this account keeps backups, and an archive cannot have that name");
  }
  return { kind: "bare", name: command, options };
};

const unforced =
  "nothing is served: sshd forces no command on this account; on the server, as root: make server user=ACCOUNT";
const ownerOnly =
  "this account's login shell runs no commands; as root: runuser -u ACCOUNT -- /usr/bin/qbackup-shell identity --root STORE";

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
      if (line !== undefined) return { kind: "login" };
      return /^\S*qbackup-shell (?:identity|init)\b/.test(second)
        ? refused("bad-request", ownerOnly)
        : refused("internal", unforced, isWireCommand(second));
    }
    return line === undefined
      ? refused("bad-request", "the forced command is not qbackup-shell with its options")
      : parseRequest(original, line);
  }
  if (original === undefined) {
    if (args.length === 1 && (first === "--help" || first === "-h")) return { kind: "help" };
    if (args.length === 1 && first === "--version") return { kind: "version" };
    if (first === "identity" || first === "init") {
      const options = parseOptions(args.slice(1));
      if (options !== undefined && options.quota === undefined && options.noInit === undefined) {
        return { kind: first, options };
      }
    }
  }
  const options = parseOptions(args);
  if (options === undefined) return refused("bad-request", "unknown options; see --help");
  return original === undefined ? { kind: "login" } : parseRequest(original, options);
};
