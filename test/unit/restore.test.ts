/** A restore against a far side that is honest, broken or hostile, and a tool that fails or hangs. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Layer } from "effect";
import { memoryQvmBackup, qvmBackupScript } from "#layers/memory/MemoryQvmBackup";
import {
  memoryQvmRestore,
  qvmRestoreScript,
  type QvmRestoreScript,
} from "#layers/memory/MemoryQvmRestore";
import { restoreLog } from "#src/dom0/tool/restorelog";
import { archiveOf, memberOf, scryptOf } from "#test/support/archive";
import { keyOf, type Lies } from "#test/support/peer";
import { linesOf, membersOf, rootOf, tableOf } from "#test/support/reference";
import { line } from "#src/say/shown";
import { anArchive, keep, qbackup, world } from "#test/support/readback";

const mebibyte = 1_048_576;
const said = (...names: ReadonlyArray<string>) => [
  "app: Checking backup content...",
  ...names.map((name) => `qubesadmin.backup: -> Restoring ${name}...`),
  "qubesadmin.backup: -> Done.",
];
const run = (
  w: ReturnType<typeof world>,
  args: ReadonlyArray<string>,
  script: QvmRestoreScript,
  lies: Lies = {},
) =>
  qbackup(w, ["restore", "-p", "/pass", ...args], {
    lies,
    tools: Layer.merge(memoryQvmBackup(qvmBackupScript({ chunks: [] })), memoryQvmRestore(script)),
  });
/** The members of these directories, one behind the other. */
const segments = (bytes: Buffer, ...directories: ReadonlyArray<string>) =>
  Buffer.concat(
    membersOf(bytes)
      .filter(({ path }) => directories.some((directory) => path.startsWith(`${directory}/`)))
      .map((member) => member.bytes),
  );
/** Bytes of the header pair, of qubes.xml, and of the data behind them. */
const passesOf = (bytes: Buffer) => {
  const [one, two, three] = membersOf(bytes).map(({ length }) => length) as [
    number,
    number,
    number,
  ];
  const data = one + two + three;
  return [
    bytes.subarray(0, one + two),
    bytes.subarray(one + two, data),
    bytes.subarray(data),
  ] as const;
};
const counting = () => {
  let bytes = 0;
  let blocks = 0;
  const lies: Lies = {
    frame: (frame) => {
      bytes += frame.length;
      blocks += 1;
      return frame;
    },
  };
  return { lies, bytes: () => bytes, blocks: () => blocks };
};

describe("what the tool is fed", () => {
  it.effect("each pass its own members, and no byte more", () =>
    Effect.gen(function* () {
      const w = world();
      const bytes = anArchive(1, 5_000_000);
      keep(w, "a.backup", bytes);
      const script = qvmRestoreScript({ says: said("work", "mail") });
      const { code, text } = yield* run(w, ["a.backup"], script);
      assert.strictEqual(code, 0, text);
      for (const [i, pass] of passesOf(bytes).entries()) assert.isTrue(script.fed[i]!.equals(pass));
      assert.deepInclude(script.started[0], { verifyOnly: false, qubes: [], options: [] });

      const one = qvmRestoreScript({ says: said("mail") });
      const ran = yield* run(w, ["--rename-conflicting", "a.backup", "mail"], one);
      assert.strictEqual(ran.code, 0, ran.text);
      assert.isTrue(one.fed[2]!.equals(segments(bytes, "vm3")));
      assert.deepInclude(one.started[0], {
        qubes: ["mail"],
        options: ["--rename-conflicting", "--skip-dom0-home"],
      });
    }),
  );
  it.effect("of an archive with hundreds of members, scattered ones", () =>
    Effect.gen(function* () {
      const w = world();
      const ids = Array.from({ length: 100 }, (_, i) => i + 2);
      const bytes = archiveOf({
        seed: 3,
        files: ids.flatMap((id) =>
          ["private.img", "firewall.xml", "notes.txt"].map((file) => ({
            path: `vm${id}/${file}`,
            size: 900,
          })),
        ),
      });
      keep(w, "many.backup", bytes, { qubes: ids.map((qid) => ({ name: `q${qid}`, qid })) });
      assert.lengthOf(membersOf(bytes), 303);
      const all = qvmRestoreScript({ says: said(...ids.map((id) => `q${id}`)) });
      const whole = yield* run(w, ["many.backup"], all);
      assert.strictEqual(whole.code, 0, whole.text.slice(-500));
      assert.isTrue(all.fed[2]!.equals(passesOf(bytes)[2]));

      const some = [2, 3, 30, 45, 46, 101];
      const count = counting();
      const script = qvmRestoreScript({ says: said(...some.map((id) => `q${id}`)) });
      const names = some.map((id) => `q${id}`);
      const { code, text } = yield* run(w, ["many.backup", ...names], script, count.lies);
      assert.strictEqual(code, 0, text);
      assert.isTrue(script.fed[2]!.equals(segments(bytes, ...some.map((id) => `vm${id}`))));
      // The heads, and three members of each of these.
      assert.strictEqual(count.blocks(), 3 + 3 * some.length);
      assert.strictEqual(w.shelf.asked.get("read"), 2);
    }),
  );
  it.effect("the heads, where the tool only looks at the header and qubes.xml", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 40_000_000));
      const count = counting();
      const script = qvmRestoreScript({
        exitsBefore: 2,
        code: 1,
        says: ["qvm-backup-restore: error: no"],
      });
      const { code } = yield* run(w, ["a.backup"], script, count.lies);
      assert.strictEqual(code, 3);
      assert.strictEqual(count.blocks(), 3);
      assert.isBelow(count.bytes(), 40_000);
    }),
  );
  it.effect("the same bytes over a link that breaks", () =>
    Effect.gen(function* () {
      const w = world();
      const bytes = anArchive(1, 12_000_000);
      keep(w, "a.backup", bytes);
      const script = qvmRestoreScript({ says: said("work", "mail") });
      let frames = 0;
      const { code, text } = yield* run(w, ["a.backup"], script, {
        frame: (frame) => ((frames += 1) % 4 === 0 ? "cut" : frame),
      });
      assert.strictEqual(code, 0, text);
      assert.include(text, "the link broke");
      assert.isTrue(script.fed[2]!.equals(passesOf(bytes)[2]));
    }),
  );
});

