/** Streams of qubesd's tar programs, read into slots: each form, each limit, and what is no such stream. */
import { assert, describe, it } from "@effect/vitest";
import { InnerFault, innerReader, type Step } from "#src/archive/inner";
import { slotSize } from "#src/archive/slots";
import { pieces as cut } from "#test/fuzz/mutate";
import {
  big,
  ended,
  gnuHeader,
  gnuSparse,
  gnuTar,
  paxHeader,
  paxRecord,
  type Piece,
  slotsOf,
  tarwriter,
  writerHead,
} from "#test/support/inner";
import { type Rng, rng } from "#test/support/random";
import { padTo, sumUp } from "#test/support/tar";

const name = "vm7/private.img";
/** Bytes of a slot here. */
const slot = 2048;

interface Read {
  readonly file: { readonly name: string; readonly size: number | undefined } | undefined;
  /** What came: slots by their bytes, zeros by their number. */
  readonly came: ReadonlyArray<Buffer | number>;
  readonly slots: ReadonlyMap<number, Buffer>;
  readonly end: string;
}

const push = (reader: ReturnType<typeof innerReader>, part: Uint8Array): Uint8Array => {
  reader.push(part);
  return part.subarray(part.length);
};
/** As whoever reads from a pipe does: what has a place goes right there. */
const place = (reader: ReturnType<typeof innerReader>, part: Uint8Array): Uint8Array => {
  const room = reader.room();
  if (room === undefined) {
    reader.push(part.subarray(0, 20));
    return part.subarray(20);
  }
  const some = part.subarray(0, room.length);
  room.set(some);
  reader.filled(some.length);
  return part.subarray(some.length);
};

const readBy = (
  give: typeof push,
  parts: ReadonlyArray<Uint8Array>,
  reader: ReturnType<typeof innerReader>,
): Read => {
  let file: Read["file"];
  const came: Array<Buffer | number> = [];
  const slots = new Map<number, Buffer>();
  let end = "open";
  const see = (step: Step | InnerFault) => {
    if (step instanceof InnerFault) end = step.detail;
    else if (step.type === "file") file = { name: step.name, size: step.size };
    else if (step.type === "zeros") came.push(step.count);
    else if (step.type === "slot") {
      came.push(Buffer.from(step.bytes));
      slots.set(step.index, Buffer.from(step.bytes));
    } else end = "whole";
  };
  const steps = () => {
    for (let step = reader.next(); step !== undefined; step = reader.next()) {
      see(step);
      if (step instanceof InnerFault) return;
    }
  };
  for (const part of parts) {
    for (let rest = part; rest.length > 0;) {
      rest = give(reader, rest);
      steps();
    }
  }
  reader.end();
  steps();
  return { file, came, slots, end };
};
/** Everything that comes of a stream in these pieces; the same, however it is given them. */
const read = (parts: ReadonlyArray<Uint8Array>, make = () => innerReader(slot)): Read => {
  const got = readBy(push, parts, make());
  assert.deepStrictEqual(readBy(place, parts, make()), got);
  return got;
};
const of = (...parts: ReadonlyArray<Buffer>) => read([Buffer.concat(parts)]);

/** An image of `size` bytes with data here and there, and zeros that were written among it. */
const imageOf = (r: Rng, size: number) => {
  const content = Buffer.alloc(size);
  const written: Array<Piece> = [];
  for (let at = r.int(0, 3) * 512; at < size;) {
    const length = Math.min(size - at, r.int(1, 9) * 512);
    if (r.next() < 0.7) r.bytes(r.pick([1, 700, length])).copy(content, at, 0, length);
    if (r.next() < 0.2 && at + length === size) content[size - 1] = 1;
    written.push({ offset: at, length });
    at += length + r.pick([0, 1, 2, 7, 20]) * 512;
  }
  // GNU tar has neighbours in one piece.
  const pieces: Array<{ readonly offset: number; length: number }> = [];
  for (const one of written) {
    const last = pieces.at(-1);
    if (last !== undefined && last.offset + last.length === one.offset) last.length += one.length;
    else pieces.push({ ...one });
  }
  return { content, pieces };
};

