/** Archives that are kept on a server and known to a ledger, without a run for each. */
import { NodeServices } from "@effect/platform-node";
import { assert } from "@effect/vitest";
import { Duration, Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import { Itself } from "#services/Itself";
import { memorySealing } from "#layers/memory/MemorySealing";
import { ledgerLine, parseLedger } from "#layers/files/FileLedger";
import { type BooksDisk, booksDisk, memoryBooks } from "#layers/memory/MemoryBooks";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { memoryNotifier, type Notification } from "#layers/memory/MemoryNotifier";
import { inProcessQrexec, memoryPipe } from "#layers/memory/MemoryPipe";
import { aQube, memoryQubes, type QubesTable, qubesTable } from "#layers/memory/MemoryQubes";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { memorySettings } from "#layers/memory/MemorySettings";
import { Invocation } from "#services/Invocation";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { dom0 } from "#src/dom0/cli/main";
import { sha256 } from "#src/proof/texts";
import type { Name, Session, Signature } from "#src/wire/names";
import { archiveOf } from "#test/support/archive";
import { kept, keyOf, type Lies, peer, type Shelf, shelf } from "#test/support/peer";
import { linesOf, rootOf, tableOf, textOf } from "#test/support/reference";
import { rng } from "#test/support/random";

export const server = keyOf("server");

const seed = (text: string): Uint8Array => Buffer.from(sha256(text), "hex");

export interface World {
  readonly said: Said;
  readonly notes: Array<Notification>;
  readonly disk: BooksDisk;
  readonly table: QubesTable;
  readonly shelf: Shelf;
  /** The lock on runs, as it is kept from call to call. */
  readonly locks: ReturnType<typeof memoryLocks>;
}

export const world = (): World => {
  const disk = booksDisk();
  disk.pins.set("net", server.publicKey);
  disk.secrets = { signing: seed("signing key of a test"), series: seed("series key of a test") };
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

/** dom0's own key, which is in its books. */
export const dom0Key = keyOf("signing key of a test");

/** What a plain archive or a pack of members is, by the second implementation. */
export const manifestOf = (
  name: string,
  bytes: Buffer,
  at: string,
  more: { readonly [key: string]: unknown } = {},
): string => {
  const lines = linesOf(tableOf(bytes));
  return textOf("manifest", {
    name,
    session: sessionOf(name, at),
    server: server.publicKey,
    signer: dom0Key.publicKey,
    series: "0123456789abcdef",
    run: Math.floor(Date.parse(at) / 1000),
    created: at,
    size: bytes.length,
    members: lines.length,
    root: rootOf(lines),
    format: "qvm-backup",
    next: null,
    ...more,
  });
};

const sessionOf = (name: string, at: string) => sha256(`${name} ${at}`).slice(0, 32) as Session;

/**
 * Puts an archive onto the shelf with manifest and receipt, and a line for it into the ledger. With
 * `recipe`, `bytes` are what its own pack has, and `manifest` says what the whole is.
 */
export const keep = (
  w: World,
  name: string,
  bytes: Buffer,
  options: {
    readonly known?: boolean;
    readonly rebuilt?: boolean;
    readonly passphrase?: number;
    readonly at?: string;
    readonly key?: typeof server;
    readonly manifest?: { readonly [key: string]: unknown };
    readonly recipe?: string;
    readonly qubes?: ReadonlyArray<{ readonly name: string; readonly qid: number }>;
  } = {},
): Stored => {
  const { at = "2026-01-31T04:00:00Z", key = server, known = true } = options;
  const session = sessionOf(name, at);
  const others = [...w.shelf.committed.keys()].filter((one) => one !== name);
  const manifest = manifestOf(name, bytes, at, {
    server: key.publicKey,
    run: Math.floor(Date.parse(at) / 1000) + others.length,
    ...options.manifest,
  });
  const made = kept(bytes, manifest, {
    at,
    key,
    signer: dom0Key,
    ...(options.recipe === undefined ? {} : { recipe: options.recipe }),
  });
  w.shelf.committed.set(name, made);
  if (known) {
    const line = ledgerLine(
      {
        name: name as Name,
        session,
        destination: "net",
        server: key.publicKey,
        asked: { qubes: ["work", "mail"], includeDom0: false, prefix: name.replace(/\d.*/, "") },
        qubes: options.qubes ?? [
          { name: "work", qid: 2 },
          { name: "mail", qid: 3 },
        ],
        manifest,
        signature: dom0Key.sign("manifest", manifest),
        finished: at,
        receipt: made.receipt,
        receiptSignature: made.receiptSignature as Signature,
        ...(options.rebuilt === true ? { rebuilt: true } : {}),
        ...(options.passphrase === undefined ? {} : { passphrase: options.passphrase }),
      },
      parseLedger(Buffer.from(w.disk.text)).last,
    );
    w.disk.text += `${line}\n`;
  }
  return { name, session, bytes, manifest };
};

/** What lies on the shelf under this name is now this; the server does not know. */
export const replace = (w: World, name: string, bytes: Buffer): void =>
  void w.shelf.committed.set(name, { ...w.shelf.committed.get(name)!, bytes });

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
        memoryBooks(w.disk),
        memoryQubes(w.table),
        options.tools ?? Layer.mergeAll(Layer.mock(QvmBackup, {}), Layer.mock(QvmRestore, {})),
        memorySealing,
        Layer.mock(Itself, { runtime: "" }),
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
