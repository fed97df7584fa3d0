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

// Words.

const onlyOf = (text: string, signs: RegExp) => [...text].every((sign) => signs.test(sign));
const alnum = /[A-Za-z0-9]/;

const isComponent = (part: string) =>
  part.length >= 1 && part.length <= 128 && alnum.test(part[0]!) && onlyOf(part, /[A-Za-z0-9._+-]/);
const arePath = (text: string) => {
  const parts = text.split("/");
  return text.length <= 512 && parts.length <= 8 && parts.every(isComponent);
};
const base64url = (text: string, bytes: number) =>
  onlyOf(text, /[A-Za-z0-9_-]/) &&
  Buffer.from(text, "base64url").length === bytes &&
  Buffer.from(text, "base64url").toString("base64url") === text;
const hex = (text: string, digits: number) => text.length === digits && onlyOf(text, /[0-9a-f]/);

/** Is this text such a word? */
export const words = {
  name: (text: string) => arePath(text) && !text.endsWith(".manifest.json"),
  prefix: (text: string) => text.length <= 512 && arePath(text.replace(/\/$/, "")),
  session: (text: string) => hex(text, 32),
  series: (text: string) => {
    const begin = text.slice(0, -17);
    return (
      hex(text.slice(-16), 16) &&
      (text.length === 16 ||
        (text.at(-17) === "-" &&
          begin.length >= 1 &&
          begin.length <= 512 &&
          onlyOf(begin, /[A-Za-z0-9._+/-]/) &&
          alnum.test(begin[0]!) &&
          alnum.test(begin.at(-1)!)))
    );
  },
  number: (text: string) =>
    onlyOf(text, /[0-9]/) && text !== "" && `${BigInt(text)}` === text && BigInt(text) < 2n ** 53n,
  time: (text: string) => {
    const match = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)Z$/.exec(text);
    if (match === null) return false;
    const [year, month, day, hour, minute, second] = match.slice(1).map(Number) as [
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    const leap = (year % 4 === 0 && year % 100 !== 0) || year % 400 === 0;
    const days = [31, leap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    return day >= 1 && day <= (days[month - 1] ?? 0) && hour < 24 && minute < 60 && second < 60;
  },
  digest: (text: string) => hex(text, 64),
  key: (text: string) => base64url(text, 32),
  signature: (text: string) => base64url(text, 64),
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

/** Reads a line of a table, without its newline. */
export const memberIn = (line: string): (Member & { readonly digest: string }) | undefined => {
  const [path = "", size = "", length = "", digest = "", ...rest] = line.split(" ");
  return rest.length === 0 &&
    path.length >= 1 &&
    path.length <= 99 &&
    onlyOf(path, /[A-Za-z0-9._@/-]/) &&
    words.number(size) &&
    words.number(length) &&
    words.digest(digest) &&
    Number(length) % 512 === 0 &&
    Number(length) >= Number(size) + 512
    ? { path, size: Number(size), length: Number(length), digest }
    : undefined;
};

/** The table of a pack. */
export const tableOf = (pack: Buffer): string =>
  membersOf(pack)
    .map((member) => tableLine(member, treeHash(member.bytes)))
    .join("");

/** The lines of a text, each with its newline. By a pattern a long last one without would take for ever. */
export const linesOf = (text: string): ReadonlyArray<string> =>
  text
    .split("\n")
    .slice(0, -1)
    .map((line) => `${line}\n`);

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

const limits = { manifest: 2048, receipt: 1024, tombstone: 2048 };

type Test = (value: unknown) => boolean;
const text =
  (word: (text: string) => boolean): Test =>
  (value) =>
    typeof value === "string" && word(value);
const count: Test = (value) =>
  Number.isSafeInteger(value) && (value as number) >= 0 && !Object.is(value, -0);
const tests: { readonly [key: string]: Test } = {
  name: text(words.name),
  session: text(words.session),
  server: text(words.key),
  signer: text(words.key),
  series: text(words.series),
  run: count,
  created: text(words.time),
  size: count,
  members: (value) => count(value) && (value as number) >= 1 && (value as number) <= 1_048_576,
  root: text(words.digest),
  format: (value) => value === "qvm-backup" || value === "slots",
  next: (value) => value === null || text(words.time)(value),
  manifest: text(words.digest),
  stored: text(words.time),
  pruned: text(words.time),
  rule: text((rule) => rule.length >= 1 && rule.length <= 200 && onlyOf(rule, /[ -~]/)),
};

/** Reads such a text; undefined for whatever is not written in its one form. */
export const textIn = (
  what: keyof typeof keysOf,
  written: string,
): { readonly [key: string]: unknown } | undefined => {
  let values: unknown;
  try {
    values = JSON.parse(written);
  } catch {
    return undefined;
  }
  if (typeof values !== "object" || values === null || written.length > limits[what]) {
    return undefined;
  }
  const found = values as { readonly [key: string]: unknown };
  return found["type"] === `qbackup ${what}` &&
    found["version"] === 1 &&
    keysOf[what]
      .split(" ")
      .slice(2)
      .every((key) => tests[key]!(found[key])) &&
    textOf(what, found) === written
    ? found
    : undefined;
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

/** Are these the eight words of a ticket? */
const isTicket = (eight: ReadonlyArray<string>): boolean => {
  const [name = "", session = "", base = "", series = "", run = "", bytes = ""] = eight;
  return (
    eight.length === 8 &&
    words.name(name) &&
    words.session(session) &&
    (base === "-" || words.session(base)) &&
    words.series(series) &&
    words.number(run) &&
    words.number(bytes) &&
    words.time(eight[6]!) &&
    words.key(eight[7]!)
  );
};

/** A request: its verb, and its parameters as the JSON line has them. */
export interface Request {
  readonly verb: string;
  readonly parameters: { readonly [key: string]: unknown };
}

/** The ssh command of a request. */
export const commandOf = ({ parameters: p, verb }: Request): string => {
  const of = p["of"] as { readonly signer: string; readonly series: string } | undefined;
  const said: { readonly [verb: string]: () => ReadonlyArray<unknown> } = {
    about: () => (of === undefined ? [] : [of.signer, of.series]),
    put: () => [ticketWords(p as unknown as Ticket), p["signature"]],
    list: () => (p["after"] === undefined ? [p["prefix"]] : [p["prefix"] ?? "-", p["after"]]),
    table: () => [p["session"]],
    read: () => [],
  };
  const list = said[verb]?.() ?? [p["name"]];
  return ["qbackup/1", verb, ...list.filter((one) => one !== undefined)].join(" ");
};

/** Reads a command; undefined for whatever is not one. */
export const requestIn = (command: string): Request | undefined => {
  const [head, verb = "", ...rest] = command.split(" ");
  const [first = "", second = ""] = rest;
  const about = () =>
    rest.length === 0
      ? {}
      : rest.length === 2 && words.key(first) && words.series(second)
        ? { of: { signer: first, series: second } }
        : undefined;
  const put = () => {
    const [name, session, base, series, run, bytes, time, signer, signature = ""] = rest;
    return rest.length === 9 && isTicket(rest.slice(0, 8)) && words.signature(signature)
      ? {
          name,
          session,
          base,
          series,
          run: Number(run),
          bytes: Number(bytes),
          time,
          signer,
          signature,
        }
      : undefined;
  };
  const list = () => {
    const prefix = first === "-" ? {} : { prefix: first };
    if (rest.length === 0) return {};
    if (rest.length > 2 || (first !== "-" && !words.prefix(first))) return undefined;
    if (rest.length === 1) return prefix;
    return words.name(second) ? { ...prefix, after: second } : undefined;
  };
  const named = () => (rest.length === 1 && words.name(first) ? { name: first } : undefined);
  const table = () => (rest.length === 1 && words.session(first) ? { session: first } : undefined);
  const read = () => (rest.length === 0 ? {} : undefined);
  const verbs = new Map<string, () => object | undefined>(
    Object.entries({ about, put, list, manifest: named, recipe: named, table, read, check: named }),
  );
  const parameters = head === "qbackup/1" ? verbs.get(verb)?.() : undefined;
  return parameters === undefined ? undefined : { verb, parameters: { ...parameters } };
};

/** Reads the text of a ticket; undefined for whatever is not one. */
export const ticketIn = (
  written: string,
): { readonly ticket: Ticket; readonly server: string } | undefined => {
  const [put, ...rest] = written.split(" ");
  const [name = "", session = "", base = "", series = "", run, bytes, time = "", signer = ""] =
    rest;
  const server = rest[8] ?? "";
  return put === "put" && rest.length === 9 && isTicket(rest.slice(0, 8)) && words.key(server)
    ? {
        ticket: {
          name,
          session,
          base,
          series,
          run: Number(run),
          bytes: Number(bytes),
          time,
          signer,
        },
        server,
      }
    : undefined;
};

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

/** The frames in `bytes`: what each holds, or which of the three lengths it is; "long" ends them. */
export const framesIn = (
  bytes: Buffer,
  limit: number,
): ReadonlyArray<Buffer | "zero" | "keep-alive" | "give-up" | "cut" | "long"> => {
  if (bytes.length < 4) return ["cut"];
  const length = bytes.readUInt32BE();
  const rest = bytes.subarray(4);
  if (length === 0) return ["zero", ...framesIn(rest, limit)];
  if (length === 0x80000000) return ["keep-alive", ...framesIn(rest, limit)];
  if (length === 0xffffffff) return ["give-up", ...framesIn(rest, limit)];
  if (length > limit) return ["long"];
  if (length > rest.length) return ["cut"];
  return [rest.subarray(0, length), ...framesIn(rest.subarray(length), limit)];
};
