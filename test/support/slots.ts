/** Archives of slots, opened as docs/slots.md says, without a line of src. */
import { createCipheriv, createHmac } from "node:crypto";
import { gunzipSync } from "node:zlib";
import { membersOf, sha256 } from "#test/support/reference";

export interface Opened {
  /** The text of backup-header. */
  readonly header: string;
  /** Of each file, in the archive's order: its chunks as they were before they were compressed. */
  readonly files: ReadonlyMap<string, ReadonlyArray<Buffer>>;
}

/** Opens members that lie one behind the other; throws where one is not what it should be. */
export const openSlots = (
  archive: Buffer,
  passphrase: string,
  keysOf: (passphrase: Buffer, salt: Buffer) => Buffer,
): Opened => {
  const members = membersOf(archive);
  const header = members[0]!.bytes.toString("latin1", 512, 512 + members[0]!.size);
  const id = /^backup-id=(.*)$/m.exec(header)![1]!;
  const files = new Map<string, Array<Buffer>>();
  for (const { bytes, path, size } of members.slice(1)) {
    const file = bytes.subarray(512, 512 + size);
    const place =
      path === "backup-header.hmac" ? "backup-header" : `${id}!${path.replace(/\.enc$/, "")}`;
    const keys = keysOf(Buffer.from(`${place}!${passphrase}`), file.subarray(16, 48));
    const mac = createHmac("sha256", keys.subarray(32)).update(file.subarray(0, -32)).digest();
    if (!mac.equals(file.subarray(-32))) throw new Error(`${path} is not of this passphrase`);
    const cipher = createCipheriv("aes-256-ctr", keys.subarray(0, 32), Buffer.alloc(16));
    const plain = cipher.update(file.subarray(96, -32));
    if (path === "backup-header.hmac") {
      if (plain.toString("latin1") !== header) throw new Error("the header is not as it was");
      continue;
    }
    const [, name = "", number] = /^(.*)\.([0-9]+)\.enc$/.exec(path)!;
    const chunks = files.get(name) ?? [];
    if (Number(number) !== chunks.length) throw new Error(`${path} stands at the wrong place`);
    chunks.push(plain.length === 0 ? plain : gunzipSync(plain));
    files.set(name, chunks);
  }
  return { header, files };
};

/** What a volume holds, of its chunks. */
export const volumeOf = ([head, ...cells]: ReadonlyArray<Buffer>): Buffer => {
  const [count, ...numbers] = head!.toString("latin1", 1536).split("\n");
  const entries = Array.from({ length: Number(count) }, (_, i) => ({
    offset: Number(numbers[2 * i]),
    length: Number(numbers[2 * i + 1]),
  }));
  const last = entries.at(-1)!;
  const content = Buffer.alloc(last.offset + last.length);
  const data = Buffer.concat(cells);
  let at = 0;
  for (const { length, offset } of entries) {
    data.copy(content, offset, at, at + length);
    at += length;
  }
  return content;
};

/** What another file holds: behind its header, as long as that says. */
export const smallOf = (chunks: ReadonlyArray<Buffer>): Buffer => {
  const whole = Buffer.concat(chunks);
  return whole.subarray(512, 512 + Number.parseInt(whole.toString("latin1", 124, 135), 8));
};

/** A member, as dom0 remembers it. */
export interface Noted {
  /** Hex. */
  readonly mac: string;
  readonly digest: string;
  /** In bytes. */
  readonly size: number;
  readonly present: number;
  readonly span: number;
}

export interface Notes {
  readonly id: string;
  /** Of the MACs; hex. */
  readonly key: string;
  readonly session: string;
  readonly root: string;
  /** The servers that it was taken over from, each with its last run there. */
  readonly moved: ReadonlyArray<{ readonly server: string; readonly run: number }>;
  readonly files: ReadonlyArray<{ readonly name: string; readonly chunks: number }>;
  /** In the archive's order. */
  readonly members: ReadonlyArray<Noted>;
}

/** What dom0 keeps of an archive; throws where it is not in its form. */
export const notesIn = (file: Buffer): Notes => {
  const text = file.subarray(0, -32);
  if (!sha256(text).equals(file.subarray(-32))) throw new Error("the notes are damaged");
  const first = text.indexOf("\n");
  const second = text.indexOf("\n", first + 1);
  if (text.toString("latin1", 0, first) !== "qbackup chain 1")
    throw new Error("these are no notes");
  const cells = text.subarray(second + 1);
  const {
    began,
    check,
    files,
    id,
    key,
    moved = [],
    root,
    session,
    ...more
  } = JSON.parse(text.toString("utf8", first + 1, second));
  const odd = Object.keys(more);
  if (odd.length > 0) throw new Error(`the notes have ${odd.join(", ")}, too`);
  if (began === undefined || check === undefined) throw new Error("the notes lack a word");
  return {
    id,
    key,
    session,
    root,
    moved,
    files,
    members: Array.from({ length: cells.length / 64 }, (_, i) => {
      const cell = cells.subarray(64 * i, 64 * (i + 1));
      return {
        mac: cell.toString("hex", 0, 16),
        digest: cell.toString("hex", 16, 48),
        size: cell.readUInt32BE(48),
        present: cell.readUInt16BE(52),
        span: cell[54]!,
      };
    }),
  };
};

/** By what a chunk is known again. */
export const macOf = (key: string, number: number, present: number, plain: Buffer): string => {
  const nonce = [number.toString(16).padStart(8, "0"), present.toString(16).padStart(4, "0")];
  const gcm = createCipheriv(
    "aes-256-gcm",
    Buffer.from(key, "hex"),
    Buffer.from(`${nonce.join("")}${"0".repeat(12)}`, "hex"),
  ).setAAD(plain);
  gcm.final();
  return gcm.getAuthTag().toString("hex");
};