describe("what never reaches the tool", () => {
  it.effect.each([
    ["a bit of a block", (frame: Buffer) => (frame[5000]! ^= 1)],
    ["a bit of a proof", (frame: Buffer) => (frame[frame.length - 1]! ^= 1)],
  ] as const)("%s turned over: exit 6, and the tool is stopped", ([, lie]) =>
    Effect.gen(function* () {
      for (const wrong of [3, 5, 7]) {
        const w = world();
        const bytes = anArchive(1, 8_000_000);
        keep(w, "a.backup", bytes);
        const script = qvmRestoreScript({ says: said("work", "mail") });
        const { code, text } = yield* run(w, ["a.backup"], script, {
          frame: (frame, { index }) => {
            const copy = Buffer.from(frame);
            if (index === wrong) lie(copy);
            return copy;
          },
        });
        assert.strictEqual(code, 6, text);
        assert.match(text, /is not what was backed up/);
        assert.strictEqual(script.stopped, 1);
        const fed = script.fed[2] ?? Buffer.alloc(0);
        assert.isTrue(fed.equals(passesOf(bytes)[2].subarray(0, fed.length)));
        assert.isAtMost(fed.length, (wrong - 3) * mebibyte);
      }
    }),
  );
  it.effect("heads that are wrong: the tool is not even started", () =>
    Effect.gen(function* () {
      for (const wrong of [0, 1, 2]) {
        const w = world();
        const { session } = keep(w, "a.backup", anArchive(1, 3_000_000));
        const script = qvmRestoreScript({ says: said("work", "mail") });
        const { code, text } = yield* run(w, ["a.backup"], script, {
          frame: (frame, { index }) => {
            const copy = Buffer.from(frame);
            if (index === wrong) copy[5000]! ^= 1;
            return copy;
          },
        });
        assert.strictEqual(code, 6, text);
        assert.lengthOf(script.started, 0);
        assert.isDefined(w.disk.audits.get(session)?.failed);
      }
    }),
  );
  it.effect("another block, or another archive", () =>
    Effect.gen(function* () {
      const w = world();
      const bytes = anArchive(1, 8_000_000);
      keep(w, "a.backup", bytes);
      keep(w, "b.backup", anArchive(2, 8_000_000));
      const frames: Array<Buffer> = [];
      const swapped = qvmRestoreScript({ says: said("work", "mail") });
      const first = yield* run(w, ["a.backup"], swapped, {
        frame: (frame, { index }) => {
          frames[index] = frame;
          return index === 5 ? frames[4]! : frame;
        },
      });
      assert.strictEqual(first.code, 6, first.text);
      assert.strictEqual(swapped.stopped, 1);
      w.shelf.committed.set("a.backup", w.shelf.committed.get("b.backup")!);
      const other = qvmRestoreScript();
      const second = yield* run(w, ["a.backup"], other);
      assert.strictEqual(second.code, 6, second.text);
      assert.lengthOf(other.started, 0);
    }),
  );
  it.effect("the end of the bytes, when the link is lost for good", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 8_000_000));
      const script = qvmRestoreScript({ says: said("work", "mail") });
      const { code, text } = yield* run(w, ["a.backup"], script, {
        frame: (frame, { block, member }) => (member === 3 && block >= 2 ? "cut" : frame),
      });
      assert.strictEqual(code, 4, text);
      assert.strictEqual(script.stopped, 1);
    }),
  );
  /** An archive of these lines and bytes, for which all is signed as it must be. */
  const signed = (
    lines: ReadonlyArray<string>,
    bytes: Buffer,
    options: Parameters<typeof keep>[3] = {},
  ) => {
    const w = world();
    const size = lines.reduce((sum, text) => sum + Number(text.split(" ")[2]), 0);
    const { session } = keep(w, "a.backup", bytes, {
      ...options,
      manifest: { members: lines.length, root: rootOf(lines), size },
    });
    w.shelf.committed.set("a.backup", {
      ...w.shelf.committed.get("a.backup")!,
      table: lines.join(""),
      recipe: `${session} 0 ${lines.length}\n`,
    });
    return w;
  };
  const notWhole = (good: Buffer): ReadonlyArray<ReadonlyArray<string>> => {
    const lines = linesOf(tableOf(good));
    const at4 = (from: RegExp, to: string) =>
      lines.map((text, i) => (i === 4 ? text.replace(from, to) : text));
    return [
      lines.slice(0, 3),
      lines.slice(1),
      lines.slice(0, -1),
      at4(/vm3/, "vm9"),
      at4(/\.000\.enc/, ".001.enc"),
      at4(/vm3/, "vm2"),
      at4(/vm3\/private.img.000.enc/, "../../etc/passwd"),
      [...lines].reverse(),
    ];
  };
  it.effect("what a hostile server has signed itself: odd lists", () =>
    Effect.gen(function* () {
      const good = anArchive(1, 3_000_000);
      for (const lines of notWhole(good).filter((_, i) => i !== 2 && i !== 3)) {
        const w = signed(lines, good, { known: false });
        const script = qvmRestoreScript({ says: said("work", "mail") });
        const { code, text } = yield* run(w, ["--force", "a.backup"], script);
        assert.strictEqual(code, 6, text);
        assert.match(text, /is not a whole archive: /);
        assert.lengthOf(script.started, 0);
      }
      // The list is sound, but the bytes are no member that a backup has.
      const evil = memberOf(
        "../../../etc/cron.d/x",
        scryptOf(Buffer.alloc(2_000_000), Buffer.alloc(32, 7)),
      );
      const bytes = Buffer.concat([good.subarray(0, 30_720), evil]);
      const lines = linesOf(tableOf(bytes)).map((text) =>
        text.replace("../../../etc/cron.d/x", "vm2/private.img.000.enc"),
      );
      const script = qvmRestoreScript({ says: said("work", "mail") });
      const w = signed(lines, bytes, { known: false });
      const { code, text } = yield* run(w, ["--force", "a.backup"], script);
      assert.strictEqual(code, 6, text);
      assert.match(text, /cron.d\/x is not what the list of members has there/);
      assert.lengthOf(script.fed[2] ?? [], 0);
    }),
  );
  it.effect("an archive that is not whole, whoever vouches for it", () =>
    Effect.gen(function* () {
      const good = anArchive(1, 3_000_000);
      for (const [i, lines] of notWhole(good).entries()) {
        // A rebuilt ledger does not know which qubes must be there: a lost one it cannot miss.
        for (const rebuilt of i === 2 || i === 3 ? [false] : [false, true]) {
          const w = signed(lines, good, { rebuilt });
          for (const args of [["restore"], ["verify"], ["verify", "--decrypt"]]) {
            const script = qvmRestoreScript({ says: said("work", "mail") });
            const { code, text } = yield* qbackup(w, [...args, "-p", "/pass", "a.backup"], {
              tools: Layer.merge(
                memoryQvmBackup(qvmBackupScript({ chunks: [] })),
                memoryQvmRestore(script),
              ),
            });
            assert.strictEqual(code, 6, text);
            assert.match(text, /a.backup is not a whole archive: /);
            assert.lengthOf(script.started, 0);
          }
        }
      }
    }),
  );
  it.effect("one for which nothing was signed, as the bare form leaves it", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 3_000_000), { known: false });
      const script = qvmRestoreScript({ says: said("work", "mail") });
      const lies: Lies = {
        record: () => ({ type: "error", code: "not-found", message: "none" }),
        listed: (lines) =>
          lines.map((text) =>
            text.type === "archive" ? { ...text, signer: null, series: null, run: null } : text,
          ),
      };
      const ran = yield* run(w, ["--force", "--verify-only", "a.backup"], script, lies);
      assert.strictEqual(ran.code, 0, ran.text);
      assert.match(ran.text, /not proven: that this is what was backed up here/);
      assert.match(ran.text, /all that was asked for decrypts$/m);
    }),
  );
  it.effect("a record that another key signed", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 3_000_000), { known: false, key: keyOf("another") });
      const script = qvmRestoreScript();
      const { code, text } = yield* run(w, ["--force", "a.backup"], script);
      assert.strictEqual(code, 6, text);
      assert.lengthOf(script.started, 0);
    }),
  );
});

