/** The walk's rules, one by one: each fault has a case, each limit its last value and the one behind it. */
import { assert, describe, it } from "@effect/vitest";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import {
  ArchiveFault,
  archiveSize,
  faults,
  fullChunk,
  ListWalk,
  MemberWalk,
  Walk,
  type WalkOptions,
} from "#src/archive/walk";
import { memberLimit } from "#src/proof/table";
import { memberOf, scryptOf, slotOf } from "#test/support/archive";
import { padTo, sumUp, tarHeader } from "#test/support/tar";

const salt = Buffer.alloc(32, 7);
/** Bytes of a full chunk here. */
const full = 1024;
/** As scrypt writes it, of so many bytes in all. */
const sealed = (bytes: number) => scryptOf(Buffer.alloc(Math.max(bytes - 128, 0), 3), salt);
const chunk = (name: string, bytes = 200) => memberOf(name, sealed(bytes));

const id = "backup-id=20261123T030424-14807\n";
const headerText = `version=4\nencrypted=True\ncompressed=True\ncompression-filter=gzip\nhmac-algorithm=scrypt\n${id}`;
const hmac = chunk("backup-header.hmac");
const xml = chunk("qubes.xml.000.enc");
const headed = (text: string) => [
  memberOf("backup-header", Buffer.from(text, "latin1")),
  hmac,
  xml,
];
const heads = headed(headerText);
const one = chunk("vm1/private.img.000.enc");

const small = { fullChunk: full } as const;
const walk = (parts: ReadonlyArray<Buffer>, options: WalkOptions = {}) => {
  const w = new Walk({ ...small, ...options });
  return w.push(Buffer.concat(parts)) ?? w.finish();
};
/** The fault, or "whole". */
const found = (parts: ReadonlyArray<Buffer>, options?: WalkOptions): string => {
  const result = walk(parts, options);
  return result instanceof ArchiveFault ? result.fault : "whole";
};
const detail = (parts: ReadonlyArray<Buffer>): string => {
  const result = walk(parts);
  return result instanceof ArchiveFault ? result.detail : "whole";
};
/** Behind the heads: what comes of these members. */
const behind = (...parts: ReadonlyArray<Buffer>) => found([...heads, ...parts]);
const named = (name: string) => behind(chunk(name));

/** A member whose header, extended header and text for it are as given. */
const odd = (
  change: (header: Buffer) => void,
  pax: string | Buffer = "30 mtime=1795403064.971171142\n",
  name = "vm1/private.img.000.enc",
) => {
  const text = typeof pax === "string" ? Buffer.from(pax, "latin1") : pax;
  const data = sealed(200);
  return padTo(
    Buffer.concat([
      tarHeader("./PaxHeaders/x", "x", text.length),
      padTo(text, 512),
      tarHeader(name, "0", data.length, change),
      padTo(data, 512),
      Buffer.alloc(1024),
    ]),
    10_240,
  );
};
const plain = () => {};

describe("every fault has a case", () => {
  type Fault = Exclude<ArchiveFault["fault"], "too-many-members">;
  const cases: { readonly [F in Fault]: () => string | undefined } = {
    "not-an-archive": () => found([chunk("vm1/private.img.000.enc")]),
    "tar-header": () => behind(odd((h) => h.write("9", 156))),
    padding: () => behind(Buffer.concat([one.subarray(0, -1), Buffer.from("x")])),
    "unknown-member": () => named("vm1/volatile.img.000.enc"),
    order: () => found([heads[0]!, xml, hmac, one]),
    duplicate: () => behind(one, one),
    gap: () => named("vm1/private.img.001.enc"),
    "short-chunk": () => behind(one, chunk("vm1/private.img.001.enc")),
    "long-chunk": () => behind(chunk("vm1/private.img.000.enc", full + 1)),
    "lost-tail": () => behind(chunk("vm1/private.img.000.enc", full)),
    "backup-header": () => found([...headed(headerText.replace("4", "3")), one]),
    "scrypt-header": () => behind(memberOf("vm1/private.img.000.enc", Buffer.alloc(200, 1))),
    truncated: () => behind(one.subarray(0, -512)),
    "missing-qube": () => behind(),
    "unexpected-qube": () => found([...heads, one], { expected: new Set(["vm2"]) }),
  };
  it.each(faults)("%s", (fault) => {
    // That one takes its time: it stands at the end of this file.
    if (fault !== "too-many-members") assert.strictEqual(cases[fault](), fault);
  });
  it("is shown with the place where its member begins", () => {
    const result = walk([...heads, one, one]) as ArchiveFault;
    const at = Buffer.concat([...heads, one]).length;
    assert.strictEqual(result.at, at);
    assert.strictEqual(result._tag, "ArchiveFault");
    assert.strictEqual(result.message, `vm1/private.img.000.enc is there twice (at byte ${at})`);
  });
});

