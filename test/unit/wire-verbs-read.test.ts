/** `read`: the lines of the conversation. */
import { assert, it } from "@effect/vitest";
import { askLimit, askLine, parseAsk } from "#src/wire/verbs/read";
import { answers, needs, refuses, writes } from "#test/support/form";

const session = "0123456789abcdef0123456789abcdef";

it("is asked for without a word", () => {
  writes("read", {});
  needs("read", {});
  refuses("read", "bad-request", " ", " x", " a.backup 0 1");
});
it("begins with ready", () => answers("read", [{ type: "ready" }]));

it("a line asks for blocks of one member", () => {
  const most = Number.MAX_SAFE_INTEGER;
  for (const [member, block, count] of [
    [0, 0, 1],
    [7, 12, 3],
    [most, most, most],
  ] as const) {
    const ask = { session, member, block, count } as Parameters<typeof askLine>[0];
    const line = askLine(ask);
    assert.strictEqual(line, `${session} ${member} ${block} ${count}\n`);
    assert.deepStrictEqual(parseAsk(line.slice(0, -1)), ask);
    assert.isAtMost(line.length, askLimit);
    if (member === most) assert.strictEqual(line.length, askLimit);
  }
});
it("or says that the client is there, or that it is done", () => {
  assert.strictEqual(parseAsk("."), "alive");
  assert.strictEqual(parseAsk(""), "end");
});
it.each([
  " ",
  "..",
  session,
  `${session} 0 0`,
  `${session} 0 0 1 1`,
  `${session} 0 0 1 `,
  ` ${session} 0 0 1`,
  `${session}  0 0 1`,
  `${session} 0 0 0`,
  `${session} -1 0 1`,
  `${session} 00 0 1`,
  `${session} 0 00 1`,
  `${session} 0 0 01`,
  `${session} 0 0 1.5`,
  `${session} 0 0 1\n`,
  `${session} x 0 1`,
  `${session} 0 x 1`,
  `${session} 0 0 x`,
  `${session} 0 0 9007199254740992`,
  `${session.slice(1)} 0 0 1`,
  `${session.toUpperCase()} 0 0 1`,
  "a.backup 0 0 1",
])("%j is no line of it", (line) => assert.isUndefined(parseAsk(line)));
