/** What a client sends to `put`, made beforehand: to measure the server's part alone. */
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { ArchiveFault, Walk } from "#src/archive/walk";
import { packHasher } from "#src/proof/pack";
import { lineOf, rootHasher } from "#src/proof/table";
import { manifestText, type Ticket, ticketText } from "#src/proof/texts";
import { leafOf } from "#src/proof/treehash";
import { lengthPrefix } from "#src/wire/frames";
import { blockSize } from "#src/wire/limits";
import { instantOf, Name, PublicKey, Series, Session } from "#src/wire/names";
import { toCommand } from "#src/wire/request";
import { keyOf } from "#test/support/peer";
import { writeAll } from "./archive.ts";

export interface Framed {
  /** All blocks, each with its length in front. */
  readonly file: string;
  /** The ssh command that opens the upload, and what ends it. */
  readonly upload: (
    name: string,
    session: string,
    server: string,
  ) => { readonly command: string; readonly trailer: Buffer };
}

export const frameFile = (source: string, file: string): Framed => {
  const [from, to] = [fs.openSync(source, "r"), fs.openSync(file, "w")];
  const walk = new Walk();
  const pack = packHasher();
  const root = rootHasher();
  const block = Buffer.alloc(blockSize);
  let at = 0;
  for (;;) {
    // A block ends where its member does: how long that is, its header tells.
    const n = fs.readSync(from, block, 0, blockSize, at);
    if (n === 0) break;
    const bytes = block.subarray(0, walk.take(block.subarray(0, n)));
    at += bytes.length;
    pack.block(leafOf(bytes));
    writeAll(to, lengthPrefix(bytes.length));
    writeAll(to, bytes);
    if (!walk.atMemberEnd) continue;
    root.push(
      lineOf({ ...walk.members.at(-1)!, digest: Buffer.from(pack.endMember()).toString("hex") }),
    );
  }
  fs.closeSync(from);
  fs.closeSync(to);
  const fault = walk.finish();
  if (fault instanceof ArchiveFault) throw fault;
  const keys = keyOf("dom0");
  const members = root.members();
  const whole = { size: at, members, root: root.root()! };
  return {
    file,
    upload: (name, session, to) => {
      const server = PublicKey.make(to);
      const ticket: Ticket = {
        name: Name.make(name),
        session: Session.make(session),
        base: "-",
        series: Series.make("0123456789abcdef"),
        run: 1,
        bytes: at,
        time: instantOf(Date.now()),
        signer: keys.publicKey,
      };
      const signature = keys.sign("ticket", ticketText(ticket, server));
      const { run, series, signer } = ticket;
      const text = manifestText({
        type: "qbackup manifest",
        version: 1,
        name: ticket.name,
        session: ticket.session,
        server,
        signer,
        series,
        run,
        created: ticket.time,
        ...whole,
        format: "qvm-backup",
        next: null,
      });
      const signed = Buffer.from(keys.sign("manifest", text), "base64url");
      const frames = [Buffer.from(text), signed, Buffer.from(`new 0 ${members}\n`)];
      return {
        command: toCommand({ verb: "put", ...ticket, signature }),
        trailer: Buffer.concat([
          lengthPrefix(0),
          ...frames.flatMap((frame) => [lengthPrefix(frame.length), frame]),
          lengthPrefix(0),
        ]),
      };
    },
  };
};

/** The public key of the store in `root`, which is made where there is none. */
export const serverKey = (shell: string, root: string): string => {
  execFileSync(shell, ["init", "--root", root], { stdio: "ignore" });
  const said = execFileSync(shell, ["--root", root], {
    env: { ...process.env, SSH_ORIGINAL_COMMAND: "qbackup/1 about" },
    stdio: ["ignore", "pipe", "ignore"],
  }).toString();
  return (JSON.parse(said.trim().split("\n")[0]!) as { readonly server: string }).server;
};
