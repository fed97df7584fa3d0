/**
 * Whoever stole the ssh key, or is the carrier: any command, any bytes, at any time, and whatever dom0
 * sent before, to be sent again, changed, or held back. Nothing of it may add an archive, change,
 * remove or hide one, or take more room than the quota has; and once it is over, backups go on.
 */
import { Effect, Exit, Fiber } from "effect";
import { memoryPipe } from "#layers/memory/MemoryPipe";
import { parseTicketWords, ticketText } from "#src/proof/texts";
import { isPublicKey } from "#src/wire/names";
import { archiveNumber, frameCount } from "#test/sim/plan";
import type { Nights } from "#test/sim/nights";
import type { Run, World } from "#test/sim/world";
import { rng, type Rng } from "#test/support/random";
import {
  commandOf,
  framed,
  giveUp,
  holds,
  keepAlive,
  linesOf,
  mebi,
  membersOf,
  type Pair,
  pairOf,
  rootOf,
  sha256,
  tableOf,
  textOf,
  type Ticket,
  ticketText as textOfTicket,
} from "#test/support/reference";

/** What a dom0 handed to the carrier in one upload's call. */
export interface Capture {
  readonly by: Run | Nights;
  /** What it has to send. */
  readonly archive: Buffer;
  /** With its key, which nobody else has. */
  readonly sign: (what: "ticket", text: string) => string;
  /** The ssh command; undefined where the carrier did not get so far. */
  command: string | undefined;
  readonly sent: Array<Buffer>;
}

/** What stands behind the members, as it was sent. */
export interface Trailer {
  readonly manifest: string;
  readonly signature: Buffer;
  readonly raw: Buffer;
}

/** What was found when so many pieces had been sent: the checks ask again and again. */
const looked = new WeakMap<Capture, { readonly pieces: number; readonly found?: Trailer }>();
/** The trailer in what was sent, where all of it was. */
export const trailerIn = (capture: Capture): Trailer | undefined => {
  const pieces = capture.sent.length;
  const before = looked.get(capture);
  if (before?.found !== undefined || before?.pieces === pieces) return before.found;
  const found = parsed(capture);
  looked.set(capture, { pieces, ...(found && { found }) });
  return found;
};
const parsed = ({ sent }: Capture): Trailer | undefined => {
  // What ends with an empty frame may be all of it.
  if (
    sent
      .at(-1)
      ?.subarray(-4)
      .every((byte) => byte === 0) !== true
  )
    return undefined;
  const all = Buffer.concat(sent);
  const frames: Array<Buffer> = [];
  let raw: number | undefined;
  for (let at = all.indexOf(10) + 1; at + 4 <= all.length;) {
    const length = all.readUInt32BE(at);
    at += 4;
    if (length > mebi) continue;
    if (at + length > all.length) return undefined;
    if (length === 0 && raw !== undefined) {
      const [manifest, signature] = frames;
      return manifest === undefined || signature === undefined
        ? undefined
        : { manifest: manifest.toString(), signature, raw: all.subarray(raw, at) };
    }
    if (length === 0) raw = at;
    else if (raw !== undefined) frames.push(all.subarray(at, at + length));
    at += length;
  }
  return undefined;
};

const sentPacks = new WeakMap<Capture, { readonly pieces: number; readonly pack: Buffer }>();
/** The members that were sent, as far as they are whole. */
export const packIn = (capture: Pick<Capture, "sent">): Buffer => {
  const of = capture as Capture;
  const pieces = of.sent.length;
  const before = sentPacks.get(of);
  if (before?.pieces === pieces) return before.pack;
  const all = Buffer.concat(of.sent);
  const parts: Array<Buffer> = [];
  for (let at = all.indexOf(10) + 1; at + 4 <= all.length;) {
    const length = all.readUInt32BE(at);
    at += 4;
    if (length > mebi) continue;
    if (length === 0 || at + length > all.length) break;
    parts.push(all.subarray(at, at + length));
    at += length;
  }
  const pack = Buffer.concat(parts);
  sentPacks.set(of, { pieces, pack });
  return pack;
};

const putCommand = (ticket: Ticket, signature: string): string =>
  commandOf({ verb: "put", parameters: { ...ticket, signature } });

