/**
 * Plants one-line faults in modules, one at a time, and tells which of them the module's own
 * suites do not notice. `npm run mutation` plants them all; `FILE=src/wire` those of files whose path
 * begins so; `COUNT=100` as many, drawn at random by `SEED`, which is printed. `LIST=1` only counts.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as os from "node:os";
import { env } from "node:process";
import { excused } from "#test/mutation/excused";
import { type Mutant, mutantsOf, withMutant } from "#test/mutation/mutants";
import { keyOf, modules, suitesOf } from "#test/mutation/pure";
import type { Answer, Task } from "#test/mutation/worker";
import { rng } from "#test/support/random";
import { tally } from "#test/support/tally";

const say = (line: string): void => void process.stdout.write(`${line}\n`);
const number = (name: string, otherwise: number): number => Number(env[name] ?? otherwise);

/** One child that runs suites; another takes its place when it ends. */
const worker = () => {
  let child: ChildProcess | undefined;
  const start = async (): Promise<ChildProcess> => {
    const begun = fork(new URL("worker.ts", import.meta.url), {
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    await once(begun, "message");
    return begun;
  };
  return {
    run: async (task: Task): Promise<Answer> => {
      const own = (child ??= await start());
      const answer = await new Promise<Answer>((resolve) => {
        own.removeAllListeners();
        own.once("message", resolve);
        own.once("exit", () => resolve({ outcome: "hung", took: task.enough }));
        own.send(task);
      });
      if (answer.outcome === "hung") {
        own.kill("SIGKILL");
        child = undefined;
      }
      return answer;
    },
    end: () => child?.kill(),
  };
};

const text = new Map(modules.map((file) => [file, fs.readFileSync(file, "utf8")]));
const chosen = modules.filter((file) => file.startsWith(env["FILE"] ?? ""));
const all = chosen.flatMap((file) => mutantsOf(file, text.get(file)!));
const excuses = new Set(excused.map(keyOf));
const worth = all.filter((mutant) => !excuses.has(keyOf(mutant)));

const seed = number("SEED", Date.now() % 1_000_000);
const count = Math.min(number("COUNT", worth.length), worth.length);
const draw = rng(seed);
const order = worth.map((mutant) => [draw.next(), mutant] as const).sort(([a], [b]) => a - b);
const planted = count < worth.length ? order.slice(0, count).map(([, mutant]) => mutant) : worth;
say(
  `${planted.length} of ${all.length} faults in ${chosen.length} modules; ${all.length - worth.length} excused; SEED=${seed}`,
);
if (env["LIST"] !== undefined) process.exit();

const outcomes: Record<Answer["outcome"], number> = {
  killed: 0,
  survived: 0,
  unloadable: 0,
  hung: 0,
  "nothing ran": 0,
};
const queue: Array<Mutant> = planted.toReversed();
const baselines = new Map<string, number>();
const survivors: Array<string> = [];
const began = performance.now();
await Promise.all(
  Array.from({ length: number("WORKERS", Math.min(2, os.availableParallelism())) }, async () => {
    const own = worker();
    for (let mutant = queue.pop(); mutant !== undefined; mutant = queue.pop()) {
      const { file } = mutant;
      const task = { file, suites: suitesOf(file), text: text.get(file)!, enough: 60_000 };
      if (!baselines.has(file)) {
        // As it is, everything must pass: else nothing would be proven.
        const sound = await own.run(task);
        if (sound.outcome !== "survived")
          throw new Error(`${file} as it is: ${sound.outcome} ${sound.by ?? ""}`);
        baselines.set(file, sound.took);
      }
      const enough = 1000 + 2 * baselines.get(file)!;
      const { by, outcome } = await own.run({
        ...task,
        text: withMutant(task.text, mutant),
        enough,
      });
      outcomes[outcome] += 1;
      if (env["VERBOSE"] !== undefined)
        say(`${outcome} ${file}:${mutant.lineNumber} ${mutant.fault} ${by ?? ""}`);
      if (outcome !== "survived" && outcome !== "nothing ran") continue;
      const told = `${outcome}: ${file}:${mutant.lineNumber}: ${mutant.line}\n    ${mutant.fault}`;
      survivors.push(told);
      say(told);
    }
    own.end();
  }),
);
tally("mutants", outcomes.killed + outcomes.hung);
const seconds = Math.round((performance.now() - began) / 1000);
say(
  `${Object.entries(outcomes)
    .map(([outcome, n]) => `${outcome} ${n}`)
    .join(", ")}; ${seconds} s`,
);
process.exitCode = survivors.length > 0 ? 1 : 0;
