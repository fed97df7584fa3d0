/** Sizes and times as people read them. */

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** `1.2 GiB`: powers of 1024, one digit after the point; bytes whole. */
export const humanSize = (bytes: number): string => {
  let size = Math.max(0, bytes);
  let unit = 0;
  // 1023.95 would be shown as 1024.0.
  while (size >= (unit === 0 ? 1024 : 1023.95) && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.floor(size) : size.toFixed(1)} ${units[unit]}`;
};

/** `0:12:34`: hours, minutes and seconds of a number of seconds, rounded down. */
export const humanDuration = (seconds: number): string => {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (n: number) => `${n}`.padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
};

/** `1 minute`, `30 minutes`. */
export const minutesOf = (count: number): string =>
  `${count} ${count === 1 ? "minute" : "minutes"}`;

/** `20 minutes`, `13 hours`: of a number of seconds, where nobody needs it more exact. */
export const roughly = (seconds: number): string =>
  seconds < 7200
    ? minutesOf(Math.max(1, Math.round(seconds / 60)))
    : `${Math.round(seconds / 3600)} hours`;

/** `2026-01-31 05:00` in local time, as the names of archives have it; of an instant in UTC. */
export const localMinute = (instant: string): string => {
  const at = new Date(instant);
  const two = (n: number) => `${n}`.padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
};
