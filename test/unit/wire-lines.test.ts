/** Lines from a peer that is not to be trusted: their limits, and what is left unread behind them. */
import { assert, describe, it } from "@effect/vitest";
import { Clock, Effect } from "effect";
import { aliveMost, preambleLimit } from "#src/wire/limits";
import { readExactLine, replies, wordsOfNothing } from "#src/wire/lines";
import { parseReply } from "#src/wire/request";
import { source } from "#test/support/source";

const run = Effect.runSync;

describe("a request line", () => {
  it("is taken without a byte of what follows", () => {
    const from = source(Buffer.from("line\nrest"));
    assert.strictEqual(run(readExactLine(from)), "line");
    assert.strictEqual(from.left(), 4);
  });
  it("has a limit and must be UTF-8", () => {
    assert.strictEqual(
      run(readExactLine(source(Buffer.from(`${"x".repeat(4095)}\n`))))?.length,
      4095,
    );
    for (const [bytes, reason] of [
      [Buffer.from(`${"x".repeat(4096)}\n`), "the line is longer than 4096 bytes"],
      [Buffer.from("half"), "the line breaks off"],
      [Buffer.from([0xff, 0x0a]), "the line is not UTF-8"],
    ] as const) {
      const error = run(Effect.flip(readExactLine(source(bytes))));
      assert.strictEqual(error._tag, "WireError");
      assert.strictEqual(error.message, reason);
    }
    assert.isUndefined(run(readExactLine(source(Buffer.alloc(0)))));
  });
  it("is all of its bytes, a mark of byte order too", () => {
    assert.strictEqual(run(readExactLine(source(Buffer.from("\ufeff{}\n")))), "\ufeff{}");
  });
  it("has the limit that is given, and nothing behind it is taken", () => {
    const from = source(Buffer.from("1234567\n"));
    assert.strictEqual(run(readExactLine(from, 8)), "1234567");
    const long = source(Buffer.from("12345678\n"));
    assert.strictEqual(run(Effect.flip(readExactLine(long, 8)))._tag, "WireError");
    assert.strictEqual(long.left(), 1);
    const lines = source(Buffer.from("\na\n"));
    assert.strictEqual(run(readExactLine(lines)), "");
    assert.strictEqual(run(readExactLine(lines)), "a");
    assert.isUndefined(run(readExactLine(lines)));
  });
});

