/**
 * The stand-in's qubesd, a process of its own. It has one thread and opens the place of a backup
 * with a plain, blocking open: with nobody at the other end of a FIFO, everything that asks it
 * hangs until somebody comes (docs/qubes.md, FIFO).
 */
import * as child_process from "node:child_process";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { backupId, damaged, membersOf, planBackup, remade, Unarchived } from "./archive.ts";
import type { Member, Plan, Recipe } from "./archive.ts";
import { selfCommand, socketName } from "./client.ts";
import type { Reply, Request } from "./client.ts";
import { readFaults, takeFault, takeFaults } from "./faults.ts";
import type { Fault } from "./faults.ts";
import { profileFile, readProfile } from "./profile.ts";
import {
  addQube,
  changeQube,
  endProcess,
  endSession,
  isRunning,
  processes,
  readState,
  remember,
  removeQube,
  sleep,
  tmpdirOf,
} from "./state.ts";
import type { Qube, State } from "./state.ts";
import { outerLength } from "./tar.ts";

/** An answer that is no answer: what went wrong is only in the journal of qubesd. */
class Internal extends Error {}
class QubesException extends Error {
  readonly kind: string | undefined;
  constructor(message: string, kind?: string) {
    super(message);
    this.kind = kind;
  }
}
class Traceback extends Error {}

const sizeToHuman = (size: number): string => {
  const rounded = (value: number) => {
    const text = String(Math.round(value * 10) / 10);
    return text.includes(".") ? text : `${text}.0`;
  };
  if (size < 1024) return String(size);
  if (size < 1024 ** 2) return `${rounded(size / 1024)} KiB`;
  if (size < 1024 ** 3) return `${rounded(size / 1024 ** 2)} MiB`;
  return `${rounded(size / 1024 ** 3)} GiB`;
};

/** Nothing of it can be read while it runs. */
const withoutSnapshots = (qube: Qube): boolean =>
  Object.values(qube.volumes).some((volume) => volume.revisions_to_keep === -1);

const typeOf = (qube: Qube): string => {
  if (qube.qid === 0) return "User home";
  if (qube.class === "TemplateVM") return "Template VM";
  return qube.class === "StandaloneVM" ? "VM + Sys" : "VM";
};

const WIDTHS = [17, 13, 13];
const rule = `${WIDTHS.map((width) => `${"-".repeat(width)}-+`).join("")}\n`;
const row = (cells: ReadonlyArray<string>): string =>
  cells.map((cell, index) => `${cell.padStart(WIDTHS[index] ?? 0)} |`).join("");

/** The table that qvm-backup prints. Nobody should parse it, so it has to be there. */
const summaryOf = (state: State, plan: Plan): string => {
  let text = `${rule}${row(["VM", "type", "size"])}\n${rule}`;
  for (const qube of plan.included) {
    text += row([qube.name, typeOf(qube), sizeToHuman(plan.sizes.get(qube.qid) ?? 0)]);
    if (qube.qid !== 0 && isRunning(qube)) {
      text += withoutSnapshots(qube)
        ? " <-- The VM is running and private volume snapshots are disabled. Backup will fail!"
        : " <-- The VM is running, backup will contain its state from before its start!";
    }
    text += "\n";
  }
  const total = sizeToHuman(plan.total).padStart(13 + 2 + 13);
  text += `${rule}${"Total size:".padStart(17)} |${total} |\n${rule}`;
  const others = state.qubes.filter((qube) => !plan.included.includes(qube));
  text += "VMs not selected for backup:\n - ";
  return `${text}${others
    .map(({ name }) => name)
    .sort()
    .join("\n - ")}\n`;
};

/** Special names work in profiles; no qube has a glob (docs/qubes.md, Names and the default set). */
const matches = (qube: Qube, pattern: string): boolean => {
  if (pattern.startsWith("@tag:")) return qube.tags.includes(pattern.slice(5));
  if (pattern.startsWith("@type:")) return qube.class === pattern.slice(6);
  return qube.name === pattern;
};

const isList = (
  value: string | ReadonlyArray<string> | undefined,
): value is ReadonlyArray<string> => Array.isArray(value);

