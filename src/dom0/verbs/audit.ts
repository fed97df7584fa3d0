/** Random blocks of the archives, fetched and proven: a small price for knowing that they are there. */
import { Effect, Semaphore } from "effect";
import type { Audit } from "#services/ReadBacks";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import { humanSize } from "#src/say/format";
import { blocksOf, type Members, type Placed } from "#src/proof/members";
import { memberLimit } from "#src/proof/table";
import { blockSize } from "#src/wire/limits";
import { line } from "#src/say/shown";
import { command } from "#src/dom0/cli/command";
import { alarmAfterFor, destinationFor } from "#src/dom0/qube/destination";
import { failed, type RunFailed, together } from "#src/dom0/failure";
import { openFar, trustedBy, type Want, wantOf } from "#src/dom0/far/fetch";
import { alarmAfter, json, keepRunning, to } from "#src/dom0/cli/flags";
import { elsewhere, goBackTo, type Known, knownArchives, unsound } from "#src/dom0/books/known";
import { alarmUnread, cameBack, note, noteFailure } from "#src/dom0/books/noted";
import { withinADay } from "#src/dom0/far/remote";
import { certainty, choose, drawing, stretches } from "#src/dom0/far/sample";
import { columns, visit } from "#src/dom0/qube/visit";
import { print } from "#src/dom0/cli/print";

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
/** Recipes and tables cost an ssh connection each, a quarter of a second or more, mostly waiting. */
const callsAtOnce = 4;
/** The header pair and qubes.xml: without them nothing of an archive comes back. */
const heads = 3;

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
    const others = yield* elsewhere(destination);
    return yield* failed(
      "usage",
      `the ledger has no archive that went through ${destination}`,
      others.size > 0
        ? goBackTo(others.values())
        : "is it the right qube? Else the first backup is still to come, or the ledger was lost: qbackup list",
    );
  }
  const ordered = wanted.sort((a, b) => (lastRead(a.audit) < lastRead(b.audit) ? -1 : 1));
  return { targets: ordered, sound };
});

/** Which are the newest of their series: of them more is read than chance asks for. */
const newest = (known: ReadonlyArray<Known>): ReadonlySet<Known> => {
  const found = new Map<string, Known>();
  for (const one of known) {
    const { run, series } = one.manifest;
    const other = found.get(series);
    if (other === undefined || other.manifest.run < run) found.set(series, one);
  }
  return new Set(found.values());
};

/** A block of a member. */
interface Pick {
  readonly item: Placed;
  readonly block: number;
}

/** `count` blocks of all members of one archive. */
const someOf = (
  entropy: Parameters<typeof choose>[0],
  list: Members,
  count: number,
): ReadonlyArray<Pick> => {
  const wanted = choose(entropy, count, list.blocks());
  const picks: Array<Pick> = [];
  let before = 0;
  for (let i = 0, at = 0; at < wanted.length; i++) {
    const blocks = blocksOf(list.lengthOf(i));
    for (; at < wanted.length && wanted[at]! < before + blocks; at++) {
      picks.push({ item: list.at(i), block: wanted[at]! - before });
    }
    before += blocks;
  }
  return picks;
};

/** All heads, and the last block of all: what is lost first where a server loses one end of it. */
const endsOf = (list: Members): ReadonlyArray<Pick> => {
  const picks: Array<Pick> = [];
  for (let i = 0; i < Math.min(heads, list.count); i++) {
    const item = list.at(i);
    for (let block = 0; block < blocksOf(item.length); block++) picks.push({ item, block });
  }
  const item = list.at(list.count - 1);
  return [...picks, { item, block: blocksOf(item.length) - 1 }];
};

/** Members of which blocks were counted already, a bit each, by their packs. */
const counted = () => {
  const packs = new Map<string, Uint8Array>();
  return (session: string, member: number): boolean => {
    const bits = packs.get(session) ?? new Uint8Array(0);
    const at = member >>> 3;
    const bit = 1 << (member & 7);
    if (((bits[at] ?? 0) & bit) !== 0) return true;
    const room = at < bits.length ? bits : new Uint8Array(2 * at + 64);
    if (room !== bits) room.set(bits);
    room[at]! |= bit;
    packs.set(session, room);
    return false;
  };
};

