import { assert, describe, it } from "@effect/vitest";
import { Effect, Exit, Redacted } from "effect";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { rolldown } from "rolldown";
import { afterAll, beforeAll } from "vitest";
import { type FifoOptions, fifoQvmBackup } from "#layers/qubes/FifoQvmBackup";
import { memoryQvmBackup, qvmBackupScript } from "#layers/memory/MemoryQvmBackup";
import { type Plan, QvmBackup } from "#services/QvmBackup";
import {
  drain,
  pattern,
  plan,
  type Play,
  qvmBackupContract,
  sizeOf,
} from "#test/contracts/qvmbackup";
import { type FakeQubes, fakeQubes } from "#test/support/fifo";
import { processesWith, type Programs, programs } from "#test/support/programs";
import { rng } from "#test/support/random";
import { gone, until } from "#test/support/until";

const made: Array<Programs> = [];
const daemons: Array<FakeQubes> = [];
const fresh = () => {
  const it = programs();
  made.push(it);
  return it;
};
const qubes = async () => {
  const it = fresh();
  const fake = await fakeQubes(it);
  daemons.push(fake);
  return { it, fake, runDirectory: path.join(it.dir, "state/run") };
};
afterAll(() => {
  daemons.forEach((it) => it.stop());
  made.forEach((it) => it.remove());
});

/** Plays by itself, without a qubesd. */
const player = (play: Play) => {
  const it = fresh();
  fs.writeFileSync(path.join(it.dir, "bytes"), pattern(sizeOf(play)));
  let at = 0;
  const steps = play.chunks.flatMap(({ after, percent, size }) => {
    const from = at;
    at += size;
    return [
      `sleep ${(after ?? 0) / 1000}`,
      `tail -c +${from + 1} "$DIR/bytes" | head -c ${size} >&4`,
      ...(percent === undefined ? [] : [`printf '\\rMaking a backup... ${percent}0%%' >&2`]),
    ];
  });
  it.add(
    "qvm-backup",
    [
      `for word; do case $word in */archive) fifo=$word;; esac; done`,
      // In the background, as what writes is no child of the genuine one: sh would wait for it
      // before it heeds a signal.
      "trap 'exit 130' INT",
      "{",
      ...(play.chunks.length > 0 ? ['exec 4>"$fifo"', ...steps] : [":"]),
      "} & wait",
      ...(play.hangs === true ? ["sleep 1000 & wait"] : []),
      ...(play.said ?? []).map((line) => `printf '\\n${line}\\n' >&2`),
      `exit ${play.code ?? 0}`,
    ].join("\n"),
  );
  return it;
};

qvmBackupContract("FifoQvmBackup", (play) => {
  const it = player(play);
  return fifoQvmBackup({ runDirectory: path.join(it.dir, "state/run"), env: it.env });
});

qvmBackupContract("MemoryQvmBackup", (play) => {
  const bytes = pattern(sizeOf(play));
  let at = 0;
  return memoryQvmBackup(
    qvmBackupScript({
      chunks: play.chunks.map(({ after, percent, size }) => {
        at += size;
        return {
          bytes: bytes.subarray(at - size, at),
          after: after ?? 0,
          ...(percent === undefined ? {} : { percent }),
        };
      }),
      hangs: play.hangs === true,
      ends: { code: play.code ?? 0, said: play.said ?? [] },
    }),
  );
});

const use = <A, E>(
  options: FifoOptions,
  what: (service: QvmBackup["Service"]) => Effect.Effect<A, E, never>,
) =>
  Effect.gen(function* () {
    return yield* what(yield* QvmBackup);
  }).pipe(Effect.provide(fifoQvmBackup(options)));

const openFiles = () => fs.readdirSync("/proc/self/fd").length;