describe("names", () => {
  it.each([
    "private.img",
    "root.img",
    "firewall.xml",
    "notes.txt",
    "whitelisted-appmenus.list",
    "empty",
  ])("a qube may have %s, and dom0's home may have a file of any such name", (file) => {
    assert.strictEqual(named(`vm1/${file}.000.enc`), "whole");
    assert.strictEqual(named(`dom0-home/${file}.000.enc`), "whole");
    for (const name of [`vm1/x${file}`, `vm1/${file}x`, `vm1/${file.slice(1)}`, `xvm1/${file}`]) {
      assert.strictEqual(named(`${name}.000.enc`), "unknown-member", name);
    }
    assert.strictEqual(
      named(`vm1/${file.replace(/[.]/, "x")}.000.enc`),
      file === "empty" ? "whole" : "unknown-member",
    );
  });
  it("a qube's number has ten digits at most, none of them in front for nothing", () => {
    for (const vm of ["vm1", "vm10", "vm1234567890", "vm9999999999"])
      assert.strictEqual(named(`${vm}/root.img.000.enc`), "whole", vm);
    for (const vm of ["vm", "vm0", "vm01", "vm12345678901", "vmx", "VM1", "vm1/vm1", "dom0"])
      assert.strictEqual(named(`${vm}/root.img.000.enc`), "unknown-member", vm);
  });
  it("a name in dom0's home has 64 characters at most, of those that are harmless", () => {
    const home = (name: string) => named(`dom0-home/${name}.000.enc`);
    assert.strictEqual(home("a".repeat(64)), "whole");
    assert.strictEqual(home("a".repeat(65)), "unknown-member");
    assert.strictEqual(home(""), "unknown-member");
    for (let code = 1; code < 256; code++) {
      const sign = String.fromCharCode(code);
      const word = /[A-Za-z0-9_]/.test(sign);
      assert.strictEqual(home(sign), word ? "whole" : "unknown-member", JSON.stringify(sign));
      const follows = word || ".@-".includes(sign);
      assert.strictEqual(
        home(`a${sign}`),
        follows ? "whole" : "unknown-member",
        JSON.stringify(sign),
      );
    }
  });
  it("a path fills its field at most but for one byte", () => {
    const long = (bytes: number) => behind(odd(plain, undefined, "a".repeat(bytes)));
    assert.strictEqual(long(99), "unknown-member");
    assert.strictEqual(long(100), "tar-header");
  });
  it("a chunk's number has three digits, or more where it needs them", () => {
    for (const number of ["00", "0000", "0001", "1", "00a", "", "-01", "10000000"])
      assert.strictEqual(named(`vm1/root.img.${number}.enc`), "unknown-member", number);
    for (const number of ["001", "999", "1000", "1000000"])
      assert.strictEqual(named(`vm1/root.img.${number}.enc`), "gap", number);
    assert.strictEqual(named("vm1/root.img.000.encx"), "unknown-member");
    assert.strictEqual(named("vm1/root.img.000.en"), "unknown-member");
    assert.strictEqual(named("vm1/root.imgx000.enc"), "unknown-member");
    assert.strictEqual(named("vm1/root.img.000xenc"), "unknown-member");
  });
  it("a head that comes again is one too many", () => {
    for (const head of ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"])
      assert.strictEqual(behind(one, chunk(head)), "duplicate", head);
  });
});

describe("the order of members", () => {
  const file = (name: string, ...sizes: ReadonlyArray<number>) =>
    sizes.map((size, n) => chunk(`${name}.${`${n}`.padStart(3, "0")}.enc`, size));
  it("chunks follow each other, full but for the last", () => {
    assert.strictEqual(behind(...file("vm1/root.img", full, full, full - 1)), "whole");
    assert.strictEqual(behind(...file("vm1/root.img", full, full - 1, full - 1)), "short-chunk");
    assert.strictEqual(behind(...file("vm1/root.img", full, full)), "lost-tail");
    assert.strictEqual(
      detail([...heads, ...file("vm1/root.img", full - 1, full)]),
      "chunk 0 of vm1/root.img is cut short",
    );
    assert.include(detail([...heads, ...file("vm1/root.img", full)]), "vm1/root.img ends with");
    assert.strictEqual(
      behind(...file("vm1/root.img", full), ...file("vm1/private.img", 200)),
      "lost-tail",
    );
    const [first, second, third] = file("vm1/root.img", full, full, 200) as [
      Buffer,
      Buffer,
      Buffer,
    ];
    assert.strictEqual(behind(first, third), "gap");
    assert.include(detail([...heads, first, third]), "root.img.002.enc stands where chunk 1 must");
    assert.strictEqual(behind(first, second, first), "duplicate");
    assert.strictEqual(behind(first, second, second), "duplicate");
    assert.strictEqual(behind(second), "gap");
  });
  it("a file does not come again, whichever and however many there were", () => {
    const many = (files: number) => {
      const list = new ListWalk({ format: "slots" });
      const next = (path: string) => list.next({ path, size: 128, length: 1024 })?.fault;
      for (const head of ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"]) next(head);
      const name = (n: number) => `vm${n}/root.img.000.enc`;
      for (let n = 1; n <= files; n++) assert.isUndefined(next(name(n)), `${n} of ${files}`);
      return (n: number) => next(name(n));
    };
    for (const files of [32, 33, 150]) {
      for (let n = 1; n < files; n++) {
        assert.strictEqual(many(files)(n), "duplicate", `${n} of ${files}`);
      }
    }
    assert.isUndefined(many(5000)(5001));
  });
  it("a file does not come again, nor its qube behind dom0-home", () => {
    const [root, home] = [chunk("vm1/root.img.000.enc"), chunk("dom0-home/user.000.enc")];
    assert.strictEqual(behind(root, one, root), "duplicate");
    assert.strictEqual(behind(root, one, home), "whole");
    assert.strictEqual(behind(root, home, one), "order");
    assert.strictEqual(behind(home, chunk("vm2/root.img.000.enc")), "order");
    assert.strictEqual(behind(home, chunk("dom0-home/other.000.enc")), "whole");
    assert.strictEqual(behind(root, chunk("vm2/root.img.000.enc"), one), "whole");
  });
  it("the heads stand in front, each in its place", () => {
    for (const [parts, fault] of [
      [[], "not-an-archive"],
      [heads.slice(0, 1), "truncated"],
      [heads.slice(0, 2), "truncated"],
      [heads, "missing-qube"],
      [[hmac], "not-an-archive"],
      [[heads[0]!, xml], "order"],
      [[heads[0]!, hmac, one], "order"],
      [[...heads, one], "whole"],
    ] as const) {
      assert.strictEqual(found(parts), fault);
    }
    assert.include(detail(heads.slice(0, 1)), "backup-header.hmac");
    assert.include(detail(heads.slice(0, 2)), "qubes.xml.000.enc");
  });
  it("what should be there is there, and nothing else", () => {
    const of = (...ids: ReadonlyArray<string>) =>
      found([...heads, one, chunk("dom0-home/user.000.enc")], { expected: new Set(ids) });
    assert.strictEqual(of("vm1", "dom0-home"), "whole");
    assert.strictEqual(of("vm1"), "unexpected-qube");
    assert.strictEqual(of("dom0-home"), "unexpected-qube");
    assert.strictEqual(of("vm1", "dom0-home", "vm2"), "missing-qube");
    assert.strictEqual(of(), "unexpected-qube");
    const two = walk([...heads, one], { expected: new Set(["vm1", "vm2", "vm3"]) });
    assert.strictEqual((two as ArchiveFault).detail, "the archive has nothing of vm2, vm3");
  });
});

describe("sizes", () => {
  it("an encrypted member has what scrypt adds at least, a chunk at most", () => {
    const name = "vm1/private.img.000.enc";
    assert.strictEqual(behind(chunk(name, 128)), "whole");
    assert.strictEqual(behind(memberOf(name, sealed(128).subarray(0, 127))), "short-chunk");
    assert.strictEqual(behind(chunk(name, full + 1)), "long-chunk");
    assert.strictEqual(
      found([heads[0]!, memberOf("backup-header.hmac", sealed(128)), xml, one]),
      "whole",
    );
    assert.strictEqual(
      found([heads[0]!, memberOf("backup-header.hmac", sealed(128).subarray(1))]),
      "short-chunk",
    );
  });
  it("a full chunk is 100 MiB and what scrypt adds, unless a test says otherwise", () => {
    assert.strictEqual(fullChunk, 100 * 2 ** 20 + 128);
    const begun = (size: number) => {
      const w = new Walk();
      w.push(Buffer.concat(heads));
      return w.push(tarHeader("vm1/private.img.000.enc", "0", size))?.fault;
    };
    assert.isUndefined(begun(fullChunk));
    assert.strictEqual(begun(fullChunk + 1), "long-chunk");
    assert.strictEqual(begun(2 ** 30), "long-chunk");
    const alone = (size: number) => {
      const w = new MemberWalk();
      w.take(tarHeader("vm1/private.img.000.enc", "0", size));
      return w.fault?.fault;
    };
    assert.isUndefined(alone(fullChunk));
    assert.strictEqual(alone(fullChunk + 1), "long-chunk");
  });
  it("backup-header has 1 to 4,096 bytes", () => {
    const begun = (size: number) => new Walk().push(tarHeader("backup-header", "0", size))?.fault;
    assert.strictEqual(begun(0), "backup-header");
    assert.isUndefined(begun(1));
    assert.isUndefined(begun(4096));
    assert.strictEqual(begun(4097), "backup-header");
    const w = new Walk();
    w.push(tarHeader("backup-header", "0", 4096));
    assert.isUndefined(w.push(Buffer.alloc(4095, "x")));
    assert.strictEqual(w.push(Buffer.from("x"))?.fault, "backup-header");
  });
  it("a member takes whole records, two empty blocks included", () => {
    const options = { fullChunk: 20_000 };
    // 1,536 bytes of headers and 1,024 at the end leave 7,680 in the first record.
    for (const [size, length] of [
      [7679, 10_240],
      [7680, 10_240],
      [7681, 20_480],
      [17_920, 20_480],
    ] as const) {
      const members = walk([...heads, chunk("vm1/private.img.000.enc", size)], options);
      assert.isArray(members);
      assert.deepStrictEqual((members as ReadonlyArray<unknown>).at(-1), {
        path: "vm1/private.img.000.enc",
        length,
        size,
      });
    }
  });
});

it("scrypt's header has its name in front, whatever its sum says, and a true sum", () => {
  const begun = (change: (data: Buffer) => void) => {
    const data = sealed(200);
    change(data);
    return behind(memberOf("vm1/private.img.000.enc", data));
  };
  const summed = (text: string) => (data: Buffer) => {
    data.write(text, 0, "latin1");
    createHash("sha256").update(data.subarray(0, 48)).digest().copy(data, 48, 0, 16);
  };
  assert.strictEqual(begun(summed("scrypt\0")), "whole");
  assert.strictEqual(begun(summed("Scrypt\0")), "scrypt-header");
  assert.strictEqual(begun(summed("scrypt\x01")), "scrypt-header");
  for (const at of [7, 47, 48, 63]) {
    assert.strictEqual(
      begun((data) => (data[at]! ^= 1)),
      "scrypt-header",
    );
  }
  assert.strictEqual(
    begun((data) => (data[64]! ^= 1)),
    "whole",
  );
});

describe("a tar header", () => {
  /** What the walk calls the field of each byte. */
  const fields: ReadonlyArray<readonly [to: number, name: string]> = [
    [100, "path"],
    [108, "mode"],
    [124, "owner"],
    [136, "size"],
    [148, "time"],
    [156, "checksum"],
    [157, "type"],
    [257, "link"],
    [265, "magic"],
    [329, "owner"],
    [345, "device"],
    [512, "prefix"],
  ];
  const says = (field: string) => `a tar header whose ${field} is not in canonical form`;
  it("has nothing in any byte that does not belong there, and the fault names the field", () => {
    const name = "vm1/private.img.000.enc";
    for (let at = name.length + 1; at < 512; at++) {
      const field = fields.find(([to]) => at < to)![1];
      // The checksum is written over whatever was in its field.
      if (field === "checksum") continue;
      assert.strictEqual(detail([...heads, odd((h) => (h[at] = 1))]), says(field), String(at));
    }
  });
  it("has a true checksum, written in one way", () => {
    const at = Buffer.concat(heads).length + 1024;
    const summed = (change: (header: Buffer) => void) => {
      const bytes = Buffer.concat([...heads, one]);
      change(bytes.subarray(at, at + 512));
      return detail([bytes]);
    };
    const right = one.toString("latin1", 1024 + 148, 1024 + 154);
    const sum = Number.parseInt(right, 8);
    const octal = (n: number) => n.toString(8).padStart(6, "0");
    assert.strictEqual(summed(plain), "whole");
    for (const text of [
      `${octal(sum + 1)}\0 `,
      `${octal(sum - 1)}\0 `,
      `${right} \0`,
      `${right}\0\0`,
      `${right}  `,
      `0${right}\0`,
      ` ${right.slice(1)}\0 `,
      `${right.slice(1)}\0  `,
    ]) {
      assert.strictEqual(
        summed((h) => h.write(text, 148, "latin1")),
        says("checksum"),
        text,
      );
    }
    assert.strictEqual(
      summed((h) => (h[0]! ^= 1)),
      says("checksum"),
    );
    assert.strictEqual(
      summed((h) => (h[511]! ^= 1)),
      says("checksum"),
    );
  });
  it.each([
    ["mode", 100, "1000644\0"],
    ["mode", 100, "0000645\0"],
    ["mode", 100, "0000744\0"],
    ["owner", 108, "1000000\0"],
    ["owner", 108, "0000001\0"],
    ["owner", 116, "0000001\0"],
    ["size", 124, "0000000031 \0"],
    ["size", 124, "00000000310 "],
    ["size", 124, "\x800000000000\0"],
    ["time", 136, "1530072647 \0"],
    ["time", 136, "15300726478\0"],
    ["time", 136, "-5300726470\0"],
    ["magic", 257, "ustar  \0"],
    ["magic", 257, "ustar\x0001"],
    ["owner", 265, "toor"],
    ["owner", 265, "root2"],
    ["owner", 265, "root\0x"],
    ["owner", 297, "users"],
    ["owner", 265, "x".repeat(32)],
    ["device", 329, "0000001\x000000000\0"],
    ["device", 329, "0000000\x000000001\0"],
    ["type", 156, "1"],
    ["type", 156, "5"],
    ["type", 156, "\0"],
    ["type", 156, "g"],
    ["type", 156, "L"],
    ["path", 0, "\0".repeat(100)],
    // Up to the end of the field, behind a NUL.
    ["path", 0, `vm1/private\0${"x".repeat(88)}`],
  ])("%s: byte %d is not %j", (field, at, text) => {
    assert.strictEqual(detail([...heads, odd((h) => h.write(text, at, "latin1"))]), says(field));
  });
  it("may lack what versions of GNU tar leave out: the devices, the owner's names", () => {
    assert.strictEqual(behind(odd((h) => h.fill(0, 329, 345))), "whole");
    assert.strictEqual(behind(odd((h) => h.fill(0, 265, 329))), "whole");
    assert.strictEqual(behind(odd((h) => h.write("77777777777\0", 136, "latin1"))), "whole");
  });
  it("the first one says whether it is an archive at all", () => {
    const bent = tarHeader("backup-header", "0", 5, (h) => (h[345] = 1));
    assert.strictEqual(found([bent]), "not-an-archive");
    assert.strictEqual(detail([bent]), "this is no Qubes backup");
    assert.strictEqual(
      found([tarHeader("backup-header", "x", 512), Buffer.alloc(512)]),
      "tar-header",
    );
    const pax = Buffer.alloc(512);
    pax.write("30 mtime=1795403064.971171142\n");
    // Behind an extended header something has begun that is one.
    assert.strictEqual(found([tarHeader("backup-header", "x", 30), pax, bent]), "tar-header");
  });
});

describe("an extended header", () => {
  const says = (text: string | Buffer) => behind(odd(plain, text));
  /** A record with its own length in front. */
  const record = (text: string) => `${`${text} \n`.length + 2} ${text}\n`;
  it("is there once, or not at all", () => {
    const x = tarHeader("./PaxHeaders/x", "x", 30);
    const text = padTo(Buffer.from("30 mtime=1795403064.971171142\n"), 512);
    const member = (count: number) =>
      padTo(
        Buffer.concat([
          ...Array.from({ length: count }, () => [x, text]).flat(),
          tarHeader("vm1/private.img.000.enc", "0", 200),
          padTo(sealed(200), 512),
          Buffer.alloc(1024),
        ]),
        10_240,
      );
    assert.strictEqual(behind(member(0)), "whole");
    assert.strictEqual(behind(member(1)), "whole");
    assert.strictEqual(behind(member(2)), "tar-header");
    assert.include(detail([...heads, member(2)]), "two extended headers");
    assert.strictEqual(behind(x, text), "truncated");
  });
  it("has 1 to 4,096 bytes", () => {
    const begun = (size: number) => new Walk().push(tarHeader("x", "x", size))?.fault;
    assert.strictEqual(begun(0), "tar-header");
    assert.isUndefined(begun(1));
    assert.isUndefined(begun(4096));
    assert.strictEqual(begun(4097), "tar-header");
    const exact = `${record("mtime=1").repeat(370)}${record("mtime=1234567890.12345")}`;
    assert.lengthOf(exact, 4096);
    assert.strictEqual(says(exact), "whole");
  });
  it.each([
    "mtime=1",
    "atime=1",
    "ctime=1",
    "mtime=-1",
    "mtime=0.5",
    "mtime=1.123456789",
    "mtime=123456789012345678",
    "mtime=-123456789012345678.123456789",
  ])("may say %s", (text) => {
    assert.strictEqual(says(record(text)), "whole");
    assert.strictEqual(says(record(text) + record("mtime=1")), "whole");
  });
  it.each([
    "btime=1",
    "time=1",
    "xmtime=1",
    "mtime=",
    "mtime=-",
    "mtime=+1",
    "mtime=--1",
    "mtime=.5",
    "mtime=1.",
    "mtime=1.1234567890",
    "mtime=1x",
    "mtime=1\n",
    "mtime=1234567890123456789",
    "mtime=99999999999999999999",
    "path=vm2/private.img.000.enc",
    "size=1",
    "GNU.sparse.major=1",
  ])("may not say %j", (text) => {
    assert.strictEqual(says(record(text)), "tar-header");
    assert.strictEqual(says(record("mtime=1") + record(text)), "tar-header");
  });
  it("its lengths are true, and behind them is nothing", () => {
    for (const text of [
      "10 mtime=1\n",
      "12 mtime=1\n",
      "011 mtime=1\n",
      " 11 mtime=1\n",
      "11  mtime=1\n",
      "mtime=1\n",
      "11 mtime=1",
      "11 mtime=1\n\n",
      "11 mtime=1\n\0",
      "11 mtime=1\n11 mtime=1",
      // As long as the record behind it, and so easily taken for it.
      "11 path=ab\n11 mtime=1\n",
    ]) {
      assert.strictEqual(says(text), "tar-header", JSON.stringify(text));
    }
    for (const at of [1, 256, 501]) {
      const dirty = padTo(Buffer.from("11 mtime=1\n"), 512);
      const member = Buffer.from(odd(plain, "11 mtime=1\n"));
      assert.deepStrictEqual(member.subarray(512, 1024), dirty);
      member[512 + 10 + at] = 1;
      assert.strictEqual(behind(member), "tar-header", String(at));
    }
  });
});

describe("backup-header", () => {
  const header = (text: string) => found([...headed(text), one]);
  const swapped = (from: string, to: string) => header(headerText.replace(from, to));
  it("is a list of keys and values, the version first", () => {
    assert.strictEqual(header(headerText), "whole");
    const [first, ...rest] = headerText.split("\n");
    assert.strictEqual(header([rest[0], first, ...rest.slice(1)].join("\n")), "backup-header");
    assert.strictEqual(header(headerText.slice(0, -1)), "backup-header");
    assert.strictEqual(header(`${headerText}junk`), "backup-header");
    assert.strictEqual(header(`${headerText}\n`), "backup-header");
    assert.strictEqual(header(`${headerText}junk\n`), "backup-header");
    assert.strictEqual(header(`${headerText}=\n`), "backup-header");
    for (const line of headerText.trimEnd().split("\n")) {
      assert.strictEqual(header(`${headerText}${line}\n`), "backup-header", `${line} twice`);
      const less = header(headerText.replace(`${line}\n`, ""));
      assert.strictEqual(less, line.startsWith("compression-filter") ? "whole" : "backup-header");
    }
  });
  it.each([
    ["compressed=True", "compressed=False", true],
    ["compressed=True", "compressed=", false],
    ["compressed=True", "compressed=true", false],
    ["encrypted=True", "encrypted=False", false],
    ["version=4", "version=40", false],
    ["hmac-algorithm=scrypt", "hmac-algorithm=", false],
    ["hmac-algorithm=scrypt", "hmac-algorithm=scrypt\ncrypto-algorithm=scrypt", true],
    ["hmac-algorithm=scrypt", "hmac-algorithm=scrypt\ncrypto-algorithm=", false],
    ["hmac-algorithm=scrypt", "hmac-algorithm=scrypt\ncrypto-algorithm=aes", false],
    ["hmac-algorithm=scrypt", "hmac-algorithm=scrypt\nother=1", false],
    [id, "backup-id=20261123T030424-1\n", true],
    [id, "backup-id=20261123T030424-1234567890\n", true],
    [id, "backup-id=20261123T030424-\n", false],
    [id, "backup-id=20261123T030424-12345678901\n", false],
    [id, "backup-id=x20261123T030424-1\n", false],
    [id, "backup-id=20261123T030424-1x\n", false],
    [id, "backup-id=2026112T030424-1\n", false],
    [id, "backup-id=202611233T030424-1\n", false],
    [id, "backup-id=20261123T03042-1\n", false],
    [id, "backup-id=20261123T0304244-1\n", false],
  ] as const)("%j as %j: %s", (from, to, good) => {
    assert.strictEqual(swapped(from, to), good ? "whole" : "backup-header");
  });
  it("its filter is a command's name of 64 characters at most", () => {
    const filter = (name: string) => swapped("=gzip", `=${name}`);
    assert.strictEqual(filter("f".repeat(64)), "whole");
    assert.strictEqual(filter("f".repeat(65)), "backup-header");
    assert.strictEqual(filter(""), "backup-header");
    for (let code = 1; code < 256; code++) {
      const sign = String.fromCharCode(code);
      const good = /[A-Za-z0-9._+-]/.test(sign);
      assert.strictEqual(filter(sign), good ? "whole" : "backup-header", JSON.stringify(sign));
      assert.strictEqual(filter(`a${sign}b`), good ? "whole" : "backup-header");
    }
  });
});

describe("what is skipped", () => {
  const begun = () => {
    const w = new Walk(small);
    w.push(Buffer.concat([...heads, one.subarray(0, 1536 + 64)]));
    return w;
  };
  it("is the data behind its first bytes, no more", () => {
    const fresh = new Walk(small);
    assert.strictEqual(fresh.skippable, 0);
    assert.throws(() => fresh.skip(1), RangeError);
    const w = begun();
    assert.strictEqual(w.skippable, 136);
    assert.throws(() => w.skip(137), RangeError);
    w.skip(100);
    assert.strictEqual(w.skippable, 36);
    w.skip(36);
    assert.strictEqual(w.skippable, 0);
    assert.strictEqual(w.offset, Buffer.concat(heads).length + 1536 + 200);
    assert.isUndefined(w.push(one.subarray(1536 + 200)));
    assert.deepStrictEqual(w.finish(), walk([...heads, one]));
  });
  it("a fault is not forgotten where everything before it was well", () => {
    const w = new Walk(small);
    const fault = w.push(Buffer.concat([...heads, one, tarHeader("vm1/x", "0", 200)]));
    assert.strictEqual(fault?.fault, "unknown-member");
    assert.strictEqual(w.finish(), fault);
  });
  it("is nothing after a fault, which stays the one that it was", () => {
    const w = begun();
    const cut = w.finish();
    assert.isTrue(cut instanceof ArchiveFault && cut.fault === "truncated");
    assert.strictEqual(w.skippable, 0);
    const { offset } = w;
    assert.strictEqual(w.push(Buffer.alloc(10)), cut);
    assert.strictEqual(w.finish(), cut);
    assert.strictEqual(w.offset, offset);
  });
});

describe("member by member", () => {
  const parts = [...heads, one, chunk("vm1/root.img.000.enc", 700)];
  const all = Buffer.concat(parts);
  it("takes no byte behind the end of the member under way", () => {
    for (const step of [1, 511, 512, 700, 10_240, all.length]) {
      const w = new Walk(small);
      const ends: Array<number> = [];
      assert.isFalse(w.atMemberEnd);
      for (let at = 0; at < all.length;) {
        const took = w.take(all.subarray(at, at + step));
        at += took;
        assert.isAbove(took, 0);
        assert.strictEqual(w.offset, at);
        if (w.atMemberEnd) ends.push(at);
      }
      assert.deepStrictEqual(
        ends,
        parts.map((_, i) => Buffer.concat(parts.slice(0, i + 1)).length),
      );
      assert.deepStrictEqual(w.finish(), w.members);
      assert.deepStrictEqual(w.members, walk(parts) as typeof w.members);
    }
  });
  it("says where the member ends from its tar header on, and has it among the members", () => {
    const w = new Walk(small);
    w.push(Buffer.concat(heads));
    const start = w.offset;
    assert.isUndefined(w.end);
    w.take(one.subarray(0, 1535));
    assert.isUndefined(w.end);
    assert.lengthOf(w.members, 3);
    w.take(one.subarray(1535, 1536));
    assert.strictEqual(w.end, start + one.length);
    assert.lengthOf(w.members, 4);
    w.take(one.subarray(1536, -1));
    assert.strictEqual(w.end, start + one.length);
    assert.isFalse(w.atMemberEnd);
    w.take(one.subarray(-1));
    assert.isUndefined(w.end);
    assert.isTrue(w.atMemberEnd);
  });
  it("takes nothing more once there is a fault, whichever walk found it", () => {
    for (const bad of [one, chunk("vm1/root.img.001.enc"), odd((h) => h.write("9", 156))]) {
      const w = new Walk(small);
      w.push(Buffer.concat([...heads, one]));
      assert.isUndefined(w.fault);
      w.take(bad);
      assert.isDefined(w.fault);
      assert.isFalse(w.atMemberEnd);
      assert.strictEqual(w.take(one), 0);
      assert.lengthOf(w.members, 4);
      assert.strictEqual(w.push(one), w.fault);
    }
  });
  it("a list says at once that the file before has lost its tail", () => {
    const list = new ListWalk({ fullChunk: 10_240 });
    const next = (path: string, size = 128) => list.next({ path, size, length: 20_480 });
    for (const head of ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"]) next(head);
    assert.isUndefined(next("vm1/private.img.000.enc", 10_240));
    assert.strictEqual(next("vm1/root.img.000.enc")?.fault, "lost-tail");
  });
  it("a list has one fault, the first, whatever comes behind it", () => {
    for (const format of ["pack", "slots"] as const) {
      const list = new ListWalk({ format });
      const bad = list.next({ path: "vm1/x", size: 128, length: 1024 });
      assert.isDefined(bad);
      for (const path of ["vm1/root.img.000.enc", "backup-header"]) {
        assert.strictEqual(list.next({ path, size: 128, length: 1024 }), bad);
      }
      assert.strictEqual(list.finish(), bad);
    }
  });
  it("a walk of members alone looks at each by itself", () => {
    const alone = (...members: ReadonlyArray<Buffer>) => {
      const w = new MemberWalk(small);
      for (const bytes of members)
        for (let at = 0; at < bytes.length && !w.fault;) at += w.take(bytes.subarray(at));
      return w.finish()?.fault;
    };
    assert.isUndefined(alone());
    assert.isUndefined(alone(one, one, xml, heads[0]!, chunk("vm7/root.img.003.enc", full)));
    assert.strictEqual(alone(one, one.subarray(0, -1)), "truncated");
    assert.strictEqual(alone(slotOf("vm1/root.img.000.enc", sealed(200))), "truncated");
    assert.strictEqual(alone(chunk("vm1/volatile.img.000.enc")), "unknown-member");
    assert.strictEqual(alone(chunk("vm1/root.img.000.enc", full + 1)), "long-chunk");
    assert.strictEqual(alone(memberOf("qubes.xml.000.enc", Buffer.alloc(127))), "short-chunk");
    assert.strictEqual(alone(memberOf("backup-header", Buffer.alloc(4097))), "backup-header");
    const w = new MemberWalk(small);
    const bad = chunk("vm1/x");
    w.take(one);
    w.take(bad);
    assert.strictEqual(w.fault?.at, one.length);
    assert.strictEqual(w.fault?.detail, "vm1/x is not a member that a Qubes backup has");
  });
});

it("what only lists files names a path as its compressor, and no other archive does", () => {
  const by = (filter: string) =>
    headed(headerText.replace("filter=gzip", `filter=${filter}`)).concat(one);
  const list = (filter: string) => found(by(filter), { listing: true });
  const tap = "/home/user/.local/state/qbackup/run/tap";
  assert.strictEqual(list(tap), "whole");
  assert.strictEqual(found(by(tap)), "backup-header");
  assert.strictEqual(found(by(tap), { listing: false }), "backup-header");
  for (const [filter, fault] of [
    ["gzip", "backup-header"],
    ["/", "backup-header"],
    ["/x", "whole"],
    ["/a_b-c.d/0", "whole"],
    ["/AZ/z9", "whole"],
    ["x/x", "backup-header"],
    ["/x y", "backup-header"],
    ["/x;y", "backup-header"],
    [`/${"x".repeat(200)}`, "whole"],
    [`/${"x".repeat(201)}`, "backup-header"],
  ] as const) {
    assert.strictEqual(list(filter), fault, filter);
  }
  const more = headed(`${headerText.replace("filter=gzip", `filter=${tap}`)}more=1\n`);
  assert.strictEqual(found([...more, one], { listing: true }), "backup-header");
});

it("what only lists files may have chunks that a killed scrypt wrote nothing of, and no other archive", () => {
  const tap = "/home/user/.local/state/qbackup/run/tap";
  const by = headed(headerText.replace("filter=gzip", `filter=${tap}`));
  for (const size of [0, 60, 127]) {
    const cut = memberOf("vm1/private.img.000.enc", Buffer.alloc(size));
    assert.strictEqual(found([...by, cut], { listing: true }), "whole", String(size));
    assert.strictEqual(found([...headed(headerText), cut]), "short-chunk", String(size));
  }
  const heads = by.slice(0, 2);
  const none = (path: string) => memberOf(path, Buffer.alloc(0));
  const xml = none("qubes.xml.000.enc");
  assert.strictEqual(found([...heads, xml, one], { listing: true }), "whole");
  const hmac = [by[0]!, none("backup-header.hmac"), by[2]!, one];
  assert.strictEqual(found(hmac, { listing: true }), "short-chunk");
  const other = memberOf("backup-header.hmac", Buffer.alloc(200, 1));
  assert.strictEqual(found([by[0]!, other, by[2]!, one], { listing: true }), "scrypt-header");
});

describe("slots", () => {
  const seal = `qbackup-seal=${"ab".repeat(32)}\nqbackup-run=58\n`;
  const slot = (name: string, bytes = 200) => slotOf(name, sealed(bytes));
  const slotHeads = (text: string) => [
    slotOf("backup-header", Buffer.from(text, "latin1")),
    slot("backup-header.hmac"),
    slot("qubes.xml.000.enc"),
  ];
  const begin = slotHeads(headerText + seal);
  const first = slot("vm1/private.img.000.enc");
  const second = slot("vm1/private.img.001.enc", full);
  const end = (parts: ReadonlyArray<Buffer>) => {
    const bytes = Buffer.concat(parts).length;
    return Buffer.alloc(Math.ceil((bytes + 1024) / 10_240) * 10_240 - bytes);
  };
  const slots = { format: "slots" } as const;
  const whole = (parts: ReadonlyArray<Buffer>, options: WalkOptions = {}) =>
    found([...parts, end(parts)], { ...slots, ...options });
  const after = (...parts: ReadonlyArray<Buffer>) => whole([...begin, ...parts]);

  it("are padded to 512 bytes, with zeros to a whole record once at the end", () => {
    const parts = [...begin, first, second];
    const zeros = end(parts);
    const result = walk([...parts, zeros], slots);
    assert.deepStrictEqual(
      (result as ReadonlyArray<{ length: number }>).map(({ length }) => length),
      parts.map(({ length }) => length),
    );
    const all = Buffer.concat([...parts, zeros]);
    for (const step of [1, 512, 10_240]) {
      const w = new Walk({ ...small, ...slots });
      for (let at = 0; at < all.length; at += step) w.push(all.subarray(at, at + step));
      assert.deepStrictEqual(w.finish(), result);
      assert.strictEqual(w.format, "slots");
    }
    assert.strictEqual(all.length, archiveSize("slots", Buffer.concat(parts).length));
    const bare = Buffer.concat(parts);
    const cut = new Walk({ ...small, ...slots });
    cut.push(bare);
    assert.isTrue(cut.atMemberEnd);
    cut.finish();
    assert.isFalse(cut.atMemberEnd);
    for (const [bytes, fault] of [
      [bare, "truncated"],
      [all.subarray(0, -1), "truncated"],
      [Buffer.concat([all, Buffer.alloc(1)]), "padding"],
      [Buffer.concat([all, Buffer.alloc(10_240)]), "padding"],
      [Buffer.concat([all.subarray(0, -1), Buffer.from("x")]), "padding"],
      [Buffer.concat([bare, Buffer.alloc(512), first]), "padding"],
      [zeros, "not-an-archive"],
      [Buffer.alloc(0), "not-an-archive"],
    ] as const) {
      assert.strictEqual(found([bytes], slots), fault);
    }
    const alone = new MemberWalk({ ...small, ...slots });
    const more = Buffer.concat([all, Buffer.alloc(1)]);
    for (let at = 0; at < more.length && !alone.fault;) at += alone.take(more.subarray(at));
    assert.strictEqual(alone.fault?.fault, "padding");
    assert.strictEqual(alone.finish(), alone.fault);
    for (const [bytes, where] of [
      [Buffer.concat([all, Buffer.alloc(1)]), "behind the last member"],
      [Buffer.concat([...begin, first.subarray(0, -1), Buffer.from("x")]), "behind a member"],
    ] as const) {
      const bad = walk([bytes], slots);
      assert.include(bad instanceof ArchiveFault && bad.detail, where);
    }
    // A member of the other format is told by its header, not by what a header in its data would be.
    const other = walk([bare, one], slots);
    assert.include(other instanceof ArchiveFault && other.detail, "says more than slots have");
  });
  it("have a size as a plain file", () => {
    for (const [bytes, size] of [
      [0, 10_240],
      [9216, 10_240],
      [9217, 20_480],
      [19_456, 20_480],
    ] as const) {
      assert.strictEqual(archiveSize("slots", bytes), size);
      assert.strictEqual(archiveSize("qvm-backup", bytes), bytes);
    }
  });
  it("need not be full, may be full at the end, and may be of the full length of a block", () => {
    assert.strictEqual(after(first, second), "whole");
    assert.strictEqual(after(first, second, slot("vm1/private.img.002.enc", 512)), "whole");
    assert.strictEqual(after(slot("vm1/private.img.000.enc", full + 1)), "long-chunk");
  });
  it("are contiguous from 000, each file once, the heads first and in order", () => {
    assert.strictEqual(after(second), "gap");
    assert.strictEqual(after(first, slot("vm1/private.img.002.enc")), "gap");
    assert.strictEqual(after(first, first), "duplicate");
    assert.strictEqual(after(first, slot("vm2/root.img.000.enc"), second), "duplicate");
    assert.strictEqual(after(first, begin[2]!), "duplicate");
    assert.strictEqual(after(slot("dom0-home/user.000.enc"), first), "order");
    assert.strictEqual(after(slot("vm1/volatile.img.000.enc")), "unknown-member");
    assert.strictEqual(after(), "missing-qube");
    assert.strictEqual(whole([begin[0]!, begin[2]!, begin[1]!, first]), "order");
    assert.strictEqual(whole([begin[1]!, first]), "not-an-archive");
    assert.strictEqual(whole(begin.slice(0, 2)), "truncated");
    assert.strictEqual(whole([...begin, first], { expected: new Set(["vm2"]) }), "unexpected-qube");
    assert.strictEqual(
      whole([...begin, first], { expected: new Set(["vm1", "vm2"]) }),
      "missing-qube",
    );
  });
  it("have a header that says nothing of its day or machine", () => {
    const bent = (change: (header: Buffer) => void) => {
      const bytes = Buffer.from(first);
      change(bytes);
      sumUp(bytes.subarray(0, 512));
      return after(bytes);
    };
    assert.strictEqual(
      bent(() => {}),
      "whole",
    );
    assert.strictEqual(
      bent((h) => h.write("00000000001\0", 136, "latin1")),
      "tar-header",
    );
    assert.strictEqual(
      bent((h) => h.write("root", 265, "latin1")),
      "tar-header",
    );
    assert.strictEqual(
      bent((h) => h.write("root", 297, "latin1")),
      "tar-header",
    );
    assert.strictEqual(
      bent((h) => h.write("0000000\x000000000\0", 329, "latin1")),
      "tar-header",
    );
    assert.strictEqual(after(one), "tar-header");
    const times = "20 mtime=1795403064\n";
    const extended = tarHeader("./PaxHeaders/x", "x", times.length, (h) =>
      h.write("00000000000\0", 136, "latin1"),
    );
    const pax = padTo(Buffer.from(times), 512);
    assert.strictEqual(after(Buffer.concat([extended, pax, first])), "tar-header");
    const dirty = Buffer.from(first);
    dirty[dirty.length - 1] = 1;
    assert.strictEqual(after(dirty), "padding");
  });
  it("have a seal and a run in backup-header, where qvm-backup has none", () => {
    const header = (text: string) => whole([...slotHeads(text), first]);
    assert.strictEqual(header(headerText + seal), "whole");
    assert.strictEqual(header(headerText), "backup-header");
    for (const [from, to] of [
      ["ab", "AB"],
      ["abab", "ab"],
      ["run=58", "run=058"],
      ["run=58", "run="],
      ["run=58", "run=9007199254740992"],
      ["run=", "runs="],
      ["run=58", "run=58\nqbackup-more=1"],
    ] as const) {
      assert.strictEqual(header(headerText + seal.replace(from, to)), "backup-header", to);
    }
    assert.strictEqual(found([...headed(headerText + seal), one]), "backup-header");
  });
  it("are told by what their header seals, once it was walked", () => {
    const sealedBy = (bytes: Buffer, format: "qvm-backup" | "slots") => {
      const w = new MemberWalk({ ...small, format });
      assert.isUndefined(w.seal);
      w.take(bytes);
      assert.isUndefined(w.fault);
      return w.seal;
    };
    const [head] = slotHeads(headerText + seal);
    assert.deepStrictEqual(sealedBy(head!, "slots"), { root: "ab".repeat(32), run: 58 });
    assert.isUndefined(sealedBy(head!.subarray(0, 512), "slots"));
    assert.isUndefined(sealedBy(headed(headerText)[0]!, "qvm-backup"));
  });

  it("a list has members of its own format, by their lengths", () => {
    const begun = (format: "qvm-backup" | "slots" | "pack", size: number, length: number) =>
      new ListWalk({ format }).next({ path: "backup-header", size, length })?.fault;
    for (const [format, size, length, fault] of [
      ["slots", 1, 1024, undefined],
      ["slots", 512, 1024, undefined],
      ["slots", 513, 1536, undefined],
      ["slots", 513, 1024, "padding"],
      ["slots", 512, 1536, "padding"],
      ["slots", 1, 10_240, "padding"],
      ["qvm-backup", 1, 10_240, undefined],
      ["qvm-backup", 1, 20_480, undefined],
      ["qvm-backup", 1, 10_752, "padding"],
      ["qvm-backup", 1, 1024, "padding"],
      ["pack", 1, 1024, undefined],
      ["pack", 1, 10_240, undefined],
    ] as const) {
      assert.strictEqual(begun(format, size, length), fault, `${format} ${size} ${length}`);
    }
    // Header, data and two empty blocks are 10,240 bytes together, or one block too many.
    const chunked = (size: number) => {
      const list = new ListWalk();
      for (const path of ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"]) {
        list.next({ path, size: 128, length: 10_240 });
      }
      return list.next({ path: "vm1/root.img.000.enc", size, length: 10_240 })?.fault;
    };
    assert.isUndefined(chunked(8704));
    assert.strictEqual(chunked(8705), "padding");
  });

  describe("a pack", () => {
    const pack = (...parts: ReadonlyArray<Buffer>) => found(parts, { format: "pack" });
    it("has members in any order, twice too, of the format that its first one has", () => {
      assert.strictEqual(pack(), "whole");
      assert.strictEqual(pack(second, first, first, begin[1]!, begin[0]!), "whole");
      assert.strictEqual(pack(one, hmac, one, chunk("vm1/root.img.003.enc", full)), "whole");
      for (const [parts, format] of [
        [[], undefined],
        [[first], "slots"],
        [[one], "qvm-backup"],
        [[one.subarray(0, 512)], "qvm-backup"],
        [[one.subarray(1024)], "qvm-backup"],
      ] as const) {
        const w = new Walk({ ...small, format: "pack" });
        w.push(Buffer.concat(parts));
        assert.strictEqual(w.format, format);
      }
      assert.strictEqual(pack(first, one), "tar-header");
      assert.strictEqual(pack(one, first), "truncated");
    });
    it("has nothing behind its last member, and no part of one", () => {
      assert.strictEqual(pack(first, Buffer.alloc(512)), "tar-header");
      assert.strictEqual(pack(Buffer.alloc(512)), "not-an-archive");
      assert.strictEqual(pack(first.subarray(0, -1)), "truncated");
    });
    it("is of qvm-backup's format where an extended header stands first", () => {
      const times = odd((header) => {
        header.write("00000000000\0", 136);
        header.fill(0, 265, 345);
      });
      const w = new Walk({ ...small, format: "pack" });
      w.push(times);
      assert.strictEqual(w.format, "qvm-backup");
    });
    it("has members by the same rules", () => {
      assert.strictEqual(pack(slot("vm1/x.000.enc")), "unknown-member");
      assert.strictEqual(pack(slot("vm1/root.img.000.enc", full + 1)), "long-chunk");
      assert.strictEqual(
        pack(slotOf("vm1/root.img.000.enc", Buffer.alloc(200, 1))),
        "scrypt-header",
      );
      assert.strictEqual(pack(slotHeads(headerText)[0]!), "backup-header");
      assert.strictEqual(pack(heads[0]!), "whole");
    });
    it("has so many members at most", () => {
      const list = new ListWalk({ format: "pack" });
      const member = { path: "vm1/root.img.000.enc", size: 128, length: 1024 };
      for (let n = 0; n < memberLimit; n++) list.next(member);
      assert.isUndefined(list.fault);
      assert.strictEqual(list.next(member)?.fault, "too-many-members");
      assert.strictEqual(list.finish(), list.fault);
    });
  });
});

/** The fault of a member more than there may be; their chunks' numbers go to seven digits. */
const crowded = (): string | undefined => {
  const list = new ListWalk({ format: "slots" });
  const next = (path: string) => list.next({ path, size: 128, length: 1024 })?.fault;
  for (const head of ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"]) next(head);
  for (let n = 0; n < memberLimit - 3; n++) {
    const fault = next(`vm1/root.img.${`${n}`.padStart(3, "0")}.enc`);
    if (fault !== undefined) return `${n}: ${fault}`;
  }
  return next("vm2/root.img.000.enc");
};

it("an archive has so many members at most, all of them chunks of one file if need be", () =>
  assert.strictEqual(crowded(), "too-many-members"));

it("GNU tar takes every header that the walk takes", () => {
  const times = ["0", "-1", "1.5", "123456789012345678.123456789", "-123456789012345678"];
  const records = ["mtime", "atime", "ctime"].flatMap((of) =>
    times.map((time) => `${`${of}=${time} \n`.length + 2} ${of}=${time}\n`),
  );
  // Every byte of the headers, changed to something that may have a meaning there.
  const bent = Array.from({ length: 1536 }, (_, at) =>
    [..."\0 -.019x\x80\xff"].map((sign) => {
      const bytes = Buffer.from(one);
      bytes[at] = sign.charCodeAt(0);
      sumUp(bytes.subarray(0, 512));
      sumUp(bytes.subarray(1024, 1536));
      return bytes;
    }),
  ).flat();
  const taken = [...records.map((text) => odd(plain, text)), ...bent].filter(
    (member) => behind(member) === "whole",
  );
  assert.isAbove(taken.length, 300);
  const into = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-walk-"));
  try {
    const input = Buffer.concat([...heads, ...taken]);
    execFileSync("tar", ["-ixf", "-", "-C", into], { input, stdio: ["pipe", "ignore", "ignore"] });
    assert.sameMembers(
      fs.readdirSync(into).filter((name) => !/^(vm\d*|dom0-home)$/.test(name)),
      ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"],
    );
  } finally {
    fs.rmSync(into, { recursive: true });
  }
});
