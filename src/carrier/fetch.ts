/**
 * `qubes.BackupCarrier fetch NAME FORMAT SIZE MEMBERS ROOT`, a program for the qube's own user: prints an archive.
 *
 * This is what qvm-backup-restore runs here in its paranoid mode, where a disposable extracts and dom0
 * sees no byte of it. The words behind NAME come from dom0's ledger, so that at least the server need
 * not be believed: the list of members is held against ROOT, and each block against its member, before
 * it is printed. Where they are the server's word (restore --force), nobody else looks whether the members
 * belong together: so the list must be that of a whole archive, and what the header of slots seals.
 */
import { Effect, Schema, Semaphore } from "effect";
import type { BytesError } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import type { Settings } from "#services/Settings";
import { SshTransport } from "#services/SshTransport";
import { listedWalk } from "#src/archive/listed";
import { FullChunk } from "#src/archive/parameters";
import { archiveSize, ListWalk } from "#src/archive/walk";
import {
  archiveMembers,
  blocksOf,
  type Members,
  type Placed,
  provenBlock,
  type TextReader,
} from "#src/proof/members";
import { memberLimit } from "#src/proof/table";
import { type exitCodes, exitCode } from "#src/say/exit";
import { Line, line, printable } from "#src/say/shown";
import { asking } from "#src/wire/asking";
import { frames } from "#src/wire/frames";
import { aliveAfter, blockSize, proofLimit, silenceLimit } from "#src/wire/limits";
import { readExactLine, replies, type WireError } from "#src/wire/lines";
import { isName, parseNumber } from "#src/wire/names";
import { parseReply, type Request, toCommand } from "#src/wire/request";
import type { Ask } from "#src/wire/verbs/read";
import { advice } from "./advice.ts";
import { destination } from "./setup.ts";

/** Seconds for ssh to connect and the server to look. */
const readyLimit = 90;
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

const usage =
  "usage: qubes.BackupCarrier fetch NAME FORMAT SIZE MEMBERS ROOT (dom0 prints this line)";

const parse = (words: ReadonlyArray<string>) => {
  const [name, format, sizeText = "", membersText = "", root = "", ...more] = words;
  const size = parseNumber(sizeText) ?? 0;
  const members = parseNumber(membersText) ?? 0;
  if (more.length > 0 || !isName(name) || !/^[0-9a-f]{64}$/.test(root)) return undefined;
  if (size === 0 || members === 0 || members > memberLimit) return undefined;
  if (format !== "qvm-backup" && format !== "slots") return undefined;
  return { name, format, size, members, root } as const;
};

type Broken = Stopped | BytesError | WireError;

/** Makes one call after another until one succeeds; a few in a row may bring nothing new. */
const persist = Effect.fnUntraced(function* <R>(
  through: () => number,
  once: Effect.Effect<void, Broken, R>,
) {
  for (let left = tries; ;) {
    const before = through();
    const broken = yield* once.pipe(
      Effect.scoped,
      Effect.as(undefined),
      Effect.catchTags({
        BytesError: () => Effect.succeed(stop("link", "the link broke")),
        WireError: ({ reason }) => stop("integrity", reason),
      }),
      Effect.catchIf(
        ({ exit }) => exit === "link",
        (failure) => Effect.succeed(failure),
      ),
    );
    left = through() > before ? tries : left - 1;
    if (broken === undefined) return;
    if (left === 0) return yield* broken;
    yield* Effect.sleep("2 seconds");
  }
});

/** A call to the server, up to its `ready`. */
const opened = Effect.fnUntraced(function* (
  to: string,
  request: Request<"read"> | Request<"recipe"> | Request<"table">,
) {
  const reporter = yield* Reporter;
  const call = yield* (yield* SshTransport)
    .read(to, toCommand(request))
    .pipe(Effect.mapError(({ why }) => stop("usage", why)));
  const { next, rest } = replies(
    call.stdout,
    (text) => parseReply(request.verb, text),
    (said) => reporter.say("info", said),
  );
  const ready = yield* within(readyLimit)(next).pipe(
    Effect.repeat({ while: (reply) => reply?.type === "alive" }),
    Effect.timeoutOrElse({
      duration: `${answerLimit} minutes`,
      orElse: () => stop("link", `no answer within ${answerLimit} minutes`),
    }),
  );
  if (ready === undefined) {
    const { reason } = yield* within(silenceLimit)(call.ended);
    const { error, hint } = advice(reason === "done" || reason === "no-ssh" ? "lost" : reason, to);
    return yield* stop("link", error, hint);
  }
  if (ready.type === "error") {
    const exit = ready.code === "busy" ? "link" : "refused";
    return yield* stop(exit, `the server refused: ${printable(ready.message)}`);
  }
  if (ready.type !== "ready") {
    return yield* stop("integrity", `the server began with ${ready.type}`);
  }
  return { stdin: call.stdin, rest };
});

