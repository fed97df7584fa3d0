/**
 * qvm-run, and the qrexec-client that it starts: a process of its own, so that it can be killed.
 * Between caller and service lie pumps, as the vchan does in Qubes, so that a killed client looks
 * to the service like the end of its stdin (docs/qubes.md, Calling a service), and to the caller
 * like the end of a call.
 */
import * as child_process from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Duplex } from "node:stream";
import { AGENT } from "./agent.ts";
import { Exit, parseArguments, usageError } from "./args.ts";
import { ask, CLOSE_OTHERS, listQubes, Refused, selfCommand } from "./client.ts";
import { takeFault } from "./faults.ts";
import { isRunning, readState, remember, serviceUser } from "./state.ts";
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
  const args = parseArguments(
    tool,
    argv,
    [
      { names: ["--user", "-u"], value: true },
      { names: ["--autostart", "--auto", "-a"] },
      { names: ["--no-autostart", "--no-auto", "-n"] },
      { names: ["--pass-io", "-p"] },
      { names: ["--gui"] },
      { names: ["--no-gui", "--nogui"] },
      { names: ["--service"] },
      { names: ["--no-shell"] },
      { names: ["--filter-escape-chars"] },
      { names: ["--no-filter-escape-chars"] },
      { names: ["--no-color-output", "--no-colour-output"] },
      { names: ["--no-color-stderr", "--no-colour-stderr"] },
    ],
    { last: 2 },
  );
  const [vm, given, ...more] = args.rest;
  if (vm === undefined) {
    throw usageError(tool, "the following arguments are required: COMMAND, ARG");
  }
  // It takes one word for the command, and misses the qube.
  if (given === undefined) throw new Exit(2, `usage: ${tool} [--verbose] [--quiet] ...`);
  const service = args.has("--service");
  if (service && args.has("--no-shell")) {
    throw usageError(tool, "--no-shell does not apply to --service");
  }
  // What follows the name of a service is passed over.
  const words = [given, ...more].map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  const command = !service && (more.length > 0 || args.has("--no-shell")) ? words : given;
  const qube = (await listQubes(dir)).find(({ name }) => name === vm);
  if (qube === undefined) throw usageError(tool, `no such domain: '${vm}'`);
  const auto = !args.has("--no-autostart");
  if (!auto && (!isRunning(qube) || qube.state === "Paused")) return 1;
  if (qube.state === "Paused") await ask(dir, { op: "unpause", vm });
  try {
    const refusal = takeFault(dir, tool, "refuse", vm);
    if (refusal !== undefined) throw new Refused(refusal.text ?? "Request refused");
    if (auto) await ask(dir, { op: "start", vm });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.kind !== "QubesVMNotHaltedError") throw new Exit(255, `${vm}: ${error.message}`);
  }
  const early = takeFault(dir, tool, "exit", vm);
  if (early !== undefined) return early.code ?? 1;

  const [program, ...own] = selfCommand(dir, process.execPath, "qrexec-client");
  const child = child_process.spawn(
    program ?? "",
    [...own, service ? "service" : "shell", vm, command],
    { stdio: args.has("--pass-io") ? "inherit" : "ignore" },
  );
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

interface Surroundings {
  readonly home: string;
  readonly env: { readonly [name: string]: string };
  readonly ids: { uid: number; gid: number } | undefined;
  /** Bytes of stdin after which the client dies; -1 for never. */
  readonly limit: number;
  readonly closes: boolean;
}

/** Runs a service. Returns its exit code. */
type Run = (
  dir: string,
  vm: string,
  command: string,
  service: ReadonlyArray<string>,
  surroundings: Surroundings,
) => Promise<number>;

const direct: Run = async (dir, vm, command, [program = "", ...words], { env, home, ids }) => {
  // A session of its own, out of reach of signals to the caller's process group.
  const it = child_process.spawn(program, words, {
    cwd: home,
    env,
    stdio: [0, 1, 2],
    detached: true,
    ...ids,
  });
  const forget =
    it.pid === undefined ? () => {} : remember(dir, "service", it.pid, { vm, service: command });
  const code = await new Promise<number>((resolve) => {
    it.on("error", () => resolve(125));
    it.on("exit", (status, signal) => resolve(status ?? 128 + (numbers[signal ?? ""] ?? 9)));
  });
  forget();
  return code;
};

/** What qrexec writes to stderr, one line a message. */
const qrexecLog = (place: string, message: string): void => {
  const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000).toISOString();
  const time = now.slice(0, 23).replace("T", " ");
  process.stderr.write(`${time} qrexec-client[${process.pid}]: ${place}: ${message}\n`);
};

