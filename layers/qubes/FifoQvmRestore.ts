/**
 * qvm-backup-restore reading FIFOs that are fed here.
 *
 * It opens the same path three times, and a FIFO that is opened again while its writer is still there
 * would go on where the last reading stopped. So each reading has a FIFO of its own: the next one is
 * renamed into place as soon as the present one has a reader, which is before a byte is written, so
 * before that reader can be done. After the last one the path is gone.
 *
 * Opening is not waited for in the kernel, which would hold up a thread that nothing can interrupt:
 * O_NONBLOCK fails until there is a reader, and is tried again and again. A reader that stops shows as
 * EPIPE; one that dies before it opened anything, by its exit.
 */
import * as Deferred from "effect/Deferred";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import * as fs from "node:fs";
import { Socket } from "node:net";
import { homedir } from "node:os";
import * as path from "node:path";
import {
  type Argv,
  type Child,
  child,
  collector,
  type Env,
  run,
  signalGroup,
} from "#layers/process/Child";
import { makeDirectories } from "#layers/files/StateDirectory";
import { toWritable } from "#layers/process/FdBytes";
import type { Sink } from "#services/Bytes";
import { Qube, QubesError } from "#services/Qubes";
import { QvmRestore, type RestorePlan } from "#services/QvmRestore";
import { printable } from "#src/say/shown";

/** Milliseconds. */
export const limits = {
  /** Between two looks for a reader. */
  look: 20,
  /** From SIGINT, as of a terminal's Ctrl-C, to SIGTERM; to SIGKILL, where this process was killed. */
  again: 5_000,
  /** From SIGINT to SIGKILL. */
  kill: 10_000,
};

const { O_NOFOLLOW, O_NONBLOCK, O_WRONLY } = fs.constants;
const readings = 3;

/**
 * Run by sh, with a pipe of this process as descriptor 3. Without the process that waits for the end
 * of that pipe, a tool whose feeder was killed would take that for the archive's end. The whole group
 * hears it, as in `stop`: the tool's own workers are not told by it, and it waits for them for ever.
 * SIGINT passes by those that sh starts with &; SIGKILL does not.
 */
const script = (seconds: number) =>
  `umask 077; { read -r _ <&3 || { kill -INT 0; sleep ${seconds}; kill -KILL 0; }; } >/dev/null 2>&1 & exec "$@" 3<&-`;

const why = (cause: unknown) => printable(cause instanceof Error ? cause.message : String(cause));
const attempt = <A>(doing: string, what: () => A) =>
  Effect.try({ try: what, catch: (cause) => new QubesError({ doing, detail: why(cause) }) });

const isQubeName = Schema.is(Qube.fields.name);

/** A name that is an option, or an empty one, would change what is restored, or where. */
const checked = (plan: RestorePlan) => {
  const bad = plan.qubes.find((name) => !isQubeName(name));
  return bad === undefined && path.isAbsolute(plan.passphraseFile)
    ? Effect.void
    : Effect.fail(
        new QubesError({
          doing: "name what to restore",
          detail: bad === undefined ? "the passphrase file's path is not absolute" : printable(bad),
        }),
      );
};

const optionsOf = (plan: RestorePlan): ReadonlyArray<string> => [
  ...(plan.verifyOnly ? ["--verify-only"] : []),
  "--passphrase-file",
  plan.passphraseFile,
  ...plan.options,
];

/** Whether any process of this machine is that program. */
const runs = (program: string, proc: string): boolean =>
  fs.readdirSync(proc).some((pid) => {
    try {
      const words = fs.readFileSync(path.join(proc, pid, "cmdline"), "utf8").split("\0");
      return words.slice(0, 2).some((word) => path.basename(word) === program);
    } catch {
      return false; // it has ended, or was no process
    }
  });

/** As a terminal does it: everybody in the group hears SIGINT. */
const stop =
  (limit: typeof limits) =>
  ({ exited, proc }: Child) =>
    Effect.gen(function* () {
      signalGroup(proc.pid, "SIGINT");
      if (Option.isSome(yield* Effect.timeoutOption(exited, limit.again))) return;
      signalGroup(proc.pid, "SIGTERM");
    });

export interface FifoRestoreOptions {
  /** Where the tool unpacks what it restores; ~/QubesIncoming if not given. */
  readonly unpacking?: string;
  /** Where processes are looked for; /proc if not given. */
  readonly proc?: string;
  /** Absolute. It is made, and each process has a directory in it, which goes with it. */
  readonly directory: string;
  readonly env?: Env | undefined;
  readonly limits?: Partial<typeof limits>;
}

