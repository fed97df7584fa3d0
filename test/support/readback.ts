/** Archives that are kept on a server and known to a ledger, without a run for each. */
import { NodeServices } from "@effect/platform-node";
import { assert } from "@effect/vitest";
import { Duration, Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import { ledgerLine, parseLedger } from "#layers/files/FileLedger";
import { type LedgerDisk, ledgerDisk, memoryLedger } from "#layers/memory/MemoryLedger";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { memoryNotifier, type Notification } from "#layers/memory/MemoryNotifier";
import { inProcessQrexec, memoryPipe } from "#layers/memory/MemoryPipe";
import { aQube, memoryQubes, type QubesTable, qubesTable } from "#layers/memory/MemoryQubes";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { memorySettings } from "#layers/memory/MemorySettings";
import { Invocation } from "#services/Invocation";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { Walk } from "#src/archive/walk";
import { dom0 } from "#src/dom0/cli/main";
import { sha256 } from "#src/proof/manifest";
import type { Name, Session } from "#src/wire/names";
import { archiveOf } from "#test/support/archive";
import { keyOf, type Lies, peer, type Shelf, shelf, treeHash } from "#test/support/peer";
import { rng } from "#test/support/random";

export const server = keyOf("server");

export interface World {
  readonly said: Said;
  readonly notes: Array<Notification>;
  readonly disk: LedgerDisk;
  readonly table: QubesTable;
  readonly shelf: Shelf;
  /** The lock on runs, as it is kept from call to call. */
  readonly locks: ReturnType<typeof memoryLocks>;
}

export const world = (): World => {
  const disk = ledgerDisk();
  disk.pins.set("net", server.server);
  return {
    said: { lines: [], progress: [] },
    notes: [],
    disk,
    table: qubesTable([aQube("net", 9, { included: false })]),
    shelf: shelf(),
    locks: memoryLocks(),
  };
};

export interface Stored {
  readonly name: string;
  readonly session: Session;
  readonly bytes: Buffer;
  readonly manifest: string;
}

/** An archive of about this many bytes with the qubes 2 and 3 in it. */
export const anArchive = (seed: number, size: number): Buffer =>
  archiveOf({
    seed,
    files: [
      { path: "vm2/private.img", size: Math.floor(size * 0.7) },
      { path: "vm3/private.img", size: Math.floor(size * 0.3) },
    ],
  });

/** Puts an archive onto the shelf with manifest and receipt, and a line for it into the ledger. */
export const keep = (
  w: World,
  name: string,
  bytes: Buffer,
  options: {
    readonly known?: boolean;
    readonly at?: string;
    readonly key?: typeof server;
    readonly members?: ReadonlyArray<object>;
    readonly qubes?: ReadonlyArray<{ readonly name: string; readonly qid: number }>;
  } = {},
): Stored => {
  const { at = "2026-01-31T04:00:00Z", key = server, known = true } = options;
  const session = sha256(`${name} ${at}`).slice(0, 32) as Session;
  const walk = new Walk();
  walk.push(bytes);
  const members = walk.finish();
  const manifest = JSON.stringify({
    version: 1,
    name,
    session,
    server: key.server,
    size: bytes.length,
    treehash: treeHash(bytes),
    created: at,
    members: options.members ?? (Array.isArray(members) ? members : []),
  });
  const receipt = JSON.stringify({
    version: 1,
    name,
    session,
    size: bytes.length,
    treehash: treeHash(bytes),
    manifest: sha256(manifest),
    stored: at,
  });
  const reply = { type: "stored", receipt, signature: key.sign(receipt) };
  w.shelf.committed.set(name, { session, bytes, reply, manifest, digestsOf: bytes });
  if (known) {
    const line = ledgerLine(
      {
        name: name as Name,
        session,
        destination: "net",
        server: key.server,
        asked: { qubes: ["work", "mail"], includeDom0: false, prefix: name.replace(/\d.*/, "") },
        qubes: options.qubes ?? [
          { name: "work", qid: 2 },
          { name: "mail", qid: 3 },
        ],
        manifest,
        finished: at,
        receipt,
        signature: reply.signature,
      },
      parseLedger(Buffer.from(w.disk.text)).last,
    );
    w.disk.text += `${line}\n`;
  }
  return { name, session, bytes, manifest };
};

/** Runs `qbackup ARGS -t net`; the clock goes as fast as it can, until it ends. */
export const qbackup = Effect.fnUntraced(function* (
  w: World,
  args: ReadonlyArray<string>,
  options: {
    readonly lies?: Lies;
    readonly seed?: number;
    readonly far?: Parameters<typeof inProcessQrexec>[0];
    readonly within?: Duration.Input;
    readonly columns?: number;
    readonly settings?: Readonly<Record<string, string>>;
    readonly tools?: Layer.Layer<QvmBackup | QvmRestore>;
  } = {},
) {
  const random = rng(options.seed ?? 1);
  w.said.lines.length = 0;
  w.said.progress.length = 0;
  let out = "";
  const role = dom0.pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args: args.includes("-t") ? args : [args[0]!, "-t", "net", ...args.slice(1)],
          env: {},
          stdin: { read: () => Effect.die("stdin is read"), received: () => 0 },
          stdout: {
            write: (b) => Effect.sync(() => void (out += Buffer.from(b).toString())),
            end: Effect.void,
          },
          entropy: (n) => random.bytes(n),
          ...(options.columns === undefined ? {} : { columns: options.columns }),
        }),
        memoryReporter(w.said),
        memoryNotifier(w.notes),
        memoryLedger(w.disk),
        memoryQubes(w.table),
        options.tools ?? Layer.mergeAll(Layer.mock(QvmBackup, {}), Layer.mock(QvmRestore, {})),
        w.locks,
        memorySettings(options.settings ?? {}),
        inProcessQrexec(
          options.far ?? peer(w.shelf, options.lies),
          Effect.sync(() => ({ up: memoryPipe(), down: memoryPipe() })),
        ),
        NodeServices.layer,
      ),
      { local: true },
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
  assert.match(text, /^[\x20-\x7e\n]*$/);
  assert.match(out, /^[\x20-\x7e\n]*$/);
  assert.strictEqual(w.table.qubes.find(({ name }) => name === "net")!.state, "Halted");
  assert.isUndefined(w.disk.unfinished);
  return { code, out, text, seconds: at / 1000 };
});
