/** The README's steps: the commands in its blocks, each with the place where it is typed. */

/** A block whose info string is `sh PLACE`. */
export interface Block {
  readonly place: string;
  readonly text: string;
}

const fences = /^```([^\n]*)\n(.*?)^```$/gms;

export const blocksOf = (markdown: string): ReadonlyArray<Block> =>
  [...markdown.matchAll(fences)].flatMap(([, info, text]) => {
    const place = /^sh ([a-z0-9]+)$/.exec(info!)?.[1];
    return place === undefined ? [] : [{ place, text: text! }];
  });

/** What stands in blocks that are no steps. */
export const otherBlocksOf = (markdown: string): ReadonlyArray<string> =>
  [...markdown.matchAll(fences)].flatMap(([, info, text]) => (info === "" ? [text!] : []));

/** Words that begin or go on with something of the shell's, and are no command. */
const reserved = new Set(
  "! { } if then elif else fi while until do done esac time coproc".split(" "),
);
/** They have words of their own up to the next separator. */
const heads = new Set(["for", "select", "case", "function"]);

/** Behind the character at `from`, which opens: where it closes, quotes considered. */
const closing = (text: string, from: number): number => {
  let depth = 0;
  for (let i = from; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "'") i = text.indexOf("'", i + 1);
    else if (text[i] === "(") depth++;
    else if (text[i] === ")" && --depth === 0) return i;
    if (i === -1) break;
  }
  throw new Error(`no end: ${text.slice(from)}`);
};

/** The words that another shell is given to run, on this machine or behind it. */
const handedOn = (words: ReadonlyArray<string>): string => {
  const [program, ...rest] = words[0] === "sudo" ? words.slice(1) : words;
  const plain = rest.filter((word) => !word.startsWith("-"));
  if (program === "qvm-run" || program === "ssh") return plain.slice(1).join(" ");
  const c = rest.indexOf("-c");
  return c !== -1 && /^(ba|da)?sh$|^su$|^runuser$/.test(program ?? "") ? (rest[c + 1] ?? "") : "";
};

/**
 * The simple commands of a shell's text, as words without their quotes, in the order in which they end:
 * each side of `&&`, `||`, `;`, `|`, `&` and a newline, those in subshells and substitutions, and those
 * that ssh, qvm-run or `sh -c` is given. An assignment alone is one, too.
 */
export const commandsOf = (text: string): ReadonlyArray<ReadonlyArray<string>> => {
  const found: Array<ReadonlyArray<string>> = [];
  const ends: Array<string> = [];
  let words: Array<string> = [];
  let word: string | undefined;
  let quoted = false;
  let target: "file" | "here" | undefined;
  const endWord = () => {
    if (word === undefined) return;
    if (target === "here") ends.push(word);
    else if (target === undefined && (quoted || words.length > 0 || !reserved.has(word))) {
      words.push(word);
    }
    word = undefined;
    quoted = false;
    target = undefined;
  };
  const endCommand = () => {
    endWord();
    if (words.length > 0 && !heads.has(words[0]!)) {
      const first = words.findIndex((each) => !/^[A-Za-z_][A-Za-z0-9_]*\+?=/.test(each));
      const own = first === -1 ? words : words.slice(first);
      found.push(own);
      found.push(...commandsOf(handedOn(own)));
    }
    words = [];
  };
  /** A substitution that begins at `i`, if one does: its commands are found; where it ends. */
  const substitution = (i: number): number | undefined => {
    if (text[i] === "`") {
      const end = text.indexOf("`", i + 1);
      if (end === -1) throw new Error(`no end: ${text.slice(i)}`);
      found.push(...commandsOf(text.slice(i + 1, end)));
      return end;
    }
    if (text[i] !== "$" || text[i + 1] !== "(") return undefined;
    const end = closing(text, i + 1);
    if (text[i + 2] !== "(") found.push(...commandsOf(text.slice(i + 2, end)));
    return end;
  };
  for (let i = 0; i < text.length; i++) {
    const c = text[i]!;
    const end = substitution(i);
    if (end !== undefined) {
      word = `${word ?? ""}${text.slice(i, end + 1)}`;
      quoted = true;
      i = end;
    } else if (c === "\\") {
      i++;
      if (text[i] !== "\n") word = `${word ?? ""}${text[i] ?? ""}`;
    } else if (c === "'") {
      const close = text.indexOf("'", i + 1);
      if (close === -1) throw new Error(`no end: ${text.slice(i)}`);
      word = `${word ?? ""}${text.slice(i + 1, close)}`;
      quoted = true;
      i = close;
    } else if (c === '"') {
      word ??= "";
      quoted = true;
      for (i++; text[i] !== '"'; i++) {
        if (i >= text.length) throw new Error("no end of a quotation");
        const inner = substitution(i);
        if (inner === undefined) word += text[i] === "\\" ? text[++i] : text[i];
        else {
          word += text.slice(i, inner + 1);
          i = inner;
        }
      }
    } else if (c === "#" && word === undefined) {
      while (i + 1 < text.length && text[i + 1] !== "\n") i++;
    } else if (c === "<" || c === ">") {
      if (word !== undefined && /^\d+$/.test(word)) word = undefined;
      endWord();
      const operator = /^(<<<|<<-?|<\(|>\(|[<>][&>|]?)/.exec(text.slice(i))![0];
      i += operator.length - 1;
      if (operator.endsWith("(")) {
        const close = closing(text, i);
        found.push(...commandsOf(text.slice(i + 1, close)));
        words.push(operator);
        i = close;
      } else target = operator === "<<" || operator === "<<-" ? "here" : "file";
    } else if (c === "&" && text[i + 1] === ">") {
      endWord();
      i += text[i + 2] === ">" ? 2 : 1;
      target = "file";
    } else if (/[;&|()\n]/.test(c)) {
      endCommand();
      while (c === "\n" && ends.length > 0) {
        const rest = text.slice(i + 1);
        const line = rest.split("\n").findIndex((each) => each.trim() === ends[0]);
        const skipped = rest.split("\n").slice(0, line === -1 ? undefined : line + 1);
        i += skipped.join("\n").length + (line === -1 ? 0 : 1);
        ends.shift();
      }
    } else if (/\s/.test(c)) endWord();
    else word = `${word ?? ""}${c}`;
  }
  endCommand();
  return found;
};
