/**
 * A call to the carrier's service: its request, its first reply, and what its end means. What ends it
 * is either a link that may be made again, or a failure that no second try mends.
 */
import { Context, Effect, Schema } from "effect";
import type { BytesError } from "#services/Bytes";
import { type Call, Qrexec } from "#services/Qrexec";
import { Reporter } from "#services/Reporter";
import { exitCode } from "#src/say/exit";
import { minutesOf } from "#src/say/format";
import { aliveAfter } from "#src/wire/limits";
import { replies, type WireError } from "#src/wire/lines";
import type { Code, Failed } from "#src/wire/reply";
import { parseReply, type Reply, type Request, toLine } from "#src/wire/request";
import { type Line, line, printable } from "#src/say/shown";
import { failed, rejected, type RunFailed, unable } from "#src/dom0/failure";

/** Seconds. The first reply waits for ssh to connect, and for an old writer to step down. */
export const readyLimit = 90;

/** The link broke, or could not be made: it may go better the next time. */
export class LinkBroken extends Schema.TaggedError<LinkBroken>()("LinkBroken", {
  reason: Schema.String,
  hint: Schema.optionalKey(Schema.String),
  /** The carrier's ssh reached nobody: no name, no route, no answer. */
  network: Schema.optionalKey(Schema.Boolean),
  /** The server has too much to do for others at the moment. */
  busy: Schema.optionalKey(Schema.Boolean),
}) {}

/** Server replies that say more about the bytes than about the server's wishes. */
const integrityCodes: ReadonlySet<Code> = new Set([
  "incomplete",
  "digest-mismatch",
  "signature",
  "damaged",
]);

const advice: { readonly [C in Code]?: string } = {
  "no-directory": "make the directory on the server first; qbackup makes none",
  exists: "wait a minute for another name, or choose one with -f",
  "no-space":
    "it needs a larger disk, or less of what else is on it: removing archives by name frees nothing there",
  quota:
    "the server's owner has set a quota for this store: a larger one helps, removing archives by name does not",
  signature:
    "see whether the clock here is right, and whether the key was changed: qbackup key show",
  "not-permitted": "the server's owner decides what may be done there",
  stale: "another dom0 may use the same key: run again",
  pruned: "it was removed by the server's rules for old archives: qbackup list",
  unsupported:
    "where it does not know the request, it is older than this program: update the server, then the carrier",
  "bad-request":
    "the program there may be older than this one: update the server, then the carrier",
  "bad-name":
    "the name's parts may have letters, digits and . _ + - and begin with a letter or digit",
};

/** What lets a key in, typed by root on the server. */
export const signersAdd = (key: string): string =>
  `runuser -u ACCOUNT -- /usr/bin/qbackup-shell signers add ${key} --root STORE`;

/** What the server says of some refusals more exactly, and what helps then. */
const closerAdvice: ReadonlyArray<readonly [code: Code, said: RegExp, then: string]> = [
  [
    "not-permitted",
    /does not take the key/,
    `its owner lets this dom0's key in, as root there: ${signersAdd("KEY")}; KEY is what qbackup key show prints here`,
  ],
  ["not-permitted", /clocks differ/, "set the clock that is wrong; then run again"],
];

/** Whether it leaves open what became of an upload: the carrier does not know, nor a server that failed. */
export const undecided = ({ code, from }: Failed): boolean =>
  from === "carrier" || code === "internal";

/** What such a reply says of what was sent; undefined where nothing. */
const contentOf = (code: Code): RunFailed["content"] => {
  if (code === "digest-mismatch") return "other";
  return integrityCodes.has(code) || code === "bad-request" ? "wrong" : undefined;
};

/** What an error reply of the server means for the run. */
export const refusal = (reply: Failed): RunFailed => {
  const exit = integrityCodes.has(reply.code) ? "integrity" : "refused";
  const message = `the server refused (${reply.code}): ${printable(reply.message)}`;
  const hint =
    closerAdvice.find(([code, said]) => code === reply.code && said.test(reply.message))?.[2] ??
    advice[reply.code];
  return undecided(reply)
    ? failed(exit, message, hint)
    : rejected(exit, message, hint, contentOf(reply.code));
};

