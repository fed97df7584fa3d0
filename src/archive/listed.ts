/**
 * A walk over the bytes of all members of a list, in its order: each must be what the list calls it. Slots
 * have one backup-id for many nights, so that members of another one open as well: all that the header seals
 * must be in the list. That the header is the one that was made, the passphrase tells, and qvm-backup-restore
 * asks it.
 */
import type { Members } from "#src/proof/members";
import { headCount } from "./compose.ts";
import { ArchiveFault, MemberWalk } from "./walk.ts";

type Options = Pick<
  NonNullable<ConstructorParameters<typeof MemberWalk>[0]>,
  "format" | "fullChunk"
>;

export const listedWalk = (options: Options, list: Members) => {
  let members = 0;
  const walk: MemberWalk = new MemberWalk({
    ...options,
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
  /** What is wrong; nothing where all is well. */
  const push = (bytes: Uint8Array): string | undefined => {
    for (let at = 0; at < bytes.length && walk.fault === undefined;) {
      at += walk.take(bytes.subarray(at));
    }
    if (walk.fault !== undefined) return walk.fault.message;
    if (walk.seal === undefined) return undefined;
    sealed ??= list.root(headCount);
    return sealed === walk.seal.root
      ? undefined
      : "its members are not those that it was sealed with: some are missing, changed, or of another night";
  };
  return {
    push,
    /** Bytes walked so far. */
    offset: () => walk.offset,
    /** All members have come by. */
    through: () => walk.offset >= list.bytes(),
    /** Of slots: of which run it is, by its seal. */
    run: () => walk.seal?.run,
    /** Says that the bytes end here; gives what is wrong. */
    finish: () => walk.finish()?.message,
  };
};
