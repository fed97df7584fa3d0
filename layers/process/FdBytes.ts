/** Bytes over descriptors and streams of this process. */
import * as Effect from "effect/Effect";
import { closeSync, fstatSync, read as fsRead } from "node:fs";
import { Socket } from "node:net";
import type { Readable, Writable } from "node:stream";
import { isatty, ReadStream } from "node:tty";
import { BytesError, type Sink, type Source } from "#services/Bytes";

/**
 * Reads a FIFO, pipe or socket through epoll. Not fs.read: a read blocked in libuv's pool cannot be
 * interrupted and keeps process.exit from returning (measured on node 20 and 24).
 *
 * `ahead` bounds in bytes what may be taken from the descriptor before it is asked for; with 1
 * nothing is, and whoever inherits the descriptor finds every byte that was not read here.
 *
 * The descriptor belongs to the source from now on; `close` closes it; a read
 * under way fails.
 */
export const fromFd = (fd: number, ahead = 65_536): Source & { readonly close: () => void } => {
  const kind = fstatSync(fd);
  if (isatty(fd)) return Object.assign(fromReadable(new ReadStream(fd)), { close: () => {} });
  // A socket cannot be made of a file or /dev/null; neither makes a read wait, so fs.read will do.
  if (kind.isFile() || kind.isCharacterDevice()) return fromFile(fd);

  const spill = Buffer.allocUnsafeSlow(ahead);
  /** Read while nobody waited, or into a buffer whose reader was interrupted. */
  let pending: Buffer = spill.subarray(0, 0);
  let lent: { readonly view: Buffer; readonly of: Uint8Array; readonly at: number } | undefined;
  let into: Uint8Array | undefined;
  let got = 0;
  let want = 0;
  let received = 0;
  let ended = false;
  let failed: Error | undefined;
  let resume: ((done: Effect.Effect<number, BytesError>) => void) | undefined;

  const settle = () => {
    const done = resume;
    const n = got;
    resume = undefined;
    into = undefined;
    done?.(
      // What came before a failure is dropped: a short read would say that the bytes end here.
      failed === undefined ? Effect.succeed(n) : Effect.fail(new BytesError({ cause: failed })),
    );
  };
  const socket = new Socket({
    fd,
    readable: true,
    writable: false,
    onread: {
      // Node asks for the next buffer right after a read, so who it was lent for may have gone by
      // the time it is filled: `lent` remembers.
      buffer: () => {
        if (into === undefined || ahead === 1) {
          lent = undefined;
          return spill;
        }
        const view = Buffer.from(into.buffer, into.byteOffset + got, into.length - got);
        lent = { view, of: into, at: got };
        return view;
      },
      callback: (n) => {
        received += n;
        if (lent !== undefined && lent.of === into && lent.at === got) {
          got += n;
        } else {
          const bytes = (lent?.view ?? spill).subarray(0, n);
          const taken = into === undefined ? 0 : Math.min(n, into.length - got);
          if (taken > 0) {
            into!.set(bytes.subarray(0, taken), got);
            got += taken;
          }
          const rest = bytes.subarray(taken);
          // What is in `spill` may stay there: nothing is read into it before it is consumed.
          pending = lent === undefined ? rest : Buffer.from(rest);
        }
        if (into !== undefined && got >= want) settle();
        return into !== undefined && pending.length === 0;
      },
    },
  });
  socket.pause();
  socket.on("end", () => {
    ended = true;
    settle();
  });
  socket.on("error", (error) => {
    ended = true;
    failed = error;
    settle();
  });

  return {
    received: () => received,
    close: () => {
      const done = resume;
      ended = true;
      failed ??= new Error("closed here");
      resume = undefined;
      into = undefined;
      // Not the bytes so far: fewer than asked for would look like the end.
      done?.(Effect.fail(new BytesError({ cause: failed })));
      socket.destroy();
    },
    read: (buffer, atLeast = 1) =>
      Effect.callback((done) => {
        got = Math.min(buffer.length, pending.length);
        buffer.set(pending.subarray(0, got));
        pending = pending.subarray(got);
        if (got >= atLeast || (ended && failed === undefined)) {
          return done(Effect.succeed(got));
        }
        if (failed !== undefined) return done(Effect.fail(new BytesError({ cause: failed })));
        into = buffer;
        want = atLeast;
        resume = done;
        socket.resume();
        return Effect.sync(() => {
          socket.pause();
          resume = undefined;
          into = undefined;
        });
      }),
  };
};

