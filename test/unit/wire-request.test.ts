/** The requests: how they are written, and that nothing else is read. */
import { assert, describe, it } from "@effect/vitest";
import { Schema } from "effect";
import { Name, Prefix, Session } from "#src/wire/names";
import {
  isVerb,
  isWireCommand,
  lineLimit,
  parseCommand,
  parseLine,
  type Request,
  toCommand,
  toLine,
} from "#src/wire/request";

const session = "0123456789abcdef0123456789abcdef" as Session;
const name = "appvms/my-prefix-2026-01-31T0400.backup" as Name;

describe("requests", () => {
  const requests: ReadonlyArray<Request> = [
    { verb: "put", name, session },
    { verb: "list" },
    { verb: "list", prefix: "appvms/" as Prefix },
    { verb: "manifest", name },
    { verb: "read", name, first: 0, count: 459 },
    { verb: "check", name },
  ];
  it.each(requests)("%j is read back from both forms", (request) => {
    assert.deepStrictEqual(parseCommand(toCommand(request)), { request });
    assert.deepStrictEqual(parseLine(request.verb, toLine(request)), { request });
  });
  it("the forms are these, byte for byte", () => {
    assert.strictEqual(toCommand(requests[0]!), `qbackup/1 put ${name} ${session}`);
    assert.strictEqual(toLine(requests[0]!), `{"name":"${name}","session":"${session}"}`);
    assert.strictEqual(toCommand(requests[1]!), "qbackup/1 list");
    assert.strictEqual(toLine(requests[1]!), "{}");
    assert.strictEqual(toCommand(requests[4]!), `qbackup/1 read ${name} 0 459`);
  });
  it.prop(
    "any request is read back",
    { name: Name, session: Session, first: Schema.Int, prefix: Prefix },
    ({ first, name, prefix, session }) => {
      const count = Math.abs(first);
      for (const request of [
        { verb: "put", name, session },
        { verb: "list", prefix },
        { verb: "read", name, first: count, count },
        { verb: "check", name },
      ] satisfies ReadonlyArray<Request>) {
        assert.deepStrictEqual(parseCommand(toCommand(request)), { request });
        assert.deepStrictEqual(parseLine(request.verb, toLine(request)), { request });
      }
    },
  );
  const code = (parsed: ReturnType<typeof parseCommand>) =>
    "refusal" in parsed ? parsed.refusal.code : "accepted";
  it.each([
    ["", "bad-request"],
    ["qbackup/1", "bad-request"],
    ["qbackup/1 ", "bad-request"],
    ["qbackup/2 list", "unsupported"],
    ["qbackup/10 list", "unsupported"],
    ["qbackup/1  list", "bad-request"],
    ["qbackup/1 list ", "bad-request"],
    [" qbackup/1 list", "bad-request"],
    ["qbackup/1 list\n", "bad-request"],
    ["qbackup/1 list a b", "bad-request"],
    ["qbackup/1 constructor", "bad-request"],
    ["qbackup/1 __proto__", "bad-request"],
    ["qbackup/1 toString a", "bad-request"],
    ["qbackup/1 put", "bad-request"],
    [`qbackup/1 put ${name}`, "bad-request"],
    [`qbackup/1 put ${name} ${session} x`, "bad-request"],
    [`qbackup/1 put ../x ${session}`, "bad-name"],
    [`qbackup/1 put .ssh/authorized_keys ${session}`, "bad-name"],
    [`qbackup/1 put "${name}" ${session}`, "bad-name"],
    [`qbackup/1 put ${name} ${session}; ls`, "bad-request"],
    [`qbackup/1 read ${name} 0 -1`, "bad-request"],
    [`qbackup/1 read ${name} 00 1`, "bad-request"],
    ["QBACKUP/1 list", "bad-request"],
    ["ls", "bad-request"],
  ])("the command %j is refused: %s", (command, expected) =>
    assert.strictEqual(code(parseCommand(command)), expected),
  );
  it.each([
    ["put", ""],
    ["put", "null"],
    ["put", "[]"],
    ["put", "{}"],
    ["put", `{"name":"${name}"}`],
    ["put", `{"name":"../x","session":"${session}"}`],
    ["put", `{"name":"${name}","session":"${session}","x":1}`],
    ["put", `{"name":["${name}"],"session":"${session}"}`],
    ["put", `{"name":"${name}","session":"${session}"`],
    ["list", '{"prefix":null}'],
    ["list", '{"prefix":"../"}'],
    ["read", `{"name":"${name}","first":-1,"count":1}`],
    ["read", `{"name":"${name}","first":1.5,"count":1}`],
    ["read", `{"name":"${name}","first":"1","count":1}`],
    ["constructor", "{}"],
    ["", "{}"],
    ["put ", "{}"],
    ["put", `{"__proto__":{"name":"${name}","session":"${session}"}}`],
  ])("the line +%s %j is refused", (verb, line) =>
    assert.strictEqual(code(parseLine(verb, line)), "bad-request"),
  );
  it("a bad name is told from bad words, in the verbs that have one", () => {
    for (const verb of ["put", "manifest", "read", "check"]) {
      assert.strictEqual(code(parseCommand(`qbackup/1 ${verb} ../x`)), "bad-name", verb);
      assert.strictEqual(code(parseCommand(`qbackup/1 ${verb} `)), "bad-name", verb);
      assert.strictEqual(code(parseCommand(`qbackup/1 ${verb}`)), "bad-request", verb);
    }
    assert.strictEqual(code(parseCommand("qbackup/1 list ../x")), "bad-request");
    for (const verb of ["manifest", "check"]) {
      assert.strictEqual(code(parseCommand(`qbackup/1 ${verb} ${name} x`)), "bad-request", verb);
    }
    for (const words of ["", " 0", " 0 1 2", " x 1", " 1 x", "  1", " 1 "]) {
      assert.strictEqual(
        code(parseCommand(`qbackup/1 read ${name}${words}`)),
        "bad-request",
        words,
      );
    }
    assert.strictEqual(
      code(parseCommand(`qbackup/1 put ${name} ${session.slice(1)}`)),
      "bad-request",
    );
    assert.strictEqual(code(parseCommand(`qbackup/1 read ../x 0 1`)), "bad-name");
  });
  it("the verbs are these, and no property that any object has", () => {
    for (const verb of ["put", "list", "manifest", "read", "check"]) assert.isTrue(isVerb(verb));
    for (const word of ["", "get", "toString", "__proto__", "Put"]) assert.isFalse(isVerb(word));
  });
  it("what claims to be of the wire", () => {
    for (const command of ["qbackup/1", "qbackup/9 x", "qbackup/10"])
      assert.isTrue(isWireCommand(command), command);
    for (const command of ["", "qbackup", "qbackup/", "qbackup/x", "xqbackup/1", " qbackup/1"])
      assert.isFalse(isWireCommand(command), command);
  });
  it("a line holds each field of its verb, and no other", () => {
    const whole = {
      put: { name, session },
      manifest: { name },
      read: { name, first: 3, count: 4 },
      check: { name },
    } as const;
    for (const [verb, fields] of Object.entries(whole)) {
      assert.strictEqual(code(parseLine(verb, JSON.stringify(fields))), "accepted");
      assert.strictEqual(code(parseLine(verb, JSON.stringify({ ...fields, x: 1 }))), "bad-request");
      for (const field of Object.keys(fields)) {
        const less = { ...fields, [field]: undefined };
        assert.strictEqual(code(parseLine(verb, JSON.stringify(less))), "bad-request", field);
      }
    }
    assert.strictEqual(code(parseLine("list", '{"x":1}')), "bad-request");
    assert.strictEqual(code(parseLine("get", "{}")), "bad-request");
  });
  it("a line has 4 KiB, its newline included", () => assert.strictEqual(lineLimit, 4096));
});