describe("a tool that does not end as it should", () => {
  const attempt = (
    title: string,
    script: Parameters<typeof qvmRestoreScript>[0],
    text: RegExp,
    ...args: ReadonlyArray<string>
  ) =>
    it.effect(title, () =>
      Effect.gen(function* () {
        const w = world();
        keep(w, "a.backup", anArchive(1, 3_000_000));
        const made = qvmRestoreScript(script);
        const ran = yield* run(w, ["--qubes-timeout", "7", ...args, "a.backup"], made);
        assert.strictEqual(ran.code, 3, ran.text);
        assert.match(ran.text, text);
        assert.isBelow(ran.seconds, 15 * 60);
      }),
    );
  /** scrypt says no to a member, and had said yes to the header: exit 6, marked, and told. */
  const broken = (
    title: string,
    script: Parameters<typeof qvmRestoreScript>[0],
    text: RegExp,
    then: { readonly exit: 3 | 6 },
    ...args: ReadonlyArray<string>
  ) =>
    it.effect(title, () =>
      Effect.gen(function* () {
        const w = world();
        const { session } = keep(w, "a.backup", anArchive(1, 3_000_000));
        const made = qvmRestoreScript(script);
        const ran = yield* qbackup(w, [...args, "-p", "/pass", "a.backup"], {
          tools: Layer.merge(
            memoryQvmBackup(qvmBackupScript({ chunks: [] })),
            memoryQvmRestore(made),
          ),
        });
        assert.strictEqual(ran.code, then.exit, ran.text);
        assert.match(ran.text, text);
        const { failed, undecryptable } = w.disk.audits.get(session) ?? {};
        assert.isUndefined(failed);
        assert.strictEqual(undecryptable !== undefined, then.exit === 6);
        assert.strictEqual(w.notes.at(-1)?.summary === "Backups are damaged", then.exit === 6);
        // Its bytes are as they were, which is no comfort: only a decryption clears it.
        assert.strictEqual((yield* qbackup(w, ["verify", "a.backup"])).code, 0);
        const list = yield* qbackup(w, ["list"]);
        assert.strictEqual(list.code, then.exit === 6 ? 6 : 0, list.text);
        if (then.exit === 6) {
          assert.match(
            list.text,
            /a.backup is damaged: a member did not decrypt on .*: back up again/,
          );
        }
      }),
    );
  const noMember = (said: string) =>
    `qubesadmin.backup: Error extracting data: failed to decrypt /t/vm2/private.img.001.enc: ${said}`;
  const invalid = "b'scrypt: Input is not valid scrypt-encrypted block\\n'";
  const now =
    /^error: not (?:verified|restored whole): .*work.*does not decrypt, although the header did: .*private.img.001[^]*hint: back up again now/m;
  for (const command of [["restore"], ["restore", "--verify-only"], ["verify", "--decrypt"]]) {
    broken(
      `${command.join(" ")}: a member that does not decrypt`,
      { says: [noMember(invalid), ...said("work", "mail")] },
      now,
      { exit: 6 },
      ...command,
    );
    broken(
      `${command.join(" ")}: a member that does not decrypt, and exit 1`,
      { code: 1, says: [...said("work"), noMember(invalid)] },
      now,
      { exit: 6 },
      ...command,
    );
  }
  broken(
    "a scrypt that was killed, or had no memory, says nothing of the member",
    { code: 1, says: [...said("work"), noMember("b''"), noMember("b'scrypt: Out of memory\\n'")] },
    /exit code 1/,
    { exit: 3 },
    "verify",
    "--decrypt",
  );
  broken(
    "another passphrase says nothing of the archive",
    {
      code: 1,
      says: [
        "qvm-backup-restore: error: Corrupted backup header (hmac verification failed). Is the password correct?",
      ],
    },
    /hint: is the passphrase/,
    { exit: 3 },
    "restore",
  );

  attempt(
    "set no netvm and no template, because it looked for the new name of one that is here",
    {
      says: [
        " work |  AppVM | <-- Will be renamed to 'work-1'",
        " mail |  AppVM | <-- Will be renamed to 'mail-1'",
        // It names them as the archive does.
        "qubesadmin.backup: Error setting work.netvm to net-1: Can't set netvm to non-existing qube net-1",
        "qubesadmin.backup: Error setting mail.netvm to net-1: Can't set netvm to non-existing qube net-1",
        "qubesadmin.backup: Error setting mail.default_dispvm to dvm-1: Can't set default_dispvm to non-existing qube dvm-1",
        ...said("work", "mail"),
      ],
    },
    /warning: --rename-conflicting: .* without one, unless that is restored too; [^]*hint: .*qvm-prefs work-1 netvm net; qvm-prefs mail-1 netvm net; qvm-prefs mail-1 default_dispvm dvm$/m,
    "--rename-conflicting",
  );

  it.effect("says what a killed one has left, and what removes it", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 3_000_000));
      const left = "/home/user/QubesIncoming/backup#restore/tmpab";
      const script = qvmRestoreScript({
        says: said("work", "mail"),
        leftovers: [left],
        writes: "5 minutes",
      });
      const ran = yield* run(w, ["a.backup"], script);
      assert.strictEqual(ran.code, 0, ran.text);
      assert.include(
        ran.text,
        `left data in ${left}, unpacked and not encrypted\nhint: rm -r '${left}'`,
      );
      // Minutes after the last byte, it is said what is waited for.
      const [last] = w.said.progress.slice(-1);
      assert.deepStrictEqual([last?.doing, last?.total], [line`writing the volumes`, undefined]);
    }),
  );

  const silent = /neither read nor said anything for 7 minutes/;
  attempt("never opens its archive", { neverOpens: 0 }, silent);
  attempt("does not come back for the data", { neverOpens: 2 }, silent);
  attempt("hangs in the middle", { hangsIn: 2 }, silent);
  attempt("cannot be started", { refuses: "not installed" }, /not installed/);
  attempt(
    "exits 0 before it has read the data",
    { exitsBefore: 2 },
    /not restored whole: work, mail/,
  );
  attempt(
    "stops early",
    { stopsAfter: [undefined, undefined, 30_000], says: said("work", "mail") },
    /stopped reading before the end of vm/,
  );
  attempt(
    "does not say that it is done",
    { says: said("work", "mail").slice(0, -1) },
    /did not say that it was done/,
  );
  attempt("leaves one out", { says: said("work") }, /not restored whole: mail/);
  attempt(
    "fails",
    { code: 1, says: ["qvm-backup-restore: error: No space left on device"] },
    /exit code 1: No space[^]*1 GiB/,
  );
  attempt(
    "logs that a volume failed",
    {
      says: [
        "qubesadmin.backup: Failed to restore volume private (size 12) of VM mail: \u001b[31mno\u0007",
        ...said("work", "mail"),
      ],
    },
    /not restored whole: mail; /,
  );
  attempt(
    "logs that a volume failed, of a qube that has a new name",
    {
      says: [
        " work |  AppVM | <-- Will be renamed to 'work1'",
        " mail |  AppVM | <-- Will be renamed to 'mail3'",
        "qubesadmin.backup: Failed to restore volume private (size 12) of VM mail3: no",
        ...said("work", "mail"),
      ],
    },
    /not restored whole: mail \(here: mail3\); /,
    "--rename-conflicting",
  );
  attempt(
    "logs that a volume failed, of a qube whose names are long",
    {
      says: [
        ` mail |  AppVM | <-- Will be renamed to 'a-name-of-thirty-one-characters-of-which-some-are-not-needed'`,
        "qubesadmin.backup: Failed to restore volume private (size 12) of VM a-name-of-thirty-one-characters-of-which-some-are-not-needed: no",
        ...said("work", "mail"),
      ],
    },
    /not restored whole: mail \(here: a-name-of-thirty-one-characters-of-which-some-are-not-needed\); /,
    "--rename-conflicting",
  );
  attempt(
    "gives up in the middle of the data: what comes after is not there, either",
    {
      says: [
        "qubesadmin.backup: Error extracting data: failed to decrypt /t/vm2/private.img.000.enc: b''",
        ...said("work", "mail"),
      ],
    },
    /not restored whole: work, mail; /,
  );
  attempt(
    "gives up, and does not say where",
    {
      says: [
        "qubesadmin.backup: Error extracting data: unable to extract the qubes backup. Check extracting process errors.",
        ...said("work", "mail"),
      ],
    },
    /not restored whole: work, mail; /,
  );
  attempt(
    "could not set everything",
    {
      says: [
        "qubesadmin.backup: Error setting mail.kernel to 6.1: no such kernel",
        ...said("work", "mail"),
      ],
    },
    /restored with its data, but not all of its settings: mail; .*no such kernel/,
  );
  attempt(
    "leaves one out, and the table says why",
    {
      says: [
        " mail |  AppVM | <-- No matching template on the host or in the backup found!",
        ...said("work"),
      ],
    },
    /not restored whole: mail; .*left it out: No matching template[^]*hint: --ignore-missing/,
  );
  attempt(
    "dies of an exception",
    {
      code: 1,
      says: ["Traceback (most recent call last):", "  File x", "KeyError: 'sys-usb'"],
    },
    /exit code 1: KeyError: 'sys-usb'$/m,
  );
  attempt(
    "dies of an exception when it has made the qubes",
    {
      code: 1,
      says: [
        ...said("work", "mail").slice(0, -1),
        "Traceback (most recent call last):",
        "  File x",
        "KeyError: 'sys-usb'",
      ],
    },
    /exit code 1: KeyError: 'sys-usb'; not restored whole: work, mail\n.*hint: .*make one of that name, remove/,
  );
  attempt(
    "is killed when it has made the qubes",
    {
      code: 143,
      says: [
        ...said("work", "mail").slice(0, -1),
        "qubesadmin.backup: Extracting data: 252.0 MiB to restore",
      ],
    },
    /exit code 143; not restored whole: work, mail\n.*hint: remove.*QubesIncoming/,
  );
  attempt(
    "gives up, of which its tar says more before",
    {
      says: [
        "qubesadmin.backup.extract: ERROR: unable to extract files for /t/vm2/private.img.000, tar output:",
        "  ",
        "qubesadmin.backup: Error extracting data: failed to decrypt /t/vm3/private.img.000.enc: b''",
        ...said("work", "mail"),
      ],
    },
    /not restored whole: work, mail; qvm-backup-restore said: Error extracting data: failed to decrypt/,
  );
  attempt(
    "has no such filter",
    {
      code: 1,
      says: [
        "qubesadmin.backup.extract: ERROR: unable to extract files for qubes.xml.000, tar output:",
        "  tar (grandchild): nozip : Cannot exec: No such file or directory",
        "",
        "  tar: Child returned status 2",
        "Traceback (most recent call last):",
        "  File x",
        "lxml.etree.XMLSyntaxError: Document is empty, line 1, column 1",
      ],
    },
    /exit code 1: tar \(grandchild\): nozip : Cannot exec: No such file or directory\n.*hint: --compression-filter/,
    "--compression-filter=nozip",
  );
  it.effect("has nothing left to restore, as it was told", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 3_000_000));
      const same = "<-- A VM with the same name already exists on the host!";
      const script = qvmRestoreScript({
        stopsAfter: [undefined, undefined, 0],
        says: [
          ` work |  AppVM | ${same}`,
          ` mail |  AppVM | ${same}`,
          'qubesadmin.backup: Error extracting data: unable to read the qubes backup file /x (2): b"tar: --occurrence is meaningless without a file list\\n"',
          ...said(),
        ],
      });
      const { code, text } = yield* run(w, ["--skip-conflicting", "a.backup"], script);
      assert.strictEqual(code, 0, text);
      assert.match(text, /left out, as asked for: work, mail/);
      assert.match(text, /restored nothing from a.backup/);
      assert.notInclude(text, "Error extracting data");
      const refused = yield* run(w, ["a.backup"], { ...script, started: [], fed: [] });
      assert.strictEqual(refused.code, 3, refused.text);
      assert.match(refused.text, /not restored whole: work, mail; .*same name already exists/);
    }),
  );
  it.effect("leaves out what it was told to leave out, which is fine", () =>
    Effect.gen(function* () {
      const w = world();
      keep(w, "a.backup", anArchive(1, 3_000_000));
      const script = qvmRestoreScript({ says: said("work"), stopsAfter: [] });
      const { code, text } = yield* run(w, ["--skip-conflicting", "a.backup"], script);
      assert.strictEqual(code, 0, text);
      assert.match(text, /left out, as asked for: mail/);
      assert.match(text, /restored from a.backup: work$/m);
    }),
  );
  it.effect("so too where the ledger knows no names, or nothing at all", () =>
    Effect.gen(function* () {
      const row = (name: string) =>
        ` ${name} |  AppVM | <-- A VM with the same name already exists on the host!`;
      const nothing =
        'qubesadmin.backup: Error extracting data: unable to read the qubes backup file /x (2): b"tar: --occurrence is meaningless without a file list\\n"';
      for (const [kept, force] of [
        [{ rebuilt: true }, []],
        [{ known: false }, ["--force"]],
      ] as const) {
        const w = world();
        const { session } = keep(w, "a.backup", anArchive(1, 3_000_000), kept);
        const restoring = (
          script: Parameters<typeof qvmRestoreScript>[0],
          ...more: Array<string>
        ) => run(w, [...force, ...more, "a.backup"], qvmRestoreScript(script));
        const all = yield* restoring({ says: said("work", "mail") });
        assert.strictEqual(all.code, 0, all.text);
        assert.match(all.text, /restored from a.backup: work, mail$/m);

        // Nothing of the data is read, or some of it.
        for (const [stop, says, end] of [
          [0, [row("work"), row("mail"), nothing, ...said()], /restored nothing from a.backup$/m],
          [1_500_000, [row("mail"), ...said("work")], /restored from a.backup: work$/m],
          [undefined, [row("mail"), ...said("work")], /restored from a.backup: work$/m],
        ] as const) {
          const script = { stopsAfter: [undefined, undefined, stop], says };
          const ran = yield* restoring(script, "--skip-conflicting");
          assert.strictEqual(ran.code, 0, ran.text);
          assert.match(ran.text, end);
          assert.match(ran.text, /left out, as asked for: (?:work, )?mail$/m);
          assert.notMatch(ran.text, /all qubes$/m);
          assert.isUndefined(w.disk.audits.get(session)?.failed);
        }
        // What nobody has asked it to leave out must come.
        const refused = yield* restoring({ says: [row("mail"), ...said("work")] });
        assert.strictEqual(refused.code, 3, refused.text);
        assert.match(refused.text, /not restored whole: mail; .*same name already exists/);
      }
    }),
  );
});

