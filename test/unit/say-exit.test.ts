/** The exit codes, which scripts and timers read. */
import { assert, it } from "@effect/vitest";
import { exitCode, exitCodes, exitTable } from "#src/say/exit";

it("each has its number, for ever", () => {
  const numbers = Object.fromEntries(
    Object.keys(exitCodes).map((name) => [name, exitCode(name as keyof typeof exitCodes)]),
  );
  assert.deepStrictEqual(numbers, {
    done: 0,
    bug: 1,
    usage: 2,
    qubes: 3,
    link: 4,
    refused: 5,
    integrity: 6,
    locked: 7,
  });
});

it("the table has a line for each that is asked for, and one for signals", () => {
  assert.deepStrictEqual(exitTable(["done", "integrity"]).slice(0, -1), [
    `0  ${exitCodes.done[1]}`,
    `6  ${exitCodes.integrity[1]}`,
  ]);
  assert.match(exitTable([])[0]!, /^129, 130, 143 {2}interrupted by SIGHUP, SIGINT, SIGTERM$/);
  for (const [, meaning] of Object.values(exitCodes)) assert.match(meaning, /^\w[ -~]{6,60}$/);
});
