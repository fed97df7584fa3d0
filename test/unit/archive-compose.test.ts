/** Archives put together of new members and of kept ones; their heads; sizes that a restore counts by. */
import { assert, describe, it } from "@effect/vitest";
import { backupHeader, type Chosen, composed, headCount, raiseSizes } from "#src/archive/compose";
import { member, sealedMember } from "#src/archive/seal";
import { ArchiveFault, archiveSize, Walk } from "#src/archive/walk";
import { parseWish, resolver, type Run, runLine } from "#src/proof/recipe";
import { lineOf, type Member } from "#src/proof/table";
import { rng } from "#test/support/random";
import { gathered, linesOf, membersOf, resolved, rootOf, treeHash } from "#test/support/reference";

const session = (digit: string) => digit.repeat(32) as Run["session"];
const entry = (i: number): Member => ({
  path: `vm7/private.img.${`${i}`.padStart(3, "0")}.enc`,
  size: 128 + i,
  length: Math.ceil((640 + i) / 512) * 512,
  digest: `${i % 10}`.repeat(64),
});
const of = (which: Chosen["of"], at: number, i = at): Chosen => ({
  member: entry(i),
  of: which,
  at,
});

describe("an archive", () => {
  it("has two members before its files: backup-header and its proof", () => {
    assert.strictEqual(headCount, 2);
  });
  it("has the lines of its members in its own order", () => {
    const chosen = [of("new", 2), of("base", 0, 7), of("new", 0), of("new", 1)];
    const made = composed(chosen);
    assert.strictEqual(made.root, rootOf(chosen.map((one) => lineOf(one.member))));
    assert.strictEqual(made.members, 4);
    const bytes = chosen.reduce((sum, one) => sum + one.member.length, 0);
    assert.strictEqual(made.size, archiveSize("slots", bytes));
    assert.strictEqual(made.recipe, "new 2 1\nbase 0 1\nnew 0 2\n");
  });
  it("has the size of its members, and of the zeros behind them", () => {
    // Each of 1,024 bytes: nine and the zeros make up a record.
    for (const [members, size] of [
      [8, 10_240],
      [9, 10_240],
      [10, 20_480],
    ] as const) {
      const chosen = Array.from({ length: members }, (_, i) => of("new", i));
      assert.strictEqual(composed(chosen).size, size);
    }
  });
  it("of nothing has no root", () => {
    assert.deepStrictEqual(composed([]), {
      size: 10_240,
      members: 0,
      root: undefined,
      recipe: "",
    });
  });
  it("has a recipe as short as it can be, which means these members", () => {
    const [own, other] = [session("a"), session("b")];
    for (let seed = 1; seed <= 100; seed++) {
      const r = rng(seed);
      const chosen: Array<Chosen> = [];
      for (let n = r.int(1, 30); n > 0; n--) {
        const last = chosen.at(-1);
        chosen.push(
          last !== undefined && last.at < 49 && r.next() < 0.6
            ? of(last.of, last.at + 1)
            : of(r.pick(["new", "base"]), r.int(0, 49)),
        );
      }
      const { recipe } = composed(chosen);
      const base: ReadonlyArray<Run> = [{ session: other, first: 100, count: 50 }];
      const { made, push } = resolver(own, 50, base);
      for (const line of linesOf(recipe)) assert.isTrue(push(parseWish(line.trimEnd())!));
      const stored = [...made.runs()].map(runLine).join("");
      const meant = chosen.map(
        (one) => [one.of === "new" ? own : other, one.at + (one.of === "new" ? 0 : 100)] as const,
      );
      assert.strictEqual(stored, gathered(meant));
      assert.strictEqual(stored, resolved(recipe, own, 50, base.map(runLine).join("")));
      assert.strictEqual(linesOf(recipe).length, made.runs().length);
    }
  });
  it("passes the walk, with its seal", () => {
    const salt = Buffer.alloc(32, 1);
    const keys = Buffer.alloc(64, 2);
    const sealed = (path: string, plain = path) =>
      Buffer.concat([...sealedMember(path, salt, keys, [Buffer.from(plain)]).pieces]);
    const content = ["qubes.xml.000.enc", "vm7/private.img.000.enc", "vm7/private.img.001.enc"];
    // As they are sent: chunk 0 behind the others, the heads last.
    const order = [1, 3, 2];
    const bytes = content.map((path) => sealed(path));
    const entryOf = (one: Buffer): Member => {
      const [{ length, path, size }] = membersOf(one) as [Member & { readonly bytes: Buffer }];
      return { path, size, length, digest: treeHash(one) };
    };
    const inPack = bytes.map(
      (one, i) => ({ member: entryOf(one), of: "new", at: order[i]! }) as const,
    );
    const header = backupHeader("20261128T030000-7", composed(inPack).root!, 58);
    const heads = [
      Buffer.concat([...member("backup-header", [Buffer.from(header)]).pieces]),
      sealed("backup-header.hmac", header),
    ];
    const all = composed([
      ...heads.map((one, i) => ({ member: entryOf(one), of: "new", at: 4 + i }) as const),
      ...inPack,
    ]);
    const walk = new Walk({ format: "slots" });
    const whole = Buffer.concat([...heads, ...bytes]);
    walk.push(Buffer.concat([whole, Buffer.alloc(all.size - whole.length)]));
    assert.isFalse(walk.finish() instanceof ArchiveFault, walk.fault?.message);
    assert.strictEqual(all.recipe, "new 4 2\nnew 1 1\nnew 3 1\nnew 2 1\n");
    assert.strictEqual(
      header,
      `version=4\nencrypted=True\ncompressed=True\ncompression-filter=gzip\nhmac-algorithm=scrypt\nbackup-id=20261128T030000-7\nqbackup-seal=${rootOf(inPack.map((one) => lineOf(one.member)))}\nqbackup-run=58\n`,
    );
  });
});

