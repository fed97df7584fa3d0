/**
 * What is fuzzed: everything that reads bytes of somebody else. Each target takes one input and throws
 * where something is wrong with how it was read; refusing an input is right, and so is taking it, as
 * long as what was taken holds what its reader relies on.
 */
import { Effect, Exit } from "effect";
import * as assert from "node:assert/strict";
import * as fs from "node:fs";
import type { Source } from "#services/Bytes";
import { InnerFault, innerReader } from "#src/archive/inner";
import { ArchiveFault, archiveSize, ListWalk, Walk } from "#src/archive/walk";
import { archiveMembers } from "#src/proof/members";
import { parseWish, resolver, type Run, runLine } from "#src/proof/recipe";
import { lineOf, tableLineLimit } from "#src/proof/table";
import {
  parseManifest,
  parseReceipt,
  parseTicket,
  parseTombstone,
  receiptDiffers,
} from "#src/proof/texts";
import { parseInvocation } from "#src/shell/invocation";
import { parseRecord } from "#src/store/record";
import { frames, giveUpFrame, keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { blockSize, preambleLimit } from "#src/wire/limits";
import { replies } from "#src/wire/lines";
import {
  parseCommand,
  parseLine,
  parseReply,
  type Request,
  toCommand,
  type Verb,
} from "#src/wire/request";
import { askLine, parseAsk } from "#src/wire/verbs/read";
import { pieces } from "#test/fuzz/mutate";
import { archiveOf, scryptOf, slotOf } from "#test/support/archive";
import {
  ended,
  gnuHeader,
  gnuSparse,
  gnuTar,
  paxHeader,
  paxRecord,
  tarwriter,
} from "#test/support/inner";
import { type Rng, rng } from "#test/support/random";
import * as reference from "#test/support/reference";
import { padTo } from "#test/support/tar";
import { vectors } from "#test/support/vectors";

export interface Target {
  readonly name: string;
  readonly corpus: ReadonlyArray<Buffer>;
  readonly check: (input: Buffer, r: Rng) => void;
  /** Of the inputs of a run, where one of these takes as long as many of another's; all, without it. */
  readonly share?: number;
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
  if ("after" in request && request.after !== undefined) safeName(request.after);
  assert.match(toCommand(request), /^qbackup\/1 [a-z]+(?: [A-Za-z0-9._+/:-]+)*$/);
  const { verb, ...parameters } = request;
  assert.equal(toCommand(request), reference.commandOf({ verb, parameters }));
};

const command: Target = {
  name: "command",
  corpus: [
    ...vectors.requests.map((vector) => vector.command),
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
      // A dash alone is every archive, which is said without it.
      assert.equal(toCommand(parsed.request), text.replace(/ list -$/, " list"));
    }
    assert.equal("request" in parsed, reference.requestIn(text) !== undefined);
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
  corpus: vectors.requests.map(({ line, verb }) => Buffer.from(`${verb}\n${line}`)),
  check: (input) => {
    const [verb = "", ...rest] = input.toString().split("\n");
    const parsed = parseLine(verb, rest.join("\n"));
    if (!("request" in parsed)) return;
    safeRequest(parsed.request);
    const again = parseCommand(toCommand(parsed.request));
    assert.deepEqual(again, parsed);
  },
};

const small = (n: number) => Buffer.concat([lengthPrefix(n), Buffer.alloc(n, n)]);
/** Bytes of the longest frame here. */
const longest = 9000;
const bulk: Target = {
  name: "frames",
  corpus: [
    Buffer.concat([small(5), lengthPrefix(0), small(2), small(64), lengthPrefix(0)]),
    Buffer.concat([keepAliveFrame, small(700), small(longest)]),
    Buffer.concat([keepAliveFrame, giveUpFrame]),
    Buffer.concat([small(1), small(2)]),
    Buffer.concat([keepAliveFrame, keepAliveFrame, small(longest)]),
    Buffer.concat([lengthPrefix(blockSize), Buffer.from("cut")]),
  ],
  check: (input, r) => {
    const { next } = frames(sourceOf(pieces(input, r)), longest);
    for (const expected of reference.framesIn(input, longest)) {
      const exit = Effect.runSyncExit(next);
      if (Exit.isFailure(exit)) {
        assert.ok(
          exit.cause.reasons.every((reason) => reason._tag === "Fail"),
          String(exit.cause),
        );
        assert.equal(expected, "long");
      } else if (exit.value.kind === "bytes") {
        assert.ok(typeof expected !== "string" && expected.equals(exit.value.bytes));
      } else assert.equal(exit.value.kind, expected);
    }
  },
};

const textOf = (what: string) => vectors.texts.find((one) => one.what === what)!;
const [manifest, receipt, tombstone, ticket] = ["manifest", "receipt", "tombstone", "ticket"].map(
  (what) => textOf(what).text,
) as [string, string, string, string];
const { signature } = textOf("receipt");
const plain = (found: object | undefined) => (found === undefined ? undefined : { ...found });
const texts: Target = {
  name: "texts",
  corpus: [
    manifest,
    manifest.replace(":null", ':"2026-12-01T00:00:00Z"'),
    receipt,
    tombstone,
    ticket,
    JSON.stringify({ manifest, signature, receipt, receiptSignature: signature }),
    JSON.stringify({
      session,
      size: 5,
      members: 4,
      root: "ab".repeat(32),
      stored: "2026-11-23T04:00:00Z",
    }),
  ].map((text) => Buffer.from(text)),
  check: (input) => {
    const text = input.toString();
    const found = parseManifest(text);
    assert.deepEqual(plain(found), reference.textIn("manifest", text));
    if (found !== undefined) safeName(found.name);
    const said = parseReceipt(text);
    assert.deepEqual(plain(said), reference.textIn("receipt", text));
    if (said !== undefined)
      assert.ok(
        text === receipt ||
          receiptDiffers(said, manifest) !== undefined ||
          said.stored !== "2026-11-28T03:00:09Z",
      );
    assert.deepEqual(plain(parseTombstone(text)), reference.textIn("tombstone", text));
    const opened = parseTicket(text);
    assert.deepEqual(plain(opened), reference.ticketIn(text));
    if (opened !== undefined) safeName(opened.ticket.name);
    parseRecord(text);
  },
};

const tableText = vectors.archives[1]!.table;
const own = "9".repeat(32) as Run["session"];
/** A table, read as far as it is wanted, and a recipe over it. */
const tables: Target = {
  name: "tables",
  corpus: [
    `${session} 0 8\n\n${tableText}`,
    `${session} 4 4\n${session} 0 1\n\n${tableText}`,
    `${session} 2 1\n\n${tableText}${vectors.archives[0]!.table}`,
    `${session} 0 1\n${own} 0 3\n${session} 7 1\n\n${tableText}`,
  ].map((text) => Buffer.from(text)),
  check: (input, r) => {
    const text = input.toString("latin1");
    const middle = text.indexOf("\n\n");
    const recipe = middle < 0 ? text : text.slice(0, middle + 1);
    const table = middle < 0 ? "" : text.slice(middle + 2);
    const runs = reference.linesOf(recipe);
    const sound =
      runs.join("") === recipe &&
      runs.every((line) => /^[0-9a-f]{32} (0|[1-9]\d{0,6}) [1-9]\d{0,6}\n$/.test(line)) &&
      runs.reduce((sum, line) => sum + Number(line.split(" ")[2]), 0) < 1000;
    const wanted = sound ? reference.spread(recipe) : [];
    const members = archiveMembers(sound ? wanted.length : r.int(0, 20));
    const push = (reader: ReturnType<typeof members.recipe>, what: string) => {
      for (const piece of pieces(Buffer.from(what, "latin1"), r)) {
        if (!reader.push(piece)) break;
      }
      return reader.finish();
    };
    const taken = push(members.recipe(), recipe);
    if (taken) assert.ok(members.count < 1000 && runs.join("") === recipe);
    if (sound)
      assert.equal(
        taken,
        new Set(wanted.map(String)).size === wanted.length &&
          wanted.every(([, index]) => index < 1_048_576),
      );
    if (!taken || !sound) return;
    const [first] = members.sessions();
    if (first === undefined) return;
    const lines = reference.linesOf(table);
    const whole = push(members.table(first), table);
    const mine = wanted.flatMap(([of, index], at) => (of === first ? [[index, at] as const] : []));
    if (!whole) {
      assert.ok(
        lines.join("") !== table ||
          lines.some((line) => line.length > tableLineLimit || !/^[ -~]+\n$/.test(line)) ||
          mine.some(
            ([index]) => reference.memberIn(lines[index]?.slice(0, -1) ?? "") === undefined,
          ),
      );
      return;
    }
    for (const [index, at] of mine) assert.equal(lineOf(members.at(at)), lines[index]);
  },
};

const wishes: Target = {
  name: "wishes",
  corpus: ["new 0 6\n", "base 0 3\nnew 2 1\nbase 3 4\n", "new 5 1\nbase 6 1\nnew 0 5\n"].map(
    (text) => Buffer.from(text),
  ),
  check: (input) => {
    const text = input.toString("latin1");
    const base = [
      { session, first: 3, count: 4 },
      { session: own, first: 0, count: 3 },
    ] as ReadonlyArray<object> as ReadonlyArray<Run>;
    const { made, push } = resolver(own, 6, base);
    const lines = reference.linesOf(text);
    const sound =
      lines.length > 0 &&
      lines.every((line) => {
        const wish = parseWish(line.slice(0, -1));
        return wish !== undefined && push(wish) === true;
      });
    const ours = sound ? [...made.runs()].map(runLine).join("") : undefined;
    assert.equal(ours, reference.resolved(lines.join(""), own, 6, base.map(runLine).join("")));
  },
};

const asks: Target = {
  name: "asks",
  corpus: [`${session} 0 0 1`, `${session} 12 3 45`, ".", ""].map((text) => Buffer.from(text)),
  check: (input) => {
    const text = input.toString("latin1");
    const ask = parseAsk(text);
    if (ask === "end") assert.equal(text, "");
    else if (ask === "alive") assert.equal(text, ".");
    else if (ask === undefined) assert.doesNotMatch(text, /^[0-9a-f]{32} 0 0 1$/);
    else {
      assert.equal(askLine(ask), `${text}\n`);
      assert.ok(ask.count > 0 && reference.words.session(ask.session));
    }
  },
};

const lines = (...all: ReadonlyArray<unknown>) =>
  Buffer.from(all.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join("\n"));
const running = "ab".repeat(32);
const [key] = vectors.keys.map((one) => one.public) as [string];
const answers: Target = {
  name: "replies",
  corpus: [
    lines(
      "",
      { type: "ready", offset: 0, running },
      { type: "ack", offset: blockSize, running },
      "",
    ),
    lines(
      "",
      { type: "ready", offset: blockSize, running },
      { type: "alive" },
      { type: "stored", receipt, signature },
      "",
    ),
    lines("motd", "", "\x1b[2Jhello", "", { type: "error", code: "busy", message: "no" }, ""),
    lines(
      "",
      {
        type: "archive",
        name: "a.backup",
        session,
        signer: key,
        series: "a-0123456789abcdef",
        run: 5,
        size: 5,
        members: 4,
        root: running,
        stored: "2026-11-23T04:00:00Z",
        damaged: false,
      },
      { type: "pruned", name: "b.backup", tombstone, signature },
      { type: "end", more: true },
      "",
    ),
    lines("", { type: "manifest", manifest, signature, receipt, receiptSignature: signature }, ""),
    lines("", { type: "ready" }, { type: "end" }, ""),
    lines("", { type: "checked", size: 5, members: 4, root: running }, ""),
    lines(
      "",
      {
        type: "about",
        version: "1",
        server: key,
        signers: [running],
        quota: null,
        room: 5,
        reserved: 6,
        clock: "2026-11-23T04:00:00Z",
        confined: null,
        ticket: { text: ticket, signature },
      },
      "",
    ),
    lines("x".repeat(5000), ""),
  ],
  check: (input, r) => {
    const verbs: ReadonlyArray<Verb> = [
      "put",
      "put",
      "list",
      "list",
      "about",
      "manifest",
      "table",
      "check",
      "read",
    ];
    const verb = r.pick(verbs);
    const parse = (line: string) => parseReply(verb, line);
    const read = (parts: ReadonlyArray<Uint8Array>) => {
      const skipped: Array<string> = [];
      const { next } = replies(sourceOf(parts), parse, (line) =>
        Effect.sync(() => void skipped.push(line)),
      );
      const found: Array<object | string> = [];
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
/** As a slots pack has it: heads last, each member once. */
const slots = (() => {
  const salt = Buffer.alloc(32, 7);
  const sealed = (bytes: number) => scryptOf(Buffer.alloc(bytes, 3), salt);
  const header = `version=4\nencrypted=True\ncompressed=True\nhmac-algorithm=scrypt\nbackup-id=20261123T030424-1\nqbackup-seal=${running}\nqbackup-run=5\n`;
  const heads = [
    slotOf("backup-header", Buffer.from(header)),
    slotOf("backup-header.hmac", sealed(0)),
    slotOf("qubes.xml.000.enc", sealed(900)),
  ];
  const cells = [0, 1, 2].map((n) => slotOf(`vm2/private.img.00${n}.enc`, sealed(n * 512)));
  const archive = Buffer.concat([...heads, ...cells]);
  const end = Buffer.alloc(archiveSize("slots", archive.length) - archive.length);
  return { pack: Buffer.concat([...cells, ...heads]), plain: Buffer.concat([archive, end]) };
})();
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
    ...Array.from({ length: 6 }, () => [slots.pack, slots.plain]).flat(),
  ],
  check: (input, r) => {
    const fullChunk = r.next() < 0.8 ? chunk + 128 : 104_857_728;
    const format = r.pick(["qvm-backup", "qvm-backup", "slots", "pack"] as const);
    const expected = r.next() < 0.5 ? {} : { expected: new Set(["vm2", "vm12"]) };
    const options = { fullChunk, format, ...expected };
    const ended = (walk: Walk) => {
      const end = walk.finish();
      return end instanceof ArchiveFault ? `${end.message}` : end;
    };
    const one = new Walk(options);
    one.push(input);
    const whole = ended(one);
    const two = new Walk(options);
    for (const piece of pieces(input, r)) if (two.push(piece) !== undefined) break;
    assert.deepEqual(ended(two), whole);
    // As the server walks what it has on disk: what is not looked at is not read, member by member.
    const three = new Walk(options);
    const ends: Array<number> = [];
    for (let at = 0; at < input.length && three.fault === undefined;) {
      const skip = Math.min(three.skippable, input.length - at);
      const { end } = three;
      if (skip > 0) three.skip(skip);
      at += skip > 0 ? skip : three.take(input.subarray(at, at + r.pick([512, 10_240, 32_768])));
      assert.ok(three.fault !== undefined || three.offset === at);
      if (end !== undefined) assert.ok(at <= end);
      if (three.atMemberEnd) ends.push(at);
    }
    assert.deepEqual(ended(three), whole);
    if (typeof whole === "string") return;
    // Members cover the archive, one behind the other.
    let at = 0;
    for (const [i, member] of whole.entries()) {
      const step = one.format === "slots" ? 512 : 10_240;
      assert.equal(member.length % step, 0);
      assert.ok(member.size < member.length);
      at += member.length;
      assert.equal(ends[i], at);
    }
    assert.equal(format === "slots" ? archiveSize("slots", at) : at, input.length);
    assert.equal(one.offset, input.length);
    const list = new ListWalk(options);
    for (const member of whole) assert.equal(list.next(member), undefined);
    assert.equal(list.finish(), undefined);
  },
};

/** Bytes of a slot here. */
const slot = 2048;
const noData = new Uint8Array(slot);
const image = Buffer.alloc(9000, 3);
image.fill(0, 600, 5000);
const inside = [
  { offset: 0, length: 1024 },
  { offset: 4608, length: 4392 },
];
const home = ended(
  gnuHeader("dom0-home/user/", "5", 0),
  gnuHeader("dom0-home/user/a", "0", 700),
  padTo(Buffer.alloc(700, 5), 512),
  gnuSparse("dom0-home/user/b", image.length, inside),
  padTo(Buffer.alloc(5416, 6), 512),
  paxHeader([paxRecord("size", 600)]),
  gnuHeader("dom0-home/user/c", "0", 0),
  Buffer.alloc(1024, 7),
);
const inner: Target = {
  name: "inner",
  share: 0.2,
  corpus: [
    gnuTar("vm7/private.img", image, inside),
    gnuTar("vm7/private.img", image, inside, { base256: true }),
    gnuTar(
      "vm7/root.img",
      image,
      [0, 1, 2, 3, 4, 5].map((n) => ({ offset: n * 1024, length: 512 })),
    ),
    tarwriter("vm7/private.img", image),
    tarwriter("vm7/private.img", image, true),
    gnuTar("qubes.xml", Buffer.from("<qubes/>"), [{ offset: 0, length: 8 }]),
    home,
  ],
  check: (input, r) => {
    const read = (parts: ReadonlyArray<Uint8Array>) => {
      const reader = innerReader(slot);
      /** What of it has a place goes right there. */
      const give = (part: Uint8Array): Uint8Array => {
        const room = reader.room();
        if (room === undefined) reader.push(part);
        else {
          room.set(part.subarray(0, room.length));
          reader.filled(Math.min(part.length, room.length));
        }
        return part.subarray(room?.length ?? part.length);
      };
      const found: Array<string> = [];
      let size: number | undefined = 0;
      let slots = 0;
      let bytes = 0;
      /** False once it is over. */
      const steps = (): boolean => {
        // What is said of a size may be anything, and zeros come in one step.
        for (let turns = 0; ; turns++) {
          assert.ok(turns <= input.length + 5, "more steps than there can be");
          const step = reader.next();
          if (step === undefined) return true;
          assert.ok(found.length > 0 || step instanceof InnerFault || step.type === "file");
          if (step instanceof InnerFault) {
            assert.match(step.message, /^[\x20-\x7e]+$/);
            assert.ok(step.at <= input.length);
            found.push(step.message);
            return false;
          }
          if (step.type === "file") {
            assert.match(step.name, /^(?:qubes\.xml|vm[0-9]+\/[a-z.-]+|dom0-home\/[\w.@-]+)$/);
            size = step.size;
          } else if (step.type === "zeros") {
            assert.ok(step.count > 0 && size !== undefined);
            slots += step.count;
          } else if (step.type === "slot") {
            assert.equal(step.index, slots);
            if (size !== undefined) {
              assert.notEqual(Buffer.compare(step.bytes, noData.subarray(0, step.bytes.length)), 0);
              assert.equal(step.bytes.length, Math.min(slot, size - slots * slot));
            }
            slots += 1;
            bytes += step.bytes.length;
          } else {
            // Whole: every slot was said once, or every byte came.
            if (size === undefined) assert.equal(bytes, input.length);
            else assert.equal(slots, Math.ceil(size / slot));
            found.push("whole");
            return false;
          }
          found.push(
            step.type === "slot"
              ? `${step.index} ${reference.sha256(step.bytes).toString("hex")}`
              : JSON.stringify(step),
          );
        }
      };
      for (const part of parts) {
        for (let rest = part; rest.length > 0;) {
          rest = give(rest);
          if (!steps()) return found;
        }
      }
      reader.end();
      assert.ok(!steps(), "it waits for more than there is");
      return found;
    };
    const [got, inPieces] = [read([input]), read(pieces(input, r))];
    // Where a fault was noticed, and how much was said before, is told by the pieces; which one, is not.
    const endOf = (all: Array<string>) => all.pop()?.replace(/ \(at byte [0-9]+\)$/, "");
    const end = endOf(got);
    assert.equal(endOf(inPieces), end);
    if (end === "whole") assert.equal(inPieces.length, got.length);
    for (const [i, one] of inPieces.entries()) assert.equal(one, got[i] ?? one);
  },
};

export const targets: ReadonlyArray<Target> = [
  command,
  request,
  bulk,
  texts,
  tables,
  wishes,
  asks,
  answers,
  tar,
  inner,
];

/** Runs input number `n` of a target, or the given bytes. */
export const strike = (
  target: Target,
  seed: number,
  make: (corpus: ReadonlyArray<Buffer>, r: Rng) => Buffer,
): void => {
  const r = rng(Math.imul(seed, 0x9e3779b1) ^ 0xf022);
  target.check(make(target.corpus, r), r);
};
