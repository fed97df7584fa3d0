/** What a client can learn of a store, and read of it: about, list, manifest, recipe, table, read, check. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { TestClock } from "effect/testing";
import { Disk, type Operation } from "#layers/memory/MemorySafeFs";
import { archiveOf, slotOf, scryptOf } from "#test/support/archive";
import {
  fingerprintOf,
  holds,
  leavesOf,
  linesOf,
  mebi,
  membersOf,
  rootOfBlock,
  sha256,
  treeHash,
} from "#test/support/reference";
import {
  ask,
  type Call,
  dom0,
  memoryWorld,
  open,
  otherDom0,
  run,
  series,
  sessionOf,
  start,
  type World,
} from "#test/support/shell";
import { ontoDisk, serverPair, seriesOfAll, signerPair, storeMaker } from "#test/support/stores";

const chunk = 3 * mebi;
/** A qube whose image has a chunk of four blocks and one of some: its first blocks are the heads'. */
const archive = archiveOf({
  seed: 1,
  chunk,
  files: [{ path: "vm1/private.img", size: 4_000_000 }],
});
const members = membersOf(archive);
const big = members.findIndex(({ length }) => length > 3 * mebi);

const makeStore = () => {
  const disk = new Disk();
  const maker = storeMaker(ontoDisk(disk));
  const world: World = { ...memoryWorld(disk), fullChunk: chunk + 128 };
  const ask = (verb: string, stdin?: string, call: Call = {}) =>
    Effect.map(
      run(world, { ...call, command: `qbackup/1 ${verb}` }, Buffer.from(stdin ?? "")),
      ({ code, output }) => ({ code, ...parsed(output) }),
    );
  /** The JSON lines of an answer. */
  const lines = (verb: string, call?: Call) =>
    Effect.map(ask(verb, undefined, call), ({ code, said }) => ({ code, said }));
  /** The code of the error that it ends with. */
  const refusal = (verb: string) => Effect.map(lines(verb), ({ said }) => said.at(-1)?.["code"]);
  return { disk, maker, world, ask, lines, refusal };
};

/** Takes a file away. */
const unlink = (disk: Disk, file: string) => {
  const at = file.lastIndexOf("/");
  const folder = disk.find(file.slice(0, at));
  if (folder?.kind === "directory") folder.entries.delete(file.slice(at + 1));
};

type Said = Readonly<Record<string, unknown>>;
type Piece = Buffer | Said | "keep-alive" | "end";
/** What came: lines until frames begin, what was in them and the errors between, lines again behind a 0. */
const parsed = (output: Buffer) => {
  const said: Array<Said> = [];
  const pieces: Array<Piece> = [];
  let at = 0;
  const line = (): Said => {
    const end = output.indexOf(0x0a, at);
    const text = output.toString("utf8", at, end);
    at = end + 1;
    return JSON.parse(text) as Said;
  };
  if (output[0] !== 0x0a) throw new Error("no newline before the first reply");
  at = 1;
  while (at < output.length) {
    if (output[at] === 0x7b) {
      said.push(line());
      continue;
    }
    const length = output.readUInt32BE(at);
    at += 4;
    if (length === 0) pieces.push("end");
    else if (length === 0x80000000) pieces.push("keep-alive");
    else if (length === 0xffffffff) pieces.push(line());
    else {
      pieces.push(output.subarray(at, at + length));
      at += length;
    }
  }
  return { said, pieces };
};

const names = (said: ReadonlyArray<Said>) =>
  said.flatMap(({ name }) => (typeof name === "string" ? [name] : []));

