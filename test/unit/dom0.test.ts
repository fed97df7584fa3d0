/** The job in dom0 against a far side that is honest, broken or hostile, on a clock of its own. */
import { assert, describe, it } from "@effect/vitest";
import { Clock, Effect, Fiber } from "effect";
import { TestClock } from "effect/testing";
import { type LockTable } from "#layers/memory/MemoryLocks";
import { inProcessQrexec } from "#layers/memory/MemoryPipe";
import { aQube } from "#layers/memory/MemoryQubes";
import { qvmBackupScript, type QvmBackupScript } from "#layers/memory/MemoryQvmBackup";
import { qvmRestoreScript } from "#layers/memory/MemoryQvmRestore";
import { Invocation } from "#services/Invocation";
import { fingerprint, signingKeyOf } from "#src/proof/keys";
import { parseManifest } from "#src/proof/texts";
import { keyOf, type Lies, peer, shelf } from "#test/support/peer";
import { linesOf, rootOf, running, ticketText } from "#test/support/reference";
import { archiveOf } from "#test/support/archive";
import { nothingProven, qbackup, tidy, tiny, type World, world } from "#test/support/dom0";

const big = archiveOf({
  seed: 1,
  files: [
    { path: "vm2/private.img", size: 5_000_000 },
    { path: "vm3/private.img", size: 300 },
    { path: "vm4/private.img", size: 12_345_678 },
  ],
});

describe("a run", () => {
  it.effect("ends with the archive, the receipt, the ledger line, and all put back", () =>
    Effect.gen(function* () {
      const w = world();
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 0, text);
      const [[name, kept] = []] = [...w.shelf.committed];
      assert.isTrue(kept!.bytes.equals(tiny));
      assert.match(name!, /^\d{4}-\d\d-\d\dT\d{4}\.backup$/);
      const entry = JSON.parse(w.disk.text);
      assert.strictEqual(entry.name, name);
      assert.deepStrictEqual(entry.qubes, [
        { name: "work", qid: 2 },
        { name: "mail", qid: 3 },
        { name: "vault", qid: 4 },
      ]);
      const manifest = parseManifest(entry.manifest)!;
      assert.strictEqual(manifest.root, rootOf(linesOf(kept!.table)));
      assert.deepStrictEqual([manifest.members, manifest.size], [6, tiny.length]);
      assert.deepStrictEqual([manifest.format, manifest.next], ["qvm-backup", null]);
      assert.strictEqual(w.shelf.trailer?.recipe, "new 0 6\n");
      assert.isUndefined(w.disk.unfinished);
      assert.deepStrictEqual(
        w.notes.map((n) => n.urgency),
        ["low", "normal"],
      );
      assert.deepStrictEqual(w.script.started, [
        {
          qubes: ["work", "mail", "vault"],
          passphraseFile: "/pass",
          compressFilter: undefined,
        },
      ]);
      const hex = "[0-9a-f]{64}";
      assert.match(text, new RegExp(`made the key that signs backups: key fingerprint ${hex}`));
      assert.match(
        text,
        new RegExp(`first contact: pinned the server behind net, key fingerprint ${hex}`),
      );
      assert.match(text, /a restore will need/);
      tidy(w);
      // The second time nobody is met for the first time, and the name is taken.
      const again = yield* qbackup(w);
      assert.strictEqual(again.code, 0, again.text);
      assert.strictEqual(w.shelf.committed.size, 2);
      assert.strictEqual(again.text.match(/first contact/g)?.length, 1);
      assert.strictEqual(again.text.match(/made the key/g)?.length, 1);
      assert.strictEqual(again.text.match(/a restore will need/g)?.length, 1);
      assert.isTrue(
        [...w.shelf.committed.keys()].some((other) => /T\d{4}-[0-9a-f]{6}\.backup$/.test(other)),
      );
    }),
  );
  it.effect("is the same through a link that breaks again and again, and prints no error", () =>
    Effect.gen(function* () {
      const w = world(big);
      const { code, text } = yield* qbackup(w, {
        lies: { dropAfter: (call) => (call < 8 ? call % 4 || undefined : undefined) },
      });
      assert.strictEqual(code, 0, text);
      assert.isTrue([...w.shelf.committed.values()][0]!.bytes.equals(big));
      assert.isAbove(w.shelf.calls, 3);
      assert.notInclude(text, "error:");
    }),
  );
  it.effect("takes the default set when no qube is named, and dom0 when it is asked for", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w, { args: ["-t", "net", "-p", "/pass"] })).code, 0);
      // By name: what is made or removed meanwhile is not to change what is expected.
      assert.deepStrictEqual(w.script.started[0]!.qubes, ["work", "mail", "vault"]);
      assert.deepStrictEqual(JSON.parse(w.disk.text).asked.qubes, []);
      const missing = yield* qbackup(world(), {
        args: ["-t", "net", "-p", "/pass", "--include-dom0"],
      });
      assert.strictEqual(missing.code, 6);
      assert.match(missing.text, /nothing of dom0-home/);
    }),
  );
  it.effect("says what it doubts of the passphrase, and refuses one that is unfit", () =>
    Effect.gen(function* () {
      const w = world(tiny, { passphraseDoubts: ["it begins with a blank"] });
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 0, text);
      assert.match(text, /^warning: it begins with a blank$/m);
      assert.match(text, /^hint: - the passphrase, 28 characters, which lies here in \/pass/m);
      const unfit = world(tiny, { passphraseUnfit: "there is a control character in it" });
      const refused = yield* qbackup(unfit);
      assert.strictEqual(refused.code, 2);
      assert.match(refused.text, /error: .* is not fit for a backup: there is a control character/);
      assert.strictEqual(unfit.shelf.calls, 0);
      assert.lengthOf(unfit.table.calls, 0);
    }),
  );
  it.effect("leaves the destination qube as it was, or running with -x", () =>
    Effect.gen(function* () {
      const ran = world();
      ran.table.qubes.splice(4, 1, aQube("net", 9, { state: "Running", included: false }));
      assert.strictEqual((yield* qbackup(ran)).code, 0);
      assert.notInclude(ran.table.calls, "shutdown net");
      const kept = world();
      assert.strictEqual(
        (yield* qbackup(kept, {
          args: ["-x", "-t", "net", "-p", "/pass", "work", "mail", "vault"],
        })).code,
        0,
      );
      assert.notInclude(kept.table.calls, "shutdown net");
    }),
  );
  it.effect("does not wake a destination qube that is paused, and says so", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.qubes.splice(4, 1, aQube("net", 9, { state: "Paused", included: false }));
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 3);
      assert.match(text, /the destination qube net is paused\n.*qvm-unpause net/);
      assert.strictEqual(w.shelf.calls, 0);
      assert.strictEqual(w.table.qubes.find(({ name }) => name === "net")?.state, "Paused");
      assert.notInclude(w.table.calls.join(), "shutdown");
      assert.lengthOf(w.script.started, 0);
    }),
  );
  it.effect.each([
    [["-t", "net", "-p", "/p", "nobody"], 2, /no such qube: nobody/],
    [["-t", "net", "-p", "/p", "wo*"], 2, /no such qube/],
    [["-t", "net", "-p", "/p", "vualt"], 2, /no such qube: vualt\n.*did you mean vault\?/],
    [["-t", "ent", "-p", "/p", "work"], 2, /destination qube does not exist: ent\n.*mean net\?/],
    [["-t", "gone", "-p", "/p", "work"], 2, /destination qube does not exist/],
  ] as const)("%j is refused before anything starts", ([args, expected, text]) =>
    Effect.gen(function* () {
      const w = world();
      const ended = yield* qbackup(w, { args });
      assert.strictEqual(ended.code, expected, ended.text);
      assert.match(ended.text, text);
      assert.strictEqual(w.shelf.calls, 0);
      assert.lengthOf(w.script.started, 0);
      assert.notInclude(w.table.calls, "start net");
      // A scheduled run has nobody who reads its stderr.
      assert.deepStrictEqual(w.notes.at(-1)?.urgency, "critical");
    }),
  );
});

