/**
 * `read NAME FIRST COUNT`: blocks, each with the proof that it belongs to the tree hash. Nobody has to
 * believe the server: who knows the tree hash checks each block before using a byte of it.
 */
import { Effect } from "effect";
import { proofOf } from "#src/proof/treehash";
import { blockSize, giveUpFrame, lengthPrefix } from "#src/wire/frames";
import type { Request } from "#src/wire/request";
import { refuse, refusalOf } from "#src/store/failure";
import type { Store } from "#src/store/store";
import { openStored, treeOf } from "#src/store/stored";
import type { Conversation } from "#src/shell/verbs";

export const read = Effect.fnUntraced(function* (
  { name, first, count }: Extract<Request, { verb: "read" }>,
  { store, voice }: Conversation<Store>,
) {
  const stored = yield* openStored(store, name);
  const { file, size } = stored;
  if (size === 0) return yield* refuse("incomplete", "the archive is empty");
  const blocks = Math.ceil(size / blockSize);
  if (first + count > blocks) {
    return yield* refuse("bad-request", `the archive has ${blocks} blocks`);
  }
  const levels = yield* Effect.raceFirst(treeOf(store, stored), voice.watch);
  const treehash = Buffer.from(levels.at(-1)!).toString("hex");
  yield* voice.say({ type: "ready", size, treehash });

  const deepest = levels.length * 32;
  const frame = new Uint8Array(4 + blockSize + deepest);
  const sendBlocks = Effect.gen(function* () {
    for (let index = first; index < first + count; index++) {
      const wanted = Math.min(blockSize, size - index * blockSize);
      const n = yield* file.read(frame.subarray(4, 4 + wanted), index * blockSize);
      if (n < wanted) return yield* refuse("internal", "the archive became shorter");
      const proof = proofOf(levels, index);
      frame.set(lengthPrefix(wanted + proof.length));
      frame.set(proof, 4 + wanted);
      yield* voice.send(frame.subarray(0, 4 + wanted + proof.length));
    }
  }).pipe(
    // A reader in the middle of frames must be told that a line comes now.
    Effect.catchTag("SafeFsError", (error) => Effect.fail(refusalOf(error))),
    Effect.tapErrorTag("Refused", () => voice.send(giveUpFrame)),
  );
  yield* sendBlocks;
  yield* voice.send(lengthPrefix(0));
  yield* voice.say({ type: "end" });
});
