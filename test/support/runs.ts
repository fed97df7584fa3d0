/**
 * What the suites over the built programs share: a world for each test, runs of qbackup in it, and
 * what must be so after each of them.
 */
import { afterEach, assert } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { parseManifest } from "#src/proof/texts";
import { imageOf, writeImage } from "#test/standin/world";
import { processesWith } from "#test/support/programs";
import { linesOf, membersOf, rootOf, tableOf } from "#test/support/reference";
import { passphrase, type Ran, type Whole, whole, type WholeOptions } from "#test/support/whole";
import { until } from "#test/support/until";

let now: Whole | undefined;
/** A world of the test's own, which ends with it. */
export const setUp = async (options: WholeOptions = {}): Promise<Whole> =>
  (now = await whole(options));
afterEach(() => {
  now?.stop();
  now = undefined;
});

/** kill -9 of every process whose argv mentions `text`, and how many there were. */
export const kill = (text: string): number => {
  const pids = processesWith(text);
  for (const pid of pids) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It ended between the look and the kill.
    }
  }
  return pids.length;
};

/** Two qubes of which little can be compressed: an upload of some thirty blocks. */
export const big = (work = 24_000_000, vault = 9_000_000): WholeOptions => ({
  qubes: [
    { name: "work", size: work },
    { name: "vault", size: vault },
    { name: "net", size: 0, include: false },
  ],
  settings: { raw: true },
});

// Backups

/** Nothing of the run is left: no process, no FIFO, no directory, no running qube. */
export const tidy = async (w: Whole) => {
  assert.isFalse(fs.existsSync(path.join(w.state, "run")), "the FIFO's directory is left");
  await until("the processes of the run end", () =>
    w.world.processes().every(({ kind }) => kind === "qubesd"),
  );
  await until("qvm-backup ends", () => processesWith(path.join(w.state, "run")).length === 0);
  assert.strictEqual(w.world.qube("net").state, "Halted");
  assert.deepStrictEqual(w.world.profiles(), []);
};
/** What the server lists. */
export const listed = async (w: Whole) => {
  const { stdout } = await w.ssh("qbackup/1 list");
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .filter((reply) => reply.type === "archive" && !reply.damaged);
};
/** What must be so after a run that failed. */
export const failed = async (w: Whole, ran: Ran, code: number, text: RegExp) => {
  assert.strictEqual(ran.code, code, ran.stderr);
  assert.match(ran.stderr, text);
  assert.deepStrictEqual(await listed(w), []);
  assert.lengthOf(w.ledger(), 0);
  await tidy(w);
  assert.match(w.world.journal().join("\n"), /^qbackup user\.err error: /m);
  assert.isTrue(w.world.notifications().some(({ argv }) => argv.includes("--urgency=critical")));
};
/** An archive's members as they lie in its plain file. */
export const membersIn = (bytes: Buffer) => {
  let start = 0;
  return membersOf(bytes).map(({ length, path, size }) => {
    const member = { path, size, length, start };
    start += length;
    return member;
  });
};
/** What must be so after a run that did its job. */
export const stored = async (w: Whole, ran: Ran) => {
  assert.strictEqual(ran.code, 0, ran.stderr);
  const entry = w.ledger().at(-1)!;
  const manifest = parseManifest(entry.manifest)!;
  const bytes = fs.readFileSync(path.join(w.server.store, entry.name));
  assert.strictEqual(bytes.length, manifest.size);
  const lines = linesOf(tableOf(bytes));
  assert.strictEqual(lines.length, manifest.members);
  assert.strictEqual(rootOf(lines), manifest.root);
  const { name, root, session, signer } = manifest;
  assert.containsSubset(await listed(w), [{ name, root, session, signer }]);
  assert.strictEqual(fs.statSync(path.join(w.server.store, name)).mode & 0o777, 0o600);
  await tidy(w);
  return { bytes, manifest, members: membersIn(bytes) };
};
// Restores

export const backup = async (w: Whole, ...args: ReadonlyArray<string>) => {
  const ran = await w.run(...args);
  assert.strictEqual(ran.code, 0, ran.stderr);
  const { name } = w.ledger().at(-1)!;
  return { name, members: membersIn(fs.readFileSync(path.join(w.server.store, name))) };
};
export const restore = (w: Whole, ...args: ReadonlyArray<string>) =>
  w.start("restore", "-t", "net", "-p", w.passphraseFile, ...args).ended;

interface Seen {
  readonly reading: number;
  readonly path: string;
  readonly sha256: string;
}
/** The members that the tool was shown, by reading. */
export const seen = (w: Whole): ReadonlyArray<ReadonlyArray<Seen>> => {
  const file = path.join(w.world.dir, "restored/members.jsonl");
  const all = fs.existsSync(file)
    ? fs
        .readFileSync(file, "utf8")
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line) as Seen)
    : [];
  return [0, 1, 2].map((n) => all.filter(({ reading }) => reading === n));
};
export const paths = (w: Whole) => seen(w).map((reading) => reading.map((member) => member.path));
export const forget = (w: Whole) =>
  fs.rmSync(path.join(w.world.dir, "restored"), { recursive: true, force: true });

/** The image of a volume came back, byte for byte. */
export const cameBack = (w: Whole, name: string, as: string) => {
  const qube = w.world.qube(name);
  const wanted = path.join(w.dir, "wanted.img");
  for (const [volume, described] of Object.entries(qube.volumes)) {
    writeImage(imageOf(qube, volume, described), wanted);
    const got = fs.readFileSync(path.join(w.world.dir, "restored", as, `${volume}.img`));
    assert.isTrue(got.equals(fs.readFileSync(wanted)), `${name}: ${volume}`);
  }
};

/** No process, no FIFO, no running qube, whatever happened. */
export const tidyRestore = async (w: Whole) => {
  assert.isFalse(fs.existsSync(path.join(w.state, "restore")), "the FIFOs' directory is left");
  await until("the tool ends", () => processesWith(path.join(w.state, "restore")).length === 0);
  assert.strictEqual(w.world.qube("net").state, "Halted");
};
export const notRestored = async (w: Whole, ran: Ran, code: number, text: RegExp) => {
  assert.strictEqual(ran.code, code, ran.stderr);
  assert.match(ran.stderr, text);
  assert.notInclude(ran.stderr, passphrase);
  await tidyRestore(w);
};

// Reading back

/** Runs `qbackup ARGS` to its end; nothing that it started is left. */
export const qbackup = async (w: Whole, ...args: ReadonlyArray<string>) => {
  const ran = await w.start(args[0]!, "-t", "net", ...args.slice(1)).ended;
  assert.strictEqual(w.world.qube("net").state, "Halted");
  assert.notMatch(ran.stdout + ran.stderr, /[^\x20-\x7e\n]/);
  return ran;
};
/** What list says of each archive. */
export const proofs = (json: string) =>
  new Map(
    (JSON.parse(json) as Array<{ name: string; proof: string }>).map((row) => [
      row.name,
      row.proof,
    ]),
  );
/** Changes a stored file as somebody does who has the server. */
export const change = (w: Whole, name: string, how: (bytes: Buffer) => Buffer) => {
  const file = path.join(w.server.store, name);
  const bytes = fs.readFileSync(file);
  fs.writeFileSync(file, how(bytes));
  return () => fs.writeFileSync(file, bytes);
};
