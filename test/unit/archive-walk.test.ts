/** The walk over genuine archives, whole and broken. */
import { assert, describe, it } from "@effect/vitest";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import { ArchiveFault, type Begun, isFile, Walk, type WalkOptions } from "#src/archive/walk";

const sample = (name: string) => fs.readFileSync(new URL(`../fixtures/${name}`, import.meta.url));
const tiny = sample("sample-tiny-lowcost.qubes-backup");
const chunky = sample("sample-multichunk-lowcost.qubes-backup");
/** The chunk size that the sample was made with. */
const small = { fullChunk: 65_664 } as const;

const walk = (bytes: Uint8Array, options: WalkOptions = {}, step = bytes.length) => {
  const w = new Walk(options);
  for (let at = 0; at < bytes.length; at += step) {
    const fault = w.push(bytes.subarray(at, at + step));
    if (fault !== undefined) return fault;
  }
  return w.finish();
};
/** With the place where each begins. */
const members = (bytes: Uint8Array, options: WalkOptions = {}) => {
  const found = walk(bytes, options);
  if (found instanceof ArchiveFault) throw found;
  let at = 0;
  return found.map((member) => {
    const start = at;
    at += member.length;
    return { ...member, start };
  });
};
const fault = (bytes: Uint8Array, options: WalkOptions = {}) => {
  const found = walk(bytes, options);
  assert.instanceOf(found, ArchiveFault);
  return (found as ArchiveFault).fault;
};

describe("walk over genuine archives", () => {
  it.each([1, 7, 511, 512, 10_240, 65_536])("in pieces of %d bytes", (step) => {
    assert.lengthOf(walk(tiny, {}, step) as ReadonlyArray<Begun>, 6);
    assert.lengthOf(walk(chunky, small, step) as ReadonlyArray<Begun>, 8);
  });

  it("its members cover the archive", () => {
    for (const [bytes, options] of [
      [tiny, {}],
      [chunky, small],
    ] as const) {
      const all = members(bytes, options);
      for (const { length } of all) assert.strictEqual(length % 10_240, 0);
      const last = all.at(-1)!;
      assert.strictEqual(last.start + last.length, bytes.length);
    }
  });

  it("may skip what it does not look at, with the same result", () => {
    const w = new Walk(small);
    let read = 0;
    while (w.offset < chunky.length) {
      if (w.skippable > 0) w.skip(w.skippable);
      else {
        assert.isUndefined(w.push(chunky.subarray(w.offset, w.offset + 64)));
        read += 64;
      }
    }
    assert.deepStrictEqual(w.finish(), walk(chunky, small));
    assert.isBelow(read, chunky.length / 2);
  });

  it("knows which qubes should be there", () => {
    const expected = (...ids: ReadonlyArray<string>) => ({ expected: new Set(ids) });
    assert.lengthOf(members(tiny, expected("vm2", "vm3", "vm4")), 6);
    assert.strictEqual(fault(tiny, expected("vm2", "vm3", "vm4", "vm9")), "missing-qube");
    assert.strictEqual(fault(tiny, expected("vm2", "vm3", "vm4", "dom0-home")), "missing-qube");
    assert.strictEqual(fault(tiny, expected("vm2", "vm3")), "unexpected-qube");
  });

  it("holds the sample with small chunks for broken where chunks have 100 MiB", () => {
    assert.strictEqual(fault(chunky), "short-chunk");
  });
});

/** Rebuilds an archive from its members' own bytes, in the order given. */
const splice = (
  bytes: Buffer,
  options: WalkOptions,
  pick: (paths: ReadonlyArray<string>) => ReadonlyArray<string>,
) => {
  const all = members(bytes, options);
  const at = new Map(all.map((m) => [m.path, bytes.subarray(m.start, m.start + m.length)]));
  return Buffer.concat(pick(all.map((m) => m.path)).map((path) => at.get(path)!));
};

/** Writes a field of a tar header and makes its checksum right again. */
const patch = (
  bytes: Buffer,
  path: string,
  change: (header: Buffer) => void,
  options: WalkOptions = small,
) => {
  const copy = Buffer.from(bytes);
  const member = members(bytes, options).find((m) => m.path === path)!;
  // Behind the extended header: one block of its own and one of data.
  const header = copy.subarray(member.start + 1024, member.start + 1536);
  change(header);
  header.write("        ", 148, "latin1");
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return copy;
};

it.each([
  ["vm7/private.img", true],
  ["dom0-home/user", true],
  ["vm7/private.img.000.enc", false],
  ["vm7", false],
  ["qubes.xml", false],
] as const)("a file that a backup can have, before it is cut: %s %s", (name, is) => {
  assert.strictEqual(isFile(name), is);
});

