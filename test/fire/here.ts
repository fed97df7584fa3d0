/**
 * qbackup-shell in this process, on a real store: for what goes before a built program is killed or
 * starved, and after it. It is the same code, and need not be started a thousand times for that.
 */
import { Effect, Layer } from "effect";
import { nodeSafeFs } from "#layers/files/NodeSafeFs";
import { unixLocks } from "#layers/files/UnixLocks";
import { FullChunk } from "#src/archive/parameters";
import * as shell from "#test/support/shell";
import { isWhole, keyIn, type Parcel, type Put, type Said, ticketOf } from "./wire.ts";

export const world: shell.World = {
  ...shell.worldOf(Layer.mergeAll(nodeSafeFs, unixLocks)),
  fullChunk: FullChunk.defaultValue(),
};
export const inStore = (store: string): ReadonlyArray<string> => ["--root", store];

/** As `upload` of wire.ts. */
export const uploadHere = async (
  store: string,
  parcel: Parcel,
  options: { readonly cutAt?: number } = {},
): Promise<Omit<Put, "ran">> => {
  const put = { ...ticketOf(parcel), archive: parcel.archive, args: inStore(store), ...options };
  const { replies } = await Effect.runPromise(
    shell.upload(world, { ...put, server: keyIn(store) }),
  );
  const said = replies as ReadonlyArray<unknown> as ReadonlyArray<Said>;
  const last = said.at(-1);
  const offsets = said.map(({ offset }) => Number(offset ?? 0));
  return {
    first: said[0],
    stored: last?.type === "stored" ? last : undefined,
    error: last?.type === "error" ? last : undefined,
    acked: Math.max(0, ...offsets),
  };
};

/** As `listed` of wire.ts. */
export const listedHere = async (store: string): Promise<number> => {
  const { archives, code } = await Effect.runPromise(shell.listed(world, "", inStore(store)));
  if (code !== 0) throw new Error(`list: exit ${code}`);
  for (const each of archives) isWhole(store, each);
  return archives.length;
};
