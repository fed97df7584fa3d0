/**
 * "Last backup", as Qube Manager shows it. qubesd sets it for every stream that ended without an error
 * that it noticed, lost ones too (docs/qubes.md, Who does the work): where a run fails it is put back,
 * so that nobody relies on a backup that there is not.
 */
import { Effect } from "effect";
import { type Qube, Qubes } from "#services/Qubes";
import { Reporter } from "#services/Reporter";
import type { Unfinished } from "#services/RunMark";
import { line } from "#src/say/shown";
import { toldIfSlow } from "#src/dom0/cli/heard";

export type BackedUp = NonNullable<Unfinished["backedUp"]>;

export const backedUpOf = (qubes: ReadonlyArray<Qube>): BackedUp =>
  qubes
    .filter(({ qid }) => qid !== 0) // dom0 has no such property
    .map(({ backedUp, name }) => (backedUp === undefined ? { name } : { name, at: backedUp }));

/**
 * Puts back what `before` says of each qube whose present value `wrong` recognises: a backup that
 * somebody else made meanwhile stays what it is.
 */
export const putBack = Effect.fnUntraced(function* (
  before: BackedUp,
  wrong: (now: number | undefined) => boolean,
) {
  const qubes = yield* Qubes;
  const { say } = yield* Reporter;
  const attempt = Effect.gen(function* () {
    const all = yield* qubes.list;
    for (const { at, name } of before) {
      const qube = all.find((one) => one.name === name);
      if (qube === undefined || qube.backedUp === at || !wrong(qube.backedUp)) continue;
      yield* qubes.setBackedUp(name, at);
    }
  });
  yield* attempt.pipe(
    toldIfSlow(line`Qubes puts back what it shows as the last backup`),
    Effect.timeoutOrElse({
      duration: "5 minutes",
      orElse: () => Effect.fail({ message: "Qubes does not answer" }),
    }),
    Effect.catch((error) =>
      say("warning", line`Qube Manager may show a backup that there is not: ${error.message}`),
    ),
  );
});
