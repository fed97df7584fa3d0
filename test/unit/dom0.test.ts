/** The job in dom0 against a far side that is honest, broken or hostile, on a clock of its own. */
import { NodeServices } from "@effect/platform-node";
import { assert, describe, it } from "@effect/vitest";
import { Duration, Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import * as fs from "node:fs";
import { type LedgerDisk, ledgerDisk, memoryLedger } from "#layers/MemoryLedger";
import { memoryLocks } from "#layers/MemoryLocks";
import { memoryNotifier, type Notification } from "#layers/MemoryNotifier";
import { inProcessQrexec, memoryPipe } from "#layers/MemoryPipe";
import { aQube, memoryQubes, type QubesTable, qubesTable } from "#layers/MemoryQubes";
import { memoryQvmBackup, qvmBackupScript, type QvmBackupScript } from "#layers/MemoryQvmBackup";
import { memoryReporter, type Said } from "#layers/MemoryReporter";
import { memorySettings } from "#layers/MemorySettings";
import { Invocation } from "#services/Invocation";
import { QvmRestore } from "#services/QvmRestore";
import { dom0 } from "#src/dom0/main";
import { parseManifest } from "#src/wire/manifest";
import { keyOf, type Lies, peer, type Shelf, shelf, treeHash } from "#test/support/peer";
import { archiveOf } from "#test/support/archive";

const tiny = fs.readFileSync(
  new URL("../fixtures/sample-tiny-lowcost.qubes-backup", import.meta.url),
);
const qubes = [
  aQube("work", 2),
  aQube("mail", 3),
  aQube("vault", 4),
  aQube("net", 9, { included: false }),
];

interface World {
  readonly said: Said;
  readonly notes: Array<Notification>;
  readonly disk: LedgerDisk;
  readonly table: QubesTable;
  readonly script: QvmBackupScript;
  readonly shelf: Shelf;
}
const world = (archive: Uint8Array = tiny, script: Partial<QvmBackupScript> = {}): World => ({
  said: { lines: [], progress: [] },
  notes: [],
  disk: ledgerDisk(),
  table: qubesTable(qubes),
  script: qvmBackupScript({ chunks: [{ bytes: archive, percent: 100 }], ...script }),
  shelf: shelf(),
});

let sessions = 0;
/** Runs `qbackup ARGS` in the world; the clock goes as fast as it can, until it ends. */
const qbackup = Effect.fnUntraced(function* (
  w: World,
  options: {
    readonly lies?: Lies;
    readonly args?: ReadonlyArray<string>;
    readonly far?: Parameters<typeof inProcessQrexec>[0];
    /** Simulated time after which the run has to have ended. */
    readonly within?: Duration.Input;
    readonly out?: Array<string>;
  } = {},
) {
  const role = dom0.pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args: options.args ?? ["-t", "net", "-p", "/pass", "work", "mail", "vault"],
          env: {},
          stdin: { read: () => Effect.die("stdin is read"), received: () => 0 },
          stdout: {
            write: (b) => Effect.sync(() => void options.out?.push(Buffer.from(b).toString())),
            end: Effect.void,
          },
          entropy: (n) => new Uint8Array(n).fill((sessions += 1) % 256),
        }),
        memoryReporter(w.said),
        memoryNotifier(w.notes),
        memoryLedger(w.disk),
        memoryQubes(w.table),
        memoryQvmBackup(w.script),
        Layer.mock(QvmRestore, {}),
        memoryLocks(),
        memorySettings({}),
        inProcessQrexec(
          options.far ?? peer(w.shelf, options.lies),
          Effect.sync(() => ({ up: memoryPipe(), down: memoryPipe() })),
        ),
        NodeServices.layer,
      ),
    ),
  );
  const fiber = yield* Effect.forkChild(role);
  const limit = Duration.toMillis(Duration.fromInputUnsafe(options.within ?? "2 hours"));
  let at = 0;
  while (fiber.pollUnsafe() === undefined && at <= limit) {
    const step = at < 60_000 ? 500 : 5_000;
    yield* TestClock.adjust(step);
    at += step;
  }
  assert.isDefined(fiber.pollUnsafe(), `did not end within ${limit / 1000} s of simulated time`);
  const code = yield* Fiber.join(fiber);
  const text = w.said.lines.map(({ level, text }) => `${level}: ${text}`).join("\n");
  // Whatever went wrong, the last words say what to do next.
  if (code > 0 && code < 128) assert.match(text, /^error: .*\nhint: .*$/m);
  return { code, seconds: at / 1000, text };
});

