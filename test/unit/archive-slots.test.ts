/** How a volume is cut into cells, and the map of what is there. */
import { assert, describe, it } from "@effect/vitest";
import { type Cell, chunkPath, isVolume, slotSize, volumeCutter, widest } from "#src/archive/slots";
import { innerReader, InnerFault } from "#src/archive/inner";
import { ended, slotsOf } from "#test/support/inner";
import { rng } from "#test/support/random";

const name = "vm7/private.img";

/** The cells of a volume of which these slots (`.` zeros, `x` data) come, each run of zeros at once. */
const cut = (slots: string, size = slots.length * slotSize, slot = slotSize) => {
  const cutter = volumeCutter(name, size, slot);
  const cells: Array<Cell> = [];
  for (const [run] of slots.matchAll(/\.+|x/g)) {
    if (run === "x") cells.push(...cutter.data());
    else cutter.zeros(run.length);
  }
  cells.push(...cutter.end());
  return { cells, head: cutter.head() };
};
/** Spans of cells, with a star where there is data. */
const spans = (slots: string) =>
  cut(slots)
    .cells.map(({ data, span }) => `${span}${data ? "*" : ""}`)
    .join(" ");
const dots = (count: number) => ".".repeat(count);
const ones = (count: number) => Array.from({ length: count }, () => "1").join(" ");

describe("cells", () => {
  it("are single slots where there is data, and beside it", () => {
    for (const [slots, expected] of [
      ["", ""],
      ["x", "1*"],
      ["xx", "1* 1*"],
      ["x.", "1* 1"],
      ["x.x", "1* 1 1*"],
      [`x${dots(16)}x`, `1* ${ones(16)} 1*`],
      [`x${dots(17)}x`, `1* ${ones(17)} 1*`],
      [`x${dots(18)}x`, `1* ${ones(8)} 2 ${ones(8)} 1*`],
      [`x${dots(32)}x`, `1* ${ones(8)} 16 ${ones(8)} 1*`],
      [`x${dots(47)}x`, `1* ${ones(8)} 16 8 4 2 1 ${ones(8)} 1*`],
      [`x${dots(48)}x`, `1* ${ones(8)} 16 16 ${ones(8)} 1*`],
      [`x${dots(8)}`, `1* ${ones(8)}`],
      [`x${dots(13)}`, `1* ${ones(8)} 4 1`],
      [`x${dots(40)}`, `1* ${ones(8)} 16 16`],
      [`${dots(8)}x`, `${ones(8)} 1*`],
      [`${dots(9)}x`, `1 ${ones(8)} 1*`],
      [`${dots(39)}x`, `16 8 4 2 1 ${ones(8)} 1*`],
      [dots(1), "1"],
      [dots(33), "16 16 1"],
    ] as const) {
      assert.strictEqual(spans(slots), expected, slots);
    }
  });
  it("follow each other, cover the volume once, and are few where there is nothing", () => {
    for (let seed = 1; seed <= 100; seed++) {
      const r = rng(seed);
      let slots = "";
      while (slots.length < 500) {
        slots += dots(r.pick([0, 1, 9, 40, 200])) + "x".repeat(r.int(0, 3));
      }
      const { cells } = cut(slots);
      let next = 0;
      for (const [i, { chunk, data, first, span }] of cells.entries()) {
        assert.strictEqual(chunk, i + 1);
        assert.strictEqual(first, next);
        assert.isAtMost(span, widest);
        assert.strictEqual(slots.slice(first, first + span), data ? "x" : dots(span));
        next += span;
      }
      assert.strictEqual(next, slots.length);
    }
    // A disk of 1 TB with a few slots of its file system's own every 2 GiB.
    const disk = `x${dots(511)}`.repeat(512);
    assert.isBelow(cut(disk).cells.length, 262_144 / 9);
    assert.strictEqual(cut(dots(262_144)).cells.length, 16_384);
  });
  it("are the same whether zeros come at once or not", () => {
    const cutter = volumeCutter(name, 100 * slotSize);
    for (let i = 0; i < 99; i++) cutter.zeros(1);
    const cells = [...cutter.data(), ...cutter.end()];
    assert.deepStrictEqual(cells, cut(`${dots(99)}x`).cells);
  });
});

