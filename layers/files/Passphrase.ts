/**
 * What qvm-backup makes of a passphrase file, and what speaks against it. qvm-backup reads it as text
 * (UTF-8, with a line end of any kind), takes the first line without the blanks at its end, and hands
 * it to scrypt(1) through a terminal, behind the name of each chunk (docs/qubes.md, Passphrase).
 */

export interface Passphrase {
  /** Characters of what qvm-backup takes. Nothing here has a word of the text. */
  readonly characters: number;
  /** Why no backup should be encrypted with it: part of a sentence. */
  readonly unfit: string | undefined;
  /** What a person may not have meant. Whole sentences, without a word of the text. */
  readonly doubts: ReadonlyArray<string>;
}

/**
 * Bytes. scrypt takes lines of 2,047 bytes (MAXPASSLEN of its readpass.c), and hangs for ever on what
 * its terminal does not hold; up to a hundred are the name of the chunk.
 */
const longest = 1900;

/** What Python's str.rstrip takes away; U+FEFF, which JavaScript's trimEnd takes too, is not among it. */
const blanksAtEnd =
  // oxlint-disable-next-line no-control-regex -- these are the blanks
  /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+$/u;

const known =
  /^(?:the|my)?[\W_]*(?:pass ?(?:word|phrase)?|secret|backup|qubes(?: ?os)?|qwert[yz]u?\w*|asdf\w*|letmein|admin|root|user|test|changeme|welcome|iloveyou|monkey|dragon)[\W_\d]*$/i;

/** A guess of what a guesser tries first; that it says nothing does not make a passphrase good. */
const guessable = (text: string): boolean => {
  const different = new Set(text).size;
  return (
    text.length < 10 ||
    different < 6 ||
    known.test(text) ||
    (/^\d+$/.test(text) && text.length < 25) ||
    (/^[A-Za-z]+[\d\W]{0,4}$/.test(text) && text.length < 16)
  );
};

const looks = (line: string): string | undefined => {
  if (/^\s*(?:#|\/\/|;|--)/.test(line)) return "looks like a comment";
  if (/^\s*(?:export\s+)?[A-Za-z_]*pass(?:word|phrase)?[A-Za-z_]*\s*[=:]/i.test(line))
    return "looks like a setting, of which the name is part of the passphrase too";
  if (/^\s*(["']).*\1\s*$/.test(line))
    return "stands in quotes, which are part of the passphrase too";
  return undefined;
};

const linesOf = (bytes: Uint8Array, whole: boolean) => {
  const end = bytes.findIndex((byte) => byte === 10 || byte === 13);
  if (end < 0 && !whole) throw new Error("its first line has no end");
  const decode = (part: Uint8Array, stream: boolean) => {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(part, { stream });
    } catch {
      throw new Error("it is not UTF-8");
    }
  };
  const line = decode(end < 0 ? bytes : bytes.subarray(0, end), false);
  // Python decodes more than a line at once.
  const rest = end < 0 ? "" : decode(bytes.subarray(end), !whole);
  const text = line.replace(blanksAtEnd, "");
  if (text.replace(/^\ufeff/, "").trim() === "") {
    throw new Error("its first line, which is the passphrase, is blank");
  }
  return { line, rest, text };
};

/** The passphrase itself, for who encrypts with it here. Arguments and errors as of `readPassphrase`. */
export const passphraseIn = (bytes: Uint8Array, whole: boolean): Uint8Array =>
  new TextEncoder().encode(linesOf(bytes, whole).text);

/** `bytes` are the beginning of the file, `whole` is whether they are all of it. Throws why it cannot be read. */
export const readPassphrase = (bytes: Uint8Array, whole: boolean): Passphrase => {
  const { line, rest, text } = linesOf(bytes, whole);
  const unfit = /\p{Cc}/u.test(text)
    ? "there is a control character in it, which scrypt's terminal may take for a command"
    : new TextEncoder().encode(text).length > longest
      ? `it is longer than ${longest} bytes, which scrypt's terminal does not take`
      : undefined;
  const doubts: Array<string> = [];
  const bom = text.startsWith("\ufeff");
  const bare = text.replace(/^\ufeff/, "");
  if (bom) {
    doubts.push(
      "the passphrase begins with an invisible character (a byte order mark, which an editor has put there): who types it from paper will not have it",
    );
  }
  if (/^\s/u.test(bare)) doubts.push("the passphrase begins with a blank, which is part of it");
  if (text !== line) doubts.push("blanks at the end of the passphrase are not part of it");
  const form = looks(bare);
  if (form !== undefined) doubts.push(`the first line, which is the passphrase, ${form}`);
  if (rest.trim() !== "") {
    doubts.push("the passphrase file has more than one line: only the first is the passphrase");
  }
  if (/\P{ASCII}/u.test(bare)) {
    doubts.push(
      "the passphrase has characters beyond ASCII: on another keyboard they may come out as others",
    );
  }
  if (guessable(bare.trim())) {
    doubts.push(
      "the passphrase is easy to guess, and whoever gets an archive may guess for years: six words chosen by dice are not",
    );
  }
  return { characters: [...text].length, unfit, doubts };
};
