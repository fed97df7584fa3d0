/** Bounded pipes in memory, and calls that run the other side's program in this runtime. */
import { Effect, Fiber, Latch, Layer } from "effect";
import { BytesError, type Sink, type Source } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { Qrexec } from "#services/Qrexec";
import { SshTransport } from "#services/SshTransport";

/** Who learns that a pipe is broken. Whoever does not waits for what never comes. */
export interface Loss {
  /** The reader is at the end of the bytes, or its read fails. */
  readonly reader?: "ended" | "failed" | undefined;
  readonly writer?: boolean;
  /** What is in the pipe can still be read. */
  readonly keep?: boolean;
}

export interface Pipe {
  readonly source: Source;
  readonly sink: Sink;
  /** Both ends fail from now on, and what is in the pipe is lost: a dead link. */
  readonly cut: Effect.Effect<void>;
  /** Nothing goes through any more. Said again, it tells those who have not learnt of it. */
  readonly lose: (loss: Loss) => Effect.Effect<void>;
}

/**
 * A pipe that holds at most `capacity` bytes (more only for a single larger write). `pass` sees each
 * write on its way and may delay it, change it, divide it, or break the pipe.
 */
export const memoryPipe = (
  capacity = 131_072,
  pass: (bytes: Uint8Array) => Effect.Effect<Uint8Array | ReadonlyArray<Uint8Array>> = (bytes) =>
    Effect.succeed(bytes),
): Pipe => {
  let held: Array<Uint8Array> = [];
  let size = 0;
  let received = 0;
  let ended = false;
  /** Whether bytes still arrive; what the two ends know of it. */
  let lost = false;
  let reader: Loss["reader"];
  let writerKnows = false;
  const moved = Latch.makeUnsafe(false);
  const turn = Effect.suspend(() => {
    moved.closeUnsafe();
    return moved.await;
  });
  const wake = Effect.sync(() => void moved.openUnsafe());
  const failed = new BytesError({ cause: new Error("cut") });

  const source: Source = {
    received: () => received,
    read: Effect.fnUntraced(function* (into: Uint8Array, atLeast = 1) {
      let got = 0;
      for (;;) {
        for (let first = held[0]; first !== undefined && got < into.length; first = held[0]) {
          const n = Math.min(first.length, into.length - got);
          into.set(first.subarray(0, n), got);
          got += n;
          size -= n;
          received += n;
          if (n === first.length) held.shift();
          else held[0] = first.subarray(n);
        }
        yield* wake;
        if (got >= atLeast) return got;
        // Waking the writer may have let it write already: then nobody would wake us.
        if (held.length > 0) continue;
        if (reader === "failed") return yield* failed;
        if (ended || reader === "ended") return got;
        yield* turn;
      }
    }),
  };
  const put = Effect.fnUntraced(function* (bytes: Uint8Array) {
    while (!writerKnows && !ended && size > 0 && size + bytes.length > capacity) yield* turn;
    if (writerKnows || ended) return yield* failed;
    if (bytes.length === 0) return;
    // On a lost link the bytes fill a buffer of this machine, and no more.
    if (!lost) held.push(bytes);
    size += bytes.length;
    yield* wake;
  });
  const sink: Sink = {
    write: Effect.fnUntraced(function* (bytes: Uint8Array) {
      const passed = yield* pass(bytes.slice());
      if (passed instanceof Uint8Array) yield* put(passed);
      else yield* Effect.forEach(passed, put, { discard: true });
    }),
    end: Effect.suspend(() => {
      if (!lost) ended = true;
      return wake;
    }),
  };
  const lose = (loss: Loss) =>
    Effect.suspend(() => {
      lost = true;
      reader ??= loss.reader;
      writerKnows ||= loss.writer === true;
      if (loss.keep !== true) {
        held = [];
        size = 0;
      }
      return wake;
    });
  return { source, sink, cut: lose({ reader: "failed", writer: true }), lose };
};

/** The link of one call, as a test shapes it. */
export interface Link {
  readonly up: Pipe;
  readonly down: Pipe;
}

/** An exit code, and what stood on stderr. */
interface Ended {
  readonly code: number;
  readonly said: ReadonlyArray<string>;
}

/**
 * Runs `program` as the service that is called, in its own layers; it is interrupted with the call,
 * as a process is killed. Where its value is an exit code alone, it has said nothing. `link` makes the two pipes and may cut them whenever it likes.
 */
export const inProcessQrexec = (
  program: (invocation: Invocation["Service"], service: string) => Effect.Effect<number | Ended>,
  link: Effect.Effect<Link>,
): Layer.Layer<Qrexec> =>
  Layer.succeed(Qrexec, {
    call: Effect.fnUntraced(function* (_qube: string, service: string) {
      const { up, down } = yield* link;
      const [, verb] = service.split("+");
      const fiber = yield* Effect.forkScoped(
        program(
          {
            args: verb === undefined ? [] : [verb],
            env: { QREXEC_REMOTE_DOMAIN: "dom0" },
            stdin: up.source,
            stdout: down.sink,
            entropy: () => new Uint8Array(0),
          },
          service,
        ).pipe(Effect.ensuring(Effect.andThen(down.sink.end, up.cut))),
      );
      return {
        stdin: up.sink,
        stdout: down.source,
        ended: Fiber.join(fiber).pipe(
          Effect.map((end) => (typeof end === "number" ? { code: end, said: [] } : end)),
          Effect.orDie,
        ),
      };
    }),
  });

/** Runs `program` as the far end of ssh, on the stdin and stdout that the carrier was given. */
export const inProcessSsh = (
  program: (invocation: Invocation["Service"]) => Effect.Effect<number>,
): Layer.Layer<SshTransport, never, Invocation> =>
  Layer.effect(
    SshTransport,
    Effect.map(Invocation, (mine) => ({
      read: () => Effect.die(new Error("ssh was to be read")),
      handOver: (_destination: string, command: string) =>
        program({ ...mine, args: ["-c", command], env: {} }).pipe(
          Effect.map((code) => ({ code, reason: "done" as const, said: [] })),
        ),
    })),
  );
