/**
 * qvm-run, and the qrexec-client that it starts: a process of its own, so that it can be killed.
 * Between caller and service lie pumps, as the vchan does in Qubes, so that a killed client looks
 * to the service like the end of its stdin (docs/qubes.md, Calling a service), and to the caller
 * like the end of a call.
 */
import * as child_process from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { Exit, parseArguments, usageError } from "./args.ts";
import { ask, CLOSE_OTHERS, listQubes, Refused, selfCommand } from "./client.ts";
import { takeFault } from "./faults.ts";
import { readState, remember, serviceUser } from "./state.ts";
import type { State } from "./state.ts";

/** Signals that can end a service, for 128 + n. */
const numbers: { readonly [name: string]: number } = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGILL: 4,
  SIGABRT: 6,
  SIGBUS: 7,
  SIGFPE: 8,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGSEGV: 11,
  SIGUSR2: 12,
  SIGPIPE: 13,
  SIGALRM: 14,
  SIGTERM: 15,
  SIGXCPU: 24,
  SIGXFSZ: 25,
};

export const qvmRun = async (dir: string, argv: ReadonlyArray<string>): Promise<number> => {
  const tool = "qvm-run";
  const args = parseArguments(tool, argv, [
    { names: ["--user", "-u"], value: true },
    { names: ["--autostart", "--auto", "-a"] },
    { names: ["--no-autostart", "--no-auto", "-n"] },
    { names: ["--pass-io", "-p"] },
    { names: ["--gui"] },
    { names: ["--no-gui", "--nogui"] },
    { names: ["--service"] },
    { names: ["--filter-escape-chars"] },
    { names: ["--no-filter-escape-chars"] },
    { names: ["--no-color-output", "--no-colour-output"] },
    { names: ["--no-color-stderr", "--no-colour-stderr"] },
  ]);
  const [vm, command, ...more] = args.rest;
  if (vm === undefined || command === undefined || more.length > 0) {
    throw usageError(tool, "the following arguments are required: VMNAME, COMMAND");
  }
  try {
    const refusal = takeFault(dir, tool, "refuse", vm);
    if (refusal !== undefined) throw new Refused(refusal.text ?? "Request refused");
    const qube = (await listQubes(dir)).find(({ name }) => name === vm);
    if (qube === undefined) throw new Refused(`no such domain: '${vm}'`);
    if (args.has("--no-autostart") && qube.state !== "Running") return 1;
    await ask(dir, { op: "start", vm, skipIfRunning: true });
  } catch (error) {
    if (error instanceof Refused) throw new Exit(255, `${vm}: ${error.message}`);
    throw error;
  }
  const early = takeFault(dir, tool, "exit", vm);
  if (early !== undefined) return early.code ?? 1;

  const passes = args.has("--pass-io");
  const [program, ...own] = selfCommand(dir, process.execPath, "qrexec-client");
  const kind = args.has("--service") ? "service" : "shell";
  const child = child_process.spawn(program ?? "", [...own, kind, vm, command], {
    stdio: passes ? "inherit" : "ignore",
  });
  return new Promise<number>((resolve) => {
    child.on("error", () => resolve(255));
    // Python has -9 for a killed child, and qvm-run takes the maximum of that and 0.
    child.on("exit", (status) => resolve(status ?? 0));
  });
};

/** The full name in every directory, then without argument (docs/qubes.md, Where services lie). */
const lookUp = (dir: string, state: State, vm: string, name: string): string | undefined => {
  const template = state.qubes.find((qube) => qube.name === vm)?.template;
  const places = [
    path.join(dir, "root", vm, "run/qubes-rpc"),
    path.join(dir, "root", vm, "usr/local/etc/qubes-rpc"),
    path.join(dir, "root", vm, "etc/qubes-rpc"),
    // /etc is the template's, but for what was bound over it.
    ...(template == null ? [] : [path.join(dir, "root", template, "etc/qubes-rpc")]),
  ];
  const plain = name.split("+")[0] ?? name;
  for (const wanted of name === plain ? [plain] : [name, plain]) {
    for (const place of places) {
      const file = path.join(place, wanted);
      if (fs.existsSync(file)) return file;
    }
  }
  return undefined;
};

interface Pipe {
  readonly read: number;
  readonly write: number;
}

/**
 * Pipes that children can share. Node itself only makes socket pairs, and a FIFO will not do: when
 * a service opens its /dev/stdin again, it must not wait for a writer that is done. So bash makes
 * them, as the service's user, and they are opened from its descriptors.
 */
const pipes = async (
  count: number,
  ids: { uid: number; gid: number } | undefined,
): Promise<Array<Pipe>> => {
  const wanted = Array.from({ length: count }, (_, index) => index + 3);
  const script = [...wanted.map((fd) => `exec ${fd}<> <(:)`), "echo", "read -r _"].join("\n");
  const maker = child_process.spawn("/bin/bash", ["-c", script], {
    stdio: ["pipe", "pipe", "ignore"],
    cwd: "/",
    env: { PATH: "/usr/bin:/bin" },
    ...ids,
  });
  try {
    await new Promise<void>((resolve, reject) => {
      maker.on("error", reject);
      maker.on("exit", () => reject(new Error("bash makes no pipes")));
      maker.stdout.once("data", () => resolve());
    });
    return wanted.map((fd) => {
      const place = `/proc/${maker.pid}/fd/${fd}`;
      return { read: fs.openSync(place, "r"), write: fs.openSync(place, "w") };
    });
  } finally {
    maker.removeAllListeners("exit");
    maker.kill("SIGKILL");
    maker.stdin.destroy();
    maker.stdout.destroy();
  }
};

