/** qbackup-shell as a whole, in this process: on a disk in memory and on a real one. */
import { afterAll, assert, describe, it } from "@effect/vitest";
import { Context, Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { Disk, memorySafeFs, type Operation } from "#layers/memory/MemorySafeFs";
import { nodeSafeFs } from "#layers/files/NodeSafeFs";
import { unixLocks } from "#layers/files/UnixLocks";
import { SafeFs } from "#services/SafeFs";
import { parseInvocation } from "#src/shell/invocation";
import { blockSize, giveUpFrame, keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { signatureHolds } from "#src/proof/keys";
import { sha256 } from "#src/proof/manifest";
import { version } from "#src/say/version";
import { archiveOf } from "#test/support/archive";
import { treeHash } from "#test/support/peer";
import { rng } from "#test/support/random";
import {
  type World,
  codeOf,
  isReady,
  listed,
  manifestOf,
  medium,
  memoryWorld,
  run,
  sessionOf,
  smallChunk,
  start,
  stream,
  trailerOf,
  upload,
  worldOf,
} from "#test/support/shell";

const base = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-shell-"));
afterAll(() => fs.rmSync(base, { recursive: true, force: true }));
const realRoot = () => fs.mkdtempSync(path.join(base, "store-"));
const realWorld = (): World => worldOf(Layer.mergeAll(nodeSafeFs, unixLocks));

/** Ten chunks and a bit, in about 0.7 MiB. */
const small = archiveOf({
  seed: 1,
  chunk: smallChunk,
  files: [
    { path: "vm1/private.img", size: 400_000 },
    { path: "vm2/root.img", size: 100_000 },
  ],
});
const sample = (name: string) =>
  fs.readFileSync(new URL(`../fixtures/${name}.qubes-backup`, import.meta.url));

describe("who calls, and for what", () => {
  const session = sessionOf(1);
  const kind = (args: ReadonlyArray<string>, original?: string) => {
    const call = parseInvocation(args, original);
    return call.kind === "refused" ? call.refusal.code : call.kind;
  };

  it.each([
    // Without a forced command nothing is served.
    [["-c", "qbackup/1 list"], undefined, "internal"],
    [["-c", `qbackup/1 put a.backup ${session}`], undefined, "internal"],
    [["-c", "a.backup"], undefined, "internal"],
    [["-c", "/usr/lib/openssh/sftp-server"], undefined, "internal"],
    [["-c", "qbackup-shell identity"], undefined, "bad-request"],
    [["-c", "/usr/bin/qbackup-shell init --root /srv/b"], undefined, "bad-request"],
    [[], "a.backup", "bare"],
    [[], "dir/a.backup", "bare"],
    [[], "qbackup/1 list", "request"],
    [["--root", "/srv/b"], "qbackup/1 list", "request"],
    [["--quota", "10G", "--root", "/srv/b"], "qbackup/1 list", "request"],
    [["-c", "qbackup-shell"], "qbackup/1 list", "request"],
    [["-c", "qbackup-shell --no-init --root /srv/b"], "qbackup/1 list", "request"],
    [["-c", "/usr/bin/qbackup-shell --root /srv/b --quota 5T"], "qbackup/1 list", "request"],
    [[], undefined, "login"],
    [["--root", "/srv/b"], undefined, "login"],
    [["-c", "/usr/bin/qbackup-shell --root /srv/b"], undefined, "login"],
    [["-c", "qbackup-shell"], undefined, "login"],
    [["identity"], undefined, "identity"],
    [["identity", "--root", "/srv/b"], undefined, "identity"],
    [["init", "--root", "/srv/b"], undefined, "init"],
    [["--help"], undefined, "help"],
    [["-h"], undefined, "help"],
    [["--version"], undefined, "version"],
  ])("%j %j is %s", (args, original, expected) =>
    assert.strictEqual(kind(args, original), expected),
  );

  it("reads sizes and roots", () => {
    const options = (...args: Array<string>) => {
      const call = parseInvocation(args, "qbackup/1 list");
      return "options" in call ? call.options : undefined;
    };
    assert.deepStrictEqual(options("--quota", "3K"), { quota: 3072 });
    assert.deepStrictEqual(options("--no-init", "--quota", "3K"), { noInit: true, quota: 3072 });
    assert.deepStrictEqual(options("--quota", "2T"), { quota: 2 * 2 ** 40 });
    assert.deepStrictEqual(options("--quota", "77"), { quota: 77 });
    assert.deepStrictEqual(options("--root", "/", "--quota", "1M"), { root: "/", quota: 2 ** 20 });
  });

  it.each([
    [["-c"]],
    [["-c", "a.backup", "b"]],
    [["--no-init", "--no-init"]],
    [["identity", "--no-init"]],
    [["init", "--quota", "1M"]],
    [["-x"]],
    [["--quota", "0"]],
    [["--quota", "5k"]],
    [["--quota", "-5"]],
    [["--quota", "1e9"]],
    [["--quota", "99999999999T"]],
    [["--quota"]],
    [["--root"]],
    [["--root", "relative"]],
    [["--root", "/a/../b"]],
    [["--root", "/a b"]],
    [["--root", "/a", "--root", "/b"]],
    [["--root=/a"]],
    [["/a"]],
    [["identity", "--root", "/b"], "qbackup/1 list"],
    [["identity"], "qbackup/1 list"],
    [["init"], "qbackup/1 list"],
    [["--help"], "qbackup/1 list"],
    [["-c", "sh -c id"], "qbackup/1 list"],
    [["-c", "qbackup-shell  --root /b"], "qbackup/1 list"],
    [["-c", "qbackup-shell --root /b;id"], "qbackup/1 list"],
    [["-c", "qbackup-shell --root '/b'"], "qbackup/1 list"],
    [["-c", "qbackup-shell --root /b "], "qbackup/1 list"],
    [["-c", "other/qbackup-shell"], "qbackup/1 list"],
    [["-c", "/bin/bash"], "qbackup/1 list"],
    [["-c", "/x/../qbackup-shell\n"], "qbackup/1 list"],
  ] as ReadonlyArray<[ReadonlyArray<string>, string?]>)("refuses %j %j", (args, original) =>
    assert.include(["bad-request", "bad-name"], kind(args, original)),
  );

  it.each([
    ["qbackup/2 list", "unsupported"],
    ["qbackup/1", "bad-request"],
    ["qbackup/1 ", "bad-request"],
    ["qbackup/1 nonsense", "bad-request"],
    ["qbackup/1 constructor", "bad-request"],
    ["qbackup/1 __proto__", "bad-request"],
    ["qbackup/1 list a b", "bad-request"],
    ["qbackup/1 put a.backup", "bad-request"],
    [`qbackup/1 put a.backup ${session} x`, "bad-request"],
    [`qbackup/1 put a.backup ${session.toUpperCase().replace("0", "A")}`, "bad-request"],
    [`qbackup/1  put a.backup ${session}`, "bad-request"],
    [`qbackup/1 put ../a ${session}`, "bad-name"],
    [`qbackup/1 put a.manifest.json ${session}`, "bad-name"],
    [`qbackup/1 list ${"a".repeat(4096)}`, "bad-request"],
  ])("a client that speaks the wire is told: %s", (command, code) => {
    const call = parseInvocation([], command);
    assert.deepInclude(call, { kind: "refused", wire: true });
    assert.strictEqual(kind([], command), code);
  });
});

/** What a name may not be; each is tried in all the ways in which a name can be said. */
const hostileNames: ReadonlyArray<string> = [
  ["", ".", "..", "/", "//", "~", "-", "--", "-rf", "--help", "-c", "*", "?", "$", "&", "|", ";"],
  [".ssh/authorized_keys", ".bashrc", ".profile", ".qbackup/identity", ".qbackup", ".hidden"],
  [
    "../x",
    "../../etc/passwd",
    "a/../b",
    "a/..",
    "a/.",
    "./a",
    "a/./b",
    "a/../../b",
    "..a",
    "...",
    "a/..b",
  ],
  ["/etc/passwd", "/etc/shadow", "/dev/null", "/proc/self/mem", "//server/share", "/a"],
  ["a/", "a//b", "a/.b", "a/-b", "a/_b", "_a", "+a", "a/+b", "a/ b"],
  [
    "~/x",
    "~root/x",
    "$HOME/x",
    "${HOME}",
    "$(id)",
    "`id`",
    "a$(id)",
    "a;id",
    "a|id",
    "a&id",
    "a>b",
  ],
  ["a<b", "a'b", 'a"b', "a\\b", "a*b", "a?b", "a[b", "a{b}", "a!b", "a#b", "a%2e%2e", "a:b", "a=b"],
  [
    "a,b",
    "a@b",
    "a^b",
    "a(b)",
    "C:\\x",
    "\\\\s\\x",
    "a\tb",
    "a\nb",
    "a\rb",
    "\n",
    "\x1b[2J",
    "a\x7f",
  ],
  [
    "a\0b",
    "\0",
    "a\u200b",
    "\u202eexe",
    "ä",
    "日本",
    "\ufeffa",
    "a\u0301",
    "\ud800",
    "／etc",
    "a∕b",
  ],
  ["a.manifest.json", "d/x.manifest.json", ".manifest.json", "a".repeat(129), "a/".repeat(8) + "a"],
  [
    "a/b/c/d/e/f/g/h/i",
    `${"a".repeat(128)}/`.repeat(4) + "a",
    "a b",
    " a",
    "a ",
    "ls -la",
    "sh -c id",
  ],
  ["scp -t x", "rsync --server", "sftp-server", "internal-sftp"].map((name) => `${name} `),
].flat();

describe("hostile names", () => {
  it("are many", () => assert.isAtLeast(new Set(hostileNames).size, 100));

  it.effect("store nothing, however they are said, and are not echoed", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* run(world, { args: ["init"] });
      const before = disk.files();
      for (const name of hostileNames) {
        for (const call of [
          { args: ["-c", "qbackup-shell"], command: name },
          { command: name },
          { command: `qbackup/1 put ${name} ${sessionOf(1)}` },
          { args: ["-c", "qbackup-shell"], command: `qbackup/1 put ${name} ${sessionOf(1)}` },
          { args: ["--root", "/srv"], command: name },
        ]) {
          const { code, text } = yield* run(world, call, small);
          assert.strictEqual(code, 2, JSON.stringify(call));
          const lines = [text, ...world.said.lines.splice(0).map((line) => line.text)];
          for (const line of lines) {
            assert.match(line, /^[\x20-\x7e\n]*$/);
            if (name.length > 8) assert.notInclude(line, name);
          }
          assert.strictEqual(lines.length, 2);
        }
      }
      assert.deepStrictEqual(disk.files(), before);
    }),
  );

  it.effect("links, FIFOs and directories in the way", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.plant("link", "other");
      disk.plant("dir", "directory");
      disk.plant("dir/link", "other");
      disk.plant("file", Buffer.from("not an archive"));
      disk.plant("orphan.manifest.json", "other");
      disk.plant("locked", "directory", 0o500);
      disk.plant("closed", "directory", 0o000);
      const world = memoryWorld(disk);
      const tried = (name: string) =>
        Effect.map(upload(world, { name, archive: small }), ({ code, replies }) => [
          codeOf(replies),
          code,
        ]);
      assert.deepStrictEqual(yield* tried("link"), ["exists", 5]);
      assert.deepStrictEqual(yield* tried("dir"), ["exists", 5]);
      assert.deepStrictEqual(yield* tried("dir/link"), ["exists", 5]);
      assert.deepStrictEqual(yield* tried("file"), ["exists", 5]);
      assert.deepStrictEqual(yield* tried("orphan"), ["exists", 5]);
      assert.deepStrictEqual(yield* tried("link/a"), ["no-directory", 5]);
      assert.deepStrictEqual(yield* tried("file/a"), ["no-directory", 5]);
      assert.deepStrictEqual(yield* tried("none/a"), ["no-directory", 5]);
      assert.deepStrictEqual(yield* tried("locked/a"), ["not-permitted", 5]);
      assert.deepStrictEqual(yield* tried("closed/a"), ["not-permitted", 5]);
      assert.deepStrictEqual(yield* tried("dir/a"), ["stored", 0]);
    }),
  );
});

