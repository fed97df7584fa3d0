/** The wire: what may be said, how it is written, and that nothing else is read. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Schema } from "effect";
import * as crypto from "node:crypto";
import type { Source } from "#services/Bytes";
import {
  blockSize,
  frames,
  type Frame,
  giveUpFrame,
  keepAliveFrame,
  lengthPrefix,
  trailerLimit,
} from "#src/wire/frames";
import { fingerprint, privateKeyPem, readPrivateKey, signatureHolds } from "#src/wire/keys";
import { readExactLine, replies } from "#src/wire/lines";
import {
  manifestDiffers,
  parseManifest,
  parseTrailer,
  receiptDiffers,
  sha256,
} from "#src/wire/manifest";
import {
  isName,
  isPrefix,
  isSession,
  Name,
  parseNumber,
  Prefix,
  printable,
  Session,
} from "#src/wire/names";
import { parseReply, replier, type Reply } from "#src/wire/reply";
import { parseCommand, parseLine, type Request, toCommand, toLine } from "#src/wire/request";
import { rng } from "#test/support/random";

/** The bytes in pieces of at most `step`, as a link brings them. */
const source = (
  bytes: Uint8Array,
  step = bytes.length,
): Source & { readonly left: () => number } => {
  let at = 0;
  return {
    left: () => bytes.length - at,
    received: () => at,
    read: (into, atLeast = 1) =>
      Effect.sync(() => {
        let got = 0;
        while (got < atLeast && at < bytes.length) {
          const n = Math.min(step, into.length - got, bytes.length - at);
          into.set(bytes.subarray(at, at + n), got);
          at += n;
          got += n;
        }
        return got;
      }),
  };
};
const run = Effect.runSync;

const session = "0123456789abcdef0123456789abcdef" as Session;
const name = "appvms/my-prefix-2026-01-31T0400.backup" as Name;

