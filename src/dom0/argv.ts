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
  receipts: { type: "boolean" },
  "on-server": { type: "boolean" },
  decrypt: { type: "boolean" },
  force: { type: "boolean" },
  blocks: { type: "string" },
  budget: { type: "string" },
  "verify-only": { type: "boolean" },
  paranoid: { type: "boolean" },
  exclude: { type: "string" },
  "skip-dom0-home": { type: "boolean" },
  "rename-conflicting": { type: "boolean" },
  "skip-conflicting": { type: "boolean" },
  "skip-broken": { type: "boolean" },
  "ignore-missing": { type: "boolean" },
  "ignore-username-mismatch": { type: "boolean" },
  "ignore-size-limit": { type: "boolean" },
  "compression-filter": { type: "string", short: "Z" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean" },
} as const;

export const verbs = [
  "run",
  "list",
  "verify",
  "audit",
  "ledger",
  "recovery-sheet",
  "restore",
  "help",
] as const;
const isVerb = (word: string | undefined): word is (typeof verbs)[number] =>
  verbs.some((verb) => verb === word);

/** Flags that may be given again and again: their values are joined by commas. */
const lists: ReadonlySet<string> = new Set(["exclude"]);

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
    const before = given.get(token.name);
    // An unknown flag, or a value where none belongs, goes on as it is, for effect/cli to refuse.
    if (flag === undefined) given.set(token.rawName, token.rawName);
    else if (lists.has(token.name) && token.value !== undefined && before !== undefined)
      given.set(token.name, `${before},${token.value}`);
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
