/** `check NAME`: the server reads, hashes and walks an archive again, and says what it found. */
import { Effect } from "effect";
import { FullChunk } from "#src/archive/parameters";
import { leafOf, treeHasher } from "#src/proof/treehash";
import { ArchiveFault, Walk } from "#src/archive/walk";
import type { Request } from "#src/wire/request";
import { refuse } from "#src/store/failure";
import type { Store } from "#src/store/store";
import { eachBlock, openStored } from "#src/store/stored";
import type { Conversation } from "#src/shell/verbs";

export const check = Effect.fnUntraced(function* (
  { name }: Extract<Request, { verb: "check" }>,
  { store, voice }: Conversation<Store>,
) {
  const stored = yield* openStored(store, name);
  const walk = new Walk({ fullChunk: yield* FullChunk });
  const tree = treeHasher();
  const whole = eachBlock(stored, (block) =>
    Effect.suspend(() => {
      tree.push(leafOf(block));
      const fault = walk.push(block);
      return fault === undefined ? Effect.void : refuse("incomplete", fault.message);
    }),
  );
  yield* Effect.raceFirst(whole, voice.watch);
  const members = walk.finish();
  if (members instanceof ArchiveFault) return yield* refuse("incomplete", members.message);
  const treehash = tree.root() ?? "";
  const { said, size } = stored;
  if (said !== undefined && (said.size !== size || said.treehash !== treehash)) {
    return yield* refuse("digest-mismatch", "the archive is not what it was when it came");
  }
  yield* voice.say({ type: "checked", size, treehash, members: members.length });
});
