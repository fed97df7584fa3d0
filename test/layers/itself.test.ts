/** This program as a child of itself: a script in its place says what it was given. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Fiber } from "effect";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll } from "vitest";
import { nodeItself } from "#layers/process/NodeItself";
import { Itself } from "#services/Itself";
import { until } from "#test/support/until";

const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-itself-"));
afterAll(() => fs.rmSync(dir, { recursive: true, force: true }));

const run = (text: string, ...args: ReadonlyArray<string>) => {
  const script = path.join(dir, "script.cjs");
  fs.writeFileSync(script, text);
  return Effect.gen(function* () {
    return yield* (yield* Itself).run(args, { QBKP_EXPECT_EVERY: "" });
  }).pipe(Effect.provide(nodeItself(script)));
};

describe("NodeItself", () => {
  it.live("runs the script on the same node, and gives what it says and ends with", () =>
    Effect.gen(function* () {
      const ran = yield* run(
        `console.log(JSON.stringify([process.version, process.argv.slice(2), process.env.QBKP_EXPECT_EVERY, process.env.PATH, process.stdin.isTTY]));
console.error("qbackup: error: no\\x1b\\nqbackup: hint: yes");
process.exitCode = 5;`,
        "run",
        "-f",
        "a b",
      );
      assert.strictEqual(ran.code, 5);
      assert.deepStrictEqual(ran.said, ["qbackup: error: no?", "qbackup: hint: yes"]);
      const [version, args, setting, search, terminal = false] = JSON.parse(ran.stdout);
      assert.strictEqual(version, process.version);
      assert.deepStrictEqual(args, ["run", "-f", "a b"]);
      assert.strictEqual(setting, "");
      assert.strictEqual(search, process.env["PATH"]);
      assert.isNotTrue(terminal);
      const { runtime } = yield* Effect.provide(Itself, nodeItself("x"));
      assert.strictEqual(runtime, `node ${process.version}`);
    }),
  );
  it.live("lets it put back what it has started when it is interrupted", () =>
    Effect.gen(function* () {
      const file = path.join(dir, "went");
      const running = yield* Effect.forkChild(
        run(`const fs = require("node:fs");
process.on("SIGTERM", () => setTimeout(() => { fs.writeFileSync(${JSON.stringify(file)}, "back"); process.exit(143); }, 100));
fs.writeFileSync(${JSON.stringify(file)}, "there");
setInterval(() => {}, 1000);`),
      );
      yield* Effect.promise(() => until("it runs", () => fs.existsSync(file)));
      yield* Fiber.interrupt(running);
      assert.strictEqual(fs.readFileSync(file, "utf8"), "back");
    }),
  );
});
