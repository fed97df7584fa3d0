/** Backups in slots, from the files that qubesd hands over to the archive on the server. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, Layer } from "effect";
import { cheapKeys, memorySealing } from "#layers/memory/MemorySealing";
import { aQube } from "#layers/memory/MemoryQubes";
import {
  memoryQvmBackup,
  qvmBackupScript,
  type QvmBackupScript,
} from "#layers/memory/MemoryQvmBackup";
import { memoryQvmRestore, qvmRestoreScript } from "#layers/memory/MemoryQvmRestore";
import { Sealing } from "#services/Sealing";
import { SlotSize } from "#src/archive/parameters";
import { ArchiveFault, archiveSize, Walk } from "#src/archive/walk";
import { signingKeyOf } from "#src/proof/keys";
import { parseManifest } from "#src/proof/texts";
import { keyOf, type Lies, packsOf, remade, shelf } from "#test/support/peer";
import { qbackup as lookBack, world as newDom0 } from "#test/support/readback";
import {
  gathered,
  linesOf,
  memberIn,
  membersOf,
  rootOf,
  spread,
  tableLine,
  treeHash,
} from "#test/support/reference";
import { archiveOf } from "#test/support/archive";
import { nothingProven, qbackup, tidy, tiny, type World, world } from "#test/support/dom0";
import { ended, gnuHeader, gnuSparse, gnuTar, tarwriter } from "#test/support/inner";
import { rng } from "#test/support/random";
import { notesIn, openSlots, smallOf, volumeOf } from "#test/support/slots";

const xmlOf = (...directories: ReadonlyArray<string>) =>
  Buffer.from(
    `<qubes>\xe9${directories.map((one) => `<features><feature name="backup-path">${one}/</feature><feature name="backup-size">7</feature></features>`).join("")}</qubes>\n`,
    "latin1",
  );
const whole = (bytes: Buffer) => [{ offset: 0, length: bytes.length }];
const image = (size: number, ...data: ReadonlyArray<readonly [at: number, byte: number]>) => {
  const bytes = Buffer.alloc(size);
  for (const [at, byte] of data) bytes.fill(byte, at, Math.min(size, at + 3000));
  return bytes;
};
const slot = 4_194_304;
const args = ["-t", "net", "-p", "/pass", "work", "mail", "vault"];
/** What qubesd writes besides: an empty chunk for each file. */
const listing = (names: ReadonlyArray<string>) =>
  archiveOf({
    seed: 3,
    filter: "/home/user/.local/state/qbackup/run/tap",
    files: names.filter((name) => name !== "qubes.xml").map((path) => ({ path, size: 0 })),
  });