describe("a put", () => {
  const stores = (what: string, world: () => World, args: () => ReadonlyArray<string>) =>
    it.live(`stores, proves and lists: ${what}`, () =>
      Effect.gen(function* () {
        const w = world();
        const a = args();
        const { code, offset, replies } = yield* upload(w, { archive: medium, args: a });
        assert.strictEqual(code, 0);
        assert.strictEqual(offset, 0);
        const [ready, stored] = [replies[0], replies.at(-1)];
        if (!isReady(ready) || stored?.type !== "stored") return assert.fail("no receipt");
        assert.isTrue(signatureHolds(ready.server, stored.receipt, stored.signature));
        const manifest = manifestOf(medium, {
          name: "a.backup",
          session: sessionOf(1),
          server: ready.server,
        });
        const receipt = JSON.parse(stored.receipt);
        assert.deepInclude(receipt, {
          version: 1,
          name: "a.backup",
          session: sessionOf(1),
          size: medium.length,
          treehash: treeHash(medium),
          manifest: sha256(JSON.stringify(manifest)),
        });
        assert.match(receipt.stored, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
        const { archives, code: listCode, end } = yield* listed(w, "", a);
        assert.strictEqual(listCode, 0);
        assert.deepStrictEqual(archives, [
          {
            type: "archive",
            name: "a.backup" as never,
            size: medium.length,
            treehash: treeHash(medium),
            stored: receipt.stored,
            verified: true,
          },
        ]);
        assert.deepInclude(end, { type: "end", count: 1 });
        assert.deepStrictEqual(w.said.lines, []);

        const again = yield* upload(w, { archive: medium, args: a });
        assert.deepStrictEqual([again.code, again.replies], [0, [stored]]);
        const other = yield* upload(w, { archive: medium, args: a, session: sessionOf(2) });
        assert.deepStrictEqual([other.code, codeOf(other.replies)], [5, "exists"]);
        const elsewhere = yield* upload(w, { archive: medium, args: a, name: "b.backup" });
        assert.deepStrictEqual([elsewhere.code, codeOf(elsewhere.replies)], [2, "bad-request"]);
      }),
    );
  stores("in memory", memoryWorld, () => []);
  stores("on a real disk", realWorld, () => ["--root", realRoot()]);

  it.live("leaves on a real disk what the store is said to have", () =>
    Effect.gen(function* () {
      const root = realRoot();
      fs.mkdirSync(path.join(root, "sub"));
      const args = ["--root", root];
      yield* upload(realWorld(), { archive: small, name: "sub/x.backup", args });
      const mode = (name: string) => (fs.statSync(path.join(root, name)).mode & 0o7777).toString(8);
      assert.deepStrictEqual(fs.readdirSync(path.join(root, "sub")).toSorted(), [
        "x.backup",
        "x.backup.manifest.json",
      ]);
      assert.isTrue(fs.readFileSync(path.join(root, "sub/x.backup")).equals(small));
      assert.deepStrictEqual(
        ["sub/x.backup", "sub/x.backup.manifest.json", ".qbackup", ".qbackup/identity"].map(mode),
        ["440", "440", "700", "600"],
      );
      assert.deepStrictEqual(fs.readdirSync(path.join(root, ".qbackup/incoming")), []);
      assert.deepStrictEqual(fs.readdirSync(path.join(root, ".qbackup/digests")), [sessionOf(1)]);
      const record = JSON.parse(
        fs.readFileSync(path.join(root, "sub/x.backup.manifest.json"), "utf8"),
      );
      assert.deepStrictEqual(Object.keys(record).toSorted(), [
        "manifest",
        "receipt",
        "receiptSignature",
        "signature",
      ]);
    }),
  );

  it.effect.each([
    ["sample-tiny-lowcost", undefined],
    ["sample-multichunk-lowcost", 65_664],
  ] as const)("takes the genuine %s", ([name, fullChunk]) =>
    Effect.gen(function* () {
      const world = { ...memoryWorld(), ...(fullChunk === undefined ? {} : { fullChunk }) };
      const { code } = yield* upload(world, { archive: sample(name) });
      assert.strictEqual(code, 0);
    }),
  );

  it.effect("goes on where it was cut, wherever that was", () =>
    Effect.gen(function* () {
      for (let seed = 1; seed <= 60; seed++) {
        const random = rng(seed);
        const disk = new Disk();
        const world = memoryWorld(disk);
        let durable = 0;
        for (let tries = 0; ; tries++) {
          const cut = tries < 6 && random.next() < 0.8;
          const left = medium.length - durable;
          const cutAt = cut ? { cutAt: random.int(0, left + 400) } : {};
          const { code, offset, replies } = yield* upload(world, { archive: medium, ...cutAt });
          if (codeOf(replies) === "stored") {
            assert.strictEqual(code, 0);
            break;
          }
          assert.isTrue(cut, `seed ${seed}`);
          assert.strictEqual(code, 4);
          assert.isAtLeast(offset!, durable);
          assert.strictEqual(offset! % blockSize, 0);
          // Everything whole that came before the cut is kept: it was flushed.
          durable = offset! + Math.floor(cutAt.cutAt! / (blockSize + 4)) * blockSize;
          durable = Math.min(durable, Math.floor(medium.length / blockSize) * blockSize);
        }
        assert.isTrue(disk.bytes("a.backup")!.equals(medium), `seed ${seed}`);
        assert.isTrue((yield* listed(world)).archives[0]!.verified);
      }
    }),
  );

  it.effect("acknowledges after two seconds, and again only what is new", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      assert.deepInclude(yield* client.next, { type: "ready", offset: 0 });
      const block = (n: number) => medium.subarray(n * blockSize, (n + 1) * blockSize);
      yield* client.stdin.write(lengthPrefix(blockSize));
      yield* client.stdin.write(block(0));
      yield* TestClock.adjust("1 second");
      const waiting = yield* Effect.forkChild(client.next);
      yield* Effect.yieldNow;
      assert.isUndefined(waiting.pollUnsafe());
      yield* TestClock.adjust("1 second");
      assert.deepInclude(yield* Fiber.join(waiting), { type: "ack", offset: blockSize });
      yield* client.stdin.write(Buffer.concat([lengthPrefix(blockSize), block(1)]));
      yield* client.stdin.write(Buffer.concat([lengthPrefix(blockSize), block(2)]));
      yield* TestClock.adjust("2 seconds");
      assert.deepInclude(yield* client.next, { type: "ack", offset: 3 * blockSize });
    }).pipe(Effect.scoped),
  );

  it.effect("acknowledges every 8 MiB without waiting", () =>
    Effect.gen(function* () {
      const big = archiveOf({
        seed: 3,
        chunk: 1_000_000,
        files: [{ path: "vm1/private.img", size: 20_000_000 }],
      });
      const world = { ...memoryWorld(), fullChunk: 1_000_128 };
      const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      yield* client.next;
      const bytes = stream(big, 0, Buffer.from("{}"));
      const half = 8 * (blockSize + 4);
      yield* client.stdin.write(bytes.subarray(0, half));
      assert.deepInclude(yield* client.next, { type: "ack", offset: 8 * blockSize });
      yield* client.stdin.write(bytes.subarray(half, 2 * half));
      assert.deepInclude(yield* client.next, { type: "ack", offset: 16 * blockSize });
    }).pipe(Effect.scoped),
  );

  it.effect("answers keep-alives, and ends a silent client after a minute, not a living one", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      yield* client.next;
      for (let i = 0; i < 20; i++) {
        yield* client.stdin.write(keepAliveFrame);
        assert.deepStrictEqual(yield* client.next, { type: "alive" });
        yield* TestClock.adjust("15 seconds");
      }
      yield* TestClock.adjust("55 seconds");
      assert.strictEqual(yield* client.exit, 4);
      assert.match(world.said.lines[0]!.text, /silent/);
    }).pipe(Effect.scoped),
  );

  it.effect("a byte a minute is silence; a slow block is not, and hears that we live", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const trickle = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      yield* trickle.next;
      yield* trickle.stdin.write(lengthPrefix(blockSize));
      for (let i = 0; i < 14; i++) {
        yield* Effect.ignore(trickle.stdin.write(new Uint8Array(1)));
        yield* TestClock.adjust("5 seconds");
      }
      assert.strictEqual(yield* trickle.exit, 4);

      const slow = yield* start(world, { command: `qbackup/1 put b.backup ${sessionOf(2)}` });
      yield* slow.next;
      yield* slow.stdin.write(lengthPrefix(blockSize));
      for (let at = 0; at < blockSize; at += blockSize / 64) {
        yield* slow.stdin.write(medium.subarray(at, at + blockSize / 64));
        yield* TestClock.adjust("10 seconds");
      }
      yield* slow.stdin.end;
      const said = (yield* slow.rest).map(({ type }) => type);
      assert.isAtLeast(said.filter((type) => type === "alive").length, 20);
      assert.include(said, "ack");
      assert.strictEqual(yield* slow.exit, 4);
    }).pipe(Effect.scoped),
  );

  it.effect("a slow disk is long work: the client hears that we live", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      const ready = yield* client.next;
      if (!isReady(ready)) return assert.fail("not ready");
      disk.syncing = Effect.sleep("40 seconds");
      const manifest = manifestOf(small, {
        name: "a.backup",
        session: sessionOf(1),
        server: ready.server,
      });
      yield* client.stdin.write(stream(small, 0, trailerOf(manifest)));
      yield* TestClock.adjust("10 minutes");
      const said = (yield* client.rest).map(({ type }) => type);
      assert.strictEqual(said.at(-1), "stored");
      assert.isAtLeast(said.filter((type) => type === "alive").length, 15);
      assert.strictEqual(yield* client.exit, 0);
    }).pipe(Effect.scoped),
  );

  it.effect("holds back a client whose bytes the disk cannot keep up with", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = { ...memoryWorld(disk), fullChunk: 104_857_728 };
      const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      yield* client.next;
      disk.syncing = Effect.sleep("1 hour");
      const big = archiveOf({ seed: 5, files: [{ path: "vm1/private.img", size: 90_000_000 }] });
      yield* client.stdin.write(stream(big, 0, Buffer.from("{}")));
      yield* TestClock.adjust("5 minutes");
      assert.strictEqual(disk.bytes(`.qbackup/incoming/${sessionOf(1)}`)!.length, 64 * blockSize);
      disk.syncing = Effect.void;
      yield* TestClock.adjust("5 hours");
      assert.strictEqual(codeOf(yield* client.rest), "bad-request");
    }).pipe(Effect.scoped),
  );

  it.effect("gives up when the client says so", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      yield* client.next;
      yield* client.stdin.write(lengthPrefix(blockSize));
      yield* client.stdin.write(medium.subarray(0, blockSize));
      yield* client.stdin.write(giveUpFrame);
      assert.strictEqual(yield* client.exit, 0);
      assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
    }).pipe(Effect.scoped),
  );

  it.effect("a dead link in both directions is a cut", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      yield* client.next;
      yield* client.stdin.write(lengthPrefix(blockSize));
      yield* client.stdin.write(medium.subarray(0, blockSize));
      yield* TestClock.adjust("100 millis");
      yield* client.cut;
      assert.strictEqual(yield* client.exit, 4);
      const { offset } = yield* upload(world, { archive: medium });
      assert.strictEqual(offset, blockSize);
    }).pipe(Effect.scoped),
  );

  const lying: ReadonlyArray<
    readonly [string, string, number, NonNullable<Parameters<typeof upload>[1]["trailer"]>]
  > = [
    ["no JSON", "bad-request", 2, () => Buffer.from("nonsense")],
    ["not UTF-8", "bad-request", 2, () => Buffer.from([0x22, 0xff, 0x22])],
    ["no manifest", "bad-request", 2, () => Buffer.from('{"signature":null}')],
    ["a manifest that is none", "bad-request", 2, () => trailerOf("{}")],
    ["a long signature", "bad-request", 2, (m) => trailerOf(m, "x".repeat(4097))],
    ["another name", "bad-request", 2, (m) => trailerOf({ ...m, name: "b.backup" })],
    ["another session", "bad-request", 2, (m) => trailerOf({ ...m, session: sessionOf(9) })],
    ["another server", "signature", 6, (m) => trailerOf({ ...m, server: `${"A".repeat(43)}=` })],
    ["another size", "digest-mismatch", 6, (m) => trailerOf({ ...m, size: m.size + 1 })],
    [
      "another tree hash",
      "digest-mismatch",
      6,
      (m) => trailerOf({ ...m, treehash: "0".repeat(64) }),
    ],
    ["a member less", "incomplete", 6, (m) => trailerOf({ ...m, members: m.members.slice(1) })],
    [
      "a member elsewhere",
      "incomplete",
      6,
      (m) =>
        trailerOf({ ...m, members: m.members.map((x) => ({ ...x, start: x.start + 10_240 })) }),
    ],
    ["a version of tomorrow", "bad-request", 2, (m) => trailerOf({ ...m, version: 2 })],
  ];
  it.effect.each(lying)("refuses a trailer with %s", ([, code, exit, trailer]) =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const result = yield* upload(world, { archive: small, trailer });
      assert.deepStrictEqual([codeOf(result.replies), result.code], [code, exit]);
      assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
      assert.strictEqual(world.said.lines.length, 1);
    }),
  );

  it.effect("keeps the manifest's text and the client's signature as they came", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      let text = "";
      const { code } = yield* upload(memoryWorld(disk), {
        archive: small,
        trailer: (m) => trailerOf((text = ` ${JSON.stringify({ ...m, more: "\u2028x" })}\n`), "s"),
      });
      assert.strictEqual(code, 0);
      const record = JSON.parse(disk.bytes("a.backup.manifest.json")!.toString());
      assert.deepStrictEqual([record.manifest, record.signature], [text, "s"]);
      assert.strictEqual(JSON.parse(record.receipt).manifest, sha256(text));
    }),
  );

  it.effect("refuses what is no whole archive", () =>
    Effect.gen(function* () {
      const broken: ReadonlyArray<readonly [Buffer, string]> = [
        [Buffer.alloc(0), "incomplete"],
        [Buffer.from("hello"), "incomplete"],
        [Buffer.alloc(100_000), "incomplete"],
        [small.subarray(0, small.length - 10_240), "incomplete"],
        [small.subarray(0, 40_960), "incomplete"],
        [Buffer.concat([small, small]), "incomplete"],
      ];
      for (const [bytes, code] of broken) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
        yield* client.next;
        yield* client.stdin.write(stream(bytes, 0, Buffer.from("{}")));
        assert.strictEqual(codeOf(yield* client.rest), code);
        assert.strictEqual(yield* client.exit, 6);
        assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
      }
    }).pipe(Effect.scoped),
  );

  it.effect("refuses frames that are none", () =>
    Effect.gen(function* () {
      for (const bytes of [
        lengthPrefix(blockSize + 1),
        lengthPrefix(0x7fffffff),
        Buffer.concat([lengthPrefix(0), lengthPrefix(0)]),
        Buffer.concat([lengthPrefix(0), lengthPrefix(16 * blockSize + 1)]),
        Buffer.concat([
          lengthPrefix(10_240),
          medium.subarray(0, 10_240),
          lengthPrefix(10_240),
          medium.subarray(10_240, 20_480),
        ]),
      ]) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const client = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
        yield* client.next;
        yield* client.stdin.write(bytes);
        assert.strictEqual(codeOf(yield* client.rest), "bad-request");
        assert.strictEqual(yield* client.exit, 2);
        assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
      }
    }).pipe(Effect.scoped),
  );

  const takesOver = (what: string, world: () => World, args: () => ReadonlyArray<string>) =>
    it.live(`a newcomer takes over from an old connection: ${what}`, () =>
      Effect.gen(function* () {
        const w = world();
        const a = args();
        const command = `qbackup/1 put a.backup ${sessionOf(1)}`;
        const old = yield* start(w, { args: a, command });
        yield* old.next;
        yield* old.stdin.write(stream(medium, 0, Buffer.from("{}")).subarray(0, 2_500_000));
        yield* Effect.sleep("2500 millis");
        assert.deepInclude(yield* old.next, { type: "ack", offset: 2 * blockSize });
        const { code, offset } = yield* upload(w, { args: a, archive: medium });
        assert.strictEqual(yield* old.exit, 4);
        assert.deepStrictEqual(yield* old.rest, []);
        assert.strictEqual(offset, 2 * blockSize);
        assert.strictEqual(code, 0);
      }).pipe(Effect.scoped),
    );
  takesOver("in memory", memoryWorld, () => []);
  takesOver("with real locks on a real disk", realWorld, () => ["--root", realRoot()]);

  it.effect("is busy when the old one cannot let go", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const old = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      yield* old.next;
      disk.syncing = Effect.sleep("1 minute");
      yield* old.stdin.write(stream(medium, 0, Buffer.from("{}")).subarray(0, 2_500_000));
      yield* TestClock.adjust("3 seconds");
      const newcomer = yield* Effect.forkChild(upload(world, { archive: medium }));
      // In steps: its own syncs are slow too, and it has to be waiting before its time can pass.
      for (let i = 0; i < 300 && newcomer.pollUnsafe() === undefined; i++) {
        yield* TestClock.adjust("1 second");
      }
      const { code, replies } = yield* Fiber.join(newcomer);
      assert.deepStrictEqual([code, codeOf(replies)], [5, "busy"]);
      yield* TestClock.adjust("10 minutes");
      assert.strictEqual(yield* old.exit, 4);
      disk.syncing = Effect.void;
      assert.strictEqual((yield* upload(world, { archive: medium })).code, 0);
    }).pipe(Effect.scoped),
  );

  it.effect("two for one name: the second is told, and may come back under another", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const first = yield* start(world, { command: `qbackup/1 put a.backup ${sessionOf(1)}` });
      const ready = yield* first.next;
      if (!isReady(ready)) return assert.fail("not ready");
      assert.strictEqual((yield* upload(world, { archive: small, session: sessionOf(2) })).code, 0);
      const manifest = manifestOf(medium, {
        name: "a.backup",
        session: sessionOf(1),
        server: ready.server,
      });
      yield* first.stdin.write(stream(medium, 0, trailerOf(manifest)));
      assert.strictEqual(codeOf(yield* first.rest), "exists");
      assert.strictEqual(yield* first.exit, 5);
      const again = yield* upload(world, { archive: medium, name: "a.backup-000000" });
      assert.deepStrictEqual([again.code, again.offset], [0, 3 * blockSize]);
    }).pipe(Effect.scoped),
  );

  it.effect("refuses early where the file system has no links, or no room", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* run(world, { args: ["init"] });
      disk.links = false;
      const unlinked = yield* upload(world, { archive: small });
      assert.deepStrictEqual([unlinked.code, codeOf(unlinked.replies)], [5, "unsupported"]);
      disk.links = true;
      disk.capacity = disk.used + 1_000_000;
      const full = yield* upload(world, { archive: small });
      assert.deepStrictEqual([full.code, codeOf(full.replies)], [5, "no-space"]);
      assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
    }),
  );

  it.effect("what the commit will do is tried before an upload begins", () =>
    Effect.gen(function* () {
      const tries: ReadonlyArray<
        readonly [Operation["operation"], "not-permitted" | "unsupported" | "io", string, RegExp]
      > = [
        ["protect", "not-permitted", "unsupported", /does not let the account change the mode/],
        ["protect", "unsupported", "unsupported", /does not let the account change the mode/],
        ["link", "unsupported", "unsupported", /hard links are needed/],
        ["link", "not-permitted", "not-permitted", /\(link\)/],
        ["sync-directory", "io", "internal", /disk failed \(sync-directory\)/],
      ];
      for (const [operation, reason, code, message] of tries) {
        const disk = new Disk();
        disk.plant("sub", "directory");
        const world = memoryWorld(disk);
        const partly = { archive: medium, name: "sub/a", session: sessionOf(1) };
        yield* upload(world, { ...partly, cutAt: 2 * (blockSize + 4) });
        const kept = disk.files();
        disk.fault = (call) => (call.operation === operation ? reason : undefined);
        const refused = yield* upload(world, { ...partly, session: sessionOf(2) });
        assert.deepStrictEqual([refused.offset, codeOf(refused.replies)], [undefined, code]);
        assert.match(JSON.stringify(refused.replies), message);
        const seed = yield* run(world, { command: "sub/b" }, small);
        assert.strictEqual(seed.code, 5, operation);
        disk.fault = () => undefined;
        assert.deepStrictEqual(disk.files(), kept);
        // Nothing of another upload is lost by it.
        const { offset, replies } = yield* upload(world, partly);
        assert.deepStrictEqual([offset, codeOf(replies)], [2 * blockSize, "stored"]);
        assert.notInclude(disk.files().join(), "probe");
      }
    }),
  );

  it.effect("what a crash left of such a try stands in nobody's way, and is no archive", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      disk.plant("_qbackup-probe.manifest.json", Buffer.alloc(0));
      assert.deepStrictEqual((yield* listed(world)).archives, []);
      assert.strictEqual((yield* upload(world, { archive: small })).code, 0);
      assert.notInclude(disk.files().join(), "probe");
    }),
  );

  it.effect("a file error is told with its cause", () =>
    Effect.gen(function* () {
      for (const [reason, message] of [
        ["read-only", /the server's disk is mounted read-only/],
        ["too-many-files", /too many files open/],
        ["not-permitted", /account may not do that in the store \(create\)/],
        ["too-large", /larger than the server's file system, or its limit for files, allows/],
        ["no-space", /disk is full/],
      ] as const) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        disk.fault = ({ operation }) => (operation === "create" ? reason : undefined);
        const { code, replies } = yield* upload(world, { archive: small });
        assert.strictEqual(code, 5);
        assert.match(JSON.stringify(replies), message);
      }
    }),
  );

  it.effect("another connection makes the key just when this one has found none", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const other = new Disk();
      yield* run(memoryWorld(other), { args: ["init"] });
      let looked = 0;
      const rival = Layer.effect(
        SafeFs,
        Effect.map(SafeFs, (fs) => ({
          root: (path: string | undefined) =>
            Effect.map(fs.root(path), (root) => {
              const { ensure } = root;
              return Object.assign(root, {
                ensure: (name: string, mode: number) =>
                  Effect.map(ensure(name, mode), (own) => {
                    const { stat } = own;
                    return Object.assign(own, {
                      stat: (file: string) =>
                        Effect.suspend(() => {
                          const node = disk.find(".qbackup");
                          if (file === "identity" && node?.kind === "directory" && looked++ === 0) {
                            node.entries.set("identity", other.find(".qbackup/identity")!);
                          }
                          return stat(file);
                        }),
                    });
                  }),
              });
            }),
        })),
      ).pipe(Layer.provide(memorySafeFs(disk)));
      const put = yield* upload(worldOf(Layer.mergeAll(rival, memoryLocks())), { archive: small });
      assert.strictEqual(looked, 1);
      assert.deepStrictEqual([put.code, codeOf(put.replies)], [0, "stored"]);
    }),
  );

  it.effect("a disk that fills or fails ends the upload for good", () =>
    Effect.gen(function* () {
      const faults: ReadonlyArray<readonly [Operation["operation"], "no-space" | "io", string]> = [
        ["sync", "io", "internal"],
        ["sync", "no-space", "no-space"],
        ["write", "no-space", "no-space"],
        ["sync-directory", "io", "internal"],
      ];
      for (const [operation, reason, code] of faults) {
        for (let skip = 0; skip < 12; skip++) {
          const disk = new Disk();
          const world = memoryWorld(disk);
          yield* run(world, { args: ["init"] });
          let seen = 0;
          disk.fault = (call) => {
            if (call.operation !== operation) return undefined;
            seen += 1;
            return seen === skip + 1 ? reason : undefined;
          };
          const { code: exit, replies } = yield* upload(world, { archive: medium });
          disk.fault = () => undefined;
          if (seen <= skip) {
            assert.strictEqual(exit, 0);
            continue;
          }
          assert.deepStrictEqual([codeOf(replies), exit], [code, 5], `${operation} ${skip}`);
          assert.deepStrictEqual(disk.files(), [".qbackup/identity"], `${operation} ${skip}`);
        }
      }
    }),
  );
});

