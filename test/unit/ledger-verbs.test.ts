/** The ledger's own verbs: its head on paper, what was done to it since, a lost one rebuilt; the sheet. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Layer } from "effect";
import { createHash } from "node:crypto";
import { Itself } from "#services/Itself";
import { memoryQvmBackup, qvmBackupScript } from "#layers/memory/MemoryQvmBackup";
import { memoryQvmRestore, qvmRestoreScript } from "#layers/memory/MemoryQvmRestore";
import { memorySealing } from "#layers/memory/MemorySealing";
import { parseLedger } from "#layers/files/FileLedger";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { fingerprint } from "#src/proof/keys";
import { FullChunk } from "#src/archive/parameters";
import { archiveOf } from "#test/support/archive";
import { keyOf, type Lies } from "#test/support/peer";
import { membersOf, textOf } from "#test/support/reference";
import {
  anArchive,
  dom0Key,
  keep,
  qbackup,
  server,
  type World,
  world,
} from "#test/support/readback";

type Signed = Record<"manifest" | "signature" | "receipt" | "receiptSignature", string>;
interface Listed {
  readonly run: number;
}
const small = anArchive(1, 200_000);
const entriesIn = (w: World) =>
  parseLedger(Buffer.from(w.disk.text)).lines.map(({ entry }) => entry);
const expected = ["--expect-server", fingerprint(server.publicKey)];
const names = ["a", "b", "c", "d"].map((letter) => `${letter}-2026-01-31T0400.backup`);
/** What the disk of dom0 has after its keys were made. */
const withKeys = () => {
  const w = world();
  w.disk.secrets = {
    signing: createHash("sha256").update("signing key of a test").digest(),
    series: Buffer.alloc(32),
  };
  return w;
};
const full = (count = 4) => {
  const w = withKeys();
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
      const before = entriesIn(w);
      w.disk.text = "";
      w.disk.pins.clear();
      const { code, out, text } = yield* qbackup(w, ["ledger", "rebuild", ...expected]);
      assert.strictEqual(code, 0, text);
      assert.match(
        out,
        /^4 lines added, marked as rebuilt; 0 archives were in the ledger already\n$/,
      );
      assert.match(
        text,
        /first contact: pinned the server behind net, key fingerprint [0-9a-f]{64}/,
      );
      assert.match(
        text,
        /dom0 has signed; that they are all, and the newest, is the server's word/,
      );
      assert.strictEqual(w.disk.pins.get("net"), server.publicKey);
      assert.deepStrictEqual(parseLedger(Buffer.from(w.disk.text)).unlinked, []);
      const entries = entriesIn(w);
      assert.deepStrictEqual(
        entries.map(({ asked: _a, previous: _p, qubes: _q, ...rest }) => rest),
        before.map(({ asked: _a, previous: _p, qubes: _q, ...rest }) => ({
          ...rest,
          rebuilt: true as const,
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
      w.shelf.asked.clear();
      const again = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.deepStrictEqual(
        [...w.shelf.asked],
        [["list", 1]],
        "what is known is not fetched again",
      );
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
      assert.match(text, /damaged or changed \(lines 2, 3, 5\): .* is kept in .*jsonl.damaged.1/);
      // What a paper says of the lines before it stays true.
      assert.isTrue(w.disk.text.startsWith(`${lines[0]}\n`));
      const { damaged, unlinked } = parseLedger(Buffer.from(w.disk.text));
      assert.deepStrictEqual([damaged, unlinked], [[], []]);
      assert.deepStrictEqual(
        entriesIn(w).map(({ name, rebuilt }) => [name as string, rebuilt]),
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
      w.disk.text = w.disk.text.replace(/root\\":\\"../, 'root\\":\\"00');
      assert.notStrictEqual(w.disk.text.split("\n")[0], good[0]);
      assert.strictEqual((yield* qbackup(w, ["verify", names[0]!])).code, 6);
      const { code, out, text } = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(code, 0, text);
      assert.match(out, /^1 lines added.*; 1 archives were in the ledger already\n$/);
      assert.strictEqual((yield* qbackup(w, ["verify", names[0]!])).code, 0);
      const list = yield* qbackup(w, ["list"]);
      assert.strictEqual(list.code, 0, list.text);
      assert.match(list.out, /^a-\S+ .* rebuilt .*\nb-\S+ .* receipt /m);
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
  it.effect("takes nothing that dom0 and the pinned server have not signed, for just that", () =>
    Effect.gen(function* () {
      const w = full();
      w.disk.text = "";
      keep(w, names[1]!, small, { known: false, key: keyOf("another") });
      const mixed = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(mixed.code, 6);
      assert.match(
        mixed.text,
        new RegExp(`${names[1]} is not taken into the ledger: another server`),
      );
      assert.lengthOf(entriesIn(w), 3);
      const another = keyOf("another");
      const otherName = (r: { manifest: string }) =>
        textOf("manifest", { ...JSON.parse(r.manifest), name: "other" });
      const record = (change: (r: Signed) => object): Lies => ({
        record: (r) => ({ ...r, ...change(r) }),
      });
      const listed = (change: (line: Listed) => object): Lies => ({
        listed: (lines) => lines.map((l) => ("root" in l ? { ...l, ...change(l as never) } : l)),
      });
      for (const [lies, said] of [
        [record((r) => ({ receiptSignature: another.sign("receipt", r.receipt) })), /not signed/],
        [record((r) => ({ signature: another.sign("manifest", r.manifest) })), /is not signed by/],
        [record((r) => ({ signature: dom0Key.sign("receipt", r.manifest) })), /is not signed by/],
        [record(() => ({ manifest: "null" })), /is malformed/],
        [record((r) => ({ manifest: ` ${r.manifest}` })), /is malformed/],
        [
          record((r) => {
            const manifest = otherName(r);
            return { manifest, signature: dom0Key.sign("manifest", manifest) };
          }),
          /was backed up as other: it was renamed/,
        ],
        [
          { record: () => ({ type: "error", code: "not-found", message: "no" }) },
          /nothing was sig/,
        ],
        [listed(() => ({ size: 5 })), /list and manifest differ/],
        [listed((line) => ({ run: line.run + 1 })), /list and manifest differ/],
        [
          {
            record: (r) => {
              const manifest = textOf("manifest", {
                ...JSON.parse(r.manifest),
                signer: another.publicKey,
              });
              const signature = another.sign("manifest", manifest);
              const receipt = textOf("receipt", {
                ...JSON.parse(r.receipt),
                manifest: createHash("sha256").update(manifest).digest("hex"),
              });
              const receiptSignature = server.sign("receipt", receipt);
              return { ...r, manifest, receipt, receiptSignature, signature };
            },
          },
          /another dom0 has signed it/,
        ],
      ] as ReadonlyArray<readonly [Lies, RegExp]>) {
        const fresh = full();
        fresh.disk.text = "";
        const { code, text } = yield* qbackup(fresh, ["ledger", "rebuild"], { lies });
        assert.strictEqual(code, 6, text);
        assert.match(text, said);
        assert.strictEqual(fresh.disk.text, "", `${said}`);
      }
    }),
  );
  it.effect("names what others signed, and what nobody did, and leaves it", () =>
    Effect.gen(function* () {
      const w = full();
      w.disk.text = "";
      const lies: Lies = {
        listed: (lines) =>
          lines.map((line, i) =>
            i === 0
              ? { ...line, signer: null, series: null, run: null }
              : i === 1
                ? { ...line, signer: keyOf("another").publicKey }
                : line,
          ),
      };
      const { code, out, text } = yield* qbackup(w, ["ledger", "rebuild"], { lies });
      assert.strictEqual(code, 0, text);
      assert.match(out, /^2 lines added/);
      assert.match(
        text,
        new RegExp(`${names[0]} is not taken into the ledger: no dom0 has signed`),
      );
      assert.match(text, new RegExp(`${names[1]} is not taken into the ledger: another dom0 has`));
      assert.deepStrictEqual(
        entriesIn(w).map(({ name }) => name as string),
        names.slice(2),
      );
    }),
  );
  it.effect("needs dom0's key, and to know which server", () =>
    Effect.gen(function* () {
      const w = full();
      w.disk.text = "";
      const { secrets } = w.disk;
      w.disk.secrets = undefined;
      const lost = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(lost.code, 2);
      assert.match(
        lost.text,
        /the key that signs backups is not here[^]*hint: .*qbackup key import/,
      );
      w.disk.secrets = secrets;
      w.disk.pins.clear();
      const which = yield* qbackup(w, ["ledger", "rebuild"]);
      assert.strictEqual(which.code, 2);
      assert.match(which.text, /no server is known behind net[^]*hint: .*--expect-server FINGERPR/);
      const odd = yield* qbackup(w, ["ledger", "rebuild", "--expect-server", "12"]);
      assert.strictEqual(odd.code, 2);
      assert.match(odd.text, /takes a fingerprint of 64 hex digits/);
      assert.strictEqual(w.shelf.calls, 0);
      const other = ["--expect-server", fingerprint(keyOf("another").publicKey)];
      const wrong = yield* qbackup(w, ["ledger", "rebuild", ...other]);
      assert.strictEqual(wrong.code, 6);
      assert.match(wrong.text, /4 archives are not taken/);
      assert.strictEqual(w.disk.pins.size, 0);
      w.disk.pins.set("net", server.publicKey);
      const against = yield* qbackup(w, ["ledger", "rebuild", ...other]);
      assert.strictEqual(against.code, 6);
      assert.match(against.text, /and [0-9a-f]{64} was expected/);
      assert.strictEqual(w.disk.text, "");
    }),
  );
  it.effect("walks what it takes: no archive with a hole, and none that does not come", () =>
    Effect.gen(function* () {
      const bytes = archiveOf({
        seed: 5,
        chunk: 20_000,
        files: [{ path: "vm2/private.img", size: 70_000 }],
      });
      const whole = membersOf(bytes);
      const holed = Buffer.concat(whole.filter((_, i) => i !== 4).map((member) => member.bytes));
      const w = withKeys();
      keep(w, names[0]!, holed, { known: false });
      keep(w, names[1]!, bytes, { known: false });
      const run = qbackup(w, ["ledger", "rebuild"]).pipe(Effect.provideService(FullChunk, 20_128));
      const { code, text } = yield* run;
      assert.strictEqual(code, 6, text);
      assert.match(text, new RegExp(`${names[0]} is not a whole archive: .*private.img`));
      assert.deepStrictEqual(
        entriesIn(w).map(({ name }) => name as string),
        [names[1]],
      );
      const gone = full(2);
      gone.disk.text = "";
      const lost = yield* qbackup(gone, ["ledger", "rebuild"], {
        lies: { recipe: (text, name) => (name === names[0] ? text.replace(" 0 ", " 1 ") : text) },
      });
      assert.strictEqual(lost.code, 6, lost.text);
      assert.match(lost.text, new RegExp(`${names[0]} is not taken`));
      assert.lengthOf(entriesIn(gone), 1);
    }),
  );
  it.effect("tells what is missing in a series, and one archive under two names", () =>
    Effect.gen(function* () {
      const w = withKeys();
      names.forEach((name, i) => {
        // The last is the first once more, which only dom0's own key can have signed.
        const files = [{ path: "vm2/private.img", size: 1000 }];
        keep(w, name, archiveOf({ seed: i, files, id: `2026010${(i % 3) + 1}T000000-7` }), {
          known: false,
          at: `2026-01-0${i + 1}T00:00:00Z`,
          manifest: { run: [3, 4, 8, 9][i] },
        });
      });
      // One that was let go by a rule is not left out; only the server itself can say so.
      for (const [run, key] of [
        [6, server],
        [5, keyOf("another")],
      ] as const) {
        const tombstone = textOf("tombstone", {
          name: `gone-${run}`,
          session: "f".repeat(32),
          signer: dom0Key.publicKey,
          series: "0123456789abcdef",
          run,
          root: "0".repeat(64),
          stored: "2026-01-01T00:00:00Z",
          pruned: "2026-02-01T00:00:00Z",
          rule: "keep-daily 14",
        });
        w.shelf.pruned.set(`gone-${run}`, {
          tombstone,
          signature: key.sign("tombstone", tombstone),
        });
      }
      w.disk.pins.clear();
      const { code, text } = yield* qbackup(w, ["ledger", "rebuild", ...expected]);
      assert.strictEqual(code, 0, text);
      assert.match(text, /of the series 0123456789abcdef nothing is there of the runs 5, 7: they/);
      assert.match(text, new RegExp(`${names[3]} has the backup-id of ${names[0]}: one is a copy`));
    }),
  );
  it.effect("of a store that has another key by now: of each key by itself", () =>
    Effect.gen(function* () {
      const w = withKeys();
      const former = keyOf("former server");
      const { name } = keep(w, names[0]!, small, { known: false, key: former });
      const later = { known: false, at: "2026-02-01T04:00:00Z" };
      keep(w, names[1]!, anArchive(2, 100_000), later);
      w.disk.pins.clear();
      const one = ["--expect-server", fingerprint(former.publicKey)];
      const first = yield* qbackup(w, ["ledger", "rebuild", ...one]);
      assert.match(first.text, new RegExp(`${names[1]}.*another server's key signed it`));
      assert.deepStrictEqual(
        entriesIn(w).map((entry) => entry.name),
        [name],
      );
      w.disk.pins.clear();
      const second = yield* qbackup(w, ["ledger", "rebuild", ...expected]);
      assert.strictEqual(second.code, 0, second.text);
      assert.deepStrictEqual(
        entriesIn(w).map((entry) => entry.name),
        names.slice(0, 2),
      );
      assert.strictEqual(w.disk.pins.get("net"), server.publicKey);
      // Both are read by the ledger from then on.
      for (const each of names.slice(0, 2)) {
        const { code, text } = yield* qbackup(w, ["verify", each]);
        assert.strictEqual(code, 0, text);
      }
    }),
  );
  it.effect("takes them page by page, over a link that breaks", () =>
    Effect.gen(function* () {
      const w = full();
      w.disk.text = "";
      const { code, out, text } = yield* qbackup(w, ["ledger", "rebuild"], {
        lies: {
          page: 2,
          // The second page breaks off behind a whole line.
          listed: (lines, call) => (call === 2 ? lines.slice(0, 2) : lines),
        },
      });
      assert.strictEqual(code, 0, text);
      assert.match(out, /^4 lines added/);
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
    }),
  );
});

describe("a ledger that is not what it was", () => {
  it.effect("not to be used: each command says why, once, and what helps against just that", () =>
    Effect.gen(function* () {
      const refused = ["/s belongs to user 1000, not to 0", "run qbackup as its owner"] as const;
      const [name] = names;
      for (const [call, args] of [
        ["mark", ["list"]],
        ["chain", ["list"]],
        ["audits", ["audit"]],
        ["chain", ["audit"]],
        ["entries", ["verify", name]],
        ["entries", ["restore", "-p", "/pass", name]],
        ["existing", ["ledger", "rebuild"]],
        ["append", ["ledger", "rebuild"]],
        ["chain", ["ledger", "head"]],
        ["entries", ["ledger", "forget", name]],
        ["chain", ["recovery-sheet"]],
      ] as ReadonlyArray<readonly [string, ReadonlyArray<string>]>) {
        const w = full(1);
        if (call === "append") w.disk.text = "";
        w.disk.fails = (one) => (one.split(" ")[0] === call ? refused : undefined);
        const { code, text } = yield* qbackup(w, args, {
          tools: Layer.mergeAll(
            Layer.mock(QvmBackup, {
              checkPassphrase: (path: string) => Effect.succeed({ path, warning: undefined }),
            } as never),
            Layer.mock(QvmRestore, {}),
          ),
        });
        assert.strictEqual(code, 2, `${args.join(" ")}: ${text}`);
        assert.match(
          text,
          /^error: .* \/s belongs to user 1000, not to 0\nhint: run qbackup as/m,
          text,
        );
        assert.lengthOf(text.match(/belongs to user/g)!, 1, text);
      }
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
  it.effect("of a carrier that was renamed: each command says which name it knows it by", () =>
    Effect.gen(function* () {
      const w = full(3);
      const [net] = w.table.qubes.filter(({ name }) => name === "net");
      w.table.qubes.push({ ...net!, name: "net2" });
      keep(w, names[3]!, anArchive(13, 100_000), { at: "2026-01-04T00:00:00Z", known: false });
      const back = /^hint: give -t net; a qube that was renamed since needs that name again/m;

      const list = yield* qbackup(w, ["list", "-t", "net2"]);
      assert.strictEqual(list.code, 0, list.text);
      assert.lengthOf(list.out.match(/ unknown /g)!, 4);
      assert.match(list.text, /^warning: 3 of the unknown archives .* as sent through net$/m);
      assert.match(list.text, back);
      assert.notMatch(list.text, /was lost|rebuild/);

      const before = w.disk.text;
      const rebuild = yield* qbackup(w, ["ledger", "rebuild", "-t", "net2", ...expected]);
      assert.strictEqual(rebuild.code, 0, rebuild.text);
      assert.match(rebuild.out, /^1 lines added.*; 3 archives were in the ledger already\n$/);
      assert.match(rebuild.text, /^warning: 3 of them .* sent through net, and so not for net2$/m);
      assert.match(rebuild.text, back);
      w.disk.text = before;

      const pass = ["-p", "/pass", "-t", "net2", names[0]!];
      const tools = Layer.mergeAll(
        memoryQvmBackup(qvmBackupScript({ chunks: [] })),
        memoryQvmRestore(qvmRestoreScript({ says: ["-> Done."] })),
      );
      for (const command of [
        ["restore", ...pass],
        ["verify", "-t", "net2", names[0]!],
      ]) {
        const { code, text } = yield* qbackup(w, command, { tools });
        assert.strictEqual(code, 2, text);
        assert.match(text, /^hint: it was sent through net: give -t net; /m);
        assert.notInclude(text, "--force");
      }
      for (const command of [["audit"], ["verify", "--newest"]]) {
        const { code, text } = yield* qbackup(w, [...command, "-t", "net2"]);
        assert.strictEqual(code, 2, text);
        assert.match(text, back);
      }
      const forced = yield* qbackup(w, ["restore", "--force", ...pass], { tools });
      assert.match(forced.text, /^warning: the ledger could prove .*, but not through net2$/m);
      // Of what the ledger has from nowhere else, it says what it always did.
      const none = yield* qbackup(w, ["restore", "-p", "/pass", "-t", "net2", names[3]!], {
        tools,
      });
      assert.match(none.text, /^hint: --force takes it on the server's word; /m);
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
            memorySealing,
            Layer.mock(Itself, { runtime: "" }),
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
        fingerprint(server.publicKey),
        fingerprint(dom0Key.publicKey),
        "--expect-server",
        names[0]!,
        "2026-05-05 05:05 UTC",
        "qbackup restore",
        "qbackup-recover",
        "9 more that hold the newest of some qube",
      ])
        assert.include(out, part);
      assert.strictEqual(out.match(/^ {6}root [0-9a-f]{64}$/gm)?.length, 7);
      assert.match(out, /^ {6}2026-\S+ \S+ UTC, \d+ bytes, \d+ members, qvm-backup$/m);
      assert.notMatch(out, /\/pass/);
      assert.strictEqual(w.shelf.calls, 0);
      const empty = yield* qbackup(world(), ["recovery-sheet"]);
      assert.match(empty.out, /no run yet/);
      const slip = yield* qbackup(w, ["recovery-sheet", "-t", "nett"]);
      assert.match(
        slip.text,
        /warning: the ledger has no archive that went through nett\nhint: is it/,
      );
    }),
  );
  it.effect("has the number of the run of slots, as it stands in their header", () =>
    Effect.gen(function* () {
      const w = withKeys();
      keep(w, "a.backup", small, { manifest: { format: "slots", run: 58 } });
      const { out } = yield* qbackup(w, ["recovery-sheet"]);
      assert.match(out, /^ {6}2026-\S+ \S+ UTC, \d+ bytes, \d+ members, slots, run 58$/m);
    }),
  );
  it.effect("has the newest archive of every qube, also of jobs without a prefix", () =>
    Effect.gen(function* () {
      const w = withKeys();
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
  it.effect(
    "says which of them need a passphrase that is in use no more, and until when it was",
    () =>
      Effect.gen(function* () {
        const w = withKeys();
        const job = (
          name: string,
          passphrase: number | undefined,
          ...qubes: ReadonlyArray<string>
        ) =>
          keep(w, name, small, {
            at: `${name.slice(0, 10)}T05:00:00Z`,
            qubes: qubes.map((qube, i) => ({ name: qube, qid: 2 + i })),
            ...(passphrase === undefined ? {} : { passphrase }),
          });
        job("2026-01-01T0400.backup", undefined, "a");
        job("2026-01-02T0400.backup", 1, "b");
        job("2026-01-03T0400.backup", 1, "c");
        job("2026-01-04T0400.backup", 2, "c");
        const { out } = yield* qbackup(w, ["recovery-sheet"]);
        const lines = out.split("\n");
        const needs = lines.filter((line) => line.includes("needs the old"));
        assert.deepStrictEqual(needs, [
          "      needs the old passphrase, in use until 2026-01-03 05:00 UTC",
        ]);
        assert.strictEqual(lines[lines.indexOf(needs[0]!) - 4], "   2026-01-02T0400.backup");
      }),
  );
});
