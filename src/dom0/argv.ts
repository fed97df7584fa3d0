/**
 * The command line, brought into one form before effect/cli reads it: that lets a boolean flag
 * swallow a following `no` or `1`, and does not know `-fPREFIX` or `-xo` (measured with 4.1.0).
 */
import { parseArgs } from "node:util";

/** Every flag of every verb; the letters are those of the tool that this one continues. */
export const flags = {
  prefix: { type: "string", short: "f" },
  to: { type: "string", short: "t" },
  "passphrase-file": { type: "string", short: "p" },
  "keep-running": { type: "boolean", short: "x" },
  terminal: { type: "boolean", short: "o" },
  "include-dom0": { type: "boolean" },
  window: { type: "string" },
  "link-timeout": { type: "string" },
  "qubes-timeout": { type: "string" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean" },
} as const;

export const verbs = ["run", "list", "help"] as const;
const isVerb = (word: string | undefined): word is (typeof verbs)[number] =>
  verbs.some((verb) => verb === word);

/**
 * VERB, then each flag once as `--name=value` (the last one given wins), then `--` and the rest. The
 * first argument alone decides whether it is a verb: otherwise the verb is `run`, so a qube that is
 * called like a verb needs `run` or `--` before it.
 */
export const normalise = (argv: ReadonlyArray<string>): ReadonlyArray<string> => {
  const [first] = argv;
  const verb = isVerb(first) ? first : "run";
  const { tokens, positionals } = parseArgs({
    args: [...(isVerb(first) ? argv.slice(1) : argv)],
    options: flags,
    allowPositionals: true,
    strict: false,
    tokens: true,
  });
  const given = new Map<string, string>();
  for (const token of tokens) {
    if (token.kind !== "option") continue;
    const flag = Object.hasOwn(flags, token.name)
      ? flags[token.name as keyof typeof flags]
      : undefined;
    // An unknown flag, or a value where none belongs, goes on as it is, for effect/cli to refuse.
    if (flag === undefined) given.set(token.rawName, token.rawName);
    else if (flag.type === "boolean" && token.value === undefined)
      given.set(token.name, `--${token.name}=true`);
    else
      given.set(
        token.name,
        token.value === undefined ? `--${token.name}` : `--${token.name}=${token.value}`,
      );
  }
  if (verb === "help" || given.has("help")) return ["--help"];
  if (given.has("version")) return ["--version"];
  return [verb, ...given.values(), "--", ...positionals];
};

/** Whether a person asked for lines on the terminal: `-o`, or a verb whose only use is to look. */
export const onTerminal = (argv: ReadonlyArray<string>): boolean => {
  const [verb, ...rest] = normalise(argv);
  return verb !== "run" || rest.slice(0, rest.indexOf("--")).includes("--terminal=true");
};
