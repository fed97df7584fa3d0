/** The script that qubesd runs in place of a compressor, run here, and what it hands over. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Exit, Fiber, Scope } from "effect";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as net from "node:net";
import * as os from "node:os";
import * as path from "node:path";
import { afterEach, beforeEach } from "vitest";
import { openTap } from "#layers/qubes/Tap";
import type { Tapped } from "#services/QvmBackup";
import { rng } from "#test/support/random";
import { unless, without } from "#test/support/unless";

const noPython = without("python3");

let at = "";
const taps: Array<ChildProcess> = [];
beforeEach(() => {
  at = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-tap-"));
});
afterEach(() => {
  for (const tap of taps.splice(0)) tap.kill("SIGKILL");
  fs.rmSync(at, { recursive: true, force: true });
});

/** The script, with `bytes` on its stdin, which ends behind them unless it stays open. */
const tapOf = (bytes: Uint8Array, { piped = true, stays = false } = {}) => {
  // What node makes is a socket.
  const words = `exec ${path.join(at, "tap")}${piped ? " < <(cat)" : ""}`;
  const tap = spawn("bash", ["-c", words], { stdio: ["pipe", "ignore", "ignore"] });
  taps.push(tap);
  tap.stdin!.on("error", () => {}); // a tap that ends early
  tap.stdin!.write(bytes);
  if (!stays) tap.stdin!.end();
  const ended = once(tap, "exit").then(([code]) => code as number);
  return { tap, ended: Effect.promise(() => ended) };
};
const opened = Effect.suspend(() => openTap(path.join(at, "tap"), undefined));
const rest = Effect.fnUntraced(function* (stream: Tapped["stream"]) {
  const into = Buffer.alloc(300_000);
  const parts: Array<Buffer> = [];
  for (;;) {
    const n = yield* stream.read(into);
    if (n === 0) return Buffer.concat(parts);
    parts.push(Buffer.from(into.subarray(0, n)));
  }
});
/** More than all pipes hold. */
const much = Buffer.alloc(5_000_000, "what a qube has");
const within = Effect.timeout("10 seconds");

describe("a tap", unless(noPython), () => {
  it.live.each([true, false])(
    "hands over each file, and ends well once told, of a pipe: %s",
    (piped) =>
      Effect.gen(function* () {
        const { next } = yield* opened;
        for (const bytes of [much, Buffer.from("little"), Buffer.alloc(0), much.subarray(1)]) {
          const { ended } = tapOf(bytes, { piped });
          const { done, stream } = yield* next;
          assert.isTrue((yield* rest(stream)).equals(bytes));
          assert.strictEqual(stream.received(), bytes.length);
          yield* done;
          assert.strictEqual(yield* ended, 0);
          assert.strictEqual(yield* stream.read(Buffer.alloc(1)), 0);
        }
      }).pipe(Effect.scoped, within),
  );

  it.live("lets nobody else read, and leaves nothing", () =>
    Effect.gen(function* () {
      yield* Effect.gen(function* () {
        const { next } = yield* opened;
        tapOf(much);
        yield* (yield* next).stream.read(Buffer.alloc(1));
        const names = fs.readdirSync(at).sort();
        assert.deepStrictEqual(names, ["tap", "tapped", "tapped.1"]);
        assert.strictEqual(fs.statSync(path.join(at, "tap")).mode & 0o777, 0o700);
        const { mode, uid } = fs.statSync(path.join(at, "tapped.1"));
        assert.deepStrictEqual([mode & 0o777, uid], [0o600, process.getuid!()]);
        tapOf(much);
        yield* (yield* next).stream.read(Buffer.alloc(1));
        assert.deepStrictEqual(fs.readdirSync(at).sort(), ["tap", "tapped", "tapped.2"]);
      }).pipe(Effect.scoped);
      assert.deepStrictEqual(fs.readdirSync(at), []);
    }).pipe(within),
  );

  it.live.each([1, 2, 3, 4, 5])("loses nothing to readers that are interrupted, seed %d", (seed) =>
    Effect.gen(function* () {
      const random = rng(seed);
      const bytes = Buffer.from(Array.from({ length: 2_000_000 }, (_, n) => (n * 7 + seed) % 251));
      const { next } = yield* opened;
      tapOf(bytes);
      const { stream } = yield* next;
      const got: Array<Buffer> = [];
      for (;;) {
        const into = Buffer.alloc(random.int(1, 400_000));
        const reading = yield* Effect.forkChild(stream.read(into));
        if (random.next() < 0.5) {
          if (random.next() < 0.7) yield* Effect.sleep(`${random.int(0, 2)} millis`);
          yield* Fiber.interrupt(reading);
        }
        const exit = yield* Fiber.await(reading);
        if (Exit.isFailure(exit)) continue;
        if (exit.value === 0) break;
        got.push(into.subarray(0, exit.value));
      }
      assert.isTrue(Buffer.concat(got).equals(bytes));
    }).pipe(Effect.scoped, within),
  );

  it.live(
    "that dies before it opens anything is a file without a byte, and the next one comes",
    () =>
      Effect.gen(function* () {
        const { next } = yield* opened;
        for (const dies of [
          (socket: net.Socket) => socket.end(),
          (socket: net.Socket) => socket.once("data", () => socket.destroy()),
          (socket: net.Socket) => socket.destroy(),
        ]) {
          const socket = net.connect(path.join(at, "tapped"));
          yield* Effect.promise(() => once(socket, "connect"));
          dies(socket);
          const { done, stream } = yield* next;
          assert.strictEqual((yield* rest(stream)).length, 0);
          yield* done;
        }
        const { ended } = tapOf(much);
        const { done, stream } = yield* next;
        assert.isTrue((yield* rest(stream)).equals(much));
        yield* done;
        assert.strictEqual(yield* ended, 0);
      }).pipe(Effect.scoped, within),
  );

  it.live.each([true, false])(
    "that is killed amid it gives what it gave, and an end, of a pipe: %s",
    (piped) =>
      Effect.gen(function* () {
        const { next } = yield* opened;
        const { tap } = tapOf(much.subarray(0, 1000), { piped, stays: true });
        const { done, stream } = yield* next;
        assert.strictEqual(yield* stream.read(Buffer.alloc(2000), 1000), 1000);
        tap.kill("SIGKILL");
        assert.strictEqual(yield* stream.read(Buffer.alloc(1)), 0);
        yield* done;
      }).pipe(Effect.scoped, within),
  );

  it.live("ends badly when its file is given up, whatever it waits for", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make();
      const { next } = yield* Scope.provide(opened, scope);
      const full = tapOf(much);
      const { stream } = yield* next;
      yield* stream.read(Buffer.alloc(1));
      // The next one is asked for: nobody reads this any more.
      const told = tapOf(Buffer.from("all is read of it"));
      const second = yield* next;
      assert.notStrictEqual(yield* full.ended, 0);
      assert.strictEqual((yield* rest(second.stream)).length, 17);
      const third = tapOf(much);
      yield* next;
      const [stopped, unasked] = [tapOf(much), tapOf(much)];
      yield* Effect.sleep("300 millis");
      stopped.tap.kill("SIGSTOP");
      yield* Scope.close(scope, Exit.void);
      stopped.tap.kill("SIGCONT");
      for (const one of [told, third, stopped, unasked]) {
        assert.notStrictEqual(yield* one.ended, 0);
      }
    }).pipe(within),
  );
});
