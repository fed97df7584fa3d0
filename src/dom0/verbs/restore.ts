/**
 * The way back into Qubes: qubes of an archive on the server, through qvm-backup-restore.
 *
 * What reaches that tool is what was backed up, block by block; that what it restores is right, its
 * own decryption proves, because scrypt authenticates every member with its place in the archive.
 */
import { Effect } from "effect";
import { type Entry, Ledger } from "#services/Ledger";
import { QvmRestore } from "#services/QvmRestore";
import { Reporter } from "#services/Reporter";
import { humanSize } from "#src/say/format";
import { isName, type Name } from "#src/wire/names";
import { line } from "#src/say/shown";
import { newSession } from "#src/dom0/far/upload";
import { command } from "#src/dom0/cli/command";
import { awaiting } from "#src/dom0/cli/view";
import {
  checkUnpacker,
  extractAll,
  forVerifying,
  passphraseAt,
  unpackedBy,
} from "#src/dom0/tool/decrypt";
import { settingsFor, startDestination, takeLock } from "#src/dom0/qube/destination";
import { type Archive, extract, type Job, judge, listed, logFor } from "#src/dom0/tool/extract";
import { failed } from "#src/dom0/failure";
import { fromLedger, openFar, type Trusted, trustedBy } from "#src/dom0/far/fetch";
import { checkList, directoryName } from "#src/dom0/tool/structure";
import {
  archive,
  compressionFilter,
  keepRunning,
  passphraseFile,
  qubesTimeout,
  to,
} from "#src/dom0/cli/flags";
import { contentOf, fetchRecord } from "#src/dom0/far/remote";
import { goBackTo } from "#src/dom0/books/known";
import { noteFailure } from "#src/dom0/books/noted";
import { inLedger } from "#src/dom0/books/unusable";
import { checkServer } from "#src/dom0/far/server";

export interface RestoreOptions {
  readonly name: string;
  /** Empty: all that are in the archive. */
  readonly qubes: ReadonlyArray<string>;
  readonly to: string | undefined;
  readonly passphraseFile: string | undefined;
  readonly keepRunning: boolean;
  readonly verifyOnly: boolean;
  readonly force: boolean;
  readonly paranoid: boolean;
  readonly exclude: ReadonlyArray<string>;
  readonly skipDom0Home: boolean;
  readonly renameConflicting: boolean;
  readonly skipConflicting: boolean;
  readonly skipBroken: boolean;
  readonly ignoreMissing: boolean;
  readonly ignoreUsernameMismatch: boolean;
  readonly ignoreSizeLimit: boolean;
  readonly compressionFilter: string | undefined;
  /** Minutes in which qvm-backup-restore must read or say something. */
  readonly qubesTimeout: number;
}

const notProven =
  "not proven: that this is what was backed up here under this name, and all of it. What is there is still authenticated by the passphrase, member by member";

/** An archive that the ledger has never heard of, as far as the server's word goes. */
const onTheServersWord = Effect.fnUntraced(function* (destination: string, name: Name) {
  const { say } = yield* Reporter;
  yield* say(
    "warning",
    line`the ledger here has nothing of ${name}, so it is taken on the server's word`,
  );
  const record = yield* fetchRecord(destination, name);
  yield* say("warning", notProven);
  if (record !== undefined) {
    yield* checkServer(destination, record.manifest.server);
    return trustedBy(record.manifest, destination);
  }
  yield* say("info", "it has no manifest: it came without qbackup in dom0");
  const { members, root, session, size } = yield* contentOf(destination, name);
  const trusted: Trusted = {
    name,
    destination,
    session,
    size,
    members,
    root,
    format: "qvm-backup",
  };
  return trusted;
});

interface Choice {
  readonly names: ReadonlyArray<string>;
  readonly directories?: ReadonlySet<string>;
  /** What the tool is told. */
  readonly qubes: ReadonlyArray<string>;
  readonly options: ReadonlyArray<string>;
}