describe("names", () => {
  const long = "a".repeat(128);
  it.each([
    "a",
    "0",
    "a.b",
    "A_b+c-d.e",
    long,
    `${long}/${long}/${long}/${"b".repeat(125)}`,
    "1/2/3/4/5/6/7/8",
    "a.manifest.jso",
    "a.manifest.json/b",
  ])("%s is one", (text) => assert.isTrue(isName(text)));
  it.each([
    "",
    ".",
    "..",
    "/",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    "a/./b",
    ".a",
    "a/.b",
    "-a",
    "a/-b",
    "_a",
    "+a",
    "a b",
    "a\n",
    "\na",
    "a\0",
    "a\0b",
    "a\\b",
    "a;b",
    "a$b",
    "a`b`",
    "a|b",
    "a&b",
    "a>b",
    "a*",
    "a?",
    "a[b]",
    "a{b}",
    "a~",
    "~a",
    "a'b",
    'a"b',
    "a:b",
    "a@b",
    "a,b",
    "a=b",
    "a%2e",
    "a#b",
    "a!b",
    "é",
    "а",
    "a\u200b",
    "a\u2044b",
    "a\uff0fb",
    "\u202ea",
    `${long}a`,
    "1/2/3/4/5/6/7/8/9",
    `${long}/${long}/${long}/${long}`,
    "a.manifest.json",
    "a/b.manifest.json",
    ".ssh/authorized_keys",
    ".qbackup/identity",
    "a".repeat(5000),
  ])("%j is none", (text) => assert.isFalse(isName(text)));
  it("nor is anything that is not a text", () => {
    for (const value of [undefined, null, 1, ["a"], { toString: () => "a" }])
      assert.isFalse(isName(value));
  });
  it("prefixes stop anywhere, also after a slash", () => {
    for (const text of ["a", "a/", "a/b", "a/b/"]) assert.isTrue(isPrefix(text), text);
    for (const text of ["", "/", "a//", ".a", "a/.", "../"]) assert.isFalse(isPrefix(text), text);
  });
  it("sessions and numbers have one spelling", () => {
    assert.isTrue(isSession(session));
    for (const text of ["", session.toUpperCase(), session.slice(1), `${session}0`, `${session}\n`])
      assert.isFalse(isSession(text));
    assert.strictEqual(parseNumber("0"), 0);
    assert.strictEqual(parseNumber("9007199254740991"), Number.MAX_SAFE_INTEGER);
    for (const text of [
      "",
      "00",
      "01",
      "+1",
      "-1",
      "1.0",
      "1e3",
      " 1",
      "1 ",
      "0x1",
      "9007199254740992",
      "99999999999999999999",
    ]) {
      assert.isUndefined(parseNumber(text), text);
    }
  });
  it("what is shown is one short printable line", () => {
    assert.strictEqual(printable("a\x1b[31mb\r\nc\u202e"), "a?[31mb?c?");
    assert.isAtMost(printable("é".repeat(100_000)).length, 203);
    assert.isAtMost(printable("x".repeat(100_000)).length, 203);
  });
});

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
});

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
    { type: "end", count: 2 },
    { type: "error", code: "exists", message: "taken" },
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
  const fails = (bytes: Buffer) => {
    const { next } = replies(source(bytes, 4096), () => Effect.void);
    const go = Effect.gen(function* () {
      for (;;) if ((yield* next) === undefined) return "ended";
    });
    return run(Effect.catch(go, (error) => Effect.succeed(error._tag)));
  };
  it("too much before the first one, or anything else after it, is fatal", () => {
    const alive = '{"type":"alive"}\n';
    assert.strictEqual(fails(Buffer.from("x\n".repeat(64) + alive)), "ended");
    assert.strictEqual(fails(Buffer.from(`${"x\n".repeat(64)}\n${alive}`)), "ended");
    assert.strictEqual(fails(Buffer.from("x\n".repeat(65) + alive)), "WireError");
    assert.strictEqual(fails(Buffer.alloc(20_000, "\n")), "WireError");
    assert.strictEqual(fails(Buffer.alloc(1_000_000, "x")), "WireError");
    assert.strictEqual(fails(Buffer.from(`${"x".repeat(16_000)}\n${alive}`)), "ended");
    assert.strictEqual(fails(Buffer.from(`${"x".repeat(16_400)}\n${alive}`)), "WireError");
    assert.strictEqual(fails(Buffer.from(`${alive}hello\n`)), "WireError");
    assert.strictEqual(fails(Buffer.from(`${alive}\n`)), "WireError");
    assert.strictEqual(
      fails(Buffer.from(`${alive}{"type":"alive","x":"${"y".repeat(4096)}"}\n`)),
      "WireError",
    );
    assert.strictEqual(fails(Buffer.from(`${alive}{"type":"al`)), "ended");
    assert.strictEqual(fails(Buffer.from([...Buffer.from(alive), 0xff, 0x0a])), "WireError");
  });
});

describe("a request line", () => {
  it("is taken without a byte of what follows", () => {
    const from = source(Buffer.from("line\nrest"));
    assert.strictEqual(run(readExactLine(from)), "line");
    assert.strictEqual(from.left(), 4);
  });
  it("has a limit and must be UTF-8", () => {
    assert.strictEqual(
      run(readExactLine(source(Buffer.from(`${"x".repeat(4095)}\n`))))?.length,
      4095,
    );
    for (const bytes of [
      Buffer.from(`${"x".repeat(4096)}\n`),
      Buffer.from("half"),
      Buffer.from([0xff, 0x0a]),
    ]) {
      assert.strictEqual(run(Effect.flip(readExactLine(source(bytes))))._tag, "WireError");
    }
    assert.isUndefined(run(readExactLine(source(Buffer.alloc(0)))));
  });
});

