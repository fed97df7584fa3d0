/**
 * A far side that lies: carrier and server in one, written against the description of the wire. What
 * a lie must come to is known beforehand, so that a dom0 which believes it is found out even where the
 * run fails later for another reason.
 */
import { Effect } from "effect";
import { inProcessQrexec, memoryPipe } from "#layers/memory/MemoryPipe";
import { archiveNumber } from "#test/sim/plan";
import type { Dom0, World } from "#test/sim/world";
import { keyOf, type Lies, peer, type Shelf, shelf } from "#test/support/peer";
import type { Rng } from "#test/support/random";
import { seriesOf, type Ticket, ticketText } from "#test/support/reference";

const mebi = 1_048_576;

interface Lie {
  readonly name: string;
  readonly lies: Lies;
  /** The exit code that it must come to. */
  readonly code: number;
  /** What the liar has from before, and what dom0 knows of another server. */
  readonly before?: (kept: Shelf, home: Dom0) => void;
}

/** Changes a field of the receipt, and signs that with the right key: an insider's lie. */
const receiptWith =
  (field: string, value: unknown): NonNullable<Lies["stored"]> =>
  (reply, key) => {
    const receipt = JSON.stringify({ ...(JSON.parse(reply.receipt) as object), [field]: value });
    return { ...reply, receipt, signature: key.sign("receipt", receipt) };
  };

const lieOf = (r: Rng, blocks: number, prefix: string): Lie => {
  const other = keyOf("another server");
  const hex = r.bytes(32).toString("hex");
  const far = mebi * r.int(blocks + 1, blocks + 90);
  const second = (lie: (reply: object) => unknown): Lies => ({
    dropAfter: (call) => (call === 1 ? Math.min(2, blocks) : undefined),
    ready: (reply, call) => (call > 1 ? lie(reply) : reply),
  });
  return r.pick<Lie>([
    { name: "no lie", lies: {}, code: 0 },
    {
      name: "ready ahead",
      lies: { ready: (s) => ({ ...s, offset: mebi * r.int(1, 9) }) },
      code: 6,
    },
    { name: "ready odd", lies: { ready: (s) => ({ ...s, offset: r.int(1, mebi - 1) }) }, code: 6 },
    { name: "ready with other bytes", lies: { ready: (s) => ({ ...s, running: hex }) }, code: 6 },
    { name: "ready ahead, later", lies: second((s) => ({ ...s, offset: far })), code: 6 },
    { name: "ready back", lies: second((s) => ({ ...s, offset: 0 })), code: 6 },
    { name: "other bytes, later", lies: second((s) => ({ ...s, running: hex })), code: 6 },
    {
      name: "another server's ticket",
      lies: {
        about: (s) => ({
          ...s,
          ticket: { text: `put ${hex}`, signature: other.sign("ticket", hex) },
        }),
      },
      code: 6,
    },
    {
      name: "a ticket of dom0's, signed by another",
      lies: {},
      before: ({ tickets }, { books, key }) => {
        const series = seriesOf(books.secrets!.series, prefix, ["work", "mail", "vault"], false);
        const ticket: Ticket = {
          name: "later.backup",
          session: hex.slice(32),
          base: "-",
          series,
          run: r.int(1, 2 ** 40),
          bytes: mebi,
          time: "2026-11-23T03:00:00Z",
          signer: key,
        };
        const signature = other.sign("ticket", ticketText(ticket, keyOf("server").publicKey));
        tickets.set(`${key} ${series}`, { ticket, signature });
      },
      code: 6,
    },
    {
      name: "another server than the pinned one",
      lies: {},
      before: (_, { books }) => books.pins.set("net", other.publicKey),
      code: 6,
    },
    {
      name: "stale without a ticket",
      lies: { ready: () => ({ type: "error", code: "stale", message: "" }) },
      code: 6,
    },
    {
      name: "stored before it was sent",
      lies: {
        ready: () => ({ type: "stored", receipt: "{}", signature: other.sign("receipt", "{}") }),
      },
      code: 6,
    },
    { name: "ack ahead", lies: { ack: (s) => ({ ...s, offset: far }) }, code: 6 },
    { name: "ack odd", lies: { ack: (s) => ({ ...s, offset: s.offset - 1 }) }, code: 6 },
    { name: "ack of other bytes", lies: { ack: (s) => ({ ...s, running: hex }) }, code: 6 },
    {
      name: "ready twice",
      lies: { onBlock: () => ({ type: "ready", offset: 0, running: hex }) },
      code: 6,
    },
    { name: "no JSON", lies: { onBlock: () => `${r.bytes(20).toString("hex")}\n` }, code: 6 },
    {
      name: "signed by another",
      lies: { stored: (s) => ({ ...s, signature: other.sign("receipt", s.receipt) }) },
      code: 6,
    },
    {
      name: "signed as something else",
      lies: { stored: (s, key) => ({ ...s, signature: key.sign("manifest", s.receipt) }) },
      code: 6,
    },
    {
      name: "signed for another text",
      lies: { stored: (s) => ({ ...s, receipt: `${s.receipt} ` }) },
      code: 6,
    },
    { name: "another name", lies: { stored: receiptWith("name", "other.backup") }, code: 6 },
    { name: "another session", lies: { stored: receiptWith("session", hex.slice(32)) }, code: 6 },
    { name: "another size", lies: { stored: receiptWith("size", r.int(1, mebi)) }, code: 6 },
    { name: "another root", lies: { stored: receiptWith("root", hex) }, code: 6 },
    { name: "other members", lies: { stored: receiptWith("members", 1) }, code: 6 },
    { name: "another manifest", lies: { stored: receiptWith("manifest", hex) }, code: 6 },
    { name: "no receipt", lies: { stored: receiptWith("version", 2) }, code: 6 },
  ]);
};

/** One run against a liar. */
export const hostileTale = Effect.fnUntraced(function* (world: World) {
  const number = world.random.pick([2, 3, 4]);
  const archive = archiveNumber(number);
  const { before, code, lies, name } = lieOf(
    world.random,
    Math.floor(archive.length / mebi),
    world.plan.prefix,
  );
  world.note(`the lie: ${name}`);
  const kept: Shelf = shelf();
  const qrexec = inProcessQrexec(
    peer(kept, lies),
    Effect.sync(() => ({ up: memoryPipe(), down: memoryPipe() })),
  );
  const home = world.dom0("home");
  before?.(kept, home);
  const run = world.start(
    home,
    { id: "first", archive, qvm: { kind: "sound" }, doomed: false },
    qrexec,
  );
  const ended = yield* world.end(run);
  if (ended !== code) {
    const text = run.said.lines.map((line) => line.text).join("; ");
    world.broken(`P4 ${name} came to exit ${ended}, not ${code}: ${text.slice(-200)}`);
  }
  if ((home.books.text !== "") !== (code === 0)) world.broken(`P2 ${name}: a wrong ledger`);
  if (ended === 0 && [...kept.committed.values()][0]?.bytes.equals(archive) !== true) {
    world.broken(`P2 ${name}: not what was sent`);
  }
  return run;
});
