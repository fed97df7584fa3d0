/** What a client sends to `put`, made beforehand: to measure the server's part alone. */
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { leafOf, treeHasher } from "#src/proof/treehash";
import { ArchiveFault, Walk } from "#src/archive/walk";
import { blockSize, giveUpFrame, lengthPrefix } from "#src/wire/frames";
import { writeAll } from "./archive.ts";

export interface Framed {
  /** All blocks, each with its length in front. */
  readonly file: string;
  /** The end of the data and the trailer. */
  readonly trailer: (name: string, session: string, server: string) => Buffer;
}

export const frameFile = (source: string, file: string): Framed => {
  const [from, to] = [fs.openSync(source, "r"), fs.openSync(file, "w")];
  const walk = new Walk();
  const tree = treeHasher();
  const block = Buffer.alloc(blockSize);
  for (;;) {
    const n = fs.readSync(from, block);
    if (n === 0) break;
    const bytes = block.subarray(0, n);
    walk.push(bytes);
    tree.push(leafOf(bytes));
    writeAll(to, lengthPrefix(n));
    writeAll(to, bytes);
  }
  fs.closeSync(from);
  fs.closeSync(to);
  const members = walk.finish();
  if (members instanceof ArchiveFault) throw members;
  const size = walk.offset;
  const treehash = tree.root();
  return {
    file,
    trailer: (name, session, server) => {
      const created = new Date().toISOString();
      const manifest = JSON.stringify({
        version: 1,
        name,
        session,
        server,
        size,
        treehash,
        created,
        members,
      });
      const text = Buffer.from(JSON.stringify({ manifest, signature: null }));
      return Buffer.concat([lengthPrefix(0), lengthPrefix(text.length), text]);
    },
  };
};

/** The public key of the store in `root`; both are made if they are not there. */
export const serverKey = (shell: string, root: string): string => {
  const said = execFileSync(shell, ["--root", root], {
    env: { ...process.env, SSH_ORIGINAL_COMMAND: `qbackup/1 put key ${"0".repeat(32)}` },
    input: giveUpFrame,
    stdio: ["pipe", "pipe", "ignore"],
  }).toString();
  return (JSON.parse(said.trim().split("\n")[0]!) as { readonly server: string }).server;
};
