/**
 * `make demo`: the whole job, seen from the outside. A stand-in Qubes, the three built programs, the
 * system's ssh and an sshd of its own on loopback; the link is cut in the middle of the first night, and
 * little changes before the second. Everything lies below one temporary directory and is removed at the
 * end.
 */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import { fingerprint, signatureHolds } from "#src/proof/keys";
import { parseManifest, parseReceipt } from "#src/proof/texts";
import { PublicKey } from "#src/wire/names";
import { processesWith } from "#test/support/programs";
import { dist, execute, whole } from "#test/support/whole";

const step = (text: string) => process.stdout.write(`\n== ${text}\n`);
const line = (text: string) => process.stdout.write(`   ${text}\n`);

const w = await whole({
  format: "slots",
  qubes: [
    { name: "work" },
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
  const image = path.join(w.dir, "work.img");
  const bytes = randomBytes(40_000_000);
  const save = () => {
    fs.writeFileSync(image, bytes);
    w.world.change("work", { volumes: { private: { size: bytes.length, file: image } } });
  };
  save();
  line("work (40 MB) and vault (12 MB); net holds the ssh key and carries");
  line(
    `sshd on 127.0.0.1:${w.server.port}, account ${w.server.account}, whose only program is qbackup-shell`,
  );

  const words = ["-o", "-f", "demo-", "-t", "net", "-p", w.passphraseFile, "work", "vault"];
  step("qbackup -o -f demo- -t net -p passphrase work vault");
  const env = { ...w.world.env, HOME: w.world.home("dom0"), XDG_STATE_HOME: path.dirname(w.state) };
  const night = () => {
    const run = spawn(dist("qbackup"), words, { env, stdio: "inherit" });
    const ended = once(run, "exit").then(([code]) => {
      if (code !== 0) throw new Error(`qbackup ended with exit code ${String(code)}`);
    });
    return { run, ended };
  };
  const { ended, run } = night();

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
  await ended;

  step("The next night, of which 4 KB of work are new");
  randomBytes(4096).copy(bytes, 5_000_000);
  save();
  await night().ended;

  step("What lies on the server, of both nights");
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
  const plain = path.join(w.dir, "plain");
  const recover = async (...args: ReadonlyArray<string>) => {
    const ran = await execute(["sh", "install/qbackup-recover", ...args]).ended;
    if (ran.code !== 0) throw new Error(ran.stderr);
    return ran.stdout;
  };
  await recover("fetch", w.server.store, entry.name, plain, manifest.root);
  const proven =
    fs.statSync(plain).size === manifest.size &&
    (await recover("root", plain)).includes(manifest.root) &&
    receipt.root === manifest.root &&
    signatureHolds(server, "receipt", entry.receipt, entry.receiptSignature);
  if (!proven) throw new Error("the archive is not what dom0 sent");
  line(
    `proven: the second archive as one file, ${manifest.size} bytes out of what is on the server's disk, has the root ${manifest.root.slice(0, 16)}..., which dom0 computed itself; ${manifest.members} members, complete; receipt signed by the key that dom0 pinned, whose fingerprint is ${fingerprint(server)}`,
  );
} finally {
  w.stop();
}
