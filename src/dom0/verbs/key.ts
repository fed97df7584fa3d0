/** dom0's own keys: what is said of them, and how they come onto paper and back, or are made anew. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { type Secrets, Signer } from "#services/Signer";
import { line } from "#src/say/shown";
import { fingerprint } from "#src/proof/keys";
import type { PublicKey } from "#src/wire/names";
import { command } from "#src/dom0/cli/command";
import { failed } from "#src/dom0/failure";
import { secretFromPaper, secretOnPaper } from "#src/dom0/books/paper";
import { inLedger } from "#src/dom0/books/unusable";
import { signersAdd } from "#src/dom0/far/call";
import { warnOfOld } from "#src/dom0/far/server";
import { takeLock } from "#src/dom0/qube/destination";
import { print } from "#src/dom0/cli/print";
import { typedLine } from "#src/dom0/cli/typed";

/** The two secrets, in the order in which they stand on the paper. */
const names = ["signing", "series"] as const;

const none = failed(
  "usage",
  "there is no key here yet",
  "the first backup makes one, or qbackup key new makes one; one that is on paper comes back with qbackup key import",
);

const shown = (key: PublicKey): string =>
  `key fingerprint  ${fingerprint(key)}\npublic key       ${key}\n`;

const show = Effect.gen(function* () {
  const key = yield* inLedger((yield* Signer).existing);
  yield* print(shown(key ?? (yield* none)));
});

const existing = Effect.gen(function* () {
  return (yield* inLedger((yield* Signer).secrets)) ?? (yield* none);
});

const exported = Effect.gen(function* () {
  const secrets = yield* existing;
  const key = yield* inLedger((yield* Signer).existing);
  yield* print(
    [
      ...names.map((name) => `${name.padEnd(8)} ${secretOnPaper(name, secrets[name])}\n`),
      ...(key === undefined ? [] : [`\n${shown(key)}`]),
    ].join(""),
  );
  const { say } = yield* Reporter;
  yield* say(
    "hint",
    "who has these two lines can add backups in your name, but read none: keep them like the passphrase",
  );
});

/** A server that knows signers takes a new one only from its owner. */
const toldToServer = Effect.gen(function* () {
  const { signer } = yield* inLedger((yield* Signer).keys);
  const { say } = yield* Reporter;
  yield* print(shown(signer));
  yield* say(
    "hint",
    line`a server that has backups of another key takes none of this one before its owner says, as root there: ${signersAdd(signer)}`,
  );
});

/** Lines that may be wrong before it is given up. */
const lineTries = 10;

/** One secret, as it is typed; a wrong line is asked for again. */
const typed = Effect.fnUntraced(function* (name: (typeof names)[number]) {
  const { say } = yield* Reporter;
  yield* say("info", line`type the line that begins with ${name}, and Enter`);
  for (let wrong = 0; wrong < lineTries; wrong++) {
    const text = yield* typedLine;
    if (text === undefined) break;
    if (text.trim() === "") continue;
    const secret = secretFromPaper(name, text.replace(new RegExp(`^\\s*${name}\\b`, "i"), ""));
    if (secret !== undefined) return secret;
    yield* say(
      "warning",
      line`that is not the ${name} line, or a letter of it is wrong: type it again`,
    );
  }
  return yield* failed(
    "usage",
    `the ${name} line did not come, and nothing was changed`,
    "qbackup key export prints the two lines, where the key is",
  );
});

const imported = Effect.gen(function* () {
  yield* takeLock;
  const signing = yield* typed("signing");
  const secrets: Secrets = { signing, series: yield* typed("series") };
  yield* inLedger((yield* Signer).take(secrets));
  yield* toldToServer;
}).pipe(Effect.scoped);

const rotated = Effect.gen(function* () {
  yield* takeLock;
  const { series } = yield* existing;
  const signing = (yield* Invocation).entropy(32);
  yield* inLedger((yield* Signer).take({ signing, series }));
  yield* toldToServer;
}).pipe(Effect.scoped);

/** Before the first backup, so that no store is ever anybody else's. */
const made = Effect.gen(function* () {
  yield* takeLock;
  const signer = yield* Signer;
  if ((yield* inLedger(signer.existing)) !== undefined) {
    return yield* failed(
      "usage",
      "there is a key here already",
      "qbackup key show prints it; qbackup key rotate makes another one for the same backups",
    );
  }
  const keys = yield* inLedger(signer.keys);
  yield* print(shown(keys.signer));
  yield* warnOfOld(keys.signer);
  const { say } = yield* Reporter;
  yield* say(
    "hint",
    line`so that a new store takes no other one, on the server: make server user=ACCOUNT signer=${keys.signer}`,
  );
  yield* say("hint", "write it on paper, so that it outlives this machine: qbackup key export");
}).pipe(Effect.scoped);

export const keyCommand = command({
  name: "key",
  summary: "the key that signs backups: on paper and back, or a new one",
  about: `Every upload is opened and closed with a signature of this key, which never
leaves dom0: whoever steals the ssh key can add no backup. The first run makes
it, where "new" has not. Beside it is a second secret, by which the server can
tell which backups belong together.`,
  flags: {},
  args: {},
  actions: {
    show: { words: "", help: "its fingerprint, and what the server's owner needs to let it in" },
    new: {
      words: "",
      help: "make the first one now, so that the server's owner can let it in before anything connects",
    },
    export: { words: "", help: "both secrets, to be written on paper" },
    import: { words: "", help: "both secrets, typed as they stand on the paper" },
    rotate: { words: "", help: "make a new key; the backups go on as the series that they are" },
  },
  exits: { locked: "a run is under way" },
  run: ({ action }) =>
    ({ show, new: made, export: exported, import: imported, rotate: rotated })[action],
});
