/**
 * Settings from the environment and from assignments in the user's shell files, which are read and
 * never run.
 *
 * An assignment counts where it stands at top level and is literal, but for `~`, `$HOME` and
 * `${HOME}`. What cannot be known without running the file is an error, never a guess: an assignment
 * inside a function, a branch, a loop or a quote, and two that differ, though a shell would take the
 * last. Facts: bash(1), "Simple Commands", "Quoting", "Tilde Expansion".
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { closeSync, constants, fstatSync, openSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import * as path from "node:path";
import { nesting } from "#layers/settings/ShellNesting";
import { Settings, SettingsError } from "#services/Settings";

/** The first of them that assigns a setting decides. */
const files = [".bash_profile", ".bashrc", ".profile"] as const;

/** Bytes; a longer file is no shell file of a person. */
const fileLimit = 1_048_576;

/** A value, or why only a shell could tell it. */
type Value = { readonly value: string } | { readonly unclear: string };

interface Word {
  readonly end: number;
  readonly value: string;
  /** Set when the value is not literal. */
  readonly unclear?: string | undefined;
  /** The rest of the line cannot be told apart into words either. */
  readonly lost: boolean;
}

const endsWord = /[\s;&|<>()]/;
const openQuote = "the quote does not end on its line";
const expands = (char: string) => `it holds a ${char} that only a shell expands`;

/** What may be expanded without a shell: many people write it, and it is one thing everywhere. */
const homes = /\$(?:HOME(?!\w)|\{HOME\})/y;

