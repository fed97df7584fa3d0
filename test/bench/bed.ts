/**
 * The test bed: one directory, one sshd, one account whose forced command is qbackup-shell for the
 * wire and a plain shell for everything else, and a dom0 whose qvm-* tools are a few lines of sh, so
 * that what is measured is qbackup and not a stand-in. The programs are copied first: a build in the
 * meantime changes nothing.
 */
import { type ChildProcess, execFileSync, spawn, type StdioOptions } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import { createInterface } from "node:readline";
import { archive, writeAll } from "./archive.ts";
import { type Usage, warmMemory, watch } from "./measure.ts";
import { isRoot, type Server, startServer } from "#test/support/server";
import { dist } from "#test/support/whole";

export const here = import.meta.dirname;
/** What runs the three programs: the line that they begin with. */
export const programNode = "/usr/bin/node";
export const aesGcm = ["-o", "Ciphers=^aes128-gcm@openssh.com"];

/** What prints an archive of about so many bytes. */
export const generated = (bytes: number) =>
  `exec ${process.execPath} ${path.join(here, "archive.ts")} ${bytes}`;

/** How ssh reaches the server: words in front of `ssh`, and options that win over the others. */
export interface Link {
  readonly before: ReadonlyArray<string>;
  readonly options: ReadonlyArray<string>;
}
export const loopback: Link = { before: [], options: [] };

/** Children of this process: none may outlive it. */
const children = new Set<ChildProcess>();
export const start = (
  argv: ReadonlyArray<string>,
  stdio: StdioOptions,
  env: NodeJS.ProcessEnv = process.env,
): ChildProcess => {
  const child = spawn(argv[0]!, argv.slice(1), { stdio, env });
  children.add(child);
  child.once("close", () => children.delete(child));
  return child;
};
export const endChildren = (): void => {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    for (const child of children) child.kill(signal);
    if (children.size > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500);
  }
};

export const ended = async (child: ChildProcess, what: string): Promise<void> => {
  const [code, signal] = (
    child.exitCode === null && child.signalCode === null
      ? await once(child, "close")
      : [child.exitCode, child.signalCode]
  ) as [number | null, string | null];
  if (code !== 0) throw new Error(`${what} ended with ${code ?? signal}`);
};

export interface Job {
  /** Seconds from its start: to the server's `ready`, to the receipt, to the end of the process. */
  readonly ready: number;
  readonly stored: number;
  readonly exit: number;
  readonly usage: { readonly [role: string]: Usage };
  readonly name: string;
}

export interface Bed {
  readonly dir: string;
  readonly server: Server;
  /** The file with the archive that most runs send. */
  readonly source: string;
  readonly size: number;
  readonly use: (link: Link) => void;
  /** `qbackup run`, whose qvm-backup writes what the command `source` prints: about `bytes`. */
  readonly backUp: (
    source?: string,
    options?: {
      readonly watched?: boolean;
      readonly keep?: boolean;
      readonly bytes?: number;
      /** In slots, as a night of this series; its archives are kept. `$tap` is for \`source\` to use. */
      readonly series?: string;
    },
  ) => Promise<Job>;
  /** Another verb of qbackup; seconds to its end, and what it printed. */
  readonly qbackup: (
    args: ReadonlyArray<string>,
    options?: { readonly watched?: boolean },
  ) => Promise<{ readonly exit: number; readonly stdout: string; readonly usage: Job["usage"] }>;
  /** Forgets a stored archive. */
  readonly forget: (name: string) => void;
  /** `cat source | ssh host 'cat > f && sync f'`; `stored` counts from when the server reads. */
  readonly plain: (
    options: ReadonlyArray<string>,
    source?: string,
  ) => Promise<{ readonly ready: number; readonly stored: number }>;
  /** Seconds that a shell command takes; $SSH is ssh to the server, without options for ciphers. */
  readonly shell: (command: string, bytes?: number) => Promise<number>;
  /** The server's program, and the account's directory for plain files. */
  readonly program: (name: string) => string;
  readonly plainDirectory: string;
  readonly stop: () => void;
}

const quote = (words: ReadonlyArray<string>) => words.map((word) => `'${word}'`).join(" ");
const seconds = (since: number) => (performance.now() - since) / 1000;