describe("an image", () => {
  it("gives the same slots by GNU tar and by qubesd's own program, in pieces of any size", () => {
    for (let seed = 1; seed <= 25; seed++) {
      const r = rng(seed);
      const { content, pieces } = imageOf(
        r,
        r.pick([0, 1, 511, 512, 513, 2047, 2048, 2049, r.int(0, 60_000), r.int(100, 400) * 512]),
      );
      const slots = slotsOf(content, slot);
      for (const stream of [
        gnuTar(name, content, pieces),
        gnuTar(name, content, pieces, { base256: true }),
        gnuTar(name, content, [{ offset: 0, length: content.length }]),
        tarwriter(name, content),
        tarwriter(name, content, true),
      ]) {
        for (const parts of [[stream], cut(stream, r)]) {
          const got = read(parts);
          assert.strictEqual(got.end, "whole", `seed ${seed}`);
          assert.deepStrictEqual(got.file, { name, size: content.length });
          assert.deepStrictEqual(got.slots, slots, `seed ${seed}`);
          // Each slot once, in order, and zeros between them in one step.
          let index = 0;
          let zeros = false;
          for (const one of got.came) {
            if (typeof one === "number") {
              assert.isFalse(zeros);
              assert.isAbove(one, 0);
              index += one;
            } else {
              assert.isTrue(one.equals(slots.get(index)!));
              index += 1;
            }
            zeros = typeof one === "number";
          }
          assert.strictEqual(index, Math.ceil(content.length / slot));
        }
      }
    }
  });
  it("says where data belongs that comes, if it is much, and counts what was put there", () => {
    const content = Buffer.alloc(slotSize + 10, 1);
    const stream = gnuTar(name, content, [{ offset: 0, length: content.length }]);
    const reader = innerReader();
    assert.isUndefined(reader.next());
    assert.isUndefined(reader.room());
    reader.push(stream.subarray(0, 512));
    assert.deepStrictEqual(reader.next(), { type: "file", name, size: content.length });
    assert.isUndefined(reader.next());
    for (const left of [slotSize, slotSize - 1, 65_536]) {
      const room = reader.room()!;
      assert.lengthOf(room, left);
      const next = left === slotSize ? 1 : left - 65_536 || 1;
      room.fill(1, 0, next);
      reader.filled(next);
      assert.isUndefined(reader.next());
    }
    assert.isUndefined(reader.room());
    reader.end();
    const fault = reader.next();
    assert.strictEqual(fault instanceof InnerFault && fault.at, 512 + slotSize - 65_535);
  });
  it("has slots of 4 MiB", () => {
    const content = Buffer.alloc(2 * slotSize + 1);
    content[slotSize - 1] = 1;
    content[2 * slotSize] = 2;
    const got = read([gnuTar(name, content, [{ offset: 0, length: content.length }])], innerReader);
    assert.deepStrictEqual(got.slots, slotsOf(content, slotSize));
    assert.deepStrictEqual(
      read([tarwriter(name, content)], innerReader).came.map((one) =>
        typeof one === "number" ? one : one.length,
      ),
      [slotSize, 1, 1],
    );
  });
  it("of many pieces has its map in headers behind the first one", () => {
    for (const count of [3, 4, 5, 24, 25, 26, 45, 46, 47, 300]) {
      const content = Buffer.alloc(count * 1024 + 512);
      const pieces = Array.from({ length: count }, (_, i) => {
        content[i * 1024 + 512] = i + 1;
        return { offset: i * 1024 + 512, length: 512 };
      });
      const got = of(gnuTar(name, content, pieces));
      assert.strictEqual(got.end, "whole");
      assert.deepStrictEqual(got.slots, slotsOf(content, slot));
    }
  });
  it("of thousands of pieces keeps its map in little room, and far from each other", () => {
    const count = 20_000;
    const far = 3_000_000_000;
    const pieces = Array.from({ length: count }, (_, i) => ({
      offset: i < count / 2 ? i * 1024 : far * 512 * 30 + i * 777_777,
      length: 1,
    }));
    const size = pieces.at(-1)!.offset + 1;
    const data = Buffer.alloc(count, 7);
    const reader = innerReader(slot);
    const stream = Buffer.concat([writerHead(name, size, pieces), data, Buffer.alloc(2048)]);
    reader.push(stream);
    reader.end();
    let next = 0;
    let slots = 0;
    for (let step = reader.next(); ; step = reader.next()) {
      assert.isFalse(step === undefined || step instanceof InnerFault);
      if (step === undefined || step instanceof InnerFault || step.type === "end") break;
      if (step.type === "zeros") slots += step.count;
      if (step.type !== "slot") continue;
      assert.strictEqual(step.index, slots);
      slots += 1;
      for (; next < count && pieces[next]!.offset < slots * slot; next++)
        assert.strictEqual(step.bytes[pieces[next]!.offset % slot], 7);
    }
    assert.strictEqual(next, count);
    assert.strictEqual(slots, Math.ceil(size / slot));
  });
  it("may be larger than eight digits of gigabytes in octal hold", () => {
    const size = 9 * 2 ** 30 + 512;
    const pieces = [
      { offset: 512, length: 512 },
      { offset: 8.5 * 2 ** 30, length: 1024 },
    ];
    const data = Buffer.alloc(1536, 5);
    const slots = new Map([
      [0, 512],
      [8.5 * 256, 0],
    ]);
    for (const head of [
      gnuSparse(name, size, pieces),
      writerHead(name, size, [...pieces, { offset: size, length: 0 }]),
    ]) {
      const got = read([ended(head, data)], innerReader);
      assert.deepStrictEqual(got.file, { name, size });
      assert.strictEqual(got.end, "whole");
      assert.deepStrictEqual([...got.slots.keys()], [...slots.keys()]);
      for (const [index, at] of slots) {
        assert.strictEqual(got.slots.get(index)!.indexOf(5), at);
        assert.strictEqual(got.slots.get(index)!.length, slotSize);
      }
      assert.strictEqual(
        got.came.reduce<number>((sum, one) => sum + (typeof one === "number" ? one : 1), 0),
        Math.ceil(size / slotSize),
      );
    }
  });
});

