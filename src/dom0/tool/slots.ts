/**
 * A backup in slots: the files that qubesd hands over become members here, and go to the server as they
 * are made. docs/slots.md.
 *
 * qubesd's word for its own archive is worth little here: the exit code of what takes its files does not
 * always reach it, and a stream that was cut looks like one that is done. So a file counts when its stream
 * is complete by itself, and when qubesd lists it: the archive that it writes meanwhile has one empty chunk
 * for each.
 */
import { Effect, Fiber, Redacted } from "effect";
import { Invocation } from "#services/Invocation";
import type { Running } from "#services/QvmBackup";
import { Sealing } from "#services/Sealing";
import type { Remembered } from "#src/archive/chain";
import { SlotSize } from "#src/archive/parameters";
import { backupHeader, composed, headCount, raiseSizes } from "#src/archive/compose";
import { InnerFault, innerReader, type Step } from "#src/archive/inner";
import { type Made, member, memberPassphrase, saltSize, sealedMember } from "#src/archive/seal";
import { type Cell, cellMac, chunkPath, isVolume, volumeCutter } from "#src/archive/slots";
import { padding, ustar } from "#src/archive/ustar";
import type { Walk } from "#src/archive/walk";
import { packHasher } from "#src/proof/pack";
import { leafOf } from "#src/proof/treehash";
import { blockSize } from "#src/wire/limits";
import type { View } from "#src/dom0/cli/view";
import { failed, untapped } from "#src/dom0/failure";
import type { Upload } from "#src/dom0/far/upload";
import type { Link, Linked, OpenChain } from "./chain.ts";

/**
 * Members that are made at once; more are not made faster, and each has a slot in memory. Of cells with many
 * slots there is one at a time, from the first slot of it that is read until the last of it is sent.
 */
const atOnce = 3;
/** Bytes that are read of a stream at once, where they do not go right into their slot. */
const step = 524_288;
/** Bytes of a file that is no volume: it is held, and none that Qubes makes has so many. */
const smallLimit = 67_108_864;

const qubesXml = "qubes.xml";
/** The directory of a file, `vm7` or `dom0-home`: none for qubes.xml. */
const directoryOf = (name: string): string => name.split("/")[0]!;

/** By what a member is known again. */
type Known = Pick<Remembered, "mac" | "present" | "span">;

const incomplete = (name: string | undefined, fault: string) =>
  failed(
    "integrity",
    `${name ?? "a file of the backup"} did not come whole from qubesd: ${fault}`,
    "nothing was stored; see journalctl -u qubesd for what qubesd says, and run again",
  );

/**
 * Sends members, in the order in which they were asked for, while others are being made. What is asked for
 * waits where there are enough of those.
 */
const sender = Effect.fnUntraced(function* (upload: Upload, chain: OpenChain) {
  const pack = packHasher();
  for (const digest of chain.there()) pack.skipMember(Buffer.from(digest, "hex"));
  const making: Array<{
    readonly fiber: Fiber.Fiber<Made>;
    readonly known: Known;
    readonly sent: (link: Link) => void;
  }> = [];
  const scope = yield* Effect.scope;

  const send = Effect.fnUntraced(function* ({ length, path, pieces, size }: Made, known: Known) {
    let buffer = yield* upload.buffer;
    let filled = 0;
    let left = length;
    for (const piece of pieces) {
      for (let at = 0; at < piece.length;) {
        const part = piece.subarray(at, at + blockSize - filled);
        buffer.set(part, 4 + filled);
        at += part.length;
        filled += part.length;
        left -= part.length;
        if (filled < blockSize && left > 0) continue;
        pack.block(leafOf(buffer.subarray(4, 4 + filled)));
        if (left > 0) {
          yield* upload.push(buffer, filled, pack.running());
          buffer = yield* upload.buffer;
          filled = 0;
          continue;
        }
        const digest = Buffer.from(pack.endMember()).toString("hex");
        const cell: Remembered = { ...known, size, digest };
        yield* chain.note(path, cell);
        yield* upload.push(buffer, filled, pack.running());
        const member = { path, size, length, digest };
        return { chosen: { member, of: "new", at: pack.whole() - 1 }, cell } satisfies Link;
      }
    }
    return yield* Effect.die("a member has bytes");
  });
  const sendOldest = Effect.gen(function* () {
    const { fiber, known, sent } = making.shift()!;
    sent(yield* send(yield* Fiber.join(fiber), known));
  });
  return {
    add: Effect.fnUntraced(function* (
      make: Effect.Effect<Made>,
      known: Known,
      sent: (link: Link) => void,
    ) {
      while (making.length >= atOnce) yield* sendOldest;
      making.push({ fiber: yield* Effect.forkIn(make, scope), known, sent });
    }),
    /** Waits until none of many slots is being made, or waits to be sent. */
    noneWide: Effect.gen(function* () {
      while (making.some(({ known }) => known.span > 1)) yield* sendOldest;
    }),
    /** Waits until all were sent. */
    flush: Effect.gen(function* () {
      while (making.length > 0) yield* sendOldest;
    }),
  };
});