/** Reads one word of `text` from `at`, quotes and backslashes resolved. `tilde` is where one is a home. */
const readWord = (text: string, at: number, home: string, tilde = -1): Word => {
  let value = "";
  let unclear: string | undefined;
  let i = at;
  const lost = (why: string): Word => ({ end: i, value, unclear: why, lost: true });

  /** A `$` or a backquote: variables can be stepped over, what holds commands or quotes cannot. */
  const expansion = (char: string): boolean => {
    homes.lastIndex = i;
    const [sign = ""] = homes.exec(text) ?? [];
    if (sign !== "") {
      value += home;
      i += sign.length - 1;
      return true;
    }
    unclear ??= expands(char);
    if (char === "`" || /["'(]/.test(text[i + 1] ?? "")) return false;
    if (text[i + 1] === "{") i = text.indexOf("}", i);
    return i >= 0;
  };

  for (; i < text.length && !endsWord.test(text[i]!); i++) {
    const char = text[i]!;
    if (char === "'") {
      const close = text.indexOf("'", i + 1);
      const inside = text.slice(i + 1, close);
      if (close < 0 || inside.includes("\n")) return lost(openQuote);
      value += inside;
      i = close;
    } else if (char === '"') {
      for (i++; text[i] !== '"'; i++) {
        const inside = text[i];
        if (inside === undefined || inside === "\n") return lost(openQuote);
        if (inside === "$" || inside === "`") {
          if (!expansion(inside)) return lost(expands(inside));
        } else if (inside !== "\\") {
          value += inside;
        } else if (text[i + 1] === "\n") {
          i++;
        } else {
          value += '$`"\\'.includes(text[i + 1] ?? " ") ? text[++i] : inside;
        }
      }
    } else if (char === "\\") {
      i++;
      if (text[i] !== "\n") value += text[i] ?? "";
    } else if (char === "$" || char === "`") {
      if (!expansion(char)) return lost(expands(char));
    } else if (char === "~" && i === tilde) {
      if (/^(?:\/|$|[\s;&|<>()])/.test(text.slice(i + 1, i + 2))) value += home;
      else unclear ??= expands(char);
    } else {
      if (char === "{" || (char === "~" && text[i - 1] === ":")) unclear ??= expands(char);
      value += char;
    }
  }
  return { end: i, value, unclear, lost: false };
};

/** They take assignments as arguments. */
const declarations = ["export", "declare", "typeset", "readonly"];
/** They change the variables that they are given. */
const changers = ["unset", "read", "mapfile", "readarray", "for", "select"];
/** After them a command begins, which may run or not. */
const reserved = ["if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"];

/** Whether `name` is set somewhere in `part`, as far as that shows without understanding it. */
const mentions = (part: string, name: string): boolean =>
  new RegExp(`(?:^|[\\s;&|({'"])${name}(?:\\+?=|\\[)|\\$\\{${name}:?=`).test(part);

/** What the line that begins at `from` assigns to `name`, in order, and where the line ends. */
const readLine = (text: string, from: number, name: string, home: string) => {
  const values: Array<Value> = [];
  const assignment = /([A-Za-z_]\w*)(\+=|=\(|=|\[)/y;
  let at = from;
  let mode: "command" | "declaration" | "arguments" = "command";
  /** Counts only if no command follows it: `A=x program` sets nothing. */
  let pending: Value | undefined;
  /** The command that changes what its arguments name. */
  let changed: string | undefined;

  const endCommand = () => {
    if (pending !== undefined) values.push(pending);
    pending = undefined;
    mode = "command";
  };
  const assign = (value: Value) => {
    if (mode === "declaration") values.push(value);
    else pending = value;
  };
  const skipLine = () => {
    const newline = text.indexOf("\n", at);
    at = newline < 0 ? text.length : newline;
  };
  /** The rest of the line is a shell's to understand: unclear, if the setting is named in it. */
  const giveUp = (unclear: string) => {
    const rest = at;
    skipLine();
    if (pending !== undefined || mentions(text.slice(rest, at), name)) pending = { unclear };
  };

  while (at < text.length && text[at] !== "\n") {
    const char = text[at]!;
    if (char === "\\" && text[at + 1] === "\n") {
      at += 2;
      continue;
    }
    if (/\s/.test(char)) {
      at += 1;
      continue;
    }
    if (char === "#") {
      skipLine();
      continue;
    }
    if (char === ";") {
      endCommand();
      at += 1;
      continue;
    }
    if (endsWord.test(char)) {
      giveUp(`what ${char} makes of it only a shell can tell`);
      continue;
    }

    assignment.lastIndex = at;
    const [head = "", target, sign] = mode === "arguments" ? [] : (assignment.exec(text) ?? []);
    const word = readWord(text, at, home, sign === "=" ? at + head.length : -1);
    if (target === undefined) {
      if (mode === "arguments" && changed !== undefined && word.value === name) {
        pending = { unclear: `${changed} changes it` };
      }
      if (mode === "command") {
        changed = changers.find((it) => it === word.value);
        if (reserved.includes(word.value)) {
          giveUp(`what stands after ${word.value} may run or not`);
          continue;
        }
        pending = undefined;
        mode = declarations.includes(word.value) ? "declaration" : "arguments";
      } else if (mode === "declaration" && /^-(?![xrg]+$|-$)/.test(word.value)) {
        giveUp(`${word.value} changes what is assigned`);
        continue;
      }
    } else if (target === name) {
      if (sign === "+=") assign({ unclear: "+= adds to what was there" });
      else if (sign !== "=") assign({ unclear: "it is an array" });
      else if (word.unclear !== undefined) assign({ unclear: word.unclear });
      else assign({ value: word.value.slice(head.length) });
    }
    // `${N:=x}`: it sets what was not set.
    if (new RegExp(`\\$\\{${name}:?=`).test(text.slice(at, word.end))) {
      values.push({ unclear: "an expansion sets it" });
    }
    at = word.end;
    if (word.lost || sign === "=(") {
      if (target === name) skipLine();
      else giveUp("it stands behind something that only a shell can read");
    }
  }
  endCommand();
  return { end: at, values };
};

interface Assignment {
  readonly line: number;
  readonly value: Value;
}

/** What a shell file assigns to `name`, in order. */
const assignments = (text: string, name: string, home: string): ReadonlyArray<Assignment> => {
  const found: Array<Assignment> = [];
  const within = nesting(text);
  for (let at = 0, line = 1; at < text.length;) {
    const inside = within.get(at);
    const newline = text.indexOf("\n", at);
    const { end, values } =
      inside?.code === false
        ? { end: newline < 0 ? text.length : newline, values: [] }
        : readLine(text, at, name, home);
    if (inside !== undefined && (values.length > 0 || mentions(text.slice(at, end), name))) {
      const unclear = `it stands inside ${inside.what}, which may run or not`;
      found.push({ line, value: { unclear } });
    } else {
      found.push(...values.map((value) => ({ line, value })));
    }
    line += text.slice(at, end + 1).split("\n").length - 1;
    at = end + 1;
  }
  return found;
};

/** The one value of them; where there are two, no reader can tell which of them is meant. */
const agreed = (all: ReadonlyArray<Assignment>): Assignment | undefined => {
  const last = all.at(-1);
  if (last === undefined || all.length === 1) return last;
  const wrong = all.findLast(({ value }) => "unclear" in value) ?? last;
  const other = all.find(
    ({ value }) =>
      value !== wrong.value &&
      ("unclear" in value || "unclear" in wrong.value || value.value !== wrong.value.value),
  );
  if (other === undefined) return last;
  const also = `line ${other.line} sets it too`;
  const unclear =
    "unclear" in wrong.value ? `${wrong.value.unclear}; ${also}` : `${also}, to another value`;
  return { line: wrong.line, value: { unclear } };
};

/** The text of a regular file; undefined if there is none. Throws what a person can read. */
const readText = (file: string): string | undefined => {
  let fd: number;
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK); // a FIFO must not hold us up
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new Error(code === "EACCES" ? "permission denied" : `the file cannot be opened: ${code}`);
  }
  try {
    const { size } = fstatSync(fd);
    if (!fstatSync(fd).isFile()) throw new Error("it is not a regular file");
    if (size > fileLimit) throw new Error(`the file is longer than ${fileLimit} bytes`);
    return readFileSync(fd, "utf8");
  } finally {
    closeSync(fd);
  }
};

/** `home` and `env` are the process's own but for tests. An unreadable file is its line 0. */
export const shellSettings = (
  home = homedir(),
  env: Readonly<Record<string, string | undefined>> = process.env,
): Layer.Layer<Settings> =>
  Layer.succeed(Settings, {
    get: (name) =>
      Effect.gen(function* () {
        if (Object.hasOwn(env, name)) return env[name] || undefined;
        for (const file of files) {
          const place = path.join(home, file);
          const fail = (line: number, reason: string) =>
            new SettingsError({ name, file: place, line, reason });
          const text = yield* Effect.try({
            try: () => readText(place),
            catch: (error) => fail(0, (error as Error).message),
          });
          const one = text === undefined ? undefined : agreed(assignments(text, name, home));
          if (one === undefined) continue;
          if ("unclear" in one.value) return yield* fail(one.line, one.value.unclear);
          return one.value.value || undefined;
        }
        return undefined;
      }),
  });