/** What is to come back. A name that is not there is refused: the tool would restore nothing, and exit 0. */
const choose = Effect.fnUntraced(function* (options: RestoreOptions, entry: Entry) {
  const there = entry.qubes.map(({ name }) => name);
  const unknown = [...options.qubes, ...options.exclude].filter((name) => !there.includes(name));
  if (unknown.length > 0) {
    return yield* failed(
      "usage",
      `not in ${entry.name}: ${listed(unknown)}`,
      `it has ${listed(there)}`,
    );
  }
  const all = options.qubes.length === 0;
  const chosen = entry.qubes.filter(
    ({ name, qid }) =>
      (all || options.qubes.includes(name)) &&
      !options.exclude.includes(name) &&
      !(qid === 0 && options.skipDom0Home),
  );
  if (chosen.length === 0)
    return yield* failed(
      "usage",
      "that leaves no qube to restore",
      `${entry.name} has ${listed(there)}`,
    );
  const names = chosen.map(({ name }) => name);
  const whole = chosen.length === entry.qubes.length;
  const choice: Choice = {
    names,
    ...(whole ? {} : { directories: new Set(chosen.map(({ qid }) => directoryName(qid))) }),
    qubes: whole ? [] : names,
    // Naming qubes does not keep the tool from restoring dom0's home.
    options: whole || names.includes("dom0") ? [] : ["--skip-dom0-home"],
  };
  return choice;
});

/** The same without knowing which qubes there are. */
const chooseUnknown = ({ exclude, qubes, skipDom0Home }: RestoreOptions): Choice => ({
  names: qubes.filter((name) => !exclude.includes(name)),
  qubes,
  options: [
    ...exclude.filter((name) => name !== "dom0").map((name) => `--exclude=${name}`),
    ...(skipDom0Home || exclude.includes("dom0") || (qubes.length > 0 && !qubes.includes("dom0"))
      ? ["--skip-dom0-home"]
      : []),
  ],
});

const passedOn = (options: RestoreOptions): ReadonlyArray<string> => [
  ...(options.renameConflicting ? ["--rename-conflicting"] : []),
  ...(options.skipConflicting ? ["--skip-conflicting"] : []),
  ...(options.skipBroken ? ["--skip-broken"] : []),
  ...(options.verifyOnly ? forVerifying : []),
  ...(options.ignoreMissing && !options.verifyOnly ? ["--ignore-missing"] : []),
  ...(options.ignoreUsernameMismatch && !options.verifyOnly ? ["--ignore-username-mismatch"] : []),
  ...(options.ignoreSizeLimit ? ["--ignore-size-limit"] : []),
  ...unpackedBy(options.compressionFilter),
];

/** Where the carrier's program may lie; it is also the program that fetches. */
const carrierPath = "/usr/local/etc/qubes-rpc:/etc/qubes-rpc:$PATH";

/**
 * Hours in which a tool that fetches by itself must have ended: it reads all of the archive twice, and of
 * what it reads nothing is seen here. A day, and what that takes at 2 Mbit/s.
 */
const hoursFor = (size: number): number => 24 + Math.ceil((2 * size) / (256 * 1024) / 3600);

