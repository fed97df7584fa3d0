/** An upload into a store, from its ticket to its receipt: on a disk in memory and on a real one. */
import { afterAll, assert, describe, it } from "@effect/vitest";
import { Clock, Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { Disk, memorySafeFs, type Operation } from "#layers/memory/MemorySafeFs";
import { nodeSafeFs } from "#layers/files/NodeSafeFs";
import { unixLocks } from "#layers/files/UnixLocks";
import { SafeFs } from "#services/SafeFs";
import { privateKeyPem } from "#src/proof/keys";
import { giveUpFrame, keepAliveFrame, lengthPrefix } from "#src/wire/frames";
import { blockSize, uploadLimit } from "#src/wire/limits";
import type { Reply } from "#src/wire/request";
import { archiveOf, memberOf } from "#test/support/archive";
import {
  cell,
  first,
  firstLines,
  firstNight,
  header,
  inOrder,
  second,
  secondLines,
  secondNight,
  slot,
} from "#test/support/nights";
import { rng } from "#test/support/random";
import {
  fingerprintOf,
  framed,
  holds,
  keepAlive,
  membersOf,
  sha256,
  textOf,
  ticketText,
} from "#test/support/reference";
import {
  ask,
  blocksOf,
  codeOf,
  commandFor,
  dom0,
  framesOf,
  listed,
  type ManifestFields,
  medium,
  memoryWorld,
  open,
  otherDom0,
  type Put,
  putCommand,
  receiptOf,
  run,
  series,
  serverKey,
  sessionOf,
  smallChunk,
  start,
  streamOf,
  tableFor,
  ticketFor,
  trailerOf,
  type Upload,
  upload,
  wholeOf,
  type World,
  worldOf,
  kept,
  leftovers,
  nth,
} from "#test/support/shell";

const base = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-put-"));
afterAll(() => fs.rmSync(base, { recursive: true, force: true }));
const realRoot = () => fs.mkdtempSync(path.join(base, "store-"));
const realWorld = (): World => worldOf(Layer.mergeAll(nodeSafeFs, unixLocks));

/** Ten chunks and a bit, in about 0.7 MiB. */
const small = archiveOf({
  seed: 1,
  chunk: smallChunk,
  files: [
    { path: "vm1/private.img", size: 400_000 },
    { path: "vm2/root.img", size: 100_000 },
  ],
});
/** Members of several blocks each. */
const wide = archiveOf({
  seed: 3,
  chunk: 2_500_000,
  files: [{ path: "vm1/private.img", size: 6_000_000 }],
});
const wideWorld = (disk = new Disk()): World => ({ ...memoryWorld(disk), fullChunk: 2_500_128 });
const sample = (name: string) =>
  fs.readFileSync(new URL(`../fixtures/${name}.qubes-backup`, import.meta.url));

const incoming = (n: number) => `.qbackup/incoming/${sessionOf(n)}`;
/** The bytes of an upload that is under way, or undefined. */
const come = (disk: Disk, n = 1) => disk.bytes(incoming(n));
/** How many bytes of a stream are the first `n` frames of a pack. */
const upTo = (pack: Buffer, n: number) =>
  blocksOf(pack)
    .slice(0, n)
    .reduce((sum, block) => sum + 4 + block.length, 0);
const offsetOf = (pack: Buffer, n: number) => upTo(pack, n) - 4 * n;

type Error = Extract<Reply<"put">, { type: "error" }>;
const errorOf = (said: ReadonlyArray<Reply<"put">>): Error => {
  const last = said.at(-1);
  if (last?.type !== "error") throw new Error(`no error: ${JSON.stringify(last)}`);
  return last;
};

describe("a put", () => {
  const stores = (what: string, world: () => World, args: () => ReadonlyArray<string>) =>
    it.live(`stores, proves and lists: ${what}`, () =>
      Effect.gen(function* () {
        const w = world();
        const a = args();
        const server = yield* serverKey(w, a);
        const { code, offset, replies } = yield* upload(w, { archive: medium, args: a });
        assert.deepStrictEqual([code, offset], [0, 0]);
        const stored = replies.at(-1);
        if (stored?.type !== "stored") return assert.fail("no receipt");
        assert.isTrue(holds(server, "receipt", stored.receipt, stored.signature));
        const record = yield* ask(w, "manifest", ["a.backup"], a);
        const signed = record.replies[0];
        if (signed?.type !== "manifest") return assert.fail("no record");
        assert.isTrue(holds(dom0.publicKey, "manifest", signed.manifest, signed.signature));
        const receipt = JSON.parse(stored.receipt);
        const { members, root, size } = wholeOf(tableFor(medium), "qvm-backup");
        assert.match(receipt.stored, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
        assert.strictEqual(
          stored.receipt,
          textOf("receipt", {
            name: "a.backup",
            session: sessionOf(1),
            members,
            root,
            size,
            manifest: sha256(signed.manifest).toString("hex"),
            stored: receipt.stored,
          }),
        );
        assert.deepStrictEqual(
          [signed.receipt, signed.receiptSignature],
          [stored.receipt, stored.signature],
        );
        const { archives } = yield* listed(w, "", a);
        assert.deepStrictEqual(
          archives.map(({ name, root: of }) => [name, of]),
          [["a.backup", root]],
        );
        assert.deepStrictEqual(w.said.lines, []);

        // The same again, however late and under whichever name it is asked for.
        for (const put of [{}, { time: 0 }, { run: 9, name: "b.backup" }, { run: 0 }]) {
          const again = yield* upload(w, { archive: medium, args: a, ...put });
          assert.deepStrictEqual([again.code, again.replies], [0, [stored]]);
        }
        const other = yield* upload(w, { archive: medium, args: a, session: sessionOf(2), run: 2 });
        assert.deepStrictEqual([other.code, codeOf(other.replies)], [5, "exists"]);
      }),
    );
  stores("in memory", memoryWorld, () => []);
  stores("on a real disk", realWorld, () => ["--root", realRoot()]);

  it.live("leaves on a real disk what the store is said to have", () =>
    Effect.gen(function* () {
      const root = realRoot();
      fs.mkdirSync(path.join(root, "sub"));
      const args = ["--root", root];
      yield* upload(realWorld(), { archive: small, name: "sub/x.backup", args });
      const at = (name: string) => path.join(root, name);
      const mode = (name: string) => (fs.statSync(at(name)).mode & 0o7777).toString(8);
      const own = (directory: string) => fs.readdirSync(at(`.qbackup/${directory}`));
      assert.deepStrictEqual(fs.readdirSync(at("sub")).toSorted(), [
        "x.backup",
        "x.backup.manifest.json",
      ]);
      assert.isTrue(fs.readFileSync(at("sub/x.backup")).equals(small));
      const session = sessionOf(1);
      assert.deepStrictEqual(
        [
          "sub/x.backup",
          "sub/x.backup.manifest.json",
          ".qbackup",
          ".qbackup/packs",
          ".qbackup/identity",
          ".qbackup/signers",
          `.qbackup/packs/${session}`,
          `.qbackup/tables/${session}`,
        ].map(mode),
        ["600", "440", "700", "700", "600", "600", "600", "600"],
      );
      for (const directory of ["packs", "digests", "tables", "recipes"]) {
        assert.deepStrictEqual(own(directory), [session], directory);
      }
      for (const directory of ["incoming", "held", "gone"]) assert.isEmpty(own(directory));
      const ino = (name: string) => fs.statSync(at(name)).ino;
      assert.strictEqual(ino("sub/x.backup"), ino(`.qbackup/packs/${session}`));
      assert.strictEqual(
        ino("sub/x.backup.manifest.json"),
        ino(`.qbackup/records/${session}.manifest.json`),
      );
      const text = (name: string) => fs.readFileSync(at(`.qbackup/${name}`), "utf8");
      assert.strictEqual(text(`tables/${session}`), tableFor(small).join(""));
      assert.strictEqual(text(`recipes/${session}`), `${session} 0 ${tableFor(small).length}\n`);
      assert.strictEqual(text("signers"), `${dom0.publicKey}\n`);
      assert.strictEqual(
        sha256(fs.readFileSync(at(`.qbackup/digests/${session}`))).toString("hex"),
        sha256(...blocksOf(small).map((block) => sha256(block))).toString("hex"),
      );
    }),
  );

  it.effect.each([
    ["sample-tiny-lowcost", undefined],
    ["sample-multichunk-lowcost", 65_664],
  ] as const)("takes the genuine %s", ([name, fullChunk]) =>
    Effect.gen(function* () {
      const world = { ...memoryWorld(), ...(fullChunk === undefined ? {} : { fullChunk }) };
      const { code } = yield* upload(world, { archive: sample(name) });
      assert.strictEqual(code, 0);
    }),
  );

  it.effect("goes on where it was cut, wherever that was", () =>
    Effect.gen(function* () {
      for (let seed = 1; seed <= 16; seed++) {
        const random = rng(seed);
        const disk = new Disk();
        const [archive, world] =
          seed % 2 === 0 ? [medium, memoryWorld(disk)] : [wide, wideWorld(disk)];
        const ends = blocksOf(archive).map((_, i) => offsetOf(archive, i + 1));
        const put: Upload = { archive, bytes: archive.length };
        let durable = 0;
        for (let tries = 0; ; tries++) {
          const cut = tries < 6 && random.next() < 0.8;
          const cutAt = random.int(0, archive.length - durable + 400);
          const { code, offset, replies } = yield* upload(world, {
            ...put,
            ...(cut ? { cutAt } : {}),
          });
          if (codeOf(replies) === "stored") {
            assert.strictEqual(code, 0);
            break;
          }
          assert.isTrue(cut, `seed ${seed}`);
          assert.strictEqual(code, 4);
          assert.strictEqual(offset, durable, `seed ${seed}`);
          // Everything whole that came before the cut is kept: it was flushed.
          let left = cutAt;
          for (const end of ends.filter((one) => one > offset!)) {
            left -= 4 + end - durable;
            if (left < 0) break;
            durable = end;
          }
        }
        assert.isTrue(disk.bytes("a.backup")!.equals(archive), `seed ${seed}`);
        assert.strictEqual(
          disk.bytes(`.qbackup/tables/${sessionOf(1)}`)!.toString(),
          tableFor(archive).join(""),
        );
      }
    }),
  );

  it.effect("acknowledges after two seconds, and again only what is new", () =>
    Effect.gen(function* () {
      const client = yield* open(wideWorld(), { bytes: wide.length });
      assert.deepInclude(yield* client.next, { type: "ready", offset: 0 });
      const blocks = blocksOf(wide);
      const send = (n: number) => client.stdin.write(framed(blocks[n]!));
      yield* send(0);
      yield* TestClock.adjust("1 second");
      const waiting = yield* Effect.forkChild(client.next);
      yield* Effect.yieldNow;
      assert.isUndefined(waiting.pollUnsafe());
      yield* TestClock.adjust("1 second");
      assert.deepInclude(yield* Fiber.join(waiting), { type: "ack", offset: offsetOf(wide, 1) });
      yield* send(1);
      yield* send(2);
      yield* TestClock.adjust("2 seconds");
      assert.deepInclude(yield* client.next, { type: "ack", offset: offsetOf(wide, 3) });
    }).pipe(Effect.scoped),
  );

  it.effect("acknowledges every 8 MiB without waiting", () =>
    Effect.gen(function* () {
      const long = archiveOf({
        seed: 4,
        chunk: 2_500_000,
        files: [{ path: "vm1/private.img", size: 18_000_000 }],
      });
      const client = yield* open(wideWorld(), { bytes: long.length });
      yield* client.next;
      let at = 0;
      let unsaid = 0;
      for (const block of blocksOf(long)) {
        yield* client.stdin.write(framed(block));
        at += block.length;
        unsaid += block.length;
        if (unsaid < 8 * blockSize) continue;
        assert.deepInclude(yield* client.next, { type: "ack", offset: at });
        unsaid = 0;
      }
      assert.isAbove(at, 16 * blockSize);
    }).pipe(Effect.scoped),
  );

  it.effect(
    "answers keep-alives, in the trailer too, and ends a silent client after a minute",
    () =>
      Effect.gen(function* () {
        const world = memoryWorld();
        const client = yield* open(world);
        yield* client.next;
        for (let i = 0; i < 20; i++) {
          yield* client.stdin.write(keepAliveFrame);
          assert.deepStrictEqual(yield* client.next, { type: "alive" });
          yield* TestClock.adjust("15 seconds");
        }
        yield* client.stdin.write(Buffer.concat([framesOf(small), keepAlive]));
        assert.deepStrictEqual(yield* client.next, { type: "alive" });
        yield* TestClock.adjust("2 seconds");
        assert.deepInclude(yield* client.next, { type: "ack", offset: small.length });
        yield* TestClock.adjust("65 seconds");
        assert.strictEqual(yield* client.exit, 4);
        assert.match(world.said.lines[0]!.text, /silent/);
      }).pipe(Effect.scoped),
  );

  it.effect("a byte a minute is silence; a slow block is not, and hears that we live", () =>
    Effect.gen(function* () {
      const world = wideWorld();
      const trickle = yield* open(world, { ...nth(1), bytes: wide.length });
      yield* trickle.next;
      yield* trickle.stdin.write(lengthPrefix(blockSize));
      for (let i = 0; i < 14; i++) {
        yield* Effect.ignore(trickle.stdin.write(new Uint8Array(1)));
        yield* TestClock.adjust("5 seconds");
      }
      assert.strictEqual(yield* trickle.exit, 4);

      const slow = yield* open(world, { ...nth(2), bytes: wide.length });
      yield* slow.next;
      const stream = framesOf(wide);
      for (let at = 0; at < upTo(wide, 4);) {
        const n = Math.min(blockSize / 64, upTo(wide, 4) - at);
        yield* slow.stdin.write(stream.subarray(at, at + n));
        at += n;
        yield* TestClock.adjust("10 seconds");
      }
      yield* slow.stdin.end;
      const said = (yield* slow.rest).map(({ type }) => type);
      assert.isAtLeast(said.filter((type) => type === "alive").length, 10);
      assert.include(said, "ack");
      assert.strictEqual(yield* slow.exit, 4);
    }).pipe(Effect.scoped),
  );

  it.effect("a slow disk is long work: the client hears that we live", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const client = yield* open(memoryWorld(disk));
      yield* client.next;
      disk.syncing = Effect.sleep("40 seconds");
      const now = yield* Clock.currentTimeMillis;
      yield* client.stdin.write(streamOf({ archive: small }, client.server, now));
      yield* TestClock.adjust("30 minutes");
      const said = (yield* client.rest).map(({ type }) => type);
      assert.strictEqual(said.at(-1), "stored");
      assert.isAtLeast(said.filter((type) => type === "alive").length, 20);
      assert.strictEqual(yield* client.exit, 0);
    }).pipe(Effect.scoped),
  );

  it.effect("holds back a client whose bytes the disk cannot keep up with", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = { ...memoryWorld(disk), fullChunk: 104_857_728 };
      const big = archiveOf({ seed: 5, files: [{ path: "vm1/private.img", size: 90_000_000 }] });
      const client = yield* open(world, { bytes: big.length });
      yield* client.next;
      disk.syncing = Effect.sleep("1 hour");
      yield* client.stdin.write(framesOf(big));
      yield* TestClock.adjust("5 minutes");
      const held = come(disk)!.length;
      assert.isAtLeast(held, 64 * blockSize);
      assert.isBelow(held, 65 * blockSize);
      disk.syncing = Effect.void;
      yield* TestClock.adjust("5 hours");
      yield* client.stdin.end;
      assert.strictEqual(codeOf(yield* client.rest), "ack");
      assert.strictEqual(come(disk)!.length, big.length);
    }).pipe(Effect.scoped),
  );

  it.effect("a dead link in both directions is a cut", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = wideWorld(disk);
      const client = yield* open(world, { bytes: wide.length });
      yield* client.next;
      yield* client.stdin.write(framesOf(wide).subarray(0, upTo(wide, 2)));
      yield* TestClock.adjust("100 millis");
      yield* client.cut;
      assert.strictEqual(yield* client.exit, 4);
      const { offset } = yield* upload(world, { archive: wide, bytes: wide.length });
      assert.strictEqual(offset, offsetOf(wide, 2));
    }).pipe(Effect.scoped),
  );

  it.effect("the log says who stored what", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const server = yield* serverKey(world);
      world.journal.length = 0;
      const put = { archive: small, ...nth(3), server };
      yield* upload(world, put);
      const of = `put name=a3.backup session=${sessionOf(3)}`;
      const lines = world.journal.map(({ text }) => text.replace(/^.*verb=/, ""));
      // Of members; then of all that came, with frames and trailer, and of all replies.
      const came = streamOf(put, server, yield* Clock.currentTimeMillis).length;
      const sent = /bytes=[0-9]+\/([0-9]+) verdict=done$/.exec(lines.at(-1)!)?.[1];
      assert.deepStrictEqual(lines, [
        `${of} bytes=- verdict=begun`,
        `${of} bytes=${small.length} verdict=committed`,
        `${of} bytes=${came}/${sent} verdict=done`,
      ]);
      assert.isAbove(Number(sent), 500);
      const weighty = world.journal.map((entry) => entry.weighty === true);
      assert.deepStrictEqual(weighty, [false, true, false]);
    }),
  );
});

