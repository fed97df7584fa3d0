/**
 * Whether all of it works on this machine, from a qube to the server and back, shown with a qube that is made for
 * it. The commands are run as a person runs them, by this program started anew: so it is those that are
 * tried, and nothing beside them. What is said of it can be sent with a report.
 */
import { Clock, Effect, Result } from "effect";
import { Invocation } from "#services/Invocation";
import { Itself } from "#services/Itself";
import { KnownServers } from "#services/KnownServers";
import { Ledger } from "#services/Ledger";
import { Locks } from "#services/Locks";
import { Qubes, type QubesError } from "#services/Qubes";
import { QvmBackup } from "#services/QvmBackup";
import { Reporter } from "#services/Reporter";
import { exitCodes, type Failure } from "#src/say/exit";
import { humanSize } from "#src/say/format";
import { type Line, line } from "#src/say/shown";
import { version } from "#src/say/version";
import { fingerprint } from "#src/proof/keys";
import { inLedger } from "#src/dom0/books/unusable";
import { command } from "#src/dom0/cli/command";
import { expectEvery, passphraseFile, to } from "#src/dom0/cli/flags";
import { print } from "#src/dom0/cli/print";
import { typedLine } from "#src/dom0/cli/typed";
import { awaiting } from "#src/dom0/cli/view";
import { failed, nextStep, type RunFailed, unable } from "#src/dom0/failure";
import { settingsFor, takeLock } from "#src/dom0/qube/destination";
import { broughtBack, madeByTest, testPrefix, throwAway } from "#src/dom0/qube/throwaway";
import { checkPassphrase } from "#src/dom0/tool/passphrase";
import { holds } from "#src/dom0/tool/volume";

export interface SelftestOptions {
  readonly to: string | undefined;
  readonly passphraseFile: string | undefined;
  /** Begins without asking. */
  readonly yes: boolean;
}

const formats = ["qvm-backup", "slots"] as const;
type Format = (typeof formats)[number];

const prefixOf = (format: Format): string => `${testPrefix}${format}-`;

const mebibyte = 1_048_576;
/** Bytes of the qube's private volume: four slots, of which one is left empty. */
const imageSize = 16 * mebibyte;
/** Where there is something in it, which nothing makes smaller: a slot, a piece inside of one, the end. */
const pieces = [
  { at: 0, length: 4 * mebibyte },
  { at: 9 * mebibyte + 512, length: 65_536 },
  { at: 15 * mebibyte, length: mebibyte },
] as const;

const imageOf = (entropy: (bytes: number) => Uint8Array): Uint8Array => {
  const image = new Uint8Array(imageSize);
  for (const { at, length } of pieces) image.set(entropy(length), at);
  return image;
};

const fromQubes = <A, R>(effect: Effect.Effect<A, { readonly message: string }, R>) =>
  Effect.mapError(effect, ({ message }) => failed("qubes", message));

/** One self-test at a time: another one would take this one's qubes for left over. */
const alone = Effect.gen(function* () {
  const { place } = yield* Ledger;
  yield* (yield* Locks).hold(`a self-test with the ledger in ${place}`).pipe(
    Effect.catchTags({
      LockBusy: () => failed("locked", "another self-test is under way"),
      LockFailed: (error) => failed("bug", `no lock: ${String(error.cause)}`),
    }),
  );
});

/** Those that a self-test which was killed has left. A person's own of such a name is refused. */
const leftOver = Effect.gen(function* () {
  const qubes = yield* Qubes;
  const all = yield* fromQubes(qubes.list);
  const marked = yield* fromQubes(qubes.marked(madeByTest));
  const there = [throwAway, broughtBack].filter((wanted) =>
    all.some(({ name }) => name === wanted),
  );
  const own = there.filter((name) => !marked.includes(name));
  if (own.length === 0) return there;
  return yield* failed(
    "usage",
    `there is a qube ${own.join(" and ")} that no self-test has made, or one that was killed at once`,
    "where it is not yours, qvm-remove it; otherwise rename it: the self-test needs that name",
  );
});