it.effect(
  "--paranoid gives the tool a command for the storage qube, and says what that means",
  () =>
    Effect.gen(function* () {
      const w = world();
      const bytes = anArchive(1, 3_000_000);
      const { manifest } = keep(w, "dir/a.backup", bytes);
      const { members, root, size } = JSON.parse(manifest);
      const script = qvmRestoreScript({ says: said("work", "mail") });
      const { code, text } = yield* run(w, ["--paranoid", "dir/a.backup"], script);
      assert.strictEqual(code, 0, text);
      assert.lengthOf(script.commands, 1);
      assert.match(
        script.commands[0]!,
        /^net: env PATH=[a-z/:-]+\$PATH qubes\.BackupCarrier fetch /,
      );
      assert.isTrue(
        script.commands[0]!.endsWith(` dir/a.backup qvm-backup ${size} ${members} ${root}`),
      );
      assert.match(text, /nothing of the archive passes through here/);
      const shown: string | undefined = w.said.progress.at(-1)?.waits;
      assert.strictEqual(
        shown,
        "waiting for qvm-backup-restore, which fetches the archive from net into a disposable",
      );
    }),
);
it.effect("--paranoid has as long as the archive is large, and a day", () =>
  Effect.gen(function* () {
    for (const [size, takes, code] of [
      [10_240, "26 hours", 3],
      [1e10, "26 hours", 0],
    ] as const) {
      const w = world();
      const { session } = keep(w, "a.backup", anArchive(1, 3_000_000), { manifest: { size } });
      const script = qvmRestoreScript({ says: said("work", "mail"), takes });
      const ran = yield* qbackup(w, ["restore", "-p", "/pass", "--paranoid", "a.backup"], {
        within: "27 hours",
        tools: Layer.merge(
          memoryQvmBackup(qvmBackupScript({ chunks: [] })),
          memoryQvmRestore(script),
        ),
      });
      assert.strictEqual(ran.code, code, ran.text);
      if (code !== 0) assert.match(ran.text, /has not ended within 25 hours\nhint: at 2 Mbit/);
      assert.strictEqual(script.stopped, code === 0 ? 0 : 1);
      assert.isUndefined(w.disk.audits.get(session));
    }
  }),
);
it.effect("--paranoid leaves out dom0's home, as the tool does in that mode", () =>
  Effect.gen(function* () {
    const w = world();
    keep(w, "a.backup", anArchive(1, 3_000_000), {
      qubes: [
        { name: "dom0", qid: 0 },
        { name: "work", qid: 2 },
        { name: "mail", qid: 3 },
      ],
    });
    const script = qvmRestoreScript({ says: said("work", "mail") });
    const { code, text } = yield* run(w, ["--paranoid", "a.backup"], script);
    assert.strictEqual(code, 0, text);
    assert.deepInclude(script.started[0], {
      qubes: ["work", "mail"],
      options: ["--skip-dom0-home"],
    });
    const only = yield* run(w, ["--paranoid", "a.backup", "dom0"], script);
    assert.strictEqual(only.code, 2, only.text);
  }),
);
it.effect("verifying asks for no template and no user of this machine", () =>
  Effect.gen(function* () {
    const w = world();
    keep(w, "a.backup", anArchive(1, 3_000_000));
    const script = qvmRestoreScript({ says: said("work", "mail") });
    const { code, text } = yield* run(w, ["--verify-only", "--ignore-missing", "a.backup"], script);
    assert.strictEqual(code, 0, text);
    assert.deepInclude(script.started[0], {
      options: ["--ignore-missing", "--ignore-username-mismatch"],
    });
  }),
);

