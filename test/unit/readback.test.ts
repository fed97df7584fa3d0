/** What dom0 finds out about its archives: list, verify, audit, against servers of every kind. */
import { assert, describe, it } from "@effect/vitest";
import { Clock, Effect, Fiber } from "effect";
import { TestClock } from "effect/testing";
import { Locks } from "#services/Locks";
import {
  anArchive,
  keep,
  qbackup,
  replace,
  type Stored,
  type World,
  world,
} from "#test/support/readback";
import { type Asked, framed, keyOf, type Lies, peer } from "#test/support/peer";
import { linesOf, memberIn, rootOf, tableOf } from "#test/support/reference";
import { sha256 } from "#src/proof/texts";
import { archiveOf } from "#test/support/archive";
import { rng } from "#test/support/random";
import { parseLedger } from "#layers/files/FileLedger";
import { humanSize, localMinute } from "#src/say/format";
import { line } from "#src/say/shown";

const mib = 1_048_576;
const small = anArchive(1, 3.4 * mib);
const other = anArchive(2, 3.4 * mib);
const listed = (out: string) =>
  (JSON.parse(out) as Array<{ name: string; proof: string; note?: string }>).map(
    ({ name, proof }) => [name, proof],
  );
const bent = (bytes: Buffer, at: number): Buffer => {
  const copy = Buffer.from(bytes);
  copy[at]! ^= 1;
  return copy;
};

