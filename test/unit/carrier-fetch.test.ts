/** The carrier as the program that prints an archive, against a server that is honest, broken or hostile. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { memorySettings } from "#layers/memory/MemorySettings";
import { type FarEnd, memorySsh } from "#layers/memory/MemorySsh";
import { BytesError, type Source } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { parseCommand, toLine } from "#src/wire/request";
import { fetch } from "#src/carrier/fetch";
import { backupHeader } from "#src/archive/compose";
import { archiveOf, scryptOf, slotOf } from "#test/support/archive";
import { linesOf, rootOf, tableOf } from "#test/support/reference";
import { type Lies, peer } from "#test/support/peer";
import { anArchive, keep, world } from "#test/support/readback";

const mebibyte = 1_048_576;
const archive = anArchive(1, 3.4 * mebibyte);
/** The words that dom0 prints for an archive on the shelf. */
const wordsFor = (manifest: string): ReadonlyArray<string> => {
  const { format, members, name, root, size } = JSON.parse(manifest);
  return ["fetch", name, format, `${size}`, `${members}`, root];
};
const kept = () => {
  const w = world();
  const { manifest } = keep(w, "a.backup", archive);
  return { w, args: wordsFor(manifest) };
};
type World = ReturnType<typeof world>;

/** The tests' peer at the far end of ssh, where the request is a command and not a line. */
const server =
  (w: World, lies: Lies = {}): FarEnd =>
  (invocation, command) => {
    const parsed = parseCommand(command);
    if (!("request" in parsed)) return Effect.succeed(2);
    const line = Buffer.from(`${toLine(parsed.request)}\n`);
    let at = 0;
    const stdin: Source = {
      received: invocation.stdin.received,
      read: (into, atLeast = 1) =>
        Effect.suspend(() => {
          const n = Math.min(into.length, line.length - at);
          into.set(line.subarray(at, at + n));
          at += n;
          return n >= atLeast
            ? Effect.succeed(n)
            : Effect.map(invocation.stdin.read(into.subarray(n), atLeast - n), (m) => n + m);
        }),
    };
    return peer(w.shelf, lies)({ ...invocation, stdin }, `+${parsed.request.verb}`);
  };

const run = Effect.fnUntraced(function* (
  far: FarEnd,
  options: { readonly args: ReadonlyArray<string>; readonly stopsAfter?: number },
) {
  const said: Said = { lines: [], progress: [] };
  const commands: Array<string> = [];
  const out: Array<Buffer> = [];
  let printed = 0;
  const fiber = yield* fetch.pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args: options.args,
          env: { QREXEC_REMOTE_DOMAIN: "disp1" },
          stdin: { read: () => Effect.die("stdin is read"), received: () => 0 },
          stdout: {
            write: (bytes) =>
              Effect.suspend(() => {
                printed += bytes.length;
                if (printed > (options.stopsAfter ?? Number.POSITIVE_INFINITY)) {
                  return new BytesError({ cause: new Error("EPIPE") });
                }
                out.push(Buffer.from(bytes));
                return Effect.void;
              }),
            end: Effect.void,
          },
          entropy: () => new Uint8Array(0),
        }),
        memoryReporter(said),
        memorySettings({ SSH_CONN: "me@server" }),
        memorySsh(far, commands),
      ),
      { local: true },
    ),
    Effect.forkChild,
  );
  for (let i = 0; i < 2000 && fiber.pollUnsafe() === undefined; i++)
    yield* TestClock.adjust("1 second");
  const code = yield* Fiber.join(fiber);
  const text = said.lines.map(({ level, text }) => `${level}: ${text}`).join("\n");
  return { code, commands, text, out: Buffer.concat(out) };
});

