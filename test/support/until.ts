/**
 * Waiting for what is meant: a line, a file, the end of a process. The limit is for what never comes; no
 * busy machine must reach it, so it is no measure of how long something may take.
 */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";

const limit = 200_000;

export const until = async (
  what: string,
  ready: () => boolean | Promise<boolean>,
): Promise<void> => {
  const began = performance.now();
  // One look after another.
  // oxlint-disable-next-line no-await-in-loop
  while (!(await ready())) {
    if (performance.now() - began > limit) throw new Error(`did not happen: ${what}`);
    // oxlint-disable-next-line no-await-in-loop
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

/** Waits for a child's end. It may have ended by itself before, and says so only once. */
export const gone = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
};