describe("verify", () => {
  it.effect("reads all of it back: proven, with progress, and remembered", () =>
    Effect.gen(function* () {
      const w = world();
      const { session } = keep(w, "a-2026.backup", small);
      const { code, out, text } = yield* qbackup(w, ["verify", "a-2026.backup"]);
      assert.strictEqual(code, 0, text);
      assert.match(
        out,
        /^a-2026.backup: verified\n  3\.\d MiB, 5 members in 8 blocks, root [0-9a-f]{64}\n  proven: it is what dom0 backed up, whole, and it is there\n$/,
      );
      assert.deepStrictEqual(w.said.progress.at(-1), {
        doing: line`verifying`,
        bytes: small.length,
        total: small.length,
      });
      assert.isDefined(w.disk.audits.get(session)?.whole);
      const json = yield* qbackup(w, ["verify", "--json", "a-2026.backup"]);
      assert.containsSubset(JSON.parse(json.out), {
        name: "a-2026.backup",
        size: small.length,
        proof: "ledger",
        members: 5,
      });
      // One conversation for all blocks; and the record beside them.
      const twice = { recipe: 2, table: 2, read: 2, manifest: 2 };
      assert.deepStrictEqual(Object.fromEntries(w.shelf.asked), twice);
    }),
  );
  it.effect("--newest: the newest of the ledger that is not forgotten, or of a prefix", () =>
    Effect.gen(function* () {
      const w = world();
      const none = yield* qbackup(w, ["verify", "--newest"]);
      assert.deepStrictEqual([none.code, none.out], [2, ""]);
      assert.match(none.text, /the ledger knows no archive that was sent through net/);
      // In another order than they were made in, as a rebuilt ledger may have them.
      keep(w, "a-2.backup", small, { at: "2026-02-02T00:00:00Z" });
      keep(w, "a-1.backup", small, { at: "2026-02-01T00:00:00Z" });
      keep(w, "b-3.backup", other, { at: "2026-02-03T00:00:00Z" });
      keep(w, "not-ours.backup", other, { at: "2026-02-05T00:00:00Z", known: false });
      const { session } = keep(w, "b-4.backup", other, { at: "2026-02-04T00:00:00Z" });
      w.disk.audits.set(session, { forgotten: "2026-02-04T01:00:00Z" });
      const newest = (...args: ReadonlyArray<string>) =>
        Effect.map(qbackup(w, ["verify", "--newest", ...args]), ({ out, text }) => out || text);
      assert.match(yield* newest(), /^b-3\.backup: verified\n/);
      assert.match(yield* newest("a-"), /^a-2\.backup: verified\n/);
      assert.match(yield* newest("c-"), /no archive whose name begins with c-/);
    }),
  );
  it.effect("through a link that breaks at every block", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      const seen = new Set<string>();
      const { code, text } = yield* qbackup(w, ["verify", "a.backup"], {
        lies: {
          frame: (frame, { block, member }) => {
            if (seen.has(`${member} ${block}`)) return frame;
            seen.add(`${member} ${block}`);
            return "cut";
          },
        },
      });
      assert.strictEqual(code, 0, text);
      assert.strictEqual(w.shelf.asked.get("read"), 1 + 8);
      assert.strictEqual(w.shelf.asked.get("table"), 1);
      assert.match(text, /the link broke: the link ended; again in/);
    }),
  );
  it.effect("the server's record of it, which is all that there is once the ledger is lost", () =>
    Effect.gen(function* () {
      const another = keyOf("another");
      for (const [lies, said] of [
        [
          {
            record: (r) => ({
              ...r,
              manifest: r.manifest.replace("null", '"2027-01-01T00:00:00Z"'),
            }),
          },
          /the manifest of a.backup is not signed/,
        ],
        [
          { record: (r) => ({ ...r, receiptSignature: another.sign("receipt", r.receipt) }) },
          /not signed/,
        ],
        [{ record: (r) => ({ ...r, receipt: "{}" }) }, /malformed/],
        [{ record: () => ({ type: "error", code: "not-found", message: "x" }) }, /no receipt/],
        [{ record: () => ({ type: "error", code: "internal", message: "x" }) }, /internal/],
      ] satisfies ReadonlyArray<[Lies, RegExp]>) {
        const w = world();
        const { session } = keep(w, "a.backup", small);
        for (const args of [["verify"], ["verify", "--on-server"]]) {
          const { code, out, text } = yield* qbackup(w, [...args, "a.backup"], { lies });
          assert.strictEqual(code, 6, text);
          assert.match(text, said);
          assert.match(
            text,
            /^error: the bytes of a.backup are as they were, but not the server's/m,
          );
          assert.strictEqual(out, "");
        }
        // The bytes are not to blame, and a restore does not need the record.
        assert.isUndefined(w.disk.audits.get(session)?.failed);
        assert.isDefined(w.disk.audits.get(session)?.whole);
        assert.lengthOf(w.notes, 2);
      }
    }),
  );
  it.effect(
    "an archive that the ledger does not know: exit 2, unless the receipt is taken for it",
    () =>
      Effect.gen(function* () {
        const w = world();
        keep(w, "a.backup", small, { known: false });
        const refused = yield* qbackup(w, ["verify", "a.backup"]);
        assert.strictEqual(refused.code, 2);
        assert.match(refused.text, /error: the ledger does not know a.backup/);
        assert.match(refused.text, /hint: .*--force/);
        assert.strictEqual(w.shelf.calls, 0);
        const taken = yield* qbackup(w, ["verify", "--force", "a.backup"]);
        assert.strictEqual(taken.code, 0, taken.text);
        assert.match(taken.text, /warning: .*the server's receipt of 2026-01-31T04:00:00Z/);
        assert.match(taken.out, /not proven: that this is what dom0 backed up/);
        assert.strictEqual(w.disk.audits.size, 0);
        // Its own bytes must still be what its receipt says, and the receipt be by the known key.
        replace(w, "a.backup", bent(small, 2_000_000));
        assert.strictEqual((yield* qbackup(w, ["verify", "--force", "a.backup"])).code, 6);
        keep(w, "b.backup", small, { known: false, key: keyOf("another") });
        const forged = yield* qbackup(w, ["verify", "--force", "b.backup"]);
        assert.strictEqual(forged.code, 6);
        assert.match(forged.text, /the server's key changed/);
        const none = yield* qbackup(w, ["verify", "--force", "none.backup"]);
        assert.strictEqual(none.code, 5, none.text);
      }),
  );
  it.effect("has the server look, and says what that is worth", () =>
    Effect.gen(function* () {
      const w = world();
      const { session } = keep(w, "a.backup", small);
      const { code, out, text } = yield* qbackup(w, ["verify", "--on-server", "a.backup"]);
      assert.strictEqual(code, 0, text);
      assert.match(
        out,
        /the server says that it is whole.*\n.*\n.*proves nothing against a server/,
      );
      assert.isUndefined(w.disk.audits.get(session));
      const lie = (reply: object) =>
        qbackup(w, ["verify", "--on-server", "a.backup"], { lies: { checked: () => reply } });
      const good = { type: "checked", size: small.length, root: "0".repeat(64), members: 5 };
      for (const [reply, code] of [
        [good, 6],
        [{ ...good, size: 1 }, 6],
        [{ type: "end" }, 6],
        [{ type: "error", code: "incomplete", message: "\u001b[2J" }, 6],
        [{ type: "error", code: "internal", message: "x" }, 5],
        [{ type: "nonsense" }, 6],
      ] as const) {
        assert.strictEqual((yield* lie(reply)).code, code, JSON.stringify(reply));
      }
      replace(w, "a.backup", bent(small, 5));
      assert.strictEqual((yield* qbackup(w, ["verify", "--on-server", "a.backup"])).code, 6);
      w.shelf.committed.clear();
      const gone = yield* qbackup(w, ["verify", "--on-server", "a.backup"]);
      assert.strictEqual(gone.code, 6);
      assert.match(gone.text, /is not on the server any more/);
      assert.isDefined(w.disk.audits.get(session)?.failed);
    }),
  );
  it.effect(
    "finds every member that is bad, and knows which they are until all of it comes back",
    () =>
      Effect.gen(function* () {
        const w = world();
        const { session } = keep(w, "a.backup", small);
        const digests = linesOf(tableOf(small)).map((line) => memberIn(line.trim())!.digest);
        const twice = bent(bent(small, 1000), small.length - 1);
        const spoiled = () => w.disk.audits.get(session)?.spoiled?.toSorted();
        const wanted = [digests[0]!, digests.at(-1)!].sort();
        for (const command of [["verify", "a.backup"], ["audit"]]) {
          w.disk.audits.clear();
          replace(w, "a.backup", twice);
          const { code, text } = yield* qbackup(w, command);
          assert.strictEqual(code, 6, text);
          assert.deepStrictEqual(spoiled(), wanted);
          if (command[0] === "verify") {
            assert.match(
              text,
              /2 members did not come back as they were: block 0 of backup-header is/,
            );
          }
          // What is found later comes to what is known.
          replace(w, "a.backup", bent(small, 12_000));
          assert.strictEqual((yield* qbackup(w, command)).code, 6);
          assert.deepStrictEqual(spoiled(), [...wanted, digests[1]!].sort());
        }
        replace(w, "a.backup", small);
        assert.strictEqual((yield* qbackup(w, ["verify", "a.backup"])).code, 0);
        assert.hasAllKeys(w.disk.audits.get(session), ["whole"]);
        // Where it was bad as a whole, its members do not say all.
        const kept = w.shelf.committed.get("a.backup")!;
        w.shelf.committed.delete("a.backup");
        assert.strictEqual((yield* qbackup(w, ["verify", "a.backup"])).code, 6);
        w.shelf.committed.set("a.backup", kept);
        replace(w, "a.backup", twice);
        assert.strictEqual((yield* qbackup(w, ["verify", "a.backup"])).code, 6);
        assert.hasAllKeys(w.disk.audits.get(session), ["whole", "failed", "spoiled", "vague"]);
        assert.deepStrictEqual(spoiled(), wanted);
        replace(w, "a.backup", small);
        assert.strictEqual((yield* qbackup(w, ["verify", "a.backup"])).code, 0);
        assert.hasAllKeys(w.disk.audits.get(session), ["whole"]);
      }),
  );
  it.effect("what was found bad by the time that the link is gone for good is noted and told", () =>
    Effect.gen(function* () {
      const digests = linesOf(tableOf(small)).map((line) => memberIn(line.trim())!.digest);
      const refused = { type: "error", code: "internal", message: "not now" } as const;
      for (const command of [["verify", "a.backup"], ["audit"]]) {
        for (const [places, opened] of [
          [[1000], undefined],
          [[1000, 12_000], undefined],
          // It comes back, and then gives nothing any more.
          [[1000], refused],
        ] as const) {
          const w = world();
          const { session } = keep(w, "a.backup", small);
          replace(w, "a.backup", places.reduce(bent, small));
          let reads = 0;
          const { code, text } = yield* qbackup(w, command, {
            lies: {
              frame: (frame, { member }) => (member > 1 ? "cut" : frame),
              opened: (reply) => {
                reads += 1;
                return opened !== undefined && reads > 3 ? opened : reply;
              },
            },
          });
          assert.strictEqual(code, 6, text);
          const audit = w.disk.audits.get(session);
          assert.isDefined(audit?.failed);
          assert.deepStrictEqual(
            audit?.spoiled?.toSorted(),
            digests.slice(0, places.length).toSorted(),
          );
          if (command[0] === "verify") {
            assert.match(text, /block 0 of backup-header is lost/);
            assert.match(text, /what was not read by then is not known: /);
            assert.notMatch(text, /what was read by then is proven/);
          }
        }
      }
    }),
  );
  it.effect("does not go on for ever where nearly all of it is bad", () =>
    Effect.gen(function* () {
      const w = world();
      const qubes = Array.from({ length: 1003 }, (_, i) => ({ name: `q${i}`, qid: i + 2 }));
      const files = qubes.map(({ qid }) => ({ path: `vm${qid}/private.img`, size: 1 }));
      const { session } = keep(w, "a.backup", archiveOf({ seed: 5, files }), { qubes });
      let given = 0;
      const { code, text } = yield* qbackup(w, ["verify", "a.backup"], {
        lies: {
          frame: (frame) => {
            given += 1;
            return Buffer.from(frame).fill(1, 8);
          },
        },
      });
      assert.strictEqual(code, 6, text);
      assert.isAbove(given, 1000, text);
      assert.hasAllKeys(w.disk.audits.get(session), ["failed", "many"]);
    }),
  );
  it.effect("an archive that lacks a qube, or has members that the manifest does not have", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small, { qubes: [{ name: "vault", qid: 4 }] });
      const lacks = yield* qbackup(w, ["verify", "a.backup"]);
      assert.strictEqual(lacks.code, 6);
      assert.match(lacks.text, /not a whole archive: .*not asked for/);
      for (const manifest of [{ members: 4 }, { size: small.length + 10_240 }]) {
        keep(w, "b.backup", small, { manifest });
        const differs = yield* qbackup(w, ["verify", "b.backup"]);
        assert.strictEqual(differs.code, 6);
        assert.match(differs.text, /the server has something else under the name b.backup/);
      }
    }),
  );
});

