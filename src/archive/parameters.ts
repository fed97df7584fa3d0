/** What only tests set: samples small enough to keep have smaller chunks than Qubes makes. */
import { Context } from "effect";
import { fullChunk } from "./walk.ts";

/** Bytes of a full chunk. Nothing from outside a program reaches it. */
export const FullChunk = Context.Reference<number>("qbackup/archive/FullChunk", {
  defaultValue: () => fullChunk,
});