describe("chunk 0", () => {
  const slot = 2048;
  const mapOf = (head: Buffer) => head.toString("latin1", 1536).replace(/\0+$/, "").split("\n");
  it.each([
    ["", 0, "1 0 0"],
    ["x", 1, "1 0 1"],
    ["x", 2048, "1 0 2048"],
    ["xx", 4096, "1 0 4096"],
    ["xx", 2049, "1 0 2049"],
    ["..", 4096, "1 4096 0"],
    ["x.", 2049, "2 0 2048 2049 0"],
    [".x.xx", 9000, "2 2048 2048 6144 2856"],
    [".x.xx.", 12_288, "3 2048 2048 6144 4096 12288 0"],
  ] as const)("of %j, %i bytes, has the map %j", (slots, size, map) => {
    const { head } = cut(slots, size, slot);
    assert.deepStrictEqual(mapOf(head), [...map.split(" "), ""]);
    assert.strictEqual(head.length % 512, 0);
  });
  it("is a header with nothing of its day in it, and the same for the same slots", () => {
    const { head } = cut("x.", 2049, slot);
    const text = head.toString("latin1").replace(/\0+/g, "|");
    assert.strictEqual(
      text,
      [
        "vm7/PaxHeaders/private.img|0000644|0000000|0000000|00000000153|00000000000|",
        `${head.toString("latin1", 148, 154)}| x|ustar|00|`,
        "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
        "35 GNU.sparse.name=vm7/private.img\n28 GNU.sparse.realsize=2049\n|",
        "vm7/GNUSparseFile.0/private.img|0000644|0000000|0000000|00000005000|00000000000|",
        `${head.toString("latin1", 1172, 1178)}| 0|ustar|00|`,
        "2\n0\n2048\n2049\n0\n|",
      ].join(""),
    );
    assert.isTrue(head.equals(cut("x.", 2049, slot).head));
  });
  it("and the data behind it are a stream that gives the same slots again", () => {
    for (let seed = 1; seed <= 50; seed++) {
      const r = rng(seed);
      const content = Buffer.alloc(r.pick([0, 1, 2048, 5000, 100_000]));
      for (let n = r.int(0, 20); n > 0 && content.length > 0; n--)
        content[r.int(0, content.length - 1)] = 1;
      const slots = slotsOf(content, slot);
      const line = Array.from({ length: Math.ceil(content.length / slot) }, (_, i) =>
        slots.has(i) ? "x" : ".",
      ).join("");
      const { head } = cut(line, content.length, slot);
      const reader = innerReader(slot);
      reader.push(ended(head, ...slots.values()));
      reader.end();
      const again = new Map<number, Buffer>();
      for (let step = reader.next(); step !== undefined; step = reader.next()) {
        assert.isFalse(step instanceof InnerFault, `${step instanceof InnerFault && step.message}`);
        if (step instanceof InnerFault) break;
        if (step.type === "file") assert.strictEqual(step.size, content.length);
        if (step.type === "slot") again.set(step.index, Buffer.from(step.bytes));
      }
      assert.deepStrictEqual(again, slots);
    }
  });
  it("has the size of the data in a record where the header does not hold it", () => {
    const size = 8 ** 11;
    for (const [slots, record] of [
      [size / slotSize - 1, undefined],
      [size / slotSize, size + 512],
    ] as const) {
      const { head } = cut("x".repeat(slots) + ".", size + 1);
      const text = head.toString("latin1");
      assert.strictEqual(/(?<!real)size=([0-9]+)\n/.exec(text)?.[1], record && `${record}`);
      assert.strictEqual(
        head.toString("latin1", 1024 + 124, 1024 + 135),
        record === undefined
          ? (slots * slotSize + 512).toString(8).padStart(11, "0")
          : "0".repeat(11),
      );
    }
    // To the byte: a map of one block, and 512 bytes less than the header holds, and just as many.
    const edge = (data: number) => cut("x".repeat(2048), data).head.toString("latin1");
    assert.notMatch(edge(size - 1024), /\n[0-9]+ size=/);
    assert.match(edge(size - 512), /\n19 size=8589934592\n/);
    assert.strictEqual(edge(size - 512).slice(1024 + 124, 1024 + 136), `${"0".repeat(11)}\0`);
  });
});

it("images are volumes, the rest is small", () => {
  for (const [of, is] of [
    ["vm7/private.img", true],
    ["vm7/root.img", true],
    ["vm7/firewall.xml", false],
    ["dom0-home/user.img", false],
    ["vm7/private.img.txt", false],
    ["vm7/private_img", false],
    ["dom0-home/vm7.img", false],
  ] as const) {
    assert.strictEqual(isVolume(of), is);
  }
});

it("a chunk is a member by its number", () => {
  for (const [chunk, path] of [
    [0, "vm7/root.img.000.enc"],
    [7, "vm7/root.img.007.enc"],
    [999, "vm7/root.img.999.enc"],
    [1000, "vm7/root.img.1000.enc"],
  ] as const) {
    assert.strictEqual(chunkPath("vm7/root.img", chunk), path);
  }
});
