/** Starts a qvm-backup and reads what it writes, until it ends or is killed: `RUNDIR [PASSPHRASE-FILE]`. */
import * as Effect from "effect/Effect";
import { fifoQvmBackup } from "#layers/qubes/FifoQvmBackup";
import { runRole } from "#layers/process/NodeMain";
import { QvmBackup } from "#services/QvmBackup";

const runDirectory = process.argv[2]!;

runRole(
  Effect.gen(function* () {
    const { start } = yield* QvmBackup;
    const running = yield* start({
      qubes: ["work"],
      passphraseFile: process.argv[3] ?? "/tmp/passphrase",
    });
    process.stdout.write("started\n");
    const into = new Uint8Array(65_536);
    while ((yield* running.archive.read(into, into.length)) === into.length);
    return (yield* running.ended).code;
  }).pipe(Effect.scoped, Effect.orDie, Effect.provide(fifoQvmBackup({ runDirectory }))),
);
