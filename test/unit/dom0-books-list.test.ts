/** `list`: the server's pages held against the ledger, what was pruned, and what others put there. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { TestClock } from "effect/testing";
import type { Session } from "#src/wire/names";
import { keyOf, type Lies } from "#test/support/peer";
import { textOf } from "#test/support/reference";
import {
  anArchive,
  dom0Key,
  keep,
  qbackup,
  server,
  type World,
  world,
} from "#test/support/readback";
import { createHash } from "node:crypto";

const names = ["a", "b", "c", "d"].map((letter) => `${letter}-2026-01-31T0400.backup`);
const series = "0123456789abcdef";
const now = Date.parse("2026-03-01T00:00:00Z");

const withKeys = () => {
  const w = world();
  w.disk.secrets = {
    signing: createHash("sha256").update("signing key of a test").digest(),
    series: Buffer.alloc(32),
  };
  return w;
};
const full = () => {
  const w = withKeys();
  const kept = names.map((name, i) =>
    keep(w, name, anArchive(10 + i, 60_000), {
      at: `2026-01-0${i + 1}T00:00:00Z`,
      manifest: { run: i + 1 },
    }),
  );
  return { w, kept };
};

/** The server's owner lets an archive go, and signs that; `change` for what is wrong with it. */
const prune = (
  w: World,
  name: string,
  change: { readonly [key: string]: unknown } = {},
  key = server,
) => {
  const { manifest, receipt } = w.shelf.committed.get(name)!;
  const { root, run, session, series: of, signer } = JSON.parse(manifest);
  const tombstone = textOf("tombstone", {
    name,
    session,
    signer,
    series: of,
    run,
    root,
    stored: JSON.parse(receipt).stored,
    pruned: "2026-02-20T00:00:00Z",
    rule: "keep-daily 14",
    ...change,
  });
  w.shelf.committed.delete(name);
  w.shelf.pruned.set(name, { tombstone, signature: key.sign("tombstone", tombstone) });
};

const proofs = (out: string) =>
  Object.fromEntries(
    (JSON.parse(out) as ReadonlyArray<{ name: string; proof: string }>).map(({ name, proof }) => [
      name[0],
      proof,
    ]),
  );

