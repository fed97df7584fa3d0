/**
 * The child that writes one member when cat cannot: slowly, only its beginning, or with filler that
 * lies in no file. stdin is the beginning of the member, stdout is where the archive goes.
 */
import * as fs from "node:fs";
import { BLOCK } from "./images.ts";
import { hang, sha256, sleep } from "./state.ts";

export interface Sending {
  /** Bytes to take from stdin. */
  readonly head: number;
  /** Bytes to make up. */
  readonly filler: number;
  /** Bytes in all; what is left is zeros. */
  readonly length: number;
  /** Bytes a second. */
  readonly rate: number | null;
  /** Stop after so many. */
  readonly upTo: number | null;
  /** And then never end. */
  readonly hangs: boolean;
}

const fillerBlock = (): Buffer => {
  const seed = sha256("filler");
  const block = Buffer.alloc(BLOCK);
  for (let at = 0; at < BLOCK; at += seed.length) {
    sha256(`${seed.toString("hex")} ${at}`).copy(block, at);
  }
  return block;
};

function* bytesOf(sending: Sending): Generator<Buffer> {
  const buffer = Buffer.alloc(BLOCK);
  for (;;) {
    const read = fs.readSync(0, buffer, 0, BLOCK, null);
    if (read === 0) break;
    yield buffer.subarray(0, read);
  }
  const filler = sending.filler > 0 ? fillerBlock() : Buffer.alloc(0);
  for (let left = sending.filler; left > 0; left -= BLOCK) {
    yield filler.subarray(0, Math.min(BLOCK, left));
  }
  yield Buffer.alloc(Math.max(0, sending.length - sending.head - sending.filler));
}

/** Node ignores SIGPIPE; tar does not. */
const writeAll = (bytes: Buffer): void => {
  for (let at = 0; at < bytes.length;) {
    try {
      at += fs.writeSync(1, bytes, at, bytes.length - at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EPIPE") process.kill(process.pid, "SIGKILL");
      throw error;
    }
  }
};

export const send = async (dir: string, sending: Sending): Promise<number> => {
  let left = sending.upTo ?? Number.POSITIVE_INFINITY;
  const step = sending.rate === null ? BLOCK : Math.max(1, Math.floor(sending.rate / 20));
  for (const bytes of bytesOf(sending)) {
    for (let at = 0; at < bytes.length && left > 0; at += step) {
      const part = bytes.subarray(at, Math.min(bytes.length, at + step, at + left));
      writeAll(part);
      left -= part.length;
      if (sending.rate !== null) await sleep((1000 * part.length) / sending.rate);
    }
    if (left <= 0) break;
  }
  if (sending.hangs) await hang(dir);
  return 0;
};
