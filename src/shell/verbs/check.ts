/**
 * `check NAME`: the server reads, hashes and walks an archive again. What it finds is kept, where it can
 * be, and listed until the archive is found whole again.
 */
import { Clock, Effect } from "effect";
import { FullChunk } from "#src/archive/parameters";
import { archiveSize, type Begun, ListWalk, MemberWalk } from "#src/archive/walk";
import { rootHasher } from "#src/proof/table";
import { leafOf, treeHasher } from "#src/proof/treehash";
import { blockSize } from "#src/wire/limits";
import { instantOf } from "#src/wire/names";
import type { Request } from "#src/wire/request";
import { type Failure, Refused, refusalOf, refuse } from "#src/store/failure";
import { eachBlock, packCache } from "#src/store/packs";
import { archiveOf, keepFinding, type Said } from "#src/store/record";
import type { Store } from "#src/store/store";
import { memberAt, members, recipeOf } from "#src/store/tables";
import type { Conversation } from "#src/shell/voice";

/** What is wrong with the list of its members, as its recipe and their tables have it now. */
const listFault = Effect.fnUntraced(function* (
  store: Store,
  { format, members: count, root, session, size }: Said,
  fullChunk: number,
) {
  const walk = new ListWalk({ format, fullChunk });
  const hasher = rootHasher();
  let bytes = 0;
  yield* members(store, yield* recipeOf(store, session), (member, line) => {
    hasher.push(`${line}\n`);
    bytes += member.length;
    return walk.next(member) && new Refused({ code: "damaged", message: walk.fault!.message });
  });
  const fault = walk.finish();
  if (fault !== undefined) return yield* refuse("damaged", fault.message);
  const same =
    hasher.members() === count && hasher.root() === root && archiveSize(format, bytes) === size;
  if (!same) return yield* refuse("damaged", "its members are not those that it had when it came");
});

/** Reads every member, and looks whether its bytes are what its line in the table says. */
const readAll = Effect.fnUntraced(function* (
  store: Store,
  { format, session }: Said,
  fullChunk: number,
) {
  const packOf = yield* packCache(store);
  let begun: Begun | undefined;
  const walk = new MemberWalk({
    format,
    fullChunk,
    begin: (member) => {
      begun = member;
      return undefined;
    },
  });
  const buffer = new Uint8Array(blockSize);
  for (const run of yield* recipeOf(store, session)) {
    const pack = yield* packOf(run.session);
    for (let index = run.first; index < run.first + run.count; index++) {
      const { digest, length, path, size } = yield* memberAt(pack.table, index);
      const tree = treeHasher();
      const whole = yield* eachBlock(pack, index, buffer, (block) =>
        Effect.sync(() => {
          tree.push(leafOf(block));
          for (let at = 0; at < block.length && walk.fault === undefined;) {
            at += walk.take(block.subarray(at));
          }
        }),
      );
      const sound =
        whole &&
        tree.root() === digest &&
        walk.atMemberEnd &&
        begun?.path === path &&
        begun.size === size &&
        begun.length === length;
      if (!sound) {
        const message = walk.fault?.message ?? `${path} is not what it was when it came`;
        return yield* refuse("damaged", message);
      }
    }
  }
});
/** What a check found, where it is the archive's fault; other failures say nothing of the archive. */
const findingOf = (failure: Failure): string | undefined => {
  switch (failure._tag) {
    case "Refused":
      return ["damaged", "not-found", "pruned"].includes(failure.code)
        ? failure.message
        : undefined;
    case "SafeFsError":
      return failure.reason === "io" ? refusalOf(failure).message : undefined;
    case "LinkLost":
      return undefined;
  }
};

export const check = Effect.fnUntraced(function* (
  { name }: Request<"check">,
  { log, store, voice }: Conversation<Store>,
) {
  const { said } = yield* archiveOf(store, name);
  const { members: count, root, session, size } = said;
  const fullChunk = yield* FullChunk;
  const whole = Effect.andThen(
    listFault(store, said, fullChunk),
    Effect.scoped(readAll(store, said, fullChunk)),
  );
  // Whoever asks is told, and the disk may be full, read-only or broken.
  const keep = (finding: string | undefined) =>
    Effect.catch(keepFinding(store, session, finding), () => log("finding-not-kept"));
  yield* Effect.raceFirst(whole, voice.watch).pipe(
    Effect.catch((failure) =>
      Effect.gen(function* () {
        const finding = findingOf(failure);
        if (finding === undefined) return yield* failure;
        const now = instantOf(yield* Clock.currentTimeMillis);
        yield* keep(`${now} ${finding}`);
        return yield* refuse("damaged", finding);
      }),
    ),
  );
  yield* keep(undefined);
  yield* voice.say({ type: "checked", size, members: count, root });
});