describe("Qubes that fails", () => {
  const run = (
    name: string,
    script: Partial<QvmBackupScript>,
    code: number,
    text: RegExp,
    archive: Uint8Array = tiny,
  ) =>
    it.effect(name, () =>
      Effect.gen(function* () {
        const w = world(archive, script);
        const ended = yield* qbackup(w);
        assert.strictEqual(ended.code, code, ended.text);
        assert.match(ended.text, text);
        nothingProven(w);
        assert.strictEqual(w.shelf.committed.size, 0);
        assert.strictEqual(w.shelf.gaveUp, 1, "the server was not told to forget it");
        assert.strictEqual(w.disk.unfinished, undefined);
      }),
    );
  run(
    "exit 1 half-way",
    {
      chunks: [{ bytes: tiny.subarray(0, 81_920) }],
      ends: { code: 1, said: ["Backup error: out of luck"] },
    },
    3,
    /exit code 1: Backup error: out of luck/,
  );
  run(
    "exit 1 at a member's end, with all of it there",
    { ends: { code: 1, said: [] } },
    3,
    /exit code 1/,
  );
  run(
    "exit 0 although the last qube is missing",
    { chunks: [{ bytes: tiny.subarray(0, 112_640) }] },
    6,
    /nothing of vm2/,
  );
  run(
    "exit 0 in the middle of a member",
    { chunks: [{ bytes: tiny.subarray(0, 100_000) }] },
    6,
    /ends inside a member/,
  );
  run("writes nothing, exit 0", { chunks: [] }, 6, /nothing in it/);
  run(
    "hangs at once",
    { chunks: [], hangs: true },
    3,
    /neither written nor shown progress for 60 minutes/,
  );
  run(
    "hangs half-way",
    { chunks: [{ bytes: tiny.subarray(0, 30_720) }], hangs: true },
    3,
    /neither written/,
  );
  run(
    "has another qube in it",
    { chunks: [{ bytes: archiveOf({ seed: 3, files: [{ path: "vm7/private.img", size: 9 }] }) }] },
    6,
    /vm7.*not asked for/,
  );
  it.effect(
    "a long silence is no hang while it shows progress, nor is a long wait for the link",
    () =>
      Effect.gen(function* () {
        const w = world(tiny, {
          chunks: [
            { bytes: tiny.subarray(0, 50_000) },
            ...Array.from({ length: 10 }, (_, i) => ({ after: "50 minutes" as const, percent: i })),
            { bytes: tiny.subarray(50_000) },
          ],
        });
        const ended = yield* qbackup(w, { within: "10 hours" });
        assert.strictEqual(ended.code, 0, ended.text);
      }),
  );
  it.effect.each([
    ["refused", { chunks: [], ends: { code: 2, said: ["error: no such domain: 'work'"] } }],
    ["left out", { chunks: [{ bytes: tiny.subarray(0, 112_640) }] }],
    ["broken off", { chunks: [{ bytes: tiny.subarray(0, 100_000) }] }],
  ] as const)(
    "a qube that was removed meanwhile, and is %s: named, with what to do",
    ([, script]) =>
      Effect.gen(function* () {
        for (const [qubes, hint] of [
          [[], "run again: it takes the qubes that there are then"],
          [["work", "mail", "vault"], "run again without work, and take such names"],
        ] as const) {
          const w = world(tiny, script);
          w.table.fails = (call) => {
            // Behind the look at all qubes.
            if (call === "start net") w.table.qubes.splice(1, 1, aQube("work", 17));
            return undefined;
          };
          const { code, text } = yield* qbackup(w, { args: ["-t", "net", "-p", "/p", ...qubes] });
          assert.strictEqual(code, 3, text);
          assert.match(text, /^error: work is gone: removed or renamed .* nothing was stored$/m);
          assert.include(text, `\nhint: ${hint}`);
          assert.include(text, "warning: nothing was stored; there is no proven backup of work");
          nothingProven(w);
          assert.strictEqual(w.shelf.gaveUp, 1);
        }
      }),
  );
  it.effect("where the qubes cannot be listed any more, it is as qvm-backup said", () =>
    Effect.gen(function* () {
      const w = world(tiny, { chunks: [], ends: { code: 1, said: ["Got empty response"] } });
      w.table.fails = (call) =>
        call === "list" && w.table.calls.filter((one) => one === "list").length > 1
          ? "no qubesd"
          : undefined;
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 3, text);
      assert.match(text, /error: qvm-backup failed with exit code 1: Got empty response/);
    }),
  );
  it.effect("no room for qubesd's temporary files: refused at first, stopped later", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.free = 100 * 2 ** 20;
      const refused = yield* qbackup(w);
      assert.strictEqual(refused.code, 3, refused.text);
      assert.strictEqual(w.shelf.calls, 0);
      const later = world(tiny, { chunks: [{ bytes: tiny.subarray(0, 50_000) }], hangs: true });
      later.table.fails = (call) => {
        if (call === "free" && later.script.started.length > 0) later.table.free = 2 ** 20;
        return undefined;
      };
      const stopped = yield* qbackup(later);
      assert.strictEqual(stopped.code, 3, stopped.text);
      assert.match(stopped.text, /chunks may have been cut short/);
      assert.isBelow(stopped.seconds, 60);
      assert.strictEqual(later.script.cancelled, 1);
      nothingProven(later);
    }),
  );
  it.effect("the destination qube does not start, or cannot be stopped", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.fails = (call) => (call === "start net" ? "no memory" : undefined);
      const refused = yield* qbackup(w);
      assert.strictEqual(refused.code, 3, refused.text);
      assert.match(refused.text, /no memory/);
      const stuck = world();
      stuck.table.fails = (call) => (call === "shutdown net" ? "it hangs" : undefined);
      const ended = yield* qbackup(stuck);
      assert.strictEqual(ended.code, 0, "the backup is proven all the same");
      assert.match(ended.text, /warning: .*it hangs/);
    }),
  );
});