describe("a crash", () => {
  it.effect("a torn end of an upload is cut back to what its digests prove", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const at = `.qbackup/incoming/${sessionOf(1)}`;
      yield* upload(world, { archive: medium, cutAt: 3 * (blockSize + 4) });
      const data = disk.bytes(at)!;
      data[2 * blockSize + 5]! ^= 1;
      disk.plant(at, data);
      assert.strictEqual(
        (yield* upload(world, { archive: medium, cutAt: 0 })).offset,
        2 * blockSize,
      );
      disk.plant(`${at}.digests`, Buffer.concat([disk.bytes(`${at}.digests`)!, Buffer.alloc(40)]));
      assert.strictEqual(
        (yield* upload(world, { archive: medium, cutAt: 0 })).offset,
        2 * blockSize,
      );
      disk.plant(`${at}.digests`, disk.bytes(`${at}.digests`)!.subarray(0, 63));
      assert.strictEqual((yield* upload(world, { archive: medium, cutAt: 0 })).offset, blockSize);
      assert.strictEqual((yield* upload(world, { archive: medium })).code, 0);
    }),
  );
});

describe("the bare form", () => {
  it.effect("stores an archive under its path, once, and vouches for nothing", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.plant("sub", "directory");
      const world = memoryWorld(disk);
      for (const [call, name] of [
        [{ command: "one.backup" }, "one.backup"],
        [{ command: "sub/two.backup" }, "sub/two.backup"],
      ] as const) {
        assert.deepStrictEqual(yield* run(world, call, medium), { code: 0, text: "" });
        assert.isTrue(disk.bytes(name)!.equals(medium));
        assert.strictEqual((yield* run(world, call, medium)).code, 5);
      }
      const { archives } = yield* listed(world);
      assert.deepStrictEqual(
        archives.map(({ name, size, treehash, verified }) => ({ name, size, treehash, verified })),
        ["one.backup", "sub/two.backup"].map((name) => ({
          name: name as never,
          size: medium.length,
          treehash: treeHash(medium),
          verified: false,
        })),
      );
      const record = JSON.parse(disk.bytes("one.backup.manifest.json")!.toString());
      assert.deepInclude(record, { manifest: null, receipt: null, size: medium.length });
    }),
  );

  it.effect("stores nothing that is no archive", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      for (const bytes of [
        Buffer.alloc(0),
        Buffer.from("hello\n"),
        Buffer.alloc(2_000_000),
        small.subarray(0, small.length - 1),
        medium.subarray(0, 2 * blockSize),
        Buffer.concat([small, Buffer.alloc(512)]),
      ]) {
        const { code, text } = yield* run(world, { command: "ls" }, bytes);
        assert.strictEqual(code, 6);
        assert.strictEqual(text, "");
      }
      assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
      assert.strictEqual(world.said.lines.length, 6);
    }),
  );

  it.effect("a client of another protocol, which waits for an answer, is refused at once", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const client = yield* start(world, { command: "internal-sftp" });
      yield* client.stdin.write(Buffer.from("000000050100000003", "hex"));
      assert.strictEqual(yield* client.exit, 6);
    }).pipe(Effect.scoped),
  );

  it.effect("a client that breaks off or says nothing leaves nothing", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const broken = yield* start(world, { command: "a.backup" });
      yield* broken.stdin.write(medium.subarray(0, 1_100_000));
      yield* TestClock.adjust("3 seconds");
      yield* broken.cut;
      assert.strictEqual(yield* broken.exit, 4);
      const killed = yield* start(world, { command: "a.backup" });
      yield* killed.stdin.write(medium.subarray(0, 1_100_000));
      yield* TestClock.adjust("3 seconds");
      yield* killed.kill;
      const silent = yield* start(world, { command: "a.backup" });
      yield* TestClock.adjust("1 hour");
      assert.strictEqual(yield* silent.exit, 4);
      assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
    }).pipe(Effect.scoped),
  );
});

