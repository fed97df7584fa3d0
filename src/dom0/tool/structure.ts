/**
 * What an archive must look like, whatever vouches for its bytes: the list of its members first, which
 * costs nothing, then each member as its bytes come by.
 */
import { Effect } from "effect";
import { listedWalk } from "#src/archive/listed";
import { FullChunk } from "#src/archive/parameters";
import { ListWalk } from "#src/archive/walk";
import type { Members } from "#src/proof/members";
import { failed } from "#src/dom0/failure";
import type { Trusted } from "#src/dom0/far/fetch";

export const directoryName = (qid: number): string => (qid === 0 ? "dom0-home" : `vm${qid}`);

const broken = (name: string, what: string) =>
  failed("integrity", `${name} is not a whole archive: ${what}`);

/** Looks at the list; with `qubes`, all of them must be in it and no others. */
export const checkList = Effect.fnUntraced(function* (
  { format, name }: Pick<Trusted, "format" | "name">,
  list: Members,
  qubes?: ReadonlyArray<{ readonly qid: number }>,
) {
  const walk = new ListWalk({
    format,
    fullChunk: yield* FullChunk,
    ...(qubes === undefined
      ? {}
      : { expected: new Set(qubes.map(({ qid }) => directoryName(qid))) }),
  });
  for (let i = 0; i < list.count && walk.fault === undefined; i++) walk.next(list.at(i));
  const fault = walk.finish();
  if (fault !== undefined) return yield* broken(name, fault.message);
});

/** Zeros that end an archive and belong to no member come in pieces of so many. */
const zeros = new Uint8Array(10_240);

/** A walk over the bytes of all members in their order, and over the zeros behind them. */
export const memberWalk = Effect.fnUntraced(function* (
  { format, name, size }: Pick<Trusted, "format" | "name" | "size">,
  list: Members,
) {
  const walk = listedWalk({ format, fullChunk: yield* FullChunk }, list);
  const push = (bytes: Uint8Array) =>
    Effect.suspend(() => {
      const fault = walk.push(bytes);
      return fault === undefined ? Effect.void : broken(name, fault);
    });
  return {
    push,
    through: walk.through,
    run: walk.run,
    /** Says that all members were there. */
    finish: Effect.gen(function* () {
      while (walk.offset() < size) {
        yield* push(zeros.subarray(0, Math.min(zeros.length, size - walk.offset())));
      }
      const fault = walk.finish();
      if (fault !== undefined) return yield* broken(name, fault);
    }),
  };
});