/** The ticket of a command, and its signature. */
const ticketIn = (command: string) => {
  const words = command.split(" ").slice(2);
  const ticket = parseTicketWords(words.slice(0, -1));
  return ticket === undefined ? undefined : { ticket, signature: words.at(-1)! };
};

const tables = new WeakMap<Buffer, ReadonlyArray<string>>();
const linesIn = (archive: Buffer): ReadonlyArray<string> => {
  const found = tables.get(archive) ?? linesOf(tableOf(archive));
  tables.set(archive, found);
  return found;
};

interface Framed {
  readonly at: number;
  readonly frame: Buffer;
}
const frames = new WeakMap<Buffer, ReadonlyArray<Framed>>();
const framesIn = (archive: Buffer): ReadonlyArray<Framed> => {
  const found: Array<Framed> = [];
  let at = 0;
  for (const { bytes } of membersOf(archive)) {
    for (let from = 0; from < bytes.length; from += mebi) {
      const block = bytes.subarray(from, from + mebi);
      found.push({ at, frame: framed(block) });
      at += block.length;
    }
  }
  return found;
};
/** Frames of an archive's blocks behind `offset`. */
const framesFrom = (archive: Buffer, offset: number): ReadonlyArray<Buffer> => {
  const all = frames.get(archive) ?? framesIn(archive);
  frames.set(archive, all);
  return all.filter(({ at }) => at >= offset).map(({ frame }) => frame);
};

interface Blow {
  readonly name: string;
  readonly command: string;
  /** What is sent once the server says from which offset; without one, from the beginning. */
  readonly answer: (offset: number) => ReadonlyArray<Uint8Array>;
  /** Milliseconds for which the connection is kept open behind that. */
  readonly hold: number;
}

/** One connection of the attacker's. */
const strike = Effect.fnUntraced(function* (world: World, { answer, command, hold, name }: Blow) {
  const up = memoryPipe(Number.MAX_SAFE_INTEGER);
  const down = memoryPipe(Number.MAX_SAFE_INTEGER);
  const end = Effect.andThen(
    up.lose({ reader: "failed", writer: true }),
    down.lose({ reader: "ended", writer: true }),
  );
  yield* Effect.addFinalizer(() => end);
  const served = world.go(
    Effect.ensuring(
      world.serve(command, up.source, down.sink, () => end),
      down.sink.end,
    ),
  );
  let said = "";
  const into = new Uint8Array(65_536);
  const hear = Effect.gen(function* () {
    const n = yield* down.source.read(into, 1);
    said += Buffer.from(into.subarray(0, n)).toString("latin1");
    return n > 0;
  }).pipe(Effect.orElseSucceed(() => false));
  // The first line, or the end of it.
  while (!/\n.*\n/.test(said) && (yield* hear));
  const offset = Number(/"type":"ready","offset":(\d+)/.exec(said)?.[1] ?? 0);
  const send = Effect.gen(function* () {
    for (const bytes of answer(offset)) {
      // Whose it is does not know that the server may forget it.
      for (const run of bytes === giveUp ? world.runs : []) {
        if (command.split(" ")[3] === run.session) run.forsaken = true;
      }
      yield* up.sink.write(bytes);
    }
    for (let waited = 0; waited < hold; waited += 10_000) {
      yield* Effect.sleep(10_000);
      yield* up.sink.write(keepAlive);
    }
    yield* up.sink.end;
  });
  yield* Effect.ignore(send);
  yield* Effect.timeoutOption(Fiber.await(served), "3 minutes");
  while (yield* hear);
  world.note(`attack: ${name}: ${said.trim().replaceAll("\n", " ").slice(-90)}`);
}, Effect.scoped);

const words = [
  "qbackup/1 list",
  "qbackup/1 about",
  "qbackup/1 list a",
  "qbackup/1 list - zzz",
  "qbackup/1 put",
  "qbackup/1 put ../x 0",
  "qbackup/1 remove a",
  "qbackup/2 list",
  "id",
  "sh -c id",
  ".qbackup/signers",
  "a/../b",
  "",
];

