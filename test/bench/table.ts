/** The table that is printed, and how figures stand in it. */
import { GiB, median, MiB } from "./measure.ts";

export const lines: Array<string> = [];
export const say = (line: string) => {
  lines.push(line);
  process.stdout.write(`${line}\n`);
};
export const log = (text: string) =>
  process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${text}\n`);
export const row = (...cells: ReadonlyArray<string>) => say(`| ${cells.join(" | ")} |`);

export const human = (bytes: number) =>
  bytes >= GiB ? `${+(bytes / GiB).toFixed(2)} GiB` : `${+(bytes / MiB).toFixed(1)} MiB`;
export const s = (seconds: number) => `${seconds.toFixed(seconds < 1 ? 3 : 2)} s`;
export const rate = (bytes: number, seconds: number) =>
  `${Math.round(bytes / MiB / seconds)} MiB/s`;
export const timed = (bytes: number, times: ReadonlyArray<number>) =>
  `${s(median(times))}, ${rate(bytes, median(times))}`;
