/**
 * The bare form, which older clients speak: a path, and standard input is the archive until its end.
 * An end proves nothing, so nobody vouches for what is stored this way; but it has the structure of an
 * archive, a name that was free, and it is there as a whole or not at all.
 */
import { Clock, type Duration, Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { FullChunk } from "#src/archive/parameters";
import { MemberWalk } from "#src/archive/walk";
import { blockSize } from "#src/wire/limits";
import { instantOf, type Name, Session } from "#src/wire/names";
import { clean } from "#src/store/clean";
import { commit, hold, nameIsFree, rehearse, seat } from "#src/store/commit";
import { LinkLost, noRoom, refuse } from "#src/store/failure";
import { settle } from "#src/store/settled";
import { readSigners } from "#src/store/signers";
import { locate, type WritableStore } from "#src/store/store";
import { discard, openUpload, type Upload } from "#src/store/upload";
import { gauge } from "#src/store/usage";
import { type Conversation, monotonic, slowness } from "#src/shell/voice";

/** There are no signs of life in this form, and qvm-backup may be silent for long. */
const silenceLimit = "1 hour";
/** But whoever has an archive begins at once; a person who tried a command does not. */
const firstLimit = "10 minutes";

/** Takes bytes in until their end, cut into the blocks of their members. */
const receive = Effect.fnUntraced(function* (upload: Upload, floor: number | undefined) {
  const { stdin } = yield* Invocation;
  const walk = new MemberWalk({ fullChunk: yield* FullChunk });
  const buffer = new Uint8Array(blockSize);
  /** Of the buffer: what came, and how much of that was walked. */
  let held = 0;
  let walked = 0;
  const tooSlow = slowness(floor);
  const read = Effect.fnUntraced(function* (duration: Duration.Input) {
    const from = yield* monotonic;
    // A member comes at once; between two of them qvm-backup works at the next one.
    const waiting = walk.offset > 0 && !walk.atMemberEnd;
    const n = yield* stdin.read(buffer.subarray(held)).pipe(
      Effect.catchTag("BytesError", () => new LinkLost({ why: "the link broke" })),
      Effect.timeoutOrElse({
        duration,
        orElse: () => new LinkLost({ why: "no archive comes, or no more of it" }),
      }),
    );
    if (tooSlow(stdin.received(), waiting ? (yield* monotonic) - from : 0)) {
      return yield* new LinkLost({ why: "the client sends too slowly" });
    }
    return n;
  });
  held = yield* read(firstLimit);
  // A tar header begins with a path, and it is one of two. An sftp client, which would wait for an
  // answer now, gets it.
  if (held > 0 && buffer[0] !== 0x2e && buffer[0] !== 0x62) return yield* noArchive;
  while (held > 0) {
    walked += walk.take(buffer.subarray(walked, held));
    if (walk.fault !== undefined) return yield* refuse("incomplete", walk.fault.message);
    if (walk.atMemberEnd || walked === blockSize) {
      yield* upload.add(buffer.subarray(0, walked));
      buffer.copyWithin(0, walked, held);
      held -= walked;
      walked = 0;
      if (held > 0) continue;
    }
    const n = yield* read(silenceLimit);
    if (n === 0) break;
    held += n;
  }
  if (held > 0) return yield* refuse("incomplete", "the archive ends inside a member");
});
const noArchive = refuse("incomplete", "this is no Qubes backup");

/** Once a store has a signer, what nobody signed is refused, unless its owner allows it. */
const allowed = Effect.fnUntraced(function* (store: WritableStore, allow: true | undefined) {
  if (allow === true || (yield* readSigners(store.own)) === undefined) return;
  return yield* refuse(
    "not-permitted",
    "this store takes signed backups only; its owner can change that with --allow-unsigned",
  );
});

export const bare = Effect.fnUntraced(function* (
  name: Name,
  { log, options: { allowUnsigned, floor, quota }, store }: Conversation<WritableStore>,
) {
  const { entropy } = yield* Invocation;
  yield* allowed(store, allowUnsigned);
  const place = yield* locate(store.root, name);
  yield* nameIsFree(place);
  yield* rehearse(store, place);
  const session = Session.make(Buffer.from(entropy(16)).toString("hex"));
  yield* hold(store, `session:${session}`);
  yield* seat(store);
  yield* Effect.ignore(clean(store, session));
  const usage = gauge(store, quota);
  const { bytes, short } = yield* usage.room();
  if (bytes === 0) return yield* noRoom(short);

  yield* Effect.gen(function* () {
    const upload = yield* openUpload(store, session, {
      bytes,
      short,
      continued: false,
      more: usage.left(),
    });
    const flushed = Effect.flatMap(usage.left(), upload.allow);
    yield* Effect.raceFirst(receive(upload, floor), upload.flushing(flushed));
    const stored = instantOf(yield* Clock.currentTimeMillis);
    const settled = yield* commit(store, upload, {
      place,
      format: "qvm-backup",
      runs: upload.members() === 0 ? [] : [{ session, first: 0, count: upload.members() }],
      record: (whole) => Effect.succeed({ name, session, ...whole, stored }),
      admissible: Effect.gen(function* () {
        yield* allowed(store, allowUnsigned);
        yield* upload.allow(yield* usage.left(true));
      }),
    });
    yield* log("committed", { bytes: upload.size(), session });
    const free = yield* Effect.orElseSucceed(settle(store, settled), () => true);
    if (!free) yield* log("foreign-file");
  }).pipe(
    // Nobody can come back to it, whatever happened.
    Effect.onError(() => Effect.ignore(discard(store, session))),
  );
});
