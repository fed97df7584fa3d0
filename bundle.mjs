/**
 * `node bundle.mjs TARGET FILE...`, as make bundle calls it: a tar archive of these files below qbackup/. Its
 * bytes depend on names, contents and the executable bit alone; those that tar(1) writes differ between
 * 1.34 and 1.35, whatever is asked of it.
 */
import * as fs from "node:fs";

const [, , target, ...files] = process.argv;
/** A number of a header: octal, with a NUL behind it, in so many bytes. */
const octal = (number, width) => `${number.toString(8).padStart(width - 1, "0")}\0`;

const member = (file) => {
  const name = `qbackup/${file}`;
  if (Buffer.byteLength(name) > 100) throw new Error(`${name} is too long`);
  const data = fs.readFileSync(file);
  const executable = (fs.statSync(file).mode & 0o100) !== 0;
  const header = Buffer.alloc(512);
  header.write(name, 0);
  header.write(octal(executable ? 0o755 : 0o644, 8), 100);
  // Owner and group.
  header.write(octal(0, 8), 108);
  header.write(octal(0, 8), 116);
  header.write(octal(data.length, 12), 124);
  header.write(octal(0, 12), 136);
  // A regular file, in the format ustar.
  header.write("0", 156);
  header.write("ustar\x0000", 257);
  header.fill(" ", 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(octal(sum, 7), 148);
  return [header, data, Buffer.alloc(-data.length & 511)];
};

fs.writeFileSync(target, Buffer.concat([...files.flatMap(member), Buffer.alloc(1024)]));
