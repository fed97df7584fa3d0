/**
 * The stand-in itself, against docs/qubes.md: what the end-to-end tests take for Qubes must
 * behave like it. Archives are read here with scrypt(1) and tar(1), not with code of this project.
 */
import * as child_process from "node:child_process";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { buildStandin } from "#test/standin/build";
import { imageOf, makeWorld, temporaryDirectory, writeImage } from "#test/standin/world";
import type { QubeSpec, Settings, World } from "#test/standin/world";
import { noScrypt, unless, without } from "#test/support/unless";
import { until } from "#test/support/until";

const PASSPHRASE = "correct horse battery staple";
const top = temporaryDirectory();
const program = path.join(top, "standin");
const passphraseFile = path.join(top, "passphrase");
const worlds: Array<World> = [];
const children = new Set<child_process.ChildProcess>();

beforeAll(async () => {
  fs.writeFileSync(passphraseFile, `${PASSPHRASE}  \n`);
  await buildStandin(program);
});
afterEach(() => {
  for (const child of children) child.kill("SIGKILL");
  children.clear();
  for (const world of worlds.splice(0)) world.stop();
});
afterAll(() => fs.rmSync(top, { recursive: true, force: true }));

const KiB = 1024;
const standard: ReadonlyArray<QubeSpec> = [
  { name: "work", size: 256 * KiB },
  { name: "mail", size: 128 * KiB, data: 20 * KiB },
  { name: "net", include: false, size: 16 * KiB },
];

let count = 0;
const world = (
  settings: Partial<Settings> = {},
  qubes: ReadonlyArray<QubeSpec> = standard,
): World => {
  const dir = path.join(top, `world-${count++}`);
  const made = makeWorld({ dir, qubes, program, settings: { chunkSize: 64 * KiB, ...settings } });
  worlds.push(made);
  return made;
};

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

interface Started {
  readonly child: child_process.ChildProcess;
  readonly ended: Promise<Ended>;
}

const start = (of: World, tool: string, args: ReadonlyArray<string>, input?: string): Started => {
  const child = child_process.spawn(path.join(of.bin, tool), args, {
    env: of.env,
    stdio: ["pipe", "pipe", "pipe"],
  });
  children.add(child);
  const text = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (data: string) => (text.stdout += data));
  child.stderr.setEncoding("utf8").on("data", (data: string) => (text.stderr += data));
  child.stdin.on("error", () => {});
  if (input !== undefined) child.stdin.end(input);
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code, signal) => resolve({ code, signal, ...text }));
  });
  return { child, ended };
};

const run = (of: World, tool: string, args: ReadonlyArray<string>, input = ""): Promise<Ended> =>
  start(of, tool, args, input).ended;

const backup = (of: World, to: string, ...more: ReadonlyArray<string>) =>
  start(of, "qvm-backup", [
    "--yes",
    "--compress",
    "--exclude=dom0",
    "--passphrase-file",
    passphraseFile,
    to,
    ...more,
  ]);

const ends = async (ended: Promise<Ended>, within: number): Promise<Ended | "hangs"> =>
  Promise.race([ended, sleep(within, "hangs" as const, { ref: false })]);

/** A member's header blocks as they stand in an archive. */
interface Outer {
  readonly at: number;
  readonly pax: Buffer;
  readonly records: string;
  readonly head: Buffer;
  readonly name: string;
  readonly size: number;
  readonly data: Buffer;
  readonly end: number;
}

const cstring = (bytes: Buffer): string => bytes.toString("latin1").replace(/\0.*$/s, "");
const sumOf = (head: Buffer): number =>
  head.reduce((sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte), 0);

const walk = (archive: Buffer): Array<Outer> => {
  const members: Array<Outer> = [];
  for (let at = 0; at < archive.length;) {
    const pax = archive.subarray(at, at + 512);
    const length = parseInt(cstring(pax.subarray(124, 136)), 8);
    const records = archive.subarray(at + 512, at + 512 + length).toString();
    const head = archive.subarray(at + 1024, at + 1536);
    const size = parseInt(cstring(head.subarray(124, 136)), 8);
    const end = at + Math.ceil((1536 + Math.ceil(size / 512) * 512 + 1024) / 10240) * 10240;
    const data = archive.subarray(at + 1536, at + 1536 + size);
    expect(archive.subarray(at + 1536 + size, end).every((byte) => byte === 0)).toBe(true);
    members.push({ at, pax, records, head, name: cstring(head), size, data, end });
    at = end;
  }
  return members;
};

const names = (archive: string): Array<string> =>
  walk(fs.readFileSync(archive)).map(({ name }) => name);

const decrypt = (data: Buffer, passphrase: string): Buffer =>
  child_process.execFileSync("scrypt", ["dec", "--passphrase", "env:PASSPHRASE", "-"], {
    input: data,
    env: { ...process.env, PASSPHRASE: passphrase },
    stdio: ["pipe", "pipe", "pipe"],
    maxBuffer: 1e9,
  });

/** Every file of an archive as its inner tar, with scrypt(1) and gzip(1). */
const open = (archive: string, decompress: ReadonlyArray<string> | null = ["gzip", "-dc"]) => {
  const members = walk(fs.readFileSync(archive));
  const [header, hmac, ...rest] = members;
  const text = header!.data.toString();
  expect(decrypt(hmac!.data, `backup-header!${PASSPHRASE}`).toString()).toBe(text);
  const id = /^backup-id=(.*)$/m.exec(text)![1]!;
  const files = new Map<string, Array<Buffer>>();
  for (const { name, data } of rest) {
    const [, file, chunk] = /^(.*)\.(\d{3})\.enc$/.exec(name)!;
    const parts = files.get(file!) ?? [];
    expect(Number(chunk)).toBe(parts.length);
    parts.push(decrypt(data, `${id}!${file}.${chunk}!${PASSPHRASE}`));
    files.set(file!, parts);
  }
  const tars = new Map<string, Buffer>();
  for (const [file, parts] of files) {
    const input = Buffer.concat(parts);
    const [tool, ...args] = decompress ?? ["cat"];
    tars.set(file, child_process.execFileSync(tool!, args, { input, maxBuffer: 1e9 }));
  }
  return { text, id, files, tars };
};

const untar = (tar: Buffer, name: string): Buffer => {
  const dir = fs.mkdtempSync(path.join(top, "untar-"));
  child_process.execFileSync("tar", ["-xf", "-", "-C", dir], { input: tar });
  return fs.readFileSync(path.join(dir, name));
};

const image = (of: World, name: string, volume = "private"): Buffer => {
  const qube = of.qube(name);
  const file = path.join(top, "image");
  writeImage(imageOf(qube, volume, qube.volumes[volume]!), file);
  return fs.readFileSync(file);
};

const fifo = (): string => {
  const file = path.join(fs.mkdtempSync(path.join(top, "fifo-")), "fifo");
  child_process.execFileSync("mkfifo", [file]);
  return file;
};

/** Reads a FIFO as a process of its own; with `limit`, dies after so many bytes. */
const reader = (from: string, to: string, limit?: number): child_process.ChildProcess => {
  const command = limit === undefined ? 'exec cat "$0" > "$1"' : 'head -c "$2" "$0" > "$1"';
  const child = child_process.spawn("sh", ["-c", command, from, to, String(limit ?? 0)]);
  children.add(child);
  return child;
};

const closed = (child: child_process.ChildProcess): Promise<void> =>
  new Promise((resolve) => {
    child.on("close", () => resolve());
  });