/** Has the tool fetch the archive by itself, from a disposable. */
const paranoid = Effect.fnUntraced(function* (
  { destination, format, members, name, root, size }: Trusted,
  job: Job,
) {
  const { say } = yield* Reporter;
  const command = `env PATH=${carrierPath} qubes.BackupCarrier fetch ${name} ${format} ${size} ${members} ${root}`;
  yield* say("info", line`in ${destination}: ${command}`);
  yield* say("info", "dom0's home, if it is in there, does not come back this way");
  yield* say(
    "warning",
    line`nothing of the archive passes through here: ${destination} checks its blocks and that none is missing, the passphrase each member, and nobody here what ${destination} says`,
  );
  const log = logFor(job.archive);
  const hours = hoursFor(size);
  yield* awaiting(
    line`waiting for qvm-backup-restore, which fetches the archive from ${destination} into a disposable`,
  );
  const running = yield* (yield* QvmRestore)
    .startParanoid({ ...job.plan, see: log.see }, destination, command)
    .pipe(Effect.mapError((error) => failed("qubes", error.message)));
  const ended = yield* running.ended.pipe(
    Effect.timeoutOrElse({
      duration: `${hours} hours`,
      orElse: () =>
        failed(
          "qubes",
          `qvm-backup-restore has not ended within ${hours} hours`,
          "at 2 Mbit/s it would have: see what it does in the disposable, and how fast the carrier's network is",
        ),
    }),
  );
  for (const { level, text } of log.take()) yield* say(level, text);
  return yield* judge(job, ended, log);
}, Effect.scoped);

const badName = failed(
  "usage",
  "that is not the name of an archive",
  "qbackup list shows the names",
);

export const restore = Effect.fnUntraced(function* (asked: RestoreOptions) {
  const { say } = yield* Reporter;
  // The paranoid mode never restores a home: the disposable has no way to put it there.
  const options = { ...asked, skipDom0Home: asked.skipDom0Home || asked.paranoid };
  const { name } = options;
  if (!isName(name)) return yield* badName;
  yield* checkUnpacker(options.compressionFilter);
  const { destination, passphraseFile: file } = yield* settingsFor(options);
  const passphraseFile = yield* passphraseAt(file);
  yield* takeLock;
  const known = yield* fromLedger(name, destination);
  if (known === undefined) {
    const { entries } = yield* inLedger((yield* Ledger).entries);
    const other = entries.findLast((entry) => entry.name === name)?.destination;
    const better =
      other === undefined || other === destination
        ? undefined
        : `it was sent through ${other}: ${goBackTo([other])}`;
    if (!options.force) {
      return yield* failed(
        "usage",
        `the ledger here has nothing of ${name} through ${destination}, so nothing proves what it is`,
        better ??
          "--force takes it on the server's word; the copy of a lost ledger belongs into the state directory",
      );
    }
    if (better !== undefined) {
      yield* say("warning", line`the ledger could prove ${name}, but not through ${destination}`);
      yield* say("hint", line`${better}`);
    }
  }
  // A rebuilt line has ids for names.
  const rebuilt = known?.entry.rebuilt === true;
  const numbers = rebuilt ? known.entry.qubes.map((qube) => qube.name) : [];
  const asNumber = [...options.qubes, ...options.exclude].filter(
    (qube) => qube !== "dom0" && numbers.includes(qube),
  );
  if (asNumber.length > 0) {
    return yield* failed(
      "usage",
      `${listed(asNumber)}: a rebuilt ledger knows the qubes' numbers in the archive, and no names`,
      "give the names that the qubes had, or none to restore all; with --verify-only it lists them",
    );
  }
  const chosen = known === undefined || rebuilt ? undefined : yield* choose(options, known.entry);
  const session = yield* newSession;
  for (const left of yield* (yield* QvmRestore).leftovers) {
    yield* say(
      "warning",
      line`a restore that was killed left data in ${left}, unpacked and not encrypted`,
    );
    yield* say("hint", line`rm -r '${left}' removes it`);
  }
  yield* awaiting(line`waiting for ${destination} to start`);
  yield* startDestination({ destination, session, keepRunning: options.keepRunning });
  yield* awaiting(line`waiting for the server`);

  const trusted = known?.trusted ?? (yield* onTheServersWord(destination, name));
  const qubes = known === undefined || rebuilt ? [] : known.entry.qubes;
  if (rebuilt) yield* say("warning", notProven);
  const choice = chosen ?? chooseUnknown(options);
  const { directories, names } = choice;
  const plan: Job["plan"] = {
    verifyOnly: options.verifyOnly,
    qubes: choice.qubes,
    passphraseFile,
    options: [...passedOn(options), ...choice.options],
  };
  const jobOf = (archive: Archive): Job => ({
    archive,
    plan,
    names,
    maySkip: options.skipConflicting || options.skipBroken,
    timeout: options.qubesTimeout,
    proven: known !== undefined && !rebuilt && !options.paranoid,
    ...(directories === undefined ? {} : { directories }),
  });
  yield* say(
    "info",
    line`${options.verifyOnly ? "verifying" : "restoring"} ${names.length === 0 ? "all qubes" : listed(names)} of ${name} (${humanSize(trusted.size)}) through ${destination}`,
  );
  if (options.renameConflicting && !options.verifyOnly) {
    yield* say(
      "warning",
      "--rename-conflicting: a restored qube whose netvm is here too looks for that under a new name, and comes back without one, unless that is restored too; the command that gives it back is told at the end",
    );
  }
  const fetched = Effect.gen(function* () {
    const far = yield* openFar(destination);
    const list = yield* far.members(trusted);
    const own = known !== undefined && !rebuilt;
    yield* checkList(trusted, list, own ? qubes : undefined);
    const job = jobOf({ trusted, qubes, list });
    // What no run of this dom0's own has walked is walked on its way.
    return yield* own ? extract(job, { far, list }) : extractAll(job, { far, list });
  });
  const restoring = options.paranoid ? paranoid(trusted, jobOf({ trusted, qubes })) : fetched;
  const { came } = yield* restoring.pipe(
    // In the paranoid mode it is the carrier's word.
    Effect.tapError((failure) =>
      known === undefined || options.paranoid
        ? Effect.void
        : noteFailure([known.entry.session], failure),
    ),
  );
  yield* say(
    "info",
    options.verifyOnly
      ? line`${name}: all that was asked for decrypts${known === undefined || rebuilt || options.paranoid ? "" : ", and is what was backed up"}`
      : came.length === 0
        ? line`restored nothing from ${name}`
        : line`restored from ${name}: ${listed(came)}`,
  );
}, Effect.scoped);