const highest = (world: World, signer = dom0, of = series) =>
  Effect.map(ask(world, "about", [signer.publicKey, of]), ({ replies: [first] }) =>
    first?.type === "about" ? first.ticket : undefined,
  );
const month = 30 * 24 * 3600 * 1000;

describe("a ticket", () => {
  /** What the server says to these words. */
  const answer = (world: World, command: string) =>
    Effect.scoped(
      Effect.gen(function* () {
        const client = yield* start(world, { command });
        const first = yield* client.next;
        yield* client.stdin.end;
        yield* client.exit;
        return first;
      }),
    );
  /** The ticket that the store has as the highest of the series. */
  it.effect("of a signer reserves an empty store, and no other signer comes in", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const server = yield* serverKey(world);
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(1) })).code, 0);
      assert.strictEqual(disk.bytes(".qbackup/signers")!.toString(), `${dom0.publicKey}\n`);
      const { replies } = yield* upload(world, { archive: small, ...nth(2), signer: otherDom0 });
      const { code, message } = errorOf(replies);
      assert.strictEqual(code, "not-permitted");
      for (const { publicKey } of [dom0, otherDom0]) {
        assert.include(message, fingerprintOf(publicKey));
      }
      assert.isNull(yield* highest(world, otherDom0));
      // The owner lets another one in.
      yield* run(world, { args: ["signers", "add", otherDom0.publicKey] });
      const other = yield* upload(world, { archive: small, ...nth(2), signer: otherDom0 });
      assert.strictEqual(other.code, 0);
      assert.strictEqual(yield* serverKey(world), server);
    }),
  );

  it.effect("of no key is taken where the owner removed them all", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const command = commandFor({}, yield* serverKey(world), 0);
      disk.plant(".qbackup/signers", Buffer.alloc(0));
      assert.deepInclude(yield* answer(world, command), { code: "not-permitted" });
      disk.plant(".qbackup/signers", Buffer.from("nonsense\n"));
      assert.deepInclude(yield* answer(world, command), { code: "internal" });
    }),
  );

  it.effect("is signed for this server, by the key that it names, word by word", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const server = yield* serverKey(world);
      const ticket = ticketFor({}, yield* Clock.currentTimeMillis);
      const signature = dom0.sign("ticket", ticketText(ticket, server));
      const wrong: ReadonlyArray<readonly [string, string]> = [
        [
          "another server",
          putCommand(ticket, dom0.sign("ticket", ticketText(ticket, dom0.publicKey))),
        ],
        ["another key", putCommand(ticket, otherDom0.sign("ticket", ticketText(ticket, server)))],
        ["another text", putCommand(ticket, dom0.sign("manifest", ticketText(ticket, server)))],
        ["nothing signed", putCommand(ticket, Buffer.alloc(64).toString("base64url"))],
        ...[
          { name: "b.backup" },
          { session: sessionOf(2) },
          { base: sessionOf(3) },
          { series: "0123456789abcdee" },
          { run: 2 },
          { bytes: ticket.bytes + 1 },
          { time: "1970-01-01T00:00:01Z" },
          { signer: otherDom0.publicKey },
        ].map(
          (change) =>
            [JSON.stringify(change), putCommand({ ...ticket, ...change }, signature)] as const,
        ),
      ];
      for (const [what, command] of wrong) {
        assert.deepInclude(yield* answer(world, command), { code: "signature" }, what);
      }
      assert.notInclude(disk.files().join(), "runs/");
      assert.notInclude(disk.files().join(), "signers");
      assert.deepInclude(yield* answer(world, putCommand(ticket, signature)), { type: "ready" });
    }),
  );

  it.effect("has a time not too far from the server's, which says both", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      yield* TestClock.setTime(100 * month);
      const now = yield* Clock.currentTimeMillis;
      const day = 24 * 3600 * 1000;
      for (const [i, [offset, taken]] of (
        [
          [-month, true],
          [-month - 1000, false],
          [day, true],
          [day + 1000, false],
          [0, true],
        ] as const
      ).entries()) {
        const { replies } = yield* upload(world, {
          archive: small,
          ...nth(i + 1),
          time: now + offset,
        });
        if (taken) assert.strictEqual(codeOf(replies), "stored", String(offset));
        else {
          const { code, message } = errorOf(replies);
          assert.strictEqual(code, "not-permitted");
          assert.include(message, "1978-03-20T00:00:00Z");
          assert.include(message, new Date(now + offset).toISOString().slice(0, 19));
        }
      }
    }),
  );

  it.effect("below the highest of its series is stale, and the highest is shown", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const server = yield* serverKey(world);
      const third: Put = { ...nth(3), bytes: 5_000_000 };
      assert.strictEqual((yield* upload(world, { archive: small, ...third })).code, 0);
      disk.crash();
      const text = ticketText(ticketFor(third, 0), server);
      const shown = { ticket: text, signature: dom0.sign("ticket", text) };
      assert.deepStrictEqual(yield* highest(world), { text, signature: shown.signature });
      for (const put of [nth(2), { ...nth(4), run: 3 }, { ...nth(4), run: 0 }]) {
        const { code, replies } = yield* upload(world, { archive: small, ...put });
        const { code: told, signature, ticket } = errorOf(replies);
        assert.deepStrictEqual({ told, signature, ticket }, { told: "stale", ...shown } as never);
        assert.strictEqual(code, 5);
      }
      // Another series and another signer count for themselves.
      const elsewhere = yield* upload(world, { archive: small, ...nth(1), series: `x-${series}` });
      assert.strictEqual(elsewhere.code, 0);
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(4) })).code, 0);
    }),
  );

  it.effect("may come again to go on, and with another word it may not", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const partly = { archive: medium, cutAt: upTo(medium, 10), ...nth(1) };
      yield* upload(world, partly);
      for (const change of [{ name: "b" }, { bytes: 4_000_000 }, { time: 5000 }]) {
        const { replies } = yield* upload(world, { ...partly, ...change });
        assert.strictEqual(codeOf(replies), "stale", JSON.stringify(change));
      }
      assert.strictEqual((yield* upload(world, partly)).offset, offsetOf(medium, 10));
    }),
  );

  it.effect("whose highest cannot be read lets nobody in", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, { archive: small, ...nth(3) });
      const file = disk.files().find((one) => one.startsWith(".qbackup/runs/"))!;
      for (const bytes of ["", "nonsense\n", "x".repeat(5000)]) {
        disk.plant(file, Buffer.from(bytes));
        const { replies } = yield* upload(world, { archive: small, ...nth(4) });
        assert.strictEqual(codeOf(replies), "internal");
      }
    }),
  );

  it.effect("that is refused at admission leaves no run and no signer behind", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* serverKey(world);
      disk.plant("taken.backup", Buffer.from("x"));
      disk.plant("b.backup.manifest.json", Buffer.from("x"));
      const refused: ReadonlyArray<readonly [Put, string]> = [
        [{ name: "taken.backup" }, "exists"],
        [{ name: "b.backup" }, "exists"],
        [{ name: "no/such" }, "no-directory"],
        [{ base: sessionOf(9) }, "not-found"],
        [{ args: ["--quota", "1M"], bytes: 2 ** 20 + 1 }, "quota"],
      ];
      for (const [put, code] of refused) {
        const { replies } = yield* upload(world, { archive: small, run: 7, ...put });
        assert.strictEqual(codeOf(replies), code);
        assert.isNull(yield* highest(world));
      }
      disk.capacity = disk.used + 64 * blockSize + 1000;
      const { replies } = yield* upload(world, { archive: small, bytes: 1001 });
      assert.strictEqual(codeOf(replies), "no-space");
      disk.capacity = Number.MAX_SAFE_INTEGER;
      assert.notInclude(disk.files().join(), "signers");
      assert.deepStrictEqual(leftovers(disk), []);
      assert.strictEqual((yield* upload(world, { archive: small })).code, 0);
    }),
  );

  it.effect("gives no more bytes than it says", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const { code, replies } = yield* upload(world, { archive: small, bytes: small.length - 1 });
      assert.deepStrictEqual([code, codeOf(replies)], [2, "bad-request"]);
      assert.deepStrictEqual(kept(disk), []);
      const exact = yield* upload(world, { archive: small, ...nth(2), bytes: small.length });
      assert.strictEqual(exact.code, 0);
    }),
  );
});

