/**
 * Nights in slots: each archive is made of members that it brings and of those that are there already. Of
 * every one that has a receipt a reader of its own, written from the documents, must get the images of its
 * night, as long as the server keeps it; and what dom0 keeps to make the next one from must be true.
 */
import { Effect, Fiber } from "effect";
import type { BooksDisk } from "#layers/memory/MemoryBooks";
import { cheapKeys } from "#layers/memory/MemorySealing";
import { inProcessQrexec, memoryPipe } from "#layers/memory/MemoryPipe";
import { parseLedger } from "#layers/files/FileLedger";
import { attack, outdated } from "#test/sim/attack";
import {
  filesOf,
  firstImages,
  type Images,
  listingOf,
  nextImages,
  slot,
  streamsOf,
  withoutSizes,
  xmlIn,
} from "#test/sim/images";
import { archiveSize } from "#src/archive/walk";
import type { Move, NightPlan } from "#test/sim/plan";
import type { Copy, Dom0, Run, Tapped, World } from "#test/sim/world";
import { keyOf, type Lies, peer, remade, type Shelf, shelf } from "#test/support/peer";
import { type Rng, rng } from "#test/support/random";
import {
  gathered,
  linesOf,
  memberIn,
  membersOf,
  rootOf,
  sha256,
  spread,
  tableLine,
  treeHash,
} from "#test/support/reference";
import { macOf, notesIn, openSlots, type Opened, smallOf, volumeOf } from "#test/support/slots";

/** No night may take longer. In simulated seconds. */
const longest = 28 * 3600;

/** The keys of the other server, the one that it has first in front. */
const farKeys = ["server", "server two", "server three"].map(keyOf);
const isFar = (server: string): boolean => farKeys.some(({ publicKey }) => publicKey === server);

/** An archive that has a receipt. */
interface Kept {
  readonly name: string;
  readonly session: string;
  readonly server: string;
  readonly series: string;
  readonly root: string;
  readonly number: number;
  readonly run: Run;
}

interface Pack {
  readonly lines: ReadonlyArray<string>;
  readonly members: ReadonlyArray<Buffer>;
}
const cutBy = (bytes: Buffer, table: ReadonlyArray<string>): Pack => {
  const lines: Array<string> = [];
  const members: Array<Buffer> = [];
  let at = 0;
  for (const line of table) {
    const member = memberIn(line.trimEnd())!;
    const own = Buffer.from(bytes.subarray(at, (at += member.length)));
    // A pack that took another's place may end before: nothing has no digest.
    lines.push(tableLine(member, own.length === 0 ? "0".repeat(64) : treeHash(own)));
    members.push(own);
  }
  return { lines, members };
};
const packs = new Map<string, Pack>();
/** The members of a pack as its table cuts it, with digests of what they are; worked out once. */
const packOf = (bytes: Buffer, table: Buffer): Pack => {
  const digest = sha256(sha256(bytes), table).toString("hex");
  const found = packs.get(digest) ?? cutBy(bytes, linesOf(table.toString("latin1")));
  if (packs.size > 200) packs.clear();
  packs.set(digest, found);
  return found;
};

/** A server, as its owner sees it. */
interface Place {
  readonly look: (what: "recipes" | "packs" | "tables", session: string) => Buffer | undefined;
  readonly lists: (name: string, session: string) => boolean;
}
const onDisk = ({ disk }: World): Place => ({
  look: (what, session) => {
    const node = disk.find(`.qbackup/${what}/${session}`);
    return node?.kind === "file" ? node.now.view() : undefined;
  },
  lists: (name) => disk.find(`${name}.manifest.json`) !== undefined,
});
const onShelf = ({ committed }: Shelf): Place => ({
  look: (what, session) => {
    const kept = [...committed.values()].find((one) => one.session === session);
    if (kept === undefined || what === "packs") return kept?.bytes;
    return Buffer.from(what === "recipes" ? kept.recipe : kept.table);
  },
  lists: (name, session) => committed.get(name)?.session === session,
});

/** The members of an archive as they lie there; undefined where one does not. */
const archiveAt = ({ look }: Place, session: string): Pack | undefined => {
  const recipe = look("recipes", session);
  if (recipe === undefined) return undefined;
  const found = new Map<string, Pack | undefined>();
  const lines: Array<string> = [];
  const members: Array<Buffer> = [];
  for (const [of, index] of spread(recipe.toString("latin1"))) {
    if (!found.has(of)) {
      const [bytes, table] = [look("packs", of), look("tables", of)];
      found.set(of, bytes && table && packOf(bytes, table));
    }
    const pack = found.get(of);
    if (pack?.lines[index] === undefined) return undefined;
    lines.push(pack.lines[index]);
    members.push(pack.members[index]!);
  }
  return { lines, members };
};