export const fifoQvmRestore = (options: FifoRestoreOptions): Layer.Layer<QvmRestore> =>
  Layer.sync(QvmRestore, () => {
    const { env } = options;
    const limit = { ...limits, ...options.limits };
    const directory = path.join(options.directory, `${process.pid}`);
    const fifo = path.join(directory, "archive");
    const doing = "make FIFOs for qvm-backup-restore";

    /** Links are removed, not followed. */
    const remove = (place: string) => fs.rmSync(place, { recursive: true, force: true });
    const makeFifos = Effect.gen(function* () {
      yield* attempt(doing, () => {
        makeDirectories(options.directory);
        const found = fs.lstatSync(options.directory);
        if (!found.isDirectory() || found.uid !== process.getuid!()) {
          throw new Error(
            `${printable(options.directory)} is no directory of this user: remove it`,
          );
        }
        fs.chmodSync(options.directory, 0o700); // whatever the umask was
        for (const name of fs.readdirSync(options.directory)) {
          // What a killed run left.
          if (!fs.existsSync(`/proc/${name}`)) remove(path.join(options.directory, name));
        }
        remove(directory);
        fs.mkdirSync(directory, { mode: 0o700 });
      });
      const names = [fifo, ...Array.from({ length: readings - 1 }, (_, i) => `${fifo}.${i + 2}`)];
      const made = yield* run(["mkfifo", "-m", "600", ...names], { limit: "5 seconds", env }).pipe(
        Effect.mapError((error) => new QubesError({ doing, detail: error.message })),
      );
      if (made.code !== 0) return yield* new QubesError({ doing, detail: made.said.join("; ") });
      return names.slice(1);
    });

    const tool = Effect.fnUntraced(function* (plan: RestorePlan, words: ReadonlyArray<string>) {
      const see = (line: string, whole: boolean) => {
        if (whole) plan.see(line);
        return false;
      };
      const it = yield* child(
        [
          ...(["sh", "-c", script(limit.again / 1000), "sh"] as const),
          "qvm-backup-restore",
          ...words,
        ] satisfies Argv,
        {
          stdio: ["ignore", "pipe", "pipe", "pipe"],
          env,
          see,
          ask: stop(limit),
          grace: limit.kill,
        },
      ).pipe(
        Effect.mapError(
          (error) => new QubesError({ doing: "start qvm-backup-restore", detail: error.message }),
        ),
      );
      // A table for people; in paranoid mode the log of the disposable, too.
      const shut = Deferred.makeUnsafe<void>();
      const table = collector(see);
      it.proc.stdout!.on("data", table.push);
      it.proc.stdout!.once("close", () => Deferred.doneUnsafe(shut, Effect.void));
      const ended = it.ended.pipe(
        Effect.tap(Effect.timeoutOption(Deferred.await(shut), "1 second")),
        Effect.map(({ code, said }) => ({ code, said: said.length > 0 ? said : table.said() })),
      );
      return { ...it, ended };
    });

    return {
      start: Effect.fnUntraced(function* (plan: RestorePlan) {
        yield* checked(plan);
        const open = new Set<Socket>();
        // Registered before the tool is started, so that the tool is gone before its source ends.
        const waiting = yield* Effect.acquireRelease(makeFifos, () =>
          Effect.sync(() => {
            open.forEach((socket) => socket.destroy());
            remove(directory);
            // Fails where another process has its own there.
            fs.rmdirSync(options.directory);
          }).pipe(Effect.ignoreCause),
        );
        const it = yield* tool(plan, [...optionsOf(plan), fifo, ...plan.qubes]);

        const openFifo = () => {
          try {
            const fd = fs.openSync(fifo, O_WRONLY | O_NONBLOCK | O_NOFOLLOW);
            if (fs.fstatSync(fd).isFIFO()) return fd;
            fs.closeSync(fd);
            throw new Error(`${fifo} is no FIFO`);
          } catch (cause) {
            const { code } = cause as NodeJS.ErrnoException;
            if (code === "ENXIO") return undefined;
            throw cause;
          }
        };
        let left = readings;
        const reading = attempt("feed qvm-backup-restore", (): Sink | undefined => {
          const fd = openFifo();
          if (fd === undefined) return undefined;
          left -= 1;
          const next = waiting.shift();
          if (next === undefined) fs.unlinkSync(fifo);
          else fs.renameSync(next, fifo);
          const socket = new Socket({ fd, readable: false, writable: true });
          open.add(socket);
          return {
            write: toWritable(socket).write,
            // Not by shutdown, which only sockets know. What was written is in the FIFO.
            end: Effect.sync(() => {
              open.delete(socket);
              socket.destroy();
            }),
          };
        });
        const reader = Effect.gen(function* () {
          for (;;) {
            if (left === 0) return yield* Effect.never;
            const sink = yield* reading;
            if (sink !== undefined) return sink;
            yield* Effect.sleep(limit.look);
          }
        });
        return {
          opened: Effect.raceFirst(Effect.as(it.exited, undefined), reader),
          ended: it.ended,
        };
      }),

      leftovers: Effect.sync(() => {
        const place = path.join(
          options.unpacking ?? path.join(homedir(), "QubesIncoming"),
          "backup#restore",
        );
        if (!fs.existsSync(place) || runs("qvm-backup-restore", options.proc ?? "/proc")) return [];
        return fs.readdirSync(place).map((name) => path.join(place, name));
      }),
      startParanoid: Effect.fnUntraced(function* (plan: RestorePlan, qube, command) {
        yield* checked(plan);
        // Nobody is there to close the window that it shows its log in.
        const mode = ["--paranoid-mode", "--auto-close", "--dest-vm", qube];
        return yield* tool(plan, [...optionsOf(plan), ...mode, command, ...plan.qubes]);
      }),
    };
  });