/** Text in frames, into a reader that is made anew for each try. */
const text = Effect.fnUntraced(function* (
  to: string,
  request: Request<"recipe"> | Request<"table">,
  reader: () => TextReader,
) {
  let bytes = 0;
  const other = stop("integrity", "the server has another archive than dom0 asked for");
  yield* persist(
    () => bytes,
    Effect.gen(function* () {
      const into = reader();
      const { rest } = yield* opened(to, request);
      const { next } = frames(rest, blockSize);
      for (;;) {
        const frame = yield* within(silenceLimit)(next);
        if (frame.kind === "keep-alive") continue;
        if (frame.kind === "zero") return into.finish() ? undefined : yield* other;
        if (frame.kind !== "bytes") return yield* stop("link", "the link ended");
        bytes += frame.bytes.length;
        if (!into.push(frame.bytes)) return yield* other;
      }
    }),
  );
});

interface Want extends Ask {
  readonly of: Placed;
}
const wantsOf = function* (list: Members): Generator<Want> {
  for (let i = 0; i < list.count; i++) {
    const of = list.at(i);
    const { length, member, session } = of;
    yield { session, member, block: 0, count: blocksOf(length), of };
  }
};

const print = Effect.gen(function* () {
  const { args, stdout } = yield* Invocation;
  const asked = parse(args.slice(1));
  if (asked === undefined) return yield* stop("usage", usage);
  const { format, members, name, root, size } = asked;
  const to = yield* destination.pipe(
    Effect.mapError(({ hint, reason }) => stop("usage", reason, hint)),
  );
  const list = archiveMembers(members);
  yield* text(to, { verb: "recipe", name }, list.recipe);
  for (const session of list.sessions()) {
    yield* text(to, { verb: "table", session }, () => list.table(session));
  }
  if (list.root() !== root || archiveSize(format, list.bytes()) !== size) {
    return yield* stop("integrity", `the server has something else under the name ${name}`);
  }
  const broken = (what: string) => stop("integrity", `${name} is not a whole archive: ${what}`);
  const kind = { format, fullChunk: yield* FullChunk };
  const order = new ListWalk(kind);
  for (let i = 0; i < list.count && order.fault === undefined; i++) order.next(list.at(i));
  const odd = order.finish();
  if (odd !== undefined) return yield* broken(odd.message);
  const walk = listedWalk(kind, list);

  // Whoever reads may have seen enough: that is no failure.
  const give = (bytes: Uint8Array) =>
    stdout.write(bytes).pipe(
      Effect.mapError(() => stop("done", "the reader has stopped")),
      // Of a reader that is gone qrexec's agent tells nobody.
      Effect.timeoutOrElse({
        duration: readerLimit,
        orElse: () => stop("qubes", `nothing was read for ${readerLimit}`),
      }),
    );
  const wants = asking(wantsOf(list));
  let printed = 0;
  const once = Effect.gen(function* () {
    const { rest, stdin } = yield* opened(to, { verb: "read" });
    const writing = yield* Semaphore.make(1);
    const write = (line: string) =>
      writing.withPermits(1)(stdin.write(new TextEncoder().encode(line)));
    yield* Effect.sleep(`${aliveAfter} seconds`).pipe(
      Effect.andThen(write(".\n")),
      Effect.forever,
      Effect.ignore,
      Effect.forkScoped,
    );
    const { next } = frames(rest, blockSize + proofLimit);
    wants.anew();
    for (;;) {
      const lines = wants.lines();
      if (lines !== "") yield* within(silenceLimit)(write(lines));
      const due = wants.due();
      if (due === undefined) return yield* write("\n");
      const frame = yield* within(silenceLimit)(next);
      if (frame.kind === "keep-alive") continue;
      const { of } = due.want;
      if (frame.kind === "give-up") {
        const sent = yield* within(silenceLimit)(readExactLine(rest));
        const reply = sent === undefined ? undefined : parseReply("read", sent);
        const said = reply?.type === "error" ? printable(reply.message) : "the server broke off";
        return yield* stop("refused", `${of.path}: ${said}`);
      }
      if (frame.kind !== "bytes") return yield* stop("link", "the link ended");
      const bytes = provenBlock(of, due.block, frame.bytes);
      if (bytes === undefined) {
        const what = `block ${due.block} of ${of.path}`;
        return yield* stop("integrity", `${what} is not what dom0 asked for`);
      }
      wants.answered();
      const fault = walk.push(bytes);
      if (fault !== undefined) return yield* broken(fault);
      yield* give(bytes);
      printed += bytes.length;
    }
  });
  yield* persist(() => printed, once);
  // The zeros at the end belong to no member.
  if (size > printed) yield* give(new Uint8Array(size - printed));
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
