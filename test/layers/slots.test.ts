/**
 * Slots against the real programs: what GNU tar writes of sparse files is read, and what is made of that is
 * opened by scrypt(1), gzip(1) and GNU tar as qvm-backup-restore calls them.
 */
import { assert, describe, it } from "@effect/vitest";
import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes, scryptSync } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach } from "vitest";
import { InnerFault, innerReader } from "#src/archive/inner";
import { keysSize, memberPassphrase, saltSize, sealedMember, slotCost } from "#src/archive/seal";
import { volumeCutter } from "#src/archive/slots";
import { padding } from "#src/archive/ustar";
import { slotsOf, tarwriter } from "#test/support/inner";
import { noScrypt, unless } from "#test/support/unless";

const name = "vm7/private.img";
/** Of real ones there would be a gigabyte. */
const slot = 65_536;
let at = "";
beforeEach(() => {
  at = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-slots-"));
});
afterEach(() => fs.rmSync(at, { recursive: true, force: true }));

interface Written {
  readonly offset: number;
  readonly bytes: Buffer;
}
/** A file of `size` bytes, with holes where nothing is written. */
const sparse = (size: number, written: ReadonlyArray<Written>) => {
  const file = path.join(at, "private.img");
  const fd = fs.openSync(file, "w");
  fs.ftruncateSync(fd, size);
  for (const { bytes, offset } of written) fs.writeSync(fd, bytes, 0, bytes.length, offset);
  fs.closeSync(fd);
  return file;
};
/** As qubesd calls it. */
const tarOf = (file: string) =>
  execFileSync(
    "tar",
    ["-Pc", "--sparse", "-C", path.dirname(file), `--xform=s:^private.img:${name}:`, "private.img"],
    { maxBuffer: 2 ** 30 },
  );

/** The chunks that are made of a stream, plain, by their number. */
const chunksOf = (stream: Buffer) => {
  const reader = innerReader(slot);
  reader.push(stream);
  reader.end();
  const slots = new Map<number, Buffer>();
  const chunks = new Map<number, Buffer>();
  let cutter: ReturnType<typeof volumeCutter> | undefined;
  for (let step = reader.next(); step !== undefined; step = reader.next()) {
    if (step instanceof InnerFault) throw step;
    if (step.type === "file") cutter = volumeCutter(step.name, step.size!, [], slot);
    else if (step.type === "zeros") cutter!.zeros(step.count);
    else if (step.type === "slot") {
      const bytes = Buffer.from(step.bytes);
      slots.set(step.index, bytes);
      const whole = Buffer.concat([bytes, Buffer.alloc(padding(bytes.length))]);
      for (const { chunk, data } of cutter!.data(whole)) {
        chunks.set(chunk, data.length > 0 ? gzipSync(whole, { level: 1 }) : Buffer.alloc(0));
      }
    } else {
      for (const { chunk } of cutter!.end()) chunks.set(chunk, Buffer.alloc(0));
      chunks.set(0, gzipSync(cutter!.head()));
    }
  }
  return { slots, chunks };
};

const some = (bytes: number) => randomBytes(bytes);
const images: ReadonlyArray<readonly [string, number, () => ReadonlyArray<Written>]> = [
  ["nothing at all", 0, () => []],
  ["zeros alone", 40 * slot, () => []],
  ["an odd size", 3 * slot + 700, () => [{ offset: 3 * slot + 5, bytes: some(695) }]],
  ["data in all of it", 2 * slot, () => [{ offset: 0, bytes: some(2 * slot) }]],
  [
    "data here and there, and zeros that take room",
    60 * slot,
    () => [
      { offset: 4096, bytes: some(10_000) },
      { offset: 5 * slot - 8192, bytes: some(20_000) },
      { offset: 8 * slot, bytes: Buffer.alloc(slot) },
      ...Array.from({ length: 40 }, (_, i) => ({
        offset: 40 * slot + i * 16_384,
        bytes: some(4096),
      })),
    ],
  ],
];

describe("a volume", () => {
  it.each(images)("of %s comes back as it was", (_, size, written) => {
    const file = sparse(size, written());
    const content = fs.readFileSync(file);
    const { chunks, slots } = chunksOf(tarOf(file));
    assert.deepStrictEqual(slots, slotsOf(content, slot));
    assert.deepStrictEqual(chunksOf(tarwriter(name, content)).slots, slots);
    const order = [...chunks.keys()].sort((a, b) => a - b);
    assert.deepStrictEqual(order, [...order.keys()]);
    const inner = Buffer.concat(order.map((chunk) => chunks.get(chunk)!));
    const back = spawnSync("tar", ["-xvvO", "--use-compress-program=gzip", name], {
      input: inner,
      maxBuffer: 2 ** 30,
      env: { ...process.env, LC_ALL: "C" },
    });
    assert.strictEqual(back.status, 0, back.stderr.toString());
    assert.isTrue(back.stdout.equals(content));
    // The first line of a restore's tar says how large the volume is to be made.
    assert.match(back.stderr.toString(), new RegExp(`^-rw-r--r-- 0/0 +${size} [^\n]* ${name}\n$`));
  });
  it("of more than 8 GiB, nearly all of it holes, too", () => {
    const size = 9 * 2 ** 30;
    const end = some(5000);
    const file = sparse(size, [
      { offset: 0, bytes: some(512) },
      { offset: size - end.length, bytes: end },
    ]);
    const { chunks, slots } = chunksOf(tarOf(file));
    assert.deepStrictEqual([...slots.keys()], [0, size / slot - 1]);
    const order = [...chunks.keys()].sort((a, b) => a - b);
    fs.writeFileSync(
      path.join(at, "inner.gz"),
      Buffer.concat(order.map((chunk) => chunks.get(chunk)!)),
    );
    const said = execFileSync("tar", ["-xvvzf", "inner.gz"], { cwd: at, encoding: "utf8" });
    assert.include(said, ` ${size} `);
    const fd = fs.openSync(path.join(at, name), "r");
    const tail = Buffer.alloc(end.length);
    fs.readSync(fd, tail, 0, tail.length, size - tail.length);
    fs.closeSync(fd);
    assert.isTrue(tail.equals(end));
  });
});

it("a member opens with scrypt, by its passphrase alone", unless(noScrypt), () => {
  const plain = some(100_000);
  const member = `${name}.017.enc`;
  const passphrase = memberPassphrase("20261128T030000-7", member, Buffer.from("correct horse"));
  const salt = some(saltSize);
  const keys = scryptSync(passphrase, salt, keysSize, slotCost);
  const made = sealedMember(member, salt, keys, [plain]);
  const bytes = Buffer.concat([...made.pieces]);
  const open = (text: string) =>
    spawnSync("scrypt", ["dec", "--passphrase", "env:PASSPHRASE", "-"], {
      input: bytes.subarray(512, 512 + made.size),
      env: { ...process.env, PASSPHRASE: text },
    });
  assert.isTrue(open("20261128T030000-7!vm7/private.img.017!correct horse").stdout.equals(plain));
  assert.match(
    open("20261128T030000-7!vm7/private.img.018!correct horse").stderr.toString(),
    /Passphrase is incorrect/,
  );
});