describe("walk over broken archives", () => {
  const chunk = (vm: number, n: number) => `vm${vm}/private.img.00${n}.enc`;
  const spliced = (pick: (paths: ReadonlyArray<string>) => ReadonlyArray<string>) =>
    fault(splice(chunky, small, pick), small);

  it("a cut anywhere is found, but at the end of a file's last chunk", () => {
    const ends = new Set<number>();
    const all = members(chunky, small);
    all.forEach((m, i) => {
      const file = (path: string | undefined) => path?.replace(/\.\d+\.enc$/, "");
      if (i >= 3 && file(all[i + 1]?.path) !== file(m.path)) ends.add(m.start + m.length);
    });
    for (let at = 0; at <= chunky.length; at += 512) {
      const found = walk(chunky.subarray(0, at), small);
      assert.strictEqual(found instanceof ArchiveFault, !ends.has(at), `cut at ${at}`);
      // Which qubes should be there closes that gap; only dom0 knows it.
      if (ends.has(at) && at < chunky.length) {
        assert.strictEqual(
          fault(chunky.subarray(0, at), { ...small, expected: new Set(["vm2", "vm3"]) }),
          "missing-qube",
        );
      }
    }
  });
  it("a head missing, or out of order", () => {
    assert.strictEqual(
      spliced((p) => p.slice(1)),
      "not-an-archive",
    );
    assert.strictEqual(
      spliced((p) => [p[0]!, ...p.slice(2)]),
      "order",
    );
    assert.strictEqual(
      spliced((p) => [p[0]!, p[2]!, p[1]!, ...p.slice(3)]),
      "order",
    );
    assert.strictEqual(
      spliced((p) => [p[0]!, p[1]!, ...p.slice(3)]),
      "order",
    );
  });
  it("a chunk missing", () => {
    assert.strictEqual(
      spliced((p) => p.filter((x) => x !== chunk(2, 0))),
      "gap",
    );
    assert.strictEqual(
      spliced((p) => p.filter((x) => x !== chunk(2, 1))),
      "gap",
    );
    assert.strictEqual(
      spliced((p) => p.filter((x) => x !== chunk(2, 2))),
      "lost-tail",
    );
  });
  it("a member doubled", () => {
    for (const path of [chunk(2, 0), chunk(2, 1), chunk(2, 2)]) {
      assert.strictEqual(
        spliced((p) => p.flatMap((x) => (x === path ? [x, x] : [x]))),
        "duplicate",
      );
    }
    assert.strictEqual(
      spliced((p) => [...p, "qubes.xml.000.enc"]),
      "duplicate",
    );
    assert.strictEqual(
      spliced((p) => [...p, ...p.filter((x) => x.startsWith("vm3/"))]),
      "duplicate",
    );
  });
  it("two members swapped", () => {
    const swap = (a: string, b: string) => (p: ReadonlyArray<string>) =>
      p.map((x) => (x === a ? b : x === b ? a : x));
    assert.strictEqual(spliced(swap(chunk(2, 0), chunk(2, 1))), "gap");
    assert.strictEqual(spliced(swap(chunk(2, 1), chunk(2, 2))), "gap");
    assert.include(["gap", "lost-tail"], spliced(swap(chunk(2, 1), chunk(3, 1))));
  });
  it("bytes behind the end, or between members", () => {
    assert.strictEqual(fault(Buffer.concat([tiny, Buffer.alloc(512)])), "tar-header");
    assert.strictEqual(fault(Buffer.concat([tiny, Buffer.alloc(10_240)])), "tar-header");
    assert.strictEqual(fault(Buffer.concat([tiny, Buffer.from("x")])), "truncated");
    const dirty = Buffer.from(tiny);
    dirty[members(tiny)[2]!.start - 1] = 1;
    assert.strictEqual(fault(dirty), "padding");
  });
  it("a chunk cut short", () => {
    const short = patch(chunky, chunk(2, 0), (h) => h.write("00000200177\0", 124, "latin1"));
    const first = members(chunky, small).find((m) => m.path === chunk(2, 0))!;
    short[first.start + 1536 + first.size - 1] = 0; // what was data is padding now
    assert.strictEqual(fault(short, small), "short-chunk");
  });
  it("a header that is not in canonical form", () => {
    const one = chunk(3, 1);
    const broken: ReadonlyArray<readonly [string, (h: Buffer) => void]> = [
      ["a link", (h) => h.write("/etc/passwd", 157)],
      ["a prefix", (h) => h.write("/etc", 345)],
      ["a symbolic link", (h) => h.write("2", 156)],
      ["a directory", (h) => h.write("5", 156)],
      ["set-uid", (h) => h.write("0004755\0", 100)],
      ["another owner", (h) => h.write("0001750\0", 108)],
      ["another owner's name", (h) => h.write("user\0", 265)],
      ["another group's name", (h) => h.write("qubes", 297)],
      ["a size in base 256", (h) => h.writeUInt32BE(0x80000000, 124)],
      ["a size with a sign", (h) => h.write("-0000000001\0", 124)],
      ["spaces for zeros", (h) => h.write("      11471\0", 124)],
      ["the old magic", (h) => h.write("ustar  \0", 257)],
      ["bytes behind the name", (h) => h.write("x", 90)],
      ["bytes behind the header's end", (h) => h.write("x", 505)],
    ];
    for (const [what, change] of broken)
      assert.strictEqual(fault(patch(chunky, one, change), small), "tar-header", what);
    const checksum = Buffer.from(tiny);
    checksum[30_720 + 1] = 0x41;
    assert.strictEqual(fault(checksum), "tar-header");
  });
  it("a name that no Qubes backup has", () => {
    for (const path of [
      "vm2/../../etc/passwd.000.enc",
      "/etc/passwd",
      "vm0/private.img.000.enc",
      "vm02/private.img.000.enc",
      "vm2/volatile.img.000.enc",
      "vm2/private.img.000",
      "vm2/private.img.0000.enc",
      "vm2/private.img.00.enc",
      "dom0-home/../x.000.enc",
      "dom0-home/a/b.000.enc",
      "backup-header2",
      "vm3/private.img.001.enc\n",
    ]) {
      const renamed = patch(chunky, chunk(3, 1), (h) => h.fill(0, 0, 100).write(path, 0, "latin1"));
      assert.strictEqual(fault(renamed, small), "unknown-member", path);
    }
  });
  it("an extended header that renames or resizes", () => {
    for (const record of ["17 path=vm9/x.enc", "11 size=999"]) {
      const copy = Buffer.from(tiny);
      const at = members(tiny)[3]!.start;
      const data = copy.subarray(at + 512, at + 1024).fill(0);
      const line = `${record}\n`;
      data.write(line + copy.toString("latin1", 0, 0), "latin1");
      copy.write(
        `${Number.parseInt(record, 10).toString(8).padStart(11, "0")}\0`,
        at + 124,
        "latin1",
      );
      const header = copy.subarray(at, at + 512);
      header.write("        ", 148, "latin1");
      header.write(
        `${header
          .reduce((t, b) => t + b, 0)
          .toString(8)
          .padStart(6, "0")}\0 `,
        148,
        "latin1",
      );
      assert.strictEqual(fault(copy), "tar-header", record);
    }
  });
  it("a scrypt header that is not one, and a member too small for it", () => {
    for (const member of members(tiny).slice(1)) {
      const data = member.start + 1536;
      for (const at of [0, 6, 7, 20, 47, 48, 63]) {
        const copy = Buffer.from(tiny);
        copy[data + at]! ^= 1;
        assert.strictEqual(fault(copy), "scrypt-header", `${member.path} byte ${at}`);
      }
      const copy = Buffer.from(tiny);
      copy[data + 64]! ^= 1; // the ciphertext's own proof needs the passphrase
      assert.isArray(walk(copy));
    }
    const little = patch(tiny, "qubes.xml.000.enc", (h) => h.write("00000000177\0", 124), {});
    assert.strictEqual(fault(little), "short-chunk");
  });
  it("a backup header of another version, or unencrypted, or with odd keys", () => {
    const text = tiny.toString("latin1", 1536, 1536 + 0o167);
    for (const [from, to] of [
      ["version=4", "version=3"],
      ["encrypted=True", "encrypted=Fals"],
      ["hmac-algorithm=scrypt", "hmac-algorithm=sha512"],
      ["backup-id=2", "backup-id=x"],
      ["compressed=True", "compressed=Yess"],
      ["encrypted=", "encryptee="],
    ] as const) {
      const copy = Buffer.from(tiny);
      copy.write(text.replace(from, to), 1536, "latin1");
      assert.strictEqual(fault(copy), "backup-header", to);
    }
  });
  it("words, zeros and random bytes", () => {
    assert.strictEqual(fault(Buffer.from("total 0\n".repeat(200))), "not-an-archive");
    assert.strictEqual(fault(Buffer.alloc(20_480)), "not-an-archive");
    assert.strictEqual(fault(crypto.createHash("sha512").update("x").digest()), "truncated");
    assert.strictEqual(fault(Buffer.alloc(0)), "not-an-archive");
  });
});

it("no single changed byte outside the data goes unseen, nor makes the walk throw", () => {
  const data = members(tiny).map((m) => [m.start + 1536 + 64, m.start + 1536 + m.size] as const);
  let unseen = 0;
  for (let at = 0; at < tiny.length; at += 1) {
    if (at > 2048 && at % 13 !== 0) continue;
    if (data.some(([from, to]) => at >= from && at < to)) continue;
    const copy = Buffer.from(tiny);
    copy[at]! ^= 0x11;
    if (!(walk(copy) instanceof ArchiveFault)) unseen += 1;
  }
  // Times, sizes of the first member's text and like: nothing that a reader acts on may change.
  assert.isAtMost(unseen, 120);
});
