/**
 * Nights of a volume in a thin pool, in the guest: device mapper's own targets below, above them what the
 * LVM driver of Qubes does with the volume of a qube that runs and stops (read: qubes-core-admin,
 * qubes/storage/lvm.py), the stand-in's qubesd, qbackup and the carrier as they were built, and the shell
 * under its profile behind sshd.
 *
 * Left out, for the time that an emulated processor takes: qrexec between dom0 and the carrier, and a restore
 * through qbackup; the stand-in's qvm-backup-restore reads what lies on the server. Both are in test/e2e.
 */
import { execFileSync, spawn } from "node:child_process";
import * as crypto from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import { makeWorld, type World } from "#test/standin/world";
import { mebi, membersOf, spread } from "#test/support/reference";

/** No single run takes longer, in milliseconds, on a busy machine either. */
const limit = 600_000;

/** Bytes of the volume, 64 slots, of which the first three have data. */
const size = 256 * mebi;
const sector = 512;
/** Of the pool, in sectors; no less is possible. */
const block = 128;

/** As LVM names them: a dash of a name is doubled. */
const mapper = (name: string) => `/dev/mapper/qubes_dom0-${name.replaceAll("-", "--")}`;
const pool = mapper("vm-pool");
const volume = mapper("vm-work-private");
/** What the qube writes to while it runs; its volume from its stop on. */
const snap = mapper("vm-work-private-snap");
/** The volume of before its stop. */
const back = mapper("vm-work-private-back");

// No udev is there to make the devices' files.
const dmsetup = (...args: ReadonlyArray<string>): string =>
  execFileSync("/usr/bin/dmsetup", args, {
    encoding: "utf8",
    env: { ...process.env, DM_DISABLE_UDEV: "1" },
    timeout: limit,
  });
const nameOf = (device: string) => device.slice("/dev/mapper/".length);
const create = (device: string, sectors: number, target: string) =>
  dmsetup("create", nameOf(device), "--table", `0 ${sectors} ${target}`);
const activate = (device: string, id: number) =>
  create(device, size / sector, `thin ${pool} ${id}`);
const message = (text: string) => dmsetup("message", nameOf(pool), "0", text);
/** Bytes of a volume that the pool has room for; the rest are holes. */
const provided = (device: string): number =>
  Number(dmsetup("status", nameOf(device)).split(" ")[3]) * sector;

/** The qube starts: what it has from now on is a snapshot of its volume. */
const start = (w: World, from: number, id: number) => {
  dmsetup("suspend", nameOf(volume));
  message(`create_snap ${id} ${from}`);
  dmsetup("resume", nameOf(volume));
  activate(snap, id);
  w.change("work", { state: "Running" });
};
/** It stops: the snapshot is its volume, and what was its volume a revision. */
const stop = (w: World) => {
  dmsetup("rename", nameOf(volume), nameOf(back));
  dmsetup("rename", nameOf(snap), nameOf(volume));
  w.change("work", { state: "Halted" });
};

/** To the disk: another device looks at the same blocks. */
const write = (device: string, ...places: ReadonlyArray<readonly [at: number, bytes: Buffer]>) => {
  const file = fs.openSync(device, "r+");
  for (const [at, bytes] of places) fs.writeSync(file, bytes, 0, bytes.length, at);
  fs.fsyncSync(file);
  fs.closeSync(file);
};
const random = (bytes: number) => crypto.randomBytes(bytes);
const discard = (device: string, at: number, bytes: number) =>
  execFileSync("/usr/bin/blkdiscard", ["-o", `${at}`, "-l", `${bytes}`, device]);

/** Where a file is not what is on the device; undefined: nowhere. */
const differ = (file: string, device: string): string | undefined => {
  const [one, other] = [fs.openSync(file, "r"), fs.openSync(device, "r")];
  const [a, b] = [Buffer.alloc(mebi), Buffer.alloc(mebi)];
  try {
    for (let at = 0; ; at += mebi) {
      const [got, wanted] = [fs.readSync(one, a, 0, mebi, at), fs.readSync(other, b, 0, mebi, at)];
      if (got !== wanted) return `it ends at ${at + got}, the snapshot at ${at + wanted}`;
      if (!a.subarray(0, got).equals(b.subarray(0, got))) return `within the MiB at ${at}`;
      if (got === 0) return undefined;
    }
  } finally {
    fs.closeSync(one);
    fs.closeSync(other);
  }
};

interface Night {
  readonly name: string;
  readonly session: string;
  /** Of the pack. */
  readonly bytes: number;
  /** The numbers of the volume's members that are in the pack. */
  readonly cells: string;
}

/**
 * Steps as the table shows them. `account` is that of an empty store on this machine, `ssh` are the words
 * that lead there.
 */
