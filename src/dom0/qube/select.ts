/** Which qubes a backup is of: decided before anything starts, and what must come out of qvm-backup. */
import { Effect, Option } from "effect";
import { type Qube, Qubes } from "#services/Qubes";
import { printable } from "#src/say/shown";
import { failed } from "#src/dom0/failure";
import { closeTo } from "#src/dom0/cli/near";

/** A running qube that qvm-backup cannot save, for which it would save no other either. */
export interface Unsavable {
  readonly name: string;
  readonly volume: string;
}

export interface Selection {
  /** What a person asked for; empty for the default set. */
  readonly asked: ReadonlyArray<string>;
  readonly includeDom0: boolean;
  /** What must be in the archive. */
  readonly qubes: ReadonlyArray<Qube>;
  /** Their directories in the archive. */
  readonly expected: ReadonlySet<string>;
  /** What was asked for as well, and is left out. */
  readonly unsavable: ReadonlyArray<Unsavable>;
}

/** What to do about qubes that run without a snapshot; their names, for a sentence. */
export const withoutSnapshot = (qubes: ReadonlyArray<Unsavable>) => ({
  names: qubes.map(({ name }) => name).join(", "),
  hint: `shut it down for the backup, or have a snapshot kept: ${qubes
    .map(({ name, volume }) => `qvm-volume config ${name}:${volume} revisions_to_keep 1`)
    .join("; ")}`,
});

const unsavableOf = (qubes: ReadonlyArray<Qube>) =>
  Effect.gen(function* () {
    const { unsavable } = yield* Qubes;
    const found = yield* Effect.forEach(
      qubes.filter(({ qid, state }) => qid !== 0 && state !== "Halted"),
      ({ name, ...rest }) =>
        // Where it cannot be asked, qvm-backup will say what is the matter.
        Effect.map(Effect.option(unsavable({ name, ...rest })), (volume) =>
          Option.match(volume, {
            onNone: () => [],
            onSome: (volume) => (volume === undefined ? [] : [{ name, volume }]),
          }),
        ),
      { concurrency: 4 },
    );
    return found.flat();
  });

export const noSuchQube = (unknown: ReadonlyArray<string>, all: ReadonlyArray<Qube>) => {
  const names = all.map(({ name }) => name);
  const meant = unknown.flatMap((name) => closeTo(name, names) ?? []);
  return failed(
    "usage",
    `no such qube: ${printable(unknown.join(", "), 100)}`,
    `${meant.length === 0 ? "" : `did you mean ${meant.join(", ")}? `}qvm-ls lists the qubes`,
  );
};

/** Where a qube's files are in the archive. */
export const directoryOf = ({ qid }: Qube): string => (qid === 0 ? "dom0-home" : `vm${qid}`);

export const select = Effect.fnUntraced(function* (
  options: { readonly qubes: ReadonlyArray<string>; readonly includeDom0: boolean },
  all: ReadonlyArray<Qube>,
) {
  const asked = [...new Set(options.qubes)];
  const unknown = asked.filter((name) => !all.some((qube) => qube.name === name));
  if (unknown.length > 0) return yield* noSuchQube(unknown, all);
  // An AdminVM has no id of its own in the archive; its home lies in a directory apart.
  const includeDom0 = options.includeDom0 || asked.includes("dom0");
  const named = asked.filter((name) => name !== "dom0");
  if (includeDom0 && asked.length > 0) named.push("dom0");
  const wanted = all.filter((qube) =>
    qube.qid === 0 ? includeDom0 : asked.length > 0 ? named.includes(qube.name) : qube.included,
  );
  if (wanted.length === 0) {
    return yield* failed(
      "usage",
      "no qube is included in backups",
      "name qubes, or set include_in_backups with qvm-prefs",
    );
  }
  const unsavable = yield* unsavableOf(wanted);
  const qubes = wanted.filter(({ name }) => !unsavable.some((one) => one.name === name));
  if (qubes.length === 0) {
    const { hint, names } = withoutSnapshot(unsavable);
    return yield* failed("qubes", `qvm-backup cannot save ${names} while running`, hint);
  }
  const selection: Selection = {
    asked: named,
    includeDom0,
    qubes,
    expected: new Set(qubes.map(directoryOf)),
    unsavable,
  };
  return selection;
});
