/** A world: one Qubes with its qubes, in a directory. For tests, and through main.ts for shells. */
// @effect-diagnostics processEnv:off -- no Effect here, and tools live by their environment.
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { startQubesd, selfCommand } from "./client.ts";
import { readFaults, writeFaults } from "./faults.ts";
import type { Fault } from "./faults.ts";
import {
  changeQube,
  defaults,
  endProcess,
  endSession,
  isAlive,
  processes,
  readLines,
  readState,
  serviceUser,
  writeState,
} from "./state.ts";
import type { Call, Process, Qube, Settings, Volume } from "./state.ts";

export type { Fault } from "./faults.ts";
export type { Call, Process, Qube, Settings, Volume } from "./state.ts";
export { imageOf, writeImage } from "./images.ts";

export const TOOLS = [
  "qvm-backup",
  "qvm-backup-restore",
  "qvm-run",
  "qvm-start",
  "qvm-shutdown",
  "qvm-check",
  "qvm-ls",
  "qvm-prefs",
  "qvm-pause",
  "qvm-unpause",
  "qvm-volume",
  "qvm-create",
  "qvm-remove",
  "qvm-tags",
  "notify-send",
  "logger",
  "systemctl",
  "qubesd-query",
];

/** A qube as a test describes it; what is left out is filled in. */
export interface QubeSpec {
  readonly name: string;
  readonly class?: string;
  /** Bytes of the private volume; 0 for none. 256 KiB if it is not said. */
  readonly size?: number;
  /** How many of them are data. */
  readonly data?: number;
  readonly qid?: number;
  readonly state?: string;
  readonly include?: boolean;
  readonly template?: string | null;
  readonly netvm?: string | null;
  readonly providesNetwork?: boolean;
  /** Of its volumes; -1 for no snapshots. */
  readonly revisionsToKeep?: number;
  readonly tags?: ReadonlyArray<string>;
  /** In place of `size` and `data`. */
  readonly volumes?: { readonly [name: string]: Volume };
  readonly files?: { readonly [name: string]: string };
}

export interface WorldOptions {
  readonly dir: string;
  readonly qubes: ReadonlyArray<QubeSpec>;
  readonly settings?: Partial<Settings>;
  /** The bundle of main.ts; `dist/test/standin` below the current directory if it is not said. */
  readonly program?: string;
  /** The node that runs it; the one that runs this. */
  readonly node?: string;
  readonly faults?: ReadonlyArray<Fault>;
}

export interface Notification {
  readonly argv: ReadonlyArray<string>;
  readonly display: string | null;
  readonly bus: string | null;
  readonly delivered: boolean;
}

