/**
 * The wire and its digests a second time, written from docs/protocol.md alone and without a line of
 * src: what both say is what the document says. Made for tests: it takes all of its input at once, and
 * throws where something is not as it must be.
 */
import * as crypto from "node:crypto";

export const mebi = 1_048_576;

export const sha256 = (...parts: ReadonlyArray<Uint8Array | string>): Buffer => {
  const hash = crypto.createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};

// Digests.

/** SHA-256 of each block of 1 MiB. */
export const leavesOf = (bytes: Uint8Array): ReadonlyArray<Buffer> =>
  Array.from({ length: Math.ceil(bytes.length / mebi) }, (_, i) =>
    sha256(bytes.subarray(i * mebi, (i + 1) * mebi)),
  );

/** The level above: pairs hashed together, an odd one carried up. */
const above = (level: ReadonlyArray<Buffer>): ReadonlyArray<Buffer> =>
  level.flatMap((digest, i) =>
    i % 2 === 1 ? [] : [level[i + 1] === undefined ? digest : sha256(digest, level[i + 1]!)],
  );

/** The one digest at the top. */
export const topOf = (leaves: ReadonlyArray<Buffer>): Buffer =>
  leaves.length === 1 ? leaves[0]! : topOf(above(leaves));

/** The SHA-256 tree hash, in hex. */
export const treeHash = (bytes: Uint8Array): string => topOf(leavesOf(bytes)).toString("hex");

/** The siblings of a leaf, from leaf to root. */
export const siblingsOf = (leaves: ReadonlyArray<Buffer>, index: number): ReadonlyArray<Buffer> => {
  if (leaves.length === 1) return [];
  const sibling = leaves[index % 2 === 0 ? index + 1 : index - 1];
  return [...(sibling === undefined ? [] : [sibling]), ...siblingsOf(above(leaves), index >> 1)];
};

/** The root (hex) to which a block leads, with its siblings, where its member has so many blocks. */
export const rootOfBlock = (
  block: Uint8Array,
  index: number,
  blocks: number,
  siblings: ReadonlyArray<Buffer>,
): string => {
  let digest = sha256(block);
  const rest = [...siblings];
  for (let at = index, width = blocks; width > 1; at = at >> 1, width = Math.ceil(width / 2)) {
    if (at % 2 === 0 && at + 1 === width) continue;
    const sibling = rest.shift();
    if (sibling === undefined) throw new Error("too few siblings");
    digest = at % 2 === 0 ? sha256(digest, sibling) : sha256(sibling, digest);
  }
  if (rest.length > 0) throw new Error("too many siblings");
  return digest.toString("hex");
};

// Members and tables.

export interface Member {
  readonly path: string;
  readonly size: number;
  readonly length: number;
}

const roundUp = (n: number, step: number) => n + ((step - (n % step)) % step);
const field = (header: Buffer, at: number, length: number) =>
  header.toString("latin1", at, at + length).replace(/\0.*$/s, "");

/** The member that begins here, by its tar headers; `bytes` has its first 8 KiB, or all of it. */
export const memberAt = (bytes: Buffer): Member & { readonly format: "qvm-backup" | "slots" } => {
  let at = 0;
  if (field(bytes, 156, 1) === "x") {
    at = 512 + roundUp(Number.parseInt(field(bytes, 124, 12), 8), 512);
  }
  const header = bytes.subarray(at, at + 512);
  const size = Number.parseInt(field(header, 124, 12), 8);
  const format =
    at === 0 && Number.parseInt(field(header, 136, 12), 8) === 0 ? "slots" : "qvm-backup";
  const data = at + 512 + roundUp(size, 512);
  const length = format === "slots" ? data : roundUp(data + 1024, 10_240);
  return { path: field(header, 0, 100), size, length, format };
};

/** The members that follow each other here, each with its bytes. */
export const membersOf = (pack: Buffer): ReadonlyArray<Member & { readonly bytes: Buffer }> => {
  const members: Array<Member & { readonly bytes: Buffer }> = [];
  for (let at = 0; at < pack.length;) {
    const { length, path, size } = memberAt(pack.subarray(at));
    members.push({ path, size, length, bytes: pack.subarray(at, at + length) });
    at += length;
  }
  return members;
};

/** A line of a table, with its newline. */
export const tableLine = ({ length, path, size }: Member, digest: string): string =>
  `${path} ${size} ${length} ${digest}\n`;

/** The table of a pack. */
export const tableOf = (pack: Buffer): string =>
  membersOf(pack)
    .map((member) => tableLine(member, treeHash(member.bytes)))
    .join("");

/** The lines of a text, each with its newline. */
export const linesOf = (text: string): ReadonlyArray<string> => text.match(/[^\n]*\n/g) ?? [];

/** The root (hex) of an archive: over the lines of its members, each with its newline. */
export const rootOf = (lines: ReadonlyArray<string>): string =>
  topOf(
    Array.from({ length: Math.ceil(lines.length / 32) }, (_, i) =>
      sha256(lines.slice(i * 32, (i + 1) * 32).join("")),
    ),
  ).toString("hex");

// Recipes.

