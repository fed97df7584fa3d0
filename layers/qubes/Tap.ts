/**
 * What qubesd runs in place of a compressor: a script that hands its stdin to this process.
 *
 * qubesd runs it as root, with no word of this run in its arguments or its environment, so the path of a
 * socket of this process is written into it, and both lie in the run's own directory of mode 0700. The
 * bytes take a FIFO there, another one for each file, into which the kernel moves them from a pipe without
 * a copy. The socket says which one it is, and at the end that all of it was taken: only then does the
 * script end well. It gives nothing on. Where the socket or the FIFO is closed, it ends: nobody may be left
 * blocked in one, because qubesd would wait for it for ever (docs/qubes.md, Tap).
 */
import * as Effect from "effect/Effect";
import type * as Scope from "effect/Scope";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import type { Env } from "#layers/process/Child";
import { makeFifo } from "#layers/qubes/Fifo";
import { BytesError } from "#services/Bytes";
import type { Tapped } from "#services/QvmBackup";
import { printable } from "#src/say/shown";

/** Bytes that a pipe is to hold, in place of 65,536: what is before the script works on while it waits. */
const pipe = 1_048_576;
/** Bytes that are read at once: few enough to be in the processor's cache still when they are looked at. */
const piece = 524_288;
/**
 * Seconds that the script waits where what it moved was less than an eighth of the FIFO: tar writes 10 KiB at a
 * time, and moved one by one these cost more turns of three processes than it costs to read them.
 */
const gathering = 0.0003;

/**
 * -ISs: nothing of root's environment or of this directory is loaded. It waits for no reader of the FIFO, for
 * there is one, unless this process is gone.
 */
const script = (socket: string): string => `#!/usr/bin/python3 -ISs
import fcntl, os, socket, stat, sys, time
control = socket.socket(socket.AF_UNIX)
control.connect("${socket}")
fifo = "${socket}." + control.recv(20).decode()
to = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
os.set_blocking(to, True)
control.shutdown(socket.SHUT_WR)
for pipe in (0, to):
    try:
        fcntl.fcntl(pipe, 1031, ${pipe})  # F_SETPIPE_SZ
    except OSError:
        pass
with open(to, "wb") as out:
    # Of what is no pipe the kernel keeps the FIFO locked while it waits for bytes.
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        few = fcntl.fcntl(to, 1032) // 8  # F_GETPIPE_SZ
        while moved := os.splice(0, to, ${pipe}):
            if moved < few:
                time.sleep(${gathering})
    else:
        for some in iter(lambda: os.read(0, ${pipe}), b""):
            out.write(some)
            out.flush()
sys.exit(0 if control.recv(1) == b"+" else 1)
`;

/** Bytes of the path of a unix socket, at most. */
const longest = 107;

/** The script as `file`, which is removed when the scope closes, and all connections with it. */
export const openTap = (
  file: string,
  env: Env | undefined,
): Effect.Effect<{ readonly next: Effect.Effect<Tapped, BytesError> }, string, Scope.Scope> =>
  Effect.gen(function* () {
    const place = path.join(path.dirname(file), "tapped");
    // A shell reads the path, and Python.
    if (!/^[A-Za-z0-9/._-]+$/.test(place) || place.length > longest) {
      return yield* Effect.fail(
        `${printable(place)} is too long for a socket, or has other signs than letters, digits and . _ - in it: set XDG_STATE_HOME`,
      );
    }
    const waiting: Array<net.Socket> = [];
    const open = new Set<net.Socket>();
    let wake: (() => void) | undefined;
    let files = 0;
    /** Ends what is open of the last one. */
    let close = () => {};
    const server = yield* Effect.acquireRelease(
      Effect.callback<net.Server, string>((done) => {
        const it = net.createServer({ allowHalfOpen: true }, (socket) => {
          open.add(socket);
          socket.on("error", () => {}); // it is closed then
          socket.on("close", () => open.delete(socket));
          waiting.push(socket);
          wake?.();
        });
        it.on("error", (cause) => done(Effect.fail(printable(cause.message))));
        it.listen(place, () => done(Effect.succeed(it)));
      }),
      (it) =>
        Effect.sync(() => {
          it.close();
          for (const socket of open) socket.destroy();
          close();
          fs.rmSync(file, { force: true });
        }),
    );
    server.unref();
    yield* Effect.try({
      try: () => fs.writeFileSync(file, script(place), { mode: 0o700, flag: "wx" }),
      catch: (cause) => printable(cause instanceof Error ? cause.message : String(cause)),
    });
    const connected = Effect.callback<net.Socket>((done) => {
      const look = () => {
        const socket = waiting.shift();
        if (socket === undefined) return;
        wake = undefined;
        done(Effect.succeed(socket));
      };
      wake = look;
      look();
      return Effect.sync(() => {
        wake = undefined;
      });
    });
    const tapped = Effect.fnUntraced(function* (socket: net.Socket) {
      files += 1;
      const ends = yield* makeFifo(`${place}.${files}`, env, piece).pipe(
        Effect.mapError((detail) => new BytesError({ cause: new Error(detail) })),
      );
      close = ends.close;
      // It says no more once it has opened the FIFO, or is gone: the bytes have an end from then on.
      if (socket.readableEnded || socket.destroyed) ends.letGo();
      for (const event of ["end", "close"]) socket.on(event, ends.letGo);
      socket.resume();
      socket.write(`${files}`);
      return {
        stream: ends.source,
        done: Effect.callback<void>((done) => {
          // The tap may have died meanwhile; that qubesd fails then, qvm-backup says.
          if (!socket.writable) return done(Effect.void);
          socket.end("+", () => done(Effect.void));
          socket.once("close", () => done(Effect.void));
        }),
      } satisfies Tapped;
    }, Effect.uninterruptible);
    return {
      next: Effect.suspend(() => {
        close();
        return Effect.flatMap(connected, tapped);
      }),
    };
  });
