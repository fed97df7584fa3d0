/** Reads an archive back and holds all of it against the ledger; or has the server look at it. */
import { Effect, Result } from "effect";
import { type Entry, Ledger } from "#services/Ledger";
import { Reporter } from "#services/Reporter";
import { humanSize } from "#src/say/format";
import { fingerprint } from "#src/proof/keys";
import type { Manifest } from "#src/proof/texts";
import { isName, type Name } from "#src/wire/names";
import { line, printable } from "#src/say/shown";
import { command } from "#src/dom0/cli/command";
import { checkUnpacker, decryptAll } from "#src/dom0/tool/decrypt";
import { destinationFor, settingsFor, waitForLock } from "#src/dom0/qube/destination";
import { isOfTest } from "#src/dom0/qube/throwaway";
import { failed, type RunFailed, spoiled } from "#src/dom0/failure";
import {
  allOf,
  fromLedger,
  openFar,
  somethingElse,
  type Trusted,
  trustedBy,
} from "#src/dom0/far/fetch";
import type { Supply } from "#src/dom0/tool/extract";
import { checkList, memberWalk } from "#src/dom0/tool/structure";
import {
  archive,
  compressionFilter,
  json,
  keepRunning,
  passphraseFile,
  qubesTimeout,
  to,
  waitFor,
} from "#src/dom0/cli/flags";
import { elsewhere, goBackTo, knownArchives } from "#src/dom0/books/known";
import { cameBack, notBad, note, noteFailure } from "#src/dom0/books/noted";
import { inLedger } from "#src/dom0/books/unusable";
import { checkThere, contentOf, fetchRecord, recordDiffers } from "#src/dom0/far/remote";
import { checkServer } from "#src/dom0/far/server";
import { visit } from "#src/dom0/qube/visit";
import { print } from "#src/dom0/cli/print";

export interface VerifyOptions {
  readonly to: string | undefined;
  readonly keepRunning: boolean;
  readonly json: boolean;
  /** Has the server read it, instead of reading it back. */
  readonly onServer: boolean;
  /** Decrypts it on the way, with the passphrase in this file. */
  readonly decrypt: boolean;
  readonly passphraseFile: string | undefined;
  readonly compressionFilter: string | undefined;
  /** Minutes in which qvm-backup-restore must read or say something. */
  readonly qubesTimeout: number;
  /** Takes the server's receipt for an archive that the ledger does not know. */
  readonly force: boolean;
  /** Takes the newest archive of the ledger whose name begins with `name`. */
  readonly newest: boolean;
  /** As of a run, for `decrypt` alone. */
  readonly waitFor: number | undefined;
  readonly name: string | undefined;
}

/** What an archive is held against, and how much that is worth. */
interface Anchor {
  readonly name: Name;
  readonly manifest: Manifest;
  readonly by: "ledger" | "rebuilt" | "receipt";
  /** Which must be in it; only a record of dom0's own knows. */
  readonly qubes: Entry["qubes"] | undefined;
  /** The ledger's line, where there is one. */
  readonly entry: Entry | undefined;
}

/** The archive that is meant: for a schedule, which cannot know a name, the newest. */
const meant = Effect.fnUntraced(function* (
  { name, newest }: Pick<VerifyOptions, "name" | "newest">,
  destination: string,
) {
  if (!newest) {
    if (name === undefined) {
      return yield* failed(
        "usage",
        "qbackup verify needs NAME, or --newest",
        "qbackup list shows the names",
      );
    }
    if (isName(name)) return name;
    return yield* failed(
      "usage",
      "that is not a name that an archive can have",
      "qbackup list shows the names",
    );
  }
  const { known } = yield* knownArchives(destination);
  const [latest] = [...known.values()]
    .filter(
      ({ audit, entry }) =>
        audit.forgotten === undefined &&
        // One of a self-test is meant only where it is asked for.
        (name === undefined ? !isOfTest(entry) : entry.name.startsWith(name)),
    )
    .sort((a, b) => (a.manifest.created < b.manifest.created ? 1 : -1));
  if (latest !== undefined) return latest.entry.name;
  const others = yield* elsewhere(destination);
  return yield* failed(
    "usage",
    `the ledger knows no archive${name === undefined ? "" : ` whose name begins with ${printable(name, 60)}`} that was sent through ${destination}`,
    known.size === 0 && others.size > 0
      ? goBackTo(others.values())
      : "qbackup list shows the names",
  );
});

const ownAnchor = Effect.fnUntraced(function* (name: Name, destination: string) {
  const known = yield* fromLedger(name, destination);
  if (known === undefined) return undefined;
  const { entry, manifest } = known;
  const rebuilt = entry.rebuilt === true;
  const anchor: Anchor = {
    name,
    manifest,
    by: rebuilt ? "rebuilt" : "ledger",
    qubes: rebuilt ? undefined : entry.qubes,
    entry,
  };
  return anchor;
});

