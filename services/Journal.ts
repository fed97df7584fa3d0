/** The server's log: what its clients did, for its owner. It never fails what it tells of. */
import { Context, type Effect } from "effect";
import type { Line } from "#src/say/shown";

export interface Entry {
  readonly text: Line;
  /** The root of the store that it is about; undefined is the home of the account. */
  readonly store: string | undefined;
  /** Written however many there are: what no stranger can bring about. */
  readonly weighty?: true;
}

export class Journal extends Context.Service<
  Journal,
  {
    /** Writes a line. One that cannot be written, or comes among too many, is dropped. */
    readonly write: (entry: Entry) => Effect.Effect<void>;
  }
>()("qbackup/services/Journal") {}