/** What an archive says that it is, held against what was there in its night. */
const wrongIn = (opened: Opened, { images }: Tapped, number: number, seal: string) => {
  const wanted = filesOf(images);
  const { files, header } = opened;
  if (!header.includes(`\nqbackup-seal=${seal}\nqbackup-run=${number}\n`))
    return "its seal is wrong";
  if ([...files.keys()].join() !== ["qubes.xml", ...wanted.keys()].join()) {
    return `its files are ${[...files.keys()].join(" ")}`;
  }
  if (withoutSizes(smallOf(files.get("qubes.xml")!).toString("latin1")) !== xmlIn(images)) {
    return "its qubes.xml is another one";
  }
  for (const [name, content] of wanted) {
    const chunks = files.get(name)!;
    const got = name.endsWith(".img") ? volumeOf(chunks) : smallOf(chunks);
    if (!got.equals(content)) return `${name} is not as it was that night`;
  }
  return undefined;
};

/** What dom0 keeps of an archive, held against that. */
const wrongNotes = (file: Buffer, lines: ReadonlyArray<string>, { files, header }: Opened) => {
  const notes = notesIn(file);
  if (notes.root !== rootOf(lines)) return "their root is another one";
  if (!header.includes(`\nbackup-id=${notes.id}\n`)) return "their backup-id is another one";
  let index = 0;
  for (const { chunks, name } of notes.files) {
    let slots = 0;
    for (let chunk = 0; chunk < chunks; chunk++, index++) {
      const { digest, mac, present, size, span } = notes.members[index]!;
      const member = memberIn(lines[index]!.trimEnd())!;
      const plain = name.startsWith("backup-header")
        ? Buffer.from(header)
        : files.get(name)![chunk]!;
      if (member.digest !== digest || member.size !== size) return `${member.path} is another one`;
      if (macOf(notes.key, chunk, present, plain) !== mac) return `the MAC of ${member.path}`;
      slots += span;
    }
    const volume = name.endsWith(".img") ? volumeOf(files.get(name)!).length : 0;
    if (slots !== Math.ceil(volume / slot)) return `the spans of ${name}`;
  }
  return index === lines.length ? undefined : "members are missing";
};

/** All that is checked in one story. */
class Witness {
  readonly kept = new Map<string, Kept>();
  readonly #world: World;
  /** The other server. */
  readonly #far: Shelf | undefined;
  readonly #opened = new Map<string, Opened>();