describe("list", () => {
  it.effect("is sorted by name, filtered by prefix, and blind to what is no archive", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      for (const dir of ["a", "a/b", "z", ".hidden", "bad name", "deep"])
        disk.plant(dir, "directory");
      let deep = "deep";
      for (let i = 0; i < 9; i++) disk.plant((deep += "/d"), "directory");
      for (const file of [
        "old.backup",
        "a.c",
        "a-b",
        "a/x",
        "a/b/y",
        ".hidden/x",
        "bad name/x",
        ".x",
      ]) {
        disk.plant(file, small);
      }
      disk.plant("deep/d/d/d/d/d/d/seven", small);
      disk.plant("deep/d/d/d/d/d/d/d/eight", small);
      disk.plant("no.backup", Buffer.alloc(20_480));
      disk.plant("short", small.subarray(0, 512));
      disk.plant("x.manifest.json", small);
      disk.plant("link", "other");
      disk.plant("a/link", "other");
      disk.plant("unreadable", small, 0o000);
      disk.plant("z/closed", "directory", 0o000);
      const world = memoryWorld(disk);
      yield* upload(world, { archive: small, name: "a/m.backup" });
      const names = (prefix?: string) =>
        Effect.map(listed(world, prefix), ({ archives }) =>
          archives.map(({ name }) => name as string),
        );
      const all = yield* names();
      assert.deepStrictEqual(all, [
        "a-b",
        "a.c",
        "a/b/y",
        "a/m.backup",
        "a/x",
        "deep/d/d/d/d/d/d/seven",
        "old.backup",
      ]);
      assert.deepStrictEqual(all, all.toSorted());
      assert.deepStrictEqual(yield* names("a"), all.slice(0, 5));
      assert.deepStrictEqual(yield* names("a/"), all.slice(2, 5));
      assert.deepStrictEqual(yield* names("a/b"), ["a/b/y"]);
      assert.deepStrictEqual(yield* names("a/b/y"), ["a/b/y"]);
      assert.deepStrictEqual(yield* names("a/b/y/z"), []);
      assert.deepStrictEqual(yield* names("none"), []);
      const { archives } = yield* listed(world, "old");
      assert.deepStrictEqual(archives, [
        {
          type: "archive",
          name: "old.backup" as never,
          size: small.length,
          treehash: null,
          stored: "1970-01-01T00:00:00.000Z",
          verified: false,
        },
      ]);
    }),
  );

  it.effect("verifies only what its own signature vouches for", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, { archive: small });
      const verified = Effect.map(listed(world), ({ archives }) =>
        archives.map(({ name, verified: v }) => `${name} ${v}`),
      );
      assert.deepStrictEqual(yield* verified, ["a.backup true"]);
      const text = disk.bytes("a.backup.manifest.json")!.toString();
      const record = JSON.parse(text);
      const put = (changed: object) =>
        disk.plant(
          "a.backup.manifest.json",
          Buffer.from(JSON.stringify({ ...record, ...changed })),
        );
      put({ receipt: record.receipt.replace("2026", "2027").replace("1970", "1971") });
      assert.deepStrictEqual(yield* verified, ["a.backup false"]);
      put({ manifest: record.manifest.replace("2026", "2027") });
      assert.deepStrictEqual(yield* verified, ["a.backup false"]);
      put({ receiptSignature: `${"A".repeat(86)}==` });
      assert.deepStrictEqual(yield* verified, ["a.backup false"]);
      disk.plant("a.backup.manifest.json", Buffer.from("nonsense"));
      assert.deepStrictEqual(yield* verified, ["a.backup false"]);
      put({});
      disk.plant("a.backup", Buffer.concat([small, Buffer.alloc(1)]));
      assert.deepStrictEqual(yield* verified, ["a.backup false"]);
      disk.plant("a.backup", small);
      disk.plant("moved", small);
      disk.plant("moved.manifest.json", Buffer.from(text));
      assert.deepStrictEqual(yield* verified, ["a.backup true", "moved false"]);
      disk.plant(".qbackup/identity", Buffer.from("nonsense"));
      assert.deepStrictEqual(yield* verified, ["a.backup true", "moved false"]);
      const after = yield* upload(world, { archive: small, name: "b" });
      assert.deepStrictEqual([after.code, codeOf(after.replies)], [5, "internal"]);
    }),
  );

  it.effect("of a store that nothing was ever put into is empty, and makes nothing", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const { archives, code, end } = yield* listed(memoryWorld(disk));
      assert.deepStrictEqual([archives, code], [[], 0]);
      assert.deepInclude(end, { count: 0 });
      assert.deepStrictEqual(disk.files(), []);
    }),
  );
});

