/**
 * An archive, fed into qvm-backup-restore pass by pass, and judged by what that made of it. Each block
 * is proven before a byte of it is used; each pass gets only the members that it reads, because
 * qvm-backup-restore would read the whole archive for its first kilobytes.
 */
import { Deferred, Effect } from "effect";
import type { Sink } from "#services/Bytes";
import type { Qrexec } from "#services/Qrexec";
import { type Ended, QvmRestore, type RestorePlan } from "#services/QvmRestore";
import { Reporter } from "#services/Reporter";
import { minutesOf } from "#src/say/format";
import type { Members } from "#src/proof/members";
import { line, printable } from "#src/say/shown";
import { failed, type RunFailed, undecryptable } from "#src/dom0/failure";
import { type Far, type Trusted, wantOf } from "#src/dom0/far/fetch";
import { type RestoreLog, restoreLog } from "./restorelog.ts";
import { directoryName } from "./structure.ts";

export interface Archive {
  readonly trusted: Trusted;
  /** The qubes behind the ids in the members' paths, as far as they are known. */
  readonly qubes: ReadonlyArray<{ readonly name: string; readonly qid: number }>;
  /** Its members; nobody here knows them where another place reads it. */
  readonly list?: Members;
}

export interface Job {
  readonly archive: Archive;
  readonly plan: Omit<RestorePlan, "see">;
  /** The directories that the last pass needs; all, if it is not said. */
  readonly directories?: ReadonlySet<string>;
  /** The qubes that must come back; none where it is all, and nobody here knows their names. */
  readonly names: ReadonlyArray<string>;
  /** The tool was told to leave out what does not fit. */
  readonly maySkip: boolean;
  /** False where its blocks are not held against dom0's own record: it may have come to harm since. */
  readonly proven?: boolean;
  /** Minutes in which the tool must take a byte or say something. */
  readonly timeout: number;
}

/** Where the bytes come from. */
export interface Supply {
  readonly far: Far;
  readonly list: Members;
  /** Sees each block once, in order, those of members that are not needed left out. */
  readonly onBlock?: (bytes: Uint8Array) => Effect.Effect<void, RunFailed>;
}

/** The header pair, and qubes.xml: what stands in front of the data. */
const heads = 3;
/** Seconds that the tool may need for each member after it has taken the last byte: scrypt is slow. */
const perMember = 30;

export const directoryOf = ({ path }: { readonly path: string }): string =>
  path.slice(0, Math.max(0, path.indexOf("/")));

/** The members of these directories, by their places in the list. */
const dataOf = (list: Members, directories: Job["directories"]): ReadonlyArray<number> => {
  const found: Array<number> = [];
  for (let i = heads; i < list.count; i++) {
    if (directories?.has(directoryOf(list.at(i))) ?? true) found.push(i);
  }
  return found;
};

const wantsOf = function* (list: Members, places: Iterable<number>) {
  for (const place of places) yield { ...wantOf(list.at(place)), place };
};

/** The heads, which two passes read: fetched once, and kept. */
const fetchHeads = Effect.fnUntraced(function* ({ far, list, onBlock }: Supply) {
  const kept: Array<Array<Uint8Array>> = Array.from({ length: heads }, () => []);
  yield* far.blocks(wantsOf(list, kept.keys()), ({ place }, _, bytes) =>
    Effect.suspend(() => {
      kept[place]!.push(Uint8Array.from(bytes));
      return onBlock?.(bytes) ?? Effect.void;
    }),
  );
  return kept;
});

/** Gives each block of a pass to `use`, with the place of its member; `last` where that ends with it. */
type Blocks = (
  use: (place: number, bytes: Uint8Array, last?: boolean) => Effect.Effect<void>,
) => Effect.Effect<void, RunFailed, Qrexec | Reporter>;

/** Returns when all was taken, or when the reader would take no more. */
const feed = Effect.fnUntraced(function* (
  blocks: Blocks,
  sink: Sink,
  see: {
    readonly giving: () => void;
    /** `whole`: the member that ended with it. */
    readonly given: (bytes: number, whole: number | undefined) => void;
  },
) {
  const stopped = Deferred.makeUnsafe<void>();
  const all = blocks((place, bytes, last) =>
    Effect.sync(see.giving).pipe(
      Effect.andThen(sink.write(bytes)),
      Effect.catch(() => Effect.andThen(Deferred.succeed(stopped, undefined), Effect.never)),
      Effect.andThen(Effect.sync(() => see.given(bytes.length, last === true ? place : undefined))),
    ),
  );
  yield* Effect.raceFirst(all, Deferred.await(stopped));
});

