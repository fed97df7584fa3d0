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
  test("shows the lines as a chain", (ledger) =>
    Effect.gen(function* () {
      const nothing = { lines: [], damaged: [], unlinked: [] };
      assert.deepStrictEqual(yield* ledger.chain, nothing);
      for (const name of ["a", "b", "c"]) yield* ledger.append(entry(name));
      const { damaged, lines, unlinked } = yield* ledger.chain;
      assert.deepStrictEqual([damaged, unlinked], [[], []]);
      assert.deepStrictEqual(
        lines.map(({ entry: { name }, number }) => [number, name as string]),
        [
          [1, "a"],
          [2, "b"],
          [3, "c"],
        ],
      );
      assert.strictEqual(lines[1]!.entry.previous, lines[0]!.hash);
      assert.strictEqual(lines[2]!.entry.previous, lines[1]!.hash);
    }));
  test("keeps whether a line was rebuilt", (ledger) =>
    Effect.gen(function* () {
      yield* ledger.append(entry("a"));
      yield* ledger.append({ ...entry("b"), rebuilt: true });
      const { entries } = yield* ledger.entries;
      assert.deepStrictEqual(
        entries.map(({ rebuilt }) => rebuilt),
        [undefined, true],
      );
    }));
  test("remembers what was audited, each archive for itself", (ledger) =>
    Effect.gen(function* () {
      const [one, two] = ["1".repeat(32), "2".repeat(32)] as [Session, Session];
      assert.strictEqual((yield* ledger.audits).size, 0);
      const sampled = { at: "2026-01-02T03:04:05Z", blocks: 7 };
      yield* ledger.audited([one, two], (before) => ({ ...before, sampled }));
      yield* ledger.audited([two], (before) => ({ ...before, failed: "2026-01-03T00:00:00Z" }));
      yield* ledger.audited([], () => ({}));
      assert.deepStrictEqual(
        yield* ledger.audits,
        new Map([
          [one as string, { sampled }],
          [two as string, { sampled, failed: "2026-01-03T00:00:00Z" }],
        ]),
      );
    }));
  test("keeps every audit that is noted at the same time", (ledger) =>
    Effect.gen(function* () {
      const sessions = Array.from({ length: 8 }, (_, i) => String(i).repeat(32) as Session);
      const whole = "2026-01-02T03:04:05Z";
      yield* Effect.forEach(sessions, (one) => ledger.audited([one], () => ({ whole })), {
        concurrency: 8,
      });
      assert.strictEqual((yield* ledger.audits).size, 8);
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