describe("the end of a put", () => {
  it.effect("is given up when the client says so, at whatever frame", () =>
    Effect.gen(function* () {
      const trailer = trailerOf("{}", "new 0 1\n");
      const frames = [0, 4 + 2, 4 + 2 + 4 + 64, trailer.length - 4].map((at) =>
        Buffer.concat([framesOf(small), trailer.subarray(0, at)]),
      );
      for (const before of [Buffer.alloc(0), framesOf(small).subarray(0, -4), ...frames]) {
        const disk = new Disk();
        const client = yield* open(memoryWorld(disk));
        yield* client.next;
        yield* client.stdin.write(Buffer.concat([before, giveUpFrame]));
        assert.strictEqual(yield* client.exit, 0);
        assert.deepStrictEqual(leftovers(disk), []);
        assert.deepStrictEqual(kept(disk), []);
      }
    }).pipe(Effect.scoped),
  );

  type Lie = Omit<Upload, "archive">;
  const other = (change: ManifestFields): Lie => ({ manifest: (m) => ({ ...m, ...change }) });
  const cut = (at: number, bytes: Uint8Array): Lie => ({
    trailer: (right) => Buffer.concat([right.subarray(0, at), bytes]),
  });
  const manifestFrame = (bytes: Uint8Array): Lie => ({
    trailer: () => Buffer.concat([framed(bytes), framed(Buffer.alloc(64)), framed()]),
  });
  const count = tableFor(small).length;
  const lying: ReadonlyArray<readonly [what: string, code: string, exit: number, lie: Lie]> = [
    ["no manifest", "bad-request", 2, cut(0, framed())],
    ["a manifest that is none", "bad-request", 2, { manifest: () => "nonsense" }],
    ["a manifest that is not UTF-8", "bad-request", 2, manifestFrame(Buffer.from([0x22, 0xff]))],
    ["a manifest that is too long", "bad-request", 2, manifestFrame(Buffer.alloc(2049, "x"))],
    ["a manifest in another form", "bad-request", 2, { manifest: (m) => JSON.stringify(m) }],
    [
      "a manifest behind a mark of byte order",
      "bad-request",
      2,
      {
        trailer: (right) => {
          const end = 4 + right.readUInt32BE(0);
          const text = Buffer.concat([Buffer.from("\ufeff"), right.subarray(4, end)]);
          return Buffer.concat([framed(text), right.subarray(end)]);
        },
      },
    ],
    [
      "another signature",
      "signature",
      6,
      {
        trailer: (right) => {
          const bytes = Buffer.from(right);
          const at = 4 + bytes.readUInt32BE(0) + 4;
          bytes[at]! ^= 1;
          return bytes;
        },
      },
    ],
    [
      "a short signature",
      "bad-request",
      2,
      { trailer: () => Buffer.concat([framed(Buffer.from("{}")), framed(Buffer.alloc(63))]) },
    ],
    ["another name", "bad-request", 2, other({ name: "b.backup" })],
    ["another session", "bad-request", 2, other({ session: sessionOf(9) })],
    ["another signer", "bad-request", 2, other({ signer: otherDom0.publicKey })],
    ["another series", "bad-request", 2, other({ series: "0123456789abcdee" })],
    ["another run", "bad-request", 2, other({ run: 2 })],
    ["another server", "signature", 6, other({ server: otherDom0.publicKey })],
    ["another format", "incomplete", 6, { format: "slots" }],
    ["no recipe", "incomplete", 6, { recipe: "" }],
    ["a recipe that is none", "bad-request", 2, { recipe: "new 0\n" }],
    ["a recipe without its last newline", "bad-request", 2, { recipe: `new 0 ${count}` }],
    ["a recipe of more than there is", "bad-request", 2, { recipe: `new 0 ${count + 1}\n` }],
    ["a recipe of a base without one", "bad-request", 2, { recipe: "base 0 1\n" }],
    ["a recipe of one session", "bad-request", 2, { recipe: `${sessionOf(1)} 0 1\n` }],
    ["a recipe without the head", "incomplete", 6, { recipe: `new 1 ${count - 1}\n` }],
    ["a recipe without the tail", "incomplete", 6, { recipe: "new 0 4\n" }],
    ["a recipe with a member twice", "incomplete", 6, { recipe: `new 0 ${count}\nnew 3 1\n` }],
  ];
  it.effect.each(lying)("refuses %s, and keeps the pack for another try", ([, code, exit, lie]) =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const result = yield* upload(world, { ...lie, archive: small });
      assert.deepStrictEqual([codeOf(result.replies), result.code], [code, exit]);
      assert.deepStrictEqual(kept(disk), []);
      assert.isTrue(come(disk)!.equals(small));
      assert.strictEqual(world.said.lines.length, 1);
      // With the next run it is gone on with.
      const again = yield* upload(world, { archive: small, run: 2, name: "again.backup" });
      assert.deepStrictEqual([again.offset, again.code], [small.length, 0]);
      assert.deepStrictEqual(leftovers(disk), []);
      assert.isTrue(disk.bytes("again.backup")!.equals(small));
    }),
  );

  it.effect.each([
    ["size", { size: small.length + 10_240 }],
    ["root", { root: "0".repeat(64) }],
    ["number of members", { members: count - 1 }],
  ] as const)("where dom0 counted another %s nothing of it is kept", ([, change]) =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const lie = other(change);
      const { code, replies } = yield* upload(world, { ...lie, archive: small });
      assert.deepStrictEqual([codeOf(replies), code], ["digest-mismatch", 6]);
      assert.deepStrictEqual(kept(disk), []);
      assert.deepStrictEqual(leftovers(disk), [`.qbackup/gone/${sessionOf(1)}`]);
      const again = yield* upload(world, { archive: small, run: 2 });
      assert.deepInclude(errorOf(again.replies), {
        code: "gone",
        since: "1970-01-01T00:00:00Z",
        why: "what came was not what dom0 sent",
      });
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(3) })).code, 0);
    }),
  );

  it.effect.each([
    ["with one more", (all: ReadonlyArray<Buffer>) => [...all, all.at(-1)!], `new 0 ${count}\n`],
    [
      "in another order",
      (all: ReadonlyArray<Buffer>) => [...all.slice(0, -2), all.at(-1)!, all.at(-2)!],
      `new 0 ${count - 2}\nnew ${count - 1} 1\nnew ${count - 2} 1\n`,
    ],
  ] as const)("the members of a plain archive %s are not that archive", ([, come, recipe]) =>
    Effect.gen(function* () {
      const disk = new Disk();
      const archive = Buffer.concat(come(membersOf(small).map(({ bytes }) => bytes)));
      const lie = { archive, recipe, lines: tableFor(small) };
      const { code, replies } = yield* upload(memoryWorld(disk), lie);
      assert.deepStrictEqual([codeOf(replies), code], ["digest-mismatch", 6]);
      assert.deepStrictEqual(kept(disk), []);
      assert.deepStrictEqual(leftovers(disk), [`.qbackup/gone/${sessionOf(1)}`]);
    }),
  );

  it.effect("what is stale by now is refused, and not given up either", () =>
    Effect.gen(function* () {
      for (const end of ["trailer", "give up"]) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const first = yield* open(world, nth(1));
        yield* first.next;
        assert.strictEqual((yield* upload(world, { archive: small, ...nth(2) })).code, 0);
        const bytes = streamOf({ archive: medium, ...nth(1) }, first.server, 0);
        const stream = end === "trailer" ? bytes : Buffer.concat([framesOf(medium), giveUpFrame]);
        yield* first.stdin.write(stream);
        assert.strictEqual(codeOf(yield* first.rest), "stale", end);
        assert.isTrue(come(disk)!.equals(medium), end);
        const again = yield* upload(world, { archive: medium, ...nth(3), session: sessionOf(1) });
        assert.deepStrictEqual([again.offset, again.code], [medium.length, 0], end);
      }
    }).pipe(Effect.scoped),
  );

  it.effect("a signer who was removed meanwhile stores nothing", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      yield* upload(world, { archive: small, ...nth(1) });
      const client = yield* open(world, nth(2));
      yield* client.next;
      yield* run(world, { args: ["signers", "add", otherDom0.publicKey] });
      yield* run(world, { args: ["signers", "remove", dom0.publicKey] });
      yield* client.stdin.write(streamOf({ archive: small, ...nth(2) }, client.server, 0));
      assert.strictEqual(codeOf(yield* client.rest), "not-permitted");
      assert.strictEqual((yield* listed(world)).archives.length, 1);
    }).pipe(Effect.scoped),
  );

  it.effect("refuses what is no backup, and keeps nothing of it", () =>
    Effect.gen(function* () {
      const broken: ReadonlyArray<readonly [string, Buffer]> = [
        ["zeros", framed(Buffer.alloc(100_000))],
        ["an unknown path", framed(memberOf("etc/passwd", Buffer.from("x")))],
        ["no scrypt", framed(memberOf("vm1/private.img.000.enc", Buffer.alloc(1000)))],
        [
          "padding that is none",
          framed(Buffer.concat([blocksOf(small)[0]!.subarray(0, -1), Buffer.from("x")])),
        ],
      ];
      for (const [what, bytes] of broken) {
        const disk = new Disk();
        const client = yield* open(memoryWorld(disk));
        yield* client.next;
        yield* client.stdin.write(bytes);
        assert.strictEqual(codeOf(yield* client.rest), "incomplete", what);
        assert.strictEqual(yield* client.exit, 6);
        assert.deepStrictEqual(leftovers(disk), [`.qbackup/gone/${sessionOf(1)}`]);
      }
    }).pipe(Effect.scoped),
  );

  it.effect("refuses an upload that ends inside a member, and one with nothing in it", () =>
    Effect.gen(function* () {
      const world = wideWorld();
      const stream = framesOf(wide).subarray(0, upTo(wide, 4));
      for (const [bytes, code] of [
        [Buffer.concat([stream, framed()]), "bad-request"],
        [framed(), "bad-request"],
      ] as const) {
        const client = yield* open(world, { bytes: wide.length });
        yield* client.next;
        yield* client.stdin.write(Buffer.concat([bytes, trailerOf("{}", `new 0 ${count}\n`)]));
        assert.strictEqual(codeOf(yield* client.rest), code);
      }
      const client = yield* open(world, { bytes: wide.length });
      const ready = yield* client.next;
      if (ready?.type !== "ready") return assert.fail("not ready");
      assert.strictEqual(ready.offset, offsetOf(wide, 4));
      const lines = tableFor(wide).slice(0, 3);
      const manifest = textOf("manifest", {
        ...ticketFields(),
        server: client.server,
        ...wholeOf(lines, "qvm-backup"),
      });
      const trailer = trailerOf(manifest, "new 0 3\n");
      yield* client.stdin.write(Buffer.concat([framed(), trailer]));
      const error = errorOf(yield* client.rest);
      assert.deepInclude(error, { code: "incomplete" });
      assert.match(error.message, /inside a member/);
    }).pipe(Effect.scoped),
  );
  /** What a manifest says for the first ticket, but for what the archive is. */
  const ticketFields = () => ({
    name: "a.backup",
    session: sessionOf(1),
    signer: dom0.publicKey,
    series,
    run: 1,
    created: "2026-11-23T05:00:00Z",
    format: "qvm-backup",
    next: null,
  });

  it.effect("refuses frames that are none, or not of one member each", () =>
    Effect.gen(function* () {
      const [first, second] = blocksOf(small);
      const frames: ReadonlyArray<readonly [string, Buffer]> = [
        ["too long", Buffer.from(lengthPrefix(blockSize + 1))],
        ["far too long", Buffer.from(lengthPrefix(0x7fffffff))],
        ["two members", framed(first!, second!)],
        ["a member and the start of the next", framed(first!, second!.subarray(0, 512))],
        ["half a member", framed(second!.subarray(0, 5120))],
        ["text", framed(Buffer.from("hello"))],
        ["less than a block", framed(blocksOf(wide)[3]!.subarray(0, blockSize - 512))],
      ];
      for (const [what, bytes] of frames) {
        const disk = new Disk();
        const client = yield* open(wideWorld(disk));
        yield* client.next;
        yield* client.stdin.write(bytes);
        assert.strictEqual(codeOf(yield* client.rest), "bad-request", what);
        assert.strictEqual(yield* client.exit, 2);
        assert.deepStrictEqual(kept(disk), []);
      }
    }).pipe(Effect.scoped),
  );
});

