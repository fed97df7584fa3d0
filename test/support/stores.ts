/**
 * Stores as a server has them, written file by file from docs/protocol.md and without a line of src: what
 * the reading verbs are tried on, and what no upload would leave behind.
 */
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Disk } from "#layers/memory/MemorySafeFs";
import {
  leavesOf,
  linesOf,
  type Pair,
  pairOf,
  rootOf,
  sha256,
  spread,
  tableOf,
  textOf,
} from "#test/support/reference";

/** Puts a file somewhere; its directories are made where they are missing. */
export type Write = (file: string, bytes: Uint8Array) => void;

export const ontoDisk =
  (disk: Disk): Write =>
  (file, bytes) => {
    const parts = file.split("/").slice(0, -1);
    parts.forEach((_, i) => {
      const directory = parts.slice(0, i + 1).join("/");
      if (disk.find(directory) === undefined) disk.plant(directory, "directory");
    });
    disk.plant(file, bytes);
  };
export const ontoFolder =
  (folder: string): Write =>
  (file, bytes) => {
    fs.mkdirSync(path.join(folder, path.dirname(file)), { recursive: true, mode: 0o700 });
    fs.writeFileSync(path.join(folder, file), bytes, { mode: 0o600 });
  };

const secretOf = (what: string) => sha256(what);
/** The keys of every store that is made here. */
export const serverPair: Pair = pairOf(secretOf("server"));
export const signerPair: Pair = pairOf(secretOf("signer"));
export const seriesOfAll = "0123456789abcdef";

const pem = (secret: Uint8Array): string =>
  crypto
    .createPrivateKey({
      key: Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), secret]),
      format: "der",
      type: "pkcs8",
    })
    .export({ format: "pem", type: "pkcs8" })
    .toString();

export interface Kept {
  readonly name: string;
  readonly session: string;
  readonly run?: number;
  readonly format?: "qvm-backup" | "slots";
  /** As it is stored; all of its own pack if not given. */
  readonly recipe?: string;
  readonly stored?: string;
  /** It came in the bare form: nothing is signed. */
  readonly bare?: true;
  /** What the manifest and the receipt say otherwise. */
  readonly manifest?: { readonly [key: string]: unknown };
  readonly receipt?: { readonly [key: string]: unknown };
}

export const storeMaker = (write: Write) => {
  const tables = new Map<string, ReadonlyArray<string>>();
  const lengthOf = (line: string) => Number(line.split(" ")[2]);
  write(".qbackup/identity", Buffer.from(pem(secretOf("server"))));
  /** What everything that is said of an archive has in common. */
  const contentOf = ({ format = "qvm-backup", recipe, session }: Kept) => {
    const text = recipe ?? `${session} 0 ${tables.get(session)!.length}\n`;
    const { bytes, members, root } = (contents[text] ??= composed(text));
    const size = format === "slots" ? Math.ceil((bytes + 1024) / 10_240) * 10_240 : bytes;
    return { text, size, members, root };
  };
  const contents: Record<string, ReturnType<typeof composed>> = {};
  const composed = (recipe: string) => {
    const lines = spread(recipe).map(([of, index]) => tables.get(of)![index]!);
    const bytes = lines.reduce((sum, line) => sum + lengthOf(line), 0);
    return { bytes, members: lines.length, root: rootOf(lines) };
  };
  const signed = ({ name, run = 1, session }: Kept) => ({
    name,
    session,
    signer: signerPair.publicKey,
    series: seriesOfAll,
    run,
  });
  const stored = "2026-11-23T05:10:00Z";
  return {
    /** The bytes of members, one behind the other, as an upload would bring them. */
    pack: (session: string, bytes: Buffer): void => {
      const table = tableOf(bytes);
      tables.set(session, linesOf(table));
      let at = 0;
      const digests = linesOf(table).flatMap((line) => {
        const member = bytes.subarray(at, at + lengthOf(line));
        at += member.length;
        return leavesOf(member);
      });
      write(`.qbackup/packs/${session}`, bytes);
      write(`.qbackup/tables/${session}`, Buffer.from(table));
      write(`.qbackup/digests/${session}`, Buffer.concat(digests));
    },
    /** The archive of a pack that is there. Gives what its record says. */
    archive: (kept: Kept) => {
      const { format = "qvm-backup", name, session } = kept;
      const { members, root, size, text } = contentOf(kept);
      const at = kept.stored ?? stored;
      const manifest = textOf("manifest", {
        ...signed(kept),
        server: serverPair.publicKey,
        created: "2026-11-23T05:00:00Z",
        size,
        members,
        root,
        format,
        next: null,
        ...kept.manifest,
      });
      const receipt = textOf("receipt", {
        name,
        session,
        members,
        root,
        size,
        manifest: sha256(manifest).toString("hex"),
        stored: at,
        ...kept.receipt,
      });
      const record = kept.bare
        ? { name, session, size, members, root, stored: at }
        : {
            manifest,
            signature: signerPair.sign("manifest", manifest),
            receipt,
            receiptSignature: serverPair.sign("receipt", receipt),
          };
      write(`.qbackup/recipes/${session}`, Buffer.from(text));
      write(`${name}.manifest.json`, Buffer.from(JSON.stringify(record)));
      return { record, size, members, root, recipe: text };
    },
    /** What is left of an archive that was pruned: its record and its recipe are for the caller. */
    tombstone: (kept: Kept): { readonly text: string; readonly signature: string } => {
      const text = textOf("tombstone", {
        ...signed(kept),
        root: contentOf(kept).root,
        stored: kept.stored ?? stored,
        pruned: "2026-12-24T05:10:00Z",
        rule: "keep-daily 30",
      });
      const signature = serverPair.sign("tombstone", text);
      write(`.qbackup/tombstones/${kept.session}`, Buffer.from(`${text}\n${signature}`));
      return { text, signature };
    },
  };
};