describe("a look that takes long", () => {
  it.effect("steps aside for a run, which takes the qube over, and goes on beside it", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      const honest = peer(w.shelf);
      const net = () => w.table.qubes.find(({ name }) => name === "net")!.state;
      const looking = yield* Effect.forkChild(
        qbackup(w, ["verify", "a.backup"], {
          far: (invocation, service) =>
            Effect.andThen(Effect.sleep("1 minute"), honest(invocation, service)),
        }),
      );
      for (let i = 0; i < 50; i++) yield* Effect.yieldNow;
      assert.strictEqual(net(), "Running");
      assert.isTrue(w.disk.unfinished?.started);
      yield* Effect.gen(function* () {
        const locks = yield* Locks;
        const key = "a run with the ledger in /memory/qbackup";
        yield* locks.hold(key, { stepDownWithin: "1 second" });
        // What the run finds is what a killed one would have left: it stops the qube in the end.
        assert.isTrue(w.disk.unfinished?.started);
        w.disk.unfinished = undefined;
        assert.strictEqual(net(), "Running");
      }).pipe(Effect.provide(w.locks), Effect.scoped);
      const { code, text } = yield* Fiber.join(looking);
      assert.strictEqual(code, 0, text);
    }),
  );
});

describe("what is shown of a look", () => {
  const commands = [["list"], ["verify", "a.backup"], ["audit"], ["ledger", "rebuild"]];
  it.effect.each(commands.map((args) => [args] as const))(
    "%j: at once what it waits for, and then each second",
    ([args]) =>
      Effect.gen(function* () {
        const w = world();
        keep(w, "a.backup", small);
        w.table.takes = (call) => (call === "start net" ? "30 seconds" : 0);
        const honest = peer(w.shelf);
        const { code, text } = yield* qbackup(w, args, {
          far: (invocation, service) =>
            Effect.andThen(Effect.sleep("20 seconds"), honest(invocation, service)),
        });
        assert.strictEqual(code, 0, text);
        const waits = w.said.progress.map((now): string => now.waits ?? "");
        const order = waits.filter((it, i) => it !== waits[i - 1]);
        assert.deepStrictEqual(order.slice(0, 2), [
          "waiting for net to start",
          "waiting for the server",
        ]);
        for (const what of order.slice(0, 2)) {
          assert.isAtLeast(waits.filter((it) => it === what).length, 18, what);
        }
      }),
  );
  it.effect("a server that pauses is named, until it goes on", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      const honest = peer(w.shelf);
      const { code, text } = yield* qbackup(w, ["verify", "a.backup"], {
        far: (invocation, service) => {
          let sent = 0;
          const write = (bytes: Uint8Array) =>
            (sent += bytes.length) > mib && sent - bytes.length <= mib
              ? Effect.andThen(Effect.sleep("40 seconds"), invocation.stdout.write(bytes))
              : invocation.stdout.write(bytes);
          return honest({ ...invocation, stdout: { ...invocation.stdout, write } }, service);
        },
      });
      assert.strictEqual(code, 0, text);
      const verifying = w.said.progress.filter(({ doing }) => doing === "verifying");
      const silent = verifying.filter(({ waits }) => waits === "waiting for the server");
      assert.isAtLeast(silent.length, 30);
      assert.isAbove(silent[0]!.bytes, 0);
      assert.isUndefined(verifying.at(-1)!.waits);
    }),
  );
  it.effect("an interrupt is heard at once, whatever it has to stop", () =>
    Effect.gen(function* () {
      for (const args of commands) {
        const w = world();
        keep(w, "a.backup", small);
        w.table.takes = (call) => (call === "shutdown net" ? "50 seconds" : 0);
        const fiber = yield* Effect.forkChild(
          qbackup(w, args, { far: () => Effect.never, within: "1 hour" }),
        );
        for (let i = 0; i < 50; i++) yield* Effect.yieldNow;
        const stopped = yield* Effect.forkChild(Fiber.interrupt(fiber));
        yield* TestClock.adjust("1 second");
        const heard = () => w.said.lines.filter(({ text }) => text.startsWith("interrupted: "));
        assert.lengthOf(heard(), 1, args.join(" "));
        // Qubes takes its time to stop the qube, which is told.
        yield* TestClock.adjust("20 seconds");
        assert.isUndefined(stopped.pollUnsafe());
        assert.match(w.said.lines.at(-1)!.text, /^still waiting: Qubes stops net$/);
        yield* TestClock.adjust("40 seconds");
        yield* Fiber.join(stopped);
        assert.lengthOf(heard(), 1);
        assert.strictEqual(w.table.qubes.find(({ name }) => name === "net")!.state, "Halted");
      }
    }),
  );
});

describe("hundreds of members", () => {
  it.effect("are all there, or it is said that they are not", () =>
    Effect.gen(function* () {
      const w = world();
      const files = Array.from({ length: 300 }, (_, i) => ({
        path: `vm${i + 1}/private.img`,
        size: i % 50,
      }));
      const qubes = files.map((_, i) => ({ name: `q${i}`, qid: i + 1 }));
      const bytes = archiveOf({ seed: 4, files });
      const { session } = keep(w, "a.backup", bytes, { qubes });
      const good = yield* qbackup(w, ["verify", "a.backup"]);
      assert.strictEqual(good.code, 0, good.text);
      assert.match(good.out, / 303 members in 303 blocks, /);
      assert.strictEqual((yield* qbackup(w, ["list"])).code, 0);
      // A ledger that expects one qube more: the archive was never whole.
      keep(w, "b.backup", bytes, { qubes: [...qubes, { name: "more", qid: 4000 }] });
      const lacks = yield* qbackup(w, ["verify", "b.backup"]);
      assert.strictEqual(lacks.code, 6);
      assert.match(lacks.text, /nothing of vm4000/);
      w.disk.text = "";
      assert.strictEqual((yield* qbackup(w, ["ledger", "rebuild"])).code, 0);
      assert.strictEqual((yield* qbackup(w, ["verify", "a.backup"])).code, 0);
      assert.isDefined(w.disk.audits.get(session)?.whole);
    }),
  );
});

describe("anything done to the store", () => {
  const cases: ReadonlyArray<readonly [string, (w: World, stored: Stored) => void]> = [
    ["a flipped bit at the start", (w, { name }) => replace(w, name, bent(small, 0))],
    [
      "a flipped bit in the last byte",
      (w, { name }) => replace(w, name, bent(small, small.length - 1)),
    ],
    [
      "a block that is gone",
      (w, { name }) =>
        replace(w, name, Buffer.concat([small.subarray(0, mib), small.subarray(2 * mib)])),
    ],
    [
      "two blocks that changed places",
      (w, { name }) =>
        replace(
          w,
          name,
          Buffer.concat([
            small.subarray(mib, 2 * mib),
            small.subarray(0, mib),
            small.subarray(2 * mib),
          ]),
        ),
    ],
    ["an end that is cut off", (w, { name }) => replace(w, name, small.subarray(0, -512))],
    ["other content of the same size", (w, { name }) => replace(w, name, other)],
    ["nothing there", (w, { name }) => void w.shelf.committed.delete(name)],
    [
      "an older archive with its manifest",
      (w, { name }) => {
        const old = w.shelf.committed.get("old.backup")!;
        w.shelf.committed.set(name, old);
      },
    ],
    [
      "an older archive, and a manifest that the server signed for it anew",
      (w, { name }) => {
        keep(w, name, other, { known: false, at: "2026-01-01T00:00:00Z" });
      },
    ],
  ];
  it.effect.each(cases)(
    "%s: verify says so, so does an audit of all blocks, and list from then on",
    ([, change]) =>
      Effect.gen(function* () {
        const w = world();
        keep(w, "old.backup", other, { at: "2026-01-01T00:00:00Z" });
        const stored = keep(w, "new.backup", small);
        assert.strictEqual((yield* qbackup(w, ["verify", "new.backup"])).code, 0);
        change(w, stored);
        const audit = yield* qbackup(w, ["audit", "--blocks", "9", "new.backup"]);
        assert.strictEqual(audit.code, 6, audit.out + audit.text);
        assert.notMatch(audit.out, /new\.backup.*proven/);
        const verify = yield* qbackup(w, ["verify", "new.backup"]);
        assert.strictEqual(verify.code, 6, verify.text);
        assert.strictEqual(verify.out, "");
        assert.isTrue(w.notes.every(({ urgency }) => urgency === "critical"));
        assert.lengthOf(w.notes, 2);
        const list = yield* qbackup(w, ["list", "--json"]);
        assert.strictEqual(list.code, 6);
        const proofs = new Map(listed(list.out) as Array<[string, string]>);
        assert.include(["changed", "damaged", "missing"], proofs.get("new.backup"));
        assert.strictEqual(proofs.get("old.backup"), "receipt");
        // Put right, it is only good again once all of it was read.
        keep(w, "new.backup", small, { known: false });
        assert.strictEqual((yield* qbackup(w, ["audit", "new.backup"])).code, 0);
        assert.strictEqual((yield* qbackup(w, ["list"])).code, 6);
        assert.strictEqual((yield* qbackup(w, ["verify", "new.backup"])).code, 0);
        assert.strictEqual((yield* qbackup(w, ["list"])).code, 0);
      }),
  );
});