describe("an archive of slots", () => {
  it.effect("is made of what came, and of what lies in the archive that it builds on", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const one = yield* upload(world, firstNight);
      assert.strictEqual(codeOf(one.replies), "stored");
      // No plain file: it is in pieces.
      assert.isUndefined(disk.bytes("a1.backup"));
      const two = yield* upload(world, secondNight);
      assert.deepInclude(receiptOf(two.replies), {
        ...wholeOf(secondLines, "slots"),
        session: sessionOf(2),
      });
      const stored = (n: number) => disk.bytes(`.qbackup/recipes/${sessionOf(n)}`)!.toString();
      const runs = (n: number, ...of: ReadonlyArray<readonly [number, number]>) =>
        of.map(([at, many]) => `${sessionOf(n)} ${at} ${many}\n`).join("");
      assert.strictEqual(stored(1), runs(1, [8, 1], [7, 1], [6, 1], [5, 1], [0, 5]));
      assert.strictEqual(
        stored(2),
        runs(2, [3, 1], [2, 1], [1, 1]) +
          runs(1, [5, 1], [0, 2]) +
          runs(2, [0, 1]) +
          runs(1, [3, 2]),
      );
      // And a third one upon that, which brings its heads alone.
      const third = Buffer.concat([slot("backup-header.hmac", 100), header(3)]);
      const lines = [...inOrder(third, [1, 0]), ...secondLines.slice(2)];
      const three = yield* upload(world, {
        archive: third,
        format: "slots",
        recipe: "new 1 1\nnew 0 1\nbase 2 7\n",
        lines,
        base: sessionOf(2),
        ...nth(3),
      });
      assert.deepInclude(receiptOf(three.replies), wholeOf(lines, "slots"));
      assert.deepStrictEqual(leftovers(disk), []);
      assert.strictEqual((yield* listed(world)).archives.length, 3);
    }),
  );

  it.effect("is made of more packs than files may be open", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, firstNight);
      let lines = firstLines;
      const nights = 40;
      for (let night = 2; night <= nights; night++) {
        const pack = Buffer.concat([
          slot(cell(4 + night), 100),
          slot("backup-header.hmac", 100),
          header(night),
        ]);
        lines = [...inOrder(pack, [2, 1]), ...lines.slice(2), ...inOrder(pack, [0])];
        // What a put has open by itself, and some packs.
        disk.descriptors = 128;
        const { replies } = yield* upload(world, {
          archive: pack,
          format: "slots",
          recipe: `new 2 1\nnew 1 1\nbase 2 ${lines.length - 3}\nnew 0 1\n`,
          lines,
          base: sessionOf(night - 1),
          ...nth(night),
        });
        assert.strictEqual(codeOf(replies), "stored", `night ${night}`);
      }
      const name = nth(nights).name!;
      const checked = yield* ask(world, "check", [name]);
      assert.strictEqual(codeOf(checked.replies), "checked");
      assert.strictEqual((yield* listed(world)).archives.length, nights);
    }),
  );

  it.effect("holds what it builds on for as long as it is under way", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, firstNight);
      const held = () => disk.bytes(`.qbackup/held/${sessionOf(2)}`)?.toString();
      yield* upload(world, { ...secondNight, cutAt: upTo(second, 1) });
      assert.strictEqual(held(), sessionOf(1));
      disk.crash();
      assert.strictEqual(held(), sessionOf(1));
      // The next run may build on nothing.
      yield* upload(world, { ...secondNight, run: 3, base: "-", cutAt: 0 });
      assert.isUndefined(held());
      yield* upload(world, { ...secondNight, run: 4, cutAt: 0 });
      assert.strictEqual(held(), sessionOf(1));
      assert.strictEqual((yield* upload(world, { ...secondNight, run: 4 })).code, 0);
      assert.isUndefined(held());
    }),
  );

  it.effect("is refused where a part of what it builds on is not there", () =>
    Effect.gen(function* () {
      const session = sessionOf(1);
      const harm: ReadonlyArray<readonly [string, (disk: Disk) => void]> = [
        [
          "a pack that is shorter",
          (disk) =>
            disk.plant(
              `.qbackup/packs/${session}`,
              disk.bytes(`.qbackup/packs/${session}`)!.subarray(0, -1),
            ),
        ],
        ["a hole", (disk) => disk.punch(`.qbackup/packs/${session}`, 512, upTo(first, 1))],
        [
          "a table that is none",
          (disk) => disk.plant(`.qbackup/tables/${session}`, Buffer.from("x")),
        ],
      ];
      for (const [what, damage] of harm) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        yield* upload(world, firstNight);
        damage(disk);
        const { replies } = yield* upload(world, secondNight);
        assert.strictEqual(codeOf(replies), "damaged", what);
        assert.strictEqual((yield* listed(world)).archives.length, 1);
        assert.isTrue(come(disk, 2)!.equals(second), what);
      }
      // A hole where nobody needs anything is no harm.
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, firstNight);
      const at = offsetOf(first, 2);
      disk.punch(`.qbackup/packs/${session}`, at, offsetOf(first, 3) - at);
      assert.strictEqual((yield* upload(world, secondNight)).code, 0);
    }),
  );

  it.effect("builds on no archive that is not committed, or was pruned", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, { ...firstNight, cutAt: upTo(first, 3) });
      const early = yield* upload(world, secondNight);
      assert.strictEqual(codeOf(early.replies), "not-found");
      assert.strictEqual((yield* upload(world, firstNight)).code, 0);
      disk.plant(".qbackup/tombstones", "directory");
      disk.plant(`.qbackup/tombstones/${sessionOf(1)}`, Buffer.from("x"));
      const late = yield* upload(world, secondNight);
      assert.strictEqual(codeOf(late.replies), "not-found");
    }),
  );

  it.effect("builds on what came under the key that its store had before", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, { ...firstNight, run: 7 });
      // With a name that a crash has left of it.
      disk.plant(incoming(1), disk.bytes(`.qbackup/packs/${sessionOf(1)}`)!);
      const identity = disk.bytes(".qbackup/identity")!;
      const other = Buffer.from(privateKeyPem(Buffer.alloc(32, 9)));
      assert.strictEqual(other.length, identity.length);
      disk.plant(".qbackup/identity", other);
      // What was signed for that key is of no use to anybody under this one, nor is its number.
      assert.isNull(yield* highest(world));
      const two = yield* upload(world, { ...secondNight, run: 1 });
      assert.strictEqual(codeOf(two.replies), "stored");
      assert.deepInclude(receiptOf(two.replies), wholeOf(secondLines, "slots"));
      yield* TestClock.adjust("40 days");
      yield* Effect.scoped(
        Effect.gen(function* () {
          const client = yield* open(world, nth(3));
          yield* client.next;
          yield* TestClock.adjust("1 second");
          yield* client.cut;
        }),
      );
      assert.isUndefined(come(disk));
      assert.isDefined(disk.bytes(`.qbackup/packs/${sessionOf(1)}`));
      assert.strictEqual((yield* listed(world)).archives.length, 2);
      // Of a receipt that no such key has signed nobody knows what it is.
      const record = `.qbackup/records/${sessionOf(2)}.manifest.json`;
      const text = disk.bytes(record)!.toString();
      const wrong = text.replace(/(?<="receiptSignature":")./, (letter) =>
        letter === "A" ? "B" : "A",
      );
      disk.plant(record, Buffer.from(wrong));
      const third = yield* upload(world, { ...secondNight, ...nth(4), base: sessionOf(2) });
      assert.strictEqual(codeOf(third.replies), "not-found");
    }),
  );

  it.effect("goes on under a later run and another name, from its last whole member", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = { ...memoryWorld(disk), fullChunk: 3_000_000 };
      const big = Buffer.concat([slot(cell(1), 900), slot(cell(2), 2_500_000), first]);
      // The second member is there with two of its three blocks.
      const cutAt = upTo(big, 3);
      const put: Upload = { archive: big, ...nth(1), format: "slots", cutAt };
      yield* upload(world, put);
      const same = yield* upload(world, { ...put, cutAt: 0 });
      assert.strictEqual(same.offset, offsetOf(big, 3));
      const later = yield* upload(world, { ...put, ...nth(2), session: sessionOf(1), cutAt: 0 });
      assert.strictEqual(later.offset, offsetOf(big, 1));
      // Not by another signer, nor in another series.
      yield* run(world, { args: ["signers", "add", otherDom0.publicKey] });
      for (const change of [{ signer: otherDom0 }, { series: `x-${series}` }]) {
        const { replies } = yield* upload(world, { ...put, run: 3, cutAt: 0, ...change });
        assert.strictEqual(codeOf(replies), "not-permitted");
        // By these words dom0 knows that another session helps.
        assert.include(JSON.stringify(replies), '"that session is of another series"');
      }
      const lines = [...firstLines];
      const end = yield* upload(world, {
        archive: big,
        format: "slots",
        recipe: "new 10 1\nnew 9 1\nnew 8 1\nnew 7 1\nnew 2 5\n",
        lines,
        ...nth(3),
        session: sessionOf(1),
      });
      // Members that no line refers to are allowed.
      assert.deepInclude(receiptOf(end.replies), { ...wholeOf(lines, "slots"), name: "a3.backup" });
    }),
  );

  it.effect("is kept for thirty days after its last ticket, and told of for four hundred", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const days = (n: number) => TestClock.adjust(n * 24 * 3600 * 1000);
      const put: Upload = { ...firstNight, cutAt: upTo(first, 3) };
      yield* upload(world, put);
      yield* days(29);
      yield* upload(world, { ...put, run: 2, cutAt: 0 });
      const next = Effect.fnUntraced(function* (n: number) {
        const client = yield* open(world, { ...nth(n), series: `x-${series}` });
        yield* client.next;
        yield* TestClock.adjust("1 second");
        yield* client.cut;
      }, Effect.scoped);
      yield* days(29);
      yield* next(11);
      assert.isDefined(come(disk));
      yield* days(1);
      yield* next(12);
      assert.isUndefined(come(disk));
      const gone = yield* upload(world, { ...put, run: 3 });
      const since = "1970-03-01T00:00:01Z";
      assert.deepInclude(errorOf(gone.replies), { code: "gone", since });
      yield* days(399);
      yield* next(13);
      assert.deepInclude(errorOf((yield* upload(world, { ...put, run: 3 })).replies), { since });
      yield* days(2);
      yield* next(14);
      assert.strictEqual((yield* upload(world, { ...put, run: 3 })).offset, 0);
    }),
  );

  it.effect("what does not fit into the room is kept for the next run", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const args = ["--quota", "100K"];
      const { replies } = yield* upload(world, { ...firstNight, bytes: 80_000, args });
      assert.strictEqual(codeOf(replies), "bad-request");
      assert.isDefined(come(disk));
      assert.strictEqual((yield* upload(world, { ...firstNight, run: 2 })).code, 0);
    }),
  );
});

