/** A qvm-backup made of given bytes, for tests: with its delays, its exit, and its ways to hang. */
import * as Deferred from "effect/Deferred";
import type * as Duration from "effect/Duration";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Redacted from "effect/Redacted";
import type { Source } from "#services/Bytes";
import { QubesError } from "#services/Qubes";
import { type Ended, type Plan, QvmBackup } from "#services/QvmBackup";

export interface Chunk {
  readonly bytes?: Uint8Array;
  /** Waited for before the bytes are written. */
  readonly after?: Duration.Input;
  /** Shown once they are. */
  readonly percent?: number;
}

export interface QvmBackupScript {
  readonly chunks: ReadonlyArray<Chunk>;
  /** What it writes in their place where no files are tapped. */
  readonly untapped?: ReadonlyArray<Chunk>;
  /** The files of a tapped backup; each is taken before a byte is written. */
  readonly files?: ReadonlyArray<Uint8Array>;
  /** Waited for before each of them. */
  readonly fileAfter?: Duration.Input;
  /** What the passphrase file holds. */
  readonly passphrase?: string;
  /** Never exits by itself, once it has written its bytes. */
  readonly hangs?: boolean;
  readonly ends?: Ended;
  /** When it exits, as `ends` says, whatever it was doing: what it had open then is held open by qubesd. */
  readonly diesAfter?: Duration.Input;
  /** The text that a start fails with. */
  readonly refuses?: string;
  readonly passphraseWarning?: string;
  readonly passphraseUnfit?: string;
  readonly passphraseDoubts?: ReadonlyArray<string>;
  /** The text that the check of the passphrase file fails with. */
  readonly passphraseRefused?: string;
  /** Called when it exits with 0. */
  readonly onDone?: (plan: Plan) => void;
  /** Programs that do not compress. */
  readonly noFilter?: ReadonlyArray<string>;
  readonly recovers?: ReadonlyArray<string>;
  /** Filled in: the plans that were started, how many of them had to be cancelled, recoveries. */
  readonly started: Array<Plan>;
  cancelled: number;
  recovered: number;
}

export const qvmBackupScript = (
  script: Omit<QvmBackupScript, "started" | "cancelled" | "recovered">,
): QvmBackupScript => ({ ...script, started: [], cancelled: 0, recovered: 0 });

/** As much as a FIFO of Linux holds. */
const capacity = 65_536;

export const memoryQvmBackup = (script: QvmBackupScript): Layer.Layer<QvmBackup> =>
  Layer.succeed(QvmBackup, {
    start: Effect.fnUntraced(function* (plan: Plan) {
      script.started.push(plan);
      if (script.refuses !== undefined) {
        return yield* new QubesError({ doing: "start qvm-backup", detail: script.refuses });
      }
      const exit = Deferred.makeUnsafe<Ended>();
      const waiting = new Set<() => void>();
      const wake = () => waiting.forEach((look) => look());
      const until = (ready: () => boolean) =>
        Effect.callback<void>((done) => {
          const look = () => {
            if (!ready()) return;
            waiting.delete(look);
            done(Effect.void);
          };
          waiting.add(look);
          look();
          return Effect.sync(() => void waiting.delete(look));
        });
      const held: Array<Uint8Array> = [];
      let size = 0;
      let closed = false;
      let received = 0;
      let percent: number | undefined;
      let shown = 0;

      const write = Effect.fnUntraced(function* (bytes: Uint8Array) {
        for (let at = 0; at < bytes.length;) {
          yield* until(() => size < capacity);
          const part = bytes.subarray(at, at + capacity - size);
          held.push(part);
          size += part.length;
          at += part.length;
          wake();
        }
      });
      const taken = { next: 0, done: 0 };
      yield* Effect.gen(function* () {
        yield* until(() => plan.tapped !== true || taken.done === (script.files?.length ?? 0));
        const chunks = plan.tapped === true ? script.chunks : (script.untapped ?? script.chunks);
        for (const { after, bytes, percent: now } of chunks) {
          if (after !== undefined) yield* Effect.sleep(after);
          if (bytes !== undefined) yield* write(bytes);
          if (now !== undefined) {
            percent = now;
            shown += 1;
          }
        }
        if (script.hangs === true) return yield* Effect.never;
        if ((script.ends?.code ?? 0) === 0) script.onDone?.(plan);
        closed = true;
        wake();
        return yield* Deferred.succeed(exit, script.ends ?? { code: 0, said: [] });
      }).pipe(Effect.forkScoped);
      const { diesAfter, ends } = script;
      if (diesAfter !== undefined && ends !== undefined) {
        yield* Effect.forkScoped(Effect.delay(Deferred.succeed(exit, ends), diesAfter));
      }
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          const said = ["Backup error: Backup cancelled"];
          if (Deferred.doneUnsafe(exit, Effect.succeed({ code: 1, said }))) script.cancelled += 1;
        }),
      );

      const nextFile = Effect.suspend(() => {
        const bytes = script.files?.[taken.next];
        if (bytes === undefined) return Effect.as(Deferred.await(exit), undefined);
        taken.next += 1;
        let at = 0;
        const { fileAfter } = script;
        const stream: Source = {
          received: () => at,
          read: (into, atLeast = 1) =>
            Effect.suspend(() => {
              if (at === bytes.length && diesAfter !== undefined) return Effect.never;
              const part = bytes.subarray(at, at + Math.max(atLeast, 10_000));
              const some = part.subarray(0, into.length);
              into.set(some);
              at += some.length;
              return Effect.succeed(some.length);
            }),
        };
        const done = Effect.sync(() => {
          taken.done += 1;
          wake();
        });
        const file = Effect.succeed({ stream, done });
        return fileAfter === undefined ? file : Effect.delay(file, fileAfter);
      });

      const archive: Source = {
        received: () => received,
        read: Effect.fnUntraced(function* (into: Uint8Array, atLeast = 1) {
          let got = 0;
          for (;;) {
            for (let first = held[0]; first !== undefined && got < into.length; first = held[0]) {
              const part = first.subarray(0, into.length - got);
              into.set(part, got);
              got += part.length;
              size -= part.length;
              received += part.length;
              if (part.length === first.length) held.shift();
              else held[0] = first.subarray(part.length);
              wake();
            }
            if (got >= atLeast || (closed && size === 0)) return got;
            yield* until(() => size > 0 || closed);
          }
        }),
      };
      return {
        archive,
        nextFile,
        ended: Deferred.await(exit),
        progress: () => ({ percent, shown }),
      };
    }),
    checkPassphrase: (file) =>
      script.passphraseRefused === undefined
        ? Effect.succeed({
            path: file.startsWith("/") ? file : `/home/user/${file}`,
            warning: script.passphraseWarning,
            characters: 28,
            unfit: script.passphraseUnfit,
            doubts: script.passphraseDoubts ?? [],
          })
        : Effect.fail(
            new QubesError({
              doing: `use the passphrase file ${file}`,
              detail: script.passphraseRefused,
            }),
          ),
    passphrase: () =>
      Effect.succeed(Redacted.make(new TextEncoder().encode(script.passphrase ?? "secret"))),
    compresses: (program) => Effect.succeed(script.noFilter?.includes(program) !== true),
    recover: Effect.sync(() => {
      script.recovered += 1;
      return script.recovers ?? [];
    }),
  });