describe("about", () => {
  it.effect("says what the server is", () =>
    Effect.gen(function* () {
      const { disk, lines } = makeStore();
      yield* TestClock.setTime(Date.UTC(2026, 10, 23, 5, 0, 0, 999));
      const { code, said } = yield* lines("about", { args: ["--quota", "10G"] });
      assert.strictEqual(code, 0);
      assert.deepInclude(said[0], {
        type: "about",
        server: serverPair.publicKey,
        signers: null,
        quota: 10 * 2 ** 30,
        clock: "2026-11-23T05:00:00Z",
        confined: null,
        ticket: null,
      });
      disk.plant(".qbackup/signers", Buffer.from(`${signerPair.publicKey}\n`));
      // In memory every root is the same, that of the kernel's attributes too.
      disk.plant("current", Buffer.from("qbackup-shell (enforce)\n"));
      assert.deepInclude((yield* lines("about")).said[0], {
        signers: [fingerprintOf(signerPair.publicKey)],
        quota: null,
        confined: "qbackup-shell (enforce)",
      });
      disk.plant("current", Buffer.from("unconfined\n"));
      assert.deepInclude((yield* lines("about")).said[0], { confined: null });
    }),
  );

  it.effect(
    "shows the highest ticket of a series to whoever asks for it, however long its name",
    () =>
      Effect.gen(function* () {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const name = Array(4).fill("n".repeat(127)).join("/");
        ontoDisk(disk)(`${name}-beside`, new Uint8Array(0));
        const about = (signer: string, of: string) =>
          Effect.map(ask(world, "about", [signer, of]), ({ replies: [first] }) =>
            first?.type === "about" ? first.ticket : first,
          );
        assert.isNull(yield* about(dom0.publicKey, series));
        const client = yield* open(world, { name, run: 7 });
        assert.strictEqual((yield* client.next)?.type, "ready");
        yield* client.cut;
        yield* client.exit;
        const ticket = yield* about(dom0.publicKey, series);
        if (ticket === null || ticket === undefined || !("text" in ticket))
          throw new Error("no ticket");
        assert.match(ticket.text, new RegExp(`^put ${name} ${sessionOf(1)} - ${series} 7 `));
        assert.isTrue(holds(dom0.publicKey, "ticket", ticket.text, ticket.signature));
        assert.isNull(yield* about(otherDom0.publicKey, series));
        assert.isNull(yield* about(dom0.publicKey, "f".repeat(16)));
      }),
  );
});