/** Counts its own steps instead of reading a clock: a suspended machine has not been stalled. */
const watch = (signs: () => number, seconds: () => number) =>
  Effect.gen(function* () {
    let quiet = 0;
    let seen = -1;
    for (;;) {
      yield* Effect.sleep("1 second");
      const now = signs();
      quiet = now === seen ? quiet + 1 : 0;
      seen = now;
      if (quiet >= seconds()) {
        return yield* failed(
          "qubes",
          `qvm-backup-restore has neither read nor said anything for ${minutesOf(Math.ceil(seconds() / 60))}`,
          "it waits while less than 500 MiB are free in ~/QubesIncoming; a longer limit is set with --qubes-timeout",
        );
      }
    }
  });

/** Says what the tool says, as far as it matters, and how far it is. */
const tell = Effect.fnUntraced(function* (log: RestoreLog) {
  const reporter = yield* Reporter;
  for (const { level, text } of log.take()) yield* reporter.say(level, text);
});

/** The qube behind a directory of the archive. */
const nameOf = ({ qubes }: Archive) => {
  const names = new Map(qubes.map(({ name, qid }) => [directoryName(qid), name]));
  return (id: string): string => names.get(id) ?? id;
};
export const logFor = (archive: Archive): RestoreLog => restoreLog(nameOf(archive));

const again = "remove what was restored of these qubes, and restore them again";

/** What to do about what it said; of several, the first one that fits. */
const advice: ReadonlyArray<readonly [said: RegExp, then: string]> = [
  [
    /password correct|Corrupted backup header/,
    "is the passphrase in the file the one that this backup was made with?",
  ],
  [
    /conflicting names/,
    "a qube that exists is never overwritten: --rename-conflicting, --skip-conflicting, or remove it first",
  ],
  [
    /--skip-broken|--ignore-missing|[Mm]issing/,
    "--ignore-missing takes the defaults for templates and netvms that are not there, --skip-broken leaves such qubes out",
  ],
  [
    /--ignore-username-mismatch/,
    "--skip-dom0-home leaves dom0's home out, --ignore-username-mismatch restores it all the same",
  ],
  [
    /Too little space|No space left/,
    "qvm-backup-restore needs 1 GiB in ~/QubesIncoming, and the qubes need room in their pool",
  ],
  [
    /No matching (?:template|netvm)/,
    "--ignore-missing takes the default template and netvm, which must be set for that",
  ],
  [
    /KeyError: '/,
    `a device in the backup is attached from a qube that is not here: make one of that name, ${again}`,
  ],
  [
    /Unusual compression filter/,
    "give -Z with that program: it was backed up with --compress-filter, and Qubes does not know it",
  ],
  [/Cannot exec:/, "--compression-filter must name a program that is here"],
];
const adviceFor = (text: string): string | undefined =>
  advice.find(([said]) => said.test(text))?.[1];

