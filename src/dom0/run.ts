/** The job: one backup, from the first check to the line in the ledger. */
import { Clock, DateTime, Effect, Fiber } from "effect";
import { BytesError } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { Ledger, type Submission } from "#services/Ledger";
import { Notifier } from "#services/Notifier";
import { type Qube, Qubes, type QubesError } from "#services/Qubes";
import { type PassphraseFile, QvmBackup, type Running } from "#services/QvmBackup";
import { Reporter } from "#services/Reporter";
import { FullChunk } from "#src/archive/parameters";
import { leafOf, treeHasher } from "#src/archive/treehash";
import { ArchiveFault, Walk } from "#src/archive/walk";
import { humanSize } from "#src/wire/format";
import { exitCodes } from "#src/wire/exit";
import { blockSize } from "#src/wire/frames";
import { fingerprint } from "#src/wire/keys";
import type { Manifest, Trailer } from "#src/wire/manifest";
import { isName, type Name, printable, type Session } from "#src/wire/names";
import { line } from "#src/wire/shown";
import { command } from "./command.ts";
import { failed, type RunFailed } from "./failure.ts";
import { keepRunning, month, passphraseFile, qubesTimeout, to } from "./flags.ts";
import { closeTo } from "./near.ts";
import { settingsFor, startDestination, takeLock } from "./destination.ts";
import { checkReceipt, complete, inLedger, remark } from "./record.ts";
import { looked, unsound } from "./known.ts";
import { settle } from "./settle.ts";
import { openUpload, type Upload } from "./upload.ts";

export interface RunOptions {
  readonly prefix: string;
  readonly to: string | undefined;
  readonly passphraseFile: string | undefined;
  readonly keepRunning: boolean;
  readonly includeDom0: boolean;
  /** Empty: what qvm-backup includes by default. */
  readonly qubes: ReadonlyArray<string>;
  /** MiB. */
  readonly window: number;
  /** Minutes. */
  readonly linkTimeout: number;
  /** Minutes in which qvm-backup must write or show progress. */
  readonly qubesTimeout: number;
}

/**
 * Bytes that qubesd needs for the chunks that pile up while the target is slow (docs/qubes.md,
 * Temporary files).
 */
const scratchWanted = 1_300_000_000;
const scratchLeast = 256 * 1_048_576;

interface Scratch {
  readonly path: string;
  readonly free: Effect.Effect<number, QubesError>;
}

const two = (n: number): string => String(n).padStart(2, "0");

/** PREFIX, the local time to the minute, `.backup`. */
const archiveName = Effect.fnUntraced(function* (prefix: string) {
  const now = new Date(yield* Clock.currentTimeMillis);
  const date = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
  const name = `${prefix}${date}T${two(now.getHours())}${two(now.getMinutes())}.backup`;
  return isName(name)
    ? name
    : yield* failed(
        "usage",
        "the prefix does not make a name that the server takes",
        "letters, digits and . _ + - only, each part beginning with a letter or digit, parts joined by /",
      );
});

interface Selection {
  /** What a person asked for; empty for the default set. */
  readonly asked: ReadonlyArray<string>;
  readonly includeDom0: boolean;
  /** What must be in the archive. */
  readonly qubes: ReadonlyArray<Qube>;
  /** Their directories in the archive. */
  readonly expected: ReadonlySet<string>;
}

/** Decides, before anything starts, what must come out of qvm-backup. */
const select = Effect.fnUntraced(function* (options: RunOptions, all: ReadonlyArray<Qube>) {
  const asked = [...new Set(options.qubes)];
  const unknown = asked.filter((name) => !all.some((qube) => qube.name === name));
  if (unknown.length > 0) {
    const names = all.map(({ name }) => name);
    const meant = unknown.flatMap((name) => closeTo(name, names) ?? []);
    return yield* failed(
      "usage",
      `no such qube: ${printable(unknown.join(", "), 100)}`,
      `${meant.length === 0 ? "" : `did you mean ${meant.join(", ")}? `}qvm-ls lists the qubes`,
    );
  }
  // An AdminVM has no id of its own in the archive; its home lies in a directory apart.
  const includeDom0 = options.includeDom0 || asked.includes("dom0");
  const named = asked.filter((name) => name !== "dom0");
  if (includeDom0 && asked.length > 0) named.push("dom0");
  const qubes = all.filter((qube) =>
    qube.qid === 0 ? includeDom0 : asked.length > 0 ? named.includes(qube.name) : qube.included,
  );
  if (qubes.length === 0) {
    return yield* failed(
      "usage",
      "no qube is included in backups",
      "name qubes, or set include_in_backups with qvm-prefs",
    );
  }
  const selection: Selection = {
    asked: named,
    includeDom0,
    qubes,
    expected: new Set(qubes.map(({ qid }) => (qid === 0 ? "dom0-home" : `vm${qid}`))),
  };
  return selection;
});