  constructor(world: World, far?: Shelf) {
    this.#world = world;
    this.#far = far;
  }
  #place(server: string): Place {
    return this.#far !== undefined && isFar(server) ? onShelf(this.#far) : onDisk(this.#world);
  }

  /** Takes note of the receipts in a ledger. */
  see({ books }: Dom0): void {
    for (const { entry } of parseLedger(Buffer.from(books.text)).lines) {
      if (this.kept.has(entry.session)) continue;
      const { root, run: number, series, server } = JSON.parse(entry.manifest);
      const run = this.#world.runs.findLast((one) => one.numbers.has(`${server} ${number}`));
      const { name, session } = entry;
      if (run?.tapped === undefined) this.#world.broken(`P2 ${name} is of no night`);
      else this.kept.set(session, { name, session, server, series, root, number, run });
    }
  }

  /** Every archive that has a receipt is there, and has in it what it should. */
  check(when: string): void {
    this.#world.checkRecords(when);
    for (const kept of this.kept.values()) {
      const wrong = this.#world.lost.has(kept.name) ? undefined : this.#wrongWith(kept);
      if (wrong !== undefined) this.#world.broken(`P1 ${when}: ${kept.name}: ${wrong}`);
    }
  }
  /** What did not come to a new place is looked for there no more. */
  giveUp(): void {
    for (const kept of this.kept.values()) {
      if (this.#wrongWith(kept) !== undefined) this.#world.lost.add(kept.name);
    }
  }
  #wrongWith({ name, number, root, run, server, session }: Kept): string | undefined {
    const place = this.#place(server);
    if (!place.lists(name, session)) return "it has a receipt, and is gone";
    const found = archiveAt(place, session);
    if (found === undefined) return "it has a receipt, and is not all there";
    if (rootOf(found.lines) !== root) return "it has a receipt, and is another one";
    if (this.#opened.has(session)) return undefined;
    try {
      const opened = openSlots(Buffer.concat(found.members), run.tapped!.passphrase, cheapKeys);
      this.#opened.set(session, opened);
      return wrongIn(opened, run.tapped!, number, rootOf(found.lines.slice(2)));
    } catch (error) {
      return String(error);
    }
  }
  /** Whether the server still has it as it was; and nobody takes it for that otherwise. */
  intact(kept: Kept): boolean {
    const wrong = this.#wrongWith(kept);
    const found = archiveAt(this.#place(kept.server), kept.session);
    if (wrong === undefined || found === undefined) return wrong === undefined;
    if (rootOf(found.lines) === kept.root) {
      this.#world.broken(`P1 ${kept.name}: ${wrong}`);
      return false;
    }
    let header: string;
    try {
      ({ header } = openSlots(
        Buffer.concat(found.members),
        kept.run.tapped!.passphrase,
        cheapKeys,
      ));
    } catch {
      return false;
    }
    // All of it opens; who has the passphrase alone sees by the seal that it is mixed, but for what stands
    // around the text of the heads.
    const seal = `=${rootOf(found.lines.slice(2))}\n`;
    const mixed = this.#opened.get(kept.session)?.header.includes(seal) !== true;
    if (mixed && header.includes(`${seal}qbackup-run=${kept.number}\n`)) {
      this.#world.broken(`P1 ${kept.name}: it is not what it was, and its seal holds`);
    }
    return false;
  }

  /** Members of the pack of a night. */
  sentBy({ server, session }: Kept): number | undefined {
    const table = this.#place(server).look("tables", session);
    return table && linesOf(table.toString("latin1")).length;
  }

  /** Nothing of it came with another archive. */
  isAlone({ server, session }: Kept): boolean {
    const recipe = this.#place(server).look("recipes", session);
    return linesOf(recipe!.toString("latin1")).every((line) => line.startsWith(session));
  }

  /** The server lists what it has, and what it lists is what it took. */
  readonly checkList = Effect.fnUntraced({ self: this }, function* (this: Witness, when: string) {
    const { lost } = this.#world;
    const listed = (yield* this.#world.list()).filter(({ name }) => !lost.has(name));
    for (const { damaged, name } of listed) {
      if (damaged) this.#world.broken(`${when}: ${name} is listed as damaged`);
    }
    for (const { name, server } of this.kept.values()) {
      if (!isFar(server) && !lost.has(name) && !listed.some((one) => one.name === name)) {
        this.#world.broken(`P1 ${when}: ${name} was stored, and is not listed`);
      }
    }
    return listed;
  });

  /** What a dom0 knows of its newest archive, with which a run has just ended well. */
  checkNotes({ dom0: { books } }: Run, kept: Kept): void {
    const { series, server } = kept;
    const name = `chain.${sha256(`${server} ${series}`).toString("hex").slice(0, 16)}`;
    const wrong = (what: string) => this.#world.broken(`P2 the notes of ${kept.name}: ${what}`);
    const file = books.chains.get(name);
    if (file === undefined) return wrong("there are none");
    for (const rest of ["next", "journal"]) {
      if (books.chains.has(`${name}.${rest}`)) wrong(`a ${rest} is left`);
    }
    const opened = this.#opened.get(kept.session);
    const found = archiveAt(this.#place(server), kept.session);
    if (opened === undefined || found === undefined) return;
    const what = wrongNotes(file, found.lines, opened);
    if (what !== undefined) wrong(what);
    for (const from of notesIn(file).moved) {
      const last = [...this.kept.values()].find(
        (one) => one.server === from.server && one.number === from.run,
      );
      if (last?.series !== series) wrong(`they are taken over from no run ${from.run}`);
    }
  }
}

/** The table of qubes as the images are; what Qubes knows of one that was there stays. */
const settle = ({ table }: Dom0, { qubes }: Images): void => {
  const was = table.qubes.splice(0);
  const kept = (name: string, qid: number) =>
    was.find((qube) => qube.name === name && qube.qid === qid);
  table.qubes.push(
    kept("dom0", 0)!,
    ...qubes.map(({ qube }) => kept(qube.name, qube.qid) ?? qube),
    kept("net", 9)!,
    kept("far", 10)!,
  );
};

/** What a dom0 is put back to: all that it keeps, as it was. */
const copied = ({ chains, pins, runs, text, unfinished }: BooksDisk) => ({
  text,
  unfinished,
  pins: new Map(pins),
  runs: new Map(runs),
  chains: new Map(chains),
});
const putBack = (books: BooksDisk, old: ReturnType<typeof copied>): void => {
  books.text = old.text;
  books.unfinished = old.unfinished;
  for (const name of ["pins", "runs", "chains"] as const) {
    const map = books[name] as Map<string, unknown>;
    map.clear();
    for (const [key, value] of old[name]) map.set(key, value);
  }
};

const tappedOf = (r: Rng, images: Images, passphrase: string, night: NightPlan): Tapped => {
  const { asked, pause, qvm } = night;
  const streams = streamsOf(r, images);
  const names = streams.map(([name]) => name);
  const files = streams.map(([, bytes]) => bytes);
  // Of a qube that has others, or nothing of a qube would be there at all.
  const other = names.findIndex((name, i) => i > 1 && names[i - 1]!.startsWith(name.slice(0, 4)));
  const odd = other < 0 ? names.length - 1 : other;
  const without = <A>(all: ReadonlyArray<A>) => all.filter((_, i) => i !== odd);
  if (qvm === "cut") {
    const at = r.int(0, files.length - 1);
    const whole = files[at]!;
    // Of what is no end mark at least nothing more is there; now and then, all of it.
    const data = whole.findLastIndex((byte) => byte !== 0) + 1;
    files[at] = whole.subarray(0, r.pick([r.int(1, data), data, Math.ceil(data / 512) * 512]));
  }
  return {
    images,
    files: qvm === "missing" ? without(files) : files,
    listing: listingOf(qvm === "unlisted" ? without(names) : names),
    passphrase,
    words: asked === true ? ["--new-chain"] : [],
    pause,
    whole: qvm === "sound" || qvm === "hangs" || qvm === "fails",
  };
};

const calm: NightPlan = { qvm: "sound", pause: 0, rest: 86_400_000 };
/** What is said where the next archive can not be built on what there is. */
const anew =
  /is not what was noted here|has not the archive|is not what the server has|nothing is known here|are? damaged/;

/** What is said before an archive is read by a server that is new. */
const taken = /the server is another one than before, and has (\S+): it reads all of that once/;

/** A story, whichever: its one dom0, and what is in the qubes. */
const scene = (world: World, checkRun: (world: World, run: Run) => void) => {
  const r = rng(world.plan.seed ^ 0x1a6e5);
  const home = world.dom0("home");
  const shelfThere = shelf();
  const witness = new Witness(world, shelfThere);
  let images = firstImages(r);
  let number = 0;
  const far = { key: farKeys[0]! };
  const wordsOf = (run: Run) => run.said.lines.map(({ text }) => text).join("\n");
  const distant = (lies: Lies = {}) =>
    inProcessQrexec(
      peer(shelfThere, { key: far.key, ...lies }),
      Effect.sync(() => ({ up: memoryPipe(), down: memoryPipe() })),
    );
  return {
    r,
    home,
    shelf: shelfThere,
    /** The other server. */
    far,
    witness,
    wordsOf,
    /** A day goes by. */
    change: () => {
      images = nextImages(r, images);
    },
    /** A run, to its end, and the archive that it has stored. */
    run: Effect.fnUntraced(function* (
      night: NightPlan,
      passphrase: string,
      to: "net" | "far" = "net",
      lies: Lies = {},
    ) {
      number += 1;
      settle(home, images);
      const run = world.start(
        home,
        {
          id: `night ${number}`,
          archive: Buffer.alloc(0),
          qvm:
            night.qvm === "hangs"
              ? { kind: "hangs", at: 0 }
              : night.qvm === "fails"
                ? { kind: "exit", code: 1 }
                : { kind: "sound" },
          doomed: night.dies !== undefined,
          tapped: tappedOf(r, images, passphrase, night),
          to,
          ...(night.dies === undefined ? {} : { dies: night.dies }),
        },
        to === "far" ? distant(lies) : undefined,
      );
      const began = world.universe.seconds;
      const code = yield* world.end(run);
      if (world.universe.seconds - began > longest) world.broken(`P5 ${run.id} took too long`);
      witness.see(home);
      const kept = [...witness.kept.values()].find((one) => one.run === run);
      if (to === "far") run.session = kept?.session;
      if (code !== undefined) checkRun(world, run);
      if (code === 0 && kept === undefined) world.broken(`P2 ${run.id}: no receipt`);
      return { run, kept };
    }),
    /** Has an archive of the other server verified: its exit code. */
    verify: Effect.fnUntraced(function* (
      { name }: Kept,
      by = home,
      ...words: ReadonlyArray<string>
    ) {
      const run = world.start(
        by,
        {
          id: `verify ${number}`,
          archive: Buffer.alloc(0),
          qvm: { kind: "sound" },
          doomed: false,
          command: ["verify", "-t", "far", ...words, name],
        },
        distant(),
      );
      return yield* world.end(run);
    }),
  };
};

export const slotsTale = Effect.fnUntraced(function* (
  world: World,
  checkRun: (world: World, run: Run) => void,
) {
  const { plan } = world;
  const { attack: attacked } = plan;
  const { calmFirst, moves, nights } = plan.slots!;
  const { change, home, r, run: once, witness, wordsOf } = scene(world, checkRun);
  world.afterPowerLoss = () => witness.check("after a power loss");
  let passphrase = "correct horse";
  /** dom0, or what it knows, was put back. */
  let restored = false;
  /** The store has come to a place without all that was in it. */
  let lessThere = false;
  const before: Array<ReturnType<typeof copied>> = [];

  /** Nothing has happened for which an archive should be made of nothing but new members. */
  const goesOn = () =>
    !restored &&
    !lessThere &&
    !world.diskFailed &&
    !world.booksFailed &&
    !world.corrupted &&
    attacked?.by !== "carrier";
  /** A link that breaks, and a server that dies, are no more than a link that is not there. */
  const checkMild = (run: Run): void => {
    if (run.code === undefined || run.code === 0) return;
    const text = wordsOf(run);
    if (run.code === 4 && /no link to the server|no progress for/.test(text)) return;
    world.broken(
      `${run.id}: a link that breaks made it exit with ${run.code}: ${text.slice(-300)}`,
    );
  };

  const oneNight = Effect.fnUntraced(function* (night: NightPlan) {
    before.push(copied(home.books));
    const to = night.to ?? "net";
    const server = home.books.pins.get(to);
    const known = server !== undefined && home.books.text.includes(server);
    const { kept, run } = yield* once(night, passphrase, to);
    witness.check(`after ${run.id}`);
    if (run.code === 0 && kept !== undefined && !world.booksFailed) witness.checkNotes(run, kept);
    if (run.code === 0 && kept !== undefined && night.asked === true && !witness.isAlone(kept)) {
      world.broken(`${run.id}: a new chain was asked for, and it is made of an older archive`);
    }
    if (known && goesOn() && anew.test(wordsOf(run))) {
      world.broken(`${run.id}: it begins anew for nothing: ${anew.exec(wordsOf(run))![0]}`);
    }
    return { run, kept };
  });
  /** One in which all has to go well, and what it sent, if nothing has changed. */
  const calmNight = Effect.fnUntraced(function* (nothingNew: boolean) {
    const { kept, run } = yield* oneNight(calm);
    if (run.code !== 0 || kept === undefined) {
      world.broken(
        `${run.id}: all is well, but it exited with ${run.code}: ${wordsOf(run).slice(-300)}`,
      );
    } else if (nothingNew && witness.sentBy(kept) !== 2) {
      world.broken(`${run.id}: nothing has changed, and ${witness.sentBy(kept)} members were sent`);
    }
  });

  /** The store comes to another place, with trouble in the first night there. */
  const moved = Effect.fnUntraced(function* (move: Move) {
    const { rekeyed, store } = move;
    let copy = world.copied();
    if (store === "older") {
      change();
      yield* calmNight(false);
    }
    if (move.left !== undefined) {
      yield* Effect.sleep(calm.rest);
      change();
      world.besides = { links: [], deaths: [], steps: 0 };
      yield* oneNight({ ...calm, dies: move.left });
      world.besides = undefined;
    }
    yield* Effect.sleep(calm.rest);
    if (store !== "older") {
      copy = world.copied();
      const name = spoiled(r, copy, store);
      if (name !== undefined) world.lost.add(name);
    }
    yield* world.move(copy, rekeyed);
    witness.giveUp();
    if (store !== "sound") lessThere = true;
    if (rekeyed) home.books.pins.delete("net");
    const there = world.runs.length;
    const newest = parseLedger(Buffer.from(home.books.text)).lines.at(-1)!.entry;
    // Its receipt may be had still: then it is the newest.
    const pending = home.books.unfinished?.submission?.name ?? newest.name;
    if (move.signer !== undefined) {
      world.renew(home);
      if (move.signer === "behind") {
        const { run } = yield* oneNight(calm);
        if (run.code !== 5)
          world.broken(`${run.id}: its key is new, but it exited with ${run.code}`);
      }
      yield* world.admit([home]);
    }
    if (move.changed) change();
    world.besides = { links: [...move.links], deaths: [...move.deaths], steps: 0 };
    const { dies } = move;
    const { run } = yield* oneNight({ ...calm, ...(dies === undefined ? {} : { dies }) });
    checkMild(run);
    world.besides = undefined;
    yield* Effect.sleep(calm.rest);
    for (const last of run.code === 0 ? [false, true] : [false, false, true]) {
      yield* calmNight(last);
      yield* Effect.sleep(calm.rest);
    }
    const since = world.runs.slice(there);
    const first = [...witness.kept.values()].find(({ run }) => since.includes(run));
    if (first === undefined) return;
    const all = since.find((run) => /all of it is sent/.test(wordsOf(run)));
    const looked = since.flatMap((run) => taken.exec(wordsOf(run))?.slice(1) ?? []);
    if (looked.length > 0) world.note(`the store is ${all === undefined ? "" : "not "}taken over`);
    if (
      store === "sound" ||
      (rekeyed && ![newest.name, pending].some((name) => world.lost.has(name)))
    ) {
      const same = !move.changed && move.left === undefined;
      if (all !== undefined) world.broken(`${all.id}: what it needs is there, and all is sent`);
      else if (first.number <= JSON.parse(newest.manifest).run) {
        world.broken(`${first.name}: its number is below that of what it is built on`);
      } else if (same && store === "sound" && witness.sentBy(first) !== 2) {
        world.broken(
          `${first.name}: the store moved, and ${witness.sentBy(first)} members were sent`,
        );
      }
    } else if (
      rekeyed &&
      !witness.isAlone(first) &&
      !looked.some((name) => !world.lost.has(name))
    ) {
      // One that came with an earlier key may be there still, and is looked at then.
      world.broken(`${first.name} is built on what did not come to its server as it was`);
    }
  });

  if (attacked !== undefined) {
    yield* world.admit([home]);
    if (attacked.quota !== undefined) world.options = ["--quota", `${attacked.quota}`];
  }
  if (calmFirst) {
    world.calm = true;
    const { run } = yield* oneNight(calm);
    if (run.code !== 0) world.broken(`the first night exited with ${run.code}`);
    yield* Effect.sleep(calm.rest);
    change();
    home.calls = home.puts = 0;
    world.calm = false;
  }
  const attackedNight = r.pick(nights);
  for (const night of nights) {
    if (night.before === "power") {
      yield* world.powerLoss({ power: r.pick(["nothing", "any"]), told: true, away: 10 });
    } else if (night.before === "restored" && before.length > 0) {
      putBack(home.books, r.pick(before));
      restored = true;
    } else if (night.before === "passphrase") passphrase = `${passphrase} ${r.int(1, 9)}`;
    else if (night.before === "forgotten") {
      home.books.chains.clear();
      restored = true;
    }
    const runsBefore = new Set(world.runs);
    const attacker =
      attacked === undefined || night !== attackedNight
        ? undefined
        : world.go(
            attack(
              world,
              attacked.seed,
              attacked.by === "carrier" ? () => true : ({ by }) => runsBefore.has(by as Run),
            ),
          );
    const { run } = yield* oneNight(night);
    const mild =
      !world.corrupted &&
      !world.diskFailed &&
      !world.booksFailed &&
      !world.clockStepped &&
      attacked?.by !== "carrier" &&
      attacked?.quota === undefined &&
      attacked?.holdsBack === undefined &&
      night.qvm === "sound";
    if (mild) checkMild(run);
    yield* Effect.sleep(night.rest);
    if (attacker !== undefined) yield* Fiber.interrupt(attacker);
    if (r.next() < 0.7) change();
  }

  world.calm = true;
  world.setClocks();
  yield* Effect.sleep(3_600_000);
  const late =
    attacked === undefined
      ? undefined
      : world.go(attack(world, attacked.seed + 1, outdated(world)));
  // What came before the first is in cells of many slots, maybe, which the second cuts anew.
  for (const last of [false, false, true]) {
    yield* calmNight(last);
    if (late !== undefined) yield* Fiber.interrupt(late);
    if (!last) yield* Effect.sleep(calm.rest);
  }
  for (const move of moves) yield* moved(move);
  yield* Effect.sleep(120_000);
  if (world.serving > 0) world.broken("P5 a process of the server waits for ever");
  yield* witness.checkList("at the end");
  yield* world.powerLoss({ power: plan.last, told: true, away: 10 });
  witness.check("after the last power loss");
  const listed = yield* witness.checkList("after the last power loss");
  if (!world.diskFailed && !world.booksFailed && !restored) {
    for (const { name, session } of listed) {
      if (!witness.kept.has(session)) world.broken(`P7 ${name} is on the server and in no ledger`);
    }
  }
});

/** What is wrong with a copy of a store: not all of its newest archive is as it was; the name of that. */
const spoiled = (r: Rng, copy: Copy, how: Move["store"]): string | undefined => {
  if (how === "sound") return undefined;
  const text = (path: string) => copy.get(path)!.bytes.toString("latin1");
  const records = [...copy.keys()]
    .filter((path) => /^[A-Za-z0-9].*\.manifest\.json$/.test(path))
    .map((path) => ({ path, ...JSON.parse(JSON.parse(text(path)).manifest) }))
    .sort((a, b) => (a.created < b.created ? -1 : 1));
  const [before, newest] = records.slice(-2);
  const [pack, at] = r.pick(spread(text(`.qbackup/recipes/${newest.session}`)));
  const file = `.qbackup/packs/${pack}`;
  if (how === "missing") copy.delete(newest.path);
  else if (how === "lost") copy.delete(file);
  else if (how === "damaged") {
    const lengths = linesOf(text(`.qbackup/tables/${pack}`)).map(
      (line) => memberIn(line.trimEnd())!.length,
    );
    const start = lengths.slice(0, at).reduce((sum, length) => sum + length, 0);
    const was = copy.get(file)!;
    const bytes = Buffer.from(was.bytes);
    bytes[start + r.int(0, lengths[at]! - 1)]! ^= 1;
    copy.set(file, { ...was, bytes });
  } else {
    const [from, to] = r.pick([
      [before.path, newest.path],
      ...["packs", "recipes"].map((what) =>
        [before, newest].map(({ session }) => `.qbackup/${what}/${session}`),
      ),
    ]);
    copy.set(to, copy.get(from)!);
  }
  return newest.name;
};

/** What a server does to what it keeps; false where there is nothing to do that to. */
const meddled = (r: Rng, shelf: Shelf, before: ReadonlyArray<Shelf>): string | undefined => {
  const all = [...shelf.committed];
  if (all.length === 0) return undefined;
  const [name, kept] = r.pick(all);
  const change = (but: Partial<(typeof all)[number][1]>) =>
    shelf.committed.set(name, { ...kept, ...but });
  const members = membersOf(kept.bytes).map(({ bytes }) => bytes);
  const lines = linesOf(kept.table);
  const [a, b] = [r.int(0, members.length - 1), r.int(0, members.length - 1)];
  const swapped = <A>(of: ReadonlyArray<A>): Array<A> => {
    const now = [...of];
    [now[a], now[b]] = [of[b]!, of[a]!];
    return now;
  };
  const recipe = spread(kept.recipe);
  return r.pick<() => string | undefined>([
    () => {
      shelf.committed.delete(name);
      return "drops an archive";
    },
    () => {
      const old = before.length === 0 ? undefined : r.pick(before);
      if (old === undefined) return undefined;
      for (const what of ["committed", "incoming", "tickets"] as const) {
        const map = shelf[what] as Map<string, unknown>;
        map.clear();
        for (const [key, value] of old[what]) map.set(key, value);
      }
      return "is what it was some nights ago";
    },
    () => {
      if (a === b) return undefined;
      change({ bytes: Buffer.concat(swapped(members)) });
      return "swaps two members";
    },
    () => {
      if (a === b) return undefined;
      change({
        bytes: Buffer.concat(swapped(members)),
        table: swapped(lines).join(""),
        leaves: swapped(kept.leaves),
      });
      return "swaps two members, and says so in its table";
    },
    () => {
      const bytes = Buffer.from(kept.bytes);
      bytes[r.int(0, bytes.length - 1)]! ^= 1;
      change({ bytes });
      return "changes a byte";
    },
    () => {
      const at = r.int(0, recipe.length - 1);
      change({ recipe: gathered(recipe.filter((_, i) => i !== at)) });
      return "drops a member";
    },
    // Of the same path, of another night: it opens with the same passphrase.
    () => {
      const pathOf = ([of, index]: readonly [string, number]) => {
        const pack = all.find(([, { session }]) => session === of)?.[1];
        return pack && linesOf(pack.table)[index]?.split(" ")[0];
      };
      const others = all.flatMap(([, one]) => spread(one.recipe));
      const places = recipe.flatMap((of, i) =>
        others
          .filter((one) => pathOf(one) === pathOf(of) && (one[0] !== of[0] || one[1] !== of[1]))
          .map((one) => [i, one] as const),
      );
      if (places.length === 0) return undefined;
      const [at, other] = r.pick(places);
      change({ recipe: gathered(recipe.map((of, i) => (i === at ? other : of))) });
      return "puts a member of another night in the place of one";
    },
    () => {
      const upload = [...shelf.incoming.values()].find(({ members }) => members.length > 1);
      if (upload === undefined) return undefined;
      const last = upload.members.length - 1;
      const [i, j] = [r.int(0, last), r.int(0, last)];
      if (i === j) {
        upload.members.splice(i, 1);
        upload.leaves.splice(i, 1);
        return "drops a member of an upload";
      }
      for (const list of [upload.members, upload.leaves] as ReadonlyArray<Array<unknown>>) {
        [list[i], list[j]] = [list[j], list[i]];
      }
      return "swaps members of an upload";
    },
  ])();
};

/** The server makes another archive of one, or does not, and vouches for it under a name of its own. */
const forged = (r: Rng, shelf: Shelf, name: string): void => {
  const was = shelf.committed.get(name)!;
  const place = onShelf(shelf);
  const before = archiveAt(place, was.session)!;
  const recipe = [...spread(was.recipe)];
  const pathOf = (line: string) => line.split(" ")[0];
  const others = [...shelf.committed.values()].flatMap(({ session, table }) =>
    linesOf(table).map((line, index) => ({ line, of: [session, index] as const })),
  );
  const places = before.lines.flatMap((line, at) =>
    others
      .filter((one) => at > 1 && pathOf(one.line) === pathOf(line) && one.line !== line)
      .map(({ of }) => ({ at, of })),
  );
  const how = r.int(0, 2);
  if (how === 0 && places.length > 0) {
    const { at, of } = r.pick(places);
    recipe[at] = of;
  } else if (how === 1) recipe.splice(r.int(2, recipe.length - 1), 1);
  shelf.committed.set(name, { ...was, recipe: gathered(recipe) });
  const { lines, members } = archiveAt(place, was.session)!;
  const size = archiveSize("slots", Buffer.concat(members).length);
  shelf.committed.set(name, remade(was, gathered(recipe), { lines, size }));
};

/** A server that does what it likes with what it was given, between nights and in them. */
export const hostileNights = Effect.fnUntraced(function* (
  world: World,
  checkRun: (world: World, run: Run) => void,
) {
  const {
    change,
    far,
    home,
    r,
    run: once,
    shelf,
    verify,
    witness,
    wordsOf,
  } = scene(world, checkRun);
  const before: Array<Shelf> = [];
  /** What it has, has to come back as it was, or verify says so. */
  const judged = Effect.fnUntraced(function* (kept: Kept) {
    const intact = witness.intact(kept);
    const code = yield* verify(kept);
    if ((code === 0) !== intact) {
      world.broken(
        `P1 ${kept.name} is ${intact ? "" : "not "}as it was; verify exits with ${code}`,
      );
    }
    return intact;
  });
  const nights = r.int(2, 3);
  // What was sent is found to be another one twice, before all is sent.
  const last = nights + 3;
  for (let n = 1; n <= last; n++) {
    const calmNow = n > nights;
    const hex = r.bytes(32).toString("hex");
    const lies: Lies =
      calmNow || r.next() < 0.4
        ? {}
        : r.pick<Lies>([
            {
              dropAfter: () => r.int(1, 12),
              ready: (reply, call) => (call > 3 ? undefined : reply),
            },
            { dropAfter: (call) => (call < 6 ? r.int(1, 12) : undefined) },
            { ready: (reply) => ({ ...reply, running: hex }) },
            { ready: (reply) => ({ ...reply, offset: reply.offset + 512 * r.int(1, 9) }) },
            { ack: (reply) => ({ ...reply, running: hex }) },
            { stored: (reply) => ({ ...reply, signature: keyOf("another").sign("receipt", hex) }) },
          ]);
    const { kept, run } = yield* once(calm, "correct horse", "far", lies);
    if (run.code === 0 && kept !== undefined) {
      const intact = yield* judged(kept);
      if (n === last && !intact) world.broken(`${run.id}: a night later it is no better`);
    } else if (n === 1 && Object.keys(lies).length === 0) {
      world.broken(`${run.id}: nothing went wrong, but it exited with ${run.code}`);
    } else if (n === last) {
      world.broken(`${run.id}: it still exits with ${run.code}: ${wordsOf(run).slice(-300)}`);
    }
    yield* Effect.sleep(86_400_000);
    if (r.next() < 0.7) change();
    const was = { ...shelf };
    for (const what of ["committed", "incoming", "tickets"] as const) {
      (was as { [what: string]: unknown })[what] = new Map(shelf[what] as Map<string, unknown>);
    }
    if (n < nights && r.next() < 0.8) {
      const what = meddled(r, shelf, before);
      if (what !== undefined) world.note(`the server ${what}`);
    }
    before.push(was);
  }
  // A dom0 that has lost its ledger has nothing but the passphrase, and what that seals.
  const there = [...witness.kept.values()].filter((kept) => witness.intact(kept));
  if (there.length > 0) {
    const kept = r.pick(there);
    forged(r, shelf, kept.name);
    const { lines, members } = archiveAt(onShelf(shelf), kept.session)!;
    const sealed = members[0]!.includes(`qbackup-seal=${rootOf(lines.slice(2))}\n`);
    const code = yield* verify(kept, world.dom0("lost"), "--force");
    if ((code === 0) !== sealed) {
      world.broken(
        `P1 ${kept.name} is ${sealed ? "" : "not "}as it was sealed; verify --force exits with ${code}`,
      );
    }
  }
  for (const key of farKeys.slice(1, 1 + world.plan.slots!.moves.length)) {
    far.key = key;
    home.books.pins.delete("far");
    world.note("the server comes with another key");
    if (r.next() < 0.6) {
      const what = meddled(r, shelf, before);
      if (what !== undefined) world.note(`the server ${what}`);
    }
    // None was signed for that key yet.
    shelf.tickets.clear();
    const newest = parseLedger(Buffer.from(home.books.text)).lines.at(-1)?.entry;
    const { members, root, size } = JSON.parse(newest?.manifest ?? "{}");
    const another = r.bytes(32).toString("hex");
    const others = [...shelf.committed.values()];
    const lies = r.pick<Lies>([
      {},
      // Of what it has not, or not as it was, this alone is not to be found out before it is read.
      { checked: () => ({ type: "checked", size, members, root }) },
      { checked: (reply) => ({ ...reply, root: another }) },
      { checked: (reply) => ({ ...reply, members: members + 1 }) },
      { checked: () => ({ type: "error", code: "damaged", message: "it is not what it was" }) },
      { record: () => ({ type: "manifest", ...r.pick(others) }) },
      { ready: (reply) => ({ ...reply, running: another }) },
      { stored: (reply) => ({ ...reply, signature: keyOf("another").sign("receipt", another) }) },
    ]);
    let found: unknown;
    for (let n = 1; n <= 5; n++) {
      const { checked = (reply: object) => reply, ...others } = n === 1 ? lies : {};
      const { kept, run } = yield* once(calm, "correct horse", "far", {
        ...others,
        checked: (reply, call) => (found = checked(reply, call)),
      });
      if (run.code === 0 && kept !== undefined) {
        const intact = yield* judged(kept);
        if (n === 5 && !intact) world.broken(`${run.id}: a night later it is no better`);
      } else if (n === 5) {
        world.broken(`${run.id}: it still exits with ${run.code}: ${wordsOf(run).slice(-300)}`);
      }
      yield* Effect.sleep(86_400_000);
      if (r.next() < 0.5) change();
    }
    const first = [...witness.kept.values()].find(({ server }) => server === key.publicKey);
    if (first === undefined || witness.isAlone(first)) continue;
    world.note("the store is taken over");
    const told = found as { readonly type?: string; readonly root?: string } | undefined;
    if (told?.type !== "checked" || told.root !== root) {
      world.broken(`${first.name} is built on what its server has not read anew, or not as it was`);
    }
  }
});
