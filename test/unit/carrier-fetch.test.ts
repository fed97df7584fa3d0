/** The carrier as the program that prints an archive, against a server that is honest, broken or hostile. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { memorySettings } from "#layers/memory/MemorySettings";
import { memorySsh, type SshAnswer } from "#layers/memory/MemorySsh";
import { BytesError } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { leafOf, proofOf, treeLevels } from "#src/proof/treehash";
import { fetch } from "#src/carrier/fetch";
import { framed, treeHash } from "#test/support/peer";
import { rng } from "#test/support/random";

const mebibyte = 1_048_576;
const archive = Buffer.from(rng(1).bytes(3 * mebibyte + 20_480));
const treehash = treeHash(archive);
const levels = treeLevels(
  Buffer.concat(
    [0, 1, 2, 3].map((i) => leafOf(archive.subarray(i * mebibyte, (i + 1) * mebibyte))),
  ),
);
const line = (reply: object) => Buffer.from(`${JSON.stringify(reply)}\n`);
const ready = Buffer.concat([
  Buffer.from("welcome\n\n"),
  line({ type: "ready", size: archive.length, treehash }),
]);
const frame = (index: number) =>
  framed(archive.subarray(index * mebibyte, (index + 1) * mebibyte), proofOf(levels, index));
const from = (first: number): Buffer =>
  Buffer.concat([
    ready,
    ...[0, 1, 2, 3].slice(first).map(frame),
    Buffer.alloc(4),
    line({ type: "end" }),
  ]);

const run = Effect.fnUntraced(function* (
  answers: ReadonlyArray<SshAnswer>,
  options: { readonly args?: ReadonlyArray<string>; readonly stopsAfter?: number } = {},
) {
  const said: Said = { lines: [], progress: [] };
  const commands: Array<string> = [];
  const out: Array<Buffer> = [];
  let printed = 0;
  const fiber = yield* fetch.pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args: options.args ?? ["fetch", "a.backup", `${archive.length}`, treehash],
          env: { QREXEC_REMOTE_DOMAIN: "disp1" },
          stdin: { read: () => Effect.die("stdin is read"), received: () => 0 },
          stdout: {
            write: (bytes) =>
              Effect.suspend(() => {
                printed += bytes.length;
                if (printed > (options.stopsAfter ?? Number.POSITIVE_INFINITY)) {
                  return new BytesError({ cause: new Error("EPIPE") });
                }
                out.push(Buffer.from(bytes));
                return Effect.void;
              }),
            end: Effect.void,
          },
          entropy: () => new Uint8Array(0),
        }),
        memoryReporter(said),
        memorySettings({ SSH_CONN: "me@server" }),
        memorySsh(answers, commands),
      ),
    ),
    Effect.forkChild,
  );
  for (let i = 0; i < 60 && fiber.pollUnsafe() === undefined; i++)
    yield* TestClock.adjust("5 seconds");
  const code = yield* Fiber.join(fiber);
  const text = said.lines.map(({ level, text }) => `${level}: ${text}`).join("\n");
  return { code, commands, text, out: Buffer.concat(out) };
});

describe("qubes.BackupCarrier fetch", () => {
  it.effect("prints the archive, and goes on where a link broke", () =>
    Effect.gen(function* () {
      const one = yield* run([{ bytes: from(0) }]);
      assert.strictEqual(one.code, 0, one.text);
      assert.isTrue(one.out.equals(archive));
      const whole = from(0);
      const two = yield* run([
        { bytes: whole.subarray(0, 2_500_000), code: 255, reason: "lost" },
        { bytes: new Uint8Array(0), code: 255, reason: "unreachable" },
        { bytes: from(2) },
      ]);
      assert.strictEqual(two.code, 0, two.text);
      assert.isTrue(two.out.equals(archive));
      assert.deepStrictEqual(two.commands, [
        "me@server qbackup/1 read a.backup 0 4",
        "me@server qbackup/1 read a.backup 2 2",
        "me@server qbackup/1 read a.backup 2 2",
      ]);
    }),
  );
  it.effect("waits for a server that has to hash first, but not for ever", () =>
    Effect.gen(function* () {
      const alive = Buffer.concat([Buffer.from("\n"), line({ type: "alive" })]);
      const one = yield* run([{ bytes: Buffer.concat([alive, line({ type: "alive" }), from(0)]) }]);
      assert.strictEqual(one.code, 6, "text between replies");
      const replies = from(0).subarray("welcome\n\n".length);
      const two = yield* run([{ bytes: Buffer.concat([alive, line({ type: "alive" }), replies]) }]);
      assert.strictEqual(two.code, 0, two.text);
      assert.isTrue(two.out.equals(archive));
    }),
  );
  it.effect("prints nothing that is not proven", () =>
    Effect.gen(function* () {
      for (const at of [
        ready.length + 100,
        ready.length + mebibyte + 30,
        ready.length + 2_500_000,
      ]) {
        const bytes = Buffer.from(from(0));
        bytes[at]! ^= 1;
        const { code, out, text } = yield* run([{ bytes }]);
        assert.strictEqual(code, 6, text);
        assert.isTrue(out.equals(archive.subarray(0, out.length)));
        assert.isBelow(out.length, at);
      }
      const end = yield* run([{ bytes: Buffer.concat([ready, frame(0), Buffer.alloc(4)]) }]);
      assert.strictEqual(end.code, 4, end.text);
    }),
  );
  it.effect("says why it cannot", () =>
    Effect.gen(function* () {
      const none = yield* run([]);
      assert.strictEqual(none.code, 4);
      assert.lengthOf(none.commands, 5);
      assert.match(none.text, /could not connect to me@server/);
      const refused = yield* run([
        {
          bytes: Buffer.concat([
            Buffer.from("\n"),
            line({ type: "error", code: "not-found", message: "no" }),
          ]),
        },
      ]);
      assert.strictEqual(refused.code, 5, refused.text);
    }),
  );
  it.effect("ends well when its reader has seen enough", () =>
    Effect.map(run([{ bytes: from(0) }], { stopsAfter: 1_500_000 }), ({ code, text }) =>
      assert.strictEqual(code, 0, text),
    ),
  );
  it.effect.each([
    ["fetch", "a.backup"],
    ["fetch", "../x", "10", treehash],
    ["fetch", "-oProxyCommand=x", "10", treehash],
    ["fetch", "a.backup", "0", treehash],
    ["fetch", "a.backup", "10", "x"],
    ["fetch", "a.backup", "10", treehash, "more"],
  ])("refuses %j %j %j %j %j", (...args) =>
    Effect.map(
      run([], { args: args.filter((word) => typeof word === "string") }),
      ({ code, commands }) => {
        assert.strictEqual(code, 2);
        assert.lengthOf(commands, 0);
      },
    ),
  );
});
