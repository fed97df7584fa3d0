/** Bounded pipes in memory, and calls that run the other side's program in this runtime. */
import { Effect, Fiber, Latch, Layer } from "effect";
import { BytesError, type Sink, type Source } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { Qrexec } from "#services/Qrexec";
import { SshTransport } from "#services/SshTransport";

export interface Pipe {
  readonly source: Source;
  readonly sink: Sink;
  /** Both ends fail from now on, and what is in the pipe is lost: a dead link. */
  readonly cut: Effect.Effect<void>;
}

/**
 * A pipe that holds at most `capacity` bytes (more only for a single larger write). `pass` sees each
 * write on its way and may delay it, change it, or cut the pipe.
 */
export const memoryPipe = (
  capacity = 131_072,
  pass: (bytes: Uint8Array) => Effect.Effect<Uint8Array> = Effect.succeed,
): Pipe => {
  let held: Array<Uint8Array> = [];
  let size = 0;
  let received = 0;
  let ended = false;
  let dead = false;
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
        if (dead) return yield* failed;
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
        if (got >= atLeast || ended) return got;
        yield* turn;
      }
    }),
  };
  const sink: Sink = {
    write: Effect.fnUntraced(function* (bytes: Uint8Array) {
      const passed = yield* pass(Uint8Array.from(bytes));
      while (!dead && !ended && size > 0 && size + passed.length > capacity) yield* turn;
      if (dead || ended) return yield* failed;
      if (passed.length > 0) held.push(passed);
      size += passed.length;
      yield* wake;
    }),
    end: Effect.suspend(() => {
      ended = true;
      return wake;
    }),
  };
  const cut = Effect.suspend(() => {
    dead = true;
    held = [];
    size = 0;
    return wake;
  });
  return { source, sink, cut };
};

/** The link of one call, as a test shapes it. */
export interface Link {
  readonly up: Pipe;
  readonly down: Pipe;
}

/**
 * Runs `program` as the service that is called, in its own layers; it is interrupted with the call,
 * as a process is killed. `link` makes the two pipes and may cut them whenever it likes.
 */
export const inProcessQrexec = (
  program: (invocation: Invocation["Service"], service: string) => Effect.Effect<number>,
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
          Effect.map((code) => ({ code, said: [] })),
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
      handOver: (_destination: string, command: string) =>
        program({ ...mine, args: ["-c", command], env: {} }).pipe(
          Effect.map((code) => ({ code, reason: "done" as const, said: [] })),
        ),
    })),
  );