describe("a file that is no image", () => {
  const text = Buffer.from("<firewall/>\n");
  it("is read in the same way", () => {
    for (const [of, content] of [
      ["qubes.xml", text],
      ["vm1/firewall.xml", text],
      ["vm4294967295/notes.txt", Buffer.alloc(0)],
      ["vm2/whitelisted-appmenus.list", Buffer.alloc(5000, 1)],
      ["vm2/root.img", Buffer.alloc(5000)],
      ["vm2/empty", Buffer.alloc(0)],
      ["dom0-home/user", text],
    ] as const) {
      const whole = { offset: 0, length: content.length };
      // GNU tar calls a file sparse whose blocks are in its inode.
      const sparse = ended(gnuSparse(of, content.length, [whole]), padTo(content, 512));
      for (const stream of [gnuTar(of, content, [whole]), sparse]) {
        const got = read([stream]);
        assert.deepStrictEqual(got.file, { name: of, size: content.length });
        assert.deepStrictEqual(got.slots, slotsOf(content, slot));
        assert.strictEqual(got.end, "whole");
      }
    }
  });
  it("has a name that a backup has", () => {
    for (const bad of [
      "private.img",
      "vm7/volatile.img",
      "vm07/private.img",
      "vm7/private.img/",
      "vm7/private.img.000",
      "/vm7/private.img",
      "dom0-home/",
      "dom0-home/../user",
      "qubes.xml.000.enc",
      "backup-header",
      "x\nqubes.xml",
      "",
    ]) {
      const got = of(gnuTar(bad, text, [{ offset: 0, length: text.length }]));
      assert.isUndefined(got.file);
      assert.match(got.end, /^[ -~]* is no file that a Qubes backup has$/, bad);
    }
    assert.match(
      of(gnuTar("x".repeat(100), text, [])).end,
      /^x{100} is no file that a Qubes backup has$/,
    );
  });
  it("may have its name in a header of its own", () => {
    const short = gnuHeader("short", "0", text.length);
    const data = padTo(text, 512);
    const long = Buffer.from("vm1/notes.txt\0rest");
    const link = gnuHeader("././@LongLink", "L", long.length);
    const path = paxHeader([paxRecord("comment", "x=y\n"), paxRecord("path", "vm2/notes.txt")]);
    const named = (...parts: ReadonlyArray<Buffer>) => of(ended(...parts, short, data)).file?.name;
    assert.strictEqual(named(link, padTo(long, 512)), "vm1/notes.txt");
    assert.strictEqual(named(path), "vm2/notes.txt");
    assert.strictEqual(named(link, padTo(long, 512), path), "vm2/notes.txt");
    const sparse = paxHeader([
      ...["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=vm3/notes.txt"].map((one) =>
        paxRecord(...(one.split("=") as [string, string])),
      ),
      paxRecord("GNU.sparse.realsize", 3),
      paxRecord("path", "vm2/notes.txt"),
      paxRecord("size", 515),
    ]);
    const map = padTo(Buffer.from("1\n0\n3\n"), 512);
    const got = of(ended(sparse, gnuHeader("short", "\0", 0), map, Buffer.from("abc")));
    assert.deepStrictEqual(got.file, { name: "vm3/notes.txt", size: 3 });
    assert.deepStrictEqual(got.came, [Buffer.from("abc")]);
    assert.strictEqual(got.end, "whole");
  });
});

