/** What only tests set: samples small enough to keep have smaller chunks than Qubes makes. */
import { Context } from "effect";
import { slotSize } from "./slots.ts";
import { fullChunk } from "./walk.ts";

/** Bytes of a full chunk. Nothing from outside a program reaches it. */
export const FullChunk = Context.Reference<number>("qbackup/archive/FullChunk", {
  defaultValue: () => fullChunk,
});

/** Bytes of a slot, and of a chunk of what has none. */
export const SlotSize = Context.Reference<number>("qbackup/archive/SlotSize", {
  defaultValue: () => slotSize,
});