/** What scrypt said of a member, as Python shows its bytes; nothing where it was killed. */
const refusedMember = /failed to decrypt (\S+): b(['"])(.+?)\2/g;
/** Words of scrypt, or of the kernel, that are about this machine and not about the member. */
const shortage = /memory|CPU time|No space|Cannot allocate/i;
/** The header was not taken either: another passphrase, which says nothing of the archive. */
const wrongPassphrase = /password correct|Corrupted backup header/;

/**
 * What it says of members that do not decrypt although the header did. Where each block was proven,
 * they were made so: qubesd does not look at scrypt's exit code (docs/qubes.md, Exit code).
 */
const membersRefused = (text: string): ReadonlyArray<string> =>
  wrongPassphrase.test(text)
    ? []
    : [...text.matchAll(refusedMember)]
        .filter(([, , , said]) => !shortage.test(said!))
        .map(([said]) => said);

/** What it logs while all is well. */
const ordinary = /^(?:qubesadmin\.backup|app): /;

const some = 12;
/** Of one in a message: two names of 64, at most, and what stands between them. */
const longest = 160;
/** Names in a message: not all of hundreds. */
export const listed = (names: Iterable<string>, between = ", "): string => {
  const all = [...names].map((name) => printable(name, longest));
  const more = all.length - some;
  return more > 0 ? `${all.slice(0, some).join(between)} and ${more} more` : all.join(between);
};

/**
 * The qubes of an archive whose data did not come through when the tool gave up at one of these
 * members: everything from there on, and the file before it, whose import is broken off then.
 */
const brokenOffFrom = (
  { archive, directories, names }: Pick<Job, "archive" | "directories" | "names">,
  paths: ReadonlyArray<string>,
): ReadonlyArray<string> => {
  const { list } = archive;
  if (list === undefined) return names;
  const data = dataOf(list, directories);
  const at = data.findIndex((place) => {
    const { path } = list.at(place);
    return paths.includes(path) || paths.includes(path.slice(0, -4));
  });
  if (at < 0) return names;
  const name = nameOf(archive);
  return [
    ...new Set(data.slice(Math.max(0, at - 1)).map((place) => name(directoryOf(list.at(place))))),
  ];
};

/** Names of qubes as the archive has them, and as they are called here. */
const calledIn = ({ renamed }: RestoreLog) => {
  const originals = new Map([...renamed].map(([name, as]) => [as, name]));
  return (some: Iterable<string>): string =>
    listed(
      new Set(
        [...some].map((name) => {
          const original = originals.get(name) ?? name;
          const as = renamed.get(original);
          return as === undefined ? original : `${original} (here: ${as})`;
        }),
      ),
    );
};

/**
 * Where a restored qube was to get a netvm, or a template of disposables, by the name that only a
 * renamed one would have: what sets the one that is here. Undefined where the tool said nothing of the
 * kind. Of the qube it gives the name in the archive, which here is that of another one.
 */
const givingBack = ({ remarks, renamed }: RestoreLog): string | undefined => {
  const originals = new Map([...renamed].map(([name, as]) => [as, name]));
  const commands = remarks.flatMap((remark) => {
    const [, name, setting, value] =
      /^Error setting (\S+?)\.(netvm|default_dispvm) to (\S+): /.exec(remark) ?? [];
    if (name === undefined || value === undefined) return [];
    const here = renamed.get(name) ?? name;
    return [`qvm-prefs ${here} ${setting} ${originals.get(value) ?? value.replace(/-\d+$/, "")}`];
  });
  return commands.length === 0
    ? undefined
    : `nothing needs to be restored again; set it by hand: ${listed(commands, "; ")}`;
};

/** What came of the qubes that were asked for, by their names in the archive. */
export interface Outcome {
  readonly came: ReadonlyArray<string>;
  readonly left: ReadonlyArray<string>;
}

/**
 * Fails for whatever is not as it must be, with the qubes that it concerns. Where nobody here knows which
 * qubes there are, what the tool has begun and what it says that it leaves out are all.
 */
export const judge = Effect.fnUntraced(function* (
  job: Pick<Job, "archive" | "directories" | "names" | "maySkip" | "plan" | "proven">,
  ended: Ended,
  log: RestoreLog,
) {
  const { maySkip, names, plan } = job;
  const { say } = yield* Reporter;
  const called = calledIn(log);
  const done = plan.verifyOnly ? "verified" : "restored whole";
  const text = [...log.faults, ...ended.said].join("\n");
  const asked = names.length > 0 ? names : [...new Set([...log.begun, ...log.leftOut.keys()])];
  const left = asked.filter((name) => !log.begun.has(name));
  const why = [...new Set(left.flatMap((name) => log.leftOut.get(name) ?? []))].join("; ");
  const leftOut = `qvm-backup-restore left it out${why === "" ? "" : `: ${why}`}`;
  const idle = log.idle();
  const gone = log.brokenOff();
  const lost = called([...log.failed, ...(gone === undefined ? [] : brokenOffFrom(job, gone))]);
  const [undecrypted] = membersRefused(text);
  if (undecrypted !== undefined) {
    return yield* undecryptable(
      `not ${done}: ${lost === "" ? "what was asked for" : lost}; a member of ${job.archive.trusted.name} does not decrypt, although the header did: ${undecrypted}`,
      job.proven === false
        ? "it was damaged on the way, on the server, or when it was made: try another archive"
        : "back up again now: each block came back as it was stored, so this was broken when it was made",
    );
  }
  if (ended.code !== 0 && !(idle && left.length > 0)) {
    const who = called(log.failed);
    const said = log.cause() ?? ended.said.findLast((line) => !ordinary.test(line));
    // It makes all of them first, and empty.
    const begun = !plan.verifyOnly && log.begun.size > 0;
    const unpacked = ["what it unpacked may still lie in ~/QubesIncoming"];
    const otherwise = [...(begun ? [again] : []), ...(ended.code > 128 ? unpacked : [])];
    return yield* failed(
      "qubes",
      `qvm-backup-restore failed with exit code ${ended.code}${who === "" ? "" : ` at ${who}`}${said === undefined ? "" : `: ${said}`}${begun ? `; not ${done}: ${called(log.begun)}` : ""}`,
      adviceFor(text) ?? (otherwise.length === 0 ? undefined : otherwise.join("; ")),
    );
  }
  if (log.faults.length > 0) {
    return yield* failed(
      "qubes",
      `not ${done}: ${lost !== "" ? lost : names.length === 0 ? "nobody knows which qubes" : `nobody knows which of ${called(names)}`}; qvm-backup-restore said: ${log.cause()!}`,
      adviceFor(text) ?? again,
    );
  }
  if (left.length > 0 && !maySkip) {
    return yield* failed("qubes", `not ${done}: ${listed(left)}; ${leftOut}`, adviceFor(why));
  }
  if (!log.done() && !idle) {
    return yield* failed("qubes", "qvm-backup-restore exited 0, but did not say that it was done");
  }
  if (left.length > 0) yield* say("warning", line`left out, as asked for: ${listed(left)}`);
  if (log.altered.size > 0) {
    return yield* failed(
      "qubes",
      `restored with its data, but not all of its settings: ${called(log.altered)}; qvm-backup-restore said: ${log.remarks[0]!}`,
      givingBack(log) ??
        "nothing needs to be restored again: set what the warnings above name by hand",
    );
  }
  const outcome: Outcome = { came: asked.filter((name) => log.begun.has(name)), left };
  return outcome;
});

/**
 * Runs qvm-backup-restore over the archive. Succeeds when all that was asked for came through, but for
 * what it was told to leave out. The list was looked at before.
 */
export const extract = Effect.fnUntraced(function* (job: Job, supply: Supply) {
  const { archive, directories, maySkip, plan, timeout } = job;
  const { far, list, onBlock } = supply;
  const reporter = yield* Reporter;
  // First of all: nothing is started for an archive that cannot be fetched.
  const kept = yield* fetchHeads(supply);

  const log = logFor(archive);
  const data = dataOf(list, directories);
  const total = data.reduce((sum, place) => sum + list.lengthOf(place), 0);
  const restoring = yield* (yield* QvmRestore)
    .start({ ...plan, see: log.see })
    .pipe(Effect.mapError((error) => failed("qubes", error.message)));
  let fed = 0;
  /** Bytes that went into any pass: a sign of life. */
  let given = 0;
  /** The last member that was taken whole. */
  let upTo = -1;
  let all = false;
  /** The tool is given bytes, and does not take them yet. */
  let giving = false;
  yield* Effect.gen(function* () {
    for (;;) {
      yield* tell(log);
      // It has all the bytes, and writes sparse volumes with them, which may take minutes.
      yield* fed === total && total > 0
        ? reporter.progress({
            doing: plan.verifyOnly ? line`decrypting the last of it` : line`writing the volumes`,
            bytes: fed,
            waits: line`waiting for qvm-backup-restore`,
          })
        : reporter.progress({
            doing: plan.verifyOnly ? line`verifying` : line`restoring`,
            bytes: fed,
            total,
            ...(giving ? { waits: line`waiting for qvm-backup-restore` } : {}),
          });
      yield* Effect.sleep("200 millis");
    }
  }).pipe(Effect.forkScoped);

  const fromKept =
    (places: ReadonlyArray<number>): Blocks =>
    (use) =>
      Effect.forEach(
        places.flatMap((place) => kept[place]!.map((bytes) => ({ place, bytes }))),
        ({ bytes, place }) => use(place, bytes),
        { discard: true },
      );
  const fromFar: Blocks = (use) =>
    far.blocks(wantsOf(list, data), ({ count, place }, block, bytes) =>
      Effect.andThen(onBlock?.(bytes) ?? Effect.void, use(place, bytes, block === count - 1)),
    );
  const passes = [fromKept([0, 1]), fromKept([2]), fromFar];
  const work = Effect.gen(function* () {
    for (const blocks of passes) {
      const sink = yield* restoring.opened;
      if (sink === undefined) break;
      yield* feed(blocks, sink, {
        giving: () => {
          giving = true;
        },
        given: (bytes, whole) => {
          giving = false;
          given += bytes;
          if (blocks !== fromFar) return;
          fed += bytes;
          upTo = whole ?? upTo;
        },
      }).pipe(Effect.raceFirst(restoring.ended));
      // Only where the reading ended well: a source that broke off must not look like one that ends.
      yield* sink.end;
    }
    all = true;
    return yield* restoring.ended;
  }).pipe(Effect.catchTag("QubesError", (error) => failed("qubes", error.message)));
  const ended = yield* Effect.raceFirst(
    work,
    watch(
      () => given + log.count(),
      () => timeout * 60 + (all ? data.length * perMember : 0),
    ),
  ).pipe(
    // What breaks it off tells nothing of the qubes that were made by then.
    Effect.onError(() =>
      plan.verifyOnly || log.begun.size === 0
        ? Effect.void
        : Effect.andThen(
            tell(log),
            reporter.say(
              "warning",
              line`not restored whole: ${calledIn(log)(log.begun)}; ${again}`,
            ),
          ),
    ),
  );
  yield* tell(log);
  const outcome = yield* judge(job, ended, log);
  // Only members of qubes that it was told to leave out may not have been read.
  const name = nameOf(archive);
  const missed = data.find(
    (place) => place > upTo && (!maySkip || log.begun.has(name(directoryOf(list.at(place))))),
  );
  if (missed !== undefined) {
    return yield* failed(
      "qubes",
      `qvm-backup-restore stopped reading before the end of ${list.at(missed).path}, and exited 0`,
    );
  }
  return outcome;
}, Effect.scoped);
