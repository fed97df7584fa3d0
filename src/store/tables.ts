/**
 * The members of packs, by their tables: of a pack in order, of an archive in the order of its recipe.
 * A table may be as long as an archive has members, so none is held: an index says where every 64th
 * line begins, and a window of each table is kept.
 */
import { Effect, Scope, ScopedCache } from "effect";
import type { Directory, File, SafeFsError } from "#services/SafeFs";
import { textLines } from "#src/proof/lines";
import { parseRun, recipe, recipeLineLimit, type Runs } from "#src/proof/recipe";
import { type Member, memberLimit, parseMember, tableLineLimit } from "#src/proof/table";
import type { Session } from "#src/wire/names";
import { type Refused, refuse } from "./failure.ts";
import { type Store, whereFound } from "./store.ts";

/** Bytes that are read of a text at once. */
const piece = 65_536;
/** Lines between two entries of an index. */
const stride = 64;
/** Tables that are held open, each with a window of `piece` bytes. */
const openTables = 32;

/** One of the directories in `.qbackup/`; undefined where there is none. */
export const ownDirectory = Effect.fnUntraced(function* (
  { root }: Pick<Store, "root">,
  name: string,
): Effect.fn.Return<Directory | undefined, SafeFsError, Scope.Scope> {
  const own = yield* whereFound(root.directory(".qbackup"));
  return own === undefined ? undefined : yield* whereFound(own.directory(name));
});

/** A file in one of those directories, opened for reading; undefined where there is none. */
export const ownFile = Effect.fnUntraced(function* (
  store: Pick<Store, "root">,
  directory: string,
  name: string,
): Effect.fn.Return<File | undefined, SafeFsError, Scope.Scope> {
  const scope = yield* Effect.scope;
  // Only the file stays open: the directories on the way to it would be two descriptors more for each.
  return yield* ownDirectory(store, directory).pipe(
    Effect.flatMap((found) =>
      found === undefined
        ? Effect.undefined
        : whereFound(Scope.provide(found.open(name, "read"), scope)),
    ),
    Effect.scoped,
  );
});

const damaged = (message: string) => refuse("damaged", message);

/** Gives all lines of a text to `see`, until that gives false; false, too, for what is no such text. */
export const eachLine = Effect.fnUntraced(function* (
  file: File,
  limit: number,
  see: (line: string) => boolean,
): Effect.fn.Return<boolean, SafeFsError> {
  const buffer = new Uint8Array(piece);
  const lines = textLines(limit, see);
  for (let at = 0; ;) {
    const n = yield* file.read(buffer, at);
    if (!lines.push(buffer.subarray(0, n))) return false;
    at += n;
    if (n < piece) return lines.finish();
  }
});

/** The runs of an archive, by its session: `not-found` where it has none, `damaged` where it is none. */
export const recipeOf = Effect.fnUntraced(function* (
  store: Pick<Store, "root">,
  session: Session,
): Effect.fn.Return<Runs, Refused | SafeFsError> {
  return yield* Effect.scoped(
    Effect.gen(function* () {
      const file = yield* ownFile(store, "recipes", session);
      if (file === undefined)
        return yield* refuse("not-found", "there is no recipe of that archive");
      const { members: listed, push, runs } = recipe();
      const whole = yield* eachLine(file, recipeLineLimit, (line) => {
        const run = parseRun(line);
        if (run === undefined) return false;
        push(run);
        return listed() <= memberLimit;
      });
      return whole && runs().length > 0
        ? runs()
        : yield* damaged("the archive's recipe is damaged");
    }),
  );
});

/** An open table, read line by line; `take` and `load` are one reading of it. */
export interface Table {
  readonly members: number;
  /** The line of a member, without its newline; undefined where it has to be loaded first. */
  readonly take: (index: number) => string | undefined;
  /** Reads on, so that `take` has the line of this member. */
  readonly load: Effect.Effect<void, SafeFsError>;
}

/** `see` is given every line as it is opened, and ends it (`damaged`) with false. */
export const openTable = Effect.fnUntraced(function* (
  file: File,
  see: (line: string) => boolean = () => true,
): Effect.fn.Return<Table, Refused | SafeFsError> {
  const starts: Array<number> = [];
  let members = 0;
  let size = 0;
  const whole = yield* eachLine(file, tableLineLimit, (line) => {
    if (members % stride === 0) starts.push(size);
    members += 1;
    size += line.length + 1;
    return members <= memberLimit && see(line);
  });
  if (!whole) return yield* damagedTable;
  const window = Buffer.alloc(Math.min(piece, size));
  /** What the window has: `held` bytes of the file from `from` on. The line `next` begins at `begin`. */
  let [from, held, next, begin] = [0, 0, 0, 0];
  return {
    members,
    take: (index) => {
      if (index < next || index - next > stride) {
        next = index - (index % stride);
        begin = starts[next / stride]!;
      }
      while (begin >= from && begin < from + held) {
        const at = begin - from;
        const end = window.indexOf(0x0a, at);
        if (end === -1) return undefined;
        begin += end + 1 - at;
        next += 1;
        if (next > index) return window.toString("latin1", at, end);
      }
      return undefined;
    },
    load: Effect.suspend(() => {
      from = begin;
      held = 0;
      return Effect.map(file.read(window, from), (n) => {
        held = n;
      });
    }),
  };
});
const damagedTable = damaged("a table of the store is damaged");

/** The line of a member, without its newline. */
const lineAt = Effect.fnUntraced(function* (table: Table, index: number) {
  if (index >= table.members) return yield* damagedTable;
  const held = table.take(index);
  if (held !== undefined) return held;
  yield* table.load;
  // A file that became shorter meanwhile has no such line any more.
  return table.take(index) ?? (yield* damagedTable);
});

/** A member of a pack by its number, from 0; `damaged` where the table has none. */
export const memberAt = Effect.fnUntraced(function* (
  table: Table,
  index: number,
): Effect.fn.Return<Member, Refused | SafeFsError> {
  return parseMember(yield* lineAt(table, index)) ?? (yield* damagedTable);
});

/**
 * Gives the members of `runs` to `see` in their order, each with its line (without its newline) and
 * where it lies; what `see` gives other than undefined ends it, as its failure. Fails with `damaged`
 * where a table is none or has no such member, and with `not-found` where there is no table. `own` is
 * the table of a pack that is not committed yet.
 */
export const members = <E = never>(
  store: Pick<Store, "root">,
  runs: Runs,
  see: (member: Member, line: string, session: Session, index: number) => E | undefined,
  own?: { readonly session: Session; readonly directory: Directory; readonly name: string },
): Effect.Effect<void, E | Refused | SafeFsError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const directory = yield* ownDirectory(store, "tables");
      const missing = refuse("not-found", "a pack that the archive needs is not in the store");
      if (directory === undefined) return yield* missing;
      const tables = yield* ScopedCache.make({
        capacity: openTables,
        lookup: (session: string) =>
          Effect.flatMap(
            whereFound(
              session === own?.session
                ? own.directory.open(own.name, "read")
                : directory.open(session, "read"),
            ),
            (file) => (file === undefined ? missing : openTable(file)),
          ),
      });
      for (const { count, first, session } of runs) {
        const table = yield* ScopedCache.get(tables, session);
        for (let index = first; index < first + count; index++) {
          const line = table.take(index) ?? (yield* lineAt(table, index));
          const member = parseMember(line);
          if (member === undefined) return yield* damagedTable;
          const fault = see(member, line, session, index);
          if (fault !== undefined) return yield* Effect.fail(fault);
        }
      }
    }),
  );
