import { assert, describe, it } from "@effect/vitest";
import { Clock, Effect } from "effect";
import { TestClock } from "effect/testing";
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll } from "vitest";
import {
  type DesktopOptions,
  desktopReporter,
  estimate,
  meter,
  progressLine,
  stderrIsJournal,
} from "#layers/desktop/DesktopReporter";
import { Reporter } from "#services/Reporter";
import { humanDuration, humanSize } from "#src/say/format";
import { processesWith, type Programs, programs } from "#test/support/programs";
import { line } from "#src/say/shown";
import { until } from "#test/support/until";

const made: Array<Programs> = [];
const fresh = () => {
  const it = programs();
  made.push(it);
  return it;
};
afterAll(() => made.forEach((it) => it.remove()));

describe("format", () => {
  it("sizes as people read them", () => {
    const sizes: ReadonlyArray<readonly [number, string]> = [
      [0, "0 B"],
      [1023, "1023 B"],
      [1024, "1.0 KiB"],
      [1536, "1.5 KiB"],
      [1024 * 1023.94, "1023.9 KiB"],
      [1024 * 1024 - 1, "1.0 MiB"],
      [1.2 * 2 ** 30, "1.2 GiB"],
      [2 ** 40, "1.0 TiB"],
      [5000 * 2 ** 50, "5000.0 PiB"],
      [-1, "0 B"],
      [12.7, "12 B"],
    ];
    for (const [size, text] of sizes) assert.strictEqual(humanSize(size), text);
  });
  it("durations as clocks show them", () => {
    const durations: ReadonlyArray<readonly [number, string]> = [
      [0, "0:00:00"],
      [59.99, "0:00:59"],
      [754, "0:12:34"],
      [3600, "1:00:00"],
      [360_000, "100:00:00"],
      [-5, "0:00:00"],
    ];
    for (const [seconds, text] of durations) assert.strictEqual(humanDuration(seconds), text);
  });
});