describe("list", () => {
  it.effect("says what the records say, in order of name, by prefix and page", () =>
    Effect.gen(function* () {
      const { lines, maker } = makeStore();
      const stored = ["b.backup", "a/x.backup", "a.backup", "a-b.backup", "a/b/c.backup"];
      const kept = stored.map((name, n) => {
        maker.pack(sessionOf(n), archive);
        return maker.archive({ name, session: sessionOf(n), run: n });
      });
      const { code, said } = yield* lines("list");
      assert.strictEqual(code, 0);
      const sorted = ["a-b.backup", "a.backup", "a/b/c.backup", "a/x.backup", "b.backup"];
      assert.deepStrictEqual(names(said), sorted);
      assert.deepStrictEqual(said[0], {
        type: "archive",
        name: "a-b.backup",
        session: sessionOf(3),
        signer: signerPair.publicKey,
        series: seriesOfAll,
        run: 3,
        size: archive.length,
        members: members.length,
        root: kept[3]!.root,
        stored: "2026-11-23T05:10:00Z",
        damaged: false,
      });
      assert.deepStrictEqual(said.at(-1), { type: "end", more: false });
      for (const [words, found] of [
        ["a", sorted.slice(0, 4)],
        ["a/", ["a/b/c.backup", "a/x.backup"]],
        ["a/b/c.backup", ["a/b/c.backup"]],
        ["c", []],
        ["- a.backup", sorted.slice(2)],
        ["- a/b/b.backup", sorted.slice(2)],
        ["- a/b/d.backup", sorted.slice(3)],
        ["a/ a/b/c.backup", ["a/x.backup"]],
        ["a z", []],
      ] as const) {
        assert.deepStrictEqual(names((yield* lines(`list ${words}`)).said), found, words);
      }
    }),
  );

  it.effect("of more than 10,000 comes in pages, in which no archive is missed", () =>
    Effect.gen(function* () {
      const { disk, lines, maker } = makeStore();
      const session = sessionOf(1);
      maker.pack(session, archive);
      const count = 10_003;
      for (let n = 0; n < count; n++) {
        maker.archive({ name: `d${n % 7}/${String(n).padStart(5, "0")}`, session, bare: true });
      }
      const before = disk.log.length;
      const first = (yield* lines("list")).said;
      const found = names(first);
      assert.strictEqual(found.length, 10_000);
      assert.deepStrictEqual(first.at(-1), { type: "end", more: true });
      const rest = (yield* lines(`list - ${found.at(-1)}`)).said;
      assert.deepStrictEqual(rest.at(-1), { type: "end", more: false });
      const all = [...found, ...names(rest)];
      assert.strictEqual(new Set(all).size, count);
      assert.deepStrictEqual(all, all.toSorted());
      // Whatever an archive has in it, only its record is read, and that is small.
      const reads = disk.log.slice(before).filter(({ operation }) => operation === "read");
      assert.isAtMost(reads.length, count + 100);
      const odd = (call: Operation) => !/manifest\.json$|identity$|tombstones/.test(call.name);
      assert.deepStrictEqual(reads.filter(odd), []);
      assert.isAtMost(Math.max(...reads.map(({ bytes }) => bytes!)), 8192);
    }),
  );

  it.effect("is blind to what is no archive, and tells what is damaged", () =>
    Effect.gen(function* () {
      const { disk, lines, maker } = makeStore();
      const write = ontoDisk(disk);
      for (let n = 1; n <= 4; n++) maker.pack(sessionOf(n), archive);
      maker.archive({ name: "found.backup", session: sessionOf(1) });
      maker.archive({ name: "no-pack.backup", session: sessionOf(2) });
      maker.archive({ name: "no-recipe.backup", session: sessionOf(3) });
      maker.archive({ name: "whole.backup", session: sessionOf(4), bare: true });
      write(`.qbackup/damaged/${sessionOf(1)}`, Buffer.from("something\n"));
      unlink(disk, `.qbackup/packs/${sessionOf(2)}`);
      unlink(disk, `.qbackup/recipes/${sessionOf(3)}`);
      // What stands beside archives.
      write("plain-file", archive);
      write("nonsense.manifest.json", Buffer.from("{}"));
      write("long.manifest.json", Buffer.alloc(8193, " "));
      write(".hidden.manifest.json", disk.bytes("whole.backup.manifest.json")!);
      write("renamed.manifest.json", disk.bytes("found.backup.manifest.json")!);
      write("a b/x.manifest.json", disk.bytes("whole.backup.manifest.json")!);
      disk.plant("directory.manifest.json", "directory");
      disk.plant("link.manifest.json", "other");
      disk.plant("link", "other");
      maker.archive({
        name: "other-receipt",
        session: sessionOf(4),
        receipt: { root: "0".repeat(64) },
      });
      const { said } = yield* lines("list");
      assert.deepStrictEqual(
        said.slice(0, -1).map(({ damaged, name }) => [name, damaged]),
        [
          ["found.backup", true],
          ["no-pack.backup", true],
          ["no-recipe.backup", true],
          ["whole.backup", false],
        ],
      );
      assert.deepInclude(said[3], { signer: null, series: null, run: null });
    }),
  );

  it.effect("says what was pruned between the rest, and not twice", () =>
    Effect.gen(function* () {
      const { lines, maker } = makeStore();
      for (let n = 1; n <= 4; n++) maker.pack(sessionOf(n), archive);
      maker.archive({ name: "b", session: sessionOf(2) });
      // Its record has not gone yet: whoever prunes died in between.
      const both = { name: "c", session: sessionOf(3) };
      maker.archive(both);
      const stones = [
        maker.tombstone({ name: "a", session: sessionOf(1) }),
        maker.tombstone(both),
        maker.tombstone({ name: "d", session: sessionOf(4) }),
      ];
      const { said } = yield* lines("list");
      assert.deepStrictEqual(
        said.map(({ name, type }) => [type, name]),
        [
          ["pruned", "a"],
          ["archive", "b"],
          ["pruned", "c"],
          ["pruned", "d"],
          ["end", undefined],
        ],
      );
      assert.deepStrictEqual(said[0], {
        type: "pruned",
        name: "a",
        tombstone: stones[0]!.text,
        signature: stones[0]!.signature,
      });
      assert.deepStrictEqual(names((yield* lines("list - b")).said), ["c", "d"]);
      assert.deepStrictEqual(names((yield* lines("list d")).said), ["d"]);
    }),
  );

  it.effect("needs no private key, and of a store that nothing was put into is empty", () =>
    Effect.gen(function* () {
      const { disk, lines, maker } = makeStore();
      maker.pack(sessionOf(1), archive);
      maker.archive({ name: "a", session: sessionOf(1) });
      disk.plant(".qbackup/identity", Buffer.from("none"), 0);
      assert.deepStrictEqual(names((yield* lines("list")).said), ["a"]);
      const empty = new Disk();
      const { code, text } = yield* run(memoryWorld(empty), { command: "qbackup/1 list" });
      assert.deepStrictEqual([code, text], [0, '\n{"type":"end","more":false}\n']);
      assert.deepStrictEqual(empty.files(), []);
    }),
  );
});