describe("frames", () => {
  const block = (n: number, fill = 7) => Buffer.concat([lengthPrefix(n), Buffer.alloc(n, fill)]);
  const readAll = (bytes: Uint8Array, step: number) => {
    const { next } = frames(source(bytes, step));
    const seen: Array<Frame["kind"] | number | string> = [];
    const go = Effect.gen(function* () {
      for (;;) {
        const frame = yield* next;
        seen.push(
          frame.kind === "block"
            ? frame.bytes.length
            : frame.kind === "end"
              ? Buffer.from(frame.trailer).toString()
              : frame.kind,
        );
        if (frame.kind === "end" || frame.kind === "cut" || frame.kind === "give-up") return;
      }
    });
    run(Effect.catch(go, (error) => Effect.sync(() => void seen.push(error._tag))));
    return seen;
  };
  it.each([3, 4096, 65_536, 3_000_000])("in pieces of %d bytes", (step) => {
    const bytes = Buffer.concat([
      keepAliveFrame,
      block(blockSize),
      keepAliveFrame,
      block(blockSize),
      block(10),
      keepAliveFrame,
      lengthPrefix(0),
      lengthPrefix(2),
      Buffer.from("{}"),
    ]);
    assert.deepStrictEqual(readAll(bytes, step), [
      "keep-alive",
      blockSize,
      "keep-alive",
      blockSize,
      10,
      "keep-alive",
      "{}",
    ]);
    for (const cut of [
      1,
      3,
      4,
      5,
      8,
      1000,
      blockSize + 7,
      blockSize + 8,
      blockSize + 9,
      bytes.length - 1,
    ]) {
      assert.strictEqual(readAll(bytes.subarray(0, cut), step).at(-1), "cut", `cut at ${cut}`);
    }
  });
  it("the numbers are these", () => {
    assert.deepStrictEqual([...keepAliveFrame], [0x80, 0, 0, 0]);
    assert.deepStrictEqual([...giveUpFrame], [0xff, 0xff, 0xff, 0xff]);
    assert.deepStrictEqual([...lengthPrefix(blockSize)], [0, 0x10, 0, 0]);
    assert.deepStrictEqual(readAll(giveUpFrame, 4), ["give-up"]);
  });
  it("lengths that may not be", () => {
    assert.deepStrictEqual(readAll(lengthPrefix(blockSize + 1), 4), ["WireError"]);
    assert.deepStrictEqual(readAll(lengthPrefix(0x80000001), 4), ["WireError"]);
    assert.deepStrictEqual(readAll(Buffer.concat([block(5), block(5)]), 64), [5, "WireError"]);
    assert.deepStrictEqual(readAll(Buffer.concat([lengthPrefix(0), lengthPrefix(0)]), 64), [
      "WireError",
    ]);
    assert.deepStrictEqual(
      readAll(Buffer.concat([lengthPrefix(0), lengthPrefix(trailerLimit + 1)]), 64),
      ["WireError"],
    );
  });
  it("a long trailer arrives whole", () => {
    const trailer = Buffer.alloc(5_000_000, "x");
    const seen = readAll(
      Buffer.concat([lengthPrefix(0), lengthPrefix(trailer.length), trailer]),
      65_536,
    );
    assert.strictEqual(seen[0], trailer.toString());
  });
  it("random bytes never make it throw", () => {
    for (let seed = 0; seed < 3000; seed++) {
      const r = rng(seed);
      const bytes = r.bytes(r.int(0, 64));
      if (r.next() < 0.5) bytes.fill(0, 0, r.int(0, Math.min(3, bytes.length)));
      readAll(bytes, r.int(1, 64));
    }
  });
});

