/** The real process: argv, environment, descriptors 0 and 1, the kernel's random bytes. */
import * as Layer from "effect/Layer";
import { randomBytes } from "node:crypto";
import { fstatSync, writeSync } from "node:fs";
import { Socket } from "node:net";
import * as Effect from "effect/Effect";
import { BytesError, type Sink, type Source } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { fromFd, toWritable } from "#layers/process/FdBytes";

/** A socket cannot be made of a file or /dev/null; writing to those never waits. */
const stdout = (): Sink => {
  const kind = fstatSync(1);
  if (!kind.isFile() && !kind.isCharacterDevice()) {
    return toWritable(new Socket({ fd: 1, readable: false, writable: true }));
  }
  return {
    write: (bytes) =>
      Effect.try({
        try: () => {
          for (let at = 0; at < bytes.length;) at += writeSync(1, bytes, at);
        },
        catch: (cause) => new BytesError({ cause }),
      }),
    end: Effect.void,
  };
};

/** `ahead`: see fromFd. Descriptors are only touched once somebody reads or writes them. */
export const nodeInvocation = (ahead?: number): Layer.Layer<Invocation> =>
  Layer.sync(Invocation, () => {
    let source: Source | undefined;
    let sink: Sink | undefined;
    const stdin = () => (source ??= fromFd(0, ahead));
    return {
      args: process.argv.slice(2),
      env: process.env,
      uid: process.getuid!(),
      stdin: {
        read: (into, atLeast) => Effect.suspend(() => stdin().read(into, atLeast)),
        received: () => source?.received() ?? 0,
      },
      stdout: {
        write: (bytes) => Effect.suspend(() => (sink ??= stdout()).write(bytes)),
        end: Effect.suspend(() => (sink ??= stdout()).end),
      },
      watched: process.stderr.isTTY,
      ...(process.stdout.isTTY ? { columns: process.stdout.columns } : {}),
      entropy: (bytes) => randomBytes(bytes),
    };
  });