const notKnown = Effect.fnUntraced(function* (name: Name, destination: string) {
  const { damaged, entries } = yield* inLedger((yield* Ledger).entries);
  const other = entries.findLast((entry) => entry.name === name)?.destination;
  return failed(
    "usage",
    `the ledger does not know ${name}, so there is nothing to hold it against`,
    other !== undefined && other !== destination
      ? `it was sent through ${other}: ${goBackTo([other])}`
      : damaged.length > 0
        ? `lines of the ledger cannot be read (${damaged.join(", ")}): bring back its copy, or qbackup ledger rebuild`
        : "qbackup list shows the names; --force takes the server's own receipt instead",
  );
});

/** The server's word in place of a record of our own. */
const theirAnchor = Effect.fnUntraced(function* (name: Name, destination: string) {
  const { say } = yield* Reporter;
  const vouched = yield* fetchRecord(destination, name);
  if (vouched === undefined) {
    yield* contentOf(destination, name);
    return yield* failed(
      "usage",
      `the server has no receipt for ${name} either`,
      "nobody can say what it should be; only a restore shows what it is",
    );
  }
  const { manifest, receipt } = vouched;
  yield* checkServer(destination, manifest.server);
  yield* say(
    "warning",
    line`${name} is held against the server's receipt of ${receipt.stored}, not against a record of our own`,
  );
  const anchor: Anchor = { name, manifest, by: "receipt", qubes: undefined, entry: undefined };
  return anchor;
});

const worth: { readonly [B in Anchor["by"]]: string } = {
  ledger: "it is what dom0 backed up, whole, and it is there",
  rebuilt:
    "it is whole and what the server's receipt says; that this is what dom0 backed up is the server's word: the ledger was rebuilt",
  receipt:
    "it is whole and what the server's receipt says; not proven: that this is what dom0 backed up, and which qubes must be in it",
};

/** Members that are gone on with, once they are not what was backed up. */
const mostSpoiled = 1000;

const badAs = (count: string, { message }: RunFailed, members?: ReadonlyArray<string>) => {
  const said = `${count} members did not come back as they were: ${message}`;
  return members === undefined ? failed("integrity", said) : spoiled(said, members);
};

/** All members, proven, and looked at as they come. Where one is bad, the others are looked for all the same. */
const readBack = Effect.fnUntraced(function* (trusted: Trusted, { far, list }: Supply) {
  const { progress } = yield* Reporter;
  const walk = yield* memberWalk(trusted, list);
  let read = 0;
  const bad = new Set<string>();
  let first: RunFailed | undefined;
  const told = (found: RunFailed) =>
    bad.size === 1 ? found : badAs(`${bad.size}`, found, [...bad]);
  const reading = far.blocks(
    allOf(list),
    (_want, _block, bytes) => {
      read += bytes.length;
      return Effect.andThen(
        // What comes behind a hole is proven block by block, and no list any more.
        first === undefined ? walk.push(bytes) : Effect.void,
        progress({ doing: line`verifying`, bytes: read, total: trusted.size }),
      );
    },
    (_want, _block, failure) => {
      for (const digest of failure.members ?? []) bad.add(digest);
      first ??= failure;
      if (failure.members === undefined) return failure;
      return bad.size > mostSpoiled
        ? badAs(`more than ${mostSpoiled}`, first, [...bad])
        : Effect.void;
    },
  );
  yield* reading.pipe(
    // What broke it off takes nothing back of what was found before.
    Effect.mapError((failure) => {
      if (first?.members === undefined || failure.exit === "integrity") return failure;
      const { members, message } = told(first);
      return spoiled(
        `${message}; what was not read by then is not known: ${failure.message}`,
        members!,
      );
    }),
  );
  return yield* first === undefined ? walk.finish : told(first);
});

const onServer = Effect.fnUntraced(function* ({ manifest, name }: Anchor, destination: string) {
  const missing = failed("integrity", `${name} is not on the server any more`);
  if (!(yield* checkThere(destination, manifest, missing))) return yield* somethingElse(name);
});

