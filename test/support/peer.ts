/**
 * The far side of the wire, as a peer that a test scripts: honest unless told to lie, and strict with
 * what it is sent. It is written against docs/protocol.md. It shares nothing with the server.
 */
import * as crypto from "node:crypto";
import { Clock, Effect } from "effect";
import type { BytesError } from "#services/Bytes";
import type { Invocation } from "#services/Invocation";
import type { SigningKey } from "#src/proof/keys";
import {
  fingerprintOf,
  framed,
  giveUp,
  holds,
  leavesOf,
  linesOf,
  mebi,
  memberAt,
  membersOf,
  pairOf,
  resolved,
  rootOf,
  running,
  sha256,
  siblingsOf,
  spread,
  tableLine,
  textOf,
  type Ticket,
  ticketText,
  topOf,
} from "#test/support/reference";

export { framed, treeHash } from "#test/support/reference";

export const keyOf = (seed: string): SigningKey =>
  pairOf(crypto.createHash("sha256").update(seed).digest()) as SigningKey;

/** An archive, and the pack that came with it. */
export interface Kept {
  readonly session: string;
  /** The members of the pack, one behind the other; for `qvm-backup`, the archive. */
  readonly bytes: Buffer;
  /** What the server noted when the pack came: its table, and the digests of each member's blocks. */
  readonly table: string;
  readonly leaves: ReadonlyArray<ReadonlyArray<Buffer>>;
  /** As it is stored. */
  readonly recipe: string;
  readonly manifest: string;
  /** dom0's. */
  readonly signature: string;
  readonly receipt: string;
  readonly receiptSignature: string;
  readonly damaged?: boolean;
}

/** An upload that is not committed. */
interface Incoming {
  /** `SIGNER SERIES`: nobody else goes on with it. */
  readonly owner: string;
  /** The members that are whole, and the blocks of the one under way, each with its digest. */
  readonly members: Array<Buffer>;
  readonly leaves: Array<ReadonlyArray<Buffer>>;
  blocks: Array<Buffer>;
  digests: Array<Buffer>;
}

/** What the peer keeps from call to call. */
export interface Shelf {
  readonly committed: Map<string, Kept>;
  /** Of archives that were pruned, what others may have of their packs. */
  readonly left: Array<Kept>;
  readonly incoming: Map<string, Incoming>;
  /** The highest ticket of `SIGNER SERIES`. */
  readonly tickets: Map<string, { readonly ticket: Ticket; readonly signature: string }>;
  /** Keys whose tickets are taken; the first one that comes is the only one from then on. */
  readonly signers: Array<string>;
  /** Uploads that were removed, by session. */
  readonly gone: Map<string, { readonly since: string; readonly why: string }>;
  /** Tombstones, by name. */
  readonly pruned: Map<string, { readonly tombstone: string; readonly signature: string }>;
  /** Bytes that all uploads together may have. */
  room: number;
  /** Of that, what others keep. */
  reserved: number;
  calls: number;
  /** Calls of each verb. */
  readonly asked: Map<string, number>;
  gaveUp: number;
  trailer: { manifest: string; signature: Buffer; recipe: string } | undefined;
}
export const shelf = (): Shelf => ({
  committed: new Map(),
  left: [],
  incoming: new Map(),
  tickets: new Map(),
  signers: [],
  gone: new Map(),
  pruned: new Map(),
  room: 2 ** 40,
  reserved: 0,
  calls: 0,
  asked: new Map(),
  gaveUp: 0,
  trailer: undefined,
});

type Reply = { readonly type: string } & { readonly [key: string]: unknown };
type Change<R = Reply> = (reply: R & Reply, call: number) => unknown;

/** Which block of which member a frame answers for, and how many frames this call had before it. */
export interface Asked {
  readonly session: string;
  readonly member: number;
  readonly block: number;
  readonly index: number;
}

/**
 * Where the peer may lie; each gets what would be said and gives what is said instead: an object, a
 * text as it is, undefined for nothing. `call` counts the calls of that verb, from 1.
 */
