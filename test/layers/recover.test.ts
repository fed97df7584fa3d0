/** The way back without Qubes and without qbackup: one shell script, against the genuine samples. */
// @effect-diagnostics processEnv:off -- the script is run as a person would run it.
import { execFileSync, spawnSync } from "node:child_process";
import { afterAll, assert, beforeAll, describe, it } from "vitest";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as zlib from "node:zlib";
import { Walk } from "#src/archive/walk";
import { treeHash } from "#test/support/peer";
import { decrypted, unpacked } from "#test/standin/restore";
import { noScrypt, unless, without } from "#test/support/unless";

const script = path.resolve("install/qbackup-recover");
const passphrase = "correct horse battery staple";
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest();
const all = [["dash"], ["busybox", "sh"], ["bash", "--posix"]];
const shells = all.filter(([shell]) => without(shell!) === undefined);
const named = shells.map((shell) => [shell.join(" "), shell] as const);
for (const [shell] of all) {
  const missing = without(shell!);
  if (missing !== undefined) it(`all of it, with ${shell}`, unless(missing), () => {});
}

let dir: string;
beforeAll(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-recover-"));
  fs.writeFileSync(path.join(dir, "passphrase"), `${passphrase} \n`);
});
afterAll(() => fs.rmSync(dir, { recursive: true, force: true }));

const recover = (
  shell: ReadonlyArray<string>,
  args: ReadonlyArray<string>,
  file = path.join(dir, "passphrase"),
) => {
  const [program, ...rest] = shell;
  const ran = spawnSync(program!, [...rest, script, ...args], {
    encoding: "utf8",
    timeout: 60_000,
    env: { PATH: process.env["PATH"], PASSPHRASE_FILE: file, TMPDIR: dir },
  });
  return { code: ran.status, stdout: ran.stdout, stderr: ran.stderr };
};

const sampleFile = (name: string) =>
  path.resolve(`test/fixtures/sample-${name}-lowcost.qubes-backup`);
