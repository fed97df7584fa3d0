/**
 * The simulation from the command line: `npm run sim` tells 10,000 stories on all cores;
 * `SEED=123 npm run sim` tells one, with everything that happened in it. `FROM=11 EVERY=12` tells the
 * stories about liars alone.
 */
import * as os from "node:os";
import { env } from "node:process";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { tell } from "#test/sim/story";
import { tally } from "#test/support/tally";

interface Part {
  readonly told: number;
  readonly codes: Record<string, number>;
  readonly failed: ReadonlyArray<{
    readonly seed: number;
    readonly violations: ReadonlyArray<string>;
  }>;
}

const part = (from: number, step: number, count: number, enough: number): Part => {
  const codes: Record<string, number> = {};
  const failed: Array<Part["failed"][number]> = [];
  let told = 0;
  for (let seed = from; told < count; seed += step) {
    const { codes: exits, violations } = tell(seed);
    told += 1;
    const first = String(exits[0] ?? "killed");
    codes[first] = (codes[first] ?? 0) + 1;
    if (violations.length === 0) continue;
    failed.push({ seed, violations });
    if (failed.length >= enough) break;
  }
  return { told, codes, failed };
};

const number = (name: string, otherwise: number): number => Number(env[name] ?? otherwise);
const say = (line: string): void => void process.stdout.write(`${line}\n`);

if (!isMainThread) {
  // Many failures are part of a story; where they came from only a single one has to tell.
  Error.stackTraceLimit = 0;
  const { from, step, count, enough } = workerData as Record<string, number>;
  parentPort!.postMessage(part(from!, step!, count!, enough!));
} else if (env["SEED"] !== undefined) {
  const { plan, trace, violations } = tell(number("SEED", 0));
  say(JSON.stringify(plan, undefined, 2));
  for (const line of trace) say(line);
  for (const violation of violations) say(`BROKEN ${violation}`);
  process.exitCode = violations.length === 0 ? 0 : 1;
} else {
  const count = number("COUNT", 10_000);
  const from = number("FROM", 1);
  const every = number("EVERY", 1);
  const workers = number("WORKERS", Math.min(2, os.availableParallelism()));
  const enough = number("ENOUGH", 10);
  const began = performance.now();
  const parts = await Promise.all(
    Array.from(
      { length: workers },
      (_, i) =>
        new Promise<Part>((done, fail) => {
          const mine = Math.floor(count / workers) + (i < count % workers ? 1 : 0);
          const data = { from: from + i * every, step: workers * every, count: mine, enough };
          new Worker(new URL(import.meta.url), { workerData: data })
            .on("message", done)
            .on("error", fail);
        }),
    ),
  );
  const failed = parts.flatMap((one) => one.failed).sort((a, b) => a.seed - b.seed);
  const told = parts.reduce((sum, one) => sum + one.told, 0);
  const codes: Record<string, number> = {};
  for (const one of parts) {
    for (const [code, n] of Object.entries(one.codes)) codes[code] = (codes[code] ?? 0) + n;
  }
  const seconds = (performance.now() - began) / 1000;
  tally("stories", told);
  say(
    `${told} stories in ${seconds.toFixed(1)} s; the first run's exit codes: ${JSON.stringify(codes)}`,
  );
  for (const { seed, violations } of failed) {
    say(`broken with seed ${seed}; again with: SEED=${seed} npm run sim`);
    for (const violation of violations) say(`  ${violation}`);
  }
  process.exitCode = failed.length === 0 ? 0 : 1;
}