export interface Lies {
  readonly key?: SigningKey;
  /** Printed before anything else. */
  readonly before?: string;
  readonly about?: Change<{ server: string; ticket: { text: string; signature: string } | null }>;
  /** The first reply to `put`, errors and `stored` included. */
  readonly ready?: Change<{ offset: number; running: string }>;
  readonly ack?: Change<{ offset: number; running: string }>;
  readonly stored?: (
    reply: { type: string; receipt: string; signature: string },
    key: SigningKey,
  ) => unknown;
  /** Called for each block that came; what it gives is said at once. */
  readonly onBlock?: (count: number, call: number) => unknown;
  /** Ends the call after so many blocks of this call, without a word. */
  readonly dropAfter?: (call: number) => number | undefined;
  /** Says nothing more from then on. */
  readonly mute?: "at-once" | "after-ready" | "after-trailer";

  /** The lines of `list`, the end included. */
  readonly listed?: (lines: ReadonlyArray<Reply>, call: number) => ReadonlyArray<unknown>;
  /** Archives and tombstones on a page of `list`. */
  readonly page?: number;
  /** What `manifest` answers. */
  readonly record?: Change<
    Record<"manifest" | "signature" | "receipt" | "receiptSignature", string>
  >;
  /** The text of `recipe`, and of `table`. */
  readonly recipe?: (text: string, name: string) => string;
  readonly table?: (text: string, session: string) => string;
  /** Bytes of a frame of such a text. */
  readonly piece?: number;
  /** The first line of `recipe`, `table` and `read`. */
  readonly opened?: Change;
  /** A frame of such a text, with its length; "cut" ends the call, "mute" says nothing more. */
  readonly text?: (frame: Buffer, index: number, verb: string) => Buffer | "cut" | "mute";
  /** A frame of `read`, likewise. */
  readonly frame?: (frame: Buffer, asked: Asked, call: number) => Buffer | "cut" | "mute";
  /** Does not look at a block before it sends it. */
  readonly blind?: true;
  readonly checked?: Change;
}

const now = Effect.map(
  Clock.currentTimeMillis,
  (at) => `${new Date(at).toISOString().slice(0, 19)}Z`,
);
const day = 86_400_000;

const fail = (code: string, message: string, more: object = {}) => ({
  type: "error",
  code,
  message,
  ...more,
});

/** Makes what the peer keeps of an archive that is all of its own pack. */
export const kept = (
  bytes: Buffer,
  manifest: string,
  {
    at,
    key,
    recipe,
    signer,
  }: {
    readonly at: string;
    readonly key: SigningKey;
    readonly signer: Pick<SigningKey, "sign">;
    readonly recipe?: string;
  },
): Kept => keep(bytes, manifest, signer.sign("manifest", manifest), key, at, recipe);

/**
 * What a server makes of an archive that it has: another one, of these members, that it vouches for with a
 * key of its own in dom0's place. `lines` are those of a table, `size` is that of a plain file, in bytes.
 */
export const remade = (
  was: Kept,
  recipe: string,
  { lines, size }: { readonly lines: ReadonlyArray<string>; readonly size: number },
): Kept => {
  const signer = keyOf("who comes");
  const manifest = JSON.stringify({
    ...JSON.parse(was.manifest),
    signer: signer.publicKey,
    members: lines.length,
    root: rootOf(lines),
    size,
  });
  const at = JSON.parse(was.receipt).stored;
  return kept(was.bytes, manifest, { at, key: keyOf("server"), signer, recipe });
};

const keep = (
  bytes: Buffer,
  manifest: string,
  signature: string,
  key: SigningKey,
  at: string,
  recipe?: string,
): Kept => {
  const members = membersOf(bytes);
  const leaves = members.map((member) => leavesOf(member.bytes));
  const { members: count, name, root, session, size } = JSON.parse(manifest);
  const receipt = textOf("receipt", {
    name,
    session,
    members: count,
    root,
    size,
    manifest: sha256(manifest).toString("hex"),
    stored: at,
  });
  return {
    session,
    bytes,
    table: members.map((m, i) => tableLine(m, topOf(leaves[i]!).toString("hex"))).join(""),
    leaves,
    recipe: recipe ?? `${session} 0 ${members.length}\n`,
    manifest,
    signature,
    receipt,
    receiptSignature: key.sign("receipt", receipt),
  };
};

