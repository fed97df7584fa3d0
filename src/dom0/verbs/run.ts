/** The job: one backup, from the first check to the line in the ledger. */
import { Clock, Effect, Exit, Fiber, type Redacted } from "effect";
import { BytesError } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { Ledger, type Submission } from "#services/Ledger";
import { Notifier } from "#services/Notifier";
import { type Qube, Qubes, type QubesError } from "#services/Qubes";
import { type PassphraseFile, QvmBackup, type Running } from "#services/QvmBackup";
import { Reporter } from "#services/Reporter";
import { RunMark, type Unfinished } from "#services/RunMark";
import { headCount } from "#src/archive/compose";
import { FullChunk } from "#src/archive/parameters";
import { ArchiveFault, type Format, Walk } from "#src/archive/walk";
import { humanSize, minutesOf } from "#src/say/format";
import { exitCode, exitCodes, type Failure } from "#src/say/exit";
import { blockSize } from "#src/wire/limits";
import { fingerprint } from "#src/proof/keys";
import { packHasher } from "#src/proof/pack";
import { wishLine } from "#src/proof/recipe";
import { lineOf, rootHasher } from "#src/proof/table";
import { manifestText, parseManifest } from "#src/proof/texts";
import { leafOf } from "#src/proof/treehash";
import {
  instantOf,
  isName,
  type Name,
  type PublicKey,
  type Series,
  type Session,
} from "#src/wire/names";
import { line, printable } from "#src/say/shown";
import { linkTimeout, standardFloor, startTimeout, tellAfterADay } from "#src/dom0/far/retry";
import { command } from "#src/dom0/cli/command";
import { failed, type RunFailed, untapped } from "#src/dom0/failure";
import {
  alarmAfter,
  expectEvery,
  expectServer,
  keepRunning,
  month,
  passphraseFile,
  qubesTimeout,
  to,
  waitFor,
} from "#src/dom0/cli/flags";
import {
  alarmAfterFor,
  saidIn,
  settingOr,
  settingsFor,
  startDestination,
  waitForLock,
} from "#src/dom0/qube/destination";
import { backedUpOf, putBack } from "#src/dom0/qube/lastbackup";
import { closeTo } from "#src/dom0/cli/near";
import {
  checkReceipt,
  complete,
  pendingIn,
  remark,
  withoutSubmission,
} from "#src/dom0/books/record";
import { inLedger, warned } from "#src/dom0/books/unusable";
import {
  checkPassphrase,
  passphraseNumber,
  passphraseOf,
  underAnother,
} from "#src/dom0/tool/passphrase";
import { looked, unsound } from "#src/dom0/books/known";
import { type OpenChain, openChain } from "#src/dom0/tool/chain";
import { takeFiles } from "#src/dom0/tool/slots";
import { alarmUnread } from "#src/dom0/books/noted";
import {
  directoryOf,
  noSuchQube,
  select,
  type Selection,
  withoutSnapshot,
} from "#src/dom0/qube/select";
import { isOfTest } from "#src/dom0/qube/throwaway";
import { isSettled, settle } from "#src/dom0/far/settle";
import { standing } from "#src/dom0/books/standing";
import { checkFingerprint, ownKeys } from "#src/dom0/far/server";
import { type Beginning, newSession, openUpload, type Upload } from "#src/dom0/far/upload";
import { newView, showing, type View } from "#src/dom0/cli/view";

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
  /** Minutes in which a network is waited for that is not there yet. */
  readonly startTimeout: number;
  /** Minutes. */
  readonly linkTimeout: number;
  /** KiB a second that must get through while bytes wait. */
  readonly floor: number;
  /** The fingerprint that the server's key must have; undefined: the pinned one, or the first. */
  readonly expectServer: string | undefined;
  /** Within how long the next archive of these qubes is promised: `36h`. */
  readonly expectEvery: string | undefined;
  /** Minutes in which qvm-backup must write or show progress. */
  readonly qubesTimeout: number;
  /** The program that compresses, instead of gzip. */
  readonly compressFilter: string | undefined;
  /** `slots` or `qvm-backup`; anything else is refused. */
  readonly format: string | undefined;
  /** All is sent once more, whatever could be kept. */
  readonly newChain: boolean;
  /** Qubes whose files are not compressed; none: what the setting says. */
  readonly noCompress: ReadonlyArray<string>;
  /** Hours to wait for another run to end; undefined: half a day where nobody looks on, else none. */
  readonly waitFor: number | undefined;
  /** Days. */
  readonly alarmAfter: number | undefined;
}

/**
 * Bytes that qubesd needs where it puts its temporary files (docs/qubes.md, Temporary files): for chunks that
 * pile up while the target is slow. In slots its chunks are empty, one for each file, beside them `qubes.xml`; and
 * nothing of that is used, so that none of it can be cut short unseen.
 */
