/**
 * `qubes.BackupCarrier fetch NAME SIZE TREEHASH`, a program for the qube's own user: prints an archive.
 *
 * This is what qvm-backup-restore runs here in its paranoid mode, where a disposable extracts and dom0
 * sees no byte of it. SIZE and TREEHASH come from dom0's ledger, so that at least the server need not
 * be believed: each block is checked before it is printed.
 */
import { Effect, Schema } from "effect";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import type { Settings } from "#services/Settings";
import { SshTransport } from "#services/SshTransport";
import { leafOf, rootFrom } from "#src/proof/treehash";
import { type exitCodes, exitCode } from "#src/say/exit";
import { blockFrames, blockSize } from "#src/wire/frames";
import { readExactLine, replies } from "#src/wire/lines";
import { isName, parseNumber } from "#src/wire/names";
import { parseReply } from "#src/wire/reply";
import { toCommand } from "#src/wire/request";
import { Line, line, printable } from "#src/say/shown";
import { advice } from "./advice.ts";
import { destination } from "./setup.ts";

/** Seconds: for ssh to connect and the server to look; between frames. */
const readyLimit = 90;
const silenceLimit = 60;
/** Minutes in which signs of life must have turned into an answer. */
const answerLimit = 30;
/** qvm-backup-restore stops reading while its disk is short of room; it may take that long, and no longer. */
const readerLimit = "1 hour";
/** Calls in a row that brought nothing new. */
const tries = 5;

class Stopped extends Schema.TaggedError<Stopped>()("Stopped", {
  exit: Schema.Literals(["done", "usage", "qubes", "link", "refused", "integrity"]),
  reason: Line,
  hint: Schema.optionalKey(Line),
}) {}
const stop = (exit: Stopped["exit"] & keyof typeof exitCodes, reason: string, hint?: string) =>
  new Stopped({
    exit,
    reason: line`${reason}`,
    ...(hint === undefined ? {} : { hint: line`${hint}` }),
  });

const within = (seconds: number) =>
  Effect.timeoutOrElse({
    duration: `${seconds} seconds`,
    orElse: () => stop("link", `silence for ${seconds} s`),
  });

const print = Effect.gen(function* () {
  const { args, stdout } = yield* Invocation;
  const reporter = yield* Reporter;
  const [, name, sizeText = "", treehash = "", ...more] = args;
  const size = parseNumber(sizeText) ?? 0;
  if (!isName(name) || size === 0 || !/^[0-9a-f]{64}$/.test(treehash) || more.length > 0) {
    return yield* stop("usage", "usage: qubes.BackupCarrier fetch NAME SIZE TREEHASH");
  }
  const to = yield* destination.pipe(
    Effect.mapError(({ hint, reason }) => stop("usage", reason, hint)),
  );
  const leaves = Math.ceil(size / blockSize);
  let at = 0;

  const once = Effect.gen(function* () {
    const request = { verb: "read", name, first: at, count: leaves - at } as const;
    const call = yield* (yield* SshTransport)
      .read(to, toCommand(request))
      .pipe(Effect.mapError(({ why }) => stop("usage", why)));
    const { next, rest } = replies(call.stdout, (said) => reporter.say("info", said));
    const ready = yield* within(readyLimit)(next).pipe(
      // Without kept digests the server reads all of it before it says a word.
      Effect.repeat({ while: (reply) => reply?.type === "alive" }),
      Effect.timeoutOrElse({
        duration: `${answerLimit} minutes`,
        orElse: () => stop("link", `no answer within ${answerLimit} minutes`),
      }),
    );
    if (ready === undefined) {
      const { reason } = yield* within(silenceLimit)(call.ended);
      const { error, hint } = advice(
        reason === "done" || reason === "no-ssh" ? "lost" : reason,
        to,
      );
      return yield* stop("link", error, hint);
    }
    if (ready.type === "error") {
      const exit = ready.code === "busy" ? "link" : "refused";
      return yield* stop(exit, `the server refused: ${printable(ready.message)}`);
    }
    if (ready.type !== "ready" || !("treehash" in ready)) {
      return yield* stop("integrity", `the server began with ${ready.type}`);
    }
    const frames = blockFrames(rest);
    while (at < leaves) {
      const frame = yield* within(silenceLimit)(frames.next);
      if (frame.kind === "error") {
        const sent = yield* within(silenceLimit)(readExactLine(rest));
        const reply = sent === undefined ? undefined : parseReply(sent);
        const said = reply?.type === "error" ? printable(reply.message) : "the server broke off";
        return yield* stop("refused", said);
      }
      if (frame.kind !== "block") return yield* stop("link", "the link ended");
      const length = Math.min(blockSize, size - at * blockSize);
      const bytes = frame.bytes.subarray(0, length);
      if (rootFrom(leafOf(bytes), at, leaves, frame.bytes.subarray(length)) !== treehash) {
        return yield* stop("integrity", `block ${at} of ${name} is not what dom0 asked for`);
      }
      // Whoever reads may have seen enough: that is no failure.
      yield* stdout.write(bytes).pipe(
        Effect.mapError(() => stop("done", "the reader has stopped")),
        // Of a reader that is gone qrexec's agent tells nobody.
        Effect.timeoutOrElse({
          duration: readerLimit,
          orElse: () => stop("qubes", `nobody has read anything for ${readerLimit}`),
        }),
      );
      at += 1;
    }
  }).pipe(
    Effect.scoped,
    Effect.catchTags({
      BytesError: () => stop("link", "the link broke"),
      WireError: ({ reason }) => stop("integrity", reason),
    }),
  );
  for (let left = tries; at < leaves;) {
    const before = at;
    const broken = yield* once.pipe(
      Effect.as(undefined),
      Effect.catchIf(
        ({ exit }) => exit === "link",
        (failure) => Effect.succeed(failure),
      ),
    );
    left = at > before ? tries : left - 1;
    if (broken === undefined) return;
    if (left === 0) return yield* broken;
    yield* Effect.sleep("2 seconds");
  }
});

/** The role. stdout is the archive; whoever reads it may stop early. */
export const fetch: Effect.Effect<number, never, Invocation | Reporter | Settings | SshTransport> =
  print.pipe(
    Effect.as(exitCode("done")),
    Effect.catchTag("Stopped", ({ exit, hint, reason }) =>
      Effect.gen(function* () {
        if (exit === "done") return exitCode("done");
        const { say } = yield* Reporter;
        yield* say("error", reason);
        if (hint !== undefined) yield* say("hint", hint);
        return exitCode(exit);
      }),
    ),
  );
