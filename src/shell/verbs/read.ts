/**
 * `read`: a conversation about blocks of members, each with what proves that it belongs to its member.
 * Nobody has to believe the server: who knows the member's digest checks each block before using a byte
 * of it. Only packs of archives can be read, and nothing else that lies in the store.
 */
import { Effect, Result } from "effect";
import { Invocation } from "#services/Invocation";
import type { SafeFsError } from "#services/SafeFs";
import { digestSize, leafOf, proofOf } from "#src/proof/treehash";
import { lengthPrefix } from "#src/wire/frames";
import { blockSize, proofLimit } from "#src/wire/limits";
import { readExactLine } from "#src/wire/lines";
import type { Session } from "#src/wire/names";
import type { Request } from "#src/wire/request";
import { type Ask, askLimit, parseAsk } from "#src/wire/verbs/read";
import { LinkLost, Refused, refusalOf, refuse } from "#src/store/failure";
import { isPruned, type Pack, packCache, treeOfMember } from "#src/store/packs";
import type { Store } from "#src/store/store";
import type { Conversation } from "#src/shell/voice";

/** A disk that fails under a block has damaged it. */
const why = (error: Refused | SafeFsError): Refused =>
  error._tag === "Refused"
    ? error
    : error.reason === "io"
      ? new Refused({ code: "damaged", message: refusalOf(error).message })
      : refusalOf(error);

export const read = Effect.fnUntraced(function* (
  _: Request<"read">,
  { store, voice }: Conversation<Store>,
) {
  const { stdin } = yield* Invocation;
  const packOf = yield* packCache(store);
  /** The tree of the member that was asked for last: its blocks come one after the other. */
  let last: { readonly pack: Pack; readonly member: number; readonly levels: Levels } | undefined;
  const treeOf = Effect.fnUntraced(function* (pack: Pack, member: number) {
    if (last?.pack === pack && last.member === member) return last.levels;
    const levels = yield* treeOfMember(pack, member);
    last = { pack, member, levels };
    return levels;
  });
  /** One that is sent, and one that is made meanwhile. */
  const room = [0, 1].map(() => new Uint8Array(4 + blockSize + proofLimit));

  /** The frame of one block. */
  const frameOf = Effect.fnUntraced(function* (session: Session, member: number, block: number) {
    const frame = room[block % room.length]!;
    const pack = yield* packOf(session);
    const { blocks, members, starts } = pack.index;
    if (member >= members || block >= blocks[member + 1]! - blocks[member]!) {
      return yield* refuse("not-found", "that pack has no such block");
    }
    const at = starts[member]! + block * blockSize;
    const bytes = frame.subarray(4, 4 + Math.min(blockSize, starts[member + 1]! - at));
    const n = yield* pack.file.read(bytes, at);
    const levels = yield* treeOf(pack, member);
    const leaf = levels?.[0]!.subarray(block * digestSize, (block + 1) * digestSize);
    if (n < bytes.length || leaf === undefined || Buffer.compare(leafOf(bytes), leaf) !== 0) {
      // Where an archive was pruned, holes are what is left of the members that nobody needs.
      const hole = bytes.every((byte) => byte === 0) && (yield* isPruned(store, session));
      return yield* hole
        ? refuse("pruned", "that member was pruned")
        : refuse("damaged", "that block is not what it was when it came");
    }
    const proof = proofOf(levels!, block);
    frame.set(lengthPrefix(bytes.length + proof.length));
    frame.set(proof, 4 + bytes.length);
    return frame.subarray(0, 4 + bytes.length + proof.length);
  });

  const answer = Effect.fnUntraced(function* ({ block, count, member, session }: Ask) {
    const made = (at: number) => Effect.result(Effect.scoped(frameOf(session, member, at)));
    let next = yield* made(block);
    for (let at = block; at < block + count; at++) {
      const now = next;
      const telling = Result.isSuccess(now)
        ? voice.send(now.success)
        : voice.refuse(why(now.failure));
      if (at + 1 === block + count) return yield* telling;
      // The disk is read, and what it gave is hashed, while the client takes the block before.
      [, next] = yield* Effect.all([telling, made(at + 1)], { concurrency: 2 });
    }
  });

  const conversation = Effect.gen(function* () {
    for (;;) {
      voice.listening(true);
      const line = yield* readExactLine(stdin, askLimit);
      voice.listening(false);
      const ask = line === undefined ? "end" : parseAsk(line);
      if (ask === "end") return;
      if (ask === undefined) return yield* refuse("bad-request", "that is no line of read");
      if (ask !== "alive") yield* answer(ask);
    }
  }).pipe(
    Effect.catchTags({
      BytesError: () => new LinkLost({ why: "the link broke" }),
      WireError: ({ reason }) => refuse("bad-request", reason),
    }),
  );
  yield* voice.say({ type: "ready" });
  voice.framed(true);
  yield* Effect.raceFirst(conversation, voice.watch);
});
type Levels = ReadonlyArray<Uint8Array> | undefined;