describe("the progress line", () => {
  const of = { elapsed: 754, rate: 35.1 * 2 ** 20 };
  const now = { doing: line`backing up`, percent: 42, bytes: 1.2 * 2 ** 30 };

  it("is a bar as wide as there is room", () => {
    assert.strictEqual(
      progressLine(now, { ...of, width: 63 }),
      "[####......]  42.00%  1.2 GiB sent  35.1 MiB/s  0:12:34",
    );
    const wide = progressLine(now, { ...of, width: 200 });
    assert.strictEqual(wide.indexOf("]") - wide.indexOf("["), 41);
    for (let width = 1; width < 120; width++) {
      assert.isAtMost(progressLine(now, { ...of, width }).length, width);
    }
  });
  it("does without a bar or a percentage", () => {
    assert.strictEqual(
      progressLine(now, { ...of, width: 0 }),
      "42.00%  1.2 GiB sent  35.1 MiB/s  0:12:34",
    );
    assert.strictEqual(
      progressLine({ ...now, percent: undefined }, { ...of, width: 80 }),
      "1.2 GiB sent  35.1 MiB/s  0:12:34",
    );
    const read = { ...now, percent: undefined, read: 2 ** 33 };
    assert.match(progressLine(read, { ...of, width: 80 }), /^8\.0 GiB read {2}1\.2 GiB sent/);
    const apart = { ...now, read: 2 ** 33, changed: 3 * 2 ** 29 };
    assert.strictEqual(
      progressLine(apart, { ...of, left: 100, width: 0 }),
      "42.00%  8.0 GiB read  1.5 GiB changed  1.2 GiB sent  35.1 MiB/s  0:12:34  some 0:01:40 left",
    );
    assert.strictEqual(
      progressLine(apart, { ...of, left: 100, width: 80 }),
      "42.00%  8.0 GiB read  1.5 GiB changed  1.2 GiB sent  0:12:34  some 0:01:40 left",
    );
    assert.strictEqual(
      progressLine({ doing: line`verifying`, bytes: 1024, total: 4096 }, { ...of, width: 0 }),
      "verifying  25.00%  1.0 KiB  35.1 MiB/s  0:12:34  0:00:00 left",
    );
    const half = { doing: line`verifying`, bytes: 2 ** 30, total: 2 ** 31 };
    assert.match(progressLine(half, { elapsed: 9, rate: 2 ** 20, width: 0 }), / {2}0:17:04 left$/);
    assert.notMatch(progressLine(half, { elapsed: 9, rate: 0, width: 0 }), /left/);
  });
  it("says what is waited for, and the time that is left by qvm-backup's figure", () => {
    const waits = line`waiting for net to start`;
    const none = { doing: line`backing up`, bytes: 0, waits };
    assert.strictEqual(
      progressLine(none, { elapsed: 3, rate: 0, width: 79 }),
      "0:00:03  waiting for net to start",
    );
    assert.strictEqual(
      progressLine({ ...now, waits }, { ...of, left: 100, width: 0 }),
      "42.00%  1.2 GiB sent  35.1 MiB/s  0:12:34  some 0:01:40 left  waiting for net to start",
    );
    for (let width = 1; width < 120; width++) {
      const drawn = progressLine({ ...now, waits }, { ...of, left: 100, width });
      assert.isAtMost(drawn.length, width);
      // What there is no room for is left out, and nothing cut in the middle.
      if (width >= 32) assert.match(drawn, /42\.00%.*  waiting for net to start$/);
    }
    const narrow = (width: number) => progressLine({ ...now, waits }, { ...of, left: 100, width });
    assert.strictEqual(narrow(42), "42.00%  0:12:34  waiting for net to start");
    assert.strictEqual(narrow(32), "42.00%  waiting for net to start");
    const left = estimate();
    assert.isUndefined(left(0, undefined));
    assert.isUndefined(left(60_000, 10));
    assert.isUndefined(left(61_000, 20)); // too soon
    assert.isUndefined(left(80_000, 11)); // too little
    assert.strictEqual(left(160_000, 60), 80);
    assert.strictEqual(left(160_000, 100.06), 0);
  });
  it("ends at 100, though qvm-backup goes on", () => {
    const line = progressLine({ ...now, percent: 100.06 }, { ...of, width: 80 });
    assert.match(line, /^\[#+\] 100\.00%/);
  });
  it("has the rate of the last 10 s", () => {
    const rate = meter();
    let speed = 0;
    for (let s = 0; s <= 60; s += 0.1) {
      speed = rate(s * 1000, s < 40 ? s * 1e6 : 40e6 + (s - 40) * 1000);
    }
    assert.closeTo(speed, 1000, 1);
    assert.strictEqual(meter()(0, 5), 0);
  });
});

const reporter = (options: Partial<DesktopOptions> = {}) => {
  const out: Array<string> = [];
  const it = fresh();
  it.add("logger", `for word; do printf '%s|' "$word" >> "$DIR/log"; done; echo >> "$DIR/log"`);
  return {
    out,
    it,
    layer: desktopReporter({
      program: "qbackup",
      terminal: false,
      stderrIsTTY: false,
      underSystemd: false,
      env: it.env,
      write: (text) => void out.push(text),
      columns: () => 64,
      ...options,
    }),
  };
};
const sayAll = Effect.gen(function* () {
  const { say } = yield* Reporter;
  yield* say("info", "a note; $(id)");
  yield* say("warning", "-t look");
  yield* say("error", "it failed");
  yield* say("hint", "try\nagain");
});
const logged = [
  "-t|qbackup|-p|user.info|--|a note; $(id)|",
  "-t|qbackup|-p|user.warning|--|warning: -t look|",
  "-t|qbackup|-p|user.err|--|error: it failed|",
  "-t|qbackup|-p|user.err|--|hint: try again|",
  "",
].join("\n");
const loud = [
  "qbackup: warning: -t look\n",
  "qbackup: error: it failed\n",
  "qbackup: hint: try again\n",
];

describe("DesktopReporter", () => {
  it.live("a command that only looks, and no terminal: all on stderr, and all in the journal", () =>
    Effect.gen(function* () {
      const { it, layer, out } = reporter({ terminal: true, unwatched: true });
      yield* Effect.provide(sayAll, layer);
      assert.deepStrictEqual(out, ["qbackup: a note; $(id)\n", ...loud]);
      assert.strictEqual(it.read("log"), logged);
    }),
  );
  it.live("from cron: what matters on stderr, everything in the journal", () =>
    Effect.gen(function* () {
      const { it, layer, out } = reporter();
      yield* Effect.provide(sayAll, layer);
      assert.deepStrictEqual(out, loud);
      assert.strictEqual(it.read("log"), logged);
    }),
  );
  it.live("a hint about what only the journal has got brings it along", () =>
    Effect.gen(function* () {
      const speak = Effect.gen(function* () {
        const { progress, say } = yield* Reporter;
        yield* say("info", "made a key");
        yield* say("info", "pinned a\nserver");
        yield* progress({ doing: line`verifying`, bytes: 0 });
        yield* say("hint", "compare it");
        yield* say("hint", "and then this");
        yield* say("warning", "w");
        yield* say("hint", "about w");
      });
      const cron = reporter();
      yield* Effect.provide(speak, cron.layer);
      assert.deepStrictEqual(cron.out, [
        "qbackup: pinned a server\n",
        "qbackup: hint: compare it\n",
        "qbackup: hint: and then this\n",
        "qbackup: warning: w\n",
        "qbackup: hint: about w\n",
      ]);
      // Each of them once everywhere else.
      for (const options of [{ underSystemd: true }, { terminal: true }]) {
        const { layer, out } = reporter(options);
        yield* Effect.provide(speak, layer);
        assert.lengthOf(
          out.filter((text) => text.includes("pinned a server")),
          1,
        );
      }
      assert.lengthOf(cron.it.read("log").match(/pinned a server/g)!, 1);
    }),
  );
  it.live("at a terminal: everything on both", () =>
    Effect.gen(function* () {
      const { it, layer, out } = reporter({ stderrIsTTY: true });
      yield* Effect.provide(sayAll, layer);
      assert.deepStrictEqual(out, ["qbackup: a note; $(id)\n", ...loud]);
      assert.strictEqual(it.read("log"), logged);
    }),
  );
  it.live("with -o: everything on stderr, nothing in the journal", () =>
    Effect.gen(function* () {
      for (const underSystemd of [true, false]) {
        const { it, layer, out } = reporter({ terminal: true, underSystemd });
        yield* Effect.provide(sayAll, layer);
        assert.deepStrictEqual(out, ["qbackup: a note; $(id)\n", ...loud]);
        assert.strictEqual(it.read("log"), "");
      }
    }),
  );
  it.live("where stderr is the journal: once, with its priority", () =>
    Effect.gen(function* () {
      const { it, layer, out } = reporter({ underSystemd: true });
      yield* Effect.provide(sayAll, layer);
      assert.deepStrictEqual(out, [
        "<6>qbackup: a note; $(id)\n",
        "<4>qbackup: warning: -t look\n",
        "<3>qbackup: error: it failed\n",
        "<3>qbackup: hint: try again\n",
      ]);
      assert.strictEqual(it.read("log"), "");
    }),
  );
  it.live("a logger that is missing or fails is no matter", () =>
    Effect.gen(function* () {
      const { it, layer, out } = reporter();
      fs.rmSync(path.join(it.dir, "logger"));
      yield* Effect.provide(sayAll, desktopLayer({ ...it.env, PATH: it.dir }, out));
      it.add("logger", "exit 1");
      yield* Effect.provide(sayAll, layer);
      assert.deepStrictEqual(out, [...loud, ...loud]);
    }),
  );

  it.live("a logger that hangs holds nobody up for long", () =>
    Effect.gen(function* () {
      const { it, layer } = reporter();
      it.add("logger", `sleep 1000; : "$DIR"`);
      // That it ends at all: the logger would sleep on for a quarter of an hour.
      yield* Effect.provide(sayAll, layer);
      yield* Effect.promise(() => until("it is killed", () => processesWith(it.dir).length === 0));
    }),
  );

  it.effect("draws a bar in place, and clears it before a line and at the end", () =>
    Effect.gen(function* () {
      const { layer, out } = reporter({ stderrIsTTY: true, terminal: true });
      yield* Effect.gen(function* () {
        const { clear, progress, say } = yield* Reporter;
        yield* clear;
        for (let i = 0; i < 20; i++) {
          yield* progress({ doing: line`backing up`, percent: i, bytes: i * 2 ** 20 });
          yield* TestClock.adjust("100 millis");
        }
        yield* say("warning", "look");
        yield* progress({ doing: line`backing up`, percent: 50, bytes: 2 ** 30 });
        yield* clear;
        assert.match(out.at(-1)!, /^\r +\r$/);
      }).pipe(Effect.provide(layer));
      const bars = out.filter((text) => text.startsWith("\r["));
      assert.strictEqual(bars.length, 11);
      assert.strictEqual(bars[0], "\r[..........]   0.00%  0 B sent  0 B/s  0:00:00");
      const at = out.indexOf("qbackup: warning: look\n");
      assert.match(out[at - 1]!, /^\r +\r$/);
      assert.match(out.at(-1)!, /^\r +\r$/);
      assert.strictEqual(out.filter((text) => /^\r +\r$/.test(text)).length, 2);
      for (const bar of bars) assert.isBelow(bar.length, 66);
    }),
  );
  it.effect("without a terminal: a line a minute with -o, every 5 in the journal", () =>
    Effect.gen(function* () {
      const lines = Effect.fnUntraced(function* (terminal: boolean, underSystemd: boolean) {
        const { layer, out } = reporter({ terminal, underSystemd });
        yield* Effect.gen(function* () {
          const { progress } = yield* Reporter;
          for (let s = 0; s <= 600; s += 5) {
            yield* progress({ doing: line`backing up`, percent: s / 6, bytes: s * 2 ** 20 });
            yield* TestClock.adjust("5 seconds");
          }
        }).pipe(Effect.provide(layer));
        return out;
      });
      const often = yield* lines(true, false);
      assert.strictEqual(often.length, 10);
      assert.strictEqual(
        often[0],
        "qbackup: 10.00%  60.0 MiB sent  1.0 MiB/s  0:01:00  some 0:09:00 left\n",
      );
      const rare = yield* lines(false, true);
      assert.deepStrictEqual(
        rare,
        ["<6>qbackup: 50.00%  300.0 MiB sent  1.0 MiB/s  0:05:00  some 0:05:00 left\n"].concat(
          "<6>qbackup: 100.00%  600.0 MiB sent  1.0 MiB/s  0:10:00  some 0:00:00 left\n",
        ),
      );
    }),
  );
  it.effect("goes on where the wall clock is set back, and makes no rate of a jump", () =>
    Effect.gen(function* () {
      const { layer, out } = reporter({ stderrIsTTY: true });
      let offset = 0;
      const real = yield* Clock.Clock;
      const jumping: Clock.Clock = {
        sleep: (duration) => real.sleep(duration),
        currentTimeMillisUnsafe: () => real.currentTimeMillisUnsafe() + offset,
        currentTimeMillis: Effect.map(real.currentTimeMillis, (at) => at + offset),
        currentTimeNanosUnsafe: () => real.currentTimeNanosUnsafe() + BigInt(offset) * 1_000_000n,
        currentTimeNanos: Effect.map(
          real.currentTimeNanos,
          (at) => at + BigInt(offset) * 1_000_000n,
        ),
        monotonicTimeNanosUnsafe: () => real.monotonicTimeNanosUnsafe(),
        monotonicTimeNanos: real.monotonicTimeNanos,
      };
      yield* Effect.gen(function* () {
        const { progress } = yield* Reporter;
        for (const hours of [0, -8, 8]) {
          offset = hours * 3_600_000;
          for (let i = 0; i < 5; i++) {
            yield* progress({ doing: line`backing up`, bytes: 2 ** 20 });
            yield* TestClock.adjust("1 second").pipe(Effect.provideService(Clock.Clock, real));
          }
        }
      }).pipe(Effect.provide(layer), Effect.provideService(Clock.Clock, jumping));
      const bars = out.filter((text) => text.startsWith("\r1.0 MiB"));
      assert.lengthOf(bars, 15);
      assert.match(bars.at(-1)!, /0:00:14/);
    }),
  );
  it("knows whether stderr is the journal by its device and inode", () => {
    const { dev, ino } = fs.fstatSync(2);
    assert.isTrue(stderrIsJournal({ JOURNAL_STREAM: `${dev}:${ino}` }));
    assert.isFalse(stderrIsJournal({ JOURNAL_STREAM: `${dev}:${ino + 1}` }));
    assert.isFalse(stderrIsJournal({}));
  });
});

const desktopLayer = (env: Programs["env"], out: Array<string>) =>
  desktopReporter({
    program: "qbackup",
    terminal: false,
    stderrIsTTY: false,
    underSystemd: false,
    env,
    write: (text) => void out.push(text),
  });