/** The lines of an archive's members, out of the tables of its packs. */
const linesOn = (shelf: Shelf, recipe: string, own?: Kept): ReadonlyArray<string> => {
  const tables = new Map(
    [...packsOf(shelf), ...(own === undefined ? [] : [own])].map(({ session, table }) => [
      session,
      linesOf(table),
    ]),
  );
  return spread(recipe).map(([session, index]) => tables.get(session)?.[index] ?? "");
};

/** Where each member of a table begins, and the last one ends; of thousands, for thousands of blocks. */
const startsOf = (table: string): ReadonlyArray<number> => {
  const known = allStarts.get(table);
  if (known !== undefined) return known;
  const starts = [0];
  for (const line of linesOf(table)) starts.push(starts.at(-1)! + Number(line.split(" ")[2]));
  allStarts.set(table, starts);
  return starts;
};
const allStarts = new Map<string, ReadonlyArray<number>>();

/** One call, with all that a verb needs of it. */
interface Talk {
  readonly shelf: Shelf;
  readonly lies: Lies;
  readonly key: SigningKey;
  /** Which call of its verb it is. */
  readonly call: number;
  readonly request: { readonly [key: string]: unknown };
  /** Exactly so many bytes; undefined at the end. */
  readonly take: (bytes: number) => Effect.Effect<Buffer | undefined, BytesError>;
  readonly send: (bytes: Uint8Array) => Effect.Effect<void, BytesError>;
  readonly say: (reply: unknown) => Effect.Effect<void, BytesError>;
}
type Serve = (talk: Talk) => Effect.Effect<number, BytesError>;

const changed = <R extends Reply>(
  change: ((reply: R & Reply, call: number) => unknown) | undefined,
  reply: R,
  call: number,
) => (change === undefined ? reply : change(reply, call));

/** Bytes that an upload may have, of which its own take nothing away. */
const roomOf = (shelf: Shelf, session?: string): number =>
  [...shelf.incoming].reduce(
    (left, [of, upload]) => (of === session ? left : left - offsetOf(upload)),
    shelf.room,
  );

const about: Serve = Effect.fnUntraced(function* ({ call, key, lies, request, say, shelf }) {
  const of = request["of"] as { signer: string; series: string } | undefined;
  const top = of === undefined ? undefined : shelf.tickets.get(`${of.signer} ${of.series}`);
  const ticket =
    top === undefined
      ? null
      : { text: ticketText(top.ticket, key.publicKey), signature: top.signature };
  const reply = {
    type: "about",
    version: "0.0.0",
    server: key.publicKey,
    signers: shelf.signers.length === 0 ? null : shelf.signers.map(fingerprintOf),
    quota: null,
    room: Math.max(0, roomOf(shelf)),
    reserved: shelf.reserved,
    clock: yield* now,
    confined: null,
    ticket,
  };
  yield* say(changed(lies.about, reply as never, call));
  return 0;
});

const list: Serve = Effect.fnUntraced(function* ({ call, lies, request, say, shelf }) {
  const prefix = (request["prefix"] as string | undefined) ?? "";
  const after = (request["after"] as string | undefined) ?? "";
  const page = lies.page ?? 10_000;
  const found: Array<Reply & { name: string }> = [];
  for (const [name, { damaged = false, manifest, receipt, session }] of shelf.committed) {
    // The server tells what its own receipt says, under the name that the record lies at.
    const { members, root, size, stored } = JSON.parse(receipt);
    const { run, series, signer } = JSON.parse(manifest);
    const of = { signer, series, run, size, members, root, stored };
    found.push({ type: "archive", name, session, ...of, damaged });
  }
  for (const [name, stone] of shelf.pruned) found.push({ type: "pruned", name, ...stone });
  const all = found
    .filter(({ name }) => name.startsWith(prefix) && name > after)
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const lines = [...all.slice(0, page), { type: "end", more: all.length > page }];
  for (const reply of lies.listed?.(lines, call) ?? lines) yield* say(reply);
  return 0;
});