const scratchFor = {
  "qvm-backup": { least: 256 * 1_048_576, wanted: 1_300_000_000 },
  slots: { least: 16 * 1_048_576, wanted: 0 },
} as const satisfies Record<Format, unknown>;

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
        "letters, digits and . _ + - only, each part beginning with a letter or digit; at most eight parts, joined by /, of 128 characters each",
      );
});

const checkScratch = Effect.fnUntraced(
  function* (format: Format) {
    const { path, free } = yield* (yield* Qubes).scratch;
    const { least, wanted } = scratchFor[format];
    const left = yield* free;
    if (left < least) {
      return yield* failed(
        "qubes",
        `only ${humanSize(left)} are free in ${path}, where qubesd puts its temporary files`,
        format === "slots"
          ? "free some space there"
          : "free space there: chunks that do not fit would be cut short",
      );
    }
    if (left < wanted) {
      yield* (yield* Reporter).say(
        "warning",
        line`${humanSize(left)} are free in ${path}; with a slow link qubesd may need 1.3 GB there. The run stops if it fills`,
      );
    }
    return { path, free };
  },
  Effect.catchTag("QubesError", (e) => failed("qubes", e.message)),
);

/** Fails as soon as a chunk might be cut short for lack of room: the stream would not show it, or say something else. */
const watchScratch = (scratch: Scratch, format: Format) =>
  Effect.gen(function* () {
    for (;;) {
      yield* Effect.sleep("1 second");
      const left = yield* scratch.free.pipe(Effect.mapError((e) => failed("qubes", e.message)));
      if (left < scratchFor[format].least) {
        const short = format === "slots" ? "" : ": chunks may have been cut short";
        return yield* failed(
          "qubes",
          `only ${humanSize(left)} are left in ${scratch.path}, where qubesd puts its temporary files${short}`,
          "free space there and run again",
        );
      }
    }
  });

const nowInSeconds = Effect.map(Clock.currentTimeMillis, (now) => Math.floor(now / 1000));

/** What dom0 itself counted, hashed and checked: what the manifest says of it, and its recipe. */
interface Sent {
  readonly counted: {
    /** In bytes. */
    readonly size: number;
    readonly members: number;
    readonly root: string;
  };
  /** Lines of wishes. */
  readonly recipe: string;
}

const notWhole = "nothing was stored; see journalctl -u qubesd for what qubesd says, and run again";

/** Every member is as long as this, or a multiple of it: enough to see from its header how long it is. */
const record = 10_240;

/**
 * FIFO to window: cuts the stream into blocks of members, counts, hashes, walks. Returns at the end of
 * the archive, judged by nobody yet.
 */
const pump = Effect.fnUntraced(function* (
  running: Running,
  upload: Upload,
  walk: Walk,
  view: View,
) {
  const pack = packHasher();
  const root = rootHasher();
  const read = Effect.fnUntraced(function* (into: Uint8Array) {
    view.reading = true;
    const size = yield* running.archive.read(into, into.length);
    view.reading = false;
    walk.take(into.subarray(0, size));
    return size;
  });
  for (;;) {
    const buffer = yield* upload.buffer;
    const room = buffer.subarray(4);
    let size = 0;
    // A block is of one member only, and nothing is read of what comes behind it.
    if (walk.end === undefined) size = yield* read(room.subarray(0, record));
    const left = walk.end === undefined ? 0 : walk.end - walk.offset;
    const rest = Math.min(blockSize - size, left);
    const more = rest === 0 ? 0 : yield* read(room.subarray(size, size + rest));
    size += more;
    if (walk.fault !== undefined) return walk.fault;
    if (size > 0) {
      pack.block(leafOf(room.subarray(0, size)));
      if (walk.atMemberEnd) {
        const digest = Buffer.from(pack.endMember()).toString("hex");
        root.push(lineOf({ ...walk.members.at(-1)!, digest }));
      }
      yield* upload.push(buffer, size, pack.running());
    }
    if (size === 0 || more < rest) {
      const counted = { size: walk.offset, members: root.members(), root: root.root() ?? "" };
      const recipe = wishLine({ of: "new", first: 0, count: counted.members });
      return { finish: Effect.succeed<Sent>({ counted, recipe }) };
    }
  }
});

/** Cancels a qvm-backup that does nothing; a full window is no such case, it waits for us then. */
const watchQvmBackup = (running: Running, view: View, minutes: number) =>
  Effect.gen(function* () {
    let quiet = 0;
    let seen = -1;
    for (;;) {
      yield* Effect.sleep("1 second");
      const now = running.archive.received() + running.progress().shown + view.taken;
      quiet = now === seen && view.reading ? quiet + 1 : 0;
      seen = now;
      if (quiet >= minutes * 60) {
        return yield* failed(
          "qubes",
          `qvm-backup has neither written nor shown progress for ${minutesOf(minutes)}`,
          "see journalctl -u qubesd; a longer limit is set with --qubes-timeout",
        );
      }
    }
  });

