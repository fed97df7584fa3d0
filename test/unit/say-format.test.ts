/** Sizes and times as people read them. */
import { assert, it } from "@effect/vitest";
import { humanDuration, humanSize, localMinute, minutesOf, roughly } from "#src/say/format";

const KiB = 1024;
it.each([
  [0, "0 B"],
  [1, "1 B"],
  [1.9, "1 B"],
  [-5, "0 B"],
  [1023, "1023 B"],
  [1023.96, "1023 B"],
  [1024, "1.0 KiB"],
  [1536, "1.5 KiB"],
  [1023.94 * KiB, "1023.9 KiB"],
  // Never 1024.0.
  [1023.95 * KiB, "1.0 MiB"],
  [1023.96 * KiB, "1.0 MiB"],
  [KiB ** 2, "1.0 MiB"],
  [1.25 * KiB ** 3, "1.3 GiB"],
  [2 * KiB ** 4, "2.0 TiB"],
  [3 * KiB ** 5, "3.0 PiB"],
  [5000 * KiB ** 5, "5000.0 PiB"],
])("%d bytes are %s", (bytes, text) => assert.strictEqual(humanSize(bytes), text));

it.each([
  [-1, "0:00:00"],
  [0, "0:00:00"],
  [0.99, "0:00:00"],
  [1, "0:00:01"],
  [59.9, "0:00:59"],
  [60, "0:01:00"],
  [61, "0:01:01"],
  [754, "0:12:34"],
  [3599, "0:59:59"],
  [3600, "1:00:00"],
  [3661, "1:01:01"],
  [360_000, "100:00:00"],
])("%d seconds are %s", (seconds, text) => assert.strictEqual(humanDuration(seconds), text));

it.each([
  [[2026, 0, 5, 4, 7], "2026-01-05 04:07"],
  [[2026, 1, 28, 0, 0], "2026-02-28 00:00"],
  [[2025, 11, 31, 23, 59], "2025-12-31 23:59"],
] as const)("the instant of local %j is %s", ([year, month, day, hour, minute], text) =>
  assert.strictEqual(
    localMinute(new Date(year, month, day, hour, minute, 59, 999).toISOString()),
    text,
  ),
);

it("minutes are counted in words", () => {
  assert.deepStrictEqual([0, 1, 2].map(minutesOf), ["0 minutes", "1 minute", "2 minutes"]);
});

it.each([
  [0, "1 minute"],
  [90, "2 minutes"],
  [7199, "120 minutes"],
  [7200, "2 hours"],
  [46_000, "13 hours"],
  [36_000_000, "10000 hours"],
] as const)("%d seconds are roughly %s", (seconds, text) =>
  assert.strictEqual(roughly(seconds), text),
);