it.effect("verify --decrypt tells the tool of a filter that it does not know, or what to do", () =>
  Effect.gen(function* () {
    const w = world();
    keep(w, "a.backup", anArchive(1, 3_000_000));
    const decrypt = (script: ReturnType<typeof qvmRestoreScript>, ...args: ReadonlyArray<string>) =>
      qbackup(w, ["verify", "--decrypt", "-p", "/pass", ...args, "a.backup"], {
        tools: Layer.merge(
          memoryQvmBackup(qvmBackupScript({ chunks: [] })),
          memoryQvmRestore(script),
        ),
      });
    const unusual =
      "qvm-backup-restore: error: Unusual compression filter 'lzip' found. Use --compression-filter=lzip to use it anyway.";
    const without = yield* decrypt(qvmRestoreScript({ code: 1, says: [unusual] }));
    assert.strictEqual(without.code, 3, without.text);
    assert.match(without.text, /hint: give -Z with that program/);
    const script = qvmRestoreScript({ says: said("work", "mail") });
    const ran = yield* decrypt(script, "-Z", "lzip");
    assert.strictEqual(ran.code, 0, ran.text);
    assert.deepInclude(script.started[0], {
      options: ["--ignore-missing", "--ignore-username-mismatch", "--compression-filter=lzip"],
    });
    const path = yield* decrypt(script, "-Z", "/bin/lzip");
    assert.strictEqual(path.code, 2, path.text);
  }),
);