describe("what was signed, and what an archive is made of", () => {
  it.effect("comes as it is kept", () =>
    Effect.gen(function* () {
      const { ask, lines, maker, refusal } = makeStore();
      // Longer than a frame of it.
      const slots = Array.from({ length: 2000 }, (_, i) => slotOf(`vm1/x.${i}`, Buffer.alloc(0)));
      maker.pack(sessionOf(1), Buffer.concat(slots));
      const recipe = Array.from({ length: 2000 }, (_, i) => `${sessionOf(1)} ${1999 - i} 1\n`);
      const kept = maker.archive({ name: "d/a", session: sessionOf(1), recipe: recipe.join("") });
      const { said } = yield* lines("manifest d/a");
      assert.deepStrictEqual(said, [{ type: "manifest", ...kept.record }]);
      const text = function* (verb: string) {
        const answer = yield* ask(verb);
        assert.strictEqual(answer.code, 0);
        assert.deepStrictEqual(answer.said, [{ type: "ready" }, { type: "end" }]);
        assert.isAtLeast(answer.pieces.length, 3);
        assert.strictEqual(answer.pieces.pop(), "end");
        return Buffer.concat(answer.pieces as Array<Buffer>).toString();
      };
      assert.strictEqual(yield* text("recipe d/a"), recipe.join(""));
      const table = yield* text(`table ${sessionOf(1)}`);
      assert.strictEqual(linesOf(table).length, 2000);
      assert.include(table, `vm1/x.7 0 512 ${treeHash(slots[7]!)}\n`);

      maker.pack(sessionOf(2), archive);
      maker.archive({ name: "bare", session: sessionOf(2), bare: true });
      assert.strictEqual(yield* refusal("manifest bare"), "not-found");
      assert.strictEqual((yield* ask("recipe bare")).code, 0);
      for (const words of ["manifest b", "recipe b", "check b", "manifest x/b", "recipe bare/b"]) {
        assert.strictEqual(yield* refusal(words), "not-found", words);
      }
      assert.strictEqual(yield* refusal(`table ${sessionOf(3)}`), "not-found");
    }),
  );

  it.effect("is said to be pruned, or damaged, where it is", () =>
    Effect.gen(function* () {
      const { disk, maker, refusal } = makeStore();
      const write = ontoDisk(disk);
      maker.pack(sessionOf(1), archive);
      maker.pack(sessionOf(2), archive);
      maker.tombstone({ name: "gone", session: sessionOf(1) });
      maker.archive({ name: "going", session: sessionOf(2) });
      maker.tombstone({ name: "going", session: sessionOf(2) });
      write("rotten.manifest.json", Buffer.from('{"manifest":'));
      for (const verb of ["manifest", "recipe", "check"]) {
        assert.strictEqual(yield* refusal(`${verb} gone`), "pruned");
        assert.strictEqual(yield* refusal(`${verb} going`), "pruned");
        assert.strictEqual(yield* refusal(`${verb} rotten`), "damaged");
      }
      // The pack of what was pruned may be there for others.
      assert.strictEqual(yield* refusal(`table ${sessionOf(1)}`), undefined);
      unlink(disk, `.qbackup/packs/${sessionOf(1)}`);
      assert.strictEqual(yield* refusal(`table ${sessionOf(1)}`), "pruned");
    }),
  );
});

/** The block of a frame, proven by its siblings to be the member's. */
const proven = (piece: Piece | undefined, member: Buffer, block: number) => {
  if (!Buffer.isBuffer(piece)) throw new Error(`no block: ${JSON.stringify(piece)}`);
  const blocks = Math.ceil(member.length / mebi);
  const size = Math.min(mebi, member.length - block * mebi);
  const siblings = Array.from({ length: (piece.length - size) / 32 }, (_, i) =>
    piece.subarray(size + i * 32, size + (i + 1) * 32),
  );
  const bytes = piece.subarray(0, size);
  assert.strictEqual(rootOfBlock(bytes, block, blocks, siblings), treeHash(member));
  assert.isTrue(bytes.equals(member.subarray(block * mebi, block * mebi + size)));
};