describe("a far side that lies", () => {
  const other = keyOf("another server");
  const lie = (
    name: string,
    lies: Lies,
    code: number | ReadonlyArray<number>,
    text: RegExp,
    archive: Uint8Array = big,
  ) =>
    it.effect(name, () =>
      Effect.gen(function* () {
        const w = world(archive);
        const ended = yield* qbackup(w, { lies });
        assert.include([code].flat(), ended.code, ended.text);
        assert.match(ended.text, text);
        nothingProven(w);
        assert.isTrue(
          w.script.started.length === 0 || w.script.cancelled + 1 >= w.script.started.length,
        );
      }),
    );
  lie(
    "an offset ahead of what was sent",
    { ready: (r) => ({ ...r, offset: 1_048_576 }) },
    6,
    /1048576 bytes/,
  );
  lie("an odd offset", { ready: (r) => ({ ...r, offset: 5 }) }, 6, /5 bytes/);
  lie(
    "an offset that goes back",
    {
      dropAfter: (c) => (c === 1 ? 3 : undefined),
      ready: (r, c) => (c > 1 ? { ...r, offset: 0 } : r),
    },
    6,
    /0 bytes/,
  );
  lie(
    "an acknowledgement of what was not sent",
    { ack: (r) => ({ ...r, offset: r.offset + 64 * 1_048_576 }) },
    6,
    /bytes, but/,
  );
  lie(
    "an acknowledgement that goes back",
    { ack: (r) => ({ ...r, offset: r.offset > 1_048_576 ? 10_240 : r.offset }) },
    6,
    /bytes, but/,
  );
  lie(
    "stored before the end",
    {
      onBlock: (n) =>
        n === 2
          ? { type: "stored", receipt: "{}", signature: other.sign("receipt", "{}") }
          : undefined,
    },
    6,
    /unexpected reply from the server: stored/,
  );
  lie(
    "stored at the beginning",
    { ready: () => ({ type: "stored", receipt: "{}", signature: other.sign("receipt", "{}") }) },
    6,
    /unexpected reply from the server: stored/,
  );
  lie(
    "a receipt by another key",
    { stored: (r) => ({ ...r, signature: other.sign("receipt", r.receipt) }) },
    6,
    /not signed by the pinned server/,
  );
  lie(
    "a receipt for another size",
    {
      stored: (r, k) => {
        const receipt = r.receipt.replace(/"size":\d+/, '"size":10240');
        return { ...r, receipt, signature: k.sign("receipt", receipt) };
      },
    },
    6,
    /its size differs/,
  );
  lie(
    "a receipt for other bytes",
    {
      stored: (r, k) => {
        const receipt = r.receipt.replace(/"root":"../, '"root":"00');
        return { ...r, receipt, signature: k.sign("receipt", receipt) };
      },
    },
    6,
    /its root differs/,
  );
  lie(
    "a receipt for another manifest",
    {
      stored: (r, k) => {
        const receipt = r.receipt.replace(/"manifest":"../, '"manifest":"00');
        return { ...r, receipt, signature: k.sign("receipt", receipt) };
      },
    },
    6,
    /its manifest differs/,
  );
  lie(
    "a receipt that is none",
    { stored: (_, k) => ({ type: "stored", receipt: "[]", signature: k.sign("receipt", "[]") }) },
    6,
    /not readable/,
  );
  lie(
    "bytes that were changed on the way",
    { ack: (r) => ({ ...r, running: "0".repeat(64) }) },
    6,
    /the first 10240 bytes are not on the server as they were sent/,
  );
  lie(
    "bytes that were changed while the link was down",
    {
      dropAfter: (c) => (c === 1 ? 3 : undefined),
      ready: (r, c) => (c > 1 ? { ...r, running: "0".repeat(64) } : r),
    },
    6,
    /not on the server as they were sent/,
  );
  lie(
    "bytes before any were sent",
    { ready: (r) => ({ ...r, running: "0".repeat(64) }) },
    6,
    /the first 0 bytes are not on the server/,
  );
  lie(
    "a key that is none",
    { about: (r) => ({ ...r, server: "x" }) },
    4,
    /no link to the server: the call ended without an answer/,
  );
  lie(
    "a line without an end",
    { before: "x".repeat(100_000) },
    4,
    /a line of more than 20480 bytes/,
  );
  lie(
    "a line without an end, later",
    { onBlock: () => "x".repeat(5000) },
    6,
    /line of more than 4096 bytes/,
  );
  lie(
    "a terminal's escapes",
    { onBlock: () => '{"type":"error","code":"quota","message":"\\u001b[2J\\u202egone"}\n' },
    5,
    /\?\[2J\?gone/,
  );
  lie("silence at once", { mute: "at-once" }, 4, /no answer within 90 s/);
  lie("silence after ready", { mute: "after-ready" }, 4, /no progress for 30 minutes/);
  lie("silence after the trailer", { mute: "after-trailer" }, 4, /no progress for 30 minutes/);
  lie(
    "one that never keeps anything",
    {
      ack: () => undefined,
      dropAfter: () => 1,
      ready: (r) => ({ ...r, offset: 0, running: running([], []) }),
    },
    4,
    /no progress for 30 minutes/,
  );
  lie(
    "ready twice",
    {
      onBlock: (n) => (n === 1 ? { type: "ready", offset: 0, running: "0".repeat(64) } : undefined),
    },
    6,
    /unexpected reply from the server: ready/,
  );
  for (const [code, exit] of [
    ["no-space", 5],
    ["quota", 5],
    ["not-permitted", 5],
    ["no-directory", 5],
    ["internal", 5],
    ["bad-name", 5],
    ["unsupported", 5],
    ["incomplete", 6],
    ["digest-mismatch", 6],
    ["signature", 6],
  ] as const) {
    lie(
      `refused at once: ${code}`,
      { ready: () => ({ type: "error", code, message: "no" }) },
      exit,
      new RegExp(`refused \\(${code}\\): no`),
    );
    lie(
      `refused half-way: ${code}`,
      { onBlock: (n) => (n === 3 ? { type: "error", code, message: "no" } : undefined) },
      exit,
      new RegExp(`refused \\(${code}\\): no`),
    );
  }
  it.effect("busy is waited for", () =>
    Effect.gen(function* () {
      const w = world();
      const ended = yield* qbackup(w, {
        lies: { ready: (r, c) => (c < 3 ? { type: "error", code: "busy", message: "busy" } : r) },
      });
      assert.strictEqual(ended.code, 0, ended.text);
    }),
  );
  it.effect("the server's key is another one than the last time: exit 6, with what to do", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      const before = w.disk.text;
      const ended = yield* qbackup(w, { lies: { key: other } });
      assert.strictEqual(ended.code, 6);
      assert.match(
        ended.text,
        /error: the server's key changed: its fingerprint was [0-9a-f]{64}, now it is [0-9a-f]{64}/,
      );
      assert.match(ended.text, /hint: .*qbackup-shell identity.*known_servers/);
      assert.strictEqual(w.disk.text, before);
      assert.lengthOf(w.script.started, 1);
      tidy(w);
    }),
  );
  it.effect("a first key that signs nothing is not pinned: it would lock the server out", () =>
    Effect.gen(function* () {
      const w = world();
      const ended = yield* qbackup(w, {
        lies: {
          about: (r) => ({ ...r, server: other.publicKey }),
          stored: () => ({ type: "error", code: "signature", message: "for another server" }),
        },
      });
      assert.strictEqual(ended.code, 6, ended.text);
      assert.match(ended.text, /new here has the key fingerprint [0-9a-f]{64}/);
      assert.notMatch(ended.text, /first contact/);
      assert.strictEqual(w.disk.pins.size, 0);
      nothingProven(w);
      const next = yield* qbackup(w);
      assert.strictEqual(next.code, 0, next.text);
      assert.strictEqual(w.disk.pins.get("net"), keyOf("server").publicKey);
    }),
  );
  it.effect("a carrier with older scripts is named", () =>
    Effect.gen(function* () {
      const ended = yield* qbackup(world(), { far: () => Effect.succeed(0) });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.match(ended.text, /older scripts/);
    }),
  );
});

describe("what a run leaves behind", () => {
  it.effect(
    "a reply lost after the commit: the next run fetches the receipt, then does its own work",
    () =>
      Effect.gen(function* () {
        const w = world();
        const lost = yield* qbackup(w, {
          lies: { stored: () => undefined },
        });
        assert.strictEqual(lost.code, 0, lost.text); // the same run already asks again
        const dead = world();
        const far = peer(dead.shelf, { stored: () => undefined });
        // After the commit the server is never seen again.
        const ended = yield* qbackup(dead, {
          far: (i, s) => (dead.shelf.committed.size > 0 ? Effect.succeed(4) : far(i, s)),
        });
        assert.strictEqual(ended.code, 4, ended.text);
        assert.strictEqual(dead.disk.text, "");
        assert.isDefined(dead.disk.unfinished?.submission);
        assert.strictEqual(dead.disk.pins.size, 0);
        const next = yield* qbackup(dead);
        assert.strictEqual(next.code, 0, next.text);
        assert.match(next.text, /pinned the server behind net[^]*is stored and proven/);
        assert.lengthOf(dead.disk.text.trim().split("\n"), 2);
        assert.isUndefined(dead.disk.unfinished);
      }),
  );
  describe("is kept while runs go elsewhere", () => {
    /** A run that was killed between the receipt and the ledger, and a second way out. */
    const killed = Effect.fnUntraced(function* () {
      const w = world();
      w.table.qubes.push(aQube("other", 11, { included: false }));
      w.disk.fails = (call) => (call.startsWith("append") ? "killed" : undefined);
      assert.strictEqual((yield* qbackup(w)).code, 2);
      w.disk.fails = () => undefined;
      assert.isDefined(w.disk.unfinished?.submission);
      return w;
    });
    it.effect("of a key that the store takes no more: the record has the receipt still", () =>
      Effect.gen(function* () {
        const w = yield* killed();
        const [name] = [...w.shelf.committed.keys()];
        w.disk.secrets = { ...w.disk.secrets!, signing: Buffer.alloc(32, 7) };
        const { publicKey } = signingKeyOf(w.disk.secrets.signing);
        w.shelf.signers.splice(0, Infinity, publicKey);
        const next = yield* qbackup(w);
        assert.strictEqual(next.code, 0, next.text);
        assert.include(next.text, `${name}, whose run broke off at its end, is stored and proven`);
        assert.strictEqual(entries(w), 2);
        assert.isUndefined(w.disk.unfinished);
      }),
    );
    const through = ["-t", "other", "-p", "/pass", "work", "mail", "vault"];
    const entries = (w: World) => w.disk.text.trim().split("\n").length;
    const far = (w: World): World => ({ ...w, shelf: shelf() });
    const lies = { key: keyOf("server two") };

    it.effect("to another server: its own fetches the receipt, whatever the others were", () =>
      Effect.gen(function* () {
        const w = yield* killed();
        const [name] = [...w.shelf.committed.keys()];
        const away = far(w);
        const other = yield* qbackup(away, { args: through, lies });
        assert.strictEqual(other.code, 0, other.text);
        const told = new RegExp(
          `^warning: a run through net broke off at its end: ${name} may be on its server, but is not proven\nhint: the next run through net asks .*ledger rebuild`,
          "m",
        );
        assert.match(other.text, told);
        assert.strictEqual(entries(w), 1);
        // It is said once.
        w.said.lines.length = 0;
        assert.notMatch((yield* qbackup(away, { args: through, lies })).text, /not proven/);
        const back = yield* qbackup(w);
        assert.strictEqual(back.code, 0, back.text);
        assert.include(back.text, `${name}, whose run broke off at its end, is stored and proven`);
        assert.strictEqual(entries(w), 4);
        assert.isUndefined(w.disk.unfinished);
      }),
    );
    it.effect("also where one of the others breaks off at its end, too", () =>
      Effect.gen(function* () {
        const w = yield* killed();
        const away = far(w);
        const ended = yield* qbackup(away, {
          args: through,
          lies: { ...lies, mute: "after-trailer" },
        });
        assert.strictEqual(ended.code, 4, ended.text);
        const back = yield* qbackup(w);
        assert.strictEqual(back.code, 0, back.text);
        assert.match(back.text, /a run through other broke off at its end/);
        assert.match(back.text, /is stored and proven/);
        assert.strictEqual(entries(w), 2);
        const next = yield* qbackup(away, { args: through, lies });
        assert.strictEqual(next.code, 0, next.text);
        assert.match(next.text, /was not stored/);
        assert.strictEqual(entries(w), 3);
        assert.isUndefined(w.disk.unfinished);
      }),
    );
    it.effect("but one through another qube to the same server asks, the first one, too", () =>
      Effect.gen(function* () {
        for (const known of [true, false]) {
          const w = yield* killed();
          if (known) w.disk.pins.set("other", w.disk.unfinished!.submission!.server);
          const { code, text } = yield* qbackup(w, { args: through });
          assert.strictEqual(code, 0, text);
          assert.match(text, /is stored and proven/);
          assert.notMatch(text, /may be on its server/);
          assert.strictEqual(entries(w), 2);
          assert.isUndefined(w.disk.unfinished);
        }
      }),
    );
    it.effect("eight of them, and of the oldest is said what is left to be done", () =>
      Effect.gen(function* () {
        const w = yield* killed();
        const { submission, ticket } = w.disk.unfinished!;
        w.disk.unfinished = {
          ...w.disk.unfinished!,
          earlier: Array.from({ length: 8 }, (_, n) => ({
            submission: {
              ...submission!,
              destination: `gone${n}`,
              server: keyOf(`server ${n}`).publicKey,
              session: `${n}`.repeat(32) as never,
            },
            ticket: ticket!,
          })),
        };
        const { code, text } = yield* qbackup(far(w), { args: through, lies });
        assert.strictEqual(code, 0, text);
        assert.match(
          text,
          /through gone0 broke off .*\nhint: qbackup list -t gone0 shows .*rebuild/,
        );
        assert.match(text, /through net broke off .*\nhint: the next run through net asks/);
        assert.notMatch(text, /gone1/);
        assert.deepStrictEqual(
          w.disk.unfinished?.earlier?.map(({ submission }) => submission.destination),
          ["gone1", "gone2", "gone3", "gone4", "gone5", "gone6", "gone7", "net"],
        );
      }),
    );
  });
  it.effect("signs of life and no answer: that ends, too", () =>
    Effect.gen(function* () {
      const bytes = (text: string) => new TextEncoder().encode(text);
      const ended = yield* qbackup(world(), {
        far: ({ stdout }) =>
          stdout.write(bytes("\n")).pipe(
            Effect.andThen(
              Effect.forever(
                Effect.andThen(
                  stdout.write(bytes('{"type":"alive"}\n')),
                  Effect.sleep("30 seconds"),
                ),
              ),
            ),
            Effect.catch(() => Effect.succeed(0)),
          ),
      });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.match(ended.text, /only said that it is alive/);
    }),
  );
  it.effect("a server that cannot say whether it was stored is asked again by the next run", () =>
    Effect.gen(function* () {
      const w = world();
      const ended = yield* qbackup(w, { lies: { mute: "after-trailer" } });
      assert.strictEqual(ended.code, 4, ended.text);
      const internal = { type: "error", code: "internal", message: "the server's disk failed" };
      const next = yield* qbackup(w, { lies: { ready: () => internal } });
      assert.strictEqual(next.code, 5, next.text);
      assert.notMatch(next.text, /was not stored/);
      assert.isDefined(w.disk.unfinished?.submission);
    }),
  );
  it.effect.each(["quota", "no-space", "exists", "digest-mismatch"])(
    "a server that refuses what it was sent (%s) has nothing left to be asked",
    (code) =>
      Effect.gen(function* () {
        const w = world();
        const stored = () => ({ type: "error", code, message: "no" });
        const ended = yield* qbackup(w, { lies: { stored } });
        assert.strictEqual(ended.code, code === "digest-mismatch" ? 6 : 5, ended.text);
        assert.match(ended.text, /^warning: nothing was stored; /m);
        assert.isUndefined(w.disk.unfinished);
        w.shelf.committed.clear();
        const next = yield* qbackup(w);
        assert.strictEqual(next.code, 0, next.text);
        assert.notMatch(next.text, /broke off/);
      }),
  );
  it.effect.each(["quota", "no-space", "exists", "gone"])(
    "refused when it comes again (%s), an older connection may yet store what it was sent",
    (code) =>
      Effect.gen(function* () {
        const w = world();
        const ended = yield* qbackup(w, {
          lies: {
            mute: "after-trailer",
            ready: (reply, call) => (call > 1 ? { type: "error", code, message: "no" } : reply),
          },
        });
        assert.strictEqual(ended.code, 5, ended.text);
        assert.match(ended.text, /^warning: it may be stored, which the next run asks /m);
        assert.isDefined(w.disk.unfinished?.submission);
        const next = yield* qbackup(w);
        assert.strictEqual(next.code, 0, next.text);
        assert.match(next.text, /whose run broke off at its end/);
        assert.isUndefined(w.disk.unfinished);
      }),
  );
  it.effect("what the server's answer does not tell may be stored", () =>
    Effect.gen(function* () {
      for (const reply of [
        { type: "error", code: "internal", message: "the server's disk failed" },
        { type: "stored", receipt: "{}", signature: "A".repeat(86) },
      ]) {
        const w = world();
        const ended = yield* qbackup(w, { lies: { stored: () => reply } });
        assert.strictEqual(ended.code, reply.type === "error" ? 5 : 6, ended.text);
        assert.match(
          ended.text,
          /^warning: it may be stored, which the next run asks the server; /m,
        );
        assert.isDefined(w.disk.unfinished?.submission);
      }
    }),
  );
  it.effect("a trailer that was never stored: the next run gives it up", () =>
    Effect.gen(function* () {
      const w = world();
      const ended = yield* qbackup(w, { lies: { mute: "after-trailer" } });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.isDefined(w.disk.unfinished?.submission);
      const next = yield* qbackup(w);
      assert.strictEqual(next.code, 0, next.text);
      assert.match(next.text, /was not stored/);
      assert.strictEqual(w.shelf.gaveUp, 1);
      assert.lengthOf(w.disk.text.trim().split("\n"), 1);
    }),
  );
  it.effect("a receipt that stays no proof is told once by the next run, and stops no other", () =>
    Effect.gen(function* () {
      const w: World = world(tiny, {
        onDone: () => {
          w.table.qubes[1] = { ...w.table.qubes[1]!, backedUp: 40 };
        },
      });
      const stored = (r: object) => ({ ...r, signature: "A".repeat(86) });
      assert.strictEqual((yield* qbackup(w, { lies: { stored } })).code, 6);
      const kept = w.disk.unfinished!;
      // As if it had been killed before it put that back.
      w.table.qubes[1] = {
        ...w.table.qubes[1]!,
        backedUp: Date.parse(JSON.parse(kept.submission!.manifest).created) / 1000,
      };
      const [[name, archive] = []] = [...w.shelf.committed];
      w.shelf.committed.set(name!, { ...archive!, receiptSignature: "A".repeat(86) });
      const next = yield* qbackup(w);
      assert.strictEqual(next.code, 6, next.text);
      assert.match(next.text, /error: the receipt is not signed by the pinned server/);
      assert.isUndefined(w.disk.unfinished);
      assert.isUndefined(w.table.qubes[1]!.backedUp);
      const third = yield* qbackup(w);
      assert.strictEqual(third.code, 0, third.text);
      assert.notMatch(third.text, /broke off/);
    }),
  );
  it.effect(
    "another server behind the destination qube by then: what became of it is not known",
    () =>
      Effect.gen(function* () {
        const w = world();
        assert.strictEqual((yield* qbackup(w, { lies: { mute: "after-trailer" } })).code, 4);
        const next = yield* qbackup(w, { lies: { key: keyOf("another") } });
        assert.match(next.text, /is stored is not known: the server refused \(signature\)/);
        assert.notMatch(next.text, /was not stored/);
      }),
  );
  it.effect("another qube that a killed run had started, and that cannot be stopped: said", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.fails = (call) => (call === "shutdown work" ? "it hangs" : undefined);
      w.disk.unfinished = { session: "0".repeat(32) as never, destination: "work", started: true };
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 0, text);
      assert.match(text, /warning: could not shut down work: it hangs; it is left running/);
    }),
  );
  it.effect("a destination qube that a killed run had started is stopped", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.qubes.splice(4, 1, aQube("net", 9, { state: "Running", included: false }));
      w.disk.unfinished = { session: "0".repeat(32) as never, destination: "net", started: true };
      assert.strictEqual((yield* qbackup(w)).code, 0);
      assert.include(w.table.calls, "shutdown net");
    }),
  );
  it.effect("a ledger that cannot be written: exit 2, and the next run makes it good", () =>
    Effect.gen(function* () {
      const w = world();
      w.disk.fails = (call) =>
        call.startsWith("append") ? "no space left on the device" : undefined;
      const ended = yield* qbackup(w);
      assert.strictEqual(ended.code, 2, ended.text);
      assert.match(ended.text, /the archive \S+ is stored, but .*no space left/);
      w.disk.fails = () => undefined;
      const next = yield* qbackup(w);
      assert.strictEqual(next.code, 0, next.text);
      assert.lengthOf(w.disk.text.trim().split("\n"), 2);
    }),
  );
  it.effect("an interrupted run cancels qvm-backup and tells the server", () =>
    Effect.gen(function* () {
      const w = world(tiny, { chunks: [{ bytes: tiny.subarray(0, 50_000) }], hangs: true });
      const fiber = yield* Effect.forkChild(qbackup(w));
      yield* Effect.yieldNow;
      for (let i = 0; i < 50; i++) yield* Effect.yieldNow;
      const wait = yield* Effect.forkChild(Fiber.interrupt(fiber));
      for (let i = 0; wait.pollUnsafe() === undefined && i < 100; i++)
        yield* TestClock.adjust("1 second");
      assert.strictEqual(w.script.cancelled, 1);
      assert.strictEqual(w.shelf.gaveUp, 1);
      assert.strictEqual(w.notes.at(-1)?.urgency, "critical");
      const lines = w.said.lines.map(({ text }) => text as string);
      // Heard at once; what it means once all is put back.
      assert.match(lines.at(-2)!, /^interrupted: what was started is being stopped/);
      assert.match(lines.at(-1)!, /^nothing was stored; there is no proven backup of work, mail/);
      assert.match(w.notes.at(-1)!.body, /^Nothing was stored; /);
      tidy(w);
    }),
  );
});

