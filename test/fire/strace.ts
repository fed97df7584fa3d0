/** System calls of qbackup-shell on its files: counted in one run, stopped one by one in others. */
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";

/** Why strace cannot be used here; undefined where it can. */
export const noStrace: string | undefined = (() => {
  const tried = spawnSync("strace", ["-qq", "-o", "/dev/null", "true"], { encoding: "utf8" });
  if (tried.error !== undefined) return "strace is not installed";
  return tried.status === 0 ? undefined : `strace may not trace: ${tried.stderr.trim()}`;
})();

/** All that changes a file system, or makes a change last. */
const changing = [
  "mkdir",
  "openat",
  "pwrite64",
  "fsync",
  "fdatasync",
  "link",
  "unlink",
  "fchmod",
  "ftruncate",
];

/** One system call of the run that was counted. */
export interface Point {
  readonly syscall: string;
  /** The nth of its thread; of an openat, the nth with this path. */
  readonly nth: number;
  readonly path?: string;
  readonly text: string;
  /** It makes a file or a name, writes, or flushes: a full or a broken disk may refuse it. */
  readonly needsDisk: boolean;
}

export const counting = (log: string): ReadonlyArray<string> => [
  "strace",
  "-f",
  "--seccomp-bpf",
  "-qq",
  "-o",
  log,
  "-e",
  `trace=${changing.join(",")}`,
];

/** What the log of a counted run has, in its order. */
export const pointsOf = (log: string): ReadonlyArray<Point> => {
  const points: Array<Point> = [];
  const counts = new Map<string, number>();
  for (const line of fs.readFileSync(log, "utf8").split("\n")) {
    const match = /^(\d+) +(\w+)\((.*)$/.exec(line);
    if (match === null) continue;
    const [, thread, syscall, rest] = match as unknown as [string, string, string, string];
    const path = syscall === "openat" ? /^\w+, "([^"]*)"/.exec(rest)?.[1] : undefined;
    // Of what is opened, only names in the store; libraries are none of our business.
    if (syscall === "openat" && !/^\/proc\/self\/fd\/\d+\/[^/]/.test(path ?? "")) continue;
    const key = path ?? `${thread} ${syscall}`;
    const nth = (counts.get(key) ?? 0) + 1;
    counts.set(key, nth);
    // A name at random will not come again.
    if (path !== undefined && /\.(?:identity|probe)$/.test(path)) continue;
    points.push({
      syscall,
      nth,
      text: `${syscall}(${rest.slice(0, 100)}`,
      needsDisk:
        !rest.includes(" = -1 ") &&
        // The log never fails what it tells of.
        path?.endsWith("/log") !== true &&
        (/^(mkdir|pwrite64|fsync|fdatasync|link)$/.test(syscall) || rest.includes("O_CREAT")),
      ...(path === undefined ? {} : { path }),
    });
  }
  return points;
};

/** Runs a program so that this call of it does not happen, but `what` does. */
export const stopping = (
  { nth, path, syscall }: Point,
  what: "signal=SIGKILL" | "error=ENOSPC" | "error=EIO" | "error=EDQUOT",
): ReadonlyArray<string> => [
  "strace",
  "-f",
  "-qq",
  "-o",
  "/dev/null",
  ...(path === undefined ? [] : ["-P", path]),
  "-e",
  `trace=${syscall}`,
  "-e",
  `inject=${syscall}:${what}:when=${nth}`,
];

/**
 * Of qbackup in dom0: what changes its books and the FIFO, and the programs that it starts. What only
 * reads, or makes last, leaves nothing else behind when it is killed there than at the next change.
 */
export const onBooks = "openat,mkdir,chmod,fchmod,rename,unlink,rmdir,write,ftruncate,clone,clone3";

/** Calls of the traced program itself, not of what it starts, in its order; paths are below `state`. */
export const bookPointsOf = (
  log: string,
  state: string,
): ReadonlyArray<Omit<Point, "needsDisk">> => {
  const points: Array<Omit<Point, "needsDisk">> = [];
  const counts = new Map<string, number>();
  const own = new Set<string>();
  for (const line of fs.readFileSync(log, "utf8").split("\n")) {
    const [, thread, syscall, rest] =
      /^(\d+) +(?:<\.\.\. )?(clone3|\w+(?=\())(?: resumed>|\()(.*)$/.exec(line) ?? [];
    if (thread === undefined || syscall === undefined || rest === undefined) continue;
    if (own.size === 0) own.add(thread);
    if (!own.has(thread)) continue;
    if (syscall === "clone3") {
      const made = /parent_tid=\[(\d+)\]/.exec(rest)?.[1];
      if (made !== undefined) own.add(made);
      continue;
    }
    // As argument, or as what a descriptor stands for.
    const found =
      syscall === "clone"
        ? undefined
        : /["<]([^">]*)[">]/.exec(rest.replace(/^AT_FDCWD<[^>]*>/, ""))?.[1];
    if (syscall !== "clone" && found !== state && !found?.startsWith(`${state}/`)) continue;
    const path = found?.slice(state.length + 1);
    const key = `${thread} ${syscall} ${path ?? ""}`;
    const nth = (counts.get(key) ?? 0) + 1;
    counts.set(key, nth);
    if (syscall === "openat" && !rest.includes("O_CREAT")) continue;
    points.push({
      syscall,
      nth,
      text: `${syscall}(${path ?? ""}`,
      ...(path === undefined ? {} : { path }),
    });
  }
  return points;
};
