/**
 * What is fuzzed: everything that reads bytes of somebody else. Each target takes one input and throws
 * where something is wrong with how it was read; refusing an input is right, and so is taking it, as
 * long as what was taken holds what its reader relies on.
 */
import { Effect, Exit } from "effect";
import * as assert from "node:assert/strict";
import * as fs from "node:fs";
import type { Source } from "#services/Bytes";
import { ArchiveFault, Walk } from "#src/archive/walk";
import { parseInvocation } from "#src/shell/invocation";
import {
  blockSize,
  type Frame,
  frames,
  keepAliveFrame,
  lengthPrefix,
  giveUpFrame,
} from "#src/wire/frames";
import { preambleLimit, replies } from "#src/wire/lines";
import {
  manifestDiffers,
  parseManifest,
  parseReceipt,
  parseTrailer,
  receiptDiffers,
} from "#src/proof/manifest";
import type { Reply } from "#src/wire/reply";
import { parseCommand, parseLine, type Request, toCommand, toLine } from "#src/wire/request";
import { pieces } from "#test/fuzz/mutate";
import { archiveOf } from "#test/support/archive";
import { type Rng, rng } from "#test/support/random";

export interface Target {
  readonly name: string;
  readonly corpus: ReadonlyArray<Buffer>;
  readonly check: (input: Buffer, r: Rng) => void;
}

/** Bytes in pieces, at once; a read that nothing comes for is the end. */
const sourceOf = (parts: ReadonlyArray<Uint8Array>): Source => {
  let received = 0;
  let next = 0;
  let held = parts[0] ?? new Uint8Array(0);
  return {
    received: () => received,
    read: (into, atLeast = 1) =>
      Effect.sync(() => {
        let got = 0;
        // As a pipe does it: no more than is needed once enough is there.
        while (got < into.length && (got < atLeast || held.length > 0)) {
          if (held.length === 0) {
            next += 1;
            if (next >= parts.length) break;
            held = parts[next]!;
            continue;
          }
          const n = Math.min(held.length, into.length - got);
          into.set(held.subarray(0, n), got);
          held = held.subarray(n);
          got += n;
          received += n;
        }
        return got;
      }),
  };
};

const session = "0123456789abcdef0123456789abcdef";
const requests: ReadonlyArray<Request> = [
  { verb: "put", name: "laptop-2026-11-23T0400.backup", session },
  { verb: "put", name: "a/b/c/d.backup", session },
  { verb: "list" },
  { verb: "list", prefix: "appvms/" },
  { verb: "manifest", name: "x+y_z.backup" },
  { verb: "read", name: "x.backup", first: 0, count: 12 },
  { verb: "check", name: "2026.backup" },
] as unknown as ReadonlyArray<Request>;

/** What nothing that a client names may be, in other words than the parser's. */
const safeName = (name: string): void => {
  assert.ok(name.length > 0 && name.length <= 512);
  for (const part of name.replace(/\/$/, "").split("/")) {
    assert.ok(part !== "" && !part.startsWith(".") && !part.startsWith("-"), name);
    for (const byte of Buffer.from(part)) {
      assert.ok(
        byte > 0x20 &&
          byte < 0x7f &&
          !"\"'`$&|;<>()*?[]{}\\!#~%^=:,@".includes(String.fromCharCode(byte)),
      );
    }
  }
};
const safeRequest = (request: Request): void => {
  if ("name" in request) safeName(request.name);
  if ("prefix" in request && request.prefix !== undefined) safeName(request.prefix);
  assert.match(toCommand(request), /^qbackup\/1 [a-z]+(?: [A-Za-z0-9._+/-]+)*$/);
};