describe("a stream that is not complete by itself", () => {
  const content = Buffer.alloc(10_000, 3);
  content.fill(0, 2000, 6000);
  const pieces = [
    { offset: 0, length: 2048 },
    { offset: 5632, length: 4368 },
  ];
  it("is refused, wherever it ends", () => {
    for (const [stream, least] of [
      [gnuTar(name, content, pieces), 512 + 2048 + 4368 + 1024],
      [tarwriter(name, content), Infinity],
      [gnuTar("qubes.xml", content, [{ offset: 0, length: 10_000 }]), 512 + 10_000 + 1024],
    ] as const) {
      for (let end = 0; end < stream.length; end += end % 512 === 511 ? 1 : 511) {
        const got = read([stream.subarray(0, end)]).end;
        if (end >= least) assert.strictEqual(got, "whole");
        else assert.match(got, /^the stream ends (?:early|without its end mark)$/, `${end}`);
      }
      assert.strictEqual(read([stream.subarray(0, Math.min(least, stream.length))]).end, "whole");
      const short = stream.subarray(0, Math.min(least, stream.length) - 1);
      assert.strictEqual(read([short]).end, "the stream ends without its end mark");
    }
  });
  it("is not said to be whole before its end", () => {
    const reader = innerReader(slot);
    assert.isUndefined(reader.next());
    reader.push(gnuTar(name, content, pieces));
    const types: Array<string> = [];
    for (let step = reader.next(); step !== undefined; step = reader.next()) {
      assert.isFalse(step instanceof InnerFault);
      if (!(step instanceof InnerFault)) types.push(step.type);
    }
    assert.deepStrictEqual(types, ["file", "slot", "zeros", "slot", "slot", "slot"]);
    assert.isUndefined(reader.next());
    reader.end();
    assert.deepStrictEqual(reader.next(), { type: "end" });
    assert.isUndefined(reader.next());
  });
  it("is refused where something stands behind its end", () => {
    const stream = gnuTar(name, content, pieces);
    for (const at of [stream.length - 1, stream.length - 3000]) {
      const bent = Buffer.from(stream);
      bent[at] = 1;
      assert.strictEqual(read([bent]).end, "something stands behind the end of the stream");
    }
    const far = Buffer.concat([stream, Buffer.alloc(200_000), Buffer.from("x")]);
    assert.strictEqual(read([far]).end, "something stands behind the end of the stream");
    assert.strictEqual(read([far.subarray(0, -1)]).end, "whole");
  });
  it("stays refused, and says where", () => {
    const reader = innerReader(slot);
    const stream = gnuTar(name, content, pieces);
    reader.push(stream.subarray(0, 700));
    while (reader.next() !== undefined);
    reader.end();
    const fault = reader.next();
    assert.isTrue(fault instanceof InnerFault);
    assert.strictEqual(fault, reader.next());
    assert.strictEqual((fault as InnerFault)._tag, "InnerFault");
    assert.strictEqual((fault as InnerFault).at, 700);
    assert.strictEqual((fault as InnerFault).message, "the stream ends early (at byte 700)");
  });
});