describe("keys, manifest and receipt", () => {
  const seed = crypto.createHash("sha256").update("seed").digest();
  const key = readPrivateKey(privateKeyPem(seed))!;
  it("a signature holds for its text and key alone", () => {
    // RFC 8032, section 7.1, test 1.
    const rfc = readPrivateKey(
      privateKeyPem(
        Buffer.from("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "hex"),
      ),
    )!;
    assert.strictEqual(
      Buffer.from(rfc.server, "base64").toString("hex"),
      "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    );
    assert.isTrue(
      rfc.sign("").length === 88 &&
        Buffer.from(rfc.sign(""), "base64").toString("hex").startsWith("e5564300c360ac72"),
    );
    const signature = key.sign("text");
    assert.isTrue(signatureHolds(key.server, "text", signature));
    assert.isFalse(signatureHolds(key.server, "text ", signature));
    assert.isFalse(signatureHolds(rfc.server, "text", signature));
    for (const nonsense of ["", "x", signature.slice(4), "A".repeat(88)]) {
      assert.isFalse(signatureHolds(key.server, "text", nonsense));
      assert.isFalse(signatureHolds(nonsense, "text", signature));
    }
    // The same for all time, for it stands on paper; and nothing that ssh would show.
    assert.strictEqual(
      fingerprint("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
      "qbackup:630d-cd29-66c4-3366-9112-5448-bbb2-5b4f",
    );
    assert.match(fingerprint(key.server), /^qbackup:[0-9a-f]{4}(?:-[0-9a-f]{4}){7}$/);
    assert.isUndefined(readPrivateKey("nonsense"));
  });
  const manifest = {
    version: 1 as const,
    name,
    session,
    server: key.server,
    size: 30_720,
    treehash: sha256("x"),
    created: "2026-01-31T04:00:00.000Z",
    members: [
      { path: "backup-header", start: 0, length: 10_240, size: 119 },
      { path: "backup-header.hmac", start: 10_240, length: 20_480, size: 247 },
    ],
  };
  it("what differs in a manifest is named", () => {
    assert.isUndefined(manifestDiffers(manifest, manifest));
    assert.strictEqual(manifestDiffers(manifest, { ...manifest, size: 1 }), "size");
    assert.strictEqual(
      manifestDiffers(manifest, { ...manifest, treehash: sha256("y") }),
      "treehash",
    );
    assert.strictEqual(
      manifestDiffers(manifest, { ...manifest, members: manifest.members.slice(1) }),
      "members",
    );
    assert.strictEqual(
      manifestDiffers(manifest, {
        ...manifest,
        members: manifest.members.map((m) => ({ ...m, size: 1 })),
      }),
      "members",
    );
  });
  it("a receipt is for one manifest's text, byte for byte", () => {
    const text = JSON.stringify(manifest);
    const receipt = {
      version: 1 as const,
      name,
      session,
      size: 30_720,
      treehash: manifest.treehash,
      manifest: sha256(text),
      stored: "2026-01-31T04:01:00.000Z",
    };
    assert.isUndefined(receiptDiffers(receipt, text));
    assert.strictEqual(receiptDiffers(receipt, ` ${text}`), "manifest");
    for (const field of ["size", "treehash", "session", "name"] as const) {
      assert.strictEqual(receiptDiffers({ ...receipt, [field]: "other" }, text), field);
    }
    for (const bad of [
      "",
      "{}",
      JSON.stringify({ ...manifest, version: 2 }),
      JSON.stringify({ ...manifest, members: [{}] }),
      JSON.stringify({ ...manifest, created: "2026-13-45T04:00:00Z" }),
      JSON.stringify({ ...manifest, created: "2026-01-31T04:00:00+02:00" }),
    ]) {
      assert.isUndefined(parseManifest(bad), bad);
    }
  });
  it("a trailer's text has bytes", () => {
    const trailer = (manifest: string) =>
      parseTrailer(JSON.stringify({ manifest, signature: null }));
    assert.strictEqual(trailer("a \u{1f600} b")?.manifest, "a \u{1f600} b");
    for (const half of ["\ud83d", "\ude00", "\ude00\ud83d"]) {
      assert.isUndefined(trailer(`a ${half} b`));
    }
  });
});
