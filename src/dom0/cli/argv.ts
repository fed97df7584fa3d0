/**
 * The command line, from its words to one command and what effect/cli can read: that lets a boolean
 * flag swallow a following `no` or `1`, and does not know `-fPREFIX` or `-xo` (measured with 4.1.0).
 * What is wrong with it is said here, in the program's own voice.
 */
import { parseArgs } from "node:util";
import type { CliError } from "effect/cli";
import { printable } from "#src/say/shown";
import { type Command, type Flag, flagName, flagOf } from "./command.ts";
import { failed, type RunFailed } from "#src/dom0/failure";
import { closeTo } from "./near.ts";

/** Every command has these. */
export const everywhere = {
  help: { type: "switch", short: "h", help: "this text" },
  version: { type: "switch", help: "the version" },
} as const satisfies Readonly<Record<string, Flag>>;

export type Parsed<R> =
  | { readonly kind: "version" }
  /** Undefined: of the program as a whole. */
  | { readonly kind: "help"; readonly of: Command<R> | undefined }
  | {
      readonly kind: "call";
      readonly command: Command<R>;
      /** Each flag once as `--name=value`, then `--` and the arguments. */
      readonly args: ReadonlyArray<string>;
      readonly wrong: RunFailed | undefined;
      /** Without a command, the first argument: a qube, or a slip, or a command in the wrong place. */
      readonly word: string | undefined;
    };

/** A wrong word on the command line. `hint`, a sentence, comes before the way to the command's own help. */
const usage = ({ name }: Command, message: string, hint?: string): RunFailed => {
  const help = `"qbackup ${name} --help"`;
  return failed("usage", message, hint === undefined ? `see ${help}` : `${hint} See ${help}`);
};

/** `a, b and c`. */
const listed = (words: ReadonlyArray<string>, last: "and" | "or" = "and"): string =>
  words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;

const namesOf = ({ flags }: Command): ReadonlyArray<string> => Object.keys(flags).map(flagName);

/** All flags as parseArgs wants them; name and letter mean the same in every command. */
const optionsFor = (commands: ReadonlyArray<Command>) => {
  const options: Record<string, { type: "boolean" | "string"; short?: string }> = {};
  for (const flags of [everywhere, ...commands.map((command) => command.flags)]) {
    for (const [key, { short, type }] of Object.entries<Flag>(flags)) {
      options[flagName(key)] ??= {
        type: type === "switch" ? "boolean" : "string",
        ...(short === undefined ? {} : { short }),
      };
    }
  }
  return options;
};

/** A flag that the command does not have. */
const stranger = (
  { name, rawName }: { readonly name: string; readonly rawName: string },
  command: Command,
  commands: ReadonlyArray<Command>,
): RunFailed => {
  const owners = commands.filter((other) => flagOf(other, name) !== undefined);
  if (owners.length > 0) {
    return usage(
      command,
      `${rawName} belongs to qbackup ${listed(owners.map((owner) => owner.name))}, not to qbackup ${command.name}`,
    );
  }
  const meant =
    rawName === "-V" || rawName === "-v"
      ? "version"
      : rawName.startsWith("--")
        ? closeTo(name, [...namesOf(command), ...Object.keys(everywhere)])
        : undefined;
  return usage(
    command,
    `there is no flag ${printable(rawName, 40)}`,
    meant === undefined ? undefined : `did you mean --${meant}?`,
  );
};

/** What effect/cli cannot say, or not in words like these. */
const wrongAction = (command: Command, words: ReadonlyArray<string>): RunFailed | undefined => {
  const names = Object.keys(command.actions);
  if (names.length === 0) return undefined;
  const [first, ...rest] = words;
  const action = first !== undefined && names.includes(first) ? command.actions[first] : undefined;
  if (first === undefined) {
    return usage(command, `say what to do: qbackup ${command.name} ${listed(names, "or")}`);
  }
  if (action === undefined) {
    const meant = closeTo(first, names);
    return usage(
      command,
      `qbackup ${command.name} does not know the word ${printable(first, 40)}; it knows ${listed(names)}`,
      meant === undefined ? undefined : `did you mean ${meant}?`,
    );
  }
  if (action.words === "" && rest.length > 0) return tooMany(command, rest);
  if (action.words !== "" && rest.length === 0) {
    return usage(command, `qbackup ${command.name} ${first} needs ${action.words}`);
  }
  return undefined;
};

