/** How a volume is cut into cells, and the map of what is there. */
import { assert, describe, it } from "@effect/vitest";
import { createCipheriv } from "node:crypto";
import {
  type Cell,
  cellMac,
  chunkPath,
  isVolume,
  slotSize,
  stayingChunks,
  volumeCutter,
  widest,
} from "#src/archive/slots";
import { innerReader, InnerFault } from "#src/archive/inner";
import { ended, slotsOf } from "#test/support/inner";
import { rng } from "#test/support/random";

const name = "vm7/private.img";

/** The cells of a volume of which these slots (`.` zeros, `x` data) come, each run of zeros at once. */
const cut = (
  slots: string,
  size = slots.length * slotSize,
  slot = slotSize,
  layout: ReadonlyArray<number> = [],
) => {
  const cutter = volumeCutter(name, size, layout, slot);
  const cells: Array<Cell> = [];
  for (const [run] of slots.matchAll(/\.+|x/g)) {
    cells.push(...(run === "x" ? cutter.data(Buffer.from("x")) : cutter.zeros(run.length)));
  }
  cells.push(...cutter.end());
  return { cells, head: cutter.head() };
};
/** Spans of cells, with a star where there is data. */
const spans = (slots: string, layout: ReadonlyArray<number> = []) =>
  cut(slots, slots.length * slotSize, slotSize, layout)
    .cells.map(({ data, span }) => `${span}${"*".repeat(data.length)}`)
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
        assert.strictEqual(slots.slice(first, first + span), data.length > 0 ? "x" : dots(span));
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
    const cells = [...cutter.data(Buffer.from("x")), ...cutter.end()];
    assert.deepStrictEqual(cells, cut(`${dots(99)}x`).cells);
  });
  it("stay where they are once they are there, whatever comes to be in them", () => {
    for (const [slots, layout, expected] of [
      ["x.x", [1, 1, 1], "1* 1 1*"],
      ["...", [1, 1, 1], "1 1 1"],
      ["xxx", [1, 1, 1], "1* 1* 1*"],
      [`x${dots(15)}`, [16], "16*"],
      [`${dots(15)}x`, [16], "16*"],
      ["x".repeat(16), [16], `16${"*".repeat(16)}`],
      [`.x${dots(3)}xx.`, [1, 4, 2, 1], "1 4* 2** 1"],
      // A volume that grew: behind what is there it is cut as a new one is.
      [`.x${dots(20)}x`, [2], `2* ${ones(8)} 4 ${ones(8)} 1*`],
      [`..${dots(9)}`, [2], `2 ${ones(8)} 1`],
      ["..", [2], "2"],
      // One that shrank: what is behind its end falls away, and the last one is shortened.
      [`x.x`, [1, 8, 16], "1* 2*"],
      ["x", [1, 8], "1*"],
      ["", [1, 8], ""],
    ] as const) {
      assert.strictEqual(spans(slots, layout), expected, `${slots} ${layout.join()}`);
    }
  });
  it("have their slots with data by their numbers, and the bytes of those", () => {
    const slot = 4;
    const cutter = volumeCutter(name, 25, [1, 16], slot);
    const bytes = Buffer.from("aaaa");
    assert.isFalse(cutter.isWide());
    assert.deepStrictEqual(cutter.zeros(1), [
      { chunk: 1, first: 0, span: 1, present: 0, data: [] },
    ]);
    assert.isTrue(cutter.isWide());
    assert.deepStrictEqual(cutter.data(bytes), []);
    assert.deepStrictEqual(cutter.zeros(2), []);
    // The caller may use its buffer again.
    bytes.fill("b");
    assert.deepStrictEqual(cutter.data(bytes), []);
    const [cell] = [...cutter.zeros(1), ...cutter.data(Buffer.from("c"))];
    assert.deepStrictEqual(
      { ...cell, data: cell!.data.map((each) => Buffer.from(each).toString()) },
      { chunk: 2, first: 1, span: 6, present: 0b101001, data: ["aaaa", "bbbb", "c"] },
    );
    assert.isFalse(cutter.isWide());
    assert.deepStrictEqual(cutter.end(), []);
    assert.isTrue(volumeCutter(name, 25, [2], slot).isWide());
    // Of a cell of one slot, nothing is copied.
    assert.strictEqual(volumeCutter(name, 4, [1], slot).data(bytes)[0]!.data[0], bytes);
  });
  it("are cut anew behind the end that was said, should more come than that", () => {
    const cutter = volumeCutter(name, 4, [1, 5], 4);
    const cells = [...cutter.data(Buffer.from("aaaa")), ...cutter.zeros(2), ...cutter.end()];
    assert.deepStrictEqual(
      cells.map(({ span }) => span),
      [1, 1, 1],
    );
  });
  it("of any layout cover the volume once, and what is cut twice is cut the same", () => {
    for (let seed = 1; seed <= 100; seed++) {
      const r = rng(seed);
      const text = () => {
        let slots = "";
        while (slots.length < 200) slots += dots(r.pick([0, 1, 9, 40])) + "x".repeat(r.int(0, 3));
        return slots.slice(0, r.int(1, 200));
      };
      const [before, after] = [text(), text()];
      const layout = cut(before).cells.map(({ span }) => span);
      const { cells } = cut(after, after.length * slotSize, slotSize, layout);
      let next = 0;
      for (const [i, { chunk, data, first, present, span }] of cells.entries()) {
        assert.strictEqual(chunk, i + 1);
        assert.strictEqual(first, next);
        const expected = after.slice(first, first + span).split("");
        assert.deepStrictEqual(
          expected.map((_, bit) => ((present >> bit) & 1 ? "x" : ".")),
          expected,
        );
        assert.strictEqual(data.length, expected.filter((one) => one === "x").length);
        next += span;
      }
      assert.strictEqual(next, after.length);
      const again = cut(
        after,
        after.length * slotSize,
        slotSize,
        cells.map(({ span }) => span),
      );
      assert.deepStrictEqual(again.cells, cells);
      assert.isTrue(again.head.equals(cut(after).head));
    }
  });
});

