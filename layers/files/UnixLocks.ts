/**
 * Locks as listening abstract unix sockets: the kernel lets one process listen under a name and
 * forgets the name with the process. Node has no flock.
 *
 * Everybody on the machine can see the names and connect, and may listen under a name that has become
 * free. So a name is a hash of the key and says nothing, and whoever asks a holder to step down first
 * has it prove that it knows the key, and then proves it too, each by a digest over what the other one
 * has just made up: what was said once is of no use again.
 */
import * as Clock from "effect/Clock";
import * as Deferred from "effect/Deferred";
import * as Duration from "effect/Duration";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import type * as Scope from "effect/Scope";
import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { readFileSync, readlinkSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { LockBusy, LockFailed, Locks } from "#services/Locks";

/**
 * The whole field that the kernel has for a name, in bytes. Node 20 fills a shorter one up with zeros,
 * and later ones do not: they would listen under two names, and each believe that it is alone.
 */
const nameSize = 108;

const nameOf = (key: string): string =>
  `\0qbackup/${createHash("sha512").update(`qbackup lock\n${key}`).digest("hex")}`.slice(
    0,
    nameSize,
  );

/** What each side makes up, and what the other one makes of it and the key. In bytes. */
const nonceSize = 32;
const proofSize = 32;
const proofOf = (key: string, of: "holder" | "asker", nonces: Buffer): Buffer =>
  createHmac("sha256", key).update(`qbackup lock ${of}\n`).update(nonces).digest();

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

/** Gives every `size` bytes that come to `see`, once; more than the last ones end the connection. */
const inTurn = (
  socket: Socket,
  turns: ReadonlyArray<readonly [size: number, see: (bytes: Buffer) => void]>,
): void => {
  const left = [...turns];
  let heard = Buffer.alloc(0);
  socket.on("data", (bytes) => {
    heard = Buffer.concat([heard, bytes]);
    for (let turn = left[0]; turn !== undefined && heard.length >= turn[0]; turn = left[0]) {
      left.shift();
      const some = heard.subarray(0, turn[0]);
      heard = heard.subarray(turn[0]);
      turn[1](some);
    }
    if (left.length === 0) socket.destroy();
  });
};

/** Listens under the name; undefined where another one does. */
const listen = (name: string, key: string, asked: () => void) =>
  Effect.callback<Held | undefined, LockFailed>((done) => {
    const clients = new Set<Socket>();
    const server = createServer((client) => {
      clients.add(client);
      const mine = randomBytes(nonceSize);
      let nonces = mine;
      client
        .setTimeout(patience, () => client.destroy())
        .on("close", () => clients.delete(client))
        .on("error", () => {})
        .unref();
      inTurn(client, [
        [
          nonceSize,
          (theirs) => {
            nonces = Buffer.concat([theirs, mine]);
            client.write(Buffer.concat([mine, proofOf(key, "holder", nonces)]));
          },
        ],
        [
          proofSize,
          (proof) => {
            if (timingSafeEqual(proof, proofOf(key, "asker", nonces))) asked();
          },
        ],
      ]);
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

/** Asks the holder to let go, once it has proven to be one; false where what listens is none. */
const ask = (name: string, key: string) =>
  Effect.callback<boolean>((done) => {
    const mine = randomBytes(nonceSize);
    /** Undefined while nothing was said: the holder may just have let go. */
    let genuine: boolean | undefined;
    const socket = connect({ path: name }, () => socket.write(mine))
      .setTimeout(patience, () => {
        genuine ??= false;
        socket.destroy();
      })
      .on("error", () => {})
      .on("close", () => done(Effect.succeed(genuine ?? true)));
    inTurn(socket, [
      [
        nonceSize + proofSize,
        (answer) => {
          const nonces = Buffer.concat([mine, answer.subarray(0, nonceSize)]);
          const proof = proofOf(key, "holder", nonces);
          genuine = timingSafeEqual(answer.subarray(nonceSize), proof);
          if (genuine) socket.end(proofOf(key, "asker", nonces));
        },
      ],
      // Nothing more comes: the connection ends when the holder has heard it.
      [1, () => {}],
    ]);
    return Effect.sync(() => socket.destroy());
  });

const reach = () => {
  try {
    return {
      boot: readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim(),
      // The link itself: a profile of AppArmor does not let a process look at what it leads to.
      namespace: readlinkSync("/proc/self/ns/net"),
    };
  } catch {
    return undefined;
  }
};

export const unixLocks: Layer.Layer<Locks> = Layer.succeed(Locks, {
  reach: Effect.sync(reach),
  hold: Effect.fnUntraced(function* (key, options): Effect.fn.Return<
    { readonly asked: Effect.Effect<void> },
    LockBusy | LockFailed,
    Scope.Scope
  > {
    const name = nameOf(key);
    const asked = yield* Deferred.make<void>();
    const limit =
      options?.stepDownWithin === undefined ? 0 : Duration.toMillis(options.stepDownWithin);
    const until = (yield* monotonic) + limit;
    const attempt = Effect.acquireRelease(
      listen(name, key, () => Deferred.doneUnsafe(asked, Effect.void)),
      (held) => (held === undefined ? Effect.void : release(held)),
    );
    let stranger = false;
    for (;;) {
      if ((yield* attempt) !== undefined) return { asked: Deferred.await(asked) };
      const left = until - (yield* monotonic);
      if (left <= 0) return yield* new LockBusy({ stranger });
      const genuine = yield* Effect.timeoutOption(ask(name, key), left);
      if (genuine._tag === "Some") stranger = !genuine.value;
      yield* Effect.sleep(Math.min(pause, Math.max(left, 1)));
    }
  }),
});