describe("several who want the same", () => {
  const takesOver = (what: string, world: () => World, args: () => ReadonlyArray<string>) =>
    it.live(`a newcomer takes over from an old connection: ${what}`, () =>
      Effect.gen(function* () {
        const w = { ...world(), fullChunk: 2_500_128 };
        const put: Put = { args: args(), bytes: wide.length };
        // In both the same words: a ticket is good for one upload.
        const time = yield* Clock.currentTimeMillis;
        const old = yield* open(w, { ...put, time });
        yield* old.next;
        yield* old.stdin.write(framesOf(wide).subarray(0, upTo(wide, 4)));
        assert.deepInclude(yield* old.next, { type: "ack", offset: offsetOf(wide, 4) });
        const { code, offset } = yield* upload(w, { ...put, time, archive: wide });
        assert.strictEqual(yield* old.exit, 4);
        assert.deepStrictEqual(yield* old.rest, []);
        assert.deepStrictEqual([offset, code], [offsetOf(wide, 4), 0]);
      }).pipe(Effect.scoped),
    );
  takesOver("in memory", memoryWorld, () => []);
  takesOver("with real locks on a real disk", realWorld, () => ["--root", realRoot()]);

  it.effect("is busy when the old one cannot let go", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const old = yield* open(world);
      yield* old.next;
      disk.syncing = Effect.sleep("1 minute");
      yield* old.stdin.write(framesOf(medium).subarray(0, upTo(medium, 20)));
      yield* TestClock.adjust("3 seconds");
      const newcomer = yield* Effect.forkChild(upload(world, { archive: medium, time: 0 }));
      // In steps: its own syncs are slow too, and it has to be waiting before its time can pass.
      for (let i = 0; i < 900 && newcomer.pollUnsafe() === undefined; i++) {
        yield* TestClock.adjust("1 second");
      }
      const { code, replies } = yield* Fiber.join(newcomer);
      assert.deepStrictEqual([code, codeOf(replies)], [5, "busy"]);
      yield* TestClock.adjust("10 minutes");
      assert.strictEqual(yield* old.exit, 4);
      disk.syncing = Effect.void;
      const again = yield* upload(world, { archive: medium, time: 0 });
      assert.deepStrictEqual([again.code, again.offset], [0, offsetOf(medium, 20)]);
    }).pipe(Effect.scoped),
  );

  it.effect("two for one name: the second is told, and comes back under another one", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const first = yield* open(world, { ...nth(1), name: "a" });
      yield* first.next;
      const faster = yield* upload(world, {
        archive: small,
        ...nth(1),
        name: "a",
        session: sessionOf(2),
        series: `x-${series}`,
      });
      assert.strictEqual(faster.code, 0);
      yield* first.stdin.write(
        streamOf({ archive: medium, ...nth(1), name: "a" }, first.server, 0),
      );
      assert.strictEqual(codeOf(yield* first.rest), "exists");
      assert.strictEqual(yield* first.exit, 5);
      const again = yield* upload(world, { archive: medium, ...nth(2), session: sessionOf(1) });
      assert.deepStrictEqual([again.offset, again.code], [medium.length, 0]);
    }).pipe(Effect.scoped),
  );

  it.effect("a file that comes under the name of an upload is not an archive's, nor replaced", () =>
    Effect.gen(function* () {
      for (const name of ["a.backup", "a.backup.manifest.json"]) {
        const disk = new Disk();
        const client = yield* open(memoryWorld(disk));
        yield* client.next;
        disk.plant(name, Buffer.from("mine"));
        yield* client.stdin.write(streamOf({ archive: small }, client.server, 0));
        assert.strictEqual(codeOf(yield* client.rest), "exists", name);
        assert.deepStrictEqual(kept(disk), [name]);
        assert.strictEqual(disk.bytes(name)!.toString(), "mine");
      }
    }).pipe(Effect.scoped),
  );

  it.effect("takes so many uploads at once, and no more", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const clients = yield* Effect.forEach(
        Array.from({ length: uploadLimit }, (_, i) => i + 1),
        (n) => open(world, { ...nth(n), series: `s${n}-${series}` }),
      );
      for (const client of clients) assert.deepInclude(yield* client.next, { type: "ready" });
      const next: Upload = { archive: small, ...nth(9), series: `s9-${series}` };
      const refused = yield* upload(world, next);
      assert.deepStrictEqual([codeOf(refused.replies), refused.code], ["busy", 5]);
      // Who takes over from one of them needs no more room than that one.
      const over = yield* upload(world, { archive: small, ...nth(2), series: `s2-${series}` });
      assert.strictEqual(over.code, 0);
      assert.strictEqual((yield* upload(world, next)).code, 0);
      assert.strictEqual((yield* run(world, { command: "bare" }, small)).code, 5);
    }).pipe(Effect.scoped),
  );

  it.effect("says what those that are under way may have yet, until they end", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      const reserved = Effect.map(ask(world, "about"), ({ replies: [first] }) =>
        first?.type === "about" ? [first.reserved, first.room] : undefined,
      );
      const [none, room] = (yield* reserved)!;
      assert.strictEqual(none, 0);
      yield* Effect.scoped(
        Effect.gen(function* () {
          const client = yield* open(world, { ...nth(1), bytes: 5_000_000 });
          assert.deepInclude(yield* client.next, { type: "ready" });
          const [now, left] = (yield* reserved)!;
          // Less the little that lies there of it.
          assert.closeTo(now!, 5_000_000, 1000);
          assert.closeTo(left!, room! - 5_000_000, 1000);
          yield* client.stdin.write(giveUpFrame);
          yield* client.exit;
        }),
      );
      const [after, back] = (yield* reserved)!;
      assert.strictEqual(after, 0);
      assert.closeTo(back!, room!, 1000);
    }),
  );

  it.effect("the first two signers of a store may come at once: one gets it", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      yield* serverKey(world);
      const both = yield* Effect.forEach(
        [dom0, otherDom0],
        (signer, i) => upload(world, { archive: small, ...nth(i + 1), signer }),
        { concurrency: "unbounded" },
      );
      const codes = both.map(({ replies }) => codeOf(replies)).toSorted();
      assert.deepStrictEqual(codes, ["not-permitted", "stored"]);
    }),
  );

  it.effect("a store is served from one network namespace of a machine at a time", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const from = (boot: string, namespace: string) =>
        worldOf(Layer.mergeAll(memorySafeFs(disk), memoryLocks(new Map(), { boot, namespace })));
      const here = from("b", "1");
      const there = from("b", "2");
      assert.strictEqual((yield* upload(here, { archive: small, ...nth(1) })).code, 0);
      const told = yield* run(there, { command: "qbackup/1 about" });
      assert.strictEqual(told.code, 5);
      assert.match(told.text, /"busy".*another network namespace/);
      assert.strictEqual((yield* listed(there)).archives.length, 1);
      yield* TestClock.adjust("9 minutes");
      assert.strictEqual((yield* run(there, { command: "x" }, small)).code, 5);
      yield* TestClock.adjust("2 minutes");
      // An upload that brings bytes keeps the store its own.
      const client = yield* open(here, nth(2));
      yield* client.next;
      for (const block of blocksOf(medium).slice(0, 12)) {
        yield* client.stdin.write(framed(block));
        yield* TestClock.adjust("50 seconds");
      }
      assert.strictEqual((yield* run(there, { command: "qbackup/1 about" })).code, 5);
      // And steps down where another one has it.
      disk.plant(
        ".qbackup/owner",
        Buffer.from(`b 3 ${new Date(yield* Clock.currentTimeMillis).toISOString()} \n`),
      );
      for (const block of blocksOf(medium).slice(12, 16)) {
        yield* Effect.ignore(client.stdin.write(framed(block)));
        yield* TestClock.adjust("50 seconds");
      }
      assert.strictEqual(codeOf(yield* client.rest), "busy");
      assert.isDefined(come(disk, 2));
      // Another start of the machine, or what nobody can read, is no hindrance.
      assert.strictEqual((yield* run(from("c", "4"), { command: "qbackup/1 about" })).code, 0);
      disk.plant(".qbackup/owner", Buffer.from("nonsense"));
      assert.strictEqual((yield* run(here, { command: "qbackup/1 about" })).code, 0);
    }).pipe(Effect.scoped),
  );

  it.effect("another connection makes the key just when this one has found none", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const other = new Disk();
      yield* run(memoryWorld(other), { args: ["init"] });
      let looked = 0;
      const rival = Layer.effect(
        SafeFs,
        Effect.map(SafeFs, (files) => ({
          root: (at: string | undefined) =>
            Effect.map(files.root(at), (root) => {
              const { ensure } = root;
              return Object.assign(root, {
                ensure: (name: string, mode: number) =>
                  Effect.map(ensure(name, mode), (own) => {
                    const { stat } = own;
                    return Object.assign(own, {
                      stat: (file: string) =>
                        Effect.suspend(() => {
                          const node = disk.find(".qbackup");
                          if (file === "identity" && node?.kind === "directory" && looked++ === 0) {
                            node.entries.set("identity", other.find(".qbackup/identity")!);
                          }
                          return stat(file);
                        }),
                    });
                  }),
              });
            }),
        })),
      ).pipe(Layer.provide(memorySafeFs(disk)));
      const put = yield* upload(worldOf(Layer.mergeAll(rival, memoryLocks())), { archive: small });
      assert.isAbove(looked, 0);
      assert.deepStrictEqual([put.code, codeOf(put.replies)], [0, "stored"]);
    }),
  );
});

