/** What a look at the backups gave, for the next one and for whoever is not looking. */
import { DateTime, Effect } from "effect";
import { type Audit, Ledger } from "#services/Ledger";
import { Notifier } from "#services/Notifier";
import { Reporter } from "#services/Reporter";
import type { Session } from "#src/wire/names";
import { line } from "#src/wire/shown";

/** Notes what a look at archives gave; a note that cannot be made does not change the result. */
export const note = Effect.fnUntraced(function* (
  sessions: ReadonlyArray<Session>,
  change: (before: Audit, now: string, session: Session) => Audit,
) {
  if (sessions.length === 0) return;
  const ledger = yield* Ledger;
  const { say } = yield* Reporter;
  const now = DateTime.formatIso(yield* DateTime.now);
  yield* ledger
    .audited(sessions, (before, session) => change(before, now, session))
    .pipe(Effect.catch((error) => say("warning", line`${error.message}`)));
});

/** Tells the desktop too: a look at the backups may run from a timer. */
export const alarm = Effect.flatMap(Notifier, ({ notify }) =>
  notify("critical", "Backups are damaged", "See: qbackup list"),
);