/** What a verb about one archive begins with: that archive, or the end of the call. */
const named = Effect.fnUntraced(function* ({ request, say, shelf }: Talk) {
  const name = request["name"] as string;
  const found = shelf.committed.get(name);
  if (found !== undefined) return found;
  yield* say(
    shelf.pruned.has(name)
      ? fail("pruned", "it was removed by a rule")
      : fail("not-found", "there is none"),
  );
  return undefined;
});

const manifest: Serve = Effect.fnUntraced(function* (talk) {
  const found = yield* named(talk);
  if (found === undefined) return 5;
  const { manifest, receipt, receiptSignature, signature } = found;
  const reply = { type: "manifest", manifest, signature, receipt, receiptSignature };
  yield* talk.say(changed(talk.lies.record, reply, talk.call));
  return 0;
});

/** Text in frames. */
const textual = Effect.fnUntraced(function* (talk: Talk, verb: string, text: string) {
  const { call, lies, say, send } = talk;
  yield* say(changed(lies.opened, { type: "ready" }, call));
  const bytes = Buffer.from(text, "latin1");
  const piece = lies.piece ?? 65_536;
  for (let at = 0, index = 0; at < bytes.length; at += piece, index++) {
    const honest = framed(bytes.subarray(at, at + piece));
    const frame = lies.text === undefined ? honest : lies.text(honest, index, verb);
    if (frame === "cut") return 4;
    if (frame === "mute") return yield* Effect.never;
    yield* send(frame);
  }
  yield* send(framed());
  yield* say({ type: "end" });
  return 0;
});

const recipe: Serve = Effect.fnUntraced(function* (talk) {
  const found = yield* named(talk);
  if (found === undefined) return 5;
  const { lies, request } = talk;
  const { recipe: text } = found;
  return yield* textual(talk, "recipe", lies.recipe?.(text, request["name"] as string) ?? text);
});

/** What lies in packs, whatever became of their archives. */
export const packsOf = ({ committed, left }: Pick<Shelf, "committed" | "left">) => [
  ...committed.values(),
  ...left,
];
const packOf = (shelf: Shelf, session: string) =>
  packsOf(shelf).find((kept) => kept.session === session);
const archiveOf = (shelf: Shelf, session: string) =>
  [...shelf.committed.values()].find((kept) => kept.session === session);

const table: Serve = Effect.fnUntraced(function* (talk) {
  const session = talk.request["session"] as string;
  const text = packOf(talk.shelf, session)?.table;
  if (text === undefined) {
    yield* talk.say(fail("not-found", "there is no such pack"));
    return 5;
  }
  return yield* textual(talk, "table", talk.lies.table?.(text, session) ?? text);
});

const check: Serve = Effect.fnUntraced(function* (talk) {
  const found = yield* named(talk);
  if (found === undefined) return 5;
  const { call, lies, request, say, shelf } = talk;
  yield* say({ type: "alive" });
  const lines = linesOn(shelf, found.recipe);
  const whole = spread(found.recipe).every(([session, index]) => {
    const pack = packOf(shelf, session);
    return pack?.leaves[index]?.every((_, block) => blockOf(pack, index, block) !== undefined);
  });
  if (!whole) shelf.committed.set(request["name"] as string, { ...found, damaged: true });
  const { size } = JSON.parse(found.receipt);
  const reply = whole
    ? { type: "checked", size, members: lines.length, root: rootOf(lines) }
    : fail("damaged", "not what it was");
  yield* say(changed(lies.checked, reply, call));
  return whole ? 0 : 6;
});

/** The bytes of a block, if they still are what came. */
const blockOf = (pack: Kept, member: number, block: number, blind = false): Buffer | undefined => {
  const leaf = pack.leaves[member]?.[block];
  if (leaf === undefined) return undefined;
  const starts = startsOf(pack.table);
  const start = starts[member]! + block * mebi;
  const bytes = pack.bytes.subarray(start, Math.min(start + mebi, starts[member + 1]!));
  return blind || sha256(bytes).equals(leaf) ? bytes : undefined;
};

