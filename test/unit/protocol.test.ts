/**
 * src and the second implementation say the same: over the published vectors, and over what is made at
 * random. What a word, a line or a text must be, its own suite tells rule by rule.
 */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Schema } from "effect";
import { Walk } from "#src/archive/walk";
import { fingerprint, signingKeyOf, signatureHolds } from "#src/proof/keys";
import { packHasher } from "#src/proof/pack";
import { parseWish, resolver, type Run, runLine } from "#src/proof/recipe";
import { seriesOf } from "#src/proof/series";
import { lineOf, parseMember, rootHasher } from "#src/proof/table";
import {
  manifestText,
  parseManifest,
  parseReceipt,
  parseTicket,
  parseTombstone,
  receiptText,
  sha256,
  ticketText,
  tombstoneText,
} from "#src/proof/texts";
import { leafOf, proofOf, rootFrom, treeHasher, treeLevels } from "#src/proof/treehash";
import { frames } from "#src/wire/frames";
import { blockSize } from "#src/wire/limits";
import {
  Instant,
  isName,
  isPrefix,
  isPublicKey,
  isSeries,
  isSession,
  isSignature,
  parseNumber,
  Sha256,
} from "#src/wire/names";
import { parseCommand, parseLine, type Request, toCommand, toLine } from "#src/wire/request";
import { mutate } from "#test/fuzz/mutate";
import { type Rng, rng } from "#test/support/random";
import * as reference from "#test/support/reference";
import { source } from "#test/support/source";
import { bytesOf, lineOfRoot, sampleOf, vectors } from "#test/support/vectors";

const run = Effect.runSync;

/** As src sees a pack: its table, the digests of its members, and the running hash behind each frame. */
const tableOf = (pack: Buffer, options: { readonly fullChunk?: number } = {}) => {
  const walk = new Walk({ ...options, format: "pack" });
  const hasher = packHasher();
  const running: Array<string> = [];
  let table = "";
  for (let at = 0; at < pack.length;) {
    const begin = at;
    at += walk.take(pack.subarray(at));
    assert.isUndefined(walk.fault);
    for (let block = begin; block < at; block += blockSize) {
      hasher.block(leafOf(pack.subarray(block, Math.min(at, block + blockSize))));
      running.push(hasher.running());
    }
    const digest = Buffer.from(hasher.endMember()).toString("hex");
    running[running.length - 1] = hasher.running();
    table += lineOf({ ...walk.members.at(-1)!, digest });
  }
  return { table, running };
};
const rootOf = (lines: ReadonlyArray<string>) => {
  const hasher = rootHasher();
  for (const line of lines) hasher.push(line);
  return hasher.root();
};
const treeOf = (bytes: Uint8Array) => {
  const tree = treeHasher();
  for (const leaf of reference.leavesOf(bytes)) tree.push(leaf);
  return tree.root();
};
const texts = {
  manifest: { read: parseManifest, write: manifestText },
  receipt: { read: parseReceipt, write: receiptText },
  tombstone: { read: parseTombstone, write: tombstoneText },
} as const;

