/** The members of an archive, out of its recipe and its tables, whatever those are. */
import { assert, describe, it } from "@effect/vitest";
import { archiveMembers, blocksOf, provenBlock } from "#src/proof/members";
import { packLimit, type Run } from "#src/proof/recipe";
import { lineOf, memberLimit } from "#src/proof/table";
import { blockSize } from "#src/wire/limits";
import { rng } from "#test/support/random";
import { leavesOf, linesOf, rootOf, siblingsOf, spread, topOf } from "#test/support/reference";
import { bytesOf, lineOfRoot, vectors } from "#test/support/vectors";
import { sha256 } from "#src/proof/texts";

const session = (digit: string) => digit.repeat(32) as Run["session"];
const [a, b, c] = [session("a"), session("b"), session("c")];
/** A table of so many lines, each with its newline. */
const tableOf = (lines: number, from = 0) =>
  Array.from({ length: lines }, (_, i) => lineOfRoot(from + i, sha256));

/** Whether a text was taken, in pieces of `step`. */
const takes = (
  reader: ReturnType<ReturnType<typeof archiveMembers>["recipe"]>,
  text: string,
  step = 1000,
) => {
  const bytes = Buffer.from(text, "latin1");
  for (let at = 0; at < bytes.length; at += step) {
    if (!reader.push(bytes.subarray(at, at + step))) {
      assert.isFalse(reader.finish());
      return false;
    }
  }
  return reader.finish();
};

describe("a recipe", () => {
  const reads = (count: number, ...lines: ReadonlyArray<string>) =>
    takes(archiveMembers(count).recipe(), lines.map((line) => `${line}\n`).join(""));
  it("has just as many members as the archive", () => {
    assert.isTrue(reads(5, `${a} 0 5`));
    assert.isTrue(reads(5, `${a} 0 2`, `${b} 7 3`));
    assert.isFalse(reads(5, `${a} 0 4`));
    assert.isFalse(reads(5, `${a} 0 6`));
    assert.isFalse(reads(5, `${a} 0 3`, `${b} 0 3`));
    assert.isFalse(reads(5));
    assert.isTrue(reads(0));
  });
  it("is not read on where it has more", () => {
    const { push } = archiveMembers(5).recipe();
    assert.isTrue(push(Buffer.from(`${a} 0 5\n`)));
    assert.isFalse(push(Buffer.from(`${b} 0 1\n`)));
  });
  it("has lines of one form, the last one whole", () => {
    assert.isFalse(reads(5, `new 0 5`));
    assert.isFalse(reads(5, `${a} 0 5`, ""));
    assert.isFalse(takes(archiveMembers(5).recipe(), `${a} 0 5`));
  });
  it("may go back in a pack, but has no member twice", () => {
    assert.isTrue(reads(4, `${a} 2 2`, `${a} 0 2`));
    assert.isTrue(reads(6, `${a} 4 2`, `${b} 0 1`, `${a} 0 2`, `${a} 3 1`));
    assert.isFalse(reads(3, `${a} 0 2`, `${a} 1 1`));
    assert.isFalse(reads(3, `${a} 1 1`, `${a} 0 2`));
    assert.isFalse(reads(3, `${a} 1 1`, `${b} 1 1`, `${a} 1 1`));
    assert.isTrue(reads(2, `${a} 1 1`, `${b} 1 1`));
    // None, of an archive that has one.
    assert.isFalse(takes(archiveMembers(1).recipe(), ""));
  });
  it("has no more packs than an archive may have", () => {
    const packs = (many: number) =>
      Array.from({ length: many }, (_, i) => `${i.toString(16).padStart(32, "0")} 0 1`);
    assert.isTrue(reads(packLimit, ...packs(packLimit)));
    assert.isFalse(reads(packLimit + 1, ...packs(packLimit + 1)));
    const { push } = archiveMembers(packLimit + 1).recipe();
    const lines = (some: ReadonlyArray<string>) => Buffer.from(`${some.join("\n")}\n`);
    assert.isTrue(push(lines(packs(packLimit))));
    assert.isFalse(push(lines(packs(packLimit + 1).slice(-1))));
  });
  it("read again, it begins again", () => {
    const members = archiveMembers(2);
    assert.isFalse(takes(members.recipe(), `${a} 0 1\n`));
    assert.isTrue(takes(members.recipe(), `${c} 4 1\n${a} 0 1\n`));
    assert.deepStrictEqual(members.sessions(), [c, a]);
    assert.deepStrictEqual([0, 1].map(members.sessionOf), [c, a]);
    // The tables, too, are as many members as the last one said.
    const twice = archiveMembers(5);
    assert.isTrue(twice.recipe().push(Buffer.from(`${a} 0 3\n`)));
    assert.isTrue(takes(twice.recipe(), `${a} 0 5\n`));
    assert.isTrue(takes(twice.table(a), tableOf(5).join("")));
  });
});