const consent = Effect.fnUntraced(function* (destination: string, agreed: boolean) {
  const { say } = yield* Reporter;
  yield* say(
    "info",
    line`this makes the qube ${throwAway} with ${humanSize(imageSize)}, backs it up through ${destination} in both formats, restores it as ${broughtBack}, and removes both; it takes some minutes`,
  );
  yield* say("info", line`the server keeps two small archives, selftest-..., for good`);
  if (agreed) return;
  const { watched } = yield* Invocation;
  if (watched !== true) {
    return yield* failed(
      "usage",
      "nobody is at a terminal who could agree to that",
      "qbackup selftest --yes does it unasked",
    );
  }
  yield* say("info", "type yes and Enter to begin");
  const answer = (yield* typedLine) ?? "";
  if (answer.trim().toLowerCase() === "yes") return;
  return yield* failed(
    "usage",
    "the self-test was not agreed to: nothing was made",
    "type yes where it asks, or give --yes",
  );
});

/** What may be sent to anybody: names of a person's qubes, and of the person, are left out. */
const withoutNames = (names: ReadonlyArray<string>) => {
  const kept = [throwAway, broughtBack, "dom0"];
  const own = names.filter((name) => !kept.includes(name)).sort((a, b) => b.length - a.length);
  const patterns = own.map((name) => name.replaceAll(".", "\\."));
  const any = new RegExp(`(?<![A-Za-z0-9_.-])(?:${patterns.join("|")})(?![A-Za-z0-9_-])`, "g");
  return (text: string): Line =>
    line`${(own.length === 0 ? text : text.replaceAll(any, "[a qube]")).replaceAll(/\/home\/[^/\s']+/g, "~")}`;
};

const failureOf = (code: number): Failure =>
  (Object.keys(exitCodes) as ReadonlyArray<keyof typeof exitCodes>)
    .filter((name) => name !== "done")
    .find((name) => exitCodes[name][0] === code) ?? "bug";

/** Runs a command of this program; gives what it printed. */
const commanded = Effect.fnUntraced(function* (args: ReadonlyArray<string>) {
  // A promise is for a series that goes on.
  const ended = yield* (yield* Itself)
    .run(args, { [expectEvery.setting]: "" })
    .pipe(Effect.mapError(({ message }) => failed("bug", message)));
  if (ended.code === 0) return ended.stdout;
  const said = (level: string) =>
    ended.said
      .map((text) => new RegExp(`^[a-z-]+: ${level}: (.*)$`).exec(text)?.[1])
      .findLast((text) => text !== undefined);
  return yield* unable(
    failureOf(ended.code),
    `exit code ${ended.code}: ${said("error") ?? ended.said.at(-1) ?? "nothing was said"}`,
    said("hint"),
  );
});

/** What verify prints of an archive that came back. */
const archiveIn = (json: string) => {
  let found: { readonly name?: unknown; readonly size?: unknown; readonly members?: unknown };
  try {
    found = JSON.parse(json) ?? {};
  } catch {
    return undefined;
  }
  const { members, name, size } = found;
  return typeof name === "string" && typeof size === "number" && typeof members === "number"
    ? { name, size, members }
    : undefined;
};

/** What came of the steps so far, and how each is told. */
const protocol = (cleaned: (text: string) => Line) => {
  const failures: Array<RunFailed> = [];
  let done = 0;
  const step = Effect.fnUntraced(function* <A, R>(
    what: string,
    work: Effect.Effect<A, RunFailed, R>,
    tell: (value: A) => string = () => "",
  ) {
    yield* awaiting(line`${what}`);
    const began = yield* Clock.currentTimeMillis;
    const result = yield* Effect.result(work);
    const seconds = (((yield* Clock.currentTimeMillis) - began) / 1000).toFixed(1);
    const told = (word: string, more: string) =>
      print(`${word.padEnd(7)} ${what}, ${seconds} s${more === "" ? "" : `: ${cleaned(more)}`}\n`);
    if (Result.isSuccess(result)) {
      done += 1;
      yield* told("ok", tell(result.success));
      return result.success;
    }
    failures.push(result.failure);
    yield* told("FAILED", result.failure.message);
    yield* print(`        ${cleaned(nextStep(result.failure))}\n`);
    return yield* result.failure;
  });
  return { step, failures, done: () => done };
};
type Step = ReturnType<typeof protocol>["step"];

