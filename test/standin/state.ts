/**
 * What the stand-in knows, as files under one directory, so that a test or a shell can look at it
 * and change it while it runs:
 *
 *     qubes.json           settings and qubes
 *     faults.json          what shall go wrong (the table is in faults.ts)
 *     calls.jsonl          every call of every tool: argv, environment, umask
 *     journal.log          what was logged, one "TAG PRIO message" a line
 *     notifications.jsonl  what notify-send was asked to show
 *     home/QUBE            home of the qube's user; home/dom0 is the one that a backup of dom0 holds
 *     root/QUBE            its file system, as far as qrexec looks at it: etc/qubes-rpc and its kin
 *     etc/qubes/backup     the profiles of qvm-backup, with the passphrase in clear
 *     log/                 qubesd, and the stderr of every qube's services
 *     volumes/             the images that were imported
 *     run/                 one file for each process that the stand-in started
 *     tmp/                 the temporary directory of qubesd, unless the settings name another
 */
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";

export interface Volume {
  /** Bytes of the image. */
  readonly size: number;
  /** How many of them are data, the rest being holes; all, if it is not said. */
  readonly data?: number;
  /** What the pseudo-random content is made from; qube and volume, if it is not said. */
  readonly seed?: string;
  /** A file or a block device whose bytes are the image; `size` is then what it has. */
  readonly file?: string;
  /** 2, if it is not said. -1: no snapshots, so that it cannot be backed up while the qube runs. */
  readonly revisions_to_keep?: number;
}

export interface Qube {
  readonly name: string;
  readonly qid: number;
  readonly class: string;
  /** Halted, Transient, Running, Paused or NA (a RemoteVM). */
  state: string;
  include_in_backups: boolean;
  /** Epoch seconds; null until the first backup. */
  backup_timestamp: number | null;
  readonly uuid: string;
  readonly label: string;
  readonly template: string | null;
  /** Not said: the default, of which there is none here. Null: no network. */
  readonly netvm?: string | null;
  readonly provides_network?: boolean;
  readonly tags: ReadonlyArray<string>;
  /** private, and root where the qube has one of its own. None: the archive holds vmQID/empty. */
  readonly volumes: { readonly [name: string]: Volume };
  /** Small files saved with the qube: firewall.xml, notes.txt, whitelisted-appmenus.list. */
  readonly files: { readonly [name: string]: string };
}

export interface Settings {
  /** Bytes of a full chunk before encryption; Qubes has 100 MiB. */
  readonly chunkSize: number;
  /** Cost of scrypt; Qubes has about 20, 8, 1, which takes seconds for each member. */
  readonly logN: number;
  readonly r: number;
  readonly p: number;
  /** The GNU tar that writes the members. */
  readonly tar: "1.34" | "1.35";
  /** Volumes are block devices, as of LVM: a program of qubesd's own reads them. */
  readonly blockDevices: boolean;
  /** Members in the right form with filler instead of ciphertext, for archives of benchmark size. */
  readonly raw: boolean;
  /** TMPDIR of qubesd, as a drop-in for qubesd.service would set it. */
  readonly tmpdir: string | null;
  /** Put in front of PATH for services, after the login shell has read its profiles. */
  readonly extraPath: ReadonlyArray<string>;
  /** When root runs the stand-in: who services run as. Null: stay. */
  readonly user: string | null;
  /** The user of dom0; names dom0-home/USER in the archive. */
  readonly dom0User: string;
  readonly startMs: number;
  readonly stopMs: number;
  /**
   * Give the caller's descriptors to the service itself, for benchmarks. Killing qrexec-client then
   * does not end the service's stdin, as it does otherwise and in Qubes.
   */
  readonly directIo: boolean;
  /**
   * Laxer than the genuine agent: close what leads to a service when its client is gone, so that
   * the service always notices.
   */
  readonly agentCloses: boolean;
  /**
   * What is restored becomes a qube of this world, as in Qubes. Otherwise only its files are written, so
   * that a test can restore the same archive again and again.
   */
  readonly keepsRestored: boolean;
}