const fromFile = (fd: number): Source & { readonly close: () => void } => {
  let received = 0;
  const some = (into: Uint8Array) =>
    Effect.callback<number, BytesError>((done) => {
      fsRead(fd, into, 0, into.length, null, (cause, n) => {
        received += n;
        done(cause === null ? Effect.succeed(n) : Effect.fail(new BytesError({ cause })));
      });
    });
  return {
    received: () => received,
    close: () => closeSync(fd),
    read: Effect.fnUntraced(function* (into: Uint8Array, atLeast = 1) {
      let got = 0;
      while (got < atLeast) {
        const n = yield* some(into.subarray(got));
        if (n === 0) break;
        got += n;
      }
      return got;
    }),
  };
};

/**
 * Reads a stream that node opened itself, as a child's stdout. What comes is held as it comes, up to the
 * stream's own mark, and copied once.
 */
export const fromReadable = (stream: Readable): Source => {
  const held: Array<Buffer> = [];
  let bytes = 0;
  let received = 0;
  let ended = false;
  let failed: Error | undefined;
  let wake: (() => void) | undefined;
  const ring = () => wake?.();
  stream.on("data", (some: Buffer) => {
    held.push(some);
    bytes += some.length;
    if (bytes >= stream.readableHighWaterMark) stream.pause();
    ring();
  });
  stream.on("error", (error) => {
    failed = error;
    ended = true;
    ring();
  });
  for (const event of ["end", "close"]) {
    stream.on(event, () => {
      ended = true;
      ring();
    });
  }
  /** As much as there is, and fits. */
  const taken = (into: Uint8Array): number => {
    let got = 0;
    while (bytes > 0 && got < into.length) {
      const first = held[0]!;
      const part = first.subarray(0, into.length - got);
      into.set(part, got);
      got += part.length;
      bytes -= part.length;
      if (part.length === first.length) held.shift();
      else held[0] = first.subarray(part.length);
    }
    received += got;
    if (bytes === 0 && stream.isPaused()) stream.resume();
    return got;
  };
  return {
    received: () => received + bytes + stream.readableLength,
    read: (into, atLeast = 1) =>
      Effect.callback((done) => {
        let got = 0;
        const take = () => {
          got += taken(into.subarray(got));
          if (got < atLeast && !(ended && bytes === 0)) return;
          wake = undefined;
          done(
            failed === undefined || got >= atLeast
              ? Effect.succeed(got)
              : Effect.fail(new BytesError({ cause: failed })),
          );
        };
        wake = take;
        take();
        return Effect.sync(() => {
          wake = undefined;
          held.unshift(Buffer.from(into.subarray(0, got)));
          bytes += got;
          received -= got;
        });
      }),
  };
};

/** Writes to a stream; `write` returns when the kernel has taken all of it. */
export const toWritable = (stream: Writable): Sink => {
  stream.on("error", () => {}); // also given to each write's callback, where it is handled
  return {
    write: (bytes) =>
      Effect.callback((done) => {
        stream.write(bytes, (cause) =>
          done(cause ? Effect.fail(new BytesError({ cause })) : Effect.void),
        );
      }),
    end: Effect.callback((done) => {
      if (stream.destroyed) return done(Effect.void);
      stream.once("close", () => done(Effect.void));
      stream.end(() => done(Effect.void));
    }),
  };
};