const throughAgent: Run = (dir, vm, command, service, { closes, env, home, ids, limit }) =>
  new Promise<number>((resolve) => {
    const owner = [ids?.uid ?? -1, ids?.gid ?? -1, closes ? 1 : 0].map(String);
    const words = [path.join(dir, "log", `${vm}.log`), `${limit}`, `${process.pid}`, ...owner];
    const agent = child_process.spawn("perl", ["-e", AGENT, "--", ...words, ...service], {
      cwd: home,
      env,
      stdio: [0, 1, 2, "pipe"],
      detached: true,
    });
    agent.on("error", () => resolve(125));
    if (agent.pid === undefined) return;
    const records = [remember(dir, "agent", agent.pid, { vm, service: command })];
    const vchan = agent.stdio[3] as Duplex;
    let said = "";
    vchan.on("error", () => {});
    vchan.on("data", (data) => {
      said += String(data);
      const pid = /^pid (\d+)\n/.exec(said)?.[1];
      if (pid !== undefined && records.length === 1) {
        records.push(remember(dir, "service", Number(pid), { vm, service: command }));
        vchan.write("x");
      }
    });
    vchan.on("close", () => {
      for (const forget of records) forget();
      const code = /^code (\d+)$/m.exec(said)?.[1];
      if (code !== undefined) return resolve(Number(code));
      // The qube was shut down, or its agent died.
      const place = "process_io.c:250:qrexec_process_io";
      qrexecLog(place, "vchan connection closed early (fds: 1 0 -1, status: -1 -1)");
      resolve(255);
    });
  });

/** The client's side and the agent's side of one call. Returns the service's exit code. */
export const qrexecClient = async (dir: string, argv: ReadonlyArray<string>): Promise<number> => {
  const [kind, vm, command] = argv;
  if (kind === undefined || vm === undefined || command === undefined) return 2;
  process.title = `qrexec-client ${vm} ${command}`;
  if (takeFault(dir, "qvm-run", "usage", vm) !== undefined) {
    // getopt's way to refuse an option, as where qvm-run is newer than it.
    process.stderr.write("qrexec-client: invalid option -- 'p'\n");
    process.stdout.write("usage: qrexec-client [options] -d domain_name ... user:remote_cmdline\n");
    return 0;
  }
  const absent = takeFault(dir, "qvm-run", "no-daemon", vm);
  // Its daemon begins to listen when the qube has come up.
  const early = readState(dir).qubes.some(({ name, state }) => name === vm && state !== "Running");
  if (absent !== undefined || early) {
    const why = absent?.text ?? (early ? "No such file or directory" : "Connection refused");
    const file = "qrexec-daemon-common.c";
    qrexecLog(`${file}:263:connect_unix_socket`, `connect /var/run/qubes/qrexec.${vm}: ${why}`);
    qrexecLog(`${file}:31:negotiate_connection_params`, "write daemon: Bad file descriptor");
    return 125;
  }
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
  // A blank ends the name, and an empty name is none.
  if (!shell && (/\s/.test(command) || plus === 0 || command === "")) return 125;
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
    // qvm-run adds the "+".
    QREXEC_SERVICE_FULL_NAME: shell ? "qubes.VMShell+" : `${command}${plus < 0 ? "+" : ""}`,
    QREXEC_SERVICE_ARGUMENT: shell ? "" : argument,
    QREXEC_AGENT_PID: String(process.pid),
    QREXEC_REQUESTED_TARGET_TYPE: "",
  };
  const quoted = settings.extraPath.map((entry) => `'${entry.replaceAll("'", "'\\''")}'`);
  // Behind the profiles, because /etc/profile may set PATH anew.
  const prefix = quoted.length === 0 ? "" : `PATH=${quoted.join(":")}:$PATH; `;
  const words = shell ? ["/bin/sh", "-c", command] : [file, ...(argument === "" ? [] : [argument])];
  const login = ["/bin/sh", "-lc", `${prefix}exec "$0" "$@"`, ...words];
  const dies = takeFault(dir, "qvm-run", "kill-client", vm);
  if (dies !== undefined && dies.after === undefined) {
    setTimeout(() => process.kill(process.pid, "SIGKILL"), dies.ms ?? 0);
  }
  const service = ["/bin/bash", "-c", CLOSE_OTHERS, "close-others", ...login];
  const run = settings.directIo ? direct : throughAgent;
  return run(dir, vm, command, service, {
    home,
    env,
    ids: user.ids,
    limit: dies?.after ?? -1,
    closes: settings.agentCloses,
  });
};