describe("an interrupt", () => {
  /** Interrupts the program when its books are called so, once the server has stored the archive. */
  const interrupted = Effect.fnUntraced(function* (w: World, call: string) {
    let stop = () => {};
    w.disk.fails = (one) => {
      if (one.startsWith(call) && w.shelf.committed.size > 0) stop();
      return undefined;
    };
    return yield* qbackup(w, {
      around: (it) =>
        Effect.gen(function* () {
          const fiber = yield* Effect.forkChild(it);
          stop = () => fiber.interruptUnsafe();
          return yield* Fiber.join(fiber);
        }).pipe(Effect.catchCause(() => Effect.succeed(130 as never))),
    });
  });
  it.effect(
    "between the receipt and its line in the ledger changes nothing, and that is said",
    () =>
      Effect.gen(function* () {
        for (const call of ["entries", "append", "unmark"]) {
          const w = world();
          const { code, text } = yield* interrupted(w, call);
          assert.strictEqual(code, 130, text);
          assert.lengthOf(w.disk.text.trim().split("\n"), 1, call);
          assert.isUndefined(w.disk.unfinished);
          assert.match(text, /warning: \S+\.backup is stored and proven all the same$/m);
          assert.deepInclude(w.notes.at(-1), {
            urgency: "critical",
            summary: "Backup interrupted",
          });
          assert.match(w.notes.at(-1)!.body, /\.backup is stored and proven all the same\. See/);
          tidy(w);
        }
      }),
  );
  it.effect("puts back what Qubes shows, with a word where Qubes is slow, and not for ever", () =>
    Effect.gen(function* () {
      const w: World = world(tiny, {
        onDone: () => {
          w.table.qubes[1] = { ...w.table.qubes[1]!, backedUp: 40 };
        },
      });
      // qubesd hangs as soon as the stream is through.
      w.table.takes = (call) =>
        w.table.qubes[1]!.backedUp === 40 && call === "list" ? "1 day" : 0;
      const stored = () => ({ type: "error", code: "no-space", message: "full" });
      const { code, seconds, text } = yield* qbackup(w, { lies: { stored } });
      assert.strictEqual(code, 5, text);
      assert.isBelow(seconds, 400);
      assert.match(text, /info: still waiting: Qubes puts back what it shows as the last backup/);
      assert.match(text, /warning: Qube Manager may show a backup .*: Qubes does not answer$/m);
    }),
  );
});

describe("a ledger that was changed", () => {
  it.effect("is said by the run that adds to it, with what mends it", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      yield* TestClock.adjust("1 minute"); // for another name
      assert.strictEqual((yield* qbackup(w)).code, 0);
      w.disk.text = w.disk.text.split("\n").slice(1).join("\n");
      yield* TestClock.adjust("1 minute");
      w.said.lines.length = 0;
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 0, text);
      assert.match(text, /^warning: the ledger was changed: lines that do not follow .*: 1$/m);
      assert.match(text, /^hint: .*qbackup ledger rebuild/m);
    }),
  );
});

describe("a running qube that keeps no snapshot", () => {
  const running = (name: string, qid: number) => aQube(name, qid, { state: "Running" });
  it.effect(
    "is left out and named, with what to do; the others are stored, and it is no success",
    () =>
      Effect.gen(function* () {
        const archive = archiveOf({
          seed: 4,
          files: [
            { path: "vm3/private.img", size: 300 },
            { path: "vm4/private.img", size: 400 },
          ],
        });
        const w = world(archive);
        w.table.qubes.splice(1, 3, running("work", 2), running("mail", 3), aQube("vault", 4));
        w.table.unsavable.set("work", "private");
        w.table.unsavable.set("vault", "private"); // which does not run
        const { code, text } = yield* qbackup(w);
        assert.strictEqual(code, 3, text);
        assert.deepStrictEqual(w.script.started[0]!.qubes, ["mail", "vault"]);
        assert.match(text, /^error: \S+\.backup is stored and proven, but without work: /m);
        assert.match(text, /^hint: .*qvm-volume config work:private revisions_to_keep 1$/m);
        assert.strictEqual(w.shelf.committed.size, 1);
        assert.deepStrictEqual(JSON.parse(w.disk.text).qubes, [
          { name: "mail", qid: 3 },
          { name: "vault", qid: 4 },
        ]);
        assert.deepInclude(w.notes.at(-1), {
          urgency: "critical",
          summary: "Backup stored, but not all is well (exit code 3)",
        });
        assert.notInclude(text, "nothing was stored");
        tidy(w);
      }),
  );
  it.effect("is an error before anything starts where it is the only one", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.qubes.splice(1, 1, running("work", 2));
      w.table.unsavable.set("work", "private");
      const { code, text } = yield* qbackup(w, { args: ["-t", "net", "-p", "/p", "work"] });
      assert.strictEqual(code, 3, text);
      assert.match(text, /error: qvm-backup cannot save work while running\nhint: shut it down/);
      assert.strictEqual(w.shelf.calls, 0);
      assert.notInclude(w.table.calls, "start net");
    }),
  );
  it.effect("is nobody's matter where it cannot be asked", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.qubes.splice(1, 1, running("work", 2));
      w.table.fails = (call) => (call.startsWith("unsavable") ? "no qvm-volume" : undefined);
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 0, text);
    }),
  );
});

