/** What every verb's form is held to: its requests in both forms, and its replies, field by field. */
import { assert } from "@effect/vitest";
import {
  parseCommand,
  parseLine,
  parseReply,
  toCommand,
  toLine,
  type Verb,
} from "#src/wire/request";
import { codes } from "#src/wire/reply";

const codeOf = (parsed: ReturnType<typeof parseCommand>) =>
  "refusal" in parsed ? parsed.refusal.code : "accepted";

/** These parameters are these words (after the verb), and these words those parameters. */
export const writes = (verb: Verb, parameters: object, ...words: ReadonlyArray<string>): void => {
  const command = ["qbackup/1", verb, ...words].join(" ");
  const parsed = parseCommand(command);
  if (!("request" in parsed)) return assert.fail(`${command}: ${parsed.refusal.message}`);
  assert.deepStrictEqual<object>(parsed.request, { verb, ...parameters });
  assert.strictEqual(toCommand(parsed.request), command);
  assert.deepStrictEqual(JSON.parse(toLine(parsed.request)), parameters);
  assert.deepStrictEqual(parseLine(verb, toLine(parsed.request)), parsed);
};

/** These words after the verb are refused. */
export const refuses = (verb: Verb, code: string, ...all: ReadonlyArray<string>): void => {
  for (const words of all) {
    assert.strictEqual(codeOf(parseCommand(`qbackup/1 ${verb}${words}`)), code, words);
  }
};

/** The line must have each of these parameters but the optional, none of another kind, and no other. */
export const needs = (
  verb: Verb,
  parameters: { readonly [key: string]: unknown },
  optional: ReadonlyArray<string> = [],
): void => {
  const code = (more: object) =>
    codeOf(parseLine(verb, JSON.stringify({ ...parameters, ...more })));
  assert.strictEqual(code({}), "accepted");
  assert.strictEqual(code({ other: 1 }), "bad-request");
  for (const key of Object.keys(parameters)) {
    const less = optional.includes(key) ? "accepted" : "bad-request";
    assert.strictEqual(code({ [key]: undefined }), less, key);
    for (const value of [null, {}, [], true, -1, 0.5, "", "\n"]) {
      assert.strictEqual(code({ [key]: value }), "bad-request", `${key} ${String(value)}`);
    }
  }
  for (const line of ["", "null", "[]", "5", "true", '"x"', "{", "{} {}"]) {
    assert.strictEqual(codeOf(parseLine(verb, line)), "bad-request", line);
  }
};

/** Values of other kinds than this one. */
const others = (value: unknown): ReadonlyArray<unknown> =>
  typeof value === "string"
    ? [5, true, {}, []]
    : typeof value === "number"
      ? [-1, 0.5, 2 ** 53, "1", true, {}]
      : typeof value === "boolean"
        ? [0, "true", null, {}]
        : [-1, 0.5, true];

/** The replies are read, with fields that are not known too, and each of their fields is needed. */
export const answers = (
  verb: Verb,
  replies: ReadonlyArray<{ readonly type: string; readonly [key: string]: unknown }>,
  /** `TYPE.FIELD` of those that may be missing. */
  optional: ReadonlyArray<string> = [],
): void => {
  const read = (reply: object) => parseReply(verb, JSON.stringify(reply));
  for (const reply of [...replies, { type: "alive" }]) {
    assert.deepStrictEqual<unknown>(read(reply), reply);
    assert.deepStrictEqual<unknown>(read({ ...reply, later: {} }), reply);
    assert.isUndefined(read({ ...reply, type: `${reply.type}x` }));
    for (const [key, value] of Object.entries(reply)) {
      if (key === "type") continue;
      const of = `${reply.type}.${key}`;
      const less = read({ ...reply, [key]: undefined });
      assert.strictEqual(less !== undefined, optional.includes(of), of);
      for (const other of others(value)) {
        assert.isUndefined(read({ ...reply, [key]: other }), `${of} ${JSON.stringify(other)}`);
      }
    }
  }
  for (const code of codes) {
    assert.isDefined(read({ type: "error", code, message: "m" }), code);
  }
  const all = [
    "ready",
    "ack",
    "stored",
    "archive",
    "pruned",
    "manifest",
    "end",
    "checked",
    "about",
  ];
  const known = new Set(replies.map(({ type }) => type));
  // What belongs to other verbs has no place here, whatever it says.
  const fields = Object.assign({}, ...replies) as object;
  for (const type of all.filter((one) => !known.has(one))) {
    assert.isUndefined(
      read({ ...fields, type, offset: 0, running: "0".repeat(64), more: true }),
      type,
    );
  }
};
