/**
 * The power fails on the server, after any of the system calls by which the built qbackup-shell takes
 * an archive in: they are recorded in one real put, and replayed on the models of file systems that
 * replay.ts has. What each crash left is given to the same code in this process: it must have all that
 * was said, list nothing that is half, and take the rest.
 */
import { Effect } from "effect";
import { afterAll, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { archiveOf } from "#test/support/archive";
import { fingerprintOf } from "#test/support/reference";
import {
  ask,
  commandFor,
  dom0,
  listed,
  series,
  streamOf,
  type Upload,
  upload,
} from "#test/support/shell";
import { firstNight, secondNight } from "#test/support/nights";
import { tally } from "#test/support/tally";
import { unless } from "#test/support/unless";
import { until } from "#test/support/until";
import { inStore, world } from "./here.ts";
import { develop, type Model, modelNames, type Picture, recording, replay } from "./replay.ts";
import { noStrace } from "./strace.ts";
import { below, keyIn, removeScratch, scratch, seed, serve } from "./wire.ts";

afterAll(removeScratch);

/** Where what a crash left is looked at: thousands of times, with nothing more to lose. */
const inMemory = fs.existsSync("/dev/shm") ? "/dev/shm" : os.tmpdir();

/** All tickets are of this moment. */
const time = Date.now();
const plain = (size: number): Upload => ({
  time,
  archive: archiveOf({ seed: 1, files: [{ path: "vm3/private.img", size }] }),
});
/** A block and a rest; and one more, to go on with. */
const short = plain(1_150_000);
const long = plain(2_150_000);
/** Bytes of the stream: three heads and a block. */
const part = 1_048_576 + 4 + 40_000;

interface Situation {
  /** What the store has before. */
  readonly before: ReadonlyArray<Upload>;
  /** The put that is recorded; of it comes `first`, is acknowledged, and then the rest. */
  readonly put: Upload;
  readonly first: number;
}
const situations: Readonly<Record<string, Situation>> = {
  "of a new upload": { before: [], put: short, first: part },
  "of one that goes on": {
    before: [{ ...long, cutAt: part }],
    put: long,
    first: 1_048_576 + 4,
  },
  "of one that builds on another archive": {
    before: [{ ...firstNight, time }],
    put: { ...secondNight, time },
    first: 51_000,
  },
};

/** What the server has said by then. */
interface Told {
  readonly ready: boolean;
  readonly acked: number;
  readonly receipt: string | undefined;
}

/** One put to its end, with an acknowledgement on the way. Gives a copy of the store before it. */
const record = async (
  { before, first, put }: Situation,
  store: string,
  log: string,
): Promise<string> => {
  const server = keyIn(store);
  for (const one of before) {
    await Effect.runPromise(upload(world, { ...one, args: inStore(store), server }));
  }
  const copy = scratch();
  fs.cpSync(store, copy, { recursive: true });
  const call = serve(store, commandFor(put, server, time), recording(log));
  const ready = await call.next();
  assert.strictEqual(ready?.type, "ready");
  const offset = Number(ready!["offset"]);
  assert.strictEqual(offset > 0, before[0]?.cutAt !== undefined);
  const bytes = streamOf(put, server, time, offset);
  await call.send(bytes.subarray(0, first));
  await until("some of it is acknowledged", () => call.acked() > offset);
  await call.send(bytes.subarray(first));
  assert.strictEqual((await call.next())?.type, "stored");
  call.end();
  assert.strictEqual((await call.ended).code, 0);
  return copy;
};

/** The names that are listed; each is read and hashed, and is what its record says. */
const sound = Effect.fnUntraced(function* (store: string) {
  const args = inStore(store);
  const { archives } = yield* listed(world, "", args);
  for (const { damaged, name } of archives) {
    assert.isFalse(damaged, `${name} is listed as damaged`);
    const { replies } = yield* ask(world, "check", [name], args);
    assert.strictEqual(replies.at(-1)?.type, "checked", `${name} is listed, and is something else`);
  }
  return archives.map(({ name }) => name);
});

const afterwards = Effect.fnUntraced(function* (
  store: string,
  { before, put }: Situation,
  told: Told,
) {
  const args = inStore(store);
  const server = keyIn(store);
  const name = put.name ?? "a.backup";
  const others = before.flatMap((one) => (one.cutAt === undefined ? [one.name!] : []));
  const halves = fs.existsSync(path.join(store, name)) && put.archive;
  if (halves) assert.isTrue(fs.readFileSync(path.join(store, name)).equals(put.archive), "half");
  const names = yield* sound(store);
  assert.includeMembers(names, told.receipt === undefined ? others : [...others, name]);
  if (told.ready) {
    const of = [dom0.publicKey, put.series ?? series];
    const { replies } = yield* ask(world, "about", of, args);
    const about = replies[0]?.type === "about" ? replies[0] : undefined;
    assert.deepStrictEqual(about?.signers, [fingerprintOf(dom0.publicKey)], "the signer is lost");
    assert.include(about?.ticket?.text, ` ${put.session ?? ""}`, "the ticket is lost");
  }
  const again = yield* upload(world, { ...put, args, server });
  const last = again.replies.at(-1);
  if (last?.type !== "stored") return assert.fail(`again: ${JSON.stringify(again.replies)}`);
  if (told.receipt !== undefined) assert.strictEqual(last.receipt, told.receipt);
  if (again.offset !== undefined) assert.isAtLeast(again.offset, told.acked, "acknowledged");
  assert.sameMembers(yield* sound(store), [...others, name]);
  if (put.format !== "slots") {
    assert.isTrue(fs.readFileSync(path.join(store, name)).equals(put.archive), "differs");
  }
});

describe("the server loses power", unless(noStrace), () => {
  const rows = Object.entries(situations).flatMap(([name, situation]) =>
    modelNames.map((model): [string, Model, Situation] => [name, model, situation]),
  );
  it.each(rows)(
    "after a system call %s, on the model of %s: what was said is there, and nothing half",
    async (_, model, situation) => {
      const store = scratch();
      const log = path.join(scratch(), "log");
      const before = await record(situation, store, log);
      const { nothingLost, pictures, steps, version } = replay(log, store, before);
      let told: Told = { ready: false, acked: 0, receipt: undefined };
      /** What several crashes leave is looked at once, after the last that leaves it: most was said by then. */
      const left = new Map<string, { picture: Picture; told: Told; text: string }>();
      for (const [i, { apply, said, text }] of steps.entries()) {
        const was = version();
        apply();
        for (const line of (said ?? "").split("\n").filter((one) => one.startsWith("{"))) {
          const { offset, receipt, type } = JSON.parse(line);
          told = {
            ready: told.ready || type === "ready",
            acked: Math.max(told.acked, offset ?? 0),
            receipt: told.receipt ?? receipt,
          };
        }
        if (version() === was && said === undefined) continue;
        for (const picture of pictures(model, seed)) {
          left.set(picture.key, { picture, told, text: `${i}. ${text}` });
        }
      }
      tally("power losses", left.size);
      const wrong: Array<string> = [];
      for (const one of left.values()) {
        const at = scratch(inMemory);
        develop(one.picture, at);
        try {
          // oxlint-disable-next-line no-await-in-loop -- they are many, and the disk is one.
          await Effect.runPromise(afterwards(at, situation, one.told));
        } catch (error) {
          wrong.push(`${one.text}: ${String(error)}`);
        }
        fs.rmSync(at, { recursive: true, force: true });
      }
      assert.deepStrictEqual(wrong, []);
      assert.isDefined(told.receipt, "the log does not show that it was stored");
      assert.isAbove(told.acked, 0);
      assert.isAbove(steps.length, 60);
      // The replay is faithful: with nothing lost it is what the program left.
      const same = scratch();
      develop(nothingLost(), same);
      assert.deepStrictEqual(below(same), below(store));
      for (const name of below(store)) {
        const [is, was] = [same, store].map((dir) => fs.lstatSync(path.join(dir, name)));
        assert.strictEqual(is!.mode, was!.mode, name);
        if (!is!.isFile()) continue;
        const [now, then] = [same, store].map((dir) => fs.readFileSync(path.join(dir, name)));
        assert.isTrue(now!.equals(then!), name);
      }
    },
  );
});
