/** ssh of OpenSSH, as a child: with this process's own stdin and stdout, or read here. */
import * as Data from "effect/Data";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { spawn, spawnSync } from "node:child_process";
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
} from "node:fs";
import { userInfo } from "node:os";
import * as path from "node:path";
import type { Readable } from "node:stream";
import { child, type Child, type ChildOptions, type Env } from "#layers/process/Child";
import { fromReadable, toWritable } from "#layers/process/FdBytes";
import type { Sink, Source } from "#services/Bytes";
import { type SshEnded, SshMissing, type SshReason, SshTransport } from "#services/SshTransport";

/**
 * What the service relies on, whatever ~/.ssh/config says; the rest of it (port, identity, jump
 * hosts, ciphers) stays the user's. An unknown host key is refused, never accepted; nothing prompts;
 * no master connection is joined, which could outlive the call and hold its stdout open.
 */
export const sshOptions: ReadonlyArray<string> = [
  "-T",
  "-e",
  "none",
  ...[
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ControlMaster=no",
    "ControlPath=none",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "ConnectTimeout=30",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    "LogLevel=INFO", // what classify reads
  ].flatMap((option) => ["-o", option]),
];

/**
 * ssh's own first choice, chacha20, moves about two thirds of what AES-GCM does where the processor
 * has AES (measured: 310 and 480 MB/s). Options on the command line overrule every file, so it is
 * only asked for where no file has anything to say about ciphers, or may have through an Include.
 */
export const cipherOptions = (
  home: string,
  etc = "/etc/ssh",
  processor = "/proc/cpuinfo",
): ReadonlyArray<string> => {
  const read = (file: string): string => {
    try {
      return readFileSync(file, "utf8");
    } catch {
      return "";
    }
  };
  const standard = `${etc}/ssh_config.d`;
  const parts = existsSync(standard)
    ? readdirSync(standard).map((name) => path.join(standard, name))
    : [];
  const decided = [path.join(home, ".ssh/config"), `${etc}/ssh_config`, ...parts]
    .map(read)
    .some((text) =>
      /^[ \t]*ciphers\b|^[ \t]*include(?![ \t]+\S*\/ssh_config\.d\/\*\.conf[ \t]*$)/im.test(text),
    );
  const helps = /^(?:flags|features)\b.*\baes\b/im.test(read(processor));
  return decided || !helps ? [] : ["-o", "Ciphers=^aes128-gcm@openssh.com"];
};

/**
 * ssh has one exit status, 255, for all its own failures, so its words must tell them apart (OpenSSH
 * 8.4 to 10: sshconnect.c, clientloop.c, packet.c; they are never translated). A server can say the
 * same words on its stderr and so choose the advice that is given, no more.
 */
