/** What every Ledger layer does. Each test gets a layer over a place of its own. */
import { assert, it } from "@effect/vitest";
import { Effect, type Layer, Schema } from "effect";
import { type Entry, Ledger, type Submission, Unfinished } from "#services/Ledger";
import type { Name, Session } from "#src/wire/names";

export const key = (letter: string): string => `${letter.repeat(43)}=`;

export const submission = (name: string, letter = "A"): Submission => ({
  name: name as Name,
  session: "0123456789abcdef0123456789abcdef" as Session,
  destination: "sys-backup",
  server: key(letter),
  asked: { qubes: ["work"], includeDom0: false, prefix: "" },
  qubes: [{ name: "work", qid: 2 }],
  manifest: `{"version":1,"name":"${name}","odd":"\\u2028 é \\n"}`,
});

export const entry = (name: string): Omit<Entry, "version" | "previous"> => ({
  ...submission(name),
  finished: "2026-01-02T03:04:05Z",
  receipt: '{"version":1}',
  signature: `${"B".repeat(86)}==`,
});

const same = Schema.toEquivalence(Unfinished);

export const ledgerContract = (name: string, make: () => Layer.Layer<Ledger>) => {
  const test = (title: string, what: (ledger: Ledger["Service"]) => Effect.Effect<void, unknown>) =>
    it.live(`${name}: ${title}`, () =>
      Effect.gen(function* () {
        yield* what(yield* Ledger);
      }).pipe(Effect.provide(make())),
    );

  test("is empty at first", (ledger) =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* ledger.entries, { entries: [], damaged: [] });
      assert.isUndefined(yield* ledger.unfinished);
      assert.isUndefined(yield* ledger.pinned("sys-backup"));
      yield* ledger.mark(undefined);
    }));
  test("keeps runs in order, each linked to the one before", (ledger) =>
    Effect.gen(function* () {
      for (const name of ["a", "b", "c"]) yield* ledger.append(entry(name));
      const { damaged, entries } = yield* ledger.entries;
      assert.deepStrictEqual(damaged, []);
      assert.deepStrictEqual(
        entries.map((one) => one.name as string),
        ["a", "b", "c"],
      );
      assert.isNull(entries[0]!.previous);
      assert.match(entries[1]!.previous!, /^[0-9a-f]{64}$/);
      assert.notStrictEqual(entries[1]!.previous, entries[2]!.previous);
      const { manifest, receipt } = entries[2]!;
      assert.deepStrictEqual([manifest, receipt], [entry("c").manifest, entry("c").receipt]);
    }));
  test("keeps every run that is added at the same time", (ledger) =>
    Effect.gen(function* () {
      const names = Array.from({ length: 8 }, (_, i) => `n${i}`);
      yield* Effect.forEach(names, (one) => ledger.append(entry(one)), { concurrency: 8 });
      const { entries } = yield* ledger.entries;
      assert.deepStrictEqual(entries.map((one) => one.name as string).sort(), names);
      assert.strictEqual(new Set(entries.map(({ previous }) => previous)).size, 8);
    }));
  test("remembers the run under way until it is told otherwise", (ledger) =>
    Effect.gen(function* () {
      const run: Unfinished = {
        session: submission("a").session,
        destination: "sys-backup",
        started: true,
      };
      yield* ledger.mark(run);
      assert.deepStrictEqual(yield* ledger.unfinished, run);
      const more = { ...run, submission: submission("a") };
      yield* ledger.mark(more);
      assert.isTrue(same((yield* ledger.unfinished)!, more));
      yield* ledger.mark(undefined);
      assert.isUndefined(yield* ledger.unfinished);
    }));
  test("pins one key for each qube", (ledger) =>
    Effect.gen(function* () {
      yield* ledger.pin("sys-backup", key("A"));
      yield* ledger.pin("other", key("B"));
      assert.strictEqual(yield* ledger.pinned("sys-backup"), key("A"));
      yield* ledger.pin("sys-backup", key("C"));
      assert.strictEqual(yield* ledger.pinned("sys-backup"), key("C"));
      assert.strictEqual(yield* ledger.pinned("other"), key("B"));
      assert.isUndefined(yield* ledger.pinned("nobody"));
    }));
};