describe("what the disk does", () => {
  it.effect("is tried before an upload begins, as far as its commit needs it", () =>
    Effect.gen(function* () {
      const tries: ReadonlyArray<
        readonly [Operation["operation"], "not-permitted" | "unsupported" | "io", string, RegExp]
      > = [
        ["protect", "not-permitted", "unsupported", /does not let the account change the mode/],
        ["protect", "unsupported", "unsupported", /does not let the account change the mode/],
        ["link", "unsupported", "unsupported", /hard links are needed/],
        ["link", "not-permitted", "not-permitted", /\(link\)/],
        ["sync-directory", "io", "internal", /disk failed \(sync-directory\)/],
      ];
      for (const [operation, reason, code, message] of tries) {
        const disk = new Disk();
        disk.plant("sub", "directory");
        const world = memoryWorld(disk);
        const partly: Upload = { archive: medium, ...nth(1), name: "sub/a" };
        yield* upload(world, { ...partly, cutAt: upTo(medium, 5) });
        const before = disk.files();
        const server = yield* serverKey(world);
        disk.fault = (call) => (call.operation === operation ? reason : undefined);
        const put = { ...nth(2), name: "sub/b" };
        const { code: exit, text } = yield* run(world, { command: commandFor(put, server, 0) });
        assert.deepStrictEqual([exit, /"code":"([^"]*)"/.exec(text)?.[1]], [5, code], operation);
        assert.match(text, message);
        const bare = yield* run(world, { command: "sub/c" }, small);
        assert.strictEqual(bare.code, 5, operation);
        disk.fault = () => undefined;
        assert.deepStrictEqual(disk.files(), before);
        // Nothing of another upload is lost by it.
        const { offset, replies } = yield* upload(world, partly);
        assert.deepStrictEqual([offset, codeOf(replies)], [offsetOf(medium, 5), "stored"]);
        assert.notInclude(disk.files().join(), "probe");
      }
    }),
  );

  it.effect("before a crash in such a try stands in nobody's way, and is no archive", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      disk.plant("_qbackup-probe.manifest.json", Buffer.alloc(0));
      assert.deepStrictEqual((yield* listed(world)).archives, []);
      assert.strictEqual((yield* upload(world, { archive: small })).code, 0);
      assert.notInclude(disk.files().join(), "probe");
    }),
  );

  it.effect("wrong is told with its cause", () =>
    Effect.gen(function* () {
      for (const [reason, message] of [
        ["read-only", /the server's disk is mounted read-only/],
        ["too-many-files", /too many files open/],
        ["not-permitted", /account may not do that in the store \(create\)/],
        ["too-large", /larger than the server's file system, or its limit for files, allows/],
        ["no-space", /disk is full/],
      ] as const) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const server = yield* serverKey(world);
        disk.fault = ({ operation }) => (operation === "create" ? reason : undefined);
        const { code, text } = yield* run(world, { command: commandFor({}, server, 0) });
        assert.strictEqual(code, 5);
        assert.match(text, message);
      }
    }),
  );

  it.effect("wrong with a flush ends the upload for good, and says so later", () =>
    Effect.gen(function* () {
      const faults: ReadonlyArray<readonly [Operation["operation"], "no-space" | "io", string]> = [
        ["sync", "io", "internal"],
        ["sync", "no-space", "no-space"],
        ["write", "no-space", "no-space"],
        ["sync-directory", "io", "internal"],
      ];
      for (const [operation, reason, code] of faults) {
        let failed = 0;
        for (let skip = 0; ; skip++) {
          const disk = new Disk();
          const world = memoryWorld(disk);
          const client = yield* open(world);
          yield* client.next;
          let seen = 0;
          disk.fault = (call) => {
            if (call.operation !== operation || !disk.files().includes(incoming(1)))
              return undefined;
            seen += 1;
            return seen === skip + 1 ? reason : undefined;
          };
          yield* client.stdin.write(streamOf({ archive: small }, client.server, 0));
          const said = yield* client.rest;
          disk.fault = () => undefined;
          const what = `${operation} ${skip}: ${JSON.stringify(said.at(-1))}`;
          if (seen <= skip) {
            assert.strictEqual(codeOf(said), "stored", what);
            break;
          }
          // What fails behind the commit is only the tidying up.
          const done = codeOf(said) === "stored";
          if (!done) {
            failed += 1;
            assert.deepStrictEqual([codeOf(said), yield* client.exit], [code, 5], what);
            assert.deepStrictEqual(kept(disk), [], what);
          }
          const again = yield* upload(world, { archive: small, time: 0 });
          // With its trailer all of it was there, and only a flush can have lost it.
          if (done || (operation === "write" && codeOf(again.replies) === "stored")) {
            assert.strictEqual(codeOf(again.replies), "stored", what);
          } else {
            assert.isUndefined(come(disk), what);
            const why =
              operation === "write" ? "there was no room left for it" : "the server's disk failed";
            assert.strictEqual(errorOf(again.replies).why, why, what);
          }
          assert.strictEqual((yield* upload(world, { archive: small, ...nth(2) })).code, 0, what);
        }
        assert.isAbove(failed, 3, operation);
      }
    }).pipe(Effect.scoped),
  );

  it.effect("to a torn end of an upload: it is cut back to what its digests prove", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = wideWorld(disk);
      const put: Upload = { archive: wide, bytes: wide.length, time: 0 };
      const offset = Effect.map(upload(world, { ...put, cutAt: 0 }), (seen) => seen.offset);
      yield* upload(world, { ...put, cutAt: upTo(wide, 8) });
      assert.strictEqual(yield* offset, offsetOf(wide, 8));
      const data = come(disk)!;
      data[offsetOf(wide, 7) + 5]! ^= 1;
      disk.plant(incoming(1), data);
      assert.strictEqual(yield* offset, offsetOf(wide, 7));
      const digests = () => disk.bytes(`${incoming(1)}.digests`)!;
      disk.plant(`${incoming(1)}.digests`, Buffer.concat([digests(), Buffer.alloc(40)]));
      assert.strictEqual(yield* offset, offsetOf(wide, 7));
      disk.plant(`${incoming(1)}.digests`, digests().subarray(0, 5 * 32 + 31));
      assert.strictEqual(yield* offset, offsetOf(wide, 5));
      // A header that was torn, too.
      const torn = come(disk)!;
      torn.fill(0, offsetOf(wide, 3), offsetOf(wide, 3) + 600);
      disk.plant(incoming(1), torn);
      assert.strictEqual(yield* offset, offsetOf(wide, 3));
      disk.plant(incoming(1), Buffer.alloc(0));
      assert.strictEqual(yield* offset, 0);
      yield* upload(world, { ...put, cutAt: upTo(wide, 8) });
      disk.plant(`${incoming(1)}.table`, Buffer.from("nonsense"));
      assert.strictEqual((yield* upload(world, put)).code, 0);
    }),
  );

  it.effect("to the digests of many small members: none is believed that was not synced", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const many = Buffer.concat(Array.from({ length: 300 }, (_, n) => slot(cell(n + 1), 10)));
      const put: Upload = { archive: many, ...nth(1), format: "slots", time: 0 };
      const client = yield* open(memoryWorld(disk), put);
      yield* client.next;
      const stream = framesOf(many);
      yield* client.stdin.write(stream.subarray(0, upTo(many, 100)));
      yield* TestClock.adjust("2 seconds");
      const durable = offsetOf(many, 100);
      assert.deepInclude(yield* client.next, { type: "ack", offset: durable });
      disk.fault = ({ name, operation }) =>
        operation === "sync" && name.endsWith(".digests") ? "off" : undefined;
      yield* client.stdin.write(stream.subarray(upTo(many, 100), upTo(many, 290)));
      yield* TestClock.adjust("2 seconds");
      yield* client.kill;
      disk.fault = () => undefined;
      // The bytes are there, and of their digests the length is.
      disk.crash(() => 0.4);
      assert.isTrue(come(disk)!.equals(many.subarray(0, offsetOf(many, 290))));
      assert.strictEqual(disk.bytes(`${incoming(1)}.digests`)!.length, 290 * 32);
      const again = yield* upload(memoryWorld(disk), { ...put, cutAt: 0 });
      assert.strictEqual(again.offset, durable);
    }).pipe(Effect.scoped),
  );

  it.effect("with the writer's file: one that is not the upload any more is not written on", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const client = yield* open(memoryWorld(disk));
      yield* client.next;
      const blocks = blocksOf(medium);
      yield* client.stdin.write(framed(blocks[0]!));
      yield* TestClock.adjust("2 seconds");
      assert.deepInclude(yield* client.next, { type: "ack" });
      disk.plant(incoming(1), Buffer.from("another one's"));
      yield* client.stdin.write(framed(blocks[1]!));
      yield* TestClock.adjust("2 seconds");
      assert.strictEqual(yield* client.exit, 4);
      assert.deepStrictEqual(yield* client.rest, []);
      assert.strictEqual(come(disk)!.toString(), "another one's");
    }).pipe(Effect.scoped),
  );

  it.effect("that lets others in is no place for a store", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.plant(".qbackup", "directory", 0o750);
      const world = memoryWorld(disk);
      const { code, text } = yield* run(world, { command: "qbackup/1 about" });
      assert.strictEqual(code, 5);
      assert.match(text, /open to other accounts: chmod/);
      const foreign = yield* run(memoryWorld(new Disk()), { command: "x", uid: 7 }, small);
      assert.strictEqual(foreign.code, 5);
    }),
  );

  it.effect("whose directories others may write into takes no archive there", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      for (const [name, mode] of [
        ["open", 0o777],
        ["open/below", 0o755],
        ["sticky", 0o1777],
        ["shared", 0o775],
      ] as const) {
        disk.plant(name, "directory", mode);
      }
      let session = 0;
      const put = (directory: string) =>
        upload(world, { archive: small, ...nth(++session), name: `${directory}a.backup` });
      const message = /other accounts of the server may write/;
      for (const directory of ["open/", "open/below/", "sticky/"]) {
        const { code, replies } = yield* put(directory);
        assert.deepStrictEqual([codeOf(replies), code], ["internal", 5], directory);
        assert.match(errorOf(replies).message, message);
        const bare = yield* run(world, { command: `${directory}b.backup` }, small);
        assert.strictEqual(bare.code, 5, directory);
      }
      assert.deepStrictEqual(kept(disk), []);
      assert.strictEqual((yield* put("shared/")).code, 0);
      disk.root.mode = 0o707;
      assert.match(errorOf((yield* put("")).replies).message, message);
      // What is there can be read all the same.
      assert.strictEqual((yield* listed(world)).archives.length, 1);
    }),
  );

  it.live("a snapshot of links beside the store changes nothing", () =>
    Effect.gen(function* () {
      const root = realRoot();
      const args = ["--root", root];
      const world = realWorld();
      const snapshot = (name: string) =>
        execFileSync("cp", ["-al", root, `${root}-${name}`], { stdio: "inherit" });
      const put: Upload = { archive: medium, args, time: yield* Clock.currentTimeMillis };
      yield* upload(world, { ...put, cutAt: upTo(medium, 9) });
      snapshot("before");
      const { offset, replies } = yield* upload(world, put);
      assert.deepStrictEqual([offset, codeOf(replies)], [offsetOf(medium, 9), "stored"]);
      snapshot("after");
      const again = yield* upload(world, put);
      assert.deepStrictEqual(again.replies, [replies.at(-1)]);
      assert.isTrue(fs.readFileSync(path.join(root, "a.backup")).equals(medium));
      const next = yield* upload(world, { archive: small, args, ...nth(2) });
      assert.strictEqual(next.code, 0);
      assert.strictEqual((yield* listed(world, "", args)).archives.length, 2);
    }),
  );
});

