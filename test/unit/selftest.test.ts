/** The self-test, with a program that does what a test says in place of those that it runs. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Fiber } from "effect";
import { TestClock } from "effect/testing";
import type { LockTable } from "#layers/memory/MemoryLocks";
import { itselfScript, type ItselfScript } from "#layers/memory/MemoryItself";
import { aQube } from "#layers/memory/MemoryQubes";
import type { Ended } from "#services/Itself";
import { qbackup, type World, world } from "#test/support/dom0";
import { gnuTar, piecesOf, tarwriter } from "#test/support/inner";

const mine = "qbackup-selftest";
const back = "qbackup-selftest-1";
const tag = "qbackup-selftest";

/** What a command comes to, where a test does not want it otherwise. */
type Answer = (args: ReadonlyArray<string>) => Partial<Ended> | undefined;

/** A world in which all goes well: restored is what was filled in, but for what `damage` makes of it. */
const setUp = (damage: (image: Buffer) => Buffer = (image) => image, block = false) => {
  const w = world();
  const tar = (image: Buffer) =>
    block
      ? tarwriter("vm10/private.img", image)
      : gnuTar("vm10/private.img", image, piecesOf(image));
  const files = () => {
    const image = Buffer.from(w.table.filled.get(mine) ?? []);
    const xml = gnuTar("qubes.xml", Buffer.from("<qubes/>"), [{ offset: 0, length: 8 }]);
    return [xml, tar(damage(image))];
  };
  w.script = Object.defineProperty({ ...w.script, chunks: [] }, "files", {
    get: files,
    configurable: true,
  });
  const formatOf = (args: ReadonlyArray<string>) =>
    args.find((word) => word.startsWith("selftest-"));
  const well: Answer = (args) => {
    if (args[0] === "verify") {
      const name = `${formatOf(args)}2026-01-31T0400.backup`;
      return { stdout: `${JSON.stringify({ name, size: 5_000_000, members: 8 })}\n` };
    }
    if (args[0] === "restore") {
      let as = 1;
      while (w.table.qubes.some(({ name }) => name === `${mine}-${as}`)) as++;
      w.table.qubes.push(aQube(`${mine}-${as}`, 10 + as, { included: false }));
      w.table.tags.add(`${mine}-${as} ${tag}`);
    }
    return {};
  };
  return { w, well };
};

const selftest = Effect.fnUntraced(function* (
  w: World,
  answer: Answer | ItselfScript,
  options: Parameters<typeof qbackup>[1] = {},
) {
  const itself =
    typeof answer === "function" ? itselfScript((args) => Effect.sync(() => answer(args))) : answer;
  const out: Array<string> = [];
  const args = ["selftest", "-t", "net", "-p", "/pass", "--yes"];
  const ran = yield* qbackup(w, { args, itself, out, ...options });
  return { ...ran, out: out.join(""), itself };
});

/** Nothing that it made is there, and all that a person has. */
const cleared = (w: World) => {
  assert.deepStrictEqual(
    w.table.qubes.map(({ name }) => name),
    ["dom0", "work", "mail", "vault", "net"],
  );
};
const made = (w: World) => w.table.calls.filter((call) => /^(create|fill|mark|remove) /.test(call));