const planOf = (
  dir: string,
  state: State,
  name: string,
): { plan: Plan; profile: NonNullable<ReturnType<typeof readProfile>> } => {
  const profile = readProfile(dir, name);
  if (profile === undefined) {
    throw new QubesException(`Backup profile ${profileFile("/", name)} does not exist`);
  }
  if (!("include" in profile))
    throw new QubesException("Invalid backup profile - missing 'include'");
  const { include, exclude } = profile;
  const named = isList(include);
  const chosen = state.qubes
    .filter((qube) =>
      named ? include.some((pattern) => matches(qube, pattern)) : qube.include_in_backups,
    )
    .filter((qube) => !(isList(exclude) && exclude.some((pattern) => matches(qube, pattern))))
    .sort((a, b) => {
      // By name for the default set; an explicit list comes in the order of a set of Python.
      const key = (qube: Qube) => (named ? (qube.uuid[0] ?? "") + qube.name : qube.name);
      return key(a) < key(b) ? -1 : 1;
    });
  return { plan: planBackup(dir, state.settings, state.qubes, chosen), profile };
};

/** Members of a faulty archive, made from those of a good one. */
async function* mangled(
  recipe: Recipe,
  faults: ReadonlyArray<Fault>,
  plan: Plan,
  members: AsyncIterable<Member>,
): AsyncGenerator<Member> {
  const of = (kind: string) => faults.find((fault) => fault.kind === kind);
  const done = new Set<string>();
  /** Whether this is the member that a fault means; each has one, unless `each`. */
  const hit = (kind: string, member: Member, otherwise: boolean, each = false): boolean => {
    const fault = of(kind);
    if (fault === undefined || (done.has(kind) && !each)) return false;
    const meant = fault.member === undefined ? otherwise : fault.member === member.name;
    if (meant) done.add(kind);
    return meant;
  };
  const lastQube = plan.included.at(-1)?.qid;
  const missing = of("missing-qube");
  const missingQid =
    missing?.vm === undefined
      ? lastQube
      : plan.included.find((qube) => qube.name === missing.vm)?.qid;
  const tail = of("drop-tail")?.members ?? 0;
  const held: Array<Member> = [];
  let swapped: Member | undefined;
  for await (let member of members) {
    const ofQube = member.qid !== null;
    if (missing !== undefined && ofQube && member.qid === missingQid) continue;
    if (hit("missing-member", member, member.lastOfAll)) continue;
    if (hit("gap", member, member.chunk === 1 && !member.lastOfFile)) continue;
    if (hit("temp-full", member, ofQube && member.lastOfFile, true)) {
      // scrypt writes by pages: of a small one nothing was written.
      member = remade(recipe, member, { size: Math.floor(member.size / 2 / 4096) * 4096 });
    }
    if (hit("short-chunk", member, ofQube && !member.lastOfFile)) {
      member = remade(recipe, member, { size: member.size - 1024 });
    }
    if (hit("broken-tar", member, ofQube)) member = damaged(member, 1024 + 149);
    if (hit("broken-scrypt", member, ofQube)) member = damaged(member, 1536 + 50);
    const out = [member];
    if (hit("doubled-member", member, ofQube)) out.push(remade(recipe, member, {}));
    if (swapped !== undefined) {
      out.push(swapped);
      swapped = undefined;
    } else if (hit("swapped-members", member, ofQube)) {
      swapped = member;
      continue;
    }
    const extra = of("unexpected-qube");
    if (extra !== undefined && member.lastOfAll) {
      const name = `vm${extra.qid ?? 99}/private.img.000.enc`;
      out.push(remade(recipe, member, { name }));
    }
    held.push(...out);
    while (held.length > tail) {
      const next = held.shift();
      if (next !== undefined) yield next;
    }
  }
  if (swapped !== undefined && tail === 0) yield swapped;
}

/** Up to ten members wait ready while one is sent (docs/qubes.md, Temporary files). */
async function* ahead<A>(source: AsyncGenerator<A>, depth: number): AsyncGenerator<A> {
  const waiting: Array<Promise<IteratorResult<A>>> = [];
  for (;;) {
    while (waiting.length < depth) {
      const next = source.next();
      // Looked at when its turn comes.
      next.catch(() => {});
      waiting.push(next);
    }
    const result = await waiting.shift();
    if (result === undefined || result.done === true) return;
    yield result.value;
  }
}

interface Job {
  cancelled: boolean;
  /** Ends the wait of whoever asked for the backup. */
  cancel: () => void;
  /** Senders that would never end by themselves. */
  readonly stuck: Set<number>;
}

export class Qubesd {
  readonly #dir: string;
  readonly #jobs = new Map<string, Job>();
  readonly #starting = new Map<string, Promise<void>>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  #state(): State {
    return readState(this.#dir);
  }