describe("a header", () => {
  const content = Buffer.from("x");
  const whole = (change: (header: Buffer) => void, sum = true) => {
    const stream = gnuTar(name, content, [{ offset: 0, length: 1 }]);
    change(stream);
    if (sum) sumUp(stream.subarray(0, 512));
    return of(stream).end;
  };
  const none = "this is no header of a tar stream";
  it("has a checksum, a size and the magic of tar", () => {
    assert.strictEqual(
      whole(() => {}),
      "whole",
    );
    for (const at of [0, 147, 156, 511]) {
      assert.strictEqual(
        whole((h) => (h[at]! ^= 1), false),
        none,
        `${at}`,
      );
    }
    assert.strictEqual(
      whole((h) => h.write("x", 148), false),
      none,
    );
    // As digits alone, to the last byte of the field.
    assert.strictEqual(
      whole((h) => {
        const sum = Number.parseInt(h.toString("latin1", 148, 154), 8);
        h.write(sum.toString(8).padStart(8, "0"), 148);
      }, false),
      "whole",
    );
    assert.strictEqual(
      whole((h) => h.write("x", 257)),
      none,
    );
    assert.strictEqual(
      whole((h) => h.write("x", 261)),
      none,
    );
    for (const [size, end] of [
      ["0000000000x\0", none],
      ["\0".repeat(12), none],
      ["0000000001 8", none],
      ["00000000008\0", none],
      [" 0000000001\0", none],
      ["000000000001", "whole"],
      ["1 \0 \0      \0", "whole"],
      ["\x80\0\0\0\0\0\0\0\0\0\0\x01", "whole"],
      ["\x80\0\0\0\0\x20\0\0\0\0\0\0", none],
      ["\x80\x01\0\0\0\0\0\0\0\0\0\x01", none],
      ["\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", none],
      ["\x80\0\0\0\0\0\x40\0\0\0\0\x01", "a size that no file can have"],
      ["\x80\0\0\0\0\0\x40\0\0\0\0\0", "the stream ends early"],
    ] as const) {
      const got = whole((h) => h.write(size, 124, "latin1"));
      assert.strictEqual(got, end, size);
    }
  });
  it("is of a file, or of a directory", () => {
    for (const type of ["1", "2", "3", "4", "6", "7", "g", "K", "M", "V"]) {
      assert.strictEqual(
        whole((h) => h.write(type, 156)),
        "this is no file",
        type,
      );
    }
  });
  it("may be extended, by little and in one form", () => {
    const extended = (records: ReadonlyArray<string>, size = 1) =>
      of(ended(paxHeader(records), gnuHeader(name, "0", size), content)).end;
    assert.strictEqual(extended([]), "whole");
    assert.strictEqual(extended([paxRecord("size", 1)], 9999), "whole");
    assert.strictEqual(extended([paxRecord("x", "y".repeat(65_000))]), "whole");
    for (const records of [
      ["5 x=y"],
      ["7 x=y\n"],
      ["5 x=y\n"],
      ["6 x=y\n\n"],
      ["0 x=y\n"],
      ["x=y\n"],
      ["5 xy\n"],
      ["5 =y\n"],
      ["-6 x=y\n"],
      [" 6 x=y\n"],
      ["99999999999999999 x=y\n"],
      ["6 x=y\n", "7 x=y\n"],
    ]) {
      assert.strictEqual(extended(records), "an extended header that is none", records[0]);
    }
    for (const size of ["", "x", "-1", "1e3", "99999999999999999", "9007199254740992"]) {
      assert.strictEqual(extended([paxRecord("size", size)]), "a size that no file can have");
    }
    assert.strictEqual(
      extended([paxRecord("x", "y".repeat(65_536))]),
      "an extended header that is too long",
    );
    const many = (headers: number) =>
      of(
        ended(
          ...Array.from({ length: headers }, () => paxHeader([paxRecord("x", "y")])),
          gnuHeader(name, "0", 1),
          content,
        ),
      ).end;
    assert.strictEqual(many(4), "whole");
    assert.strictEqual(many(5), "too many extended headers");
    const long = (bytes: number) =>
      of(
        ended(
          gnuHeader("././@LongLink", "L", bytes),
          padTo(Buffer.concat([Buffer.from(`${name}\0`), Buffer.alloc(bytes - 16)]), 512),
          gnuHeader("x", "0", 1),
          content,
        ),
      ).end;
    assert.strictEqual(long(65_536), "whole");
    assert.strictEqual(long(65_537), "an extended header that is too long");
  });
});

