/** The requests: which verbs there are, and that nothing else is read. Each verb's own: wire-verbs-*. */
import { assert, describe, it } from "@effect/vitest";
import {
  isVerb,
  isWireCommand,
  parseCommand,
  parseLine,
  parseReply,
  toCommand,
  toLine,
} from "#src/wire/request";
import { vectors } from "#test/support/vectors";

const session = "0123456789abcdef0123456789abcdef";
const name = "appvms/my-prefix-2026-01-31T0400.backup";
const verbs = ["about", "put", "list", "manifest", "recipe", "table", "read", "check"] as const;

const refusal = (parsed: ReturnType<typeof parseCommand>) =>
  "refusal" in parsed ? parsed.refusal : { code: "accepted", message: "" };

describe("requests", () => {
  it.each(vectors.requests)("$command is read from both forms, and written again", (vector) => {
    const parsed = parseCommand(vector.command);
    if (!("request" in parsed)) return assert.fail(parsed.refusal.message);
    assert.strictEqual(parsed.request.verb, vector.verb);
    assert.strictEqual(toCommand(parsed.request), vector.command);
    assert.strictEqual(toLine(parsed.request), vector.line);
    assert.deepStrictEqual(parseLine(vector.verb, vector.line), parsed);
  });
  it.each([
    ["", "bad-request", "not a request of qbackup"],
    ["ls", "bad-request", "not a request of qbackup"],
    ["QBACKUP/1 list", "bad-request", "not a request of qbackup"],
    [" qbackup/1 list", "bad-request", "not a request of qbackup"],
    ["qbackup list", "bad-request", "not a request of qbackup"],
    ["qbackup/2 list", "unsupported", "this server speaks version 1 of the wire"],
    ["qbackup/10 list", "unsupported", "this server speaks version 1 of the wire"],
    ["qbackup/1", "bad-request", "no such verb"],
    ["qbackup/1 ", "bad-request", "no such verb"],
    ["qbackup/1  list", "bad-request", "no such verb"],
    ["qbackup/1 list\n", "bad-request", "no such verb"],
    ["qbackup/1 constructor", "bad-request", "no such verb"],
    ["qbackup/1 __proto__", "bad-request", "no such verb"],
    ["qbackup/1 toString a", "bad-request", "no such verb"],
    ["qbackup/1 List", "bad-request", "no such verb"],
    ["qbackup/1 list ", "bad-request", "the words after list are not what it takes"],
    ["qbackup/1 put", "bad-request", "the words after put are not what it takes"],
    [`qbackup/1 check ${name} x`, "bad-request", "the words after check are not what it takes"],
    [`qbackup/1 read ${name}`, "bad-request", "the words after read are not what it takes"],
    ["qbackup/1 list ../x", "bad-request", "the words after list are not what it takes"],
    ["qbackup/1 table ../x", "bad-request", "the words after table are not what it takes"],
    ["qbackup/1 about ../x", "bad-request", "the words after about are not what it takes"],
    ["qbackup/1 put ../x", "bad-name", "the name is not one that an archive can have"],
    ["qbackup/1 check ", "bad-name", "the name is not one that an archive can have"],
  ] as const)("the command %j is refused: %s, %s", (command, code, message) =>
    assert.deepStrictEqual<object>(refusal(parseCommand(command)), { code, message }),
  );
  it.each([
    ["check", ""],
    ["check", "null"],
    ["check", `{"name":"../x"}`],
    ["check", `{"name":"${name}","x":1}`],
    ["check", `{"name":["${name}"]}`],
    ["check", `{"name":"${name}"`],
    ["check", `{"__proto__":{"name":"${name}"}}`],
    ["table", `{"session":"${session}","verb":"check"}`],
  ])("the line +%s %j is refused", (verb, line) =>
    assert.deepStrictEqual<object>(refusal(parseLine(verb, line)), {
      code: "bad-request",
      message: `the request line is not what ${verb} takes`,
    }),
  );
  it.each(["", "constructor", "put ", "__proto__", "get"])("there is no verb %j", (verb) => {
    const none = { code: "bad-request", message: "no such verb" };
    assert.deepStrictEqual<object>(refusal(parseLine(verb, "{}")), none);
    assert.isFalse(isVerb(verb));
  });
  it("a bad name is told from bad words, in the verbs whose first word is one", () => {
    for (const verb of verbs) {
      const named = ["put", "manifest", "recipe", "check"].includes(verb);
      const { code } = refusal(parseCommand(`qbackup/1 ${verb} ../x y`));
      assert.strictEqual(code, named ? "bad-name" : "bad-request", verb);
    }
  });
  it("the verbs are these", () => {
    for (const verb of verbs) assert.isTrue(isVerb(verb), verb);
  });
  it("what claims to be of the wire", () => {
    for (const command of ["qbackup/1", "qbackup/9 x", "qbackup/10"])
      assert.isTrue(isWireCommand(command), command);
    for (const command of ["", "qbackup", "qbackup/", "qbackup/x", "xqbackup/1", " qbackup/1"])
      assert.isFalse(isWireCommand(command), command);
  });
  it("a reply is read as one to its own verb", () => {
    assert.deepStrictEqual<unknown>(parseReply("table", '{"type":"end"}'), { type: "end" });
    assert.isUndefined(parseReply("list", '{"type":"end"}'));
    assert.deepStrictEqual<unknown>(parseReply("list", '{"type":"end","more":true}'), {
      type: "end",
      more: true,
    });
    for (const verb of verbs) {
      assert.deepStrictEqual<unknown>(parseReply(verb, '{"type":"alive"}'), { type: "alive" });
      for (const line of ['{"type":"toString"}', "null", "[]", "", "{}", "5"]) {
        assert.isUndefined(parseReply(verb, line), line);
      }
    }
  });
});