/** The members (session, index) that a stored recipe stands for, in order. */
export const spread = (recipe: string): ReadonlyArray<readonly [session: string, index: number]> =>
  linesOf(recipe).flatMap((line) => {
    const [session = "", first, count] = line.trimEnd().split(" ");
    return Array.from({ length: Number(count) }, (_, i) => [session, Number(first) + i] as const);
  });

/** The stored recipe of these members: what follows each other in one pack is one line. */
export const gathered = (members: ReadonlyArray<readonly [string, number]>): string => {
  const runs: Array<[session: string, first: number, count: number]> = [];
  for (const [session, index] of members) {
    const last = runs.at(-1);
    if (last !== undefined && last[0] === session && last[1] + last[2] === index) last[2] += 1;
    else runs.push([session, index, 1]);
  }
  return runs.map((run) => `${run.join(" ")}\n`).join("");
};

/** The stored recipe that an upload's text means; undefined where it leads outside of pack or base. */
export const resolved = (
  text: string,
  session: string,
  pack: number,
  base: string,
): string | undefined => {
  const old = spread(base);
  const members: Array<readonly [string, number]> = [];
  for (const line of linesOf(text)) {
    const match = /^(new|base) (0|[1-9]\d*) ([1-9]\d*)\n$/.exec(line);
    if (match === null) return undefined;
    const first = Number(match[2]);
    const count = Number(match[3]);
    if (first + count > (match[1] === "new" ? pack : old.length)) return undefined;
    for (let i = first; i < first + count; i++) {
      members.push(match[1] === "new" ? [session, i] : old[i]!);
    }
  }
  return members.length === 0 || members.length > 1_048_576 ? undefined : gathered(members);
};

// The running hash.

/** Of a pack of which these members are whole, and these blocks of the next one are there. */
export const running = (
  whole: ReadonlyArray<Uint8Array>,
  blocks: ReadonlyArray<Uint8Array> = [],
): string => sha256(...whole, ...blocks).toString("hex");

// Keys, signatures, series.

export interface Pair {
  /** base64url. */
  readonly publicKey: string;
  readonly sign: (what: string, text: string) => string;
}

/** The key whose secret is these 32 bytes. */
export const pairOf = (secret: Uint8Array): Pair => {
  const der = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), secret]);
  const key = crypto.createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  return {
    publicKey: key.export({ format: "jwk" }).x!,
    sign: (what, text) =>
      crypto.sign(null, Buffer.from(`qbackup-${what}-1\n${text}`), key).toString("base64url"),
  };
};

export const holds = (key: string, what: string, text: string, signature: string): boolean =>
  crypto.verify(
    null,
    Buffer.from(`qbackup-${what}-1\n${text}`),
    crypto.createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: key }, format: "jwk" }),
    Buffer.from(signature, "base64url"),
  );

export const fingerprintOf = (key: string): string =>
  sha256(Buffer.from(key, "base64url")).toString("hex");

export const seriesOf = (
  key: Uint8Array,
  prefix: string,
  qubes: ReadonlyArray<string>,
  dom0: boolean,
): string => {
  const names = [...new Set(qubes)].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  const text = [...names, ...(dom0 ? ["@dom0"] : [])].map((name) => `${name}\n`).join("");
  const digits = crypto.createHmac("sha256", key).update(text).digest("hex").slice(0, 16);
  const begin = prefix.replace(/[^A-Za-z0-9]*$/, "");
  return begin === "" ? digits : `${begin}-${digits}`;
};

// Texts.

const keysOf = {
  manifest:
    "type version name session server signer series run created size members root format next",
  receipt: "type version name session members root size manifest stored",
  tombstone: "type version name session signer series run root stored pruned rule",
};

/** The text of what is signed; `type` and `version` need not be given. */
export const textOf = (what: keyof typeof keysOf, values: { readonly [key: string]: unknown }) => {
  const all: { readonly [key: string]: unknown } = {
    type: `qbackup ${what}`,
    version: 1,
    ...values,
  };
  const keys = keysOf[what].split(" ");
  return `{${keys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(all[key])}`).join(",")}}`;
};

// Tickets and requests.

export interface Ticket {
  readonly name: string;
  readonly session: string;
  readonly base: string;
  readonly series: string;
  readonly run: number;
  readonly bytes: number;
  readonly time: string;
  readonly signer: string;
}

const ticketWords = (t: Ticket) =>
  [t.name, t.session, t.base, t.series, t.run, t.bytes, t.time, t.signer].join(" ");

/** What is signed of a ticket. */
export const ticketText = (ticket: Ticket, server: string): string =>
  `put ${ticketWords(ticket)} ${server}`;

/** The ssh command of a signed ticket. */
export const putCommand = (ticket: Ticket, signature: string): string =>
  `qbackup/1 put ${ticketWords(ticket)} ${signature}`;

// Frames.

const word = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
export const keepAlive = word(0x80000000);
export const giveUp = word(0xffffffff);
/** A frame of these bytes; the one without any ends what goes before it. */
export const framed = (...parts: ReadonlyArray<Uint8Array>): Buffer => {
  const bytes = Buffer.concat(parts);
  return Buffer.concat([word(bytes.length), bytes]);
};