/**
 * Takes the files of a tapped backup until qvm-backup has exited, and walks what it writes besides, of which
 * a fault ends it. Gives the rest of the job, for when qvm-backup is known to have done well. `stored` are the
 * directories whose files are not to be compressed.
 */
export const takeFiles = Effect.fnUntraced(function* (
  running: Running,
  upload: Upload,
  chain: OpenChain,
  passphrase: Redacted.Redacted<Uint8Array>,
  stored: ReadonlySet<string>,
  walk: Walk,
  view: View,
) {
  const sealing = yield* Sealing;
  const { entropy } = yield* Invocation;
  const slot = yield* SlotSize;
  const { add, flush, noneWide } = yield* sender(upload, chain);
  const backupId = chain.backupId();
  const key = chain.macKey();

  /** What seals one member at this path, once it is known what is in it. */
  const sealer = Effect.fnUntraced(function* (path: string) {
    const salt = entropy(saltSize);
    const secret = memberPassphrase(backupId, path, Redacted.value(passphrase));
    const keys = yield* sealing.keys(secret, salt);
    return (plain: Array<Uint8Array>) => sealedMember(path, salt, keys, plain);
  });
  const seal = (path: string, plain: Array<Uint8Array>) =>
    Effect.map(sealer(path), (sealed) => sealed(plain));
  /** Keeps the chunk as it is, where it is there with the same bytes, or makes and sends it. */
  const chunk = Effect.fnUntraced(function* (
    into: Array<Link>,
    name: string,
    number: number,
    parts: Array<Uint8Array>,
    { present, span }: Pick<Cell, "present" | "span"> = { present: 0, span: 0 },
  ) {
    const mac = cellMac(key, number, present, parts).toString("hex");
    const known: Known = { mac, present, span };
    const kept = chain.find(name, number, known);
    if (kept !== undefined) {
      into[number] = kept;
      return;
    }
    view.changed += parts.reduce((sum, part) => sum + part.length, 0);
    const path = chunkPath(name, number);
    // The reader goes on with the bytes while these are being made smaller; those of a wide cell are kept.
    const own = span > 1 ? parts : parts.map((part) => new Uint8Array(part));
    const packed =
      own.length === 0 ? Effect.succeed([]) : sealing.gzip(own, stored.has(directoryOf(name)));
    yield* add(
      Effect.flatMap(packed, (plain) => seal(path, plain)),
      known,
      (link) => {
        into[number] = link;
      },
    );
  });
  const zerosBehind = (size: number) => new Uint8Array(padding(size));

  /** What comes of the steps of one file: a member for each cell, the head of it last. */
  const volume = (name: string, size: number, links: Array<Link>) => {
    const cutter = volumeCutter(name, size, chain.layoutOf(name), slot);
    const cells = Effect.fnUntraced(function* (cut: ReadonlyArray<Cell>) {
      for (const cell of cut) {
        const last = cell.data.at(-1);
        const parts = last === undefined ? [] : [...cell.data, zerosBehind(last.length)];
        yield* chunk(links, name, cell.chunk, parts, cell);
      }
    });
    return {
      take: (next: Step) => {
        if (next.type === "zeros") {
          view.passed += next.count * slot;
          return cells(cutter.zeros(next.count));
        }
        if (next.type !== "slot") return Effect.void;
        view.passed += next.bytes.length;
        const data = Effect.suspend(() => cells(cutter.data(next.bytes)));
        return cutter.isWide() ? Effect.andThen(noneWide, data) : data;
      },
      end: Effect.suspend(() =>
        Effect.andThen(
          cells(cutter.end()),
          Effect.suspend(() => chunk(links, name, 0, [cutter.head()])),
        ),
      ),
    };
  };
  /** A directory's stream, as it is. */
  const tree = (name: string, links: Array<Link>) => ({
    take: (next: Step) =>
      next.type === "slot" ? chunk(links, name, next.index, [next.bytes]) : Effect.void,
    end: Effect.void,
  });
  const sendSmall = Effect.fnUntraced(function* (
    name: string,
    content: Uint8Array,
    links: Array<Link>,
  ) {
    const { length } = content;
    // A head of an archive is one member.
    const each = name === qubesXml ? smallLimit : slot;
    for (let number = 0; number === 0 || number * each < length; number++) {
      const part = content.subarray(number * each, (number + 1) * each);
      const last = (number + 1) * each >= length;
      yield* chunk(links, name, number, [
        ...(number === 0 ? [ustar(name, length)] : []),
        part,
        ...(last ? [zerosBehind(length)] : []),
      ]);
    }
  });
  const small = (content: Uint8Array, end: Effect.Effect<void>) => ({
    take: (next: Step) =>
      Effect.sync(() => {
        if (next.type === "slot") content.set(next.bytes, next.index * slot);
      }),
    end,
  });

  const files: Array<Linked> = [];
  let xml: Buffer | undefined;
  const takerOf = Effect.fnUntraced(function* (
    name: string,
    size: number | undefined,
    links: Array<Link>,
  ) {
    if (size === undefined) return tree(name, links);
    if (isVolume(name)) return volume(name, size, links);
    if (size > smallLimit) return yield* incomplete(name, `it has ${size} bytes`);
    const content = Buffer.alloc(size);
    // It can be made only once all others are known.
    if (name === qubesXml) xml = content;
    return small(content, name === qubesXml ? Effect.void : sendSmall(name, content, links));
  });

  const takeFile = Effect.fnUntraced(function* (stream: Running["archive"]) {
    const reader = innerReader(slot);
    const links: Array<Link> = [];
    const buffer = new Uint8Array(step);
    let name: string | undefined;
    let taker: Effect.Success<ReturnType<typeof takerOf>> | undefined;
    let before = 0;
    for (;;) {
      const room = reader.room();
      view.reading = true;
      const read = yield* stream.read(room ?? buffer);
      view.reading = false;
      view.taken += stream.received() - before;
      before = stream.received();
      if (read === 0) reader.end();
      else if (room !== undefined) reader.filled(read);
      else reader.push(buffer.subarray(0, read));
      for (let next = reader.next(); next !== undefined; next = reader.next()) {
        if (next instanceof InnerFault) return yield* incomplete(name, next.message);
        if (next.type === "file") {
          name = next.name;
          taker = yield* takerOf(name, next.size, links);
        } else if (next.type === "end") {
          yield* taker!.end;
          files.push({ name: name!, links });
          return;
        } else yield* taker!.take(next);
      }
    }
  });
  const takeAll = Effect.gen(function* () {
    for (;;) {
      view.reading = true;
      const file = yield* running.nextFile;
      view.reading = false;
      if (file === undefined) return yield* flush;
      yield* takeFile(file.stream);
      yield* file.done;
    }
  });
  const walkAll = Effect.gen(function* () {
    const buffer = new Uint8Array(65_536);
    for (;;) {
      const read = yield* running.archive.read(buffer);
      if (read === 0) return;
      const fault = walk.push(buffer.subarray(0, read));
      if (fault !== undefined) return yield* fault;
      if (view.taken === 0 && walk.members.length > headCount) return yield* untapped();
    }
  });
  // Of one that failed nothing is stored: what qubesd still holds open is not waited for, but for what it has said.
  const failing = Effect.flatMap(running.ended, ({ code }) =>
    code === 0 ? Effect.never : Effect.sleep("1 second"),
  );
  yield* Effect.raceFirst(
    Effect.all([takeAll, walkAll], { concurrency: 2, discard: true }),
    failing,
  );

  /** Those that qubesd says it has handed over, in its order. */
  const listed = () =>
    walk.members
      .filter(({ path }) => path.endsWith(".000.enc"))
      .map(({ path }) => path.slice(0, -".000.enc".length));

  /** What is left to be made: qubes.xml with the sizes by which a restore counts, and the two heads. */
  const finish = Effect.gen(function* () {
    const names = files.map(({ name }) => name);
    const odd = listed().find((name, i) => names[i] !== name) ?? names[listed().length];
    if (odd !== undefined) {
      return yield* incomplete(odd, "what came, and what qubesd lists, are not the same");
    }
    const counts = new Map<string, number>();
    for (const { links, name } of files) {
      const directory = directoryOf(name);
      if (name !== qubesXml) counts.set(directory, (counts.get(directory) ?? 0) + links.length);
    }
    // Byte for byte as it came, but for those numbers.
    const raised = raiseSizes((xml ?? Buffer.alloc(0)).toString("latin1"), counts);
    if (raised === undefined) {
      return yield* incomplete(qubesXml, "it does not say how large each qube of the backup is");
    }
    const first: Array<Link> = [];
    // That of the heads, which come last, while this one is made.
    const sealsHead = yield* Effect.forkScoped(sealer("backup-header.hmac"));
    yield* sendSmall(qubesXml, Buffer.from(raised, "latin1"), first);
    yield* flush;
    const content: ReadonlyArray<Linked> = [
      { name: qubesXml, links: first },
      ...files.filter(({ name }) => name !== qubesXml),
    ];
    const chosenOf = (of: ReadonlyArray<Linked>) =>
      of.flatMap(({ links }) => links.map(({ chosen }) => chosen));
    // The seal is over all that was made, and the run's number is that of the manifest.
    const { run } = upload.settledTicket();
    const text = backupHeader(backupId, composed(chosenOf(content)).root!, run);
    const header = Buffer.from(text);
    const heads = ["backup-header", "backup-header.hmac"].map((name) => {
      const links: Array<Link> = [];
      return { name, links };
    });
    const known: Known = { mac: cellMac(key, 0, 0, [header]).toString("hex"), present: 0, span: 0 };
    const [plain, sealed] = [
      Effect.succeed(member("backup-header", [header])),
      Effect.map(Fiber.join(sealsHead), (sealed) => sealed([header])),
    ];
    yield* add(plain, known, (link) => heads[0]!.links.push(link));
    yield* add(sealed, known, (link) => heads[1]!.links.push(link));
    yield* flush;
    const archive = [...heads, ...content];
    const { members, recipe, root, size } = composed(chosenOf(archive));
    yield* chain.propose(archive, root!);
    return { counted: { size, members, root: root! }, recipe };
  });
  return { finish };
});
