/** A FIFO that another process writes to, and this one reads. */
import * as Effect from "effect/Effect";
import * as fs from "node:fs";
import { type Env, run } from "#layers/process/Child";
import { fromFd } from "#layers/process/FdBytes";
import { printable } from "#src/say/shown";

const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants;

/** A read end, without waiting for a writer. */
export const openFifo = (fifo: string): number => {
  const fd = fs.openSync(fifo, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
  if (fs.fstatSync(fd).isFIFO()) return fd;
  fs.closeSync(fd);
  throw new Error(`${fifo} is no FIFO`);
};

/** Makes it, and opens both ends: until `letGo` there is no end of the bytes. `ahead`: see fromFd. */
export const makeFifo = Effect.fnUntraced(function* (
  fifo: string,
  env: Env | undefined,
  ahead?: number,
) {
  const made = yield* run(["mkfifo", "-m", "600", fifo], { limit: "5 seconds", env }).pipe(
    Effect.mapError(({ message }) => message),
  );
  if (made.code !== 0) return yield* Effect.fail(made.said.join("; "));
  const [reader, keeper] = yield* Effect.try({
    try: () => {
      const read = openFifo(fifo);
      try {
        return [read, fs.openSync(fifo, O_WRONLY | O_NONBLOCK | O_NOFOLLOW)] as const;
      } catch (cause) {
        fs.closeSync(read);
        throw cause;
      }
    },
    catch: (cause) => printable(cause instanceof Error ? cause.message : String(cause)),
  });
  const source = fromFd(reader, ahead);
  let kept = true;
  const letGo = () => {
    if (kept) fs.closeSync(keeper);
    kept = false;
  };
  return {
    source,
    /** From now on the end of the last writer is the end of the bytes. */
    letGo,
    close: () => {
      // The name first: who opens it later finds nothing, instead of nobody.
      fs.rmSync(fifo, { force: true });
      letGo();
      source.close(); // who still writes gets SIGPIPE
    },
  };
});
