/** Hex digits as a person writes them on paper and types them again: groups of four letters. */
import { sha256 } from "#src/proof/texts";

/** Crockford's: no I, L, O or U, which are read as 1, 1, 0 and V. */
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** Every 20 bits (5 hex digits) as a group. */
export const groups = (hex: string): string =>
  hex
    .match(/.{5}/g)!
    .map((five) => {
      const value = Number.parseInt(five, 16);
      return [15, 10, 5, 0].map((shift) => alphabet[(value >>> shift) & 31]).join("");
    })
    .join("-");

/** Reads `digits` hex digits, a multiple of 5, as a person writes them; undefined for anything else. */
export const fromGroups = (text: string, digits: number): string | undefined => {
  const letters = text
    .toUpperCase()
    .replace(/[\s-]/g, "")
    .replace(/[IL]/g, "1")
    .replace(/O/g, "0")
    .replace(/U/g, "V");
  if (letters.length !== (digits / 5) * 4 || !/^[0-9A-Z]+$/.test(letters)) return undefined;
  // Every letter is in the alphabet now.
  const bits = [...letters].map((letter) => alphabet.indexOf(letter).toString(2).padStart(5, "0"));
  return BigInt(`0b${bits.join("")}`)
    .toString(16)
    .padStart(digits, "0");
};

/** Hex digits of a secret of 32 bytes, and of the check behind them. */
const held = 64;
const check = 6;
const checkOf = (what: string, hex: string): string => sha256(`${what} ${hex}`).slice(0, check);

/** A secret of 32 bytes, 14 groups: the last of them show a slip of the pen, or another secret. */
export const secretOnPaper = (what: string, secret: Uint8Array): string => {
  const hex = Buffer.from(secret).toString("hex");
  return groups(hex + checkOf(what, hex));
};

/** Reads it back; undefined where a sign is wrong, or where it is another secret. */
export const secretFromPaper = (what: string, text: string): Uint8Array | undefined => {
  const read = fromGroups(text, held + check);
  const hex = read?.slice(0, held) ?? "";
  return read === hex + checkOf(what, hex) ? Buffer.from(hex, "hex") : undefined;
};