describe("the vectors hold for both", () => {
  it("digests, and proofs of blocks", () => {
    for (const { count, digest } of vectors.digests) {
      assert.strictEqual(reference.treeHash(bytesOf(count)), digest);
      assert.strictEqual(treeOf(bytesOf(count)), digest);
    }
    for (const { block, count, siblings } of vectors.proofs) {
      const bytes = bytesOf(count);
      const leaves = reference.leavesOf(bytes);
      const data = bytes.subarray(block * blockSize, (block + 1) * blockSize);
      const proof = siblings.map((sibling) => Buffer.from(sibling, "hex"));
      assert.deepStrictEqual(reference.siblingsOf(leaves, block), proof);
      const ours = proofOf(treeLevels(Buffer.concat(leaves)), block);
      assert.strictEqual(Buffer.from(ours).toString("hex"), siblings.join(""));
      const root = treeOf(bytes);
      assert.strictEqual(reference.rootOfBlock(data, block, leaves.length, proof), root);
      assert.strictEqual(rootFrom(leafOf(data), block, leaves.length, ours), root);
    }
  });
  it("tables, roots and running hashes", () => {
    for (const { file, members, root, table } of vectors.archives) {
      const pack = sampleOf(file);
      const ours = tableOf(pack, file.includes("multichunk") ? { fullChunk: 65_664 } : {});
      assert.strictEqual(reference.tableOf(pack), table);
      assert.strictEqual(ours.table, table);
      const lines = reference.linesOf(table);
      assert.lengthOf(lines, members);
      assert.strictEqual(reference.rootOf(lines), root);
      assert.strictEqual(rootOf(lines), root);
      for (const vector of vectors.running.filter(({ archive }) => archive === file)) {
        const whole = lines.slice(0, vector.whole_members);
        const digests = whole.map((line) => Buffer.from(line.slice(-65, -1), "hex"));
        assert.strictEqual(reference.running(digests), vector.running);
        const none = packHasher().running();
        const { running } = ours;
        assert.strictEqual(running[vector.whole_members - 1] ?? none, vector.running);
      }
    }
    for (const { lines, root } of vectors.roots) {
      const all = Array.from({ length: lines }, (_, i) => lineOfRoot(i, sha256));
      assert.strictEqual(reference.rootOf(all), root);
      assert.strictEqual(rootOf(all), root);
    }
    for (const { blocks = 0, count = 0, running } of vectors.running.filter((v) => v.count)) {
      const leaves = reference.leavesOf(bytesOf(count)).slice(0, blocks);
      assert.strictEqual(reference.running([], leaves), running);
      const hasher = packHasher();
      for (const leaf of leaves) hasher.block(leaf);
      assert.strictEqual(hasher.running(), running);
    }
  });
  it("keys, series and signatures", () => {
    for (const { fingerprint: print, public: publicKey, seed } of vectors.keys) {
      const secret = Buffer.from(seed, "hex");
      const [theirs, ours] = [reference.pairOf(secret), signingKeyOf(secret)];
      assert.strictEqual(theirs.publicKey, publicKey);
      assert.strictEqual(ours.publicKey, publicKey);
      assert.strictEqual(reference.fingerprintOf(publicKey), print);
      assert.strictEqual(fingerprint(ours.publicKey), print);
      for (const { signature, signer, text, what } of vectors.texts) {
        assert.isTrue(reference.holds(signer, what, text, signature));
        assert.isTrue(signatureHolds(signer, what, text, signature));
        if (signer !== publicKey) continue;
        assert.strictEqual(theirs.sign(what, text), signature);
        assert.strictEqual(ours.sign(what, text), signature);
      }
    }
    const key = Buffer.from(vectors.series_key, "hex");
    for (const { dom0, prefix, qubes, series } of vectors.series) {
      assert.strictEqual(reference.seriesOf(key, prefix, qubes, dom0), series);
      assert.strictEqual(seriesOf(key, { prefix, qubes, includeDom0: dom0 }), series);
    }
  });
  it("texts, recipes and requests", () => {
    for (const { text, what } of vectors.texts) {
      if (what === "ticket") {
        const read = parseTicket(text)!;
        assert.deepStrictEqual(reference.ticketIn(text), read);
        assert.strictEqual(reference.ticketText(read.ticket, read.server), text);
        assert.strictEqual(ticketText(read.ticket, read.server), text);
        continue;
      }
      const { read, write } = texts[what];
      const found = read(text);
      assert.deepStrictEqual(reference.textIn(what, text), { ...found });
      assert.strictEqual(reference.textOf(what, { ...found }), text);
      assert.strictEqual(write(found as never), text);
    }
    const { on_the_wire: wishes, stored } = vectors.recipe;
    const session = stored.slice(0, 32);
    assert.strictEqual(reference.resolved(wishes, session, 6, ""), stored);
    const resolve = resolver(session as never, 6, []);
    assert.isTrue(resolve.push(parseWish(wishes.trimEnd())!));
    assert.strictEqual([...resolve.made.runs()].map(runLine).join(""), stored);
    for (const { command, line, verb } of vectors.requests) {
      const parsed = parseCommand(command);
      assert.deepStrictEqual(parseLine(verb, line), parsed);
      if (!("request" in parsed)) return assert.fail(command);
      assert.strictEqual(toCommand(parsed.request), command);
      assert.strictEqual(toLine(parsed.request), line);
      const parameters = JSON.parse(line);
      assert.strictEqual(reference.commandOf({ verb, parameters }), command);
      assert.deepStrictEqual(reference.requestIn(command), { verb, parameters });
    }
    assert.strictEqual(new Set(vectors.requests.map(({ verb }) => verb)).size, 8);
  });
});

/** What both say of `count` texts that were made of `corpus`. */
const agree = <A>(
  count: number,
  corpus: ReadonlyArray<string>,
  ours: (text: string) => A,
  theirs: (text: string) => A,
) => {
  const bytes = corpus.map((text) => Buffer.from(text, "latin1"));
  for (let seed = 1; seed <= count; seed++) {
    const text = mutate(bytes, rng(seed)).toString("latin1");
    assert.deepStrictEqual(ours(text), theirs(text), JSON.stringify(text));
  }
};
const vector = (what: string) => vectors.texts.find((text) => text.what === what)!;
const ticket = vector("ticket").text;

