/** What dom0 remembers of an archive of slots, and of an upload: read as it was written, or not at all. */
import { assert, describe, it } from "@effect/vitest";
import { createHash } from "node:crypto";
import {
  cellAt,
  cellsOf,
  type Chain,
  chainBytes,
  countOf,
  type Journal,
  journalLine,
  journalText,
  memberAt,
  parseChain,
  parseJournal,
  type Remembered,
} from "#src/archive/chain";
import { PublicKey, Session } from "#src/wire/names";
import { rootOf } from "#test/support/reference";

const hex = (letter: string, length = 64) => letter.repeat(length);
const identity = {
  id: "20261128T030000-7",
  key: hex("a"),
  check: hex("b"),
  began: 3,
};
const session = Session.make(hex("c", 32));
const remembered = (n: number): Remembered => ({
  mac: `${hex("abcdef", 5)}${n}${n}`,
  span: n,
  present: 0x8020 + n,
  size: 1000 * n + 128,
  digest: hex(`${n}`),
});
const cells = [1, 2, 3, 4, 5, 6].map(remembered);
const paths = [
  "backup-header",
  "backup-header.hmac",
  "qubes.xml.000.enc",
  "vm7/private.img.000.enc",
  "vm7/private.img.001.enc",
  "dom0-home/user.000.enc",
];
const lengths = [2048, 3072, 4096, 5120, 6144, 6656];
const root = rootOf(
  paths.map((path, i) => `${path} ${cells[i]!.size} ${lengths[i]!} ${cells[i]!.digest}\n`),
);
const chain: Chain = {
  ...identity,
  session,
  root,
  files: [
    { name: "backup-header", chunks: 1 },
    { name: "backup-header.hmac", chunks: 1 },
    { name: "qubes.xml", chunks: 1 },
    { name: "vm7/private.img", chunks: 2 },
    { name: "dom0-home/user", chunks: 1 },
  ],
  cells: cellsOf(cells),
};

it("an archive has so many members with one of some digests", () => {
  const digests = ["1", "2", "3", "2"].map((digit) => hex(digit));
  const cells = cellsOf(digests.map((digest, n) => ({ ...remembered(n + 1), digest })));
  for (const [wanted, count] of [
    [[], 0],
    [["1"], 1],
    [["2"], 2],
    [["3", "2"], 3],
    [["1", "2", "3"], 4],
    [["4"], 0],
  ] as const) {
    assert.strictEqual(countOf({ cells }, new Set(wanted.map((digit) => hex(digit)))), count);
  }
  // Nor is what stands behind the last one.
  assert.strictEqual(countOf({ cells }, new Set([""])), 0);
  assert.strictEqual(countOf({ cells: Buffer.alloc(0) }, new Set([hex("1")])), 0);
});

describe("a chain", () => {
  it("remembers of each member what it is known by, in 64 bytes", () => {
    assert.strictEqual(chain.cells.length, 6 * 64);
    cells.forEach((cell, i) => assert.deepStrictEqual(cellAt(chain, i), cell));
    const widest = { ...remembered(1), span: 255, present: 0xffff, size: 2 ** 32 - 1 };
    assert.deepStrictEqual(cellAt({ cells: cellsOf([widest]) }, 0), widest);
  });
  it("has of a member what a table has", () => {
    assert.deepStrictEqual(memberAt("vm7/private.img.001.enc", remembered(5)), {
      path: "vm7/private.img.001.enc",
      size: 5128,
      length: 512 + 5632,
      digest: hex("5"),
    });
    assert.strictEqual(memberAt("a", { ...remembered(1), size: 1024 }).length, 1536);
  });
  it("is read as it was written", () => {
    const bytes = chainBytes(chain);
    assert.deepStrictEqual(parseChain(bytes), chain);
    assert.isTrue(bytes.toString("latin1").startsWith('qbackup chain 1\n{"id":"20261128T0'));
  });
  it("says of itself what it is, and no more than that", () => {
    const more = { ...chain, base: "-", members: cells.map((cell, i) => [paths[i]!, cell]) };
    assert.isTrue(chainBytes(more).equals(chainBytes(chain)));
    const [, head = ""] = chainBytes(more).toString("latin1").split("\n");
    const keys = ["id", "key", "check", "began", "session", "root", "files"];
    assert.deepStrictEqual(Object.keys(JSON.parse(head)), keys);
  });
  it("of which a byte is another one, or missing, is none", () => {
    const bytes = chainBytes(chain);
    for (let at = 0; at < bytes.length; at++) {
      const other = Buffer.from(bytes);
      other[at]! ^= 1;
      assert.isUndefined(parseChain(other), `${at}`);
      assert.isUndefined(parseChain(bytes.subarray(0, at)), `up to ${at}`);
    }
    assert.isUndefined(parseChain(Buffer.concat([bytes, Buffer.alloc(1)])));
  });
  it("of another form is none, though its sum holds", () => {
    const summed = (text: Uint8Array) =>
      Buffer.concat([text, createHash("sha256").update(text).digest()]);
    const bytes = chainBytes(chain).subarray(0, -32);
    assert.deepStrictEqual(parseChain(summed(bytes)), chain);
    const other = Buffer.from(bytes);
    other.write("2", 14);
    assert.isUndefined(parseChain(summed(other)));
    assert.isUndefined(parseChain(summed(bytes.subarray(0, 100))));
    assert.isUndefined(parseChain(summed(Buffer.alloc(0))));
  });
  it.each([
    ["whose root is another one", { root: hex("9") }],
    ["with fewer members than its files have", { cells: cellsOf(cells.slice(1)) }],
    ["with more of them", { cells: cellsOf([...cells, remembered(7)]) }],
    ["whose backup-id is none", { id: "20261128T030000" }],
    ["whose key is too short", { key: hex("a", 63) }],
    ["whose check is none", { check: "b" }],
    ["whose first run is none", { began: -1 }],
    ["whose session is none", { session: Session.make(hex("c", 32)).slice(1) as Session }],
    ["with other paths", { files: [...chain.files.slice(0, 4), { name: "vm8/x", chunks: 1 }] }],
    ["with a count that is none", { files: [{ name: "a", chunks: 1.5 }] }],
  ] satisfies ReadonlyArray<readonly [string, Partial<Chain>]>)("%s is none", (_, change) => {
    assert.isUndefined(parseChain(chainBytes({ ...chain, ...change })));
  });
});