export interface World {
  readonly dir: string;
  /** The tools, for PATH. They know their world and their node by themselves. */
  readonly bin: string;
  /** The environment of the caller with `bin` first in PATH. */
  readonly env: { readonly [name: string]: string | undefined };
  readonly state: () => { readonly settings: Settings; readonly qubes: ReadonlyArray<Qube> };
  readonly qube: (name: string) => Qube;
  readonly change: (name: string, change: Partial<Qube>) => void;
  readonly home: (qube: string) => string;
  /** Installs a service in a qube's /etc/qubes-rpc: the text of a program, or a link to one. */
  readonly service: (
    qube: string,
    name: string,
    program: { readonly text: string } | { readonly link: string },
    place?: string,
  ) => string;
  /** Replaces all faults. */
  readonly faults: (...faults: ReadonlyArray<Fault>) => void;
  readonly journal: () => Array<string>;
  readonly notifications: () => Array<Notification>;
  readonly calls: (tool?: string) => Array<Call>;
  /** What the stand-in runs: kinds qubesd, qrexec-client, agent, service, tar. */
  readonly processes: (kind?: string) => Array<Process>;
  /** The profiles of qvm-backup that lie about. */
  readonly profiles: () => Array<string>;
  /** Ends qubesd and everything that this world started. The files stay. */
  readonly stop: () => void;
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`;

const template: QubeSpec = {
  name: "tpl",
  class: "TemplateVM",
  include: false,
  volumes: { root: { size: 4194304, data: 65536 }, private: { size: 65536, data: 4096 } },
};

/** Genuine restore wants the template to be known, so there always is one; it has the qid 1. */
const complete = (specs: ReadonlyArray<QubeSpec>): Array<Qube> => {
  const all = specs.some((spec) => spec.class === "TemplateVM") ? specs : [template, ...specs];
  const taken = new Set(all.flatMap(({ qid }) => (qid === undefined ? [] : [qid])));
  const nextQid = (): number => {
    let qid = 1;
    while (taken.has(qid)) qid++;
    taken.add(qid);
    return qid;
  };
  const base = all.find((spec) => spec.class === "TemplateVM")?.name ?? null;
  const dom0: Qube = {
    name: "dom0",
    qid: 0,
    class: "AdminVM",
    state: "Running",
    include_in_backups: true,
    backup_timestamp: null,
    uuid: "00000000-0000-0000-0000-000000000000",
    label: "black",
    template: null,
    tags: [],
    volumes: {},
    files: {},
  };
  const rest = all.map((spec): Qube => {
    const kind = spec.class ?? "AppVM";
    const size = spec.size ?? 256 * 1024;
    const own = {
      size,
      ...(spec.data === undefined ? {} : { data: spec.data }),
      ...(spec.revisionsToKeep === undefined ? {} : { revisions_to_keep: spec.revisionsToKeep }),
    };
    const root = kind === "StandaloneVM" ? { root: own } : {};
    return {
      name: spec.name,
      qid: spec.qid ?? nextQid(),
      class: kind,
      state: spec.state ?? "Halted",
      include_in_backups: spec.include ?? true,
      backup_timestamp: null,
      uuid: crypto.randomUUID(),
      label: "red",
      template: spec.template ?? (kind === "AppVM" || kind === "DispVM" ? base : null),
      ...(spec.netvm === undefined ? {} : { netvm: spec.netvm }),
      ...(spec.providesNetwork === undefined ? {} : { provides_network: spec.providesNetwork }),
      tags: [...(spec.tags ?? []), "audiovm-dom0", "created-by-dom0", "guivm-dom0"],
      volumes: spec.volumes ?? (size === 0 ? {} : { private: own, ...root }),
      files: spec.files ?? {},
    };
  });
  return [dom0, ...rest];
};

/** Makes the directory, from nothing or anew, and starts its qubesd. */
export const initWorld = (options: WorldOptions): void => {
  const program = path.resolve(options.program ?? "dist/test/standin");
  if (!fs.existsSync(program)) throw new Error(`the stand-in is not built: ${program}`);
  fs.mkdirSync(options.dir, { recursive: true });
  const dir = fs.realpathSync(options.dir);
  const node = options.node ?? process.execPath;
  const settings: Settings = { ...defaults, ...options.settings };
  const qubes = complete(options.qubes);
  for (const name of ["bin", "lib", "log", "run", "tmp", "etc/qubes/backup", "home", "root"]) {
    fs.mkdirSync(path.join(dir, name), { recursive: true });
  }
  fs.chmodSync(path.join(dir, "etc/qubes/backup"), 0o770);
  // Services may have a user of their own, whatever the umask was.
  for (const name of [".", "home", "root"]) fs.chmodSync(path.join(dir, name), 0o755);
  fs.rmSync(path.join(dir, "stopped"), { force: true });
  // A copy with this name is CommonJS whatever lies beside it, and stays when the build goes on.
  fs.copyFileSync(program, path.join(dir, "lib", "standin.cjs"));
  for (const tool of TOOLS) {
    const words = selfCommand(dir, node, tool).map(quoted).join(" ");
    const file = path.join(dir, "bin", tool);
    // exec keeps the pid, and with it signals, and a parent's death signal.
    fs.writeFileSync(file, `#!/bin/sh\nexec ${words} "$@"\n`);
    fs.chmodSync(file, 0o755);
  }
  const owner = serviceUser(settings).ids;
  for (const { name } of qubes) {
    const home = path.join(dir, "home", name);
    fs.mkdirSync(home, { recursive: true });
    if (owner !== undefined && name !== "dom0") fs.chownSync(home, owner.uid, owner.gid);
    for (const place of ["run/qubes-rpc", "usr/local/etc/qubes-rpc", "etc/qubes-rpc"]) {
      fs.mkdirSync(path.join(dir, "root", name, place), { recursive: true });
    }
  }
  fs.writeFileSync(path.join(dir, "home", "dom0", ".bashrc"), "# dom0\n");
  for (const file of ["calls.jsonl", "journal.log", "notifications.jsonl"]) {
    fs.writeFileSync(path.join(dir, file), "");
  }
  writeFaults(dir, options.faults ?? []);
  writeState(dir, { settings, qubes });
  startQubesd(dir, node);
};

