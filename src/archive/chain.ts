/**
 * What dom0 remembers of an archive of slots, so that the next night's can be made of the same members: of
 * each one by what it is known again. And the same of an upload that is under way, in the order of its pack,
 * so that a later run can go on with it. docs/slots.md, What dom0 keeps.
 */
import { createHash } from "node:crypto";
import { Option, Schema } from "effect";
import { lineOf, type Member, parseMember, rootHasher } from "#src/proof/table";
import { Count, parseNumber, PublicKey, Session, Sha256 } from "#src/wire/names";
import { chunkPath } from "./slots.ts";
import { padding, tarBlock } from "./ustar.ts";
import { BackupId } from "./walk.ts";

/** Bytes of what a cell is known by. */
export const macSize = 16;
/** Bytes of a member that is remembered. */
const cellSize = 64;

/** A member, and by what it is known again. */
export interface Remembered {
  /** As of `cellMac`; hex. */
  readonly mac: string;
  /** Slots of the cell, and which of them have data; 0 for what is no cell of a volume. */
  readonly span: number;
  readonly present: number;
  /** Of its data; in bytes. */
  readonly size: number;
  /** Hex. */
  readonly digest: string;
}

/** What all archives of a chain share. */
const identity = {
  id: BackupId,
  /** Of the MACs; 32 bytes in hex. */
  key: Sha256,
  /** By what the passphrase is known again, at the price of a member of slots. */
  check: Sha256,
  /** The first run of the chain. */
  began: Count,
  /** Where it came from: servers whose archives up to that run are of this chain, too. */
  moved: Schema.optional(Schema.Array(Schema.Struct({ server: PublicKey, run: Count }))),
};
const Identity = Schema.Struct(identity);
export type Identity = typeof Identity.Type;

/** That alone, of something that has more. */
export const identityOf = ({ began, check, id, key, moved }: Identity): Identity => ({
  id,
  key,
  check,
  began,
  moved,
});

const Head = Schema.Struct({
  ...identity,
  session: Session,
  root: Sha256,
  /** In the archive's order, the two heads first: the members of each are chunks 0 and on. */
  files: Schema.Array(Schema.Struct({ name: Schema.String, chunks: Count })),
});

/** An archive, by its session. */
export interface Chain extends Identity {
  readonly session: Session;
  readonly root: string;
  readonly files: ReadonlyArray<{ readonly name: string; readonly chunks: number }>;
  /** `cellSize` bytes for each member, in the archive's order. */
  readonly cells: Buffer;
}

/** How many of an archive's members have one of these digests. */
export const countOf = ({ cells }: Pick<Chain, "cells">, digests: ReadonlySet<string>): number => {
  let count = 0;
  for (let at = 0; at < cells.length; at += cellSize) {
    if (digests.has(cells.toString("hex", at + 16, at + 48))) count += 1;
  }
  return count;
};

/** The member at `path`, as a table has it. */
export const memberAt = (path: string, { digest, size }: Remembered): Member => ({
  path,
  size,
  length: tarBlock + size + padding(size),
  digest,
});

export const cellsOf = (remembered: ReadonlyArray<Remembered>): Buffer => {
  const cells = Buffer.alloc(remembered.length * cellSize);
  for (const [i, { digest, mac, present, size, span }] of remembered.entries()) {
    const at = i * cellSize;
    cells.write(mac, at, "hex");
    cells.write(digest, at + 16, "hex");
    cells.writeUInt32BE(size, at + 48);
    cells.writeUInt16BE(present, at + 52);
    cells.writeUInt8(span, at + 54);
  }
  return cells;
};

/** What is remembered of the `index`th member. */
export const cellAt = ({ cells }: Pick<Chain, "cells">, index: number): Remembered => {
  const at = index * cellSize;
  return {
    mac: cells.toString("hex", at, at + macSize),
    digest: cells.toString("hex", at + 16, at + 48),
    size: cells.readUInt32BE(at + 48),
    present: cells.readUInt16BE(at + 52),
    span: cells.readUInt8(at + 54),
  };
};

/** A head is a file of one member, which has its name. */
const pathOf = (name: string, chunk: number): string =>
  name.startsWith("backup-header") ? name : chunkPath(name, chunk);

const rootOf = (chain: Chain): string | undefined => {
  const hasher = rootHasher();
  let index = 0;
  for (const { chunks, name } of chain.files) {
    for (let chunk = 0; chunk < chunks; chunk++, index++) {
      hasher.push(lineOf(memberAt(pathOf(name, chunk), cellAt(chain, index))));
    }
  }
  return hasher.root();
};