describe("a store whose identity is away", () => {
  const hidden = Effect.gen(function* () {
    const disk = new Disk();
    const world = memoryWorld(disk);
    yield* upload(world, { archive: small });
    return { disk, world };
  });
  const reads = Effect.fnUntraced(function* (world: World, verified: boolean) {
    const { archives, code } = yield* listed(world);
    assert.strictEqual(code, 0);
    assert.deepStrictEqual(
      archives.map((archive) => [archive.name, archive.verified]),
      [["a.backup", verified]],
    );
    for (const verb of ["check a.backup", "manifest a.backup", "read a.backup 0 1"]) {
      const { code: exit } = yield* run(world, { command: `qbackup/1 ${verb}` });
      assert.strictEqual(exit, 0, verb);
    }
  });

  it.effect("is read all the same: the identity unreadable, its directory, or no key in it", () =>
    Effect.gen(function* () {
      for (const hide of [
        (disk: Disk) => disk.plant(".qbackup/identity", Buffer.from("x"), 0o000),
        (disk: Disk) => disk.plant(".qbackup/identity", Buffer.from("nonsense")),
        (disk: Disk) => Object.assign(disk.find(".qbackup")!, { mode: 0o000 }),
      ]) {
        const { disk, world } = yield* hidden;
        hide(disk);
        yield* reads(world, true);
        const put = yield* upload(world, { archive: small, name: "b", session: sessionOf(2) });
        assert.strictEqual(put.code, 5);
      }
    }),
  );

  it.effect("is read where the identity is missing, and vouches for nothing then", () =>
    Effect.gen(function* () {
      const { disk, world } = yield* hidden;
      const own = disk.find(".qbackup");
      assert.isTrue(own?.kind === "directory" && own.entries.delete("identity"));
      yield* reads(world, false);
    }),
  );

  it.effect("never gets a second one where it was set up (--no-init)", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const args = ["--root", "/srv/b", "--no-init"];
      const empty = yield* upload(world, { archive: small, args });
      assert.strictEqual(empty.code, 5);
      assert.match(JSON.stringify(empty.replies), /the store is empty: is its disk mounted\?/);
      assert.strictEqual((yield* listed(world, "", args)).code, 5);
      assert.strictEqual((yield* run(world, { args, command: "seed" }, small)).code, 5);
      assert.match(world.said.lines.at(-1)!.text, /is its disk mounted/);
      assert.deepStrictEqual(disk.files(), []);
      assert.isUndefined(disk.find(".qbackup"));

      yield* run(world, { args: ["init", "--root", "/srv/b"] });
      assert.strictEqual((yield* upload(world, { archive: small, args })).code, 0);
      const own = disk.find(".qbackup");
      assert.isTrue(own?.kind === "directory" && own.entries.delete("identity"));
      const lost = yield* upload(world, { archive: small, args, name: "b" });
      assert.match(JSON.stringify(lost.replies), /the store has lost its identity/);
      assert.notInclude(disk.files(), ".qbackup/identity");
    }),
  );
});