describe("the last backup that Qubes shows", () => {
  /** As qubesd does at the end of every stream. */
  const calledBackedUp = (w: World) => (at: number) => {
    w.table.qubes.forEach((qube, i) => {
      if ([2, 3, 4].includes(qube.qid)) w.table.qubes[i] = { ...qube, backedUp: at };
    });
  };
  const shown = (w: World) =>
    w.table.qubes.filter(({ qid }) => [2, 3, 4].includes(qid)).map(({ backedUp }) => backedUp);
  const before = (w: World) => {
    w.table.qubes.splice(1, 1, aQube("work", 2, { backedUp: 12 }));
  };
  const withEnd = (archive: Uint8Array = tiny) => {
    const w: World = world(archive, { onDone: () => calledBackedUp(w)(40) });
    before(w);
    return w;
  };

  it.effect("stays as qubesd sets it after a backup that was stored", () =>
    Effect.gen(function* () {
      const w = withEnd();
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 0, text);
      assert.deepStrictEqual(shown(w), [40, 40, 40]);
    }),
  );
  it.effect("is put back when the archive was not whole, or the server refused it", () =>
    Effect.gen(function* () {
      const cut = withEnd(tiny.subarray(0, 112_640));
      assert.strictEqual((yield* qbackup(cut)).code, 6);
      assert.deepStrictEqual(shown(cut), [12, undefined, undefined]);
      const refused = withEnd();
      const stored = () => ({ type: "error", code: "no-space", message: "full" });
      assert.strictEqual((yield* qbackup(refused, { lies: { stored } })).code, 5);
      assert.deepStrictEqual(shown(refused), [12, undefined, undefined]);
    }),
  );
  it.effect("is left alone where qvm-backup never came to its end", () =>
    Effect.gen(function* () {
      const w = withEnd();
      w.table.fails = (call) => (call === "start net" ? "no memory" : undefined);
      yield* qbackup(w);
      assert.isFalse(w.table.calls.some((call) => call.startsWith("backed-up")));
    }),
  );
  it.effect("follows what the next run finds out of a run whose receipt was lost", () =>
    Effect.gen(function* () {
      const w: World = world(tiny, {
        chunks: [{ bytes: tiny, after: "1 minute" }],
        onDone: () => calledBackedUp(w)(61),
      });
      before(w);
      const far = peer(w.shelf, { stored: () => undefined });
      const ended = yield* qbackup(w, {
        far: (i, s) => (w.shelf.committed.size > 0 ? Effect.succeed(4) : far(i, s)),
      });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.match(ended.text, /warning: it may be stored, which the next run asks the server; /);
      assert.deepStrictEqual(shown(w), [12, undefined, undefined]);
      const next = yield* qbackup(w, {
        lies: {
          ready: (r) => (r.type === "stored" ? r : { type: "error", code: "quota", message: "" }),
        },
      });
      assert.strictEqual(next.code, 5);
      assert.match(next.text, /is stored and proven/);
      // The time when it was made.
      for (const at of shown(w)) assert.closeTo(at!, 60, 2);
    }),
  );
  it.effect(
    "of a run that was killed is put back by the next, unless somebody made a backup since",
    () =>
      Effect.gen(function* () {
        for (const [now, expected] of [
          [3, 12],
          [5_000_000, 5_000_000],
        ]) {
          const w = withEnd();
          const kept = yield* qbackup(w, { lies: { mute: "after-trailer" } });
          assert.strictEqual(kept.code, 4, kept.text);
          const unfinished = w.disk.unfinished!;
          assert.deepStrictEqual(unfinished.backedUp?.[0], { name: "work", at: 12 });
          const manifest = JSON.parse(unfinished.submission!.manifest);
          const created = Date.parse(manifest.created) / 1000;
          calledBackedUp(w)(created + now!); // as if it had been killed before it put it back
          const refused = (code: string) => () => ({ type: "error", code, message: "" });
          yield* qbackup(w, {
            lies: { ready: (r, c) => (c === 2 ? r : refused("quota")()) },
          });
          assert.strictEqual(shown(w)[0], expected === 12 ? 12 : created + expected!);
        }
      }),
  );
});

describe("what a failed run means", () => {
  it.effect("is said for each qube, in the notification too", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      const before = new Date(Date.parse(JSON.parse(w.disk.text).finished));
      const two = (n: number) => String(n).padStart(2, "0");
      const date = `${before.getFullYear()}-${two(before.getMonth() + 1)}-${two(before.getDate())} ${two(before.getHours())}:${two(before.getMinutes())}`;
      w.table.qubes.push(aQube("new", 12));
      w.script = qvmBackupScript({ chunks: [], ends: { code: 1, said: ["no"] } });
      const failed = yield* qbackup(w, { args: ["-t", "net", "-p", "/p", "vault", "work", "new"] });
      assert.strictEqual(failed.code, 3, failed.text);
      const means = `nothing was stored; the last proven backup of work, vault is of ${date}; there is no proven backup of new`;
      assert.include(failed.text, `warning: ${means}\n`);
      assert.include(w.notes.at(-1)!.body, means.slice(1));
      // Of a wrong setting too, for the qubes of the last run where none is named.
      assert.strictEqual((yield* qbackup(w, { args: ["-p", "/p"] })).code, 2);
      assert.include(
        w.notes.at(-1)!.body,
        `Nothing was stored; the last proven backup of work, mail, vault is of ${date}`.slice(1),
      );
      assert.strictEqual((yield* qbackup(w, { args: ["-p", "/p", "zzz", "work"] })).code, 2);
      assert.include(w.notes.at(-1)!.body, `nothing was stored; the last proven backup of work is`);
      assert.notInclude(w.notes.at(-1)!.body, "zzz");
      // A self-test is no such run.
      w.disk.text += w.disk.text.replace(/"qubes":\[[^\]]*\],"manifest"/, () => {
        const qubes = JSON.stringify([{ name: "qbackup-selftest", qid: 9 }]);
        return `"qubes":${qubes},"manifest"`;
      });
      assert.strictEqual((yield* qbackup(w, { args: ["-p", "/p"] })).code, 2);
      assert.include(w.notes.at(-1)!.body, "last proven backup of work, mail, vault is of");
      w.disk.text = w.disk.text.split("\n", 1)[0]! + "\n";
      // One that came back damaged, does not decrypt, or was let go, is no backup.
      const session = JSON.parse(w.disk.text).session;
      for (const what of ["failed", "undecryptable", "forgotten"]) {
        w.disk.audits.set(session, { [what]: "2026-01-01T00:00:00Z" });
        w.said.lines.length = 0;
        const worse = yield* qbackup(w, { args: ["-t", "net", "-p", "/p", "vault"] });
        assert.include(worse.text, "nothing was stored; there is no proven backup of vault", what);
      }
    }),
  );
});

describe("qubesd's journal", () => {
  it.effect("that tells of broken pipes is believed more than exit code 0", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.brokenPipes = 872;
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 6, text);
      assert.match(text, /error: qubesd's journal tells of 872 broken pipes/);
      assert.strictEqual(w.shelf.gaveUp, 1);
      nothingProven(w);
    }),
  );
  it.effect("that may not be read is said", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.brokenPipes = undefined;
      const { code, text } = yield* qbackup(w);
      assert.strictEqual(code, 0, text);
      assert.match(text, /info: qubesd's journal may not be read here: .*verify --decrypt/);
    }),
  );
});

describe("a network that is not there yet", () => {
  const nobody = (hint = "check it") => ({
    code: 4,
    said: [
      "qubes.BackupCarrier: | ssh: Could not resolve hostname server: Temporary failure",
      "qubes.BackupCarrier: error: ssh could not connect to server: Could not resolve hostname",
      `qubes.BackupCarrier: hint: ${hint}`,
    ],
  });
  const after = (w: World, calls: number) => {
    const far = peer(w.shelf);
    let called = 0;
    return (i: Invocation["Service"], s: string) =>
      (called += 1) > calls
        ? Effect.map(far(i, s), (code) => ({ code, said: [] }))
        : Effect.succeed(nobody());
  };
  it.effect("is waited for, at the start of a run and where one has left something", () =>
    Effect.gen(function* () {
      const w = world();
      const { code, text } = yield* qbackup(w, { far: after(w, 9) });
      assert.strictEqual(code, 0, text);
      assert.match(text, /warning: no link yet: ssh could not connect to server/);
      const left = world();
      assert.strictEqual((yield* qbackup(left, { lies: { mute: "after-trailer" } })).code, 4);
      const next = yield* qbackup(left, { far: after(left, 9) });
      assert.strictEqual(next.code, 0, next.text);
    }),
  );
  it.effect("for ten minutes, or as long as is asked for; then with one error", () =>
    Effect.gen(function* () {
      for (const [flags, least, most] of [
        [[], 590, 720],
        [["--start-timeout=30"], 1780, 1920],
        [["--start-timeout=0"], 0, 20],
      ] as const) {
        const w = world();
        const { code, seconds, text } = yield* qbackup(w, {
          args: ["-t", "net", "-p", "/p", ...flags, "work", "mail", "vault"],
          far: after(w, Infinity),
        });
        assert.strictEqual(code, 4, text);
        assert.isAtLeast(seconds, least);
        assert.isAtMost(seconds, most);
        assert.lengthOf(w.script.started, 0);
        assert.strictEqual(text.match(/^error:/gm)?.length, 1);
        nothingProven(w);
      }
    }),
  );
});

describe("nothing read back for too long", () => {
  it.effect("is said at the end of a run, whatever that is, and does not change it", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      const args = ["-t", "net", "-p", "/p", "work", "mail", "vault"];
      const at = (days: number) => TestClock.setTime(days * 86_400_000);
      const good = w.script;
      const bad = qvmBackupScript({ chunks: [], ends: { code: 1, said: ["no"] } });
      for (const [script, code] of [
        [good, 0],
        [bad, 3],
      ] as const) {
        w.script = script;
        yield* at(code === 0 ? 30.5 : 31.5);
        w.said.lines.length = 0;
        assert.notMatch(
          (yield* qbackup(w, { args: ["--alarm-after=31", ...args] })).text,
          /read back/,
        );
        yield* at(code === 0 ? 31.1 : 32.1);
        const late = yield* qbackup(w, { args });
        assert.strictEqual(late.code, code, late.text);
        const days = code === 0 ? 31 : 32;
        assert.match(
          late.text,
          new RegExp(`^warning: nothing was read back .* for ${days} days: `, "m"),
        );
        assert.match(late.text, /^hint: qbackup audit -t net; /m);
        const alarm = w.notes.filter(({ summary }) => /not read back/.test(summary)).at(-1);
        assert.deepInclude(alarm, {
          urgency: "critical",
          summary: `Backups were not read back for ${days} days`,
        });
        tidy(w);
      }
      // The books that cannot be read are no reason for another end.
      w.script = good;
      yield* at(40);
      w.disk.fails = (call) => (call === "audits" ? "an input/output error" : undefined);
      const unread = yield* qbackup(w, { args });
      assert.strictEqual(unread.code, 0, unread.text);
      assert.match(unread.text, /^warning: .*input\/output error/m);
    }),
  );
  it.effect("a setting that is no number of days: exit 2 before anything starts", () =>
    Effect.gen(function* () {
      const w = world();
      const args = ["-t", "net", "-p", "/p", "--alarm-after=0", "work"];
      const wrong = yield* qbackup(w, { args });
      assert.strictEqual(wrong.code, 2);
      assert.match(wrong.text, /--alarm-after/);
      assert.lengthOf(w.table.calls, 0);
    }),
  );
});