describe("the size that qubes.xml gives a qube", () => {
  const features = (path: string, size: string, more = "") =>
    `<features>\n  <feature name="backup-content">1</feature>\n  <feature name="backup-path">${path}</feature>\n${more}  <feature name="backup-size">${size}</feature>\n</features>\n`;
  const sizes = (xml: string | undefined) =>
    [...(xml ?? "").matchAll(/backup-size">([^<]*)/g)].map((one) => one[1]);
  const mebi100 = 104_857_600;
  it("lets so many members pass", () => {
    for (const [count, real, raised] of [
      [0, 5, 1],
      [1, 5, 2],
      [2, 5, 2],
      [3, 5, 3],
      [1000, 5, 501],
    ] as const) {
      const xml = features("vm7/", `${real}`);
      assert.deepStrictEqual(sizes(raiseSizes(xml, new Map([["vm7", count]]))), [
        `${raised * mebi100}`,
      ]);
    }
  });
  it("is never less than the real one, and nothing else is touched", () => {
    const real = 5 * mebi100;
    const xml = `<qubes>\n${features("vm7/", `${real}`)}${features("dom0-home/user", "4096")}${features("vm70", "7")}<features/>\n<feature name="backup-size">1</feature>\n</qubes>\n`;
    const raised = raiseSizes(
      xml,
      new Map([
        ["vm7", 7],
        ["dom0-home", 1],
      ]),
    );
    assert.strictEqual(raised, xml.replace("4096", `${2 * mebi100}`));
    assert.deepStrictEqual(sizes(raiseSizes(xml, new Map([["vm70", 1]]))), [
      `${real}`,
      "4096",
      `${2 * mebi100}`,
      "1",
    ]);
  });
  it("is not looked for beside the features of a qube", () => {
    const before = `<features></features><feature name="backup-size">1</feature>`;
    const raised = raiseSizes(before + features("vm7/", "5"), new Map([["vm7", 1]]));
    assert.deepStrictEqual(sizes(raised), ["1", `${2 * mebi100}`]);
  });
  it("stands behind the path or before it", () => {
    const xml = `<features><feature name="backup-size">7</feature><feature name="x">y</feature><feature name="backup-path">vm3/</feature></features>`;
    assert.strictEqual(
      raiseSizes(xml, new Map([["vm3", 1]])),
      xml.replace(">7<", `>${2 * mebi100}<`),
    );
  });
  it("has to be there for each that has members", () => {
    const xml = features("vm7/", "5") + features("vm8/", "") + features("", "9");
    assert.isDefined(raiseSizes(xml, new Map([["vm7", 1]])));
    for (const directory of ["vm8", "vm9", "", "vm"]) {
      assert.isUndefined(
        raiseSizes(
          xml,
          new Map([
            ["vm7", 1],
            [directory, 1],
          ]),
        ),
        directory,
      );
    }
    assert.isUndefined(raiseSizes(features("vm7/", "1e3"), new Map([["vm7", 1]])));
    assert.isUndefined(raiseSizes("", new Map([["vm7", 1]])));
    assert.strictEqual(raiseSizes("x", new Map()), "x");
  });
});