const command: Target = {
  name: "command",
  corpus: [
    ...requests.map(toCommand),
    "laptop.backup",
    "dir/laptop.backup",
    "qbackup-shell --root /srv/backups --quota 500G",
    "/usr/local/bin/qbackup-shell --quota 1",
    "identity --root /srv",
    "ls -la",
  ].map((text) => Buffer.from(text)),
  check: (input, r) => {
    const text = input.toString(r.next() < 0.5 ? "utf8" : "latin1");
    const parsed = parseCommand(text);
    if ("request" in parsed) {
      safeRequest(parsed.request);
      assert.equal(toCommand(parsed.request), text);
    }
    const way = r.int(0, 4);
    const options = r.pick(command.corpus).toString();
    const call =
      way === 0
        ? parseInvocation([], text)
        : way === 1
          ? parseInvocation(["-c", text], undefined)
          : way === 2
            ? parseInvocation(["-c", options], text)
            : way === 3
              ? parseInvocation(["-c", text], options)
              : parseInvocation(text.split(" "), r.next() < 0.5 ? undefined : options);
    if (call.kind === "request") safeRequest(call.request);
    if (call.kind === "bare") safeName(call.name);
    if ("options" in call && call.options.root !== undefined) {
      assert.match(call.options.root, /^\/[^\0\n ]*$/);
      assert.ok(!call.options.root.split("/").includes(".."));
    }
    if (call.kind === "refused") assert.match(call.refusal.message, /^[\x20-\x7e]+$/);
  },
};

const request: Target = {
  name: "request",
  corpus: requests.map((one) => Buffer.from(`${one.verb}\n${toLine(one)}`)),
  check: (input) => {
    const [verb = "", ...rest] = input.toString().split("\n");
    const parsed = parseLine(verb, rest.join("\n"));
    if (!("request" in parsed)) return;
    safeRequest(parsed.request);
    const again = parseCommand(toCommand(parsed.request));
    assert.deepEqual(again, parsed);
  },
};

/** What the frames of `input` are, read the plain way: the whole of it is there. */
const framesOf = (input: Buffer): ReadonlyArray<string> => {
  const found: Array<string> = [];
  let short = false;
  for (let at = 0; ;) {
    if (input.length - at < 4) return [...found, "cut"];
    const length = input.readUInt32BE(at);
    at += 4;
    if (length === 0x80000000) found.push("keep-alive");
    else if (length === 0xffffffff) return [...found, "give-up"];
    else if (length === 0) {
      if (input.length - at < 4) return [...found, "cut"];
      const size = input.readUInt32BE(at);
      at += 4;
      if (size === 0 || size > 16 * blockSize) return [...found, "error"];
      return [
        ...found,
        input.length - at < size ? "cut" : `end ${size} ${sum(input.subarray(at, at + size))}`,
      ];
    } else if (length > blockSize || short) return [...found, "error"];
    else {
      if (input.length - at < length) return [...found, "cut"];
      short = length < blockSize;
      found.push(`block ${length} ${sum(input.subarray(at, at + length))}`);
      at += length;
    }
  }
};
const sum = (bytes: Uint8Array): number => {
  let total = bytes.length;
  for (let i = 0; i < bytes.length; i += 1 + (i >> 4)) total = (total * 31 + bytes[i]!) | 0;
  return total;
};
const whole = Buffer.alloc(blockSize, "block");
const small = (n: number) => Buffer.concat([lengthPrefix(n), Buffer.alloc(n, n)]);
const trailing = (text: string) =>
  Buffer.concat([lengthPrefix(0), lengthPrefix(text.length), Buffer.from(text)]);
