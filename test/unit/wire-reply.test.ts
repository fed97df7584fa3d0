/** The replies: each kind as it is written and read back, and what is none. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Schema } from "effect";
import { blockSize } from "#src/wire/frames";
import { privateKeyPem, readPrivateKey } from "#src/proof/keys";
import { replies } from "#src/wire/lines";
import { sha256 } from "#src/proof/manifest";
import type { Name } from "#src/wire/names";
import { codes, parseReply, replier, Reply } from "#src/wire/reply";
import { source } from "#test/support/source";

const name = "appvms/my-prefix-2026-01-31T0400.backup" as Name;

describe("replies", () => {
  const key = readPrivateKey(privateKeyPem(new Uint8Array(32)))!;
  const all: ReadonlyArray<Reply> = [
    { type: "ready", offset: 0, server: key.server },
    { type: "ack", offset: blockSize },
    { type: "alive" },
    { type: "stored", receipt: "{}", signature: key.sign("{}") },
    {
      type: "archive",
      name,
      size: 1,
      treehash: sha256("x"),
      stored: "2026-01-31T04:00:00Z",
      verified: true,
    },
    {
      type: "archive",
      name,
      size: 1,
      treehash: null,
      stored: "2026-01-31T04:00:00.123Z",
      verified: false,
    },
    { type: "ready", size: 5 },
    { type: "ready", size: 5, treehash: sha256("x") },
    { type: "checked", size: 5, treehash: sha256("x"), members: 3 },
    { type: "end", count: 2 },
    { type: "end" },
    { type: "error", code: "exists", message: "taken" },
    { type: "error", code: "internal", message: "", from: "carrier" },
  ];
  it.effect("are written one a line, the first behind a newline, and read back", () =>
    Effect.gen(function* () {
      const out: Array<Uint8Array> = [];
      const say = replier({
        write: (b) => Effect.sync(() => void out.push(Uint8Array.from(b))),
        end: Effect.void,
      });
      for (const reply of all) yield* say(reply);
      const bytes = Buffer.concat(out);
      assert.strictEqual(bytes.toString(), `\n${all.map((r) => JSON.stringify(r)).join("\n")}\n`);
      const noise: Array<string> = [];
      const { next } = replies(
        source(Buffer.concat([Buffer.from("Welcome\x1b[2J!\n\nno newline at the end"), bytes]), 5),
        (line) => Effect.sync(() => void noise.push(line)),
      );
      for (const reply of all) assert.deepStrictEqual(yield* next, reply);
      assert.isUndefined(yield* next);
      assert.deepStrictEqual(noise, ["Welcome?[2J!", "no newline at the end"]);
    }),
  );
  it("a field that is not known is ignored; a value that does not fit is not", () => {
    assert.deepStrictEqual(parseReply('{"type":"ack","offset":1,"later":true}'), {
      type: "ack",
      offset: 1,
    });
    for (const line of [
      '{"type":"ack"}',
      '{"type":"ack","offset":-1}',
      '{"type":"ack","offset":"1"}',
      '{"type":"ack","offset":1e300}',
      '{"type":"toString"}',
      "null",
      "[]",
      "",
    ]) {
      assert.isUndefined(parseReply(line), line);
    }
  });
  it("the codes of an error are these, each is read, and no other", () => {
    assert.deepStrictEqual(
      [...codes],
      [
        "bad-request",
        "bad-name",
        "exists",
        "not-found",
        "no-directory",
        "no-space",
        "quota",
        "incomplete",
        "digest-mismatch",
        "signature",
        "not-permitted",
        "busy",
        "unsupported",
        "internal",
      ],
    );
    for (const code of codes) {
      const reply = { type: "error", code, message: "m" } as const;
      assert.deepStrictEqual(parseReply(JSON.stringify(reply)), reply);
      assert.isUndefined(parseReply(JSON.stringify({ ...reply, code: `${code}x` })));
    }
    assert.isUndefined(parseReply('{"type":"error","code":"","message":"m"}'));
  });
  it("every field is needed and of its kind, in every reply", () => {
    const optional = new Set(["count", "from"]);
    for (const reply of all) {
      // Three replies are called ready: with a field less it may be another one of them.
      if (reply.type === "ready") continue;
      for (const field of Object.keys(reply).filter((key) => key !== "type")) {
        const broken = (value: unknown) => parseReply(JSON.stringify({ ...reply, [field]: value }));
        if (!optional.has(field)) assert.isUndefined(broken(undefined), `${reply.type} ${field}`);
        for (const value of [{}, [], -1, 0.5]) assert.isUndefined(broken(value), field);
      }
    }
    const ready = { type: "ready", size: 5, treehash: sha256("x"), offset: 6, server: key.server };
    const read = (less: object) => parseReply(JSON.stringify({ ...ready, ...less }));
    assert.deepStrictEqual(read({}), { type: "ready", offset: 6, server: key.server });
    assert.deepStrictEqual(read({ offset: -1 }), { type: "ready", size: 5, treehash: sha256("x") });
    assert.deepStrictEqual(read({ server: 1 }), { type: "ready", size: 5, treehash: sha256("x") });
    assert.deepStrictEqual(read({ server: 1, treehash: "x" }), { type: "ready", size: 5 });
    assert.isUndefined(read({ server: 1, size: -1 }));
    assert.isTrue(Schema.is(Reply)({ type: "alive" }));
  });
  it("one that would be longer than 4 KiB is a bug, and not sent", () => {
    let written = 0;
    const say = () =>
      replier({
        write: (bytes) => Effect.sync(() => void (written = bytes.length)),
        end: Effect.void,
      });
    const long = (bytes: number): Reply => {
      const bare = '\n{"type":"error","code":"internal","message":""}\n'.length;
      return { type: "error", code: "internal", message: "m".repeat(bytes - bare) };
    };
    Effect.runSync(say()(long(4096)));
    assert.strictEqual(written, 4096);
    assert.throws(() => Effect.runSync(say()(long(4097))), "4 KiB");
    assert.strictEqual(written, 4096);
    const twice = say();
    Effect.runSync(twice(long(100)));
    assert.strictEqual(written, 100);
    Effect.runSync(twice(long(100)));
    assert.strictEqual(written, 99);
  });
});
