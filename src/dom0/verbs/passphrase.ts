/** A passphrase to begin with: words drawn at random, which a person can write down and type again. */
import { wordlist } from "@scure/bip39/wordlists/english.js";
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { command } from "#src/dom0/cli/command";
import { print } from "#src/dom0/cli/print";

/** Each is one of 2,048, so that all of them have 77 bits. */
const words = 7;

const made = Effect.gen(function* () {
  const bytes = Buffer.from((yield* Invocation).entropy(2 * words));
  // The numbers of two bytes are a multiple of the words: each is as likely as another.
  const drawn = Array.from(
    { length: words },
    (_, i) => wordlist[bytes.readUInt16BE(2 * i) % wordlist.length]!,
  );
  yield* print(`${drawn.join(" ")}\n`);
  const { say } = yield* Reporter;
  yield* say(
    "hint",
    "write it on paper before you use it, then make it the one line of the passphrase file; archives that there are keep the passphrase that they were made with",
  );
});

export const passphraseCommand = command({
  name: "passphrase",
  summary: "a passphrase that nobody guesses, to write on paper",
  about: `Prints seven words, drawn at random from a list of 2,048 (that of BIP 39, of
which no two begin with the same four letters): 77 bits. Nothing is kept of
them, and no file is written.`,
  flags: {},
  args: {},
  actions: {
    new: { words: "", help: "draw seven words" },
  },
  exits: {},
  run: () => made,
});
