/** qbackup-shell: one request, one exit code. */
import { Cause, Effect } from "effect";
import { Invocation } from "#services/Invocation";
import type { Locks } from "#services/Locks";
import { Reporter } from "#services/Reporter";
import { SafeFs } from "#services/SafeFs";
import { exitCode } from "#src/say/exit";
import { fingerprint, type SigningKey } from "#src/proof/keys";
import { line, printable } from "#src/say/shown";
import { version } from "#src/say/version";
import { bare } from "#src/shell/verbs/bare";
import {
  exitOf,
  type Failure,
  type LinkLost,
  Refused,
  refusalOf,
  refuse,
} from "#src/store/failure";
import { help } from "./help.ts";
import { type Call, type Options, parseInvocation } from "./invocation.ts";
import { commands } from "./accounts.ts";
import { keepKey, openForReading, openForWriting, readIdentity } from "#src/store/store";
import { handlerOf } from "./verbs.ts";
import { makeVoice, type Voice } from "./voice.ts";

/** Runs a request to its exit code, and tells of a failure: on stderr, and to a client that listens. */
const answered = <R>(work: Effect.Effect<void, Failure, R>, voice: Voice | undefined) =>
  Effect.gen(function* () {
    const reporter = yield* Reporter;
    const tell = Effect.fnUntraced(function* ({ code, message }: Refused) {
      yield* reporter.say("error", line`${message}`);
      // The client may be gone: then stderr has to do.
      yield* Effect.ignore(voice?.say({ type: "error", code, message }) ?? Effect.void);
    });
    return yield* work.pipe(
      Effect.as(exitCode("done")),
      Effect.catchTags({
        Refused: (refused) => Effect.as(tell(refused), exitOf(refused.code)),
        SafeFsError: (error) => {
          const refused = refusalOf(error);
          return Effect.as(tell(refused), exitOf(refused.code));
        },
        LinkLost: ({ why }: LinkLost) =>
          Effect.as(reporter.say("error", line`${why}`), exitCode("link")),
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
    );
  });

const show = ({ server }: SigningKey) =>
  print(`fingerprint ${fingerprint(server)}\nkey         ${server}\n`);

/** Shows the identity of a store, and makes none: the key of another place would look as good. */
const identity = Effect.fnUntraced(function* ({ root }: Options) {
  const home = (yield* Invocation).env["HOME"] ?? "the home of this account";
  const place = printable(`${root ?? home}/.qbackup`, 200);
  const missing = (message: string) => refuse("not-found", message);
  if (root === undefined) {
    const { owner } = yield* (yield* (yield* SafeFs).root(undefined)).self;
    if (owner === 0) return yield* missing(`${place} is no backup account's: it is root's`);
  }
  const key = yield* readIdentity(root).pipe(
    Effect.catchTag("SafeFsError", ({ reason }) =>
      missing(`there is no identity to be read in ${place} (${reason})`),
    ),
  );
  yield* key === undefined ? missing(`there is no identity in ${place}`) : show(key);
});

/** Makes the identity of a new store; one that there is stays as it is. */
const init = Effect.fnUntraced(function* ({ root }: Options) {
  // What root makes in an account's store, the account cannot use.
  const { owner } = yield* (yield* (yield* SafeFs).root(root)).self;
  const { uid = owner } = yield* Invocation;
  if (uid !== owner) {
    return yield* refuse(
      "not-permitted",
      `${root ?? "that home"} belongs to the account with the uid ${owner}: runuser -u ACCOUNT -- qbackup-shell init --root ${root ?? "STORE"}`,
    );
  }
  const store = yield* openForWriting(root === undefined ? {} : { root });
  yield* keepKey(store);
  yield* show(store.key);
});

const print = Effect.fnUntraced(function* (text: string) {
  const { stdout } = yield* Invocation;
  yield* Effect.ignore(stdout.write(new TextEncoder().encode(text)));
});

const run = (call: Call) =>
  Effect.gen(function* () {
    switch (call.kind) {
      case "help":
        return yield* answered(print(help), undefined);
      case "version":
        return yield* answered(print(`qbackup-shell ${version}\n`), undefined);
      case "login": {
        const message = "this account keeps backups; there is no shell to log in to";
        return yield* answered(new Refused({ code: "bad-request", message }), undefined);
      }
      case "identity": {
        const code = yield* answered(identity(call.options), undefined);
        if (code !== exitCode("done")) yield* (yield* Reporter).say("hint", yield* commands);
        return code;
      }
      case "init":
        return yield* answered(init(call.options), undefined);
      case "refused":
        return yield* answered(new Refused(call.refusal), call.wire ? yield* makeVoice : undefined);
      case "bare":
        return yield* answered(
          Effect.flatMap(openForWriting(call.options), (store) =>
            bare(call.name, store, call.options.quota),
          ),
          undefined,
        );
      case "request": {
        const voice = yield* makeVoice;
        const { quota } = call.options;
        const handler = handlerOf(call.request.verb);
        const work = handler.writes
          ? Effect.flatMap(openForWriting(call.options), (store) =>
              handler.run(call.request, { store, voice, quota }),
            )
          : Effect.flatMap(openForReading(call.options), (store) =>
              handler.run(call.request, { store, voice, quota }),
            );
        return yield* answered(work, voice);
      }
    }
  });

/** The program; its value is the exit code. It never fails: whatever goes wrong has a code. */
export const shell: Effect.Effect<number, never, Invocation | Reporter | SafeFs | Locks> =
  Effect.gen(function* () {
    const { args, env } = yield* Invocation;
    return yield* run(parseInvocation(args, env["SSH_ORIGINAL_COMMAND"]));
  }).pipe(Effect.scoped);