it.effect("verify --decrypt finds a qube missing that the tool does not miss", () =>
  Effect.gen(function* () {
    const bytes = anArchive(1, 3_000_000);
    const there = [
      { name: "work", qid: 2 },
      { name: "mail", qid: 3 },
    ];
    for (const [qubes, code, found] of [
      [there, 0, /^$/],
      [[...there, { name: "gone", qid: 5 }], 6, /has nothing of vm5/],
    ] as const) {
      const w = world();
      keep(w, "a.backup", bytes, { qubes });
      const script = qvmRestoreScript({ says: said(...qubes.map(({ name }) => name)) });
      const ran = yield* qbackup(w, ["verify", "--decrypt", "-p", "/pass", "a.backup"], {
        tools: Layer.merge(
          memoryQvmBackup(qvmBackupScript({ chunks: [] })),
          memoryQvmRestore(script),
        ),
      });
      assert.strictEqual(ran.code, code, ran.text);
      assert.match(ran.text.split("\n").findLast((line) => line.startsWith("error")) ?? "", found);
      assert.lengthOf(script.started, code === 0 ? 1 : 0);
      if (code !== 0) continue;
      assert.isTrue(script.started[0]!.verifyOnly);
      assert.isTrue(script.fed[2]!.equals(passesOf(bytes)[2]));
    }
  }),
);