export const stopWorld = (dir: string): void => {
  fs.writeFileSync(path.join(dir, "stopped"), "");
  // qubesd may have been asked to start a moment ago, and what it runs may start more.
  for (let round = 0; round < 3; round++) {
    for (const each of processes(dir)) {
      if (each.kind === "service" || each.kind === "agent") endSession(each);
      else if (isAlive(each)) endProcess(each.pid);
      fs.rmSync(path.join(dir, "run", `${each.kind}-${each.pid}.json`), { force: true });
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
  }
};

export const installService = (
  dir: string,
  qube: string,
  name: string,
  program: { readonly text: string } | { readonly link: string },
  place = "etc/qubes-rpc",
): string => {
  const file = path.join(dir, "root", qube, place, name);
  fs.rmSync(file, { force: true });
  if ("link" in program) fs.symlinkSync(path.resolve(program.link), file);
  else {
    fs.writeFileSync(file, program.text);
    fs.chmodSync(file, 0o755);
  }
  return file;
};

export const openWorld = (given: string): World => {
  const dir = fs.realpathSync(given);
  const lines = <A>(name: string): Array<A> =>
    readLines(path.join(dir, name)).map((line) => JSON.parse(line) as A);
  const bin = path.join(dir, "bin");
  return {
    dir,
    bin,
    env: { ...process.env, PATH: `${bin}:${process.env["PATH"] ?? "/usr/bin:/bin"}` },
    state: () => readState(dir),
    qube: (name) => {
      const qube = readState(dir).qubes.find((each) => each.name === name);
      if (qube === undefined) throw new Error(`no such qube: ${name}`);
      return qube;
    },
    change: (name, change) => changeQube(dir, name, change),
    home: (qube) => path.join(dir, "home", qube),
    service: (qube, name, program, place) => installService(dir, qube, name, program, place),
    faults: (...faults) => writeFaults(dir, faults),
    journal: () => readLines(path.join(dir, "journal.log")),
    notifications: () => lines<Notification>("notifications.jsonl"),
    calls: (tool) =>
      lines<Call>("calls.jsonl").filter((call) => tool === undefined || call.tool === tool),
    processes: (kind) => processes(dir, kind).filter(isAlive),
    profiles: () => fs.readdirSync(path.join(dir, "etc/qubes/backup")),
    stop: () => stopWorld(dir),
  };
};

export const makeWorld = (options: WorldOptions): World => {
  initWorld(options);
  return openWorld(options.dir);
};

/** A directory that others may pass through, as services with a user of their own must. */
export const temporaryDirectory = (): string => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "standin-"));
  fs.chmodSync(dir, 0o755);
  return dir;
};

/** "64K", "4M", "2G" or bytes. */
export const parseSize = (text: string): number => {
  const parts = /^(\d+)([KMG]?)$/.exec(text);
  if (parts === null) throw new Error(`not a size: ${text}`);
  return Number(parts[1]) * 1024 ** ["", "K", "M", "G"].indexOf(parts[2] ?? "");
};

/** NAME[:SIZE[:CLASS[:DATA]]] */
export const parseQube = (text: string): QubeSpec => {
  const [name = "", size, kind, data] = text.split(":");
  return {
    name,
    ...(size === undefined || size === "" ? {} : { size: parseSize(size) }),
    ...(kind === undefined || kind === "" ? {} : { class: kind }),
    ...(data === undefined ? {} : { data: parseSize(data) }),
  };
};

export const addFault = (dir: string, fault: Fault): void =>
  writeFaults(dir, [...readFaults(dir), fault]);
