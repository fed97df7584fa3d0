/** What the process was given by whoever started it. */
import { Context } from "effect";
import type { Sink, Source } from "#services/Bytes";

export class Invocation extends Context.Service<
  Invocation,
  {
    /** argv without the interpreter and the script. */
    readonly args: ReadonlyArray<string>;
    readonly env: Readonly<Record<string, string | undefined>>;
    /** Who runs the process; undefined where nobody asked the system. */
    readonly uid?: number;
    readonly stdin: Source;
    readonly stdout: Sink;
    /** A person looks on: what goes wrong need not be told anywhere else. */
    readonly watched?: boolean;
    /** How wide stdout is, where it is a terminal. */
    readonly columns?: number;
    /** The kernel's random bytes: session ids and keys come from here, never from a seeded generator. */
    readonly entropy: (bytes: number) => Uint8Array;
  }
>()("qbackup/services/Invocation") {}
