/** qbackup in one process, with all that is around it in memory: what dom0's tests run it in. */
import { NodeServices } from "@effect/platform-node";
import { assert } from "@effect/vitest";
import { Duration, Effect, Fiber, identity, Layer } from "effect";
import { TestClock } from "effect/testing";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { type BooksDisk, booksDisk, memoryBooks } from "#layers/memory/MemoryBooks";
import { type LockTable, memoryLocks } from "#layers/memory/MemoryLocks";
import { memoryNotifier, type Notification } from "#layers/memory/MemoryNotifier";
import { itselfScript, type ItselfScript, memoryItself } from "#layers/memory/MemoryItself";
import { memorySealing } from "#layers/memory/MemorySealing";
import { inProcessQrexec, memoryPipe } from "#layers/memory/MemoryPipe";
import { aQube, memoryQubes, type QubesTable, qubesTable } from "#layers/memory/MemoryQubes";
import {
  memoryQvmBackup,
  qvmBackupScript,
  type QvmBackupScript,
} from "#layers/memory/MemoryQvmBackup";
import { memoryQvmRestore, type QvmRestoreScript } from "#layers/memory/MemoryQvmRestore";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { memorySettings } from "#layers/memory/MemorySettings";
import { Invocation } from "#services/Invocation";
import { QvmRestore } from "#services/QvmRestore";
import { dom0 } from "#src/dom0/cli/main";
import { type Lies, peer, type Shelf, shelf } from "#test/support/peer";

export const tiny = fs.readFileSync(
  new URL("../fixtures/sample-tiny-lowcost.qubes-backup", import.meta.url),
);
const qubes = [
  aQube("work", 2),
  aQube("mail", 3),
  aQube("vault", 4),
  aQube("net", 9, { included: false }),
];

export interface World {
  readonly said: Said;
  readonly notes: Array<Notification>;
  readonly disk: BooksDisk;
  readonly table: QubesTable;
  script: QvmBackupScript;
  readonly shelf: Shelf;
}
export const world = (
  archive: Uint8Array = tiny,
  script: Partial<QvmBackupScript> = {},
): World => ({
  said: { lines: [], progress: [] },
  notes: [],
  disk: booksDisk(),
  table: qubesTable(qubes),
  script: qvmBackupScript({ chunks: [{ bytes: archive, percent: 100 }], ...script }),
  shelf: shelf(),
});

/** Entropy is another one each time, and the same in every run of a test. */
let drawn = 0;
/** Runs `qbackup ARGS` in the world; the clock goes as fast as it can, until it ends. */
export const qbackup = Effect.fnUntraced(function* (
  w: World,
  options: {
    readonly lies?: Lies;
    readonly args?: ReadonlyArray<string>;
    readonly far?: Parameters<typeof inProcessQrexec>[0];
    /** Somebody sits at a terminal. */
    readonly attended?: boolean;
    readonly locks?: LockTable;
    /** Around the whole program. */
    readonly around?: <A, E, R>(it: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>;
    /** Simulated time after which the run has to have ended. */
    readonly within?: Duration.Input;
    readonly out?: Array<string>;
    readonly settings?: Readonly<Record<string, string>>;
    /** What comes of the commands that it runs as a person would. */
    readonly itself?: ItselfScript;
    /** How qvm-backup-restore behaves, where it is to be called. */
    readonly restore?: QvmRestoreScript;
    /** What is typed. */
    readonly typed?: string;
  } = {},
) {
  const typed = memoryPipe();
  yield* typed.sink.write(Buffer.from(options.typed ?? ""));
  yield* typed.sink.end;
  const role = (options.around ?? identity)(dom0).pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args: options.args ?? ["-t", "net", "-p", "/pass", "work", "mail", "vault"],
          env: {},
          watched: options.attended === true,
          stdin:
            options.typed === undefined
              ? { read: () => Effect.die("stdin is read"), received: () => 0 }
              : typed.source,
          stdout: {
            write: (b) => Effect.sync(() => void options.out?.push(Buffer.from(b).toString())),
            end: Effect.void,
          },
          entropy: (n) =>
            createHash("shake128", { outputLength: n })
              .update(`${(drawn += 1)}`)
              .digest(),
        }),
        memoryReporter(w.said),
        memoryNotifier(w.notes),
        memoryBooks(w.disk),
        memoryQubes(w.table),
        memoryQvmBackup(w.script),
        options.restore === undefined
          ? Layer.mock(QvmRestore, {})
          : memoryQvmRestore(options.restore),
        memorySealing,
        memoryItself(options.itself ?? itselfScript(() => Effect.undefined)),
        memoryLocks(options.locks),
        memorySettings({
          // A script without files is one of qvm-backup's own archive.
          ...("files" in w.script ? {} : { QBKP_FORMAT: "qvm-backup" }),
          ...options.settings,
        }),
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
export const nothingProven = (w: World) => {
  assert.strictEqual(w.disk.text, "");
  assert.strictEqual(w.notes.at(-1)?.urgency, "critical");
  tidy(w);
};
export const tidy = (w: World) => {
  const state = w.table.qubes.find((q) => q.name === "net")!.state;
  assert.strictEqual(state, "Halted", "the destination qube still runs");
  assert.isTrue(w.said.lines.every(({ text }) => /^[\x20-\x7e]*$/.test(text)));
};
