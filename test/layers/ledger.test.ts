import { assert, describe, it } from "@effect/vitest";
import { Effect, Option, Schema } from "effect";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll } from "vitest";
import { fileBooks } from "#layers/files/FileBooks";
import { chainName } from "#layers/files/FileChains";
import { isPlainEntry, ledgerLine, parseLedger, parseLine } from "#layers/files/FileLedger";
import { statePath } from "#layers/files/StateDirectory";
import { booksDisk, memoryBooks } from "#layers/memory/MemoryBooks";
import { Chains } from "#services/Chains";
import { KnownServers } from "#services/KnownServers";
import { Entry, Ledger, type LedgerError } from "#services/Ledger";
import { ReadBacks } from "#services/ReadBacks";
import { RunMark } from "#services/RunMark";
import { Signer } from "#services/Signer";
import { Series } from "#src/wire/names";
import {
  type Books,
  booksContract,
  chainOf,
  key,
  entry,
  submission,
  unfinished,
} from "#test/contracts/ledger";
import { type Programs, programs } from "#test/support/programs";
import { rng } from "#test/support/random";
import { noMount, notRoot, unless } from "#test/support/unless";

const made: Array<Programs> = [];
const fresh = () => {
  const it = programs();
  made.push(it);
  return path.join(it.dir, "state/qbackup");
};
afterAll(() => made.forEach((it) => it.remove()));

booksContract("FileBooks", () => fileBooks(fresh()));
booksContract("MemoryBooks", () => memoryBooks());

const use = <A, E>(place: string, what: Effect.Effect<A, E, Books>) =>
  Effect.provide(what, fileBooks(place));
const append = (name: string) => Ledger.use((ledger) => ledger.append(entry(name)));
const readAll = Ledger.use((ledger) => ledger.entries);
const namesIn = (bytes: Buffer) => parseLedger(bytes).lines.map(({ entry: { name } }) => name);
const makeKeys = Effect.asVoid(Signer.use((books) => books.keys));
const number = Effect.asVoid(
  Signer.use((books) => books.nextRun(key("A"), Series.make("0123456789abcdef"), 0)),
);
const mark = RunMark.use((books) => books.write(unfinished));
const which = { server: key("A"), series: Series.make("0123456789abcdef") };
const propose = Chains.use((books) => books.propose(which, chainOf(1)));
const pin = (qube: string, letter: string) =>
  KnownServers.use((books) => books.pin(qube, key(letter)));
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
/** What it says, and what to do about it. */
const reasonOf = <A>(what: Effect.Effect<A, LedgerError>) =>
  Effect.map(Effect.flip(what), ({ hint, message }) => `${message}: ${hint}`);