const read: Serve = Effect.fnUntraced(function* ({ call, lies, say, send, shelf, take }) {
  yield* say(changed(lies.opened, { type: "ready" }, call));
  for (let index = 0; ;) {
    let line = "";
    for (let byte = yield* take(1); byte?.[0] !== 10; byte = yield* take(1)) {
      if (byte === undefined) return 0;
      line += byte.toString("latin1");
    }
    if (line === "") return 0;
    if (line === ".") continue;
    const match = /^([0-9a-f]{32}) (0|[1-9]\d*) (0|[1-9]\d*) ([1-9]\d*)$/.exec(line);
    if (match === null) {
      yield* send(giveUp);
      yield* say(fail("bad-request", "that is no line of read"));
      return 2;
    }
    const session = match[1]!;
    const [member, first, count] = match.slice(2).map(Number) as [number, number, number];
    const pack = packOf(shelf, session);
    for (let block = first; block < first + count; block++, index++) {
      const leaves = pack?.leaves[member];
      const bytes = pack && blockOf(pack, member, block, lies.blind);
      const there = leaves?.[block] !== undefined;
      const missing = there
        ? fail("damaged", "this block is not what it was")
        : fail("not-found", "there is no such block");
      const honest =
        bytes === undefined || !there
          ? Buffer.concat([giveUp, Buffer.from(`${JSON.stringify(missing)}\n`)])
          : framed(bytes, ...siblingsOf(leaves, block));
      const frame =
        lies.frame === undefined
          ? honest
          : lies.frame(honest, { session, member, block, index }, call);
      if (frame === "cut") return 4;
      if (frame === "mute") return yield* Effect.never;
      yield* send(frame);
    }
  }
});

/** Bytes of whole members, and of the blocks behind them. */
const offsetOf = ({ blocks, members }: Incoming): number =>
  [...members, ...blocks].reduce((sum, { length }) => sum + length, 0);
const runningOf = ({ digests, leaves }: Incoming): string => running(leaves.map(topOf), digests);

/** Takes a frame of members; undefined where it is not one block of one member. */
const added = (upload: Incoming, frame: Buffer): true | undefined => {
  const blocks = [...upload.blocks, frame];
  const { length } = memberAt(blocks[0]!);
  const have = offsetOf({ ...upload, members: [], blocks });
  if (!(have <= length) || (have < length && frame.length !== mebi)) return undefined;
  upload.blocks = blocks;
  upload.digests.push(sha256(frame));
  if (have === length) {
    upload.members.push(Buffer.concat(blocks));
    upload.leaves.push(upload.digests);
    [upload.blocks, upload.digests] = [[], []];
  }
  return true;
};

/** Why this ticket opens nothing; undefined where it does. */
const ticketRefused = (shelf: Shelf, key: SigningKey, ticket: Ticket, signature: string) => {
  if (shelf.signers.length > 0 && !shelf.signers.includes(ticket.signer)) {
    return fail("not-permitted", "another dom0's archives are kept here");
  }
  if (!holds(ticket.signer, "ticket", ticketText(ticket, key.publicKey), signature)) {
    return fail("signature", "the ticket's signature does not hold");
  }
  return undefined;
};