/**
 * Fails with this, unless a qube is gone that is to be backed up: that is the cause then, whatever
 * qvm-backup says or leaves out (docs/qubes.md, Names and the default set).
 */
const unlessGone = Effect.fnUntraced(function* (selection: Selection, failure: RunFailed) {
  const all = yield* Effect.option((yield* Qubes).list);
  const gone = selection.qubes.filter(
    ({ name, qid }) =>
      all._tag === "Some" && !all.value.some((one) => one.name === name && one.qid === qid),
  );
  if (gone.length === 0) return yield* failure;
  const names = gone.map(({ name }) => name);
  const named = names.some((name) => selection.asked.includes(name));
  return yield* failed(
    "qubes",
    `${names.join(", ")} ${names.length === 1 ? "is" : "are"} gone: removed or renamed while this run was under way, so nothing was stored`,
    named
      ? `run again without ${names.join(", ")}, and take such names out of schedules that have them`
      : "run again: it takes the qubes that there are then",
  );
});

/** What an archive of slots is made with. */
interface Slots {
  readonly chain: OpenChain;
  /** Which of the passphrases that there were. */
  readonly number: number;
  readonly passphrase: Redacted.Redacted<Uint8Array>;
  /** Directories of the qubes whose files are not compressed. */
  readonly stored: ReadonlySet<string>;
}

/** Everything between the server's `ready` and the end of qvm-backup. `slots`: it is to be one of those. */
const stream = Effect.fnUntraced(function* (
  options: RunOptions,
  selection: Selection,
  passphraseFile: string,
  upload: Upload,
  scratch: Scratch,
  view: View,
  slots: Slots | undefined,
) {
  const { brokenPipes } = yield* Qubes;
  const began = yield* nowInSeconds;
  const { compressFilter } = options;
  const qvmBackup = yield* QvmBackup;
  const tapped = slots !== undefined;
  const running = yield* qvmBackup
    .start({
      qubes: selection.qubes.map(({ name }) => name),
      passphraseFile,
      ...(tapped ? { tapped } : { compressFilter }),
    })
    .pipe(Effect.mapError((error) => failed("qubes", error.message)));
  view.running = running;
  view.upload = upload;
  view.waits = undefined;
  const fullChunk = yield* FullChunk;
  const { expected } = selection;
  const walk = new Walk({ fullChunk, expected, listing: tapped });
  const way = Effect.gen(function* () {
    if (slots === undefined) return yield* pump(running, upload, walk, view);
    return yield* takeFiles(
      running,
      upload,
      slots.chain,
      slots.passphrase,
      slots.stored,
      walk,
      view,
    );
  });
  /** Fails with this, unless it is that qvm-backup has begun, and no tap has. */
  const unlessUntapped = (failure: RunFailed) =>
    tapped && view.taken === 0 && (walk.fault !== undefined || walk.members.length >= headCount)
      ? untapped()
      : unlessGone(selection, failure);
  const pumped = yield* way.pipe(
    // A file that did not come whole, where its qube is gone.
    Effect.tapErrorTag("RunFailed", (failure) => unlessGone(selection, failure)),
    Effect.catchTag("ArchiveFault", (fault) => Effect.succeed(fault)),
    Effect.catchTag("BytesError", (error: BytesError) =>
      failed("qubes", `the stream of qvm-backup failed: ${String(error.cause)}`),
    ),
    Effect.raceFirst(upload.broken),
    Effect.raceFirst(watchQvmBackup(running, view, options.qubesTimeout)),
    Effect.raceFirst(watchScratch(scratch, tapped ? "slots" : "qvm-backup")),
  );
  if (pumped instanceof ArchiveFault) {
    return yield* unlessUntapped(
      failed("integrity", `qvm-backup wrote no whole archive: ${pumped.message}`, notWhole),
    );
  }
  view.waits = line`waiting for qvm-backup to end`;
  const ended = yield* running.ended.pipe(
    Effect.timeoutOrElse({
      duration: "1 minute",
      orElse: () => failed("qubes", "qvm-backup closed its output but does not end"),
    }),
  );
  if (ended.code !== 0) {
    const said = ended.said.at(-1);
    return yield* unlessUntapped(
      failed(
        "qubes",
        `qvm-backup failed with exit code ${ended.code}${said === undefined ? "" : `: ${said}`}`,
        "see journalctl -u qubesd for what qubesd says",
      ),
    );
  }
  const walked = walk.finish();
  if (walked instanceof ArchiveFault) {
    return yield* unlessGone(
      selection,
      failed(
        "integrity",
        `qvm-backup said that all is well, but the archive is not whole: ${walked.message}`,
        notWhole,
      ),
    );
  }
  // What scrypt makes of slots is an empty chunk for each file, and none was missing.
  const broken = tapped ? 0 : yield* brokenPipes(Math.min(began, yield* nowInSeconds));
  if (broken === undefined) {
    yield* (yield* Reporter).say(
      "info",
      "qubesd's journal may not be read here: whether a chunk was cut short because its scrypt died, only verify --decrypt can tell",
    );
  } else if (broken > 0) {
    return yield* failed(
      "integrity",
      `qubesd's journal tells of ${broken} broken pipes: a scrypt died, and its chunk is cut short, though qvm-backup said that all is well`,
      "was memory short? journalctl -k shows what the kernel killed; then run again",
    );
  }
  return yield* Effect.raceFirst(pumped.finish, upload.broken);
}, Effect.scoped);

