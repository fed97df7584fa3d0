/** What a look at an archive gave, as it is written down: what came back, what did not, and since when. */
import { Clock, Effect, Exit, Option } from "effect";
import { Ledger } from "#services/Ledger";
import { Notifier } from "#services/Notifier";
import { type Audit, ReadBacks } from "#services/ReadBacks";
import { Reporter } from "#services/Reporter";
import { line } from "#src/say/shown";
import { instantOf, type Session } from "#src/wire/names";
import type { RunFailed } from "#src/dom0/failure";
import { isOfTest } from "#src/dom0/qube/throwaway";
import { inLedger, warned } from "./unusable.ts";

/** Notes what a look at archives gave; a note that cannot be made does not change the result. */
export const note = Effect.fnUntraced(function* (
  sessions: ReadonlyArray<Session>,
  change: (before: Audit, now: string, session: Session) => Audit,
) {
  if (sessions.length === 0) return;
  const now = instantOf(yield* Clock.currentTimeMillis);
  yield* (yield* ReadBacks)
    .change(sessions, (before, session) => change(before, now, session))
    .pipe(Effect.catch(warned));
});

/** Members that are noted one by one; where there are more, the archive is bad as a whole. */
const mostSpoiled = 1000;

/** Something else came back once, and of which members is not known, or not of all. */
export const isVague = ({ failed, many, spoiled, vague }: Audit): boolean =>
  failed !== undefined && many !== true && (spoiled === undefined || vague === true);

/** Without what is noted of something else that came back. */
export const notBad = ({
  failed: _failed,
  many: _many,
  spoiled: _spoiled,
  vague: _vague,
  ...rest
}: Audit): Audit => rest;

/** Something else came back: of these members, or of who knows what. */
const cameBad = (before: Audit, now: string, members: ReadonlyArray<string> | undefined): Audit => {
  const rest = notBad(before);
  const { many, spoiled = [] } = before.failed === undefined ? {} : before;
  const all = [...new Set([...spoiled, ...(members ?? [])])];
  if (many === true || all.length > mostSpoiled) return { ...rest, failed: now, many: true };
  const vague = isVague(before) || members === undefined ? ({ vague: true } as const) : {};
  return all.length === 0
    ? { ...rest, failed: now }
    : { ...rest, failed: now, spoiled: all, ...vague };
};

/** Notes what a failure says of archives: that they are damaged, or only that they could not be read. */
export const noteFailure = (sessions: ReadonlyArray<Session>, failure: RunFailed) => {
  const { about, exit, members } = failure;
  if (exit === "integrity" && about !== "carrier") {
    return note(sessions, (before, now) =>
      about === "decryption" ? { ...before, undecryptable: now } : cameBad(before, now, members),
    );
  }
  return about === "carrier" || exit === "link" || exit === "refused"
    ? note(sessions, (before, now) => ({ ...before, unread: before.unread ?? now }))
    : Effect.void;
};

/** What came back clears what did not, but for a member that does not decrypt: its bytes are right. */
export const cameBack = ({ unread: _read, ...before }: Audit, now: Partial<Audit>): Audit => ({
  ...before,
  ...now,
});

/** What speaks against an archive since it was last read, and since when: no restore is to count on it. */
export const faultOf = ({
  failed,
  undecryptable,
}: Audit): { readonly at: string; readonly of: "bytes" | "decryption" } | undefined => {
  if (failed !== undefined) return { at: failed, of: "bytes" };
  return undecryptable === undefined ? undefined : { at: undecryptable, of: "decryption" };
};

/** Whether it still counts as a backup: nothing speaks against it, and its owner has not let it go. */
export const counts = (audit: Audit = {}): boolean =>
  audit.forgotten === undefined && faultOf(audit) === undefined;

/**
 * For how many days nothing was read back of what is behind this qube, where that is too long; the
 * time since the first backup, where nothing ever was. Undefined where all is well.
 */
const unreadFor = Effect.fnUntraced(function* (destination: string, limit: number) {
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const audits = yield* inLedger((yield* ReadBacks).all);
  // That a self-test's archive came back says nothing of the others.
  const here = entries.filter((entry) => entry.destination === destination && !isOfTest(entry));
  const [first] = here;
  if (first === undefined) return undefined;
  const reads = here.flatMap(({ session }) => {
    const { sampled, whole } = audits.get(session) ?? {};
    return [sampled?.at ?? "", whole ?? ""];
  });
  const last = reads.sort().at(-1)! || first.finished;
  const now = yield* Clock.currentTimeMillis;
  const days = Math.floor((now - Date.parse(last)) / 86_400_000);
  return days > limit ? days : undefined;
});

/** Says, and tells the desktop, that nobody knows any more whether the backups can be read. */
const warnUnread = Effect.fnUntraced(function* (destination: string, limit: number) {
  const days = yield* unreadFor(destination, limit);
  if (days === undefined) return;
  const { say } = yield* Reporter;
  yield* say(
    "warning",
    line`nothing was read back through ${destination} for ${days} days: whether the backups can still be read is not known`,
  );
  yield* say("hint", line`qbackup audit -t ${destination}; a timer for it comes with qbackup`);
  const { notify } = yield* Notifier;
  yield* notify(
    "critical",
    `Backups were not read back for ${days} days`,
    "See: journalctl -t qbackup, then qbackup audit",
  );
});

/**
 * At the end of what was to be done, well or badly, that alarm where it is due: nothing was read back
 * through `destination` for more than so many days. The end stays what it is.
 */
export const alarmUnread =
  (destination: string, days: number) =>
  <A, R>(work: Effect.Effect<A, RunFailed, R>) =>
    work.pipe(
      Effect.onExit((exit) => {
        if (Exit.hasInterrupts(exit)) return Effect.void;
        const failure = Option.getOrUndefined(Exit.findErrorOption(exit));
        return warnUnread(destination, days).pipe(
          // What the work has failed of is told as its error.
          Effect.catch((error) =>
            error.message === failure?.message ? Effect.void : warned(error),
          ),
        );
      }),
    );