const put: Serve = Effect.fnUntraced(function* ({ call, key, lies, request, say, shelf, take }) {
  const { signature, ...ticket } = request as unknown as Ticket & { readonly signature: string };
  const { base, name, run, series, session, signer } = ticket;
  const first = (reply: Reply) => say(changed(lies.ready, reply as never, call));
  const wrong = ticketRefused(shelf, key, ticket, signature);
  if (wrong !== undefined) {
    yield* first(wrong);
    return 5;
  }
  const there = archiveOf(shelf, session);
  if (there !== undefined) {
    yield* first({ type: "stored", receipt: there.receipt, signature: there.receiptSignature });
    return 0;
  }
  const owner = `${signer} ${series}`;
  const top = shelf.tickets.get(owner);
  /** Whether the ticket still is, or may become, the highest of its series. */
  const fresh = () => {
    const highest = shelf.tickets.get(owner);
    return (
      highest === undefined ||
      run > highest.ticket.run ||
      ticketText(ticket, "") === ticketText(highest.ticket, "")
    );
  };
  const stale = () => {
    const highest = shelf.tickets.get(owner)!;
    return fail("stale", "a later run was admitted", {
      ticket: ticketText(highest.ticket, key.publicKey),
      signature: highest.signature,
    });
  };
  const gone = shelf.gone.get(session);
  const clock = yield* now;
  const ahead = Date.parse(ticket.time) - Date.parse(clock);
  const refusal =
    ahead > day || ahead < -30 * day
      ? fail("not-permitted", `the ticket is of ${ticket.time}, and it is ${clock} here`)
      : top !== undefined && !fresh()
        ? stale()
        : shelf.committed.has(name)
          ? fail("exists", "taken")
          : gone !== undefined
            ? fail("gone", "that upload was removed", gone)
            : (shelf.incoming.get(session)?.owner ?? owner) !== owner
              ? fail("not-permitted", "that session is of another series")
              : base !== "-" && archiveOf(shelf, base) === undefined
                ? fail("not-found", "there is no such base")
                : ticket.bytes > roomOf(shelf, session)
                  ? fail("quota", "there is no room for that")
                  : undefined;
  if (refusal !== undefined) {
    yield* first(refusal);
    return 5;
  }
  // As a server whose other words refuse the ticket: nothing of it is noted.
  const upload = shelf.incoming.get(session) ?? {
    owner,
    members: [],
    leaves: [],
    blocks: [],
    digests: [],
  };
  if (top !== undefined && top.ticket.session === session && run > top.ticket.run) {
    [upload.blocks, upload.digests] = [[], []];
  }
  const ready = { type: "ready", offset: offsetOf(upload), running: runningOf(upload) };
  const said = changed(lies.ready, ready, call) as { readonly type?: string } | string | undefined;
  if (typeof said === "object" && said.type === "ready") {
    shelf.incoming.set(session, upload);
    shelf.tickets.set(owner, { ticket, signature });
    if (shelf.signers.length === 0) shelf.signers.push(signer);
  }
  yield* say(said);
  if (lies.mute === "after-ready") return yield* Effect.never;

  /** A frame's bytes; "alive" and "gave-up" for what is none; undefined at the end. */
  const frame = Effect.gen(function* () {
    for (;;) {
      const length = (yield* take(4))?.readUInt32BE(0);
      if (length === 0x80000000) yield* say({ type: "alive" });
      else if (length === 0xffffffff) return "gave-up" as const;
      else return length === undefined ? undefined : yield* take(length);
    }
  });
  const forget = () => {
    shelf.gaveUp += 1;
    shelf.incoming.delete(session);
    return 0;
  };
  for (let blocks = 0; ;) {
    const bytes = yield* frame;
    if (bytes === undefined) return 4;
    if (bytes === "gave-up") return forget();
    if (bytes.length === 0) break;
    if (bytes.length > mebi || added(upload, bytes) === undefined) {
      yield* say(fail("bad-request", "a frame is one block of one member"));
      return 2;
    }
    blocks += 1;
    yield* say(lies.onBlock?.(blocks, call));
    const ack = { type: "ack", offset: offsetOf(upload), running: runningOf(upload) };
    if (ack.offset > ticket.bytes) {
      yield* say(fail("bad-request", "more bytes than the ticket says"));
      return 5;
    }
    yield* say(changed(lies.ack, ack, call));
    if (blocks === lies.dropAfter?.(call)) return 4;
  }
  const trailer: Array<Buffer> = [];
  for (let bytes = yield* frame; ; bytes = yield* frame) {
    if (bytes === undefined) return 4;
    if (bytes === "gave-up") return forget();
    if (bytes.length === 0) break;
    trailer.push(bytes);
  }
  const [text = Buffer.alloc(0), signed = Buffer.alloc(0), ...wishes] = trailer;
  const manifest = text.toString();
  shelf.trailer = { manifest, signature: signed, recipe: Buffer.concat(wishes).toString() };
  if (lies.mute === "after-trailer") return yield* Effect.never;
  const told = committed(shelf, key, ticket, upload, yield* now, fresh() ? undefined : stale());
  if ("type" in told) {
    if (told["code"] === "digest-mismatch") shelf.incoming.delete(session);
    yield* say(told);
    return 6;
  }
  shelf.committed.set(name, told);
  shelf.incoming.delete(session);
  const { receipt, receiptSignature } = told;
  const stored = { type: "stored", receipt, signature: receiptSignature };
  yield* say(lies.stored === undefined ? stored : lies.stored(stored, key));
  return 0;
});