/** How far a run came, for whoever has to be told what its failure means. */
interface Course {
  /** What it is to back up; as it was asked for, until the qubes are `known`. */
  names: ReadonlyArray<string>;
  known: boolean;
  /** `sent`: all of it, so that the server may have stored it, unless it says that it has not. */
  reached: "nothing" | "sent" | "stored";
  /** The archive that is stored, and in the ledger unless a failure says otherwise. */
  stored?: Name;
  /** The next run will find it noted what was sent. */
  marked: boolean;
}

/** What a killed run left with Qubes as the last backup, according to what became of its archive. */
const settleBackedUp = Effect.fnUntraced(function* (left: Unfinished | undefined) {
  for (const { backedUp, submission } of pendingIn(left)) {
    if (backedUp === undefined) continue;
    const { manifest, session } = submission;
    const created = Date.parse(parseManifest(manifest)?.created ?? "") / 1000;
    const { entries } = yield* inLedger((yield* Ledger).entries);
    if (!entries.some((entry) => entry.session === session)) {
      // qubesd had set it just before the manifest was made.
      yield* putBack(backedUp, (now) => now !== undefined && Math.abs(now - created) < 300);
      continue;
    }
    const at = Math.floor(created);
    yield* putBack(
      backedUp.map(({ name }) => ({ name, at })),
      (now) => now === undefined || now < at,
    );
  }
});

/**
 * The names by which a series is told from others. dom0 counts apart, but for a backup of it alone: that
 * is not the one of the default set with dom0.
 */
const namedIn = (asked: ReadonlyArray<string>): ReadonlyArray<string> =>
  asked.length === 1 ? asked : asked.filter((name) => name !== "dom0");

/**
 * What the volumes of each of these qubes can hold, in bytes. Not known for dom0's home, nor where Qubes does
 * not say how large a volume is.
 */
const sizesOf = Effect.fnUntraced(function* (qubes: ReadonlyArray<Qube>) {
  const { capacity } = yield* Qubes;
  return yield* Effect.forEach(
    qubes,
    (qube) =>
      qube.qid === 0 ? Effect.undefined : Effect.orElseSucceed(capacity(qube), () => undefined),
    { concurrency: 4 },
  );
});

/**
 * What an archive of those volumes can have at most, in bytes: to what they hold, tar, the compressor and
 * scrypt add a hundredth and a half where nothing gets smaller.
 */
const mostOf = (sizes: ReadonlyArray<number | undefined>): number | undefined => {
  let most = 64 * 1_048_576;
  for (const size of sizes) {
    if (size === undefined) return undefined;
    most += size + Math.ceil(size / 64) + 1_048_576;
  }
  return most;
};

/** Bytes of the newest archive of this series, if all of it was sent; 0 where there is none. */
const lastSize = Effect.fnUntraced(function* (destination: string, series: Series) {
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const last = entries
    .filter((entry) => entry.destination === destination)
    .map(({ manifest }) => parseManifest(manifest))
    .findLast((manifest) => manifest?.series === series);
  return last?.format === "qvm-backup" ? last.size : 0;
});

/** Where the last archive of the series was made with another passphrase: for what that is still needed. */
const sayOld = Effect.fnUntraced(function* (series: Series, number: number) {
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const before = entries.filter(({ manifest }) => parseManifest(manifest)?.series === series);
  const last = before.findLast(({ passphrase }) => passphrase !== undefined);
  const old = underAnother(before, number);
  if (last === undefined || old.at(-1) !== last) return;
  const names =
    old.length === 1
      ? line`${last.name} still needs`
      : line`${old[0]!.name} to ${last.name}, ${old.length} archives, still need`;
  yield* (yield* Reporter).say(
    "warning",
    line`${names} the old passphrase: keep it for as long as they are kept; qbackup recovery-sheet says it on paper`,
  );
});

