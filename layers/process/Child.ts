/**
 * Child processes that never outlive their scope: argv arrays and no shell, a process group of their
 * own, output that is bounded however much comes, and a limit on every wait.
 */
import * as Deferred from "effect/Deferred";
import type * as Duration from "effect/Duration";
import * as Effect from "effect/Effect";
import * as Schema from "effect/Schema";
import type * as Scope from "effect/Scope";
import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { constants } from "node:os";
import { printable } from "#src/say/shown";

export type Argv = readonly [program: string, ...Array<string>];
export type Env = Readonly<Record<string, string | undefined>>;

/** A program could not be run to its end. Its exit code, whatever it is, is no such error. */
export class ProgramError extends Schema.TaggedError<ProgramError>()("ProgramError", {
  program: Schema.String,
  reason: Schema.Literals(["missing", "not-permitted", "too-slow", "too-much", "failed"]),
  detail: Schema.String,
}) {
  override get message(): string {
    return this.reason === "missing"
      ? `${this.program} is not installed, or not in PATH`
      : `${this.program}: ${this.detail}`;
  }
}

const lines = 20;
const lineBytes = 1024;
/** Bytes of stderr that are read as they come; then one piece in so many milliseconds, or a flood is all we do. */
const flood = { bytes: 1_048_576, pause: 100 } as const;

/**
 * Keeps the last 20 lines of what is pushed, each printable, and holds less than 32 KiB however much
 * comes. Lines end with a newline or a carriage return; empty ones are left out.
 *
 * `see` is shown each line, and the unfinished one again each time it grows (`whole` is false then:
 * progress is written without an end of line); what it takes (true) is not kept.
 */
export const collector = (see: (line: string, whole: boolean) => boolean = () => false) => {
  const kept: Array<string> = [];
  let open = "";
  return {
    push: (chunk: Buffer): void => {
      // One character a byte: bytes beyond ASCII become `?` in `printable`, so no decoder is needed.
      const parts = chunk.toString("latin1").split(/[\r\n]/);
      for (const [i, part] of parts.entries()) {
        if (open.length < lineBytes) open += part.slice(0, lineBytes - open.length);
        if (i === parts.length - 1) break;
        if (!see(open, true) && open.trim() !== "") kept.push(printable(open));
        open = "";
        if (kept.length > lines) kept.shift();
      }
      see(open, false);
    },
    said: (): ReadonlyArray<string> =>
      open.trim() === "" || see(open, false) ? [...kept] : [...kept, printable(open)].slice(-lines),
  };
};

export interface Child {
  readonly proc: ChildProcess & { readonly pid: number };
  /** The exit code, or 128 + n for signal n. */
  readonly exited: Effect.Effect<number>;
  /** As `exited`, with the last lines of stderr: what came until 1 s after the exit. */
  readonly ended: Effect.Effect<{ readonly code: number; readonly said: ReadonlyArray<string> }>;
  /** Kills whatever is left of its process group. */
  readonly killGroup: Effect.Effect<void>;
}

export interface ChildOptions {
  /** As for node:child_process; a piped stderr is drained here, and kept as `collector` does. */
  readonly stdio: StdioOptions;
  readonly env?: Env | undefined;
  /** Asks a child that is still there when the scope closes to go. Default: SIGTERM to its group. */
  readonly ask?: (child: Child) => Effect.Effect<unknown>;
  /** How long `ask` and the exit may take before the group gets SIGKILL. Default: 2 s. */
  readonly grace?: Duration.Input;
  readonly see?: ((line: string, whole: boolean) => boolean) | undefined;
  /** Called in the same turn of the event loop that started it, before anything else can happen. */
  readonly onSpawn?: () => void;
}

export const signalGroup = (pid: number, signal: NodeJS.Signals): void => {
  try {
    process.kill(-pid, signal);
  } catch {
    // ESRCH: nobody is left in it.
  }
};

const failure = (program: string, cause: unknown): ProgramError => {
  const code = (cause as NodeJS.ErrnoException).code;
  return new ProgramError({
    program,
    reason: code === "ENOENT" ? "missing" : code === "EACCES" ? "not-permitted" : "failed",
    detail: printable(cause instanceof Error ? cause.message : String(cause)),
  });
};

/**
 * Starts a child in a session and process group of its own, so that a terminal's Ctrl-C reaches only
 * its parent. When the scope closes it is asked to go, then killed, and with it whatever it left in
 * its group.
 */
