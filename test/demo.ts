/**
 * `make demo`: the whole job, seen from the outside. A stand-in Qubes, the three built programs, the
 * system's ssh and an sshd of its own on loopback; the link is cut in the middle. Everything lies
 * below one temporary directory and is removed at the end.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import { fingerprint, signatureHolds } from "#src/proof/keys";
import { parseManifest, parseReceipt } from "#src/proof/texts";
import { PublicKey } from "#src/wire/names";
import { linesOf, rootOf, tableOf } from "#test/support/reference";
import { processesWith } from "#test/support/programs";
import { dist, whole } from "#test/support/whole";

const step = (text: string) => process.stdout.write(`\n== ${text}\n`);
const line = (text: string) => process.stdout.write(`   ${text}\n`);

const w = await whole({
  qubes: [
    { name: "work", size: 40_000_000 },
    { name: "vault", size: 12_000_000 },
    { name: "net", size: 0, include: false },
  ],
});
const stop = () => {
  w.stop();
  process.exit(1);
};
process.once("SIGINT", stop).once("SIGTERM", stop);

try {
  step("Two qubes in a stand-in Qubes, and a server on loopback");
  line("work (40 MB) and vault (12 MB); net holds the ssh key and carries");
  line(
    `sshd on 127.0.0.1:${w.server.port}, account ${w.server.account}, whose only program is qbackup-shell`,
  );
  w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 4_000_000 });

  step("qbackup -o -f demo- -t net -p passphrase work vault");
  const env = { ...w.world.env, HOME: w.world.home("dom0"), XDG_STATE_HOME: path.dirname(w.state) };
  const run = spawn(
    dist("qbackup"),
    ["-o", "-f", "demo-", "-t", "net", "-p", w.passphraseFile, "work", "vault"],
    { env, stdio: "inherit" },
  );
  const ended = once(run, "exit") as Promise<[number | null]>;

  // In the middle: when the server has some blocks on its disk, kill its side of the connection.
  while (run.exitCode === null && w.arrived() < 12 * 1_048_576)
    await new Promise((next) => setTimeout(next, 50));
  for (const pid of processesWith(path.join(w.dir, "bin/qbackup-shell"))) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Gone between the look and the kill.
    }
  }
  const [code] = await ended;
  if (code !== 0) throw new Error(`qbackup ended with exit code ${code}`);

  step("What lies on the server");
  for (const name of w.stored()) {
    const { mode, size } = fs.statSync(path.join(w.server.store, name));
    line(`${(mode & 0o777).toString(8).padStart(4, "0")} ${String(size).padStart(10)}  ${name}`);
  }
  const entry = w.ledger().at(-1) as ReturnType<typeof w.ledger>[number] & {
    receipt: string;
    receiptSignature: string;
    server: string;
  };
  const server = PublicKey.make(entry.server);
  line(`receipt: ${entry.receipt}`);

  step("qbackup list -t net");
  process.stdout.write((await w.start("list", "-t", "net").ended).stdout);

  step("How it is proven");
  const manifest = parseManifest(entry.manifest)!;
  const receipt = parseReceipt(entry.receipt)!;
  const bytes = fs.readFileSync(path.join(w.server.store, entry.name));
  const root = rootOf(linesOf(tableOf(bytes)));
  const proven =
    bytes.length === manifest.size &&
    root === manifest.root &&
    receipt.root === manifest.root &&
    signatureHolds(server, "receipt", entry.receipt, entry.receiptSignature);
  if (!proven) throw new Error("the archive is not what dom0 sent");
  line(
    `proven: the ${bytes.length} bytes on the server's disk have the root ${root.slice(0, 16)}..., which dom0 computed itself; ${manifest.members} members, complete; receipt signed by the key that dom0 pinned, whose fingerprint is ${fingerprint(server)}`,
  );
} finally {
  w.stop();
}