/** What shells on the way print, each line once in a run however often a call is made. */
export const Preamble = Context.Reference<Set<string>>("qbackup/dom0/Preamble", {
  defaultValue: () => new Set(),
});
/** A far side that prints other lines each time is not shown them all. */
const preambleMost = 64;

const told = Effect.fnUntraced(function* (printed: Line) {
  const seen = yield* Preamble;
  if (seen.has(printed) || seen.size >= preambleMost) return;
  seen.add(printed);
  yield* (yield* Reporter).say("warning", line`a login shell on the way printed: ${printed}`);
});

/**
 * Opens a call with its request line written. `next` gives what the server may say to this verb, and
 * undefined at the end; `rest` are the bytes behind the last reply.
 */
const openCall = Effect.fnUntraced(function* <const R extends Request>(
  destination: string,
  request: R,
) {
  const seen = yield* Preamble;
  const reporter = yield* Reporter;
  const call = yield* (yield* Qrexec)
    .call(destination, `qubes.BackupCarrier+${request.verb}`)
    .pipe(
      Effect.mapError((error) =>
        failed("qubes", `could not call ${destination}: ${printable(String(error.cause))}`),
      ),
    );
  // How the call ended is told by what it said; one that takes not even a line says nothing.
  yield* call.stdin
    .write(new TextEncoder().encode(`${toLine(request)}\n`))
    .pipe(Effect.timeout(`${aliveAfter} seconds`), Effect.ignore);
  const { next, rest } = replies(
    call.stdout,
    (text) => parseReply<R["verb"]>(request.verb, text),
    (printed) =>
      told(printed).pipe(
        Effect.provideService(Preamble, seen),
        Effect.provideService(Reporter, reporter),
      ),
  );
  return { call, next, rest };
});

/** What a first reply can be when the carrier is heard and the server is not busy. */
type Answer<V extends Request["verb"]> = Exclude<Reply<V>, { readonly type: "alive" }>;

const isAnswer = <R extends { readonly type: string }>(
  reply: R,
): reply is Exclude<R, { readonly type: "alive" }> => reply.type !== "alive";

/** The first reply that says something; a server that is long about it says that it is alive. */
const answer = <R extends { readonly type: string }>(
  next: Effect.Effect<R | undefined, BytesError | WireError>,
) =>
  Effect.gen(function* () {
    for (;;) {
      const reply = yield* Effect.timeout(next, `${readyLimit} seconds`);
      if (reply === undefined || isAnswer(reply)) return reply;
    }
  });

/**
 * Opens a call and waits for its first reply; of the server's errors all but `busy` are such a reply.
 * `before`: something went through in this run already, so that what the carrier lacks may come back.
 */
export const reach = Effect.fnUntraced(function* <const R extends Request>(
  destination: string,
  request: R,
  { before = false, minutes = 30 }: { readonly before?: boolean; readonly minutes?: number } = {},
) {
  const opened = yield* openCall(destination, request);
  const { call, next } = opened;
  const orPass = <A, E extends RunFailed | LinkBroken, S>(effect: Effect.Effect<A, E, S>) =>
    Effect.mapError(effect, (failure) => (before ? mayPass(failure) : failure));
  const first: Answer<R["verb"]> | undefined = yield* answer(next).pipe(
    Effect.catchTag("TimeoutError", () => orPass(unanswered(call, destination))),
    // Signs of life alone are no answer, however many there are.
    Effect.timeoutOrElse({
      duration: `${minutes} minutes`,
      orElse: () =>
        failed(
          "link",
          `for ${minutesOf(minutes)} the server only said that it is alive`,
          "see what holds the server up; then run again",
        ),
    }),
  );
  if (first === undefined) return yield* orPass(callEnded(call, destination));
  if (isFailed(first)) {
    if (first.code === "busy" && first.from !== "carrier") {
      return yield* new LinkBroken({
        reason: "the server is busy with other connections",
        busy: true,
      });
    }
    if (first.from === "carrier") return yield* orPass(refused(first, call, destination));
  }
  return { ...opened, first };
});

/** Before a server has shown that it is one, it may be any program that talks: a link that is none. */
export const orNoServer = <A, R>(
  effect: Effect.Effect<A, RunFailed | LinkBroken | BytesError | WireError, R>,
) =>
  Effect.catchTag(effect, "WireError", ({ reason }) =>
    failed("link", `malformed reply: ${reason}`),
  );

