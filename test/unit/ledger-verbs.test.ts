/** The ledger's own verbs: its head on paper, what was done to it since, a lost one rebuilt; the sheet. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Layer } from "effect";
import { parseLedger } from "#layers/files/FileLedger";
import { Ledger } from "#services/Ledger";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { keyOf } from "#test/support/peer";
import { anArchive, keep, qbackup, server, world } from "#test/support/readback";

const small = anArchive(1, 200_000);
const names = ["a", "b", "c", "d"].map((letter) => `${letter}-2026-01-31T0400.backup`);
const full = (count = 4) => {
  const w = world();
  names.slice(0, count).forEach((name, i) => {
    keep(w, name, anArchive(10 + i, 100_000), { at: `2026-01-0${i + 1}T00:00:00Z` });
  });
  return w;
};

describe("ledger check", () => {
  it.effect("knows the head on paper as long as nothing before it changed", () =>
    Effect.gen(function* () {
      const w = full(2);
      const { code, out } = yield* qbackup(w, ["ledger", "head"]);
      assert.strictEqual(code, 0);
      const [paper, described] = out.split("\n");
      assert.match(paper!, /^2(-[0-9A-Z]{4}){6}$/);
      assert.strictEqual(described, `line 2, 2026-01-02 00:00 UTC, ${names[1]}`);
      const same = yield* qbackup(w, ["ledger", "check", paper!]);
      assert.strictEqual(same.code, 0);
      assert.match(same.out, /^on paper: line 2, .*\nunchanged up to there; 0 lines since\n$/);
      keep(w, names[2]!, small);
      const groups = paper!.toLowerCase().split("-");
      const later = yield* qbackup(w, ["ledger", "check", ...groups]);
      assert.strictEqual(later.code, 0, later.text);
      assert.match(later.out, /1 lines since/);
      const slip = yield* qbackup(w, ["ledger", "check", paper!.replace(/^2/, "3")]);
      assert.strictEqual(slip.code, 2);
      assert.match(slip.text, /a sign of it is wrong/);
      for (const args of [
        ["ledger"],
        ["ledger", "x"],
        ["ledger", "check"],
        ["ledger", "head", "x"],
      ])
        assert.strictEqual((yield* qbackup(w, args)).code, 2);
      assert.strictEqual((yield* qbackup(world(), ["ledger", "head"])).code, 2);
      assert.strictEqual(w.shelf.calls, 0);
    }),
  );
  it.effect("finds truncation, edits, removal, insertion and rollback", () =>
    Effect.gen(function* () {
      const w = full(3);
      const paper = (yield* qbackup(w, ["ledger", "head"])).out.split("\n")[0]!;
      const good = w.disk.text;
      const lines = good.trimEnd().split("\n");
      const other = full(2);
      keep(other, names[2]!, small);
      for (const [text, said] of [
        ["", /has line 3, but the ledger ends with line 0/],
        [`${lines[0]}\n`, /ends with line 1/],
        [lines.slice(0, 2).join("\n"), /ends with line 2/],
        [good.slice(0, -100), /ends with line 2/],
        [[lines[1], lines[2], ""].join("\n"), /line 3 of the paper is line 2/],
        [[lines[0], lines[2], ""].join("\n"), /line 3 of the paper is line 2/],
        [[lines[1], lines[0], lines[2], ""].join("\n"), /line 1, before it, is not sound/],
        [[lines[0], "{}", lines[1], lines[2], ""].join("\n"), /line 3 of the paper is line 4/],
        [[lines[0], "{}", lines[2], ""].join("\n"), /line 2, before it, is not sound/],
        [
          [lines[0]!.replace('"work"', '"wxrk"'), lines[1], lines[2], ""].join("\n"),
          /line 2, before it, is not sound/,
        ],
        [good.replace(/T00:00:00Z"}?$/m, 'T00:00:01Z"}'), /./],
        [
          [lines[0], lines[1], lines[2]!.replace('"work"', '"wxrk"'), ""].join("\n"),
          /line 3 of the ledger is not the one on paper/,
        ],
        [other.disk.text, /line 3 of the ledger is not the one on paper/],
      ] as const) {
        if (text === good) continue;
        w.disk.text = text;
        const { code, out, text: told } = yield* qbackup(w, ["ledger", "check", paper]);
        assert.strictEqual(code, 6, told);
        assert.match(told, said);
        assert.strictEqual(out, "");
      }
      w.disk.text = `${good}{"half`;
      const since = yield* qbackup(w, ["ledger", "check", paper]);
      assert.strictEqual(since.code, 6);
      assert.match(since.text, /not sound, since the paper was written: lines 4/);
      assert.match(since.out, /unchanged up to there/);
    }),
  );
});

describe("ledger rebuild", () => {
  it.effect("fetches what the server has receipts for, marks it, and says what is lost", () =>
    Effect.gen(function* () {
      const w = full();
      const before = parseLedger(Buffer.from(w.disk.text)).entries;
      w.disk.text = "";
      w.disk.pins.clear();
      const { code, out, text } = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(code, 0, text);
      assert.match(
        out,
        /^4 lines added, marked as rebuilt; 0 archives were in the ledger already\n$/,
      );
      assert.match(text, /first contact: pinned the server behind net, qbackup:/);
      assert.match(text, /No longer proven: that nothing was removed or put back/);
      assert.strictEqual(w.disk.pins.get("net"), server.server);
      const { entries, unlinked } = parseLedger(Buffer.from(w.disk.text));
      assert.deepStrictEqual(unlinked, []);
      assert.deepStrictEqual(
        entries.map(({ manifest, receipt, rebuilt, session, signature }) => ({
          manifest,
          receipt,
          rebuilt,
          session,
          signature,
        })),
        before.map(({ manifest, receipt, session, signature }) => ({
          manifest,
          receipt,
          rebuilt: true as const,
          session,
          signature,
        })),
      );
      assert.deepStrictEqual(entries[0]!.qubes, [
        { name: "vm2", qid: 2 },
        { name: "vm3", qid: 3 },
      ]);
      assert.strictEqual(entries[0]!.asked.prefix, "a-");
      const list = yield* qbackup(w, ["list"]);
      assert.strictEqual(list.code, 0);
      assert.match(list.out, /^a-2026-01-31T0400.backup .* rebuilt +- +2 qubes$/m);
      const verify = yield* qbackup(w, ["verify", names[0]!]);
      assert.strictEqual(verify.code, 0, verify.text);
      assert.match(verify.out, /is the server's word: the ledger was rebuilt/);
      const audit = yield* qbackup(w, ["audit"]);
      assert.match(audit.text, /warning: the ledger was rebuilt/);
      w.shelf.calls = 0;
      const again = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(w.shelf.calls, 1, "what is known is not fetched again");
      assert.match(again.out, /^0 lines added.*; 4 archives were in the ledger already\n$/);
    }),
  );
  it.effect("adds what damaged lines said, and makes a sound chain of those that can be read", () =>
    Effect.gen(function* () {
      const w = full();
      const lines = w.disk.text.trimEnd().split("\n");
      lines[1] = lines[1]!.slice(0, 100);
      w.disk.text = `${lines.join("\n")}\n{"torn`;
      assert.strictEqual((yield* qbackup(w, ["list"])).code, 6);
      const { code, text } = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(code, 0, text);
      assert.match(text, /damaged or changed \(lines 2, 3, 5\): .* is kept in .*ledger.damaged.1/);
      // What a paper says of the lines before it stays true.
      assert.isTrue(w.disk.text.startsWith(`${lines[0]}\n`));
      const { damaged, entries, unlinked } = parseLedger(Buffer.from(w.disk.text));
      assert.deepStrictEqual([damaged, unlinked], [[], []]);
      assert.deepStrictEqual(
        entries.map(({ name, rebuilt }) => [name as string, rebuilt]),
        [
          [names[0], undefined],
          [names[2], undefined],
          [names[3], undefined],
          [names[1], true],
        ],
      );
      assert.strictEqual((yield* qbackup(w, ["list"])).code, 0);
      assert.strictEqual((yield* qbackup(w, ["audit"])).code, 0);
    }),
  );
  it.effect("fetches anew what a line says that was changed, though it can be read", () =>
    Effect.gen(function* () {
      const w = full(2);
      const good = w.disk.text.split("\n");
      w.disk.text = w.disk.text.replace(/treehash\\":\\"../, 'treehash\\":\\"00');
      assert.notStrictEqual(w.disk.text.split("\n")[0], good[0]);
      assert.strictEqual((yield* qbackup(w, ["verify", names[0]!])).code, 6);
      const { code, out, text } = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(code, 0, text);
      assert.match(out, /^1 lines added.*; 1 archives were in the ledger already\n$/);
      assert.strictEqual((yield* qbackup(w, ["verify", names[0]!])).code, 0);
      const list = yield* qbackup(w, ["list"]);
      assert.strictEqual(list.code, 0, list.text);
      assert.match(list.out, /^a-\S+ .* rebuilt .*\nb-\S+ .* proven /m);
    }),
  );
  it.effect("lets no archive of the server's take the place of one that is known", () =>
    Effect.gen(function* () {
      const w = full(2);
      const before = w.disk.text;
      keep(w, names[0]!, small, { known: false, at: "2026-03-03T00:00:00Z" });
      const { code, text } = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(code, 6);
      assert.match(text, /is not taken into the ledger: the ledger has another archive under that/);
      assert.strictEqual(w.disk.text, before);
      const list = yield* qbackup(w, ["list"]);
      assert.strictEqual(list.code, 6);
      assert.match(list.text, new RegExp(`${names[0]} is changed`));
    }),
  );
  it.effect("takes nothing that the pinned key has not signed, for just that", () =>
    Effect.gen(function* () {
      const w = full();
      w.disk.text = "";
      keep(w, names[1]!, small, { known: false, key: keyOf("another") });
      const mixed = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(mixed.code, 6);
      assert.match(mixed.text, new RegExp(`${names[1]} is not taken into the ledger: another key`));
      assert.lengthOf(parseLedger(Buffer.from(w.disk.text)).entries, 3);
      const another = keyOf("another");
      for (const [lies, said] of [
        [
          {
            record: (r: { receipt: string | null }) => ({
              ...r,
              receiptSignature: another.sign(r.receipt!),
            }),
          },
          /not signed/,
        ],
        [{ record: () => "null" }, /not readable/],
        [{ record: (r: object) => ({ ...r, receipt: null }) }, /has no receipt/],
        [
          {
            listed: (l: ReadonlyArray<object>) =>
              l.map((x) => ("size" in x ? { ...x, size: 5 } : x)),
          },
          /list and receipt differ/,
        ],
      ] as const) {
        const fresh = full();
        fresh.disk.text = "";
        const { code, text } = yield* qbackup(fresh, ["ledger", "rebuild"], {
          lies: lies as never,
        });
        assert.strictEqual(code, 6, text);
        assert.match(text, said);
        assert.strictEqual(fresh.disk.text, "");
      }
    }),
  );
  it.effect("not beside a run, and not through a dead link", () =>
    Effect.gen(function* () {
      const w = full();
      const dead = yield* qbackup(w, ["ledger", "rebuild"], { far: () => Effect.succeed(1) });
      assert.strictEqual(dead.code, 4);
      w.disk.fails = (call) => (call.startsWith("append") ? "the disk is full" : undefined);
      w.disk.text = "";
      const disk = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(disk.code, 2, disk.text);
      assert.isDefined(Ledger);
    }),
  );
});

describe("a ledger that is not what it was", () => {
  it.effect.each([
    ["ENOSPC: no space left on device, write", /^hint: free space in dom0's home/m],
    ["EACCES: permission denied, open '/x'", /^hint: it must belong to the user/m],
    ["EROFS: read-only file system, open '/x'", /^hint: .* is read-only/m],
  ] as const)("not to be written, for %s: what helps against just that", ([why, hint]) =>
    Effect.gen(function* () {
      const w = full();
      w.disk.fails = (call) => (call === "mark" ? why : undefined);
      const { code, text } = yield* qbackup(w, ["list"]);
      assert.strictEqual(code, 2, text);
      assert.match(text, hint);
    }),
  );
  it.effect("lost: list says so, and what brings it back", () =>
    Effect.gen(function* () {
      const w = full();
      w.disk.text = "";
      const { code, text } = yield* qbackup(w, ["list"]);
      assert.strictEqual(code, 0, text);
      assert.match(text, /^warning: the ledger in .* has nothing that went through net: .* lost$/m);
      assert.match(text, /^hint: .*qbackup ledger rebuild -t net$/m);
    }),
  );
  it.effect("damaged: no head for the paper, and the sheet says so", () =>
    Effect.gen(function* () {
      const w = full();
      const lines = w.disk.text.split("\n");
      w.disk.text = [lines[0], ...lines.slice(2)].join("\n");
      const head = yield* qbackup(w, ["ledger", "head"]);
      assert.strictEqual(head.code, 6, head.text);
      assert.strictEqual(head.out, "");
      assert.match(head.text, /error: the ledger was damaged[^]*hint: .*qbackup ledger rebuild/);
      const sheet = yield* qbackup(w, ["recovery-sheet"]);
      assert.match(sheet.text, /warning: the ledger was changed/);
    }),
  );
  it.effect("rebuilt: qubes have no names, and their numbers are not taken for such", () =>
    Effect.gen(function* () {
      const w = full();
      w.disk.text = "";
      assert.strictEqual((yield* qbackup(w, ["ledger", "rebuild"])).code, 0);
      const list = yield* qbackup(w, ["list"]);
      assert.match(list.out, /^a-\S+ .* rebuilt .* 2 qubes$/m);
      for (const args of [["vm3"], ["--exclude", "vm2"]]) {
        const refused = yield* qbackup(w, ["restore", "-p", "/pass", names[0]!, ...args], {
          tools: Layer.mergeAll(
            Layer.mock(QvmBackup, {
              checkPassphrase: (path: string) => Effect.succeed({ path, warning: undefined }),
            } as never),
            Layer.mock(QvmRestore, {}),
          ),
        });
        assert.strictEqual(refused.code, 2, refused.text);
        assert.match(refused.text, /error: vm[23]: a rebuilt ledger knows .* no names/);
        assert.match(refused.text, /hint: give the names that the qubes had/);
      }
    }),
  );
});

describe("recovery-sheet", () => {
  it.effect("is one page with what a restore needs, and asks no server", () =>
    Effect.gen(function* () {
      const w = full();
      for (let i = 0; i < 15; i++) {
        keep(w, `p${String.fromCharCode(97 + i)}-2026.backup`, small, {
          qubes: [{ name: `q${i}`, qid: 20 + i }],
        });
      }
      keep(w, names[0]!, small, { at: "2026-05-05T05:05:05Z" });
      const { code, out } = yield* qbackup(w, ["recovery-sheet"]);
      assert.strictEqual(code, 0);
      const lines = out.split("\n");
      assert.isAtMost(lines.length, 75, out);
      assert.isTrue(
        lines.every((line) => line.length <= 80 || /^ +\S+$/.test(line)),
        out,
      );
      const head = (yield* qbackup(w, ["ledger", "head"])).out.split("\n")[0]!;
      for (const part of [
        head,
        "qbackup:",
        names[0]!,
        "2026-05-05 05:05 UTC",
        "qbackup restore",
        "qbackup-recover",
        "8 more that hold the newest of some qube",
      ])
        assert.include(out, part);
      assert.strictEqual(out.split("tree hash").length - 1, 9);
      assert.notMatch(out, /\/pass/);
      assert.strictEqual(w.shelf.calls, 0);
      const empty = yield* qbackup(world(), ["recovery-sheet"]);
      assert.match(empty.out, /no run yet/);
    }),
  );
  it.effect("has the newest archive of every qube, also of jobs without a prefix", () =>
    Effect.gen(function* () {
      const w = world();
      const job = (name: string, ...qubes: ReadonlyArray<string>) =>
        keep(w, name, small, { qubes: qubes.map((qube, i) => ({ name: qube, qid: 2 + i })) });
      job("2026-01-01T0400.backup", "vault", "net");
      job("2026-01-02T0400.backup", "vault");
      job("2026-01-03T0400.backup", "dom0");
      const bad = job("2026-01-04T0400.backup", "vault");
      w.disk.audits.set(bad.session, { undecryptable: "2026-01-05T00:00:00Z" });
      job("2026-01-05T0400.backup", "tpl", "net");
      const { out } = yield* qbackup(w, ["recovery-sheet"]);
      assert.deepStrictEqual(out.match(/^ {3}2026-01-0\d(?=T0400\.backup$)/gm), [
        "   2026-01-05",
        "   2026-01-03",
        "   2026-01-02",
      ]);
    }),
  );
});