describe("the lines of qvm-backup-restore", () => {
  const names = new Map([
    ["vm2", "work"],
    ["vm7", "vault-2"],
    ["dom0-home", "dom0"],
  ]);
  const read = (...lines: ReadonlyArray<string>) => {
    const log = restoreLog((id) => names.get(id) ?? id);
    lines.forEach(log.see);
    return log;
  };
  it.effect.each([
    [
      "qubesadmin.backup: Failed to restore volume root of VM vault-2: Got empty response",
      ["vault-2"],
    ],
    ["qubesadmin.backup: Failed to restore volume private (size None) of VM work: x", ["work"]],
    ["qubesadmin.backup: Failed to resize volume private of VM work to 5: x", ["work"]],
    ["qubesadmin.backup: Error restoring VM work, skipping: no such label", ["work"]],
    [
      "qubesadmin.backup: Error extracting data: failed to decrypt /home/u/QubesIncoming/backup#restore/tmpab/vm7/private.img.003.enc: b'scrypt: x'",
      ["vault-2"],
    ],
    [
      "qubesadmin.backup.extract: ERROR: unable to extract files for /tmp/restore/vm2/root.img.000, tar output:",
      ["work"],
    ],
    [
      "qubesadmin.backup.extract: Error while processing '/t/dom0-home/user.000': tar failed",
      ["dom0"],
    ],
    ["qubesadmin.backup.extract: Unexpected file in archive: /t/vm9/x.001, expected y", ["vm9"]],
    ["qvm-backup-restore: error: unable to read the qubes backup file x (2): y", []],
    ["Traceback (most recent call last):", []],
    [
      "qubesadmin.backup: Error extracting data: failed to decrypt /home/u/QubesIncoming/.backup#restore-x/vm2/firewall.xml.000.enc: b'x'",
      ["work"],
    ],
    ["Inner tar error for dom0-home", ["dom0"]],
    ["qubesadmin.backup.extract: EOF from tar before got file size info", []],
    [
      "qubesadmin.backup: Premature end of archive, the last file was vm2/private.img.000.enc",
      ["work"],
    ],
  ] as const)("%s", ([line, who]) =>
    Effect.sync(() => {
      const log = read(line);
      assert.lengthOf(log.faults, 1);
      assert.deepStrictEqual([...log.failed], [...who]);
    }),
  );
  it.effect.each([
    ["qubesadmin.backup: Error setting work.kernel to 6.1: no such kernel", "work"],
    ["qubesadmin.backup: Error setting a.b.netvm to None: Got empty response", "a.b"],
    ["qubesadmin.backup: Error setting work.features[a.b c] to 1: no", "work"],
    ["qubesadmin.backup: Error adding tag mine to work: no", "work"],
    ["qubesadmin.backup: Error attaching device pci:00_14.0 to work: no", "work"],
    ["qubesadmin.backup: Error assigning device pci:00_14.0 to work: no", "work"],
    ["qubesadmin.backup: Failed to set application list for work: no", "work"],
    ["qubesadmin.backup: *** Error while setting restore directory owner", "dom0"],
    ["work: Failed to set firewall", "work"],
    ["vm.work: Failed to set notes", "work"],
  ] as const)("about a setting: %s", ([line, who]) =>
    Effect.sync(() => {
      const log = read(line);
      assert.deepStrictEqual([...log.faults], []);
      assert.lengthOf(log.remarks, 1);
      assert.deepStrictEqual([...log.altered], [who]);
      assert.deepStrictEqual(
        log.take().map(({ level }) => level),
        ["warning"],
      );
    }),
  );
  it.effect("not about what can be set by hand: the tag that tells who made a qube", () =>
    Effect.sync(() => {
      const log = read(
        "qubesadmin.backup: Error adding tag created-by-dom0 to work: Got empty response",
      );
      assert.deepStrictEqual([...log.faults, ...log.remarks, ...log.altered], []);
      assert.deepStrictEqual(
        log.take().map(({ level }) => level),
        ["info"],
      );
    }),
  );
  it.effect("of a traceback: the last one counts, wherever it belongs", () =>
    Effect.sync(() => {
      const frames = [
        "Traceback (most recent call last):",
        '  File "/usr/lib/python3.13/site-packages/qubesadmin/backup/restore.py", line 1, in x',
        "    raise failed to decrypt /vm2/x",
      ];
      const home = read(...frames, "qubesadmin.exc.QubesException: Inner tar error for dom0-home");
      assert.deepStrictEqual([...home.faults], ["Inner tar error for dom0-home"]);
      assert.deepStrictEqual([...home.failed], ["dom0"]);
      const device = read(...frames, "KeyError: 'sys-usb'", "app: Existing VMs");
      assert.deepStrictEqual([...device.faults], ["KeyError: 'sys-usb'"]);
      const firewall = read("work: Failed to set firewall", ...frames, "ValueError: no", "", "x");
      assert.deepStrictEqual([...firewall.faults], []);
      assert.deepStrictEqual([...firewall.altered], ["work"]);
      assert.include(firewall.remarks, "ValueError: no");
      const frame = '  File "/usr/lib/qubesadmin/backup/restore.py", line 1, in _handle_dom0';
      const full = read(...frames, frame, "    os.mkdir(x)", "OSError: [Errno 28] No space");
      assert.deepStrictEqual([...full.failed], ["dom0"]);
      const amid = read(
        frames[0]!,
        "The following VMs are included in the backup:",
        "",
        "---------+---------+",
        "    name |    type |",
        "---------+---------+",
        "    work |   AppVM | <-- Will be renamed to 'work1'",
        "",
        frames[1]!,
        "KeyError: 'sys-usb'",
      );
      assert.deepStrictEqual([...amid.faults], ["KeyError: 'sys-usb'"]);
      assert.deepStrictEqual([...amid.renamed], [["work", "work1"]]);
      const cut = read(...frames, "qubesadmin.backup: -> Done.");
      assert.deepStrictEqual([...cut.faults], [frames[0]]);
      assert.isTrue(cut.done());
    }),
  );
  it.effect("of what its tar said", () =>
    Effect.sync(() => {
      const before =
        "qubesadmin.backup.extract: ERROR: unable to extract files for /t/vm2/x.000, tar output:";
      const log = read(
        "qubesadmin.backup.extract: Error while processing '/t/vm2/x.000': addproc failed",
        before,
        "  tar: x: Cannot write",
        "",
        "  tar: Error is not recoverable",
      );
      assert.lengthOf(log.faults, 3);
      assert.strictEqual(log.cause(), "tar: x: Cannot write");
      const fetched = read(
        "qvm-backup-restore: error: Backup header retrieval failed (exit code 6): Starting Restorecopy",
        "Paths: backup-header backup-header.hmac",
        "qubes.BackupCarrier: error: block 3 of a.backup is not what dom0 asked for",
        "qvm-backup-restore: error: qvm-backup-restore failed with 1",
      );
      assert.match(fetched.cause()!, /block 3 of a.backup is not/);
      const listed = read(before, "  -rw-r--r-- root/root  2 2026-01-31 04:00 vm7/notes.txt");
      assert.lengthOf(listed.faults, 1);
      assert.strictEqual(listed.cause(), listed.faults[0]);
      assert.deepStrictEqual([...listed.failed], ["work"]);
    }),
  );
  it.effect("of the table of qubes", () =>
    Effect.sync(() => {
      const log = read(
        "    name |    type |    template |     netvm | label |",
        "---------+---------+-------------+-----------+-------+",
        "    work |   AppVM |   fedora-41 | (default) |   red | <-- Template change to 'fedora-42' <-- Will be renamed to 'work1'",
        "    mail |   AppVM |   fedora-42 | (default) |   red | <-- Template change to 'debian-13'",
        "   vault |   AppVM |   fedora-42 |         - | black | <-- A VM with the same name already exists on the host!",
        "   error |   AppVM |   fedora-42 |         - | black | <-- Excluded from restore",
      );
      assert.deepStrictEqual([...log.renamed], [["work", "work1"]]);
      assert.deepStrictEqual(
        [...log.leftOut],
        [["vault", "A VM with the same name already exists on the host!"]],
      );
      assert.deepStrictEqual([...log.faults], []);
      assert.lengthOf(log.take(), 3);
    }),
  );
  it.effect("that are no faults", () =>
    Effect.sync(() => {
      const log = read(
        "app: Checking backup content...",
        " error-test |  AppVM | <-- Will be renamed to 'error-test1'",
        "qubesadmin.backup: -> Restoring error-test...",
        "app: *** One or more TemplateVMs are missing on the host! ***",
        "app: Ignoring missing entries: VMs that depend on missing TemplateVMs will have default value assigned.",
        "app: *** There are VMs with conflicting names on the host! ***",
        "app: Those VMs will not be restored. The host VMs will NOT be overwritten.",
        "app: *** Dom0 username mismatch! This can break some settings! ***",
        "app: Continuing as directed.",
        "app: NOTE: The archived dom0 home directory will be restored to a new directory",
        "tar: x: time stamp 2026-01-31 is 5 s in the future",
        "qubesadmin.backup: Extracting data: 1.2 MiB to restore",
        "-rw------- 0/0 4194304 2026-01-31 vm2/private.img",
        "qubesadmin.backup: -> Done.",
        "qubesadmin.backup: -> Please install updates for all the restored templates.",
      );
      assert.deepStrictEqual([...log.faults], []);
      assert.isTrue(log.done());
      assert.deepStrictEqual([...log.begun], ["error-test"]);
      assert.deepStrictEqual([...log.remarks], []);
      assert.deepStrictEqual(
        log.take().map(({ level }) => level),
        ["info", "info", "info", "info"],
      );
      assert.lengthOf(log.take(), 0);
    }),
  );
  it.effect("without end are not kept", () =>
    Effect.sync(() => {
      const log = read(...Array.from({ length: 5000 }, (_, i) => `error: ${i} /vm${i + 1}/x`));
      assert.lengthOf(log.faults, 1000);
      assert.strictEqual(log.failed.size, 1000);
      assert.lengthOf(log.take(), 1000);
    }),
  );
});