describe("qubes.BackupCarrier fetch", () => {
  it.effect("prints the archive, and goes on where a link broke", () =>
    Effect.gen(function* () {
      const { args, w } = kept();
      const one = yield* run(server(w), { args });
      assert.strictEqual(one.code, 0, one.text);
      assert.isTrue(one.out.equals(archive));
      const [, session] = /table ([0-9a-f]{32})$/.exec(one.commands[1]!)!;
      assert.deepStrictEqual(one.commands, [
        "me@server qbackup/1 recipe a.backup",
        `me@server qbackup/1 table ${session}`,
        "me@server qbackup/1 read",
      ]);
      const cut = new Set<number>();
      const two = yield* run(
        server(w, {
          before: "welcome\n",
          text: (frame, _, verb) => {
            if (verb === "recipe" || cut.has(-1)) return frame;
            cut.add(-1);
            return "cut";
          },
          frame: (frame, { block, member }) => {
            if (member !== 3 || cut.has(block)) return frame;
            cut.add(block);
            return "cut";
          },
        }),
        { args },
      );
      assert.strictEqual(two.code, 0, two.text);
      assert.isTrue(two.out.equals(archive));
      assert.lengthOf(two.commands, 3 + 1 + 3);
    }),
  );
  /** A night of slots as it was sealed. */
  const aNight = (seed: number) => {
    const random = archiveOf({ seed, files: [] });
    const salt = random.subarray(-32);
    const behind = ["qubes.xml.000.enc", "vm2/private.img.000.enc", "vm2/private.img.001.enc"].map(
      (path, i) => slotOf(path, scryptOf(Buffer.alloc(700 + i * mebibyte, seed), salt)),
    );
    const seal = rootOf(linesOf(tableOf(Buffer.concat(behind))));
    const header = backupHeader("20261123T030424-14807", seal, seed);
    return [
      slotOf("backup-header", Buffer.from(header)),
      slotOf("backup-header.hmac", scryptOf(Buffer.alloc(119, seed), salt)),
      ...behind,
    ];
  };
  const keptAs = (members: ReadonlyArray<Buffer>, format: string) => {
    const w = world();
    const bytes = Buffer.concat(members);
    const size =
      format === "slots" ? Math.ceil((bytes.length + 1024) / 10_240) * 10_240 : bytes.length;
    const { manifest } = keep(w, "s.backup", bytes, { manifest: { format, size } });
    return {
      w,
      args: wordsFor(manifest),
      whole: Buffer.concat([bytes, Buffer.alloc(size - bytes.length)]),
    };
  };
  it.effect("prints slots with the zeros at their end, which belong to no member", () =>
    Effect.gen(function* () {
      const { args, w, whole } = keptAs(aNight(1), "slots");
      const { code, out, text } = yield* run(server(w), { args });
      assert.strictEqual(code, 0, text);
      assert.isTrue(out.equals(whole));
    }),
  );
  it.effect("prints nothing of what a server has put together from several nights", () =>
    Effect.gen(function* () {
      // All of it is as the words say, which with --force are the server's own.
      const one = aNight(1);
      const two = aNight(2);
      const sealed = /its members are not those that it was sealed with/;
      for (const [members, format, said] of [
        [[...one.slice(0, 4), two[4]!], "slots", sealed],
        [one.slice(0, 4), "slots", sealed],
        [[...one.slice(0, 2), ...two.slice(2)], "slots", sealed],
        // Nor where it calls it something else, or has a header elsewhere.
        [[...one.slice(0, 4), two[4]!], "qvm-backup", /not a whole archive/],
        [[...two.slice(0, 2), ...one], "slots", /not a whole archive/],
        [[...one.slice(2), ...one.slice(0, 2)], "slots", /not a whole archive/],
      ] as const) {
        const { args, w } = keptAs(members, format);
        const { code, out, text } = yield* run(server(w), { args });
        assert.strictEqual(code, 6, text);
        assert.match(text, said);
        assert.lengthOf(out, 0);
      }
    }),
  );
  it.effect("waits for a server that takes its time, but not for ever", () =>
    Effect.gen(function* () {
      const { args, w } = kept();
      const slow = yield* run(server(w, { opened: () => '{"type":"alive"}\n{"type":"ready"}\n' }), {
        args,
      });
      assert.strictEqual(slow.code, 0, slow.text);
      assert.isTrue(slow.out.equals(archive));
      for (const lies of [
        { mute: "at-once" },
        { text: () => "mute" },
        { frame: () => "mute" },
      ] satisfies ReadonlyArray<Lies>) {
        const { code, text } = yield* run(server(w, lies), { args });
        assert.strictEqual(code, 4, text);
        assert.match(text, /silence for \d+ s/);
      }
    }),
  );
  it.effect("prints nothing that is not proven", () =>
    Effect.gen(function* () {
      const { args, w } = kept();
      const bent = (frame: Buffer, at: number) => {
        const copy = Buffer.from(frame);
        copy[at < 0 ? copy.length + at : at]! ^= 1;
        return copy;
      };
      for (const lies of [
        { frame: (f, { index }) => (index === 4 ? bent(f, 100) : f) },
        { frame: (f, { index }) => (index === 4 ? bent(f, -1) : f) },
        { recipe: (text) => text.replace(" 5", " 4") },
        { recipe: (text) => `${text}${text}` },
        { table: (text) => text.replace(/[0-9a-f]{64}/, "0".repeat(64)) },
        { table: (text) => text.slice(0, -1) },
        { table: () => "x".repeat(1_000_000) },
      ] satisfies ReadonlyArray<Lies>) {
        const { code, out, text } = yield* run(server(w, lies), { args });
        assert.strictEqual(code, 6, text);
        assert.isTrue(out.equals(archive.subarray(0, out.length)));
        assert.isAtMost(out.length, 30_720 + mebibyte);
        if (!("frame" in lies)) assert.lengthOf(out, 0);
      }
      const other = yield* run(server(w), { args: [...args.slice(0, 5), "0".repeat(64)] });
      assert.strictEqual(other.code, 6, other.text);
      assert.match(other.text, /something else under the name a.backup/);
    }),
  );
  it.effect("says why it cannot", () =>
    Effect.gen(function* () {
      const { args, w } = kept();
      const none = yield* run(() => Effect.succeed("unreachable" as const), { args });
      assert.strictEqual(none.code, 4);
      assert.lengthOf(none.commands, 5);
      assert.match(none.text, /could not connect to me@server/);
      const refused = yield* run(server(world()), { args });
      assert.strictEqual(refused.code, 5, refused.text);
      const bytes = Buffer.from(archive);
      bytes[2 * mebibyte]! ^= 1;
      w.shelf.committed.set("a.backup", { ...w.shelf.committed.get("a.backup")!, bytes });
      const damaged = yield* run(server(w), { args });
      assert.strictEqual(damaged.code, 5, damaged.text);
      assert.match(damaged.text, /vm2\/private.img.000.enc: this block is not what it was/);
    }),
  );
  it.effect("ends well when its reader has seen enough", () =>
    Effect.gen(function* () {
      const { args, w } = kept();
      const { code, text } = yield* run(server(w), { args, stopsAfter: 1_500_000 });
      assert.strictEqual(code, 0, text);
    }),
  );
  const root = "0".repeat(64);
  it.effect.each([
    ["fetch", "a.backup"],
    ["fetch", "../x", "qvm-backup", "10", "1", root],
    ["fetch", "-oProxyCommand=x", "qvm-backup", "10", "1", root],
    ["fetch", "a.backup", "tar", "10", "1", root],
    ["fetch", "a.backup", "slots", "0", "1", root],
    ["fetch", "a.backup", "slots", "10", "0", root],
    ["fetch", "a.backup", "slots", "10", "1048577", root],
    ["fetch", "a.backup", "slots", "10", "1", "x"],
    ["fetch", "a.backup", "slots", "10", "1", root, "more"],
  ])("refuses %j %j %j %j %j %j", (...args) =>
    Effect.map(
      run(() => Effect.die("it was called"), {
        args: args.filter((word) => typeof word === "string"),
      }),
      ({ code, commands }) => {
        assert.strictEqual(code, 2);
        assert.lengthOf(commands, 0);
      },
    ),
  );
});