/** Each block once, in the order in which it lies on the server's disk. */
const wantsFor = (picks: Iterable<Pick>): ReadonlyArray<Want> => {
  const members = new Map<string, { readonly item: Placed; readonly blocks: Set<number> }>();
  for (const { block, item } of picks) {
    const key = `${item.session} ${item.member}`;
    const found = members.get(key) ?? { item, blocks: new Set() };
    found.blocks.add(block);
    members.set(key, found);
  }
  return [...members.values()]
    .sort((a, b) =>
      a.item.session === b.item.session
        ? a.item.member - b.item.member
        : a.item.session < b.item.session
          ? -1
          : 1,
    )
    .flatMap(({ blocks, item }) =>
      stretches([...blocks].sort((a, b) => a - b)).map(({ count, first }) =>
        wantOf(item, first, count),
      ),
    );
};

/** An archive that is looked at, and what is known of it once its members are. */
interface Looked {
  readonly target: Known;
  readonly holds: ReturnType<Members["holds"]>;
  /** Blocks that it has. */
  readonly of: number;
  /** Read only if chance brings none of it. */
  readonly spare: ReadonlyArray<Pick>;
}

export const audit = Effect.fnUntraced(function* (options: AuditOptions) {
  const destination = yield* destinationFor(options.to);
  const alarm = alarmUnread(destination, yield* alarmAfterFor(options.alarmAfter));
  yield* alarm(theAudit(options, destination));
});

