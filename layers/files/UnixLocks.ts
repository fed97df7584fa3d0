/**
 * Locks as listening abstract unix sockets: the kernel lets one process listen under a name and
 * forgets the name with the process. Node has no flock.
 *
 * Everybody on the machine can see the names and connect, so neither says anything by itself: name
 * and token are two hashes of the key, and only who sends the token is heard.
 */
import * as Clock from "effect/Clock";
import * as Deferred from "effect/Deferred";
import * as Duration from "effect/Duration";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import type * as Scope from "effect/Scope";
import { createHash, timingSafeEqual } from "node:crypto";
import { connect, createServer, type Server, type Socket } from "node:net";
import { LockBusy, LockFailed, Locks } from "#services/Locks";

const derive = (purpose: string, key: string): string =>
  createHash("sha256").update(`qbackup lock ${purpose}\n${key}`).digest("hex");

/** A stranger may hold a connection open for this long, and this many at once. In milliseconds. */
const patience = 1000;
const strangers = 64;
/** Between two tries to take a lock that is held. In milliseconds. */
const pause = 50;

/** Milliseconds on a clock that never jumps. */
const monotonic = Effect.map(Clock.monotonicTimeNanos, (now) => Number(now) / 1e6);

interface Held {
  readonly server: Server;
  readonly clients: Set<Socket>;
}

/** Listens under the name; undefined where somebody else does. */
const listen = (name: string, token: Buffer, asked: () => void) =>
  Effect.callback<Held | undefined, LockFailed>((done) => {
    const clients = new Set<Socket>();
    const server = createServer((client) => {
      clients.add(client);
      let heard = Buffer.alloc(0);
      client
        .setTimeout(patience, () => client.destroy())
        .on("close", () => clients.delete(client))
        .on("error", () => {})
        .on("data", (bytes) => {
          heard = Buffer.concat([heard, bytes]);
          if (heard.length < token.length) return;
          if (heard.length === token.length && timingSafeEqual(heard, token)) asked();
          client.destroy();
        })
        .unref();
    });
    server.maxConnections = strangers;
    server.on("error", (cause: NodeJS.ErrnoException) =>
      done(cause.code === "EADDRINUSE" ? Effect.undefined : Effect.fail(new LockFailed({ cause }))),
    );
    server.listen({ path: name, exclusive: true }, () => done(Effect.succeed({ server, clients })));
    server.unref();
  });

const release = ({ clients, server }: Held) =>
  Effect.callback<void>((done) => {
    server.close(() => done(Effect.void));
    for (const client of clients) client.destroy();
  });

/** Asks the holder to let go; whether it heard is seen by whether it does. */
const ask = (name: string, token: string) =>
  Effect.callback<void>((done) => {
    const socket = connect({ path: name }, () => socket.end(token))
      .setTimeout(patience, () => socket.destroy())
      .on("error", () => {})
      .on("close", () => done(Effect.void));
    socket.resume();
    return Effect.sync(() => socket.destroy());
  });

export const unixLocks: Layer.Layer<Locks> = Layer.succeed(Locks, {
  hold: Effect.fnUntraced(function* (key, options): Effect.fn.Return<
    { readonly asked: Effect.Effect<void> },
    LockBusy | LockFailed,
    Scope.Scope
  > {
    const name = `\0qbackup/${derive("name", key)}`;
    const token = derive("token", key);
    const asked = yield* Deferred.make<void>();
    const limit =
      options?.stepDownWithin === undefined ? 0 : Duration.toMillis(options.stepDownWithin);
    const until = (yield* monotonic) + limit;
    const attempt = Effect.acquireRelease(
      listen(name, Buffer.from(token), () => Deferred.doneUnsafe(asked, Effect.void)),
      (held) => (held === undefined ? Effect.void : release(held)),
    );
    for (;;) {
      if ((yield* attempt) !== undefined) return { asked: Deferred.await(asked) };
      const left = until - (yield* monotonic);
      if (left <= 0) return yield* new LockBusy();
      yield* Effect.timeoutOption(ask(name, token), left);
      yield* Effect.sleep(Math.min(pause, Math.max(left, 1)));
    }
  }),
});
