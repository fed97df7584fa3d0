import { assert, describe, it } from "@effect/vitest";
import { Effect, Fiber } from "effect";
import { TestClock } from "effect/testing";
import * as fs from "node:fs";
import * as path from "node:path";
import { memoryQubes, qubesTable } from "#layers/memory/MemoryQubes";
import { parseQube, qubesCli, temporaryDirectory } from "#layers/qubes/QubesCli";
import { Qubes } from "#services/Qubes";
import { qubesContract, world } from "#test/contracts/qubes";
import { type Programs, programs } from "#test/support/programs";
import { afterAll } from "vitest";

const made: Array<Programs> = [];
const fresh = (env?: Record<string, string>) => {
  const it = programs(env);
  made.push(it);
  return it;
};
afterAll(() => made.forEach((it) => it.remove()));

/** The tools as docs/qubes.md, Tools describes them; a file in $DIR/running for each running qube. */
const tools = () => {
  const it = fresh();
  it.add(
    "qvm-ls",
    `case "$*" in
"--raw-data --fields name,qid,state,class,include_in_backups,backup_timestamp") ;;
"--raw-list --tags throw-away") [ ! -e "$DIR/tagged" ] || echo thrown; exit 0;;
*) exit 2;;
esac
[ ! -e "$DIR/made" ] || echo "thrown|12|Halted|AppVM|False|-"
echo "dom0|0|Running|AdminVM|True|-"
echo "asleep|3|Paused|AppVM|False|-"
echo "sys-backup|7|Halted|AppVM|False|-"
echo "work|2|Running|AppVM|True|-"`,
  );
  it.add(
    "qvm-check",
    `case "$1 $2" in
"-q --running") [ -e "$DIR/runs-$3" ] || [ "$3" = asleep ] ;;
"-q --paused") [ "$3" = asleep ] ;;
*) exit 9 ;;
esac`,
  );
  it.add(
    "qvm-start",
    `[ "$1" = --skip-if-running ] || exit 9
case $2 in asleep) ;; work|sys-backup) touch "$DIR/runs-$2";; *) echo "qvm-start: error: no such domain: '$2'" >&2; exit 2;; esac`,
  );
  it.add("qvm-shutdown", `[ "$1" = --wait ] || exit 9; rm -f "$DIR/runs-$2"`);
  // What is refused is said as the genuine ones say it.
  it.add(
    "qvm-create",
    `[ "$1 $2 $3 $4" = "--class=AppVM --label=red --property=netvm= --property=include_in_backups=False" ] || exit 9
[ "$5" != work ] || { echo "app: Error creating VM: VM work already exists" >&2; exit 1; }
touch "$DIR/made"`,
  );
  const unknown = (tool: string) =>
    `echo "usage: ${tool} [--verbose] ..." >&2; echo "${tool}: error: no such domain: 'nobody'" >&2; exit 2`;
  it.add(
    "qvm-tags",
    `[ "$2 $3" = "add throw-away" ] || exit 9
[ "$1" = thrown ] || { ${unknown("qvm-tags")}; }
touch "$DIR/tagged"`,
  );
  it.add(
    "qvm-volume",
    `[ "$1 $3" = "import -" ] || exit 9
[ "$2" = thrown:private ] || { echo "qvm-volume: error: no vm 'nobody'" >&2; exit 1; }
cat > "$DIR/image"; [ "$4" = "--size=$(wc -c < "$DIR/image")" ] || exit 9`,
  );
  it.add(
    "qvm-remove",
    `[ "$1" = --force ] || exit 9
[ "$2" = thrown ] || { ${unknown("qvm-remove")}; }
rm "$DIR/made" "$DIR/tagged"`,
  );
  it.add("systemctl", `echo "LANG=C TMPDIR=/var/tmp"`);
  it.add("runs-work", "");
  return it;
};

qubesContract("MemoryQubes", () => memoryQubes(qubesTable(world)));
qubesContract("QubesCli", () => qubesCli(tools().env));

