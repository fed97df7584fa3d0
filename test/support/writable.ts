/** A store on a disk in memory, opened for writing: for what is asked of it below the verbs. */
import { Effect, Layer } from "effect";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { Disk, memorySafeFs } from "#layers/memory/MemorySafeFs";
import { Invocation } from "#services/Invocation";
import { openForWriting, type WritableStore } from "#src/store/store";
import { pipe } from "#test/support/shell";

/** The server's key is always the same. */
export const inStore = <A, E>(work: (store: WritableStore, disk: Disk) => Effect.Effect<A, E>) => {
  const disk = new Disk();
  const { sink, source } = pipe();
  const invocation = Layer.succeed(Invocation, {
    args: [],
    env: {},
    stdin: source,
    stdout: sink,
    entropy: (bytes) => new Uint8Array(bytes).fill(9),
  });
  return Effect.flatMap(openForWriting({}), (store) => work(store, disk)).pipe(
    Effect.scoped,
    Effect.provide(Layer.mergeAll(memorySafeFs(disk), memoryLocks(), invocation)),
  );
};
