/** Random blocks of the archives, fetched and proven: a small price for knowing that they are there. */
import { Effect } from "effect";
import type { Audit } from "#services/Ledger";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { humanSize } from "#src/say/format";
import { blockSize } from "#src/wire/frames";
import { line } from "#src/say/shown";
import { command } from "#src/dom0/cli/command";
import { alarmAfterFor, destinationFor } from "#src/dom0/qube/destination";
import { failed, type RunFailed } from "#src/dom0/failure";
import { blocksOf, fetchBlocks } from "#src/dom0/far/fetch";
import { alarmAfter, json, keepRunning, to } from "#src/dom0/cli/flags";
import { knownArchives, unsound } from "#src/dom0/books/known";
import { alarmUnread, cameBack, note, noteFailure } from "#src/dom0/books/noted";
import { withinADay } from "#src/dom0/far/remote";
import { certainty, choose, share, stretches } from "#src/dom0/far/sample";
import { columns, print, visit } from "#src/dom0/qube/visit";

export interface AuditOptions {
  readonly to: string | undefined;
  readonly keepRunning: boolean;
  readonly json: boolean;
  /** So many of each archive, instead of a budget for all. */
  readonly blocks: number | undefined;
  /** MiB, which are blocks, for all archives together. */
  readonly budget: number | undefined;
  /** Days. */
  readonly alarmAfter: number | undefined;
  /** Empty: all of the ledger. */
  readonly names: ReadonlyArray<string>;
}

/** Finds a loss of 1 % with 99 % certainty. */
export const usualBudget = 459;
/** Each call costs an ssh connection, a quarter of a second or more, mostly waiting. */
const callsAtOnce = 4;

/** Archives that no link reached, one after another: then there is none, and the others are not tried. */
const inVain = 3;

/** Longest unread first; never read before all others. */
const lastRead = ({ sampled, whole }: Audit): string =>
  [sampled?.at ?? "", whole ?? ""].sort().at(-1)!;

/** What an archive that did not come back is called. */
const resultOf = ({ about, exit }: RunFailed): "damaged" | "refused" | "unread" =>
  about === "carrier"
    ? "unread"
    : exit === "integrity"
      ? "damaged"
      : exit === "refused"
        ? exit
        : "unread";

const percent = (share: number): string =>
  share >= 1 ? "100 %" : `${Math.min(99.9, Math.floor(share * 1000) / 10).toFixed(1)} %`;

const select = Effect.fnUntraced(function* (options: AuditOptions, destination: string) {
  const { known, sound } = yield* knownArchives(destination);
  const unknown = options.names.filter((name) => !known.has(name));
  if (unknown.length > 0) {
    return yield* failed(
      "usage",
      "the ledger does not know an archive of that name",
      "qbackup list shows the names",
    );
  }
  const wanted = [...known.values()].filter(({ audit, entry }) =>
    options.names.length > 0 ? options.names.includes(entry.name) : audit.forgotten === undefined,
  );
  if (wanted.length === 0) {
    return yield* failed("usage", `the ledger has no archive that went through ${destination}`);
  }
  const ordered = wanted.sort((a, b) => (lastRead(a.audit) < lastRead(b.audit) ? -1 : 1));
  const sizes = ordered.map(({ manifest }) => blocksOf(manifest.size));
  const counts =
    options.blocks === undefined
      ? share(sizes, options.budget ?? usualBudget)
      : sizes.map((size) => Math.min(size, options.blocks!));
  if (counts.length < ordered.length) {
    const { say } = yield* Reporter;
    yield* say("info", line`${ordered.length - counts.length} archives are left for the next time`);
  }
  const targets = counts.map((count, i) => {
    const { entry, manifest } = ordered[i]!;
    const { session, size, treehash } = manifest;
    return {
      trusted: { name: entry.name, destination, size, treehash },
      session,
      rebuilt: entry.rebuilt === true,
      of: sizes[i]!,
      count,
    };
  });
  return { targets, sound };
});

export const audit = Effect.fnUntraced(function* (options: AuditOptions) {
  const destination = yield* destinationFor(options.to);
  const alarm = alarmUnread(destination, yield* alarmAfterFor(options.alarmAfter));
  yield* alarm(theAudit(options, destination));
});

