/**
 * What the lines of a shell file stand in: a function, a branch, a loop, a quote. A reader of settings
 * needs it, because what is not at top level may run or not. This is no parser of bash: it follows
 * quotes, expansions, here-documents and the reserved words that begin and end a compound command
 * (bash(1), "Compound Commands", "Reserved Words"), and forgives what does not match.
 */

/** What a line stands in, as part of a sentence, and whether it is code there. */
export interface Within {
  readonly what: string;
  readonly code: boolean;
}

type Kind = "if" | "loop" | "case" | "block" | "subshell" | "array" | "quotes" | "braces";

const names: Readonly<Record<Kind, string>> = {
  if: "an if",
  loop: "a loop",
  case: "a case",
  block: "a function or a block",
  subshell: "a subshell",
  array: "a list",
  quotes: "quotes",
  braces: "an expansion",
};
const hereDocument = "a here-document";

interface Open {
  readonly kind: Kind;
  /** Of a case: before its `in`, where a pattern is expected, or in a branch. */
  part?: "word" | "pattern" | "branch";
}

const openers = new Map<string, Kind>([
  ["if", "if"],
  ["for", "loop"],
  ["select", "loop"],
  ["while", "loop"],
  ["until", "loop"],
  ["case", "case"],
  ["{", "block"],
]);
const closers = new Map<string, Kind>([
  ["fi", "if"],
  ["done", "loop"],
  ["esac", "case"],
  ["}", "block"],
]);
/** A command begins behind them. */
const betweens = new Set(["then", "else", "elif", "do", "!", "time", "if", "while", "until", "{"]);

