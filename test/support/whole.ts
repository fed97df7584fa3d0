/**
 * All of it, built and real: the stand-in Qubes with its qubesd, the three programs from dist/, the
 * system's ssh and an sshd on loopback.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { makeWorld, type QubeSpec, type Settings, type World } from "#test/standin/world";
import { type Server, type ServerOptions, startServer } from "#test/support/server";

export interface WholeOptions {
  readonly as?: ServerOptions["as"];
  readonly serverOptions?: string;
  readonly qubes?: ReadonlyArray<QubeSpec>;
  readonly settings?: Partial<Settings>;
  /** What a run makes where nothing else is said: qvm-backup's own archive, unless this says slots. */
  readonly format?: "slots";
  /** The ssh that the carrier finds; gets the options that lead to the server in $OPTIONS. */
  readonly sshScript?: string;
  /** Milliseconds after which a run of qbackup is killed; four minutes by default. */
  readonly limit?: number;
}

export interface Ran {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Whole {
  readonly dir: string;
  readonly server: Server;
  readonly world: World;
  /** dom0's state directory of qbackup. */
  readonly state: string;
  readonly passphraseFile: string;
  readonly start: (...args: ReadonlyArray<string>) => {
    readonly child: ChildProcess;
    readonly ended: Promise<Ran>;
  };
  /** `qbackup -t net -p FILE ...`, to its end. */
  readonly run: (...args: ReadonlyArray<string>) => Promise<Ran>;
  /** Runs `command` on the server through ssh, with `input` on its stdin. */
  readonly ssh: (command: string, input?: Uint8Array) => Promise<Ran>;
  readonly stored: () => ReadonlyArray<string>;
  /** The bytes that lie on the server of uploads under way. */
  readonly arrived: () => number;
  readonly ledger: () => ReadonlyArray<{ readonly name: string; readonly manifest: string }>;
  readonly stop: () => void;
}

const root = path.resolve(import.meta.dirname, "../..");
/** A program of the build; `npm test` builds first. */
export const dist = (name: string): string => {
  const file = path.join(root, "dist", name);
  if (!fs.existsSync(file)) throw new Error(`${file} is not built: npm run build`);
  return file;
};
export const passphrase = "correct horse battery staple";

/** Runs a program to its end; never longer than `limit` milliseconds, which a busy machine must not reach. */
export const execute = (
  argv: readonly [string, ...Array<string>],
  options: {
    readonly env?: NodeJS.ProcessEnv;
    readonly input?: Uint8Array;
    readonly limit?: number;
    readonly cwd?: string;
  } = {},
) => {
  const [program, ...args] = argv;
  const child = spawn(program, args, {
    stdio: "pipe",
    env: options.env ?? process.env,
    cwd: options.cwd,
  });
  const out: Array<Buffer> = [];
  const err: Array<Buffer> = [];
  child.stdout.on("data", (bytes: Buffer) => out.push(bytes));
  child.stderr.on("data", (bytes: Buffer) => err.push(bytes));
  child.stdin.on("error", () => {});
  child.stdin.end(options.input);
  const timer = setTimeout(() => child.kill("SIGKILL"), options.limit ?? 240_000);
  const ended = once(child, "close").then(([code, signal]): Ran => {
    clearTimeout(timer);
    return {
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
      stdout: Buffer.concat(out).toString(),
      stderr: Buffer.concat(err).toString(),
    };
  });
  return { child, ended };
};

export const whole = async (options: WholeOptions = {}): Promise<Whole> => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-whole-"));
  fs.chmodSync(dir, 0o755);
  const bin = path.join(dir, "bin");
  fs.mkdirSync(bin);
  // The account must be able to read it, wherever this checkout lies.
  const shell = path.join(bin, "qbackup-shell");
  fs.copyFileSync(dist("qbackup-shell"), shell);
  fs.chmodSync(shell, 0o755);

  const server = await startServer({
    dir: path.join(dir, "server"),
    shell,
    as: options.as ?? (process.getuid!() === 0 ? "both" : "forced-command"),
    ...(options.serverOptions === undefined ? {} : { options: options.serverOptions }),
  });
  let world: World;
  try {
    world = makeWorld({
      dir: path.join(dir, "qubes"),
      qubes: options.qubes ?? [
        { name: "work", size: 300_000 },
        { name: "vault", size: 200_000 },
        { name: "net", size: 0, include: false },
      ],
      program: dist("test/standin"),
      settings: { extraPath: [bin], ...options.settings },
    });
    const format = options.format === "slots" ? {} : { QBKP_FORMAT: "qvm-backup" };
    world = { ...world, env: { ...world.env, ...format } };
  } catch (error) {
    server.stop();
    throw error;
  }
  // ssh takes ~ from the password file, not from HOME: so its files are named here.
  const quoted = server.ssh.map((word) => `'${word}'`).join(" ");
  fs.writeFileSync(
    path.join(bin, "ssh"),
    `#!/bin/sh\nOPTIONS="${quoted}"\n${options.sshScript ?? `exec /usr/bin/ssh ${quoted} "$@"`}\n`,
    { mode: 0o755 },
  );
  world.service("net", "qubes.BackupCarrier", { link: dist("qubes.BackupCarrier") });
  fs.writeFileSync(
    path.join(world.home("net"), ".bashrc"),
    `# net\nSSH_CONN=${server.destination}\n`,
  );
  const passphraseFile = path.join(dir, "passphrase");
  fs.writeFileSync(passphraseFile, `${passphrase}\n`, { mode: 0o600 });

  const state = path.join(dir, "state/qbackup");
  const env = { ...world.env, HOME: world.home("dom0"), XDG_STATE_HOME: path.dirname(state) };
  const limit = options.limit ?? 240_000;
  const start: Whole["start"] = (...args) => execute([dist("qbackup"), ...args], { env, limit });
  return {
    dir,
    server,
    world,
    state,
    passphraseFile,
    start,
    run: (...args) => start("-t", "net", "-p", passphraseFile, ...args).ended,
    ssh: (command, input) =>
      execute(
        ["/usr/bin/ssh", ...server.ssh, "--", server.destination, command],
        input === undefined ? {} : { input },
      ).ended,
    stored: () =>
      fs
        .readdirSync(server.store, { recursive: true, encoding: "utf8" })
        .filter((name) => !name.startsWith("."))
        .sort(),
    arrived: () => {
      const incoming = path.join(server.store, ".qbackup/incoming");
      return (fs.existsSync(incoming) ? fs.readdirSync(incoming) : [])
        .filter((name) => /^[0-9a-f]{32}$/.test(name))
        .map((name) => fs.statSync(path.join(incoming, name), { throwIfNoEntry: false })?.size ?? 0)
        .reduce((sum, size) => sum + size, 0);
    },
    ledger: () => {
      const file = path.join(state, "ledger.jsonl");
      return fs.existsSync(file)
        ? fs
            .readFileSync(file, "utf8")
            .trim()
            .split("\n")
            .map((line) => JSON.parse(line))
        : [];
    },
    stop: () => {
      world.stop();
      server.stop();
      fs.rmSync(dir, { recursive: true, force: true });
    },
  };
};
