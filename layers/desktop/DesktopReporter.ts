/**
 * What dom0 tells: a person at a terminal, whoever reads stderr (cron mails it), and the journal.
 * Errors, warnings and hints always reach stderr, a hint with the line that it belongs to; all but the
 * bar goes to the journal as well, under the identifier `qbackup`, unless it was asked for on the
 * terminal (-o).
 */
import type * as Cause from "effect/Cause";
import * as Clock from "effect/Clock";
import * as Effect from "effect/Effect";
import * as Fiber from "effect/Fiber";
import * as Layer from "effect/Layer";
import * as Queue from "effect/Queue";
import { fstatSync, writeSync } from "node:fs";
import { type Env, run } from "#layers/process/Child";
import { type Level, type Progress, Reporter } from "#services/Reporter";
import { humanDuration, humanSize } from "#src/say/format";

/** Milliseconds. */
const bar = 200;
const terminalLine = 60_000;
const journalLine = 300_000;
const rateOver = 10_000;
const flush = 10_000;

/** Whether descriptor 2 leads to the journal: systemd names its device and inode in JOURNAL_STREAM. */
export const stderrIsJournal = (env: Env): boolean => {
  try {
    const { dev, ino } = fstatSync(2);
    return env["JOURNAL_STREAM"] === `${dev}:${ino}`;
  } catch {
    return false;
  }
};

/** How fast it goes, in bytes a second, over the last 10 s or so; times in milliseconds. */
export const meter = () => {
  const samples: Array<{ readonly at: number; readonly bytes: number }> = [];
  return (at: number, count: number): number => {
    samples.push({ at, bytes: count });
    // One sample older than the span stays, so that the span is covered.
    while (samples.length > 2 && at - samples[1]!.at >= rateOver) samples.shift();
    // More often than this they tell nothing new.
    if (samples.length > 3 && at - samples.at(-2)!.at < bar) samples.splice(-2, 1);
    const { at: since, bytes: before } = samples[0]!;
    return at > since ? Math.max(0, count - before) / ((at - since) / 1000) : 0;
  };
};

/**
 * Seconds that are left by the share that is done, from when it showed something first; it is not linear
 * (docs/qubes.md, Progress), so nothing is said before it has come some way. Times in milliseconds.
 */
export const estimate = () => {
  let first: { readonly at: number; readonly percent: number } | undefined;
  return (at: number, percent: number | undefined): number | undefined => {
    if (percent === undefined) return undefined;
    first ??= { at, percent };
    const done = percent - first.percent;
    return done < 2 || at - first.at < rateOver
      ? undefined
      : (((at - first.at) / done) * Math.max(0, 100 - percent)) / 1000;
  };
};

/**
 * `[#####.....]  42.00%  1.2 GiB sent  35.1 MiB/s  0:12:34`, at most `width` columns; the bar takes
 * what room there is, up to 40 columns. `rate` in bytes a second, `elapsed` in seconds. With a width
 * of 0 there is no bar. Where the bytes in all are known, the time that is left stands at the end.
 */
export const progressLine = (
  now: Progress,
  {
    elapsed,
    left,
    rate,
    width,
  }: { readonly elapsed: number; readonly rate: number; width: number; left?: number | undefined },
): string => {
  const share =
    now.percent ??
    (now.total !== undefined && now.total > 0 ? (now.bytes / now.total) * 100 : undefined);
  const percent = share === undefined ? undefined : Math.min(100, Math.max(0, share));
  const sending = /^(?:back|send)/.test(now.doing);
  const moved = now.waits === undefined || now.bytes > 0;
  // Each with how soon it is left out where there is no room for all.
  const all: ReadonlyArray<readonly [text: string, rank: number]> = [
    ...(percent === undefined ? [] : [[`${percent.toFixed(2).padStart(6)}%`, 0] as const]),
    ...(now.read === undefined ? [] : [[`${humanSize(now.read)} read`, 3] as const]),
    ...(now.changed === undefined ? [] : [[`${humanSize(now.changed)} changed`, 4] as const]),
    ...(moved
      ? [
          [`${humanSize(now.bytes)}${sending ? " sent" : ""}`, 2] as const,
          [`${humanSize(rate)}/s`, 5] as const,
        ]
      : []),
    [humanDuration(elapsed), 1],
    ...(left === undefined ? [] : [[`some ${humanDuration(left)} left`, 3] as const]),
    ...(now.total === undefined || now.percent !== undefined || rate <= 0
      ? []
      : [[`${humanDuration(Math.max(0, now.total - now.bytes) / rate)} left`, 3] as const]),
    ...(now.waits === undefined ? [] : [[now.waits, 0] as const]),
  ];
  const joined = (most: number) =>
    all
      .filter(([, rank]) => rank <= most)
      .map(([text]) => text)
      .join("  ");
  const facts = joined(5);
  const label = sending ? "" : `${now.doing}  `;
  if (width === 0) return label + facts.trimStart();
  // As if every figure were at its longest: a bar that changes its length is no measure.
  const room = Math.min(40, width - label.length - Math.max(50, facts.length) - 3);
  if (percent === undefined || room < 5) {
    const lines = [5, 4, 3, 2, 1, 0].map((most) => label + joined(most).trimStart());
    return lines.find((line) => line.length <= width) ?? lines.at(-1)!.slice(0, width);
  }
  const full = Math.round((percent / 100) * room);
  return `${label}[${"#".repeat(full)}${".".repeat(room - full)}] ${facts}`;
};

