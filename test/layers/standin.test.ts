/** The layers of dom0 over the stand-in for Qubes: its tools, its qubesd, its archives. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Fiber, Layer } from "effect";
import { type ChildProcess, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { rolldown } from "rolldown";
import { afterAll, beforeAll } from "vitest";
import { desktopReporter } from "#layers/desktop/DesktopReporter";
import { fifoQvmBackup } from "#layers/qubes/FifoQvmBackup";
import { notifySend } from "#layers/desktop/NotifySend";
import { qubesCli } from "#layers/qubes/QubesCli";
import { qvmRunQrexec } from "#layers/qubes/QvmRunQrexec";
import type { BytesError } from "#services/Bytes";
import { QvmBackup, type Running, type Tapped } from "#services/QvmBackup";
import { Reporter } from "#services/Reporter";
import { InnerFault, innerReader } from "#src/archive/inner";
import { Walk } from "#src/archive/walk";
import { sha256 } from "#src/proof/texts";
import { notifierContract } from "#test/contracts/notifier";
import { qrexecContract } from "#test/contracts/qrexec";
import { qubesContract, world as qubes } from "#test/contracts/qubes";
import { drain } from "#test/contracts/qvmbackup";
import { buildStandin } from "#test/standin/build";
import {
  type Fault,
  makeWorld,
  type Settings,
  temporaryDirectory,
  type World,
} from "#test/standin/world";
import { processesWith } from "#test/support/programs";
import { rng } from "#test/support/random";
import { line } from "#src/say/shown";
import { unless, without } from "#test/support/unless";
import { gone, until } from "#test/support/until";

const noPython = without("python3");
const made: Array<World> = [];
const directories: Array<string> = [];
let tools: string;
let program: string;
let script: string;
beforeAll(async () => {
  tools = temporaryDirectory();
  program = await buildStandin(path.join(tools, "standin"));
  script = path.join(tools, "start.mjs");
  const bundle = await rolldown({ input: "test/support/start-qvm-backup.ts", platform: "node" });
  await bundle.write({ file: script, format: "esm", codeSplitting: false });
  await bundle.close();
});
afterAll(() => {
  made.forEach((world) => world.stop());
  [tools, ...directories].forEach((dir) => fs.rmSync(dir, { recursive: true, force: true }));
});

const services = {
  "test.Echo": "#!/bin/sh\nexec cat\n",
  "test.Fail": "#!/bin/sh\nprintf 'no, thanks\\n\\033[31mred\\n' >&2; exit $1\n",
  "test.Deaf": "#!/bin/sh\nexec sleep 1000\n",
};
const fresh = (...faults: ReadonlyArray<Fault>): World => worldOf({}, ...faults);
const worldOf = (settings: Partial<Settings>, ...faults: ReadonlyArray<Fault>): World => {
  const dir = temporaryDirectory();
  directories.push(dir);
  const world = makeWorld({
    dir,
    program,
    faults,
    settings,
    qubes: qubes.map(({ included, name, qid, state }) => ({ name, qid, state, include: included })),
  });
  for (const [name, text] of Object.entries(services)) world.service("work", name, { text });
  fs.writeFileSync(path.join(world.dir, "passphrase"), "correct horse\n", { mode: 0o600 });
  made.push(world);
  return world;
};
const lazily = <S>(make: () => Layer.Layer<S>) => Layer.unwrap(Effect.sync(make));

qubesContract("QubesCli over the stand-in", () => lazily(() => qubesCli(fresh().env)));
qrexecContract("QvmRunQrexec over the stand-in", () => lazily(() => qvmRunQrexec(fresh().env)));
notifierContract("NotifySend over the stand-in", () => {
  let world: World | undefined;
  const env = { DBUS_SESSION_BUS_ADDRESS: "unix:path=/run/user/1000/bus" };
  return {
    layer: lazily(() => notifySend({ ...(world = fresh()).env, ...env })),
    shown: () =>
      world!.notifications().map(({ argv }) => ({
        urgency: argv.find((word) => word.startsWith("--urgency="))!.slice(10),
        summary: argv.at(-2)!,
        body: argv.at(-1)!,
      })),
  };
});

const runDirectory = (world: World) => path.join(world.dir, "state/run");
const backup = (world: World, limits = {}) =>
  fifoQvmBackup({
    runDirectory: runDirectory(world),
    env: world.env,
    limits,
    profiles: path.join(world.dir, "etc/qubes/backup"),
  });
const planOf = (world: World) => ({
  qubes: ["work", "sys-backup"],
  passphraseFile: path.join(world.dir, "passphrase"),
});
const run = <A, E>(
  world: World,
  what: (service: QvmBackup["Service"]) => Effect.Effect<A, E>,
  limits = {},
) =>
  Effect.gen(function* () {
    return yield* what(yield* QvmBackup);
  }).pipe(Effect.provide(backup(world, limits)));

/** qubesd answers, nothing runs, nothing lies about; not even the passphrase in a profile. */
const settled = async (world: World) => {
  await until(
    "the run's processes end",
    () => [...world.processes("tar"), ...processesWith(runDirectory(world))].length === 0,
  );
  assert.isFalse(fs.existsSync(path.join(runDirectory(world), "archive")), "the FIFO is there");
  assert.deepStrictEqual(world.profiles(), []);
  const ls = spawn("qvm-ls", ["--raw-list"], { env: world.env, stdio: "ignore" });
  const answered = await new Promise<boolean>((resolve) => {
    const timer = setTimeout(resolve, 60_000, false);
    ls.once("exit", (code) => {
      clearTimeout(timer);
      resolve(code === 0);
    });
  });
  ls.kill("SIGKILL");
  assert.isTrue(answered, "qubesd hangs");
};