const checkScratch = Effect.gen(function* () {
  const { path, free } = yield* (yield* Qubes).scratch;
  const left = yield* free;
  if (left < scratchLeast) {
    return yield* failed(
      "qubes",
      `only ${humanSize(left)} are free in ${path}, where qubesd puts its temporary files`,
      "free space there: chunks that do not fit would be cut short",
    );
  }
  if (left < scratchWanted) {
    yield* (yield* Reporter).say(
      "warning",
      line`${humanSize(left)} are free in ${path}; with a slow link qubesd may need 1.3 GB there. The run stops if it fills`,
    );
  }
  return { path, free };
});

/** Fails as soon as a chunk might be cut short for lack of room: the stream would not show it. */
const watchScratch = (scratch: Scratch) =>
  Effect.gen(function* () {
    for (;;) {
      yield* Effect.sleep("1 second");
      const left = yield* scratch.free.pipe(Effect.mapError((e) => failed("qubes", e.message)));
      if (left < scratchLeast) {
        return yield* failed(
          "qubes",
          `only ${humanSize(left)} are left in ${scratch.path}: chunks may have been cut short`,
          "free space there and run again",
        );
      }
    }
  });

/** What dom0 itself counted, hashed and checked. */
interface Counted {
  readonly size: number;
  readonly treehash: string;
  readonly members: Manifest["members"];
}

const notWhole = "nothing was stored; see journalctl -u qubesd for what qubesd says, and run again";

/** FIFO to window: counts, hashes, walks. Returns at the end of the archive, judged by nobody yet. */
const pump = Effect.fnUntraced(function* (
  running: Running,
  upload: Upload,
  expected: ReadonlySet<string>,
  state: { reading: boolean },
) {
  const walk = new Walk({ fullChunk: yield* FullChunk, expected });
  const tree = treeHasher();
  for (;;) {
    const buffer = yield* upload.buffer;
    const room = buffer.subarray(4);
    state.reading = true;
    const size = yield* running.archive.read(room, blockSize);
    state.reading = false;
    if (size > 0) {
      const block = room.subarray(0, size);
      const fault = walk.push(block);
      if (fault !== undefined) return fault;
      tree.push(leafOf(block));
      yield* upload.push(buffer, size);
    }
    if (size < blockSize) return { walk, tree };
  }
});

/** Cancels a qvm-backup that does nothing; a full window is no such case, it waits for us then. */
const watchQvmBackup = (running: Running, state: { reading: boolean }, minutes: number) =>
  Effect.gen(function* () {
    let quiet = 0;
    let seen = -1;
    for (;;) {
      yield* Effect.sleep("1 second");
      const now = running.archive.received() + running.progress().shown;
      quiet = now === seen && state.reading ? quiet + 1 : 0;
      seen = now;
      if (quiet >= minutes * 60) {
        return yield* failed(
          "qubes",
          `qvm-backup has neither written nor shown progress for ${minutes} minutes`,
          "see journalctl -u qubesd; a longer limit is set with --qubes-timeout",
        );
      }
    }
  });

const report = (running: Running, upload: Upload) =>
  Effect.gen(function* () {
    const reporter = yield* Reporter;
    for (;;) {
      yield* reporter.progress({
        doing: line`backing up`,
        percent: running.progress().percent,
        bytes: upload.progress().sent,
      });
      yield* Effect.sleep("1 second");
    }
  });

