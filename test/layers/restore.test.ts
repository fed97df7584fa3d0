/** The layers that feed qvm-backup-restore. */
import { assert, it } from "@effect/vitest";
import { Effect } from "effect";
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll } from "vitest";
import { fifoQvmRestore } from "#layers/qubes/FifoQvmRestore";
import { memoryQvmRestore, qvmRestoreScript } from "#layers/memory/MemoryQvmRestore";
import { QvmRestore } from "#services/QvmRestore";
import { plan, type Play, qvmRestoreContract } from "#test/contracts/qvmrestore";
import { programs, type Programs } from "#test/support/programs";

const made: Array<Programs> = [];
afterAll(() => made.forEach((it) => it.remove()));

/** Opens, reads and closes as Python does, with node. */
const tool = (play: Play) => `#!${process.execPath}
const fs = require("node:fs");
const play = ${JSON.stringify(play)};
const dir = process.env.DIR;
fs.writeFileSync(dir + "/call", JSON.stringify([process.argv.slice(2), process.umask(), fs.readlinkSync("/proc/self/fd/0")]));
const location = process.argv.find((word) => word.endsWith("/archive"));
const hang = () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
const end = () => { for (const line of play.says ?? []) fs.writeSync(2, line + "\\n"); process.exit(play.code ?? 0); };
for (let reading = 0; reading < 3; reading++) {
  if (play.neverOpens === reading) hang();
  if (play.exitsBefore === reading) end();
  const fd = fs.openSync(location, "r");
  if (play.hangsIn === reading) hang();
  const most = (play.stopsAfter ?? [])[reading] ?? Infinity;
  const bytes = Buffer.alloc(4096);
  let got = 0;
  for (let n = 1; n > 0 && got < most; got += n) {
    n = fs.readSync(fd, bytes);
    fs.appendFileSync(dir + "/fed" + reading, bytes.subarray(0, n));
  }
  fs.closeSync(fd);
}
end();
`;

const fifo = (play: Play) => {
  const it = programs();
  made.push(it);
  it.add("qvm-backup-restore", tool(play));
  const directory = path.join(it.dir, "state/restore");
  const layer = fifoQvmRestore({ directory, env: it.env, limits: { again: 300, kill: 600 } });
  const fed = (reading: number) => fs.readFileSync(path.join(it.dir, `fed${reading}`));
  return { it, directory, layer, fed };
};

qvmRestoreContract("FifoQvmRestore", fifo);
qvmRestoreContract("MemoryQvmRestore", (play) => {
  const script = qvmRestoreScript(play);
  return { layer: memoryQvmRestore(script), fed: (reading) => script.fed[reading]! };
});

it.live(
  "knows what one that was killed has left unpacked, and touches nothing of one that runs",
  () =>
    Effect.gen(function* () {
      const { directory, it } = fifo({});
      const unpacking = path.join(it.dir, "QubesIncoming");
      const proc = path.join(it.dir, "proc");
      const left = () =>
        Effect.flatMap(QvmRestore, ({ leftovers }) => leftovers).pipe(
          Effect.provide(fifoQvmRestore({ directory, env: it.env, unpacking, proc })),
        );
      fs.mkdirSync(path.join(proc, "77"), { recursive: true });
      assert.deepStrictEqual(yield* left(), []);
      const made = path.join(unpacking, "backup#restore/tmpab");
      fs.mkdirSync(made, { recursive: true });
      assert.deepStrictEqual(yield* left(), [made]);
      fs.writeFileSync(
        path.join(proc, "77/cmdline"),
        "/usr/bin/python3\0/usr/bin/qvm-backup-restore\0--verify-only\0",
      );
      assert.deepStrictEqual(yield* left(), []);
    }),
);

it.live("gives the tool its command line, a umask and no stdin, and leaves nothing", () =>
  Effect.gen(function* () {
    const { directory, it, layer } = fifo({ exitsBefore: 0 });
    fs.mkdirSync(path.join(directory, "999999999"), { recursive: true }); // of a killed run
    yield* Effect.gen(function* () {
      const { start } = yield* QvmRestore;
      yield* (yield* start({ ...plan, qubes: ["work", "mail"] })).ended;
      assert.deepStrictEqual(fs.readdirSync(directory), [`${process.pid}`]);
      assert.strictEqual(fs.statSync(directory).mode & 0o777, 0o700);
    }).pipe(Effect.scoped, Effect.provide(layer));
    const [argv, umask, stdin] = JSON.parse(it.read("call"));
    assert.deepStrictEqual(argv, [
      "--verify-only",
      "--passphrase-file",
      "/tmp/passphrase",
      "--ignore-missing",
      path.join(directory, `${process.pid}`, "archive"),
      "work",
      "mail",
    ]);
    assert.strictEqual(umask, 0o077);
    assert.strictEqual(stdin, "/dev/null");
    assert.isFalse(fs.existsSync(directory));
  }),
);
it.live("refuses what is no qube's name, and a directory that is a link", () =>
  Effect.gen(function* () {
    const { directory, it, layer } = fifo({});
    const start = (more: object) =>
      QvmRestore.use((service) => service.start({ ...plan, ...more })).pipe(
        Effect.scoped,
        Effect.provide(layer),
        Effect.flip,
        Effect.map((error) => error.message),
      );
    assert.match(yield* start({ qubes: ["--verify-only"] }), /could not name what to restore/);
    assert.match(yield* start({ qubes: [""] }), /could not name what to restore/);
    assert.match(yield* start({ passphraseFile: "x" }), /not absolute/);
    fs.mkdirSync(path.dirname(directory), { recursive: true });
    fs.symlinkSync(it.dir, directory);
    assert.match(yield* start({}), /is no directory of this user/);
    assert.strictEqual(it.read("call"), "");
  }),
);
it.live("gives the paranoid mode its command as one word", () =>
  Effect.gen(function* () {
    const { it, layer } = fifo({ exitsBefore: 0 });
    yield* QvmRestore.use((service) => service.startParanoid(plan, "net", "env fetch a 1")).pipe(
      Effect.flatMap(({ ended }) => ended),
      Effect.scoped,
      Effect.provide(layer),
    );
    const [argv] = JSON.parse(it.read("call"));
    assert.deepStrictEqual(argv.slice(-6), [
      "--paranoid-mode",
      "--auto-close",
      "--dest-vm",
      "net",
      "env fetch a 1",
      "work",
    ]);
  }),
);