/** Nothing may be left: no FIFO, no directory, no process, no descriptor, and a qubesd that answers. */
const nothingLeft = async ({ fake, it }: { fake: FakeQubes; it: Programs }, fds: number) => {
  assert.isTrue(await fake.answers(), `qubesd hangs: ${fake.log().join(", ")}`);
  assert.isFalse(fs.existsSync(path.join(it.dir, "state/run")));
  await until(
    "its processes end",
    () => processesWith(path.join(it.dir, "state/run")).length === 0,
  );
  await until("its descriptors are closed", () => openFiles() <= fds);
};

describe("FifoQvmBackup", () => {
  it.live("reads two writers one after another, and leaves nothing", () =>
    Effect.gen(function* () {
      const world = yield* Effect.promise(qubes);
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      fake.orders({ writers: [{ size: 300_000 }, { size: 100_000, after: 200 }], thinks: 100 });
      const play = use({ runDirectory, env: it.env }, ({ start }) =>
        Effect.gen(function* () {
          const running = yield* start(plan);
          assert.strictEqual(fs.statSync(runDirectory).mode & 0o777, 0o700);
          assert.strictEqual(fs.statSync(path.join(runDirectory, "archive")).mode & 0o777, 0o600);
          const bytes = yield* drain(running);
          assert.isTrue(bytes.equals(pattern(400_000)));
          assert.deepStrictEqual(yield* running.ended, { code: 0, said: [] });
          assert.deepStrictEqual(running.progress(), { percent: 100.06, shown: 2 });
        }).pipe(Effect.scoped),
      );
      yield* play;
      yield* play;
      yield* Effect.promise(() => nothingLeft(world, fds));
    }),
  );

  it.live("cancels with SIGINT when the scope closes, a full FIFO or not", () =>
    Effect.gen(function* () {
      const world = yield* Effect.promise(qubes);
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      fake.orders({ writers: [{ size: 5_000_000 }] });
      yield* use({ runDirectory, env: it.env }, ({ start }) =>
        Effect.gen(function* () {
          const running = yield* start(plan);
          yield* running.archive.read(new Uint8Array(1000), 1000);
          yield* Effect.sleep("100 millis");
        }).pipe(Effect.scoped),
      );
      assert.includeMembers([...fake.log()], ["SIGINT", "cancelled"]);
      // The tar that was left over has nobody to write to, and ends.
      yield* Effect.promise(() =>
        until("tar ends", () => /^tar (1|SIGPIPE)$/.test(fake.log().at(-1)!)),
      );
      yield* Effect.promise(() => nothingLeft(world, fds));
    }),
  );

  it.live("stays there for a qubesd that opens the FIFO while it is being cancelled", () =>
    Effect.gen(function* () {
      const world = yield* Effect.promise(qubes);
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      fake.orders({ writers: [{ size: 10 }], thinks: 300 });
      for (const wait of [0, 30, 60, 100, 200, 300, 320, 350]) {
        yield* use({ runDirectory, env: it.env }, ({ start }) =>
          Effect.andThen(start(plan), Effect.sleep(wait)).pipe(Effect.scoped),
        );
      }
      yield* Effect.promise(() => nothingLeft(world, fds));
    }),
  );

  it.live("kills a qvm-backup that is deaf to SIGINT, after its time", () =>
    Effect.gen(function* () {
      const world = yield* Effect.promise(qubes);
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      it.add("qubesd-query", `echo "$*" > "$DIR/query"`);
      fake.orders({ writers: [{ size: 10 }, { size: 10, after: 600_000 }], deaf: true });
      yield* use({ runDirectory, env: it.env, limits: { again: 200, kill: 400 } }, ({ start }) =>
        Effect.gen(function* () {
          const running = yield* start(plan);
          yield* running.archive.read(new Uint8Array(10), 10);
        }).pipe(Effect.scoped),
      );
      assert.strictEqual(fake.log().filter((line) => line === "SIGINT").length, 2);
      assert.match(it.read("query"), /^-e dom0 admin\.backup\.Cancel dom0 backup-run-[0-9]+\n$/);
      yield* Effect.promise(() => nothingLeft(world, fds));
    }),
  );

  it.live("does not wait for ever for what holds the FIFO open after the exit", () =>
    Effect.gen(function* () {
      const world = yield* Effect.promise(qubes);
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      fake.orders({ writers: [{ size: 100 }], lingers: 3_000 });
      const exit = yield* use({ runDirectory, env: it.env, limits: { late: 300 } }, ({ start }) =>
        Effect.flatMap(start(plan), drain).pipe(Effect.scoped, Effect.exit),
      );
      assert.isTrue(Exit.isFailure(exit));
      assert.include(String(Exit.isFailure(exit) && exit.cause), "holds the FIFO open");
      yield* Effect.promise(() => nothingLeft(world, fds));
    }),
  );

  it.live("hands qvm-backup exactly what the plan says", () =>
    Effect.gen(function* () {
      const { fake, it, runDirectory } = yield* Effect.promise(qubes);
      fake.orders({});
      const argv = Effect.fnUntraced(function* (what: Partial<Plan>) {
        fs.rmSync(path.join(it.dir, "argv"), { force: true });
        yield* use({ runDirectory, env: it.env }, ({ start }) =>
          Effect.flatMap(start({ ...plan, ...what }), drain).pipe(Effect.scoped),
        );
        return JSON.parse(it.read("argv")) as Array<string>;
      });
      const fifo = path.join(runDirectory, "archive");
      const always = ["--yes", "--compress", "--passphrase-file", "/tmp/passphrase", fifo];
      assert.deepStrictEqual(yield* argv({}), [...always, "work"]);
      assert.deepStrictEqual(yield* argv({ qubes: ["work", "dom0", "work"] }), [
        ...always,
        "work",
        "dom0",
      ]);
      assert.deepStrictEqual(yield* argv({ compressFilter: "zstd" }), [
        "--yes",
        "--compress-filter",
        "zstd",
        ...always.slice(2),
        "work",
      ]);
      const tap = path.join(runDirectory, "tap");
      assert.deepStrictEqual(yield* argv({ tapped: true, compressFilter: "zstd" }), [
        "--yes",
        "--compress-filter",
        tap,
        ...always.slice(2),
        "work",
      ]);
      // Without a name qvm-backup would take its default set.
      for (const bad of [
        { qubes: [] },
        { qubes: ["-x"] },
        { qubes: ["wo*"] },
        { passphraseFile: "p" },
      ]) {
        assert.isTrue(Exit.isFailure(yield* Effect.exit(argv(bad))), JSON.stringify(bad));
      }
    }),
  );

  it.live("is not tapped where a shell would not read the tap's path as it is", () =>
    Effect.gen(function* () {
      const { it } = yield* Effect.promise(qubes);
      for (const name of ["a b", "a;b", "a$b", "x".repeat(120)]) {
        const runDirectory = path.join(it.dir, name, "run");
        const exit = yield* Effect.exit(
          use({ runDirectory, env: it.env }, ({ start }) =>
            Effect.scoped(start({ ...plan, tapped: true })),
          ),
        );
        assert.include(
          String(Exit.isFailure(exit) && exit.cause),
          "is too long for a socket, or has other signs",
        );
        assert.isFalse(fs.existsSync(runDirectory));
      }
    }),
  );

  it.live("names a qube for which all fails, of which qvm-backup tells on stdout alone", () =>
    Effect.gen(function* () {
      const { it, runDirectory } = yield* Effect.promise(qubes);
      it.add(
        "qvm-backup",
        `echo "  work |   VM |  7.0 MiB | <-- The VM is running and private volume snapshots are disabled. Backup will fail!"
echo "  mail |   VM |  7.0 MiB |"
echo "Backup error: Got empty response from qubesd." >&2; exit 1`,
      );
      const ended = yield* use({ runDirectory, env: it.env }, ({ start }) =>
        Effect.gen(function* () {
          const running = yield* start(plan);
          yield* drain(running);
          return yield* running.ended;
        }).pipe(Effect.scoped),
      );
      assert.deepStrictEqual(ended, {
        code: 1,
        said: [
          "Backup error: Got empty response from qubesd.",
          "work runs and keeps no snapshots: shut it down",
        ],
      });
    }),
  );

  it.live("knows a program that gives back what it compressed from one that does not", () =>
    Effect.gen(function* () {
      const { it, runDirectory } = yield* Effect.promise(qubes);
      it.add("half", `if [ "$1" = -d ]; then head -c 100; else cat; fi`);
      const tried = yield* Effect.forEach(["gzip", "cat", "half", "true", "no-such"], (program) =>
        use({ runDirectory, env: it.env }, ({ compresses }) => compresses(program)),
      );
      assert.deepStrictEqual(tried, [true, false, false, false, false]);
    }),
  );

  it.live("says what is missing, and leaves nothing", () =>
    Effect.gen(function* () {
      const { it, runDirectory } = yield* Effect.promise(qubes);
      const bare = { ...it.env, PATH: it.dir };
      const start = (env: typeof it.env) =>
        use({ runDirectory, env }, (service) =>
          Effect.gen(function* () {
            const running = yield* service.start(plan);
            yield* drain(running);
            return yield* running.ended;
          }).pipe(Effect.scoped),
        );
      const none = yield* Effect.flip(start(bare));
      assert.include(String(none), "mkfifo is not installed");
      fs.symlinkSync("/usr/bin/mkfifo", path.join(it.dir, "mkfifo"));
      const some = yield* Effect.flip(start(bare));
      assert.include(String(some), "setpriv is not installed");
      fs.rmSync(path.join(it.dir, "qvm-backup"));
      const ended = yield* start(it.env);
      assert.strictEqual(ended.code, 127);
      assert.include(ended.said.join(), "qvm-backup");
      assert.isFalse(fs.existsSync(runDirectory));
    }),
  );

  it.live("takes a passphrase file for what qvm-backup will make of it", () =>
    Effect.gen(function* () {
      const { dir, env } = fresh();
      const check = (content: string | Buffer | undefined, mode = 0o600) => {
        const file = path.join(dir, "passphrase");
        fs.rmSync(file, { force: true });
        if (content !== undefined) fs.writeFileSync(file, content, { mode });
        if (content !== undefined) fs.chmodSync(file, mode);
        return use({ runDirectory: path.join(dir, "run"), env }, (it) =>
          Effect.exit(it.checkPassphrase(path.relative(process.cwd(), file))),
        );
      };
      const fine = yield* check("correct horse\nmore");
      assert.deepStrictEqual(
        fine,
        Exit.succeed({
          path: `${dir}/passphrase`,
          characters: 13,
          warning: undefined,
          unfit: undefined,
          doubts: ["the passphrase file has more than one line: only the first is the passphrase"],
        }),
      );
      const taken = yield* use({ runDirectory: path.join(dir, "run"), env }, (it) =>
        it.passphrase(path.join(dir, "passphrase")),
      );
      assert.strictEqual(Buffer.from(Redacted.value(taken)).toString(), "correct horse");
      assert.notInclude(String(taken) + JSON.stringify(taken), "horse");
      // Whoever holds it leaves no core.
      assert.match(fs.readFileSync("/proc/self/limits", "utf8"), /^Max core file size +1 +1 /m);
      const gone = yield* check(undefined);
      assert.match(`${gone}`, /could not use the passphrase file \S+: there is no such file\)/);
      const open = yield* check("correct horse", 0o640);
      assert.include(Exit.isSuccess(open) ? open.value.warning : "", "(mode 0640)");
      for (const bad of [
        undefined,
        "",
        "\nsecret",
        "  \t\n",
        Buffer.from([0xff, 10]),
        Buffer.from("fine\n\xff\n", "latin1"),
        "\ufeff \nsecret",
        "x".repeat(70_000),
      ]) {
        const exit = yield* check(bad);
        assert.isTrue(Exit.isFailure(exit));
        assert.notInclude(String(Exit.isFailure(exit) && exit.cause), "secret");
      }
    }),
  );
});