export const defaults: Settings = {
  chunkSize: 100 * 1024 * 1024,
  logN: 10,
  r: 8,
  p: 1,
  tar: "1.35",
  blockDevices: false,
  raw: false,
  tmpdir: null,
  extraPath: [],
  user: null,
  dom0User: "user",
  startMs: 0,
  stopMs: 0,
  directIo: false,
  agentCloses: false,
  keepsRestored: false,
};

export interface State {
  readonly settings: Settings;
  readonly qubes: Array<Qube>;
}

export const readState = (dir: string): State => {
  const stored = JSON.parse(fs.readFileSync(path.join(dir, "qubes.json"), "utf8")) as State;
  return { settings: { ...defaults, ...stored.settings }, qubes: stored.qubes };
};

/** Readers never see half a file. */
export const replaceFile = (file: string, text: string): void => {
  const next = `${file}.${process.pid}`;
  fs.writeFileSync(next, text);
  fs.renameSync(next, file);
};

export const writeState = (dir: string, state: State): void =>
  replaceFile(path.join(dir, "qubes.json"), `${JSON.stringify(state, null, 2)}\n`);

export const changeQube = (
  dir: string,
  name: string,
  change: { readonly [Key in keyof Qube]?: Qube[Key] | undefined },
): void =>
  locked(dir, "state", () => {
    const state = readState(dir);
    const at = state.qubes.findIndex((qube) => qube.name === name);
    const qube = state.qubes[at];
    if (qube === undefined) throw new Error(`no such qube: ${name}`);
    state.qubes[at] = { ...qube, ...change } as Qube;
    writeState(dir, state);
  });

/** One more qube, with the lowest id that is free; false where there is one of that name. */
export const addQube = (dir: string, qube: Omit<Qube, "qid" | "uuid">): boolean =>
  locked(dir, "state", () => {
    const state = readState(dir);
    if (state.qubes.some(({ name }) => name === qube.name)) return false;
    let qid = 1;
    while (state.qubes.some((each) => each.qid === qid)) qid++;
    state.qubes.push({ ...qube, qid, uuid: crypto.randomUUID() });
    writeState(dir, state);
    return true;
  });

export const removeQube = (dir: string, name: string): void =>
  locked(dir, "state", () => {
    const state = readState(dir);
    writeState(dir, { ...state, qubes: state.qubes.filter((qube) => qube.name !== name) });
  });

/** A paused qube runs, as Qubes sees it. */
export const isRunning = ({ state }: Pick<Qube, "state">): boolean =>
  state !== "Halted" && state !== "NA";

