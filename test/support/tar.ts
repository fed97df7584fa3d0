/** Tar headers as GNU tar writes them, and as nobody should: `change` may write anything into one. */

/** Writes the checksum of a header, of whatever is in it. */
export const sumUp = (header: Buffer): Buffer => {
  header.write("        ", 148, "latin1");
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return header;
};

export const tarHeader = (
  path: string,
  type: "0" | "x",
  size: number,
  change: (header: Buffer) => void = () => {},
): Buffer => {
  const h = Buffer.alloc(512);
  h.write(path, 0, "latin1");
  h.write("0000644\x000000000\x000000000\0", 100, "latin1");
  h.write(`${size.toString(8).padStart(11, "0")}\0`, 124, "latin1");
  h.write("15300726470\0", 136, "latin1");
  h.write(type, 156, "latin1");
  h.write("ustar\x0000", 257, "latin1");
  if (type === "0") h.write("root", 265, "latin1");
  if (type === "0") h.write("root", 297, "latin1");
  if (type === "0") h.write("0000000\x000000000\0", 329, "latin1");
  change(h);
  return sumUp(h);
};

export const padTo = (bytes: Buffer, step: number): Buffer =>
  bytes.length % step === 0
    ? bytes
    : Buffer.concat([bytes, Buffer.alloc(step - (bytes.length % step))]);