export const isFailed = (reply: { readonly type: string }): reply is Failed =>
  reply.type === "error";

/** How a call ended: its exit code, and its stderr, each line printable. */
interface Ended {
  readonly code: number;
  readonly said: ReadonlyArray<string>;
}

/** The carrier's stderr. What ssh and the server said is marked by it, so that only this is its own. */
const own = /^qubes\.BackupCarrier: (error|hint): (.*)$/;
const relayed = /^qubes\.BackupCarrier: /;

/** What the carrier gives as cause and as what to do, in the words of somebody in dom0. */
const fromCarrier = ({ code, said }: Ended, destination: string) => {
  const lines = said.flatMap((text) => {
    const [, level, what = ""] = own.exec(text) ?? [];
    return level === undefined ? [] : [{ level, what: what.replaceAll("this qube", destination) }];
  });
  const at = lines.findLastIndex(({ level }) => level === "error");
  if (at < 0) return undefined;
  const reason = lines[at]!.what;
  const hint = lines[at + 1]?.what;
  if (code === exitCode("integrity")) return unable("integrity", reason, hint);
  if (code === exitCode("usage")) return unable("usage", reason, hint);
  return new LinkBroken({ reason, ...(hint === undefined ? {} : { hint }), network: true });
};

/** Exit codes of qrexec and of shells (docs/qubes.md, Calling a service). */
const problem = 125;
const cannot = 126;
const notFound = 127;

interface Sign {
  readonly when: (ended: Ended, text: string) => boolean;
  readonly means: (destination: string, last: string) => RunFailed;
}

/** What the calls of a qube end with where its carrier never came to speak; the first that fits. */
const signs: ReadonlyArray<Sign> = [
  {
    // qrexec-client, of the socket of the daemon for this qube.
    when: (_, text) => /connect \S*\/qrexec\.\S+: |qrexec connection timeout/.test(text),
    means: (qube) =>
      unable(
        "qubes",
        `qrexec does not reach ${qube}, although it runs`,
        `restart the carrier qube: qvm-shutdown --wait ${qube}, then run again`,
      ),
  },
  {
    when: ({ code }, text) =>
      (code === cannot || code === notFound) &&
      /BackupCarrier.*(?:not found|bad interpreter|No such file)|\bnode\b/.test(text),
    means: (qube) =>
      unable(
        "usage",
        `${qube} has no node, which qubes.BackupCarrier needs`,
        `install node 20 or later in the template of ${qube}, and restart ${qube}`,
      ),
  },
  {
    when: ({ code }) => code === notFound,
    means: (qube) =>
      unable(
        "usage",
        `${qube} has no service qubes.BackupCarrier`,
        "install it there, or in its template and restart the qube: make templatevm",
      ),
  },
  {
    when: ({ code }) => code === problem || code === cannot,
    means: (qube) =>
      unable(
        "qubes",
        `qrexec could not run qubes.BackupCarrier in ${qube}`,
        "is the file executable, and may the qube's user read it? In its template: make templatevm",
      ),
  },
  {
    // What the qube itself says, not what came from the server.
    when: ({ said }) => said.some((text) => !relayed.test(text) && tooOld.test(text)),
    means: (qube) =>
      unable(
        "usage",
        `the node of ${qube} is too old for qubes.BackupCarrier`,
        `install node 20 or later in the template of ${qube}, and restart ${qube}`,
      ),
  },
  {
    when: (_, text) => tooOld.test(text),
    means: () =>
      unable(
        "usage",
        "the server's node is too old for qbackup-shell",
        "install node 20 or later on the server, as /usr/bin/node",
      ),
  },
  {
    when: (_, text) =>
      /(?:^|\n)qubes\.BackupCarrier: .*qbackup-shell.*(?:No such|not found|bad interpreter|[Pp]ermission denied)|env: .*node/.test(
        text,
      ),
    means: (_, last) =>
      unable(
        "usage",
        `the server cannot run qbackup-shell: ${last}`,
        "on the server: is node 20 or later there, as /usr/bin/node, and is /usr/bin/qbackup-shell?",
      ),
  },
  {
    // qvm-run has no other use for it, and ssh's own never comes through the carrier.
    when: ({ code, said }) => code === 255 && said.length > 0,
    means: (qube, last) =>
      unable("qubes", `${qube} could not be called: ${last}`, "see journalctl -b -u qubesd"),
  },
];
/** Node of before 20 at the first thing that it does not know. */
const tooOld = /\bSyntaxError: |node: bad option|needs node \d+/;