const upload: Target = {
  name: "frames",
  corpus: [
    Buffer.concat([small(5), trailing("{}")]),
    Buffer.concat([keepAliveFrame, small(700), trailing("{".repeat(70_000))]),
    Buffer.concat([keepAliveFrame, giveUpFrame]),
    trailing("x"),
    // Rare, because it is large: one in many inputs has whole blocks.
    Buffer.concat([small(1), small(2)]),
    Buffer.concat([keepAliveFrame, keepAliveFrame, small(9000)]),
    Buffer.concat([lengthPrefix(blockSize), Buffer.from("cut")]),
  ],
  check: (given, r) => {
    const input = r.next() < 0.002 ? Buffer.concat([lengthPrefix(blockSize), whole, given]) : given;
    const expected = framesOf(input);
    const { next } = frames(sourceOf(pieces(input, r)));
    const found: Array<string> = [];
    for (let turns = 0; ; turns++) {
      assert.ok(turns <= input.length / 4 + 1, "more frames than there can be");
      const exit = Effect.runSyncExit(next);
      if (Exit.isFailure(exit)) {
        assert.ok(
          exit.cause.reasons.every((reason) => reason._tag === "Fail"),
          String(exit.cause),
        );
        found.push("error");
        break;
      }
      const frame: Frame = exit.value;
      found.push(
        frame.kind === "block"
          ? `block ${frame.bytes.length} ${sum(frame.bytes)}`
          : frame.kind === "end"
            ? `end ${frame.trailer.length} ${sum(frame.trailer)}`
            : frame.kind,
      );
      if (frame.kind !== "block" && frame.kind !== "keep-alive") break;
    }
    assert.deepEqual(found, expected);
  },
};

const key = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo=".slice(0, 43).padEnd(43, "A") + "=";
const manifest = {
  version: 1,
  name: "laptop.backup",
  session,
  server: key,
  size: 40_960,
  treehash: "ab".repeat(32),
  created: "2026-11-23T04:00:00Z",
  members: [
    { path: "backup-header", start: 0, length: 10_240, size: 120 },
    { path: "vm2/private.img.000.enc", start: 10_240, length: 30_720, size: 20_000 },
  ],
};
const signature = `${"A".repeat(86)}==`;
const receipt = {
  version: 1,
  name: manifest.name,
  session,
  size: manifest.size,
  treehash: manifest.treehash,
  manifest: "cd".repeat(32),
  stored: "2026-11-23T04:00:01.5Z",
};
const valid = parseManifest(JSON.stringify(manifest))!;
const trailer: Target = {
  name: "trailer",
  corpus: [
    JSON.stringify({ manifest: JSON.stringify(manifest), signature: null }),
    JSON.stringify({ manifest: JSON.stringify({ ...manifest, members: [] }), signature }),
    JSON.stringify(manifest),
    JSON.stringify(receipt),
  ].map((text) => Buffer.from(text)),
  check: (input) => {
    const text = input.toString();
    const outer = parseTrailer(text);
    for (const inner of new Set([outer?.manifest ?? text, text])) {
      const found = parseManifest(inner);
      if (found !== undefined) {
        safeName(found.name);
        assert.ok(
          Number.isSafeInteger(found.size) && found.size >= 0 && found.members.length <= 65_536,
        );
        assert.equal(manifestDiffers(found, found), undefined);
        const differs = manifestDiffers(found, valid);
        // It must not find two different texts the same, but for what is not compared.
        if (differs === undefined) {
          assert.deepEqual({ ...found, created: "" }, { ...valid, created: "" });
        }
      }
      const said = parseReceipt(inner);
      if (said !== undefined) receiptDiffers(said, text);
    }
  },
};

const lines = (...all: ReadonlyArray<unknown>) =>
  Buffer.from(all.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join("\n"));