export const makeBed = async (dir: string, size: number, config: string): Promise<Bed> => {
  fs.chmodSync(dir, 0o755);
  const at = (name: string) => path.join(dir, name);
  const bin = at("bin");
  const script = (name: string, text: string) =>
    fs.writeFileSync(path.join(bin, name), `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  for (const name of ["bin", "programs", "plain", "pids", "home"]) fs.mkdirSync(at(name));
  for (const name of ["bin", "programs", "plain"]) fs.chmodSync(at(name), 0o755);
  fs.chmodSync(at("pids"), 0o1777);
  const program = (name: string) => path.join(at("programs"), name);
  for (const name of ["qbackup", "qubes.BackupCarrier", "qbackup-shell"]) {
    fs.copyFileSync(dist(name), program(name));
    fs.chmodSync(program(name), 0o755);
  }
  fs.writeFileSync(at("programs/package.json"), '{ "type": "commonjs" }\n');
  fs.chmodSync(at("programs/package.json"), 0o644);

  script(
    "far-side",
    `case "$SSH_ORIGINAL_COMMAND" in
qbackup/1*) echo $$ >> ${at("pids")}/server; exec ${program("qbackup-shell")} "$@" ;;
*) exec /bin/sh -c "$SSH_ORIGINAL_COMMAND" ;;
esac`,
  );
  const server = await startServer({
    dir: at("server"),
    shell: path.join(bin, "far-side"),
    as: "forced-command",
    config: () => config,
  });
  try {
    if (isRoot) execFileSync("chown", [`${server.account}:`, at("plain")]);
    const use: Bed["use"] = ({ before, options }) =>
      script("ssh", `exec ${quote([...before, "/usr/bin/ssh", ...options, ...server.ssh])} "$@"`);
    use(loopback);

    // What dom0 has, as far as one run asks for it.
    script("qvm-ls", "printf 'work|7|Halted|AppVM|True|-\\nnet|8|Running|AppVM|False|-\\n'");
    // Whatever volume: no archive here is larger.
    script("qvm-volume", "echo 17179869184");
    // Running, and not paused.
    script("qvm-check", '[ "$2" = --running ]');
    for (const name of ["qvm-start", "qvm-shutdown", "systemctl", "logger", "notify-send"]) {
      script(name, "exit 0");
    }
    script(
      "qvm-backup",
      `for word; do
  [ ! -p "$word" ] || fifo=$word
  [ "$before" != --compress-filter ] || tap=$word
  before=$word
done
exec > "$fifo"
. ${at("source.sh")}`,
    );
    // --no-gui --pass-io --service QUBE qubes.BackupCarrier+VERB
    script(
      "qvm-run",
      `echo $$ >> ${at("pids")}/carrier