describe("what could not be read", () => {
  /** Calls for the members of one archive end so. */
  const only = (w: World, name: string, reply: object | undefined, calls = { n: 0 }) => {
    const honest = peer(w.shelf);
    const far: Parameters<typeof qbackup>[2] = {
      far: (invocation, service) => {
        let asked = "";
        let counted = false;
        const stdin = {
          ...invocation.stdin,
          read: (into: Uint8Array, atLeast?: number) =>
            Effect.tap(invocation.stdin.read(into, atLeast), (n) =>
              Effect.sync(() => (asked += Buffer.from(into.subarray(0, n)).toString())),
            ),
        };
        const stdout = {
          ...invocation.stdout,
          write: (bytes: Uint8Array) =>
            !service.endsWith("+recipe") || !asked.includes(name)
              ? invocation.stdout.write(bytes)
              : Effect.sync(() => {
                  if (!counted) calls.n += 1;
                  counted = true;
                }).pipe(
                  Effect.andThen(
                    reply === undefined
                      ? invocation.stdout.end
                      : invocation.stdout.write(Buffer.from(`\n${JSON.stringify(reply)}\n`)),
                  ),
                  Effect.andThen(reply === undefined ? Effect.void : invocation.stdout.end),
                ),
        };
        return honest({ ...invocation, stdin, stdout }, service);
      },
    };
    return far;
  };

  const kinds = [
    ["the server has an inner fault", { type: "error", code: "internal", message: "x" }, 5],
    [
      "the server does not let it be read",
      { type: "error", code: "not-permitted", message: "x" },
      5,
    ],
    ["the server is busy", { type: "error", code: "busy", message: "x" }, 4],
    ["the server hangs up", undefined, 4],
  ] as const;
  it.effect.each(kinds)(
    "%s: noted, shown and told, and the other archives are read all the same",
    ([, reply, exit]) =>
      Effect.gen(function* () {
        const w = world();
        const bad = keep(w, "a-bad.backup", small);
        const good = keep(w, "b-good.backup", other);
        const audit = yield* qbackup(w, ["audit"], only(w, "a-bad", reply));
        assert.strictEqual(audit.code, exit, audit.text);
        assert.match(audit.out, /^a-bad.backup .* (?:refused|unread)$/m);
        assert.match(audit.out, /^b-good.backup .* proven$/m);
        assert.match(audit.text, /^warning: a-bad.backup: /m);
        assert.match(audit.text, /^error: 1 of 2 archives could not be read back$/m);
        assert.isDefined(w.disk.audits.get(good.session)?.sampled);
        const since = w.disk.audits.get(bad.session)?.unread;
        assert.isDefined(since);
        assert.isUndefined(w.disk.audits.get(bad.session)?.failed);
        assert.deepInclude(w.notes.at(-1), {
          urgency: "critical",
          summary: `qbackup audit failed (exit code ${exit})`,
        });
        const list = yield* qbackup(w, ["list"]);
        assert.match(list.out, /^a-bad.backup .* receipt +failed \d{4}-/m);
        assert.match(list.text, /^warning: a-bad.backup could not be read back since \d{4}-/m);

        // The first time stays, until it comes back.
        const verify = yield* qbackup(w, ["verify", "a-bad.backup"], only(w, "a-bad", reply));
        assert.strictEqual(verify.code, exit, verify.text);
        assert.strictEqual(w.disk.audits.get(bad.session)?.unread, since);
        assert.match(w.notes.at(-1)!.summary, /^qbackup verify failed/);
        assert.strictEqual((yield* qbackup(w, ["audit"])).code, 0);
        assert.isUndefined(w.disk.audits.get(bad.session)?.unread);
        assert.notMatch((yield* qbackup(w, ["list"])).text, /could not be read/);
      }),
  );

  it.effect("a server that is gone is not asked for each of many archives", () =>
    Effect.gen(function* () {
      const w = world();
      const all = Array.from({ length: 20 }, (_, i) => keep(w, `a${i}.backup`, small));
      const calls = { n: 0 };
      const audit = yield* qbackup(w, ["audit"], only(w, "a", undefined, calls));
      assert.strictEqual(audit.code, 4, audit.text);
      assert.isAtMost(calls.n, 60);
      assert.lengthOf(
        w.said.lines.filter(({ level }) => level === "error"),
        1,
      );
      for (const { session } of all) assert.isDefined(w.disk.audits.get(session)?.unread);
    }),
  );

  it.effect("the carrier qube does not start: all are noted", () =>
    Effect.gen(function* () {
      const w = world();
      const { session } = keep(w, "a.backup", small);
      const far = () => Effect.succeed({ code: 2, said: ["qubes.BackupCarrier: error: no"] });
      for (const verb of [["audit"], ["verify", "a.backup"]]) {
        w.disk.audits.clear();
        assert.strictEqual((yield* qbackup(w, verb, { far })).code, 2);
        assert.isDefined(w.disk.audits.get(session)?.unread);
        assert.isUndefined(w.disk.audits.get(session)?.failed);
      }
    }),
  );

  it.effect("nothing read back for 30 days: said, and told to whoever is not looking", () =>
    Effect.gen(function* () {
      const w = world();
      const { session } = keep(w, "a.backup", small);
      const at = (day: string) => TestClock.setTime(Date.parse(`${day}T05:00:00Z`));
      yield* at("2026-03-02"); // stored on 31 January
      const early = yield* qbackup(w, ["list"]);
      assert.notMatch(early.text, /read back through/);
      assert.lengthOf(w.notes, 0);
      yield* at("2026-03-03");
      const late = yield* qbackup(w, ["list"]);
      assert.strictEqual(late.code, 0, late.text);
      assert.match(late.text, /^warning: nothing was read back through net for 31 days/m);
      assert.match(w.notes.at(-1)!.summary, /^Backups were not read back for 31 days$/);
      const after = (days: string) => ({ settings: { QBKP_ALARM_AFTER: days } });
      assert.notMatch((yield* qbackup(w, ["list", "--alarm-after=31"])).text, /read back through/);
      assert.notMatch((yield* qbackup(w, ["list"], after("31"))).text, /read back through/);
      const both = yield* qbackup(w, ["list", "--alarm-after=30"], after("31"));
      assert.match(both.text, /read back through/);
      for (const days of ["0", "3651", "a month", "-1"]) {
        const wrong = yield* qbackup(w, ["list"], after(days));
        assert.strictEqual(wrong.code, 2);
        assert.include(
          wrong.text,
          `error: QBKP_ALARM_AFTER is no number of days from 1 to 3650: ${days}\nhint: set it`,
        );
      }
      w.disk.audits.set(session, { sampled: { at: "2026-03-01T00:00:00Z", blocks: 1, of: 8 } });
      assert.notMatch((yield* qbackup(w, ["list"])).text, /read back through/);
    }),
  );
  it.effect("that a self-test's archive came back says nothing of the others", () =>
    Effect.gen(function* () {
      const tested = { qubes: [{ name: "qbackup-selftest", qid: 9 }], at: "2026-03-02T04:00:00Z" };
      const byName = { qubes: [{ name: "qid 9", qid: 9 }], rebuilt: true, at: tested.at };
      for (const [name, how] of [
        ["selftest-slots-2026-03-02T0500.backup", tested],
        ["selftest-qvm-backup-2026-03-02T0500.backup", byName],
      ] as const) {
        const w = world();
        yield* TestClock.setTime(Date.parse("2026-05-03T05:00:00Z"));
        const { session } = keep(w, name, small, how);
        // Of nothing but that, nobody need know whether it can be read.
        assert.notMatch((yield* qbackup(w, ["list"])).text, /read back through/);
        w.disk.audits.set(session, { whole: "2026-05-02T05:00:00Z" });
        keep(w, "a.backup", small);
        const { text } = yield* qbackup(w, ["list"]);
        assert.match(text, /^warning: nothing was read back through net for 92 days/m);
      }
    }),
  );
  it.effect("nor is it the newest, unless it is asked for", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      const qubes = [{ name: "qbackup-selftest", qid: 9 }];
      const name = "selftest-slots-2026-03-02T0500.backup";
      keep(w, name, small, { qubes, at: "2026-03-02T04:00:00Z" });
      assert.match((yield* qbackup(w, ["verify", "--newest"])).out, /^a\.backup: verified/);
      // The qube that its ledger tells of is not in this archive: so it was that one.
      const asked = yield* qbackup(w, ["verify", "--newest", "selftest-"]);
      assert.include(asked.out + asked.text, name);
    }),
  );
  it.effect("an audit that could not read raises it too, and one that could does not", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      yield* TestClock.setTime(Date.parse("2026-03-08T05:00:00Z"));
      for (const [far, code] of [
        [() => Effect.succeed({ code: 2, said: ["qubes.BackupCarrier: error: no"] }), 2],
        [() => Effect.succeed({ code: 4, said: ["qubes.BackupCarrier: error: no route"] }), 4],
      ] as const) {
        w.notes.length = 0;
        const audit = yield* qbackup(w, ["audit"], { far });
        assert.strictEqual(audit.code, code, audit.text);
        assert.match(audit.text, /^warning: nothing was read back through net for 36 days/m);
        assert.strictEqual(w.notes[0]!.summary, "Backups were not read back for 36 days");
      }
      const good = yield* qbackup(w, ["audit"]);
      assert.strictEqual(good.code, 0, good.text);
      assert.notMatch(good.text, /read back through/);
    }),
  );
});