/** Whatever this machine has beside gzip. */
const filter = ["zstd", "xz", "bzip2"].find((each) => without(each) === undefined) ?? "none";
const noFilter = filter === "none" ? "zstd, xz and bzip2 are not installed" : undefined;

describe("archives", () => {
  it("decrypt with scrypt and untar to the images, byte for byte", unless(noScrypt), async () => {
    const w = world();
    const to = path.join(w.dir, "out");
    const { code, stdout } = await backup(w, to).ended;
    expect(code).toBe(0);
    expect(stdout).toMatch(/^-{18}\+-{14}\+-{14}\+\n {15}VM \| {9}type \| {9}size \|\n/);
    expect(stdout).toContain("             work |           VM |    256.0 KiB |\n");
    expect(stdout).toContain("VMs not selected for backup:\n - dom0\n - net\n - tpl\n");
    expect(stdout.endsWith("\n\n")).toBe(true);
    expect(fs.statSync(to).size % 10240).toBe(0);
    const { text, tars, files } = open(to);
    expect(text).toMatch(
      /^version=4\nencrypted=True\ncompressed=True\ncompression-filter=gzip\nhmac-algorithm=scrypt\nbackup-id=\d{8}T\d{6}-\d+\n$/,
    );
    // By name: mail has the qid 3, work 2.
    expect([...tars.keys()]).toEqual(["qubes.xml", "vm3/private.img", "vm2/private.img"]);
    expect(files.get("vm2/private.img")!.length).toBeGreaterThan(2);
    for (const [qid, name] of [
      [2, "work"],
      [3, "mail"],
    ] as const) {
      const file = `vm${qid}/private.img`;
      expect(untar(tars.get(file)!, file).equals(image(w, name)), name).toBe(true);
    }
    const xml = untar(tars.get("qubes.xml")!, "qubes.xml").toString();
    expect(xml).toContain('<feature name="backup-path">vm2/</feature>');
    expect(w.qube("work").backup_timestamp).toBeGreaterThan(1e9);
    expect(w.qube("net").backup_timestamp).toBeNull();
    expect(w.profiles()).toEqual([]);
  });

  /** Of the two that differ, the one that the tar of this machine is like. */
  const tarHere = (): "1.34" | "1.35" => {
    const said = child_process.execFileSync("tar", ["--version"], { encoding: "utf8" });
    const [, major = "", minor = ""] = /^tar \(GNU tar\) (\d+)\.(\d+)/.exec(said) ?? [];
    return Number(major) === 1 && Number(minor) < 35 ? "1.34" : "1.35";
  };

  it("has the header layout of GNU tar --posix", async () => {
    const w = world({ tar: tarHere() });
    const to = path.join(w.dir, "out");
    await backup(w, to).ended;
    for (const member of walk(fs.readFileSync(to))) {
      // Made by tar itself from the same data.
      const dir = fs.mkdtempSync(path.join(top, "tar-"));
      const file = path.join(dir, member.name);
      fs.mkdirSync(path.dirname(file), { recursive: true });
      fs.writeFileSync(file, member.data, { mode: 0o644 });
      fs.chmodSync(file, 0o644);
      const owner = ["--owner=root:0", "--group=root:0"];
      const args = ["-cO", "--posix", ...owner, "-C", dir, member.name];
      const [theirs] = walk(child_process.execFileSync("tar", args, { maxBuffer: 1e9 }));
      // All but mtime, checksum, and what follows from the number of digits in the pax record.
      const mask = (head: Buffer) => {
        const copy = Buffer.from(head);
        copy.fill(0, 136, 156);
        if (copy[156] === "x".charCodeAt(0)) copy.fill(0, 124, 136);
        return copy.toString("latin1");
      };
      expect(mask(member.pax)).toBe(mask(theirs!.pax));
      expect(mask(member.head)).toBe(mask(theirs!.head));
      const pattern = /^\d+ mtime=\d+\.\d+\n\d+ atime=\d+\.\d+\n\d+ ctime=\d+\.\d+\n$/;
      expect(theirs!.records).toMatch(pattern);
      expect(member.records).toMatch(pattern);
      for (const head of [member.pax, member.head]) {
        expect(head.subarray(148, 156).toString("latin1")).toBe(
          `${sumOf(head).toString(8).padStart(6, "0")}\0 `,
        );
      }
      expect(member.end - member.at).toBe(theirs!.end);
    }
  });

  it.each([
    ["1.34", "0000000\0".repeat(2)],
    ["1.35", "\0".repeat(16)],
  ] as const)("has the device fields of GNU tar %s, and is read by tar", async (tar, fields) => {
    const w = world({ tar });
    const to = path.join(w.dir, "out");
    await backup(w, to).ended;
    const members = walk(fs.readFileSync(to));
    for (const { head, pax } of members) {
      expect(head.toString("latin1", 329, 345)).toBe(fields);
      expect(pax.toString("latin1", 329, 345)).toBe("\0".repeat(16));
    }
    const listed = child_process.execFileSync("tar", ["-itf", to], { encoding: "utf8" });
    expect(listed.trim().split("\n")).toEqual(members.map(({ name }) => name));
  });

  it("has sparse inner archives that GNU tar reads the same way", unless(noScrypt), async () => {
    const w = world({}, [{ name: "mail", size: 4096 * KiB, data: 21_000 }]);
    const to = path.join(w.dir, "out");
    await backup(w, to).ended;
    const tar = open(to).tars.get("vm2/private.img")!;
    expect(String.fromCharCode(tar[156]!)).toBe("S");
    // A disk keeps whole pages.
    const map = [386, 398, 410, 422].map((at) =>
      Number.parseInt(tar.toString("latin1", at, at + 11), 8),
    );
    expect(map).toEqual([0, 12 * KiB, 2048 * KiB, 12 * KiB]);
    expect(tar.length).toBeLessThan(64 * KiB);
    expect(untar(tar, "vm2/private.img").equals(image(w, "mail"))).toBe(true);
  });

  it(
    "ends a file with a chunk that is not full, be it an empty one",
    unless(noScrypt),
    async () => {
      // 512 header, 129024 data, 1024 zeros, up to a record: 133120 = 13 records, two chunks exactly.
      const w = world({ chunkSize: 66560 }, [{ name: "work", size: 129024 }]);
      const to = path.join(w.dir, "out");
      expect((await backup(w, to, "--no-compress").ended).code).toBe(0);
      const sizes = walk(fs.readFileSync(to))
        .filter(({ name }) => name.startsWith("vm2/"))
        .map(({ name, size }) => [name, size]);
      expect(sizes).toEqual([
        ["vm2/private.img.000.enc", 66560 + 128],
        ["vm2/private.img.001.enc", 66560 + 128],
        ["vm2/private.img.002.enc", 128],
      ]);
      const { text, tars } = open(to, null);
      expect(text).toContain("compressed=False\n");
      expect(untar(tars.get("vm2/private.img")!, "vm2/private.img")).toEqual(image(w, "work"));
    },
  );

  it(
    "holds templates, small files, dom0's home last, and a placeholder for nothing",
    unless(noScrypt, noFilter),
    async () => {
      const w = world({}, [
        {
          name: "debian",
          class: "TemplateVM",
          volumes: { private: { size: 4096 }, root: { size: 8192 } },
        },
        { name: "void", size: 0 },
        { name: "full", size: 4096, files: { "firewall.xml": "<f/>", "notes.txt": "a note" } },
      ]);
      fs.mkdirSync(path.join(w.home("dom0"), "d".repeat(90)));
      fs.writeFileSync(path.join(w.home("dom0"), "d".repeat(90), "note"), "in dom0");
      const to = path.join(w.dir, "out");
      const args = ["-y", "-Z", filter, "-p", "-", to];
      expect((await run(w, "qvm-backup", args, `${PASSPHRASE}\n`)).code).toBe(0);
      const { text, tars } = open(to, [filter, "-dc"]);
      expect(text).toContain(`compression-filter=${filter}\n`);
      expect([...tars.keys()]).toEqual([
        "qubes.xml",
        "vm1/root.img",
        "vm1/private.img",
        "vm3/private.img",
        "vm3/firewall.xml",
        "vm3/notes.txt",
        "vm2/empty",
        "dom0-home/user",
      ]);
      expect(untar(tars.get("vm3/notes.txt")!, "vm3/notes.txt").toString()).toBe("a note");
      expect(untar(tars.get("vm2/empty")!, "vm2/empty").length).toBe(0);
      const note = `dom0-home/user/${"d".repeat(90)}/note`;
      expect(untar(tars.get("dom0-home/user")!, note).toString()).toBe("in dom0");
    },
  );

  it("of benchmark size are made quickly, in the right form, without ciphertext", async () => {
    const w = world({ raw: true, chunkSize: 100 * KiB * KiB }, [
      { name: "big", size: 256 * KiB * KiB },
    ]);
    const to = path.join(w.dir, "out");
    expect((await backup(w, to).ended).code).toBe(0);
    const fd = fs.openSync(to, "r");
    const head = Buffer.alloc(1536 + 64);
    fs.readSync(fd, head, 0, head.length, 30720);
    fs.closeSync(fd);
    expect(cstring(head.subarray(1024))).toBe("vm2/private.img.000.enc");
    const sum = crypto.createHash("sha256").update(head.subarray(1536, 1584)).digest();
    expect(head.subarray(1584).equals(sum.subarray(0, 16))).toBe(true);
    const full = Math.ceil((1536 + 104857728 + 1024) / 10240) * 10240;
    const inner = Math.ceil((512 + 256 * KiB * KiB + 1024) / 10240) * 10240;
    const rest = inner - 2 * 104857600 + 128;
    const last = Math.ceil((1536 + Math.ceil(rest / 512) * 512 + 1024) / 10240) * 10240;
    expect(fs.statSync(to).size).toBe(30720 + 2 * full + last);
    fs.rmSync(to);
  });
});