const magic = "qbackup chain 1\n";
const sumSize = 32;
const decodeHead = Schema.decodeOption(Schema.fromJsonString(Head));
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest();

/** As a file; what else the object has is left out. */
export const chainBytes = ({ cells, files, root, session, ...shared }: Chain): Buffer => {
  const head: typeof Head.Type = { ...identityOf(shared), session, root, files };
  const bytes = Buffer.concat([Buffer.from(`${magic}${JSON.stringify(head)}\n`), cells]);
  return Buffer.concat([bytes, sha256(bytes)]);
};

/** Reads such a file; undefined where anything of it is not as it was written. */
export const parseChain = (file: Buffer): Chain | undefined => {
  const bytes = file.subarray(0, -sumSize);
  if (!sha256(bytes).equals(file.subarray(-sumSize))) return undefined;
  if (bytes.toString("latin1", 0, magic.length) !== magic) return undefined;
  const end = bytes.indexOf("\n", magic.length);
  const head = Option.getOrUndefined(decodeHead(bytes.toString("utf8", magic.length, end)));
  if (head === undefined) return undefined;
  const cells = bytes.subarray(end + 1);
  const members = head.files.reduce((sum, { chunks }) => sum + chunks, 0);
  if (cells.length !== members * cellSize) return undefined;
  const chain: Chain = { ...head, cells };
  return rootOf(chain) === head.root ? chain : undefined;
};

/** An upload that is not committed: the members of its pack, as far as dom0 has noted them. */
export interface Journal extends Identity {
  readonly session: Session;
  /** By whose tickets the server takes it: nobody else goes on with it. */
  readonly signer: PublicKey;
  /** The archive that it builds on. */
  readonly base: Session | "-";
  /** The one before was found to be other than dom0 had it: a second time, and the chain is over. */
  readonly refused?: true | undefined;
  /** Its chain is a new one though there is another to build on: its owner asked, or the server lost that. */
  readonly anew?: true | undefined;
  readonly members: ReadonlyArray<readonly [path: string, Remembered]>;
}

const JournalHead = Schema.Struct({
  ...identity,
  session: Session,
  signer: PublicKey,
  base: Schema.Union([Schema.Literal("-"), Session]),
  refused: Schema.optional(Schema.Literal(true)),
  anew: Schema.optional(Schema.Literal(true)),
});
const decodeJournal = Schema.decodeOption(Schema.fromJsonString(JournalHead));

/** A line of it, with its newline: the member's of a table, and by what it is known again. */
export const journalLine = (path: string, cell: Remembered): string =>
  `${cell.mac} ${cell.span} ${cell.present} ${lineOf(memberAt(path, cell))}`;

/** As a file, to whose end more lines can be written; what else the object has is left out. */
export const journalText = ({
  anew,
  base,
  members,
  refused,
  session,
  signer,
  ...shared
}: Journal): string => {
  const head: typeof JournalHead.Type = {
    ...identityOf(shared),
    session,
    signer,
    base,
    refused,
    anew,
  };
  return [`${JSON.stringify(head)}\n`, ...members.map((each) => journalLine(...each))].join("");
};

const parseLine = (text: string): readonly [string, Remembered] | undefined => {
  const [mac, spanText, presentText, ...rest] = text.split(" ");
  const member = parseMember(rest.join(" "));
  if (member === undefined || !/^[0-9a-f]{32}$/.test(mac!)) return undefined;
  const [span, present] = [parseNumber(spanText!), parseNumber(presentText!)];
  if (span === undefined || span > 0xff) return undefined;
  if (present === undefined || present > 0xffff) return undefined;
  const { digest, path, size } = member;
  const cell: Remembered = { mac: mac!, span, present, size, digest };
  return memberAt(path, cell).length === member.length ? [path, cell] : undefined;
};

/** Reads such a file up to the first line that is none: a crash tears the last one. Undefined: not even its head. */
export const parseJournal = (text: string): Journal | undefined => {
  const lines = text.split("\n").slice(0, -1);
  const head = Option.getOrUndefined(decodeJournal(lines.shift()!));
  if (head === undefined) return undefined;
  const members: Array<readonly [string, Remembered]> = [];
  for (const line of lines) {
    const member = parseLine(line);
    if (member === undefined) break;
    members.push(member);
  }
  return { ...head, members };
};