describe("another run is under way", () => {
  const busy = Effect.fnUntraced(function* (attended: boolean, args: ReadonlyArray<string> = []) {
    const locks: LockTable = new Map();
    const slow = world(tiny, { chunks: [{ bytes: tiny, after: "3 hours" }] });
    const first = yield* Effect.forkChild(
      qbackup(slow, {
        locks,
        within: "10 hours",
        args: ["-t", "net", "-p", "/p", "--qubes-timeout=600", "work", "mail", "vault"],
      }),
    );
    for (let i = 0; i < 50; i++) yield* Effect.yieldNow;
    const w = world();
    const second = yield* Effect.forkChild(
      qbackup(w, {
        locks,
        attended,
        within: "20 hours",
        args: ["-t", "net", "-p", "/p", ...args, "work", "mail", "vault"],
      }),
    );
    const ended = yield* Fiber.join(second);
    yield* Fiber.interrupt(first);
    return { ...ended, w };
  });
  /** `verify --decrypt --newest` beside a run that stores an archive after three hours. */
  const decrypting = Effect.fnUntraced(function* (
    attended: boolean,
    args: ReadonlyArray<string> = [],
  ) {
    const locks: LockTable = new Map();
    const w = world();
    assert.strictEqual((yield* qbackup(w)).code, 0);
    const [before] = [...w.shelf.committed.keys()];
    w.script = qvmBackupScript({ chunks: [{ bytes: tiny, after: "3 hours" }] });
    const first = yield* Effect.forkChild(
      qbackup(w, {
        locks,
        within: "10 hours",
        args: ["-t", "net", "-p", "/p", "--qubes-timeout=600", "work", "mail", "vault"],
      }),
    );
    for (let i = 0; i < 50; i++) yield* Effect.yieldNow;
    const says = ["work", "mail", "vault"].map(
      (name) => `qubesadmin.backup: -> Restoring ${name}...`,
    );
    const restore = qvmRestoreScript({ says: [...says, "qubesadmin.backup: -> Done."] });
    const out: Array<string> = [];
    const ended = yield* qbackup(
      { ...w, said: { lines: [], progress: [] } },
      {
        locks,
        attended,
        restore,
        within: "20 hours",
        args: ["verify", "-t", "net", "-p", "/p", "--decrypt", "--newest", ...args],
        out,
      },
    );
    yield* Fiber.interrupt(first);
    const after = [...w.shelf.committed.keys()].find((name) => name !== before);
    return { ...ended, after, out: out.join(""), tools: restore.started.length };
  });
  it.effect("a decryption that nobody looks at waits, and takes what is the newest then", () =>
    Effect.gen(function* () {
      const { after, code, out, text, tools } = yield* decrypting(false);
      assert.strictEqual(code, 0, text);
      assert.match(text, /info: another run is under way: waiting for it, up to 12 h/);
      assert.match(after ?? "", /backup$/);
      assert.include(out, `${after}: verified, and all of it decrypts\n`);
      assert.strictEqual(tools, 1);
    }),
  );
  it.effect("a person who decrypts is told at once, unless they are to wait", () =>
    Effect.gen(function* () {
      const { code, seconds, text, tools } = yield* decrypting(true);
      assert.deepStrictEqual([code, tools], [7, 0], text);
      assert.isBelow(seconds, 30);
      assert.match(text, /error: another run is under way/);
      const patient = yield* decrypting(true, ["--wait-for=5"]);
      assert.strictEqual(patient.code, 0, patient.text);
      const hasty = yield* decrypting(false, ["--wait-for=0"]);
      assert.strictEqual(hasty.code, 7, hasty.text);
    }),
  );
  it.effect("a person is told at once", () =>
    Effect.gen(function* () {
      const { code, seconds, text, w } = yield* busy(true);
      assert.strictEqual(code, 7, text);
      assert.isBelow(seconds, 30);
      assert.match(text, /error: another run is under way/);
      assert.notInclude(text, "nothing was stored");
      assert.lengthOf(w.table.calls, 0);
    }),
  );
  it.effect(
    "nobody who looks: it waits, and then makes its backup, named by the time that it is",
    () =>
      Effect.gen(function* () {
        const { code, text, w } = yield* busy(false);
        assert.strictEqual(code, 0, text);
        assert.match(text, /info: another run is under way: waiting for it, up to 12 h/);
        const [name] = [...w.shelf.committed.keys()];
        const minutes = Number(name!.slice(11, 13)) * 60 + Number(name!.slice(13, 15));
        const start = new Date(0);
        assert.isAtLeast(minutes - start.getHours() * 60 - start.getMinutes(), 180);
      }),
  );
  it.effect("no longer than is asked for", () =>
    Effect.gen(function* () {
      const { code, text } = yield* busy(false, ["--wait-for=1"]);
      assert.strictEqual(code, 7, text);
      const person = yield* busy(true, ["--wait-for=5"]);
      assert.strictEqual(person.code, 0, person.text);
    }),
  );
});

describe("a program that compresses", () => {
  it.effect("is handed on, if it gives back what it was given", () =>
    Effect.gen(function* () {
      const w = world(tiny, { noFilter: ["cat"] });
      const args = (filter: string) => ["-t", "net", "-p", "/p", `--compress-filter=${filter}`];
      const { code, text } = yield* qbackup(w, { args: args("zstd") });
      assert.strictEqual(code, 0, text);
      assert.strictEqual(w.script.started[0]!.compressFilter, "zstd");
      for (const bad of ["cat", "/bin/zstd", "zstd -19", "-d", ""]) {
        const refused = yield* qbackup(w, { args: args(bad) });
        assert.strictEqual(refused.code, 2, bad);
      }
      assert.lengthOf(w.script.started, 1);
    }),
  );
});

describe("a clock that jumps", () => {
  it.effect.each([8, -8])("by %d hours, while the link is down, changes nothing", (hours) =>
    Effect.gen(function* () {
      const w = world(big, {
        chunks: [
          { bytes: big.subarray(0, 9_000_000) },
          { bytes: big.subarray(9_000_000), after: "1 minute" },
        ],
      });
      let offset = 0;
      const around = <A, E, R>(it: Effect.Effect<A, E, R>) =>
        Effect.flatMap(Clock.Clock, (real) =>
          Effect.provideService(it, Clock.Clock, {
            sleep: (duration) => real.sleep(duration),
            currentTimeMillisUnsafe: () => real.currentTimeMillisUnsafe() + offset,
            currentTimeMillis: Effect.map(real.currentTimeMillis, (now) => now + offset),
            currentTimeNanosUnsafe: () => real.currentTimeNanosUnsafe(),
            currentTimeNanos: real.currentTimeNanos,
            monotonicTimeNanosUnsafe: () => real.monotonicTimeNanosUnsafe(),
            monotonicTimeNanos: real.monotonicTimeNanos,
          }),
        );
      const { code, text } = yield* qbackup(w, {
        around,
        lies: {
          dropAfter: (call) => {
            if (call > 3) return undefined;
            offset = hours * 3_600_000;
            return 2;
          },
        },
      });
      assert.strictEqual(code, 0, text);
      assert.notInclude(text, "error:");
      assert.isTrue([...w.shelf.committed.values()][0]!.bytes.equals(big));
      assert.isAtLeast(w.shelf.calls, 4);
    }),
  );
  it.effect(
    "and a server that did not keep the upload for so long: one error, with what to do",
    () =>
      Effect.gen(function* () {
        const w = world(big);
        const { code, text } = yield* qbackup(w, {
          lies: {
            dropAfter: (c) => (c === 1 ? 3 : undefined),
            ready: (r, c) => (c === 1 ? r : { ...r, offset: 0, running: running([], []) }),
          },
        });
        assert.strictEqual(code, 6, text);
        assert.strictEqual(text.match(/^error:/gm)?.length, 1, text);
        assert.match(
          text,
          /error: the server has no more than 0 bytes of .* that it said were safe/,
        );
        assert.match(text, /hint: .*run again/);
        nothingProven(w);
      }),
  );
});

/** The ticket and the manifest of the archive that was stored last. */
const lastOf = (w: World) => {
  const [ticket] = [...w.shelf.tickets.values()].map((it) => it.ticket);
  const kept = [...w.shelf.committed].at(-1)!;
  return { ticket: ticket!, name: kept[0], manifest: parseManifest(kept[1].manifest)! };
};
const refusing = (code: string, more: object = {}) => ({
  type: "error",
  code,
  message: "",
  ...more,
});