describe("qvm-backup", () => {
  it("refuses what the real one refuses, in its words", async () => {
    const w = world();
    const to = path.join(w.dir, "out");
    const unknown = await backup(w, to, "nope").ended;
    expect(unknown.code).toBe(2);
    expect(unknown.stderr)
      .toBe(`usage: qvm-backup [--verbose] [--quiet] [--help] [--version] [--yes]
                  [--profile PROFILE] [--exclude EXCLUDE_LIST]
                  [--dest-vm APPVM] [--encrypt]
                  [--passphrase-file PASSPHRASE_FILE] [--compress]
                  [--no-compress] [--compress-filter COMPRESSION]
                  [--save-profile SAVE_PROFILE]
                  [backup_location] [vms ...]
qvm-backup: error: no such domain: 'nope'
`);
    const parent = await backup(w, "/nowhere/out").ended;
    expect(parent.code).toBe(1);
    expect(parent.stderr).toBe(
      "\nBackup error: ERROR: the backup directory for /nowhere/out does not exists\n",
    );
    const empty = await run(w, "qvm-backup", ["-y", "-p", "/dev/null", to]);
    expect(empty.code).toBe(1);
    expect(empty.stderr).toContain("you need to specify passphrase_text or passphrase_vm");
    expect((await run(w, "qvm-backup", ["--nope", to])).code).toBe(2);
    expect((await run(w, "qvm-backup", ["-p", passphraseFile, to])).stderr).toContain("EOFError");
    expect((await run(w, "qvm-backup", ["-p", passphraseFile, to], "n\n")).code).toBe(0);
    expect(fs.existsSync(to)).toBe(false);
  });

  it("reads the passphrase as Python does", async () => {
    const w = world();
    const to = path.join(w.dir, "out");
    const file = path.join(w.dir, "p");
    const shown = async (text: string | Buffer) => {
      fs.writeFileSync(file, text);
      await run(w, "qvm-backup", ["-y", "--save-profile", "kept", "-p", file, to]);
      const profile = fs.readFileSync(path.join(w.dir, "etc/qubes/backup/kept.conf"), "utf8");
      return /^passphrase_text: '?(.*?)'?$/m.exec(profile)?.[1];
    };
    expect(await shown("a b \t\nc\n")).toBe("a b");
    expect(await shown("a\rb\n")).toBe("a");
    expect(await shown("\ufeffab\ufeff\n")).toBe("\ufeffab\ufeff");
    fs.writeFileSync(file, Buffer.from([0x61, 0xff, 0x0a]));
    const broken = await run(w, "qvm-backup", ["-y", "-p", file, to]);
    expect([broken.code, broken.stderr.includes("UnicodeDecodeError")]).toEqual([1, true]);
  });

  it("fails in the middle at a running qube without snapshots, which its summary names", async () => {
    const w = world({}, [
      { name: "first", size: 64 * KiB },
      { name: "work", size: 64 * KiB, revisionsToKeep: -1, state: "Running" },
    ]);
    const to = path.join(w.dir, "out");
    const { code, stderr, stdout } = await backup(w, to).ended;
    expect(code).toBe(1);
    expect(stderr).toBe(
      "\nBackup error: Got empty response from qubesd. See journalctl in dom0 for details.\n",
    );
    expect(stdout).toMatch(/^ +work \|.* <-- The VM is running and .* Backup will fail!$/m);
    expect(names(to).filter((name) => name.startsWith("vm3/"))).toEqual([]);
    expect(names(to)).toContain("vm2/private.img.000.enc");
    w.change("work", { state: "Halted" });
    expect((await backup(w, to).ended).code).toBe(0);
  });

  it("makes an empty backup of a glob and exits 0", async () => {
    const w = world();
    const to = path.join(w.dir, "out");
    expect((await backup(w, to, "wo*").ended).code).toBe(0);
    expect(names(to)).toEqual(["backup-header", "backup-header.hmac", "qubes.xml.000.enc"]);
  });

  it("hangs all of qubesd until the FIFO has a reader", async () => {
    const w = world();
    await run(w, "qvm-ls", []);
    const pipe = fifo();
    const out = path.join(w.dir, "out");
    const going = backup(w, pipe);
    await until("profile with passphrase", () =>
      w
        .profiles()
        .some((name) =>
          fs
            .readFileSync(path.join(w.dir, "etc/qubes/backup", name), "utf8")
            .includes(`passphrase_text: ${PASSPHRASE}\n`),
        ),
    );
    await sleep(150);
    const ls = start(w, "qvm-ls", ["--raw-list"], "");
    const check = start(w, "qvm-check", ["-q", "work"], "");
    expect(await ends(ls.ended, 400)).toBe("hangs");
    expect(check.child.exitCode).toBeNull();
    const read = closed(reader(pipe, out));
    expect((await ls.ended).stdout).toBe("dom0\nmail\nnet\ntpl\nwork\n");
    expect((await check.ended).code).toBe(0);
    expect((await going.ended).code).toBe(0);
    await read;
    expect(names(out).at(-1)).toBe("vm2/private.img.003.enc");
    expect(w.profiles()).toEqual([]);
  });

  it("exits 0 and stamps the qubes when the reader has died", async () => {
    const w = world();
    const pipe = fifo();
    const out = path.join(w.dir, "out");
    reader(pipe, out, 15_000);
    const { code, stderr } = await backup(w, pipe).ended;
    expect(code).toBe(0);
    expect(stderr.replace(/\rMaking a backup\.\.\. \d+\.\d\d%/g, "")).toBe("");
    expect(fs.statSync(out).size).toBe(15_000);
    expect(w.qube("work").backup_timestamp).not.toBeNull();
  });

  it.each(["SIGTERM", "SIGHUP", "SIGKILL"] as const)(
    "goes on inside qubesd after %s, and the profile stays",
    unless(noScrypt),
    async (signal) => {
      const w = world();
      w.faults({ tool: "qvm-backup", kind: "silence", after: 40_000, ms: 700 });
      const out = path.join(w.dir, "out");
      const going = backup(w, out);
      await until("half an archive", () => fs.existsSync(out) && fs.statSync(out).size >= 30_720);
      going.child.kill(signal);
      expect((await going.ended).signal).toBe(signal);
      expect(w.profiles().length).toBe(1);
      await until("the end of the backup", () => w.qube("work").backup_timestamp !== null);
      open(out);
    },
  );

  it("is cancelled by SIGINT at once, at the end of a member", async () => {
    const w = world();
    // Longer than any test: who waits for its end does not get there.
    w.faults({ tool: "qvm-backup", kind: "silence", after: 40_000, ms: 600_000 });
    const out = path.join(w.dir, "out");
    const going = backup(w, out);
    await until("half an archive", () => fs.existsSync(out) && fs.statSync(out).size >= 30_720);
    going.child.kill("SIGINT");
    const { code, stderr } = await going.ended;
    expect(code).toBe(1);
    expect(stderr).toContain("\nBackup error: Backup cancelled\n");
    expect(w.profiles()).toEqual([]);
    expect(w.qube("work").backup_timestamp).toBeNull();
    expect(names(out)).toEqual(["backup-header", "backup-header.hmac", "qubes.xml.000.enc"]);
    await until("a clean slate", () => fs.readdirSync(path.join(w.dir, "tmp")).length === 0);
  });

  it("of a killed client is cancelled by qubesd-query", async () => {
    const w = world();
    w.faults({ tool: "qvm-backup", kind: "silence", after: 40_000, ms: 600_000 });
    const out = path.join(w.dir, "out");
    const going = backup(w, out);
    await until("half an archive", () => fs.existsSync(out) && fs.statSync(out).size >= 30_720);
    going.child.kill("SIGKILL");
    await going.ended;
    const profile = w.profiles()[0]!.replace(/\.conf$/, "");
    const query = ["-e", "dom0", "admin.backup.Cancel", "dom0", profile];
    expect((await run(w, "qubesd-query", query)).stdout).toBe("0\0");
    await until("its end", async () =>
      (await run(w, "qubesd-query", query)).stdout.startsWith("2\0"),
    );
  });

  it("leaves the current tar to its reader when it is cancelled", async () => {
    const w = world({ chunkSize: 4096 * KiB }, [{ name: "work", size: 2048 * KiB }]);
    const pipe = fifo();
    const fd = fs.openSync(pipe, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    const going = backup(w, pipe);
    const drain = (upTo: number): number => {
      const buffer = Buffer.alloc(upTo);
      try {
        return fs.readSync(fd, buffer, 0, upTo, null);
      } catch {
        return -1;
      }
    };
    let read = 0;
    // Up to the middle of the qube's only member, then no more.
    await until("the big member", () => {
      read += Math.max(0, drain(10_240));
      return read >= 61_440;
    });
    going.child.kill("SIGINT");
    expect((await going.ended).code).toBe(1);
    expect(w.processes("tar").length).toBe(1);
    expect((await run(w, "qvm-ls", [])).code).toBe(0);
    expect(w.processes("tar").length).toBe(1);
    fs.closeSync(fd);
    await until("tar is gone", () => w.processes("tar").length === 0);
  });
});

describe("faults of qvm-backup", () => {
  const faulty = async (fault: object, ...more: ReadonlyArray<string>) => {
    const w = world();
    w.faults({ tool: "qvm-backup", kind: "", ...fault });
    const out = path.join(w.dir, "out");
    return { w, out, ...(await backup(w, out, ...more).ended) };
  };
  // mail is one chunk of vm3, work four of vm2.
  const work = [0, 1, 2, 3].map((chunk) => `vm2/private.img.00${chunk}.enc`);
  const [first, second, third, last] = work as [string, string, string, string];
  const heads = ["backup-header", "backup-header.hmac", "qubes.xml.000.enc"];
  const mail = "vm3/private.img.000.enc";

  it.each([
    [{ kind: "missing-member" }, [mail, first, second, third]],
    [{ kind: "missing-member", member: second }, [mail, first, third, last]],
    [{ kind: "gap" }, [mail, first, third, last]],
    [{ kind: "doubled-member" }, [mail, mail, ...work]],
    [{ kind: "swapped-members", member: second }, [mail, first, third, second, last]],
    [{ kind: "missing-qube" }, [mail]],
    [{ kind: "missing-qube", vm: "mail" }, work],
    [{ kind: "unexpected-qube" }, [mail, ...work, "vm99/private.img.000.enc"]],
    [{ kind: "drop-tail", members: 2 }, [mail, first, second]],
    [{ kind: "removed", vm: "work", stage: "info" }, [mail]],
    [{ kind: "removed", vm: "work", stage: "execute" }, [mail]],
  ])("%j", async (fault, expected) => {
    const { code, out } = await faulty(fault);
    expect(code).toBe(0);
    expect(names(out)).toEqual([...heads, ...expected]);
  });

  it("truncated members that cannot be decrypted, exit 0", unless(noScrypt), async () => {
    const { code, out } = await faulty({ kind: "temp-full" });
    expect(code).toBe(0);
    const members = walk(fs.readFileSync(out));
    expect(members.map(({ name }) => name)).toEqual([...heads, mail, ...work]);
    const id = /backup-id=(.*)/.exec(members[0]!.data.toString())![1]!;
    const pass = (name: string) => `${id}!${name.replace(/\.enc$/, "")}!${PASSPHRASE}`;
    expect(() => decrypt(members.at(-1)!.data, pass(last))).toThrow();
    expect(decrypt(members.at(-2)!.data, pass(third)).length).toBe(64 * KiB);
  });

  it("broken headers, short chunks, garbage", async () => {
    const tar = walk(fs.readFileSync((await faulty({ kind: "broken-tar" })).out));
    expect(tar[3]!.head.subarray(148, 154).toString()).not.toBe(
      sumOf(tar[3]!.head).toString(8).padStart(6, "0"),
    );
    const scrypt = walk(fs.readFileSync((await faulty({ kind: "broken-scrypt" })).out))[3]!.data;
    const sum = crypto.createHash("sha256").update(scrypt.subarray(0, 48)).digest();
    expect(scrypt.subarray(48, 64).equals(sum.subarray(0, 16))).toBe(false);
    const short = walk(fs.readFileSync((await faulty({ kind: "short-chunk" })).out));
    expect(short.find(({ name }) => name === first)!.size).toBe(64 * KiB + 128 - 1024);
    const garbage = fs.readFileSync((await faulty({ kind: "trailing-garbage", bytes: 99 })).out);
    expect(garbage.length % 10240).toBe(99);
  });

  it("errors at every stage", async () => {
    const info = await faulty({ kind: "fail", stage: "info", text: "no" });
    expect([info.code, info.stderr]).toEqual([1, "\nBackup preparation error: no\n"]);
    expect(info.w.profiles().length).toBe(1);
    const half = await faulty({ kind: "fail", after: 50_000, text: "half-way" });
    expect([half.code, half.stderr]).toEqual([1, "\nBackup error: half-way\n"]);
    expect(fs.statSync(half.out).size).toBe(50_000);
    const python = await faulty({ kind: "traceback" });
    expect(python.code).toBe(1);
    expect(python.stderr).toContain("Traceback (most recent call last):\n");
    const silent = await faulty({ kind: "empty-response" });
    expect(silent.stderr).toContain("Got empty response from qubesd. See journalctl in dom0");
    const nothing = await faulty({ kind: "write-nothing", open: false });
    expect([nothing.code, fs.existsSync(nothing.out)]).toEqual([0, false]);
    const cut = await faulty({ kind: "drop-tail", after: 33_333 });
    expect([cut.code, fs.statSync(cut.out).size]).toEqual([0, 33_333]);
  });

  it("hang in the middle, until cancelled; a deaf one is not", async () => {
    const w = world();
    w.faults(
      { tool: "qvm-backup", kind: "hang-after", after: 35_000 },
      { tool: "qvm-backup", kind: "ignore-sigint", times: 1 },
    );
    const out = path.join(w.dir, "out");
    const deaf = backup(w, out);
    await until("35000 bytes", () => fs.existsSync(out) && fs.statSync(out).size === 35_000);
    deaf.child.kill("SIGINT");
    expect(await ends(deaf.ended, 300)).toBe("hangs");
    deaf.child.kill("SIGKILL");
    const other = path.join(w.dir, "other");
    const going = backup(w, other);
    await until("35000 bytes", () => fs.existsSync(other) && fs.statSync(other).size === 35_000);
    going.child.kill("SIGINT");
    expect((await going.ended).code).toBe(1);
  });

  it("slow, with progress at most once a second", unless(noScrypt), async () => {
    const w = world();
    w.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 200_000 });
    const { code, stderr } = await backup(w, path.join(w.dir, "out")).ended;
    expect(code).toBe(0);
    expect(stderr).toMatch(/^(\rMaking a backup\.\.\. \d+\.\d\d%)+$/);
    open(path.join(w.dir, "out"));
  });
});