const tooMany = (command: Command, words: ReadonlyArray<string>): RunFailed =>
  usage(
    command,
    `too many arguments for qbackup ${command.name}: ${printable(words.join(" "), 60)}`,
  );

/**
 * The first argument alone decides whether it is a command: otherwise the command is the first one,
 * `run`, so a qube that is called like a command needs `run` or `--` before it.
 */
export const parse = <R>(
  commands: ReadonlyArray<Command<R>>,
  argv: ReadonlyArray<string>,
): Parsed<R> => {
  const [first] = argv;
  const named = commands.find(({ name }) => name === first);
  if (first === "help") {
    return { kind: "help", of: commands.find(({ name }) => name === argv[1]) };
  }
  const command = named ?? commands[0]!;
  const { tokens, positionals } = parseArgs({
    args: [...(named === undefined ? argv : argv.slice(1))],
    options: optionsFor(commands),
    allowPositionals: true,
    strict: false,
    tokens: true,
  });
  const given = new Map<string, string | undefined>();
  let wrong: RunFailed | undefined;
  for (const token of tokens) {
    if (token.kind !== "option") continue;
    const { name, rawName, value } = token;
    if (name === "help" || name === "version") {
      return name === "help" ? { kind: "help", of: named } : { kind: "version" };
    }
    const flag = flagOf(command, name);
    const before = given.get(name);
    if (flag === undefined) wrong ??= stranger(token, command, commands);
    else if (flag.type === "switch") {
      if (value !== undefined) wrong ??= usage(command, `${rawName} takes no value`);
      given.set(name, "true");
    } else if (value === undefined) {
      wrong ??= usage(command, `${rawName} needs a value: ${rawName} ${flag.value}`);
    } else if (flag.type === "list" && before !== undefined) {
      given.set(name, `${before},${value}`);
    } else {
      if (before !== undefined && before !== value) {
        wrong ??= usage(
          command,
          `${rawName} is given twice: ${printable(before, 40)} and ${printable(value, 40)}`,
        );
      }
      given.set(name, value);
    }
  }
  for (const keys of command.either ?? []) {
    const both = keys.map(flagName).filter((name) => given.has(name));
    if (both.length > 1) {
      wrong ??= usage(command, `${listed(both.map((name) => `--${name}`))} exclude each other`);
    }
  }
  wrong ??= wrongAction(command, positionals);
  return {
    kind: "call",
    command,
    args: [...[...given].map(([name, value]) => `--${name}=${value}`), "--", ...positionals],
    wrong,
    word: named === undefined && !argv.includes("--") ? positionals[0] : undefined,
  };
};

/** What effect/cli says of flags and arguments, in words of ours. */
export const reworded = (error: CliError.CliError, command: Command): RunFailed => {
  switch (error._tag) {
    case "InvalidValue": {
      const flag = flagOf(command, error.option);
      if (flag?.type !== "count") break;
      return usage(
        command,
        `--${error.option} must be between ${flag.least} and ${flag.most} (${flag.unit}), not ${printable(error.value, 40) || "empty"}`,
      );
    }
    case "MissingArgument": {
      const arg = command.args[error.argument];
      if (arg === undefined) break;
      return usage(command, `qbackup ${command.name} needs ${arg.label}`, arg.hint);
    }
    case "UnexpectedArgument":
      return tooMany(command, error.arguments);
    case "ShowHelp":
      if (error.errors[0] !== undefined) return reworded(error.errors[0], command);
  }
  return usage(command, printable(error.message.replaceAll(/\s+/g, " ")));
};
