/**
 * What qubesd runs in place of a compressor: a script that hands its stdin to a socket of this process.
 *
 * qubesd runs it as root, with no word of this run in its arguments or its environment, so the socket's
 * path is written into it, and both lie in the run's own directory of mode 0700. The script gives
 * nothing on, and ends well only when it was told that all of the stream was taken. A socket that is
 * closed ends it: nobody may be left blocked in one, because qubesd would wait for it for ever
 * (docs/qubes.md, Tap).
 */
import * as Effect from "effect/Effect";
import type * as Scope from "effect/Scope";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { fromReadable } from "#layers/process/FdBytes";
import type { Tapped } from "#services/QvmBackup";
import { printable } from "#src/say/shown";

/** Bytes that its pipe is to hold, in place of the 65,536 of a pipe: a third faster. */
const pipe = 1_048_576;
/**
 * Bytes that the socket is to hold, two slots: so that something comes while one is looked at. Root alone
 * may ask for more than some 200 KiB; with those, what reads and what looks take turns, half as fast.
 */
const ahead = 8_388_608;

/** -ISs: nothing of root's environment or of this directory is loaded. */
const script = (socket: string): string => `#!/usr/bin/python3 -ISs
import fcntl, os, socket, sys
to = socket.socket(socket.AF_UNIX)
for larger in (
    lambda: fcntl.fcntl(0, 1031, ${pipe}),  # F_SETPIPE_SZ
    lambda: to.setsockopt(socket.SOL_SOCKET, 32, ${ahead}),  # SO_SNDBUFFORCE
):
    try:
        larger()
    except OSError:
        pass
to.connect("${socket}")
while True:
    some = os.read(0, ${pipe})
    if not some:
        break
    to.sendall(some)
to.shutdown(socket.SHUT_WR)
sys.exit(0 if to.recv(1) == b"+" else 1)
`;

/** Bytes of the path of a unix socket, at most. */
const longest = 107;

/** The script as `file`, which is removed when the scope closes, and all connections with it. */
export const openTap = (
  file: string,
): Effect.Effect<{ readonly next: Effect.Effect<Tapped> }, string, Scope.Scope> =>
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
    const server = yield* Effect.acquireRelease(
      Effect.callback<net.Server, string>((done) => {
        const options = { allowHalfOpen: true, highWaterMark: pipe };
        const it = net.createServer(options, (socket) => {
          open.add(socket);
          socket.on("error", () => {}); // its reader sees it
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
          fs.rmSync(file, { force: true });
        }),
    );
    server.unref();
    yield* Effect.try({
      try: () => fs.writeFileSync(file, script(place), { mode: 0o700, flag: "wx" }),
      catch: (cause) => printable(cause instanceof Error ? cause.message : String(cause)),
    });
    const tapped = (socket: net.Socket): Tapped => ({
      stream: fromReadable(socket),
      done: Effect.callback((done) => {
        // The tap may have died meanwhile; that qubesd fails then, qvm-backup says.
        if (!socket.writable) return done(Effect.void);
        socket.end("+", () => done(Effect.void));
        socket.once("close", () => done(Effect.void));
      }),
    });
    return {
      next: Effect.callback((done) => {
        const look = () => {
          const socket = waiting.shift();
          if (socket === undefined) return;
          wake = undefined;
          done(Effect.succeed(tapped(socket)));
        };
        wake = look;
        look();
        return Effect.sync(() => {
          wake = undefined;
        });
      }),
    };
  });