/** A blow, of what there is to strike with. `own` is a key of the attacker's. */
const blowOf = (
  world: World,
  r: Rng,
  captures: ReadonlyArray<Capture>,
  own: Pair,
): Blow | undefined => {
  const names = world.disk
    .files()
    .flatMap((file) =>
      file.endsWith(".manifest.json") && !file.startsWith(".qbackup/") ? [file.slice(0, -14)] : [],
    );
  const sessions = world.disk
    .files()
    .flatMap((file) => (file.startsWith(".qbackup/packs/") ? [file.slice(15)] : []));
  const name = names.length === 0 ? "none.backup" : r.pick(names);
  const session = sessions.length === 0 ? "0".repeat(32) : r.pick(sessions);
  const noise = () => [Buffer.from(r.bytes(r.int(0, 3000)))];
  const hold = r.pick([0, 0, 0, 20_000, 300_000]);
  const junk = archiveNumber(r.pick([1, 2]));
  const seen = captures.filter(({ command }) => command !== undefined);
  const taken = seen.length === 0 ? undefined : r.pick(seen);
  const other = seen.length === 0 ? undefined : r.pick(seen);
  const put = taken === undefined ? undefined : ticketIn(taken.command!);
  const now = new Date(world.universe.now).toISOString().slice(0, 19);

  /** Ticket, archive and trailer of the attacker's, under whichever name. */
  const forged = (what: Partial<Ticket>, signature?: string): Blow => {
    const ticket: Ticket = {
      name: r.pick([name, `forged-${r.int(0, 9)}.backup`]),
      session: Buffer.from(r.bytes(16)).toString("hex"),
      base: r.pick(["-", "-", session]),
      series: put?.ticket.series ?? "0123456789abcdef",
      run: r.pick([1, 7, 2 ** 40]),
      bytes: junk.length,
      time: `${now}Z`,
      signer: own.publicKey,
      ...what,
    };
    const lines = linesIn(junk);
    const manifest = textOf("manifest", {
      ...ticket,
      server: world.serverKey,
      created: ticket.time,
      size: junk.length,
      members: lines.length,
      root: rootOf(lines),
      format: "qvm-backup",
      next: null,
    });
    const signed = own.sign("ticket", textOfTicket(ticket, world.serverKey));
    return {
      name: "forged",
      command: putCommand(ticket, signature ?? signed),
      hold,
      answer: (offset) => [
        ...framesFrom(junk, offset),
        framed(),
        framed(Buffer.from(manifest)),
        framed(Buffer.from(own.sign("manifest", manifest), "base64url")),
        framed(Buffer.from(`new 0 ${lines.length}\n`)),
        framed(),
      ],
    };
  };
  const replay = (what: string, answer: Blow["answer"]): Blow | undefined =>
    taken && { name: what, command: taken.command!, hold, answer };
  const trailer = taken === undefined ? undefined : world.trailers.get(put!.ticket.session);
  const archive = taken?.archive ?? junk;
  const stolen = [...world.trailers.values()];

  return r.pick<() => Blow | undefined>([
    () => ({ name: "words", command: r.pick(words), hold, answer: noise }),
    () => ({
      name: "reading",
      command: `qbackup/1 ${r.pick(["manifest", "recipe", "check"])} ${name}`,
      hold: 0,
      answer: noise,
    }),
    () => ({
      name: "reading",
      command: r.pick([`qbackup/1 table ${session}`, "qbackup/1 read"]),
      hold: 0,
      answer: () => [
        Buffer.from(`${session} ${r.int(0, 9)} ${r.int(0, 3)} ${r.int(1, 9)}\n.\n`),
        ...r.pick([[], noise(), [Buffer.from("\n")]]),
      ],
    }),
    () => ({
      name: "bare",
      command: r.pick([name, "bare.backup"]),
      hold,
      answer: () => [junk.subarray(0, r.pick([junk.length, 100_000]))],
    }),
    () => forged({}),
    () => put && forged({ signer: put.ticket.signer, run: put.ticket.run + r.pick([1, 1000]) }),
    () => put && forged({ ...put.ticket, run: put.ticket.run + 1 }, put.signature),
    () =>
      put &&
      forged(
        {
          ...put.ticket,
          ...r.pick<Partial<Ticket>>([
            { name },
            { session },
            { base: session },
            { bytes: 2 ** 50 },
            { time: `${now}Z` },
            { series: "fedcba9876543210" },
          ]),
        },
        put.signature,
      ),
    // dom0 signed it, for another server.
    () => {
      const key = own.publicKey;
      if (taken === undefined || put === undefined || !isPublicKey(key)) return undefined;
      const ticket = { ...put.ticket, run: put.ticket.run + 1000 };
      return forged(ticket, taken.sign("ticket", ticketText(ticket, key)));
    },
    () => replay("a ticket again, and nothing", () => []),
    () => replay("a ticket again, given up", () => [giveUp]),
    () => replay("a ticket again, and noise", noise),
    () =>
      replay("a part of a stream again", (offset) =>
        framesFrom(archive, offset).slice(0, r.int(0, frameCount(archive.length))),
      ),
    () =>
      replay("other members in a stream", () => [
        ...framesFrom(junk, 0).slice(r.int(0, 2)),
        ...(r.next() < 0.5 ? [framed(), stolen.length > 0 ? r.pick(stolen).raw : giveUp] : []),
      ]),
    () =>
      trailer &&
      replay("all of it again", (offset) => [
        ...framesFrom(archive, offset),
        framed(),
        trailer.raw,
      ]),
    () =>
      trailer &&
      replay("all of it again, as another archive", (offset) => [
        ...framesFrom(archive, offset),
        framed(),
        framed(Buffer.from(trailer.manifest)),
        framed(trailer.signature),
        framed(
          Buffer.from(
            r.pick([
              "new 0 3\n",
              "base 0 1\nnew 1 2\n",
              "base 0 70000\n",
              "base 0 10\n",
              "base 0 4\nbase 8 2\n",
              "new 0 4\nnew 3 1\nnew 4 2\n",
              "new 0 1\n",
            ]),
          ),
        ),
        framed(),
      ]),
    () => {
      const older = other && world.trailers.get(ticketIn(other.command!)!.ticket.session);
      // The newest ticket is the one that is most likely good for something yet.
      const newest = seen.at(-1)?.command;
      return older === undefined || newest === undefined
        ? undefined
        : {
            name: "another archive and its trailer",
            command: newest,
            hold,
            answer: () => [...framesFrom(other!.archive, 0), framed(), older.raw],
          };
    },
  ])();
};