/** What a trailer makes of an upload: the archive, or why there is none. */
const committed = (
  shelf: Shelf,
  key: SigningKey,
  ticket: Ticket,
  upload: Incoming,
  at: string,
  late: Reply | undefined,
): Kept | Reply => {
  if (late !== undefined) return late;
  const { manifest, recipe, signature } = shelf.trailer!;
  const { base, name, run, series, session, signer } = ticket;
  const signed = signature.toString("base64url");
  if (signature.length !== 64 || !holds(signer, "manifest", manifest, signed)) {
    return fail("signature", "the manifest's signature does not hold");
  }
  const said = JSON.parse(manifest) as { readonly [key: string]: unknown };
  const server = key.publicKey;
  const differs = Object.entries({ name, session, series, run, signer, server }).find(
    ([field, value]) => said[field] !== value,
  );
  if (differs !== undefined || textOf("manifest", said) !== manifest) {
    return fail("bad-request", `the manifest is not the ticket's: ${differs?.[0] ?? "its form"}`);
  }
  if (upload.blocks.length > 0) return fail("incomplete", "the last member is not whole");
  const old = base === "-" ? "" : (archiveOf(shelf, base)?.recipe ?? "");
  const runs = resolved(recipe, session, upload.members.length, old);
  if (runs === undefined) return fail("bad-request", "the recipe leads outside of what is here");
  const made = keep(Buffer.concat(upload.members), manifest, signed, key, at, runs);
  const lines = linesOn(shelf, runs, made);
  return rootOf(lines) === said["root"] && lines.length === said["members"]
    ? made
    : fail("digest-mismatch", "the root is another one here");
};

const verbs: { readonly [verb: string]: Serve } = {
  about,
  put,
  list,
  manifest,
  recipe,
  table,
  read,
  check,
};

export const peer = (shelf: Shelf, lies: Lies = {}) =>
  Effect.fnUntraced(
    function* (invocation: Invocation["Service"], service: string) {
      const { stdin, stdout } = invocation;
      const verb = service.slice(service.indexOf("+") + 1);
      const call = (shelf.asked.get(verb) ?? 0) + 1;
      shelf.asked.set(verb, call);
      shelf.calls += 1;
      const send = (bytes: Uint8Array) => stdout.write(bytes);
      const take = Effect.fnUntraced(function* (size: number) {
        const bytes = Buffer.alloc(size);
        return (yield* stdin.read(bytes, size)) < size ? undefined : bytes;
      });
      const say = (reply: unknown) =>
        reply === undefined
          ? Effect.void
          : send(Buffer.from(typeof reply === "string" ? reply : `${JSON.stringify(reply)}\n`));
      let line = "";
      for (let byte = yield* take(1); byte !== undefined && byte[0] !== 10; byte = yield* take(1)) {
        line += byte.toString("latin1");
      }
      if (lies.before !== undefined) yield* say(lies.before);
      if (lies.mute === "at-once") return yield* Effect.never;
      yield* say("\n");
      const key = lies.key ?? keyOf("server");
      const request = JSON.parse(line) as Talk["request"];
      return yield* verbs[verb]!({ shelf, lies, key, call, request, take, send, say });
    },
    Effect.catch(() => Effect.succeed(4)),
  );
