/** `node pace.ts FILE RATE`: writes a file to stdout at RATE bytes a second, as a slow qube would. */
import * as fs from "node:fs";
import { writeAll } from "./archive.ts";

const [file, rate] = process.argv.slice(2) as [string, string];
const fd = fs.openSync(file, "r");
const buffer = Buffer.alloc(262_144);
const pause = new Int32Array(new SharedArrayBuffer(4));
const began = performance.now();
for (let sent = 0; ;) {
  const n = fs.readSync(fd, buffer);
  if (n === 0) break;
  const due = began + (sent / Number(rate)) * 1000;
  const early = due - performance.now();
  if (early > 0) Atomics.wait(pause, 0, 0, early);
  writeAll(1, buffer.subarray(0, n));
  sent += n;
}