describe("a ticket", () => {
  const asOurs = keyOf("another dom0");

  it.effect("is numbered above all that the server was shown, and its number noted first", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      const first = lastOf(w);
      assert.deepStrictEqual([first.ticket.run, first.manifest.run], [1, 1]);
      assert.strictEqual(first.manifest.series, first.ticket.series);
      assert.strictEqual(first.ticket.base, "-");
      // dom0 was brought back from a copy that is older than its last runs.
      w.disk.runs.clear();
      yield* TestClock.adjust("1 minute"); // for another name
      assert.strictEqual((yield* qbackup(w)).code, 0);
      assert.strictEqual(lastOf(w).manifest.run, 2);
      // Another prefix is another series, of the same qubes.
      const args = ["-t", "net", "-p", "/pass", "-f", "my-", "work", "mail", "vault"];
      assert.strictEqual((yield* qbackup(w, { args })).code, 0);
      const other = lastOf(w).manifest;
      assert.strictEqual(other.run, 1);
      assert.match(other.series, /^my-[0-9a-f]{16}$/);
      assert.strictEqual(other.series.slice(3), first.manifest.series);
      // One was refused as stale: the pinned server was not asked for the highest before.
      assert.strictEqual(w.disk.calls.filter((call) => call.startsWith("run ")).length, 4);

      const full = world();
      full.disk.fails = (call) => (call.startsWith("run ") ? "the disk is full" : undefined);
      const refused = yield* qbackup(full);
      assert.strictEqual(refused.code, 2, refused.text);
      assert.isUndefined(full.shelf.asked.get("put"), refused.text);
      nothingProven(full);
    }),
  );
  it.effect("that the server shows and dom0 did not sign is a lie", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      const { ticket } = [...w.shelf.tickets.values()][0]!;
      const server = keyOf("server").publicKey;
      const own = signingKeyOf(w.disk.secrets!.signing);
      const text = ticketText({ ...ticket, run: 70 }, server);
      // Signed here, but for other backups, or another server.
      const ofOther = ticketText({ ...ticket, series: `x-${ticket.series}`, run: 70 }, server);
      const forOther = ticketText({ ...ticket, run: 70 }, asOurs.publicKey);
      for (const shown of [
        { text, signature: asOurs.sign("ticket", text) },
        { text: "put", signature: asOurs.sign("ticket", "put") },
        { text: ofOther, signature: own.sign("ticket", ofOther) },
        { text: forOther, signature: own.sign("ticket", forOther) },
      ]) {
        // It is asked for the highest only where it is not pinned.
        const pins = [...w.disk.pins];
        w.disk.pins.clear();
        const ended = yield* qbackup(w, { lies: { about: (r) => ({ ...r, ticket: shown }) } });
        assert.strictEqual(ended.code, 6, ended.text);
        assert.match(ended.text, /a ticket that was not signed here/);
        for (const [destination, key] of pins) w.disk.pins.set(destination, key);
        const { signature, text } = shown;
        const stale = refusing("stale", { ticket: text, signature });
        const late = yield* qbackup(w, { lies: { ready: () => stale } });
        assert.strictEqual(late.code, 6, late.text);
        assert.match(late.text, /a ticket that was not signed here/);
      }
      const bare = yield* qbackup(w, { lies: { ready: () => refusing("stale") } });
      assert.strictEqual(bare.code, 6, bare.text);
      assert.match(bare.text, /shows no newer one/);
      assert.strictEqual(w.shelf.committed.size, 1);
    }),
  );
  it.effect("that came too late is followed by one above, but not for ever", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      // Another dom0 with the same key was faster between `about` and `put`.
      w.disk.runs.clear();
      w.disk.pins.clear();
      yield* TestClock.adjust("1 minute"); // for another name
      const forgetful = yield* qbackup(w, { lies: { about: (r) => ({ ...r, ticket: null }) } });
      assert.strictEqual(forgetful.code, 0, forgetful.text);
      assert.strictEqual(lastOf(w).manifest.run, 2);
      const { signature, ticket } = [...w.shelf.tickets.values()][0]!;
      const stale = refusing("stale", {
        ticket: ticketText(ticket, keyOf("server").publicKey),
        signature,
      });
      const before = w.shelf.asked.get("put")!;
      const refused = yield* qbackup(w, { lies: { ready: () => stale } });
      assert.strictEqual(refused.code, 5, refused.text);
      assert.strictEqual(w.shelf.asked.get("put")! - before, 8);
    }),
  );
  it.effect("of a name that is taken is followed by one of another name, once", () =>
    Effect.gen(function* () {
      const w = world();
      const ended = yield* qbackup(w, { lies: { ready: () => refusing("exists") } });
      assert.strictEqual(ended.code, 5, ended.text);
      assert.strictEqual(w.shelf.asked.get("put"), 2);
      assert.match(ended.text, /storing as \d{4}-\d\d-\d\dT\d{4}-[0-9a-f]{6}\.backup$/m);
    }),
  );
  it.effect(
    "of an upload that was removed is followed by one of another, while that loses nothing",
    () =>
      Effect.gen(function* () {
        const gone = refusing("gone", { since: "2026-01-30T04:00:00Z", why: "no room" });
        const w = world(big);
        const ended = yield* qbackup(w, { lies: { ready: (r, c) => (c === 1 ? gone : r) } });
        assert.strictEqual(ended.code, 0, ended.text);
        assert.match(
          ended.text,
          /warning: .*removed this upload on 2026-01-30T04:00:00Z: no room; it begins anew/,
        );
        const late = world(big);
        const lost = yield* qbackup(late, {
          lies: {
            dropAfter: (c) => (c === 1 ? 3 : undefined),
            ready: (r, c) => (c === 1 ? r : gone),
          },
        });
        assert.strictEqual(lost.code, 5, lost.text);
        assert.match(
          lost.text,
          /error: the server removed this upload on 2026-01-30T04:00:00Z: no room/,
        );
        nothingProven(late);
      }),
  );
  it.effect("asks for what the qubes can hold at most, or for the room that there is", () =>
    Effect.gen(function* () {
      const w = world();
      w.table.capacity = 64_000_000;
      assert.strictEqual((yield* qbackup(w)).code, 0);
      const { bytes } = lastOf(w).ticket;
      assert.isAbove(bytes, 3 * 64_000_000);
      assert.isBelow(bytes, 3 * 66_000_000 + 2 ** 27);
      w.shelf.room = 640_000;
      const tight = yield* qbackup(w);
      assert.strictEqual(tight.code, 0, tight.text);
      assert.strictEqual(lastOf(w).ticket.bytes, 630_000);
      // An upload of the series that broke off is in the way: the server removes it for this one.
      w.shelf.room = 10_000;
      yield* TestClock.adjust("1 minute"); // for another name
      const before = w.shelf.asked.get("put")!;
      const freed = yield* qbackup(w, {
        lies: {
          ready: (r) => {
            w.shelf.room = 2 ** 40;
            return r;
          },
        },
      });
      assert.strictEqual(freed.code, 0, freed.text);
      assert.strictEqual(w.shelf.asked.get("put")! - before, 2);
      assert.strictEqual(lastOf(w).ticket.bytes, bytes);
      // Where Qubes does not say, too.
      const unknown = world();
      unknown.table.fails = (call) => (call === "capacity mail" ? "no such volume" : undefined);
      assert.strictEqual((yield* qbackup(unknown)).code, 0);
      assert.isAbove(lastOf(unknown).ticket.bytes, 2 ** 39);
    }),
  );
  it.effect("is for the pinned server without a question, unless its room must be known", () =>
    Effect.gen(function* () {
      const w = world();
      const asked = () => w.shelf.asked.get("about");
      const next = Effect.fnUntraced(function* (...more: ReadonlyArray<string>) {
        yield* TestClock.adjust("1 minute"); // for another name
        const args = ["-t", "net", "-p", "/pass", ...more, "work", "mail", "vault"];
        const ended = yield* qbackup(w, { args });
        assert.strictEqual(ended.code, 0, ended.text);
      });
      yield* next();
      assert.strictEqual(asked(), 1);
      yield* next();
      assert.strictEqual(asked(), 1);
      yield* next("--expect-server", fingerprint(keyOf("server").publicKey));
      assert.strictEqual(asked(), 1);
      w.table.fails = (call) => (call === "capacity mail" ? "no such volume" : undefined);
      yield* next();
      assert.strictEqual(asked(), 2);
    }),
  );
  it.effect("for the pinned server, that may be any program that talks: a link that is none", () =>
    Effect.gen(function* () {
      const w = world();
      const before = "x".repeat(100_000);
      for (const pinned of [false, true]) {
        const ended = yield* qbackup(w, { lies: { before } });
        assert.strictEqual(ended.code, 4, ended.text);
        assert.match(ended.text, /malformed reply: a line of more than 20480 bytes/);
        if (!pinned) assert.strictEqual((yield* qbackup(w)).code, 0);
        yield* TestClock.adjust("1 minute"); // for another name
      }
    }),
  );
  it.effect("waits where other uploads keep the room, as for a server that is busy", () =>
    Effect.gen(function* () {
      const busy = refusing("busy");
      for (const capacity of [64_000_000, undefined]) {
        const w = world();
        if (capacity === undefined) {
          w.table.fails = (call) => (call.startsWith("capacity") ? "no such volume" : undefined);
        } else w.table.capacity = capacity;
        assert.strictEqual((yield* qbackup(w)).code, 0);
        // There is some, but less than the last archive had.
        w.shelf.room = 20_000;
        w.shelf.reserved = 2 ** 40;
        yield* TestClock.adjust("1 minute"); // for another name
        const asked = () => w.shelf.asked.get("about")!;
        const began = asked();
        const freed = yield* qbackup(w, {
          lies: {
            about: (reply) => {
              // The other one comes to its end after some minutes.
              if (asked() - began > 9) w.shelf.room = 2 ** 40;
              return reply;
            },
          },
        });
        assert.strictEqual(freed.code, 0, freed.text);
        assert.match(freed.text, /warning: not yet: other uploads to that server keep its room/);
        // Eight waits, or nine, that sum up to 123 s at least, each a quarter longer or shorter by chance.
        assert.isAbove(freed.seconds, 90);
        // Not for ever, and it is no matter of the link.
        w.shelf.room = 20_000;
        yield* TestClock.adjust("1 minute");
        for (const lies of [{}, { ready: () => busy }] satisfies ReadonlyArray<Lies>) {
          const late = yield* qbackup(w, { lies });
          assert.strictEqual(late.code, 4, late.text);
          assert.isAbove(late.seconds, 590);
          assert.isBelow(late.seconds, 720);
          assert.match(late.text, /^error: (?:other uploads to that server|the server is busy)/m);
          assert.match(late.text, /^hint: run again once those have ended$/m);
          w.shelf.room = 2 ** 40;
        }
        // Where nobody keeps it, waiting would not help.
        w.shelf.room = 0;
        w.shelf.reserved = 0;
        const full = yield* qbackup(w);
        assert.strictEqual(full.code, 5, full.text);
        assert.isBelow(full.seconds, 30);
      }
    }),
  );
  it.effect(
    "an archive that turns out larger than the room there was is given up, and why is said",
    () =>
      Effect.gen(function* () {
        const w = world(big);
        w.table.capacity = 2 ** 40;
        w.shelf.room = 1_300_000;
        const ended = yield* qbackup(w);
        assert.strictEqual(ended.code, 5, ended.text);
        assert.include(
          ended.text,
          "the server has no room for this archive: it is larger than 1.2 MiB",
        );
        assert.notInclude(ended.text, "older than this one");
        assert.strictEqual(w.shelf.gaveUp, 1);
        nothingProven(w);
      }),
  );
  it.effect("changed bytes end the upload for good: the server is told to forget it", () =>
    Effect.gen(function* () {
      const w = world(big);
      const ended = yield* qbackup(w, {
        lies: { ack: (r) => ({ ...r, running: "0".repeat(64) }) },
      });
      assert.strictEqual(ended.code, 6, ended.text);
      assert.strictEqual(w.shelf.gaveUp, 1);
      assert.strictEqual(w.shelf.incoming.size, 0);
    }),
  );
  it.effect("of a killed run is worth nothing once the next run was there", () =>
    Effect.gen(function* () {
      const w = world();
      const ended = yield* qbackup(w, { lies: { mute: "after-trailer" } });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.strictEqual(w.disk.unfinished!.ticket!.run, 1);
      let asked = 0;
      const next = yield* qbackup(w, {
        lies: { ready: (r) => ((asked += 1) === 3 ? refusing("no-directory") : r) },
      });
      assert.strictEqual(next.code, 5, next.text);
      assert.match(next.text, /was not stored/);
      assert.strictEqual(w.shelf.gaveUp, 1);
      // Given up under a later number: a carrier that kept the trailer back can do nothing with it.
      assert.strictEqual([...w.shelf.tickets.values()][0]!.ticket.run, 2);
      assert.isUndefined(w.disk.unfinished);
    }),
  );
  it.effect(
    "that the server takes no more leaves open what became of it, and later runs go on",
    () =>
      Effect.gen(function* () {
        const w = world();
        yield* qbackup(w, { lies: { mute: "after-trailer" } });
        let asked = 0;
        const next = yield* qbackup(w, {
          lies: { ready: (r) => ((asked += 1) === 1 ? refusing("signature") : r) },
        });
        assert.strictEqual(next.code, 0, next.text);
        assert.match(next.text, /is stored is not known: the server refused \(signature\)/);
        assert.match(next.text, /qbackup ledger rebuild/);
      }),
  );
});