describe("list", () => {
  it.effect("of names that nobody has, or through a qube that does not exist: exit 2", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      const none = yield* qbackup(w, ["list", "zzz"]);
      assert.deepStrictEqual([none.code, none.out], [2, ""], none.text);
      assert.match(none.text, /error: no archive .* begins with zzz\nhint: qbackup list/);
      const typo = yield* qbackup(w, ["list", "-t", "nett"]);
      assert.strictEqual(typo.code, 2, typo.text);
      assert.match(typo.text, /error: the destination qube does not exist: nett$/m);
      // Nothing is left that the next run would put right.
      const next = yield* qbackup(w, ["list"]);
      assert.notMatch(next.text, /killed run/);
    }),
  );
  it.effect("fits a narrow terminal, and has one line for each archive elsewhere", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "appvms/nightly-2026-01-31T0500.backup", small, { at: "2026-01-31T04:00:00Z" });
      const at = localMinute("2026-01-31T04:00:00Z");
      const wide = (yield* qbackup(w, ["list"])).out;
      assert.match(wide, new RegExp(`^appvms/\\S+ +${at} .* receipt .* work mail$`, "m"));
      const narrow = (yield* qbackup(w, ["list"], { columns: 80 })).out;
      assert.match(
        narrow,
        new RegExp(`^appvms/\\S+backup\n  +${at} .* receipt .* work mail$`, "m"),
      );
      for (const text of narrow.split("\n")) assert.isAtMost(text.length, 80);
    }),
  );
  it.effect("sees what the server's own list gives away, and says what it is", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "old.backup", other, { at: "2026-01-01T00:00:00Z" });
      keep(w, "new.backup", small);
      const good = yield* qbackup(w, ["list", "--receipts"]);
      assert.strictEqual(good.code, 0, good.text);
      assert.match(good.out, /^NAME +STORED +SIZE +PROOF +READ BACK +QUBES\n/);
      assert.match(good.out, /^new.backup +2026-01-31 04:00 +3.4 MiB +receipt +- +work mail$/m);
      const { committed } = w.shelf;
      const [first, second] = [committed.get("old.backup")!, committed.get("new.backup")!];
      for (const [change, note] of [
        [() => committed.set("new.backup", first), "the content of old.backup"],
        [() => keep(w, "new.backup", anArchive(3, mib), { known: false }), "other content"],
        [
          () => {
            const { run } = JSON.parse(second.manifest);
            const at = "2026-02-02T00:00:00Z";
            keep(w, "new.backup", small, { known: false, at, manifest: { run } });
          },
          "another receipt: it was stored again",
        ],
        [
          () => {
            // The same archive under a later run, which no ticket of ours had.
            const { run } = JSON.parse(second.manifest);
            keep(w, "new.backup", small, { known: false, manifest: { run: run + 1 } });
          },
          "another run, or another series",
        ],
        [() => committed.delete("new.backup"), "the server does not list it any more"],
      ] as const) {
        change();
        const { code, out, text } = yield* qbackup(w, ["list"]);
        assert.strictEqual(code, 6, out);
        assert.include(
          text,
          `warning: new.backup is ${note.startsWith("the server") ? "missing" : "changed"}: ${note}`,
        );
        assert.match(out, /^old.backup .* receipt/m);
        committed.set("new.backup", second);
      }
      // With its receipts a server shows more than it means to.
      const lie = (lies: Lies) => qbackup(w, ["list", "--receipts"], { lies });
      const another = keyOf("another");
      for (const [lies, note] of [
        [
          { record: (r) => ({ ...r, receiptSignature: another.sign("receipt", r.receipt) }) },
          /not signed/,
        ],
        [{ record: (r) => ({ ...r, receipt: "{" }) }, /malformed/],
        [{ record: (r) => ({ ...r, manifest: r.manifest.replace("5", "6") }) }, /not signed/],
        [{ record: () => ({ type: "error", code: "not-found", message: "x" }) }, /no receipt/],
      ] satisfies ReadonlyArray<[Lies, RegExp]>) {
        const { code, text } = yield* lie(lies);
        assert.strictEqual(code, 6, text);
        assert.match(text, note);
      }
      keep(w, "new.backup", small, { known: false, key: another });
      const forked = yield* qbackup(w, ["list", "--receipts"]);
      assert.strictEqual(forked.code, 6);
      assert.include(forked.text, "new.backup is changed: signed by another key");
    }),
  );
  it.effect("a session that is not ours, under a name and with a content that are", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      keep(w, "a.backup", small, { known: false, at: "2026-01-31T04:00:01Z" });
      const own = JSON.parse(parseLedger(Buffer.from(w.disk.text)).lines[0]!.entry.manifest);
      // It says the old session, run and time in its list, and shows the new receipt.
      const lies: Lies = {
        listed: (lines) =>
          lines.map((line) =>
            line.type === "archive"
              ? { ...line, session: own.session, run: own.run, stored: "2026-01-31T04:00:00Z" }
              : line,
          ),
      };
      assert.strictEqual((yield* qbackup(w, ["list"], { lies })).code, 0);
      const { code, text } = yield* qbackup(w, ["list", "--receipts"], { lies });
      assert.strictEqual(code, 6);
      assert.include(text, "another session's archive");
    }),
  );
  it.effect("what is unknown, unverified, forgotten, rebuilt; a damaged ledger", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      keep(w, "b.backup", anArchive(3, 1000), { known: false });
      keep(w, "gone.backup", other, { at: "2026-01-01T00:00:00Z" });
      w.shelf.committed.delete("gone.backup");
      assert.strictEqual((yield* qbackup(w, ["list"])).code, 6);
      assert.strictEqual((yield* qbackup(w, ["audit"])).code, 6);
      const wrong = yield* qbackup(w, ["ledger", "forget", "never.backup"]);
      assert.strictEqual(wrong.code, 2);
      const forget = yield* qbackup(w, ["ledger", "forget", "gone.backup"]);
      assert.strictEqual(forget.code, 0, forget.text);
      const audit = yield* qbackup(w, ["audit"]);
      assert.strictEqual(audit.code, 0, audit.text);
      const list = yield* qbackup(w, ["list", "--json"], {
        lies: {
          listed: (lines) => [
            ...lines.slice(0, -1),
            { ...lines[0], name: "c.backup", signer: null, series: null, run: null },
            ...lines.slice(-1),
          ],
        },
      });
      assert.strictEqual(list.code, 0, list.text);
      assert.deepStrictEqual(listed(list.out), [
        ["a.backup", "proven"],
        ["b.backup", "unknown"],
        ["c.backup", "unsigned"],
      ]);
      w.disk.text = `{"torn\n${w.disk.text.replace('"previous":null', `"previous":"${"0".repeat(64)}"`)}`;
      const damaged = yield* qbackup(w, ["list"]);
      assert.strictEqual(damaged.code, 6);
      assert.match(damaged.text, /lines cannot all be read: 1\n/);
      assert.match(damaged.text, /the ledger was changed: .*: 2, 3/);
      assert.match(damaged.text, /^error: the ledger was damaged or changed/m);
      assert.match(damaged.text, /^hint: .*qbackup ledger rebuild/m);
      const sampled = yield* qbackup(w, ["audit"]);
      assert.strictEqual(sampled.code, 6);
      assert.match(sampled.text, /^error: the ledger was damaged or changed/m);
      const lost = yield* qbackup(w, ["verify", "lost.backup"]);
      assert.match(lost.text, /hint: lines of the ledger cannot be read \(1\): .*rebuild/);
    }),
  );
});