describe("the map of a sparse file", () => {
  const none = "a map of a sparse file that is none";
  const gnu = (size: number, pieces: ReadonlyArray<Piece>, change?: (head: Buffer) => void) => {
    const head = gnuSparse(name, size, pieces);
    change?.(head);
    sumUp(head.subarray(0, 512));
    return of(
      ended(
        head,
        Buffer.alloc(
          pieces.reduce((sum, one) => sum + one.length, 0),
          1,
        ),
      ),
    ).end;
  };
  const pax = (size: number | string, map: string, data = 0, more: ReadonlyArray<string> = []) => {
    const bytes = padTo(Buffer.from(map), 512);
    const head = paxHeader([
      paxRecord("GNU.sparse.major", 1),
      paxRecord("GNU.sparse.minor", 0),
      paxRecord("GNU.sparse.name", name),
      ...(size === "" ? [] : [paxRecord("GNU.sparse.realsize", size)]),
      ...more,
    ]);
    const file = gnuHeader("x", "0", bytes.length + data);
    return of(ended(head, file, bytes, Buffer.alloc(data, 1))).end;
  };
  it.each([
    [1024, [[0, 512]], "whole"],
    [1024, [[128, 128]], "whole"],
    [65_536, [[127, 16_384]], "whole"],
    [1024, [[512, 512]], "whole"],
    [1024, [[512, 511]], "whole"],
    [1024, [[513, 511]], "whole"],
    [
      1024,
      [
        [0, 512],
        [512, 512],
      ],
      "whole",
    ],
    [1024, [[513, 512]], none],
    [1024, [[1024, 1]], none],
    [1024, [[2000, 0]], none],
    [1024, [[1024, 0]], "whole"],
    [
      1024,
      [
        [512, 512],
        [0, 512],
      ],
      none,
    ],
    [
      2048,
      [
        [0, 512],
        [511, 512],
      ],
      none,
    ],
  ] as const)("of %i bytes, %j: %s", (size, list, end) => {
    const pieces = list.map(([offset, length]) => ({ offset, length }));
    assert.strictEqual(gnu(size, pieces), end);
    const data = pieces.reduce((sum, { length }) => sum + length, 0);
    const text = pieces.map(({ length, offset }) => `${offset}\n${length}\n`).join("");
    assert.strictEqual(pax(size, `${pieces.length}\n${text}`, data), end);
  });
  it("of GNU tar ends at an entry without a length, and has numbers", () => {
    const two = [
      { offset: 0, length: 512 },
      { offset: 1024, length: 512 },
    ];
    assert.strictEqual(gnu(2048, two), "whole");
    assert.strictEqual(
      gnu(2048, two, (h) => h.fill(0, 386 + 48, 482)),
      "whole",
    );
    assert.strictEqual(
      gnu(2048, two, (h) => h.write("x", 386)),
      none,
    );
    assert.strictEqual(
      gnu(2048, two, (h) => h.write("x", 398)),
      none,
    );
    assert.strictEqual(
      gnu(2048, two, (h) => h.write("x", 483)),
      "a size that no file can have",
    );
    assert.strictEqual(
      gnu(2048, two, (h) => h.fill(0, 386 + 24, 482)),
      "a sparse file whose map is not of its data",
    );
    assert.strictEqual(
      gnu(2048, two, (h) => big(2 ** 46 + 1).copy(h, 483)),
      "a size that no file can have",
    );
    assert.strictEqual(
      gnu(2048, two, (h) => big(2048).copy(h, 483)),
      "whole",
    );
  });
  it("in the form of 1.0 has a number a line, at the head of the data", () => {
    const ok = "1\n0\n512\n";
    assert.strictEqual(pax(1024, ok, 512), "whole");
    assert.strictEqual(pax(1024, ok, 511), "a sparse file whose map is not of its data");
    assert.strictEqual(pax(1024, ok, 513), "a sparse file whose map is not of its data");
    for (const bad of [
      "x\n0\n512\n",
      "1\n\n512\n",
      "1\n-1\n512\n",
      "1\n0\n0x20\n",
      "1 \n0\n512\n",
      "12345678901234567\n",
      `1${"0".repeat(600)}`,
      "",
      "2\n0\n512\n",
    ]) {
      assert.strictEqual(
        pax(1024, padTo(Buffer.from(bad || " "), 512).toString("latin1"), 512),
        none,
        bad,
      );
    }
    assert.strictEqual(pax(0, "0\n"), "whole");
    // What stands at the end of a block may go on in the next one, for as long as it may be a number.
    for (const [rest, end] of [
      ["x\n", none],
      ["0".repeat(17), none],
      ["0".repeat(16), "the stream ends early"],
    ] as const) {
      const count = rest.length % 2 === 0 ? "9999999\n" : "999999\n";
      const block = `${count}${"0\n".repeat((512 - count.length - rest.length) / 2)}${rest}`;
      assert.lengthOf(block, 512);
      const head = writerHead(name, 1024, []).subarray(0, -512);
      assert.strictEqual(of(head, Buffer.from(block)).end, end, rest);
    }
    for (const size of ["", "x", 2 ** 46 + 1, "9007199254740992"]) {
      assert.strictEqual(pax(size, ok, 512), "a size that no file can have", `${size}`);
    }
    assert.strictEqual(pax(2 ** 46, ok, 512), "whole");
  });
  it("has no more pieces than are kept", () => {
    const pieces = Array.from({ length: 6000 }, (_, i) => ({ offset: i * 1024, length: 1 }));
    const stream = Buffer.concat([
      writerHead(name, 6000 * 1024, pieces),
      Buffer.alloc(6000, 1),
      Buffer.alloc(1024),
    ]);
    // Two bytes for the way to the next one, and one for its length.
    for (const [limit, end] of [
      [16_385, "whole"],
      [16_384, none],
    ] as const) {
      const got = read([stream], () => innerReader(slot, limit));
      assert.strictEqual(got.end, end);
    }
  });
  it("has no other form", () => {
    const form = (...records: ReadonlyArray<readonly [string, string]>) =>
      of(ended(paxHeader(records.map(([k, v]) => paxRecord(k, v))), gnuHeader(name, "0", 0))).end;
    assert.strictEqual(form(["GNU.dumpdir", "x"]), "whole");
    for (const records of [
      [["GNU.sparse.size", "5"]],
      [["GNU.sparse.major", "1"]],
      [["GNU.sparse.minor", "0"]],
      [
        ["GNU.sparse.major", "0"],
        ["GNU.sparse.minor", "0"],
      ],
      [
        ["GNU.sparse.major", "1"],
        ["GNU.sparse.minor", "1"],
      ],
    ] as const) {
      assert.strictEqual(form(...records), "a sparse file of an unknown form");
    }
  });
});