describe("read", () => {
  const one = sessionOf(1);
  const two = sessionOf(2);
  const twoPacks = () => {
    const store = makeStore();
    store.maker.pack(one, archive);
    store.maker.archive({ name: "one", session: one });
    store.maker.pack(two, slotOf("vm1/x", Buffer.from("small")));
    store.maker.archive({ name: "two", session: two });
    return store;
  };
  const code = (piece: Piece | undefined) =>
    typeof piece === "object" && !Buffer.isBuffer(piece) ? piece["code"] : undefined;
  /** Changes a byte of what is kept. */
  const spoil = (disk: Disk, file: string, at: number) => {
    const bytes = disk.bytes(file)!;
    bytes[at]! ^= 1;
    ontoDisk(disk)(file, bytes);
  };
  const startOf = (member: number) =>
    members.slice(0, member).reduce((sum, { length }) => sum + length, 0);

  it.effect("gives blocks of members of any pack, each proven, in one conversation", () =>
    Effect.gen(function* () {
      const { ask } = twoPacks();
      const lines = [
        `${one} ${big} 0 4`,
        ".",
        `${two} 0 0 1`,
        `${one} 0 0 1`,
        `${one} ${big} 2 2`,
        `${one} ${big + 1} 0 1`,
        "",
        "nothing after the empty line is looked at",
      ];
      const { code, pieces, said } = yield* ask("read", lines.join("\n"));
      assert.deepStrictEqual([code, said], [0, [{ type: "ready" }]]);
      assert.isAbove(members[big]!.length, 3 * mebi);
      const bytes = members[big]!.bytes;
      for (let n = 0; n < 4; n++) proven(pieces[n], bytes, n);
      proven(pieces[4], slotOf("vm1/x", Buffer.from("small")), 0);
      proven(pieces[5], members[0]!.bytes, 0);
      proven(pieces[6], bytes, 2);
      proven(pieces[7], bytes, 3);
      proven(pieces[8], members[big + 1]!.bytes, 0);
      assert.strictEqual(pieces.length, 9);
    }),
  );

  it.effect("says for each block that it cannot give why not, and goes on", () =>
    Effect.gen(function* () {
      const { ask, disk } = twoPacks();
      spoil(disk, `.qbackup/packs/${one}`, startOf(big) + mebi + 77);
      const lines = [
        `${sessionOf(3)} 0 0 2`,
        `${one} 99 0 1`,
        `${one} ${big} 3 2`,
        `${one} ${big} 0 3`,
        "",
      ];
      const { code: exit, pieces } = yield* ask("read", `${lines.join("\n")}\n`);
      assert.strictEqual(exit, 0);
      assert.deepStrictEqual(pieces.map(code), [
        "not-found",
        "not-found",
        "not-found",
        undefined,
        "not-found",
        undefined,
        "damaged",
        undefined,
      ]);
      proven(pieces[3], members[big]!.bytes, 3);
      proven(pieces[5], members[big]!.bytes, 0);
      proven(pieces[7], members[big]!.bytes, 2);
    }),
  );

  it.effect("proves by the bytes where the digests that were kept are not what they were", () =>
    Effect.gen(function* () {
      const { ask, disk } = twoPacks();
      const leaves = leavesOf(archive.subarray(0, startOf(big))).length;
      const first = members.slice(0, big).reduce((n, m) => n + Math.ceil(m.length / mebi), 0);
      assert.isAtLeast(first, leaves);
      spoil(disk, `.qbackup/digests/${one}`, (first + 1) * 32);
      const { pieces } = yield* ask("read", `${one} ${big} 0 4\n`);
      for (let n = 0; n < 4; n++) proven(pieces[n], members[big]!.bytes, n);
      // Both at once: no block of that member can be proven, and none is given.
      spoil(disk, `.qbackup/packs/${one}`, startOf(big));
      const again = yield* ask("read", `${one} ${big} 0 4\n${one} 0 0 1\n`);
      assert.deepStrictEqual(again.pieces.slice(0, 4).map(code), Array(4).fill("damaged"));
      proven(again.pieces[4], members[0]!.bytes, 0);
    }),
  );

  it.effect("tells a hole that pruning made from damage, and a table that is away", () =>
    Effect.gen(function* () {
      const { ask, disk, maker } = twoPacks();
      const write = ontoDisk(disk);
      const bytes = Buffer.from(archive);
      bytes.fill(0, startOf(big), startOf(big) + mebi);
      write(`.qbackup/packs/${one}`, bytes);
      assert.deepStrictEqual((yield* ask("read", `${one} ${big} 0 1\n`)).pieces.map(code), [
        "damaged",
      ]);
      maker.tombstone({ name: "one", session: one });
      assert.deepStrictEqual((yield* ask("read", `${one} ${big} 0 1\n`)).pieces.map(code), [
        "pruned",
      ]);
      write(`.qbackup/packs/${two}`, Buffer.alloc(100));
      write(`.qbackup/tables/${one}`, Buffer.from("no table\n"));
      const after = yield* ask("read", `${two} 0 0 1\n${one} 0 0 1\n`);
      assert.deepStrictEqual(after.pieces.map(code), ["damaged", "damaged"]);
    }),
  );

  it.effect("reads nothing but packs of archives", () =>
    Effect.gen(function* () {
      const { ask, disk, lines, maker } = twoPacks();
      const write = ontoDisk(disk);
      write("private.key", Buffer.from("-----BEGIN"));
      // As it was asked for in an earlier protocol, which opened any file of the store.
      const { code: exit, said } = yield* lines("read private.key 0 1");
      assert.deepStrictEqual([exit, said.at(-1)?.["code"]], [2, "bad-request"]);
      // An upload, and one that was about to be committed when the power failed.
      const three = sessionOf(3);
      write(`.qbackup/incoming/${three}`, archive);
      const tryThree = () => Effect.map(ask("read", `${three} 0 0 1\n`), (a) => code(a.pieces[0]));
      assert.strictEqual(yield* tryThree(), "not-found");
      maker.pack(three, archive);
      assert.strictEqual(yield* tryThree(), "not-found");
      assert.strictEqual((yield* lines(`table ${three}`)).said.at(-1)?.["code"], "not-found");
      // A record under its second name is none yet, and one of that name that is another archive's
      // does not make it one.
      const { record } = maker.archive({ name: "three", session: three });
      write(`.qbackup/records/${three}.manifest.json`, Buffer.from(JSON.stringify(record)));
      maker.archive({ name: "three", session: two });
      assert.strictEqual(yield* tryThree(), "not-found");
      // The record is the commit, though the upload's own name is still there.
      maker.archive({ name: "three", session: three });
      assert.strictEqual(yield* tryThree(), undefined);
    }),
  );

  it.effect("refuses what is no line of it, in the midst of frames too", () =>
    Effect.gen(function* () {
      const { ask } = twoPacks();
      for (const line of [
        `${one} 0 0`,
        `${one} 0 0 0`,
        `${one} -1 0 1`,
        `${one}  0 0 1`,
        `../identity 0 0 1`,
        `${one} 0 0 1 2`,
        "x".repeat(200),
      ]) {
        const { code: exit, pieces } = yield* ask("read", `${one} 0 0 1\n${line}\n${one} 0 0 1\n`);
        assert.deepStrictEqual([exit, code(pieces[1])], [2, "bad-request"], line);
        assert.strictEqual(pieces.length, 2);
      }
    }),
  );

  it.effect("lives as long as the client gives signs of life, and answers them", () =>
    Effect.gen(function* () {
      const { world } = twoPacks();
      const client = yield* start(world, { command: "qbackup/1 read" }, "read");
      yield* client.next;
      const minutes = 10;
      for (let n = 0; n < minutes * 4; n++) {
        yield* TestClock.adjust("15 seconds");
        yield* client.stdin.write(Buffer.from(".\n"));
      }
      yield* client.stdin.write(Buffer.from(`${one} 0 0 1\n`));
      yield* TestClock.adjust("5 seconds");
      const { pieces } = parsed(client.output());
      const alive = pieces.filter((piece) => piece === "keep-alive").length;
      assert.isAtLeast(alive, minutes * 2);
      proven(pieces.find(Buffer.isBuffer), members[0]!.bytes, 0);
      yield* TestClock.adjust("80 seconds");
      assert.strictEqual(yield* client.exit, 4);
    }),
  );

  it.effect("ends a client that takes nothing within a minute, and one that drips", () =>
    Effect.gen(function* () {
      const { world } = twoPacks();
      const asked = Buffer.from(`${one} ${big} 0 4\n`.repeat(16));
      const stuck = yield* start(world, { command: "qbackup/1 read", room: 100_000 });
      yield* stuck.stdin.write(asked);
      yield* TestClock.adjust("65 seconds");
      assert.strictEqual(yield* stuck.exit, 4);
      assert.include(world.said.lines.at(-1)!.text, "the client takes no bytes");

      /** Takes 64 KiB each `seconds`, until the shell has ended. */
      const dripping = Effect.fnUntraced(function* (seconds: number, args: ReadonlyArray<string>) {
        const client = yield* start(world, { command: "qbackup/1 read", room: 66_000, args });
        yield* client.stdin.write(asked);
        let took = 0;
        while (took < 3700 && !client.ended()) {
          yield* Effect.orDie(client.bytes.read(new Uint8Array(65_536)));
          yield* client.stdin.write(Buffer.from(".\n"));
          yield* TestClock.adjust(`${seconds} seconds`);
          took += seconds;
        }
        return { took, ended: client.ended(), last: world.said.lines.at(-1)!.text };
      });
      const slow = yield* dripping(20, []);
      assert.isTrue(slow.ended);
      assert.include(slow.last, "the client takes bytes too slowly");
      assert.isAtLeast(slow.took, 3500);
      // Where a slower link is meant to be, its owner says so.
      assert.isFalse((yield* dripping(20, ["--floor", "2K"])).ended);
      assert.isFalse((yield* dripping(5, [])).ended);
    }),
  );
});

