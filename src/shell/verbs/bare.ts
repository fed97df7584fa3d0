/**
 * The bare form, which older clients speak: a path, and standard input is the archive until its end.
 * An end proves nothing, so nobody vouches for what is stored this way; but it has the structure of an
 * archive, a name that was free, and it is there as a whole or not at all.
 */
import { type Duration, Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { blockSize } from "#src/wire/frames";
import type { Name, Session } from "#src/wire/names";
import { clean } from "#src/store/clean";
import { admit, commit, hold, instant, rehearse } from "#src/store/commit";
import { LinkLost, refuse } from "#src/store/failure";
import { find, locate, type WritableStore } from "#src/store/store";
import { discard, openUpload, type Upload } from "#src/store/upload";
import { roomFor } from "#src/store/usage";

/** There are no signs of life in this form, and qvm-backup may be silent for long. */
const silenceLimit = "1 hour";
/** But whoever has an archive begins at once; a person who tried a command does not. */
const firstLimit = "10 minutes";

const receive = Effect.fnUntraced(function* (upload: Upload) {
  const { stdin } = yield* Invocation;
  const buffer = new Uint8Array(blockSize);
  const read = (at: number, atLeast: number, duration: Duration.Input) =>
    stdin.read(buffer.subarray(at), atLeast).pipe(
      Effect.catchTag("BytesError", () => new LinkLost({ why: "the link broke" })),
      Effect.timeoutOrElse({
        duration,
        orElse: () => new LinkLost({ why: "no archive comes, or no more of it" }),
      }),
    );
  let held = yield* read(0, 1, firstLimit);
  // A tar header begins with a path, and it is one of two. An sftp client, which would wait for an
  // answer now, gets it.
  if (held > 0 && buffer[0] !== 0x2e && buffer[0] !== 0x62) return yield* noArchive;
  while (held > 0) {
    if (held < blockSize) held += yield* read(held, blockSize - held, silenceLimit);
    yield* upload.add(buffer.subarray(0, held));
    held = held < blockSize ? 0 : yield* read(0, blockSize, silenceLimit);
  }
});
const noArchive = refuse("incomplete", "this is no Qubes backup");

export const bare = Effect.fnUntraced(function* (
  name: Name,
  store: WritableStore,
  quota: number | undefined,
) {
  const { entropy } = yield* Invocation;
  const place = yield* locate(store.root, name);
  const record = yield* find(place.directory, place.record);
  if (
    (yield* find(place.directory, place.base)) !== undefined ||
    // A record without its archive is what a crash leaves; anything else under that name is not.
    (record !== undefined && record.kind !== "file")
  ) {
    return yield* refuse("exists", "there is something of that name already");
  }
  yield* admit(store, place);
  const session = Buffer.from(entropy(16)).toString("hex") as Session;
  const room = yield* roomFor(store, quota, session);
  yield* hold(store, `session:${session}`);
  yield* rehearse(store, place, session);
  const upload = yield* openUpload(store, session, room);
  yield* Effect.ignore(clean(store, session));
  yield* Effect.gen(function* () {
    yield* Effect.raceFirst(receive(upload), upload.flushing(Effect.void));
    const members = upload.walk.finish();
    if (!Array.isArray(members)) {
      return yield* refuse("incomplete", (members as { readonly message: string }).message);
    }
    yield* upload.flush;
    const treehash = upload.treehash();
    yield* commit(store, place, upload, {
      manifest: null,
      signature: null,
      receipt: null,
      receiptSignature: null,
      size: upload.size(),
      ...(treehash === undefined ? {} : { treehash }),
      stored: yield* instant,
    });
  }).pipe(
    // Nobody can come back to it, whatever happened.
    Effect.onError(() => Effect.ignore(discard(store, session))),
  );
});