describe("quota", () => {
  const args = ["--quota", "1M"];
  it.effect("counts archives, uploads and what comes now", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const first = yield* upload(world, { archive: small, args });
      assert.strictEqual(first.code, 0);
      const second = yield* upload(world, {
        archive: small,
        args,
        name: "b",
        session: sessionOf(2),
      });
      assert.deepStrictEqual([second.code, codeOf(second.replies)], [5, "quota"]);
      assert.notInclude(disk.files().join(), sessionOf(2));
      const seed = yield* run(world, { args, command: "c" }, small);
      assert.strictEqual(seed.code, 5);
      assert.match(world.said.lines.at(-1)!.text, /no room/);
      disk.plant("filler", Buffer.alloc(blockSize));
      const refused = yield* upload(world, {
        archive: small,
        args,
        name: "b",
        session: sessionOf(3),
      });
      assert.deepStrictEqual([refused.offset, codeOf(refused.replies)], [undefined, "quota"]);
      const unlimited = yield* upload(world, { archive: small, name: "b", session: sessionOf(4) });
      assert.strictEqual(unlimited.code, 0);
    }),
  );
});

describe("cleaning", () => {
  it.effect("removes what nobody came back for in a day, and nothing else", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const partly = (n: number) =>
        upload(world, {
          archive: medium,
          name: `x${n}`,
          session: sessionOf(n),
          cutAt: 2 * (blockSize + 4),
        });
      yield* upload(world, { archive: small, name: "kept", session: sessionOf(9) });
      for (const n of [1, 2, 3]) yield* partly(n);
      disk.plant(`.qbackup/digests/${sessionOf(1)}`, Buffer.alloc(32));
      disk.plant(`.qbackup/incoming/${sessionOf(7)}.identity`, Buffer.alloc(3));
      disk.plant(".qbackup/incoming/something-else", Buffer.alloc(3));
      const living = yield* start(world, { command: `qbackup/1 put x3 ${sessionOf(3)}` });
      yield* living.next;
      const hours = Effect.fnUntraced(function* (many: number) {
        for (let i = 0; i < many * 120; i++) {
          yield* living.stdin.write(keepAliveFrame);
          yield* TestClock.adjust("30 seconds");
        }
      });
      yield* hours(23);
      yield* partly(4);
      yield* hours(2);
      const next = yield* start(world, { command: `qbackup/1 put y ${sessionOf(5)}` });
      assert.deepInclude(yield* next.next, { type: "ready" });
      yield* TestClock.adjust("1 second");
      const left = disk.files().filter((file) => file.startsWith(".qbackup/"));
      assert.deepStrictEqual(left, [
        `.qbackup/digests/${sessionOf(9)}`,
        ".qbackup/identity",
        ...[3, 4, 5].flatMap((n) => [
          `.qbackup/incoming/${sessionOf(n)}`,
          `.qbackup/incoming/${sessionOf(n)}.digests`,
        ]),
        ".qbackup/incoming/something-else",
      ]);
    }).pipe(Effect.scoped),
  );

  it.effect("of a committed upload's leftovers leaves its archive and digests alone", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      disk.fault = ({ name, operation }) =>
        operation === "remove" && name.includes(sessionOf(1)) && disk.files().includes("a.backup")
          ? "io"
          : undefined;
      assert.strictEqual((yield* upload(world, { archive: small })).code, 0);
      disk.fault = () => undefined;
      assert.include(disk.files(), `.qbackup/incoming/${sessionOf(1)}`);
      yield* TestClock.adjust("25 hours");
      const next = yield* start(world, { command: `qbackup/1 put y ${sessionOf(5)}` });
      yield* next.next;
      yield* TestClock.adjust("1 second");
      assert.notInclude(disk.files(), `.qbackup/incoming/${sessionOf(1)}`);
      assert.include(disk.files(), `.qbackup/digests/${sessionOf(1)}`);
      assert.isTrue((yield* listed(world)).archives[0]!.verified);
    }).pipe(Effect.scoped),
  );

  it.effect("comes before an upload is refused for want of room, and spares its own", () =>
    Effect.gen(function* () {
      for (const args of [[], ["--quota", "4M"]]) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const partly = { archive: medium, cutAt: 2 * (blockSize + 4) };
        yield* upload(world, { ...partly, name: "a", session: sessionOf(1) });
        yield* upload(world, { ...partly, name: "b", session: sessionOf(2) });
        yield* TestClock.adjust("3 hours");
        // Too little, by one block, for as long as the other upload is there.
        disk.capacity = disk.used + 63 * blockSize;
        const own = yield* upload(world, {
          archive: medium,
          name: "b",
          session: sessionOf(2),
          args,
        });
        assert.deepStrictEqual([own.offset, codeOf(own.replies)], [2 * blockSize, "stored"]);
        assert.notInclude(disk.files().join(), sessionOf(1));
      }
    }),
  );

  it.effect("spares for a day what a lid or a clock that jumps three hours kept away", () =>
    Effect.gen(function* () {
      for (const args of [[], ["--quota", "100M"]]) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const partly = { archive: medium, name: "a", session: sessionOf(1), args };
        yield* upload(world, { ...partly, cutAt: 2 * (blockSize + 4) });
        yield* TestClock.adjust("3 hours");
        const other = { archive: small, name: "b", session: sessionOf(2), args };
        assert.strictEqual((yield* upload(world, other)).code, 0);
        yield* TestClock.adjust("20 hours");
        const own = yield* upload(world, partly);
        assert.deepStrictEqual([own.offset, codeOf(own.replies)], [2 * blockSize, "stored"]);
      }
    }),
  );

  it.effect("happens with the bare form, too", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, { archive: medium, cutAt: blockSize + 4, session: sessionOf(1) });
      yield* TestClock.adjust("25 hours");
      assert.strictEqual((yield* run(world, { command: "c" }, small)).code, 0);
      assert.notInclude(disk.files().join(), sessionOf(1));
    }),
  );

  it.effect("does not hold up a put behind thousands of leftovers", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* run(world, { args: ["init"] });
      for (let n = 100; n < 3100; n++) {
        disk.plant(`.qbackup/incoming/${sessionOf(n)}`, Buffer.alloc(10));
      }
      yield* TestClock.adjust("25 hours");
      assert.strictEqual((yield* upload(world, { archive: small })).code, 0);
    }),
  );
});