describe("the bare form", () => {
  it.effect("stores an archive under its path, once, and vouches for nothing", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.plant("sub", "directory");
      for (const [command, archive, world] of [
        ["one.backup", small, memoryWorld(disk)],
        ["sub/two.backup", wide, wideWorld(disk)],
      ] as const) {
        const { code, text } = yield* run(world, { command }, archive);
        assert.deepStrictEqual([code, text], [0, ""]);
        assert.isTrue(disk.bytes(command)!.equals(archive));
        assert.strictEqual((yield* run(world, { command }, archive)).code, 5);
      }
      const { archives } = yield* listed(memoryWorld(disk));
      assert.deepStrictEqual(
        archives.map(({ members, name, root, signer, size }) => [
          name,
          signer,
          { members, root, size },
        ]),
        [
          ["one.backup", null, wholeOf(tableFor(small), "qvm-backup")],
          ["sub/two.backup", null, wholeOf(tableFor(wide), "qvm-backup")],
        ],
      );
      const record = JSON.parse(disk.bytes("sub/two.backup.manifest.json")!.toString());
      assert.deepStrictEqual(Object.keys(record), [
        "name",
        "session",
        "members",
        "root",
        "size",
        "stored",
      ]);
      const { session } = record;
      assert.strictEqual(
        disk.bytes(`.qbackup/tables/${session}`)!.toString(),
        tableFor(wide).join(""),
      );
      assert.strictEqual(
        disk.bytes(`.qbackup/recipes/${session}`)!.toString(),
        `${session} 0 ${tableFor(wide).length}\n`,
      );
      assert.deepStrictEqual(leftovers(disk), []);
    }),
  );

  it.effect("is refused once the store has a signer, unless its owner allows it", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      assert.strictEqual((yield* run(world, { command: "early" }, small)).code, 0);
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(1) })).code, 0);
      const refused = yield* run(world, { command: "late" }, small);
      assert.strictEqual(refused.code, 5);
      assert.match(world.said.lines.at(-1)!.text, /signed backups only/);
      const args = ["--allow-unsigned"];
      // Under the name of an archive or a record of its own there is no place.
      for (const command of ["a1.backup", "early"]) {
        assert.strictEqual((yield* run(world, { args, command }, small)).code, 5);
      }
      assert.strictEqual((yield* run(world, { args, command: "late" }, small)).code, 0);
      assert.deepStrictEqual(
        (yield* listed(world)).archives.map(({ name, signer }) => [name, signer]),
        [
          ["a1.backup", dom0.publicKey],
          ["early", null],
          ["late", null],
        ],
      );
    }),
  );

  it.effect("a signer who comes while it is under way stops it", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const client = yield* start(world, { command: "x" });
      yield* client.stdin.write(small.subarray(0, 50_000));
      yield* TestClock.adjust("3 seconds");
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(1) })).code, 0);
      yield* client.stdin.write(small.subarray(50_000));
      yield* client.stdin.end;
      assert.strictEqual(yield* client.exit, 5);
      assert.strictEqual((yield* listed(world)).archives.length, 1);
    }).pipe(Effect.scoped),
  );

  it.effect("stores nothing that is no archive", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const broken = [
        Buffer.alloc(0),
        Buffer.from("hello\n"),
        Buffer.from("backup-header"),
        Buffer.alloc(2_000_000),
        small.subarray(0, small.length - 1),
        small.subarray(0, small.length - 10_240),
        medium.subarray(0, 2 * blockSize),
        Buffer.concat([small, Buffer.alloc(512)]),
        Buffer.concat([small, small]),
        blocksOf(small)[0]!,
      ];
      for (const [i, bytes] of broken.entries()) {
        const { code, text } = yield* run(world, { command: "ls" }, bytes);
        assert.deepStrictEqual([code, text], [6, ""], String(i));
      }
      assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
      assert.strictEqual(world.said.lines.length, broken.length);
    }),
  );

  it.effect("a client of another protocol, which waits for an answer, is refused at once", () =>
    Effect.gen(function* () {
      const client = yield* start(memoryWorld(), { command: "internal-sftp" });
      yield* client.stdin.write(Buffer.from("000000050100000003", "hex"));
      assert.strictEqual(yield* client.exit, 6);
    }).pipe(Effect.scoped),
  );

  it.effect("a client that breaks off or says nothing leaves nothing", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const broken = yield* start(world, { command: "a.backup" });
      yield* broken.stdin.write(medium.subarray(0, 1_100_000));
      yield* TestClock.adjust("3 seconds");
      yield* broken.cut;
      assert.strictEqual(yield* broken.exit, 4);
      const killed = yield* start(world, { command: "a.backup" });
      yield* killed.stdin.write(medium.subarray(0, 1_100_000));
      yield* TestClock.adjust("3 seconds");
      yield* killed.kill;
      const silent = yield* start(world, { command: "a.backup" });
      yield* TestClock.adjust("1 hour");
      assert.strictEqual(yield* silent.exit, 4);
      assert.deepStrictEqual(disk.files(), [".qbackup/identity"]);
    }).pipe(Effect.scoped),
  );

  it.effect(
    "a client that drips inside a member is given up, and one that waits between is not",
    () =>
      Effect.gen(function* () {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const dripping = yield* start(world, { command: "a.backup", args: ["--floor", "1K"] });
        for (let i = 0; i < 3; i++) {
          assert.isFalse(dripping.ended(), `${i}`);
          yield* dripping.stdin.write(medium.subarray(20 * i, 20 * (i + 1)));
          // The first one has been there for ten minutes at most.
          yield* TestClock.adjust("40 minutes");
        }
        assert.strictEqual(yield* dripping.exit, 4);
        assert.match(world.said.lines.at(-1)!.text, /too slowly/);
        const members = membersOf(small).map(({ bytes }) => bytes);
        const slow = yield* start(world, { command: "b.backup" });
        for (const member of members) {
          yield* slow.stdin.write(member);
          yield* TestClock.adjust("59 minutes");
        }
        yield* slow.stdin.end;
        assert.strictEqual(yield* slow.exit, 0);
        assert.isTrue(disk.bytes("b.backup")!.equals(small));
      }).pipe(Effect.scoped),
  );
});

describe("the quota", () => {
  const series1 = { series: `s1-${series}` };
  const full: Put = { args: ["--quota", "1M"], bytes: 700_000 };
  const exact = (world: World) =>
    Effect.map(ask(world, "about", [], full.args), ({ replies: [first] }) =>
      first?.type === "about" ? first.room : Number.NaN,
    );

  it.effect("counts everything that the store has, and nothing else", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      disk.plant("sub", "directory");
      const world = memoryWorld(disk);
      const used = () =>
        disk
          .files()
          .filter((file) => file.startsWith(".qbackup/"))
          .reduce((sum, file) => sum + disk.bytes(file)!.length, 0);
      yield* serverKey(world);
      assert.strictEqual(yield* exact(world), 2 ** 20 - used());
      yield* upload(world, { archive: small, ...nth(1) });
      assert.isAbove(used(), small.length + 3000);
      assert.strictEqual(yield* exact(world), 2 ** 20 - used());
      // What others put beside it, a snapshot say, is not the account's.
      for (const file of ["filler", "sub/a.backup", "sub/a.backup.manifest.json"]) {
        disk.plant(file, Buffer.alloc(blockSize));
      }
      assert.strictEqual(yield* exact(world), 2 ** 20 - used());
      yield* upload(world, { archive: small, ...nth(2), cutAt: 100_000 });
      assert.strictEqual(yield* exact(world), 2 ** 20 - used());
      disk.plant(".qbackup/filler", Buffer.alloc(blockSize));
      assert.strictEqual(yield* exact(world), 0);
    }),
  );

  it.effect("has room for what a commit that broke off has put under packs already", () =>
    Effect.gen(function* () {
      const prepared = Effect.gen(function* () {
        const disk = new Disk();
        yield* serverKey(memoryWorld(disk));
        return disk;
      });
      const calm = yield* prepared;
      // Its ticket is written down, too.
      const bytes = (yield* exact(memoryWorld(calm))) - 5000;
      const put = { archive: small, ...nth(1), ...full, bytes, time: 0 };
      const before = calm.log.length;
      yield* upload(memoryWorld(calm), put);
      const links = calm.log
        .slice(before)
        .flatMap((one, i) => (one.operation === "link" ? [i] : []));
      assert.isAbove(links.length, 6);
      for (const link of links) {
        const disk = yield* prepared;
        let seen = -1;
        disk.fault = () => ((seen += 1) === link ? "off" : undefined);
        yield* upload(memoryWorld(disk), put);
        disk.fault = () => undefined;
        disk.crash(() => 0.999);
        const { replies } = yield* upload(memoryWorld(disk), put);
        assert.strictEqual(codeOf(replies), "stored", `link ${link}`);
      }
    }),
  );

  it.effect("refuses at admission what about has no room for, to the byte", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      yield* upload(world, { archive: small, ...nth(1) });
      const room = yield* exact(world);
      const more = yield* upload(world, { archive: small, ...nth(2), ...full, bytes: room + 1 });
      assert.deepStrictEqual([codeOf(more.replies), more.code], ["quota", 5]);
      const client = yield* open(world, { ...nth(2), ...full, bytes: room });
      assert.deepInclude(yield* client.next, { type: "ready" });
      // While that one is under way it has what its ticket asks for.
      assert.isBelow(yield* exact(world), 100);
      const other = { archive: small, ...nth(1), session: sessionOf(3), name: "x", ...series1 };
      const second = yield* upload(world, { ...other, ...full, bytes: 100 });
      assert.strictEqual(codeOf(second.replies), "quota");
      yield* client.cut;
      yield* client.exit;
      assert.isAtLeast(yield* exact(world), room - 5000);
    }).pipe(Effect.scoped),
  );

  it.effect("is counted again when the upload is there: tables and records too", () =>
    Effect.gen(function* () {
      const world = memoryWorld();
      yield* serverKey(world);
      const room = yield* exact(world);
      // Its bytes fit, and what is written down of them does not.
      const pack = small;
      const args = ["--quota", String(pack.length + 2 ** 20 - room + 400)];
      const { replies } = yield* upload(world, { archive: pack, bytes: pack.length, args });
      assert.strictEqual(codeOf(replies), "quota");
      assert.deepStrictEqual((yield* listed(world)).archives, []);
      // It is kept for when there is more room.
      const again = yield* upload(world, { archive: pack, run: 2 });
      assert.deepStrictEqual([again.offset, codeOf(again.replies)], [pack.length, "stored"]);
    }),
  );

  it.effect("is what is told where nobody said how much would come", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const call = { args: ["--quota", `${small.length}`], command: "a.backup" };
      assert.strictEqual((yield* run(world, call, small)).code, 5);
      assert.match(world.said.lines.at(-1)!.text, /no room left for this account/);
      assert.deepStrictEqual([kept(disk), leftovers(disk)], [[], []]);
    }),
  );

  it.effect("stands against many who come at once", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* serverKey(world);
      const said = yield* Effect.forEach(
        Array.from({ length: 12 }, (_, i) => i + 1),
        (n) => upload(world, { archive: small, ...nth(n), ...full, series: `s${n}-${series}` }),
        { concurrency: "unbounded" },
      );
      const stored = said.filter(({ replies }) => codeOf(replies) === "stored");
      assert.strictEqual(stored.length, 1);
      const size = disk
        .files()
        .filter((file) => file.startsWith(".qbackup/"))
        .reduce((sum, file) => sum + disk.bytes(file)!.length, 0);
      assert.isAtMost(size, 2 ** 20);
      for (const n of [20, 21]) {
        const bare = yield* run(world, { ...full, command: `bare${n}` } as never, small);
        assert.strictEqual(bare.code, 5);
      }
    }),
  );

  it.effect("an upload that another one has taken the room of is ended in the middle", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const client = yield* open(world, { ...nth(1), ...full });
      yield* client.next;
      yield* client.stdin.write(framesOf(small).subarray(0, upTo(small, 4)));
      yield* TestClock.adjust("2 seconds");
      assert.deepInclude(yield* client.next, { type: "ack" });
      disk.plant(".qbackup/tables/x", Buffer.alloc(900_000));
      disk.plant(".qbackup/packs/x", Buffer.alloc(1));
      yield* client.stdin.write(framesOf(small).subarray(upTo(small, 4), upTo(small, 8)));
      yield* TestClock.adjust("2 seconds");
      assert.strictEqual(codeOf(yield* client.rest), "quota");
    }).pipe(Effect.scoped),
  );

  it.effect("where room is short, the oldest of the same series goes, and no other", () =>
    Effect.gen(function* () {
      for (const short of ["quota", "disk"]) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const partly = { archive: medium, cutAt: upTo(medium, 20) };
        yield* run(world, { args: ["init"] });
        for (const { publicKey } of [dom0, otherDom0]) {
          yield* run(world, { args: ["signers", "add", publicKey] });
        }
        yield* upload(world, { ...partly, ...nth(1), signer: otherDom0 });
        yield* upload(world, { ...partly, ...nth(2), ...series1 });
        for (const n of [3, 4]) {
          yield* upload(world, { ...partly, ...nth(n) });
          yield* TestClock.adjust("1 minute");
        }
        const left = () => [1, 2, 3, 4].filter((n) => come(disk, n) !== undefined);
        assert.deepStrictEqual(left(), [1, 2, 3, 4], JSON.stringify(world.said.lines));
        const bytes = medium.length;
        const size = 4 * (offsetOf(medium, 20) + 5000);
        // Room for one more once one of them is gone.
        const quota = size + bytes - offsetOf(medium, 20) + 10_000;
        const args = short === "quota" ? ["--quota", String(quota)] : [];
        if (short === "disk")
          disk.capacity = disk.used + 64 * blockSize + bytes - offsetOf(medium, 19);
        const { replies } = yield* upload(world, { archive: medium, ...nth(5), bytes, args });
        assert.strictEqual(codeOf(replies), "stored", short);
        assert.deepStrictEqual(left(), [1, 2, 4], short);
        disk.capacity = Number.MAX_SAFE_INTEGER;
        const gone = yield* upload(world, { ...partly, ...nth(6), session: sessionOf(3) });
        assert.match(errorOf(gone.replies).why!, /room was needed/);
      }
    }),
  );

  it.effect("that is short in any case costs nothing that is kept", () =>
    Effect.gen(function* () {
      for (const short of ["quota", "no-space"]) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        for (const n of [1, 2]) {
          yield* upload(world, { archive: medium, ...nth(n), cutAt: upTo(medium, 20) });
        }
        const there = leftovers(disk);
        const room = 100_000;
        const args = short === "quota" ? ["--quota", String(disk.used + room)] : [];
        if (short === "no-space") disk.capacity = disk.used + 64 * blockSize + room;
        // Were both of them to go, there would be room for about so much.
        const most = 2 * offsetOf(medium, 20) + room;
        const put: Upload = { archive: medium, ...nth(3), args };
        const far = yield* upload(world, { ...put, bytes: most + 20_000 });
        assert.strictEqual(codeOf(far.replies), short);
        assert.deepStrictEqual(leftovers(disk), there, short);
        const near = yield* open(world, { ...put, bytes: most - 20_000 });
        assert.deepInclude(yield* near.next, { type: "ready" }, short);
        assert.deepStrictEqual([come(disk, 1), come(disk, 2)], [undefined, undefined], short);
      }
    }).pipe(Effect.scoped),
  );
});

