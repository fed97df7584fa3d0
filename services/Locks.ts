/** Locks that the kernel releases when their holder dies, however it dies. */
import { Context, type Duration, type Effect, Schema, type Scope } from "effect";

/** Somebody else holds the lock and did not let go in time. */
export class LockBusy extends Schema.TaggedError<LockBusy>()("LockBusy", {}) {}

/** The lock could be neither taken nor found taken (no descriptors left, not permitted). */
export class LockFailed extends Schema.TaggedError<LockFailed>()("LockFailed", {
  cause: Schema.Defect(),
}) {}

export class Locks extends Context.Service<
  Locks,
  {
    /**
     * Holds `key` until the scope closes. At most one holder at a time on this machine.
     *
     * With `stepDownWithin` the present holder is asked to let go and is waited for that long;
     * without it a held lock fails at once. `key` is a secret where others share the machine: who
     * knows it can ask the holder to step down; the name that the kernel shows does not reveal it.
     */
    readonly hold: (
      key: string,
      options?: { readonly stepDownWithin?: Duration.Input },
    ) => Effect.Effect<
      {
        /** Returns once somebody has asked this holder to step down. */
        readonly asked: Effect.Effect<void>;
      },
      LockBusy | LockFailed,
      Scope.Scope
    >;
  }
>()("qbackup/services/Locks") {}