const answers: Target = {
  name: "replies",
  corpus: [
    lines("", { type: "ready", offset: 0, server: key }, { type: "ack", offset: blockSize }, ""),
    lines(
      "",
      { type: "ready", offset: blockSize, server: key },
      { type: "alive" },
      { type: "stored", receipt: JSON.stringify(receipt), signature },
      "",
    ),
    lines("motd", "", "\x1b[2Jhello", "", { type: "error", code: "busy", message: "no" }, ""),
    lines(
      "",
      {
        type: "archive",
        name: "a.backup",
        size: 5,
        treehash: null,
        stored: "2026-11-23T04:00:00Z",
        verified: false,
      },
      { type: "end", count: 1 },
      "",
    ),
    lines("", { type: "ready", size: 5, treehash: "ab".repeat(32) }, { type: "end" }, ""),
    lines("x".repeat(5000), ""),
  ],
  check: (input, r) => {
    const read = (parts: ReadonlyArray<Uint8Array>) => {
      const skipped: Array<string> = [];
      const { next } = replies(sourceOf(parts), (line) =>
        Effect.sync(() => void skipped.push(line)),
      );
      const found: Array<Reply | string> = [];
      for (let turns = 0; ; turns++) {
        assert.ok(turns <= input.length + 1, "more replies than there can be");
        const exit = Effect.runSyncExit(next);
        if (Exit.isFailure(exit)) {
          const [reason] = exit.cause.reasons;
          assert.equal(reason?._tag, "Fail", String(exit.cause));
          found.push("error");
          break;
        }
        if (exit.value === undefined) break;
        found.push(exit.value);
      }
      assert.ok(skipped.length <= preambleLimit.lines);
      for (const line of skipped) assert.match(line, /^[\x20-\x7e]*$/);
      return { found, skipped };
    };
    const inPieces = JSON.stringify(read(pieces(input, r)));
    assert.equal(inPieces, JSON.stringify(read(input.length === 0 ? [] : [input])));
  },
};

const sample = (name: string) => fs.readFileSync(new URL(`../fixtures/${name}`, import.meta.url));
/** Plain bytes of a chunk in the generated archives. */
const chunk = 4096;
const tar: Target = {
  name: "tar",
  corpus: [
    // The genuine one is large, so it is one of several.
    sample("sample-tiny-lowcost.qubes-backup"),
    ...[1, 2, 3, 1, 2, 3, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1].map((seed) =>
      archiveOf({
        seed,
        chunk,
        files: [
          { path: "vm2/private.img", size: chunk * (seed - 1) + 5 },
          { path: "vm12/firewall.xml", size: 100 },
          { path: "dom0-home/user", size: 10 },
        ].slice(0, seed),
      }),
    ),
  ],
  check: (input, r) => {
    const fullChunk = r.next() < 0.8 ? chunk + 128 : 104_857_728;
    const options =
      r.next() < 0.5 ? { fullChunk } : { fullChunk, expected: new Set(["vm2", "vm12"]) };
    const ended = (walk: Walk) => {
      const end = walk.finish();
      return end instanceof ArchiveFault ? `${end.message}` : end;
    };
    const one = new Walk(options);
    one.push(input);
    const plain = ended(one);
    const two = new Walk(options);
    for (const piece of pieces(input, r)) if (two.push(piece) !== undefined) break;
    assert.deepEqual(ended(two), plain);
    // As the server walks what it has on disk: what is not looked at is not read.
    const three = new Walk(options);
    for (let at = 0; at < input.length;) {
      const skip = Math.min(three.skippable, input.length - at);
      if (skip > 0) {
        three.skip(skip);
        at += skip;
        continue;
      }
      const piece = input.subarray(at, at + r.pick([512, 10_240, 32_768]));
      at += piece.length;
      if (three.push(piece) !== undefined) break;
    }
    assert.deepEqual(ended(three), plain);
    if (typeof plain === "string") return;
    // Members cover the archive, one behind the other.
    let at = 0;
    for (const member of plain) {
      assert.equal(member.start, at);
      assert.equal(member.length % 10_240, 0);
      assert.ok(member.size < member.length);
      at += member.length;
    }
    assert.equal(at, input.length);
    assert.equal(one.offset, input.length);
  },
};

export const targets: ReadonlyArray<Target> = [command, request, upload, trailer, answers, tar];

/** Runs input number `n` of a target, or the given bytes. */
export const strike = (
  target: Target,
  seed: number,
  make: (corpus: ReadonlyArray<Buffer>, r: Rng) => Buffer,
): void => {
  const r = rng(Math.imul(seed, 0x9e3779b1) ^ 0xf022);
  target.check(make(target.corpus, r), r);
};
