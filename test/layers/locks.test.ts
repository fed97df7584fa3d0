/** Locks: what both must do, on abstract sockets and in memory; strangers, other processes, dead holders. */
import { assert, describe, it } from "@effect/vitest";
import { Duration, Effect, Fiber } from "effect";
import { TestClock } from "effect/testing";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import * as net from "node:net";
import * as path from "node:path";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { unixLocks } from "#layers/files/UnixLocks";
import { Locks } from "#services/Locks";
import { locksContract } from "#test/contracts/locks";
import { gone } from "#test/support/until";

locksContract("unix", () => unixLocks);
locksContract("memory", () => memoryLocks());

describe("locks in memory", () => {
  it.effect("wait on the test's clock", () =>
    Effect.gen(function* () {
      const layer = memoryLocks();
      const take = Effect.scoped(
        Locks.use((locks) => locks.hold("k", { stepDownWithin: Duration.seconds(10) })),
      ).pipe(Effect.provide(layer));
      yield* Locks.use((locks) => locks.hold("k")).pipe(Effect.provide(layer));
      const waiting = yield* Effect.forkChild(Effect.flip(take));
      yield* TestClock.adjust("9 seconds");
      assert.isUndefined(waiting.pollUnsafe());
      yield* TestClock.adjust("1 second");
      assert.strictEqual((yield* Fiber.join(waiting))._tag, "LockBusy");
    }).pipe(Effect.scoped),
  );
});

describe("locks on abstract sockets", () => {
  const hash = (purpose: string, key: string) =>
    createHash("sha256").update(`qbackup lock ${purpose}\n${key}`).digest("hex");
  const send = (key: string, bytes: string | Buffer) =>
    Effect.promise(
      () =>
        new Promise<void>((resolve) => {
          const socket = net.connect({ path: `\0qbackup/${hash("name", key)}` }, () =>
            socket.end(bytes),
          );
          socket.on("error", () => {}).on("close", () => resolve());
          socket.resume();
        }),
    );
  const hold = (key: string) =>
    Locks.use((locks) => locks.hold(key)).pipe(Effect.provide(unixLocks));

  it.live("strangers are not heard, however they knock", () =>
    Effect.gen(function* () {
      const key = `strangers ${process.pid}`;
      const { asked } = yield* hold(key);
      const token = hash("token", key);
      const knocks = ["", "x", "\0".repeat(64), token.slice(1), `${token}x`, token.toUpperCase()];
      for (const knock of [...knocks, Buffer.alloc(1_000_000)]) yield* send(key, knock);
      yield* Effect.all(
        Array.from({ length: 100 }, () => send(key, "y".repeat(64))),
        {
          concurrency: "unbounded",
        },
      );
      assert.strictEqual((yield* Effect.timeoutOption(asked, 50))._tag, "None");
      yield* send(key, token);
      yield* asked;
    }).pipe(Effect.scoped),
  );

  /** Another process that holds a lock: with the layer itself, as the shell would. */
  const holder = (key: string, then: string) => {
    const file = (name: string) => JSON.stringify(path.resolve(import.meta.dirname, "../..", name));
    return spawn(
      process.execPath,
      [
        "--input-type=module",
        "-e",
        `import { Effect } from "effect";
         import { unixLocks } from ${file("layers/files/UnixLocks.ts")};
         import { Locks } from ${file("services/Locks.ts")};
         await Effect.runPromise(Effect.scoped(Effect.gen(function* () {
           yield* Locks.use((l) => l.hold(${JSON.stringify(key)}));
           process.stdout.write("held\\n");
           ${then}
         })).pipe(Effect.provide(unixLocks)));`,
      ],
      { cwd: path.resolve(import.meta.dirname, "../.."), stdio: ["ignore", "pipe", "ignore"] },
    );
  };
  const started = (child: ReturnType<typeof holder>) =>
    Effect.promise(
      () => new Promise<void>((resolve) => child.stdout!.once("data", () => resolve())),
    );
  const ended = (child: ReturnType<typeof holder>) =>
    Effect.promise(async () => {
      await gone(child);
      return child.exitCode;
    });

  it.live("a killed process holds nothing", () =>
    Effect.gen(function* () {
      const key = `killed ${process.pid}`;
      const child = holder(key, "setInterval(() => {}, 1000); yield* Effect.never;");
      yield* started(child);
      assert.strictEqual((yield* Effect.flip(Effect.scoped(hold(key))))._tag, "LockBusy");
      child.kill("SIGKILL");
      yield* ended(child);
      yield* Effect.scoped(hold(key));
    }),
  );

  it.live("a lock does not keep its process alive", () =>
    Effect.gen(function* () {
      const child = holder(`idle ${process.pid}`, "return;");
      assert.strictEqual(yield* ended(child), 0);
      const waiting = holder(`waiting ${process.pid}`, "yield* Effect.callback(() => {});");
      // Nothing is left to wait for but the lock: node ends, with its code for exactly that.
      assert.strictEqual(yield* ended(waiting), 13);
    }),
  );
});
