/**
 * The way back without Qubes and without qbackup, under any shell: one script, against the genuine
 * samples, and against a store and a server that are not this code.
 */
// @effect-diagnostics processEnv:off -- the script is run as a person would run it.
import { execFile, execFileSync, spawnSync } from "node:child_process";
import { afterAll, assert, beforeAll, describe, it } from "vitest";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as zlib from "node:zlib";
import { keysSize, saltSize, sealedMember, slotCost } from "#src/archive/seal";
import { ustar } from "#src/archive/ustar";
import { archiveOf, slotOf } from "#test/support/archive";
import { padTo } from "#test/support/tar";
import { linesOf, membersOf, rootOf, tableOf } from "#test/support/reference";
import { ontoFolder, storeMaker } from "#test/support/stores";
import { decrypted, unpacked } from "#test/standin/restore";
import { noScrypt, unless, without } from "#test/support/unless";

export const script = path.resolve("install/qbackup-recover");
const passphrase = "correct horse battery staple";
const sampleFile = (name: string) =>
  path.resolve(`test/fixtures/sample-${name}-lowcost.qubes-backup`);
/** The images of a sample, decrypted by node's own crypto. */
const imagesOf = (name: string): Map<string, Buffer> => {
  const members = membersOf(fs.readFileSync(sampleFile(name)));
  const dataOf = ({ bytes, size }: (typeof members)[number]) => {
    // A pax header may stand in front of the one of the data.
    const at = bytes.toString("latin1", 156, 157) === "x" ? 1536 : 512;
    return bytes.subarray(at, at + size);
  };
  const id = /^backup-id=(.*)$/m.exec(dataOf(members[0]!).toString())![1]!;
  const files = new Map<string, Array<Buffer>>();
  for (const member of members.slice(3)) {
    const origin = member.path.replace(/\.enc$/, "");
    const plain = decrypted(dataOf(member), `${id}!${origin}!${passphrase}`);
    assert.isDefined(plain);
    const file = origin.replace(/\.\d+$/, "");
    files.set(file, [...(files.get(file) ?? []), plain!]);
  }
  const images = new Map<string, Buffer>();
  for (const parts of files.values()) {
    for (const [inner, data] of unpacked(zlib.gunzipSync(Buffer.concat(parts))))
      images.set(inner, data);
  }
  return images;
};

/**
 * An `ssh` that answers from a store on disk, without a line of the server's code. LIE changes what it
 * says; it notes its process in `pids`.
 */
const fakeSsh = (store: string) => String.raw`#!${process.execPath}
const fs = require("fs");
const [wire, verb, word] = process.argv.at(-1).split(" ");
const lie = process.env.LIE || "";
const file = (name) => fs.readFileSync(${JSON.stringify(store)} + "/" + name);
fs.appendFileSync(${JSON.stringify(store)} + "/pids", verb + " " + process.pid + "\n");
const say = (text) => fs.writeSync(1, text);
const put = (bytes) => {
  const head = Buffer.alloc(4);
  head.writeUInt32BE(bytes.length);
  for (let all = Buffer.concat([head, bytes]), at = 0; at < all.length; ) at += fs.writeSync(1, all, at);
};
const wait = () => setInterval(() => {}, 1000);
const text = (bytes) => {
  say('{"type":"ready"}\n');
  for (let at = 0; at < bytes.length; at += 100) {
    if (lie === "cut-text" && at === 100) process.exit(4);
    put(bytes.subarray(at, at + 100));
  }
  say("\0\0\0\0");
  say('{"type":"end"}\n');
};
say('welcome\n\n{"type":"alive"}\n');
if (lie === "silent-" + verb) wait();
else if (lie === "endless-" + verb) for (;;) say("x".repeat(65536));
else if (lie === "lines-" + verb) for (;;) say("y\n".repeat(10000));
else if (lie === "refuse-" + verb) say('{"type":"error","code":"internal","message":"no \\u001b[2J"}\n');
else if (verb === "manifest") say(JSON.stringify({ type: "manifest", ...JSON.parse(file(word + ".manifest.json")) }) + "\n");
else if (verb === "recipe") text(file(".qbackup/recipes/" + JSON.parse(JSON.parse(file(word + ".manifest.json")).manifest).session));
else if (verb === "table") text(file(".qbackup/tables/" + word));
else {
  say('{"type":"ready"}\n');
  let seen = 0;
  require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
    const [session, member, first, count] = line.split(" ");
    if (count === undefined) return;
    const lengths = file(".qbackup/tables/" + session).toString().trim().split("\n").map((l) => +l.split(" ")[2]);
    const start = lengths.slice(0, +member).reduce((a, b) => a + b, 0);
    const bytes = file(".qbackup/packs/" + session).subarray(start, start + lengths[+member]);
    for (let block = +first; block < +first + +count; block++) {
      seen += 1;
      if (lie === "cut-" + seen) process.exit(4);
      if (lie === "mute-read") return wait();
      if (lie === "damaged-last" && seen === 8) return fs.writeSync(1, Buffer.alloc(4, 255)), say('{"type":"error","code":"damaged","message":"bad"}\n');
      if (lie === "damaged" && seen === 4) fs.writeSync(1, Buffer.alloc(4, 255)), say('{"type":"error","code":"damaged","message":"not what it was"}\n');
      let proofs = 0;
      for (let at = block, width = Math.ceil(bytes.length / 1048576); width > 1; at >>= 1, width = (width + 1) >> 1)
        if ((at ^ 1) < width) proofs += 1;
      if (seen === 3) fs.writeSync(1, Buffer.from([128, 0, 0, 0]));
      put(Buffer.concat([bytes.subarray(block * 1048576, (block + 1) * 1048576), Buffer.alloc(32 * proofs)]));
    }
  }).on("close", () => process.exit(0));
}
`;