describe("qvm-run", () => {
  const service = "#!/bin/sh\n";
  const call = (of: World, name: string, input?: string): Started =>
    start(of, "qvm-run", ["--no-gui", "--pass-io", "--service", "net", name], input);

  it("runs a service as the agent does, in a login shell, and starts the qube", async () => {
    const w = world({ extraPath: ["/opt/extra"] });
    w.service("net", "t.Env", {
      text: `${service}pwd; echo "$#:$1"; env; sleep 0.1; cat; echo oops >&2; exit 7\n`,
    });
    fs.writeFileSync(path.join(w.home("net"), ".profile"), "echo noise\nexport FROM=profile\n");
    expect((await run(w, "qvm-check", ["-q", "--running", "net"])).code).toBe(1);
    const { code, stdout, stderr } = await call(w, "t.Env+an-argument", "the input").ended;
    expect(code).toBe(7);
    expect(stderr).toBe("oops\n");
    expect(fs.readFileSync(path.join(w.dir, "log/net.log"), "utf8")).toBe("oops\n");
    const lines = stdout.split("\n");
    expect(lines.slice(0, 3)).toEqual(["noise", w.home("net"), "1:an-argument"]);
    expect(lines.at(-1)).toBe("the input");
    const env = Object.fromEntries(
      lines.slice(3, -1).map((line) => [line.split("=")[0]!, line.slice(line.indexOf("=") + 1)]),
    );
    expect(env).toMatchObject({
      FROM: "profile",
      HOME: w.home("net"),
      QREXEC_REMOTE_DOMAIN: "dom0",
      QREXEC_SERVICE_FULL_NAME: "t.Env+an-argument",
      QREXEC_SERVICE_ARGUMENT: "an-argument",
      QREXEC_REQUESTED_TARGET_TYPE: "",
    });
    expect(env["PATH"]).toMatch(/^\/opt\/extra:.*\/usr\/bin/);
    expect(Object.keys(env).filter((name) => !(name in (env as object)))).toEqual([]);
    expect(env["VITEST"]).toBeUndefined();
    expect((await run(w, "qvm-check", ["-q", "--running", "net"])).code).toBe(0);
  });

  it("finds the full name first, then the bare one, and tells exit codes", async () => {
    const w = world();
    w.service("net", "t.A", { text: `${service}echo "plain $#"\n` });
    w.service("net", "t.A+x", { text: `${service}echo "full $1"\n` });
    w.service("tpl", "t.Template", { text: `${service}kill -TERM $$\n` });
    fs.chmodSync(w.service("net", "t.Not", { text: "" }), 0o644);
    expect((await call(w, "t.A", "").ended).stdout).toBe("plain 0\n");
    expect((await call(w, "t.A+", "").ended).stdout).toBe("plain 0\n");
    expect((await call(w, "t.A+y", "").ended).stdout).toBe("plain 1\n");
    expect((await call(w, "t.A+x", "").ended).stdout).toBe("full x\n");
    expect((await call(w, "t.Template", "").ended).code).toBe(128 + 15);
    expect((await call(w, "t.Not", "").ended).code).toBe(125);
    expect((await call(w, "t.Nowhere", "").ended).code).toBe(127);
    const nobody = await run(w, "qvm-run", ["-p", "--service", "nobody", "t.A"]);
    expect(nobody.code).toBe(2);
    expect(nobody.stderr).toMatch(/^usage: [^]*qvm-run: error: no such domain: 'nobody'\n$/);
    expect((await run(w, "qvm-run", ["-p"])).code).toBe(2);
    await run(w, "qvm-shutdown", ["--wait", "net"]);
    expect((await run(w, "qvm-run", ["-n", "-p", "--service", "net", "t.A"])).code).toBe(1);
    expect((await run(w, "qvm-run", ["-p", "net", "echo shell; exit 3"])).code).toBe(3);
  });

  it("ends with the service, though its caller would go on", async () => {
    const w = world();
    w.service("net", "t.Early", { text: `${service}read line; echo "$line"; exit 5\n` });
    const going = call(w, "t.Early");
    going.child.stdin!.write("hello\n");
    const ended = await ends(going.ended, 5000);
    expect(ended).toMatchObject({ code: 5, stdout: "hello\n" });
  });

  it("gives a service sockets: /dev/stdin cannot be opened again", async () => {
    const w = world();
    w.service("net", "t.Again", { text: `${service}cat < /dev/stdin\n` });
    const { code, stderr } = await call(w, "t.Again", "input").ended;
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/No such device or address|cannot open/);
  });

  it("does not tell a service that its caller has stopped reading", async () => {
    const w = world();
    const done = path.join(w.dir, "done");
    w.service("net", "t.Much", {
      text: `${service}head -c 3000000 /dev/zero; echo $? > '${done}'\n`,
    });
    const going = call(w, "t.Much", "");
    going.child.stdout!.destroy();
    expect((await going.ended).code).toBe(0);
    expect(fs.readFileSync(done, "utf8")).toBe("0\n");
  });

  /** Fills its stdout, says so when nobody took a byte for a second, and waits for room or an end. */
  const poller = (full: string) =>
    [
      "#!/usr/bin/perl",
      "use Fcntl; fcntl(STDOUT, F_SETFL, O_NONBLOCK); $SIG{PIPE} = 'IGNORE';",
      "for (my $said = 0;;) {",
      "  1 while syswrite(STDOUT, 'x' x 65536);",
      "  exit 0 unless $!{EAGAIN};",
      "  vec(my $out = '', 1, 1) = 1;",
      "  next if select(undef, $out, undef, $said ? undef : 1);",
      `  open(my $f, '>', '${full}'); close $f; $said = 1;`,
      "}",
    ].join("\n");

  it.each([false, true])(
    "keeps the sockets of a service whose client is gone, unless agentCloses: %j",
    async (agentCloses) => {
      const w = world({ agentCloses });
      const full = path.join(w.dir, "full");
      w.service("net", "t.Poll", { text: poller(full) });
      w.service("net", "t.Write", { text: `${service}echo up; exec yes\n` });
      const calls = ["t.Poll", "t.Write"].map((name) => call(w, name));
      // Nobody reads, as a dom0 that hangs.
      for (const { child } of calls) child.stdout!.pause();
      const services = () => w.processes("service").map((each) => each.service);
      const agents = () => w.processes("agent").map((each) => each.service);
      await until("a full socket", () => fs.existsSync(full) && services().length === 2);
      for (const { pid } of w.processes("qrexec-client")) process.kill(pid, "SIGKILL");
      // Who writes is told.
      await until("the writer's end", () => ![...services(), ...agents()].includes("t.Write"));
      if (agentCloses) await until("the poller's end", () => services().length === 0);
      else {
        expect(services()).toEqual(["t.Poll"]);
        expect(agents()).toEqual(["t.Poll"]);
        // Until somebody ends it; then its agent goes, too.
        process.kill(w.processes("service")[0]!.pid, "SIGTERM");
        await until("the agent's end", () => agents().length === 0);
      }
    },
  );

  it("exits 0 when its qrexec-client is killed; the service sees an end of file", async () => {
    const w = world();
    const done = path.join(w.dir, "done");
    w.service("net", "t.Count", {
      text: `${service}echo ready; n=$(wc -c); sleep 0.2; echo "$n" > '${done}.new'; mv '${done}.new' '${done}'\n`,
    });
    const going = call(w, "t.Count");
    going.child.stdin!.write("x".repeat(100_000));
    await until("a client", () => w.processes("qrexec-client").length === 1);
    await until("a service", () => w.processes("service").length === 1);
    await sleep(300);
    process.kill(w.processes("qrexec-client")[0]!.pid, "SIGKILL");
    expect(await ends(going.ended, 3000)).toMatchObject({ code: 0, stdout: "ready\n" });
    await until("the service's end", () => fs.existsSync(done));
    expect(fs.readFileSync(done, "utf8").trim()).toBe("100000");
  });

  it("faults: refuse, exit, kill-client after bytes, and a qube that cannot start", async () => {
    const w = world();
    const done = path.join(w.dir, "done");
    w.service("net", "t.Count", { text: `${service}wc -c > '${done}'\n` });
    w.faults({ tool: "qvm-run", kind: "refuse", times: 1, text: "not now" });
    expect(await call(w, "t.Count", "").ended).toMatchObject({
      code: 255,
      stderr: "net: not now\n",
    });
    w.faults({ tool: "qvm-start", kind: "fail" });
    expect((await call(w, "t.Count", "").ended).code).toBe(255);
    expect((await run(w, "qvm-start", ["net"])).code).toBe(1);
    w.faults({ tool: "qvm-run", kind: "exit", code: 9 });
    expect((await call(w, "t.Count", "").ended).code).toBe(9);
    w.faults({ tool: "qvm-run", kind: "kill-client", after: 70_000 });
    expect((await call(w, "t.Count", "y".repeat(200_000)).ended).code).toBe(0);
    await until("the count", () => fs.existsSync(done) && fs.readFileSync(done, "utf8") !== "");
    expect(fs.readFileSync(done, "utf8").trim()).toBe("70000");
  });

  it("unpauses a qube, and with -n does not; of a name with a blank it makes nothing", async () => {
    const w = world();
    w.service("net", "t.A", { text: `${service}echo yes\n` });
    w.change("net", { state: "Paused" });
    expect((await run(w, "qvm-run", ["-n", "-p", "--service", "net", "t.A"])).code).toBe(1);
    expect(w.qube("net").state).toBe("Paused");
    expect(await call(w, "t.A", "").ended).toMatchObject({ code: 0, stdout: "yes\n" });
    expect(w.qube("net").state).toBe("Running");
    expect((await call(w, "t.A x", "").ended).code).toBe(125);
    // Behind the command all is an argument, and a service has none.
    expect((await run(w, "qvm-run", ["-p", "--service", "net", "t.A", "-q"])).code).toBe(0);
    expect((await run(w, "qvm-run", ["net", "t.A", "-p"])).stdout).toBe("");
  });

  it("faults: no qrexec-daemon, and a qrexec-client of another version", async () => {
    const w = world();
    w.service("net", "t.A", { text: `${service}echo yes\n` });
    w.faults({ tool: "qvm-run", kind: "no-daemon" });
    const gone = await call(w, "t.A", "").ended;
    expect([gone.code, gone.stdout]).toEqual([125, ""]);
    expect(gone.stderr).toMatch(/: connect \/var\/run\/qubes\/qrexec\.net: Connection refused\n/);
    w.faults({ tool: "qvm-run", kind: "usage" });
    const usage = await call(w, "t.A", "").ended;
    expect(usage.code).toBe(0);
    expect(usage.stdout).toMatch(/^usage: qrexec-client /);
    w.faults();
    w.change("net", { state: "Transient" });
    const early = await call(w, "t.A", "").ended;
    expect([early.code, early.stdout]).toEqual([125, ""]);
    expect(early.stderr).toContain("qrexec.net: No such file or directory\n");
  });

  it("loses its services when the qube is shut down, and everything when the world ends", async () => {
    const w = world();
    w.service("net", "t.Long", { text: `${service}echo up; sleep 60 & wait\n` });
    const one = call(w, "t.Long");
    await until("a service", () => w.processes("service").length === 1);
    await sleep(100);
    expect((await run(w, "qvm-shutdown", ["--wait", "net"])).code).toBe(0);
    expect(await one.ended).toMatchObject({
      code: 255,
      stderr: expect.stringMatching(/ qrexec-client\[\d+\]: .*: vchan connection closed early /),
    });
    const two = call(w, "t.Long");
    await until("a service", () => w.processes("service").length === 1);
    await sleep(100);
    w.stop();
    expect(await ends(two.ended, 3000)).not.toBe("hangs");
    expect(w.processes()).toEqual([]);
    const after = await run(w, "qvm-ls", []);
    expect(after.code).toBe(1);
    expect(after.stderr).toMatch(
      /^Traceback [^]*\nDuring handling [^]*\nqubesadmin\.exc\.QubesDaemonCommunicationError: Failed to connect to qubesd service: \[Errno 111\] Connection refused\n$/,
    );
    expect(after.stderr.length).toBeGreaterThan(1000);
  });
});

