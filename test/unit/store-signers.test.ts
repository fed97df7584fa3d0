/** The list of those whose tickets a store takes: whole, or nobody's. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { readSigners, writeSigners } from "#src/store/signers";
import { signerLimit } from "#src/wire/limits";
import { PublicKey } from "#src/wire/names";
import { pairOf } from "#test/support/reference";
import { inStore } from "#test/support/writable";

const keys = Array.from({ length: signerLimit + 1 }, (_, n) =>
  PublicKey.make(pairOf(Buffer.alloc(32, n + 1)).publicKey),
);
const some = keys.slice(0, signerLimit);

describe("signers", () => {
  it.effect("are none, or those that were written last", () =>
    inStore(({ own }, disk) =>
      Effect.gen(function* () {
        assert.isUndefined(yield* readSigners(own));
        for (const list of [some, [], some.slice(3, 4)]) {
          yield* writeSigners(own, list);
          assert.deepStrictEqual(yield* readSigners(own), list);
          const text = list.map((key) => `${key}\n`).join("");
          assert.strictEqual(disk.bytes(".qbackup/signers")!.toString(), text);
        }
      }),
    ),
  );

  it.effect("are read whole, or the store takes nothing", () =>
    inStore(({ own }, disk) =>
      Effect.gen(function* () {
        const [one, two] = some as [PublicKey, PublicKey];
        for (const text of [
          "\n",
          one,
          `${one}\n${two}`,
          `${one}\n\n`,
          `\n${one}\n`,
          `${one}\r\n`,
          ` ${one}\n`,
          `${one} ${two}\n`,
          `${one}\n${two.slice(1)}\n`,
          `${one}\nnobody\n`,
          keys.map((key) => `${key}\n`).join(""),
          "x".repeat(10_000),
        ]) {
          disk.plant(".qbackup/signers", Buffer.from(text));
          const refused = yield* Effect.flip(readSigners(own));
          assert.deepInclude(refused, { code: "internal" }, JSON.stringify(text));
          assert.include(refused.message, ".qbackup/signers");
        }
      }),
    ),
  );
});
