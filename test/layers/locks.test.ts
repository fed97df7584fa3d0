/** Locks: what both must do, on abstract sockets and in memory; strangers, other processes, dead holders. */
import { afterAll, assert, describe, it } from "@effect/vitest";
import { Duration, Effect, Exit, Fiber, Scope } from "effect";
import { TestClock } from "effect/testing";
import { spawn, spawnSync } from "node:child_process";
import { createHash, createHmac } from "node:crypto";
import * as fs from "node:fs";
import * as net from "node:net";
import * as os from "node:os";
import * as path from "node:path";
import { build } from "rolldown";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { unixLocks } from "#layers/files/UnixLocks";
import { Locks } from "#services/Locks";
import { locksContract } from "#test/contracts/locks";
import { unless } from "#test/support/unless";
import { gone } from "#test/support/until";

const root = path.resolve(import.meta.dirname, "../..");
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-locks-"));
afterAll(() => fs.rmSync(scratch, { recursive: true, force: true }));

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
  const nameOf = (key: string) =>
    `\0qbackup/${createHash("sha512").update(`qbackup lock\n${key}`).digest("hex")}`.slice(0, 108);
  const proof = (key: string, of: string, ...nonces: ReadonlyArray<Buffer>) =>
    createHmac("sha256", key).update(`qbackup lock ${of}\n`).update(Buffer.concat(nonces)).digest();
  const nonce = Buffer.alloc(32, 7);
  /** Sends this and gives what comes; `then` makes of the first answer what is sent next. */
  const talk = (key: string, bytes: string | Buffer, then?: (answer: Buffer) => Buffer) =>
    Effect.promise(
      () =>
        new Promise<Buffer>((resolve) => {
          let heard = Buffer.alloc(0);
          const socket = net.connect({ path: nameOf(key) }, () =>
            then === undefined ? socket.end(bytes) : socket.write(bytes),
          );
          socket.on("error", () => {}).on("close", () => resolve(heard));
          socket.on("data", (some) => {
            heard = Buffer.concat([heard, some]);
            if (heard.length === 64 && then !== undefined) socket.end(then(heard));
          });
        }),
    );
  const hold = (key: string, stepDownWithin?: number) =>
    Locks.use((locks) =>
      locks.hold(key, stepDownWithin === undefined ? {} : { stepDownWithin }),
    ).pipe(Effect.provide(unixLocks));
  const isAsked = (asked: Effect.Effect<void>) =>
    Effect.map(Effect.timeoutOption(asked, 50), ({ _tag }) => _tag === "Some");

  it.live("strangers are not heard, however they knock", () =>
    Effect.gen(function* () {
      const key = `strangers ${process.pid}`;
      const { asked } = yield* hold(key);
      const knocks = ["", "x", "\0".repeat(64), Buffer.alloc(64), Buffer.alloc(1_000_000)];
      for (const knock of knocks) yield* talk(key, knock);
      yield* Effect.all(
        Array.from({ length: 100 }, () => talk(key, "y".repeat(64))),
        { concurrency: "unbounded" },
      );
      // What is right but for the key, or was said by the other side.
      yield* talk(key, nonce, (answer) => proof("x", "asker", nonce, answer.subarray(0, 32)));
      yield* talk(key, nonce, (answer) => answer.subarray(32));
      yield* talk(key, nonce, (answer) => proof(key, "holder", nonce, answer.subarray(0, 32)));
      assert.isFalse(yield* isAsked(asked));
      yield* talk(key, nonce, (answer) => proof(key, "asker", nonce, answer.subarray(0, 32)));
      yield* asked;
    }).pipe(Effect.scoped),
  );

  it.live("what was said once is of no use with the next holder", () =>
    Effect.gen(function* () {
      const key = `said ${process.pid}`;
      let said = Buffer.alloc(0);
      const first = yield* Scope.make();
      const before = yield* Scope.provide(hold(key), first);
      const answer = yield* talk(key, nonce, (heard) => {
        said = proof(key, "asker", nonce, heard.subarray(0, 32));
        return said;
      });
      yield* before.asked;
      yield* Scope.close(first, Exit.void);
      const { asked } = yield* hold(key);
      const again = yield* talk(key, nonce, () => said);
      assert.isFalse(yield* isAsked(asked));
      assert.isFalse(again.equals(answer));
    }).pipe(Effect.scoped),
  );

  it.live("a name that another program has taken is held, and told apart from a holder", () =>
    Effect.gen(function* () {
      for (const answer of [undefined, Buffer.alloc(64), Buffer.alloc(1_000_000)]) {
        const key = `taken ${process.pid} ${answer?.length}`;
        const heard: Array<number> = [];
        const server = net.createServer((client) => {
          client
            .on("error", () => {})
            .on("data", (bytes) => {
              heard.push(bytes.length);
              if (answer !== undefined) client.write(answer);
            });
        });
        yield* Effect.promise(
          () => new Promise<void>((resolve) => server.listen({ path: nameOf(key) }, resolve)),
        );
        const error = yield* Effect.flip(Effect.scoped(hold(key, 1500)));
        assert.deepInclude(error, { _tag: "LockBusy", stranger: true });
        // It heard what anybody can make up, and nothing that was made of the key.
        assert.isTrue(heard.every((bytes) => bytes === 32));
        server.close();
      }
    }),
  );

  it.live("their names fill the field that the kernel has for them", () =>
    Effect.gen(function* () {
      const key = `name ${process.pid}`;
      assert.strictEqual(Buffer.from(nameOf(key)).length, 108);
      yield* hold(key);
      const shown = nameOf(key).replace("\0", "@");
      assert.include(fs.readFileSync("/proc/net/unix", "latin1").split(/[ \n]/), shown);
    }).pipe(Effect.scoped),
  );

  it.live("where they reach is said, and changes with the namespace", () =>
    Effect.gen(function* () {
      const reach = yield* Locks.use((locks) => locks.reach).pipe(Effect.provide(unixLocks));
      assert.match(reach?.boot ?? "", /^[0-9a-f-]{36}$/);
      assert.match(reach?.namespace ?? "", /^net:\[[0-9]+\]$/);
    }),
  );

  /** Another process that holds a lock: with the layer itself, as the shell would. */
  const holder = (key: string, then: string) => {
    const file = (name: string) => JSON.stringify(path.join(root, name));
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
      { cwd: root, stdio: ["ignore", "pipe", "ignore"] },
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

  /** The system's node, where it is another one than this: it reads no TypeScript. */
  const older = ["/usr/bin/node", "/usr/bin/nodejs"].find(
    (file) =>
      fs.existsSync(file) &&
      spawnSync(file, ["--version"], { encoding: "utf8" }).stdout.trim() !== process.version,
  );
  /** A program that holds the lock it is told of until it is asked to step down. */
  const bundled = async () => {
    const entry = path.join(root, "test/layers/holder.ts");
    const source = `
      import { Effect } from "effect";
      import { unixLocks } from "#layers/files/UnixLocks";
      import { Locks } from "#services/Locks";
      setInterval(() => {}, 1000);
      Effect.runPromise(Effect.scoped(Effect.gen(function* () {
        const { asked } = yield* Locks.use((l) => l.hold(process.argv[2], { stepDownWithin: 10000 }));
        process.stdout.write("held\\n");
        yield* asked;
      })).pipe(Effect.provide(unixLocks))).then(() => process.exit(0));`;
    const file = path.join(scratch, "holder.cjs");
    await build({
      input: entry,
      platform: "node",
      tsconfig: false,
      plugins: [
        {
          name: "holder",
          resolveId: (id) => (id === entry ? entry : null),
          load: (id) => (id === entry ? source : null),
        },
      ],
      output: { file, format: "cjs", codeSplitting: false },
    });
    return file;
  };
  it.live(
    "holders under another version of node shut each other out",
    () =>
      Effect.gen(function* () {
        const file = yield* Effect.promise(bundled);
        const key = `versions ${process.pid}`;
        const start = () => spawn(older!, [file, key], { stdio: ["ignore", "pipe", "inherit"] });
        const child = start();
        yield* started(child);
        const error = yield* Effect.flip(Effect.scoped(hold(key)));
        assert.strictEqual(error._tag, "LockBusy");
        // Asked to step down, it does.
        const scope = yield* Scope.make();
        const { asked } = yield* Scope.provide(hold(key, 10_000), scope);
        assert.strictEqual(yield* ended(child), 0);
        // And the other way round.
        const next = start();
        yield* asked;
        assert.isNull(next.exitCode);
        yield* Scope.close(scope, Exit.void);
        yield* started(next);
        next.kill("SIGKILL");
        yield* ended(next);
      }),
    unless(older === undefined ? "there is no other version of node here" : undefined),
  );
});