describe("dom0's home", () => {
  const home = "dom0-home/user";
  const dir = (of: string) => gnuHeader(of, "5", 0);
  const file = (of: string, bytes: number) =>
    Buffer.concat([gnuHeader(of, "0", bytes), padTo(Buffer.alloc(bytes, 9), 512)]);
  const many = Array.from({ length: 30 }, (_, i) => ({ offset: i * 1024, length: 512 }));
  const parts = [
    dir(`${home}/`),
    file(`${home}/empty`, 0),
    file(`${home}/odd`, 700),
    gnuHeader(`${home}/link`, "2", 0),
    gnuHeader("././@LongLink", "L", 300),
    padTo(Buffer.alloc(300, "n"), 512),
    file(`${home}/long`, 5000),
    gnuSparse(`${home}/sparse`, 9000, many.slice(0, 3)),
    Buffer.alloc(1536, 4),
    gnuSparse(`${home}/more`, 90_000, many),
    Buffer.alloc(30 * 512, 5),
    paxHeader([paxRecord("size", 600)]),
    gnuHeader(`${home}/large`, "0", 0),
    padTo(Buffer.alloc(600, 6), 512),
    // What says of a sparse file that more headers come may be anything in another's.
    gnuHeader(`${home}/plain`, "0", 100, {}, (header) => (header[482] = 1)),
    padTo(Buffer.alloc(100, 7), 512),
    file(`${home}/behind`, 100),
  ];
  const whole = ended(...parts);
  const together = ({ came }: Read) => Buffer.concat(came as ReadonlyArray<Buffer>);
  it("comes as the stream that it is, in pieces of a slot", () => {
    for (let seed = 1; seed <= 10; seed++) {
      const got = read(cut(whole, rng(seed)));
      assert.deepStrictEqual(got.file, { name: home, size: undefined });
      assert.strictEqual(got.end, "whole");
      assert.isTrue(together(got).equals(whole));
      assert.deepStrictEqual([...got.slots.keys()], [...got.came.keys()]);
      assert.isTrue(got.came.slice(0, -1).every((one) => (one as Buffer).length === slot));
    }
  });
  it("is as complete as its end says", () => {
    let end = 0;
    const ends = [0, ...parts.map(({ length }) => (end += length))];
    for (const at of ends) {
      for (const more of [0, 1, 300, 512, 1023]) {
        const got = read([whole.subarray(0, at + more)]);
        assert.match(got.end, /^the stream ends (?:early|without its end mark)$/, `${at} ${more}`);
      }
    }
    assert.strictEqual(read([whole.subarray(0, end + 1024)]).end, "whole");
    const bent = Buffer.from(whole);
    bent[end + 1024] = 1;
    assert.strictEqual(read([bent]).end, "something stands behind the end of the stream");
  });
  it("has headers behind each other, and nothing else", () => {
    for (let i = 0; i < parts.length; i++) {
      const got = of(ended(...parts.slice(0, i), Buffer.alloc(512, 1), ...parts.slice(i)));
      if (![5, 8, 10, 13, 15].includes(i)) {
        assert.strictEqual(got.end, "this is no header of a tar stream", `${i}`);
      } else assert.notStrictEqual(got.end, "whole");
    }
    assert.strictEqual(
      of(ended(parts[0]!, paxHeader(["5 x=y"]))).end,
      "an extended header that is none",
    );
    assert.strictEqual(
      of(ended(parts[0]!, paxHeader([paxRecord("size", "x")]))).end,
      "a size that no file can have",
    );
  });
  it("may begin with a header for its name", () => {
    const path = paxHeader([paxRecord("path", `${home}/`)]);
    const stream = ended(path, dir("short"), ...parts.slice(1));
    const got = read([stream]);
    assert.deepStrictEqual(got.file, { name: home, size: undefined });
    assert.strictEqual(got.end, "whole");
    assert.isTrue(together(got).equals(stream));
  });
  it("may come byte by byte", () => {
    const got = read([...whole].map((byte) => Buffer.from([byte])));
    assert.strictEqual(got.end, "whole");
    assert.isTrue(together(got).equals(whole));
  });
  it("may end with a slot, or anywhere in it", () => {
    for (const bytes of [1024, 2048, 2560, 2561, 3072, 4096]) {
      const stream = Buffer.concat([dir(`${home}/`), file("x", 512), Buffer.alloc(bytes)]);
      const got = read([stream]);
      assert.isTrue(together(got).equals(stream));
      assert.strictEqual(got.came.length, Math.ceil(stream.length / slot));
    }
  });
});