describe("selftest", () => {
  it.effect("goes there and back in both formats, and removes what it made", () =>
    Effect.gen(function* () {
      for (const block of [false, true]) {
        const { w, well } = setUp(undefined, block);
        const { code, itself, out, text } = yield* selftest(w, well);
        assert.strictEqual(code, 0, text + out);
        cleared(w);
        const to = ["-t", "net", "-p", "/pass"];
        assert.deepStrictEqual(
          itself.asked.map(({ args }) => args),
          ["qvm-backup", "slots"].flatMap((format) => {
            const prefix = `selftest-${format}-`;
            const name = `${prefix}2026-01-31T0400.backup`;
            const how = ["-o", "--wait-for", "0", "-f", prefix, "--format", format];
            return [
              ["run", ...to, ...how, mine],
              ["verify", ...to, "--decrypt", "--json", "--wait-for", "0", "--newest", prefix],
              ["restore", ...to, "--rename-conflicting", name],
            ];
          }),
        );
        // No archive of it is promised.
        for (const { settings } of itself.asked) {
          assert.deepStrictEqual(settings, { QBKP_EXPECT_EVERY: "" });
        }
        assert.match(out, /^qbackup \S+, node v0.0.0, Qubes release 4.3 \(R4.3\)\n/);
        const steps = out.split("\n").filter((row) => row.startsWith("ok "));
        assert.lengthOf(steps, 12);
        for (const row of steps) assert.match(row, / [0-9]+\.[0-9] s(?:: |$)/);
        assert.match(out, /slots: read back and decrypt, \S+ s: 4.8 MiB in 8 members\n/);
        assert.match(out, /\nall of it works here: 12 steps in [0-9]+ s\n$/);
        assert.match(
          text,
          /hint: the server keeps selftest-qvm-backup-\S+ and selftest-slots-\S+; .*qbackup ledger forget selftest-qvm-backup-\S+ selftest-slots-\S+$/m,
        );
        // No backup of the default set could have taken it, and each was known by its tag.
        assert.deepStrictEqual(made(w), [
          `create ${mine}`,
          `mark ${mine} ${tag}`,
          `fill ${mine}`,
          `remove ${back}`,
          `remove ${back}`,
          `remove ${mine}`,
        ]);
        const image = w.table.filled.get(mine)!;
        assert.strictEqual(image.length, 16 * 2 ** 20);
        assert.isTrue(image.subarray(4 * 2 ** 20, 8 * 2 ** 20).every((byte) => byte === 0));
        assert.isTrue(image.subarray(-512).some((byte) => byte !== 0));
      }
    }),
  );

  describe("before it begins", () => {
    it.effect("asks at a terminal, and does nothing unless yes is typed", () =>
      Effect.gen(function* () {
        const args = ["selftest", "-t", "net", "-p", "/pass"];
        for (const typed of ["no\n", "\n", ""]) {
          const { w, well } = setUp();
          const { code, itself, text } = yield* selftest(w, well, { args, typed, attended: true });
          assert.strictEqual(code, 2, text);
          assert.match(text, /error: the self-test was not agreed to: nothing was made/);
          assert.lengthOf(itself.asked, 0);
          assert.deepStrictEqual(made(w), []);
        }
        const { w, well } = setUp();
        const { code, text } = yield* selftest(w, well, { args, typed: "yes\n", attended: true });
        assert.strictEqual(code, 0, text);
        assert.match(
          text,
          /qbackup-selftest with 16.0 MiB, .* through net .*\n.*two small archives/,
        );
      }),
    );
    it.effect("begins without a terminal only where it is told to", () =>
      Effect.gen(function* () {
        const { w, well } = setUp();
        const args = ["selftest", "-t", "net", "-p", "/pass"];
        const { code, itself, text } = yield* selftest(w, well, { args });
        assert.strictEqual(code, 2, text);
        assert.match(text, /error: nobody is at a terminal .*\nhint: qbackup selftest --yes /);
        assert.lengthOf(itself.asked, 0);
        assert.deepStrictEqual(made(w), []);
      }),
    );
    it.effect("refuses where a person has a qube of such a name", () =>
      Effect.gen(function* () {
        for (const name of [mine, back]) {
          const { w, well } = setUp();
          w.table.qubes.push(aQube(name, 12));
          const { code, itself, text } = yield* selftest(w, well);
          assert.strictEqual(code, 2, text);
          assert.match(
            text,
            new RegExp(`error: there is a qube ${name} that no self-test has made`),
          );
          assert.lengthOf(itself.asked, 0);
          assert.deepStrictEqual(made(w), []);
        }
      }),
    );
    it.effect("removes what a killed one has left, known by its tag", () =>
      Effect.gen(function* () {
        const { w, well } = setUp();
        for (const [i, name] of [mine, back].entries()) {
          w.table.qubes.push(aQube(name, 12 + i));
          w.table.tags.add(`${name} ${tag}`);
        }
        // A copy that a person made of one.
        w.table.tags.add(`work ${tag}`);
        const { code, text } = yield* selftest(w, well);
        assert.strictEqual(code, 0, text);
        assert.deepStrictEqual(made(w).slice(0, 3), [
          `remove ${mine}`,
          `remove ${back}`,
          `create ${mine}`,
        ]);
        assert.match(text, /warning: a self-test that was killed left qbackup-selftest: /);
        cleared(w);
      }),
    );
    it.effect("is refused while another one is under way", () =>
      Effect.gen(function* () {
        const locks: LockTable = new Map();
        const one = setUp();
        const never = itselfScript(() => Effect.never);
        const first = yield* Effect.forkChild(selftest(one.w, never, { locks }));
        for (let i = 0; never.asked.length === 0 && i < 100; i++) {
          yield* TestClock.adjust("1 second");
        }
        const { w, well } = setUp();
        const { code, itself, text } = yield* selftest(w, well, { locks });
        assert.strictEqual(code, 7, text);
        assert.match(text, /error: another self-test is under way/);
        assert.lengthOf(itself.asked, 0);
        yield* Fiber.interrupt(first);
      }),
    );
  });

  describe("a step that fails", () => {
    const failing = (
      title: string,
      wanted: { readonly code: number; readonly out: RegExp; readonly trips?: number },
      how: {
        readonly damage?: (image: Buffer) => Buffer;
        readonly fails?: string;
        readonly answer?: Answer;
        readonly before?: (w: World) => void;
      },
    ) =>
      it.effect(title, () =>
        Effect.gen(function* () {
          const { w, well } = setUp(how.damage);
          how.before?.(w);
          w.table.fails = (call) => (call === how.fails ? "out of memory" : undefined);
          const { code, itself, out, text } = yield* selftest(w, (args) =>
            how.answer === undefined ? well(args) : (how.answer(args) ?? well(args)),
          );
          assert.strictEqual(code, wanted.code, text + out);
          assert.match(out, wanted.out);
          assert.match(out, /\n[0-9]+ of [0-9]+ steps failed, after [0-9]+ s\n$/);
          assert.match(text, /error: the self-test failed\nhint: what it printed can be sent/);
          cleared(w);
          const trips = itself.asked.filter(({ args }) => args[0] === "run").length;
          assert.strictEqual(trips, wanted.trips ?? 2);
          // It is not the archives that are damaged.
          assert.isTrue(w.notes.every(({ summary }) => summary !== "Backups are damaged"));
        }),
      );
    const said = (code: number, ...lines: ReadonlyArray<string>) => ({
      code,
      said: lines.map((text) => `qbackup: ${text}`),
    });
    const when =
      (command: string, ended: Partial<Ended>): Answer =>
      (args) =>
        args[0] === command ? ended : undefined;

    failing(
      "the qube cannot be made",
      {
        code: 3,
        out: /FAILED {2}make qbackup-selftest, .*: could not make .*: out of memory/,
        trips: 0,
      },
      { fails: `create ${mine}` },
    );
    failing(
      "or not be tagged",
      {
        code: 3,
        out: /FAILED {2}make qbackup-selftest, .*: could not tag .*: out of memory/,
        trips: 0,
      },
      { fails: `mark ${mine} ${tag}` },
    );
    failing(
      "or not be filled",
      {
        code: 3,
        out: /FAILED {2}make qbackup-selftest, .*: could not fill .*: out of memory/,
        trips: 0,
      },
      { fails: `fill ${mine}` },
    );
    failing(
      "the backup, by Qubes: the other format is tried",
      {
        code: 3,
        out: /FAILED {2}qvm-backup: back up, .*: exit code 3: no room\n +free some\nFAILED {2}slots: /,
      },
      { answer: when("run", said(3, "what it did", "error: no room", "hint: free some")) },
    );
    failing(
      "the backup, by the link: the other format would take as long for the same",
      {
        code: 4,
        out: /FAILED {2}qvm-backup: back up, .*: exit code 4: no route\n.*\nok +remove/,
        trips: 1,
      },
      { answer: when("run", said(4, "error: no route")) },
    );
    failing(
      "the backup, by a signal",
      { code: 1, out: /FAILED {2}qvm-backup: back up, .*: exit code 137: nothing was said/ },
      { answer: when("run", { code: 137 }) },
    );
    failing(
      "reading back",
      { code: 6, out: /FAILED {2}slots: read back and decrypt, .*: exit code 6: something else/ },
      { answer: when("verify", said(6, "error: something else")) },
    );
    failing(
      "reading back, which says nothing of what was read",
      { code: 1, out: /FAILED {2}slots: read back and decrypt, .*: verify does not say/ },
      { answer: when("verify", { stdout: "all is well\n" }) },
    );
    failing(
      "reading back, with JSON of something else",
      { code: 1, out: /FAILED {2}slots: read back and decrypt, .*: verify does not say/ },
      { answer: when("verify", { stdout: "null\n" }) },
    );
    failing(
      "the restore",
      { code: 3, out: /FAILED {2}qvm-backup: restore as qbackup-selftest-1, .*: exit code 3: not/ },
      { answer: when("restore", said(3, "error: not restored whole")) },
    );
    failing(
      "the restore, which brings back nothing",
      {
        code: 3,
        out: /FAILED {2}slots: restore as qbackup-selftest-1, .*: restore says that it did/,
      },
      { answer: when("restore", {}) },
    );
    for (const [what, damage, text] of [
      [
        "a byte",
        (image: Buffer) => image.fill(image[700]! ^ 1, 700, 701),
        "in the 4194304 bytes from byte 0",
      ],
      [
        "a byte of the last",
        (image: Buffer) => image.fill(image.at(-1)! ^ 1, image.length - 1),
        "from byte 12582912",
      ],
      [
        "something where nothing was",
        (image: Buffer) => image.fill(1, 5_000_000, 5_000_001),
        "from byte 4194304",
      ],
      [
        "nothing where something was",
        (image: Buffer) => image.fill(0, 0, 4_194_304),
        "from byte 0",
      ],
      ["a shorter volume", (image: Buffer) => image.subarray(0, -512), "it has 16776704 bytes"],
    ] as const) {
      failing(
        `what came back: ${what}`,
        {
          code: 6,
          out: new RegExp(`FAILED {2}qvm-backup: compare .*: .* not what was backed up: .*${text}`),
        },
        { damage },
      );
    }
    failing(
      "the volume cannot be read, or only in part",
      { code: 3, out: /FAILED {2}slots: compare .*: qvm-backup failed with exit code 1: no room/ },
      {
        before: (w) =>
          (w.script = Object.defineProperties(
            {},
            {
              ...Object.getOwnPropertyDescriptors(w.script),
              ends: { value: { code: 1, said: ["no room"] } },
            },
          ) as World["script"]),
      },
    );
    failing(
      "qubesd hands over no volume",
      { code: 3, out: /FAILED {2}slots: compare .*: qubesd handed over 0 private volumes/ },
      { before: (w) => Object.defineProperty(w.script, "files", { value: [] }) },
    );
  });

  it.effect("cannot remove what it made: which that is, is said", () =>
    Effect.gen(function* () {
      const { w, well } = setUp();
      w.table.fails = (call) => (call === `remove ${mine}` ? "in use" : undefined);
      const { code, out, text } = yield* selftest(w, well);
      assert.strictEqual(code, 3, text);
      assert.match(
        out,
        /FAILED {2}remove what was made, .*: could not remove qbackup-selftest: in use/,
      );
      assert.match(
        text,
        /warning: could not .*; remove it yourself: qvm-remove qbackup-selftest$/m,
      );
    }),
  );
  it.effect("says no names but its own", () =>
    Effect.gen(function* () {
      const { w, well } = setUp();
      w.table.qubes.push(aQube("vault-2.x", 13));
      const { out } = yield* selftest(w, (args) =>
        args[0] === "verify"
          ? {
              code: 3,
              said: [
                "qbackup: error: net, vault and vault-2.x: see /home/alice/vault; not workable for qbackup-selftest-1",
                "qbackup: hint: shut down net.",
              ],
            }
          : well(args),
      );
      assert.include(
        out,
        "exit code 3: [a qube], [a qube] and [a qube]: see ~/[a qube]; not workable for qbackup-selftest-1\n        shut down [a qube].\n",
      );
    }),
  );
  it.effect("leaves nothing where it is interrupted, whatever it does", () =>
    Effect.gen(function* () {
      for (const waits of ["run", "verify", "restore"]) {
        const { w, well } = setUp();
        const itself = itselfScript((args) =>
          Effect.suspend(() => {
            const ended = well(args);
            return args[0] === waits ? Effect.never : Effect.succeed(ended);
          }),
        );
        const running = yield* Effect.forkChild(selftest(w, itself));
        for (let i = 0; itself.asked.at(-1)?.args[0] !== waits && i < 100; i++) {
          yield* TestClock.adjust("1 second");
        }
        assert.isTrue(w.table.qubes.some(({ name }) => name === mine));
        const stop = yield* Effect.forkChild(Fiber.interrupt(running));
        for (let i = 0; stop.pollUnsafe() === undefined && i < 100; i++) {
          yield* TestClock.adjust("1 second");
        }
        cleared(w);
      }
    }),
  );
});
