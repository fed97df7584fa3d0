/**
 * The one way back: blocks of an archive, each checked against the tree hash that dom0 trusts before
 * a byte of it is used. Verification, audit and restore are made of it.
 */
import { Effect, identity } from "effect";
import { Ledger } from "#services/Ledger";
import { Reporter } from "#services/Reporter";
import { leafOf, proofLength, rootFrom } from "#src/proof/treehash";
import { blockFrames, blockSize } from "#src/wire/frames";
import { readExactLine } from "#src/wire/lines";
import { parseManifest } from "#src/proof/manifest";
import type { Name } from "#src/wire/names";
import { parseReply } from "#src/wire/reply";
import { line } from "#src/say/shown";
import { failed, type RunFailed } from "#src/dom0/failure";
import { inLedger } from "#src/dom0/books/record";
import { contentOf } from "./remote.ts";
import {
  answer,
  callEnded,
  LinkBroken,
  mayPass,
  noLink,
  openCall,
  pauseAfter,
  refusal,
  refused,
  unanswered,
} from "./call.ts";

/** What dom0 knows of an archive, and on whose word nothing depends but its own. */
export interface Trusted {
  readonly name: Name;
  /** The qube that carries it. */
  readonly destination: string;
  /** In bytes. */
  readonly size: number;
  readonly treehash: string;
}

/** The archive of this name as the ledger has it: the latest line, with its manifest. */
export const fromLedger = Effect.fnUntraced(function* (name: string, destination: string) {
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const entry = entries.findLast((e) => e.name === name && e.destination === destination);
  const manifest = entry === undefined ? undefined : parseManifest(entry.manifest);
  if (entry === undefined || manifest === undefined) return undefined;
  const { size, treehash } = manifest;
  const trusted: Trusted = { name: entry.name, destination, size, treehash };
  return { trusted, manifest, entry };
});

export const blocksOf = (size: number): number => Math.ceil(size / blockSize);

/** Seconds. */
const silenceLimit = 60;
/** Bytes that must come in that time: one byte a minute is silence too. */
const least = 4096;
/** Minutes without a block after which the link is given up. */
const giveUpAfter = 30;
const firstTries = 3;

/**
 * Fails when too few bytes come for too long, while somebody waits for them; `awaited` is which block
 * that is, undefined while nobody does. Bytes that never make a block are no progress either.
 */
const watch = (received: () => number, awaited: () => number | undefined) =>
  Effect.gen(function* () {
    let quiet = 0;
    let mark = received();
    let block = awaited();
    let seconds = 0;
    for (;;) {
      yield* Effect.sleep("1 second");
      const now = awaited();
      const same = now !== undefined && now === block;
      block = now;
      seconds = same ? seconds + 1 : 0;
      if (seconds >= giveUpAfter * 60) {
        return yield* new LinkBroken({ reason: `no block within ${giveUpAfter} minutes` });
      }
      quiet = same && received() - mark < least ? quiet + 1 : 0;
      if (quiet === 0) mark = received();
      if (quiet >= silenceLimit) {
        return yield* new LinkBroken({ reason: `silence for ${silenceLimit} s` });
      }
    }
  });

/**
 * Reads the blocks `first` to `first + count - 1` in order and gives each to `use`, checked; the
 * bytes are valid until `use` returns. A link that breaks is made again from the next block. Fails
 * with `integrity` for anything that is not what was backed up, before `use` sees it.
 */
