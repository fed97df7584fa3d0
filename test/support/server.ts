/** A real sshd on loopback with an account whose store qbackup-shell keeps; for tests and benchmarks. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as net from "node:net";
import * as os from "node:os";
import * as path from "node:path";

export interface ServerOptions {
  /** A directory of the test's own; accounts must be able to pass through it. */
  readonly dir: string;
  /** The built qbackup-shell, at a path that the account can read. */
  readonly shell: string;
  /** How sshd comes to run it. Accounts, and so login shells, need root. */
  readonly as: "login-shell" | "forced-command" | "both";
  /** Lines for sshd_config, behind the rest: a drop-in to be tried. */
  readonly config?: (account: string) => string;
  /** Options of the forced command, as `--quota 1M`. */
  readonly options?: string;
}

export interface Server {
  readonly account: string;
  readonly port: number;
  /** The store's root. */
  readonly store: string;
  /** The client's private key. */
  readonly key: string;
  /** A known_hosts file with the server's key. */
  readonly knownHosts: string;
  /** Options for ssh and its kin, up to but without the destination. */
  readonly ssh: ReadonlyArray<string>;
  readonly destination: string;
  readonly pid: number;
  readonly log: () => string;
  readonly stop: () => void;
}

export const isRoot = process.getuid!() === 0;

const freePort = () =>
  new Promise<number>((resolve, reject) => {
    const probe = net.createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address() as net.AddressInfo;
      probe.close(() => resolve(port));
    });
  });

const listening = async (port: number, child: ChildProcess) => {
  for (let tries = 0; tries < 200; tries++) {
    if (child.exitCode !== null) throw new Error("sshd ended at its start");
    const up = await new Promise<boolean>((resolve) => {
      const socket = net.connect(port, "127.0.0.1", () => resolve(true));
      socket.once("error", () => resolve(false));
      socket.once("connect", () => socket.destroy());
    });
    if (up) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error("sshd does not listen");
};

export const startServer = async (options: ServerOptions): Promise<Server> => {
  const { as, dir, shell } = options;
  if (as !== "forced-command" && !isRoot) throw new Error("a login shell needs root");
  fs.mkdirSync(dir, { recursive: true, mode: 0o755 });
  const store = path.join(dir, "store");
  fs.mkdirSync(store, { mode: 0o700 });
  const keygen = (file: string) =>
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", file]);
  const hostKey = path.join(dir, "host_key");
  const key = path.join(dir, "client_key");
  keygen(hostKey);
  keygen(key);

  // Not of the process id: one that was killed leaves its account, and its number comes again.
  const account = isRoot ? `qbk${randomBytes(6).toString("hex")}` : os.userInfo().username;
  if (isRoot) {
    const loginShell = as === "forced-command" ? "/bin/sh" : shell;
    execFileSync("useradd", ["-M", "-d", store, "-s", loginShell, "-p", "*", account], {
      stdio: "pipe",
    });
    execFileSync("chown", [`${account}:`, store]);
  }
  const command = [shell, ...(isRoot ? [] : ["--root", store]), options.options]
    .filter(Boolean)
    .join(" ");
  const restrict = as === "login-shell" ? "" : `restrict,command="${command}" `;
  const authorized = path.join(dir, "authorized_keys");
  fs.writeFileSync(authorized, `${restrict}${fs.readFileSync(`${key}.pub`, "utf8")}`);

  const port = await freePort();
  const config = path.join(dir, "sshd_config");
  fs.writeFileSync(
    config,
    [
      `Port ${port}`,
      "ListenAddress 127.0.0.1",
      `HostKey ${hostKey}`,
      "PidFile none",
      "UsePAM no",
      "StrictModes no",
      "PasswordAuthentication no",
      "KbdInteractiveAuthentication no",
      "MaxStartups 100:30:200",
      "Subsystem sftp internal-sftp",
      `AuthorizedKeysFile ${authorized}`,
      options.config?.(account) ?? "",
      "",
    ].join("\n"),
  );
  if (isRoot) fs.mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  const logFile = path.join(dir, "sshd.log");
  const log = fs.openSync(logFile, "a");
  const sshd = spawn("/usr/sbin/sshd", ["-D", "-e", "-f", config], {
    stdio: ["ignore", log, log],
    detached: true,
  });
  fs.closeSync(log);
  const stop = () => {
    try {
      process.kill(-sshd.pid!, "SIGKILL");
    } catch {
      // It has ended already.
    }
    if (!isRoot) return;
    // Sessions are processes of the account; nothing else belongs to it.
    for (const tool of ["pkill", "userdel"]) {
      const args = tool === "pkill" ? ["-KILL", "-u", account] : ["-f", account];
      try {
        execFileSync(tool, args, { stdio: "ignore" });
      } catch {
        // pkill: nobody was left.
      }
    }
  };
  try {
    await listening(port, sshd);
  } catch (error) {
    stop();
    throw new Error(`${String(error)}: ${fs.readFileSync(logFile, "utf8")}`);
  }
  const knownHosts = path.join(dir, "known_hosts");
  const [type, base64] = fs.readFileSync(`${hostKey}.pub`, "utf8").split(" ");
  fs.writeFileSync(knownHosts, `[127.0.0.1]:${port} ${type} ${base64}\n`);
  return {
    account,
    port,
    store,
    key,
    knownHosts,
    ssh: [
      "-F",
      "none",
      "-p",
      String(port),
      "-i",
      key,
      "-o",
      "IdentitiesOnly=yes",
      "-o",
      "BatchMode=yes",
      "-o",
      `UserKnownHostsFile=${knownHosts}`,
      "-o",
      "StrictHostKeyChecking=yes",
      "-o",
      "LogLevel=ERROR",
    ],
    destination: `${account}@127.0.0.1`,
    pid: sshd.pid!,
    log: () => fs.readFileSync(logFile, "utf8"),
    stop,
  };
};