const ended = (child: child_process.ChildProcess): Promise<void> =>
  new Promise((resolve) => {
    child.on("error", () => resolve());
    child.on("exit", () => resolve());
  });

/** Copies stdin itself, to die behind a certain number of bytes. */
const pumpUpTo = (to: number, bytes: number): void => {
  const stream = fs.createReadStream("", { fd: 0, highWaterMark: 65536 });
  const sink = fs.createWriteStream("", { fd: to });
  sink.on("error", () => stream.destroy());
  let left = bytes;
  stream.on("data", (data) => {
    const part = Buffer.from(data).subarray(0, left);
    left -= part.length;
    if (!sink.write(part)) {
      stream.pause();
      sink.once("drain", () => stream.resume());
    }
    if (left > 0) return;
    stream.pause();
    // What was read has arrived, then the client is gone.
    sink.end(() => process.kill(process.pid, "SIGKILL"));
  });
  stream.on("end", () => sink.end());
};

/** The client's side and the agent's side of one call. Returns the service's exit code. */
export const qrexecClient = async (dir: string, argv: ReadonlyArray<string>): Promise<number> => {
  const [kind, vm, command] = argv;
  if (kind === undefined || vm === undefined || command === undefined) return 2;
  process.title = `qrexec-client ${vm} ${command}`;
  const forget = remember(dir, "qrexec-client", process.pid, { vm, service: command });
  try {
    return await call(dir, kind === "shell", vm, command);
  } finally {
    forget();
  }
};

const call = async (dir: string, shell: boolean, vm: string, command: string): Promise<number> => {
  const state = readState(dir);
  const { settings } = state;
  const user = serviceUser(settings);
  const home = path.join(dir, "home", vm);
  const plus = command.indexOf("+");
  const argument = plus < 0 ? "" : command.slice(plus + 1);
  const file = shell ? "/bin/sh" : lookUp(dir, state, vm, command);
  if (file === undefined) return 127;
  if ((fs.statSync(file).mode & 0o111) === 0) return 125;

  // What PAM and the agent give, and nothing of the caller's: dom0 and the qube are two systems.
  const env = {
    HOME: home,
    USER: user.name,
    LOGNAME: user.name,
    SHELL: "/bin/bash",
    PATH: "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin",
    QREXEC_REMOTE_DOMAIN: "dom0",
    QREXEC_SERVICE_FULL_NAME: shell ? "qubes.VMShell" : command,
    QREXEC_SERVICE_ARGUMENT: shell ? "" : argument,
    QREXEC_AGENT_PID: String(process.pid),
    QREXEC_REQUESTED_TARGET_TYPE: "",
  };
  const quoted = settings.extraPath.map((entry) => `'${entry.replaceAll("'", "'\\''")}'`);
  // Behind the profiles, because /etc/profile may set PATH anew.
  const prefix = quoted.length === 0 ? "" : `PATH=${quoted.join(":")}:$PATH; `;
  const words = shell ? ["/bin/sh", "-c", command] : [file, ...(argument === "" ? [] : [argument])];
  const login = ["/bin/sh", "-lc", `${prefix}exec "$0" "$@"`, ...words];
  const journal = path.join(dir, "log", `${vm}.log`);

  const start = (stdio: [number, number, number]): child_process.ChildProcess => {
    // A session of its own, out of reach of signals to the caller's process group.
    return child_process.spawn("/bin/bash", ["-c", CLOSE_OTHERS, "close-others", ...login], {
      cwd: home,
      env,
      stdio,
      detached: true,
      ...user.ids,
    });
  };
  const finish = async (service: child_process.ChildProcess): Promise<number> => {
    const pid = service.pid;
    const forget =
      pid === undefined ? () => {} : remember(dir, "service", pid, { vm, service: command });
    const code = await new Promise<number>((resolve) => {
      service.on("error", () => resolve(125));
      service.on("exit", (status, signal) => resolve(status ?? 128 + (numbers[signal ?? ""] ?? 9)));
    });
    forget();
    return code;
  };

  const dies = takeFault(dir, "qvm-run", "kill-client", vm);
  if (dies !== undefined && dies.after === undefined) {
    setTimeout(() => process.kill(process.pid, "SIGKILL"), dies.ms ?? 0);
  }
  if (settings.directIo) return finish(start([0, 1, 2]));

  const [input, output, errors] = await pipes(3, user.ids);
  if (input === undefined || output === undefined || errors === undefined) return 125;

  const service = start([input.read, output.write, errors.write]);
  for (const fd of [input.read, output.write, errors.write]) fs.closeSync(fd);
  // Pumps die with the client, however it dies; the service does not.
  const pump = (words: ReadonlyArray<string>, from: number, to: number) =>
    child_process.spawn("setpriv", ["--pdeathsig", "KILL", "--", ...words], {
      stdio: [from, to, "ignore"],
      env: { PATH: "/usr/bin:/bin" },
    });
  const pumpOut = pump(["cat"], output.read, 1);
  const pumpErr = pump(["tee", "-a", journal], errors.read, 2);
  for (const fd of [output.read, errors.read]) fs.closeSync(fd);
  const drained = Promise.all([ended(pumpOut), ended(pumpErr)]);
  const pumpIn =
    dies?.after === undefined ? pump(["cat"], 0, input.write) : pumpUpTo(input.write, dies.after);
  if (pumpIn !== undefined) {
    fs.closeSync(input.write);
    pumpIn.on("error", () => {});
  }

  const code = await finish(service);
  // Early exit of the service: nobody waits for what the caller still wants to say.
  if (pumpIn !== undefined) pumpIn.kill("SIGKILL");
  await drained;
  return code;
};
