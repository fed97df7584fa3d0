/** Clocks, memory and processor time of processes, and what to make of several runs. */
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";

export const MiB = 1_048_576;
export const GiB = 1024 * MiB;

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? sorted[middle]!
    : ((sorted[middle - 1] ?? Number.NaN) + (sorted[middle] ?? Number.NaN)) / 2;
};

/** What a process used up to the last look at it. */
export interface Usage {
  /** User and system time of all its threads, without children. Seconds. */
  readonly cpu: number;
  /** The most memory it ever had (VmHWM). MiB. */
  readonly peak: number;
}

const usageOf = (pid: number): Usage | undefined => {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const peak = /^VmHWM:\s+([0-9]+) kB/m.exec(fs.readFileSync(`/proc/${pid}/status`, "latin1"));
    // A process that is ending has no memory any more. Ticks are hundredths of a second everywhere.
    if (peak === null) return undefined;
    return { cpu: (Number(fields[11]) + Number(fields[12])) / 100, peak: Number(peak[1]) / 1024 };
  } catch {
    return undefined;
  }
};

/**
 * Looks at processes now and then until `stop`, which gives what they used up to the last look. A role that
 * several had, one for each call, has the time of all and the peak of the largest.
 */
export const watch = (pids: { readonly [role: string]: () => ReadonlyArray<number> }) => {
  const seen = new Map<string, Map<number, Usage>>();
  const look = () => {
    for (const [role, all] of Object.entries(pids)) {
      const of = seen.get(role) ?? new Map<number, Usage>();
      seen.set(role, of);
      for (const id of all()) {
        const usage = usageOf(id);
        if (usage !== undefined) of.set(id, usage);
      }
    }
  };
  const timer = setInterval(look, 20);
  return {
    stop: (): { readonly [role: string]: Usage } => {
      clearInterval(timer);
      const whole = [...seen].filter(([, of]) => of.size > 0);
      return Object.fromEntries(
        whole.map(([role, of]) => {
          const all = [...of.values()];
          const cpu = all.reduce((sum, one) => sum + one.cpu, 0);
          return [role, { cpu, peak: Math.max(...all.map(({ peak }) => peak)) }];
        }),
      );
    },
  };
};

/** Runs every contender once a round, in turn, each round beginning with another one. */
export const interleave = async <K extends string>(
  rounds: number,
  contenders: { readonly [name in K]: () => Promise<number> },
): Promise<{ readonly [name in K]: ReadonlyArray<number> }> => {
  const names = Object.keys(contenders) as Array<K>;
  const times = {} as { [name in K]: Array<number> };
  for (const name of names) times[name] = [];
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(round + i) % names.length]!;
      times[name].push(await contenders[name]());
    }
  }
  return times;
};

/** The median of the ratios within each round: what slows both down does not count. */
export const paired = (over: ReadonlyArray<number>, under: ReadonlyArray<number>) => {
  const ratios = over.map((value, round) => value / under[round]!);
  return { ratio: median(ratios), least: Math.min(...ratios), most: Math.max(...ratios) };
};

const isVirtual = /^flags\s.* hypervisor /m.test(fs.readFileSync("/proc/cpuinfo", "latin1"));

/**
 * Uses so many bytes of memory and gives them back. A hypervisor may lend its guest memory page by
 * page, and take back what is not used: then the first use of a page costs more than all that is done
 * with it here, and it meets whoever comes first.
 */
export const warmMemory = (bytes: number): void => {
  if (!isVirtual || bytes === 0) return;
  const text = `const a=[];for(let i=0;i<${Math.ceil(bytes / (64 * MiB))};i++)a.push(Buffer.alloc(1<<26,1))`;
  execFileSync(process.execPath, ["-e", text]);
};

export const load = (): number => Number(fs.readFileSync("/proc/loadavg", "latin1").split(" ")[0]);