describe("list", () => {
  it.effect("says proven only of what was read back, and when", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(now);
      const { kept, w } = full();
      const [, b, c, d] = kept.map(({ session }) => session as Session);
      w.disk.audits.set(b!, { sampled: { at: "2026-02-03T00:00:00Z", blocks: 1, of: 8 } });
      w.disk.audits.set(c!, { whole: "2026-02-04T00:00:00Z" });
      w.disk.audits.set(d!, {
        whole: "2026-02-04T00:00:00Z",
        sampled: { at: "2026-02-05T00:00:00Z", blocks: 1, of: 8 },
      });
      const { code, out, text } = yield* qbackup(w, ["list"]);
      assert.strictEqual(code, 0, text);
      const [, ...rows] = out.trimEnd().split("\n");
      for (const [i, row] of [
        /^a-\S+ .* receipt {2}- {2,}work mail$/,
        /^b-\S+ .* proven {3}2026-02-03 1\/8 {2,}work mail$/,
        /^c-\S+ .* proven {3}2026-02-04 {2,}work mail$/,
        /^d-\S+ .* proven {3}2026-02-04 2026-02-05 1\/8 {2}work mail$/,
      ].entries()) {
        assert.match(rows[i]!, row);
      }
      w.disk.audits.set(c!, { whole: "2026-02-04T00:00:00Z", failed: "2026-02-06T00:00:00Z" });
      const bad = yield* qbackup(w, ["list"]);
      assert.strictEqual(bad.code, 6);
      assert.match(bad.out, /^c-\S+ .* damaged /m);
    }),
  );

  it.effect("calls what nobody and what another dom0 signed by its name", () =>
    Effect.gen(function* () {
      const { w } = full();
      w.disk.text = w.disk.text.split("\n").slice(0, 2).join("\n") + "\n";
      const lies: Lies = {
        listed: (lines) =>
          lines.map((line) =>
            line["name"] === names[2]
              ? { ...line, signer: null, series: null, run: null }
              : line["name"] === names[3]
                ? { ...line, signer: keyOf("another").publicKey }
                : line,
          ),
      };
      keep(w, "e-x.backup", anArchive(3, 1000), { known: false });
      const { code, out, text } = yield* qbackup(w, ["list", "--json"], { lies });
      assert.strictEqual(code, 0, text);
      assert.deepStrictEqual(proofs(out), {
        a: "receipt",
        b: "receipt",
        c: "unsigned",
        d: "foreign",
        e: "unknown",
      });
      assert.match(text, /^warning: 1 archives are not signed by any dom0/m);
      assert.match(text, /^warning: 1 archives are signed by another key than this dom0's$/m);
      w.disk.secrets = undefined;
      const lost = yield* qbackup(w, ["list", "--json"], { lies });
      assert.strictEqual(proofs(lost.out)["e"], "foreign");
      assert.match(lost.text, /than this dom0, which has none yet\n.*hint: .*qbackup key import/);
    }),
  );

  it.effect("believes the server when it calls an archive damaged, or has other words for it", () =>
    Effect.gen(function* () {
      for (const [change, proof, said] of [
        [{ damaged: true }, "damaged", /the server found it damaged/],
        [{ signer: null, series: null, run: null }, "changed", /has lost what was signed for it/],
        [{ signer: keyOf("another").publicKey }, "changed", /it is signed by another key/],
        [{ run: 77 }, "changed", /another run, or another series/],
        [{ stored: "2026-01-09T00:00:00Z" }, "changed", /it was stored again/],
        [{ session: "f".repeat(32) }, "changed", /it was stored again/],
        [{ members: 6 }, "changed", /other content|the content of/],
        [{ size: 6 }, "changed", /other content|the content of/],
        [{ root: "0".repeat(64) }, "changed", /other content/],
      ] as ReadonlyArray<readonly [object, string, RegExp]>) {
        const { w } = full();
        const lies: Lies = {
          listed: (lines) =>
            lines.map((line) => (line["name"] === names[1] ? { ...line, ...change } : line)),
        };
        const { code, out, text } = yield* qbackup(w, ["list", "--json"], { lies });
        assert.strictEqual(code, 6, text);
        assert.strictEqual(proofs(out)["b"], proof);
        assert.match(text, said);
      }
    }),
  );

  it.effect("tells a name that was never backed up from one that was only lost", () =>
    Effect.gen(function* () {
      for (const [change, said] of [
        [{}, /is unknown: it has the content of a-\S+: renamed or copied/],
        [{ root: "0".repeat(64), damaged: true }, /is unknown: the server found it damaged/],
      ] as ReadonlyArray<readonly [object, RegExp]>) {
        const { w } = full();
        const lies: Lies = {
          listed: (lines) => [
            ...lines.slice(0, -1),
            { ...lines[0], name: "x-y", ...change },
            lines.at(-1)!,
          ],
        };
        const { code, out, text } = yield* qbackup(w, ["list", "--json"], { lies });
        assert.strictEqual(code, 6, text);
        assert.strictEqual(proofs(out)["x"], "unknown");
        assert.match(text, said);
      }
    }),
  );

  it.effect("comes in pages, over a link that breaks, whatever is missing between them", () =>
    Effect.gen(function* () {
      const { w } = full();
      w.shelf.committed.delete(names[1]!);
      for (const [page, whole] of [
        [1, 1],
        [2, 1],
        [2, 2],
        [3, 2],
        [3, 3],
      ] as const) {
        let cut = true;
        const { code, out, text } = yield* qbackup(w, ["list", "--json"], {
          lies: {
            page,
            listed: (lines) => {
              if (!cut || lines.length < 2) return lines;
              cut = false;
              return lines.slice(0, whole);
            },
          },
        });
        assert.strictEqual(code, 6, text);
        assert.deepStrictEqual(proofs(out), {
          a: "receipt",
          b: "missing",
          c: "receipt",
          d: "receipt",
        });
        assert.deepStrictEqual(
          (JSON.parse(out) as ReadonlyArray<{ name: string }>).map(({ name }) => name),
          names,
        );
      }
      assert.strictEqual((yield* qbackup(world(), ["list", "--json"])).out, "[]\n");
      assert.match((yield* qbackup(world(), ["list"])).out, /^NAME +STORED .*\n$/);
    }),
  );

  it.effect("has no number of archives at which it stops", () =>
    Effect.gen(function* () {
      const { w } = full();
      const many = 20_001;
      const line = (i: number) => ({
        type: "archive",
        name: `n${String(i).padStart(6, "0")}`,
        session: "0".repeat(32),
        signer: dom0Key.publicKey,
        series,
        run: i,
        size: 10,
        members: 3,
        root: "0".repeat(64),
        stored: "2026-01-01T00:00:00Z",
        damaged: false,
      });
      const lies: Lies = {
        listed: (lines, call) => {
          const first = (call - 1) * 9_000;
          const some = Math.min(9_000, many - first);
          return [
            ...(call === 1 ? lines.slice(0, -1) : []),
            ...Array.from({ length: some }, (_, i) => line(first + i)),
            { type: "end", more: first + some < many },
          ];
        },
      };
      const { code, out, text } = yield* qbackup(w, ["list"], { lies });
      assert.strictEqual(code, 0, text);
      assert.strictEqual(out.split("\n").length, 1 + names.length + many + 1);
      assert.match(out, /^n020000 .* unknown /m);
    }),
  );

  it.effect.each([
    ["out of order", (lines) => [lines[1]!, lines[0]!, ...lines.slice(2)], /, unasked$/m],
    ["twice", (lines) => [lines[0]!, lines[0]!, ...lines.slice(1)], /lists a-\S+ twice$/m],
    ["more, and nothing of it", () => [{ type: "end", more: true }], /more, and lists nothing$/m],
    [
      "more than a page",
      () =>
        Array.from({ length: 10_003 }, (_, i) => ({
          type: "pruned",
          name: `n${String(i).padStart(6, "0")}`,
          tombstone: "",
          signature: `${"A".repeat(86)}`,
        })),
      /lists more than was asked for$/m,
    ],
  ] as ReadonlyArray<
    readonly [
      string,
      (lines: ReadonlyArray<{ readonly type: string }>) => ReadonlyArray<object>,
      RegExp,
    ]
  >)("is not believed: %s", ([, listed, said]) =>
    Effect.gen(function* () {
      const { w } = full();
      const { code, out, text } = yield* qbackup(w, ["list"], { lies: { listed } });
      assert.strictEqual(code, 6, text);
      assert.match(text, said);
      assert.strictEqual(out, "");
    }),
  );
});

