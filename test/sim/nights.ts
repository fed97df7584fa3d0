/**
 * A dom0 that keeps slots: of each of its archives most lies on the server already, in the packs of
 * those before. It is a client of its own, and honest: written from docs/protocol.md. The links that it
 * has break, it is cut off and comes again, and the server's machine dies as it does for everybody.
 */
import { Effect, Fiber, Option } from "effect";
import { memoryPipe } from "#layers/memory/MemoryPipe";
import type { Capture } from "#test/sim/attack";
import type { World } from "#test/sim/world";
import { scryptOf, slotOf } from "#test/support/archive";
import { rng } from "#test/support/random";
import {
  commandOf,
  framed,
  giveUp,
  holds,
  keepAlive,
  leavesOf,
  linesOf,
  mebi,
  membersOf,
  rootOf,
  running,
  sha256,
  tableOf,
  textIn,
  textOf,
  type Ticket,
  ticketText,
  topOf,
} from "#test/support/reference";
import { keyOf } from "#test/support/peer";

/** What signs these archives. */
export const nightsKey = keyOf("nights");
/** Of the one volume: the first is of two blocks, the others are of less than one. */
const cells = 5;
/** Bytes that all nights of a story take on the server at most. */
export const nightsRoom = 6 * mebi;

/** What one night brings. */
interface Pack {
  readonly bytes: Buffer;
  readonly recipe: string;
  /** Of the archive's members, in its order. */
  readonly lines: ReadonlyArray<string>;
  /** The running hash at each offset at which a frame may end. */
  readonly ends: ReadonlyMap<number, string>;
  readonly frames: ReadonlyArray<{ readonly at: number; readonly bytes: Buffer }>;
}

/** Cuts a pack into frames, and hashes it. */
const cut = (bytes: Buffer): Pick<Pack, "ends" | "frames"> => {
  const ends = new Map([[0, running([])]]);
  const frames: Array<Pack["frames"][number]> = [];
  const whole: Array<Buffer> = [];
  let at = 0;
  for (const member of membersOf(bytes)) {
    const leaves = leavesOf(member.bytes);
    for (const [i] of leaves.entries()) {
      const block = member.bytes.subarray(i * mebi, (i + 1) * mebi);
      frames.push({ at, bytes: framed(block) });
      at += block.length;
      if (i + 1 < leaves.length) ends.set(at, running(whole, leaves.slice(0, i + 1)));
    }
    whole.push(topOf(leaves));
    ends.set(at, running(whole));
  }
  return { ends, frames };
};

const slot = (night: number, path: string, bytes: number): Buffer =>
  slotOf(path, scryptOf(Buffer.alloc(bytes, night), sha256(`${night} ${path}`)));
const heads = (night: number) => [
  slot(night, `vm1/private.img.000.enc`, 900),
  slot(night, "qubes.xml.000.enc", 500),
  slot(night, "backup-header.hmac", 100),
  slotOf(
    "backup-header",
    Buffer.from(
      `version=4\nencrypted=True\ncompressed=True\ncompression-filter=gzip\nhmac-algorithm=scrypt\nbackup-id=20261123T030424-14807\nqbackup-seal=${"0".repeat(64)}\nqbackup-run=${night}\n`,
    ),
  ),
];
const cell = (night: number, n: number) =>
  slot(night, `vm1/private.img.${String(n).padStart(3, "0")}.enc`, n === 1 ? mebi + 9000 : 20_000);

/** A night on which all is new, or (`upon` the lines of another archive) but one cell is as it was. */
const packOf = (night: number, upon?: ReadonlyArray<string>): Pack => {
  const changed = 1 + (night % cells);
  const fresh = upon === undefined ? [1, 2, 3, 4, 5] : [changed];
  const bytes = Buffer.concat([...fresh.map((n) => cell(night, n)), ...heads(night)]);
  const table = linesOf(tableOf(bytes));
  const [map, xml, hmac, header] = [0, 1, 2, 3].map((i) => fresh.length + i) as [
    number,
    number,
    number,
    number,
  ];
  const first = [header, hmac, xml, map];
  const wish = (of: string, at: number, count: number) =>
    count > 0 ? `${of} ${at} ${count}\n` : "";
  const lines = first.map((i) => table[i]!);
  return {
    bytes,
    recipe:
      first.map((i) => wish("new", i, 1)).join("") +
      (upon === undefined
        ? wish("new", 0, cells)
        : wish("base", 4, changed - 1) +
          wish("new", 0, 1) +
          wish("base", 4 + changed, cells - changed)),
    lines:
      upon === undefined
        ? [...lines, ...table.slice(0, cells)]
        : [...lines, ...upon.slice(4, 3 + changed), table[0]!, ...upon.slice(4 + changed)],
    ...cut(bytes),
  };
};
const made = new Map<string, Pack>();
/** As `packOf`; made once for all stories. */
const packFor = (night: number, upon?: ReadonlyArray<string>): Pack => {
  const of = `${night} ${upon?.join("")}`;
  const pack = made.get(of) ?? packOf(night, upon);
  made.set(of, pack);
  return pack;
};