const bent = (bytes: Buffer, at: number): Buffer => {
  const copy = Buffer.from(bytes);
  copy[at]! ^= 1;
  return copy;
};
const edited = (text: Buffer, from: RegExp, to: string): Buffer =>
  Buffer.from(text.toString("latin1").replace(from, to), "latin1");

/** `waits`: with the cases that mostly wait, for what is the same in every shell. */
export const recoverContract = (
  shell: readonly [string, ...ReadonlyArray<string>],
  waits: boolean,
): void => {
  describe(shell.join(" "), unless(without(shell[0])), () => {
    const [program, ...rest] = shell;
    let dir: string;
    beforeAll(() => {
      dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-recover-"));
      fs.writeFileSync(path.join(dir, "passphrase"), `${passphrase} \n`);
    });
    afterAll(() => fs.rmSync(dir, { recursive: true, force: true }));

    const recover = (
      args: ReadonlyArray<string>,
      file = path.join(dir, "passphrase"),
      programs = process.env["PATH"],
      more: { readonly [name: string]: string } = {},
    ) => {
      const ran = spawnSync(program, [...rest, script, ...args], {
        encoding: "utf8",
        timeout: 60_000,
        env: { PATH: programs, PASSPHRASE_FILE: file, TMPDIR: dir, ...more },
      });
      return { code: ran.status, stdout: ran.stdout, stderr: ran.stderr };
    };

    describe("extract", unless(noScrypt), () => {
      it.each([
        ["tiny", ["vm2", "vm3", "vm4"]],
        ["multichunk", ["vm2", "vm3"]],
      ] as const)("brings back the images of the genuine sample %s", (name, qubes) => {
        const file = sampleFile(name);
        const out = path.join(dir, name);
        const ran = recover(["extract", file, "all", out]);
        assert.strictEqual(ran.code, 0, ran.stderr);
        const images = imagesOf(name);
        assert.deepStrictEqual(
          [...images.keys()].sort(),
          qubes.map((qube) => `${qube}/private.img`),
        );
        for (const [inner, data] of images) {
          const got = path.join(out, inner);
          assert.isTrue(fs.readFileSync(got).equals(data), inner);
          // 4 MiB with next to nothing in it.
          assert.isBelow(fs.statSync(got).blocks * 512, data.length / 4, "the holes were filled");
        }
        assert.deepStrictEqual(fs.readdirSync(out).sort(), [...qubes]);
        assert.notInclude(ran.stdout + ran.stderr, passphrase);

        const one = path.join(dir, `${name}-one`);
        assert.strictEqual(recover(["extract", file, "mail", one]).code, 0);
        assert.deepStrictEqual(fs.readdirSync(one), ["vm3"]);
        const listed = recover(["list", file]);
        assert.match(listed.stdout, /^vm2\/ +work +\d+ bytes in \d chunks$/m);
        const checked = recover(["check", file], "/nonexistent");
        assert.strictEqual(checked.code, 0, checked.stderr);
        assert.match(
          checked.stdout,
          /^ +60459  vm2\/private\.img\.000\.enc$|vm2\/private\.img\.002/m,
        );
      });

      it.each([["-h"], ["--help"]])("%s: what there is, as data", (flag) => {
        const { code, stderr, stdout } = recover([flag]);
        assert.deepStrictEqual([code, stderr], [0, ""]);
        for (const word of ["fetch ACCOUNT@HOST NAME FILE", "fetch STORE NAME", "PASSPHRASE_FILE"])
          assert.include(stdout, word);
        assert.notMatch(stdout, /^#/m);
        // The rest of the file is no text for people.
        assert.notInclude(stdout, "umask");
        assert.strictEqual(recover([]).code, 2);
      });
      it("takes of a passphrase what qvm-backup takes", () => {
        const good = sampleFile("tiny");
        const file = path.join(dir, "ended");
        const ends = [
          "",
          " ",
          "\t\v\f",
          "\x1c\x1f",
          "\x85",
          "\u00a0 \u3000",
          "\u1680\u2000\u2007\u2008\u200a",
        ];
        for (const end of [
          ...ends,
          "\u2028\u2029\u202f\u205f",
          "\r",
          "\r\n",
          "\nmore",
          "\rmore\n",
        ]) {
          fs.writeFileSync(file, `${passphrase}${end}`);
          const ran = recover(["list", good], file);
          assert.strictEqual(ran.code, 0, `${JSON.stringify(end)}: ${ran.stderr}`);
        }
        for (const other of [`\ufeff${passphrase}`, ` ${passphrase}`, `${passphrase}\u200b`]) {
          fs.writeFileSync(file, other);
          assert.strictEqual(recover(["list", good], file).code, 1, JSON.stringify(other));
        }
      });

      it("holds slots against the seal in their header, for which nobody needs the passphrase", () => {
        const body = (seed: number) => Buffer.alloc(300 + seed, seed);
        const behind = [
          slotOf("qubes.xml.000.enc", body(1)),
          slotOf("vm2/private.img.000.enc", body(2)),
          slotOf("vm2/private.img.001.enc", body(3)),
          slotOf("vm3/private.img.000.enc", body(4)),
          slotOf("vm3/private.img.001.enc", body(5)),
        ];
        const unended = (members: ReadonlyArray<Buffer>, seal: string) => {
          const text = `version=4\nqbackup-seal=${seal}\nqbackup-run=7\n`;
          const heads = [
            slotOf("backup-header", Buffer.from(text)),
            slotOf("backup-header.hmac", body(6)),
          ];
          return Buffer.concat([...heads, ...members]);
        };
        const seal = rootOf(linesOf(tableOf(unended(behind, "-"))).slice(2));
        const archive = (...args: Parameters<typeof unended>) =>
          padTo(Buffer.concat([unended(...args), Buffer.alloc(1024)]), 10_240);
        const file = path.join(dir, "sealed");
        const check = (bytes: Buffer) => {
          fs.writeFileSync(file, bytes);
          return recover(["check", file], "/nonexistent");
        };
        const good = check(archive(behind, seal));
        assert.strictEqual(good.code, 0, good.stderr);
        assert.match(
          good.stderr,
          /^its seal holds, but only the passphrase tells.*\nwhole, as far as that shows/,
        );
        const changed = [...behind];
        changed[3] = slotOf("vm3/private.img.000.enc", body(7));
        for (const bad of [
          archive(behind.slice(0, -1), seal), // cut off at the end of a member
          archive(behind.slice(0, -2), seal), // a whole file is missing
          archive([behind[0]!, behind[3]!, behind[4]!, behind[1]!, behind[2]!], seal),
          archive(changed, seal),
          archive(behind, "0".repeat(64)),
          archive(behind, ""),
        ]) {
          const { code, stderr } = check(bad);
          assert.deepStrictEqual(
            [code, stderr],
            [
              1,
              "qbackup-recover: error: its members are not those that it was sealed with: some are missing, damaged, or of another night\n",
            ],
          );
        }
      });

      it("gives all files but those that are damaged, of slots too, where they are wanted all the same", () => {
        const id = "20260131T040000-1";
        const image = (qube: number) => crypto.randomBytes(900 * 1024 + qube * 512);
        const images = [image(2), image(3), image(4)];
        const sealed = (origin: string, plain: Buffer, of = `${id}!${origin}!`) => {
          const salt = crypto.randomBytes(saltSize);
          const keys = crypto.scryptSync(`${of}${passphrase}`, salt, keysSize, slotCost);
          const made = sealedMember(`${origin}.enc`, salt, keys, [plain]);
          return Buffer.concat([...made.pieces]).subarray(512, 512 + made.size);
        };
        const file = (name: string, bytes: Buffer) => {
          const stream = padTo(Buffer.concat([ustar(name, bytes.length), bytes]), 512);
          const cut = name === "qubes.xml" ? stream.length : stream.length >> 1;
          return [stream.subarray(0, cut), stream.subarray(cut)].flatMap((part, i) => {
            if (part.length === 0) return [];
            const origin = `${name}.00${i}`;
            return slotOf(`${origin}.enc`, sealed(origin, zlib.gzipSync(part)));
          });
        };
        const named = [2, 3, 4].map(
          (n) => `<domain id="domain-${n}"><property name="name">q${n}</property></domain>`,
        );
        const xml = Buffer.from(`<qubes>${named.join("")}</qubes>`);
        const behind = [
          ...file("qubes.xml", xml),
          ...images.flatMap((bytes, i) => file(`vm${i + 2}/private.img`, bytes)),
        ];
        const seal = rootOf(linesOf(tableOf(Buffer.concat(behind))));
        const header = Buffer.from(
          `version=4\ncompressed=True\nbackup-id=${id}\nqbackup-seal=${seal}\nqbackup-run=7\n`,
        );
        const all = [
          slotOf("backup-header", header),
          slotOf("backup-header.hmac", sealed("backup-header.hmac", header, "backup-header!")),
          ...behind,
        ];
        const whole = padTo(Buffer.concat([...all, Buffer.alloc(1024)]), 10_240);
        const before = all.slice(0, 5).reduce((sum, { length }) => sum + length, 0);
        const at = path.join(dir, "slots");
        const extracted = (bytes: Buffer, more = {}) => {
          const out = fs.mkdtempSync(path.join(dir, "out-"));
          fs.writeFileSync(at, bytes);
          const args = ["extract", at, "all", out];
          const ran = recover(args, undefined, undefined, more);
          const good = images.flatMap((image, i) => {
            const got = path.join(out, `vm${i + 2}/private.img`);
            return fs.existsSync(got) && fs.readFileSync(got).equals(image) ? [i + 2] : [];
          });
          return { ...ran, good };
        };
        const sound = extracted(whole);
        assert.deepStrictEqual([sound.code, sound.good], [0, [2, 3, 4]], sound.stderr);
        // From its beginning on it is looked through a few times, however many members there are.
        const [calls, counting] = [path.join(dir, "calls"), path.join(dir, "counting-tar")];
        const text = `#!/bin/sh\necho >> ${calls}\nexec tar "$@"\n`;
        fs.writeFileSync(counting, text, { mode: 0o755 });
        assert.deepStrictEqual(extracted(whole, { TAR: counting }).good, [2, 3, 4]);
        assert.isBelow(fs.readFileSync(calls, "utf8").length, 4 + 2 * images.length);
        // What there is no room for is not damaged; busybox has a head of its own.
        if (shell[0] !== "busybox") {
          const full = fs.mkdtempSync(path.join(dir, "full-"));
          fs.writeFileSync(path.join(full, "head"), "#!/bin/sh\nexit 1\n", { mode: 0o755 });
          const stopped = extracted(whole, { PATH: `${full}:${process.env["PATH"]}` });
          assert.deepStrictEqual([stopped.code, stopped.good], [1, []]);
          assert.match(stopped.stderr, /error: \S+ has no room left, or cannot be written to$/m);
          assert.notMatch(stopped.stderr, /damaged/);
        }
        // In the data of a member of vm3's; in its header; the end is away.
        for (const [damaged, good] of [
          [bent(whole, before + 5000), [2, 4]],
          [bent(whole, before + 10), [2, 4]],
          [whole.subarray(0, before + 10_000), [2]],
        ] as const) {
          const refused = extracted(damaged);
          assert.deepStrictEqual([refused.code, refused.good], [1, []], refused.stderr);
          const rest = extracted(damaged, { DAMAGED: "keep" });
          assert.deepStrictEqual([rest.code, rest.good], [1, good], rest.stderr);
          assert.match(rest.stderr, /vm3\/private.img is damaged/);
          assert.match(rest.stderr, /error: the archive is not whole, see above/);
          assert.notMatch(rest.stderr, /its seal holds|done:/);
        }
      });

      it("takes a file by whatever name it has here, and calls no host for it", () => {
        const place = fs.mkdtempSync(path.join(dir, "odd-"));
        for (const name of ["nowhere.invalid:2026-01-31T04:00", "-x", "a b", "x:y/z"]) {
          fs.mkdirSync(path.dirname(path.join(place, name)), { recursive: true });
          fs.copyFileSync(sampleFile("tiny"), path.join(place, name));
          const settings = {
            cwd: place,
            encoding: "utf8",
            env: { PATH: process.env["PATH"] },
          } as const;
          const ran = spawnSync(program, [...rest, script, "check", name], settings);
          assert.strictEqual(ran.status, 0, ran.stderr);
        }
      });

      it("says what is missing here, and does not blame the passphrase", () => {
        const bin = fs.mkdtempSync(path.join(dir, "bin-"));
        for (const place of ["/bin", "/usr/bin"]) {
          for (const name of fs.readdirSync(place)) {
            const here = path.join(bin, name);
            if (name !== "scrypt" && !fs.existsSync(here))
              fs.symlinkSync(path.join(place, name), here);
          }
        }
        for (const args of [
          ["list", sampleFile("tiny")],
          ["extract", sampleFile("tiny"), "all", dir],
        ]) {
          const ran = recover(args, path.join(dir, "passphrase"), bin);
          assert.strictEqual(ran.code, 1);
          assert.match(
            ran.stderr,
            /^qbackup-recover: error: it needs scrypt, which is not installed/m,
          );
        }
      });

      it("reads any part of a file, whatever its length and wherever it begins", () => {
        const text = fs.readFileSync(script, "utf8");
        const [part] = /^part\(\) \{\n[^}]*\n\}$/m.exec(text) ?? [];
        assert.isDefined(part);
        const file = path.join(dir, "parts");
        const bytes = crypto.randomBytes(41 * 512);
        fs.writeFileSync(file, bytes);
        // In blocks of 512, of which 20 are what a member of qvm-backup's is a multiple of.
        const all = Array.from(
          { length: 400 },
          (_, i) => [1 + (i % 20), Math.floor(i / 20)] as const,
        );
        const calls = all.map(([long, at]) => `part "$1" ${long * 512} ${at * 512}`);
        const args = [...rest, "-c", `${part}\n${calls.join("\n")}`, "-", file];
        const got = execFileSync(program, args, { maxBuffer: 1e7 });
        const parts = all.map(([long, at]) => bytes.subarray(at * 512, (at + long) * 512));
        assert.isTrue(got.equals(Buffer.concat(parts)));
      });

      it("finds a member in a file of any size", () => {
        const text = fs.readFileSync(script, "utf8");
        const [found] = /^found_at\(\) \{\n[^}]*\}[^}]*\n\}$/m.exec(text) ?? [];
        assert.isDefined(found);
        const spans = Array.from(
          { length: 5 },
          (_, i) => `${i * 1e12} 1024 vm2/a.${i} ${300 + i}\n`,
        );
        fs.writeFileSync(path.join(dir, "spans"), spans.join(""));
        const args = [...rest, "-c", `${found}\nfound_at vm2/a.3; found_at vm2/a`];
        const env = { ...process.env, tmp: dir };
        const got = execFileSync(program, args, { encoding: "utf8", env });
        assert.strictEqual(got, "3000000000512 303\n");
      });

      it("refuses what is not whole, not there, or not decrypted", () => {
        const bytes = fs.readFileSync(sampleFile("multichunk"));
        const members = membersOf(bytes);
        const withoutMember = (index: number) =>
          Buffer.concat(members.filter((_member, i) => i !== index).map((member) => member.bytes));
        /** All heads. */
        const start = 30_720;
        const flipped = Buffer.from(bytes);
        flipped[start + 3000]! ^= 1;
        const wrong = path.join(dir, "wrong");
        fs.writeFileSync(wrong, "another\n");
        const file = path.join(dir, "damaged");
        for (const [damaged, text] of [
          [bytes.subarray(0, -1), /multiple of 10240|cannot be read/],
          [withoutMember(0), /no Qubes backup/],
          [withoutMember(3), /chunk 0 is missing/],
          [withoutMember(6), /chunk 1 is missing/],
          [Buffer.concat([bytes, bytes.subarray(start)]), /comes twice|missing/],
          [bytes.subarray(0, start), /no qube in it/],
          [Buffer.from("no archive".repeat(1024)), /cannot be read/],
        ] as const) {
          fs.writeFileSync(file, damaged);
          const ran = recover(["check", file]);
          assert.strictEqual(ran.code, 1, String(text));
          assert.match(ran.stderr, text);
        }
        fs.writeFileSync(file, flipped);
        const out = path.join(dir, "flipped");
        const ran = recover(["extract", file, "all", out]);
        assert.strictEqual(ran.code, 1);
        assert.match(ran.stderr, /is damaged: what is there of it is not whole/);
        const good = sampleFile("tiny");
        for (const [args, code, text, pass] of [
          [["extract", good, "nobody", out], 1, /no qube nobody in it/, undefined],
          [["list", good], 1, /passphrase is not the right one/, wrong],
          [["list", "/nonexistent"], 1, /no file/, undefined],
          [["extract", good], 2, /qbackup-recover check FILE/, undefined],
          [[], 2, /qbackup-recover check FILE/, undefined],
        ] as const) {
          const ran = recover(args, pass);
          assert.strictEqual(ran.code, code, ran.stderr);
          assert.match(ran.stderr, text);
        }
        const left = fs.readdirSync(dir).filter((name) => name.startsWith("qbackup-recover."));
        assert.deepStrictEqual(left, []);
      });
    });

    describe("fetch", () => {
      const [a, b, c] = ["a", "b", "c"].map((digit) => digit.repeat(32)) as [
        string,
        string,
        string,
      ];
      const one = archiveOf({
        seed: 1,
        files: [
          { path: "vm2/private.img", size: 3_300_000 },
          { path: "vm3/private.img", size: 900_000 },
        ],
      });
      const two = archiveOf({
        seed: 2,
        files: [
          { path: "vm2/private.img", size: 3_300_000 },
          { path: "vm3/private.img", size: 300_000 },
        ],
      });
      const partsOf = (bytes: Buffer) => membersOf(bytes).map((member) => member.bytes);
      /** One night's heads and small qube, with the large one of the night before. */
      const mixed = Buffer.concat([
        ...partsOf(two).slice(0, 3),
        ...partsOf(one).slice(3, 4),
        ...partsOf(two).slice(4),
      ]);
      const mixedRoot = rootOf(linesOf(tableOf(mixed)));
      const header = "version=4\nencrypted=True\nqbackup-seal=0\n";
      const slots = Buffer.concat([
        slotOf("backup-header", Buffer.from(header)),
        // The third one has 8,192 bytes from 2,048 on: neither is a multiple of 10,240, and their bits are.
        ...(
          [
            ["backup-header.hmac", 400],
            ["qubes.xml.000.enc", 7_680],
            ["vm2/private.img.000.enc", 2_400_700],
          ] as const
        ).map(([path, size], i) => slotOf(path, Buffer.alloc(size, i))),
      ]);
      let count = 0;
      const aStore = () => {
        const store = path.join(dir, `store-${count++}`);
        const make = storeMaker(ontoFolder(store));
        make.pack(a, one);
        make.pack(b, two);
        make.pack(c, slots);
        make.archive({ name: "one.backup", session: a });
        make.archive({
          name: "dir/mixed.backup",
          session: b,
          run: 2,
          recipe: `${b} 0 3\n${a} 3 1\n${b} 4 1\n`,
        });
        make.archive({ name: "slots.backup", session: c, run: 3, format: "slots" });
        for (const folder of ["bin", "tmp"]) fs.mkdirSync(path.join(store, folder));
        fs.writeFileSync(path.join(store, "bin/ssh"), fakeSsh(store), { mode: 0o755 });
        return store;
      };
      interface Fetched {
        readonly from?: string;
        readonly root?: string;
        readonly file?: string;
        readonly lie?: string;
        readonly patience?: string;
        readonly bin?: string;
        readonly damaged?: string;
      }
      const fetching = (store: string, name: string, options: Fetched) => {
        const { file = path.join(dir, `fetched-${count++}`), from = store } = options;
        const more = options.root === undefined ? [] : [options.root];
        const settings = {
          encoding: "utf8",
          timeout: 120_000,
          env: {
            PATH: `${options.bin ?? path.join(store, "bin")}:${process.env["PATH"]}`,
            TMPDIR: path.join(store, "tmp"),
            PATIENCE: options.patience ?? "60",
            LIE: options.lie ?? "",
            DAMAGED: options.damaged ?? "",
          },
        } as const;
        const args = [...rest, script, "fetch", from, name, file, ...more];
        return { args, file, program: program, settings };
      };
      const fetch = (store: string, name: string, options: Fetched = {}) => {
        const { args, file, program, settings } = fetching(store, name, options);
        const ran = spawnSync(program, args, settings);
        assert.deepStrictEqual(fs.readdirSync(path.join(store, "tmp")), [], ran.stderr);
        const bytes = fs.existsSync(file) ? fs.readFileSync(file) : undefined;
        return { code: ran.status, stderr: ran.stderr, file, bytes };
      };
      const servers = [
        ["the store's disk", undefined],
        ["its server", "me@server"],
      ] as const;

      it.each(servers)("from %s: one file, and each member of it as it must be", (_what, from) => {
        const store = aStore();
        const far = from === undefined ? {} : { from };
        const plain = fetch(store, "one.backup", far);
        assert.strictEqual(plain.code, 0, plain.stderr);
        assert.isTrue(plain.bytes!.equals(one));
        const shared = fetch(store, "dir/mixed.backup", far);
        assert.strictEqual(shared.code, 0, shared.stderr);
        assert.isTrue(shared.bytes!.equals(mixed));
        assert.include(shared.stderr, `root ${mixedRoot}, computed here`);
        assert.include(shared.stderr, "compare the root with the recovery sheet");
        assert.match(shared.stderr, /^signed by dom0's key [0-9a-f]{64}$/m);
        assert.match(shared.stderr, /^received by the server's key [0-9a-f]{64}; compare both/m);
        const of = fetch(store, "slots.backup", far);
        assert.strictEqual(of.code, 0, of.stderr);
        assert.strictEqual(of.bytes!.length % 10_240, 0);
        assert.isTrue(of.bytes!.subarray(0, slots.length).equals(slots));
        for (const { bytes, file } of [plain, shared]) {
          const again = recover(["root", file]);
          assert.strictEqual(again.stdout, `${rootOf(linesOf(tableOf(bytes!)))}\n`, again.stderr);
        }
        const sealed = recover(["root", of.file]);
        assert.strictEqual(sealed.stdout, `${rootOf(linesOf(tableOf(slots)))}\n`, sealed.stderr);
      });

      it("takes the root of the recovery sheet, however it is written, and no other archive", () => {
        const store = aStore();
        const root = mixedRoot.toUpperCase().replace(/.{8}/g, "$& ").trim();
        const { code, stderr } = fetch(store, "dir/mixed.backup", { root });
        assert.strictEqual(code, 0, stderr);
        assert.notInclude(stderr, "compare the root");
        const other = fetch(store, "one.backup", { root });
        assert.strictEqual(other.code, 1);
        assert.match(other.stderr, /there is another archive of that name: its root is /);
        assert.isUndefined(other.bytes);
        for (const wrong of ["x".repeat(64), "0".repeat(63)]) {
          assert.match(fetch(store, "one.backup", { root: wrong }).stderr, /that is no root/);
        }
        for (const name of ["../x", "-x", "x y", "/x", "a/.b"]) {
          assert.match(fetch(store, name).stderr, /that is no name of an archive/);
        }
      });

      it.each(servers)("from %s: finds what was changed", (_what, from) => {
        const changes: ReadonlyArray<readonly [string, RegExp, (text: Buffer) => Buffer]> = [
          [
            `.qbackup/packs/${a}`,
            /vm2\/private.img.000.enc is not what was backed up/,
            (bytes) => bent(bytes, 2_000_000),
          ],
          [
            `.qbackup/packs/${b}`,
            /backup-header.hmac is not what was backed up/,
            (bytes) => bent(bytes, 11_000),
          ],
          [
            `.qbackup/tables/${a}`,
            /not those of the manifest/,
            (text) => edited(text, /\d(?=\n[^\n]*\n$)/, "z"),
          ],
          [
            `.qbackup/tables/${a}`,
            /not those of the manifest/,
            (text) => edited(text, /[0-9a-f]{64}\n(?=[^\n]*\n$)/, `${"0".repeat(64)}\n`),
          ],
          [
            `.qbackup/tables/${b}`,
            /names members that are not there/,
            (text) => edited(text, /[^\n]*\n$/, ""),
          ],
          [
            `.qbackup/recipes/${b}`,
            /not those of the manifest/,
            (text) => edited(text, /3 1/, "4 1"),
          ],
          [
            `.qbackup/recipes/${b}`,
            /not those of the manifest/,
            (text) => edited(text, /[^\n]*\n$/, ""),
          ],
          [
            `.qbackup/recipes/${b}`,
            /recipe of dir\/mixed.backup is malformed/,
            (text) => edited(text, /^./, "../"),
          ],
          [
            "dir/mixed.backup.manifest.json",
            /manifest of .* is not signed/,
            (text) => edited(text, /qvm-backup/, "slots"),
          ],
          [
            "dir/mixed.backup.manifest.json",
            /receipt of .* is not signed/,
            (text) => edited(text, /05:10:00/, "05:11:00"),
          ],
        ];
        for (const [file, said, change] of changes) {
          const store = aStore();
          const place = path.join(store, file);
          fs.writeFileSync(place, change(fs.readFileSync(place)));
          const ran = fetch(store, "dir/mixed.backup", from === undefined ? {} : { from });
          assert.strictEqual(ran.code, 1, `${file} ${said}`);
          if (String(said).includes("not those") && /malformed/.test(ran.stderr)) continue;
          assert.match(ran.stderr, said);
          // What is there of it is proven.
          const got = ran.bytes ?? Buffer.alloc(0);
          assert.isTrue(got.equals(mixed.subarray(0, got.length)));
        }
      });

      it("says plainly where nobody looked at signatures, or there are none", () => {
        const store = aStore();
        const bin = path.join(store, "old");
        fs.mkdirSync(bin);
        fs.writeFileSync(path.join(bin, "openssl"), "#!/bin/sh\nexit 1\n", { mode: 0o755 });
        const old = fetch(store, "one.backup", { bin });
        assert.strictEqual(old.code, 0, old.stderr);
        assert.match(old.stderr, /^NOT looked at: the signatures, for which openssl 3 is needed$/m);
        assert.notMatch(old.stderr, /signed by/);
        const make = storeMaker(ontoFolder(store));
        make.pack(a, one);
        make.archive({ name: "bare.backup", session: a, bare: true });
        const bare = fetch(store, "bare.backup");
        assert.strictEqual(bare.code, 0, bare.stderr);
        assert.match(bare.stderr, /^nothing was signed for bare.backup: only its own root/m);
        assert.isTrue(bare.bytes!.equals(one));
      });

      it("goes on where a file ends, and looks at what is in it", () => {
        const store = aStore();
        const file = path.join(dir, `part-${count++}`);
        for (const from of [store, "me@server"]) {
          fs.writeFileSync(file, one.subarray(0, 2_000_000));
          const ran = fetch(store, "one.backup", { from, file });
          assert.strictEqual(ran.code, 0, ran.stderr);
          assert.isTrue(ran.bytes!.equals(one));
        }
      });

      it.each(servers)("from %s: what is spoiled in a file is fetched anew", (_what, from) => {
        const store = aStore();
        const file = path.join(dir, `part-${count++}`);
        const [, , , large] = partsOf(one);
        for (const [there, said] of [
          [bent(one, one.length - large!.length), /: vm2\/private.img.000.enc in it is not what/],
          [
            bent(one, one.length - 1),
            /: vm3\/private.img.000.enc in it is not what was backed up; /,
          ],
          [Buffer.concat([one, Buffer.alloc(700, 1)]), /^(?!.*in it is not what)/s],
        ] as const) {
          fs.writeFileSync(file, there);
          const ran = fetch(store, "one.backup", { file, ...(from === undefined ? {} : { from }) });
          assert.strictEqual(ran.code, 0, ran.stderr);
          assert.isTrue(ran.bytes!.equals(one));
          assert.match(ran.stderr, said);
        }
      });

      it("a file keeps what is good of it until something better is there", () => {
        const store = aStore();
        const file = path.join(dir, `kept-${count++}`);
        const there = bent(one, 100_000);
        for (const [from, lie] of [
          [store, ""],
          ["me@server", "damaged"],
        ] as const) {
          fs.writeFileSync(file, there);
          if (lie === "") fs.rmSync(path.join(store, `.qbackup/packs/${a}`));
          else fs.writeFileSync(path.join(store, `.qbackup/packs/${a}`), one);
          const ran = fetch(store, "one.backup", { from, file, lie });
          assert.strictEqual(ran.code, 1);
          assert.match(ran.stderr, /: vm2\/private.img.000.enc in it is not what was backed up; /);
          assert.isTrue(ran.bytes!.equals(there));
        }
      });

      it.each(servers)("from %s: a file that is something else stays as it is", (_what, from) => {
        const store = aStore();
        const file = path.join(dir, `other-${count++}`);
        for (const other of [Buffer.from("diary"), two, bent(one, 500)]) {
          fs.writeFileSync(file, other);
          const ran = fetch(store, "one.backup", { file, ...(from === undefined ? {} : { from }) });
          assert.strictEqual(ran.code, 1);
          assert.include(
            ran.stderr,
            `${file} is something else than one.backup, and is left as it is`,
          );
          assert.isTrue(ran.bytes!.equals(other));
        }
      });

      it("leaves what is damaged in its place where the rest is wanted all the same", () => {
        const store = aStore();
        const place = path.join(store, `.qbackup/packs/${a}`);
        const [large] = [
          partsOf(one)
            .slice(0, 3)
            .reduce((sum, { length }) => sum + length, 0),
        ];
        const spoiled = bent(one, large + 2_000_000);
        fs.writeFileSync(place, spoiled);
        assert.match(fetch(store, "one.backup").stderr, /000.enc is not what was backed up\n$/);
        for (const [from, expected, lie] of [
          [store, spoiled, ""],
          // The last block is the last member.
          [
            "me@server",
            Buffer.concat([...partsOf(one).slice(0, 4), zerosFor(one)]),
            "damaged-last",
          ],
        ] as const) {
          if (lie !== "") fs.writeFileSync(place, one);
          const got = fetch(store, "one.backup", { damaged: "keep", from, lie });
          assert.strictEqual(got.code, 1);
          assert.match(
            got.stderr,
            /: error: 1 of the 5 members of .* are not what was backed up, all /,
          );
          assert.isTrue(got.bytes!.equals(expected));
        }
      });
      const zerosFor = (bytes: Buffer) => Buffer.alloc(partsOf(bytes).at(-1)!.length);

      // busybox has a dd of its own.
      const copying = shell[0] === "busybox" ? ["split"] : ["split", "dd"];
      it.each(copying)("calls nothing bad, and cuts nothing off, where %s had no room", (name) => {
        const store = aStore();
        const file = path.join(dir, `whole-${count++}`);
        const bin = path.join(store, "full");
        fs.mkdirSync(bin);
        // The list of the members is short, and has it.
        const full = `#!/bin/sh\n[ "$3" = -l ] && exec /usr/bin/split "$@"\nexit 1\n`;
        fs.writeFileSync(path.join(bin, name), full, { mode: 0o755 });
        fs.writeFileSync(file, one);
        const again = fetch(store, "one.backup", { bin, file });
        assert.strictEqual(again.code, 1);
        assert.match(again.stderr, /cannot be looked at: .* has no room for twice/);
        assert.notMatch(again.stderr, /is not what was backed up|something else/);
        assert.isTrue(again.bytes!.equals(one));
        const root = recover(
          ["root", file],
          path.join(dir, "passphrase"),
          `${bin}:${process.env["PATH"]}`,
        );
        assert.deepStrictEqual([root.code, root.stdout], [1, ""]);
        assert.match(root.stderr, /cannot be looked at: .* has no room for twice/);
      });

      it("goes on where a link broke", () => {
        const store = aStore();
        const ran = fetch(store, "one.backup", { from: "me@server", lie: "cut-5" });
        assert.strictEqual(ran.code, 0, ran.stderr);
        assert.isTrue(ran.bytes!.equals(one));
        // Heads and a block; the large member; the last one.
        assert.lengthOf(fs.readFileSync(path.join(store, "pids"), "utf8").match(/^read /gm)!, 3);
      });

      it("goes on where a link broke while answers were still to be read", () => {
        const store = aStore();
        const small = Array.from({ length: 40 }, (_, i) => `vm2/private.img.0${10 + i}.enc`);
        const many = Buffer.concat([
          ...partsOf(slots).slice(0, 3),
          ...small.map((path) => slotOf(path, Buffer.alloc(300))),
        ]);
        const d = "d".repeat(32);
        const make = storeMaker(ontoFolder(store));
        make.pack(d, many);
        make.archive({ name: "many.backup", session: d, run: 4, format: "slots" });
        const { bytes, code, stderr } = fetch(store, "many.backup", {
          from: "me@server",
          lie: "cut-12",
        });
        assert.strictEqual(code, 0, stderr);
        assert.isTrue(bytes!.subarray(0, many.length).equals(many));
        assert.lengthOf(fs.readFileSync(path.join(store, "pids"), "utf8").match(/^read /gm)!, 4);
        // What a shell says of its pipe is nothing that anybody could do something about.
        assert.notMatch(stderr, /pipe|write/i);
      });

      it.each(["damaged", "damaged-last"])(
        "a server that cannot give a block says which: %s",
        (lie) => {
          const { bytes, code, stderr } = fetch(aStore(), "one.backup", {
            from: "me@server",
            lie,
            patience: "3",
          });
          assert.strictEqual(code, 1);
          assert.match(stderr, /vm\d\/private.img.000.enc: the server says: .*"code":"damaged"/);
          assert.isTrue(bytes!.equals(one.subarray(0, bytes!.length)));
        },
      );

      it.each([
        ["a first line without an end", "endless-manifest", /the server does not give it: /],
        ["lines without an end", "lines-manifest", /the server does not give it: /],
        ["an error", "refuse-manifest", /the server does not give it: .*"message":"no /],
        ["an error in place of a table", "refuse-table", /does not give the table of one.backup: /],
        ["silence", "silent-manifest", /the server does not give it: it does not answer/],
      ])("%s: told, and over soon", (_what, lie, said) => {
        const patience = lie.startsWith("silent") ? "1" : "60";
        const { bytes, code, stderr } = fetch(aStore(), "one.backup", {
          from: "me@server",
          lie,
          patience,
        });
        assert.strictEqual(code, 1);
        assert.match(stderr, said);
        assert.match(stderr, /^[\x20-\x7e\n]*$/);
        assert.isUndefined(bytes);
      });

      // They mostly wait, and so they begin before all others.
      const broken = [
        ["the text of a table", "cut-text", /does not give the (recipe|table) of one.backup/],
        ["the blocks", "cut-3", /the link broke again and again: the same command goes on/],
        ["all of a sudden, without a word", "mute-read", /the link broke again and again/],
      ] as const;
      const begun = new Map<string, Promise<{ code: unknown; stderr: string; store: string }>>();
      beforeAll(() => {
        for (const [, lie] of waits ? broken : []) {
          const store = aStore();
          const options = { from: "me@server", lie, patience: "1" };
          const { args, program, settings } = fetching(store, "one.backup", options);
          const ended = new Promise<{ code: unknown; stderr: string; store: string }>((done) =>
            execFile(program, args, settings, (error, _, stderr) =>
              done({ code: error?.code ?? 0, stderr, store }),
            ),
          );
          begun.set(lie, ended);
        }
      });
      it.each(waits ? broken : [])(
        "a link that breaks in %s, each time: given up, and its ssh is gone",
        async (_what, lie, said) => {
          const { code, stderr, store } = await begun.get(lie)!;
          assert.strictEqual(code, 1, stderr);
          assert.match(stderr, said);
          const calls = fs.readFileSync(path.join(store, "pids"), "utf8").trim().split("\n");
          assert.isAbove(calls.length, 4);
          for (const call of calls) {
            assert.isFalse(fs.existsSync(`/proc/${call.split(" ")[1]}`), call);
          }
        },
      );
    });
  });
};