describe("the other tools", () => {
  /** Code, stdout, stderr; of a usage error only what is wrong. */
  const said = async (of: World, tool: string, ...args: ReadonlyArray<string>) => {
    const { code, stderr, stdout } = await run(of, tool, args);
    return [code, stdout, stderr.replace(/^usage: [^]*?\n(?=qvm-)/, "")];
  };
  const quiet = (code: number) => [code, "", ""];

  it("qvm-ls", async () => {
    const w = world();
    const fields = "name,qid,state,class,include_in_backups,backup_timestamp,nonsense";
    expect(await said(w, "qvm-ls", "--raw-data", "--fields", fields)).toEqual([
      0,
      [
        "dom0|0|Running|AdminVM|True|-|-",
        "mail|3|Halted|AppVM|True|-|-",
        "net|4|Halted|AppVM|False|-|-",
        "tpl|1|Halted|TemplateVM|False|-|-",
        "work|2|Halted|AppVM|True|-|-",
        "",
      ].join("\n"),
      "",
    ]);
    expect(await said(w, "qvm-ls", "nope")).toEqual([
      2,
      "",
      "qvm-ls: error: no such domain: 'nope'\n",
    ]);
    w.change("net", { state: "Paused" });
    expect(await said(w, "qvm-ls", "--raw-list", "--running")).toEqual([0, "dom0\n", ""]);
    expect(await said(w, "qvm-ls", "--raw-list", "--paused")).toEqual([0, "net\n", ""]);
    expect(await said(w, "qvm-ls", "--raw-list", "[mw]*")).toEqual([0, "mail\nwork\n", ""]);
    // As argparse has it: -o is a preset, and the names stand together.
    expect((await said(w, "qvm-ls", "--raw-data", "-o", "name"))[0]).toBe(2);
    expect((await said(w, "qvm-ls", "--raw-data", "work", "--fields", "name", "mail"))[2]).toBe(
      "qvm-ls: error: unrecognized arguments: mail\n",
    );
    w.faults({ tool: "qvm-ls", kind: "fail", code: 4, text: "broken" });
    expect(await said(w, "qvm-ls")).toEqual([4, "", "broken\n"]);
  });

  it("qvm-check: a paused qube runs, and so does one that starts", async () => {
    const w = world();
    for (const [state, code] of [
      ["Halted", 1],
      ["Transient", 0],
      ["Running", 0],
      ["Paused", 0],
      ["NA", 1],
    ] as const) {
      w.change("net", { state });
      expect(await said(w, "qvm-check", "-q", "--running", "net")).toEqual(quiet(code));
    }
    expect(await said(w, "qvm-check", "net")).toEqual([0, "", "qvm-check: net: exists\n"]);
    expect(await said(w, "qvm-check", "--running", "dom0", "net")).toEqual([
      3,
      "",
      "qvm-check: dom0: running\n",
    ]);
    expect(await said(w, "qvm-check", "--running", "net")).toEqual([
      1,
      "",
      "qvm-check: None of qubes: running\n",
    ]);
    // -q does not silence this.
    expect(await said(w, "qvm-check", "-q", "nope")).toEqual([1, "", "nope: non-existent!\n"]);
    expect((await said(w, "qvm-check"))[0]).toBe(2);
  });

  it("qvm-start, qvm-shutdown, qvm-pause, qvm-unpause", async () => {
    const w = world({ startMs: 20, stopMs: 20 });
    expect(await said(w, "qvm-start", "net")).toEqual(quiet(0));
    expect(await said(w, "qvm-start", "net")).toEqual([
      1,
      "",
      "Error: domain net is already running\n",
    ]);
    expect(await said(w, "qvm-start", "--skip-if-running", "net")).toEqual(quiet(0));
    expect((await said(w, "qvm-start", "nope"))[0]).toBe(2);
    w.faults({ tool: "qvm-shutdown", kind: "stubborn", times: 1 });
    expect(await said(w, "qvm-shutdown", "--wait", "--timeout", "1", "net")).toEqual(quiet(0));
    expect(w.qube("net").state).toBe("Halted");
    expect(await said(w, "qvm-shutdown", "--wait", "net")).toEqual(quiet(0));
    expect(await said(w, "qvm-pause", "net")).toEqual([
      1,
      "",
      "Error: Domain not running (either powered off or paused): 'net'\n",
    ]);
    await run(w, "qvm-start", ["net"]);
    expect(await said(w, "qvm-pause", "net")).toEqual(quiet(0));
    // It counts as running, so it is not unpaused; and it does not hear that it is to shut down.
    expect(await said(w, "qvm-start", "--skip-if-running", "net")).toEqual(quiet(0));
    expect(await said(w, "qvm-shutdown", "net")).toEqual(quiet(0));
    expect(w.qube("net").state).toBe("Paused");
    expect(await said(w, "qvm-shutdown", "--wait", "--timeout", "0.1", "net")).toEqual(quiet(0));
    expect(w.qube("net").state).toBe("Halted");
    w.change("net", { state: "Paused" });
    expect(await said(w, "qvm-unpause", "net")).toEqual(quiet(0));
    expect(w.qube("net").state).toBe("Running");
  });

  it("qvm-prefs, qvm-volume", async () => {
    const w = world({}, [
      { name: "net", include: false, size: 0, providesNetwork: true },
      { name: "work", size: 8192, revisionsToKeep: -1, netvm: "net" },
    ]);
    expect(await said(w, "qvm-prefs", "work", "qid")).toEqual([0, "3\n", ""]);
    expect(await said(w, "qvm-prefs", "work", "nonsense")).toEqual([
      2,
      "",
      "qvm-prefs: error: no such property: 'nonsense'\n",
    ]);
    expect((await said(w, "qvm-prefs", "work", "backup_timestamp"))[2]).toContain("Traceback");
    expect(await said(w, "qvm-prefs", "work", "backup_timestamp", "77")).toEqual(quiet(0));
    expect(await said(w, "qvm-prefs", "work", "backup-timestamp")).toEqual([0, "77\n", ""]);
    expect(await said(w, "qvm-prefs", "-D", "work", "backup_timestamp")).toEqual(quiet(0));
    expect(w.qube("work").backup_timestamp).toBeNull();
    expect(await said(w, "qvm-prefs", "work", "netvm", "nope")).toEqual([
      1,
      "",
      "qvm-prefs: error: Can't set netvm to non-existing qube nope\n",
    ]);
    expect(await said(w, "qvm-prefs", "net", "netvm", "work")).toEqual([
      1,
      "",
      "qvm-prefs: error: The work qube does not provide network\n",
    ]);
    expect(await said(w, "qvm-prefs", "work", "netvm", "none")).toEqual(quiet(0));
    expect(w.qube("work").netvm).toBeNull();
    const keep = ["info", "work:private", "revisions_to_keep"];
    expect(await said(w, "qvm-volume", ...keep)).toEqual([0, "-1\n", ""]);
    expect(await said(w, "qvm-volume", "info", "nope:private")).toEqual([
      1,
      "",
      "qvm-volume: error: no vm 'nope'\n",
    ]);
  });

  it("qubes that are made, tagged, filled and removed", async () => {
    const w = world();
    const made = ["--class=AppVM", "--label=red", "--property=netvm=", "new"];
    const off = "--property=include_in_backups=False";
    expect(await said(w, "qvm-create", off, ...made)).toEqual(quiet(0));
    const { class: kind, include_in_backups, label, netvm, qid, state } = w.qube("new");
    expect([kind, include_in_backups, label, netvm, qid, state]).toEqual([
      "AppVM",
      false,
      "red",
      null,
      5,
      "Halted",
    ]);
    expect(await said(w, "qvm-create", ...made)).toEqual([
      1,
      "",
      "app: Error creating VM: VM new already exists\n",
    ]);
    expect(await said(w, "qvm-create", "--label=red", "--property=netvm=work", "half")).toEqual([
      2,
      "",
      "app: Error setting property netvm (but VM created): The work qube does not provide network\n",
    ]);
    expect(w.qube("half").include_in_backups).toBe(true);
    for (const [args, text] of [
      [["new2"], "--label option is mandatory"],
      [["--label=red"], "VMNAME is mandatory"],
      [["--label=red", "--property=netvm", "new2"], "invalid property token: 'netvm'"],
    ] as const) {
      expect(await said(w, "qvm-create", ...args)).toEqual([2, "", `qvm-create: error: ${text}\n`]);
    }

    expect(await said(w, "qvm-tags", "new", "add", "mine")).toEqual(quiet(0));
    expect(await said(w, "qvm-tags", "new", "list", "mine")).toEqual([0, "mine\n", ""]);
    expect(await said(w, "qvm-tags", "work", "list", "mine")).toEqual(quiet(1));
    expect(await said(w, "qvm-ls", "--raw-list", "--tags", "mine")).toEqual([0, "new\n", ""]);
    const nobody = (tool: string) => [2, "", `${tool}: error: no such domain: 'nobody'\n`];
    expect(await said(w, "qvm-tags", "nobody", "add", "mine")).toEqual(nobody("qvm-tags"));

    const into = (...more: ReadonlyArray<string>) => ["import", "new:private", "-", ...more];
    const filled = async (...more: ReadonlyArray<string>) => {
      const { code, stderr } = await run(w, "qvm-volume", into(...more), "some bytes");
      return [code, stderr];
    };
    expect(await filled("--size=10")).toEqual([0, ""]);
    const { file, size } = w.qube("new").volumes["private"]!;
    expect([size, fs.readFileSync(file!, "latin1")]).toEqual([10, "some bytes"]);
    for (const [bytes, why] of [
      [11, "not enough data (copied 10 bytes, expected 11 bytes)"],
      [9, "too much data (expected 9 bytes)"],
    ] as const) {
      expect(await filled(`--size=${bytes}`)).toEqual([1, `Error: Data import failed: ${why}\n`]);
    }
    w.change("new", { state: "Running" });
    const runs = "Domain is not powered off: 'new'\n";
    expect(await filled("--size=10")).toEqual([1, `Error: ${runs}`]);
    expect(await said(w, "qvm-remove", "--force", "new")).toEqual([
      1,
      "",
      `qvm-remove: error: ${runs}`,
    ]);
    w.change("new", { state: "Halted" });
    expect((await said(w, "qvm-remove", "new"))[0]).toBe(1);
    expect(await said(w, "qvm-remove", "--force", "new")).toEqual(quiet(0));
    expect(fs.existsSync(file!)).toBe(false);
    expect(await said(w, "qvm-remove", "--force", "nobody")).toEqual(nobody("qvm-remove"));
    expect(await said(w, "qvm-ls", "--raw-list", "--tags", "mine")).toEqual([0, "", ""]);
  });

  it("without qubesd: a chained traceback, and where it is caught one line", async () => {
    const w = world();
    const last =
      /^Traceback [^]*\nqubesadmin\.exc\.\w+: Failed to connect to qubesd service: .*\n$/;
    for (const [tool, ...args] of [
      ["qvm-ls"],
      ["qvm-check", "-q", "--running", "work"],
      ["qvm-start", "--skip-if-running", "work"],
      ["qvm-shutdown", "--wait", "work"],
      ["qvm-run", "-p", "--service", "net", "t.A"],
      ["qvm-backup", "-y", "-p", passphraseFile, path.join(w.dir, "out"), "work"],
    ] as const) {
      w.faults({ tool, kind: "no-qubesd" });
      const { code, stderr } = await run(w, tool, args);
      expect([tool, code]).toEqual([tool, 1]);
      expect(stderr, tool).toMatch(last);
    }
    expect(await said(w, "qvm-ls", "work")).toEqual([0, expect.anything(), expect.anything()]);
    w.faults({ tool: "qvm-backup", kind: "no-qubesd" });
    const args = ["-y", "-p", passphraseFile, path.join(w.dir, "out")];
    expect(await said(w, "qvm-backup", ...args)).toEqual([
      1,
      "",
      "\nBackup preparation error: Failed to connect to qubesd service: [Errno 111] Connection refused\n",
    ]);
    expect(w.profiles().length).toBe(1);
  });

  it("notify-send, logger, systemctl", async () => {
    const w = world({ tmpdir: "/var/tmp" });
    const bus = { ...w.env, DBUS_SESSION_BUS_ADDRESS: "unix:path=/run/user/0/bus" };
    const none = { ...w.env, DBUS_SESSION_BUS_ADDRESS: undefined, DISPLAY: undefined };
    const notify = path.join(w.bin, "notify-send");
    const options = { stdio: "pipe" as const, encoding: "utf8" as const };
    expect(() => child_process.execFileSync(notify, ["a"], { ...options, env: none })).toThrow(
      /autolaunch/,
    );
    child_process.execFileSync(notify, ["-u", "critical", "b"], { ...options, env: bus });
    expect(w.notifications()).toMatchObject([
      { argv: ["a"], delivered: false },
      { argv: ["-u", "critical", "b"], delivered: true },
    ]);
    await run(w, "logger", ["-t", "qbackup", "-p", "user.err", "--id", "--", "two", "-words"]);
    await run(w, "logger", ["-tqbackup"], "a line\nand another");
    expect(w.journal()).toEqual([
      "qbackup user.err two -words",
      "qbackup user.notice a line",
      "qbackup user.notice and another",
    ]);
    const show = ["show", "-p", "Environment", "qubesd.service"];
    expect((await run(w, "systemctl", show)).stdout).toBe("Environment=TMPDIR=/var/tmp\n");
    const call = w.calls("systemctl")[0]!;
    expect(call.argv).toEqual(show);
    expect(call.env["PATH"]).toBe(w.env["PATH"]);
  });

  it("is used from a shell, on the system's node too, with nothing in the environment", async () => {
    const dir = path.join(top, "shell");
    const script = [
      `node "$0" init '${dir}' --qube work:64K --qube net:0 --set chunkSize=65536`,
      `node "$0" service '${dir}' net t.Cat /bin/cat`,
      `echo hello | env -i '${dir}/bin/qvm-run' -p --service net t.Cat`,
      `env -i '${dir}/bin/qvm-ls' --raw-list`,
      `node "$0" fault '${dir}' '{"tool":"qvm-ls","kind":"fail","times":1}'`,
      `'${dir}/bin/qvm-ls' || echo failed`,
      `node "$0" stop '${dir}'`,
    ].join("\n");
    const env = { PATH: "/usr/local/bin:/usr/bin:/bin" };
    const { stdout } = child_process.spawnSync("sh", ["-c", script, program], {
      env,
      encoding: "utf8",
    });
    expect(stdout).toBe("hello\ndom0\nnet\ntpl\nwork\nfailed\n");
  });
});