export const restoreCommand = command({
  name: "restore",
  summary: "bring qubes back from an archive",
  about: `Brings qubes of the archive NAME back through qvm-backup-restore; without VMS,
all that are in it. Each block is proven against the ledger before a byte of it
is used. A qube that exists is never overwritten.`,
  flags: {
    to,
    passphraseFile,
    keepRunning,
    verifyOnly: { type: "switch", help: "decrypt everything, restore nothing" },
    exclude: { type: "list", value: "VM", help: "not this one; may be repeated" },
    skipDom0Home: { type: "switch", help: "not the home directory of dom0" },
    renameConflicting: {
      type: "switch",
      help: "qubes that exist here come back under other names",
    },
    skipConflicting: {
      type: "switch",
      help: "qubes that exist here are left out; otherwise nothing at all is restored",
    },
    ignoreMissing: {
      type: "switch",
      help: "take the defaults for templates and netvms that are not here",
    },
    skipBroken: {
      type: "switch",
      help: "leave out qubes whose template or netvm is not here",
    },
    ignoreUsernameMismatch: { type: "switch", help: "as in qvm-backup-restore" },
    ignoreSizeLimit: { type: "switch", help: "as in qvm-backup-restore" },
    compressionFilter,
    force: {
      type: "switch",
      help: "an archive that the ledger does not know, on the server's word",
    },
    paranoid: {
      type: "switch",
      help: "extract in a disposable, which fetches the archive by itself: dom0 parses nothing of it, and proves nothing of it; never the home of dom0",
    },
    qubesTimeout: qubesTimeout("qvm-backup-restore"),
  },
  args: { name: archive, qubes: { label: "VMS", least: 0, most: Infinity } },
  exits: {
    qubes: "a qube did not come back whole, or not with all of its settings",
    link: "the link failed",
    refused: "the server refused",
    integrity: "something else came back from the server",
    locked: "another run is under way",
  },
  run: restore,
});