/** What removes the qubes that this self-test may have made: each is named before it is made. */
const cleaner = Effect.gen(function* () {
  const qubes = yield* Qubes;
  const begun = new Set<string>();
  const remove = Effect.fnUntraced(function* (which: ReadonlyArray<string>) {
    const all = yield* qubes.list;
    const failures: Array<QubesError> = [];
    for (const name of which) {
      const there = all.some((one) => one.name === name);
      const gone = yield* Effect.result(there ? qubes.remove(name) : Effect.void);
      if (Result.isSuccess(gone)) begun.delete(name);
      else failures.push(gone.failure);
    }
    const [first] = failures;
    if (first !== undefined) return yield* first;
  });
  const { say } = yield* Reporter;
  // What is still there when it is interrupted, or when it could not be removed at first.
  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => remove([...begun])).pipe(
      Effect.catch(({ message }) =>
        say("warning", line`${message}; remove it yourself: qvm-remove ${[...begun].join(" ")}`),
      ),
    ),
  );
  return { begun, remove };
});

/** There and back in one format. The archive stays: its name is put into `kept`. */
const roundTrip = Effect.fnUntraced(function* (
  format: Format,
  settings: ReadonlyArray<string>,
  passphrase: string,
  image: Uint8Array,
  begun: Set<string>,
  step: Step,
  kept: Array<string>,
) {
  const prefix = prefixOf(format);
  const how = ["-o", "--wait-for", "0", "-f", prefix, "--format", format];
  yield* step(`${format}: back up`, commanded(["run", ...settings, ...how, throwAway]));
  const { name } = yield* step(
    `${format}: read back and decrypt`,
    Effect.gen(function* () {
      const reading = ["--decrypt", "--json", "--wait-for", "0", "--newest", prefix];
      const printed = yield* commanded(["verify", ...settings, ...reading]);
      return archiveIn(printed) ?? (yield* failed("bug", "verify does not say what it has read"));
    }),
    ({ members, size }) => `${humanSize(size)} in ${members} members`,
  ).pipe(Effect.tap((found) => Effect.sync(() => kept.push(found.name))));
  begun.add(broughtBack);
  yield* step(
    `${format}: restore as ${broughtBack}`,
    Effect.gen(function* () {
      yield* commanded(["restore", ...settings, "--rename-conflicting", name]);
      const all = yield* fromQubes((yield* Qubes).list);
      if (all.some((qube) => qube.name === broughtBack)) return;
      return yield* failed("qubes", `restore says that it did, but there is no ${broughtBack}`);
    }),
  );
  yield* step(
    `${format}: compare with what was backed up`,
    Effect.scoped(Effect.andThen(takeLock, holds(broughtBack, image, passphrase))),
  );
});

/** Of these, the other format would say the same, after as long. */
const hopeless: ReadonlySet<Failure> = new Set<Failure>(["usage", "link", "refused", "locked"]);

