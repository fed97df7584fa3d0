/**
 * qvm-backup writing into a FIFO that is read here.
 *
 * qubesd opens the path that it is given with a plain blocking open, in its only thread: while nobody
 * has the other end, every qvm-* command of the system hangs. So the FIFO never exists without a
 * reader while anybody may still open it, whatever is killed when (docs/qubes.md, FIFO):
 * - This process holds two read ends opened O_NONBLOCK, which waits for nobody: one is read, the
 *   other stays open until the FIFO's name is gone. It also holds a write end, the keeper, closed when
 *   qvm-backup has exited: so the end of file comes even if qubesd never opened the FIFO.
 * - qvm-backup inherits a read end, and gets SIGINT from the kernel when this process dies. It is the
 *   only signal that makes it cancel the backup in qubesd (docs/qubes.md, Cancelling).
 * - The FIFO lies in a directory of mode 0700, not under /tmp: in sticky directories the kernel
 *   forbids root to open other people's FIFOs (fs.protected_fifos).
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Redacted from "effect/Redacted";
import * as Schema from "effect/Schema";
import * as fs from "node:fs";
import * as path from "node:path";
import { type Argv, child, collector, type Env, run, signalGroup } from "#layers/process/Child";
import { passphraseIn, readPassphrase } from "#layers/files/Passphrase";
import { makeDirectories } from "#layers/files/StateDirectory";
import { makeFifo, openFifo } from "#layers/qubes/Fifo";
import { openTap } from "#layers/qubes/Tap";
import { BytesError, type Source } from "#services/Bytes";
import { Qube, QubesError } from "#services/Qubes";
import { type Plan, QvmBackup } from "#services/QvmBackup";
import { printable } from "#src/say/shown";

/** Milliseconds. */
export const limits = {
  /** From the first SIGINT to the second. */
  again: 5_000,
  /** From the first SIGINT to SIGKILL. */
  kill: 10_000,
  /** How long whatever still holds the FIFO open after qvm-backup's exit may be silent. */
  late: 60_000,
  /** As `kill`, for a qvm-backup found by `recover`. */
  recover: 15_000,
};

const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = fs.constants;

/**
 * Run by sh with the process id of this process as $0. SIGINT on the death of the parent is only
 * asked for after the fork: a parent that died before that is found out by its id. umask: qvm-backup
 * writes the passphrase to a file of its own, world-readable by default. The process id, which names
 * that file, is written down in $1, for a run that comes after a kill.
 */
const script = `umask 077; [ "$PPID" = "$0" ] || exit 130
{ echo "$$" >"$1"; } 2>/dev/null
shift; exec "$@"`;

/** One process for ever: ids come back, but not with the same start. */
interface Process {
  readonly pid: number;
  /** In clock ticks since boot. */
  readonly started: string;
}

/** State and start time of a process: fields 3 and 22 of its stat, counted after its name. */
const stat = (pid: number): { readonly state: string; readonly started: string } | undefined => {
  try {
    const text = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return { state: fields[0]!, started: fields[19]! };
  } catch {
    return undefined;
  }
};

const alive = ({ pid, started }: Process): boolean => {
  const now = stat(pid);
  return now !== undefined && now.started === started && !/[ZX]/.test(now.state);
};

/** The processes that have the FIFO among their words: nothing but a qvm-backup for it has. */
const namedFor = (fifo: string): ReadonlyArray<Process> =>
  fs.readdirSync("/proc").flatMap((name) => {
    const pid = /^[1-9][0-9]*$/.test(name) ? Number(name) : 0;
    const started = pid === 0 ? undefined : stat(pid)?.started;
    try {
      const words = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      return started !== undefined && words.includes(fifo) ? [{ pid, started }] : [];
    } catch {
      return []; // it has ended
    }
  });

/** Whether a qvm-backup, of whomever, has this process id now. */
const isQvmBackup = (pid: number): boolean => {
  try {
    const words = fs.readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
    return words.some((word) => path.basename(word) === "qvm-backup");
  } catch {
    return false; // nothing has
  }
};

/** Cancels in qubesd what a killed qvm-backup began there; it would go on to its end otherwise. */
const cancelInQubesd = (pid: number, env: Env | undefined) =>
  Effect.ignore(
    run(["qubesd-query", "-e", "dom0", "admin.backup.Cancel", "dom0", `backup-run-${pid}`], {
      limit: "5 seconds",
      env,
    }),
  );

const why = (cause: unknown) => printable(cause instanceof Error ? cause.message : String(cause));
const attempt = <A>(doing: string, what: () => A) =>
  Effect.try({ try: what, catch: (cause) => new QubesError({ doing, detail: why(cause) }) });

const isQubeName = Schema.is(Qube.fields.name);