/** What must be true after every run that did not end well. */
const nothingProven = (w: World) => {
  assert.strictEqual(w.disk.text, "");
  assert.strictEqual(w.notes.at(-1)?.urgency, "critical");
  tidy(w);
};
const tidy = (w: World) => {
  const state = w.table.qubes.find((q) => q.name === "net")!.state;
  assert.strictEqual(state, "Halted", "the destination qube still runs");
  assert.isTrue(w.said.lines.every(({ text }) => /^[\x20-\x7e]*$/.test(text)));
};

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
      assert.strictEqual(manifest.treehash, treeHash(tiny));
      assert.strictEqual(manifest.members.length, 6);
      assert.isUndefined(w.disk.unfinished);
      assert.deepStrictEqual(
        w.notes.map((n) => n.urgency),
        ["low", "normal"],
      );
      assert.deepStrictEqual(w.script.started, [
        { qubes: ["work", "mail", "vault"], passphraseFile: "/pass" },
      ]);
      assert.match(text, /first contact: pinned the server behind net, qbackup:/);
      assert.match(text, /a restore will need/);
      tidy(w);
      // The second time nobody is met for the first time, and the name is taken.
      const again = yield* qbackup(w);
      assert.strictEqual(again.code, 0, again.text);
      assert.strictEqual(w.shelf.committed.size, 2);
      assert.strictEqual(again.text.match(/first contact/g)?.length, 1);
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
    { ack: (n) => ({ type: "ack", offset: n + 64 * 1_048_576 }) },
    6,
    /bytes, but/,
  );
  lie(
    "an acknowledgement that goes back",
    { ack: (n) => ({ type: "ack", offset: n > 1_048_576 ? n - 1_048_576 * 2 : n }) },
    6,
    /bytes, but/,
  );
  lie(
    "stored before the end",
    {
      onBlock: (n) =>
        n === 2 ? { type: "stored", receipt: "{}", signature: other.sign("{}") } : undefined,
    },
    6,
    /stored where that has no place/,
  );
  lie(
    "stored at the beginning",
    { ready: () => ({ type: "stored", receipt: "{}", signature: other.sign("{}") }) },
    6,
    /began with stored/,
  );
  lie(
    "a receipt by another key",
    { stored: (r) => ({ ...r, signature: other.sign(r.receipt) }) },
    6,
    /not signed by the pinned server/,
  );
  lie(
    "a receipt for another size",
    {
      stored: (r, k) => {
        const receipt = r.receipt.replace(/"size":\d+/, '"size":10240');
        return { ...r, receipt, signature: k.sign(receipt) };
      },
    },
    6,
    /its size differs/,
  );
  lie(
    "a receipt for other bytes",
    {
      stored: (r, k) => {
        const receipt = r.receipt.replace(/"treehash":"../, '"treehash":"00');
        return { ...r, receipt, signature: k.sign(receipt) };
      },
    },
    6,
    /its treehash differs/,
  );
  lie(
    "a receipt for another manifest",
    {
      stored: (r, k) => {
        const receipt = r.receipt.replace(/"manifest":"../, '"manifest":"zz'.replace("zz", "00"));
        return { ...r, receipt, signature: k.sign(receipt) };
      },
    },
    6,
    /its manifest differs/,
  );
  lie(
    "a receipt that is none",
    { stored: (_, k) => ({ type: "stored", receipt: "[]", signature: k.sign("[]") }) },
    6,
    /not readable/,
  );
  lie(
    "another key after a broken link",
    {
      dropAfter: (c) => (c === 1 ? 3 : undefined),
      ready: (r, c) => (c > 1 ? { ...r, server: other.server } : r),
    },
    6,
    /key changed in the middle/,
  );
  lie("a key that is none", { ready: (r) => ({ ...r, server: "x" }) }, 4, /./);
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
    { ack: () => undefined, dropAfter: () => 1, ready: (r) => ({ ...r, offset: 0 }) },
    4,
    /no progress for 30 minutes/,
  );
  lie(
    "ready twice",
    { onBlock: (n) => (n === 1 ? { type: "ready", offset: 0, server: other.server } : undefined) },
    6,
    /ready where that has no place/,
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
        /error: the server's key changed: it was qbackup:.*, now it is qbackup:/,
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
          ready: (r) => ({ ...r, server: other.server }),
          stored: () => ({ type: "error", code: "signature", message: "for another server" }),
        },
      });
      // The true server has kept nothing that was meant for another one.
      w.shelf.committed.clear();
      assert.strictEqual(ended.code, 6, ended.text);
      assert.match(ended.text, /new here shows qbackup:/);
      assert.notMatch(ended.text, /first contact/);
      assert.strictEqual(w.disk.pins.size, 0);
      nothingProven(w);
      const next = yield* qbackup(w);
      assert.strictEqual(next.code, 0, next.text);
      assert.strictEqual(w.disk.pins.get("net"), keyOf("server").server);
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
          lies: {
            stored: () => undefined,
            ready: (r, c) => (c > 1 ? undefined : r),
            mute: undefined as never,
          },
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
      assert.match(ended.text, /the archive is stored, but .*no space left/);
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
      tidy(w);
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
        { name, proof: "proven", qubes: ["work", "mail", "vault"] },
      ]);
      assert.match(
        (yield* list()).out,
        new RegExp(`^NAME.*\n${name} .* proven +- +work mail vault\n$`),
      );
      const kept = w.shelf.committed.get(name)!;
      w.shelf.committed.set("other.backup", kept);
      w.shelf.committed.set(name, { ...kept, bytes: kept.bytes.subarray(512) });
      const changed = yield* list("--json");
      assert.strictEqual(changed.code, 6);
      assert.deepStrictEqual(
        JSON.parse(changed.out).map((row: { proof: string }) => row.proof),
        ["changed", "unverified"],
      );
      w.shelf.committed.delete(name);
      const missing = yield* list("--json");
      assert.strictEqual(missing.code, 6);
      assert.deepStrictEqual(
        JSON.parse(missing.out).map((row: { proof: string }) => row.proof),
        ["missing", "unverified"],
      );
      tidy(w);
    }),
  );
});
