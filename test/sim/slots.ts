/**
 * Nights in slots: each archive is made of members that it brings and of those that are there already. Of
 * every one that has a receipt a reader of its own, written from the documents, must get the images of its
 * night, as long as the server keeps it; and what dom0 keeps to make the next one from must be true.
 */
import { Effect } from "effect";
import { cheapKeys } from "#layers/memory/MemorySealing";
import { parseLedger } from "#layers/files/FileLedger";
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
import type { NightPlan } from "#test/sim/plan";
import type { Dom0, Run, Tapped, World } from "#test/sim/world";
import { type Rng, rng } from "#test/support/random";
import {
  linesOf,
  memberIn,
  membersOf,
  rootOf,
  sha256,
  spread,
  tableOf,
} from "#test/support/reference";
import { macOf, notesIn, openSlots, type Opened, smallOf, volumeOf } from "#test/support/slots";

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
const packs = new Map<string, Pack>();
/** The members of a pack, and its table; looked at often, and worked out once. */
const packOf = (bytes: Buffer): Pack => {
  const digest = sha256(bytes).toString("hex");
  const found = packs.get(digest) ?? {
    lines: linesOf(tableOf(bytes)),
    members: membersOf(bytes).map((member) => Buffer.from(member.bytes)),
  };
  if (packs.size > 200) packs.clear();
  packs.set(digest, found);
  return found;
};

/** The members of an archive as they lie on the server; undefined where one is not there. */
const archiveAt = (world: World, session: string): Pack | undefined => {
  const look = (path: string): Buffer | undefined => {
    const node = world.disk.find(path);
    return node?.kind === "file" ? node.now.view() : undefined;
  };
  const recipe = look(`.qbackup/recipes/${session}`);
  if (recipe === undefined) return undefined;
  const found = new Map<string, Pack | undefined>();
  const lines: Array<string> = [];
  const members: Array<Buffer> = [];
  for (const [of, index] of spread(recipe.toString("latin1"))) {
    if (!found.has(of)) {
      const bytes = look(`.qbackup/packs/${of}`);
      found.set(of, bytes && packOf(bytes));
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
  readonly #opened = new Map<string, Opened>();

  constructor(world: World) {
    this.#world = world;
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
      const wrong = this.#wrongWith(kept);
      if (wrong !== undefined) this.#world.broken(`P1 ${when}: ${kept.name}: ${wrong}`);
    }
  }
  #wrongWith({ name, number, root, run, session }: Kept): string | undefined {
    const world = this.#world;
    if (world.disk.find(`${name}.manifest.json`) === undefined)
      return "it has a receipt, and is gone";
    const found = archiveAt(world, session);
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

  /** What a dom0 knows of its newest archive, with which a run has just ended well. */
  checkNotes({ dom0: { books }, session }: Run): void {
    const kept = this.kept.get(session ?? "");
    if (kept === undefined) return;
    const { series, server } = kept;
    const name = `chain.${sha256(`${server} ${series}`).toString("hex").slice(0, 16)}`;
    const wrong = (what: string) => this.#world.broken(`P2 the notes of ${kept.name}: ${what}`);
    const file = books.chains.get(name);
    if (file === undefined) return wrong("there are none");
    for (const rest of ["next", "journal"]) {
      if (books.chains.has(`${name}.${rest}`)) wrong(`a ${rest} is left`);
    }
    const opened = this.#opened.get(kept.session);
    const found = archiveAt(this.#world, kept.session);
    if (opened === undefined || found === undefined) return;
    const what = wrongNotes(file, found.lines, opened);
    if (what !== undefined) wrong(what);
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
  );
};

const calm: NightPlan = { qvm: "sound", rest: 60_000 };

const tapped = (r: Rng, images: Images): Tapped => {
  const streams = streamsOf(r, images);
  return {
    images,
    files: streams.map(([, bytes]) => bytes),
    listing: listingOf(streams.map(([name]) => name)),
    passphrase: "correct horse",
  };
};

export const slotsTale = Effect.fnUntraced(function* (
  world: World,
  checkRun: (world: World, run: Run) => void,
) {
  const r = rng(world.plan.seed ^ 0x5107);
  const home = world.dom0("home");
  const witness = new Witness(world);
  world.afterPowerLoss = () => witness.check("after a power loss");
  let images = firstImages(r);
  let number = 0;

  const night = Effect.fnUntraced(function* ({ dies }: NightPlan) {
    number += 1;
    settle(home, images);
    const run = world.start(home, {
      id: `night ${number}`,
      archive: Buffer.alloc(0),
      qvm: { kind: "sound" },
      doomed: dies !== undefined,
      tapped: tapped(r, images),
      ...(dies === undefined ? {} : { dies }),
    });
    const code = yield* world.end(run);
    witness.see(home);
    if (code !== undefined) checkRun(world, run);
    witness.check(`after night ${number}`);
    if (code === 0) witness.checkNotes(run);
    return run;
  });

  world.calm = true;
  for (let n = 0; n < 2; n++) {
    const run = yield* night(calm);
    if (run.code !== 0) {
      const text = run.said.lines.map((line) => line.text).join("\n");
      world.broken(`${run.id}: all is well, but it exited with ${run.code}: ${text.slice(-300)}`);
    }
    yield* Effect.sleep(86_400_000);
    images = nextImages(r, images);
  }
  yield* world.powerLoss({ power: world.plan.last, told: true, away: 10 });
  witness.check("at the end");
});
