/** The table that is printed, and how figures stand in it. */
import { GiB, median, MiB, paired } from "./measure.ts";

export const lines: Array<string> = [];
export const say = (line: string) => {
  lines.push(line);
  process.stdout.write(`${line}\n`);
};
export const log = (text: string) =>
  process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${text}\n`);
export const row = (...cells: ReadonlyArray<string>) => say(`| ${cells.join(" | ")} |`);

export const human = (bytes: number) =>
  bytes >= GiB
    ? `${+(bytes / GiB).toFixed(2)} GiB`
    : bytes >= MiB
      ? `${+(bytes / MiB).toFixed(1)} MiB`
      : `${+(bytes / 1024).toFixed(1)} KiB`;
export const s = (seconds: number) => `${seconds.toFixed(seconds < 1 ? 3 : 2)} s`;
export const rate = (bytes: number, seconds: number) =>
  `${Math.round(bytes / MiB / seconds)} MiB/s`;
export const timed = (bytes: number, times: ReadonlyArray<number>) =>
  `${s(median(times))}, ${rate(bytes, median(times))}`;
/** How much of the other's speed: their time over ours, with the range over the rounds. */
export const speed = (ours: ReadonlyArray<number>, theirs: ReadonlyArray<number>) => {
  const { least, most, ratio } = paired(theirs, ours);
  return `${ratio.toFixed(2)}${ours.length === 1 ? "" : ` (${least.toFixed(2)} to ${most.toFixed(2)})`}`;
};