/** What an archive of slots is made with; undefined where it is to be qvm-backup's own. */
const slotsFor = Effect.fnUntraced(function* (
  format: Format,
  destination: string,
  series: Series,
  signer: PublicKey,
  { path }: PassphraseFile,
  most: number | undefined,
  newChain: boolean,
  stored: ReadonlySet<string>,
) {
  if (format !== "slots") return undefined;
  const passphrase = yield* passphraseOf(path);
  const number = yield* passphraseNumber(passphrase);
  yield* sayOld(series, number);
  const chain = yield* openChain(destination, series, signer, passphrase, most, newChain);
  const slots: Slots = { chain, number, passphrase, stored };
  return slots;
});

/** The qubes of this backup that are not to be compressed, by the flag or by its setting. */
const mindingOf = Effect.fnUntraced(function* (
  given: ReadonlyArray<string>,
  all: ReadonlyArray<Qube>,
  selected: ReadonlyArray<Qube>,
) {
  const said = (yield* settingOr(given.join(","), noCompressFlag)) ?? "";
  const names = said.split(/[\s,]+/).filter((name) => name !== "");
  const unknown = names.filter((one) => !all.some(({ name }) => name === one));
  if (unknown.length > 0 && given.length > 0) return yield* noSuchQube(unknown, all);
  const { say } = yield* Reporter;
  for (const name of unknown) {
    // A qube that was removed is no reason to back up no other.
    yield* say("warning", line`${noCompressFlag.setting} names a qube that there is not: ${name}`);
  }
  // The setting is for all backups; the flag is for this one.
  const others = names.filter((one) => !selected.some(({ name }) => name === one));
  if (given.length > 0 && others.length > 0) {
    const list = others.join(", ");
    yield* say("warning", line`--no-compress names what this backup does not have: ${list}`);
  }
  return selected.filter(({ name }) => names.includes(name));
});

const noted = "put that right, then bring the receipt here: qbackup ledger rebuild";

