/** SafeFs: what both must do, on a real disk and in memory, and what a crash leaves of the latter. */
import { afterAll, assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { Disk, memorySafeFs } from "#layers/memory/MemorySafeFs";
import { nodeSafeFs } from "#layers/files/NodeSafeFs";
import { SafeFs } from "#services/SafeFs";
import { safeFsContract } from "#test/contracts/safefs";
import { rng } from "#test/support/random";
import { noOwnMounts, unless } from "#test/support/unless";

const base = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-safefs-"));
afterAll(() => fs.rmSync(base, { recursive: true, force: true }));

safeFsContract("node", () => {
  const root = fs.mkdtempSync(path.join(base, "root-"));
  return {
    layer: nodeSafeFs,
    root,
    plant: (name, what) => {
      const at = path.join(root, name);
      if (what === "link") fs.symlinkSync(base, at);
      else if (what === "fifo") execFileSync("mkfifo", [at]);
      else if (what === "directory") fs.mkdirSync(at);
      else fs.writeFileSync(at, what);
    },
  };
});

safeFsContract("memory", () => {
  const disk = new Disk();
  return {
    layer: memorySafeFs(disk),
    root: "/store",
    plant: (name, what) => disk.plant(name, what === "link" || what === "fifo" ? "other" : what),
  };
});

describe("SafeFs on a real disk", () => {
  const within = <A, E>(body: (root: SafeFs["Service"]) => Effect.Effect<A, E>) =>
    Effect.flatMap(SafeFs, body).pipe(Effect.provide(nodeSafeFs));

  it.live("keeps looking into the directory that it opened, whatever takes its name", () =>
    within((fsys) =>
      Effect.gen(function* () {
        const root = fs.mkdtempSync(path.join(base, "swap-"));
        fs.mkdirSync(path.join(root, "in"));
        fs.mkdirSync(path.join(root, "else"));
        const top = yield* fsys.root(root);
        const inner = yield* top.directory("in");
        fs.renameSync(path.join(root, "in"), path.join(root, "moved"));
        fs.symlinkSync(path.join(root, "else"), path.join(root, "in"));
        yield* inner.create("file", 0o600);
        assert.deepStrictEqual(fs.readdirSync(path.join(root, "moved")), ["file"]);
        assert.deepStrictEqual(fs.readdirSync(path.join(root, "else")), []);
      }).pipe(Effect.scoped),
    ),
  );

  it.live("the administrator's root may be a link", () =>
    within((fsys) =>
      Effect.gen(function* () {
        const root = fs.mkdtempSync(path.join(base, "real-"));
        fs.symlinkSync(root, `${root}-link`);
        const top = yield* fsys.root(`${root}-link`);
        yield* top.create("file", 0o600);
        assert.deepStrictEqual(fs.readdirSync(root), ["file"]);
      }).pipe(Effect.scoped),
    ),
  );

  it.live.each(["relative/path", "/nowhere/at/all", "/etc/passwd"])("no root: %s", (bad) =>
    within((fsys) =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(Effect.scoped(fsys.root(bad)));
        assert.include(["not-found", "not-plain"], error.reason);
      }),
    ),
  );

  it.live("leaves no descriptor open", () =>
    within((fsys) =>
      Effect.gen(function* () {
        const open = () => fs.readdirSync("/proc/self/fd").length;
        const root = fs.mkdtempSync(path.join(base, "fds-"));
        const round = Effect.scoped(
          Effect.gen(function* () {
            const top = yield* fsys.root(root);
            const inner = yield* top.ensure("in", 0o700);
            yield* Effect.scoped(inner.open("none", "read")).pipe(Effect.ignore);
            yield* Effect.scoped(top.open("in", "read")).pipe(Effect.ignore);
            yield* Effect.scoped(inner.create("a", 0o600)).pipe(Effect.ignore);
          }),
        );
        yield* round;
        const before = open();
        for (let i = 0; i < 20; i++) yield* round;
        assert.strictEqual(open(), before);
      }),
    ),
  );
});

/** A module in a process of its own, started by these words of sh: what it printed. */
const inProcess = (words: string, module: string, within: ReadonlyArray<string> = []) => {
  const argv = [...within, "sh", "-c", `${words} exec "$0" --input-type=module -e "$1"`];
  const ran = spawnSync(argv[0]!, [...argv.slice(1), process.execPath, module], {
    encoding: "utf8",
  });
  return `${ran.stdout}${ran.stderr}`;
};
/** Prints the reason for which `call` (of `root`, a directory) fails. */
const reasonOf = (root: string, call: string, before = "") => `
  import * as fs from "node:fs";
  import { Effect } from "effect";
  import { nodeSafeFs } from "#layers/files/NodeSafeFs";
  import { SafeFs } from "#services/SafeFs";
  const program = Effect.gen(function* () {
    const root = yield* (yield* SafeFs).root(${JSON.stringify(root)});
    ${before}
    return yield* ${call};
  }).pipe(Effect.scoped, Effect.flip, Effect.provide(nodeSafeFs));
  const { reason, cause } = await Effect.runPromise(program);
  console.log(reason, cause.code);
`;
describe("the causes of a failure on a real disk", () => {
  it("too many files open in this process", () => {
    const dir = fs.mkdtempSync(path.join(base, "files-"));
    const fill = 'try { for (;;) fs.openSync("/dev/null"); } catch {}';
    const module = reasonOf(dir, 'root.create("a", 0o600)', fill);
    assert.strictEqual(inProcess("ulimit -n 60;", module), "too-many-files EMFILE\n");
  });

  it.each(['root.create("a", 0o600)', 'root.ensure("a", 0o700)', "root.writable"])(
    "a disk that is mounted read-only: %s",
    unless(noOwnMounts()),
    (call) => {
      const dir = fs.mkdtempSync(path.join(base, "ro-"));
      const mounted = `mount -t tmpfs -o ro none ${dir} &&`;
      const ran = inProcess(mounted, reasonOf(dir, call), ["unshare", "-m"]);
      assert.strictEqual(ran, "read-only EROFS\n");
    },
  );

  it.live("a file system that does not count its room is not full", () =>
    Effect.gen(function* () {
      // As procfs, whose statfs is all zeros.
      assert.strictEqual(fs.statfsSync("/proc").blocks, 0);
      const root = yield* (yield* SafeFs).root("/proc");
      assert.strictEqual(yield* root.free, Number.MAX_SAFE_INTEGER);
    }).pipe(Effect.scoped, Effect.provide(nodeSafeFs)),
  );
});