describe("lines of replies", () => {
  const parse = (line: string) => parseReply("check", line);
  const alive = '{"type":"alive"}\n';
  /** What comes of the bytes: the kinds of the replies and the lines skipped, and how it ended. */
  const seen = (bytes: Buffer, step = 4096) => {
    const kinds: Array<string> = [];
    const noise: Array<string> = [];
    const { next } = replies(source(bytes, step), parse, (line) =>
      Effect.sync(() => void noise.push(line)),
    );
    const go = Effect.gen(function* () {
      for (;;) {
        const reply = yield* next;
        if (reply === undefined) return "ended";
        kinds.push(reply.type);
      }
    });
    let reason = "";
    const end = run(
      Effect.catch(go, (error) => {
        reason = error.message;
        return Effect.succeed(error._tag);
      }),
    );
    return { kinds: kinds.join(" "), noise, end, reason };
  };
  const ends = (text: string, step?: number) => {
    const { end, kinds } = seen(Buffer.from(text), step);
    return `${kinds} ${end}`.trim();
  };
  /** A reply of so many bytes, newline included. */
  const reply = (bytes: number) => {
    const bare = '{"type":"alive","x":""}\n'.length;
    return `{"type":"alive","x":"${"y".repeat(bytes - bare)}"}\n`;
  };

  it("64 lines may come before the first reply, empty ones not counted", () => {
    assert.deepStrictEqual(preambleLimit, { lines: 64, bytes: 16_384 });
    assert.strictEqual(ends(`${"x\n".repeat(64)}${alive}`), "alive ended");
    assert.strictEqual(ends(`${"x\n\n".repeat(64)}\n${alive}`), "alive ended");
    assert.strictEqual(ends(`${"x\n".repeat(65)}${alive}`), "WireError");
  });
  it("so may 16 KiB, in one line or in many", () => {
    for (const step of [100, 4096, 65_536]) {
      const text = (line: number, times: number, more: number) =>
        `${`${"x".repeat(line - 1)}\n`.repeat(times)}${"x".repeat(more - 1)}\n${alive}`;
      assert.strictEqual(ends(text(1, 0, 16_383), step), "alive ended");
      assert.strictEqual(ends(text(1, 0, 16_384), step), "WireError");
      assert.strictEqual(ends(text(1, 0, 16_385), step), "WireError");
      assert.strictEqual(ends(text(4096, 3, 4095), step), "alive ended");
      assert.strictEqual(ends(text(4096, 3, 4096), step), "WireError");
      assert.strictEqual(ends(text(4096, 3, 4097), step), "WireError");
      assert.strictEqual(ends("\n".repeat(16_383) + alive, step), "alive ended");
      assert.strictEqual(ends("\n".repeat(16_384) + alive, step), "WireError");
    }
    for (const before of ["", "\n", "hello\n"]) {
      for (const step of [100, 4096, 65_536])
        assert.strictEqual(ends(before + "x".repeat(30_000), step), "WireError", before);
    }
    // The first reply may be as long as any, also where the preamble is.
    assert.strictEqual(ends(`${"x".repeat(16_382)}\n${reply(4096)}`), "alive ended");
  });
  it("what is skipped is told, printable, and empty lines are not", () => {
    const { noise } = seen(Buffer.from(`hello\n\n\x1b[2J\n\xff\n${alive}`, "latin1"));
    assert.deepStrictEqual(noise, ["hello", "?[2J", "(not UTF-8)"]);
  });
  it("a reply has 4 KiB, its newline included", () => {
    for (const step of [100, 4096, 65_536]) {
      assert.strictEqual(ends(reply(4096), step), "alive ended");
      assert.strictEqual(ends(alive + reply(4096), step), "alive alive ended");
      assert.strictEqual(ends(alive + reply(4097), step), "alive WireError");
      // Before the first one, what is too long is no reply but text.
      assert.strictEqual(ends(reply(4097) + alive, step), "alive ended");
    }
    assert.strictEqual(ends(`${alive}${"x".repeat(4096)}`), "alive WireError");
    assert.strictEqual(ends(`${alive}${"x".repeat(4095)}`), "alive ended");
  });
  it("what is too long is told from what is no reply, wherever the newline was seen", () => {
    for (const step of [100, 4096, 65_536]) {
      const reason = (text: string) => seen(Buffer.from(alive + text), step).reason;
      const long = "a line of more than 4096 bytes";
      assert.strictEqual(reason(`${"x".repeat(4095)}\n`), "a line that is no reply");
      assert.strictEqual(reason(`${"x".repeat(4096)}\n`), long);
      assert.strictEqual(reason(`${"x".repeat(5000)}\n`), long);
      assert.strictEqual(reason("x".repeat(4096)), long);
    }
  });
  it("after the first one, every line is a reply", () => {
    assert.strictEqual(ends(`${alive}hello\n`), "alive WireError");
    assert.strictEqual(ends(`${alive}\ufeff${alive}`), "alive WireError");
    assert.strictEqual(ends(`${alive}\n`), "alive WireError");
    assert.strictEqual(ends(`${alive}{"type":"al`), "alive ended");
    assert.strictEqual(seen(Buffer.from(`${alive}\xff\n`, "latin1")).end, "WireError");
  });
  it("signs of life are no work without end: 10,000, and one more each second", () => {
    let now = 5_000_000_000n;
    const clock = { ...run(Clock.Clock), monotonicTimeNanos: Effect.sync(() => now) };
    const nothing = wordsOfNothing();
    const taken = () => {
      for (let n = 0; ; n++) {
        const exit = Effect.runSyncExit(Effect.provideService(nothing, Clock.Clock, clock));
        if (exit._tag === "Failure") return n;
      }
    };
    assert.strictEqual(taken(), aliveMost);
    now += 3_000_000_000n;
    assert.strictEqual(taken(), 2); // the one too many counts, too
    now += 9_000_000_000n;
    assert.strictEqual(taken(), 8);
    const flood = seen(Buffer.from(alive.repeat(aliveMost + 1000)), 65_536);
    assert.strictEqual(flood.end, "WireError");
    assert.strictEqual(flood.reason, "signs of life without end");
    assert.isAtMost(flood.kinds.split(" ").length, aliveMost + 10);
    const checked = `{"type":"checked","size":1,"members":1,"root":"${"0".repeat(64)}"}\n`;
    assert.strictEqual(seen(Buffer.from(checked.repeat(aliveMost + 1000)), 65_536).end, "ended");
  });
  it("in whatever pieces they come", () => {
    const text = `hello\n\n${alive}${reply(50)}${reply(3000)}${alive}${reply(4096)}${reply(700)}`;
    for (const step of [1, 2, 3, 17, 50, 1000, 4095, 4096, 4097, 65_536]) {
      assert.strictEqual(ends(text, step), `${"alive ".repeat(6)}ended`, String(step));
    }
  });
  it("what is behind the last reply is not lost, nor read before it is wanted", () => {
    const tail = Buffer.from(Array.from({ length: 200 }, (_, i) => i));
    for (const step of [1, 18, 20, 50, 1000]) {
      const from = source(Buffer.concat([Buffer.from(`hello\n${alive}`), tail]), step);
      const { next, rest } = replies(from, parse, () => Effect.void);
      assert.strictEqual(run(next)?.type, "alive");
      assert.strictEqual(rest.received(), from.received());
      const got: Array<number> = [];
      const read = (length: number, atLeast?: number) => {
        const into = new Uint8Array(length);
        const n = run(rest.read(into, atLeast));
        got.push(...into.subarray(0, n));
        return n;
      };
      const before = from.left();
      const held = 200 - before;
      // One byte may be given out of what is held; more than that has to be asked for.
      if (held > 0) {
        assert.strictEqual(read(300), held);
        assert.strictEqual(from.left(), before);
      } else assert.isAbove(read(1), 0);
      assert.strictEqual(read(7, 7), Math.min(7, 200 - Math.max(held, 1)));
      assert.isAtLeast(read(1000, 1000), 0);
      assert.strictEqual(read(10), 0);
      assert.deepStrictEqual(got, [...tail]);
    }
    // No more is waited for than was asked for: three bytes are held, five are still wanted.
    const step = (alive.length + 3) / 2;
    const slow = source(Buffer.concat([Buffer.from(alive), tail]), step);
    const behind = replies(slow, parse, () => Effect.void);
    assert.strictEqual(run(behind.next)?.type, "alive");
    const left = slow.left();
    assert.strictEqual(run(behind.rest.read(new Uint8Array(100), 8)), 3 + step);
    assert.strictEqual(slow.left(), left - step);
    // Nobody is asked for what is held already.
    let reads = 0;
    const link = source(Buffer.concat([Buffer.from(alive), tail.subarray(0, 3)]));
    const held = replies(
      {
        ...link,
        read: (into, atLeast) => {
          reads += 1;
          return link.read(into, atLeast);
        },
      },
      parse,
      () => Effect.void,
    );
    assert.strictEqual(run(held.next)?.type, "alive");
    assert.strictEqual(run(held.rest.read(new Uint8Array(1))), 1);
    assert.strictEqual(run(held.rest.read(new Uint8Array(9), 2)), 2);
    assert.strictEqual(reads, 1);
    const from = source(Buffer.concat([Buffer.from(alive), tail]));
    const { next, rest } = replies(from, parse, () => Effect.void);
    assert.strictEqual(run(next)?.type, "alive");
    const into = new Uint8Array(150);
    assert.strictEqual(run(rest.read(into.subarray(0, 30), 10)), 30);
    assert.strictEqual(run(rest.read(into.subarray(30), 120)), 120);
    assert.deepStrictEqual([...into], [...tail.subarray(0, 150)]);
  });
});