describe("FileBooks", () => {
  it("lies under the XDG state directory", () => {
    assert.strictEqual(statePath({}, "/home/u"), "/home/u/.local/state/qbackup");
    assert.strictEqual(statePath({ XDG_STATE_HOME: "/s" }, "/home/u"), "/s/qbackup");
    for (const bad of ["", "relative", "../up"]) {
      const place = statePath({ XDG_STATE_HOME: bad }, "/home/u");
      assert.strictEqual(place, "/home/u/.local/state/qbackup");
    }
  });

  it.live("keeps to itself: 0700 and 0600, whatever the umask", () =>
    Effect.gen(function* () {
      const place = fresh();
      const old = process.umask(0);
      yield* use(
        place,
        Effect.gen(function* () {
          yield* append("a");
          yield* mark;
          yield* pin("sys-backup", "A");
          yield* (yield* ReadBacks).change([unfinished.session], () => ({}));
          yield* makeKeys;
          yield* number;
          yield* propose;
          yield* (yield* Chains).adopt(which);
          yield* (yield* Chains).addPassphrase({ salt: "0".repeat(64), check: "1".repeat(64) });
          yield* propose;
          yield* (yield* Chains).begin(which, {
            ...chainOf(1),
            signer: key("A"),
            base: "-",
            members: [],
          });
        }),
      ).pipe(Effect.ensuring(Effect.sync(() => process.umask(old))));
      for (const dir of [place, path.dirname(place)]) {
        assert.strictEqual(fs.statSync(dir).mode & 0o777, 0o700);
      }
      assert.deepStrictEqual(fs.readdirSync(place).sort(), [
        "audits.json",
        ...["", ".journal", ".next"].map((what) => `chain.${chainName(which)}${what}`),
        "known_servers",
        "ledger.jsonl",
        "passphrases.json",
        "series_key",
        "series_runs",
        "signing_key",
        "unfinished.json",
      ]);
      for (const file of fs.readdirSync(place)) {
        assert.strictEqual(fs.statSync(path.join(place, file)).mode & 0o777, 0o600, file);
      }
    }),
  );

  it.live("says that a chain cannot be read, and keeps it until there is another", () =>
    Effect.gen(function* () {
      const place = fresh();
      const read = Chains.use((books) => books.read(which));
      yield* use(
        place,
        Effect.andThen(
          propose,
          Chains.use((books) => books.adopt(which)),
        ),
      );
      const file = path.join(place, `chain.${chainName(which)}`);
      const bytes = fs.readFileSync(file);
      bytes[bytes.length - 1]! ^= 1;
      fs.writeFileSync(file, bytes);
      const found = yield* use(place, read);
      assert.deepStrictEqual([found.newest, found.damaged], [undefined, true]);
      // What is on its way, and what is noted of it, is only of use as a whole.
      fs.writeFileSync(`${file}.next`, bytes, { mode: 0o600 });
      fs.writeFileSync(`${file}.journal`, "torn", { mode: 0o600 });
      const torn = yield* use(place, read);
      assert.deepStrictEqual([torn.proposed, torn.journal], [undefined, undefined]);
      fs.rmSync(file);
      fs.symlinkSync("/etc/passwd", file);
      assert.match(yield* reasonOf(use(place, read)), /it is a link/);
    }),
  );

  it.live(
    "makes nothing in the home of somebody else",
    () =>
      Effect.gen(function* () {
        const home = path.join(fresh(), "../../home");
        fs.mkdirSync(home);
        fs.chownSync(home, 1234, 1234);
        const reserve = Effect.scoped(RunMark.use((books) => books.reserve));
        for (const what of [append("a"), reserve, mark, makeKeys]) {
          const place = path.join(home, ".local/state/qbackup");
          const why = yield* reasonOf(use(place, what));
          assert.match(why, /would lie in a directory of user 1234, .*run qbackup as its owner/);
          assert.deepStrictEqual(fs.readdirSync(home), []);
        }
        // One that root has spoilt before is somebody else's all the same.
        fs.mkdirSync(path.join(home, ".local"));
        const why = yield* reasonOf(use(path.join(home, ".local/state/qbackup"), append("a")));
        assert.match(why, /directory of user 1234/);
      }),
    unless(notRoot),
  );

  it.live("ends where no directory can be made, too", () =>
    Effect.gen(function* () {
      // node's own recursive mkdir never comes back from here.
      const place = "/proc/qbackup-test/state/qbackup";
      for (const what of [append("a"), mark, makeKeys]) {
        const why = yield* reasonOf(use(place, what));
        assert.match(why, /: \/proc takes no directory: HOME or XDG_STATE_HOME must name a/);
      }
      assert.match(yield* reasonOf(use("/dev/null/a/b", append("a"))), /: .*ENOTDIR/);
    }),
  );

  it.live(
    "has kept the room that the end of a run needs, on a disk that fills up",
    () =>
      Effect.gen(function* () {
        const place = fresh();
        fs.mkdirSync(place, { recursive: true, mode: 0o700 });
        execFileSync("mount", ["-t", "tmpfs", "-o", "size=3m,mode=700", "none", place]);
        yield* use(
          place,
          Effect.gen(function* () {
            yield* mark;
            yield* (yield* RunMark).reserve;
            // Somebody writes until nothing more fits.
            const fd = fs.openSync(path.join(place, "filler"), "w");
            const fill = Buffer.alloc(4096, 1);
            try {
              for (;;) fs.writeSync(fd, fill);
            } catch {
              fs.closeSync(fd);
            }
            const big = { ...submission("a"), manifest: "x".repeat(200_000) };
            yield* (yield* RunMark).write({ ...unfinished, submission: big });
            yield* (yield* Ledger).append({ ...entry("a"), manifest: big.manifest });
            yield* pin("sys-backup", "A");
            assert.strictEqual((yield* readAll).entries.length, 1);
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
      yield* use(
        place,
        Effect.gen(function* () {
          yield* (yield* RunMark).reserve;
          const { blocks, mode, size } = fs.statSync(path.join(place, "reserve"));
          assert.strictEqual(mode & 0o777, 0o600);
          assert.isAtLeast(size, 1 << 20);
          assert.isAtLeast(blocks * 512, 1 << 20);
        }).pipe(Effect.scoped),
      );
      assert.deepStrictEqual(fs.readdirSync(place), []);
    }),
  );

  it.live("links by the hash of the line's bytes", () =>
    Effect.gen(function* () {
      const place = fresh();
      yield* use(place, Effect.forEach(["a", "b"], append));
      const [first, second] = fs.readFileSync(path.join(place, "ledger.jsonl"), "utf8").split("\n");
      assert.strictEqual(JSON.parse(second!).previous, sha256(first!));
    }),
  );

  it("takes a line for plain only where it is an entry, with nothing else in it", () => {
    const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Entry));
    const random = rng(1);
    const hash = "ab".repeat(32);
    const plain = [
      ledgerLine(entry("a"), null),
      ledgerLine({ ...entry("a/b-1"), rebuilt: true }, hash),
      ledgerLine({ ...entry("a"), bytes: { read: 3, sent: 2, seconds: 1 } }, hash),
      ledgerLine({ ...entry("a"), bytes: { read: 3, sent: 0, seconds: 0 }, passphrase: 2 }, hash),
      ledgerLine({ ...entry("a"), qubes: [], finished: "2024-02-29T23:59:59Z" }, hash),
    ];
    let kept = 0;
    const check = (text: string) => {
      let value: unknown;
      try {
        value = JSON.parse(text);
      } catch {
        return;
      }
      if (!isPlainEntry(value)) return;
      kept += 1;
      assert.deepStrictEqual(Option.getOrThrow(decode(text)), value, text);
    };
    for (const line of plain) {
      assert.isTrue(isPlainEntry(JSON.parse(line)), line);
      assert.strictEqual(JSON.stringify(parseLine(line)), line);
      // Every value in it as another, and every letter as another.
      for (const [whole] of line.matchAll(/"[^"]*"|\d+|true|false|null|\{[^{}]*\}|\[[^[\]]*\]/g)) {
        for (const other of ['""', '"a"', "0", "-1", "1.5", "1e99", "true", "null", "[]", "{}"]) {
          check(line.replace(whole, other));
          check(line.replace(whole, `${other}:1,${whole}`));
        }
      }
      for (let i = 0; i < 20_000; i += 1) {
        const at = random.int(0, line.length - 1);
        const letter = String.fromCharCode(0x20 + random.int(0, 0x5e));
        check(`${line.slice(0, at)}${letter}${line.slice(at + random.int(0, 1))}`);
      }
    }
    assert.isAbove(kept, 5000);
    const other = JSON.parse(plain[0]!) as Record<string, unknown>;
    assert.isUndefined(parseLine(JSON.stringify({ ...other, name: "x".repeat(129) })));
    assert.isUndefined(parseLine(JSON.stringify({ ...other, name: Array(9).fill("x").join("/") })));
    // Not as this program writes it, but an entry.
    assert.isDefined(parseLine(JSON.stringify({ more: 1, ...other })));
  });

  it.live("adds to a ledger of any size, whatever its end is", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "ledger.jsonl");
      yield* use(place, append("a"));
      const line = fs.readFileSync(file, "utf8");
      for (const [rest, unreadable, before] of [
        ["{}\n".repeat(20_000), 20_000, "a"],
        [`${"x".repeat(3 << 20)}\n`, 1, "a"],
        ["x".repeat(3 << 20), 0, "a"],
        [`${"x".repeat(16_383)}\n`, 1, "a"],
        [`${"x".repeat(16_384)}\n`, 1, "a"],
        [`${"x".repeat(16_385)}\n`, 1, "a"],
        [ledgerLine(entry("b"), sha256(line.trimEnd())), 0, "b"],
      ] as const) {
        fs.writeFileSync(file, `${line}${rest}`);
        yield* use(place, append("c"));
        const chain = yield* use(
          place,
          Ledger.use((ledger) => ledger.chain),
        );
        assert.strictEqual(chain.damaged.length, unreadable);
        assert.deepStrictEqual(chain.unlinked, []);
        assert.deepStrictEqual(
          chain.lines.map((one) => one.entry.name as string),
          before === "a" ? ["a", "c"] : ["a", "b", "c"],
        );
      }
    }),
  );

  it.live("reads what changed, and has no size at which it stops", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "ledger.jsonl");
      yield* use(
        place,
        Effect.gen(function* () {
          const names = () => Effect.map(readAll, (read) => read.entries.map((one) => one.name));
          yield* append("a");
          assert.deepStrictEqual(yield* names(), ["a"]);
          assert.deepStrictEqual(yield* names(), ["a"]);
          yield* append("b");
          assert.deepStrictEqual(yield* names(), ["a", "b"]);
          fs.writeFileSync(file, fs.readFileSync(file, "utf8").replace('"name":"b"', '"name":"c"'));
          assert.deepStrictEqual(yield* names(), ["a", "c"]);
          // A hole: more bytes than any ledger should have, and no line among them.
          fs.truncateSync(file, 257 << 20);
          fs.appendFileSync(file, "\n");
          assert.deepStrictEqual(yield* names(), ["a", "c"]);
          yield* append("d");
          const { damaged, entries } = yield* readAll;
          assert.deepStrictEqual([...damaged], [3]);
          assert.deepStrictEqual(
            entries.map(({ name }) => name as string),
            ["a", "c", "d"],
          );
        }),
      );
    }),
  );

  it.live("keeps the keys that others are taken for, and lets nobody else read any", () =>
    Effect.gen(function* () {
      const place = fresh();
      const key32 = (byte: number) => new Uint8Array(32).fill(byte);
      const take = (byte: number) =>
        Signer.use((books) => books.take({ signing: key32(byte), series: key32(byte + 1) }));
      yield* use(place, makeKeys);
      const at = (name: string) => path.join(place, name);
      const [pem, series] = ["signing_key", "series_key"].map((name) => fs.readFileSync(at(name)));
      assert.match(pem!.toString(), /^-----BEGIN PRIVATE KEY-----\n/);
      assert.strictEqual(series!.length, 32);
      yield* use(place, take(1));
      yield* use(place, take(3));
      assert.deepStrictEqual(fs.readFileSync(at("signing_key.old.1")), pem);
      assert.deepStrictEqual(fs.readFileSync(at("series_key.old.1")), series);
      assert.deepStrictEqual([...fs.readFileSync(at("series_key.old.2"))], [...key32(2)]);
      assert.deepStrictEqual([...fs.readFileSync(at("series_key"))], [...key32(4)]);
      for (const name of ["signing_key", "series_key"]) {
        const good = fs.readFileSync(at(name));
        fs.writeFileSync(at(name), "x");
        const broken = yield* reasonOf(use(place, makeKeys));
        assert.include(broken, `${name} is damaged: bring back its copy`);
        fs.writeFileSync(at(name), good);
        fs.chmodSync(at(name), 0o640);
        const open = yield* reasonOf(use(place, makeKeys));
        assert.include(open, `${name} can be read by others: chmod 600 it`);
        fs.chmodSync(at(name), 0o600);
      }
      yield* use(place, makeKeys);
      yield* use(place, number);
      fs.appendFileSync(at("series_runs"), "x\n");
      assert.include(yield* reasonOf(use(place, number)), "series_runs is damaged: remove it");
    }),
  );

  it.live("survives a crash at every byte of a line", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "ledger.jsonl");
      yield* use(place, append("a"));
      const first = fs.readFileSync(file).length;
      yield* use(place, append("b"));
      const whole = fs.readFileSync(file);
      for (let cut = first; cut <= whole.length; cut += 1) {
        fs.writeFileSync(file, whole.subarray(0, cut));
        fs.rmSync(path.join(place, "ledger.torn"), { force: true });
        const kept = cut >= whole.length - 1 ? ["a", "b"] : ["a"];
        const torn = cut > first && kept.length === 1;
        const before = yield* use(place, readAll);
        assert.deepStrictEqual([...before.damaged], torn ? [2] : [], `cut at ${cut}`);
        yield* use(place, append("c"));
        const { damaged, entries } = yield* use(place, readAll);
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
        yield* use(place, Effect.forEach(["a", "b", "c"], append));
        const damaged = damage(fs.readFileSync(file, "utf8").split("\n")).join("\n");
        fs.writeFileSync(file, damaged);
        const readable = namesIn(Buffer.from(damaged));
        const kept = yield* use(
          place,
          Ledger.use((ledger) => ledger.mend),
        );
        assert.strictEqual(kept, path.join(place, `ledger.jsonl.damaged.${n + 1}`));
        assert.strictEqual(fs.readFileSync(kept, "utf8"), damaged);
        const mended = parseLedger(fs.readFileSync(file));
        assert.deepStrictEqual([mended.damaged, mended.unlinked], [[], []]);
        assert.deepStrictEqual(namesIn(fs.readFileSync(file)), readable);
        assert.isTrue(fs.readFileSync(file, "utf8").startsWith(`${damaged.split("\n")[0]}\n`));
      }
    }),
  );

  it.live("reads what it can around a damaged line, and links to the last intact one", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "ledger.jsonl");
      yield* use(place, append("a"));
      fs.appendFileSync(file, "\0\0\0\n{}\n");
      yield* use(place, append("b"));
      const { damaged, entries } = yield* use(place, readAll);
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
      const add = use(place, append("a"));
      const elsewhere = path.join(path.dirname(place), "elsewhere");
      fs.mkdirSync(elsewhere, { recursive: true });
      fs.symlinkSync(elsewhere, place);
      assert.include(yield* reasonOf(add), "is a link, or no directory: move it away");
      assert.deepStrictEqual(fs.readdirSync(elsewhere), []);
      fs.rmSync(place);

      yield* add;
      for (const [file, what] of [
        ["ledger.jsonl", add],
        ["known_servers", use(place, pin("q", "A"))],
        ["unfinished.json", use(place, mark)],
        ["signing_key", use(place, makeKeys)],
        ["series_key", use(place, makeKeys)],
        ["series_runs", use(place, number)],
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
      assert.include(yield* reasonOf(add), "belongs to user 1234, not to 0: run qbackup as its");
    }),
  );

  it.live("replaces as a whole, and leaves nothing half-written", () =>
    Effect.gen(function* () {
      const place = fresh();
      yield* use(place, mark);
      // What a crash left.
      fs.writeFileSync(path.join(place, "unfinished.json.new"), "{");
      yield* use(place, mark);
      assert.deepStrictEqual(fs.readdirSync(place), ["unfinished.json"]);
      fs.writeFileSync(path.join(place, "unfinished.json"), "{", { mode: 0o600 });
      const reason = yield* reasonOf(
        use(
          place,
          RunMark.use((books) => books.read),
        ),
      );
      assert.include(reason, "unfinished.json is damaged: look at it, then remove it");
      yield* use(
        place,
        RunMark.use((books) => books.write(undefined)),
      );
      assert.deepStrictEqual(fs.readdirSync(place), []);
    }),
  );

  it.live("reads known_servers as a person may have edited it", () =>
    Effect.gen(function* () {
      const place = fresh();
      const file = path.join(place, "known_servers");
      yield* use(place, pin("one", "A"));
      fs.writeFileSync(file, `# mine\n\n  one\t${key("B")} \none ${key("C")}\ntwo ${key("D")}`);
      const pinned = (qube: string) =>
        use(
          place,
          KnownServers.use((books) => books.pinned(qube)),
        );
      assert.strictEqual(yield* pinned("one"), key("B"));
      yield* use(place, pin("two", "E"));
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
          const add = use(place, append("a"));
          yield* add;
          let reason = "";
          for (let i = 0; i < 40 && reason === ""; i++) {
            reason = yield* Effect.match(add, {
              onFailure: ({ hint, message }) => `${message}: ${hint}`,
              onSuccess: () => "",
            });
          }
          assert.include(reason, "the disk is full: free space in dom0's home");
          const { damaged, entries } = yield* use(place, readAll);
          assert.deepStrictEqual([...damaged], []);
          assert.isAbove(entries.length, 1);
          mount("-o", "remount,ro");
          assert.include(yield* reasonOf(add), "the file system is read-only: see journalctl -b");
        } finally {
          execFileSync("umount", [place]);
        }
      }),
    unless(noMount()),
  );
});

describe("MemoryBooks", () => {
  it.effect("fail on demand, and outlive their program", () =>
    Effect.gen(function* () {
      const disk = booksDisk();
      const add = Effect.provide(append("a"), memoryBooks(disk), { local: true });
      yield* add;
      disk.fails = () => "the disk is full";
      assert.include((yield* Effect.flip(add)).message, "the disk is full");
      assert.deepStrictEqual(disk.calls, ["append a", "append a"]);
      assert.deepStrictEqual(namesIn(Buffer.from(disk.text)), ["a"]);
    }),
  );
});