/** Everything between the server's `ready` and the end of qvm-backup. */
const stream = Effect.fnUntraced(function* (
  options: RunOptions,
  selection: Selection,
  passphraseFile: string,
  upload: Upload,
  scratch: Scratch,
) {
  const running = yield* (yield* QvmBackup)
    .start({ qubes: selection.qubes.map(({ name }) => name), passphraseFile })
    .pipe(Effect.mapError((error) => failed("qubes", error.message)));
  const state = { reading: false };
  const reporting = yield* Effect.forkScoped(report(running, upload));
  const pumped = yield* pump(running, upload, selection.expected, state).pipe(
    Effect.catchTag("BytesError", (error: BytesError) =>
      failed("qubes", `the stream of qvm-backup failed: ${String(error.cause)}`),
    ),
    Effect.raceFirst(upload.broken),
    Effect.raceFirst(watchQvmBackup(running, state, options.qubesTimeout)),
    Effect.raceFirst(watchScratch(scratch)),
  );
  if (pumped instanceof ArchiveFault) {
    return yield* failed(
      "integrity",
      `qvm-backup wrote no whole archive: ${pumped.message}`,
      notWhole,
    );
  }
  const ended = yield* running.ended.pipe(
    Effect.timeoutOrElse({
      duration: "1 minute",
      orElse: () => failed("qubes", "qvm-backup closed its output but does not end"),
    }),
  );
  yield* Fiber.interrupt(reporting);
  if (ended.code !== 0) {
    const said = ended.said.at(-1);
    return yield* failed(
      "qubes",
      `qvm-backup failed with exit code ${ended.code}${said === undefined ? "" : `: ${said}`}`,
      "see journalctl -u qubesd for what qubesd says",
    );
  }
  const members = pumped.walk.finish();
  const treehash = pumped.tree.root();
  if (members instanceof ArchiveFault || treehash === undefined) {
    const detail = members instanceof ArchiveFault ? members.message : "there is nothing in it";
    return yield* failed(
      "integrity",
      `qvm-backup said that all is well, but the archive is not whole: ${detail}`,
      notWhole,
    );
  }
  const counted: Counted = { size: pumped.walk.offset, treehash, members };
  return counted;
}, Effect.scoped);

const backup = Effect.fnUntraced(function* (
  options: RunOptions,
  destination: string,
  passphrase: PassphraseFile,
  wanted: Name,
) {
  const reporter = yield* Reporter;
  const ledger = yield* Ledger;
  const qubes = yield* Qubes;
  // Three programs that take their time each, and need nothing of each other.
  const power = yield* Effect.forkScoped(qubes.power(destination));
  const scratched = yield* Effect.forkScoped(checkScratch);
  const all = yield* qubes.list.pipe(Effect.mapError((e) => failed("qubes", e.message)));
  const selection = yield* select(options, all);
  if (!all.some((qube) => qube.name === destination)) {
    const meant = closeTo(
      destination,
      all.map(({ name }) => name),
    );
    return yield* failed(
      "usage",
      `the destination qube does not exist: ${printable(destination)}`,
      `${meant === undefined ? "" : `did you mean ${meant}? `}qvm-ls lists the qubes`,
    );
  }
  const scratch = yield* Fiber.join(scratched).pipe(
    Effect.catchTag("QubesError", (e) => failed("qubes", e.message)),
  );
  const session = Buffer.from((yield* Invocation).entropy(16)).toString("hex") as Session;

  yield* startDestination({
    destination,
    session,
    keepRunning: options.keepRunning,
    power: Fiber.join(power),
  });
  yield* settle(destination);
  const { name, server, counted, stored, submission } = yield* Effect.gen(function* () {
    const upload = yield* openUpload({
      destination,
      name: wanted,
      session,
      window: options.window,
      linkTimeout: options.linkTimeout,
    });
    const { name, server } = upload;
    yield* reporter.say(
      "info",
      line`backing up ${selection.qubes.map((qube) => qube.name).join(", ")} as ${name} through ${destination}`,
    );
    const counted = yield* stream(options, selection, passphrase.path, upload, scratch);
    const manifest = JSON.stringify({
      version: 1,
      name,
      session,
      server,
      size: counted.size,
      treehash: counted.treehash,
      created: DateTime.formatIso(yield* DateTime.now),
      members: counted.members,
    } satisfies typeof Manifest.Encoded);
    const submission: Submission = {
      name,
      session,
      destination,
      server,
      asked: { qubes: selection.asked, includeDom0: selection.includeDom0, prefix: options.prefix },
      qubes: selection.qubes.map((qube) => ({ name: qube.name, qid: qube.qid })),
      manifest,
    };
    // Before the trailer: from then on the server may commit, whatever becomes of this run.
    yield* remark((mark) => ({ ...mark, submission }));
    const trailer = { manifest, signature: null } satisfies typeof Trailer.Type;
    const stored = yield* upload.finish(new TextEncoder().encode(JSON.stringify(trailer)));
    yield* checkReceipt(stored, server, manifest);
    return { name, server, counted, stored, submission };
  }).pipe(Effect.scoped);

  const first = (yield* inLedger(ledger.entries)).entries.length === 0;
  yield* complete(submission, stored);
  yield* reporter.say(
    "info",
    line`stored ${name}: ${humanSize(counted.size)} in ${counted.members.length} members, tree hash ${counted.treehash}, receipt signed by ${fingerprint(server)}`,
  );
  if (first) yield* whatARestoreNeeds(name, destination, passphrase);
  return name;
}, Effect.scoped);