export const child = (
  argv: Argv,
  options: ChildOptions,
): Effect.Effect<Child, ProgramError, Scope.Scope> =>
  Effect.acquireRelease(spawned(argv, options), (it) =>
    Effect.gen(function* () {
      const { proc } = it;
      if (proc.exitCode === null && proc.signalCode === null) {
        const ask =
          options.ask ?? (({ proc: { pid } }) => Effect.sync(() => signalGroup(pid, "SIGTERM")));
        yield* Effect.andThen(ask(it), it.exited).pipe(
          Effect.timeoutOption(options.grace ?? "2 seconds"),
        );
      }
      yield* it.killGroup;
      // A process in uninterruptible sleep outlives even SIGKILL for a while; do not wait for that.
      yield* Effect.timeoutOption(it.exited, "2 seconds");
      for (const stream of proc.stdio) stream?.destroy();
    }),
  );

const spawned = (argv: Argv, { env, onSpawn, see, stdio }: ChildOptions) =>
  Effect.callback<Child, ProgramError>((done) => {
    const [program, ...args] = argv;
    let proc: ChildProcess;
    try {
      proc = spawn(program, args, { stdio, detached: true, env: { ...(env ?? process.env) } });
    } catch (cause) {
      return done(Effect.fail(failure(program, cause)));
    }
    const { pid } = proc;
    if (pid !== undefined) onSpawn?.();
    const exited = Deferred.makeUnsafe<number>();
    const drained = Deferred.makeUnsafe<void>();
    const stderr = collector(see);
    for (const stream of proc.stdio) stream?.on("error", () => {}); // writers see it in their callback
    if (proc.stderr === null) Deferred.doneUnsafe(drained, Effect.void);
    let heard = 0;
    proc.stderr?.on("data", (some: Buffer) => {
      stderr.push(some);
      heard += some.length;
      if (heard < flood.bytes) return;
      proc.stderr?.pause();
      setTimeout(() => proc.stderr?.resume(), flood.pause).unref();
    });
    proc.stderr?.once("close", () => Deferred.doneUnsafe(drained, Effect.void));
    proc.once("error", (cause) => done(Effect.fail(failure(program, cause))));
    proc.once("exit", (code, signal) => {
      Deferred.doneUnsafe(exited, Effect.succeed(code ?? 128 + constants.signals[signal!]));
    });
    if (pid === undefined) return; // "error" tells why
    const code = Deferred.await(exited);
    done(
      Effect.succeed({
        proc: proc as Child["proc"],
        exited: code,
        // Whoever inherited stderr may keep it open; what the child itself said is there at once.
        ended: Effect.tap(code, Effect.timeoutOption(Deferred.await(drained), "1 second")).pipe(
          Effect.map((code) => ({ code, said: stderr.said() })),
        ),
        killGroup: Effect.sync(() => signalGroup(pid, "SIGKILL")),
      }),
    );
  });

export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly said: ReadonlyArray<string>;
}

/**
 * Runs a program to its end, and no longer than `limit`. Its stdin is `input`, or empty; its stdout
 * is kept up to `most` bytes (default 1 MiB), and more is an error.
 */
export const run = (
  argv: Argv,
  options: {
    readonly limit: Duration.Input;
    readonly input?: string | Uint8Array;
    readonly env?: Env | undefined;
    readonly most?: number;
  } & Pick<ChildOptions, "ask" | "grace">,
): Effect.Effect<Ran, ProgramError> =>
  Effect.gen(function* () {
    const { ask, env, grace, most = 1 << 20 } = options;
    const it = yield* child(argv, {
      stdio: "pipe",
      env,
      ...(ask === undefined ? {} : { ask }),
      ...(grace === undefined ? {} : { grace }),
    });
    const full = Deferred.makeUnsafe<never, ProgramError>();
    const shut = Deferred.makeUnsafe<void>();
    const chunks: Array<Buffer> = [];
    let size = 0;
    it.proc.stdout!.on("data", (chunk: Buffer) => {
      size += chunk.length;
      if (size <= most) return void chunks.push(chunk);
      Deferred.doneUnsafe(
        full,
        Effect.fail(stopped(argv, "too-much", `said more than ${most} bytes`)),
      );
    });
    it.proc.stdout!.once("close", () => Deferred.doneUnsafe(shut, Effect.void));
    it.proc.stdin!.end(options.input);
    const { code, said } = yield* Effect.raceFirst(it.ended, Deferred.await(full));
    yield* Effect.timeoutOption(Deferred.await(shut), "1 second");
    if (size > most) return yield* Deferred.await(full);
    return { code, stdout: Buffer.concat(chunks).toString("utf8"), said };
  }).pipe(
    Effect.scoped,
    Effect.timeoutOrElse({
      duration: options.limit,
      orElse: () => Effect.fail(stopped(argv, "too-slow", "took too long and was stopped")),
    }),
  );

const stopped = ([program]: Argv, reason: "too-slow" | "too-much", detail: string) =>
  new ProgramError({ program, reason, detail });