describe("a journal", () => {
  const journal: Journal = {
    ...identity,
    session,
    signer: PublicKey.make(hex("A", 43)),
    base: "-",
    members: paths.map((path, i) => [path, cells[i]!]),
  };
  const text = journalText(journal);
  it("is read as it was written, with what was written behind it", () => {
    for (const base of ["-", Session.make(hex("d", 32))] as const) {
      for (const more of [{}, { refused: true }, { anew: true }] as const) {
        const of = { ...journal, base, ...more };
        assert.deepStrictEqual(parseJournal(journalText(of)), of);
      }
    }
    const more = parseJournal(`${text}${journalLine("vm7/notes.txt.000.enc", remembered(8))}`)!;
    assert.deepStrictEqual(more.members.slice(0, 6), journal.members);
    assert.deepStrictEqual(more.members[6], ["vm7/notes.txt.000.enc", remembered(8)]);
    assert.deepStrictEqual(parseJournal(journalText({ ...journal, members: [] }))!.members, []);
    const widest = { ...remembered(1), span: 255, present: 0xffff };
    const full: Journal = { ...journal, members: [["vm7/notes.txt.000.enc", widest]] };
    assert.deepStrictEqual(parseJournal(journalText(full)), full);
  });
  it("says of itself what it is, and no more than that", () => {
    const more = { ...journal, root, files: chain.files, cells: chain.cells };
    assert.strictEqual(journalText(more), text);
    const keys = ["id", "key", "check", "began", "session", "signer", "base"];
    assert.deepStrictEqual(Object.keys(JSON.parse(text.split("\n")[0]!)), keys);
  });
  it("that a crash tore has what is whole of it", () => {
    const lines = text.split("\n");
    for (let end = 0; end < text.length; end++) {
      const whole = text.slice(0, end).split("\n").length - 1;
      const read = parseJournal(text.slice(0, end));
      if (whole === 0) assert.isUndefined(read, `${end}`);
      else assert.deepStrictEqual(read!.members, journal.members.slice(0, whole - 1), `${end}`);
    }
    assert.strictEqual(lines.length, 8);
  });
  it("ends before the first line that is none", () => {
    const [head = "", one = "", two = "", three = ""] = text.split("\n");
    for (const odd of [
      "",
      "x",
      two.replace(" ", ""),
      two.replace(/^./, "g"),
      two.slice(1),
      `0${two}`,
      two.replace(" ", "0 "),
      two.replace(/^(\S+) 2 /, "$1 256 "),
      two.replace(/^(\S+) 2 /, "$1 02 "),
      two.replace(/ 32802 /, " 65536 "),
      two.replace(/ 32802 /, " -1 "),
      two.replace(/ 3072 /, " 3584 "),
      two.replace(/ 3072 /, " 3073 "),
      `${two} more`,
    ]) {
      const read = parseJournal([head, one, odd, three, ""].join("\n"))!;
      assert.deepStrictEqual(read.members, journal.members.slice(0, 1), odd);
    }
    const { members } = parseJournal([head, one, two, three, ""].join("\n"))!;
    assert.deepStrictEqual(members, journal.members.slice(0, 3));
  });
  it.each([
    ["session", "c"],
    ["signer", "A"],
    ["base", "--"],
    ["id", "7"],
    ["key", ""],
    ["check", "b"],
    ["began", "3"],
    ["refused", false],
  ])("whose %s is none is none", (key, value) => {
    const [head = "", ...lines] = text.split("\n");
    const odd = JSON.stringify({ ...JSON.parse(head), [key]: value });
    assert.isUndefined(parseJournal([odd, ...lines].join("\n")));
    const { [key]: _without, ...rest } = JSON.parse(head);
    if (key !== "refused")
      assert.isUndefined(parseJournal([JSON.stringify(rest), ...lines].join("\n")));
  });
});
