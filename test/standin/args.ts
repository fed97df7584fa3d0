/**
 * Command lines as Python's argparse reads them: options before and behind the positionals, which
 * stand together, where they are optional; it would take the first group for all of them.
 */

export interface Option {
  readonly names: ReadonlyArray<string>;
  /** Takes a value: --name VALUE, --name=VALUE, -n VALUE or -nVALUE. */
  readonly value?: boolean;
  /** Takes all words up to the next option. */
  readonly many?: boolean;
}

export interface Form {
  /** How many positionals there are before all that follows belongs to the last of them. */
  readonly last?: number;
}

export interface Arguments {
  readonly has: (name: string) => boolean;
  /** The last one given. */
  readonly value: (name: string) => string | undefined;
  readonly values: (name: string) => Array<string>;
  readonly rest: Array<string>;
}

/** What a tool says before it ends, and its exit code. */
export class Exit extends Error {
  readonly code: number;
  constructor(code: number, message = "") {
    super(message);
    this.code = code;
  }
}

/** As argparse shows it in 80 columns, of tools whose refusals are compared to the letter. */
const usages: { readonly [tool: string]: string } = {
  "qvm-backup": `[--verbose] [--quiet] [--help] [--version] [--yes]
                  [--profile PROFILE] [--exclude EXCLUDE_LIST]
                  [--dest-vm APPVM] [--encrypt]
                  [--passphrase-file PASSPHRASE_FILE] [--compress]
                  [--no-compress] [--compress-filter COMPRESSION]
                  [--save-profile SAVE_PROFILE]
                  [backup_location] [vms ...]`,
};

/** argparse's way to refuse: usage, then the error, exit code 2. */
export const usageError = (tool: string, message: string): Exit => {
  const usage = usages[tool] ?? "[-h] [--verbose] [--quiet] ...";
  return new Exit(2, `usage: ${tool} ${usage}\n${tool}: error: ${message}`);
};

const common: ReadonlyArray<Option> = [
  { names: ["--help", "-h"] },
  { names: ["--verbose", "-v"] },
  { names: ["--quiet", "-q"] },
  { names: ["--force-root"] },
  { names: ["--version"] },
];

export const parseArguments = (
  tool: string,
  argv: ReadonlyArray<string>,
  own: ReadonlyArray<Option>,
  form: Form = {},
): Arguments => {
  // A tool's own meaning of a letter goes before the common one.
  const options = [...own, ...common];
  const found = new Map<Option, Array<string>>();
  const rest: Array<string> = [];
  const add = (option: Option, value: string) => {
    found.set(option, [...(found.get(option) ?? []), value]);
  };
  /** Any beginning of a long name will do that no other one has. */
  const named = (name: string): Option | undefined => {
    const exact = options.find((option) => option.names.includes(name));
    if (exact !== undefined || !name.startsWith("--")) return exact;
    const begun = options.filter((option) => option.names.some((each) => each.startsWith(name)));
    return begun.length === 1 ? begun[0] : undefined;
  };
  // The others read their arguments with getopt.
  const argparse = tool.startsWith("qvm-");
  let closed = false;
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at] ?? "";
    if (word === "--") {
      rest.push(...argv.slice(at + 1));
      break;
    }
    if (!word.startsWith("-") || word === "-") {
      if (closed) throw usageError(tool, `unrecognized arguments: ${word}`);
      rest.push(word);
      if (rest.length === form.last) {
        rest.push(...argv.slice(at + 1));
        break;
      }
      continue;
    }
    closed = argparse && rest.length > 0;
    const next = (option: Option, name: string): string => {
      const value = argv[++at];
      if (value === undefined || (argparse && /^-./.test(value))) {
        throw usageError(tool, `argument ${option.names.join("/") || name}: expected one argument`);
      }
      return value;
    };
    if (word.startsWith("--")) {
      const equals = word.indexOf("=");
      const name = equals < 0 ? word : word.slice(0, equals);
      const option = named(name);
      if (option === undefined) throw usageError(tool, `unrecognized arguments: ${word}`);
      if (option.many === true) {
        if (equals >= 0) add(option, word.slice(equals + 1));
        else while (argv[at + 1]?.startsWith("-") === false) add(option, argv[++at] ?? "");
        continue;
      }
      if (option.value !== true) {
        if (equals >= 0) throw usageError(tool, `argument ${name}: ignored explicit argument`);
        add(option, "");
      } else add(option, equals < 0 ? next(option, name) : word.slice(equals + 1));
      continue;
    }
    for (let letter = 1; letter < word.length; letter++) {
      const name = `-${word[letter]}`;
      const option = named(name);
      if (option === undefined) throw usageError(tool, `unrecognized arguments: ${word}`);
      if (option.value !== true) {
        add(option, "");
        continue;
      }
      const glued = word.slice(letter + 1);
      add(option, glued === "" ? next(option, name) : glued);
      break;
    }
  }
  const values = (name: string) => {
    const option = named(name);
    return option === undefined ? [] : (found.get(option) ?? []);
  };
  return {
    rest,
    values,
    has: (name) => values(name).length > 0,
    value: (name) => values(name).at(-1),
  };
};