const theAudit = Effect.fnUntraced(function* (options: AuditOptions, destination: string) {
  const { entropy } = yield* Invocation;
  const { progress, say } = yield* Reporter;
  const { sound, targets } = yield* select(options, destination);
  // All is chosen before the server is asked for anything.
  const jobs = targets.flatMap((target) =>
    stretches(choose(entropy, target.count, target.of)).map((stretch) => ({ target, stretch })),
  );
  const total = jobs.reduce((sum, { stretch }) => sum + stretch.count, 0) * blockSize;

  yield* visit({ destination, keepRunning: options.keepRunning }).pipe(
    Effect.tapError((failure) =>
      noteFailure(
        targets.map(({ session }) => session),
        failure,
      ),
    ),
  );
  const bad = new Map<string, RunFailed>();
  let bytes = 0;
  /** Archives without a link since the last block that came; then what all the others get. */
  let vain = 0;
  let gone: RunFailed | undefined;
  yield* Effect.forEach(
    jobs,
    ({ stretch, target: { trusted } }) =>
      bad.has(trusted.name)
        ? Effect.void
        : gone !== undefined
          ? Effect.sync(() => void bad.set(trusted.name, gone!))
          : fetchBlocks(trusted, stretch.first, stretch.count, (_, block) =>
              Effect.suspend(() => {
                bytes += block.length;
                vain = 0;
                return progress({ doing: line`auditing`, bytes, total });
              }),
            ).pipe(
              // One archive that is damaged, kept back or out of reach does not hide the next one.
              Effect.catch((failure) =>
                Effect.sync(() => {
                  if (failure.exit === "link" && !bad.has(trusted.name)) vain += 1;
                  bad.set(trusted.name, failure);
                  if (failure.about === "carrier" || vain >= inVain) gone = failure;
                }),
              ),
            ),
    { concurrency: callsAtOnce, discard: true },
  ).pipe(withinADay);

  const damaged = [...bad.values()].filter((failure) => resultOf(failure) === "damaged");
  const good = targets.filter(({ trusted }) => !bad.has(trusted.name));
  const counts = new Map(good.map(({ count, session }) => [session, count]));
  yield* note([...counts.keys()], (before, at, session) =>
    cameBack(before, { sampled: { at, blocks: counts.get(session) ?? 0 } }),
  );
  for (const { session, trusted } of targets) {
    const failure = bad.get(trusted.name);
    if (failure !== undefined) yield* noteFailure([session], failure);
  }
  const rows = targets.map(({ count, of, rebuilt, trusted: { name } }) => {
    const failure = bad.get(name);
    const result = failure === undefined ? "proven" : resultOf(failure);
    return { name, blocks: count, of, result, rebuilt };
  });
  const chosen = rows.reduce((sum, row) => sum + row.blocks, 0);
  const all = rows.reduce((sum, row) => sum + row.of, 0);
  // Of each archive apart, the least that is true of any; of all together, what the budget gives.
  const drawn = options.blocks ?? options.budget ?? usualBudget;
  const complete = rows.every((row) => row.blocks === row.of);
  const sure = (lost: number) => (complete ? 1 : certainty(drawn, lost));
  const summary = [
    `${chosen} of ${all} blocks (${humanSize(all * blockSize)}), chosen at random, ${bad.size === 0 ? "came back proven" : "were asked for"}`,
    ...(bad.size > 0
      ? []
      : complete
        ? ["that is all of them; qbackup verify also looks at the structure"]
        : [
            `were 1 % of ${options.blocks === undefined ? "them" : "any archive"} lost or changed, this would have been found with ${percent(sure(0.01))} certainty; 0.1 %: ${percent(sure(0.001))}`,
          ]),
  ];
  yield* print(
    options.json
      ? `${JSON.stringify({ archives: rows, blocks: chosen, of: all, finds: { "1%": sure(0.01), "0.1%": sure(0.001) } }, undefined, 2)}\n`
      : columns([
          ["NAME", "BLOCKS", "OF", "RESULT"],
          ...rows.map((row) => [row.name, `${row.blocks}`, `${row.of}`, row.result]),
        ]) + summary.map((line) => `${line}\n`).join(""),
  );
  if (rows.some((row) => row.rebuilt)) {
    yield* say(
      "warning",
      "the ledger was rebuilt: that these are what dom0 backed up is the server's word",
    );
  }
  const [only] = bad.values();
  // A cause that is the only one is told as the error itself.
  if (only !== undefined && rows.length === 1 && damaged.length === 0) return yield* only;
  for (const [name, failure] of bad) {
    if (failure !== gone) yield* say("warning", line`${name}: ${failure.message}`);
  }
  if (damaged.length > 0) {
    return yield* failed(
      "integrity",
      `${damaged.length} of ${rows.length} archives did not come back as they were`,
      "qbackup verify NAME reads one as a whole; make a new backup meanwhile",
    );
  }
  if (gone !== undefined) return yield* gone;
  if (only !== undefined) {
    return yield* failed(
      only.exit,
      `${bad.size} of ${rows.length} archives could not be read back`,
      only.hint ?? "see each warning above; the next audit begins with them",
    );
  }
  if (!sound) return yield* unsound;
}, Effect.scoped);

/** A block is 1 MiB; more than a million of them is no sample. */
const many = 1_000_000;

export const auditCommand = command({
  name: "audit",
  summary: "prove a random sample of all archives: cheap, for every week",
  about: `Fetches blocks of 1 MiB, chosen at random here, and proves each against the
ledger. 459 of them find a loss of 1 % with a certainty of 99 %, whatever the
size. NAMEs are archives; without any, all of the ledger share the budget, those
first that were not read for longest.`,
  flags: {
    to,
    keepRunning,
    json,
    alarmAfter,
    budget: {
      type: "count",
      value: "MIB",
      least: 1,
      most: many,
      unit: "MiB",
      help: `blocks in all, spread by size, one at least of each archive; ${usualBudget} without --blocks`,
    },
    blocks: {
      type: "count",
      value: "N",
      least: 1,
      most: many,
      unit: "blocks",
      help: "blocks of each archive, instead",
    },
  },
  either: [["budget", "blocks"]],
  args: { names: { label: "NAME", least: 0, most: Infinity } },
  exits: {
    qubes: "the destination qube could not be started",
    link: "the link failed",
    refused: "the server refused",
    integrity: "an archive did not come back as it was, or the ledger is damaged",
  },
  run: audit,
});