/** The images of a sample, decrypted by node's own crypto. */
const imagesOf = (name: string, fullChunk?: number): Map<string, Buffer> => {
  const bytes = fs.readFileSync(sampleFile(name));
  const walk = new Walk(fullChunk === undefined ? {} : { fullChunk });
  walk.push(bytes);
  const members = walk.finish() as ReadonlyArray<{
    path: string;
    start: number;
    length: number;
    size: number;
  }>;
  assert.isArray(members);
  const dataOf = (member: (typeof members)[number]) => {
    // The header of the data is the last ustar header before it; a pax header may stand in front.
    const tar = bytes.subarray(member.start, member.start + member.length);
    const at = tar.toString("latin1", 156, 157) === "x" ? 1536 : 512;
    return tar.subarray(at, at + member.size);
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

describe.each(named)("%s", unless(noScrypt), (_, shell) => {
  it.each([
    ["tiny", undefined, ["vm2", "vm3", "vm4"]],
    ["multichunk", 65_664, ["vm2", "vm3"]],
  ] as const)("brings back the images of the genuine sample %s", (name, fullChunk, qubes) => {
    const file = sampleFile(name);
    const out = path.join(dir, `${shell[0]}-${name}`);
    const ran = recover(shell, ["extract", file, "all", out]);
    assert.strictEqual(ran.code, 0, ran.stderr);
    const images = imagesOf(name, fullChunk);
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

    const one = path.join(dir, `${shell[0]}-${name}-one`);
    assert.strictEqual(recover(shell, ["extract", file, "mail", one]).code, 0);
    assert.deepStrictEqual(fs.readdirSync(one), ["vm3"]);
    const listed = recover(shell, ["list", file]);
    assert.match(listed.stdout, /^vm2\/ +work +\d+ bytes in \d chunks$/m);
    const checked = recover(shell, ["check", file], "/nonexistent");
    assert.strictEqual(checked.code, 0, checked.stderr);
    assert.match(checked.stdout, /^ +60459  vm2\/private\.img\.000\.enc$|vm2\/private\.img\.002/m);
  });

  it.each([["-h"], ["--help"]])("%s: what there is, as data", (flag) => {
    for (const shell of shells) {
      const { code, stderr, stdout } = recover(shell, [flag]);
      assert.deepStrictEqual([code, stderr], [0, ""]);
      for (const word of ["fetch ACCOUNT@HOST NAME FILE", "check FILE", "PASSPHRASE_FILE"])
        assert.include(stdout, word);
      assert.notMatch(stdout, /^#/m);
      // The rest of the file is no text for people.
      assert.notInclude(stdout, "umask");
      assert.strictEqual(recover(shell, []).code, 2);
    }
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
    for (const end of [...ends, "\u2028\u2029\u202f\u205f", "\r", "\r\n", "\nmore", "\rmore\n"]) {
      fs.writeFileSync(file, `${passphrase}${end}`);
      const ran = recover(shell, ["list", good], file);
      assert.strictEqual(ran.code, 0, `${JSON.stringify(end)}: ${ran.stderr}`);
    }
    for (const other of [`\ufeff${passphrase}`, ` ${passphrase}`, `${passphrase}\u200b`]) {
      fs.writeFileSync(file, other);
      assert.strictEqual(recover(shell, ["list", good], file).code, 1, JSON.stringify(other));
    }
  });

  it("refuses what is not whole, not there, or not decrypted", () => {
    const bytes = fs.readFileSync(sampleFile("multichunk"));
    const walk = new Walk({ fullChunk: 65_664 });
    walk.push(bytes);
    const members = walk.finish() as ReadonlyArray<{ path: string; start: number; length: number }>;
    const withoutMember = (index: number) =>
      Buffer.concat([
        bytes.subarray(0, members[index]!.start),
        bytes.subarray(members[index]!.start + members[index]!.length),
      ]);
    const flipped = Buffer.from(bytes);
    flipped[members[3]!.start + 3000]! ^= 1;
    const wrong = path.join(dir, "wrong");
    fs.writeFileSync(wrong, "another\n");
    const file = path.join(dir, "damaged");
    for (const [damaged, text] of [
      [bytes.subarray(0, -1), /multiple of 10240|cannot be read/],
      [withoutMember(0), /no Qubes backup/],
      [withoutMember(3), /chunk 0 is missing/],
      [withoutMember(6), /chunk 1 is missing/],
      [Buffer.concat([bytes, bytes.subarray(members[3]!.start)]), /comes twice|missing/],
      [bytes.subarray(0, members[3]!.start), /no qube in it/],
      [Buffer.from("no archive".repeat(1024)), /cannot be read/],
    ] as const) {
      fs.writeFileSync(file, damaged);
      const ran = recover(shell, ["check", file]);
      assert.strictEqual(ran.code, 1, String(text));
      assert.match(ran.stderr, text);
    }
    fs.writeFileSync(file, flipped);
    const out = path.join(dir, "flipped");
    const ran = recover(shell, ["extract", file, "all", out]);
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
      const ran = recover(shell, args, pass);
      assert.strictEqual(ran.code, code, ran.stderr);
      assert.match(ran.stderr, text);
    }
    const left = fs.readdirSync(dir).filter((name) => name.startsWith("qbackup-recover."));
    assert.deepStrictEqual(left, []);
  });
});

describe.each(shells.map((shell) => [shell.join(" "), shell] as const))(
  "fetch, with %s",
  (_, shell) => {
    const block = 1_048_576;
    const archive = Buffer.concat(
      // Three blocks and a bit: an odd one on two levels of the tree, and bytes of every value in it.
      Array.from({ length: 3 * 32_768 + 5 }, (_unused, i) => sha256(Buffer.from(`${i}`))),
    ).subarray(0, 3 * block + 77);
    const tree = treeHash(archive);
    let count = 0;
    /** A folder with an `ssh` that answers `read NAME FIRST COUNT` with this text of sh. */
    const server = (text: string) => {
      const bin = path.join(dir, `${shell[0]}-ssh-${count++}`);
      fs.mkdirSync(bin);
      fs.writeFileSync(
        path.join(bin, "ssh"),
        `#!/bin/sh\nfor last; do :; done\nset -- $last\nfirst=$4 count=$5\n${text}\n`,
        { mode: 0o755 },
      );
      return bin;
    };
    /** The answer of a good server, with `bytes` and the tree hash that it claims. */
    const good = (bytes: Buffer, claimed = treeHash(bytes)) => {
      const blocks = Math.ceil(bytes.length / block);
      const folder = path.join(dir, `${shell[0]}-blocks-${count++}`);
      fs.mkdirSync(folder);
      for (let i = 0; i < blocks; i++) {
        const data = bytes.subarray(i * block, (i + 1) * block);
        let proofs = 0;
        for (let at = i, width = blocks; width > 1; at >>= 1, width = (width + 1) >> 1) {
          if ((at ^ 1) < width) proofs += 1;
        }
        const length = Buffer.alloc(4);
        length.writeUInt32BE(data.length + 32 * proofs);
        fs.writeFileSync(
          path.join(folder, String(i)),
          Buffer.concat([length, data, Buffer.alloc(32 * proofs)]),
        );
      }
      return `printf 'welcome\n\n{"type":"ready","size":${bytes.length},"treehash":"${claimed}"}\n'
i=$first; while [ $i -lt $((first + count)) ]; do cat ${folder}/$i; i=$((i + 1)); done
printf '\0\0\0\0{"type":"end"}\n'`;
    };
    const fetch = (ssh: string, more: ReadonlyArray<string> = [], patience = "60") => {
      const file = path.join(dir, `${shell[0]}-fetched-${count++}`);
      const [program, ...rest] = shell;
      const args = [...rest, script, "fetch", "a@b", "x.backup", file, ...more];
      const ran = spawnSync(program!, args, {
        encoding: "utf8",
        timeout: 120_000,
        env: { PATH: `${ssh}:${process.env["PATH"]}`, TMPDIR: dir, PATIENCE: patience },
      });
      return { code: ran.status, stderr: ran.stderr, file };
    };

    it("hashes what came, as the hash verb does", () => {
      const { code, file, stderr } = fetch(server(good(archive)));
      assert.strictEqual(code, 0, stderr);
      assert.isTrue(fs.readFileSync(file).equals(archive));
      assert.include(stderr, `tree hash ${tree}, computed here`);
      assert.include(stderr, "compare it with the recovery sheet");
      const again = recover(shell, ["hash", file]);
      assert.deepStrictEqual([again.code, again.stdout], [0, `${tree}\n`]);
    });

    it("takes the tree hash of the recovery sheet, however it is written", () => {
      const ssh = server(good(archive));
      const grouped = tree.toUpperCase().replace(/.{8}/g, "$& ").trim();
      const { code, stderr } = fetch(ssh, [grouped]);
      assert.strictEqual(code, 0, stderr);
      assert.notInclude(stderr, "compare");
      const other = fetch(ssh, ["0".repeat(64)]);
      assert.strictEqual(other.code, 1);
      assert.match(other.stderr, /the server has another archive of that name/);
      assert.isFalse(fs.existsSync(other.file));
      for (const wrong of ["x".repeat(64), "0".repeat(63)]) {
        assert.match(fetch(ssh, [wrong]).stderr, /that is no tree hash/);
      }
    });

    it("does not believe the server: other bytes than it says are found", () => {
      const changed = Buffer.from(archive);
      changed[2 * block + 5]! ^= 1;
      for (const more of [[], [tree]]) {
        const { code, stderr } = fetch(server(good(changed, tree)), more);
        assert.strictEqual(code, 1);
        assert.include(stderr, `has the tree hash ${treeHash(changed)}; the server said ${tree}`);
      }
    });

    it.each([
      ["a first line without an end", "tr '\\0' x < /dev/zero", "60"],
      ["lines without an end", "yes", "60"],
      ["silence", 'echo $$ >> "$TMPDIR/silent"; exec sleep 1000', "1"],
      [
        "a size beyond all numbers",
        `echo '{"type":"ready","size":99999999999999999999,"treehash":"00"}'`,
        "60",
      ],
    ])("%s: told, and over soon", (_what, text, patience) => {
      const { code, file, stderr } = fetch(server(text), [], patience);
      assert.strictEqual(code, 1);
      assert.match(stderr, /the server does not give it: /);
      assert.isFalse(fs.existsSync(file));
    });

    // Half a minute of waiting, which is the same in every shell.
    if (shell === shells[0]) {
      it("a server that falls silent in the middle: given up after some tries, and its ssh is gone", () => {
        const bytes = archive.subarray(0, block + 9);
        const pids = path.join(dir, `${shell[0]}-pids`);
        const ready = `printf '\n{"type":"ready","size":${bytes.length},"treehash":"${treeHash(bytes)}"}\n'`;
        const silent = `echo $$ >> ${pids}\n${ready}\n[ $count -eq 0 ] || exec sleep 1000`;
        const { code, stderr } = fetch(server(silent), [], "1");
        assert.strictEqual(code, 1);
        assert.match(stderr, /the link broke again and again: the same command goes on/);
        const started = fs.readFileSync(pids, "utf8").trim().split("\n");
        assert.isAbove(started.length, 2);
        for (const pid of started) assert.isFalse(fs.existsSync(`/proc/${pid}`), pid);
      });
    }
  },
);

it("is clean for shellcheck", unless(without("shellcheck")), () => {
  execFileSync("shellcheck", ["-s", "sh", script], { stdio: "pipe" });
});
it("is short enough to be copied", () => {
  assert.isBelow(fs.readFileSync(script, "utf8").split("\n").length, 261);
});