export const thinNights = async (
  account: string,
  ssh: ReadonlyArray<string>,
  step: (name: string, attempt: () => Promise<string>) => Promise<void>,
): Promise<void> => {
  const dir = "/tmp/dom0";
  fs.mkdirSync(`${dir}/bin`, { recursive: true });
  const passphrase = `${dir}/passphrase`;
  fs.writeFileSync(passphrase, "correct horse battery staple\n", { mode: 0o600 });
  const script = (file: string, text: string) =>
    fs.writeFileSync(file, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  script(`${dir}/bin/ssh`, `exec /usr/bin/ssh ${ssh.join(" ")} "$@"`);
  const w = makeWorld({
    dir: `${dir}/qubes`,
    program: "/test/standin",
    qubes: [
      { name: "work", qid: 2, volumes: { private: { size, file: volume } } },
      { name: "net", size: 0, include: false, state: "Running" },
    ],
    settings: { blockDevices: true },
  });
  // Each start of node takes a second of an emulated processor, so these are none of the stand-in's.
  for (const tool of ["logger", "notify-send"]) script(`${w.bin}/${tool}`, "exit 0");
  const carrier = `HOME=${w.home("net")} PATH=${dir}/bin:$PATH exec /test/qubes.BackupCarrier`;
  script(`${w.bin}/qvm-run`, `for service; do :; done\n${carrier} "\${service#*+}"`);
  fs.writeFileSync(`${w.home("net")}/.bashrc`, `SSH_CONN=${account}@127.0.0.1\n`);
  const env = { ...w.env, HOME: w.home("dom0"), XDG_STATE_HOME: `${dir}/state` };
  const run = async (program: string, ...words: ReadonlyArray<string>) => {
    const child = spawn(program, words, {
      env,
      stdio: ["ignore", "ignore", "pipe"],
      timeout: limit,
      killSignal: "SIGKILL",
    });
    let said = "";
    child.stderr.on("data", (bytes: Buffer) => (said += bytes.toString()));
    const [code] = (await once(child, "close")) as [number | null];
    if (code !== 0) throw new Error(`${program}: exit ${code}: ${said}`);
  };

  const books = `/home/${account}/.qbackup`;
  /** Makes an archive of the volume. */
  const night = async (): Promise<Night> => {
    const before = [volume, snap].map(provided);
    await run("/test/qbackup", "-t", "net", "-p", passphrase, "work");
    // What is only read stays a hole.
    if (before.join() !== [volume, snap].map(provided).join()) throw new Error("it took room");
    const entry = fs
      .readFileSync(`${dir}/state/qbackup/ledger.jsonl`, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { name: string; manifest: string })
      .at(-1)!;
    const { format, session } = JSON.parse(entry.manifest) as { format: string; session: string };
    if (format !== "slots") throw new Error(`the archive is one of ${format}`);
    const pack = fs.readFileSync(`${books}/packs/${session}`);
    const cells = membersOf(pack)
      .map(({ path }) => /^vm2\/private\.img\.(\d+)\.enc$/.exec(path)?.[1])
      .filter((number) => number !== undefined);
    return { name: entry.name, session, bytes: pack.length, cells: cells.sort().join(" ") };
  };
  /**
   * The archive as it lies on the server, restored, is what the device has; and not what the other night's
   * has, so that this could have failed.
   */
  const comesBack = async ({ name, session }: Night, device: string, other: string) => {
    const pack = (of: string) => membersOf(fs.readFileSync(`${books}/packs/${of}`));
    const members = spread(fs.readFileSync(`${books}/recipes/${session}`, "utf8"));
    const packs = new Map([...new Set(members.map(([of]) => of))].map((of) => [of, pack(of)]));
    const archive = `${dir}/${name}`;
    fs.writeFileSync(archive, Buffer.concat(members.map(([of, i]) => packs.get(of)![i]!.bytes)));
    const file = `${w.dir}/restored/work-1/private.img`;
    fs.rmSync(file, { force: true });
    await run("qvm-backup-restore", "--rename-conflicting", "-p", passphrase, archive);
    const where = differ(file, device);
    if (where !== undefined) throw new Error(`it came back otherwise: ${where}`);
    const control = differ(file, other);
    if (control !== `within the MiB at ${5 * mebi}`)
      throw new Error(`the other night's: ${control}`);
    return `${size} bytes, identical; the other night's are not`;
  };
  const nights: Array<Night> = [];

  await step("a thin pool, and a volume of 256 MiB", async () => {
    // LVM writes zeros to the start of a new pool's metadata; so are those of a new /dev/ram0.
    create(pool, (64 * mebi) / sector, `thin-pool /dev/ram0 /dev/ram1 ${block} 0`);
    message("create_thin 0");
    activate(volume, 0);
    write(
      volume,
      [4096, random(3 * mebi)],
      [5 * mebi + sector, random(mebi)],
      [11 * mebi, random(sector)],
      // These are provided for, though they are nothing but zeros.
      [13 * mebi, Buffer.alloc(mebi)],
    );
    const has = provided(volume);
    if (has < 5 * mebi || has > 6 * mebi) throw new Error(`it takes ${has} bytes`);
    return `${has} bytes provided`;
  });
  await step("the qube starts and writes; the night has what was before", async () => {
    start(w, 0, 1);
    write(
      snap,
      [5 * mebi + 300_000, random(4096)],
      [150 * mebi, random(300_000)],
      // The last of the volume: no hole is behind it then.
      [size - sector, random(sector)],
    );
    discard(snap, 5 * mebi + 512 * 1024, 256 * 1024);
    nights.push(await night());
    const [{ bytes, cells }] = nights as [Night];
    // Three slots, and what is behind them: eight, thrice sixteen, four and one.
    const all = Array.from({ length: 17 }, (_, i) => String(i).padStart(3, "0")).join(" ");
    if (cells !== all) throw new Error(`cells ${cells}`);
    return `all of 17 members, ${bytes} bytes`;
  });
  await step("it stops, starts again and writes; the night has what changed", async () => {
    stop(w);
    start(w, 1, 2);
    write(snap, [mebi, random(mebi)]);
    nights.push(await night());
    const { bytes, cells } = nights[1]!;
    // The map; the second slot; the wide cells that have data now.
    if (cells !== "000 002 013 016") throw new Error(`cells ${cells}`);
    return `4 of 17 members, ${bytes} bytes`;
  });
  await step("the first night comes back", () => comesBack(nights[0]!, back, volume));
  await step("the second night comes back", () => comesBack(nights[1]!, volume, back));
  w.stop();
};