/**
 * What comes after the options; a mistake here would make qvm-backup take its default set
 * (docs/qubes.md, Names and the default set).
 */
const commandLine = (plan: Plan, fifo: string, tap: string) => {
  const { passphraseFile, qubes, tapped } = plan;
  const compressFilter = tapped === true ? tap : plan.compressFilter;
  const bad = qubes.find((name) => !isQubeName(name));
  const detail = !path.isAbsolute(passphraseFile)
    ? "the passphrase file's path is not absolute"
    : qubes.length === 0
      ? "no qube is named"
      : bad && printable(bad);
  if (detail !== undefined) {
    return Effect.fail(new QubesError({ doing: "name what to back up", detail }));
  }
  const options = [
    "--yes",
    ...(compressFilter === undefined ? ["--compress"] : ["--compress-filter", compressFilter]),
    "--passphrase-file",
    passphraseFile,
  ];
  return Effect.succeed(["qvm-backup", ...options, fifo, ...new Set(qubes)]);
};

export interface FifoOptions {
  /** The state directory's `run`, absolute. It is made, and removed with all that is in it. */
  readonly runDirectory: string;
  readonly env?: Env | undefined;
  readonly limits?: Partial<typeof limits>;
  /** Where qvm-backup keeps what it tells qubesd, the passphrase among it. */
  readonly profiles?: string;
}