/** A directory is the lock. One left behind by a killed process is taken over after a while. */
export const locked = <A>(dir: string, what: string, body: () => A): A => {
  const lock = path.join(dir, "run", `${what}.lock`);
  for (let tries = 0; ; tries++) {
    try {
      fs.mkdirSync(lock);
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      if (tries === 400) fs.rmSync(lock, { recursive: true, force: true });
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
  try {
    return body();
  } finally {
    fs.rmSync(lock, { recursive: true, force: true });
  }
};

export const sha256 = (text: string): Buffer => crypto.createHash("sha256").update(text).digest();

/** Appends one line; short appends of several processes do not mix. */
export const appendLine = (file: string, line: string): void => {
  fs.appendFileSync(file, `${line}\n`);
};

export interface Call {
  readonly tool: string;
  readonly argv: ReadonlyArray<string>;
  readonly pid: number;
  readonly time: number;
  readonly cwd: string;
  readonly umask: number;
  readonly env: { readonly [name: string]: string | undefined };
}

export const recordCall = (
  dir: string,
  tool: string,
  argv: ReadonlyArray<string>,
  env: Call["env"],
): void => {
  const call: Call = {
    tool,
    argv,
    pid: process.pid,
    time: Date.now(),
    cwd: process.cwd(),
    umask: process.umask(),
    env,
  };
  appendLine(path.join(dir, "calls.jsonl"), JSON.stringify(call));
};

/** The whole lines: one that another process is writing may be there in part. */
export const readLines = (file: string): Array<string> =>
  fs.existsSync(file)
    ? fs
        .readFileSync(file, "utf8")
        .split("\n")
        .slice(0, -1)
        .filter((line) => line !== "")
    : [];

/** A process that the stand-in started, with its start time, because pids come back. */
export interface Process {
  readonly kind: string;
  readonly pid: number;
  readonly started: string;
  readonly vm?: string;
  readonly service?: string;
}

/** The fields of /proc/PID/stat behind the name: state, ppid, pgrp, session, ..., start time. */
const stat = (pid: number): Array<string> | undefined => {
  try {
    const text = fs.readFileSync(`/proc/${pid}/stat`, "utf8");
    return text.slice(text.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
};

const started = (pid: number): string | undefined => stat(pid)?.[19];

export const isAlive = (process: Process): boolean => {
  const fields = stat(process.pid);
  return fields !== undefined && fields[19] === process.started && fields[0] !== "Z";
};

export const remember = (
  dir: string,
  kind: string,
  pid: number,
  more: { readonly vm?: string; readonly service?: string } = {},
): (() => void) => {
  const file = path.join(dir, "run", `${kind}-${pid}.json`);
  const record: Process = { kind, pid, started: started(pid) ?? "", ...more };
  replaceFile(file, JSON.stringify(record));
  return () => fs.rmSync(file, { force: true });
};

export const processes = (dir: string, kind?: string): Array<Process> => {
  const found: Array<Process> = [];
  for (const file of fs.readdirSync(path.join(dir, "run"))) {
    if (!/^[a-z-]+-\d+\.json$/.test(file)) continue;
    try {
      const text = fs.readFileSync(path.join(dir, "run", file), "utf8");
      const record = JSON.parse(text) as Process;
      if (kind === undefined || record.kind === kind) found.push(record);
    } catch {
      // It ended while we looked.
    }
  }
  return found;
};

/** A service is the leader of a session; what it started in it goes with it, as with a halted qube. */
export const endSession = (leader: Process): void => {
  for (const entry of fs.readdirSync("/proc")) {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) continue;
    const fields = stat(pid);
    if (fields === undefined || Number(fields[3]) !== leader.pid) continue;
    // Older than the leader: the number was used before, for something that is not ours.
    if (BigInt(fields[19] ?? "0") < BigInt(leader.started || "0")) continue;
    endProcess(pid);
  }
};

export const endProcess = (pid: number): void => {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // Gone already.
  }
};

/** Waits for ever, but for a world that was stopped. */
export const hang = async (dir: string, ms = Number.POSITIVE_INFINITY): Promise<void> => {
  const end = Date.now() + ms;
  while (Date.now() < end && !fs.existsSync(path.join(dir, "stopped"))) {
    await sleep(Math.min(100, Math.max(1, end - Date.now())));
  }
};

export const sleep = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

export const tmpdirOf = (dir: string, settings: Settings): string =>
  settings.tmpdir ?? path.join(dir, "tmp");

/** Who a service runs as: a name, and numbers if that is not who runs the stand-in. */
export const serviceUser = (
  settings: Settings,
): { readonly name: string; readonly ids: { uid: number; gid: number } | undefined } => {
  if (settings.user === null || process.getuid?.() !== 0) {
    return { name: os.userInfo().username, ids: undefined };
  }
  const line = readLines("/etc/passwd").find((entry) => entry.startsWith(`${settings.user}:`));
  const [, , uid, gid] = (line ?? "").split(":");
  if (uid === undefined || gid === undefined) throw new Error(`no such user: ${settings.user}`);
  return { name: settings.user, ids: { uid: Number(uid), gid: Number(gid) } };
};
