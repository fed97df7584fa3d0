/** What dom0 asks Qubes about its qubes. Every call has a limit; none waits for ever. */
import { Context, type Effect, Schema } from "effect";

/** Qubes did not do what it was asked; `detail` is what it said, made printable. */
export class QubesError extends Schema.TaggedError<QubesError>()("QubesError", {
  doing: Schema.String,
  detail: Schema.String,
}) {
  override get message(): string {
    return `could not ${this.doing}${this.detail === "" ? "" : `: ${this.detail}`}`;
  }
}

/** One line of qvm-ls. dom0 has the id 0 and the class AdminVM. */
export const Qube = Schema.Struct({
  name: Schema.String.check(Schema.isPattern(/^[A-Za-z][A-Za-z0-9_.-]{0,63}$/)),
  qid: Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)),
  state: Schema.String,
  class: Schema.String,
  /** Part of the set that qvm-backup takes when no qube is named. */
  included: Schema.Boolean,
  /** When qubesd last called it backed up ("Last backup"), in seconds since 1970; not set if never. */
  backedUp: Schema.optionalKey(Schema.Int),
});
export type Qube = typeof Qube.Type;

/** On is all that takes up memory, but for what is paused: qvm-run would unpause that, unasked. */
export type Power = "off" | "on" | "paused";

export class Qubes extends Context.Service<
  Qubes,
  {
    readonly list: Effect.Effect<ReadonlyArray<Qube>, QubesError>;
    /** Of a qube that does not exist: off. */
    readonly power: (qube: string) => Effect.Effect<Power, QubesError>;
    /** Returns when it runs; fine if it did already, or is paused. */
    readonly start: (qube: string) => Effect.Effect<void, QubesError>;
    /** Returns when it has stopped; fine if it had already. */
    readonly shutdown: (qube: string) => Effect.Effect<void, QubesError>;
    /**
     * The volume for which a running qube cannot be backed up: it keeps no snapshot of what was there
     * before the start, so qvm-backup fails as a whole (docs/qubes.md, Who does the work).
     */
    readonly unsavable: (qube: Qube) => Effect.Effect<string | undefined, QubesError>;
    /** What the volumes of a qube that are backed up can hold at most, in bytes. */
    readonly capacity: (qube: Qube) => Effect.Effect<number, QubesError>;
    /**
     * Makes a halted AppVM, red, without a network and not part of the default set. Where this fails there
     * may be one all the same: it is made first, and then set up.
     */
    readonly create: (qube: string) => Effect.Effect<void, QubesError>;
    /** Gives it this tag. A restore gives it back to the qube that it makes. */
    readonly mark: (qube: string, tag: string) => Effect.Effect<void, QubesError>;
    /** The names of those that have this tag. */
    readonly marked: (tag: string) => Effect.Effect<ReadonlyArray<string>, QubesError>;
    /** Puts these bytes in place of the private volume of a halted qube, which is as large as they are then. */
    readonly fill: (qube: string, image: Uint8Array) => Effect.Effect<void, QubesError>;
    /** Removes a halted qube with all that it has, unasked. */
    readonly remove: (qube: string) => Effect.Effect<void, QubesError>;
    /** The release of Qubes, and of the packages that back up and restore, as far as that is known. */
    readonly versions: Effect.Effect<ReadonlyArray<string>>;
    /** Sets the time of its last backup; undefined for a qube that never had one. */
    readonly setBackedUp: (qube: string, at: number | undefined) => Effect.Effect<void, QubesError>;
    /**
     * How often qubesd's journal complains of a broken pipe since then (seconds since 1970), which it
     * does when a scrypt died in the middle of a chunk; undefined where the journal may not be read.
     */
    readonly brokenPipes: (since: number) => Effect.Effect<number | undefined>;
    /**
     * Where qubesd puts its temporary files and how many bytes are free there. A chunk that no
     * longer fits is cut short without an error (docs/qubes.md, Temporary files), so `free` is asked
     * again and again: it must cost no more than a system call.
     */
    readonly scratch: Effect.Effect<
      { readonly path: string; readonly free: Effect.Effect<number, QubesError> },
      QubesError
    >;
  }
>()("qbackup/services/Qubes") {}
