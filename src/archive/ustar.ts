/**
 * Tar headers as slots have them, of the members of an archive and of what stands inside of them: with
 * nothing that differs from one day, or one machine, to another. docs/protocol.md, Members.
 */

export const tarBlock = 512;
/** The first size, in bytes, that the eleven digits of a header do not hold. */
export const sizeLimit = 8 ** 11;

/** For isZero: compared by the system, which a loop over the bytes is not. */
const zeros = new Uint8Array(65_536);

/** Nothing but NULs? */
export const isZero = (bytes: Uint8Array): boolean => {
  for (let at = 0; at < bytes.length; at += zeros.length) {
    const part = bytes.subarray(at, at + zeros.length);
    if (Buffer.compare(part, zeros.subarray(0, part.length)) !== 0) return false;
  }
  return true;
};

/** Bytes, all NUL, that stand behind so many bytes of data. */
export const padding = (size: number): number => (tarBlock - (size % tarBlock)) % tarBlock;

const octal = (value: number, digits: number): string => value.toString(8).padStart(digits, "0");

/** For a file of `size` bytes at `path`, of at most 99 bytes; type `x` is for what is said of the next. */
export const ustar = (path: string, size: number, type: "0" | "x" = "0"): Buffer => {
  const header = Buffer.alloc(tarBlock);
  header.write(path, 0);
  header.write("0000644\x000000000\x000000000\0", 100);
  header.write(`${octal(size, 11)}\x0000000000000\0        ${type}`, 124);
  header.write("ustar\x0000", 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${octal(sum, 6)}\0`, 148);
  return header;
};