describe("cleaning", () => {
  it.effect("removes what nobody came back for in a day, and nothing else", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const of = (n: number): Put => ({ ...nth(n), series: `s${n}-${series}` });
      const partly = (n: number) =>
        upload(world, { archive: medium, ...of(n), cutAt: upTo(medium, 9) });
      yield* upload(world, { archive: small, ...of(9) });
      for (const n of [1, 2, 3]) yield* partly(n);
      disk.plant(`${incoming(7)}.identity`, Buffer.alloc(3));
      disk.plant(".qbackup/incoming/something-else", Buffer.alloc(3));
      const living = yield* open(world, { ...of(3), time: 0 });
      yield* living.next;
      const hours = Effect.fnUntraced(function* (many: number) {
        for (let i = 0; i < many * 120; i++) {
          yield* living.stdin.write(keepAliveFrame);
          yield* TestClock.adjust("30 seconds");
        }
      });
      yield* hours(23);
      yield* partly(4);
      yield* hours(2);
      const next = yield* open(world, of(5));
      assert.deepInclude(yield* next.next, { type: "ready" });
      yield* TestClock.adjust("1 second");
      assert.deepStrictEqual(leftovers(disk), [
        ...[1, 2].map((n) => `.qbackup/gone/${sessionOf(n)}`),
        ...[3, 4, 5]
          .flatMap((n) =>
            ["", ".digests", ".table", ".ticket"].map((end) => `${incoming(n)}${end}`),
          )
          .toSorted(),
        ".qbackup/incoming/something-else",
      ]);
      assert.strictEqual((yield* listed(world)).archives.length, 1);
      const gone = yield* upload(world, { archive: medium, ...of(1), time: 0 });
      assert.deepInclude({ ...errorOf(gone.replies) }, { code: "gone" as const });
      assert.match(errorOf(gone.replies).why!, /no link came back/);
    }).pipe(Effect.scoped),
  );

  it.effect("of a committed upload's leftovers leaves its archive alone, and names it", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      disk.fault = ({ name, operation }) =>
        (operation === "remove" &&
          name.startsWith(incoming(1)) &&
          disk.files().includes("a1.backup.manifest.json")) ||
        (operation === "link" && name === `.qbackup/packs/${sessionOf(1)}`)
          ? "io"
          : undefined;
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(1) })).code, 0);
      disk.fault = () => undefined;
      assert.isTrue(come(disk)!.equals(small));
      assert.isUndefined(disk.bytes("a1.backup"));
      const next = yield* open(world, nth(2));
      yield* next.next;
      yield* TestClock.adjust("1 second");
      assert.isUndefined(come(disk));
      assert.isTrue(disk.bytes("a1.backup")!.equals(small));
      assert.strictEqual(kept(disk).length, 7);
    }).pipe(Effect.scoped),
  );

  it.effect("a foreign file under the name of an archive stays, and is told of", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      disk.fault = ({ name, operation }) => {
        // It comes just before the archive gets its own name.
        if (operation === "link" && name === `.qbackup/packs/${sessionOf(1)}`) {
          disk.plant("a1.backup", Buffer.from("mine"));
        }
        return undefined;
      };
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(1) })).code, 0);
      assert.strictEqual(disk.bytes("a1.backup")!.toString(), "mine");
      assert.include(world.journal.map(({ text }) => text).join("\n"), "verdict=foreign-file");
      assert.strictEqual((yield* listed(world)).archives.length, 1);
      assert.strictEqual((yield* upload(world, { archive: small, ...nth(1) })).code, 0);
      assert.strictEqual(disk.bytes("a1.backup")!.toString(), "mine");
    }),
  );

  it.effect("a plain file that is missing is made again, but not of a pruned archive", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      const put: Upload = { archive: small, ...nth(1) };
      yield* upload(world, put);
      const drop = () => {
        const { entries, stable } = disk.root;
        for (const names of [entries, stable]) names.delete("a1.backup");
      };
      drop();
      assert.strictEqual(codeOf((yield* upload(world, put)).replies), "stored");
      assert.isTrue(disk.bytes("a1.backup")!.equals(small));
      drop();
      disk.plant(".qbackup/tombstones", "directory");
      disk.plant(`.qbackup/tombstones/${sessionOf(1)}`, Buffer.from("x"));
      yield* upload(world, put);
      assert.isUndefined(disk.bytes("a1.backup"));
    }),
  );

  it.effect("a session whose record is gone is told so, and its pack is not written again", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, { archive: small, ...nth(1) });
      for (const name of ["a1.backup.manifest.json", "a1.backup"]) {
        for (const names of [disk.root.entries, disk.root.stable]) names.delete(name);
      }
      for (const why of [/record of its archive is missing/, /pruned/]) {
        const { replies } = yield* upload(world, {
          archive: small,
          ...nth(2),
          session: sessionOf(1),
        });
        assert.strictEqual(codeOf(replies), "gone");
        assert.match(errorOf(replies).why!, why);
        disk.plant(".qbackup/tombstones", "directory");
        disk.plant(`.qbackup/tombstones/${sessionOf(1)}`, Buffer.from("x"));
      }
      assert.isTrue(disk.bytes(`.qbackup/packs/${sessionOf(1)}`)!.equals(small));
    }),
  );

  it.effect("happens with the bare form, too", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* upload(world, { archive: medium, cutAt: upTo(medium, 9) });
      yield* TestClock.adjust("25 hours");
      const args = ["--allow-unsigned"];
      assert.strictEqual((yield* run(world, { args, command: "c" }, small)).code, 0);
      assert.isUndefined(come(disk));
    }),
  );

  it.effect("comes before a refusal for want of room, whosever it is", () =>
    Effect.gen(function* () {
      for (const short of ["quota", "no-space"]) {
        const disk = new Disk();
        const world = memoryWorld(disk);
        const days = (n: number) => TestClock.adjust(n * 24 * 3600 * 1000);
        yield* upload(world, { ...firstNight, cutAt: upTo(first, 5) });
        const args = short === "quota" ? ["--quota", String(disk.used + 1000)] : [];
        if (short === "no-space") disk.capacity = disk.used + 64 * blockSize;
        const room = Effect.map(ask(world, "about", [], args), ({ replies: [said] }) =>
          said?.type === "about" ? said.room : Number.NaN,
        );
        const put: Upload = { archive: first, ...nth(2), series: `x-${series}`, args };
        const bytes = offsetOf(first, 5) - 1000;
        const early = yield* upload(world, { ...put, bytes });
        assert.strictEqual(codeOf(early.replies), short);
        yield* days(29);
        assert.isBelow(yield* room, bytes, short);
        yield* days(1);
        // What it says is what a ticket gets; and it is a ticket that removes something.
        assert.isAbove(yield* room, bytes, short);
        assert.isDefined(come(disk));
        const late = yield* open(world, { ...put, bytes });
        assert.deepInclude(yield* late.next, { type: "ready" }, short);
        assert.isUndefined(come(disk), short);
      }
    }).pipe(Effect.scoped),
  );

  it.effect("does not hold up a put behind thousands of leftovers", () =>
    Effect.gen(function* () {
      const disk = new Disk();
      const world = memoryWorld(disk);
      yield* run(world, { args: ["init"] });
      for (let n = 100; n < 3100; n++) disk.plant(incoming(n), Buffer.alloc(10));
      yield* TestClock.adjust("25 hours");
      assert.strictEqual((yield* upload(world, { archive: small })).code, 0);
    }),
  );
});
