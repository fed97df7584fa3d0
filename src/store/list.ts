/**
 * The archives of a store in order of name, with those that were pruned between them. What they are is
 * said by their records alone; of what they are made of, only whether it is there is looked at.
 */
import { Effect, type Scope } from "effect";
import type { Directory, SafeFsError } from "#services/SafeFs";
import { isName, isPrefix, isSession, manifestSuffix, Name, type Signature } from "#src/wire/names";
import { readRecord, readTombstone, type Said, saidOf } from "./record.ts";
import { find, type Store } from "./store.ts";
import { ownDirectory } from "./tables.ts";

export type Listed =
  | {
      readonly type: "archive";
      readonly name: Name;
      readonly said: Said;
      /** A check found it so, or what it is made of is not there. */
      readonly damaged: boolean;
    }
  | {
      readonly type: "pruned";
      readonly name: Name;
      readonly tombstone: string;
      readonly signature: Signature;
    };

export interface Wanted {
  /** Only names that begin so. */
  readonly prefix?: string | undefined;
  /** Only names behind this one. */
  readonly after?: string | undefined;
  /** How many there may be; a name's own are not torn apart. */
  readonly limit: number;
}

/** Components that a name has at most. */
const deepest = 8;
/** Records that are read at once, and before `see` is called. */
const readers = 8;
const batch = 128;

/** What went away meanwhile, or may not be read, is not listed. */
const unlessGone = <A, R>(
  effect: Effect.Effect<A, SafeFsError, R>,
): Effect.Effect<A | undefined, SafeFsError, R> =>
  Effect.catchIf(
    effect,
    ({ reason }) => reason === "not-found" || reason === "not-permitted" || reason === "not-plain",
    () => Effect.undefined,
  );

const namesIn = (store: Pick<Store, "root">, directory: string) =>
  Effect.scoped(
    Effect.flatMap(ownDirectory(store, directory), (found) =>
      found === undefined ? Effect.succeed([]) : found.names,
    ),
  );

interface Stone {
  readonly name: Name;
  readonly session: string;
}

/** The tombstones that are wanted, by name; of very many, those whose names come first. */
const stonesOf = Effect.fnUntraced(function* (
  tombstones: Directory | undefined,
  { after = "", limit, prefix = "" }: Wanted,
) {
  let stones: Array<Stone> = [];
  const cut = () => {
    stones.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
    stones = stones.slice(0, limit + 1);
  };
  for (const session of tombstones === undefined ? [] : yield* tombstones.names) {
    if (!isSession(session)) continue;
    const stone = yield* readTombstone(tombstones!, session);
    if (stone === undefined) continue;
    const { name } = stone.said;
    if (!name.startsWith(prefix) || name <= after) continue;
    stones.push({ name, session });
    if (stones.length > 2 * limit + batch) cut();
  }
  cut();
  return stones;
});

/** Gives what is wanted to `see`, in order and a few at a time; true where there is more than `limit`. */
export const listing = Effect.fnUntraced(function* <E, R>(
  store: Pick<Store, "root">,
  wanted: Wanted,
  see: (some: ReadonlyArray<Listed>) => Effect.Effect<void, E, R>,
): Effect.fn.Return<boolean, E | SafeFsError, R | Scope.Scope> {
  const { after = "", limit, prefix = "" } = wanted;
  const tombstones = yield* ownDirectory(store, "tombstones");
  const stones = yield* stonesOf(tombstones, wanted);
  const pruned = new Set(tombstones === undefined ? [] : yield* tombstones.names);
  const found = new Set(yield* namesIn(store, "damaged"));
  const recipes = new Set(yield* namesIn(store, "recipes"));
  const packs = new Set(yield* namesIn(store, "packs"));

  let given = 0;
  let last = "";
  let more = false;
  /** Is there room for this one? A page ends between two names. */
  const admit = (name: string): boolean => {
    if (given >= limit && name !== last) more = true;
    if (!more) given += 1;
    last = name;
    return !more;
  };
  let next = 0;
  /** The stones that come before what lies behind `name`, or all that are left. */
  const bury = Effect.fnUntraced(function* (name: string | undefined) {
    const some: Array<Listed> = [];
    for (; next < stones.length; next++) {
      const { name: of, session } = stones[next]!;
      if ((name !== undefined && of > name) || !admit(of)) break;
      const stone = yield* readTombstone(tombstones!, session);
      if (stone === undefined) continue;
      some.push({ type: "pruned", name: of, tombstone: stone.text, signature: stone.signature });
    }
    return some;
  });

  const describe = Effect.fnUntraced(function* (directory: Directory, base: string, name: Name) {
    const record = yield* unlessGone(readRecord(directory, base));
    const said = record === undefined ? undefined : saidOf(record, name);
    if (said === undefined || pruned.has(said.session)) return [];
    const { session } = said;
    const damaged = found.has(session) || !recipes.has(session) || !packs.has(session);
    return [{ type: "archive", name, said, damaged }] satisfies ReadonlyArray<Listed>;
  });
  /** What the records of these say, in their order, and the stones before them. */
  const giveAll = Effect.fnUntraced(function* (
    directory: Directory,
    path: string,
    bases: ReadonlyArray<string>,
  ) {
    for (let at = 0; at < bases.length && !more; at += batch) {
      const archives = yield* Effect.forEach(
        bases.slice(at, at + batch),
        (base) => describe(directory, base, Name.make(path + base)),
        { concurrency: readers },
      );
      const some: Array<Listed> = [];
      for (const archive of archives.flat()) {
        some.push(...(yield* bury(archive.name)));
        if (more || !admit(archive.name)) break;
        some.push(archive);
      }
      if (some.length > 0) yield* see(some);
    }
  });

  const visit = (
    directory: Directory,
    path: string,
  ): Effect.Effect<void, E | SafeFsError, R | Scope.Scope> =>
    Effect.gen(function* () {
      /** Sorted as if everything in a directory stood here already: hence its slash. */
      const keys: Array<string> = [];
      const inside: Array<string> = [];
      for (const entry of yield* directory.names) {
        if (entry.endsWith(manifestSuffix)) {
          const base = entry.slice(0, -manifestSuffix.length);
          const name = path + base;
          if (name > after && name.startsWith(prefix) && isName(name)) keys.push(base);
          continue;
        }
        const all = `${path}${entry}/`;
        if (!(all.startsWith(prefix) || prefix.startsWith(all))) continue;
        if (!(all > after || after.startsWith(all))) continue;
        if (all.split("/").length <= deepest && isPrefix(all)) inside.push(entry);
      }
      const kinds = yield* Effect.forEach(inside, (entry) => find(directory, entry), {
        concurrency: readers,
      });
      inside.forEach((entry, i) => {
        if (kinds[i]?.kind === "directory") keys.push(`${entry}/`);
      });
      keys.sort();
      let from = 0;
      for (let at = 0; at <= keys.length && !more; at++) {
        const key = keys[at];
        if (key !== undefined && !key.endsWith("/")) continue;
        yield* giveAll(directory, path, keys.slice(from, at));
        from = at + 1;
        if (key === undefined || more) return;
        yield* directory.directory(key.slice(0, -1)).pipe(
          unlessGone,
          Effect.flatMap((below) => (below === undefined ? Effect.void : visit(below, path + key))),
          Effect.scoped,
        );
      }
    });
  yield* visit(store.root, "");
  const rest = more ? [] : yield* bury(undefined);
  if (rest.length > 0) yield* see(rest);
  return more;
});