const whatARestoreNeeds = Effect.fnUntraced(function* (
  name: string,
  destination: string,
  passphrase: PassphraseFile,
) {
  const { say } = yield* Reporter;
  const { place } = yield* Ledger;
  yield* say("hint", "this was the first backup. Away from this machine, a restore will need:");
  yield* say(
    "hint",
    line`- the passphrase, ${passphrase.characters} characters, which lies here in ${passphrase.path}: keep it on paper too, and count them there`,
  );
  yield* say(
    "hint",
    line`- the archive ${name} on the server, reached by SSH_CONN of ${destination}`,
  );
  yield* say(
    "hint",
    line`- to prove that it is unchanged: the ledger in ${place}; keep a copy elsewhere`,
  );
});

const see = "See: journalctl -t qbackup";

/** Whoever is not looking has to hear of it, of a wrong setting of a scheduled run too. */
const alarmed = <A, R>(run: Effect.Effect<A, RunFailed, R>) =>
  Effect.flatMap(Notifier, ({ notify }) =>
    run.pipe(
      Effect.tapError(({ exit }) => {
        const [code, meaning] = exitCodes[exit];
        return notify("critical", `Backup failed (exit code ${code})`, `${meaning}. ${see}`);
      }),
      Effect.tapDefect(() => notify("critical", "Backup failed: a bug", see)),
      Effect.onInterrupt(() => notify("critical", "Backup interrupted", see)),
    ),
  );

/** One run, from settings to ledger; what it started is put back on every way out. */
export const run = Effect.fnUntraced(
  function* (options: RunOptions) {
    const reporter = yield* Reporter;
    const notifier = yield* Notifier;
    const qvmBackup = yield* QvmBackup;
    const { destination, passphraseFile } = yield* settingsFor(options);
    const name = yield* archiveName(options.prefix);
    const passphrase = yield* qvmBackup
      .checkPassphrase(passphraseFile)
      .pipe(Effect.mapError((error) => failed("usage", error.message)));
    if (passphrase.unfit !== undefined) {
      return yield* failed(
        "usage",
        `the passphrase in ${passphrase.path} is not fit for a backup: ${passphrase.unfit}`,
        "choose another one; restores take it all the same",
      );
    }
    for (const doubt of [passphrase.warning, ...passphrase.doubts]) {
      if (doubt !== undefined) yield* reporter.say("warning", line`${doubt}`);
    }
    yield* takeLock;
    if (!(yield* looked).sound) yield* reporter.say("hint", unsound.hint!);

    yield* notifier.notify("low", "Backup started", `Through ${destination}`);
    const recovered = yield* qvmBackup.recover.pipe(
      Effect.mapError((error) => failed("qubes", error.message)),
    );
    for (const found of recovered)
      yield* reporter.say("warning", line`after a killed run: ${found}`);
    const stored = yield* backup(options, destination, passphrase, name);
    yield* notifier.notify("normal", "Backup stored and proven", stored);
  },
  Effect.scoped,
  alarmed,
);

export const runCommand = command({
  name: "run",
  summary: "back up qubes; without a command, this is what is done",
  about: `Backs up the qubes VMS; without any, those that qvm-backup includes by default.
"run" itself is needed only for a qube with the same name as a command.`,
  flags: {
    prefix: {
      type: "text",
      short: "f",
      value: "PREFIX",
      help: "before the name, which is the local time: PREFIX2026-01-31T0400.backup. It may contain a directory that the server has: appvms/my-",
    },
    to,
    passphraseFile,
    keepRunning,
    terminal: {
      type: "switch",
      short: "o",
      help: "log to the terminal instead of the journal",
    },
    includeDom0: { type: "switch", help: "back up the home directory of dom0 as well" },
    window: {
      type: "count",
      value: "MIB",
      least: 16,
      most: 4096,
      unit: "MiB",
      default: 64,
      help: "how much may be under way, unacknowledged",
    },
    linkTimeout: {
      type: "count",
      value: "MIN",
      least: 1,
      most: month,
      unit: "minutes",
      default: 30,
      help: "give up after so long without progress on the link",
    },
    qubesTimeout: qubesTimeout("qvm-backup"),
  },
  args: { qubes: { label: "VMS", least: 0, most: Infinity } },
  // A scheduled one has nobody who reads its stderr.
  refused: Effect.flatMap(Notifier, ({ notify }) =>
    notify(
      "critical",
      `Backup failed (exit code ${exitCodes.usage[0]})`,
      `${exitCodes.usage[1]}. See: journalctl -t qbackup`,
    ),
  ),
  exits: {
    qubes: "Qubes failed: qvm-backup, or the destination qube",
    link: "the link failed and could not be resumed",
    refused: "the server refused",
    integrity: "incomplete, or digest, receipt or key differs",
    locked: "another run is under way",
  },
  run: ({ prefix = "", ...options }) => run({ ...options, prefix }),
});
