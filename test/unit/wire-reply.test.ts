/** What replies have in common: how they are written, and what an error may say. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Schema } from "effect";
import type { Sink } from "#services/Bytes";
import { Alive, codes, End, Failed, Ready, replier, replyReader } from "#src/wire/reply";
import { vectors } from "#test/support/vectors";

const { signature, text } = vectors.texts[0]!;

/** A sink, and what was written to it, one text a write. */
const taken = () => {
  const writes: Array<string> = [];
  const sink: Sink = {
    write: (bytes) => Effect.sync(() => void writes.push(Buffer.from(bytes).toString())),
    end: Effect.void,
  };
  return { sink, writes };
};

describe("replies", () => {
  it("are written one a line, those of one call in one write, the first behind a newline", () => {
    const { sink, writes } = taken();
    const say = replier(sink);
    Effect.runSync(say({ type: "ready" }));
    Effect.runSync(say({ type: "alive" }, { type: "end" }));
    Effect.runSync(say({ type: "end" }));
    assert.deepStrictEqual(writes, [
      '\n{"type":"ready"}\n',
      '{"type":"alive"}\n{"type":"end"}\n',
      '{"type":"end"}\n',
    ]);
  });
  it("one that would be longer than 4 KiB is a bug, and not sent", () => {
    const failed = (bytes: number, sign = "m") => {
      const bare = '{"type":"error","code":"internal","message":""}\n'.length;
      const message = sign.repeat((bytes - bare) / Buffer.byteLength(sign));
      return { type: "error", code: "internal", message } as const;
    };
    const { sink, writes } = taken();
    const say = replier(sink);
    assert.throws(() => Effect.runSync(say(failed(4097))), "4 KiB");
    assert.throws(() => Effect.runSync(say({ type: "alive" }, failed(4097))), "4 KiB");
    assert.throws(() => Effect.runSync(say(failed(5048, "é"))), "4 KiB");
    assert.deepStrictEqual(writes, []);
    // What was not sent was not the first one.
    Effect.runSync(say(failed(4096), failed(4096)));
    assert.lengthOf(writes[0]!, 1 + 2 * 4096);
  });
  it("a field that is not known is ignored; a value that does not fit is not", () => {
    const read = replyReader(Schema.Union([Ready, End, Alive, Failed]));
    for (const type of ["ready", "end", "alive"] as const) {
      assert.deepStrictEqual(read(JSON.stringify({ type, later: true })), { type });
    }
    for (const line of ['{"type":"ready"', "null", "[]", "", '{"type":"Ready"}', '"ready"'])
      assert.isUndefined(read(line), line);
  });
});

describe("an error", () => {
  const read = replyReader(Failed);
  const reply = { type: "error", code: "stale", message: "m" } as const;
  const fits = (more: object) => read(JSON.stringify({ ...reply, ...more })) !== undefined;
  it("has one of these codes", () => {
    assert.deepStrictEqual(
      [...codes],
      [
        "bad-request",
        "bad-name",
        "exists",
        "not-found",
        "gone",
        "no-directory",
        "no-space",
        "quota",
        "incomplete",
        "digest-mismatch",
        "signature",
        "stale",
        "not-permitted",
        "busy",
        "unsupported",
        "damaged",
        "pruned",
        "internal",
      ],
    );
    for (const code of codes) {
      assert.isTrue(fits({ code }));
      assert.isFalse(fits({ code: `${code}x` }));
    }
    assert.isFalse(fits({ code: "" }));
    assert.isFalse(fits({ code: undefined }));
  });
  it("says why, and may say more", () => {
    const whole = {
      ...reply,
      from: "carrier",
      ticket: text,
      signature,
      since: "2026-11-28T03:00:00Z",
      why: "no room",
    };
    assert.deepStrictEqual<unknown>(read(JSON.stringify(whole)), whole);
    for (const field of Object.keys(whole)) {
      const free = !["type", "code", "message"].includes(field);
      assert.strictEqual(fits({ ...whole, [field]: undefined }), free, field);
      for (const value of [null, 5, {}, true]) assert.isFalse(fits({ [field]: value }), field);
    }
    assert.isFalse(fits({ signature: "x" }));
    assert.isFalse(fits({ since: "yesterday" }));
  });
  it("no more of it than this", () => {
    for (const [field, most] of [
      ["ticket", 2048],
      ["why", 200],
    ] as const) {
      assert.isTrue(fits({ [field]: "x".repeat(most) }));
      assert.isFalse(fits({ [field]: "x".repeat(most + 1) }), field);
    }
  });
});