const signs: ReadonlyArray<readonly [SshReason, RegExp]> = [
  [
    "host-key-changed",
    /REMOTE HOST IDENTIFICATION HAS CHANGED|REVOKED HOST KEY|has changed and you/,
  ],
  ["host-key-unknown", /host key is known for|Host key verification failed/],
  ["refused-key", /Permission denied \(|Too many authentication failures/],
  [
    "misconfigured",
    /Bad configuration option|bad configuration options|Bad owner or permissions|^Bad SSH2 |[Uu]nsupported option|Unable to negotiate with|no matching (?:cipher|host key type|key exchange method|MAC) found/m,
  ],
  [
    "lost",
    /^Connection to \S+ closed by remote host|^client_loop:|^Timeout, server|^Read from remote host|^ssh_dispatch_run_fatal:|^packet_write|^Corrupted MAC|^Bad packet length/m,
  ],
];

export const classify = (said: ReadonlyArray<string>): SshReason => {
  const text = said.join("\n");
  // Silent failure: the far program was killed by a signal, so there was a connection.
  return signs.find(([, sign]) => sign.test(text))?.[0] ?? (text === "" ? "lost" : "unreachable");
};

/** The path of a program, so that a missing ssh is known before anything is started. */
const find = (program: string, env: Env): string | undefined =>
  (env["PATH"] ?? "/usr/bin:/bin")
    .split(":")
    .map((directory) => path.join(directory, program))
    .find((file) => {
      try {
        accessSync(file, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });

/** ssh was not started, and why. */
class NotStarted extends Data.TaggedError("NotStarted")<{ readonly why: string }> {}

/** What ssh reads of a disk: a descriptor, or the output of a process that is allowed to read it. */
const openDisk = (disk: string): number | Readable => {
  let fd: number;
  try {
    fd = openSync(disk, constants.O_RDONLY | constants.O_NONBLOCK); // a FIFO must not hold us up
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") throw new NotStarted({ why: "there is no such file" });
    if (code !== "EACCES" && code !== "EPERM") {
      throw new NotStarted({ why: `it cannot be opened: ${code}` });
    }
    // An attached disk belongs to root:disk, and the service does not run as root.
    const may = spawnSync("sudo", ["-n", "test", "-b", disk], { stdio: "ignore" });
    if (may.status !== 0) throw new NotStarted({ why: "permission denied" });
    const cat = spawn("sudo", ["-n", "cat", "--", disk], { stdio: ["ignore", "pipe", "inherit"] });
    cat.on("error", () => {});
    return cat.stdout;
  }
  const kind = fstatSync(fd);
  if (kind.isBlockDevice() || kind.isFile()) return fd;
  closeSync(fd);
  throw new NotStarted({ why: "it is neither a disk nor a file" });
};

const opened = (disk: string) =>
  Effect.acquireRelease(
    Effect.try({ try: () => openDisk(disk), catch: (error) => error as NotStarted }),
    (input) => Effect.sync(() => (typeof input === "number" ? closeSync(input) : input.destroy())),
  );

const notStarted = (why: string): SshEnded => ({ code: 127, reason: "no-ssh", said: [why] });

/** Of a call that nobody reads any more: how long ssh may write nothing, and what counts as that. */
export const limits = { seconds: 15, bytes: 4096 };

/** Bytes that a process has written, to whatever; undefined where that may not be seen. */
const written = (pid: number): number | undefined => {
  try {
    return Number(/^wchar: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, "utf8"))?.[1]);
  } catch {
    return undefined;
  }
};

/**
 * Returns when ssh gets rid of no more bytes. qrexec's agent shuts the stdout of a service whose
 * caller is gone, but keeps it open: ssh, which waits for room in it, is never woken (docs/qubes.md,
 * Calling a service). That ssh still sends signs of life to the server, of a hundred bytes now and then.
 */
const stuck = (pid: number) =>
  Effect.gen(function* () {
    let before = written(pid) ?? 0;
    for (;;) {
      yield* Effect.sleep(`${limits.seconds} seconds`);
      const now = written(pid) ?? 0;
      if (now - before < limits.bytes) return;
      before = now;
    }
  });

/** All of `from` into `into`; each piece as it comes, because it may be a question. */
const handOn = (from: Source, into: Sink) =>
  Effect.gen(function* () {
    const piece = new Uint8Array(16_384);
    for (;;) {
      const n = yield* from.read(piece);
      if (n === 0) return;
      yield* into.write(piece.subarray(0, n));
    }
  });

const endOf = (running: Child): Effect.Effect<SshEnded> =>
  Effect.map(running.ended, ({ code, said }) => {
    if (running.proc.signalCode !== null) return { code, reason: "lost", said };
    return { code, reason: code === 255 ? classify(said) : "done", said };
  });

/** `env` is ssh's environment, and its PATH finds ssh. */
export const openSshTransport = (env: Env = process.env): Layer.Layer<SshTransport> => {
  /** The one place where ssh is started: with these options, and never outliving this process. */
  const start = Effect.fnUntraced(function* (
    destination: string,
    command: string,
    stdio: ChildOptions["stdio"],
    onSpawn?: () => void,
  ) {
    const ssh = find("ssh", env);
    if (ssh === undefined) return yield* new NotStarted({ why: "there is no ssh in PATH" });
    // It may hold stdin and stdout itself: it must not outlive a carrier that is killed outright.
    const setpriv = find("setpriv", env);
    const bound = setpriv === undefined ? [] : [setpriv, "--pdeathsig", "TERM", "--"];
    const options = [...sshOptions, ...cipherOptions(userInfo().homedir)];
    const [program, ...args] = [...bound, ssh, ...options, "--", destination, command];
    return yield* child([program!, ...args], {
      stdio,
      env: { ...env, LC_ALL: "C", SSH_ASKPASS: undefined, SSH_ASKPASS_REQUIRE: undefined },
      ...(onSpawn === undefined ? {} : { onSpawn }),
    }).pipe(Effect.mapError(({ message }) => new NotStarted({ why: message })));
  });

  return Layer.succeed(SshTransport, {
    handOver: (destination, command, { disk, from } = {}) =>
      Effect.gen(function* () {
        const input = disk !== undefined ? yield* opened(disk) : from !== undefined ? "pipe" : 0;
        const running = yield* start(destination, command, [input, 1, "pipe"], () =>
          // Only ssh may hold the other end of `cat`, or `cat` would not end with it.
          typeof input === "object" ? input.destroy() : undefined,
        );
        const ended = endOf(running);
        if (from === undefined) return yield* ended;
        const stdin = toWritable(running.proc.stdin!);
        const left = Effect.ignore(handOn(from, stdin)).pipe(
          Effect.andThen(stdin.end),
          Effect.andThen(stuck(running.proc.pid)),
          Effect.as(notRead),
        );
        return yield* Effect.raceFirst(ended, left);
      }).pipe(
        Effect.catchTag("NotStarted", ({ why }) => Effect.succeed(notStarted(why))),
        Effect.scoped,
      ),
    read: (destination, command) =>
      start(destination, command, ["pipe", "pipe", "pipe"]).pipe(
        Effect.map((running) => ({
          stdin: toWritable(running.proc.stdin!),
          stdout: fromReadable(running.proc.stdout!),
          ended: endOf(running),
        })),
        Effect.mapError(({ why }) => new SshMissing({ why })),
      ),
  });
};

/** Ended here, because nobody takes what it prints. */
const notRead: SshEnded = { code: 128, reason: "lost", said: [] };