describe("cells that stay", () => {
  const head = { span: 0, present: 0 };
  const single = { span: 1, present: 1 };
  const wide = (...slots: ReadonlyArray<number>) => ({
    span: widest,
    present: slots.reduce((present, slot) => present | (1 << slot), 0),
  });
  const empty = { span: 1, present: 0 };
  it.each([
    ["nothing", [], 0],
    ["a file that is no volume", [head, head], 2],
    ["a volume without data", [head, empty, wide()], 3],
    ["data in cells of one slot", [head, single, wide(), single], 4],
    // Of four slots with data, one and two.
    ["a quarter in wide cells", [head, single, single, single, wide(15)], 5],
    ["a third", [head, single, single, wide(7)], 3],
    ["a third, in one of two slots", [head, single, single, { span: 2, present: 2 }], 3],
    ["more than that", [head, single, wide(), single, wide(0, 15), single], 4],
    ["more than that, in several", [head, single, wide(3), empty, single, wide(0)], 2],
    ["all of it in a wide cell", [head, wide(...Array(16).keys())], 1],
  ] as const)("of %s", (_, known, expected) => {
    assert.strictEqual(stayingChunks(known), expected);
  });
  it("are all in the second night after data came, and all data is in cells of one slot then", () => {
    let cutAnew = 0;
    for (let seed = 1; seed <= 50; seed++) {
      const r = rng(seed);
      let now = dots(r.int(0, 300));
      let known = cut(now).cells;
      /** The next night: whether all stayed. */
      const night = () => {
        const stay = stayingChunks(known);
        const layout = known.slice(0, stay).map(({ span }) => span);
        const all = stay === known.length;
        known = cut(now, now.length * slotSize, slotSize, layout).cells;
        return all;
      };
      for (let fills = 0; fills < 4; fills++) {
        now = now.replace(/\./g, (one) => (r.int(0, 9) === 0 ? "x" : one));
        night();
        if (night()) continue;
        cutAnew += 1;
        assert.isTrue(night());
        assert.isTrue(known.every(({ present, span }) => span === 1 || present === 0));
      }
    }
    assert.isAbove(cutAnew, 20);
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

describe("the MAC of a cell", () => {
  const key = Buffer.alloc(32, 1);
  const [a, b] = [Buffer.from("a"), Buffer.from("b")];
  it("is of its number, of what is there, and of that", () => {
    const mac = cellMac(key, 0x01020304, 0x8001, [a, b]);
    const nonce = Buffer.from("01020304800100000000".padEnd(24, "0"), "hex");
    const gmac = createCipheriv("aes-256-gcm", key, nonce).setAAD(Buffer.from("ab"));
    gmac.final();
    assert.strictEqual(mac.toString("hex"), gmac.getAuthTag().toString("hex"));
    assert.strictEqual(mac.length, 16);
    for (const other of [
      cellMac(Buffer.alloc(32, 2), 0x01020304, 0x8001, [a, b]),
      cellMac(key, 0x01020305, 0x8001, [a, b]),
      cellMac(key, 0x01020304, 0x8002, [a, b]),
      cellMac(key, 0x01020304, 0x8001, [a]),
      cellMac(key, 0x01020304, 0x8001, [b, a]),
      cellMac(key, 0x01020304, 0x8001, [a, b, Buffer.alloc(1)]),
      cellMac(key, 0x01020304, 0x8001, []),
    ]) {
      assert.isFalse(mac.equals(other));
    }
  });
  it("is of every slot, of which there may be sixteen, and of their order", () => {
    const slots = Array.from({ length: 16 }, (_, n) => Buffer.alloc(4096, n + 1));
    const macs = [slots, ...slots.map((_, n) => slots.toSpliced(n, 1, Buffer.alloc(4096)))].map(
      (data) => cellMac(key, 1, 0xffff, data).toString("hex"),
    );
    macs.push(cellMac(key, 1, 0xffff, slots.toReversed()).toString("hex"));
    macs.push(cellMac(key, 1, 0xffff, slots.slice(0, 15)).toString("hex"));
    assert.strictEqual(new Set(macs).size, 19);
  });
});