describe("on the server itself", () => {
  it.effect("identity shows the key that init made, which stays the same", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const first = yield* run(world, { args: ["init"] });
      const second = yield* run(world, { args: ["identity"] });
      assert.match(
        first.text,
        /^fingerprint qbackup:[0-9a-f]{4}(?:-[0-9a-f]{4}){7}\nkey {9}[A-Za-z0-9+/]{43}=\n$/,
      );
      assert.deepStrictEqual([first, first.code], [second, 0]);
      assert.deepStrictEqual(yield* run(world, { args: ["init"] }), first);
      assert.match(disk.bytes(".qbackup/identity")!.toString(), /^-----BEGIN PRIVATE KEY-----\n/);
    }),
  );

  it.effect("identity makes none, says where it looked, and what to run", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const { code, text } = yield* run(world, { args: ["identity", "--root", "/srv/b"] });
      assert.deepStrictEqual([code, text, disk.files()], [5, "", []]);
      const said = world.said.lines.map((line) => line.text).join("\n");
      assert.include(said, "there is no identity in /srv/b/.qbackup");
      assert.include(said, "runuser -u ACCOUNT -- /usr/bin/qbackup-shell identity --root STORE");
    }),
  );

  it.effect("identity in a home of root's shows nothing, whatever lies there", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* run(world, { args: ["init"] });
      disk.owner = 0;
      const shown = yield* run(world, { args: ["identity"] });
      assert.deepStrictEqual(shown, { code: 5, text: "" });
      const store = yield* run(world, { args: ["identity", "--root", "/srv/b"] });
      assert.strictEqual(store.code, 0);
    }),
  );

  it.effect("identity names the command for each account that has a drop-in", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const folder = new Disk();
      const text =
        "Match User b\n    ForceCommand /usr/bin/qbackup-shell --root /srv/b --no-init\n";
      folder.plant("00-qbackup-b.conf", Buffer.from(text));
      folder.plant("00-qbackup-c.conf", Buffer.from("ForceCommand /bin/sh; id\n"));
      folder.plant("00-qbackup-d.conf", "other");
      folder.plant("50-other.conf", Buffer.from(text));
      const both = Layer.effect(
        SafeFs,
        Effect.gen(function* () {
          const etc = yield* Layer.build(memorySafeFs(folder)).pipe(
            Effect.map((services) => Context.get(services, SafeFs)),
          );
          const store = yield* SafeFs;
          return {
            root: (at: string | undefined) =>
              (at === "/etc/ssh/sshd_config.d" ? etc : store).root(at),
          };
        }),
      ).pipe(Layer.provide(memorySafeFs(disk)));
      const world = worldOf(Layer.mergeAll(both, memoryLocks()));
      assert.strictEqual((yield* run(world, { args: ["identity"] })).code, 5);
      const hint = "as root: runuser -u b -- /usr/bin/qbackup-shell identity --root /srv/b";
      assert.include(
        world.said.lines.map((line) => line.text),
        hint,
      );
    }),
  );

  it.effect("init makes nothing in a store of another account's", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.owner = 1001;
      const world = memoryWorld(disk);
      const { code, text } = yield* run(world, { args: ["init", "--root", "/srv/b"], uid: 0 });
      assert.deepStrictEqual([code, text, disk.files()], [5, "", []]);
      assert.isUndefined(disk.find(".qbackup"));
      assert.match(world.said.lines[0]!.text, /\/srv\/b belongs to the account with the uid 1001/);
      const own = yield* run(world, { args: ["init", "--root", "/srv/b"], uid: 1001 });
      assert.strictEqual(own.code, 0);
    }),
  );

  it.live("a store that is not there is told as that", () =>
    Effect.gen(function* () {
      const args = ["--root", "/nowhere/at/all"];
      const { code, text } = yield* run(realWorld(), { args, command: "qbackup/1 list" });
      assert.strictEqual(code, 5);
      assert.match(text, /the store's directory is not there: is its disk mounted\?/);
    }),
  );

  it.live("two who make the identity at once agree", () =>
    Effect.gen(function* () {
      for (const args of [["init"], ["init", "--root", realRoot()]]) {
        const world = args.length === 1 ? memoryWorld() : realWorld();
        const shown = yield* Effect.all(
          Array.from({ length: 8 }, () => run(world, { args })),
          { concurrency: "unbounded" },
        );
        assert.strictEqual(new Set(shown.map(({ text }) => text)).size, 1);
      }
    }),
  );

  it.effect("help and version are data; a login is told kindly that it is none", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = worldOf(Layer.mergeAll(memorySafeFs(disk), memoryLocks()));
      assert.match((yield* run(world, { args: ["--help"] })).text, /--quota SIZE/);
      // What only dom0 can end with is not there.
      assert.notMatch((yield* run(world, { args: ["-h"] })).text, /Qubes failed|holds the lock/);
      assert.deepStrictEqual(yield* run(world, { args: ["--version"] }), {
        code: 0,
        text: `qbackup-shell ${version}\n`,
      });
      assert.deepStrictEqual(world.said.lines, []);
      assert.deepStrictEqual(yield* run(world, {}), { code: 2, text: "" });
      assert.strictEqual(world.said.lines.length, 1);
      assert.deepStrictEqual(disk.log, []);
    }),
  );

  it.effect("a defect is a bug, is said to be one, and has its own code", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.fault = () => {
        throw new Error("boom\x1b[2J");
      };
      const world = memoryWorld(disk);
      const { code, text } = yield* run(world, { command: "qbackup/1 list" });
      assert.strictEqual(code, 1);
      assert.match(
        text,
        /^\n\{"type":"error","code":"internal","message":"a bug in qbackup-shell"\}\n$/,
      );
      assert.match(world.said.lines.at(-1)!.text, /^[\x20-\x7e]*boom[\x20-\x7e]*$/);
    }),
  );
});