describe("a table", () => {
  const members = () => {
    const of = archiveMembers(4);
    assert.isTrue(takes(of.recipe(), `${a} 3 2\n${b} 0 1\n${a} 1 1\n`));
    return of;
  };
  it("fills in the members that the recipe has of it", () => {
    for (const step of [1, 7, 1000]) {
      const of = members();
      assert.deepStrictEqual(of.sessions(), [a, b]);
      assert.isTrue(takes(of.table(a), tableOf(6).join(""), step));
      assert.isTrue(takes(of.table(b), tableOf(1, 50).join(""), step));
      assert.deepStrictEqual(
        [0, 1, 2, 3].map((i) => lineOf(of.at(i))),
        [3, 4, 50, 1].map((i) => lineOfRoot(i, sha256)),
      );
      assert.deepStrictEqual(
        [0, 1, 2, 3].map((i) => [of.at(i).session, of.at(i).member]),
        [
          [a, 3],
          [a, 4],
          [b, 0],
          [a, 1],
        ],
      );
      assert.deepStrictEqual([0, 1, 2, 3].map(of.sessionOf), [a, a, b, a]);
      assert.deepStrictEqual([0, 1, 2, 3].map(of.memberOf), [3, 4, 0, 1]);
      assert.strictEqual(of.lengthOf(0), 1024);
      assert.strictEqual(of.bytes(), 4096);
      assert.strictEqual(of.blocks(), 4);
      assert.strictEqual(of.count, 4);
      assert.strictEqual(of.root(), rootOf([3, 4, 50, 1].map((i) => lineOfRoot(i, sha256))));
      assert.strictEqual(of.root(2), rootOf([50, 1].map((i) => lineOfRoot(i, sha256))));
      assert.isUndefined(of.root(4));
    }
  });
  it("goes on to the last member that is wanted, at least", () => {
    for (const [lines, whole] of [
      [4, false],
      [5, true],
      [9, true],
    ] as const) {
      assert.strictEqual(takes(members().table(a), tableOf(lines).join("")), whole, String(lines));
    }
    assert.isFalse(takes(members().table(b), ""));
    assert.isTrue(takes(members().table(c), tableOf(2).join("")));
    for (const lines of [5, 6]) {
      assert.isFalse(takes(members().table(a), tableOf(lines).join("").slice(0, -1)));
    }
  });
  it("has no more lines than a pack can have members, wanted or not", () => {
    const { finish, push } = members().table(c);
    assert.isTrue(push(Buffer.from("x\n".repeat(memberLimit))));
    assert.isTrue(finish());
    assert.isFalse(push(Buffer.from("x\n")));
    assert.isFalse(finish());
  });
  it("has members where they are wanted; elsewhere nobody looks", () => {
    const lines = tableOf(6);
    const bad = (at: number) => lines.map((one, i) => (i === at ? "nonsense\n" : one)).join("");
    for (const [at, whole] of [
      [0, true],
      [1, false],
      [2, true],
      [3, false],
      [4, false],
      [5, true],
    ] as const) {
      assert.strictEqual(takes(members().table(a), bad(at)), whole, String(at));
    }
    assert.isFalse(takes(members().table(a), lines.join("").replace("\n", "\n\n")));
  });
  it("that is read again, because a link broke, says what it said", () => {
    const of = members();
    assert.isFalse(takes(of.table(a), tableOf(4).join("")));
    for (let times = 0; times < 3; times++) assert.isTrue(takes(of.table(a), tableOf(5).join("")));
    assert.isTrue(takes(of.table(b), tableOf(1).join("")));
    assert.strictEqual(lineOf(of.at(0)), lineOfRoot(3, sha256));
    // With other paths, longer and shorter ones.
    const other = tableOf(5).map((line, i) =>
      line.replace("vm7/", i % 2 === 0 ? "" : "dom0-home/"),
    );
    assert.isTrue(takes(of.table(a), other.join("")));
    assert.deepStrictEqual(
      [0, 1, 3].map((i) => lineOf(of.at(i))),
      [other[3], other[4], other[1]],
    );
    assert.strictEqual(lineOf(of.at(2)), lineOfRoot(0, sha256));
  });
});

