/** An upload into a store, from its ticket to its receipt: on a disk in memory and on a real one. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { Disk } from "#layers/memory/MemorySafeFs";
import { codeOf, medium, memoryWorld, upload } from "#test/support/shell";

describe("a put", () => {
  it.live("stores", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const w = memoryWorld(disk);
      const { replies } = yield* upload(w, { archive: medium });
      assert.strictEqual(codeOf(replies), "stored");
    }),
  );
});