describe("audit", () => {
  it.effect(
    "spreads a budget over all, says what it proves, remembers, and goes on where it was",
    () =>
      Effect.gen(function* () {
        const w = world();
        const kept = [small, other, small].map((bytes, i) => keep(w, `${"abc"[i]}.backup`, bytes));
        const first = yield* qbackup(w, ["audit", "--budget", "6"]);
        assert.strictEqual(first.code, 0, first.text);
        // Six by chance; of the newest its three heads and its end; and one at least of each.
        const [, chosen, size] = /^(\d+) of 24 blocks \((.*)\), .* came back proven$/m.exec(
          first.out,
        )!;
        // What the blocks have, not what they could have.
        assert.strictEqual(size, humanSize(kept.reduce((sum, { bytes }) => sum + bytes.length, 0)));
        assert.isTrue(Number(chosen) >= 6 && Number(chosen) <= 6 + 4 + 2, first.out);
        assert.match(first.out, /^a.backup +[1-8] +8 +proven$/m);
        assert.match(first.out, /^c.backup +[4-8] +8 +proven$/m);
        assert.match(first.out, /^were 1 % of them lost.* 5\.8 % certainty; 0\.1 %: 0\.5 %$/m);
        const list = yield* qbackup(w, ["list"]);
        assert.match(list.out, /a.backup .* proven +1970-01-01 [1-8]\/8 /);
        // One by chance, the newest, and the one that waits longest: of five, two at least wait on.
        for (const name of ["d", "e"]) keep(w, `${name}.backup`, small);
        const few = yield* qbackup(w, ["audit", "--budget", "1", "--json"]);
        const archives = JSON.parse(few.out).archives as Array<{ name: string; result: string }>;
        const left = archives.filter(({ result }) => result === "left out").length;
        assert.isAtLeast(left, 2);
        assert.match(
          few.text,
          new RegExp(`^info: ${left} archives are left for the next time`, "m"),
        );
        const all = yield* qbackup(w, ["audit"]);
        assert.match(all.out, /^40 of 40 blocks .* came back proven\nthat is all of them/m);
        const unknown = yield* qbackup(w, ["audit", "f.backup"]);
        assert.strictEqual(unknown.code, 2);
        assert.strictEqual((yield* qbackup(world(), ["audit"])).code, 2);
        for (const args of [
          ["--blocks", "0"],
          ["--budget", "x"],
          ["--blocks", "1.5"],
          ["--blocks", "2", "--budget", "2"],
        ])
          assert.strictEqual((yield* qbackup(w, ["audit", ...args])).code, 2);
      }),
  );
  it.effect("one damaged archive does not hide the others", () =>
    Effect.gen(function* () {
      const w = world();
      for (const name of ["a", "b", "c"]) keep(w, `${name}.backup`, name === "b" ? other : small);
      replace(w, "a.backup", bent(small, 3));
      w.shelf.committed.delete("b.backup");
      const { code, out, text } = yield* qbackup(w, ["audit"]);
      assert.strictEqual(code, 6);
      assert.match(out, /a.backup .* damaged\nb.backup .* damaged\nc.backup .* proven\n/);
      assert.match(text, /error: 2 of 3 archives/);
      assert.match(text, /a.backup: block 0 of backup-header is lost: the server says damaged/);
      assert.match(text, /b.backup is not on the server any more/);
      const list = yield* qbackup(w, ["list", "--json"]);
      assert.deepStrictEqual(listed(list.out), [
        ["a.backup", "damaged"],
        ["b.backup", "missing"],
        ["c.backup", "proven"],
      ]);
    }),
  );
  it.effect("finds a lost block just when it lies in what was chosen", () =>
    Effect.gen(function* () {
      const w = world();
      const bytes = anArchive(7, 9.5 * mib);
      const random = rng(99);
      const { session } = keep(w, "a.backup", bytes);
      const starts = [0, 10_240, 20_480, 30_720];
      const verdicts = new Set<boolean>();
      for (let trial = 0; trial < 20; trial++) {
        const member = random.int(0, 3);
        const block = member < 3 ? 0 : random.int(0, 6);
        const lost = starts[member]! + block * mib + 77;
        bytes[lost]! ^= 1;
        const asked = new Set<string>();
        const { code } = yield* qbackup(w, ["audit", "--blocks", "2"], {
          seed: 1000 + trial,
          lies: {
            frame: (frame, of) => {
              asked.add(`${of.member} ${of.block}`);
              return frame;
            },
          },
        });
        bytes[lost]! ^= 1;
        // It finds exactly what lies in what it chose: the heads and the end always, two by chance.
        const chosen = asked.has(`${member} ${block}`);
        if (member < 3) assert.isTrue(chosen);
        assert.isAtMost(asked.size, 6);
        assert.strictEqual(code, chosen ? 6 : 0, `trial ${trial}`);
        verdicts.add(chosen);
      }
      // How often that is, is a matter of the choice alone: dom0-far-sample.test.ts.
      assert.lengthOf([...verdicts], 2);
      assert.isDefined(w.disk.audits.get(session)?.failed);
    }),
  );
  it.effect("an archive without its first 30 KiB, or without its end, is never proven", () =>
    Effect.gen(function* () {
      const bytes = anArchive(7, 9.5 * mib);
      const noHeads = Buffer.concat([Buffer.alloc(30_720), bytes.subarray(30_720)]);
      for (const damaged of [noHeads, bent(bytes, bytes.length - 1)]) {
        const w = world();
        keep(w, "a.backup", bytes);
        replace(w, "a.backup", damaged);
        for (let seed = 1; seed <= 6; seed++) {
          const { code, out } = yield* qbackup(w, ["audit", "--budget", "1"], { seed });
          assert.strictEqual(code, 6, out);
          assert.match(out, /^a.backup .* damaged$/m);
        }
      }
    }),
  );
  it.effect("a member that archives share counts once, and fails for all of them", () =>
    Effect.gen(function* () {
      const w = world();
      const first = keep(w, "a.backup", small, { at: "2026-01-30T04:00:00Z" });
      // The next night: new heads, and the rest of the archive before.
      const heads = other.subarray(0, 30_720);
      const mine = sha256(`b.backup 2026-01-31T04:00:00Z`).slice(0, 32);
      const lines = [...linesOf(tableOf(heads)), ...linesOf(tableOf(small)).slice(3)];
      keep(w, "b.backup", heads, {
        at: "2026-01-31T04:00:00Z",
        recipe: `${mine} 0 3\n${first.session} 3 2\n`,
        manifest: { size: small.length, members: lines.length, root: rootOf(lines) },
      });
      const all = yield* qbackup(w, ["audit"]);
      assert.strictEqual(all.code, 0, all.text);
      assert.match(all.out, /^11 of 11 blocks /m);
      assert.match(all.out, /^a.backup +8 +8 +proven\nb.backup +8 +8 +proven$/m);
      // Its table is fetched once.
      assert.strictEqual(w.shelf.asked.get("table"), 2);
      const verify = yield* qbackup(w, ["verify", "b.backup"]);
      assert.strictEqual(verify.code, 0, verify.text);
      replace(w, "a.backup", bent(small, 40_000));
      const both = yield* qbackup(w, ["audit"]);
      assert.match(both.out, /^a.backup .* damaged\nb.backup .* damaged$/m);
      // What only the older one has does not touch the newer.
      replace(w, "a.backup", bent(small, 1000));
      const one = yield* qbackup(w, ["audit"]);
      assert.match(one.out, /^a.backup .* damaged\nb.backup .* proven$/m);
    }),
  );
});