describe("both agree on what is made at random:", () => {
  const words = ticket.split(" ");
  it.each([
    ["name", isName, [words[1]!, "a/b/c.d", "1/2/3/4/5/6/7/8", `${"a".repeat(128)}/b`]],
    ["prefix", isPrefix, [words[1]!, "a/", "1/2/3/4/5/6/7/8/"]],
    ["session", isSession, [words[2]!]],
    ["series", isSeries, [words[4]!, "0123456789abcdef", "a-0123456789abcdef", "a.b/c-d-01234567"]],
    ["number", (text: string) => parseNumber(text) !== undefined, ["0", "58", "9007199254740991"]],
    ["time", Schema.is(Instant), [words[7]!, "2024-02-29T23:59:59Z", "2023-02-28T00:00:00Z"]],
    ["digest", Schema.is(Sha256), ["0123456789abcdef".repeat(4)]],
    ["key", isPublicKey, [words[8]!, words[9]!]],
    ["signature", isSignature, vectors.texts.map(({ signature }) => signature)],
  ] as const)("whether a text is a %s", (word, ours, corpus) =>
    agree(4000, corpus, ours, reference.words[word]),
  );
  it("lines of tables", () => {
    const lines = reference.linesOf(vectors.archives[1]!.table).map((line) => line.trimEnd());
    agree(6000, lines, parseMember, reference.memberIn);
  });
  it.each(["manifest", "receipt", "tombstone"] as const)("the text of a %s", (what) => {
    const { text } = vector(what);
    const { read, write } = texts[what];
    const plain = (found: object | undefined) => (found === undefined ? undefined : { ...found });
    agree(
      4000,
      [text, text.replace(":null", ':"2026-12-01T00:00:00Z"')],
      (some) => plain(read(some)),
      (some) => reference.textIn(what, some),
    );
    const found = read(text)!;
    for (const field of ["size", "members", "run"].filter((key) => key in found)) {
      for (const value of [0, 1, 2, 1_048_576, 1_048_577, 2 ** 53 - 1, 2 ** 53, -1, -0, 0.5]) {
        const other = write({ ...found, [field]: value } as never);
        assert.deepStrictEqual(plain(read(other)), reference.textIn(what, other), other);
      }
    }
  });
  it("tickets, and commands", () => {
    agree(4000, [ticket, ticket.replace(" - ", ` ${"ab".repeat(16)} `)], parseTicket, (text) => {
      const read = reference.ticketIn(text);
      return read as ReturnType<typeof parseTicket>;
    });
    agree(
      20_000,
      vectors.requests.map(({ command }) => command),
      (text) => {
        const parsed = parseCommand(text);
        return "request" in parsed ? toCommand(parsed.request) : undefined;
      },
      (text) => {
        const read = reference.requestIn(text);
        return read === undefined ? undefined : reference.commandOf(read);
      },
    );
    for (const { command } of vectors.requests) {
      const { parameters, verb } = reference.requestIn(command)!;
      const request = { verb, ...parameters } as unknown as Request;
      assert.deepStrictEqual(parseLine(verb, JSON.stringify(parameters)), { request });
    }
  });
  it("digests and proofs, of members of any length", () => {
    for (let seed = 1; seed <= 200; seed++) {
      const r = rng(seed);
      const leaves = Array.from({ length: r.int(1, 300) }, () => r.bytes(32));
      const tree = treeHasher();
      for (const leaf of leaves) tree.push(leaf);
      const top = reference.topOf(leaves).toString("hex");
      assert.strictEqual(tree.root(), top);
      const index = r.int(0, leaves.length - 1);
      const siblings = reference.siblingsOf(leaves, index);
      const proof = proofOf(treeLevels(Buffer.concat(leaves)), index);
      assert.isTrue(Buffer.concat(siblings).equals(proof));
      assert.strictEqual(rootFrom(leaves[index]!, index, leaves.length, proof), top);
    }
  });
  it("roots, for every number of lines to 200", () => {
    const lines: Array<string> = [];
    for (let n = 0; n < 200; n++) {
      lines.push(lineOfRoot(n, sha256));
      assert.strictEqual(rootOf(lines), reference.rootOf(lines), `${lines.length} lines`);
    }
  });
  it("running hashes, at the end of every frame", () => {
    const pack = sampleOf(vectors.archives[1]!.file);
    const members = reference.membersOf(pack);
    const digests = members.map(({ bytes }) => Buffer.from(reference.treeHash(bytes), "hex"));
    const { running } = tableOf(pack, { fullChunk: 65_664 });
    running.forEach((hash, i) => {
      assert.strictEqual(hash, reference.running(digests.slice(0, i + 1)));
    });
    for (let seed = 1; seed <= 100; seed++) {
      const r = rng(seed);
      const hasher = packHasher();
      const whole: Array<Buffer> = [];
      let blocks: Array<Buffer> = [];
      for (let turns = r.int(1, 40); turns > 0; turns--) {
        if (blocks.length > 0 && r.next() < 0.4) {
          whole.push(Buffer.from(hasher.endMember()));
          assert.isTrue(whole.at(-1)!.equals(reference.topOf(blocks)));
          blocks = [];
        } else if (blocks.length === 0 && r.next() < 0.3) {
          whole.push(r.bytes(32));
          hasher.skipMember(whole.at(-1)!);
        } else {
          blocks.push(r.bytes(32));
          hasher.block(blocks.at(-1)!);
        }
        assert.strictEqual(hasher.running(), reference.running(whole, blocks));
        assert.strictEqual(hasher.whole(), whole.length);
        assert.strictEqual(hasher.blocks(), blocks.length);
      }
    }
  });
  it("recipes, over bases of many runs", () => {
    const session = (n: number) => `${n}`.padStart(32, "0");
    for (let seed = 1; seed <= 1000; seed++) {
      const r = rng(seed);
      const base: ReadonlyArray<Run> = Array.from({ length: r.int(0, 6) }, () => ({
        session: session(r.int(1, 4)) as Run["session"],
        first: r.int(0, 5),
        count: r.int(1, 5),
      }));
      const old = base.reduce((sum, { count }) => sum + count, 0);
      const pack = r.int(0, 8);
      const line = () => {
        const of = r.pick(["new", "base"]);
        const most = of === "new" ? pack : old;
        const first = r.int(0, most);
        return `${of} ${first} ${Math.max(1, r.int(1, most - first + (r.next() < 0.05 ? 1 : 0)))}\n`;
      };
      const text = Array.from({ length: r.int(1, 6) }, line).join("");
      const resolve = resolver(session(9) as Run["session"], pack, base);
      const sound = reference
        .linesOf(text)
        .every((one) => resolve.push(parseWish(one.trimEnd())!) === true);
      const ours = sound ? [...resolve.made.runs()].map(runLine).join("") : undefined;
      const theirs = reference.resolved(text, session(9), pack, base.map(runLine).join(""));
      assert.strictEqual(ours, theirs, `${JSON.stringify(base)} ${text}`);
    }
  });
  it("series", () => {
    for (let seed = 1; seed <= 300; seed++) {
      const r = rng(seed);
      const key = r.bytes(32);
      const word = () => `${r.pick([..."abyzABYZ"])}${r.pick(["", "-1", "_x", ".y", "work"])}`;
      const qubes = Array.from({ length: r.int(0, 5) }, word);
      const prefix = r.pick(["", word(), `${word()}-`, `${word()}/x._+`, `${word()}/`]);
      const includeDom0 = r.next() < 0.5;
      assert.strictEqual(
        seriesOf(key, { prefix, qubes, includeDom0 }),
        reference.seriesOf(key, prefix, qubes, includeDom0),
      );
    }
  });
  it("frames", () => {
    const limit = 64;
    const some = (r: Rng) =>
      r.pick([
        () => reference.framed(r.bytes(r.int(0, limit))),
        () => reference.framed(r.bytes(limit + r.int(0, 1))),
        () => reference.keepAlive,
        () => reference.giveUp,
        () => r.bytes(r.int(0, 9)),
      ])();
    for (let seed = 1; seed <= 2000; seed++) {
      const r = rng(seed);
      const bytes = Buffer.concat(Array.from({ length: r.int(0, 8) }, () => some(r)));
      const cut = bytes.subarray(0, r.int(0, bytes.length));
      const expected = reference.framesIn(cut, limit);
      const { next } = frames(source(cut, r.int(1, 100)), limit);
      for (const frame of expected) {
        const found = run(Effect.catch(next, () => Effect.succeed({ kind: "long" as const })));
        if (typeof frame === "string") assert.strictEqual(found.kind, frame);
        else assert.isTrue(found.kind === "bytes" && frame.equals(found.bytes));
      }
    }
  });
});