export const verify = Effect.fnUntraced(function* (options: VerifyOptions) {
  yield* checkUnpacker(options.compressionFilter);
  const destination = yield* destinationFor(options.to);
  let name = yield* meant(options, destination);
  if (options.decrypt) {
    yield* waitForLock(options.waitFor);
    name = yield* meant(options, destination); // a run may have stored a newer one meanwhile
  }
  const own = yield* ownAnchor(name, destination);
  if (own === undefined && !options.force) {
    return yield* yield* notKnown(name, destination);
  }
  const passphraseFile = options.decrypt ? (yield* settingsFor(options)).passphraseFile : undefined;
  const noted = <A, R>(look: Effect.Effect<A, RunFailed, R>) =>
    Effect.tapError(look, (failure) =>
      own === undefined ? Effect.void : noteFailure([own.manifest.session], failure),
    );
  yield* noted(visit({ destination, keepRunning: options.keepRunning, alone: options.decrypt }));
  const anchor = own ?? (yield* theirAnchor(name, destination));
  const { manifest } = anchor;
  const { members, root, session, size } = manifest;

  const trusted = trustedBy(manifest, destination);
  const fetched = Effect.gen(function* () {
    const far = yield* openFar(destination);
    const list = yield* far.members(trusted);
    yield* checkList(trusted, list, anchor.qubes);
    const supply = { far, list };
    yield* passphraseFile === undefined
      ? readBack(trusted, supply)
      : decryptAll({
          trusted,
          supply,
          qubes: anchor.qubes,
          passphraseFile,
          compressionFilter: options.compressionFilter,
          qubesTimeout: options.qubesTimeout,
        });
    return list.blocks();
  });
  const looked = options.onServer ? Effect.as(onServer(anchor, destination), 0) : fetched;
  // Meanwhile: most of a call is waiting, and this one is over before the first blocks are there.
  const record =
    anchor.entry === undefined ? Effect.undefined : recordDiffers(destination, anchor.entry);
  const [early, blocks] = yield* Effect.all([Effect.result(record), noted(looked)], {
    concurrency: 2,
  });
  if (!options.onServer && own !== undefined) {
    yield* note([session], ({ undecryptable, ...before }, now) =>
      cameBack(notBad(before), {
        whole: now,
        ...(undecryptable === undefined || options.decrypt ? {} : { undecryptable }),
      }),
    );
  }
  // A link that broke just then says nothing about it.
  const differs = Result.isSuccess(early) ? early.success : yield* record;
  if (differs !== undefined) {
    return yield* failed(
      "integrity",
      `the bytes of ${name} are as they were, but not the server's record of it: ${differs}`,
      "it can be restored from here; but were the ledger lost, that record could not replace it",
    );
  }
  const proof = options.onServer ? "server's word" : anchor.by;
  yield* print(
    options.json
      ? `${JSON.stringify({ name, size, root, members, ...(options.onServer ? {} : { blocks }), proof })}\n`
      : [
          options.onServer
            ? `${name}: the server says that it is whole and unchanged`
            : `${name}: verified${options.decrypt ? ", and all of it decrypts" : ""}`,
          `  ${humanSize(size)}, ${members} members${options.onServer ? "" : ` in ${blocks} blocks`}, root ${root}`,
          options.onServer
            ? "  it read the archive itself: this finds decay on its disk, but proves nothing against a server that lies"
            : `  proven: ${worth[anchor.by]}`,
          ...(anchor.by === "receipt"
            ? [`  signed by the server key ${fingerprint(manifest.server)}`]
            : []),
          "",
        ].join("\n"),
  );
}, Effect.scoped);

export const verifyCommand = command({
  name: "verify",
  summary: "read an archive back, and prove that it is whole and unchanged",
  about: `Reads the archive back, proves each block by what the ledger says of the whole,
and checks that it is complete: every qube that was asked for, every member. So
is what the server would need to replace a lost ledger: its record of the
archive. Nothing is stored. A link that breaks is made again.`,
  flags: {
    to,
    passphraseFile,
    keepRunning,
    json,
    onServer: {
      type: "switch",
      help: "the server reads it instead: quick, finds decay on its disk, proves nothing against a server that lies",
    },
    decrypt: {
      type: "switch",
      help: "decrypt it too, with qvm-backup-restore --verify-only and the passphrase of -p FILE",
    },
    compressionFilter: { ...compressionFilter, help: `${compressionFilter.help} (--decrypt)` },
    newest: {
      type: "switch",
      help: "the newest archive that the ledger knows; with NAME, of those that begin with it",
    },
    force: {
      type: "switch",
      help: "for an archive that the ledger does not know: hold it against the server's receipt",
    },
    qubesTimeout: qubesTimeout("qvm-backup-restore"),
    waitFor: { ...waitFor, help: `${waitFor.help} (--decrypt)` },
  },
  either: [["onServer", "decrypt"]],
  args: { name: { ...archive, least: 0 } },
  exits: {
    qubes: "Qubes failed: the destination qube, or qvm-backup-restore (--decrypt)",
    link: "the link failed",
    refused: "the server refused",
    integrity: "something else came back",
    locked: "another run is under way (--decrypt)",
  },
  run: verify,
});
