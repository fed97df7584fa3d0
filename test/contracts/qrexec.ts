/**
 * What every Qrexec layer does. The qube `work` is to offer these services to the layer under test:
 * `test.Echo` copies its stdin to its stdout and exits 0; `test.Fail+7` says `no, thanks` and, on
 * another line, something unprintable on stderr and exits 7 at once; `test.Deaf` neither reads nor
 * writes nor ends.
 */
import { assert, it } from "@effect/vitest";
import { Effect, Exit, type Layer, type Scope } from "effect";
import { Qrexec } from "#services/Qrexec";

export const qrexecContract = (name: string, make: () => Layer.Layer<Qrexec>) => {
  const test = (
    title: string,
    what: (service: Qrexec["Service"]) => Effect.Effect<void, unknown, Scope.Scope>,
  ) =>
    it.live(`${name}: ${title}`, () =>
      Effect.gen(function* () {
        yield* what(yield* Qrexec);
      }).pipe(Effect.scoped, Effect.provide(make())),
    );

  test("carries bytes both ways at once, then the end", ({ call }) =>
    Effect.gen(function* () {
      const it = yield* call("work", "test.Echo");
      const sent = Buffer.from(
        Uint8Array.from({ length: 1 << 20 }, (_, i) => (i * 7 + (i >> 9)) & 255),
      );
      const got = Buffer.alloc(sent.length + 1);
      const [, n] = yield* Effect.all(
        [
          Effect.gen(function* () {
            for (let at = 0; at < sent.length; at += 65_536) {
              yield* it.stdin.write(sent.subarray(at, at + 65_536));
            }
            yield* it.stdin.end;
          }),
          it.stdout.read(got, got.length),
        ],
        { concurrency: 2 },
      );
      assert.strictEqual(n, sent.length);
      assert.isTrue(got.subarray(0, n).equals(sent));
      assert.strictEqual((yield* it.ended).code, 0);
    }));
  test("hands on the exit code and what was said, printable", ({ call }) =>
    Effect.gen(function* () {
      const it = yield* call("work", "test.Fail+7");
      assert.strictEqual(yield* it.stdout.read(new Uint8Array(10), 10), 0);
      const { code, said } = yield* it.ended;
      assert.strictEqual(code, 7);
      assert.strictEqual(said[0], "no, thanks");
      assert.match(said.join(""), /^[\x20-\x7e]*$/);
    }));
  test("a call that is over takes no more bytes, and says so soon", ({ call }) =>
    Effect.gen(function* () {
      const it = yield* call("work", "test.Fail+7");
      const exit = yield* it.stdin
        .write(new Uint8Array(65_536))
        .pipe(Effect.forever, Effect.timeout("3 seconds"), Effect.exit);
      assert.isTrue(
        Exit.isFailure(exit) && String(exit.cause).includes("BytesError"),
        String(exit),
      );
    }));
  test("a call dies with its scope, reader and writer waiting or not", ({ call }) =>
    Effect.gen(function* () {
      const it = yield* Effect.gen(function* () {
        const it = yield* call("work", "test.Deaf");
        yield* Effect.forkScoped(Effect.forever(it.stdin.write(new Uint8Array(65_536))));
        yield* Effect.forkScoped(it.stdout.read(new Uint8Array(10), 10));
        yield* Effect.sleep("100 millis");
        return it;
      }).pipe(Effect.scoped);
      yield* it.ended.pipe(Effect.timeout("1 second"));
    }));
  test("two calls do not know of each other", ({ call }) =>
    Effect.gen(function* () {
      const [a, b] = yield* Effect.all([call("work", "test.Echo"), call("work", "test.Echo")]);
      yield* a.stdin.write(Buffer.from("a"));
      yield* b.stdin.write(Buffer.from("b"));
      const [ofA, ofB] = [Buffer.alloc(1), Buffer.alloc(1)];
      yield* a.stdout.read(ofA, 1);
      yield* b.stdout.read(ofB, 1);
      assert.deepStrictEqual([ofA.toString(), ofB.toString()], ["a", "b"]);
    }));
};