  #qube(name: string): Qube {
    const qube = this.#state().qubes.find((each) => each.name === name);
    if (qube === undefined) throw new QubesException(`no such domain: '${name}'`);
    return qube;
  }

  /** A second start waits for the first, and then finds the qube running. */
  async #start(name: string): Promise<void> {
    const before = this.#starting.get(name);
    if (before !== undefined) await before;
    const { state } = this.#qube(name);
    if (state !== "Halted") {
      throw new QubesException(`Domain is not powered off: '${name}'`, "QubesVMNotHaltedError");
    }
    const fault = takeFault(this.#dir, "qvm-start", "fail", name);
    if (fault !== undefined) {
      throw new QubesException(fault.text ?? `Cannot execute qrexec-daemon! VM: ${name}`);
    }
    const { startMs } = this.#state().settings;
    const started = async () => {
      if (startMs > 0) {
        changeQube(this.#dir, name, { state: "Transient" });
        await sleep(startMs);
      }
      changeQube(this.#dir, name, { state: "Running" });
    };
    const going = started().finally(() => this.#starting.delete(name));
    this.#starting.set(name, going);
    await going;
  }

  async #stop(name: string, kill: boolean): Promise<void> {
    const qube = this.#qube(name);
    if (qube.state === "Halted") {
      throw new QubesException(`Domain is powered off: '${name}'`, "QubesVMNotStartedError");
    }
    if (!kill && qube.state === "Paused") {
      const text = `Domain not running (either powered off or paused): '${name}'`;
      throw new QubesException(text, "QubesVMNotRunningError");
    }
    if (!kill && takeFault(this.#dir, "qvm-shutdown", "stubborn", name) !== undefined) return;
    if (!kill) await sleep(this.#state().settings.stopMs);
    changeQube(this.#dir, name, { state: "Halted" });
    // A halted qube takes its processes with it. Agents first: they would still tell how the
    // services ended.
    for (const kind of ["agent", "service"]) {
      for (const each of processes(this.#dir, kind)) if (each.vm === name) endSession(each);
    }
  }

  #pause(name: string, pause: boolean): void {
    const { state } = this.#qube(name);
    if (pause && state === "Halted") {
      const text = `Domain not running (either powered off or paused): '${name}'`;
      throw new QubesException(text, "QubesVMNotRunningError");
    }
    if (!pause && state !== "Paused") {
      throw new QubesException(`Domain is not paused: '${name}'`, "QubesVMNotPausedError");
    }
    changeQube(this.#dir, name, { state: pause ? "Paused" : "Running" });
  }

  #create(name: string, label: string, kind: string): void {
    if (name.length > 31) {
      throw new QubesException("VM name must be shorter than 32 characters", "QubesValueError");
    }
    const { qubes } = this.#state();
    const template = qubes.find((each) => each.class === "TemplateVM")?.name ?? null;
    const made = addQube(this.#dir, {
      name,
      label,
      class: kind,
      template,
      state: "Halted",
      include_in_backups: true,
      backup_timestamp: null,
      tags: ["audiovm-dom0", "created-by-dom0", "guivm-dom0"],
      volumes: { private: { size: 2 ** 31, data: 0 } },
      files: {},
    });
    if (!made) throw new QubesException(`VM ${name} already exists`, "QubesValueError");
  }

  #remove(name: string): void {
    const { state, volumes } = this.#qube(name);
    if (state !== "Halted") {
      throw new QubesException(`Domain is not powered off: '${name}'`, "QubesVMNotHaltedError");
    }
    removeQube(this.#dir, name);
    for (const { file } of Object.values(volumes)) if (file !== undefined) fs.rmSync(file);
  }

  #import(vm: string, volume: string, file: string): void {
    const { state, volumes } = this.#qube(vm);
    if (state !== "Halted") {
      throw new QubesException(`Domain is not powered off: '${vm}'`, "QubesVMNotHaltedError");
    }
    const { size } = fs.statSync(file);
    changeQube(this.#dir, vm, { volumes: { ...volumes, [volume]: { size, file } } });
  }

  #set(vm: string, name: string, value: string | null): void {
    this.#qube(vm);
    const invalid = () =>
      new QubesException(`Invalid value for property '${name}' of ${vm}: '${value ?? ""}'`);
    if (name === "include_in_backups") {
      if (!/^(True|False|1|0)$/i.test(value ?? "True")) throw invalid();
      changeQube(this.#dir, vm, { include_in_backups: !/^(False|0)$/i.test(value ?? "True") });
    } else if (name === "backup_timestamp") {
      if (value !== null && !/^-?\d+$/.test(value)) throw invalid();
      changeQube(this.#dir, vm, { backup_timestamp: value === null ? null : Number(value) });
    } else if (name === "netvm") {
      if (value === null) changeQube(this.#dir, vm, { netvm: undefined });
      else if (value === "") changeQube(this.#dir, vm, { netvm: null });
      else {
        const to = this.#state().qubes.find((each) => each.name === value);
        if (to === undefined) {
          throw new QubesException(`Can't set netvm to non-existing qube ${value}`);
        }
        if (to.provides_network !== true) {
          throw new QubesException(`The ${value} qube does not provide network`, "QubesValueError");
        }
        changeQube(this.#dir, vm, { netvm: value });
      }
    } else {
      throw new QubesException(`Invalid property '${name}' of ${vm}`, "QubesNoSuchPropertyError");
    }
  }

  #info(profile: string): string {
    const state = this.#state();
    const { plan } = planOf(this.#dir, state, profile);
    return summaryOf(state, plan);
  }

  /** Where the archive goes; opening a FIFO blocks the one thread that there is. */
  #open(place: string): number {
    let file = place;
    if (fs.existsSync(place) && fs.statSync(place).isDirectory()) {
      const zone = new Date().getTimezoneOffset() * 60_000;
      const now = new Date(Date.now() - zone).toISOString();
      file = path.join(place, `qubes-${now.slice(0, 19).replaceAll(":", "")}`);
    } else if (!fs.existsSync(path.dirname(place))) {
      throw new QubesException(`ERROR: the backup directory for ${place} does not exists`);
    }
    const { O_WRONLY, O_CREAT, O_TRUNC } = fs.constants;
    return fs.openSync(file, O_WRONLY | O_CREAT | O_TRUNC, 0o644);
  }

  async #execute(profileName: string, progress: (percent: number) => void): Promise<void> {
    const dir = this.#dir;
    const state = this.#state();
    const { plan, profile } = planOf(dir, state, profileName);
    const passphrase = profile["passphrase_text"];
    if (typeof passphrase !== "string") {
      throw new QubesException(
        "Invalid backup profile - you need to specify passphrase_text or passphrase_vm",
      );
    }
    if (this.#jobs.has(profileName)) throw new QubesException("Backup already running");
    const faults = takeFaults(
      dir,
      "qvm-backup",
      ({ kind, stage }) =>
        stage !== "info" && !["ignore-sigint", "hang", "delay", "removed"].includes(kind),
    );
    let cancelled: (error: Error) => void = () => {};
    const whenCancelled = new Promise<never>((_resolve, reject) => {
      cancelled = reject;
    });
    whenCancelled.catch(() => {});
    const reading = new AbortController();
    const job: Job = {
      cancelled: false,
      stuck: new Set(),
      cancel: () => {
        job.cancelled = true;
        reading.abort();
        cancelled(new QubesException("Backup cancelled"));
        for (const pid of job.stuck) endProcess(pid);
      },
    };
    this.#jobs.set(profileName, job);
    fs.mkdirSync(tmpdirOf(dir, state.settings), { recursive: true });
    const tmp = fs.mkdtempSync(path.join(tmpdirOf(dir, state.settings), "tmp"));
    const compression = profile["compression"];
    const filter = compression === "true" ? "gzip" : compression === "false" ? null : compression;
    const recipe: Recipe = {
      settings: state.settings,
      passphrase,
      backupId: backupId(),
      filter: typeof filter === "string" ? filter : null,
      tmp,
      cancelled: reading.signal,
    };
    const place = profile["destination_path"];
    const work = this.#work(job, faults, plan, recipe, String(place), progress).finally(() =>
      fs.rmSync(tmp, { recursive: true, force: true }),
    );
    // After a cancellation nobody waits for it any more.
    work.catch(() => {});
    try {
      await Promise.race([work, whenCancelled]);
    } catch (error) {
      throw error instanceof Unarchived ? new QubesException(error.message) : error;
    } finally {
      this.#jobs.delete(profileName);
    }
    const backup_timestamp = Math.floor(Date.now() / 1000);
    for (const { name } of plan.included) changeQube(dir, name, { backup_timestamp });
  }

  /** A wait that a cancellation ends. */
  async #wait(job: Job, ms: number): Promise<void> {
    const end = Date.now() + ms;
    while (!job.cancelled && Date.now() < end) await sleep(Math.min(20, end - Date.now()));
  }

  async #work(
    job: Job,
    faults: ReadonlyArray<Fault>,
    plan: Plan,
    recipe: Recipe,
    place: string,
    progress: (percent: number) => void,
  ): Promise<void> {
    const of = (kind: string) => faults.find((fault) => fault.kind === kind);
    const end = ["fail", "traceback", "empty-response"]
      .map(of)
      .find((fault) => fault !== undefined);
    const failure = (fault: Fault): Error => {
      if (fault.kind === "traceback") return new Traceback(fault.text ?? "KeyError: 'private'");
      if (fault.kind === "empty-response") return new Internal("told to");
      return new QubesException(fault.text ?? "Failed to archive /dev/null file");
    };
    if (end !== undefined && end.after === undefined) throw failure(end);
    const nothing = of("write-nothing");
    if (nothing !== undefined) {
      if (nothing.open !== false) fs.closeSync(this.#open(place));
      return;
    }
    const before = of("hang-before-open");
    if (before !== undefined) await this.#wait(job, before.ms ?? Number.POSITIVE_INFINITY);
    if (job.cancelled) return;

    const out = this.#open(place);
    try {
      /** Bytes that the location has got, and where a fault wants the stream to stop. */
      let written = 0;
      const stop = [end, of("hang-after"), of("drop-tail")]
        .filter((fault) => fault?.after !== undefined)
        .sort((a, b) => (a?.after ?? 0) - (b?.after ?? 0))[0];
      const silence = of("silence");
      let silent = silence === undefined;
      const rate = of("slow")?.bytesPerSecond;
      const meter = this.#meter(plan, progress);
      for await (const member of ahead(
        mangled(recipe, faults, plan, membersOf(recipe, plan)),
        10,
      )) {
        if (job.cancelled) return;
        const qube = plan.included.find(({ qid }) => qid === member.qid && qid !== 0);
        if (qube !== undefined && isRunning(qube) && withoutSnapshots(qube)) {
          // Its image is not where it is looked for, and nobody catches that.
          throw new Internal("FileNotFoundError");
        }
        const length = outerLength(member.size);
        if (!silent && written + length > (silence?.after ?? 0)) {
          silent = true;
          await this.#wait(job, silence?.ms ?? 60_000);
          if (job.cancelled) return;
        }
        const here =
          stop?.after !== undefined && written + length > stop.after
            ? Math.max(0, stop.after - written)
            : undefined;
        const hangs = here !== undefined && stop?.kind === "hang-after";
        await this.#send(job, member, out, rate, here, hangs);
        if (job.cancelled) return;
        written += length;
        fs.rmSync(member.file, { force: true });
        if (here !== undefined) {
          if (stop !== undefined && stop === end) throw failure(stop);
          return;
        }
        meter(member);
      }
      const garbage = of("trailing-garbage");
      if (garbage !== undefined)
        fs.writeSync(out, Buffer.alloc(garbage.bytes ?? 10240, "garbage "));
      if (end !== undefined) throw failure(end);
    } finally {
      fs.closeSync(out);
    }
  }

  /** Percent of what was planned: a qube that is done counts in full (docs/qubes.md, Progress). */
  #meter(plan: Plan, progress: (percent: number) => void): (member: Member) => void {
    let done = 0;
    let current = 0;
    let qid: number | null = null;
    // Short runs show nothing.
    let shown = Date.now();
    return (member) => {
      if (member.qid !== qid) {
        done += qid === null ? 0 : (plan.sizes.get(qid) ?? 0);
        current = 0;
        qid = member.qid;
      }
      if (member.qid !== null) current += member.size;
      if (Date.now() - shown < 1000 || plan.total === 0) return;
      shown = Date.now();
      progress((100 * (done + current)) / plan.total);
    };
  }

  /**
   * One member, by a child that has the location as its stdout: "tar", which dies of SIGPIPE when
   * the reader is gone. Only an exit code of 2 or more is an error (docs/qubes.md, Exit code).
   */
  async #send(
    job: Job,
    member: Member,
    out: number,
    rate: number | undefined,
    upTo: number | undefined,
    hangs: boolean,
  ): Promise<void> {
    // cat is as good as tar here: what it copies is a tar archive already.
    const plain = rate === undefined && upTo === undefined && member.filler === 0;
    const spec = {
      head: fs.statSync(member.file).size,
      filler: member.filler,
      length: outerLength(member.size),
      rate: rate ?? null,
      upTo: upTo ?? null,
      hangs,
    };
    const [program, ...args] = plain
      ? ["cat"]
      : [...selfCommand(this.#dir, process.execPath, "tar"), JSON.stringify(spec)];
    const source = fs.openSync(member.file, "r");
    const child = child_process.spawn(program ?? "cat", args, {
      stdio: [source, out, "ignore"],
      env: { PATH: "/usr/bin:/bin" },
    });
    fs.closeSync(source);
    const pid = child.pid;
    const forget = pid === undefined ? () => {} : remember(this.#dir, "tar", pid);
    if (hangs && pid !== undefined) job.stuck.add(pid);
    const code = await new Promise<number>((resolve) => {
      child.on("error", () => resolve(2));
      child.on("exit", (status, signal) => {
        if (signal !== null) resolve(-1);
        // cat has 1 for any error; with the pipe left to die of, that is a full disk.
        else resolve(status === 0 ? 0 : 2);
      });
    });
    forget();
    if (code >= 2 && !job.cancelled) {
      throw new QubesException(
        "ERROR: Failed to write the backup, out of disk space? Check console output or ~/.xsession-errors for details.",
      );
    }
  }

  async answer(
    request: Request,
    progress: (percent: number) => void,
  ): Promise<string | Array<Qube>> {
    switch (request.op) {
      case "list":
        return this.#state().qubes;
      case "start":
        await this.#start(request.vm);
        return "";
      case "shutdown":
      case "kill":
        await this.#stop(request.vm, request.op === "kill");
        return "";
      case "pause":
      case "unpause":
        this.#pause(request.vm, request.op === "pause");
        return "";
      case "set":
        this.#set(request.vm, request.name, request.value);
        return "";
      case "create":
        this.#create(request.vm, request.label, request.class);
        return "";
      case "remove":
        this.#remove(request.vm);
        return "";
      case "tag": {
        const { tags } = this.#qube(request.vm);
        changeQube(this.#dir, request.vm, { tags: [...new Set([...tags, request.tag])] });
        return "";
      }
      case "import":
        this.#import(request.vm, request.volume, request.file);
        return "";
      case "info": {
        const fault = takeFaults(
          this.#dir,
          "qvm-backup",
          ({ stage, kind }) => stage === "info" && (kind === "fail" || kind === "traceback"),
        )[0];
        if (fault?.kind === "traceback") throw new Traceback(fault.text ?? "KeyError: 'private'");
        if (fault !== undefined) throw new QubesException(fault.text ?? "Qube has no volumes");
        return this.#info(request.profile);
      }
      case "execute":
        await this.#execute(request.profile, progress);
        return "";
      case "cancel": {
        const job = this.#jobs.get(request.profile);
        if (job === undefined) throw new QubesException("Backup operation not running");
        job.cancel();
        return "";
      }
    }
  }
}

/** Serves until it is killed. Ends at once if another one serves this world. */
export const serve = (dir: string): void => {
  const qubesd = new Qubesd(dir);
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    const say = (reply: Reply) => {
      if (!socket.destroyed) socket.write(`${JSON.stringify(reply)}\n`);
    };
    let text = "";
    socket.setEncoding("utf8");
    // Closing the connection does not stop a backup (docs/qubes.md, Cancelling).
    socket.on("error", () => {});
    socket.on("data", (data: string) => {
      text += data;
    });
    socket.on("end", () => {
      const request = JSON.parse(text) as Request;
      qubesd
        .answer(request, (progress) => say({ progress }))
        .then(
          (ok) => say({ ok }),
          (error: unknown) => {
            if (error instanceof QubesException) {
              say({
                error: error.message,
                ...(error.kind === undefined ? {} : { kind: error.kind }),
              });
            } else if (error instanceof Traceback) say({ traceback: error.message });
            else process.stderr.write(`${String(error instanceof Error ? error.stack : error)}\n`);
          },
        )
        .finally(() => socket.end());
    });
  });
  server.on("error", () => process.exit(0));
  server.listen(socketName(dir), () => {
    remember(dir, "qubesd", process.pid);
    // Nobody may hold a world for ever: without its directory there is nothing to serve.
    setInterval(() => {
      try {
        readFaults(dir);
      } catch {
        process.exit(0);
      }
    }, 2000).unref();
  });
};