const use = <A, E>(it: Programs, what: (qubes: Qubes["Service"]) => Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    return yield* what(yield* Qubes);
  }).pipe(Effect.provide(qubesCli(it.env)));

describe("QubesCli", () => {
  it.live("of a chain of tracebacks the last line is quoted", () =>
    Effect.gen(function* () {
      const it = tools();
      const frame = (n: number) =>
        `Traceback (most recent call last):\n  File "/x${n}.py", line ${n}\n`;
      it.add(
        "qvm-start",
        `printf '%s' '${Array.from({ length: 9 }, (_, n) => frame(n)).join("")}' >&2; echo "qubesadmin.exc.QubesDaemonCommunicationError: Failed to connect to qubesd service: [Errno 2] No such file" >&2; exit 1`,
      );
      const failure = yield* Effect.gen(function* () {
        return yield* Effect.flip((yield* Qubes).start("work"));
      }).pipe(Effect.provide(qubesCli(it.env)));
      assert.match(
        failure.message,
        /: qubesadmin.exc.QubesDaemonCommunicationError: Failed to connect[^;]*$/,
      );
    }),
  );
  it.effect("waits nearly five minutes for qvm-ls and qvm-check", () =>
    Effect.gen(function* () {
      for (const tool of ["qvm-ls", "qvm-check"]) {
        const it = tools();
        it.add(
          tool,
          `touch "$DIR/began"; until [ -e "$DIR/go" ]; do sleep 0.05; done; echo "work|2|Halted|AppVM|True|-"`,
        );
        const asking = yield* use(it, (qubes) =>
          tool === "qvm-ls" ? Effect.asVoid(qubes.list) : Effect.asVoid(qubes.power("work")),
        ).pipe(Effect.forkChild);
        while (!fs.existsSync(path.join(it.dir, "began"))) {
          yield* Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 10)));
        }
        yield* TestClock.adjust("299 seconds");
        fs.writeFileSync(path.join(it.dir, "go"), "");
        yield* Fiber.join(asking);
      }
    }),
  );
  it.live("names the line of qvm-ls that it cannot read, printable", () =>
    Effect.gen(function* () {
      const it = tools();
      it.add(
        "qvm-ls",
        `printf 'dom0|0|Running|AdminVM|True|-\\nwo\\033rk|x|Running|AppVM|True|-\\n'`,
      );
      const error = yield* Effect.flip(use(it, (qubes) => qubes.list));
      assert.strictEqual(
        error.message,
        "could not list the qubes: line 2 of qvm-ls is not as expected: wo?rk|x|Running|AppVM|True|-",
      );
    }),
  );
  it.live("says which program is missing", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(use(fresh(), (qubes) => qubes.list));
      assert.strictEqual(
        error.message,
        "could not list the qubes: qvm-ls is not installed, or not in PATH",
      );
    }),
  );
  it.live("does not take a traceback of qvm-check for a halted qube", () =>
    Effect.gen(function* () {
      const it = tools();
      it.add(
        "qvm-check",
        `echo "Traceback (most recent call last):" >&2; echo "ConnectionRefusedError: no" >&2; exit 1`,
      );
      const error = yield* Effect.flip(use(it, (qubes) => qubes.power("work")));
      assert.include(error.message, "ConnectionRefusedError");
    }),
  );
  it.live("bounds what a tool says", () =>
    Effect.gen(function* () {
      const it = tools();
      it.add("qvm-start", "head -c 3000000 /dev/zero | tr '\\0' '\\033' >&2; exit 1");
      const error = yield* Effect.flip(use(it, (qubes) => qubes.start("work")));
      assert.isBelow(error.message.length, 1000);
      assert.match(error.message, /^[\x20-\x7e]*$/);
      it.add("qvm-ls", "yes x");
      const more = yield* Effect.flip(use(it, (qubes) => qubes.list));
      assert.include(more.message, "qvm-ls: said more than 1048576 bytes");
    }),
  );
  it.live("asks of a running qube whether its own volumes keep a snapshot", () =>
    Effect.gen(function* () {
      const it = tools();
      it.add(
        "qvm-volume",
        `echo "$*" >> "$DIR/asked"
[ "$1 $3" = "info revisions_to_keep" ] || exit 2
case $2 in work:private|sys:root) echo -1;; none:*) exit 1;; *) echo 2;; esac`,
      );
      const of = (name: string, kind: string, state = "Running") =>
        use(it, (qubes) => qubes.unsavable({ name, qid: 2, state, class: kind, included: true }));
      assert.strictEqual(yield* of("work", "AppVM"), "private");
      assert.isUndefined(yield* of("work", "AppVM", "Halted"));
      assert.isUndefined(yield* of("mail", "AppVM"));
      assert.strictEqual(yield* of("sys", "StandaloneVM"), "root");
      assert.isUndefined(yield* of("sys", "AppVM")); // its root is the template's
      assert.include((yield* Effect.flip(of("none", "AppVM"))).message, "volumes of none");
    }),
  );
  it.live("asks how much the volumes of a qube can hold, those that are saved", () =>
    Effect.gen(function* () {
      const it = tools();
      it.add(
        "qvm-volume",
        `[ "$1 $3" = "info size" ] || exit 2
case $2 in *:private) echo 2147483648;; odd:root) echo much;; *:root) echo 10737418240;; *) exit 1;; esac`,
      );
      const of = (name: string, kind: string) =>
        use(it, (qubes) =>
          qubes.capacity({ name, qid: 2, state: "Halted", class: kind, included: true }),
        );
      assert.strictEqual(yield* of("work", "AppVM"), 2 ** 31);
      assert.strictEqual(yield* of("sys", "StandaloneVM"), 2 ** 31 + 10 * 2 ** 30);
      assert.match(
        (yield* Effect.flip(of("odd", "TemplateVM"))).message,
        /how large odd is: .*number/,
      );
    }),
  );
  it.live("fills a private volume with just these bytes", () =>
    Effect.gen(function* () {
      const it = tools();
      const image = Uint8Array.from({ length: 300_000 }, (_, i) => i % 251);
      yield* use(it, (qubes) => qubes.fill("thrown", image));
      const got = fs.readFileSync(path.join(it.dir, "image"));
      assert.isTrue(got.equals(image));
      // A tool that goes before it has read them is no fault of the pipe's.
      const error = yield* Effect.flip(use(it, (qubes) => qubes.fill("nobody", image)));
      assert.match(
        error.message,
        /^could not fill .* of nobody: qvm-volume: error: no vm 'nobody'$/,
      );
    }),
  );
  it.live("tells the versions of the packages, as far as they are installed", () =>
    Effect.gen(function* () {
      const it = tools();
      it.add(
        "rpm",
        `[ "$1 $2" = "-q --queryformat" ] || exit 9
shift 3
for name; do case $name in *client) echo "$name 4.3.34-1.fc41";; *) echo "package $name is not installed";; esac; done
exit 1`,
      );
      const said = yield* use(it, (qubes) => qubes.versions);
      assert.strictEqual(said.at(-1), "qubes-core-admin-client 4.3.34-1.fc41");
      it.add("rpm", "exit 127");
      const none = yield* use(it, (qubes) => qubes.versions);
      assert.deepStrictEqual(none, said.slice(0, -1));
    }),
  );
  it.live("sets the last backup of a qube, or takes it away", () =>
    Effect.gen(function* () {
      const it = tools();
      it.add("qvm-prefs", `echo "$*" >> "$DIR/prefs"; [ "$1" != gone ]`);
      yield* use(it, (qubes) => qubes.setBackedUp("work", 1_700_000_000));
      yield* use(it, (qubes) => qubes.setBackedUp("work", undefined));
      assert.strictEqual(
        it.read("prefs"),
        "work backup_timestamp 1700000000\n--default work backup_timestamp\n",
      );
      const error = yield* Effect.flip(use(it, (qubes) => qubes.setBackedUp("gone", 1)));
      assert.include(error.message, "could not set the last backup of gone");
    }),
  );
  it.live("counts what qubesd's journal says of broken pipes, where it may be read", () =>
    Effect.gen(function* () {
      const it = tools();
      const count = () => use(it, (qubes) => qubes.brokenPipes(1_700_000_000));
      it.add(
        "journalctl",
        `echo "$*" > "$DIR/journalctl"
echo "started"
for i in 1 2 3; do echo "pipe closed by peer or os.write(pipe, data) raised exception."; done`,
      );
      assert.strictEqual(yield* count(), 3);
      assert.match(it.read("journalctl"), /--unit=qubesd.service --since=@1700000000 /);
      it.add("journalctl", "echo started");
      assert.strictEqual(yield* count(), 0);
      it.add(
        "journalctl",
        `echo "Hint: You are currently not seeing messages from other users and the system." >&2`,
      );
      assert.isUndefined(yield* count());
      it.add(
        "journalctl",
        `echo "No journal files were opened due to insufficient permissions." >&2; exit 1`,
      );
      assert.isUndefined(yield* count());
      it.add("journalctl", `echo "No journal files were found." >&2`);
      assert.isUndefined(yield* count());
    }),
  );
  it.live("finds qubesd's temporary directory, and /tmp where nobody says", () =>
    Effect.gen(function* () {
      const it = tools();
      assert.strictEqual((yield* use(it, (qubes) => qubes.scratch)).path, "/var/tmp");
      it.add("systemctl", "exit 1");
      assert.strictEqual((yield* use(it, (qubes) => qubes.scratch)).path, "/tmp");
      it.add("systemctl", "echo TMPDIR=/nowhere/at/all");
      assert.strictEqual((yield* use(it, (qubes) => qubes.scratch)).path, "/tmp");
    }),
  );
  it("reads the lines of qvm-ls", () => {
    assert.deepStrictEqual(
      parseQube("work|2|Halted|AppVM|True|-"),
      world[1] && {
        ...world[1],
        state: "Halted",
      },
    );
    assert.isFalse(parseQube("remote|9|-|RemoteVM|-|-")?.included);
    assert.strictEqual(parseQube("work|2|Halted|AppVM|True|1700000000")?.backedUp, 1_700_000_000);
    for (const bad of [
      "work|2|Halted|AppVM",
      "work|2|Halted|AppVM|True|yesterday",
      "work|2|Halted|AppVM|True|-|more",
      "-work|2|Halted|AppVM|True|-",
      "work|02|Halted|AppVM|True|-",
      "work|-1|Halted|AppVM|True|-",
      "work|2|Halted|AppVM|yes|-",
      "",
    ]) {
      assert.isUndefined(parseQube(bad), bad);
    }
  });
  it("reads the environment as systemctl shows it", () => {
    assert.strictEqual(temporaryDirectory(""), "/tmp");
    assert.strictEqual(temporaryDirectory("A=b TMPDIR=/var/tmp\n"), "/var/tmp");
    assert.strictEqual(temporaryDirectory(`"X=TMPDIR=/no" "TMPDIR=/a b" TMP=/c`), "/a b");
    assert.strictEqual(temporaryDirectory("TMPDIR=relative TMP=/c"), "/c");
    assert.strictEqual(temporaryDirectory("TMPDIR=/a TMPDIR=/b"), "/b");
  });
});

describe("MemoryQubes", () => {
  it.effect("records, and fails on demand", () =>
    Effect.gen(function* () {
      const table = qubesTable(world);
      table.fails = (call) => (call === "start work" ? "no memory" : undefined);
      const error = yield* Effect.gen(function* () {
        const qubes = yield* Qubes;
        yield* qubes.power("work");
        return yield* Effect.flip(qubes.start("work"));
      }).pipe(Effect.provide(memoryQubes(table)));
      assert.strictEqual(error.message, "could not start work: no memory");
      assert.deepStrictEqual(table.calls, ["power work", "start work"]);
    }),
  );
});