describe("a run in slots", () => {
  const work = image(40 * slot + 700, [0, 1], [3 * slot - 100, 2], [40 * slot, 3]);
  const mail = image(0);
  const vault = image(3 * slot);
  const notes = Buffer.alloc(slot + 5, "n");
  const xml = xmlOf("vm2", "vm3", "vm4");
  const named: ReadonlyArray<readonly [string, Buffer]> = [
    ["qubes.xml", gnuTar("qubes.xml", xml, whole(xml))],
    ["vm2/private.img", tarwriter("vm2/private.img", work)],
    ["vm2/notes.txt", gnuTar("vm2/notes.txt", notes, whole(notes))],
    ["vm3/private.img", gnuTar("vm3/private.img", mail, whole(mail))],
    ["vm4/private.img", gnuTar("vm4/private.img", vault, [])],
  ];
  const names = named.map(([name]) => name);
  const script = (change: Partial<QvmBackupScript> = {}): Partial<QvmBackupScript> => ({
    files: named.map(([, stream]) => stream),
    chunks: [{ bytes: listing(names), percent: 100 }],
    passphrase: "correct horse",
    ...change,
  });
  /** The one archive on the shelf, its members in its own order. */
  const archived = (w: World) => {
    const [kept] = [...w.shelf.committed.values()];
    const members = membersOf(kept!.bytes);
    return Buffer.concat(spread(kept!.recipe).map(([, index]) => members[index]!.bytes));
  };

  it.effect("makes an archive that opens by its passphrase alone", () =>
    Effect.gen(function* () {
      const w = world(tiny, script());
      const { code, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 0, text);
      assert.deepStrictEqual(w.script.started[0], {
        qubes: ["work", "mail", "vault"],
        passphraseFile: "/pass",
        tapped: true,
      });
      const read = named.reduce((sum, [, stream]) => sum + stream.length, 0);
      // All is new, and of three volumes of 2 GiB those that come have 172 MB.
      const shown = w.said.progress.at(-1)!;
      assert.containsSubset(shown, { read });
      assert.closeTo(shown.percent!, (100 * (43 * slot + 700)) / (3 * 2 ** 31), 0.1);
      assert.isAbove(shown.changed!, slot);
      const archive = archived(w);
      const manifest = parseManifest(JSON.parse(w.disk.text).manifest)!;
      assert.strictEqual(manifest.format, "slots");
      assert.strictEqual(manifest.size, archiveSize("slots", archive.length));
      const walk = new Walk({ format: "slots", expected: new Set(["vm2", "vm3", "vm4"]) });
      walk.push(Buffer.concat([archive, Buffer.alloc(manifest.size - archive.length)]));
      const walked = walk.finish();
      assert.isFalse(walked instanceof ArchiveFault, walk.fault?.message);
      assert.strictEqual(walk.members.length, manifest.members);

      const { files, header } = openSlots(archive, "correct horse", cheapKeys);
      assert.deepStrictEqual([...files.keys()], names);
      assert.isTrue(volumeOf(files.get("vm2/private.img")!).equals(work));
      assert.isTrue(volumeOf(files.get("vm3/private.img")!).equals(mail));
      assert.isTrue(volumeOf(files.get("vm4/private.img")!).equals(vault));
      assert.isTrue(smallOf(files.get("vm2/notes.txt")!).equals(notes));
      // Slots 0, 2, 3 and 40 have data; of the 36 between the last two, 20 are in cells of 16 and 4.
      assert.strictEqual(files.get("vm2/private.img")!.length, 1 + 4 + 1 + 8 + 2 + 8);
      const sizes = smallOf(files.get("qubes.xml")!)
        .toString()
        .match(/(?<=size">)[0-9]+/g);
      const as = (bytes: Buffer) => bytes.toString("latin1").replace(/size">[0-9]+/g, "");
      assert.strictEqual(as(smallOf(files.get("qubes.xml")!)), as(xml));
      const counts = ["vm2", "vm3", "vm4"].map((one) =>
        [...files].reduce((n, [name, chunks]) => n + (name.startsWith(one) ? chunks.length : 0), 0),
      );
      assert.deepStrictEqual(
        sizes?.map(Number),
        counts.map((count) => 104_857_600 * (Math.ceil(count / 2) + 1)),
      );
      const lines = membersOf(archive).map((one) => tableLine(one, treeHash(one.bytes)));
      assert.strictEqual(manifest.root, rootOf(lines));
      assert.include(
        header,
        `qbackup-seal=${rootOf(lines.slice(2))}\nqbackup-run=${manifest.run}\n`,
      );
      tidy(w);
    }),
  );
  it.effect("has qubes.xml in one member, however long it is: no other is one of an archive", () =>
    Effect.gen(function* () {
      const long = Buffer.concat([Buffer.alloc(2 * slot, " "), xml]);
      const files = [gnuTar("qubes.xml", long, whole(long)), ...script().files!.slice(1)];
      const w = world(tiny, script({ files }));
      const { code, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 0, text);
      const archive = archived(w);
      assert.deepStrictEqual(
        membersOf(archive).flatMap(({ path }) => (path.startsWith("qubes") ? [path] : [])),
        ["qubes.xml.000.enc"],
      );
      const { files: opened } = openSlots(archive, "correct horse", cheapKeys);
      assert.strictEqual(smallOf(opened.get("qubes.xml")!).indexOf("<"), 2 * slot);
    }),
  );
  it.effect("is the same through a link that breaks again and again", () =>
    Effect.gen(function* () {
      const w = world(tiny, script());
      const { code, text } = yield* qbackup(w, {
        args,
        lies: { dropAfter: (call) => (call < 8 ? call % 4 || undefined : undefined) },
      });
      assert.strictEqual(code, 0, text);
      assert.isAbove(w.shelf.calls, 3);
      const { files } = openSlots(archived(w), "correct horse", cheapKeys);
      assert.isTrue(volumeOf(files.get("vm2/private.img")!).equals(work));
    }),
  );
  it.effect("takes dom0's home as the stream that it is", () =>
    Effect.gen(function* () {
      const home = ended(
        gnuHeader("dom0-home/user/", "5", 0),
        gnuHeader("dom0-home/user/large", "0", 2 * slot),
        Buffer.alloc(2 * slot, 7),
      );
      const xml = xmlOf("vm2", "dom0-home/user");
      const w = world(
        tiny,
        script({
          files: [gnuTar("qubes.xml", xml, whole(xml)), named[1]![1], home],
          chunks: [{ bytes: listing(["vm2/private.img", "dom0-home/user"]) }],
        }),
      );
      const { code, text } = yield* qbackup(w, {
        args: ["-t", "net", "-p", "/pass", "--include-dom0", "work"],
      });
      assert.strictEqual(code, 0, text);
      const { files } = openSlots(archived(w), "correct horse", cheapKeys);
      assert.strictEqual(files.get("dom0-home/user")!.length, 3);
      assert.isTrue(Buffer.concat(files.get("dom0-home/user")!).equals(home));
    }),
  );
  it.effect.each([
    [
      "a stream that was cut",
      { files: named.map(([, one], i) => (i === 1 ? one.subarray(0, -1024) : one)) },
      /vm2\/private\.img did not come whole from qubesd: the stream ends without its end mark/,
    ],
    [
      "a stream that is none",
      { files: [Buffer.from("x".repeat(600))] },
      /a file of the backup did not come whole from qubesd: this is no header of a tar stream/,
    ],
    [
      "a file that qubesd does not list",
      { chunks: [{ bytes: listing(names.slice(0, -2)), percent: 1 }] },
      /nothing of vm3, vm4|vm3\/private\.img did not come whole/,
    ],
    [
      "a file that only qubesd lists",
      { files: named.slice(0, -1).map(([, one]) => one) },
      /vm4\/private\.img did not come whole from qubesd: what came, and what qubesd lists, are not the same/,
    ],
    [
      "a file that came twice",
      { files: [...named, named[4]!].map(([, one]) => one) },
      /vm4\/private\.img did not come whole from qubesd: what came, and what/,
    ],
    [
      "files in another order than qubesd's",
      { files: [0, 1, 2, 4, 3].map((i) => named[i]![1]) },
      /vm3\/private\.img did not come whole from qubesd: what came, and what/,
    ],
    [
      "a qubes.xml that does not say how large a qube is",
      {
        files: [
          gnuTar("qubes.xml", xmlOf("vm2"), whole(xmlOf("vm2"))),
          ...named.slice(1).map(([, one]) => one),
        ],
      },
      /qubes\.xml did not come whole from qubesd: it does not say how large each qube/,
    ],
    [
      "a text that is larger than any",
      {
        files: [named[0]![1], ended(gnuSparse("vm2/notes.txt", 2 ** 26 + 1, []), Buffer.alloc(0))],
      },
      /vm2\/notes\.txt did not come whole from qubesd: it has 67108865 bytes/,
    ],
  ] as const)("stores nothing of %s", ([, change, expected]) =>
    Effect.gen(function* () {
      const w = world(tiny, script(change));
      const { code, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 6, text);
      assert.match(text, expected);
      nothingProven(w);
      assert.strictEqual(w.shelf.committed.size, 0);
    }),
  );
  it.effect("names a qube that was removed while its volume was under way", () =>
    Effect.gen(function* () {
      const files = named.map(([, one], i) => (i === 1 ? one.subarray(0, -1024) : one));
      const w = world(tiny, script({ files }));
      w.table.fails = (call) => {
        if (call === "start net") w.table.qubes.splice(1, 1, aQube("work", 17));
        return undefined;
      };
      const { code, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 3, text);
      assert.match(text, /^error: work is gone: removed or renamed .* nothing was stored$/m);
      nothingProven(w);
    }),
  );
  it.effect("loses nothing by a scrypt of qubesd's that dies: what that makes is not used", () =>
    Effect.gen(function* () {
      const w = world(tiny, script());
      w.table.brokenPipes = 3;
      const { code, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 0, text);
    }),
  );
  it.effect(
    "needs next to no room for qubesd's temporary files, whatever qvm-backup's own would",
    () =>
      Effect.gen(function* () {
        const w = world(tiny, script());
        w.table.free = 32 * 2 ** 20;
        const { code, text } = yield* qbackup(w, { args });
        assert.strictEqual(code, 0, text);
        assert.notInclude(text, "are free in");
        const full = world(tiny, script());
        full.table.free = 2 ** 20;
        const refused = yield* qbackup(full, { args });
        assert.strictEqual(refused.code, 3, refused.text);
        assert.match(
          refused.text,
          /error: only 1.0 MiB are free in .*\nhint: free some space there$/m,
        );
        // Where no tap begins, qvm-backup makes the archive, with chunks of its own.
        const other = world(tiny, { chunks: [{ bytes: tiny }], files: [] });
        other.table.free = 32 * 2 ** 20;
        const untapped = yield* qbackup(other, { args });
        assert.strictEqual(untapped.code, 3, untapped.text);
        assert.match(untapped.text, /so qvm-backup makes this archive/);
        assert.match(untapped.text, /only 32.0 MiB are free in .*\nhint: .*cut short/);
        nothingProven(other);
      }),
  );
  it.effect("ends as soon as what qubesd lists is no list", () =>
    Effect.gen(function* () {
      const chunks = [{ bytes: listing(names).fill(1, 0, 9) }];
      const w = world(tiny, script({ chunks, hangs: true }));
      const { code, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 6, text);
      assert.match(text, /error: qvm-backup wrote no whole archive: this is no Qubes backup/);
      assert.strictEqual(w.script.cancelled, 1);
      nothingProven(w);
    }),
  );
  it.effect("fails as qvm-backup does", () =>
    Effect.gen(function* () {
      const ends = { code: 1, said: ["Backup error: out of luck"] };
      const w = world(tiny, script({ ends }));
      const { code, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 3, text);
      assert.match(text, /exit code 1: Backup error: out of luck/);
      nothingProven(w);
    }),
  );
  it.effect.each([
    ["between two files", 2, Infinity],
    ["in the middle of a volume", 2, 100_000],
  ] as const)("ends as soon as qvm-backup is killed %s", ([, count, bytes]) =>
    Effect.gen(function* () {
      const files = named
        .slice(0, count)
        .map(([, one], i) => (i === count - 1 ? one.subarray(0, bytes) : one));
      const ends = { code: 137, said: [] };
      const held = script({ files, chunks: [], hangs: true, ends, diesAfter: "90 seconds" });
      const w = world(tiny, held);
      const { code, seconds, text } = yield* qbackup(w, { args });
      assert.strictEqual(code, 3, text);
      assert.match(text, /error: qvm-backup failed with exit code 137$/m);
      assert.isBelow(seconds, 120);
      nothingProven(w);
    }),
  );
  it.effect.each([
    [["--format", "tar"], /error: --format knows slots and qvm-backup, not tar/],
    [["--format", "SLOTS"], /error: --format knows slots and qvm-backup, not SLOTS/],
    [["--format", "slots", "--compress-filter", "zstd"], /--compress-filter is for the format/],
    [["--format", "qvm-backup", "--new-chain"], /--new-chain is for the format slots alone/],
    [["--format", "qvm-backup", "--no-compress", "work"], /--no-compress is for the format slots/],
    [["--no-compress", "work,wrok"], /error: no such qube: wrok\nhint: did you mean work\?/],
    [["--compress-filter", "zstd", "--new-chain"], /--new-chain is for the format slots alone/],
  ] as const)("%j is refused", ([flags, expected]) =>
    Effect.gen(function* () {
      const w = world(tiny, script());
      const ended = yield* qbackup(w, { args: ["-t", "net", "-p", "/pass", ...flags, "work"] });
      assert.strictEqual(ended.code, 2, ended.text);
      assert.match(ended.text, expected);
      assert.strictEqual(w.shelf.calls, 0);
    }),
  );
  it.effect("says of a setting for qubes that mind what it cannot do", () =>
    Effect.gen(function* () {
      const settings = { QBKP_NO_COMPRESS: "work, gone" };
      const { code, text } = yield* qbackup(world(tiny, script()), { args, settings });
      assert.strictEqual(code, 0, text);
      assert.match(text, /warning: QBKP_NO_COMPRESS names a qube that there is not: gone$/m);
      assert.notMatch(text, /all the same/);
      for (const [more, files] of [
        [["--format", "qvm-backup"], undefined],
        [[], []],
      ] as const) {
        const other = world(tiny, { chunks: [{ bytes: tiny }], ...(files && { files }) });
        const plain = yield* qbackup(other, { args: [...args, ...more], settings });
        assert.strictEqual(plain.code, 0, plain.text);
        assert.match(plain.text, /warning: qvm-backup compresses work all the same$/m);
      }
      const none = yield* qbackup(world(tiny, { chunks: [{ bytes: tiny }] }), {
        args: [...args, "--format", "qvm-backup"],
        settings: { QBKP_NO_COMPRESS: "net" },
      });
      assert.notMatch(none.text, /all the same/);
    }),
  );
  it.effect("refuses a setting that names no format", () =>
    Effect.gen(function* () {
      const w = world(tiny, script());
      const { code, text } = yield* qbackup(w, { args, settings: { QBKP_FORMAT: "tar" } });
      assert.strictEqual(code, 2, text);
      assert.match(text, /error: QBKP_FORMAT knows slots and qvm-backup, not tar/);
    }),
  );

  const formatOf = (w: World) => parseManifest(JSON.parse(w.disk.text).manifest)!.format;
  it.effect.each([
    [[], { QBKP_FORMAT: "qvm-backup" }],
    [["--format", "qvm-backup"], { QBKP_FORMAT: "slots" }],
    [["--compress-filter", "zstd"], {}],
    [["--compress-filter", "zstd"], { QBKP_FORMAT: "slots" }],
  ] as const)("is none where %j or %j asks for qvm-backup's own archive", ([flags, settings]) =>
    Effect.gen(function* () {
      const w = world(tiny, { files: [] });
      const { code, text } = yield* qbackup(w, { args: [...flags, ...args], settings });
      assert.strictEqual(code, 0, text);
      assert.strictEqual(formatOf(w), "qvm-backup");
      assert.lengthOf(w.script.started, 1);
      assert.isUndefined(w.script.started[0]!.tapped);
      assert.notInclude(text, "hands over no files");
    }),
  );

  describe("where qubesd hands over no files", () => {
    const told = /warning: qubesd hands over no files here; so qvm-backup makes this archive/;
    it.effect.each([
      ["compresses as ever", tiny],
      ["runs something, of which nothing comes", listing(names)],
    ] as const)("and %s, it is qvm-backup's own archive, told", ([, archive]) =>
      Effect.gen(function* () {
        const w = world(archive, { files: [], untapped: [{ bytes: tiny }] });
        const { code, text } = yield* qbackup(w, { args });
        assert.strictEqual(code, 0, text);
        assert.match(text, told);
        assert.deepStrictEqual(
          w.script.started.map(({ tapped }) => tapped),
          [true, undefined],
        );
        assert.strictEqual(w.script.cancelled, 1);
        assert.strictEqual(formatOf(w), "qvm-backup");
        assert.strictEqual(w.shelf.committed.size, 1);
        tidy(w);
      }),
    );
    const ends = { code: 1, said: ["Backup error: out of luck"] };
    it.effect("and qvm-backup fails at the first, it is tried once without them", () =>
      Effect.gen(function* () {
        const heads = (archive: Buffer) =>
          Buffer.concat(
            membersOf(archive)
              .slice(0, 2)
              .map(({ bytes }) => bytes),
          );
        const untapped = [{ bytes: heads(tiny) }];
        const w = world(heads(listing(names)), { files: [], untapped, ends });
        const { code, text } = yield* qbackup(w, { args });
        assert.match(text, told);
        assert.strictEqual(code, 3, text);
        assert.match(text, /exit code 1: Backup error: out of luck/);
        assert.lengthOf(w.script.started, 2);
        nothingProven(w);
      }),
    );
    it.effect("because qvm-backup does not begin at all, nothing else is tried", () =>
      Effect.gen(function* () {
        const w = world(Buffer.alloc(0), { files: [], ends });
        const { code, text } = yield* qbackup(w, { args });
        assert.strictEqual(code, 3, text);
        assert.notMatch(text, told);
        assert.lengthOf(w.script.started, 1);
        nothingProven(w);
      }),
    );
  });
});

/** What each qube's volume holds in a night. */
type Volumes = Readonly<Record<string, Buffer>>;

describe("a chain of nights", () => {
  const slot = 65_536;
  const ids: Readonly<Record<string, string>> = { work: "vm2", mail: "vm3", vault: "vm4" };
  const imageOf = (qube: string) => `${ids[qube]!}/private.img`;
  const heads = ["backup-header", "backup-header.hmac"];
  const cell = (qube: string, chunk: number) =>
    `${imageOf(qube)}.${`${chunk}`.padStart(3, "0")}.enc`;
  /** What qubesd hands over: of files, or of block devices. */
  const handed = (volumes: Volumes, device = false): Partial<QvmBackupScript> => {
    const xml = xmlOf(...Object.keys(volumes).map((name) => ids[name]!));
    const files = Object.entries(volumes).map(([qube, bytes]) => {
      const name = imageOf(qube);
      return [name, device ? tarwriter(name, bytes) : gnuTar(name, bytes, whole(bytes))] as const;
    });
    return {
      files: [gnuTar("qubes.xml", xml, whole(xml)), ...files.map(([, stream]) => stream)],
      chunks: [{ bytes: listing(files.map(([name]) => name)), percent: 100 }],
      passphrase: "correct horse",
    };
  };
  /** Under that name the server has an archive that another dom0 signed. */
  const ofAnother = (w: World, name: string): void => {
    const kept = w.shelf.committed.get(name)!;
    const lines = linesOf(kept.table);
    w.shelf.committed.set(name, remade(kept, kept.recipe, { lines, size: 1024 }));
  };
  /** The members of an archive of the shelf, in its order, each out of the pack that has it. */
  const bytesOf = (w: World, name: string) => {
    const packs = new Map(packsOf(w.shelf).map((kept) => [kept.session, kept]));
    const read = new Map<string, ReturnType<typeof membersOf>>();
    const { recipe } = w.shelf.committed.get(name)!;
    return Buffer.concat(
      spread(recipe).map(([session, index]) => {
        if (!read.has(session)) read.set(session, membersOf(packs.get(session)!.bytes));
        return read.get(session)![index]!.bytes;
      }),
    );
  };
  /** The archive, opened by the passphrase alone, is of that night. */
  const holds = (w: World, name: string, volumes: Volumes, passphrase = "correct horse") => {
    const { files } = openSlots(bytesOf(w, name), passphrase, cheapKeys);
    for (const [qube, bytes] of Object.entries(volumes)) {
      assert.isTrue(volumeOf(files.get(imageOf(qube))!).equals(bytes), `${name}: ${qube}`);
    }
    assert.strictEqual(files.size, 1 + Object.keys(volumes).length);
  };
  type Options = Exclude<Parameters<typeof qbackup>[1], undefined>;
  const attempt = Effect.fnUntraced(function* (
    w: World,
    script: Partial<QvmBackupScript>,
    options: Options = {},
  ) {
    w.script = qvmBackupScript({ chunks: [], ...script });
    w.said.lines.length = 0;
    return yield* qbackup(w, {
      args,
      around: Effect.provideService(SlotSize, slot),
      ...options,
    });
  });
  /** A night that ends well: what it sent. */
  const night = Effect.fnUntraced(function* (
    w: World,
    volumes: Volumes,
    {
      device,
      passphrase = "correct horse",
      ...options
    }: Options & { readonly device?: boolean; readonly passphrase?: string } = {},
  ) {
    const before = new Set(w.shelf.committed.keys());
    const script = { ...handed(volumes, device), passphrase };
    const { code, text } = yield* attempt(w, script, options);
    assert.strictEqual(code, 0, text);
    const name = [...w.shelf.committed.keys()].find((each) => !before.has(each))!;
    const kept = w.shelf.committed.get(name)!;
    holds(w, name, volumes, passphrase);
    const { bytes } = JSON.parse(w.disk.text.trim().split("\n").at(-1)!);
    const pack = membersOf(kept.bytes);
    const sent = pack.map(({ path }) => path);
    return { name, sent, text, bytes, length: kept.bytes.length };
  });
  const anew = /all of it is sent, .* and the next archives keep what did not change/;
  const volumes = {
    work: image(40 * slot + 700, [0, 1], [3 * slot - 100, 2], [40 * slot, 3]),
    mail: image(0),
    vault: image(3 * slot),
  };
  const changedAt = (bytes: Buffer, at: number, text = "in place") => {
    const changed = Buffer.from(bytes);
    changed.write(text, at);
    return changed;
  };
  const later: Volumes = { ...volumes, work: changedAt(volumes.work, 5000) };
  /** The first cell of work, and the heads. */
  const itsOwn = [cell("work", 1), ...heads];

  it.effect("sends what changed, says what it cost, and reads files and devices alike", () =>
    Effect.gen(function* () {
      const w = world();
      const first = yield* night(w, volumes);
      assert.match(
        first.text,
        /info: nothing is known here of an archive of these qubes in slots: /,
      );
      assert.match(first.text, anew);
      assert.notMatch(first.text, /rate/);
      const same = yield* night(w, volumes, { device: true });
      assert.deepStrictEqual(same.sent, heads);
      assert.notMatch(same.text, anew);
      const day = yield* night(w, later);
      assert.deepStrictEqual(day.sent, itsOwn);
      assert.strictEqual(day.bytes.sent, day.length);
      assert.isAbove(day.bytes.read, later["work"]!.length);
      assert.match(day.text, /, of which [0-9.]+ KiB had to be sent; [0-9.]+ MiB were read, root/);
      holds(w, first.name, volumes);
      tidy(w);
    }),
  );
  it.effect(
    "keeps the cells that it has while a volume grows, shrinks, is emptied and filled",
    () =>
      Effect.gen(function* () {
        const w = world();
        const of = (work: Buffer) => ({ ...volumes, work });
        const sparse = image(60 * slot, ...[0, 1, 2, 3, 4, 5].map((n) => [n * slot, 1] as const), [
          59 * slot,
          2,
        ]);
        yield* night(w, of(sparse));
        // A cell of many slots that are zeros, of which two are no more: it is one chunk still.
        const wide = changedAt(changedAt(sparse, 20 * slot), 22 * slot + 5);
        assert.deepStrictEqual((yield* night(w, of(wide))).sent, [
          cell("work", 15),
          cell("work", 0),
          ...heads,
        ]);
        assert.deepStrictEqual((yield* night(w, of(changedAt(wide, 22 * slot)))).sent, [
          cell("work", 15),
          ...heads,
        ]);
        const grown = Buffer.concat([wide, image(2 * slot + 100, [slot, 7])]);
        const more = yield* night(w, of(grown));
        assert.isTrue(more.sent.every((path) => /work|backup-header|vm2|qubes/.test(path)));
        assert.isBelow(more.sent.length, 9);
        yield* night(w, of(grown.subarray(0, 33 * slot - 700)));
        yield* night(w, of(image(0)));
        yield* night(w, of(sparse.subarray(0, 5 * slot)));
        assert.deepStrictEqual((yield* night(w, of(sparse.subarray(0, 5 * slot)))).sent, heads);
      }),
  );
  it.effect("cuts a volume anew that was empty first and filled then, once", () =>
    Effect.gen(function* () {
      const w = world();
      const of = (work: Buffer) => ({ ...volumes, work });
      const r = rng(5);
      const full = r.bytes(48 * slot);
      const day = (...slots: ReadonlyArray<number>) =>
        slots.reduce((bytes, n) => changedAt(bytes, n * slot + 9), full);
      yield* night(w, of(image(48 * slot, [0, 1])));
      yield* night(w, of(full));
      // From the first cell of many slots on; those before it stay.
      const moved = yield* night(w, of(day(3, 30)));
      assert.strictEqual(moved.sent[0], cell("work", 4));
      assert.deepStrictEqual(moved.sent.slice(1), [
        ...Array.from({ length: 48 - 9 }, (_, i) => cell("work", 10 + i)),
        "qubes.xml.000.enc",
        ...heads,
      ]);
      const again = yield* night(w, of(day(3, 30, 10, 21, 47)));
      assert.deepStrictEqual(again.sent, [...[11, 22, 48].map((n) => cell("work", n)), ...heads]);
      assert.isBelow(again.bytes.sent, 4 * slot);
    }),
  );
  it.effect("of a qube that minds, only wraps what is made from then on", () =>
    Effect.gen(function* () {
      const w = world();
      const both = (n: number) => ({
        ...volumes,
        work: changedAt(volumes.work, 5000, `${n}`),
        mail: image(2 * slot, [0, n], [slot, 2]),
      });
      const sizeOf = (name: string, path: string): number =>
        membersOf(w.shelf.committed.get(name)!.bytes).find((one) => one.path === path)!.bytes
          .length;
      const cells = [cell("work", 1), cell("mail", 1)] as const;
      const first = yield* night(w, both(1));
      for (const path of cells) assert.isBelow(sizeOf(first.name, path), slot / 4);
      const settings = { QBKP_NO_COMPRESS: "net,work" };
      const second = yield* night(w, both(2), { settings });
      // What did not change is kept as it is.
      assert.deepStrictEqual(second.sent, [...cells, ...heads]);
      assert.isAbove(sizeOf(second.name, cells[0]), slot);
      assert.isBelow(sizeOf(second.name, cells[1]), slot / 4);
      // Of two that are as large both are as long, whatever is in them.
      const flags = { args: [...args, "--no-compress", "mail,work", "--no-compress", "dom0"] };
      const third = yield* night(w, both(3), { ...flags, settings });
      assert.match(
        third.text,
        /^warning: --no-compress names what this backup does not have: dom0$/m,
      );
      assert.notMatch(second.text, /names what this backup does not have/);
      assert.strictEqual(sizeOf(third.name, cells[0]), sizeOf(third.name, cells[1]));
      assert.isAbove(sizeOf(third.name, cells[0]), slot);
      const fourth = yield* night(w, both(3), { args: [...args, "--new-chain"], settings });
      assert.isAbove(sizeOf(fourth.name, cell("work", 3)), slot);
      assert.isBelow(sizeOf(fourth.name, cells[1]), slot / 4);
    }),
  );
  it.effect("makes three members at once, of which one at most has many slots", () =>
    Effect.gen(function* () {
      const w = world();
      const of = (work: Buffer) => ({ ...volumes, work });
      yield* night(w, of(image(83 * slot, [0, 1])));
      /** Bytes of each that is under way. */
      const now: Array<number> = [];
      const most = { members: 0, wide: 0, bytes: 0 };
      const { gzip, keys } = yield* Effect.provide(Sealing, memorySealing);
      const slowly: Sealing["Service"] = {
        keys,
        gzip: Effect.fnUntraced(function* (parts: Array<Uint8Array>) {
          const bytes = parts.reduce((sum, part) => sum + part.length, 0);
          now.push(bytes);
          most.members = Math.max(most.members, now.length);
          most.wide = Math.max(most.wide, now.filter((one) => one > 2 * slot).length);
          most.bytes = Math.max(
            most.bytes,
            now.reduce((sum, one) => sum + one, 0),
          );
          yield* Effect.sleep("1 second");
          now.splice(now.indexOf(bytes), 1);
          return yield* gzip(parts);
        }),
      };
      yield* night(w, of(rng(7).bytes(83 * slot)), {
        around: (it) =>
          it.pipe(Effect.provideService(SlotSize, slot), Effect.provideService(Sealing, slowly)),
      });
      assert.deepStrictEqual([most.members, most.wide], [3, 1]);
      assert.isAtMost(most.bytes, 18 * slot + 2048);
    }),
  );
  it.effect("takes qubes that come and go, in any order, and another one with an old id", () =>
    Effect.gen(function* () {
      const w = world();
      const { mail, vault, work } = volumes;
      yield* night(w, volumes);
      const turned = yield* night(w, { vault, work, mail });
      // Nothing but the list of qubes itself is another one.
      assert.deepStrictEqual(turned.sent, ["qubes.xml.000.enc", ...heads]);
      const one = ["-t", "net", "-p", "/pass"];
      // Asked for the default set, which changes.
      const set = [...one];
      yield* night(w, volumes, { args: set });
      w.table.qubes.splice(2, 1);
      assert.deepStrictEqual((yield* night(w, { work, vault }, { args: set })).sent, [
        "qubes.xml.000.enc",
        ...heads,
      ]);
      w.table.qubes.splice(2, 0, aQube("mail", 3));
      const other = image(2 * slot, [9, 9]);
      yield* night(w, { work, mail: other, vault }, { args: set });
      assert.deepStrictEqual(
        (yield* night(w, { work, mail: other, vault }, { args: set })).sent,
        heads,
      );
    }),
  );
  it.effect("of any nights: each archive is of its own, to the last", () =>
    Effect.gen(function* () {
      for (let seed = 1; seed <= 2; seed++) {
        const r = rng(seed);
        const w = world();
        const size = () => r.pick([0, 1, 512, 700, slot, 3 * slot + 9, 30 * slot, 61 * slot]);
        const scatter = (bytes: Buffer) => {
          for (let n = r.int(0, 4); n > 0 && bytes.length > 0; n--) {
            const at = r.int(0, bytes.length - 1);
            const end = Math.min(bytes.length, at + r.pick([1, 600, slot, 9 * slot]));
            if (r.int(0, 2) === 0) bytes.fill(0, at, end);
            else r.bytes(end - at).copy(bytes, at);
          }
          return bytes;
        };
        let now: Record<string, Buffer> = {};
        for (const qube of Object.keys(ids)) now[qube] = scatter(Buffer.alloc(size()));
        const nights: Array<readonly [string, Volumes]> = [];
        for (let n = 0; n < 8; n++) {
          now = Object.fromEntries(
            Object.entries(now).map(([qube, bytes]) => {
              const resized = r.int(0, 4) === 0 ? Buffer.alloc(size()) : Buffer.from(bytes);
              bytes.copy(resized);
              return [qube, r.int(0, 2) === 0 ? scatter(resized) : resized];
            }),
          );
          const { name } = yield* night(w, now, { device: r.int(0, 1) === 0 });
          nights.push([name, now]);
        }
        for (const [name, then] of nights) holds(w, name, then);
      }
    }),
  );

  describe("goes on with an upload that broke off", () => {
    /** A night in which qubesd stops in the middle of this file. */
    const broken = (w: World, of: Volumes, qube: string, bytes: number, options: Options = {}) => {
      const { files, ...script } = handed(of);
      const index = 1 + Object.keys(of).indexOf(qube);
      const cut = files!
        .slice(0, index + 1)
        .map((one, i) => (i < index ? one : one.subarray(0, bytes)));
      return attempt(w, { ...script, files: cut }, options);
    };
    it.effect("in the middle of a volume, as often as it takes", () =>
      Effect.gen(function* () {
        const w = world();
        for (const slots of [5, 20, 41]) {
          const { code, text } = yield* broken(w, volumes, "work", slots * slot);
          assert.strictEqual(code, 6, text);
          assert.strictEqual(w.shelf.gaveUp, 0);
          assert.strictEqual(w.shelf.incoming.size, 1);
          assert.match(text, slots === 5 ? anew : /an earlier run has sent a part of it/);
        }
        const done = yield* night(w, volumes);
        // No member of the pack was made twice.
        assert.strictEqual(new Set(done.sent).size, done.sent.length);
        assert.isBelow(done.bytes.sent, done.length);
        // What is kept of the archive has nothing of the upload.
        const notes = [...w.disk.chains.values()];
        assert.lengthOf(notes, 1);
        assert.lengthOf(notesIn(notes[0]!).members, membersOf(bytesOf(w, done.name)).length);
        assert.isBelow(notes[0]!.length, 1024 + 64 * notesIn(notes[0]!).members.length);
        assert.deepStrictEqual((yield* night(w, volumes)).sent, heads);
      }),
    );
    it.effect("in the middle of a volume that is cut anew, as often as it takes", () =>
      Effect.gen(function* () {
        const w = world();
        const of = (work: Buffer) => ({ ...volumes, work });
        const r = rng(6);
        const holed = r.bytes(64 * slot).fill(0, 12 * slot, 36 * slot);
        yield* night(w, of(image(64 * slot, [0, 1])));
        yield* night(w, of(holed));
        let now = holed;
        for (const [slots, changed] of [
          [14, 1],
          [56, 13],
          [60, 23],
        ] as const) {
          // One slot stays in its place; two were zeros, one of them of a cell of many that was sent.
          now = changedAt(now, changed * slot);
          const { code, text } = yield* broken(w, of(now), "work", slots * slot);
          assert.strictEqual(code, 6, text);
        }
        const done = yield* night(w, of(now));
        assert.match(done.text, /an earlier run has sent a part of it/);
        // All that came before was of use, less what changed since.
        const twice = done.sent.filter((path, i) => done.sent.indexOf(path) !== i);
        assert.isAtMost(twice.length, 2);
        assert.isBelow(done.bytes.sent, 12 * slot);
        assert.deepStrictEqual((yield* night(w, of(now))).sent, heads);
      }),
    );
    it.effect("of a later night, with what has changed since made anew", () =>
      Effect.gen(function* () {
        const w = world();
        yield* night(w, volumes);
        assert.strictEqual((yield* broken(w, later, "vault", 100)).code, 6);
        const again = { ...later, work: changedAt(later["work"]!, 2 * slot + 60_000) };
        const done = yield* night(w, again);
        assert.deepStrictEqual(done.sent, [cell("work", 1), cell("work", 3), ...heads]);
        assert.notMatch(done.text, anew);
        // What was sent, and is not as it was any more, is in no archive.
        const singles = Array.from({ length: 8 }, (_, n) => [4 + n, 32 + n]).flat();
        const full = singles.reduce((bytes, n) => changedAt(bytes, n * slot), again.work);
        assert.strictEqual((yield* broken(w, { ...again, work: full }, "vault", 100)).code, 6);
        const last = yield* night(w, again);
        assert.isAbove(last.sent.length, heads.length);
        const { recipe, session } = w.shelf.committed.get(last.name)!;
        const own = spread(recipe).filter(([of]) => of === session);
        assert.deepStrictEqual(
          own.map(([, index]) => last.sent[index]),
          heads,
        );
      }),
    );
    it.effect("whose link was cut at any block", () =>
      Effect.gen(function* () {
        for (const blocks of [1, 2, 7]) {
          const w = world();
          // From then on no call gets through.
          const cut = yield* attempt(w, handed(volumes), {
            args: [...args.slice(0, 4), "--link-timeout", "2", ...args.slice(4)],
            lies: {
              dropAfter: () => blocks,
              ready: (reply, call) => (call === 1 ? reply : undefined),
            },
          });
          assert.strictEqual(cut.code, 4, cut.text);
          const done = yield* night(w, volumes);
          assert.strictEqual(new Set(done.sent).size, done.sent.length, `${blocks}`);
        }
      }),
    );
    it.effect("behind its trailer, which nobody can have committed any more", () =>
      Effect.gen(function* () {
        const w = world();
        const silent = yield* attempt(w, handed(volumes), {
          args: [...args.slice(0, 4), "--link-timeout", "2", ...args.slice(4)],
          lies: { mute: "after-trailer" },
        });
        assert.strictEqual(silent.code, 4, silent.text);
        assert.isDefined(w.disk.unfinished?.submission);
        const [session] = [...w.shelf.incoming.keys()];
        const done = yield* night(w, later);
        assert.match(done.text, /whose run broke off at its end, was not stored/);
        assert.strictEqual(w.shelf.gaveUp, 0);
        assert.strictEqual(w.shelf.committed.get(done.name)!.session, session);
        assert.isBelow(done.bytes.sent, done.length / 4);
        assert.deepStrictEqual(done.sent.slice(-3), itsOwn);
      }),
    );
    it.effect("that became an archive, whose receipt comes late: the next one builds on it", () =>
      Effect.gen(function* () {
        const w = world();
        w.disk.fails = (call) => (call.startsWith("append") ? "the disk is full" : undefined);
        const unwritten = yield* attempt(w, handed(volumes));
        assert.strictEqual(unwritten.code, 2, unwritten.text);
        assert.strictEqual(w.shelf.committed.size, 1);
        w.disk.fails = () => undefined;
        // Meanwhile one goes to another server.
        w.table.qubes.push(aQube("other", 11, { included: false }));
        yield* night(
          { ...w, shelf: shelf() },
          { ...volumes, vault: volumes.work },
          { args: ["-t", "other", ...args.slice(2)], lies: { key: keyOf("server two") } },
        );
        const done = yield* night(w, later);
        assert.match(done.text, /is stored and proven/);
        assert.deepStrictEqual(done.sent, itsOwn);
        assert.notMatch(done.text, anew);
      }),
    );
    it.effect("and that the server has removed, or changed, begins anew, and says so", () =>
      Effect.gen(function* () {
        for (const [change, expected] of [
          [
            (w: World, session: string) => {
              w.shelf.incoming.delete(session);
              w.shelf.gone.set(session, {
                since: "2026-01-01T00:00:00Z",
                why: "there was no room",
              });
            },
            /the server removed this upload on .*: there was no room; it begins anew/,
          ],
          [
            (w: World, session: string) => {
              w.shelf.incoming.get(session)!.leaves.splice(0, 1, [Buffer.alloc(32)]);
            },
            /is not what was noted here of it; it begins anew/,
          ],
          [
            (w: World, session: string) => {
              w.shelf.incoming.get(session)!.members.pop();
              w.shelf.incoming.get(session)!.leaves.pop();
            },
            /an earlier run has sent a part of it/,
          ],
          [
            (w: World, session: string) => w.shelf.incoming.delete(session),
            /an earlier run has sent a part of it/,
          ],
        ] as const) {
          const w = world();
          assert.strictEqual((yield* broken(w, volumes, "vault", 100)).code, 6);
          const [session] = [...w.shelf.incoming.keys()];
          change(w, session!);
          const done = yield* night(w, volumes);
          assert.match(done.text, expected);
          assert.strictEqual(new Set(done.sent).size, done.sent.length);
        }
      }),
    );
    type Upload = World["shelf"]["incoming"] extends Map<string, infer U> ? U : never;
    const removed = { since: "2026-01-01T00:00:00Z", why: "there was no room" };
    it.effect.each([
      ["was removed", (w: World, session: string) => void w.shelf.gone.set(session, removed)],
      ["is lost", () => undefined],
      [
        "became an archive",
        (w: World, session: string) => {
          const [kept] = [...w.shelf.committed.values()];
          w.shelf.committed.set("another.backup", { ...kept!, session });
        },
      ],
      [
        "has less than was noted",
        (w: World, session: string, upload: Upload) => {
          upload.members.pop();
          upload.leaves.pop();
          w.shelf.incoming.set(session, upload);
        },
      ],
      [
        "has none of what was noted",
        (w: World, session: string, upload: Upload) => {
          upload.leaves.splice(0, 1, [Buffer.alloc(32)]);
          w.shelf.incoming.set(session, upload);
        },
      ],
    ] as const)("and %s, in all the room that there is", ([what, change]) =>
      Effect.gen(function* () {
        for (const capacity of [2 ** 31, undefined]) {
          const w = world();
          if (capacity === undefined) {
            w.table.fails = (call) => (call.startsWith("capacity") ? "no such volume" : undefined);
          }
          const big = { ...volumes, work: rng(1).bytes(12 * slot) };
          if (what === "became an archive") yield* night(w, volumes);
          assert.strictEqual((yield* broken(w, big, "vault", 100)).code, 6);
          const [[session, upload]] = [...w.shelf.incoming] as [[string, Upload]];
          const sent = upload.members.reduce((sum, { length }) => sum + length, 0);
          w.shelf.incoming.delete(session);
          change(w, session, upload);
          // Enough for all of it, and not for what was sent once more.
          w.shelf.room = big.work.length + sent / 2;
          const done = yield* night(w, big);
          assert.isAbove(done.length, sent);
        }
      }),
    );
    it.effect("but not under another key than that which began it; the chain goes on", () =>
      Effect.gen(function* () {
        for (const known of ["the signer", "another one"]) {
          const w = world();
          yield* night(w, volumes);
          assert.strictEqual((yield* broken(w, later, "vault", 100)).code, 6);
          w.disk.secrets = { ...w.disk.secrets!, signing: Buffer.alloc(32, 7) };
          // The owner lets the new one in.
          w.shelf.signers.length = 0;
          if (known === "another one") {
            const [name, journal] = [...w.disk.chains].find(([file]) => /journal/.test(file))!;
            const { publicKey } = signingKeyOf(w.disk.secrets.signing);
            const text = journal.toString("latin1").replace(/(?<="signer":")[^"]+/, publicKey);
            w.disk.chains.set(name, Buffer.from(text, "latin1"));
          }
          const [session] = [...w.shelf.incoming.keys()];
          const done = yield* night(w, later);
          assert.match(
            done.text,
            known === "the signer"
              ? /info: .* was signed with another key of this dom0: it begins anew/
              : /warning: the server takes the upload that an earlier run began for another's; it begins anew/,
          );
          assert.deepStrictEqual(done.sent, itsOwn);
          assert.notMatch(done.text, anew);
          // It is not of this key's series, so it is left where it is.
          assert.deepStrictEqual([...w.shelf.incoming.keys()], [session]);
          assert.deepStrictEqual((yield* night(w, later)).sent, heads);
        }
      }),
    );
    it.effect("of a chain that its owner asked for, whether asked again or not", () =>
      Effect.gen(function* () {
        const w = world();
        const asked = { args: [...args, "--new-chain"] };
        const first = yield* night(w, volumes);
        assert.strictEqual((yield* broken(w, later, "vault", 100)).code, 6);
        const [old] = [...w.shelf.incoming.keys()];
        const begun = yield* broken(w, later, "work", 5 * slot, asked);
        assert.strictEqual(begun.code, 6, begun.text);
        assert.match(begun.text, anew);
        // What was under way of the chain before is left to the server.
        const [same, upload] = [...w.shelf.incoming.keys()];
        assert.strictEqual(same, old);
        for (const [slots, options] of [
          [20, asked],
          [41, {}],
        ] as const) {
          const more = yield* broken(w, later, "work", slots * slot, options);
          assert.match(more.text, /an earlier run has sent a part of it/);
          assert.notMatch(more.text, anew);
          assert.deepStrictEqual([...w.shelf.incoming.keys()], [old, upload]);
        }
        const done = yield* night(w, later);
        assert.match(done.text, /an earlier run has sent a part of it/);
        assert.deepStrictEqual(done.sent.toSorted(), first.sent.toSorted());
        holds(w, first.name, volumes);
        assert.deepStrictEqual((yield* night(w, later)).sent, heads);
      }),
    );
    it.effect("of a chain that began where the server had lost the one before", () =>
      Effect.gen(function* () {
        const w = world();
        const first = yield* night(w, volumes);
        w.shelf.committed.clear();
        assert.match((yield* broken(w, volumes, "vault", 100)).text, /all of it is sent/);
        const done = yield* night(w, volumes);
        assert.match(done.text, /an earlier run has sent a part of it/);
        assert.deepStrictEqual(done.sent.toSorted(), first.sent.toSorted());
        assert.deepStrictEqual((yield* night(w, volumes)).sent, heads);
      }),
    );
    it.effect("and that became an archive of which nothing is known here begins anew", () =>
      Effect.gen(function* () {
        // Much of it was noted, or nothing yet.
        for (const noted of [100, 1]) {
          const w = world();
          assert.strictEqual((yield* broken(w, volumes, "vault", 100)).code, 6);
          const before = new Map(
            [...w.disk.chains].map(([name, bytes]) => [
              name,
              Buffer.from(bytes.toString("latin1").split("\n").slice(0, noted).join("\n") + "\n"),
            ]),
          );
          yield* night(w, volumes);
          w.disk.chains.clear();
          for (const [name, bytes] of before) w.disk.chains.set(name, bytes);
          const done = yield* night(w, later);
          assert.match(done.text, /is not what was noted here of it; it begins anew/);
        }
      }),
    );
    it.effect("but not what no run of this dom0 has begun", () =>
      Effect.gen(function* () {
        const w = world();
        const { name } = yield* night(w, volumes);
        const { receipt, receiptSignature: signature } = w.shelf.committed.get(name)!;
        const ready = () => ({ type: "stored", receipt, signature });
        const { code, text } = yield* attempt(w, handed(later), { lies: { ready } });
        assert.strictEqual(code, 6, text);
        assert.match(text, /unexpected reply from the server: stored/);
      }),
    );
  });

  it.effect("sends anew what did not come back as it was, and keeps the rest", () =>
    Effect.gen(function* () {
      const w = world();
      const first = yield* night(w, volumes);
      const second = yield* night(w, later);
      const digestOf = (name: string, path: string) =>
        linesOf(w.shelf.committed.get(name)!.table)
          .map((line) => memberIn(line.trim())!)
          .find((one) => one.path === path)!.digest;
      const sessions = w.disk.text
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line).session);
      const failed = "2026-01-01T00:00:00Z";
      // One that both archives have, and one that only the older has.
      const bad = [cell("work", 3), cell("work", 1)].map((path) => digestOf(first.name, path));
      w.disk.audits.set(sessions[0], { failed, spoiled: bad });
      const third = yield* night(w, later);
      assert.match(third.text, /info: 1 member of the archives before did not come back as they/);
      assert.notMatch(third.text, anew);
      assert.deepStrictEqual(third.sent.toSorted(), [cell("work", 3), ...heads].sort());
      // From then on nothing of it is kept, and nothing more is said.
      const fourth = yield* night(w, later);
      assert.deepStrictEqual(fourth.sent, heads);
      assert.notMatch(fourth.text, /did not come back/);
      // Nobody knows of which members it is, of an older one: all else is kept, and what to do is said.
      w.disk.audits.set(sessions[1], { failed });
      const fifth = yield* night(w, later);
      assert.deepStrictEqual(fifth.sent, heads);
      assert.include(fifth.text, `warning: ${second.name} did not come back as it was, and of`);
      assert.match(fifth.text, /hint: qbackup verify, of the newest archive, tells; .* forget/);
      // Not, once all of the newest came back later than that.
      const newest = JSON.parse(w.disk.text.trim().split("\n").at(-1)!).session;
      w.disk.audits.set(newest, { whole: "2026-01-01T00:00:01Z" });
      for (let n = 0; n < 2; n++) {
        const sixth = yield* night(w, later);
        assert.deepStrictEqual(sixth.sent, heads);
        assert.notMatch(sixth.text, /did not come back/);
      }
      // Nor where the owner has removed it; what is known of it counts all the same.
      const spoiled = [digestOf(third.name, cell("work", 3))];
      w.disk.audits.set(sessions[1], { failed, spoiled, vague: true, forgotten: failed });
      const seventh = yield* night(w, later);
      assert.notMatch(seventh.text, /is not known/);
      assert.deepStrictEqual(seventh.sent.toSorted(), [cell("work", 3), ...heads].sort());
    }),
  );
  it.effect.each([
    ["of the newest, and nobody knows of which members", -1, {}],
    ["of the newest, and of some of its members nobody knows", -1, { spoiled: [], vague: true }],
    ["and too many members are bad to be noted", 0, { many: true }],
  ] as const)("sends all of it where that did not come back: %s", ([, which, audit]) =>
    Effect.gen(function* () {
      const w = world();
      yield* night(w, volumes);
      yield* night(w, volumes);
      const entry = JSON.parse(w.disk.text.trim().split("\n").at(which)!);
      w.disk.audits.set(entry.session, { failed: "2026-01-01T00:00:00Z", ...audit });
      const { text } = yield* night(w, volumes);
      assert.include(text, `${entry.name} did not come back as it was: all of it is sent`);
      const after = yield* night(w, volumes);
      assert.deepStrictEqual(after.sent, heads);
    }),
  );

  describe("begins anew", () => {
    it.effect("with the time that it takes at the rate of the last run that sent a good deal", () =>
      Effect.gen(function* () {
        const w = world();
        yield* night(w, volumes);
        // As a run would have written it that sent 90 MiB in a minute, and a small one behind it.
        const entry = JSON.parse(w.disk.text);
        for (const [session, bytes] of [
          ["1".repeat(32), { read: 1, sent: 90 * 1_048_576, seconds: 60 }],
          ["2".repeat(32), { read: 1, sent: 1_048_576, seconds: 1 }],
        ] as const) {
          w.disk.text += `${JSON.stringify({ ...entry, session, bytes })}\n`;
        }
        w.disk.chains.clear();
        const { text } = yield* night(w, volumes);
        assert.match(text, /all of it is sent, 6\.2 GiB at most, some 70 minutes at the rate of/);
      }),
    );
    it.effect.each([
      [
        "where it is lost",
        (w: World) => w.disk.chains.clear(),
        /info: nothing is known here of an/,
      ],
      [
        "where it is damaged",
        (w: World) => {
          for (const bytes of w.disk.chains.values()) bytes[bytes.length >> 1]! ^= 1;
        },
        /warning: look at the disk .*\ninfo: what was known here of the archives before is damaged/,
      ],
      [
        "where the server has not the archive that it would build on",
        (w: World) => w.shelf.committed.clear(),
        /warning: the server has not the archive that this one was to build on/,
      ],
      [
        "where that archive did not come back as it was",
        (w: World) => {
          const { session } = JSON.parse(w.disk.text);
          w.disk.audits.set(session, { failed: "2026-01-01T00:00:00Z" });
        },
        /info: \S+ did not come back as it was: all of it is sent/,
      ],
    ] as const)("%s, and says so", ([, lose, expected]) =>
      Effect.gen(function* () {
        const w = world();
        const first = yield* night(w, volumes);
        lose(w);
        const second = yield* night(w, volumes);
        assert.match(second.text, expected);
        assert.deepStrictEqual(
          second.sent.filter((path) => !heads.includes(path)).sort(),
          first.sent.filter((path) => !heads.includes(path)).sort(),
        );
        assert.deepStrictEqual((yield* night(w, volumes)).sent, heads);
      }),
    );
    it.effect("where its owner asks for that, each time", () =>
      Effect.gen(function* () {
        const w = world();
        const asked = { args: [...args, "--new-chain"] };
        const first = yield* night(w, volumes);
        for (const options of [asked, asked]) {
          const again = yield* night(w, volumes, options);
          assert.match(again.text, /info: a new chain was asked for: all of it is sent, /);
          assert.deepStrictEqual(again.sent.toSorted(), first.sent.toSorted());
        }
        holds(w, first.name, volumes);
        assert.deepStrictEqual((yield* night(w, volumes)).sent, heads);
      }),
    );
    it.effect("with another passphrase, under which none of the old members opens", () =>
      Effect.gen(function* () {
        const w = world();
        const first = yield* night(w, volumes);
        const second = yield* night(w, volumes, { passphrase: "battery staple" });
        assert.include(second.text, `warning: ${first.name} still needs the old passphrase`);
        assert.match(second.text, /info: the passphrase is another one: all of it is sent/);
        holds(w, first.name, volumes);
        const third = yield* night(w, volumes, { passphrase: "battery staple" });
        assert.deepStrictEqual(third.sent, heads);
        assert.notMatch(third.text, /need/);
        // Back to the one of before, which is known again.
        const fourth = yield* night(w, volumes);
        assert.include(
          fourth.text,
          `warning: ${second.name} to ${third.name}, 2 archives, still need the old passphrase`,
        );
        const used = w.disk.text
          .trim()
          .split("\n")
          .map((entry) => JSON.parse(entry).passphrase);
        assert.deepStrictEqual(used, [1, 2, 2, 1]);
        assert.lengthOf(w.disk.passphrases, 2);
      }),
    );
    it.effect("no number stands for two passphrases, though what they are known by was lost", () =>
      Effect.gen(function* () {
        const w = world();
        const used = () => JSON.parse(w.disk.text.trim().split("\n").at(-1)!).passphrase;
        const first = yield* night(w, volumes);
        yield* night(w, volumes, { passphrase: "battery staple" });
        assert.strictEqual(used(), 2);
        w.disk.passphrases.length = 0;
        // The newest archive says what it was made with.
        const same = yield* night(w, volumes, { passphrase: "battery staple" });
        assert.strictEqual(used(), 2);
        assert.deepStrictEqual(same.sent, heads);
        assert.notMatch(same.text, /need/);
        assert.strictEqual(
          (yield* night(w, volumes, { passphrase: "battery staple" })).sent.length,
          2,
        );
        assert.strictEqual(used(), 2);
        // And where it was made with another one, or says nothing any more.
        w.disk.passphrases.length = 0;
        w.disk.chains.clear();
        const other = yield* night(w, volumes);
        assert.strictEqual(used(), 3);
        assert.match(
          other.text,
          new RegExp(`warning: ${first.name} to .*, 4 archives, still need`),
        );
        yield* night(w, volumes, { passphrase: "one more" });
        assert.strictEqual(used(), 4);
        yield* night(w, volumes);
        assert.strictEqual(used(), 3);
      }),
    );
    it.effect.each([
      ["another member", 6, /digest-mismatch/],
      ["fewer members", 5, /bad-request/],
    ] as const)(
      "after an archive that the server found another one than dom0: %s",
      ([what, exit, said]) =>
        Effect.gen(function* () {
          const w = world();
          const { name } = yield* night(w, volumes);
          const kept = w.shelf.committed.get(name)!;
          const table = kept.table.replace(/[0-9a-f]{64}\n/, `${"0".repeat(64)}\n`);
          const recipe = `${kept.session} 0 1\n`;
          w.shelf.committed.set(name, {
            ...kept,
            ...(what === "another member" ? { table } : { recipe }),
          });
          const refused = yield* attempt(w, handed(volumes));
          assert.strictEqual(refused.code, exit, refused.text);
          assert.match(refused.text, said);
          if (what === "another member") {
            // What was sent may have been at fault: that is sent anew first, to no avail.
            assert.match(
              refused.text,
              /warning: .* the next run sends that anew, and if .* all of it/,
            );
            const again = yield* attempt(w, handed(volumes));
            assert.strictEqual(again.code, exit, again.text);
            assert.notMatch(again.text, anew);
            assert.notMatch(again.text, /an earlier run/);
            assert.match(again.text, /warning: .*: the next run sends all of it/);
          } else assert.match(refused.text, /warning: .*: the next run sends all of it/);
          assert.match((yield* night(w, volumes)).text, anew);
          assert.deepStrictEqual((yield* night(w, volumes)).sent, heads);
        }),
    );
    it.effect("but not after one whose own members the server found other ones than dom0", () =>
      Effect.gen(function* () {
        const w = world();
        const { name } = yield* night(w, volumes);
        const kept = w.shelf.committed.get(name)!;
        // Once only: what comes next is found to be right.
        const table = kept.table.replace(/[0-9a-f]{64}\n/g, `${"0".repeat(64)}\n`);
        w.shelf.committed.set(name, { ...kept, table });
        const refused = yield* attempt(w, handed(later));
        assert.strictEqual(refused.code, 6, refused.text);
        w.shelf.committed.set(name, kept);
        const done = yield* night(w, later);
        assert.notMatch(done.text, anew);
        assert.notMatch(done.text, /removed this upload|is not what was noted/);
        assert.deepStrictEqual(done.sent, itsOwn);
        // That is over with an archive that was found to be right: the next one is the first again.
        w.shelf.committed.set(name, { ...kept, table });
        const another = yield* attempt(w, handed(later));
        assert.strictEqual(another.code, 6, another.text);
        w.shelf.committed.set(name, kept);
        assert.deepStrictEqual((yield* night(w, later)).sent, heads);
      }),
    );
  });

  describe("with a store that has another key than before", () => {
    const key = keyOf("server two");
    /** Two nights, and the same store under another key, whose owner has told dom0's. */
    const moved = Effect.fnUntraced(function* () {
      const w = world();
      const first = yield* night(w, volumes);
      const second = yield* night(w, later);
      const rekeyed = () => {
        w.disk.pins.clear();
        w.shelf.tickets.clear();
      };
      rekeyed();
      return { w, first, second, rekeyed };
    });
    const runOf = (w: World, name: string): number =>
      parseManifest(w.shelf.committed.get(name)!.manifest)!.run;
    const another = { ...later, mail: image(700, [0, 1]) };

    it.effect("goes on once that has read all of the newest archive", () =>
      Effect.gen(function* () {
        const { rekeyed, second, w } = yield* moved();
        const [[notes, before]] = [...w.disk.chains] as [[string, Buffer]];
        const third = yield* night(w, later, { lies: { key } });
        assert.deepStrictEqual(third.sent, heads);
        assert.notMatch(third.text, anew);
        assert.include(
          third.text,
          `info: the server is another one than before, and has ${second.name}: it reads all of that once`,
        );
        assert.isAbove(runOf(w, third.name), runOf(w, second.name));
        assert.isTrue(w.disk.chains.get(notes)!.equals(before));
        for (const command of [["list"], ["audit"], ["verify", second.name]]) {
          const looked = yield* qbackup(w, { args: [...command, "-t", "net"], lies: { key } });
          assert.strictEqual(looked.code, 0, looked.text);
        }
        const fourth = yield* night(w, another, { lies: { key } });
        assert.deepStrictEqual(
          fourth.sent.toSorted(),
          [cell("mail", 0), cell("mail", 1), ...heads].sort(),
        );
        assert.notMatch(fourth.text, /another one than before/);
        assert.strictEqual(w.shelf.asked.get("check"), 1);
        // The old one may be in use yet: there the chain goes on from where it was.
        rekeyed();
        const old = yield* night(w, another);
        assert.deepStrictEqual(
          old.sent.toSorted(),
          [cell("mail", 0), cell("mail", 1), ...heads].sort(),
        );
        assert.isAbove(runOf(w, old.name), runOf(w, second.name));
        for (const [name, of] of [
          [second.name, later],
          [third.name, later],
          [fourth.name, another],
          [old.name, another],
        ] as const)
          holds(w, name, of);
        assert.strictEqual(w.shelf.asked.get("check"), 1);
      }),
    );
    it.effect("asks no second time where its own run broke off", () =>
      Effect.gen(function* () {
        const { second, w } = yield* moved();
        const { files, ...script } = handed(another);
        const cut = { ...script, files: files!.slice(0, 2) };
        const broken = yield* attempt(w, cut, { lies: { key } });
        assert.strictEqual(broken.code, 6, broken.text);
        w.shelf.tickets.clear();
        // As after a reboot in between, before its first number was given.
        w.disk.runs.clear();
        const third = yield* night(w, another, { lies: { key } });
        assert.strictEqual(w.shelf.asked.get("check"), 1);
        assert.isAbove(runOf(w, third.name), runOf(w, second.name));
      }),
    );
    it.effect(
      "has the receipt still of a run that broke off behind it, and goes on from there",
      () =>
        Effect.gen(function* () {
          const { rekeyed, w } = yield* moved();
          w.disk.fails = (call) => (call.startsWith("append") ? "the disk is full" : undefined);
          const unwritten = yield* attempt(w, handed(another));
          assert.strictEqual(unwritten.code, 2, unwritten.text);
          const [name] = [...w.shelf.committed.keys()].slice(-1);
          w.disk.fails = () => undefined;
          rekeyed();
          const third = yield* night(w, another, { lies: { key } });
          assert.include(
            third.text,
            `info: ${name}, whose run broke off at its end, is stored and`,
          );
          assert.include(third.text, `has ${name}: it reads all of that once`);
          assert.deepStrictEqual(third.sent, heads);
          assert.strictEqual(w.disk.pins.get("net"), key.publicKey);
          assert.isUndefined(w.disk.unfinished);
        }),
    );
    it.effect.each([
      ["has not that archive", {}],
      ["has another one", { record: (reply: object) => ({ ...reply, receipt: "{}" }) }],
    ] as const)("says that a receipt is missing where it %s", ([, lies]) =>
      Effect.gen(function* () {
        const { rekeyed, w } = yield* moved();
        w.disk.fails = (call) => (call.startsWith("append") ? "the disk is full" : undefined);
        yield* attempt(w, handed(another));
        const [name] = [...w.shelf.committed.keys()].slice(-1);
        w.disk.fails = () => undefined;
        rekeyed();
        if (!("record" in lies)) w.shelf.committed.delete(name!);
        const third = yield* night(w, another, { lies: { key, ...lies } });
        assert.match(
          third.text,
          /^warning: whether \S+, whose run broke off at its end, is stored/m,
        );
        assert.isUndefined(w.disk.unfinished);
      }),
    );
    it.effect("sends anew what was, and is, found bad in archives of before", () =>
      Effect.gen(function* () {
        const { first, w } = yield* moved();
        const { session } = w.shelf.committed.get(first.name)!;
        const member = (path: string): string =>
          linesOf(w.shelf.committed.get(first.name)!.table).find((each) => each.startsWith(path))!;
        const spoil = (path: string) => {
          const spoiled = [memberIn(member(path).trimEnd())!.digest];
          w.disk.audits.set(session, { failed: "2026-01-01T00:00:00Z", spoiled });
        };
        spoil(cell("work", 2));
        const third = yield* night(w, later, { lies: { key } });
        assert.deepStrictEqual(third.sent, [cell("work", 2), ...heads]);
        spoil(cell("work", 3));
        const fourth = yield* night(w, later, { lies: { key } });
        assert.deepStrictEqual(fourth.sent, [cell("work", 3), ...heads]);
      }),
    );
    it.effect("waits for its word through a link that breaks", () =>
      Effect.gen(function* () {
        const { w } = yield* moved();
        const checked: Lies["checked"] = (reply, call) => (call < 3 ? undefined : reply);
        const third = yield* night(w, later, { lies: { key, checked } });
        assert.deepStrictEqual(third.sent, heads);
      }),
    );
    it.effect.each([
      [
        "has not that archive",
        (w: World, name: string): void => {
          w.shelf.committed.delete(name);
        },
        {},
      ],
      ["has another one of that name", ofAnother, {}],
      [
        "finds it damaged",
        (w: World, name: string): void => {
          w.shelf.committed.get(name)!.bytes[2000]! ^= 1;
        },
        {},
        /this server did not find \S+ as it was: .*damaged/,
      ],
      [
        "has another root of it",
        () => undefined,
        { checked: (reply: object) => ({ ...reply, root: "0".repeat(64) }) },
        /this server has another \S+ than was backed up/,
      ],
      [
        "may not be asked",
        () => undefined,
        { checked: () => ({ type: "error", code: "not-permitted", message: "it may not" }) },
        /this server did not find \S+ as it was: .*it may not/,
      ],
    ] as const)("sends all of it where that %s, and says so", ([, change, lies, expected]) =>
      Effect.gen(function* () {
        const { first, second, w } = yield* moved();
        change(w, second.name);
        const third = yield* night(w, volumes, { lies: { key, ...lies } });
        assert.match(
          third.text,
          expected ?? /this server has not \S+, the newest archive of these/,
        );
        assert.include(third.text, second.name);
        assert.match(third.text, anew);
        assert.deepStrictEqual(third.sent.toSorted(), first.sent.toSorted());
        const asked = w.shelf.asked.get("check");
        assert.deepStrictEqual((yield* night(w, volumes, { lies: { key } })).sent, heads);
        assert.strictEqual(w.shelf.asked.get("check"), asked);
      }),
    );
    it.effect.each([
      ["the passphrase is another one", { passphrase: "battery staple" }],
      ["nothing is known here of an archive", { args: [...args, "--new-chain"] }],
    ] as const)("does not ask where %s", ([why, options]) =>
      Effect.gen(function* () {
        const { w } = yield* moved();
        const third = yield* night(w, later, { ...options, lies: { key } });
        assert.include(third.text, `info: ${why}`);
        assert.match(third.text, anew);
        assert.isUndefined(w.shelf.asked.get("check"));
      }),
    );
  });

  describe("read by a dom0 that has lost its ledger", () => {
    /** Two nights on the server, and a dom0 that knows nothing of them, nor of who signed them. */
    const twoNights = Effect.fnUntraced(function* () {
      const w = world();
      const first = yield* night(w, volumes);
      const second = yield* night(w, later);
      return { w, first, second, lost: { ...newDom0(), shelf: w.shelf } };
    });
    const restore = (lost: ReturnType<typeof newDom0>, name: string) => {
      const says = ["qubesadmin.backup: -> Restoring work...", "qubesadmin.backup: -> Done."];
      const script = qvmRestoreScript({ says });
      const tools = Layer.merge(
        memoryQvmBackup(qvmBackupScript({ chunks: [] })),
        memoryQvmRestore(script),
      );
      return Effect.map(
        lookBack(lost, ["restore", "--force", "--verify-only", "-p", "/pass", name], { tools }),
        (ran) => ({ ...ran, fed: Buffer.concat(script.fed) }),
      );
    };
    type Recipe = Array<readonly [session: string, index: number]>;
    /** The server makes another archive of the second night, and signs for it. */
    const changed = (w: World, name: string, how: (recipe: Recipe) => void) => {
      const was = w.shelf.committed.get(name)!;
      const members: Recipe = [...spread(was.recipe)];
      how(members);
      const recipe = gathered(members);
      w.shelf.committed.set(name, { ...was, recipe });
      const bytes = bytesOf(w, name);
      const lines = membersOf(bytes).map((one) => tableLine(one, treeHash(one.bytes)));
      w.shelf.committed.set(
        name,
        remade(was, recipe, { lines, size: archiveSize("slots", bytes.length) }),
      );
    };

    it.effect("is whole, by its seal, and of that run", () =>
      Effect.gen(function* () {
        const { lost, second, w } = yield* twoNights();
        const { run } = JSON.parse(w.shelf.committed.get(second.name)!.manifest);
        const { code, fed, text } = yield* restore(lost, second.name);
        assert.strictEqual(code, 0, text);
        assert.include(text, `info: its seal holds: whole, and of run ${run}; `);
        assert.isTrue(fed.equals(bytesOf(w, second.name)));
      }),
    );
    it.effect.each([
      [
        "with a member of another night",
        (recipe: Recipe, before: Recipe, at: number) => void (recipe[at] = before[at]!),
      ],
      ["without one that was not the only one of its file", (recipe: Recipe) => void recipe.pop()],
    ] as const)("is refused %s", ([, how]) =>
      Effect.gen(function* () {
        const { first, lost, second, w } = yield* twoNights();
        const at = membersOf(bytesOf(w, second.name)).findIndex(
          ({ path }) => path === cell("work", 1),
        );
        const before: Recipe = [...spread(w.shelf.committed.get(first.name)!.recipe)];
        changed(w, second.name, (recipe) => how(recipe, before, at));
        const { code, text } = yield* restore(lost, second.name);
        assert.strictEqual(code, 6, text);
        assert.match(text, /its members are not those that it was sealed with/);
        const verified = yield* lookBack(lost, ["verify", "--force", second.name]);
        assert.strictEqual(verified.code, 6, verified.text);
      }),
    );
  });
  it.effect("of a dom0 that has lost its key: a new one says what follows", () =>
    Effect.gen(function* () {
      const w = world();
      const first = yield* night(w, volumes);
      assert.notMatch(first.text, /of another key/);
      const told =
        /^warning: the ledger has 1 backup of another key, .*signers add \S+ --root STORE\nhint: if .* on paper, qbackup key import brings it back; /m;
      for (const command of [["key", "new"], args]) {
        w.disk.secrets = undefined;
        w.said.lines.length = 0;
        const made = yield* attempt(w, handed(volumes), { args: command });
        assert.strictEqual(made.code, 0, made.text);
        assert.match(made.text, told);
      }
      assert.notMatch((yield* night(w, volumes)).text, /of another key/);
      w.disk.text = "";
      w.disk.secrets = undefined;
      assert.notMatch((yield* attempt(w, {}, { args: ["key", "new"] })).text, /of another key/);
    }),
  );
  it.effect("of a dom0 that was restored from a backup goes on with what it knows", () =>
    Effect.gen(function* () {
      const w = world();
      yield* night(w, volumes);
      const [text, chains] = [w.disk.text, new Map(w.disk.chains)];
      yield* night(w, later);
      w.disk.text = text;
      w.disk.chains.clear();
      for (const [name, bytes] of chains) w.disk.chains.set(name, bytes);
      assert.deepStrictEqual((yield* night(w, later)).sent, itsOwn);
    }),
  );
  describe("of a dom0 that was put back, and whose archive was pruned since", () => {
    /** Three nights, of which dom0 knows the first, and the server has the others. */
    const putBack = Effect.fnUntraced(function* () {
      const w = world();
      const first = yield* night(w, volumes);
      const [text, chains] = [w.disk.text, new Map(w.disk.chains)];
      yield* night(w, later);
      const third = yield* night(w, later);
      w.disk.text = text;
      w.disk.chains.clear();
      for (const [name, bytes] of chains) w.disk.chains.set(name, bytes);
      w.shelf.left.push(w.shelf.committed.get(first.name)!);
      w.shelf.committed.delete(first.name);
      return { w, third };
    });
    it.effect("keeps what the newest one has of it", () =>
      Effect.gen(function* () {
        const { third, w } = yield* putBack();
        const again = yield* night(w, later);
        assert.include(
          again.text,
          `warning: the archive that this one was to build on is not on the server any more; it builds on ${third.name}`,
        );
        assert.deepStrictEqual(again.sent, itsOwn);
        const now = { ...later, mail: image(700, [0, 1]) };
        const next = yield* night(w, now);
        assert.deepStrictEqual(
          next.sent.toSorted(),
          [cell("mail", 0), cell("mail", 1), ...heads].sort(),
        );
        assert.notMatch(next.text, /builds on/);
      }),
    );
    it.effect("and begins anew where the server finds that one to be another", () =>
      Effect.gen(function* () {
        const { third, w } = yield* putBack();
        const kept = w.shelf.committed.get(third.name)!;
        // Seen only once the recipe was fetched, and gone again when it comes to the commit.
        const lies: Lies = {
          ready: (reply) => {
            const recipe = gathered(spread(kept.recipe).toReversed());
            if (reply.type === "ready") w.shelf.committed.set(third.name, { ...kept, recipe });
            return reply;
          },
        };
        const refused = yield* attempt(w, handed(later), { lies });
        assert.strictEqual(refused.code, 6, refused.text);
        assert.match(refused.text, /builds on .*\n.*warning: .*: the next run sends all of it/s);
        const { code, text } = yield* attempt(w, handed(later));
        assert.strictEqual(code, 0, text);
        assert.match(text, anew);
      }),
    );
    it.effect.each([
      ["is of another signer", ofAnother],
      [
        "has other members than were signed for",
        (w: World, name: string) => {
          const kept = w.shelf.committed.get(name)!;
          const recipe = gathered(spread(kept.recipe).toReversed());
          w.shelf.committed.set(name, { ...kept, recipe });
        },
      ],
    ] as const)("sends all of it where the newest one %s", ([, change]) =>
      Effect.gen(function* () {
        const { third, w } = yield* putBack();
        for (const name of w.shelf.committed.keys()) {
          if (name !== third.name) w.shelf.committed.delete(name);
        }
        change(w, third.name);
        const { code, text } = yield* attempt(w, handed(later));
        assert.strictEqual(code, 0, text);
        assert.match(text, /warning: the server has not the archive that this one was to build on/);
      }),
    );
  });
  it.effect(
    "whose notes cannot be written stores its archive, says so, and costs more the next time",
    () =>
      Effect.gen(function* () {
        const w = world();
        yield* night(w, volumes);
        for (const [broken, sent] of [
          ["note", itsOwn],
          ["begin", heads],
          ["propose", heads],
          ["adopt", heads],
        ] as const) {
          w.disk.fails = (call) => (call.startsWith(broken) ? "the disk is full" : undefined);
          const done = yield* night(w, later);
          assert.deepStrictEqual(done.sent, sent, broken);
          assert.match(done.text, /warning: could not \S+.*: the disk is full/);
          w.disk.fails = () => undefined;
        }
        assert.deepStrictEqual((yield* night(w, later)).sent, heads);
      }),
  );
});