describe("check", () => {
  const header = [
    "version=4\nencrypted=True\ncompressed=True\ncompression-filter=gzip\nhmac-algorithm=scrypt",
    "backup-id=20261123T030424-14807",
    `qbackup-seal=${"0".repeat(64)}\nqbackup-run=1\n`,
  ].join("\n");
  const slot = (path: string, seed: number, size = 1000) =>
    slotOf(path, scryptOf(Buffer.alloc(size, seed), sha256(String(seed))));
  const first = sessionOf(1);
  const second = sessionOf(2);
  const night = (...parts: ReadonlyArray<Buffer>) => Buffer.concat(parts);
  const headSlots = (seed: number) => [
    slotOf("backup-header", Buffer.from(header)),
    slot("backup-header.hmac", seed, 119),
    slot("qubes.xml.000.enc", seed),
  ];
  /** Two nights of slots: of the second, one cell is new. */
  const nights = () => {
    const store = makeStore();
    store.maker.pack(
      first,
      night(
        ...headSlots(1),
        slot("vm1/private.img.000.enc", 2),
        slot("vm1/private.img.001.enc", 3),
      ),
    );
    store.maker.archive({ name: "first", session: first, format: "slots" });
    store.maker.pack(second, night(slot("vm1/private.img.000.enc", 4), ...headSlots(5)));
    const kept = {
      name: "second",
      session: second,
      format: "slots",
      recipe: `${second} 1 3\n${second} 0 1\n${first} 4 1\n`,
    } as const;
    return { ...store, kept, archive: store.maker.archive(kept) };
  };
  const change = (disk: Disk, file: string, how: (bytes: Buffer) => Buffer) =>
    ontoDisk(disk)(file, how(disk.bytes(file)!));

  const replace = (disk: Disk, file: string, from: string, to: string) =>
    change(disk, file, (bytes) => Buffer.from(bytes.toString().replace(from, to)));
  const noText = () => Buffer.from("\n");

  it.effect("reads, hashes and walks it all, over every pack that it needs", () =>
    Effect.gen(function* () {
      const { archive: kept, lines, maker } = nights();
      const { code, said } = yield* lines("check second");
      const { members: count, root, size } = kept;
      assert.deepStrictEqual(said, [{ type: "checked", size, members: count, root }]);
      assert.deepStrictEqual([code, count], [0, 5]);
      maker.pack(sessionOf(3), archive);
      maker.archive({ name: "plain", session: sessionOf(3) });
      maker.archive({ name: "bare", session: sessionOf(3), bare: true });
      assert.strictEqual((yield* lines("check plain")).code, 0);
      assert.strictEqual((yield* lines("check bare")).code, 0);
    }),
  );

  const faults: ReadonlyArray<readonly [string, (disk: Disk) => void]> = [
    [
      "a byte of a pack",
      (disk) =>
        change(disk, `.qbackup/packs/${first}`, (bytes) =>
          bytes.fill(9, -700 + bytes.length, -699 + bytes.length),
        ),
    ],
    [
      "the end of a pack",
      (disk) => change(disk, `.qbackup/packs/${first}`, (bytes) => bytes.subarray(0, -1)),
    ],
    ["a pack that is away", (disk) => unlink(disk, `.qbackup/packs/${first}`)],
    [
      "a table",
      (disk) => replace(disk, `.qbackup/tables/${first}`, "private.img.001", "private.img.002"),
    ],
    ["a table that is none", (disk) => change(disk, `.qbackup/tables/${first}`, noText)],
    ["a recipe", (disk) => replace(disk, `.qbackup/recipes/${second}`, `${first} 4 1\n`, "")],
    ["a recipe that is none", (disk) => change(disk, `.qbackup/recipes/${second}`, noText)],
    [
      "a recipe that leads too far",
      (disk) => replace(disk, `.qbackup/recipes/${second}`, `${first} 4 1`, `${first} 5 1`),
    ],
    [
      "a pack and its table and digests, all at once",
      (disk) => {
        const other = slot("vm1/private.img.001.enc", 9);
        const bytes = disk.bytes(`.qbackup/packs/${first}`)!;
        const rest = bytes.subarray(0, bytes.length - other.length);
        storeMaker(ontoDisk(disk)).pack(first, night(rest, other));
      },
    ],
    ["digests that are away", (disk) => unlink(disk, `.qbackup/digests/${first}`)],
  ];
  it.effect.each(faults)("finds, keeps and lists what changed: %s", ([, spoil]) =>
    Effect.gen(function* () {
      const { disk, lines } = nights();
      const damaged = Effect.map(lines("list"), ({ said }) =>
        said.flatMap((one) => (one["damaged"] === true ? [one["name"]] : [])),
      );
      const before = new Map(disk.files().map((file) => [file, disk.bytes(file)!]));
      spoil(disk);
      const { code, said } = yield* lines("check second");
      assert.deepInclude(said.at(-1), { type: "error", code: "damaged" });
      assert.strictEqual(code, 6);
      assert.match(disk.bytes(`.qbackup/damaged/${second}`)!.toString(), /^1970-\S+Z [ -~]+\n$/);
      assert.include(yield* damaged, "second");
      for (const [file, bytes] of before) ontoDisk(disk)(file, bytes);
      assert.deepStrictEqual(yield* damaged, ["second"]);
      assert.strictEqual((yield* lines("check second")).code, 0);
      assert.deepStrictEqual(yield* damaged, []);
      assert.isUndefined(disk.bytes(`.qbackup/damaged/${second}`));
    }),
  );

  it.effect.each(["read-only", "no-space"] as const)(
    "tells what it found where it cannot be kept, and logs that it is not: %s",
    (reason) =>
      Effect.gen(function* () {
        const { disk, lines, world } = nights();
        disk.fault = ({ operation }) =>
          ["read", "open", "sync"].includes(operation) ? undefined : reason;
        const verdict = Effect.fnUntraced(function* () {
          const from = world.journal.length;
          const { code, said } = yield* lines("check second");
          const logged = world.journal
            .slice(from)
            .map(({ text }) => /verdict=(\S+)/.exec(text)![1]);
          return [code, said.at(-1)!["code"] ?? said.at(-1)!["type"], logged];
        });
        // Nothing is to be kept of an archive that is whole, nor to be made for it.
        assert.deepStrictEqual(yield* verdict(), [0, "checked", ["begun", "done"]]);
        const [[, spoil]] = faults as [(typeof faults)[number]];
        const sound = disk.bytes(`.qbackup/packs/${first}`)!;
        spoil(disk);
        const unkept = (end: string) => ["begun", "finding-not-kept", end];
        assert.deepStrictEqual(yield* verdict(), [6, "damaged", unkept("damaged")]);
        disk.fault = () => undefined;
        assert.deepStrictEqual(yield* verdict(), [6, "damaged", ["begun", "damaged"]]);
        disk.fault = ({ operation }) => (operation === "remove" ? reason : undefined);
        ontoDisk(disk)(`.qbackup/packs/${first}`, sound);
        assert.deepStrictEqual(yield* verdict(), [0, "checked", unkept("done")]);
      }),
  );

  it.effect("finds what was never whole, though every digest fits", () =>
    Effect.gen(function* () {
      const { disk, kept, lines, maker } = nights();
      // A list in which a chunk is missing, and one that is longer than its record says.
      for (const other of [
        { recipe: `${second} 1 3\n${first} 4 1\n` },
        { manifest: { size: 10_240 * 99 }, receipt: { size: 10_240 * 99 } },
      ]) {
        maker.archive({ ...kept, ...other });
        const { said } = yield* lines("check second");
        assert.deepInclude(said.at(-1), { type: "error", code: "damaged" });
      }
      assert.isDefined(disk.bytes(`.qbackup/damaged/${second}`));
    }),
  );

  it.effect(
    "takes a disk that fails for damage, and other failures for none of the archive's",
    () =>
      Effect.gen(function* () {
        const { disk, lines } = nights();
        const pack = `.qbackup/packs/${first}`;
        const failing = (reason: "io" | "too-many-files") => {
          disk.fault = ({ name, operation }) =>
            name === pack && operation === (reason === "io" ? "read" : "open") ? reason : undefined;
        };
        failing("too-many-files");
        assert.strictEqual((yield* lines("check second")).code, 5);
        assert.isUndefined(disk.bytes(`.qbackup/damaged/${second}`));
        failing("io");
        assert.strictEqual((yield* lines("check second")).code, 6);
        assert.isDefined(disk.bytes(`.qbackup/damaged/${second}`));
      }),
  );
});
