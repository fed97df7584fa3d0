/** `put` and a ticket: takes a pack in, block by block, over as many connections as it needs. */
import { Clock, Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { textLines } from "#src/proof/lines";
import { parseWish, recipeLineLimit, resolver, type Runs } from "#src/proof/recipe";
import { signatureHolds } from "#src/proof/keys";
import {
  type Manifest,
  manifestLimit,
  parseManifest,
  receiptText,
  sha256,
  type Ticket,
} from "#src/proof/texts";
import { type Frame, frames } from "#src/wire/frames";
import { blockSize } from "#src/wire/limits";
import { instantOf, type Session, Signature } from "#src/wire/names";
import type { Request } from "#src/wire/request";
import { clean, makeRoom, spare } from "#src/store/clean";
import { commit, hold, nameIsFree, rehearse, seat, type Whole } from "#src/store/commit";
import { type Failure, LinkLost, noRoom, type Refused, refuse } from "#src/store/failure";
import { isPruned } from "#src/store/packs";
import { type Settled, settle, settledOf } from "#src/store/settled";
import {
  claim,
  clear,
  find,
  keepKey,
  locate,
  type WritableStore,
  writeText,
} from "#src/store/store";
import { recipeOf } from "#src/store/tables";
import { type Admitted, enter, fresh, stillHolds, ticketOf, vouch } from "#src/store/tickets";
import { discard, goneOf, openUpload, type Upload } from "#src/store/upload";
import { type Gauge, gauge } from "#src/store/usage";
import { type Conversation, monotonic } from "#src/shell/voice";

type Put = Conversation<WritableStore>;

/** What the client said behind the members. */
interface Trailer {
  readonly manifest: string;
  /** dom0's, over the manifest. */
  readonly signature: Signature;
  readonly runs: Runs;
}

const decode = (bytes: Uint8Array): string | undefined => {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
};

const signatureSize = 64;

/** The archive that the upload builds on, as runs. */
const baseOf = (store: WritableStore, { base }: Ticket) =>
  base === "-" ? Effect.succeed([]) : recipeOf(store, base);

/** What is under way. */
interface Work {
  readonly admitted: Admitted;
  readonly upload: Upload;
  readonly conversation: Put;
  readonly usage: Gauge;
  /** All members came, and the trailer is due. */
  trailed: boolean;
}

/** Reads frames until the client says that it was all, or (undefined) that it gives up. */
const receive = Effect.fnUntraced(function* (work: Work) {
  const { admitted, conversation, upload } = work;
  const { store, voice } = conversation;
  const { ticket } = admitted;
  const { stdin } = yield* Invocation;
  const reader = frames(stdin, blockSize);
  /** The next frame that says something. */
  const next = Effect.gen(function* () {
    for (;;) {
      voice.listening(true);
      const frame: Frame = yield* reader.next;
      voice.listening(false);
      if (frame.kind === "cut") return yield* new LinkLost({ why: "the link broke" });
      if (frame.kind !== "keep-alive") return frame;
      yield* voice.say({ type: "alive" });
    }
  });
  const misplaced = refuse("bad-request", "the trailer is malformed");

  for (;;) {
    const frame = yield* next;
    if (frame.kind === "give-up") return undefined;
    if (frame.kind === "zero") break;
    yield* upload.add(frame.bytes);
  }
  work.trailed = true;
  const first = yield* next;
  if (first.kind === "give-up") return undefined;
  const manifest =
    first.kind === "bytes" && first.bytes.length <= manifestLimit ? decode(first.bytes) : undefined;
  if (manifest === undefined) return yield* misplaced;
  const second = yield* next;
  if (second.kind === "give-up") return undefined;
  if (second.kind !== "bytes" || second.bytes.length !== signatureSize) return yield* misplaced;
  const signature = Signature.make(Buffer.from(second.bytes).toString("base64url"));

  const wishes = resolver(ticket.session, upload.members(), yield* baseOf(store, ticket));
  const lines = textLines(recipeLineLimit, (line) => {
    const wish = parseWish(line);
    return wish !== undefined && wishes.push(wish) === true;
  });
  for (;;) {
    const frame = yield* next;
    if (frame.kind === "give-up") return undefined;
    if (frame.kind === "zero") break;
    if (!lines.push(frame.bytes)) {
      return yield* refuse("bad-request", "the recipe is malformed, or leads outside of its packs");
    }
  }
  if (!lines.finish()) return yield* misplaced;
  return { manifest, signature, runs: wishes.made.runs() } satisfies Trailer;
});

/** Receives and flushes side by side, until the end, a failure, or another one that takes over. */
const takeIn = (work: Work, asked: Effect.Effect<void>) => {
  const { conversation, upload, usage } = work;
  const { store, voice } = conversation;
  let acknowledged = upload.durable().offset;
  let claimed = 0;
  const flushed = Effect.gen(function* () {
    const { offset, running } = upload.durable();
    if (offset !== acknowledged) {
      acknowledged = offset;
      yield* voice.say({ type: "ack", offset, running });
    }
    yield* upload.allow(yield* usage.left());
    const now = yield* monotonic;
    if (now - claimed < claimEach) return;
    claimed = now;
    yield* claim(store.own);
  });
  const steppingDown = Effect.andThen(
    asked,
    new LinkLost({ why: "another connection took over", stepDown: true }),
  );
  return Effect.raceAllFirst([
    receive(work),
    upload.flushing(flushed),
    voice.watch,
    steppingDown,
  ]).pipe(
    Effect.catchTags({
      BytesError: () => new LinkLost({ why: "the link broke" }),
      WireError: ({ reason }) => refuse("bad-request", reason),
    }),
    Effect.tap(() => upload.flush),
    // What came before need not come again. Whoever takes over cannot wait for it.
    Effect.tapErrorTag(["LinkLost", "Refused"], (error) =>
      error._tag === "LinkLost" && error.stepDown === true ? upload.sound : upload.flush,
    ),
  );
};
/** How often it is said that the store is used from here. In milliseconds. */
const claimEach = 60_000;

/** What a manifest must say for the ticket that opened its upload. */
const agrees = (
  store: WritableStore,
  ticket: Ticket,
  manifest: Manifest,
): Effect.Effect<void, Refused> => {
  if (manifest.server !== store.key.publicKey) {
    return refuse("signature", "the manifest is for another server");
  }
  const differing = (["name", "session", "signer", "series", "run"] as const).find(
    (field) => manifest[field] !== ticket[field],
  );
  return differing === undefined
    ? Effect.void
    : refuse("bad-request", `the manifest has another ${differing} than the ticket`);
};

const finish = Effect.fnUntraced(function* (
  { admitted, conversation, upload, usage }: Work,
  { manifest: text, runs, signature }: Trailer,
) {
  const { log, store } = conversation;
  const { ticket } = admitted;
  const manifest = parseManifest(text);
  if (manifest === undefined) return yield* refuse("bad-request", "the manifest is malformed");
  if (!signatureHolds(ticket.signer, "manifest", text, signature)) {
    return yield* refuse("signature", "the manifest is not signed by the key of the ticket");
  }
  yield* agrees(store, ticket, manifest);
  const place = yield* locate(store.root, ticket.name);
  const record = Effect.fnUntraced(function* (whole: Whole) {
    const differing = (["members", "root", "size"] as const).find(
      (field) => manifest[field] !== whole[field],
    );
    if (differing !== undefined) {
      return yield* refuse("digest-mismatch", `the server found another ${differing} than dom0`);
    }
    // It lies in the store as a plain file too, which is its pack: what is in there must be it, and no more.
    const run = runs.at(0);
    const all = runs.length === 1 && run?.session === ticket.session && run.first === 0;
    if (manifest.format === "qvm-backup" && !(all && run.count === upload.members())) {
      return yield* refuse("digest-mismatch", "the upload has other members than the archive");
    }
    const receipt = receiptText({
      type: "qbackup receipt",
      version: 1,
      name: manifest.name,
      session: manifest.session,
      ...whole,
      manifest: sha256(text),
      stored: instantOf(yield* Clock.currentTimeMillis),
    });
    const receiptSignature = store.key.sign("receipt", receipt);
    return { manifest: text, signature, receipt, receiptSignature };
  });
  const admissible = Effect.gen(function* () {
    yield* stillHolds(store, admitted);
    yield* upload.allow(yield* usage.left(true));
  });
  const { format } = manifest;
  const settled = yield* commit(store, upload, { place, format, runs, record, admissible });
  yield* log("committed", { bytes: upload.size() });
  const free = yield* Effect.orElseSucceed(settle(store, settled), () => true);
  if (!free) yield* log("foreign-file");
  return settled;
});

/** The receipt of an archive that is committed; what a crash may have left undone is done first. */
const answer = Effect.fnUntraced(function* (store: WritableStore, session: Session) {
  const settled = yield* settledOf(store, session);
  if (settled?.record === undefined) return undefined;
  yield* settle(store, settled);
  return storedOf(settled);
});
const storedOf = ({ record }: Settled) => ({
  type: "stored" as const,
  receipt: record!.receipt,
  signature: record!.receiptSignature,
});

/** Refused where the upload, or the archive that it became, was removed. */
const stillThere = Effect.fnUntraced(function* (store: WritableStore, session: Session) {
  const gone = yield* goneOf(store, session);
  if (gone !== undefined) {
    return yield* refuse("gone", "that upload was removed", gone);
  }
  const left = (yield* find(store.packs, session)) !== undefined;
  if (!left || (yield* find(store.incoming, session)) !== undefined) return;
  const pruned = yield* isPruned(store, session);
  return yield* refuse("gone", "the archive of that session was removed", {
    since: instantOf(yield* Clock.currentTimeMillis),
    why: pruned ? "its archive was pruned" : "the record of its archive is missing",
  });
});

/** Refused where the archive that the upload is to build on is none, or no more. */
const baseStands = Effect.fnUntraced(function* (store: WritableStore, { base }: Ticket) {
  if (base === "-") return;
  const settled = yield* settledOf(store, base);
  if (settled === undefined || (yield* isPruned(store, base))) {
    return yield* refuse("not-found", "the archive that it builds on is not in the store");
  }
});

/** The ticket of who began the upload, if it is there: nobody else goes on with it. */
const sameUpload = Effect.fnUntraced(function* (store: WritableStore, { ticket }: Admitted) {
  const before = yield* ticketOf(store.incoming, ticket.session);
  if (before === undefined) return undefined;
  const { series, signer } = before.ticket;
  return signer === ticket.signer && series === ticket.series
    ? before.text
    : yield* refuse("not-permitted", "that session is of another series");
});

/**
 * Refused where there is less room than the ticket asks for. What nobody comes back for goes first, then
 * what is kept of the same series, the oldest first; but none of that where all of it would not do.
 */
const hasRoom = Effect.fnUntraced(function* (store: WritableStore, ticket: Ticket, usage: Gauge) {
  const { session } = ticket;
  /** Which limit stands in the way without these uploads; undefined where none does. */
  const short = (freed: ReadonlyArray<Session> = []) =>
    Effect.map(usage.room([session, ...freed]), (room) =>
      ticket.bytes <= room.bytes ? undefined : room.short,
    );
  if ((yield* short()) === undefined) return;
  yield* Effect.ignore(clean(store, session));
  const others = yield* spare(store, ticket);
  const never = yield* short(others);
  if (never !== undefined) return yield* noRoom(never);
  for (const other of others) {
    if ((yield* short()) === undefined) return;
    yield* makeRoom(store, other);
  }
  const still = yield* short();
  if (still !== undefined) return yield* noRoom(still);
});

/** Why nothing of an upload is of use any more, for who asks again; undefined where it is. */
const uselessFor = (error: Failure, work: Work | undefined): string | undefined => {
  if (error._tag === "LinkLost") return undefined;
  // What a flush has lost is lost, whatever was the cause.
  if (
    error._tag === "SafeFsError" &&
    (error.operation.startsWith("sync") ||
      (error.reason !== "no-space" && error.reason !== "too-large"))
  ) {
    return "the server's disk failed";
  }
  const code = error._tag === "Refused" ? error.code : "no-space";
  if (code === "digest-mismatch") return "what came was not what dom0 sent";
  // A later run goes on with slots. A stream of qvm-backup's has ended with its run; but one whose
  // trailer is refused is whole.
  if (work === undefined || work.trailed || work.upload.format() === "slots") return undefined;
  if (code === "no-space" || code === "quota") return "there was no room left for it";
  return code === "incomplete" || code === "bad-request" ? "what came was no backup" : undefined;
};

/** Discards an upload that this error is the end of. */
const giveUpOn = (store: WritableStore, session: Session, error: Failure, work?: Work) => {
  const why = uselessFor(error, work);
  return why === undefined ? Effect.void : Effect.ignore(discard(store, session, why));
};

export const put = Effect.fnUntraced(function* (signed: Request<"put">, conversation: Put) {
  const { options, store, voice } = conversation;
  const { session } = signed;
  const vouched = yield* vouch(store, signed);
  const early = yield* answer(store, session);
  if (early !== undefined) return yield* voice.say(early);
  if (vouched.untimely !== undefined) return yield* vouched.untimely;
  yield* fresh(store, vouched);

  const { ticket } = vouched;
  const place = yield* locate(store.root, ticket.name);
  const usage = gauge(store, options.quota);
  const looked = yield* Effect.gen(function* () {
    yield* stillThere(store, session);
    yield* nameIsFree(place);
    yield* sameUpload(store, vouched);
    yield* baseStands(store, ticket);
    yield* rehearse(store, place);
    yield* hasRoom(store, ticket, usage);
    return undefined;
  }).pipe(
    // An older connection may commit it just now: what is in the way then is the archive itself.
    Effect.catchTag("Refused", (refused) =>
      Effect.flatMap(answer(store, session), (stored) =>
        stored === undefined ? Effect.fail(refused) : Effect.succeed(stored),
      ),
    ),
  );
  if (looked !== undefined) return yield* voice.say(looked);

  const { asked } = yield* hold(store, `session:${session}`);
  // Who had the lock may have committed it meanwhile, or given it up.
  const late = yield* answer(store, session);
  if (late !== undefined) return yield* voice.say(late);
  yield* stillThere(store, session);
  yield* seat(store);
  const before = yield* sameUpload(store, vouched);
  yield* Effect.scoped(
    Effect.gen(function* () {
      yield* hold(store, "store");
      yield* baseStands(store, ticket);
      yield* hasRoom(store, ticket, usage);
      yield* enter(store, vouched);
      yield* ticket.base === "-"
        ? clear(store.held, session)
        : writeText(store.held, session, ticket.base);
    }),
  );

  const upload = yield* Effect.raceFirst(
    openUpload(store, session, {
      bytes: ticket.bytes,
      continued: before !== undefined && before !== vouched.text,
      more: usage.left(),
    }),
    voice.watch,
  ).pipe(
    // A flush that fails here is a failed flush, too; of what was only just begun, nothing is of use.
    Effect.tapErrorTag("SafeFsError", (error) =>
      Effect.andThen(
        giveUpOn(store, session, error),
        before === undefined ? Effect.ignore(discard(store, session)) : Effect.void,
      ),
    ),
  );
  const work: Work = { admitted: vouched, upload, conversation, usage, trailed: false };
  const stored = yield* Effect.gen(function* () {
    yield* keepKey(store);
    yield* voice.say({ type: "ready", ...upload.durable() });
    yield* Effect.forkScoped(Effect.ignore(clean(store, session)));
    const trailer = yield* takeIn(work, asked);
    if (trailer === undefined) {
      yield* Effect.scoped(Effect.andThen(hold(store, "store"), stillHolds(store, vouched)));
      yield* discard(store, session);
      return undefined;
    }
    // Nothing stops the commit but the disk: whoever comes back finds it done.
    const patient = Effect.catch(voice.watch, () => Effect.never);
    return storedOf(yield* Effect.raceFirst(finish(work, trailer), patient));
  }).pipe(Effect.tapError((error) => giveUpOn(store, session, error, work)));
  if (stored !== undefined) yield* voice.say(stored);
});