describe("FifoQvmBackup over the stand-in", () => {
  it.live.each(["1.34", "1.35"] as const)("streams an archive to its end, by tar %s", (tar) =>
    Effect.gen(function* () {
      const world = worldOf({ tar });
      const said = yield* run(world, ({ start }) =>
        Effect.gen(function* () {
          const running = yield* start(planOf(world));
          const bytes = yield* drain(running);
          assert.isAbove(bytes.length, 20_000);
          assert.strictEqual(bytes.length % 10_240, 0);
          for (const name of [
            "backup-header",
            "vm2/private.img.000.enc",
            "vm7/private.img.000.enc",
          ]) {
            assert.isTrue(bytes.includes(name), name);
          }
          const walk = new Walk();
          assert.isUndefined(walk.push(bytes));
          assert.lengthOf(walk.finish() as ReadonlyArray<unknown>, 5);
          return yield* running.ended;
        }).pipe(Effect.scoped),
      );
      assert.deepStrictEqual(said, { code: 0, said: [] });
      yield* Effect.promise(() => settled(world));
    }),
  );

  /** A tapped backup: what comes of `take` for each file, and how qvm-backup ends. */
  const tapped = <A>(world: World, take: (file: Tapped) => Effect.Effect<A, unknown>) =>
    run(world, ({ start }) =>
      Effect.gen(function* () {
        const running = yield* start({ ...planOf(world), tapped: true });
        const listing = yield* Effect.forkScoped(drain(running));
        const taken: Array<A> = [];
        for (;;) {
          const file = yield* running.nextFile;
          if (file === undefined) break;
          taken.push(yield* take(file));
        }
        const walk = new Walk({ listing: true });
        walk.push(yield* Fiber.join(listing));
        return { taken, walk, ended: yield* running.ended };
      }).pipe(Effect.scoped),
    );
  const whole = Effect.fnUntraced(function* ({ done, stream }: Tapped) {
    const reader = innerReader();
    const into = Buffer.alloc(100_000);
    const slots: Array<string> = [];
    let name = "";
    for (;;) {
      const n = yield* stream.read(into);
      if (n === 0) reader.end();
      else reader.push(into.subarray(0, n));
      for (let next = reader.next(); next !== undefined; next = reader.next()) {
        if (next instanceof InnerFault) return assert.fail(next.message);
        if (next.type === "file") name = next.name;
        if (next.type === "slot") slots.push(sha256(Buffer.from(next.bytes).toString("hex")));
        if (next.type === "end") {
          yield* done;
          return `${name} ${slots.join(" ")}`;
        }
      }
    }
  });
  describe("through its tap", unless(noPython), () => {
    it.live("hands over each file, the same of files and of block devices", () =>
      Effect.gen(function* () {
        const came: Array<ReadonlyArray<string>> = [];
        for (const blockDevices of [false, true]) {
          const world = worldOf({ blockDevices });
          const { ended, taken, walk } = yield* tapped(world, whole);
          assert.deepStrictEqual(ended, { code: 0, said: [] });
          assert.lengthOf(walk.finish() as ReadonlyArray<unknown>, 5);
          assert.deepStrictEqual(
            walk.members.slice(2).map(({ path, size }) => [path, size]),
            taken.map((one) => [`${one.split(" ")[0]}.000.enc`, 128]),
          );
          came.push(taken);
          yield* Effect.promise(() => settled(world));
        }
        // qubes.xml has the time in it, and qubesd takes qubes in any order.
        const sorted = came.map((files) => files.slice(1).sort());
        assert.deepStrictEqual(sorted[0], sorted[1]);
        assert.isAtLeast(came[0]!.length, 3);
      }),
    );
    it.live("is the list that it is where qubesd's scrypt was killed, and wrote nothing", () =>
      Effect.gen(function* () {
        const world = fresh({ tool: "qvm-backup", kind: "temp-full" });
        const { ended, taken, walk } = yield* tapped(world, whole);
        assert.deepStrictEqual(ended, { code: 0, said: [] });
        assert.deepStrictEqual(
          walk.members.slice(3).map(({ path, size }) => [path, size]),
          taken.slice(1).map((one) => [`${one.split(" ")[0]}.000.enc`, 0]),
        );
        assert.lengthOf(walk.finish() as ReadonlyArray<unknown>, 5);
        yield* Effect.promise(() => settled(world));
      }),
    );
    it.live.each([
      [false, { code: 1, said: /Failed to archive vm[0-9]+\/private\.img file/ }],
      [true, { code: 0, said: /^$/ }],
    ] as const)(
      "is not told by qvm-backup that a tap died, of block devices: %s",
      ([blockDevices, end]) =>
        Effect.gen(function* () {
          const world = worldOf({ blockDevices });
          let files = 0;
          const { ended } = yield* tapped(world, (file) =>
            Effect.gen(function* () {
              files += 1;
              if (files !== 2) return yield* whole(file);
              // All was read, and nobody has said so.
              yield* whole({ ...file, done: Effect.void });
              signalTaps(world, "SIGKILL");
              return "";
            }),
          );
          assert.strictEqual(ended.code, end.code);
          assert.match(ended.said.join(), end.said);
          yield* Effect.promise(() => settled(world));
        }),
    );
    const tapsOf = (world: World) =>
      processesWith(path.join(runDirectory(world), "tap")).filter((pid) => {
        try {
          return fs.readFileSync(`/proc/${pid}/comm`, "utf8") === "tap\n";
        } catch {
          return false;
        }
      });
    const signalTaps = (world: World, signal: NodeJS.Signals) =>
      tapsOf(world).forEach((pid) => process.kill(pid, signal));
    /** A run that ends while a file is under way, after `what` happened, and what of it was waited for. */
    const amid = <A>(what: (world: World, running: Running) => Effect.Effect<A, BytesError>) =>
      Effect.gen(function* () {
        const world = fresh();
        const told = yield* run(
          world,
          ({ start }) =>
            Effect.gen(function* () {
              const running = yield* start({ ...planOf(world), tapped: true });
              yield* whole((yield* running.nextFile)!);
              const { stream } = (yield* running.nextFile)!;
              yield* stream.read(Buffer.alloc(1000));
              return yield* what(world, running);
            }).pipe(Effect.scoped),
          { again: 300, kill: 600, late: 500 },
        );
        signalTaps(world, "SIGCONT");
        yield* Effect.promise(() => settled(world));
        return told;
      });
    it.live("ends with a run that ends while a file is under way", () => amid(() => Effect.void));
    it.live("holds nobody up where it does nothing any more", () =>
      amid((world) => Effect.sync(() => signalTaps(world, "SIGSTOP"))),
    );
    it.live("fails qvm-backup when it is killed, and then there are no more files", () =>
      Effect.gen(function* () {
        const told = yield* amid((world, { ended, nextFile }) => {
          signalTaps(world, "SIGKILL");
          return Effect.all({ code: Effect.map(ended, ({ code }) => code), next: nextFile });
        });
        assert.deepStrictEqual(told, { code: 1, next: undefined });
      }),
    );
    it.live("ends when qvm-backup is killed, though qubesd goes on", () =>
      Effect.gen(function* () {
        const told = yield* amid((world, running) => {
          for (const pid of processesWith(path.join(runDirectory(world), "archive"))) {
            process.kill(pid, "SIGKILL");
          }
          return Effect.all({
            code: Effect.map(running.ended, ({ code }) => code),
            next: running.nextFile,
            // qubesd holds the FIFO open for as long as it waits for somebody to read the file.
            rest: Effect.match(drain(running), {
              onSuccess: () => "",
              onFailure: ({ cause }) => String(cause),
            }),
          });
        });
        assert.deepStrictEqual({ ...told, rest: "" }, { code: 137, next: undefined, rest: "" });
        assert.match(told.rest, /something holds the FIFO open/);
      }),
    );
    it.live("ends when qubesd is killed", () =>
      Effect.gen(function* () {
        const told = yield* amid((world, { ended, nextFile }) => {
          for (const { pid } of world.processes("qubesd")) process.kill(pid, "SIGKILL");
          return Effect.all({ code: Effect.map(ended, ({ code }) => code), next: nextFile });
        });
        assert.deepStrictEqual(told, { code: 1, next: undefined });
      }),
    );
  });

  const faults: ReadonlyArray<readonly [Fault, code: number | undefined, said: string]> = [
    [{ tool: "qvm-backup", kind: "write-nothing", open: false }, 0, ""],
    [{ tool: "qvm-backup", kind: "write-nothing" }, 0, ""],
    [{ tool: "qvm-backup", kind: "fail", text: "out of luck", after: 20_000 }, 1, "out of luck"],
    [{ tool: "qvm-backup", kind: "fail", stage: "info", text: "no" }, 1, "preparation error: no"],
    [{ tool: "qvm-backup", kind: "traceback" }, 1, "Traceback"],
    [{ tool: "qvm-backup", kind: "empty-response", after: 20_000 }, 1, "Got empty response"],
    [{ tool: "qvm-backup", kind: "hang-before-open" }, undefined, ""],
    [{ tool: "qvm-backup", kind: "hang-after", after: 20_000 }, undefined, ""],
    [{ tool: "qvm-backup", kind: "slow", bytesPerSecond: 5_000 }, undefined, ""],
    [{ tool: "qvm-backup", kind: "hang" }, undefined, ""],
  ];
  it.live.each(faults)("%o", ([fault, code, text]) =>
    Effect.gen(function* () {
      const world = fresh(fault);
      yield* run(world, ({ start }) =>
        Effect.gen(function* () {
          const running = yield* start(planOf(world));
          const rest = drain(running);
          if (code === undefined) return yield* Effect.timeoutOption(rest, "700 millis");
          yield* rest;
          const ended = yield* running.ended;
          assert.strictEqual(ended.code, code);
          assert.include(ended.said.join("; "), text);
        }).pipe(Effect.scoped),
      );
      assert.isFalse(fs.existsSync(runDirectory(world)));
      yield* Effect.promise(() => settled(world));
    }),
  );

  it.live("kills one that is deaf, and cancels what goes on in qubesd", () =>
    Effect.gen(function* () {
      const world = fresh(
        { tool: "qvm-backup", kind: "ignore-sigint" },
        { tool: "qvm-backup", kind: "hang-after", after: 20_000 },
      );
      const start = (service: QvmBackup["Service"]) =>
        Effect.gen(function* () {
          const running = yield* service.start(planOf(world));
          yield* running.archive.read(new Uint8Array(10_240), 10_240);
        }).pipe(Effect.scoped);
      yield* run(world, start, { again: 150, kill: 300 });
      yield* Effect.promise(() => settled(world));
      assert.isTrue(world.calls("qubesd-query").length > 0);
    }),
  );

  it.live("kill -9 at any moment leaves no open that hangs", () =>
    Effect.promise(async () => {
      const world = fresh({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 2_000_000 });
      const random = rng(11);
      const begin = (): ChildProcess =>
        spawn(process.execPath, [script, runDirectory(world), path.join(world.dir, "passphrase")], {
          env: world.env,
          stdio: ["ignore", "pipe", "inherit"],
          detached: true,
        });
      const began = performance.now();
      const first = begin();
      await new Promise((resolve) => first.stdout!.once("data", resolve));
      const start = performance.now() - began;
      await gone(first);
      const whole = performance.now() - began;
      for (let i = 0; i < 12; i++) {
        const child = begin();
        const wait = start * 0.7 + random.next() * (whole - start * 0.7);
        await new Promise((resolve) => setTimeout(resolve, wait));
        child.kill("SIGKILL");
        await gone(child);
        const did = await Effect.runPromise(run(world, ({ recover }) => recover));
        await settled(world);
        assert.isFalse(fs.existsSync(runDirectory(world)), did.join());
      }
    }),
  );
});

it.live("DesktopReporter over the stand-in: the journal has every line in its order", () =>
  Effect.gen(function* () {
    const world = fresh();
    yield* Effect.gen(function* () {
      const { say } = yield* Reporter;
      for (let i = 0; i < 5; i++) yield* say(i === 2 ? "error" : "info", line`line ${i}`);
    }).pipe(
      Effect.provide(
        desktopReporter({
          program: "qbackup",
          terminal: false,
          stderrIsTTY: false,
          underSystemd: false,
          env: world.env,
          write: () => {},
        }),
      ),
    );
    const lines = world.journal().filter((line) => line.includes("qbackup"));
    assert.strictEqual(lines.length, 5, lines.join("\n"));
    lines.forEach((line, i) => assert.include(line, `line ${i}`));
  }),
);
