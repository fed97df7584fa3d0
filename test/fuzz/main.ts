/**
 * The fuzzer from the command line: `npm run fuzz` gives each target a million inputs, or its
 * share of them, on all cores;
 * `TARGET=tar SEED=123 npm run fuzz` repeats one and writes the input that it was made of.
 */
import * as os from "node:os";
import { env } from "node:process";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { mutate } from "#test/fuzz/mutate";
import { strike, targets } from "#test/fuzz/targets";
import { tally } from "#test/support/tally";

/** Milliseconds of this thread's own work on one input; more is as good as for ever. */
const slow = 2000;
/** MiB of heap: a worker that needs more is ended, and with it the run. */
const enough = 256;
/** Inputs that one worker takes at a time. */
const batch = 10_000;

interface Batch {
  readonly target: number;
  readonly from: number;
  readonly count: number;
}
interface Struck extends Batch {
  readonly failures: ReadonlyArray<{ readonly seed: number; readonly what: string }>;
  readonly milliseconds: number;
  readonly heap: number;
}

const run = ({ count, from, target }: Batch): Struck => {
  const failures: Array<Struck["failures"][number]> = [];
  const began = performance.now();
  const worked = () => process.threadCpuUsage().user / 1000;
  let before = worked();
  for (let seed = from; seed < from + count && failures.length < 3; seed++) {
    try {
      strike(targets[target]!, seed, mutate);
    } catch (error) {
      failures.push({ seed, what: String(error instanceof Error ? error.stack : error) });
    }
    const now = worked();
    if (now - before > slow) failures.push({ seed, what: `took ${now - before} ms` });
    before = now;
  }
  const heap = process.memoryUsage().heapUsed;
  return { target, from, count, failures, milliseconds: performance.now() - began, heap };
};

const say = (line: string): void => void process.stdout.write(`${line}\n`);
const number = (name: string, otherwise: number): number => Number(env[name] ?? otherwise);
const only = env["TARGET"];

if (!isMainThread) {
  // Refusals are errors, a million of them; nobody looks at where they came from.
  Error.stackTraceLimit = 0;
  parentPort!.on("message", (work: Batch) => parentPort!.postMessage(run(work)));
} else if (env["SEED"] !== undefined) {
  const target = targets.find(({ name }) => name === only) ?? targets[0]!;
  strike(target, number("SEED", 0), (corpus, r) => {
    const input = mutate(corpus, r);
    say(JSON.stringify({ target: target.name, base64: input.toString("base64") }));
    return input;
  });
  say("nothing wrong");
} else {
  const count = number("COUNT", 1_000_000);
  const from = number("FROM", 1);
  const queue: Array<Batch> = [];
  for (let at = 0; at < count; at += batch) {
    for (const [target, { name, share = 1 }] of targets.entries()) {
      const left = Math.ceil(count * share) - at;
      if ((only !== undefined && only !== name) || left <= 0) continue;
      queue.push({ target, from: from + at, count: Math.min(batch, left) });
    }
  }
  const sums = targets.map(() => ({ inputs: 0, milliseconds: 0 }));
  let heap = 0;
  let failed = 0;
  const began = performance.now();
  const workers = Array.from(
    { length: number("WORKERS", Math.min(2, os.availableParallelism())) },
    () => {
      const worker = new Worker(new URL(import.meta.url), {
        workerData,
        resourceLimits: { maxOldGenerationSizeMb: enough },
      });
      return new Promise<void>((done, fail) => {
        const next = () => {
          const work = failed < 10 ? queue.shift() : undefined;
          if (work === undefined) return void worker.terminate().then(() => done(), fail);
          worker.postMessage(work);
        };
        worker.on("error", fail).on("message", (struck: Struck) => {
          const sum = sums[struck.target]!;
          sum.inputs += struck.count;
          sum.milliseconds += struck.milliseconds;
          heap = Math.max(heap, struck.heap);
          for (const { seed, what } of struck.failures) {
            const { name } = targets[struck.target]!;
            failed += 1;
            say(
              `${name}: seed ${seed}; again with: TARGET=${name} SEED=${seed} npm run fuzz\n${what}`,
            );
          }
          next();
        });
        next();
      });
    },
  );
  await Promise.all(workers);
  for (const [i, { inputs, milliseconds }] of sums.entries()) {
    if (inputs === 0) continue;
    tally("fuzz inputs", inputs);
    const each = ((1000 * milliseconds) / inputs).toFixed(1);
    say(`${targets[i]!.name}: ${inputs} inputs, ${each} us each`);
  }
  const seconds = (performance.now() - began) / 1000;
  say(`${seconds.toFixed(1)} s; at most ${(heap / 2 ** 20).toFixed(0)} MiB of heap in use`);
  process.exitCode = failed === 0 ? 0 : 1;
}