/** By the offset of a line's beginning; lines at top level are not in it. */
export const nesting = (text: string): ReadonlyMap<number, Within> => {
  const found = new Map<number, Within>();
  const stack: Array<Open> = [];
  /** Delimiters of here-documents that begin behind this line; whether tabs before them are dropped. */
  let awaited: Array<{ readonly end: string; readonly tabs: boolean }> = [];
  /** A command may begin here, and so may a reserved word. */
  let command = true;
  let i = 0;

  const top = () => stack.at(-1);
  /** Goes on to `to`; the lines that begin on the way stand in `what`. */
  const skip = (to: number, what: string) => {
    const end = to < 0 ? text.length : to;
    for (let at = text.indexOf("\n", i); at >= 0 && at < end; at = text.indexOf("\n", at + 1)) {
      found.set(at + 1, { what, code: false });
    }
    i = end;
  };
  /** The offset behind the next `char` that no backslash stands before. */
  const behind = (char: string, from: number) => {
    for (let at = from; at < text.length; at++) {
      if (text[at] === "\\") at += 1;
      else if (text[at] === char) return at + 1;
    }
    return -1;
  };
  const push = (kind: Kind, part?: Open["part"]) => {
    stack.push(part === undefined ? { kind } : { kind, part });
  };
  const pop = (kind: Kind) => {
    const at = stack.findLastIndex((open) => open.kind === kind);
    if (at >= 0) stack.length = at;
  };

  const newline = () => {
    i += 1;
    for (const { end, tabs } of awaited) {
      for (let ended = false; !ended && i < text.length;) {
        const next = text.indexOf("\n", i);
        const line = text.slice(i, next < 0 ? text.length : next);
        ended = (tabs ? line.replace(/^\t+/, "") : line) === end;
        found.set(i, { what: hereDocument, code: false });
        i = next < 0 ? text.length : next + 1;
      }
    }
    awaited = [];
    const open = top();
    if (open !== undefined) found.set(i, { what: names[open.kind], code: open.kind !== "quotes" });
    command = open?.kind !== "array";
  };

  /** `$` and the backquote, in quotes as without. */
  const expansion = (): boolean => {
    if (text[i] === "`") skip(behind("`", i + 1), names.subshell);
    else if (text.startsWith("$((", i)) skip(text.indexOf("))", i) + 2 || -1, names.braces);
    else if (text.startsWith("$(", i)) {
      push("subshell");
      i += 2;
      command = true;
    } else if (text.startsWith("${", i)) {
      push("braces");
      i += 2;
    } else return false;
    return true;
  };

  const word = () => {
    const length = /^[^\s;&|<>()'"\\$`]+/.exec(text.slice(i, i + 256))![0].length;
    const plain = text.slice(i, i + length);
    i += length;
    const whole = /^(?:[\s;&|<>()]|$)/.test(text[i] ?? "");
    const open = top();
    if (open?.kind === "case" && open.part === "word" && plain === "in" && whole) {
      open.part = "pattern";
    } else if (open?.kind === "case" && open.part === "pattern") {
      if (plain === "esac") pop("case");
    } else if (command && whole) {
      const closes = closers.get(plain);
      const opens = openers.get(plain);
      if (closes !== undefined) pop(closes);
      if (opens !== undefined) push(opens, opens === "case" ? "word" : undefined);
      if (plain === "function") i += /^[ \t]*\S*/.exec(text.slice(i, i + 256))![0].length;
      else command = betweens.has(plain);
    } else if (!/^[A-Za-z_]\w*\+?=/.test(plain)) command = false;
  };

  const hereDocuments = () => {
    const said = /^<<(-?)[ \t]*((?:'[^'\n]*'|"[^"\n]*"|\\.|[^\s;&|<>()'"\\])+)/.exec(
      text.slice(i, i + 256),
    );
    if (said === null) {
      i += 2;
      return;
    }
    awaited.push({ end: said[2]!.replace(/['"\\]/g, ""), tabs: said[1] === "-" });
    i += said[0].length;
  };

  while (i < text.length) {
    const char = text[i]!;
    const open = top();
    if (open?.kind === "quotes" || open?.kind === "braces") {
      const end = open.kind === "quotes" ? '"' : "}";
      if (char === "\\") i += 2;
      else if (char === end) {
        stack.pop();
        i += 1;
      } else if (char === "\n") newline();
      else if (end === "}" && char === '"') {
        push("quotes");
        i += 1;
      } else if (end === "}" && char === "'")
        skip(text.indexOf("'", i + 1) + 1 || -1, names.quotes);
      else if (!expansion()) i += 1;
      continue;
    }
    if (char === "\n") newline();
    else if (char === "\\") i += 2;
    else if (/\s/.test(char)) i += 1;
    else if (char === "#" && /^$|[\s;&|()]/.test(text[i - 1] ?? ""))
      skip(text.indexOf("\n", i), "");
    else if (char === "'") skip(text.indexOf("'", i + 1) + 1 || -1, names.quotes);
    else if (char === "$" && text[i + 1] === "'") skip(behind("'", i + 2), names.quotes);
    else if (char === '"') {
      push("quotes");
      i += 1;
      command = false;
    } else if (char === "$" || char === "`") {
      command = false;
      if (!expansion()) i += 1;
    } else if (text.startsWith("<<<", i)) i += 3;
    else if (text.startsWith("<<", i)) hereDocuments();
    else if ((char === "<" || char === ">") && text[i + 1] === "(") {
      push("subshell");
      i += 2;
      command = true;
    } else if (char === "<" || char === ">") i += 1;
    else if (char === ";" && /[;&]/.test(text[i + 1] ?? "") && open?.kind === "case") {
      open.part = "pattern";
      i += 2;
      if (text[i] === "&") i += 1;
    } else if (char === ";" || char === "&" || char === "|") {
      command = true;
      i += 1;
    } else if (char === "(") {
      const empty = /^\(\s*\)/.exec(text.slice(i, i + 64));
      if (open?.kind === "case" && open.part === "pattern") i += 1;
      else if (empty !== null) {
        i += empty[0].length; // the head of a function
        command = true;
      } else if (command && text[i + 1] === "(")
        skip(text.indexOf("))", i) + 2 || -1, names.braces);
      else {
        const list = text[i - 1] === "=";
        push(list ? "array" : "subshell");
        i += 1;
        command = !list;
      }
    } else if (char === ")") {
      if (open?.kind === "subshell" || open?.kind === "array") {
        stack.pop();
        command = false;
      } else if (open?.kind === "case" && open.part === "pattern") {
        open.part = "branch";
        command = true;
      }
      i += 1;
    } else word();
  }
  return found;
};
