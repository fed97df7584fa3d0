/** The carrier's bundle as a process, and a real sshd on loopback for it to talk to. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as net from "node:net";
import * as os from "node:os";
import * as path from "node:path";
import { build } from "rolldown";

export const sshdPath = "/usr/sbin/sshd";

export const temporary = (): string => fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-carrier-"));

export const script = (file: string, text: string): string => {
  fs.writeFileSync(file, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  return file;
};

/** Bundles the carrier as the release does. */
export const bundle = async (directory: string): Promise<string> => {
  const file = path.join(directory, "qubes.BackupCarrier");
  await build({
    input: "src/carrier.ts",
    platform: "node",
    tsconfig: false,
    logLevel: "silent",
    output: { file, format: "cjs", codeSplitting: false, minify: "dce-only" },
  });
  return file;
};

export interface Call {
  readonly child: ReturnType<typeof spawn>;
  readonly ended: Promise<{
    readonly code: number | null;
    readonly stdout: Buffer;
    readonly stderr: string;
  }>;
}

/**
 * Starts the service as qrexec does: its argument as $1, stdin and stdout as sockets. By the node that
 * installed programs start with, which is there for every user.
 */
export const start = (
  program: string,
  args: ReadonlyArray<string>,
  env: Readonly<Record<string, string>>,
  uid?: number,
): Call => {
  const child = spawn("/usr/bin/node", [program, ...args], {
    env: { ...env },
    stdio: "pipe",
    ...(uid === undefined ? {} : { uid }),
  });
  const out: Array<Buffer> = [];
  const err: Array<Buffer> = [];
  child.stdout.on("data", (bytes: Buffer) => out.push(bytes));
  child.stderr.on("data", (bytes: Buffer) => err.push(bytes));
  child.stdin.on("error", () => {});
  const ended = once(child, "close").then(([code]) => ({
    code: code as number | null,
    stdout: Buffer.concat(out),
    stderr: Buffer.concat(err).toString(),
  }));
  return { child, ended };
};

export const freePort = async (): Promise<number> => {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, "close");
  return port;
};

export const keygen = (file: string): void => {
  execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", file]);
};

/** Starts sshd with a configuration, and returns what stops it once it listens. */
export const runSshd = async (config: string, port: number): Promise<() => Promise<void>> => {
  // Where sshd of root confines what it does before a login; at boot systemd makes it.
  if (os.userInfo().uid === 0) fs.mkdirSync("/run/sshd", { recursive: true });
  const daemon = spawn(sshdPath, ["-D", "-e", "-f", config], { stdio: "ignore" });
  const limit = Date.now() + 10_000;
  for (;;) {
    const socket = net.connect(port, "127.0.0.1");
    const open = await once(socket, "connect").then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (open) break;
    if (daemon.exitCode !== null || Date.now() > limit) throw new Error("sshd did not start");
    await new Promise((done) => setTimeout(done, 50));
  }
  return async () => {
    if (daemon.exitCode !== null) return;
    const gone = once(daemon, "exit");
    daemon.kill();
    await gone;
  };
};

export interface Sshd {
  readonly port: number;
  /** A folder with an `ssh` that reads the configuration `config` and not the user's own. */
  readonly bin: string;
  /** Writes that configuration; `Host server` is already in it, and what is said here goes first. */
  readonly configure: (...lines: ReadonlyArray<string>) => void;
  readonly trust: (hostKey: "right" | "wrong" | "none") => void;
  readonly stop: () => Promise<void>;
}

/** An sshd of our own, where every session runs `command` (a shell script). */
export const startSshd = async (directory: string, command: string): Promise<Sshd> => {
  const at = (name: string) => path.join(directory, name);
  const port = await freePort();
  for (const name of ["host", "other", "user"]) keygen(at(name));
  fs.copyFileSync(at("user.pub"), at("authorized_keys"));
  script(at("forced"), command);
  fs.writeFileSync(
    at("sshd_config"),
    `ListenAddress 127.0.0.1:${port}
HostKey ${at("host")}
AuthorizedKeysFile ${at("authorized_keys")}
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
ForceCommand ${at("forced")}
`,
  );
  const stop = await runSshd(at("sshd_config"), port);

  const bin = at("bin");
  fs.mkdirSync(bin);
  script(path.join(bin, "ssh"), `exec /usr/bin/ssh -F ${at("ssh_config")} "$@"`);
  const configure = (...lines: ReadonlyArray<string>) =>
    fs.writeFileSync(
      at("ssh_config"),
      `${lines.join("\n")}
Host server
  HostName 127.0.0.1
  Port ${port}
  User ${os.userInfo().username}
  IdentityFile ${at("user")}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile ${at("known_hosts")}
  GlobalKnownHostsFile none
`,
    );
  const trust = (hostKey: "right" | "wrong" | "none") => {
    const key =
      hostKey === "none" ? "" : fs.readFileSync(at(hostKey === "right" ? "host.pub" : "other.pub"));
    fs.writeFileSync(at("known_hosts"), key === "" ? "" : `[127.0.0.1]:${port} ${key}`);
  };
  configure();
  trust("right");
  return {
    port,
    bin,
    configure,
    trust,
    stop,
  };
};
