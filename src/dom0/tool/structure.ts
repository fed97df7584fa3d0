/**
 * What an archive must look like, whatever vouches for its bytes: the list of its members first, which
 * costs nothing, then each member as its bytes come by.
 */
import { Effect } from "effect";
import { headCount } from "#src/archive/compose";
import { FullChunk } from "#src/archive/parameters";
import { ArchiveFault, ListWalk, MemberWalk } from "#src/archive/walk";
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

/**
 * A walk over the bytes of all members in their order; each must be what the list calls it. Slots have one
 * backup-id for many nights, so that members of another one open as well: all that the header seals must be
 * in the list. That the header is the one that was made, the passphrase tells, and qvm-backup-restore asks it.
 */
export const memberWalk = Effect.fnUntraced(function* (
  { format, name, size }: Pick<Trusted, "format" | "name" | "size">,
  list: Members,
) {
  let members = 0;
  const walk: MemberWalk = new MemberWalk({
    format,
    fullChunk: yield* FullChunk,
    begin: ({ length, path, size: bytes }) => {
      const listed = members < list.count ? list.at(members) : undefined;
      members += 1;
      return listed?.path === path && listed.size === bytes && listed.length === length
        ? undefined
        : new ArchiveFault({
            fault: "unknown-member",
            detail: `${path} is not what the list of members has there`,
            at: walk.offset,
          });
    },
  });
  /** The root that the header must have sealed, once that was looked at. */
  let sealed: string | undefined;
  const push = (bytes: Uint8Array) =>
    Effect.suspend(() => {
      for (let at = 0; at < bytes.length && walk.fault === undefined;) {
        at += walk.take(bytes.subarray(at));
      }
      if (walk.fault !== undefined) return broken(name, walk.fault.message);
      if (sealed !== undefined || walk.seal === undefined) return Effect.void;
      sealed = list.root(headCount);
      return sealed === walk.seal.root
        ? Effect.void
        : broken(
            name,
            "its members are not those that it was sealed with: some are missing, changed, or of another night",
          );
    });
  return {
    push,
    /** All members have come by. */
    through: () => walk.offset >= list.bytes(),
    /** Of slots: of which run it is, by its seal. */
    run: () => walk.seal?.run,
    /** Says that all members were there. */
    finish: Effect.gen(function* () {
      while (walk.offset < size) {
        yield* push(zeros.subarray(0, Math.min(zeros.length, size - walk.offset)));
      }
      const fault = walk.finish();
      if (fault !== undefined) return yield* broken(name, fault.message);
    }),
  };
});