export interface DesktopOptions {
  readonly program: string;
  /** Log to the terminal instead of the journal (-o). */
  readonly terminal: boolean;
  readonly stderrIsTTY: boolean;
  /** Nobody may be looking at what `terminal` asks for: the journal has it too. */
  readonly unwatched?: boolean;
  /** stderr is the journal already (see `stderrIsJournal`): nothing is said twice. */
  readonly underSystemd: boolean;
  readonly env?: Env | undefined;
  /** Default: descriptor 2. */
  readonly write?: (text: string) => void;
  /** Columns of the terminal. */
  readonly columns?: () => number;
}

const toStderr = (text: string) => {
  try {
    writeSync(2, text);
  } catch {
    // EAGAIN or EPIPE: nobody reads it, and a report must not fail what it reports on.
  }
};

type Priority = "err" | "warning" | "info";
/** As in syslog(3). */
const numbers: Readonly<Record<Priority, number>> = { err: 3, warning: 4, info: 6 };

/** Lines for the journal, written one after another by logger(1); flushed when the scope closes. */
const journal = Effect.fnUntraced(function* (program: string, env: Env | undefined) {
  // More than this waits only if logger hangs.
  const queue = yield* Queue.make<readonly [Priority, string], Cause.Done>({
    capacity: 1000,
    strategy: "dropping",
  });
  const worker = yield* Queue.take(queue).pipe(
    Effect.flatMap(([priority, text]) =>
      Effect.ignore(
        run(["logger", "-t", program, "-p", `user.${priority}`, "--", text], {
          limit: "5 seconds",
          env,
        }),
      ),
    ),
    Effect.forever,
    Effect.ignore,
    Effect.forkScoped,
  );
  yield* Effect.addFinalizer(() =>
    Effect.andThen(Queue.end(queue), Fiber.await(worker)).pipe(Effect.timeoutOption(flush)),
  );
  return (priority: Priority, text: string) => Queue.offer(queue, [priority, text]);
});

export const desktopReporter = (options: DesktopOptions): Layer.Layer<Reporter> =>
  Layer.effect(
    Reporter,
    Effect.gen(function* () {
      const { program, stderrIsTTY, terminal } = options;
      const unwatched = !terminal || options.unwatched === true;
      const underSystemd = options.underSystemd && unwatched;
      const write = options.write ?? toStderr;
      const columns = options.columns ?? (() => process.stderr.columns || 80);
      const log = underSystemd || !unwatched ? undefined : yield* journal(program, options.env);

      let drawn = 0;
      const clear = () => {
        if (drawn > 0) write(`\r${" ".repeat(drawn)}\r`);
        drawn = 0;
      };
      if (stderrIsTTY) yield* Effect.addFinalizer(() => Effect.sync(clear));

      /** A hint is as urgent as what it belongs to. */
      let latest: Priority = "info";
      const priorityOf = (level: Level): Priority => {
        if (level === "hint") return latest;
        latest = level === "error" ? "err" : level;
        return latest;
      };
      const say = (level: Level, line: string, aloud: boolean) =>
        Effect.suspend(() => {
          const text = line.replace(/[\r\n]+/g, " ");
          const told = `${level === "info" ? "" : `${level}: `}${text}`;
          const priority = priorityOf(level);
          if (underSystemd) {
            write(`<${numbers[priority]}>${program}: ${told}\n`);
          } else if (aloud) {
            clear();
            write(`${program}: ${told}\n`);
          }
          return log === undefined ? Effect.void : Effect.asVoid(log(priority, told));
        });

      /** The last line, where stderr has not got it: a hint about it means nothing by itself. */
      let unsaid: string | undefined;
      let doing: string | undefined;
      let since = 0;
      let last: number | undefined;
      let rate = meter();
      let left = estimate();
      return {
        say: (level: Level, text: string) =>
          Effect.suspend(() => {
            const aloud = level !== "info" || terminal || stderrIsTTY;
            const about = level === "hint" && !underSystemd ? unsaid : undefined;
            unsaid = aloud ? undefined : text;
            if (about !== undefined) write(`${program}: ${about.replace(/[\r\n]+/g, " ")}\n`);
            return say(level, text, aloud);
          }),
        clear: Effect.sync(clear),
        progress: Effect.fnUntraced(function* (now: Progress) {
          // A wall clock that jumps would stop the bar, or make a rate of it.
          const at = Number(yield* Clock.monotonicTimeNanos) / 1e6;
          if (now.doing !== doing) {
            doing = now.doing;
            since = at;
            // A bar is drawn at once, a line only when there is something to tell.
            last = stderrIsTTY ? undefined : at;
            rate = meter();
            left = estimate();
          }
          const speed = rate(at, now.bytes);
          const rest = left(at, now.percent);
          const every = stderrIsTTY ? bar : terminal ? terminalLine : journalLine;
          if (last !== undefined && at - last < every) return;
          last = at;
          const elapsed = (at - since) / 1000;
          if (!stderrIsTTY) {
            const line = progressLine(now, { elapsed, rate: speed, left: rest, width: 0 });
            return yield* say("info", line, terminal);
          }
          // The last column stays free: writing into it makes some terminals scroll.
          const line = progressLine(now, {
            elapsed,
            rate: speed,
            left: rest,
            width: columns() - 1,
          });
          write(`\r${line.padEnd(drawn)}`);
          drawn = line.length;
        }),
      };
    }),
  );