export const fifoQvmBackup = (options: FifoOptions): Layer.Layer<QvmBackup> =>
  Layer.sync(QvmBackup, () => {
    const { env, runDirectory } = options;
    const limit = { ...limits, ...options.limits };
    const fifo = path.join(runDirectory, "archive");
    const tapFile = path.join(runDirectory, "tap");
    const pidFile = path.join(runDirectory, "qvm-backup.pid");
    let busy = false;

    /**
     * qvm-backup removes its profile at its end, but not where it dies early, of SIGINT too
     * (docs/qubes.md, Passphrase). What is ours is told by what stands in it: the path of our FIFO, which
     * no other backup is written to. One that died while it wrote has not come to that: it is known by
     * the process id of our qvm-backup, unless another has that by now.
     */
    const removeProfiles = (own: number | undefined): ReadonlyArray<string> => {
      const directory = options.profiles ?? "/etc/qubes/backup";
      const half = own === undefined || isQvmBackup(own) ? "" : `backup-run-${own}.conf`;
      let names: ReadonlyArray<string>;
      try {
        names = fs.readdirSync(directory);
      } catch {
        return []; // no Qubes here, or not for us
      }
      return names
        .filter((name) => /^backup-run-[1-9][0-9]{0,9}\.conf$/.test(name))
        .filter((name) => ours(path.join(directory, name), name === half))
        .map((name) => {
          const file = path.join(directory, name);
          try {
            fs.unlinkSync(file);
            return `removed ${file}, which held the passphrase`;
          } catch (cause) {
            return `${file} still holds the passphrase: remove it (${why(cause)})`;
          }
        });
    };
    /** YAML folds long lines at blanks, and quotes what holds signs of its own. */
    const flat = (text: string) => text.replace(/\s+/g, " ");
    const ours = (file: string, half: boolean): boolean => {
      let fd: number | undefined;
      try {
        fd = fs.openSync(file, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
        const { size } = fs.fstatSync(fd);
        if (!fs.fstatSync(fd).isFile() || size > 1_048_576) return false;
        const text = fs.readFileSync(fd, "utf8");
        // The line behind the destination's: from there on the destination is whole, and another's.
        return flat(text).includes(flat(fifo)) || (half && !/^destination_vm:/m.test(text));
      } catch {
        return false;
      } finally {
        if (fd !== undefined) fs.closeSync(fd);
      }
    };

    /** The directory is ours, and no link to somewhere else; false where there is none. */
    const inspect = attempt(`use ${printable(runDirectory)}`, () => {
      const found = fs.lstatSync(runDirectory, { throwIfNoEntry: false });
      if (found === undefined) return false;
      if (!found.isDirectory()) throw new Error("it is no directory: remove it");
      if (found.uid !== process.getuid!()) throw new Error(`it belongs to user ${found.uid}`);
      return true;
    });

    /** The process id of the qvm-backup of a run that was killed, if it came to that. */
    const writtenDown = (): number | undefined => {
      try {
        const found = /^[1-9][0-9]{0,9}$/m.exec(fs.readFileSync(pidFile, "latin1"));
        return found === null ? undefined : Number(found[0]);
      } catch {
        return undefined;
      }
    };

    const tidy = Effect.gen(function* () {
      if (!(yield* inspect)) return removeProfiles(undefined);
      const doing = `clear ${printable(runDirectory)}`;
      const did: Array<string> = [];
      const reader = fs.lstatSync(fifo, { throwIfNoEntry: false })?.isFIFO()
        ? yield* attempt(doing, () => openFifo(fifo)) // first of all: it releases a qubesd that hangs on it
        : undefined;
      for (const one of namedFor(fifo)) {
        if (!alive(one)) continue;
        yield* interrupt(one);
        did.push(`cancelled a qvm-backup that a killed run had left behind (process ${one.pid})`);
      }
      did.push(...removeProfiles(writtenDown()));
      const left = yield* attempt(doing, () => {
        const names = fs.readdirSync(runDirectory);
        if (reader !== undefined) {
          fs.unlinkSync(fifo);
          fs.closeSync(reader);
        }
        // Links are removed here, not followed.
        fs.rmSync(runDirectory, { recursive: true, force: true });
        return names.length > 0;
      });
      if (left) did.push(`removed what a killed run had left in ${printable(runDirectory)}`);
      return did;
    });

    const interrupt = Effect.fnUntraced(function* (left: Process) {
      const signal = (name: NodeJS.Signals) =>
        Effect.sync(() => {
          if (!alive(left)) return;
          if (name === "SIGKILL") signalGroup(left.pid, name);
          else process.kill(left.pid, name);
        }).pipe(Effect.ignoreCause);
      const gone = Effect.sleep("50 millis").pipe(
        Effect.repeat({ until: () => !alive(left) }),
        Effect.as(true),
      );
      yield* signal("SIGINT");
      if (Option.isSome(yield* Effect.timeoutOption(gone, limit.again))) return;
      yield* signal("SIGINT");
      const rest = limit.recover - limit.again;
      if (Option.isSome(yield* Effect.timeoutOption(gone, rest))) return;
      yield* signal("SIGKILL");
      yield* Effect.timeoutOption(gone, "2 seconds");
      yield* cancelInQubesd(left.pid, env);
    });

    /** A directory with nothing but a FIFO in it, and the descriptors of this process on it. */
    const open = Effect.gen(function* () {
      const doing = "make a FIFO for qvm-backup";
      yield* attempt(doing, () => makeDirectories(runDirectory));
      yield* inspect;
      yield* attempt(doing, () => fs.chmodSync(runDirectory, 0o700)); // whatever the umask was
      const ends = yield* makeFifo(fifo, env).pipe(
        Effect.mapError((detail) => new QubesError({ doing, detail })),
      );
      const guard = yield* attempt(doing, () => openFifo(fifo)).pipe(
        Effect.tapError(() => Effect.sync(ends.close)),
      );
      return {
        ...ends,
        guard,
        close: Effect.sync(() => {
          ends.close();
          fs.closeSync(guard);
        }).pipe(Effect.ignoreCause),
      };
    });

    return {
      start: Effect.fnUntraced(function* (plan: Plan) {
        const command = yield* commandLine(plan, fifo, tapFile);
        if (busy) return yield* new QubesError({ doing: "start qvm-backup", detail: "one runs" });
        let started: number | undefined;
        yield* Effect.acquireRelease(
          Effect.suspend(() => {
            busy = true;
            return tidy;
          }),
          () =>
            Effect.sync(() => {
              busy = false;
              removeProfiles(started);
              fs.rmSync(runDirectory, { recursive: true, force: true });
            }).pipe(Effect.ignoreCause),
        ).pipe(Effect.tapError(() => Effect.sync(() => (busy = false))));
        const ends = yield* Effect.acquireRelease(open, (it) => it.close);
        const tap =
          plan.tapped === true
            ? yield* openTap(tapFile, env).pipe(
                Effect.mapError(
                  (detail) => new QubesError({ doing: "take files from qubesd", detail }),
                ),
              )
            : undefined;

        let percent: number | undefined;
        let shown = 0;
        let counted = false;
        const see = (line: string, whole: boolean) => {
          const found = /^Making a backup\.\.\. ?([0-9]{1,4}\.[0-9]{1,2})%/.exec(line);
          if (found !== null) {
            percent = Number(found[1]);
            if (!counted) shown += 1;
          }
          counted = found !== null && !whole;
          return found !== null;
        };
        const it = yield* child(
          [
            ...(["setpriv", "--pdeathsig", "INT", "--", "sh", "-c", script] as const),
            `${process.pid}`,
            pidFile,
            ...command,
          ] satisfies Argv,
          {
            // Descriptor 3 is its read end of the FIFO.
            stdio: ["ignore", "pipe", "pipe", ends.guard],
            env,
            see,
            ask: ({ exited, proc }) =>
              Effect.gen(function* () {
                proc.kill("SIGINT");
                if (Option.isSome(yield* Effect.timeoutOption(exited, limit.again))) return;
                proc.kill("SIGINT");
                const rest = limit.kill - limit.again;
                if (Option.isSome(yield* Effect.timeoutOption(exited, rest))) return;
                proc.kill("SIGKILL");
                yield* cancelInQubesd(proc.pid, env);
              }),
            grace: limit.kill + 10_000,
          },
        ).pipe(
          Effect.mapError(
            (error) => new QubesError({ doing: "start qvm-backup", detail: error.message }),
          ),
        );
        started = it.proc.pid;
        it.proc.once("exit", ends.letGo);
        // stdout is a table for people, and the only place that names a qube which makes all fail.
        const rows = collector((row, whole) => whole && !row.includes("Backup will fail!"));
        it.proc.stdout!.on("data", rows.push);
        const unsavable = () =>
          rows
            .said()
            .filter((row) => row.includes("Backup will fail!"))
            .map((row) => `${row.split("|")[0]!.trim()} runs and keeps no snapshots: shut it down`);

        /** Nothing came for too long, although qvm-backup has exited. */
        const stuck = Effect.gen(function* () {
          yield* it.exited;
          for (;;) {
            const before = ends.source.received();
            yield* Effect.sleep(limit.late);
            if (ends.source.received() > before) continue;
            const cause = "something holds the FIFO open, although qvm-backup has exited";
            return yield* new BytesError({ cause: new Error(cause) });
          }
        });
        const archive: Source = {
          received: ends.source.received,
          read: (into, atLeast) => Effect.raceFirst(ends.source.read(into, atLeast), stuck),
        };
        const ended = Effect.map(it.ended, ({ code, said }) => ({
          code,
          said: code === 0 ? said : [...said, ...unsavable()],
        }));
        const nextFile =
          tap === undefined
            ? Effect.undefined
            : Effect.raceFirst(tap.next, Effect.as(it.exited, undefined));
        return { archive, nextFile, ended, progress: () => ({ percent, shown }) };
      }),

      checkPassphrase: (file) => Effect.suspend(() => checked(path.resolve(file))),
      passphrase: (file) =>
        Effect.andThen(
          withoutCore,
          withBeginning(file, (bytes, whole) => Redacted.make(passphraseIn(bytes, whole))),
        ),
      compresses: (program) =>
        run(["sh", "-c", `"$0" | "$0" -d`, program], {
          input: sample,
          limit: "30 seconds",
          env,
        }).pipe(
          Effect.map(({ code, stdout }) => code === 0 && stdout === sample),
          Effect.catch(() => Effect.succeed(false)),
        ),
      recover: Effect.suspend(() => (busy ? Effect.succeed([]) : tidy)),
    };
  });

/**
 * A core of this process would have the passphrase in it. With a limit of one byte the kernel writes none,
 * and hands none to whoever collects them, which one of 0 would not keep it from (core(5), do_coredump).
 */
const withoutCore = Effect.ignore(
  run(["prlimit", `--pid=${process.pid}`, "--core=1:1"], { limit: "10 seconds" }),
);

/** To be compressed and back. */
const sample = "Nothing of this may be lost on the way.\n".repeat(100);

/** Bytes that are looked at; Python reads less at once. */
const looksAt = 65_536;

const checked = (file: string) =>
  withBeginning(file, (bytes, whole, stats) => {
    const { characters, doubts, unfit } = readPassphrase(bytes, whole);
    const mode = stats.mode & 0o777;
    const open = (mode & 0o077) === 0 ? undefined : mode.toString(8).padStart(4, "0");
    return {
      path: file,
      characters,
      unfit,
      doubts,
      warning:
        open &&
        `others may use the passphrase file ${printable(file)} (mode ${open}): chmod 600 it`,
    };
  });

/** A FIFO must not make this wait. */
const opened = (file: string): number => {
  try {
    return fs.openSync(file, O_RDONLY | O_NONBLOCK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") throw new Error("there is no such file");
    if (code === "EACCES") throw new Error("this user may not read it");
    throw cause;
  }
};

/** Uses what a passphrase file begins with; nothing of it stays in memory here. */
const withBeginning = <A>(
  file: string,
  use: (bytes: Uint8Array, whole: boolean, stats: fs.Stats) => A,
) =>
  attempt(`use the passphrase file ${printable(file)}`, () => {
    const fd = opened(file);
    const bytes = Buffer.alloc(looksAt);
    try {
      const stats = fs.fstatSync(fd);
      if (!stats.isFile()) throw new Error("it is no regular file");
      const size = fs.readSync(fd, bytes);
      return use(bytes.subarray(0, size), size < bytes.length, stats);
    } finally {
      bytes.fill(0);
      fs.closeSync(fd);
    }
  });
