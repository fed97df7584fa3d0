/** What a run that ended badly means for the backups that exist: the question that a person has then. */
import { Effect } from "effect";
import { type Entry, Ledger } from "#services/Ledger";
import { type Audit, ReadBacks } from "#services/ReadBacks";
import { line } from "#src/say/shown";
import { counts } from "#src/dom0/books/noted";
import { isOfTest } from "#src/dom0/qube/throwaway";

const two = (n: number): string => String(n).padStart(2, "0");

/** `2026-01-31 04:00`, local time, as the names of archives have it. */
export const localTime = (instant: string): string => {
  const at = new Date(Date.parse(instant));
  const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${date} ${two(at.getHours())}:${two(at.getMinutes())}`;
};

/** More groups than this are no sentence any more. */
const most = 6;

/** `the last proven backup of vault, work is of 2026-01-31 04:00; of mail there is none`. */
export const lastBackups = (
  names: ReadonlyArray<string>,
  entries: ReadonlyArray<Entry>,
  audits: ReadonlyMap<string, Audit>,
): string => {
  const good = entries.filter(
    ({ rebuilt, session }) => rebuilt !== true && counts(audits.get(session)),
  );
  const dates = new Map<string, Array<string>>();
  for (const name of names) {
    const last = good.findLast(({ qubes }) => qubes.some((qube) => qube.name === name));
    const date = last === undefined ? "" : localTime(last.finished);
    dates.set(date, [...(dates.get(date) ?? []), name]);
  }
  const none = dates.get("") ?? [];
  dates.delete("");
  const groups = [...dates]
    .sort(([a], [b]) => (a < b ? -1 : 1)) // the oldest first: it is the news
    .map(([date, of]) => `of ${of.join(", ")} is of ${date}`);
  const shown = groups.slice(0, most);
  if (groups.length > most) shown.push("those of others are newer");
  const last = shown.length === 0 ? [] : [`the last proven backup ${shown.join("; ")}`];
  if (none.length > 0) last.push(`there is no proven backup of ${none.join(", ")}`);
  return last.join("; ");
};

/**
 * The same, from the ledger as it is; nothing where that cannot be read. Names that are not `known` to
 * be qubes count if the ledger has them; without any, it is about those of the last run.
 */
export const standing = Effect.fnUntraced(function* (names: ReadonlyArray<string>, known: boolean) {
  const books = [(yield* Ledger).entries, (yield* ReadBacks).all] as const;
  const read = yield* Effect.all(books).pipe(Effect.option);
  if (read._tag === "None") return line``;
  const [{ entries }, audits] = read.value;
  const last = (entries.findLast((entry) => !isOfTest(entry))?.qubes ?? []).map(({ name }) => name);
  const listed = names.filter((name) =>
    entries.some(({ qubes }) => qubes.some((qube) => qube.name === name)),
  );
  const of = known ? names : names.length > 0 ? listed : last;
  return line`${lastBackups(of, entries, audits)}`;
});
