/** Calls a qrexec service through qvm-run: `qvm-run --no-gui --pass-io --service QUBE SERVICE`. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { child, type Env, signalGroup } from "#layers/process/Child";
import { fromReadable, toWritable } from "#layers/process/FdBytes";
import { Qrexec, QrexecError } from "#services/Qrexec";

/**
 * `--no-gui`, because qvm-run otherwise waits for a session in the qube where DISPLAY is set. When
 * the scope closes the service is first told so by the end of its stdin, after half a second by
 * SIGTERM to qvm-run and its group, 2 s later by SIGKILL.
 */
export const qvmRunQrexec = (env?: Env): Layer.Layer<Qrexec> =>
  Layer.succeed(Qrexec, {
    call: Effect.fnUntraced(
      function* (qube, service) {
        const it = yield* child(["qvm-run", "--no-gui", "--pass-io", "--service", qube, service], {
          stdio: "pipe",
          env,
          ask: ({ exited, proc }) =>
            Effect.gen(function* () {
              proc.stdin!.end();
              yield* Effect.timeoutOption(exited, "500 millis");
              if (proc.exitCode === null && proc.signalCode === null) {
                signalGroup(proc.pid, "SIGTERM");
              }
            }),
          grace: "2500 millis",
        });
        // Whoever inherited its pipes would keep them open: a dead call has to look dead.
        it.proc.once("exit", () => it.proc.stdin!.destroy());
        yield* it.exited.pipe(
          Effect.andThen(Effect.sleep("2 seconds")),
          Effect.andThen(it.killGroup),
          Effect.forkScoped,
        );
        return {
          stdin: toWritable(it.proc.stdin!),
          stdout: fromReadable(it.proc.stdout!),
          ended: it.ended,
        };
      },
      Effect.mapError((cause) => new QrexecError({ cause })),
    ),
  });