const theAudit = Effect.fnUntraced(function* (options: AuditOptions, destination: string) {
  const { entropy } = yield* Invocation;
  const { progress, say } = yield* Reporter;
  const { sound, targets } = yield* select(options, destination);
  const sessions = targets.map(({ entry }) => entry.session);
  const noting = <A, R>(effect: Effect.Effect<A, RunFailed, R>) =>
    Effect.tapError(effect, (failure) => noteFailure(sessions, failure));

  yield* visit({ destination, keepRunning: options.keepRunning }).pipe(noting);
  const far = yield* openFar(destination);
  const bad = new Map<Known, RunFailed>();
  /** Archives without a link since the last thing that came; then what all the others get. */
  let vain = 0;
  let gone: RunFailed | undefined;
  const fails = (target: Known, failure: RunFailed) => {
    if (failure.exit === "link" && !bad.has(target)) vain += 1;
    bad.set(target, failure);
    if (failure.about === "carrier" || vain >= inVain) gone = failure;
  };

  // All is chosen before the server is asked for a single block.
  const budget = options.blocks === undefined ? (options.budget ?? usualBudget) : 0;
  const pool = drawing<Placed>(entropy, budget);
  const known = counted();
  /** Blocks of all archives, and their bytes; those of a member that several have once. */
  let all = 0;
  let allBytes = 0;
  const last = newest(targets);
  const looked: Array<Looked> = [];
  const fixed: Array<Pick> = [];
  const room = yield* Semaphore.make(memberLimit);
  const look = Effect.fnUntraced(function* (target: Known) {
    const list = yield* far.members(trustedBy(target.manifest, destination));
    vain = 0;
    for (let i = 0; i < list.count; i++) {
      if (known(list.sessionOf(i), list.memberOf(i))) continue;
      const length = list.lengthOf(i);
      const blocks = blocksOf(length);
      all += blocks;
      allBytes += length;
      if (budget > 0) pool.see(blocks, () => list.at(i));
    }
    if (options.blocks !== undefined) fixed.push(...someOf(entropy, list, options.blocks));
    if (last.has(target)) fixed.push(...endsOf(list));
    looked.push({
      target,
      holds: list.holds(),
      of: list.blocks(),
      spare: someOf(entropy, list, 1),
    });
  });
  const sampling = Effect.gen(function* () {
    yield* Effect.forEach(
      targets,
      (target) =>
        Effect.suspend(() => (gone === undefined ? look(target) : gone)).pipe(
          // So many members at once, of however many archives.
          room.withPermits(target.manifest.members),
          // One archive that is damaged, kept back or out of reach does not hide the next one.
          Effect.catch((failure) => Effect.sync(() => fails(target, failure))),
        ),
      { concurrency: callsAtOnce, discard: true },
    );
    const drawn = [...pool.drawn(), ...fixed];
    const order = new Map(targets.map((target, i) => [target, i]));
    looked.sort((a, b) => order.get(a.target)! - order.get(b.target)!);
    for (const { holds, spare } of looked.slice(0, budget)) {
      if (!drawn.some(({ item }) => holds(item.session, item.member))) drawn.push(...spare);
    }
    const wants = wantsFor(drawn);
    const total = wants.reduce((sum, { count }) => sum + count, 0) * blockSize;
    let bytes = 0;
    const ofWant = ({ member, session }: Want) =>
      looked.filter(({ holds }) => holds(session, member));
    const counts = new Map<Known, number>();
    for (const want of wants) {
      for (const { target } of ofWant(want)) {
        counts.set(target, (counts.get(target) ?? 0) + want.count);
      }
    }
    const read = new Map<Known, number>();
    yield* far
      .blocks(
        wants,
        (want, _, block) =>
          Effect.suspend(() => {
            bytes += block.length;
            for (const { target } of ofWant(want)) read.set(target, (read.get(target) ?? 0) + 1);
            return progress({ doing: line`auditing`, bytes, total });
          }),
        (want, _, failure) =>
          Effect.sync(() => {
            for (const { target } of ofWant(want)) {
              bad.set(target, together(bad.get(target), failure));
            }
          }),
      )
      .pipe(
        Effect.catch((failure) =>
          Effect.sync(() => {
            gone = failure;
            for (const { target } of looked) {
              const wanted = counts.get(target) ?? 0;
              if ((read.get(target) ?? 0) < wanted && !bad.has(target)) bad.set(target, failure);
            }
          }),
        ),
      );
    return { wants, counts };
  });
  const notedBad = Effect.suspend(() =>
    Effect.forEach(bad, ([{ entry }, failure]) => noteFailure([entry.session], failure), {
      discard: true,
    }),
  );
  const toldBad = Effect.suspend(() =>
    Effect.forEach(
      bad,
      ([{ entry }, failure]) =>
        failure === gone ? Effect.void : say("warning", line`${entry.name}: ${failure.message}`),
      { discard: true },
    ),
  );
  const damaged = () => [...bad.values()].filter((failure) => resultOf(failure) === "damaged");
  const badly = (after = "") =>
    failed(
      "integrity",
      `${damaged().length} of ${targets.length} archives did not come back as they were${after}`,
      "qbackup verify NAME reads one as a whole; make a new backup meanwhile",
    );
  const { counts, wants } = yield* sampling.pipe(
    withinADay,
    Effect.catch((failure) =>
      Effect.gen(function* () {
        const rest = targets.filter((target) => !bad.has(target));
        yield* noteFailure(
          rest.map(({ entry }) => entry.session),
          failure,
        );
        yield* notedBad;
        // What ended it takes nothing back of what was found before.
        if (damaged().length === 0) return yield* failure;
        yield* toldBad;
        return yield* badly(`; ${failure.message}`);
      }),
    ),
  );

  const good = targets.filter((target) => !bad.has(target) && counts.has(target));
  const of = new Map(looked.map((one) => [one.target, one.of]));
  const sampled = new Map(
    good.map((target) => [
      target.entry.session,
      { blocks: counts.get(target)!, of: of.get(target) ?? 0 },
    ]),
  );
  yield* note([...sampled.keys()], (before, at, session) =>
    cameBack(before, { sampled: { at, ...sampled.get(session)! } }),
  );
  yield* notedBad;
  const rows = targets.map((target) => {
    const { entry, manifest } = target;
    const failure = bad.get(target);
    const count = counts.get(target) ?? 0;
    return {
      name: entry.name,
      blocks: count,
      of: of.get(target) ?? blocksOf(manifest.size),
      result: failure !== undefined ? resultOf(failure) : count > 0 ? "proven" : "left out",
      rebuilt: entry.rebuilt === true,
    };
  });
  const left = rows.filter(({ result }) => result === "left out").length;
  if (left > 0) yield* say("info", line`${left} archives are left for the next time`);
  const chosen = wants.reduce((sum, { count }) => sum + count, 0);
  // Of each archive apart, the least that is true of any; of all together, what the budget gives.
  const drawn = options.blocks ?? budget;
  const complete = chosen === all;
  const sure = (lost: number) => (complete ? 1 : certainty(drawn, lost));
  const summary = [
    `${chosen} of ${all} blocks (${humanSize(allBytes)}), chosen at random, ${bad.size === 0 ? "came back proven" : "were asked for"}`,
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
  if (only !== undefined && rows.length === 1 && damaged().length === 0) return yield* only;
  yield* toldBad;
  if (damaged().length > 0) return yield* badly();
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
size. What several archives share counts once. Of the newest archive of each
series its heads and its end are read besides. NAMEs are archives; without any,
all of the ledger.`,
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
      help: `blocks of all together, one at least of each archive; ${usualBudget} without --blocks`,
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