describe("the disk in memory", () => {
  const onDisk = <A, E>(disk: Disk, body: (root: SafeFs["Service"]) => Effect.Effect<A, E>) =>
    Effect.flatMap(SafeFs, body).pipe(Effect.provide(memorySafeFs(disk)));

  it.effect("loses at a crash what was not synced", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      yield* onDisk(disk, (fsys) =>
        Effect.scoped(
          Effect.gen(function* () {
            const root = yield* fsys.root(undefined);
            const a = yield* root.create("a", 0o600);
            yield* a.write(Buffer.from("kept"), 0);
            yield* a.sync;
            yield* root.sync;
            yield* a.write(Buffer.from("LOST"), 2);
            yield* a.protect(0o440);
            yield* root.link("a", root, "b");
            const c = yield* root.create("c", 0o600);
            yield* c.write(Buffer.from("c"), 0);
            yield* c.sync;
            disk.crash();
            const error = yield* Effect.flip(a.sync);
            assert.strictEqual(error.reason, "io");
          }),
        ),
      );
      assert.deepStrictEqual(disk.files(), ["a"]);
      assert.strictEqual(disk.bytes("a")?.toString(), "kept");
      const node = disk.find("a");
      assert.strictEqual(node?.mode, 0o600);
    }),
  );

  it.effect("a file that replaces another is there after a crash, or the other one is", () =>
    Effect.gen(function* () {
      const seen = new Set<string | undefined>();
      for (let seed = 0; seed < 200; seed++) {
        const disk = new Disk();
        disk.plant("a", Buffer.from("old"));
        yield* onDisk(disk, (fsys) =>
          Effect.scoped(
            Effect.gen(function* () {
              const root = yield* fsys.root(undefined);
              const file = yield* root.create("a.new", 0o600);
              yield* file.write(Buffer.from("new"), 0);
              yield* file.sync;
              yield* root.replace("a.new", "a");
              if (seed % 2 === 0) yield* root.sync;
            }),
          ),
        );
        disk.crash(rng(seed).next);
        const bytes = disk.bytes("a")?.toString();
        if (seed % 2 === 0) assert.strictEqual(bytes, "new");
        seen.add(bytes);
      }
      assert.deepStrictEqual(seen, new Set(["new", "old"]));
    }),
  );

  it.effect("a file whose bytes were never synced may have its name, and nothing in it", () =>
    Effect.gen(function* () {
      const seen = new Set<string>();
      for (let seed = 0; seed < 200; seed++) {
        const disk = new Disk();
        yield* onDisk(disk, (fsys) =>
          Effect.scoped(
            Effect.gen(function* () {
              const root = yield* fsys.root(undefined);
              yield* (yield* root.create("a", 0o600)).write(Buffer.from("x"), 0);
            }),
          ),
        );
        disk.crash(rng(seed).next);
        seen.add(JSON.stringify(disk.bytes("a")?.toString()) ?? "none");
      }
      assert.deepStrictEqual([...seen].toSorted(), ['""', '"\\u0000"', '"x"', "none"]);
    }),
  );

  it.effect("fails where it is told to, and logs every call", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.fault = ({ name, operation }) =>
        operation === "sync" && name === "a" ? "no-space" : undefined;
      yield* onDisk(disk, (fsys) =>
        Effect.scoped(
          Effect.gen(function* () {
            const root = yield* fsys.root(undefined);
            const a = yield* root.create("a", 0o600);
            assert.strictEqual((yield* Effect.flip(a.sync)).reason, "no-space");
            disk.fault = () => "off";
            assert.strictEqual((yield* Effect.flip(a.truncate(0))).reason, "io");
            disk.fault = () => undefined;
            assert.strictEqual((yield* Effect.flip(a.truncate(0))).reason, "io");
          }),
        ),
      );
      assert.deepStrictEqual(
        disk.log.map(({ operation }) => operation),
        ["open", "create", "sync", "truncate"],
      );
    }),
  );

  it.effect("has an end", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.capacity = 10;
      yield* onDisk(disk, (fsys) =>
        Effect.scoped(
          Effect.gen(function* () {
            const root = yield* fsys.root(undefined);
            const a = yield* root.create("a", 0o600);
            yield* a.write(Buffer.alloc(8), 0);
            assert.strictEqual(
              (yield* Effect.flip(a.write(Buffer.alloc(8), 8))).reason,
              "no-space",
            );
            yield* a.write(Buffer.alloc(8), 0);
            assert.strictEqual(yield* root.free, 2);
          }),
        ),
      );
    }),
  );
});
