/** The layers that run a program: Child itself, qvm-run, notify-send. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { afterAll } from "vitest";
import { child, collector, run } from "#layers/process/Child";
import { memoryNotifier, type Notification } from "#layers/memory/MemoryNotifier";
import { command, notifySend } from "#layers/desktop/NotifySend";
import { qvmRunQrexec } from "#layers/qubes/QvmRunQrexec";
import { Qrexec } from "#services/Qrexec";
import { notifierContract } from "#test/contracts/notifier";
import { qrexecContract } from "#test/contracts/qrexec";
import { processesWith, type Programs, programs } from "#test/support/programs";
import { notRoot, unless } from "#test/support/unless";
import { until } from "#test/support/until";

const made: Array<Programs> = [];
const fresh = () => {
  const it = programs();
  made.push(it);
  return it;
};
afterAll(() => made.forEach((it) => it.remove()));

describe("Child", () => {
  const limit = "5 seconds";

  it.live("runs an argv as it is, with a stdin of its own", () =>
    Effect.gen(function* () {
      const evil = ["; echo x", "$(id)", "a b", "", "*"];
      const { code, stdout } = yield* run(["printf", "%s|", ...evil], { limit });
      assert.deepStrictEqual([code, stdout], [0, evil.map((word) => `${word}|`).join("")]);
      assert.strictEqual((yield* run(["cat"], { limit })).stdout, "");
      assert.strictEqual((yield* run(["cat"], { limit, input: "said" })).stdout, "said");
      assert.strictEqual((yield* run(["sh", "-c", "exit 3"], { limit })).code, 3);
      assert.strictEqual((yield* run(["sh", "-c", "kill -9 $$"], { limit })).code, 137);
    }),
  );
  it.live("names a program that is missing, or that may not be run", () =>
    Effect.gen(function* () {
      const missing = yield* Effect.flip(run(["no-such-program"], { limit }));
      assert.strictEqual(missing.reason, "missing");
      assert.include(missing.message, "no-such-program is not installed");
      const denied = yield* Effect.flip(run(["/etc/passwd"], { limit }));
      assert.strictEqual(denied.reason, "not-permitted");
      const bad = yield* Effect.flip(run(["a\0b"], { limit }));
      assert.strictEqual(bad.reason, "failed");
    }),
  );
  it.live("stops what takes too long or says too much, and all that it started", () =>
    Effect.gen(function* () {
      const { dir } = fresh();
      const nest = [
        "sh",
        "-c",
        `sh -c 'trap "" TERM; while :; do sleep 0.1; done; : ${dir}' & yes`,
        dir,
      ] as const;
      const much = yield* Effect.flip(run([...nest], { limit, most: 1000 }));
      assert.strictEqual(much.reason, "too-much");
      const slow = yield* Effect.flip(
        run(["sh", "-c", `trap "" TERM; sleep 1000 & wait; sleep 1000 ${dir}`], {
          limit: "200 millis",
        }),
      );
      assert.strictEqual(slow.reason, "too-slow");
      yield* Effect.promise(() => until("all is killed", () => processesWith(dir).length === 0));
    }),
  );
  it.live("does not wait for whoever inherited its output, and leaves nobody in its group", () =>
    Effect.gen(function* () {
      const { dir } = fresh();
      const began = performance.now();
      const ran = yield* run(["sh", "-c", `sh -c 'sleep 50; : ${dir}' & echo yes`], { limit });
      assert.strictEqual(ran.stdout, "yes\n");
      // Long before the sleeper's own end.
      assert.isBelow(performance.now() - began, 40_000);
      yield* Effect.promise(() => until("it is killed", () => processesWith(dir).length === 0));
    }),
  );
  it.live("asks first, and kills after the grace", () =>
    Effect.gen(function* () {
      const deaf = 'trap "echo asked >&2" INT; echo deaf >&2; while :; do sleep 0.05; done';
      let isDeaf = false;
      const asked = yield* Effect.gen(function* () {
        const it = yield* child(["sh", "-c", deaf], {
          stdio: ["ignore", "ignore", "pipe"],
          see: (line, whole) => whole && line === "deaf" && (isDeaf = true),
          ask: ({ proc }) => Effect.sync(() => proc.kill("SIGINT")),
          grace: "4 seconds",
        });
        yield* Effect.promise(() => until("it is deaf", () => isDeaf));
        return it;
      }).pipe(Effect.scoped);
      assert.deepStrictEqual(yield* asked.ended, { code: 137, said: ["asked"] });
    }),
  );
  it.live("lets a child wait that floods its stderr, and keeps what another one says at once", () =>
    Effect.gen(function* () {
      let bytes = 0;
      const began = performance.now();
      const see = (line: string, whole: boolean) => {
        if (whole) bytes += line.length + 1;
        return true;
      };
      const enough = Effect.promise(() => until("a MiB is read", () => bytes > 1 << 20));
      yield* child(["sh", "-c", "yes >&2"], { stdio: ["ignore", "ignore", "pipe"], see }).pipe(
        Effect.andThen(enough),
        Effect.andThen(Effect.sleep("1 second")),
        Effect.scoped,
      );
      const pieces = 2 + (performance.now() - began) / 100;
      assert.isBelow(bytes, (1 << 20) + pieces * 65_536);
      const { said } = yield* run(["sh", "-c", "yes | head -c 1100000 >&2; echo end >&2"], {
        limit,
      });
      assert.strictEqual(said.at(-1), "end");
    }),
  );
  it("keeps the last lines, printable, however much comes", () => {
    const it = collector();
    for (let i = 0; i < 1000; i++) it.push(Buffer.from(`line ${i}\r\n\n`));
    it.push(Buffer.alloc(1 << 22, 0x1b));
    assert.strictEqual(it.said().length, 20);
    assert.strictEqual(it.said()[18], "line 999");
    assert.match(it.said().join(""), /^[\x20-\x7e]*$/);
    assert.isBelow(it.said().join("").length, 20 * 204);
  });
  it("shows each line once whole, and the open one as it grows", () => {
    const seen: Array<string> = [];
    const it = collector((line, whole) => {
      seen.push(`${line}${whole ? "." : ""}`);
      return line.startsWith("progress");
    });
    for (const part of ["pro", "gress 1", "\rprogress 2\rerr", "or\n"]) it.push(Buffer.from(part));
    assert.deepStrictEqual(seen, [
      "pro",
      "progress 1",
      "progress 1.",
      "progress 2.",
      "err",
      "error.",
      "",
    ]);
    assert.deepStrictEqual(it.said(), ["error"]);
  });
});

const qvmRun = () => {
  const it = fresh();
  it.add(
    "qvm-run",
    `[ "$1 $2 $3 $4" = "--no-gui --pass-io --service work" ] || exit 2
case $5 in
test.Echo) exec cat;;
test.Fail+7) printf 'no, thanks\\n\\033[31mred\\303\\251\\n' >&2; exit 7;;
test.Deaf) trap "" TERM; while :; do sleep 0.1; done;;
test.Heir) sleep 1000 & exit 0;;
*) exit 127;;
esac`,
  );
  return it;
};
qrexecContract("QvmRunQrexec", () => qvmRunQrexec(qvmRun().env));

describe("QvmRunQrexec", () => {
  const call = (it: Programs, service: string) =>
    Effect.gen(function* () {
      return yield* (yield* Qrexec).call("work", service);
    }).pipe(Effect.provide(qvmRunQrexec(it.env)));

  it.live("says which program is missing", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(Effect.scoped(call(fresh(), "test.Echo")));
      assert.include(String(error.cause), "qvm-run is not installed");
    }),
  );
  it.live("leaves no process, whatever the service does", () =>
    Effect.gen(function* () {
      const it = qvmRun();
      for (const service of ["test.Deaf", "test.Heir", "test.Echo"]) {
        yield* Effect.scoped(call(it, service));
      }
      yield* Effect.promise(() => until("all are gone", () => processesWith(it.dir).length === 0));
    }),
  );
  it.live("a dead call looks dead, although somebody inherited its pipes", () =>
    Effect.gen(function* () {
      const it = yield* call(qvmRun(), "test.Heir");
      const n = yield* it.stdout.read(new Uint8Array(1)).pipe(Effect.timeout("4 seconds"));
      assert.strictEqual(n, 0);
      assert.isTrue((yield* Effect.exit(it.stdin.write(new Uint8Array(1))))._tag === "Failure");
    }).pipe(Effect.scoped),
  );
  it.live("a killed qvm-run shows in the pipes at once", () =>
    Effect.gen(function* () {
      const programs = qvmRun();
      programs.add("qvm-run", `echo $$; exec sleep 1000`);
      const it = yield* call(programs, "test.Echo");
      const into = Buffer.alloc(20);
      const pid = Number(into.subarray(0, yield* it.stdout.read(into)).toString());
      // The sleeper itself would end it only after its thousand seconds.
      yield* Effect.sync(() => process.kill(pid, "SIGKILL")).pipe(Effect.forkChild);
      assert.strictEqual(yield* it.stdout.read(into), 0);
      assert.strictEqual((yield* it.ended).code, 137);
      assert.isTrue((yield* Effect.exit(it.stdin.write(into)))._tag === "Failure");
    }).pipe(Effect.scoped),
  );
});

notifierContract("MemoryNotifier", () => {
  const shown: Array<Notification> = [];
  return { layer: memoryNotifier(shown), shown: () => shown };
});
notifierContract("NotifySend", () => {
  const it = fresh();
  it.add("notify-send", `for word; do printf '%s\\n' "$word" >> "$DIR/shown"; done`);
  return {
    layer: notifySend({ ...it.env, DBUS_SESSION_BUS_ADDRESS: "unix:path=/nowhere" }),
    shown: () => {
      const lines = it.read("shown").split("\n").slice(0, -1);
      return Array.from({ length: lines.length / 5 }, (_, i) => {
        const [app, urgency, dashes, summary, body] = lines.slice(i * 5, i * 5 + 5);
        assert.deepStrictEqual([app, dashes], ["--app-name=qbackup", "--"]);
        return {
          urgency: urgency!.replace("--urgency=", "") as Notification["urgency"],
          summary: summary!,
          body: body!,
        };
      });
    },
  };
});

describe("NotifySend", () => {
  const words = ["critical", "it failed", "look"] as const;
  const sent = ["--app-name=qbackup", "--urgency=critical", "--", "it failed", "look"];

  it("finds the bus and the display that cron does not know", () => {
    const { argv, env } = command(words, { env: { PATH: "/bin" }, uid: 1000 });
    assert.deepStrictEqual(argv, ["notify-send", ...sent]);
    assert.strictEqual(env["DBUS_SESSION_BUS_ADDRESS"], "unix:path=/run/user/1000/bus");
    assert.strictEqual(env["DISPLAY"], ":0");
    const own = { DBUS_SESSION_BUS_ADDRESS: "unix:path=/own", DISPLAY: ":7" };
    assert.deepStrictEqual(command(words, { env: own, uid: 1000 }).env, own);
  });
  it("is the user with a desktop where it is root", unless(notRoot), async () => {
    const { dir } = fresh();
    const runUser = path.join(dir, "user");
    for (const uid of [999, 1000, 1001, 1002]) {
      fs.mkdirSync(path.join(runUser, `${uid}`), { recursive: true });
      // 1000's directory belongs to somebody else, 1001 has no bus.
      fs.chownSync(path.join(runUser, `${uid}`), uid === 1000 ? 4000 : uid, 100);
    }
    const servers = [999, 1000, 1002].map((uid) =>
      net.createServer().listen(path.join(runUser, `${uid}/bus`)),
    );
    const { argv, env } = command(words, { env: {}, uid: 0, runUser });
    servers.forEach((server) => server.close());
    assert.deepStrictEqual(
      [...argv],
      [
        "setpriv",
        "--reuid",
        "1002",
        "--regid",
        "100",
        "--clear-groups",
        "--",
        "notify-send",
        ...sent,
      ],
    );
    assert.strictEqual(env["DBUS_SESSION_BUS_ADDRESS"], `unix:path=${runUser}/1002/bus`);
    assert.deepStrictEqual(
      command(words, { env: {}, uid: 0, runUser: dir }).argv[0],
      "notify-send",
    );
  });
});

it("tests see what is left behind", () => {
  const { dir } = fresh();
  const left = spawn("sleep", ["1000"], { argv0: dir });
  assert.deepStrictEqual(processesWith(dir), [left.pid!]);
  left.kill("SIGKILL");
});