exec env -i HOME=${at("home")} PATH="$PATH" QREXEC_REMOTE_DOMAIN=dom0 ${program("qubes.BackupCarrier")} "\${5#*+}"`,
    );
    fs.writeFileSync(at("home/.bashrc"), `SSH_CONN=${server.destination}\n`);
    fs.writeFileSync(at("passphrase"), "a passphrase for nothing\n", { mode: 0o600 });

    const source = at("archive");
    const fd = fs.openSync(source, "w");
    for (const piece of archive(size)) writeAll(fd, piece);
    fs.closeSync(fd);

    const env = {
      ...process.env,
      PATH: `${bin}:/usr/bin:/bin`,
      HOME: at("home"),
      XDG_STATE_HOME: at("state"),
      NODE_OPTIONS: undefined,
    };
    /** Of the calls of this run so far. */
    const pidsOf = (role: string) => () => {
      try {
        return fs
          .readFileSync(at(`pids/${role}`), "utf8")
          .split("\n")
          .filter(Boolean)
          .map(Number);
      } catch {
        return [];
      }
    };
    const observe = (child: ChildProcess, watched: boolean | undefined) =>
      watched === true
        ? watch({
            dom0: () => (child.pid === undefined ? [] : [child.pid]),
            carrier: pidsOf("carrier"),
            server: pidsOf("server"),
          })
        : undefined;
    /** What an earlier run left to be written, or gave back, is not for the next one to pay. */
    const settle = (bytes = size) => {
      execFileSync("sync", ["-f", dir]);
      warmMemory(1.25 * bytes);
    };
    let runs = 0;

    /** All that the store has of an archive. */
    const forget = (name: string) => {
      const own = path.join(server.store, ".qbackup");
      const record = path.join(server.store, `${name}.manifest.json`);
      const { manifest } = JSON.parse(fs.readFileSync(record, "utf8")) as { manifest: string };
      const { session } = JSON.parse(manifest) as { session: string };
      for (const file of [
        record,
        path.join(server.store, name),
        path.join(own, "records", `${session}.manifest.json`),
        ...["packs", "digests", "tables", "recipes"].map((of) => path.join(own, of, session)),
      ])
        // A night in slots that is built on another one has no plain file.
        fs.rmSync(file, { force: true });
    };
    const bed: Bed = {
      dir,
      server,
      source,
      size: fs.statSync(source).size,
      use,
      program,
      plainDirectory: at("plain"),
      forget,
      backUp: async (from = `exec cat ${source}`, options = {}) => {
        for (const role of ["carrier", "server"]) fs.rmSync(at(`pids/${role}`), { force: true });
        fs.writeFileSync(at("source.sh"), `${from}\n`);
        settle(options.bytes);
        const { series } = options;
        const argv = [
          "run",
          "-o",
          "--format",
          series === undefined ? "qvm-backup" : "slots",
          "-f",
          series ?? `b${runs++}-`,
          "-t",
          "net",
          "-p",
          at("passphrase"),
          "work",
        ];
        const began = performance.now();
        const child = start([program("qbackup"), ...argv], ["ignore", "ignore", "pipe"], env);
        const looking = observe(child, options.watched);
        const said: Array<string> = [];
        let ready = 0;
        let stored = 0;
        let name = "";
        createInterface(child.stderr!).on("line", (line) => {
          said.push(line);
          const found = /: backing up \S+ as (\S+) through/.exec(line);
          if (found !== null) [ready, name] = [seconds(began), found[1]!];
          if (line.includes(": stored ")) stored = seconds(began);
        });
        await ended(child, "qbackup").catch((error: unknown) => {
          throw new Error(`${String(error)}:\n${said.join("\n")}\n${server.log()}`);
        });
        const exit = seconds(began);
        const usage = looking?.stop() ?? {};
        if (options.keep !== true && series === undefined) bed.forget(name);
        return { ready, stored, exit, usage, name };
      },
      qbackup: async (args, options = {}) => {
        for (const role of ["carrier", "server"]) fs.rmSync(at(`pids/${role}`), { force: true });
        settle();
        const began = performance.now();
        const child = start([program("qbackup"), ...args], ["ignore", "pipe", "pipe"], env);
        const looking = observe(child, options.watched);
        let stdout = "";
        let stderr = "";
        child.stdout!.on("data", (text: Buffer) => (stdout += text.toString()));
        child.stderr!.on("data", (text: Buffer) => (stderr += text.toString()));
        await ended(child, `qbackup ${args.join(" ")}`).catch((error: unknown) => {
          throw new Error(`${String(error)}:\n${stderr}`);
        });
        return { exit: seconds(began), stdout, usage: looking?.stop() ?? {} };
      },
      plain: async (options, from = `exec cat ${source}`) => {
        const file = at(`plain/f${runs++}`);
        const fifo = at("plain.fifo");
        settle();
        execFileSync("mkfifo", [fifo]);
        const { O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants;
        const reader = fs.openSync(fifo, O_RDONLY | O_NONBLOCK);
        const writer = fs.openSync(fifo, O_WRONLY);
        fs.rmSync(fifo);
        const command = `echo; cat > ${file} && sync ${file}`;
        const argv = [path.join(bin, "ssh"), ...options, "--", server.destination, command];
        const began = performance.now();
        const ssh = start(argv, [reader, "pipe", "inherit"], env);
        fs.closeSync(reader);
        const done = ended(ssh, "ssh");
        await Promise.race([once(ssh.stdout!, "data"), done]);
        const ready = seconds(began);
        const cat = start(["sh", "-c", from], ["ignore", writer, "inherit"], env);
        fs.closeSync(writer);
        await Promise.all([done, ended(cat, "the source")]);
        const stored = seconds(began);
        fs.rmSync(file);
        return { ready, stored };
      },
      shell: async (command, bytes) => {
        settle(bytes);
        const SSH = path.join(bin, "ssh");
        const began = performance.now();
        const child = start(
          ["bash", "-o", "pipefail", "-c", command],
          ["ignore", "ignore", "inherit"],
          {
            ...env,
            SSH,
            TO: server.destination,
          },
        );
        await ended(child, command);
        return seconds(began);
      },
      stop: () => server.stop(),
    };
    return bed;
  } catch (error) {
    server.stop();
    throw error;
  }
};