export const fetchBlocks = Effect.fnUntraced(function* <R>(
  trusted: Trusted,
  first: number,
  count: number,
  use: (index: number, bytes: Uint8Array) => Effect.Effect<void, RunFailed, R>,
) {
  const { destination, name, size, treehash } = trusted;
  const reporter = yield* Reporter;
  const leaves = blocksOf(size);
  let at = first;
  /** Seconds since a block was through; counted, because a machine that sleeps does not wait. */
  let waited = 0;
  const counting = Effect.forever(
    Effect.andThen(
      Effect.sleep("1 second"),
      Effect.sync(() => (waited += 1)),
    ),
  );

  const once = Effect.gen(function* () {
    const request = { verb: "read", name, first: at, count: first + count - at } as const;
    const { call, next, rest } = yield* openCall(destination, request);
    const orPass = at > first ? Effect.mapError(mayPass) : identity;
    const ready = yield* answer(next).pipe(
      Effect.catchTag("TimeoutError", () => orPass(unanswered(call, destination))),
      // Signs of life alone are no answer.
      Effect.timeoutOrElse({
        duration: "30 minutes",
        orElse: () => new LinkBroken({ reason: "no answer came" }),
      }),
    );
    if (ready === undefined) return yield* orPass(callEnded(call, destination));
    if (ready.type === "error") {
      if (ready.code === "busy") return yield* new LinkBroken({ reason: "the server is busy" });
      if (ready.code === "not-found") {
        return yield* failed("integrity", `${name} is not on the server any more`);
      }
      if (ready.from === "carrier") return yield* orPass(refused(ready, call, destination));
      // A shorter archive in its place does not have the block.
      const there =
        ready.code === "bad-request" ? yield* contentOf(destination, name) : { size, treehash };
      return yield* there.size === size && there.treehash === treehash
        ? refusal(ready)
        : failed("integrity", `the server has something else under the name ${name}`);
    }
    if (ready.type !== "ready" || !("treehash" in ready)) {
      return yield* failed("integrity", `the server began with ${ready.type}`);
    }
    if (ready.size !== size || ready.treehash !== treehash) {
      return yield* failed("integrity", `the server has something else under the name ${name}`);
    }
    const frames = blockFrames(rest);
    // `use` may take its time; only while a frame is awaited is silence a fault.
    let waiting = false;
    yield* Effect.raceFirst(
      watch(rest.received, () => (waiting ? at : undefined)),
      Effect.gen(function* () {
        while (at < first + count) {
          waiting = true;
          const frame = yield* frames.next;
          waiting = frame.kind === "error"; // for its line
          if (frame.kind === "cut") return yield* new LinkBroken({ reason: "the link ended" });
          if (frame.kind === "error") {
            const line = yield* readExactLine(rest);
            const reply = line === undefined ? undefined : parseReply(line);
            return yield* reply?.type === "error"
              ? refusal(reply)
              : new LinkBroken({ reason: "the server broke off" });
          }
          if (frame.kind === "end") return yield* failed("integrity", "the server ended too early");
          const expected = Math.min(blockSize, size - at * blockSize);
          const bytes = frame.bytes.subarray(0, expected);
          const proof = frame.bytes.subarray(expected);
          if (
            proof.length !== proofLength(at, leaves) * 32 ||
            rootFrom(leafOf(bytes), at, leaves, proof) !== treehash
          ) {
            return yield* failed("integrity", `block ${at} of ${name} is not what was backed up`);
          }
          yield* use(at, bytes);
          at += 1;
          waited = 0;
        }
      }),
    );
    // The end line says nothing that the proofs have not said; it only lets the server finish.
  });

  const reading = Effect.gen(function* () {
    let tries = 0;
    for (;;) {
      const before = at;
      const outcome = yield* once.pipe(
        Effect.scoped,
        Effect.catchTags({
          BytesError: () => new LinkBroken({ reason: "the link broke" }),
          WireError: (error) =>
            failed("integrity", `what came back is not of the wire: ${error.reason}`),
        }),
        Effect.as(undefined),
        Effect.catchTag("LinkBroken", (broken) => Effect.succeed(broken)),
      );
      if (outcome === undefined) return;
      tries = at > before ? 1 : tries + 1;
      if ((at === first && tries >= firstTries) || waited >= giveUpAfter * 60) {
        return yield* noLink(outcome);
      }
      const wait = yield* pauseAfter(tries);
      yield* reporter.say(
        "warning",
        at > first
          ? line`the link broke: ${outcome.reason}; again in ${wait.toFixed(1)} s`
          : line`no link yet: ${outcome.reason}; again in ${wait.toFixed(1)} s`,
      );
      yield* Effect.sleep(`${Math.round(wait * 1000)} millis`);
    }
  });
  yield* Effect.raceFirst(reading, counting);
});
