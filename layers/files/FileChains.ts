/**
 * `chain.HEX`, `chain.HEX.next` and `chain.HEX.journal`: an archive of slots by its members, one that is on
 * its way, and the pack that is. HEX stands for server and series. `passphrases.json`: by what the
 * passphrases are known again.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import { createHash } from "node:crypto";
import { constants } from "node:fs";
import * as fs from "node:fs/promises";
import { Refusal, type StateDirectory } from "#layers/files/StateDirectory";
import { Chains, PassphraseMark, type Which } from "#services/Chains";
import { chainBytes, journalLine, journalText, parseChain, parseJournal } from "#src/archive/chain";
import { printable } from "#src/say/shown";

const { O_APPEND, O_WRONLY } = constants;

/** Of a server and a series, as part of a file's name. */
export const chainName = ({ series, server }: Which): string =>
  createHash("sha256").update(`${server} ${series}`).digest("hex").slice(0, 16);

const decodeMarks = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Array(PassphraseMark)));

export const fileChains = (state: StateDirectory): Layer.Layer<Chains> => {
  const names = (which: Which) => {
    const newest = `chain.${chainName(which)}`;
    return { newest, next: `${newest}.next`, journal: `${newest}.journal` };
  };
  const change = (doing: string, what: () => Promise<unknown>) =>
    Effect.asVoid(state.attempt(doing, what));
  const marks = async (): Promise<ReadonlyArray<PassphraseMark>> => {
    const bytes = await state.read("passphrases.json");
    if (bytes === undefined) return [];
    const known = Option.getOrUndefined(decodeMarks(bytes.toString("utf8")));
    if (known !== undefined) return known;
    throw new Refusal(
      `${printable(state.file("passphrases.json"))} is damaged`,
      "look at it, then remove it; nothing in it is needed for a restore",
    );
  };
  return Layer.succeed(Chains, {
    read: (which) =>
      state.attempt("read what is known of the archives before", async () => {
        const { journal, newest, next } = names(which);
        const [was, will, now] = [
          await state.read(newest),
          await state.read(next),
          await state.read(journal),
        ];
        const links = {
          newest: was && parseChain(was),
          proposed: will && parseChain(will),
          journal: now && parseJournal(now.toString("latin1")),
        };
        return { ...links, damaged: was !== undefined && links.newest === undefined };
      }),
    begin: (which, journal) =>
      change("note what is sent", () =>
        state.replaceText(names(which).journal, journalText(journal)),
      ),
    note: (which, path, cell) =>
      change("note what is sent", () =>
        state.withFile(names(which).journal, O_WRONLY | O_APPEND, async (handle) => {
          await state.writeAll(handle, Buffer.from(journalLine(path, cell)));
          await handle.datasync();
        }),
      ),
    propose: (which, chain) =>
      change("note what the archive is made of", () =>
        state.replaceText(names(which).next, chainBytes(chain)),
      ),
    adopt: (which) =>
      change("note what the archive is made of", async () => {
        const { journal, newest, next } = names(which);
        await state.withDirectory(false, async (dir) => {
          await fs.rename(state.file(next), state.file(newest));
          await dir.sync();
        });
        await state.remove(journal);
      }),
    forget: (which) =>
      change("forget what the archives before are made of", async () => {
        for (const name of Object.values(names(which))) await state.remove(name);
      }),
    passphrases: state.attempt("read by what passphrases are known", marks),
    addPassphrase: (mark) =>
      change("note by what the passphrase is known", async () =>
        state.replaceText("passphrases.json", `${JSON.stringify([...(await marks()), mark])}\n`),
      ),
  });
};