describe("FifoQvmBackup.recover", () => {
  /** One run that is killed with SIGKILL. */
  let script: string;
  beforeAll(async () => {
    const it = fresh();
    script = path.join(it.dir, "start.mjs");
    const bundle = await rolldown({ input: "test/support/start-qvm-backup.ts", platform: "node" });
    await bundle.write({ file: script, format: "esm", codeSplitting: false });
    await bundle.close();
  });
  const run = (it: Programs, runDirectory: string): ChildProcess =>
    spawn(process.execPath, [script, runDirectory], {
      env: it.env,
      stdio: ["ignore", "pipe", "inherit"],
      detached: true,
    });

  it.live(
    "kill -9 at any moment leaves no open that hangs, and nothing that the next run does not clear",
    () =>
      Effect.promise(async () => {
        const world = await qubes();
        const { fake, it, runDirectory } = world;
        const fds = openFiles();
        fake.orders({ writers: [{ size: 2_000_000 }, { size: 10, after: 50 }], thinks: 20 });
        const random = rng(7);
        // How long it takes until it has started differs from machine to machine.
        const began = performance.now();
        const first = run(it, runDirectory);
        await new Promise((resolve) => first.stdout!.once("data", resolve));
        const start = performance.now() - began;
        await gone(first);
        for (let i = 0; i < 24; i++) {
          const child = run(it, runDirectory);
          const wait = start * 0.6 + random.next() * (start * 0.4 + 250);
          await new Promise((resolve) => setTimeout(resolve, wait));
          child.kill("SIGKILL");
          await gone(child);
          assert.isTrue(await fake.answers(), `hangs after ${wait} ms: ${fake.log().join(", ")}`);
          // What was cancelled needs a moment to go.
          await until(`all ends, after ${wait} ms`, () => processesWith(runDirectory).length === 0);
        }
        await Effect.runPromise(use({ runDirectory, env: it.env }, ({ recover }) => recover));
        await nothingLeft(world, fds);
        assert.notInclude(fake.log(), "NOT A FIFO");
      }),
  );

  it.live("a run that dies before its qvm-backup has asked for the signal never starts it", () =>
    Effect.promise(async () => {
      const world = await qubes();
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      fake.orders({ writers: [{ size: 10 }] });
      it.add("setpriv", `touch "$DIR/late"; sleep 0.4; exec /usr/bin/setpriv "$@"`);
      const child = run(it, runDirectory);
      await until("setpriv is there", () => fs.existsSync(path.join(it.dir, "late")));
      child.kill("SIGKILL");
      await gone(child);
      await until("setpriv is through", () => processesWith(runDirectory).length === 0);
      assert.strictEqual(it.read("argv"), "");
      const did = await Effect.runPromise(
        use({ runDirectory, env: it.env }, (service) => service.recover),
      );
      assert.strictEqual(did.length, 1);
      await nothingLeft(world, fds);
    }),
  );

  it.live("SIGINT, SIGTERM and SIGHUP put everything back", () =>
    Effect.promise(async () => {
      const world = await qubes();
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      fake.orders({ writers: [{ size: 10 }, { size: 10, after: 600_000 }] });
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
        const opened = () => fake.log().filter((line) => line === "opened").length;
        const before = opened();
        const child = run(it, runDirectory);
        await until("qubesd opens the FIFO", () => opened() > before);
        child.kill(signal);
        await gone(child);
        await nothingLeft(world, fds);
      }
      assert.strictEqual(fake.log().filter((line) => line === "cancelled").length, 3);
    }),
  );

  it.live("finds a qvm-backup that outlived its run, and cancels it", () =>
    Effect.promise(async () => {
      const world = await qubes();
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      // One that does not ask for a signal at its parent's death.
      it.add("setpriv", `shift 3; exec "$@"`);
      fake.orders({ writers: [{ size: 10 }, { size: 10, after: 600_000 }] });
      const child = run(it, runDirectory);
      await until("qubesd opens the FIFO", () => fake.log().includes("opened"));
      child.kill("SIGKILL");
      await gone(child);
      assert.isNotEmpty(processesWith(runDirectory));
      const recover = () =>
        Effect.runPromise(use({ runDirectory, env: it.env }, (service) => service.recover));
      const did = await recover();
      assert.match(did[0]!, /^cancelled a qvm-backup .* \(process [0-9]+\)$/);
      assert.include(fake.log(), "cancelled");
      await nothingLeft(world, fds);
      assert.deepStrictEqual(await recover(), []);
    }),
  );

  it.live("kills it where it is deaf", () =>
    Effect.promise(async () => {
      const world = await qubes();
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      fake.orders({ writers: [{ size: 10 }, { size: 10, after: 600_000 }], deaf: true });
      const child = run(it, runDirectory);
      await until("qubesd opens the FIFO", () => fake.log().includes("opened"));
      child.kill("SIGKILL");
      await gone(child);
      const limits = { again: 100, recover: 300 };
      await Effect.runPromise(use({ runDirectory, env: it.env, limits }, (it) => it.recover));
      await nothingLeft(world, fds);
    }),
  );

  it.live(
    "removes every profile that names its FIFO, whoever has the number now, and no other",
    () =>
      Effect.promise(async () => {
        const world = await qubes();
        const { it, runDirectory } = world;
        const profiles = path.join(it.dir, "profiles");
        fs.mkdirSync(profiles);
        const dead = spawn("true");
        await gone(dead);
        const fifo = path.join(runDirectory, "archive");
        const write = (pid: number | string, to: string) =>
          fs.writeFileSync(
            path.join(profiles, `backup-run-${pid}.conf`),
            `compression: true\ndestination_path: ${to}\ndestination_vm: dom0\ninclude:\n- work\npassphrase_text: secret\n`,
          );
        const recover = () =>
          Effect.runPromise(use({ runDirectory, env: it.env, profiles }, (qvm) => qvm.recover));
        write(dead.pid!, fifo);
        // The number is a living process's that has nothing to do with it.
        write(process.pid, fifo);
        write(7, "/home/user/other");
        write("x", fifo);
        fs.symlinkSync(
          path.join(profiles, "backup-run-x.conf"),
          path.join(profiles, "backup-run-8.conf"),
        );
        const did = (await recover()).join("\n");
        assert.include(did, `removed ${path.join(profiles, `backup-run-${dead.pid}.conf`)}`);
        assert.include(did, `removed ${path.join(profiles, `backup-run-${process.pid}.conf`)}`);
        assert.notInclude(did, "secret");
        assert.deepStrictEqual(fs.readdirSync(profiles).sort(), [
          "backup-run-7.conf",
          "backup-run-8.conf",
          "backup-run-x.conf",
        ]);
        assert.deepStrictEqual(await recover(), []);
      }),
  );

  it.live("a qvm-backup that had to be killed leaves no profile", () =>
    Effect.promise(async () => {
      const world = await qubes();
      const { fake, it, runDirectory } = world;
      const fds = openFiles();
      const profiles = path.join(it.dir, "profiles");
      fs.mkdirSync(profiles);
      // As the genuine one: its profile is there from its start to its end, unless it is killed.
      fs.renameSync(path.join(it.dir, "qvm-backup"), path.join(it.dir, "qvm-backup.real"));
      it.add(
        "qvm-backup",
        `for word; do case $word in */archive) fifo=$word;; esac; done
echo "destination_path: $fifo" > "$DIR/profiles/backup-run-$$.conf"
exec "$DIR/qvm-backup.real" "$@"`,
      );
      fake.orders({ writers: [{ size: 10 }, { size: 10, after: 600_000 }], deaf: true });
      const limits = { again: 100, kill: 300, recover: 300 };
      await Effect.runPromise(
        use({ runDirectory, env: it.env, profiles, limits }, ({ start }) =>
          Effect.gen(function* () {
            const running = yield* start(plan);
            yield* running.archive.read(new Uint8Array(10), 10);
            assert.lengthOf(fs.readdirSync(profiles), 1);
          }).pipe(Effect.scoped),
        ),
      );
      assert.deepStrictEqual(fs.readdirSync(profiles), []);
      await nothingLeft(world, fds);
    }),
  );

  it.live("a qvm-backup that died before it had written its profile leaves no empty one", () =>
    Effect.promise(async () => {
      const { it, runDirectory } = await qubes();
      const profiles = path.join(it.dir, "profiles");
      fs.mkdirSync(profiles);
      fs.writeFileSync(path.join(profiles, "backup-run-7.conf"), "");
      it.add("qvm-backup", `: > "$DIR/profiles/backup-run-$$.conf"; kill -INT $$`);
      await Effect.runPromise(
        use({ runDirectory, env: it.env, profiles }, ({ start }) =>
          Effect.scoped(Effect.flatMap(start(plan), ({ ended }) => ended)),
        ),
      );
      // Another's, which may just be beginning.
      assert.deepStrictEqual(fs.readdirSync(profiles), ["backup-run-7.conf"]);
    }),
  );

  // As the genuine one leaves it when SIGINT comes while it writes (docs/qubes.md, Passphrase).
  it.live.each([
    ["empty", ""],
    ["half", "compression: true\\ndestination_path: /"],
  ])("nor does one whose run was killed as it wrote it: %s", ([, text]) =>
    Effect.promise(async () => {
      const world = await qubes();
      const { it, runDirectory } = world;
      const fds = openFiles();
      const profiles = path.join(it.dir, "profiles");
      fs.mkdirSync(profiles);
      it.add(
        "qvm-backup",
        `printf '${text}' > "$DIR/profiles/backup-run-$$.conf"; touch "$DIR/started"
while :; do sleep 0.05; done`,
      );
      const child = run(it, runDirectory);
      await until("it starts", () => fs.existsSync(path.join(it.dir, "started")));
      child.kill("SIGKILL");
      await gone(child);
      await until("qvm-backup dies of it", () => processesWith(runDirectory).length === 0);
      const [left] = fs.readdirSync(profiles);
      // What another leaves, and what another began with the same process id.
      fs.writeFileSync(path.join(profiles, "backup-run-7.conf"), "");
      const recover = () =>
        Effect.runPromise(use({ runDirectory, env: it.env, profiles }, (qvm) => qvm.recover));
      const did = await recover();
      assert.include(did, `removed ${path.join(profiles, left!)}, which held the passphrase`);
      assert.deepStrictEqual(fs.readdirSync(profiles), ["backup-run-7.conf"]);
      await nothingLeft(world, fds);
    }),
  );

  it.live("what another qvm-backup has under the same process id stays", () =>
    Effect.promise(async () => {
      const { it, runDirectory } = await qubes();
      const profiles = path.join(it.dir, "profiles");
      fs.mkdirSync(profiles);
      it.add("qvm-backup", "while :; do sleep 0.05; done");
      const another = spawn(path.join(it.dir, "qvm-backup"), ["/media/usb"], { stdio: "ignore" });
      const dead = spawn("true");
      await gone(dead);
      const write = (pid: number, text: string) => {
        fs.writeFileSync(path.join(profiles, `backup-run-${pid}.conf`), text);
        fs.mkdirSync(runDirectory, { recursive: true });
        fs.writeFileSync(path.join(runDirectory, "qvm-backup.pid"), `${pid}\n`);
      };
      const recover = () =>
        Effect.runPromise(use({ runDirectory, env: it.env, profiles }, (qvm) => qvm.recover));
      try {
        // It is only beginning to write.
        write(another.pid!, "compression: true\n");
        await recover();
        // It had another place to write to, whole.
        write(dead.pid!, "destination_path: /media/usb\ndestination_vm: dom0\n");
        await recover();
        assert.lengthOf(fs.readdirSync(profiles), 2);
        // Nobody's any more: the number is of a process that has nothing to do with it.
        write(process.pid, "compression: true\n");
        await recover();
        assert.lengthOf(fs.readdirSync(profiles), 2);
      } finally {
        another.kill("SIGKILL");
        await gone(another);
      }
    }),
  );

  const profile = `echo "destination_path: $fifo" > "$DIR/profiles/backup-run-$$.conf"`;
  it.live.each([
    ["is deaf", `trap "" INT; ${profile}`],
    // It must be waited for: else it writes what nobody will remove.
    ["has written no profile yet", `trap '${profile}; exit 130' INT`],
  ])("one whose run was killed, and that %s, leaves none either", ([, does]) =>
    Effect.promise(async () => {
      const world = await qubes();
      const { it, runDirectory } = world;
      const profiles = path.join(it.dir, "profiles");
      fs.mkdirSync(profiles);
      it.add(
        "qvm-backup",
        `for word; do case $word in */archive) fifo=$word;; esac; done
${does}
touch "$DIR/started"
while :; do sleep 0.05; done`,
      );
      // What it starts does not hear of its death, which comes before it has written down anything.
      it.add("setpriv", `shift 3; exec "$@"`);
      const child = run(it, runDirectory);
      await until("it starts", () => fs.existsSync(path.join(it.dir, "started")));
      child.kill("SIGKILL");
      await gone(child);
      const limits = { again: 100, recover: 300 };
      const did = await Effect.runPromise(
        use({ runDirectory, env: it.env, profiles, limits }, (qvm) => qvm.recover),
      );
      assert.match(did[0]!, /^cancelled a qvm-backup .* \(process [0-9]+\)$/);
      assert.deepStrictEqual(fs.readdirSync(profiles), []);
    }),
  );

  it.live("touches nothing outside, whatever lies in its directory", () =>
    Effect.gen(function* () {
      const { dir, env } = fresh();
      const runDirectory = path.join(dir, "state/run");
      const precious = path.join(dir, "precious");
      fs.mkdirSync(precious);
      fs.writeFileSync(path.join(precious, "file"), "x");
      const recover = use({ runDirectory, env }, (it) => it.recover);
      const garbage: ReadonlyArray<() => void> = [
        () => fs.symlinkSync(precious, path.join(runDirectory, "archive")),
        () => fs.symlinkSync(path.join(precious, "file"), path.join(runDirectory, "archive")),
        () => fs.mkdirSync(path.join(runDirectory, "archive/deep"), { recursive: true }),
        () => fs.writeFileSync(path.join(runDirectory, "archive"), "no FIFO"),
        () => execFileSync("mkfifo", [path.join(runDirectory, "another")]),
      ];
      for (const make of garbage) {
        fs.mkdirSync(runDirectory, { recursive: true });
        make();
        assert.strictEqual((yield* recover).length, 1);
        assert.isFalse(fs.existsSync(runDirectory));
        assert.strictEqual(fs.readFileSync(path.join(precious, "file"), "utf8"), "x");
      }
      fs.symlinkSync(precious, runDirectory);
      const error = yield* Effect.flip(recover);
      assert.include(error.message, "it is no directory: remove it");
      assert.isTrue(fs.existsSync(path.join(precious, "file")));
    }),
  );
});
