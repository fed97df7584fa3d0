/** What a run says last: the tests that were not tried, each with its reason. */
import { assert, it } from "vitest";
import { spawnSync } from "node:child_process";

const run = (...args: ReadonlyArray<string>): string => {
  const vitest = "node_modules/vitest/vitest.mjs";
  const config = ["--config", "test/fixtures/skips/vitest.config.ts"];
  const ran = spawnSync(process.execPath, [vitest, "run", ...config, ...args], {
    encoding: "utf8",
  });
  const at = ran.stdout.indexOf("Skipped:");
  assert.notStrictEqual(at, -1, ran.stdout + ran.stderr);
  return ran.stdout.slice(at);
};
const named = (name: string) => `    test/fixtures/skips/some.test.ts > ${name}\n`;

it("names what was skipped and why, and nothing else", () => {
  assert.strictEqual(
    run(),
    `Skipped:
  it is cloudy:
${named("sees it only then")}  it is not night:
${named("a group (3 tests)")}  no reason is given:
${named("says nothing")}  the sun shines:
${named("in the day > is dark")}  there is no moon:
${named("cannot")}${named("cannot either")}
`,
  );
});

it("says so when that is nothing, and does not count what was not asked for", () => {
  assert.strictEqual(run("-t", "^runs$"), "Skipped: nothing\n\n");
  assert.strictEqual(
    run("-t", "group has one$"),
    `Skipped:\n  it is not night:\n${named("a group (1 test)")}\n`,
  );
});
