/** What the server's owner runs on the server itself, and never through ssh. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { SafeFs } from "#services/SafeFs";
import { fingerprint, type SigningKey } from "#src/proof/keys";
import { printable } from "#src/say/shown";
import { signerLimit } from "#src/wire/limits";
import type { PublicKey } from "#src/wire/names";
import { hold } from "#src/store/commit";
import { refuse } from "#src/store/failure";
import { readSigners, writeSigners } from "#src/store/signers";
import { keepKey, openForWriting, readIdentity, whereFound } from "#src/store/store";
import type { Options, SignersWish } from "./invocation.ts";

export const print = Effect.fnUntraced(function* (text: string) {
  const { stdout } = yield* Invocation;
  yield* Effect.ignore(stdout.write(new TextEncoder().encode(text)));
});

const show = ({ publicKey }: SigningKey) =>
  print(`fingerprint ${fingerprint(publicKey)}\nkey         ${publicKey}\n`);

const missing = (message: string) => refuse("not-found", message);

/** Where the server's books are, for a person; root, who says nothing of it, does not mean its own home. */
const placeOf = Effect.fnUntraced(function* ({ root }: Options) {
  const home = (yield* Invocation).env["HOME"] ?? "the home of this account";
  const place = printable(`${root ?? home}/.qbackup`, 200);
  if (root !== undefined) return place;
  const { owner } = yield* (yield* (yield* SafeFs).root(undefined)).self;
  return owner === 0 ? yield* missing(`${place} is no backup account's: it is root's`) : place;
});

/** Shows the identity of a store, and makes none: the key of another place would look as good. */
export const identity = Effect.fnUntraced(function* (options: Options) {
  const { root } = options;
  const place = yield* placeOf(options);
  const key = yield* readIdentity(root).pipe(
    Effect.catchTag("SafeFsError", ({ reason }) =>
      missing(`there is no identity to be read in ${place} (${reason})`),
    ),
  );
  yield* key === undefined ? missing(`there is no identity in ${place}`) : show(key);
});

/** What root makes in an account's store, the account cannot use. */
const asOwner = Effect.fnUntraced(function* ({ root }: Options, command: string) {
  const { owner } = yield* (yield* (yield* SafeFs).root(root)).self;
  const { uid = owner } = yield* Invocation;
  if (uid !== owner) {
    return yield* refuse(
      "not-permitted",
      `${root ?? "that home"} belongs to the account with the uid ${owner}: runuser -u ACCOUNT -- qbackup-shell ${command} --root ${root ?? "STORE"}`,
    );
  }
});

/** Makes the identity of a new store; one that there is stays as it is. */
export const init = Effect.fnUntraced(function* (options: Options) {
  yield* placeOf(options);
  yield* asOwner(options, "init");
  const store = yield* openForWriting(options);
  yield* keepKey(store);
  yield* show(store.key);
});

/** Where there are none, says beside the data which of the two that is. */
const showSigners = Effect.fnUntraced(function* (signers: ReadonlyArray<PublicKey> | undefined) {
  const { say } = yield* Reporter;
  if (signers === undefined) {
    yield* say("info", "the store has no signer yet: the first one that comes reserves it");
  } else if (signers.length === 0) {
    yield* say(
      "info",
      "the store has no signer any more, and takes none: signers add KEY lets one in",
    );
  }
  yield* print((signers ?? []).map((key) => `${fingerprint(key)} ${key}\n`).join(""));
});

/** Says whose uploads the store takes, or changes that. */
export const signers = Effect.fnUntraced(function* (wish: SignersWish, options: Options) {
  yield* placeOf(options);
  if (wish.do === "show") {
    const root = yield* (yield* SafeFs).root(options.root);
    const own = yield* whereFound(root.directory(".qbackup"));
    return yield* showSigners(own && (yield* readSigners(own)));
  }
  yield* asOwner(options, `signers ${wish.do} KEY`);
  const store = yield* openForWriting({ ...options, noInit: true });
  yield* hold(store, "store");
  const before = (yield* readSigners(store.own)) ?? [];
  const named = (key: PublicKey) => key === wish.key || fingerprint(key) === wish.key;
  const others = before.filter((key) => !named(key));
  if (wish.do === "remove" && others.length === before.length) {
    return yield* refuse("not-found", "the store has no such signer");
  }
  const after = wish.do === "add" ? [...others, wish.key] : others;
  if (after.length > signerLimit) {
    return yield* refuse("quota", `a store has ${signerLimit} signers at most`);
  }
  yield* writeSigners(store.own, after);
  yield* showSigners(after);
});