/** Strikes again and again, until it is interrupted. `with` says of which captures use is made. */
export const attack = (world: World, seed: number, use: (capture: Capture) => boolean) =>
  Effect.gen(function* () {
    const r = rng(seed);
    for (let i = 0; i < 8; i++) r.next();
    const own = pairOf(sha256("the attacker"));
    // As many as there are doors, at most: one that is held open is not the last one.
    const busy: Array<Fiber.Fiber<void>> = [];
    for (let n = 0; n < 40; n++) {
      yield* Effect.sleep(r.pick([0, 1, 30, 800, 5000, 30_000]));
      const blow = blowOf(world, r, world.captures.filter(use), own);
      if (blow === undefined) continue;
      const one = yield* Effect.forkScoped(strike(world, blow));
      busy.push(one);
      if (busy.length > 3) yield* Fiber.await(busy.shift()!);
      world.checkRecords(`after ${blow.name}`);
    }
    return yield* Effect.never;
  }).pipe(
    Effect.scoped,
    Effect.onExit((exit) =>
      Effect.sync(() => {
        if (!Exit.hasInterrupts(exit)) world.broken(`the attack broke off: ${String(exit)}`);
      }),
    ),
  );

/** Captures whose ticket is below the highest of its series that the server has admitted. */
export const outdated = (world: World): ((capture: Capture) => boolean) => {
  const highest = world.highestRuns;
  return ({ command }) => {
    const found = command === undefined ? undefined : ticketIn(command);
    if (found === undefined) return false;
    const { run, series, signer } = found.ticket;
    return run < (highest.get(`${signer} ${series}`) ?? 0);
  };
};

/** A ticket as it was sent says what the document says, and is signed as a ticket. */
export const isTicket = (command: string, server: string): boolean => {
  const found = ticketIn(command);
  if (found === undefined) return false;
  const { signature, ticket } = found;
  return holds(ticket.signer, "ticket", textOfTicket(ticket, server), signature);
};
