import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { Reporter } from "#services/Reporter";
import { failed } from "#src/dom0/failure";
import { line, printable, type Line } from "#src/say/shown";

/** Moves the cursor up, wipes the line, and forges one. */
const hostile = "x\u001b[1A\u001b[2K\r\nqbackup: stored\u202e\u0007";

describe("what is shown", () => {
  it("is cleaned by the tag, whatever is put into it", () => {
    assert.strictEqual(line`it said: ${hostile} (${3})`, "it said: x?[1A?[2K?qbackup: stored? (3)");
    assert.isBelow(line`${"y".repeat(100_000)}`.length, 5_000);
    assert.strictEqual(printable(hostile, 2), "x?...");
  });

  it("is cleaned in a failure, in its hint too", () => {
    const { hint, message } = failed("link", `no: ${hostile}`, hostile);
    for (const text of [message, hint!]) assert.match(text, /^[\x20-\x7e]+$/);
  });

  it.effect("is no plain string for a Reporter", () => {
    const said: Said = { lines: [], progress: [] };
    return Effect.gen(function* () {
      const { progress, say } = yield* Reporter;
      const made: Line = line`made ${hostile}`;
      yield* say("info", made);
      yield* say("info", said.lines.length === 0 ? "never" : "stands in the code");
      // @ts-expect-error Whoever wrote it may have written anything.
      yield* say("info", hostile.slice());
      // @ts-expect-error A template is not cleaned by itself.
      yield* say("info", `it said: ${hostile.slice()}`);
      // @ts-expect-error Nor is one of two.
      yield* say("info", said.lines.length > 0 ? made : hostile.slice());
      // @ts-expect-error What is done is drawn on the terminal.
      yield* progress({ doing: hostile.slice(), bytes: 0 });
      assert.strictEqual(said.lines.length, 5);
    }).pipe(Effect.provide(memoryReporter(said)));
  });
});