describe("what was pruned", () => {
  it.effect("by a rule, and signed, is counted, and not missed", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(now);
      const { kept, w } = full();
      prune(w, names[0]!);
      prune(w, names[1]!);
      const { code, out, text } = yield* qbackup(w, ["list"]);
      assert.strictEqual(code, 0, text);
      assert.notMatch(out, /^[ab]-/m);
      assert.match(text, /^info: 2 archives were pruned by the rules of the server's owner$/m);
      assert.deepStrictEqual(
        kept.map(({ session }) => w.disk.audits.get(session)?.forgotten !== undefined),
        [true, true, false, false],
      );
      // Nobody has to know it for ever.
      w.shelf.pruned.clear();
      const later = yield* qbackup(w, ["list"]);
      assert.strictEqual(later.code, 0, later.text);
    }),
  );

  it.effect("is shown to a program", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(now);
      const { w } = full();
      prune(w, names[0]!);
      const { out } = yield* qbackup(w, ["list", "--json"]);
      assert.strictEqual(proofs(out)["a"], "pruned");
      assert.match(out, /pruned on 2026-02-20 by the rule: keep-daily 14/);
    }),
  );

  it.effect("the newest of its series: an alarm", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(now);
      const { kept, w } = full();
      prune(w, names[3]!);
      const { code, out, text } = yield* qbackup(w, ["list"]);
      assert.strictEqual(code, 6, text);
      assert.match(out, /^d-\S+ .* pruned /m);
      assert.match(text, /d-\S+ is pruned: the newest of its series was removed: pruned on/);
      assert.isUndefined(w.disk.audits.get(kept[3]!.session)?.forgotten);
      // A plain archive does not stand in for slots.
      const two = full().w;
      const { session } = keep(two, "e-x.backup", anArchive(3, 1000), {
        at: "2026-01-01T00:00:00Z",
        manifest: { run: 0, format: "slots" },
      });
      prune(two, "e-x.backup");
      const other = yield* qbackup(two, ["list"]);
      assert.strictEqual(other.code, 6, other.text);
      assert.isUndefined(two.disk.audits.get(session)?.forgotten);
    }),
  );

  it.effect("the newest, of which only the list tells that nothing is newer: an alarm", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(now);
      const { w } = full();
      keep(w, "e-x.backup", anArchive(3, 1000), {
        known: false,
        at: "2026-01-09T00:00:00Z",
        manifest: { run: 9 },
      });
      prune(w, "e-x.backup");
      const { code, text } = yield* qbackup(w, ["list"]);
      assert.strictEqual(code, 6, text);
      assert.match(text, /the newest archive of the series 0123456789abcdef was removed: e-x/);
      // Of some names only, nobody can tell.
      keep(w, "e-a.backup", anArchive(4, 1000), { manifest: { run: 2 } });
      const some = yield* qbackup(w, ["list", "e"]);
      assert.strictEqual(some.code, 0, some.text);
      keep(w, "f-x.backup", anArchive(3, 1000), { known: false, manifest: { run: 10 } });
      assert.strictEqual((yield* qbackup(w, ["list"])).code, 0);
    }),
  );

  it.effect("before its time, by the server's clock or by dom0's: an alarm", () =>
    Effect.gen(function* () {
      for (const [at, pruned, alarm] of [
        [now, "2026-01-07T23:59:59Z", true],
        [now, "2026-01-08T00:00:00Z", false],
        [Date.parse("2026-01-07T00:00:00Z"), "2026-02-20T00:00:00Z", true],
      ] as const) {
        yield* TestClock.setTime(at);
        const { w } = full();
        prune(w, names[0]!, { pruned });
        const { code, text } = yield* qbackup(w, ["list"]);
        assert.strictEqual(code, alarm ? 6 : 0, text);
        if (alarm) assert.match(text, /a-\S+ is pruned: it was removed before its time/);
      }
    }),
  );

  it.effect("without the server's word for just this archive: missing", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(now);
      for (const [change, key, said] of [
        [{}, keyOf("another"), /is missing: .* has not signed that/],
        [{ name: names[1] }, server, /is missing: .* has not signed that/],
        [{ session: "f".repeat(32) }, server, /is missing: .* has not signed that/],
        [{ root: "0".repeat(64) }, server, /is missing: .* its root differs/],
        [{ run: 9 }, server, /is missing: .* its run differs/],
        [{ series: "f".repeat(16) }, server, /is missing: .* its series differs/],
        [{ signer: keyOf("x").publicKey }, server, /is missing: .* its signer differs/],
        [{ stored: "2026-01-01T00:00:01Z" }, server, /is missing: .* its stored differs/],
      ] as const) {
        const { kept, w } = full();
        prune(w, names[0]!, change, key);
        const { code, text } = yield* qbackup(w, ["list"]);
        assert.strictEqual(code, 6, text);
        assert.match(text, said);
        assert.isUndefined(w.disk.audits.get(kept[0]!.session));
      }
    }),
  );
});
