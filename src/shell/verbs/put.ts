/** `put NAME SESSION`: takes an archive in, block by block, over as many connections as it needs. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { type Frame, frames } from "#src/wire/frames";
import {
  manifestDiffers,
  parseManifest,
  parseTrailer,
  type Receipt,
  type Record,
  sha256,
} from "#src/proof/manifest";
import type { Request } from "#src/wire/request";
import { clean } from "#src/store/clean";
import { admit, commit, hold, instant, rehearse, standing } from "#src/store/commit";
import { type Failure, LinkLost, refuse } from "#src/store/failure";
import { keepKey, locate, type Place, type WritableStore } from "#src/store/store";
import { discard, openUpload, type Upload } from "#src/store/upload";
import { roomFor } from "#src/store/usage";
import type { Conversation } from "#src/shell/verbs";
import type { Voice } from "#src/shell/voice";

const signatureLimit = 4096;

/** Reads frames until the client says that it was all, or that it gives up. */
const receive = Effect.fnUntraced(function* (upload: Upload, voice: Voice) {
  const { stdin } = yield* Invocation;
  const reader = frames(stdin);
  for (;;) {
    voice.listening(true);
    const frame: Frame = yield* reader.next;
    voice.listening(false);
    switch (frame.kind) {
      case "block":
        yield* upload.add(frame.bytes);
        break;
      case "keep-alive":
        yield* voice.say({ type: "alive" });
        break;
      case "give-up":
        return undefined;
      case "end":
        return frame.trailer;
      case "cut":
        return yield* new LinkLost({ why: "the link broke" });
    }
  }
});

/** Receives and flushes side by side, until the end, a failure, or somebody who takes over. */
const takeIn = (
  upload: Upload,
  voice: Voice,
  asked: Effect.Effect<void>,
): Effect.Effect<Uint8Array | undefined, Failure, Invocation> => {
  let acknowledged = upload.durable();
  const acknowledge = Effect.suspend(() => {
    const offset = upload.durable();
    if (offset === acknowledged) return Effect.void;
    acknowledged = offset;
    return voice.say({ type: "ack", offset });
  });
  const steppingDown = Effect.andThen(
    asked,
    new LinkLost({ why: "another connection took over", stepDown: true }),
  );
  return Effect.raceAllFirst([
    receive(upload, voice),
    upload.flushing(acknowledge),
    voice.watch,
    steppingDown,
  ]).pipe(
    Effect.catchTags({
      BytesError: () => new LinkLost({ why: "the link broke" }),
      WireError: ({ reason }) => refuse("bad-request", reason),
    }),
    // What came before the link broke need not come again. Whoever takes over cannot wait for it.
    Effect.tapErrorTag("LinkLost", ({ stepDown }) =>
      stepDown === true ? upload.sound : upload.flush,
    ),
  );
};

const differing = {
  version: ["bad-request", "the manifest is of another version"],
  created: ["bad-request", "the manifest's time is none"],
  name: ["bad-request", "the manifest is for another name"],
  session: ["bad-request", "the manifest is for another session"],
  server: ["signature", "the manifest is for another server"],
  size: ["digest-mismatch", "the server counted another number of bytes"],
  treehash: ["digest-mismatch", "the server hashed other bytes"],
  members: ["incomplete", "the server saw other members"],
} as const;

const decode = (bytes: Uint8Array): string | undefined => {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return undefined;
  }
};

/** The trailer, if it says what the server itself saw. */
const judge = Effect.fnUntraced(function* (
  store: WritableStore,
  place: Place,
  upload: Upload,
  bytes: Uint8Array,
) {
  const members = upload.walk.finish();
  if (!Array.isArray(members)) {
    return yield* refuse("incomplete", (members as { readonly message: string }).message);
  }
  const trailer = parseTrailer(decode(bytes) ?? "");
  const manifest = trailer === undefined ? undefined : parseManifest(trailer.manifest);
  if (trailer === undefined || manifest === undefined) {
    return yield* refuse("bad-request", "the trailer is not one");
  }
  if ((trailer.signature?.length ?? 0) > signatureLimit) {
    return yield* refuse("bad-request", `a signature of more than ${signatureLimit} characters`);
  }
  const difference = manifestDiffers(manifest, {
    name: place.name,
    session: upload.session,
    server: store.key.server,
    size: upload.size(),
    treehash: upload.treehash() ?? "",
    members,
  });
  if (difference !== undefined) {
    const [code, message] = differing[difference];
    return yield* refuse(code, message);
  }
  return { ...trailer, size: manifest.size, treehash: manifest.treehash };
});

const finish = Effect.fnUntraced(function* (
  store: WritableStore,
  place: Place,
  upload: Upload,
  bytes: Uint8Array,
) {
  const { manifest, signature, size, treehash } = yield* judge(store, place, upload, bytes);
  yield* upload.flush;
  const said: Receipt = {
    version: 1,
    name: place.name,
    session: upload.session,
    size,
    treehash,
    manifest: sha256(manifest),
    stored: yield* instant,
  };
  const receipt = JSON.stringify(said);
  const receiptSignature = store.key.sign(receipt);
  const record: Record = { manifest, signature, receipt, receiptSignature };
  yield* commit(store, place, upload, record);
  return { receipt, signature: receiptSignature };
});

/** Is this the end of the upload, and not only of the connection? */
const isFinal = (error: Failure): boolean =>
  error._tag === "SafeFsError" ||
  (error._tag === "Refused" && error.code !== "busy" && error.code !== "exists");

export const put = Effect.fnUntraced(function* (
  { name, session }: Extract<Request, { verb: "put" }>,
  { quota, store, voice }: Conversation<WritableStore>,
) {
  const place = yield* locate(store.root, name);
  const early = yield* standing(store, place, session, false);
  if (early !== undefined) return yield* voice.say({ type: "stored", ...early });
  yield* admit(store, place);
  const room = yield* roomFor(store, quota, session);

  const { asked } = yield* hold(store, `session:${session}`);
  // The one who had the lock may have committed it meanwhile.
  const late = yield* standing(store, place, session, true);
  if (late !== undefined) return yield* voice.say({ type: "stored", ...late });

  // Whoever is refused here does not come back with it.
  yield* Effect.tapError(rehearse(store, place, session), () =>
    Effect.ignore(discard(store, session)),
  );
  const upload = yield* Effect.raceFirst(openUpload(store, session, room), voice.watch);
  const stored = yield* Effect.gen(function* () {
    yield* keepKey(store);
    yield* voice.say({ type: "ready", offset: upload.durable(), server: store.key.server });
    yield* Effect.forkScoped(Effect.ignore(clean(store, session)));
    const trailer = yield* takeIn(upload, voice, asked);
    if (trailer === undefined) {
      yield* discard(store, session);
      return undefined;
    }
    // Nothing stops the commit but the disk: whoever comes back finds it done.
    const patient = Effect.catch(voice.watch, () => Effect.never);
    return yield* Effect.raceFirst(finish(store, place, upload, trailer), patient);
  }).pipe(
    Effect.tapError((error: Failure) =>
      isFinal(error) || upload.size() === 0 ? Effect.ignore(discard(store, session)) : Effect.void,
    ),
  );
  if (stored !== undefined) yield* voice.say({ type: "stored", ...stored });
});