describe("a server that is expected", () => {
  const right = fingerprint(keyOf("server").publicKey);
  const run = (w: World, expected: string) =>
    qbackup(w, {
      args: ["-t", "net", "-p", "/pass", "--expect-server", expected, "work", "mail", "vault"],
    });
  it.effect("is the only one that is sent anything", () =>
    Effect.gen(function* () {
      const w = world();
      const good = yield* run(w, right.toUpperCase());
      assert.strictEqual(good.code, 0, good.text);
      assert.notMatch(good.text, /new here/);
      const other = world();
      const wrong = yield* run(other, `0${right.slice(1)}`);
      assert.strictEqual(wrong.code, 6, wrong.text);
      assert.match(wrong.text, new RegExp(`fingerprint is ${right}, and 0`));
      assert.isUndefined(other.shelf.asked.get("put"));
      nothingProven(other);
      const none = world();
      const slip = yield* run(none, right.slice(1));
      assert.strictEqual(slip.code, 2, slip.text);
      assert.strictEqual(none.shelf.calls, 0);
    }),
  );
});

describe("the next archive", () => {
  const promised = Effect.fnUntraced(function* (text: string, settings = {}) {
    const w = world();
    const given = text === "" ? [] : ["--expect-every", text];
    const args = ["-t", "net", "-p", "/pass", ...given, "work", "mail", "vault"];
    const ended = yield* qbackup(w, { args, settings });
    return { ...ended, shelf: w.shelf, last: w.shelf.committed.size > 0 ? lastOf(w) : undefined };
  });
  it.effect.each([
    ["36h", 36],
    ["8d", 192],
    ["2w", 336],
  ] as const)("is promised within %s", ([text, hours]) =>
    Effect.gen(function* () {
      const { code, last, text: said } = yield* promised(text);
      assert.strictEqual(code, 0, said);
      const { created, next } = last!.manifest;
      assert.strictEqual(Date.parse(next!) - Date.parse(created), hours * 3_600_000);
    }),
  );
  it.effect("is promised by a setting, and by no other word", () =>
    Effect.gen(function* () {
      const { last } = yield* promised("", { QBKP_EXPECT_EVERY: "1d" });
      assert.isNotNull(last!.manifest.next);
      for (const wrong of ["1", "0h", "d", "1m", "99999h", "1d "]) {
        const { code, shelf, text } = yield* promised(wrong);
        assert.strictEqual(code, 2, text);
        assert.match(text, /error: --expect-every takes hours, days or weeks/);
        assert.strictEqual(shelf.calls, 0);
        // Whoever gave no flag looks in the settings.
        const setting = yield* promised("", { QBKP_EXPECT_EVERY: wrong });
        assert.strictEqual(setting.code, 2, setting.text);
        assert.match(setting.text, /error: QBKP_EXPECT_EVERY takes hours, days or weeks/);
      }
    }),
  );
});

describe("a link that drips", () => {
  /** So many KiB a second are read, with a sign of life now and then. */
  const slowly = (w: World, rate: number): Parameters<typeof inProcessQrexec>[0] => {
    const far = peer(w.shelf);
    return (invocation, service) => {
      if (!service.endsWith("+put")) return far(invocation, service);
      const { stdin, stdout } = invocation;
      const read: typeof stdin.read = (into, atLeast) =>
        Effect.tap(stdin.read(into, atLeast), (n) =>
          n < 1024 ? Effect.void : Effect.sleep(`${Math.ceil(n / 1.024 / rate)} millis`),
        );
      const alive = stdout
        .write(Buffer.from('{"type":"alive"}\n'))
        .pipe(
          Effect.delay("20 seconds"),
          Effect.forever,
          Effect.ignore,
          Effect.andThen(Effect.never),
        );
      return Effect.raceFirst(far({ ...invocation, stdin: { ...stdin, read } }, service), alive);
    };
  };
  const large = archiveOf({
    seed: 2,
    files: [
      { path: "vm2/private.img", size: 60_000_000 },
      { path: "vm3/private.img", size: 300 },
      { path: "vm4/private.img", size: 300 },
    ],
  });
  const args = ["-t", "net", "-p", "/pass", "--link-timeout", "30"];
  const qubes = ["work", "mail", "vault"];
  it.effect("below the floor for an hour is given up, unless it is meant to", () =>
    Effect.gen(function* () {
      const w = world(large);
      const ended = yield* qbackup(w, {
        far: slowly(w, 6),
        args: [...args, ...qubes],
        within: "3 hours",
      });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.match(
        ended.text,
        /in an hour of waiting less than 8 KiB\/s got through: \d+ bytes are safe/,
      );
      assert.isBelow(ended.seconds, 2 * 3600 + 60);
      nothingProven(w);
      const meant = world(large);
      const done = yield* qbackup(meant, {
        far: slowly(meant, 6),
        args: [...args, "--floor", "4", ...qubes],
        within: "4 hours",
      });
      assert.strictEqual(done.code, 0, done.text);
    }),
  );
  it.effect("that takes more than a day is told of", () =>
    Effect.gen(function* () {
      const w = world();
      // Whatever it is that takes so long.
      w.table.takes = (call) => (call === "start net" ? "25 hours" : 0);
      const { code, text } = yield* qbackup(w, { within: "26 hours" });
      assert.strictEqual(code, 0, text);
      assert.match(
        text,
        /^warning: the backup through net: still not done after 24 h; 0 B are safe/m,
      );
      assert.deepStrictEqual(
        w.notes.map(({ urgency }) => urgency),
        ["low", "critical", "normal"],
      );
    }),
  );
});

describe("a disk in dom0 that is full", () => {
  it.effect("at the start is an error; later it stops neither the trailer nor the receipt", () =>
    Effect.gen(function* () {
      const full = world();
      full.disk.fails = (call) => (call === "reserve" ? "the disk is full" : undefined);
      const refused = yield* qbackup(full);
      assert.strictEqual(refused.code, 2, refused.text);
      assert.strictEqual(full.shelf.calls, 0);
      assert.notInclude(full.table.calls, "start net");

      const w = world();
      w.disk.fails = (call) =>
        call === "mark" && w.disk.unfinished !== undefined ? "the disk is full" : undefined;
      const ended = yield* qbackup(w);
      assert.strictEqual(ended.code, 0, ended.text);
      assert.match(ended.text, /warning: could not mark: the disk is full; the backup goes on/);
      assert.lengthOf(w.disk.text.trim().split("\n"), 1);

      const worse = world();
      worse.disk.fails = (call) =>
        (call === "mark" && worse.disk.unfinished !== undefined) || call.startsWith("append")
          ? "the disk is full"
          : undefined;
      const lost = yield* qbackup(worse);
      assert.strictEqual(lost.code, 2, lost.text);
      assert.match(lost.text, /error: the archive \S+ is stored, but could not .*the disk is full/);
      assert.match(lost.text, /hint: .*qbackup ledger rebuild/);
      assert.strictEqual(worse.shelf.committed.size, 1);
    }),
  );
  it.effect(
    "books that cannot be read or written once it is stored: said with that, and what to do",
    () =>
      Effect.gen(function* () {
        for (const call of ["entries", "pinned net", "pin net"]) {
          const w = world();
          w.disk.fails = (one) =>
            one === call && w.shelf.committed.size > 0 ? "an input/output error" : undefined;
          const ended = yield* qbackup(w);
          assert.strictEqual(ended.code, 2, ended.text);
          assert.match(
            ended.text,
            /error: the archive \S+ is stored, but could not .*output error$/m,
          );
          assert.match(ended.text, /hint: put that right and run again: the next run fetches/);
        }
      }),
  );
  it.effect("and a link that broke at the end: what was not noted, no run will ask", () =>
    Effect.gen(function* () {
      const w = world();
      w.disk.fails = (call) =>
        call === "mark" && w.disk.unfinished !== undefined ? "the disk is full" : undefined;
      const ended = yield* qbackup(w, { lies: { mute: "after-trailer" } });
      assert.strictEqual(ended.code, 4, ended.text);
      assert.match(ended.text, /warning: it may be stored: qbackup list shows it then, and/);
    }),
  );
});

describe("what is shown of a run", () => {
  it.effect("something at once, and what it waits for, while the clock goes on", () =>
    Effect.gen(function* () {
      const w = world(big, { chunks: [{ bytes: big, after: "20 seconds", percent: 50 }] });
      w.table.takes = (call) => (call === "start net" ? "30 seconds" : 0);
      const { code, text } = yield* qbackup(w, { lies: { mute: "after-trailer" } });
      assert.strictEqual(code, 4, text);
      const waits = w.said.progress.map((now): string => now.waits ?? "");
      assert.strictEqual(waits[0], "looking at the qubes");
      const order = waits.filter((it, i) => it !== waits[i - 1]);
      assert.deepStrictEqual(order.slice(0, 2), [
        "looking at the qubes",
        "waiting for net to start",
      ]);
      assert.include(order, "waiting for qvm-backup");
      // Half an hour of silence, of which each second is shown.
      assert.include(order, "waiting for the server's receipt");
      const silent = waits.slice(waits.indexOf("waiting for the server's receipt"));
      assert.isAbove(silent.length, 1700);
    }),
  );
  it.effect("that the link is down", () =>
    Effect.gen(function* () {
      const w = world(big);
      const far = peer(w.shelf, { dropAfter: (call) => (call === 1 ? 1 : undefined) });
      let calls = 0;
      const { code, text } = yield* qbackup(w, {
        far: (i, s) => ((calls += 1) > 2 && calls < 7 ? Effect.succeed(4) : far(i, s)),
      });
      assert.strictEqual(code, 0, text);
      assert.isTrue(w.said.progress.some(({ waits }) => waits === "waiting for the link"));
    }),
  );
});

it.effect("a bug is told like any other failure: exit 1, journal, notification", () =>
  Effect.gen(function* () {
    const w = world();
    w.table.fails = (call) => {
      if (call === "scratch") throw new Error("unforeseen");
      return undefined;
    };
    const ended = yield* qbackup(w);
    assert.strictEqual(ended.code, 1, ended.text);
    assert.match(ended.text, /error: a bug in qbackup: .*unforeseen/);
    nothingProven(w);
  }),
);

describe("list", () => {
  it.effect("holds the server against the ledger", () =>
    Effect.gen(function* () {
      const w = world();
      assert.strictEqual((yield* qbackup(w)).code, 0);
      const name = [...w.shelf.committed.keys()][0]!;
      const list = Effect.fnUntraced(function* (...args: ReadonlyArray<string>) {
        const out: Array<string> = [];
        const { code, text } = yield* qbackup(w, { args: ["list", "-t", "net", ...args], out });
        return { code, text, out: out.join("") };
      });
      const good = yield* list("--json");
      assert.strictEqual(good.code, 0, good.text);
      assert.containsSubset(JSON.parse(good.out), [
        { name, proof: "receipt", qubes: ["work", "mail", "vault"] },
      ]);
      assert.match(
        (yield* list()).out,
        new RegExp(`^NAME.*\n${name} .* receipt +- +work mail vault\n$`),
      );
      w.shelf.committed.delete(name);
      const missing = yield* list("--json");
      assert.strictEqual(missing.code, 6);
      assert.deepStrictEqual(
        JSON.parse(missing.out).map((row: { proof: string }) => row.proof),
        ["missing"],
      );
      tidy(w);
    }),
  );
});
