/** qbackup-shell: one request, one exit code. */
import { Cause, Effect } from "effect";
import { Invocation } from "#services/Invocation";
import type { Journal } from "#services/Journal";
import type { Locks } from "#services/Locks";
import { Reporter } from "#services/Reporter";
import type { SafeFs } from "#services/SafeFs";
import { exitCode } from "#src/say/exit";
import { line, printable } from "#src/say/shown";
import { version } from "#src/say/version";
import { exitOf, type Failure, type LinkLost, Refused, refusalOf } from "#src/store/failure";
import { openForReading, openForWriting } from "#src/store/store";
import { commands } from "./accounts.ts";
import { help } from "./help.ts";
import { type Call, parseInvocation } from "./invocation.ts";
import { type Log, makeLog } from "./journal.ts";
import { identity, init, print, signers } from "./owner.ts";
import { bare, handlerOf } from "./verbs.ts";
import { makeVoice, type Voice } from "./voice.ts";

/**
 * Runs a request to its exit code, and tells of a failure: on stderr, and to a client that listens.
 * `counted` is whose bytes the log says, of a client that reads no replies too.
 */
const answered = <R>(
  work: Effect.Effect<void, Failure, R>,
  log?: Log,
  voice?: Voice,
  counted: Voice | undefined = voice,
) =>
  Effect.gen(function* () {
    const reporter = yield* Reporter;
    const noted = (verdict: string) =>
      Effect.suspend(
        () =>
          log?.(verdict, counted === undefined ? {} : { through: counted.through() }) ??
          Effect.void,
      );
    const tell = Effect.fnUntraced(function* (refused: Refused) {
      yield* reporter.say("error", line`${refused.message}`);
      yield* noted(refused.code);
      // The client may be gone: then stderr has to do.
      yield* Effect.ignore(voice?.refuse(refused) ?? Effect.void);
    });
    return yield* work.pipe(
      Effect.andThen(noted("done")),
      Effect.as(exitCode("done")),
      Effect.catchTags({
        Refused: (refused) => Effect.as(tell(refused), exitOf(refused.code)),
        SafeFsError: (error) => {
          const refused = refusalOf(error);
          return Effect.as(tell(refused), exitOf(refused.code));
        },
        LinkLost: ({ why }: LinkLost) =>
          reporter
            .say("error", line`${why}`)
            .pipe(Effect.andThen(noted("link")), Effect.as(exitCode("link"))),
      }),
      Effect.catchDefect((defect) => {
        const message = printable(
          `a bug in qbackup-shell: ${Cause.pretty(Cause.die(defect))}`,
          500,
        );
        const told = new Refused({ code: "internal", message: "a bug in qbackup-shell" });
        return tell(told).pipe(
          Effect.andThen(reporter.say("error", message)),
          Effect.as(exitCode("bug")),
        );
      }),
      Effect.onInterrupt(() => noted("interrupted")),
    );
  });

/** An exit code, and, where the owner may have meant another place, what to run for these words. */
const hinted = Effect.fnUntraced(function* (words: string, elsewhere: boolean, code: number) {
  if (elsewhere) yield* (yield* Reporter).say("hint", yield* commands(words));
  return code;
});

const run = (call: Call) =>
  Effect.gen(function* () {
    if (call.kind === "help") return yield* answered(print(help));
    if (call.kind === "version") return yield* answered(print(`qbackup-shell ${version}\n`));
    const log = yield* makeLog(call);
    switch (call.kind) {
      case "login": {
        const message = "this account keeps backups; there is no shell to log in to";
        return yield* answered(new Refused({ code: "bad-request", message }), log);
      }
      case "identity": {
        const code = yield* answered(identity(call.options));
        return yield* hinted("identity", code !== exitCode("done"), code);
      }
      case "init": {
        const code = yield* answered(init(call.options), log);
        return yield* hinted(
          "init",
          code !== exitCode("done") && call.options.root === undefined,
          code,
        );
      }
      case "signers": {
        const { options, wish } = call;
        const code = yield* answered(signers(wish, options), wish.do === "show" ? undefined : log);
        const words = wish.do === "show" ? "signers" : `signers ${wish.do} ${wish.key}`;
        return yield* hinted(words, code !== exitCode("done") && options.root === undefined, code);
      }
      case "refused": {
        const voice = call.wire ? yield* makeVoice() : undefined;
        return yield* answered(new Refused(call.refusal), log, voice);
      }
      case "bare": {
        const voice = yield* makeVoice(call.options.floor);
        yield* log("begun");
        const work = Effect.flatMap(openForWriting(call.options), (store) =>
          bare(call.name, { store, voice, options: call.options, log }),
        );
        return yield* answered(work, log, undefined, voice);
      }
      case "request": {
        const { options, request } = call;
        const voice = yield* makeVoice(options.floor);
        yield* log("begun");
        const handler = handlerOf(request.verb);
        const work = handler.writes
          ? Effect.flatMap(openForWriting(options), (store) =>
              handler.run(request, { store, voice, options, log }),
            )
          : Effect.flatMap(openForReading(options), (store) =>
              handler.run(request, { store, voice, options, log }),
            );
        return yield* answered(work, log, voice);
      }
    }
  });

/** The program; its value is the exit code. It never fails: whatever goes wrong has a code. */
export const shell: Effect.Effect<number, never, Invocation | Journal | Locks | Reporter | SafeFs> =
  Effect.gen(function* () {
    const { args, env } = yield* Invocation;
    return yield* run(parseInvocation(args, env["SSH_ORIGINAL_COMMAND"]));
  }).pipe(Effect.scoped);