const backup = Effect.fnUntraced(function* (
  options: RunOptions,
  format: Format,
  destination: string,
  passphrase: PassphraseFile,
  wanted: Name,
  promised: number | undefined,
  course: Course,
) {
  const reporter = yield* Reporter;
  const ledger = yield* Ledger;
  const qubes = yield* Qubes;
  const view = newView(line`looking at the qubes`);
  const shown = yield* Effect.forkScoped(showing(view));
  // Three programs that take their time each, and need nothing of each other.
  const power = yield* Effect.forkScoped(qubes.power(destination));
  const scratched = yield* Effect.forkScoped(checkScratch(format));
  const all = yield* qubes.list.pipe(Effect.mapError((e) => failed("qubes", e.message)));
  const selection = yield* select(options, all);
  course.known = true;
  course.names = [...selection.qubes, ...selection.unsavable].map(({ name }) => name);
  const minding = yield* mindingOf(options.noCompress, all, selection.qubes);
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
  const scratch = yield* Fiber.join(scratched);
  const sizes = yield* Effect.forkScoped(sizesOf(selection.qubes));
  yield* Effect.forkScoped(
    tellAfterADay(
      line`the backup through ${destination}`,
      () => `${humanSize(view.upload?.progress().acked ?? 0)} are safe on the server`,
    ),
  );
  const session = yield* newSession;
  const invocation = yield* Invocation;

  const left = yield* inLedger((yield* RunMark).read);
  view.waits = line`waiting for ${destination} to start`;
  yield* startDestination({
    destination,
    session,
    keepRunning: options.keepRunning,
    power: Fiber.join(power),
  });
  view.waits = line`waiting for the server`;
  yield* settle(destination, options.startTimeout).pipe(
    // Without an end to it this run stops here, and the next one asks again.
    Effect.tapError((failure) => (isSettled(failure) ? settleBackedUp(left) : Effect.void)),
  );
  yield* settleBackedUp(left);
  const backedUp = backedUpOf(selection.qubes);
  const began = yield* nowInSeconds;
  const asked = {
    qubes: selection.asked,
    includeDom0: selection.includeDom0,
    prefix: options.prefix,
  };
  const made = Effect.fnUntraced(function* (format: Format) {
    const keys = yield* ownKeys;
    const series = keys.seriesOf({ ...asked, qubes: namedIn(selection.asked) });
    const volumes = yield* Fiber.join(sizes);
    const atMost = mostOf(volumes);
    view.volumes = volumes.reduce<number>((sum, size) => sum + (size ?? 0), 0) || undefined;
    const slots = yield* slotsFor(
      format,
      destination,
      series,
      keys.signer,
      passphrase,
      atMost,
      options.newChain,
      new Set(minding.map(directoryOf)),
    );
    if (slots === undefined && minding.length > 0) {
      const names = minding.map(({ name }) => name).join(", ");
      yield* reporter.say("warning", line`qvm-backup compresses ${names} all the same`);
    }
    const alone = (of: Session): Beginning => ({ session: of, base: "-", noted: undefined });
    const upload = yield* openUpload({
      destination,
      keys,
      series,
      least: yield* lastSize(destination, series),
      name: wanted,
      beginning: slots?.chain.beginning ?? (() => Effect.succeed(alone(session))),
      another:
        slots?.chain.another ??
        (() => Effect.provideService(Effect.map(newSession, alone), Invocation, invocation)),
      kept: slots !== undefined,
      most: atMost,
      expectServer: options.expectServer?.toLowerCase(),
      window: options.window,
      startTimeout: options.startTimeout,
      linkTimeout: options.linkTimeout,
      floor: options.floor,
    });
    const { server } = upload;
    yield* slots?.chain.start(upload.ticket(), upload.there) ?? Effect.void;
    yield* reporter.say(
      "info",
      line`backing up ${selection.qubes.map((qube) => qube.name).join(", ")} as ${upload.name()} through ${destination}`,
    );
    const took = yield* Clock.monotonicTimeNanos;
    const { counted, recipe } = yield* stream(
      options,
      selection,
      passphrase.path,
      upload,
      scratch,
      view,
      slots,
    );
    const ticket = upload.settledTicket();
    const { name } = ticket;
    const now = yield* Clock.currentTimeMillis;
    const manifest = manifestText({
      type: "qbackup manifest",
      version: 1,
      name,
      session: ticket.session,
      server,
      signer: keys.signer,
      series: ticket.series,
      run: ticket.run,
      created: instantOf(now),
      ...counted,
      format,
      next: promised === undefined ? null : instantOf(now + promised),
    });
    const signature = keys.sign("manifest", manifest);
    const bytes = {
      read: slots === undefined ? counted.size : view.taken,
      sent: slots === undefined ? counted.size : upload.made(),
      seconds: Number(((yield* Clock.monotonicTimeNanos) - took) / 1_000_000_000n),
    };
    const submission: Submission = {
      name,
      session: ticket.session,
      destination,
      server,
      asked,
      qubes: selection.qubes.map((qube) => ({ name: qube.name, qid: qube.qid })),
      manifest,
      signature,
      bytes,
      ...(slots === undefined ? {} : { passphrase: slots.number }),
    };
    // Before the trailer: from then on the server may commit, whatever becomes of this run. Not to
    // send it would lose the whole upload for a note that is only needed if this run is killed.
    course.marked = yield* remark((mark) => ({ ...mark, submission, ticket, backedUp })).pipe(
      Effect.as(true),
      Effect.catch((error) =>
        Effect.as(reporter.say("warning", line`${error.message}; the backup goes on`), false),
      ),
    );
    view.waits = line`waiting for the server's receipt`;
    course.reached = "sent";
    const ofTest = isOfTest(submission);
    // From the receipt to its line in the ledger nothing comes between, an interrupt neither.
    const first = yield* Effect.uninterruptibleMask((restore) =>
      Effect.gen(function* () {
        const stored = yield* restore(
          upload.finish({
            manifest,
            signature: Buffer.from(signature, "base64url"),
            recipe,
          }),
        ).pipe(
          // The server may not have what it was made on, or otherwise: no later one can be made on that.
          Effect.tapErrorTag("RunFailed", ({ content }) =>
            content === undefined || slots === undefined
              ? Effect.void
              : slots.chain.refused(content),
          ),
        );
        yield* checkReceipt(stored, server, manifest);
        course.reached = "stored";
        course.stored = name;
        // Where that cannot be read, `complete` says so, and what it means now.
        const none = yield* ledger.entries.pipe(
          Effect.map(({ entries }) => !ofTest && entries.every(isOfTest)),
          Effect.orElseSucceed(() => false),
        );
        yield* complete(submission, stored, course.marked ? undefined : noted);
        yield* slots?.chain.adopt ?? Effect.void;
        return none;
      }),
    );
    const cost =
      slots === undefined
        ? line``
        : line`, of which ${humanSize(bytes.sent)} had to be sent; ${humanSize(bytes.read)} were read`;
    return { name, server, counted, cost, first };
  });
  const oneOf = (format: Format) =>
    made(format).pipe(
      Effect.scoped,
      Effect.onExit((exit) =>
        Exit.isSuccess(exit) || course.reached === "stored"
          ? Effect.void
          : putBack(backedUp, (now) => now !== undefined && now >= began - 1),
      ),
      // The next run has nothing to ask about it.
      Effect.tapErrorTag("RunFailed", ({ about }) => {
        if (about !== "refusal" || course.reached !== "sent") return Effect.void;
        course.reached = "nothing";
        return remark(withoutSubmission).pipe(Effect.catch(warned));
      }),
    );
  const { name, server, counted, cost, first } = yield* oneOf(format).pipe(
    Effect.catchTag("RunFailed", (failure) =>
      failure.about === "tap"
        ? Effect.andThen(
            reporter.say(
              "warning",
              line`${failure.message}; so qvm-backup makes this archive, and all of it is sent`,
            ),
            // Which needs more room.
            Effect.andThen(checkScratch("qvm-backup"), oneOf("qvm-backup")),
          )
        : Effect.fail(failure),
    ),
  );
  yield* Fiber.interrupt(shown);

  yield* reporter.say(
    "info",
    line`stored ${name}: ${humanSize(counted.size)} in ${counted.members} members${cost}, root ${counted.root}, receipt signed by the key with the fingerprint ${fingerprint(server)}`,
  );
  if (first) yield* whatARestoreNeeds(name, destination, passphrase);
  if (selection.unsavable.length > 0) {
    const { hint, names } = withoutSnapshot(selection.unsavable);
    return yield* failed(
      "qubes",
      `${name} is stored and proven, but without ${names}: qvm-backup cannot save it while it runs`,
      hint,
    );
  }
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

/** What it means for the backups that exist, in a sentence; empty where it means nothing. */
const meaningOf = Effect.fnUntraced(function* (course: Course, exit: Failure | "interrupted") {
  if (exit === "locked") return line``;
  const unsure = course.reached === "sent";
  const what =
    course.reached === "stored"
      ? exit === "interrupted"
        ? [`${course.stored} is stored and proven all the same`]
        : []
      : [
          !unsure
            ? "nothing was stored"
            : course.marked
              ? "it may be stored, which the next run asks the server"
              : "it may be stored: qbackup list shows it then, and qbackup ledger rebuild fetches its receipt",
        ];
  const before = course.reached === "stored" ? "" : yield* standing(course.names, course.known);
  return line`${[...what, ...(before === "" ? [] : [before])].join("; ")}`;
});

/** Whoever is not looking has to hear of it, of a wrong setting of a scheduled run too. */
const alarmed = Effect.fnUntraced(function* <A, R>(
  run: Effect.Effect<A, RunFailed, R>,
  course: Course,
) {
  const { notify } = yield* Notifier;
  const { say } = yield* Reporter;
  const tell = Effect.fnUntraced(function* (summary: string, exit: Failure | "interrupted") {
    const means = yield* meaningOf(course, exit);
    const meaning = exit === "interrupted" ? [] : [`${exitCodes[exit][1]}. `];
    const body = `${meaning.join("")}${means === "" ? "" : `${means}. `}${see}`;
    // Whoever mistyped a word sees it at once; a timer's wrong setting is told by the notification.
    if (means !== "" && (course.known || exit !== "usage")) yield* say("warning", means);
    yield* notify("critical", summary, body[0]!.toUpperCase() + body.slice(1));
  });
  return yield* run.pipe(
    Effect.tapError(({ exit }) => {
      const done =
        course.reached === "stored" ? "Backup stored, but not all is well" : "Backup failed";
      return tell(`${done} (exit code ${exitCode(exit)})`, exit);
    }),
    Effect.tapDefect(() => tell("Backup failed: a bug", "bug")),
    Effect.onInterrupt(() => tell("Backup interrupted", "interrupted")),
  );
});

/** One run, from settings to ledger; what it started is put back on every way out. */
export const run = (options: RunOptions) => {
  const course: Course = { names: options.qubes, known: false, reached: "nothing", marked: false };
  return alarmed(Effect.scoped(theRun(options, course)), course);
};

const theRun = Effect.fnUntraced(function* (options: RunOptions, course: Course) {
  const reporter = yield* Reporter;
  const { destination, passphraseFile } = yield* settingsFor(options);
  const alarm = alarmUnread(destination, yield* alarmAfterFor(options.alarmAfter));
  yield* archiveName(options.prefix); // a wrong prefix is known before anything is waited for
  const promised = yield* promiseOf(options.expectEvery);
  yield* checkFingerprint(options.expectServer);
  const passphrase = yield* checkPassphrase(passphraseFile);
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
  if (options.compressFilter !== undefined) yield* checkFilter(options.compressFilter);
  const format = yield* formatOf(options);
  yield* waitForLock(options.waitFor);
  yield* alarm(alone(options, format, destination, passphrase, promised, course));
});

/** What only one run at a time may do. */
const alone = Effect.fnUntraced(function* (
  options: RunOptions,
  format: Format,
  destination: string,
  passphrase: PassphraseFile,
  promised: number | undefined,
  course: Course,
) {
  const reporter = yield* Reporter;
  const notifier = yield* Notifier;
  if (!(yield* looked).sound) yield* reporter.say("hint", unsound.hint!);
  yield* inLedger((yield* RunMark).reserve);

  yield* notifier.notify("low", "Backup started", `Through ${destination}`);
  const recovered = yield* (yield* QvmBackup).recover.pipe(
    Effect.mapError((error) => failed("qubes", error.message)),
  );
  for (const found of recovered) yield* reporter.say("warning", line`after a killed run: ${found}`);
  const name = yield* archiveName(options.prefix);
  const stored = yield* backup(options, format, destination, passphrase, name, promised, course);
  yield* notifier.notify("normal", "Backup stored and proven", stored);
});

const hours = { h: 1, d: 24, w: 168 } as const;

/** Milliseconds until the next archive is promised. */
const promiseOf = Effect.fnUntraced(function* (given: string | undefined) {
  const text = yield* settingOr(given, expectEvery);
  if (text === undefined) return undefined;
  const [, count = "", unit = ""] = /^([1-9][0-9]{0,3})([hdw])$/.exec(text) ?? [];
  if (unit === "") {
    return yield* failed(
      "usage",
      `${saidIn(given, "expectEvery", expectEvery)} takes hours, days or weeks, not ${printable(text, 40)}`,
      "36h for a backup each night, 8d for one a week",
    );
  }
  return Number(count) * hours[unit as keyof typeof hours] * 3_600_000;
});

/** What Qubes' restore knows, if it is installed; of others it has to be told with -Z (docs/qubes.md, Restoring). */
const checkFilter = Effect.fnUntraced(function* (program: string) {
  if (!/^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$/.test(program)) {
    return yield* failed(
      "usage",
      "--compress-filter must name a program, without a path or options",
      "zstd, say, where it is installed",
    );
  }
  if (yield* (yield* QvmBackup).compresses(program)) return;
  return yield* failed(
    "usage",
    `${program} is not there, or does not give back with -d what it compressed`,
    "zstd, pigz, gzip, bzip2 and xz do, where they are installed",
  );
});

const formatFlag = {
  type: "text",
  value: "FORMAT",
  help: "slots, the default, sends what changed; qvm-backup all",
  setting: "QBKP_FORMAT",
} as const;

const noCompressFlag = {
  type: "list",
  value: "QUBES",
  help: "slots: qubes not to compress",
  setting: "QBKP_NO_COMPRESS",
} as const;

/** What was asked for; a filter that is named asks for qvm-backup's own, where nothing else is on the line. */
const formatOf = Effect.fnUntraced(function* ({
  compressFilter,
  format: given,
  newChain,
  noCompress,
}: RunOptions) {
  const asked = given ?? (compressFilter === undefined ? undefined : "qvm-backup");
  const format = (yield* settingOr(asked, formatFlag)) ?? "slots";
  if (format !== "qvm-backup" && format !== "slots") {
    return yield* failed(
      "usage",
      `${saidIn(given, "format", formatFlag)} knows slots and qvm-backup, not ${printable(format, 40)}`,
      "leave it out, and it is slots",
    );
  }
  if (format === "slots" && compressFilter !== undefined) {
    return yield* failed(
      "usage",
      "--compress-filter is for the format qvm-backup alone",
      "leave it out, or give --format qvm-backup",
    );
  }
  if (format === "qvm-backup" && noCompress.length > 0) {
    return yield* failed(
      "usage",
      "--no-compress is for the format slots alone",
      "leave it out, or give --format slots",
    );
  }
  if (format === "qvm-backup" && newChain) {
    return yield* failed(
      "usage",
      "--new-chain is for the format slots alone",
      "leave it out: an archive of the format qvm-backup has everything in any case",
    );
  }
  return format;
});

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
      help: "before the local time; may have a directory of the server: appvms/my-2026-01-31T0400.backup",
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
    startTimeout: {
      type: "count",
      value: "MIN",
      least: 0,
      most: month,
      unit: "minutes",
      default: startTimeout,
      help: "how long to wait for a network to come, or a busy server",
    },
    linkTimeout: {
      type: "count",
      value: "MIN",
      least: 1,
      most: month,
      unit: "minutes",
      default: linkTimeout,
      help: "give up after so long without progress on the link",
    },
    floor: {
      type: "count",
      value: "KIB",
      least: 1,
      most: 1_048_576,
      unit: "KiB per second",
      default: standardFloor,
      help: "give up where less gets through for an hour",
    },
    expectServer,
    expectEvery,
    qubesTimeout: qubesTimeout("qvm-backup"),
    compressFilter: {
      type: "text",
      value: "TOOL",
      help: "for qvm-backup, instead of gzip: zstd, say",
    },
    format: formatFlag,
    newChain: {
      type: "switch",
      help: "for slots: send all once more",
    },
    noCompress: noCompressFlag,
    alarmAfter,
    waitFor,
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
    qubes:
      "Qubes failed: qvm-backup, or the destination qube; or a running qube could not be saved, and the others are stored",
    link: "the link failed and could not be resumed",
    refused: "the server refused",
    integrity: "incomplete, or digest, receipt or key differs",
    locked: "another run is under way",
  },
  run: ({ prefix = "", ...options }) => run({ ...options, prefix }),
});
