import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll } from "vitest";
import { fileLedger, parseLedger, stateDirectory } from "#layers/files/FileLedger";
import { ledgerDisk, memoryLedger } from "#layers/memory/MemoryLedger";
import { Ledger } from "#services/Ledger";
import { entry, key, ledgerContract, submission } from "#test/contracts/ledger";
import { type Programs, programs } from "#test/support/programs";
import { noMount, notRoot, unless } from "#test/support/unless";

const made: Array<Programs> = [];
const fresh = () => {
  const it = programs();
  made.push(it);
  return path.join(it.dir, "state/qbackup");
};
afterAll(() => made.forEach((it) => it.remove()));

ledgerContract("FileLedger", () => fileLedger(fresh()));
ledgerContract("MemoryLedger", () => memoryLedger());

const use = <A, E>(place: string, what: (ledger: Ledger["Service"]) => Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    return yield* what(yield* Ledger);
  }).pipe(Effect.provide(fileLedger(place)));
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
const reasonOf = <A>(what: Effect.Effect<A, { readonly message: string }>) =>
  Effect.map(Effect.flip(what), (error) => error.message);

describe("FileLedger", () => {
  it("lies under the XDG state directory", () => {
    assert.strictEqual(stateDirectory({}, "/home/u"), "/home/u/.local/state/qbackup");
    assert.strictEqual(stateDirectory({ XDG_STATE_HOME: "/s" }, "/home/u"), "/s/qbackup");
    for (const bad of ["", "relative", "../up"]) {
      const place = stateDirectory({ XDG_STATE_HOME: bad }, "/home/u");
      assert.strictEqual(place, "/home/u/.local/state/qbackup");
    }
  });

  it.live("keeps to itself: 0700 and 0600, whatever the umask", () =>
    Effect.gen(function* () {
      const place = fresh();
      const old = process.umask(0);
      yield* use(place, (ledger) =>
        Effect.gen(function* () {
          yield* ledger.append(entry("a"));
          yield* ledger.mark({ ...submission("a"), started: true });
          yield* ledger.pin("sys-backup", key("A"));
        }),
      ).pipe(Effect.ensuring(Effect.sync(() => process.umask(old))));
      for (const dir of [place, path.dirname(place)]) {
        assert.strictEqual(fs.statSync(dir).mode & 0o777, 0o700);
      }
      assert.deepStrictEqual(fs.readdirSync(place).sort(), [
        "known_servers",
        "ledger.jsonl",
        "unfinished.json",
      ]);
      for (const file of fs.readdirSync(place)) {
        assert.strictEqual(fs.statSync(path.join(place, file)).mode & 0o777, 0o600, file);
      }
    }),
  );

  it.live(
    "makes nothing in the home of somebody else",
    () =>
      Effect.gen(function* () {
        const home = path.join(fresh(), "../../home");
        fs.mkdirSync(home);
        fs.chownSync(home, 1234, 1234);
        for (const what of [
          (ledger: Ledger["Service"]) => ledger.append(entry("a")),
          (ledger: Ledger["Service"]) => Effect.scoped(ledger.reserve),
          (ledger: Ledger["Service"]) => ledger.mark({ ...submission("a"), started: true }),
        ]) {
          const place = path.join(home, ".local/state/qbackup");
          const why = yield* reasonOf(use(place, what));
          assert.match(why, /would lie in a directory of user 1234, .*run qbackup as its owner/);
          assert.deepStrictEqual(fs.readdirSync(home), []);
        }
        // One that root has spoilt before is somebody else's all the same.
        fs.mkdirSync(path.join(home, ".local"));
        const why = yield* reasonOf(
          use(path.join(home, ".local/state/qbackup"), (ledger) => ledger.append(entry("a"))),
        );
        assert.match(why, /directory of user 1234/);
      }),
    unless(notRoot),
  );

  it.live(
    "has kept the room that the end of a run needs, on a disk that fills up",
    () =>
      Effect.gen(function* () {
        const place = fresh();
        fs.mkdirSync(place, { recursive: true, mode: 0o700 });
        execFileSync("mount", ["-t", "tmpfs", "-o", "size=6m,mode=700", "none", place]);
        yield* use(place, (ledger) =>
          Effect.gen(function* () {
            yield* ledger.mark({ ...submission("a"), started: true });
            yield* ledger.reserve;
            // Somebody writes until nothing more fits.
            const fd = fs.openSync(path.join(place, "filler"), "w");
            const fill = Buffer.alloc(4096, 1);
            try {
              for (;;) fs.writeSync(fd, fill);
            } catch {
              fs.closeSync(fd);
            }
            const big = { ...submission("a"), manifest: "x".repeat(1_000_000) };
            yield* ledger.mark({ ...big, started: true, submission: big });
            yield* ledger.append({ ...entry("a"), manifest: big.manifest });
            assert.strictEqual((yield* ledger.entries).entries.length, 1);
          }).pipe(Effect.scoped),
        ).pipe(Effect.ensuring(Effect.sync(() => execFileSync("umount", ["-l", place]))));
      }),
    unless(noMount()),
  );

  it.live("gives the room back, and takes over that of a run that was killed", () =>
    Effect.gen(function* () {
      const place = fresh();
      fs.mkdirSync(place, { recursive: true, mode: 0o700 });
      fs.writeFileSync(path.join(place, "reserve"), "left over", { mode: 0o600 });
      yield* use(place, (ledger) =>
        Effect.gen(function* () {
          yield* ledger.reserve;
          const { blocks, mode, size } = fs.statSync(path.join(place, "reserve"));
          assert.strictEqual(mode & 0o777, 0o600);
          assert.isAtLeast(size, 4 << 20);
          assert.isAtLeast(blocks * 512, 4 << 20);
        }).pipe(Effect.scoped),
      );
      assert.deepStrictEqual(fs.readdirSync(place), []);
    }),
  );

  it.live("links by the hash of the line's bytes", () =>
    Effect.gen(function* () {
      const place = fresh();
      yield* use(place, (ledger) =>
        Effect.forEach(["a", "b"], (name) => ledger.append(entry(name))),
      );
      const [first, second] = fs.readFileSync(path.join(place, "ledger.jsonl"), "utf8").split("\n");
      assert.strictEqual(JSON.parse(second!).previous, sha256(first!));
    }),
  );

  it.live("survives a crash at every byte of a line", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "ledger.jsonl");
      yield* use(place, (ledger) => ledger.append(entry("a")));
      const first = fs.readFileSync(file).length;
      yield* use(place, (ledger) => ledger.append(entry("b")));
      const whole = fs.readFileSync(file);
      for (let cut = first; cut <= whole.length; cut += 1) {
        fs.writeFileSync(file, whole.subarray(0, cut));
        fs.rmSync(path.join(place, "ledger.torn"), { force: true });
        const kept = cut >= whole.length - 1 ? ["a", "b"] : ["a"];
        const torn = cut > first && kept.length === 1;
        const before = yield* use(place, (ledger) => ledger.entries);
        assert.deepStrictEqual([...before.damaged], torn ? [2] : [], `cut at ${cut}`);
        yield* use(place, (ledger) => ledger.append(entry("c")));
        const { damaged, entries } = yield* use(place, (ledger) => ledger.entries);
        assert.deepStrictEqual([...damaged], []);
        assert.deepStrictEqual(
          entries.map(({ name }) => name as string),
          [...kept, "c"],
        );
        assert.deepStrictEqual(parseLedger(fs.readFileSync(file)).unlinked, []);
        const copy = path.join(place, "ledger.torn");
        assert.strictEqual(
          fs.existsSync(copy) ? fs.readFileSync(copy, "latin1") : "",
          torn ? `${whole.subarray(first, cut).toString("latin1")}\n` : "",
        );
      }
    }),
  );

  it.live("is mended: a chain again, and as it was is kept", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "ledger.jsonl");
      for (const [n, damage] of [
        (lines: ReadonlyArray<string>) => [lines[0], "{}", ...lines.slice(1)],
        (lines: ReadonlyArray<string>) => [lines[0], ...lines.slice(2)],
      ].entries()) {
        yield* use(place, (ledger) =>
          Effect.forEach(["a", "b", "c"], (name) => ledger.append(entry(name))),
        );
        const damaged = damage(fs.readFileSync(file, "utf8").split("\n")).join("\n");
        fs.writeFileSync(file, damaged);
        const readable = parseLedger(Buffer.from(damaged)).entries.map(({ name }) => name);
        const kept = yield* use(place, (ledger) => ledger.mend);
        assert.strictEqual(kept, path.join(place, `ledger.damaged.${n + 1}`));
        assert.strictEqual(fs.readFileSync(kept, "utf8"), damaged);
        const mended = parseLedger(fs.readFileSync(file));
        assert.deepStrictEqual([mended.damaged, mended.unlinked], [[], []]);
        assert.deepStrictEqual(
          mended.entries.map(({ name }) => name),
          readable,
        );
        assert.isTrue(fs.readFileSync(file, "utf8").startsWith(`${damaged.split("\n")[0]}\n`));
      }
    }),
  );

  it.live("reads what it can around a damaged line, and links to the last intact one", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "ledger.jsonl");
      yield* use(place, (ledger) => ledger.append(entry("a")));
      fs.appendFileSync(file, "\0\0\0\n{}\n");
      yield* use(place, (ledger) => ledger.append(entry("b")));
      const { damaged, entries } = yield* use(place, (ledger) => ledger.entries);
      assert.deepStrictEqual([...damaged], [2, 3]);
      assert.strictEqual(entries.length, 2);
      const bytes = fs.readFileSync(file);
      assert.strictEqual(entries[1]!.previous, sha256(bytes.toString().split("\n")[0]!));
      // A line that is taken out shows in the links.
      const [first, , , last] = bytes.toString().split("\n");
      assert.deepStrictEqual(parseLedger(Buffer.from(`${last}\n`)).unlinked, [1]);
      assert.deepStrictEqual(parseLedger(Buffer.from(`${first}\n${last}\n`)).unlinked, []);
    }),
  );

  it.live("goes through no link, and uses nothing of somebody else's", () =>
    Effect.gen(function* () {
      const place = fresh();
      const append = use(place, (ledger) => ledger.append(entry("a")));
      const elsewhere = path.join(path.dirname(place), "elsewhere");
      fs.mkdirSync(elsewhere, { recursive: true });
      fs.symlinkSync(elsewhere, place);
      assert.include(yield* reasonOf(append), "is a link, or no directory: move it away");
      assert.deepStrictEqual(fs.readdirSync(elsewhere), []);
      fs.rmSync(place);

      yield* append;
      for (const [file, what] of [
        ["ledger.jsonl", append],
        ["known_servers", use(place, (ledger) => ledger.pin("q", key("A")))],
        [
          "unfinished.json",
          use(place, (ledger) => ledger.mark({ ...submission("a"), started: true })),
        ],
      ] as const) {
        const at = path.join(place, file);
        fs.rmSync(at, { force: true });
        fs.symlinkSync(path.join(elsewhere, "x"), at);
        assert.include(yield* reasonOf(what), `${file}: it is a link`);
        fs.rmSync(at);
        execFileSync("mkfifo", [at]);
        assert.match(yield* reasonOf(what), /is no regular file|No such device|ENXIO/);
        fs.rmSync(at);
        fs.writeFileSync(at, "", { mode: 0o600 });
        fs.chmodSync(at, 0o622);
        assert.include(yield* reasonOf(what), "can be changed by others: chmod go-w it");
        fs.rmSync(at);
      }
      assert.deepStrictEqual(fs.readdirSync(elsewhere), []);
      if (process.getuid!() !== 0) return;
      fs.chownSync(place, 1234, 1234);
      assert.include(yield* reasonOf(append), "belongs to user 1234, not to 0");
    }),
  );

  it.live("replaces as a whole, and leaves nothing half-written", () =>
    Effect.gen(function* () {
      const place = fresh();
      const mark = use(place, (ledger) => ledger.mark({ ...submission("a"), started: true }));
      yield* mark;
      // What a crash left.
      fs.writeFileSync(path.join(place, "unfinished.json.new"), "{");
      yield* mark;
      assert.deepStrictEqual(fs.readdirSync(place), ["unfinished.json"]);
      fs.writeFileSync(path.join(place, "unfinished.json"), "{", { mode: 0o600 });
      const reason = yield* reasonOf(use(place, (ledger) => ledger.unfinished));
      assert.include(reason, "unfinished.json is damaged: look at it, then remove it");
      yield* use(place, (ledger) => ledger.mark(undefined));
      assert.deepStrictEqual(fs.readdirSync(place), []);
    }),
  );

  it.live("reads known_servers as a person may have edited it", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "known_servers");
      yield* use(place, (ledger) => ledger.pin("one", key("A")));
      fs.writeFileSync(file, `# mine\n\n  one\t${key("B")} \none ${key("C")}\ntwo ${key("D")}`);
      const pinned = (qube: string) => use(place, (ledger) => ledger.pinned(qube));
      assert.strictEqual(yield* pinned("one"), key("B"));
      yield* use(place, (ledger) => ledger.pin("two", key("E")));
      assert.strictEqual(
        fs.readFileSync(file, "utf8"),
        `# mine\n\n  one\t${key("B")} \none ${key("C")}\ntwo ${key("E")}\n`,
      );
      fs.appendFileSync(file, "three too few\n");
      assert.include(yield* reasonOf(pinned("one")), `${file}:6: expected a qube's name`);
    }),
  );

  it.live(
    "says so when a real disk is full or read-only",
    () =>
      Effect.gen(function* () {
        const place = fresh();
        fs.mkdirSync(place, { recursive: true });
        const mount = (...options: ReadonlyArray<string>) =>
          execFileSync("mount", [...options, place], { stdio: "pipe" });
        mount("-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs");
        try {
          const append = use(place, (ledger) => ledger.append(entry("a")));
          yield* append;
          let reason = "";
          for (let i = 0; i < 40 && reason === ""; i++) {
            reason = yield* Effect.match(append, {
              onFailure: (error) => error.message,
              onSuccess: () => "",
            });
          }
          assert.include(reason, "the disk is full");
          const { damaged, entries } = yield* use(place, (ledger) => ledger.entries);
          assert.deepStrictEqual([...damaged], []);
          assert.isAbove(entries.length, 1);
          mount("-o", "remount,ro");
          assert.include(yield* reasonOf(append), "the file system is read-only");
        } finally {
          execFileSync("umount", [place]);
        }
      }),
    unless(noMount()),
  );
});

describe("MemoryLedger", () => {
  it.effect("fails on demand, and outlives its program", () =>
    Effect.gen(function* () {
      const disk = ledgerDisk();
      const append = Effect.gen(function* () {
        yield* (yield* Ledger).append(entry("a"));
      }).pipe(Effect.provide(memoryLedger(disk), { local: true }));
      yield* append;
      disk.fails = () => "the disk is full";
      assert.include((yield* Effect.flip(append)).message, "the disk is full");
      assert.deepStrictEqual(disk.calls, ["append a", "append a"]);
      assert.strictEqual(parseLedger(Buffer.from(disk.text)).entries.length, 1);
    }),
  );
});
