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
