/** The server's log: journald's socket, as it is spoken to, and the file in the store. */
import { afterAll, assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { TestClock } from "effect/testing";
import * as fs from "node:fs";
import { createServer } from "node:net";
import * as os from "node:os";
import * as path from "node:path";
import { serverJournal } from "#layers/files/ServerJournal";
import { memoryJournal } from "#layers/memory/MemoryJournal";
import { type Entry, Journal } from "#services/Journal";
import { line } from "#src/say/shown";
import { journalContract } from "#test/contracts/journal";
import { vi } from "vitest";
import { until } from "#test/support/until";

const base = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-journal-"));
afterAll(() => fs.rmSync(base, { recursive: true, force: true }));

/** A store that has a `.qbackup`, which is the home too. */
const store = () => {
  const root = fs.mkdtempSync(path.join(base, "store-"));
  fs.mkdirSync(path.join(root, ".qbackup"), { mode: 0o700 });
  return root;
};
const noSocket = path.join(base, "none");
const logOf = (root: string, name = "log"): ReadonlyArray<string> => {
  const file = path.join(root, ".qbackup", name);
  return fs.existsSync(file) ? fs.readFileSync(file, "utf8").split("\n").slice(0, -1) : [];
};
const write = (root: string, text: string, weighty?: true, socket = noSocket) =>
  Effect.flatMap(Journal, (journal) =>
    journal.write({ text: line`${text}`, store: root, ...(weighty && { weighty }) }),
  ).pipe(Effect.provide(serverJournal("qbackup-shell", socket), { local: true }));

journalContract("memory", () => {
  const entries: Array<Entry> = [];
  return { layer: memoryJournal(entries), lines: () => entries.map(({ text }) => text) };
});
describe("in the home", () => {
  afterAll(() => vi.unstubAllEnvs());
  journalContract("a file", () => {
    const root = store();
    vi.stubEnv("HOME", root);
    return {
      layer: serverJournal("qbackup-shell", noSocket),
      lines: () => logOf(root).map((text) => text.replace(/^\d{4}-\S+Z /, "")),
    };
  });
});

describe("journald", () => {
  it.live("gets each line on a stream of its own, behind its header", () =>
    Effect.gen(function* () {
      const socket = path.join(base, "stdout");
      const streams: Array<string> = [];
      const server = createServer((connection) => {
        let text = "";
        connection.setEncoding("utf8");
        connection.on("data", (some: string) => (text += some));
        connection.on("end", () => {
          streams.push(text);
          connection.end();
        });
      });
      yield* Effect.callback<void>((done) => {
        server.listen(socket, () => done(Effect.void));
      });
      const root = store();
      yield* write(root, "one", undefined, socket);
      yield* write(root, "two", undefined, socket);
      yield* Effect.promise(() => until("both streams", () => streams.length === 2));
      server.close();
      const header = "qbackup-shell\n\n6\n0\n0\n0\n0\n";
      assert.deepStrictEqual(streams, [`${header}one\n`, `${header}two\n`]);
      assert.deepStrictEqual(logOf(root), []);
    }),
  );

  it.live("that nobody listens for any more is a file", () =>
    Effect.gen(function* () {
      const socket = path.join(base, "stale");
      fs.writeFileSync(socket, "");
      const root = store();
      yield* write(root, "one", undefined, socket);
      assert.match(logOf(root).join(), /^\d{4}-\d\d-\d\dT\S+Z one$/);
    }),
  );
});

describe("the file", () => {
  it.effect(
    "lets strangers write so many lines in a minute, and what only dom0 brings about always",
    () =>
      Effect.gen(function* () {
        const root = store();
        for (let n = 0; n < 100; n++) yield* write(root, `stranger ${n}`);
        assert.strictEqual(logOf(root).length, 61);
        assert.include(logOf(root).at(-1), "more lines of this minute are left out");
        yield* write(root, "committed", true);
        assert.include(logOf(root).at(-1), " committed");
        yield* TestClock.adjust("1 minute");
        yield* write(root, "a minute later");
        assert.include(logOf(root).at(-1), " a minute later");
      }),
  );

  it.effect("has two generations of 8 MiB, and no more", () =>
    Effect.gen(function* () {
      const root = store();
      const file = path.join(root, ".qbackup/log");
      for (const old of ["first", "second", "third"]) {
        fs.writeFileSync(
          file,
          `${old}\n${"x".repeat(99)}\n`.padEnd(8 * 2 ** 20 + 1, `${"x".repeat(99)}\n`),
        );
        yield* write(root, `behind ${old}`);
        assert.deepStrictEqual(logOf(root).length, 1);
        assert.include(logOf(root)[0], `behind ${old}`);
        assert.strictEqual(logOf(root, "log.1")[0], old);
      }
      assert.deepStrictEqual(fs.readdirSync(path.join(root, ".qbackup")).sort(), ["log", "log.1"]);
      assert.strictEqual(fs.statSync(file).mode & 0o777, 0o600);
    }),
  );

  it.effect("is made in a store that there is, follows no link, and fails nothing", () =>
    Effect.gen(function* () {
      const none = fs.mkdtempSync(path.join(base, "none-"));
      yield* write(none, "x");
      yield* write(path.join(none, "nowhere"), "x");
      assert.deepStrictEqual(fs.readdirSync(none), []);
      const root = store();
      const elsewhere = path.join(none, "elsewhere");
      fs.writeFileSync(elsewhere, "");
      fs.symlinkSync(elsewhere, path.join(root, ".qbackup/log"));
      yield* write(root, "x");
      assert.strictEqual(fs.readFileSync(elsewhere, "utf8"), "");
      const linked = fs.mkdtempSync(path.join(base, "linked-"));
      fs.symlinkSync(path.join(store(), ".qbackup"), path.join(linked, ".qbackup"));
      yield* write(linked, "x");
      assert.deepStrictEqual(logOf(linked), []);
      const blocked = store();
      fs.mkdirSync(path.join(blocked, ".qbackup/log"));
      yield* write(blocked, "x");
    }),
  );
});
