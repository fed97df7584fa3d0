/** qbackup-shell as a whole, in this process: on a disk in memory and on a real one. */
import { afterAll, assert, describe, it } from "@effect/vitest";
import { Context, Effect, Layer } from "effect";
import { TestClock } from "effect/testing";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { Disk, memorySafeFs } from "#layers/memory/MemorySafeFs";
import { nodeSafeFs } from "#layers/files/NodeSafeFs";
import { unixLocks } from "#layers/files/UnixLocks";
import { SafeFs } from "#services/SafeFs";
import { parseInvocation } from "#src/shell/invocation";
import type { Verb } from "#src/wire/request";
import { version } from "#src/say/version";
import { keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { archiveOf } from "#test/support/archive";
import { fingerprintOf } from "#test/support/reference";
import {
  ask,
  codeOf,
  dom0,
  listed,
  memoryWorld,
  open,
  otherDom0,
  type Put,
  run,
  sessionOf,
  smallChunk,
  start,
  upload,
  type World,
  worldOf,
} from "#test/support/shell";
import { ontoDisk, storeMaker } from "#test/support/stores";

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
    [["-c", `qbackup-shell signers add ${dom0.publicKey}`], undefined, "bad-request"],
    [[], "a.backup", "bare"],
    [[], "dir/a.backup", "bare"],
    [[], "qbackup/1 list", "request"],
    [["--root", "/srv/b"], "qbackup/1 list", "request"],
    [["--quota", "10G", "--root", "/srv/b"], "qbackup/1 list", "request"],
    [["--allow", "list,read"], "qbackup/1 list", "request"],
    [["--allow", "list,read"], "qbackup/1 read", "request"],
    [["--allow", "list,read"], "qbackup/1 about", "request"],
    [["--allow", "list,read"], "qbackup/1 check a", "not-permitted"],
    [["--allow", "list,read"], "a.backup", "not-permitted"],
    [["--allow", "put"], "a.backup", "bare"],
    [["--allow", "put"], "qbackup/1 list", "not-permitted"],
    [["-c", "qbackup-shell --allow list"], "qbackup/1 manifest a", "not-permitted"],
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
    [["signers"], undefined, "signers"],
    [["signers", "--root", "/srv/b"], undefined, "signers"],
    [["signers", "add", dom0.publicKey], undefined, "signers"],
    [["signers", "remove", fingerprintOf(dom0.publicKey), "--root", "/b"], undefined, "signers"],
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
    assert.deepStrictEqual(options("--floor", "2K", "--allow-unsigned", "--allow", "put,list"), {
      floor: 2048,
      allowUnsigned: true,
      allow: new Set<Verb>(["put", "list"]),
    });
  });

  it.each([
    [["-c"]],
    [["-c", "a.backup", "b"]],
    [["--no-init", "--no-init"]],
    [["identity", "--no-init"]],
    [["signers", "add"]],
    [["signers", "add", "x"]],
    [["signers", "add", fingerprintOf(dom0.publicKey)]],
    [["signers", "remove", "x"]],
    [["signers", "--quota", "1M"]],
    [["signers", "add", dom0.publicKey], "qbackup/1 list"],
    [["--allow", ""]],
    [["--allow", "list,list"]],
    [["--allow", "list, read"]],
    [["--allow", "shell"]],
    [["--allow", "put", "--allow", "list"]],
    [["--floor", "0"]],
    [["--allow-unsigned", "--allow-unsigned"]],
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
    ["qbackup/1 list a b c", "bad-request"],
    ["qbackup/1 read a 0 1", "bad-request"],
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

describe("what the owner of a server types wrongly", () => {
  const message = (...args: ReadonlyArray<string>) => {
    const call = parseInvocation(args, undefined);
    return call.kind === "refused" ? call.refusal.message : call.kind;
  };
  it.each([
    [["--rot", "x"], "there is no option --rot"],
    [["--quota", "5X"], "--quota cannot be 5X"],
    [["--quota"], "--quota cannot be empty"],
    [["--root", "store"], "--root cannot be store"],
    [["--allow", "put,nope"], "--allow cannot be put,nope"],
    [["--no-init", "--no-init"], "--no-init stands there twice"],
    [["-V"], "there is no option -V"],
    [["--\u001b[2J"], "there is no option --?[2J"],
    [["identty"], "there is no command identty, but identity, init and signers"],
    [["identity", "x"], "there is no option x"],
    [["init", "--quota", "5G"], "of the options, the owner's commands take --root alone"],
    [["signers", "add"], "nothing is no key: qbackup key show prints it, in dom0"],
    [["signers", "add", "zz"], "zz is no key: qbackup key show prints it, in dom0"],
    [["signers", "remove", "zz"], "zz is no key: qbackup key show prints it, in dom0"],
    [["signers", "x"], "there is no option x"],
  ] as const)("%j: says which word, and why", (args, why) => {
    assert.strictEqual(message(...args), `${why}; see --help`);
  });
  it("a forced command with such a word tells it to the client as well", () => {
    const call = parseInvocation(["-c", "qbackup-shell --quota 5X"], "qbackup/1 list");
    assert.deepInclude(call.kind === "refused" ? call.refusal : {}, {
      message: "the forced command is not qbackup-shell with its options: --quota cannot be 5X",
    });
  });
});

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
      let run = 0;
      const tried = (name: string) => {
        run += 1;
        const one = { name, run, session: sessionOf(run), archive: small };
        return Effect.map(upload(world, one), ({ code, replies }) => [codeOf(replies), code]);
      };
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

describe("a store whose identity is away", () => {
  it.effect("is read all the same, and takes nothing", () =>
    Effect.gen(function* () {
      const hides: ReadonlyArray<(disk: Disk) => void> = [
        (disk) => disk.plant(".qbackup/identity", Buffer.from("x"), 0),
        (disk) => disk.plant(".qbackup/identity", Buffer.from("no key")),
        (disk) => disk.plant(".qbackup/identity", "other"),
      ];
      for (const hide of hides) {
        const disk = new Disk();
        const maker = storeMaker(ontoDisk(disk));
        const world = memoryWorld(disk);
        maker.pack(sessionOf(1), small);
        maker.archive({ name: "a", session: sessionOf(1) });
        hide(disk);
        assert.strictEqual((yield* listed(world)).archives.length, 1);
        for (const words of ["manifest a", "recipe a", "check a", `table ${sessionOf(1)}`]) {
          const { code } = yield* run(world, { command: `qbackup/1 ${words}` });
          assert.strictEqual(code, 0, words);
        }
        assert.strictEqual((yield* ask(world, "about")).code, 5);
      }
    }),
  );

  it.effect("never gets a second one where it was set up (--no-init)", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const args = ["--root", "/srv/b", "--no-init"];
      const empty = yield* ask(world, "about", [], args);
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
      const lost = yield* ask(world, "about", [], args);
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
      assert.match(first.text, /^fingerprint [0-9a-f]{64}\nkey {9}[A-Za-z0-9_-]{43}\n$/);
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
      assert.deepInclude(shown, { code: 5, text: "" });
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
      // As root, without saying where: root's own home is no store, whatever is to be done there.
      disk.owner = 0;
      for (const [args, whole] of [
        [["signers"], "signers"],
        [["signers", "add", dom0.publicKey], `signers add ${dom0.publicKey}`],
        [["signers", "remove", dom0.publicKey], `signers remove ${dom0.publicKey}`],
        [["init"], "init"],
      ] as const) {
        world.said.lines.length = 0;
        const { code, text } = yield* run(world, { args, uid: 0 });
        assert.deepStrictEqual([code, text, disk.files()], [5, "", []], whole);
        const [error, hint] = world.said.lines.map((line) => line.text);
        assert.match(error!, /is no backup account's: it is root's/);
        assert.strictEqual(
          hint,
          `as root: runuser -u b -- /usr/bin/qbackup-shell ${whole} --root /srv/b`,
        );
      }
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
      assert.deepInclude(yield* run(world, { args: ["--version"] }), {
        code: 0,
        text: `qbackup-shell ${version}\n`,
      });
      assert.deepStrictEqual(world.said.lines, []);
      assert.deepInclude(yield* run(world, {}), { code: 2, text: "" });
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

describe("signers", () => {
  const lineOf = (key: string) => `${fingerprintOf(key)} ${key}\n`;
  const initialised = Effect.gen(function* () {
    const disk = new Disk();
    const world = memoryWorld(disk);
    yield* run(world, { args: ["init"] });
    const signers = (...words: ReadonlyArray<string>) =>
      run(world, { args: ["signers", ...words] });
    return { disk, world, signers };
  });

  it.effect("are shown, added and removed, by key or fingerprint", () =>
    Effect.gen(function* () {
      const { disk, signers, world } = yield* initialised;
      /** Whom `about` says that it takes; and what the owner is told, where nobody is listed. */
      const taken = Effect.map(ask(world, "about"), ({ replies: [said] }) =>
        said?.type === "about" ? said.signers : said,
      );
      const told = () => world.said.lines.splice(0).map(({ text }) => text);
      assert.deepInclude(yield* signers(), { code: 0, text: "" });
      assert.deepStrictEqual(told(), [
        "the store has no signer yet: the first one that comes reserves it",
      ]);
      assert.isNull(yield* taken);
      const [one, two] = [dom0.publicKey, otherDom0.publicKey];
      assert.deepInclude(yield* signers("add", one), { code: 0, text: lineOf(one) });
      const both = lineOf(one) + lineOf(two);
      assert.deepInclude(yield* signers("add", two), { code: 0, text: both });
      // Once is enough.
      assert.strictEqual((yield* signers("add", two)).text, both);
      assert.strictEqual((yield* signers()).text, both);
      assert.strictEqual(disk.bytes(".qbackup/signers")!.toString(), `${one}\n${two}\n`);
      assert.deepStrictEqual(yield* taken, [fingerprintOf(one), fingerprintOf(two)] as never);
      assert.deepStrictEqual(told(), []);
      assert.strictEqual((yield* signers("remove", fingerprintOf(one))).text, lineOf(two));
      const unknown = yield* signers("remove", one);
      assert.deepInclude(unknown, { code: 5, text: "" });
      told();
      // Nobody is not the same as the first one that comes.
      assert.deepInclude(yield* signers("remove", two), { code: 0, text: "" });
      assert.deepInclude(yield* signers(), { code: 0, text: "" });
      const none = "the store has no signer any more, and takes none: signers add KEY lets one in";
      assert.deepStrictEqual(told(), [none, none]);
      assert.deepStrictEqual(yield* taken, []);
      assert.strictEqual(disk.bytes(".qbackup/signers")!.toString(), "");
    }),
  );

  it.effect("are sixteen at most, survive a power loss, and are not read out of nonsense", () =>
    Effect.gen(function* () {
      const { disk, signers } = yield* initialised;
      const keyOf = (n: number) => Buffer.alloc(32, n).toString("base64url");
      for (let n = 0; n < 16; n++) yield* signers("add", keyOf(n));
      assert.strictEqual((yield* signers("add", keyOf(16))).code, 5);
      disk.crash();
      assert.strictEqual((yield* signers()).text.split("\n").length, 17);
      for (const text of [`${keyOf(1)}`, `${keyOf(1)}\nx\n`, "\n", `${keyOf(1)}\n`.repeat(17)]) {
        disk.plant(".qbackup/signers", Buffer.from(text));
        assert.strictEqual((yield* signers()).code, 5, JSON.stringify(text));
        assert.strictEqual((yield* signers("add", keyOf(2))).code, 5);
      }
    }),
  );

  it.effect("are not changed in a store that is none, nor in another account's", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const none = yield* run(world, { args: ["signers", "add", dom0.publicKey] });
      assert.deepStrictEqual([none.code, disk.files()], [5, []]);
      assert.match(world.said.lines.at(-2)!.text, /is its disk mounted/);
      disk.owner = 1001;
      yield* run(world, { args: ["init"], uid: 1001 });
      const other = yield* run(world, { args: ["signers", "add", dom0.publicKey], uid: 0 });
      assert.strictEqual(other.code, 5);
      assert.match(
        world.said.lines.at(-2)!.text,
        /belongs to the account .*runuser -u ACCOUNT -- qbackup-shell signers add/,
      );
      assert.notInclude(disk.files(), ".qbackup/signers");
    }),
  );
});

describe("a link that drips", () => {
  it.effect("is given up after an hour below the floor, and not where nothing is to be sent", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      /** Minutes until the shell gives up, if it does within eighty; `send` is what comes each 10 s. */
      const minutes = Effect.fnUntraced(function* (
        put: Put,
        begin: Uint8Array,
        send: () => Uint8Array,
      ) {
        const client = yield* open(world, put);
        assert.strictEqual((yield* client.next)?.type, "ready");
        yield* client.stdin.write(begin);
        for (let times = 1; times <= 80 * 6; times++) {
          yield* Effect.ignore(client.stdin.write(send()));
          yield* TestClock.adjust("10 seconds");
          if (client.ended()) return times / 6;
        }
        yield* client.cut;
        yield* client.exit;
        return undefined;
      });
      // A block is announced, and comes by 2 KiB each time: more than silence, less than a link.
      const block = lengthPrefix(2 ** 20);
      const drop = () => new Uint8Array(2048);
      const slow = yield* minutes({}, block, drop);
      assert.isTrue(slow !== undefined && slow >= 60 && slow <= 62, `${slow}`);
      assert.include(world.said.lines.at(-1)!.text, "the client sends too slowly");
      const args = ["--floor", "100"];
      assert.isUndefined(yield* minutes({ run: 2, args }, block, drop));
      assert.isUndefined(yield* minutes({ run: 3 }, new Uint8Array(0), () => keepAliveFrame));
    }),
  );
});

describe("the log", () => {
  const env = { LOGNAME: "backup", SSH_CONNECTION: "2001:db8::1 50412 2001:db8::2 22" };
  const texts = (world: World) => world.journal.splice(0).map(({ text }) => text);

  it.effect("has every session, what it asked for, how much came, and how it ended", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* run(world, { args: ["init"] });
      assert.deepStrictEqual(texts(world), [
        "account=uid-? peer=- verb=init name=- session=- bytes=- verdict=done",
      ]);
      const who = "account=backup peer=2001:db8::1/50412";
      const call = (command: string, args: ReadonlyArray<string> = [], stdin = "") =>
        Effect.map(run(world, { args, command, env }, Buffer.from(stdin)), ({ output }) => output);
      const list = yield* call("qbackup/1 list");
      yield* call("qbackup/1 manifest d/a.backup");
      yield* call(`qbackup/1 table ${sessionOf(7)}`);
      const asked = `${sessionOf(7)} 0 0 1\n`;
      const read = yield* call("qbackup/1 read", [], `${asked}\n`);
      yield* call("rm -rf /; echo \x1b[2J");
      yield* call("qbackup/1 check a", ["--allow", "put"]);
      yield* call(`qbackup/1 table ${sessionOf(7)}`, ["--allow", "put"]);
      yield* call("a.backup", ["--allow", "list"]);
      yield* call("a.backup", [], "no backup");
      const table = `verb=table name=- session=${sessionOf(7)}`;
      // What came and what went stands in the last line of each; a refusal is noted before it is said.
      assert.deepStrictEqual(texts(world), [
        `${who} verb=list name=- session=- bytes=- verdict=begun`,
        `${who} verb=list name=- session=- bytes=0/${list.length} verdict=done`,
        `${who} verb=manifest name=d/a.backup session=- bytes=- verdict=begun`,
        `${who} verb=manifest name=d/a.backup session=- bytes=0/0 verdict=not-found`,
        `${who} ${table} bytes=- verdict=begun`,
        `${who} ${table} bytes=0/0 verdict=not-found`,
        `${who} verb=read name=- session=- bytes=- verdict=begun`,
        `${who} verb=read name=- session=- bytes=${asked.length + 1}/${read.length} verdict=done`,
        `${who} verb=- name=- session=- bytes=- verdict=bad-request`,
        `${who} verb=check name=a session=- bytes=0/0 verdict=not-permitted`,
        `${who} ${table} bytes=0/0 verdict=not-permitted`,
        `${who} verb=bare name=a.backup session=- bytes=- verdict=not-permitted`,
        `${who} verb=bare name=a.backup session=- bytes=- verdict=begun`,
        `${who} verb=bare name=a.backup session=- bytes=9/0 verdict=incomplete`,
      ]);
    }),
  );

  it.effect("tells a link that broke, an interruption and a bug, and says nothing of help", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const verdicts = () => texts(world).map((text) => /verdict=(.*)$/.exec(text)?.[1]);
      const cut = yield* start(world, { command: "qbackup/1 read", env }, "read");
      yield* cut.next;
      yield* cut.cut;
      assert.strictEqual(yield* cut.exit, 4);
      assert.deepStrictEqual(verdicts(), ["begun", "link"]);
      const killed = yield* start(world, { command: "qbackup/1 read", env }, "read");
      yield* killed.next;
      yield* killed.kill;
      assert.deepStrictEqual(verdicts(), ["begun", "interrupted"]);
      disk.fault = () => {
        throw new Error("boom");
      };
      yield* run(world, { command: "qbackup/1 list", env });
      assert.deepStrictEqual(verdicts(), ["begun", "internal"]);
      disk.fault = () => undefined;
      yield* run(world, { args: ["--help"] });
      yield* run(world, { args: ["signers"] });
      yield* run(world, { args: ["identity"] });
      assert.deepStrictEqual(verdicts(), []);
    }),
  );

  it.effect("takes nothing of the environment but what names and addresses are made of", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      for (const odd of ["a b", "x\ny", "\x1b[2J", "A", "a".repeat(40), "verdict=done"]) {
        yield* run(world, { command: "x y", env: { LOGNAME: odd, SSH_CONNECTION: odd }, uid: 7 });
        assert.deepStrictEqual(texts(world), [
          "account=uid-7 peer=- verb=- name=- session=- bytes=- verdict=bad-request",
        ]);
      }
    }),
  );
});
