/** Locks that the kernel releases when their holder dies, however it dies. */
import { Context, type Duration, type Effect, Schema, type Scope } from "effect";

/** Another holder has the lock and did not let go in time. */
export class LockBusy extends Schema.TaggedError<LockBusy>()("LockBusy", {
  /** What holds it was asked to step down and does not know the key: it is no holder of ours. */
  stranger: Schema.Boolean,
}) {}

/** The lock could be neither taken nor found taken (no descriptors left, not permitted). */
export class LockFailed extends Schema.TaggedError<LockFailed>()("LockFailed", {
  cause: Schema.Defect(),
}) {}

/** How far these locks reach: who is somewhere else does not see them. */
export interface Reach {
  /** Changes each time that the machine starts. */
  readonly boot: string;
  /** Of that machine, which network namespace. */
  readonly namespace: string;
}

export class Locks extends Context.Service<
  Locks,
  {
    /**
     * Holds `key` until the scope closes. At most one holder at a time within `reach`.
     *
     * With `stepDownWithin` the present holder is asked to let go and is waited for that long;
     * without it a held lock fails at once. `key` is a secret where others share the machine: who
     * knows it can ask the holder to step down. Neither the name that the kernel shows nor what is
     * said to a holder reveals it, or is of any use with another holder.
     */
    readonly hold: (
      key: string,
      options?: { readonly stepDownWithin?: Duration.Input },
    ) => Effect.Effect<
      {
        /** Returns once another one has asked this holder to step down. */
        readonly asked: Effect.Effect<void>;
      },
      LockBusy | LockFailed,
      Scope.Scope
    >;
    /** Undefined where the system does not say. */
    readonly reach: Effect.Effect<Reach | undefined>;
  }
>()("qbackup/services/Locks") {}