const test = Effect.fnUntraced(function* (
  destination: string,
  passphrase: string,
  given: ReadonlyArray<string>,
) {
  const qubes = yield* Qubes;
  const { entropy } = yield* Invocation;
  const { runtime } = yield* Itself;
  const all = yield* fromQubes(qubes.list);
  const { done, failures, step } = protocol(withoutNames(all.map(({ name }) => name)));
  const began = yield* Clock.currentTimeMillis;
  yield* print(`${[`qbackup ${version}`, runtime, ...(yield* qubes.versions)].join(", ")}\n`);
  const image = imageOf(entropy);
  const made = yield* cleaner;
  const kept: Array<string> = [];
  const tried = Effect.gen(function* () {
    made.begun.add(throwAway);
    yield* step(
      `make ${throwAway}`,
      fromQubes(
        Effect.gen(function* () {
          // A kill between these two leaves what the next self-test does not know.
          yield* Effect.uninterruptible(
            Effect.andThen(qubes.create(throwAway), qubes.mark(throwAway, madeByTest)),
          );
          yield* qubes.fill(throwAway, image);
        }),
      ),
      () => `${humanSize(image.length)}`,
    );
    for (const format of formats) {
      const trip = roundTrip(format, given, passphrase, image, made.begun, step, kept);
      const tripped = yield* Effect.result(trip);
      // While it is there, the next one would come back under another name.
      if (made.begun.has(broughtBack)) {
        yield* step(`${format}: remove ${broughtBack}`, fromQubes(made.remove([broughtBack])));
      }
      if (Result.isFailure(tripped) && failures.some(({ exit }) => hopeless.has(exit))) break;
    }
  });
  yield* Effect.ignore(tried);
  yield* Effect.ignore(
    step("remove what was made", fromQubes(made.remove([broughtBack, throwAway]))),
  );
  const server = yield* inLedger((yield* KnownServers).pinned(destination));
  if (server !== undefined) yield* print(`server key ${fingerprint(server)}\n`);
  const seconds = Math.round(((yield* Clock.currentTimeMillis) - began) / 1000);
  const [first] = failures;
  yield* print(
    first === undefined
      ? `all of it works here: ${done()} steps in ${seconds} s\n`
      : `${failures.length} of ${done() + failures.length} steps failed, after ${seconds} s\n`,
  );
  const { say } = yield* Reporter;
  if (kept.length > 0) {
    yield* say(
      "hint",
      line`the server keeps ${kept.join(" and ")}; to have audit pass over them: qbackup ledger forget ${kept.join(" ")}`,
    );
  }
  if (first === undefined) return;
  return yield* unable(
    first.exit,
    "the self-test failed",
    "what it printed can be sent with a report, and has no names of your qubes; of a step alone, the journal has more: journalctl -t qbackup",
  );
});

export const selftest = Effect.fnUntraced(function* (options: SelftestOptions) {
  const { destination, passphraseFile: file } = yield* settingsFor(options);
  const { path } = yield* checkPassphrase(file);
  yield* alone;
  yield* leftOver;
  yield* consent(destination, options.yes);
  yield* Effect.gen(function* () {
    yield* takeLock;
    const { say } = yield* Reporter;
    // A backup of what is left over may still be under way inside qubesd.
    for (const found of yield* fromQubes((yield* QvmBackup).recover)) {
      yield* say("warning", line`after a killed run: ${found}`);
    }
    for (const name of yield* leftOver) {
      yield* say("warning", line`a self-test that was killed left ${name}: it is removed`);
      yield* fromQubes((yield* Qubes).remove(name));
    }
  }).pipe(Effect.scoped);
  yield* test(destination, path, ["-t", destination, "-p", path]);
}, Effect.scoped);

export const selftestCommand = command({
  name: "selftest",
  summary: "try all of it on this machine, with a qube made for it",
  about: `Makes the qube ${throwAway} with 16 MiB, backs it up in both formats, reads
both archives back, decrypts and restores them, compares what came back byte for
byte, and removes what it made. What it prints can be sent with a report: names
of your qubes are left out. The server keeps two small archives, selftest-...`,
  flags: {
    to,
    passphraseFile,
    yes: { type: "switch", help: "do not ask before it begins" },
  },
  args: {},
  exits: {
    qubes: "Qubes failed, or a qube did not come back as it was",
    link: "the link failed",
    refused: "the server refused",
    integrity: "something else came back",
    locked: "another run, or another self-test, is under way",
  },
  run: selftest,
});