describe("a hostile server on the way back", () => {
  const raw = (length: number, ...parts: ReadonlyArray<Uint8Array>) => {
    const head = Buffer.alloc(4);
    head.writeUInt32BE(length);
    return Buffer.concat([head, ...parts]);
  };
  const errorLine = '{"type":"error","code":"internal","message":"\\u001b[2J\\u202ebad"}\n';
  const readLies: ReadonlyArray<readonly [string, Lies, ReadonlyArray<number>]> = [
    ["no reply", { opened: () => "nonsense\n".repeat(100) }, [4, 6]],
    ["a line without an end", { opened: () => "x".repeat(100_000) }, [6]],
    ["an error with escapes", { opened: () => errorLine }, [5]],
    ["an unknown error", { opened: () => ({ type: "error", code: "x", message: "" }) }, [4, 6]],
    ["an end in place of ready", { opened: () => ({ type: "end" }) }, [4, 6]],
    ["no recipe", { recipe: () => "" }, [6]],
    ["a recipe of fewer members", { recipe: (r) => r.replace("0 5", "0 4") }, [6]],
    ["a recipe of more members", { recipe: (r) => `${r}${r}` }, [6]],
    [
      "a recipe in another order",
      { recipe: (r) => `${r.slice(0, 32)} 1 4\n${r.slice(0, 32)} 0 1\n` },
      [6],
    ],
    ["a recipe without end", { recipe: (r) => r.repeat(10_000) }, [6]],
    ["a recipe of another form", { recipe: (r) => r.replace(" 0 ", " 00 ") }, [6]],
    ["a recipe of a pack that is not there", { recipe: () => `${"0".repeat(32)} 0 5\n` }, [6]],
    ["no table", { table: () => "" }, [6]],
    ["a table with a line less", { table: (t) => t.slice(0, t.lastIndexOf("vm3")) }, [6]],
    [
      "a table with another digest",
      { table: (t) => t.replace(/[0-9a-f]{64}/, "0".repeat(64)) },
      [6],
    ],
    ["a table with another length", { table: (t) => t.replace(" 10240 ", " 20480 ") }, [6]],
    ["a table of one endless line", { table: () => "x".repeat(5_000_000) }, [6]],
    ["a table of escapes", { table: (t) => t.replace("vm2", "\u001b[2J") }, [6]],
    ["a table that is cut, each time", { text: (f, _, v) => (v === "table" ? "cut" : f) }, [4]],
    ["a table that does not come", { text: (f, _, v) => (v === "table" ? "mute" : f) }, [4]],
    [
      "a table in a frame of 2 GiB",
      { text: (f, _, v) => (v === "table" ? raw(0x7fffffff) : f) },
      [6],
    ],
    [
      "an error in place of a table",
      {
        text: (f, _, v) =>
          v === "table" ? Buffer.concat([raw(0xffffffff), Buffer.from(errorLine)]) : f,
      },
      [4, 5, 6],
    ],
    ["a frame of 2 GiB", { frame: () => raw(0x7fffffff) }, [6]],
    ["a frame of one byte", { frame: () => raw(1, Buffer.from("x")) }, [6]],
    ["an end too early", { frame: () => Buffer.alloc(4) }, [4]],
    [
      "a broken frame and an error with escapes",
      { frame: () => raw(0xffffffff, Buffer.from(errorLine)) },
      [5],
    ],
    [
      "a broken frame and no end of a line",
      { frame: () => raw(0xffffffff, Buffer.alloc(100_000, 65)) },
      [4, 6],
    ],
    [
      "a broken frame and no line",
      {
        frame: (_, { index }) => (index === 0 ? raw(0xffffffff) : "mute"),
      },
      [4],
    ],
    ["proofs cut short", { frame: (f) => framed(f.subarray(4, -32)) }, [6]],
    ["proofs too long", { frame: (f) => framed(f.subarray(4), Buffer.alloc(32)) }, [6]],
    [
      "the first block again and again",
      {
        frame: (() => {
          let first: Buffer | undefined;
          return (f) => (first ??= f);
        })(),
      },
      [6],
    ],
    ["cut at once, each time", { frame: () => "cut" }, [4]],
    [
      "cut before one block, each time",
      { frame: (f, { block, member }) => (member === 3 && block === 1 ? "cut" : f) },
      [4],
    ],
    ["silence", { frame: () => "mute" }, [4]],
    [
      "silence before one block",
      { frame: (f, { block, member }) => (member === 3 && block === 1 ? "mute" : f) },
      [4],
    ],
    ["silence at once", { mute: "at-once" }, [4]],
  ];
  it.effect.each(readLies)(
    "read, %s: verify and audit fail, in time, and nothing is proven",
    ([, lies, codes]) =>
      Effect.gen(function* () {
        for (const args of [
          ["verify", "a.backup"],
          ["audit", "--blocks", "9"],
        ]) {
          const w = world();
          const { session } = keep(w, "a.backup", small);
          const { code, out, text } = yield* qbackup(w, args, { lies, within: "3 hours" });
          assert.include(codes, code, text);
          assert.notMatch(out, /verified|a\.backup.*proven/);
          assert.isUndefined(w.disk.audits.get(session)?.whole);
          assert.isUndefined(w.disk.audits.get(session)?.sampled);
        }
      }),
  );
  const listLies: ReadonlyArray<readonly [string, Lies, ReadonlyArray<number>]> = [
    ["a name twice", { listed: (l) => [l[0], l[0], { type: "end", count: 2 }] }, [6]],
    ["a name that is none", { listed: (l) => [l[0], { ...l[0], name: "../x" }, ...l] }, [6, 4]],
    ["another count", { listed: (l) => [l[0], { type: "end", count: 5 }] }, [6]],
    ["no end", { listed: (l) => [l[0]] }, [4]],
    ["put's stored", { listed: () => [{ type: "stored", receipt: "", signature: "" }] }, [4]],
    ["no line's end", { listed: () => ["x".repeat(90_000)] }, [6]],
    ["escapes", { listed: () => [errorLine] }, [5]],
    ["nothing", { listed: () => [] }, [4]],
    ["silence", { mute: "at-once" }, [4]],
    [
      "200,000 archives",
      {
        listed: (l) => Array.from({ length: 200_000 }, (_, i) => ({ ...l[0], name: `n${i}` })),
      },
      [6],
    ],
  ];
  it.effect.each(listLies)("list, %s", ([, lies, codes]) =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      const { code, out, text } = yield* qbackup(w, ["list"], { lies });
      assert.include(codes, code, text);
      assert.strictEqual(out, "");
    }),
  );
  const recordLies: ReadonlyArray<readonly [string, Lies, ReadonlyArray<number>]> = [
    ["another type", { record: (r) => ({ ...r, type: "ready" }) }, [4, 6]],
    [
      "for another name",
      { record: (r) => ({ ...r, manifest: r.manifest.replace("a.backup", "b.backup") }) },
      [6],
    ],
    ["a text of 4 KiB", { record: (r) => ({ ...r, manifest: " ".repeat(4000) }) }, [4, 6]],
    ["no JSON", { record: () => "\u001b[2J" }, [4]],
    ["silence", { mute: "at-once" }, [4]],
  ];
  it.effect.each(recordLies)("manifest, %s", ([, lies, codes]) =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small, { known: false });
      const { code, out, text } = yield* qbackup(w, ["verify", "--force", "a.backup"], { lies });
      assert.include(codes, code, text);
      assert.strictEqual(out, "");
    }),
  );
  it.effect("one that sends some bytes a minute for ever is given up, in the middle too", () =>
    Effect.gen(function* () {
      for (const quick of [0, 2 * mib]) {
        const w = world();
        keep(w, "a.backup", small);
        const honest = peer(w.shelf);
        let sent = 0;
        const { code, text } = yield* qbackup(w, ["verify", "a.backup"], {
          within: "4 hours",
          far: (invocation, service) => {
            const write = (bytes: Uint8Array) =>
              Effect.gen(function* () {
                for (let at = 0; at < bytes.length; at += 8192) {
                  if ((sent += 8192) > quick + 8192) yield* Effect.sleep("50 seconds");
                  yield* invocation.stdout.write(bytes.subarray(at, at + 8192));
                }
              });
            return service.endsWith("+read")
              ? honest({ ...invocation, stdout: { ...invocation.stdout, write } }, service)
              : honest(invocation, service);
          },
        });
        assert.strictEqual(code, 4, text);
        assert.match(text, /no progress for 30 minutes/);
      }
    }),
  );
  it.effect("a link that broke while dom0's machine slept is made again", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", small);
      const clock = yield* Clock.Clock;
      let nights = 0;
      const now = () => clock.currentTimeMillisUnsafe() + nights * 8 * 3_600_000;
      const sleepy: Clock.Clock = Object.assign(Object.create(clock), {
        currentTimeMillisUnsafe: now,
        currentTimeMillis: Effect.sync(now),
      });
      const frame = (bytes: Buffer, { index }: Asked) => {
        if (nights === 3 || index !== 1) return bytes;
        nights += 1;
        return "cut";
      };
      const { code, text } = yield* qbackup(w, ["verify", "a.backup"], { lies: { frame } }).pipe(
        Effect.provideService(Clock.Clock, sleepy),
      );
      assert.strictEqual(code, 0, text);
      assert.strictEqual(nights, 3);
    }),
  );
  /** Half an hour of signs of life, and then a refusal. */
  const slow = Effect.fnUntraced(function* ({ stdout }: Parameters<ReturnType<typeof peer>>[0]) {
    for (let i = 0; i < 25; i++) {
      yield* stdout.write(Buffer.from('\n{"type":"alive"}\n').subarray(i && 1));
      yield* Effect.sleep("70 seconds");
    }
    const refused = '{"type":"error","code":"internal","message":"no"}\n';
    yield* stdout.write(Buffer.from(refused));
    return 5;
  });
  it.effect("one that is slow in each of many calls is given up after a day", () =>
    Effect.gen(function* () {
      const w = world();
      const bytes = anArchive(3, 50_000);
      for (let i = 0; i < 240; i++) keep(w, `a${i}.backup`, bytes, { known: false });
      const honest = peer(w.shelf);
      const { code, out, text } = yield* qbackup(w, ["ledger", "rebuild"], {
        within: "25 hours",
        far: (invocation, service) =>
          service.endsWith("+list")
            ? honest(invocation, service)
            : slow(invocation).pipe(Effect.orElseSucceed(() => 1)),
      });
      assert.strictEqual(code, 4, text);
      assert.match(text, /did not finish within a day/);
      assert.strictEqual(out, "");
    }),
  );
  it.effect("an audit that is given up after a day tells what it has found by then", () =>
    Effect.gen(function* () {
      const w = world();
      const bytes = anArchive(3, 50_000);
      const sessions = Array.from(
        { length: 240 },
        (_, i) => keep(w, `a${i}.backup`, bytes).session,
      );
      const [first] = sessions;
      w.shelf.committed.delete("a0.backup");
      const honest = peer(w.shelf);
      let calls = 0;
      const { code, text } = yield* qbackup(w, ["audit"], {
        within: "25 hours",
        far: (invocation, service) =>
          !service.endsWith("+recipe") || calls++ === 0
            ? honest(invocation, service)
            : slow(invocation).pipe(Effect.orElseSucceed(() => 1)),
      });
      assert.strictEqual(code, 6, text);
      assert.match(text, /^warning: a0.backup: a0.backup is not on the server any more$/m);
      assert.match(
        text,
        /^error: 1 of 240 archives did not come back as they were; .*within a day/m,
      );
      assert.isDefined(w.disk.audits.get(first!)?.failed);
      for (const session of sessions.slice(1)) {
        assert.hasAllKeys(w.disk.audits.get(session), ["unread"]);
      }
    }),
  );
  it.effect("one that is alive for ever is given up, in list, manifest, check and read", () =>
    Effect.gen(function* () {
      for (const args of [
        ["list"],
        ["verify", "--on-server", "a.backup"],
        ["verify", "--force", "b.backup"],
        ["verify", "a.backup"],
      ]) {
        const w = world();
        keep(w, "a.backup", small);
        keep(w, "b.backup", small, { known: false });
        const { code, text } = yield* qbackup(w, args, {
          within: "4 hours",
          far: ({ stdout }) =>
            Effect.gen(function* () {
              for (;;) {
                yield* stdout.write(Buffer.from('\n{"type":"alive"}\n'));
                yield* Effect.sleep("15 seconds");
              }
            }).pipe(Effect.orElseSucceed(() => 1)),
        });
        assert.include([4, 6], code, `${args.join(" ")}: ${text}`);
      }
    }),
  );
});