/** Stands for the request, which the carrier of a real one reads. */
const newline = Buffer.from("\n");

/** An archive that the server has signed for. */
interface Kept {
  readonly session: string;
  readonly name: string;
  readonly lines: ReadonlyArray<string>;
}

/** All that this dom0 knows, and did, in one story. */
export class Nights {
  /** Manifests that were sent, or might have been. */
  readonly manifests = new Set<string>();
  /** The pack of each session. */
  readonly packs = new Map<string, Buffer>();
  readonly kept: Array<Kept> = [];
  readonly #world: World;
  readonly #random;
  #night = 0;
  #run = 0;

  constructor(world: World, seed: number) {
    this.#world = world;
    this.#random = rng(seed);
  }

  /** Tries to have one archive more stored, over as many connections as it is patient for. */
  readonly next = Effect.fnUntraced({ self: this }, function* (this: Nights) {
    const world = this.#world;
    const r = this.#random;
    this.#night += 1;
    const last = this.kept.at(-1);
    const pack = packFor(this.#night, last?.lines);
    const session = Buffer.from(r.bytes(16)).toString("hex");
    this.packs.set(session, pack.bytes);
    const ticket = (): Ticket => ({
      name: `night-${this.#night}.backup`,
      session,
      base: last?.session ?? "-",
      series: "5107500000000000",
      run: (this.#run += 1),
      bytes: pack.bytes.length,
      time: `${new Date(world.universe.now).toISOString().slice(0, 19)}Z`,
      signer: nightsKey.publicKey,
    });
    let mine = ticket();
    let acked = 0;
    for (let tries = 0; tries < 8; tries++) {
      if (tries > 0) yield* Effect.sleep(r.pick([100, 3000, 70_000]));
      // A later run may go on with it, from its last whole member.
      if (tries > 0 && r.next() < 0.3) {
        mine = ticket();
        acked = 0;
      }
      if (world.away) continue;
      const outcome = yield* this.#once(mine, pack, acked);
      acked = outcome.acked;
      if (outcome.stored) {
        this.kept.push({ session, name: mine.name, lines: pack.lines });
        return true;
      }
      if (outcome.over) return false;
    }
    return false;
  });

  /** One connection. */
  readonly #once = Effect.fnUntraced(
    { self: this },
    function* (this: Nights, ticket: Ticket, pack: Pack, before: number) {
      const world = this.#world;
      const r = this.#random;
      const { attack } = world.plan;
      const lines = pack.lines;
      const bytes = lines.reduce((sum, line) => sum + Number(line.split(" ")[2]), 0);
      const manifest = textOf("manifest", {
        ...ticket,
        server: world.serverKey,
        created: ticket.time,
        size: Math.ceil((bytes + 1024) / 10_240) * 10_240,
        members: lines.length,
        root: rootOf(lines),
        format: "slots",
        next: null,
      });
      this.manifests.add(manifest);
      const signature = nightsKey.sign("ticket", ticketText(ticket, world.serverKey));
      const command = commandOf({ verb: "put", parameters: { ...ticket, signature } });
      const { sign } = nightsKey;
      const capture: Capture = { by: this, archive: pack.bytes, sign, command, sent: [newline] };
      if (attack !== undefined) world.captures.push(capture);
      /** Whoever is the carrier has the ticket too, and may do with the upload what it likes. */
      const alone = attack?.by !== "carrier";

      const up = memoryPipe();
      const down = memoryPipe(Number.MAX_SAFE_INTEGER);
      const lose = (told: boolean) =>
        Effect.andThen(
          up.lose({ ...(told ? { reader: "failed" as const } : {}), writer: true }),
          down.lose({ reader: "ended", writer: told }),
        );
      yield* Effect.addFinalizer(() => lose(r.next() < 0.7));
      const served = world.go(
        Effect.ensuring(
          world.serve(command, up.source, down.sink, () => lose(true)),
          down.sink.end,
        ),
      );
      let said = "";
      let acked = before;
      const into = new Uint8Array(65_536);
      /** The next reply that says something; undefined at the end. */
      const next = Effect.gen(function* () {
        for (;;) {
          const end = said.indexOf("\n");
          if (end >= 0) {
            const line = said.slice(0, end);
            said = said.slice(end + 1);
            const reply = line === "" ? undefined : JSON.parse(line);
            if (reply === undefined || reply.type === "alive") continue;
            return reply as Record<string, string | number>;
          }
          const n = yield* Effect.orElseSucceed(down.source.read(into, 1), () => 0);
          if (n === 0) return undefined;
          said += Buffer.from(into.subarray(0, n)).toString("latin1");
        }
      });
      const send = (part: Buffer) =>
        Effect.suspend(() => {
          if (attack !== undefined) capture.sent.push(part);
          return up.sink.write(part);
        });
      const cutAt = world.calm || r.next() < 0.6 ? Infinity : r.int(0, pack.frames.length + 1);
      const result = (stored: boolean, over: boolean) => ({ stored, over, acked });

      const patience = Effect.timeoutOption("4 minutes");
      const heard = yield* patience(next);
      if (Option.isNone(heard)) return result(false, false);
      const first = heard.value;
      const finish = (reply: Record<string, string | number> | undefined) => {
        if (reply?.["type"] === "stored") {
          const { receipt = "", signature: by = "" } = reply as Record<string, string>;
          const found = textIn("receipt", receipt);
          const right =
            found !== undefined &&
            found["name"] === ticket.name &&
            found["session"] === ticket.session &&
            found["members"] === lines.length &&
            found["root"] === rootOf(lines) &&
            [...this.manifests].some((one) => sha256(one).toString("hex") === found["manifest"]);
          if (!right || !holds(world.serverKey, "receipt", receipt, by)) {
            world.broken(`P2 ${ticket.name}: a wrong receipt: ${receipt}`);
          }
          world.note(`${ticket.name} is stored`);
          return result(true, true);
        }
        if (reply === undefined) return result(false, false);
        world.note(`${ticket.name}: ${String(reply["code"] ?? reply["type"])}`);
        const passing = ["busy", "internal"].includes(String(reply["code"]));
        return result(false, !passing);
      };
      if (first?.["type"] !== "ready") return finish(first);
      const offset = Number(first["offset"]);
      if (pack.ends.get(offset) !== first["running"]) {
        if (alone) world.broken(`${ticket.name}: ready at ${offset} with other bytes`);
        yield* Effect.ignore(send(giveUp));
        return result(false, false);
      }
      const relied = alone && !world.diskFailed && !world.clockStepped;
      if (offset < before && relied) {
        world.broken(`${ticket.name}: ready ${offset} after an acknowledgement of ${before}`);
      }
      const sending = Effect.gen(function* () {
        for (const [i, frame] of pack.frames.entries()) {
          if (i >= cutAt) return yield* Effect.sleep(r.pick([0, 4000]));
          if (frame.at < offset) continue;
          yield* send(frame.bytes);
          yield* Effect.sleep(r.pick([0, 1, 700]));
        }
        const trailer = [
          framed(),
          framed(Buffer.from(manifest)),
          framed(Buffer.from(nightsKey.sign("manifest", manifest), "base64url")),
          framed(Buffer.from(pack.recipe)),
          framed(),
        ];
        const heldBack = attack?.holdsBack !== undefined && !world.calm;
        for (const part of trailer) {
          if (heldBack) capture.sent.push(part);
          else yield* send(part);
        }
        if (pack.frames.length < cutAt) {
          for (let i = 0; i < 18; i++) {
            yield* Effect.sleep(10_000);
            yield* up.sink.write(keepAlive);
          }
        }
      }).pipe(Effect.ignore);
      const listening = Effect.gen(function* () {
        for (;;) {
          const reply = yield* next;
          if (reply?.["type"] !== "ack") return reply;
          const at = Number(reply["offset"]);
          if (pack.ends.get(at) !== reply["running"]) {
            world.broken(`${ticket.name}: an acknowledgement of other bytes at ${at}`);
          }
          acked = Math.max(acked, at);
        }
      });
      const listener = yield* Effect.forkScoped(listening);
      yield* Effect.raceFirst(sending, Fiber.await(listener));
      // Cut off: what the server says now is not heard any more.
      if (pack.frames.length >= cutAt) return result(false, false);
      const last = yield* patience(Fiber.join(listener));
      if (Option.isNone(last)) return result(false, false);
      const outcome = finish(last.value);
      if (outcome.stored) yield* patience(Fiber.await(served));
      return outcome;
    },
    Effect.scoped,
  );
}
