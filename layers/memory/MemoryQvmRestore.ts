/** A qvm-backup-restore that keeps what it is fed, for tests: with its exit, and its ways to fail. */
import * as Deferred from "effect/Deferred";
import type * as Duration from "effect/Duration";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { BytesError, type Sink } from "#services/Bytes";
import { QubesError } from "#services/Qubes";
import { type Ended, QvmRestore, type RestorePlan } from "#services/QvmRestore";

export interface QvmRestoreScript {
  /** Bytes after which a reading ends, by its number from 0: the tool has seen enough. */
  readonly stopsAfter?: ReadonlyArray<number | undefined>;
  /** Exits instead of opening its archive for the reading of this number. */
  readonly exitsBefore?: number;
  /** Takes no byte more in the reading of this number, and never exits. */
  readonly hangsIn?: number;
  /** Never opens its archive for the reading of this number, and never exits. */
  readonly neverOpens?: number;
  readonly after?: Duration.Input;
  /** Said at the end. */
  readonly says?: ReadonlyArray<string>;
  readonly code?: number;
  /** How long it takes where it fetches the archive by itself. */
  readonly takes?: Duration.Input;
  /** How long it goes on when it has all bytes. */
  readonly writes?: Duration.Input;
  /** Directories that one before has left. */
  readonly leftovers?: ReadonlyArray<string>;
  /** The text that a start fails with. */
  readonly refuses?: string;
  /** Filled in: what was started, what each reading got, how many had to be stopped. */
  readonly started: Array<RestorePlan>;
  readonly commands: Array<string>;
  readonly fed: Array<Buffer>;
  stopped: number;
}

export const qvmRestoreScript = (
  script: Omit<QvmRestoreScript, "started" | "commands" | "fed" | "stopped"> = {},
): QvmRestoreScript => ({ ...script, started: [], commands: [], fed: [], stopped: 0 });

const readings = 3;

export const memoryQvmRestore = (script: QvmRestoreScript): Layer.Layer<QvmRestore> => {
  const begin = Effect.fnUntraced(function* (plan: RestorePlan) {
    script.started.push(plan);
    if (script.refuses !== undefined) {
      return yield* new QubesError({ doing: "start qvm-backup-restore", detail: script.refuses });
    }
    const ended = Deferred.makeUnsafe<Ended>();
    const exit = Effect.sync(() => {
      const said = script.says ?? [];
      if (Deferred.isDoneUnsafe(ended)) return;
      said.forEach(plan.see);
      Deferred.doneUnsafe(ended, Effect.succeed({ code: script.code ?? 0, said }));
    });
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        const said = ["KeyboardInterrupt"];
        if (Deferred.doneUnsafe(ended, Effect.succeed({ code: 130, said }))) script.stopped += 1;
      }),
    );
    return { ended, exit };
  });
  const gone = new BytesError({ cause: new Error("EPIPE") });

  return Layer.succeed(QvmRestore, {
    start: Effect.fnUntraced(function* (plan: RestorePlan) {
      const { ended, exit } = yield* begin(plan);
      let reading = 0;
      const open = (number: number): Sink => {
        const parts: Array<Uint8Array> = [];
        let got = 0;
        const most = script.stopsAfter?.[number] ?? Number.POSITIVE_INFINITY;
        script.fed[number] = Buffer.alloc(0);
        return {
          write: Effect.fnUntraced(function* (bytes: Uint8Array) {
            if (number === script.hangsIn) return yield* Effect.never;
            if (script.after !== undefined) yield* Effect.sleep(script.after);
            parts.push(Uint8Array.from(bytes.subarray(0, most - got)));
            script.fed[number] = Buffer.concat(parts);
            got += bytes.length;
            if (got <= most) return;
            if (number === readings - 1) yield* exit;
            return yield* gone;
          }),
          end: Effect.suspend(() =>
            number === readings - 1
              ? Effect.andThen(Effect.sleep(script.writes ?? 0), exit)
              : Effect.void,
          ),
        };
      };
      return {
        opened: Effect.suspend(() => {
          const number = reading;
          if (number === script.neverOpens) return Effect.never;
          if (number >= readings || number === script.exitsBefore) {
            return Effect.as(Effect.andThen(exit, Deferred.await(ended)), undefined);
          }
          reading += 1;
          return Effect.succeed(open(number));
        }),
        ended: Deferred.await(ended),
      };
    }),
    leftovers: Effect.sync(() => script.leftovers ?? []),
    startParanoid: Effect.fnUntraced(function* (plan, qube, command) {
      const { ended, exit } = yield* begin(plan);
      script.commands.push(`${qube}: ${command}`);
      yield* Effect.forkScoped(Effect.andThen(Effect.sleep(script.takes ?? 0), exit));
      return { ended: Deferred.await(ended) };
    }),
  });
};