/** What is worth quoting: the end of a traceback, without the prefix of who handed it on. */
const lastOf = (said: ReadonlyArray<string>): string | undefined =>
  said.at(-1)?.replace(/^qubes\.BackupCarrier: (?:\| )?/, "");

/** What the end of a call without an answer means. Its exit code and stderr explain, but prove nothing. */
export const meaning = (ended: Ended, destination: string): RunFailed | LinkBroken => {
  const theirs = fromCarrier(ended, destination);
  if (theirs !== undefined) return theirs;
  const text = ended.said.join("\n");
  const last = lastOf(ended.said);
  const sign = signs.find(({ when }) => when(ended, text));
  if (sign !== undefined) return sign.means(destination, last ?? "");
  if (last !== undefined) return new LinkBroken({ reason: last });
  return ended.code === 0
    ? new LinkBroken({
        reason: "the call ended without an answer",
        hint: "if this is the first run, the carrier or the server may still have the older scripts: update the server, then the carrier",
      })
    : new LinkBroken({ reason: `the call ended with exit code ${ended.code}` });
};

/**
 * Once something went through, the carrier is set up as it must be: what it lacks now (its disk full,
 * its key not mounted, qubesd restarting) may be there again. A key that changed is not waited for.
 */
export const mayPass = (failure: RunFailed | LinkBroken): RunFailed | LinkBroken =>
  failure._tag === "LinkBroken" || failure.exit === "integrity" || failure.exit === "refused"
    ? failure
    : new LinkBroken({
        reason: failure.message,
        ...(failure.hint === undefined ? {} : { hint: failure.hint }),
      });

/** Fails with why a call gave no (more) replies. */
export const callEnded = (
  call: Call,
  destination: string,
): Effect.Effect<never, RunFailed | LinkBroken> =>
  call.ended.pipe(
    Effect.timeoutOption("3 seconds"),
    Effect.flatMap((ended) =>
      Effect.fail(
        ended._tag === "None"
          ? new LinkBroken({ reason: "no reply came" })
          : meaning(ended.value, destination),
      ),
    ),
  );

/** Fails with what an error reply means; the carrier's own has its cause and hint on stderr. */
export const refused = (
  reply: Failed,
  call: Call,
  destination: string,
): Effect.Effect<never, RunFailed | LinkBroken> =>
  reply.from !== "carrier"
    ? Effect.fail(refusal(reply))
    : call.ended.pipe(
        Effect.timeoutOption("3 seconds"),
        Effect.flatMap((ended) =>
          Effect.fail(
            (ended._tag === "None" ? undefined : fromCarrier(ended.value, destination)) ??
              unable("usage", `${destination}: ${printable(reply.message)}`),
          ),
        ),
      );

/** Fails for a call that gave no first reply in time: by the end of its stdin it may say why. */
export const unanswered = (
  call: Call,
  destination: string,
): Effect.Effect<never, RunFailed | LinkBroken> =>
  Effect.ignore(call.stdin.end).pipe(
    Effect.andThen(call.ended),
    Effect.timeoutOption("3 seconds"),
    Effect.flatMap((ended) => {
      const said = ended._tag === "None" ? [] : ended.value.said;
      // A shell took the request for a command.
      return Effect.fail(
        said.some((text) => !relayed.test(text) && /command not found|: not found/.test(text))
          ? unable(
              "usage",
              `a shell in ${destination} takes the place of qubes.BackupCarrier: ${lastOf(said)!}`,
              `~/.profile or /etc/profile of ${destination} starts a shell (exec bash, say): it runs before each service`,
            )
          : new LinkBroken({
              reason: `no answer within ${readyLimit} s`,
              hint: `does ${destination} have a network, and does the server answer? Something in ~/.profile of ${destination}, which runs before the service, may wait for input`,
            }),
      );
    }),
  );