it("the published archives come out of their recipes and tables", () => {
  for (const { members, root, table } of vectors.archives) {
    const of = archiveMembers(members);
    assert.isTrue(takes(of.recipe(), `${a} 0 ${members}\n`));
    assert.isTrue(takes(of.table(a), table));
    assert.strictEqual(of.root(), root);
    assert.strictEqual(
      of.bytes(),
      linesOf(table).reduce((sum, line) => sum + Number(line.split(" ")[2]), 0),
    );
  }
});

it("knows which members of packs an archive has, also later", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const r = rng(seed);
    const runs: Array<string> = [];
    for (const of of [a, b]) {
      for (let at = r.int(0, 3); at < 30;) {
        const count = r.int(1, 5);
        runs.push(`${of} ${at} ${count}\n`);
        at += count + r.int(0, 3);
      }
    }
    runs.sort(() => r.next() - 0.5);
    const recipe = runs.join("");
    const all = new Set(spread(recipe).map((one) => one.join(" ")));
    const members = archiveMembers(all.size);
    assert.isTrue(takes(members.recipe(), recipe));
    const holds = members.holds();
    for (const of of [a, b, c]) {
      for (let i = 0; i < 40; i++) {
        assert.strictEqual(holds(of, i), all.has(`${of} ${i}`), `${of} ${i} in ${recipe}`);
      }
    }
  }
});

it("holds paths of any length, as many as there are", () => {
  const lines = Array.from({ length: 3000 }, (_, i) =>
    lineOfRoot(i, sha256)
      .replace("vm7", `${"v".repeat(i % 70)}m7`)
      .replace(/ \d+ 1024 /, " 128 1024 "),
  );
  const of = archiveMembers(3000);
  assert.isTrue(takes(of.recipe(), `${a} 0 3000\n`));
  assert.isTrue(takes(of.table(a), lines.join(""), 100_000));
  assert.isTrue(lines.every((line, i) => lineOf(of.at(i)) === line));
  assert.strictEqual(of.root(), rootOf(lines));
});

describe("a block", () => {
  it("of so many bytes of a member", () => {
    for (const [length, blocks] of [
      [1, 1],
      [blockSize, 1],
      [blockSize + 1, 2],
      [2 * blockSize, 2],
    ] as const) {
      assert.strictEqual(blocksOf(length), blocks);
    }
  });
  it("is taken with its proof, and not without", () => {
    const bytes = bytesOf(5_242_897);
    const leaves = leavesOf(bytes);
    const member = { digest: topOf(leaves).toString("hex"), length: bytes.length };
    for (let index = 0; index < leaves.length; index++) {
      const data = bytes.subarray(index * blockSize, (index + 1) * blockSize);
      const came = Buffer.concat([data, ...siblingsOf(leaves, index)]);
      assert.isTrue(data.equals(provenBlock(member, index, came)!));
      assert.isUndefined(provenBlock(member, index, came.subarray(0, -1)));
      assert.isUndefined(provenBlock(member, index, Buffer.concat([came, Buffer.alloc(32)])));
      assert.isUndefined(provenBlock(member, (index + 1) % leaves.length, came));
      assert.isUndefined(provenBlock({ ...member, digest: "0".repeat(64) }, index, came));
      const bent = Buffer.from(came);
      bent[17]! ^= 1;
      assert.isUndefined(provenBlock(member, index, bent));
    }
  });
});
