/**
 * The carrier: reads one request line from dom0, says it to the server as an ssh command, and hands
 * stdout, and an upload's stdin, over to ssh. It sees no byte of an archive, and passes no string
 * through: the command is built from the decoded request.
 */
import { Effect } from "effect";
import type { Source } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import { Reporter } from "#services/Reporter";
import type { Settings } from "#services/Settings";
import { type SshInput, SshTransport } from "#services/SshTransport";
import { exitCode } from "#src/say/exit";
import { readExactLine } from "#src/wire/lines";
import { isName } from "#src/wire/names";
import { type Failed, replier } from "#src/wire/reply";
import { isVerb, parseLine, toCommand } from "#src/wire/request";
import { line, printable } from "#src/say/shown";
import { version } from "#src/say/version";
import { advice } from "./advice.ts";
import { destination, refuse, type Refused, setting } from "./setup.ts";

/** Seconds to wait for the request line: dom0 writes it at once, so something else has taken it. */
export const requestLimit = 10;

/** Where a disk that dom0 attached appears (the form without an argument). */
const defaultDisk = "/dev/xvdi";

const requestLine = Effect.gen(function* () {
  const { stdin } = yield* Invocation;
  const sent = yield* readExactLine(stdin).pipe(
    Effect.catchTags({
      WireError: (error) => refuse("bad-request", error.reason),
      BytesError: () => refuse("bad-request", "stdin cannot be read"),
    }),
    Effect.timeoutOrElse({
      duration: `${requestLimit} seconds`,
      orElse: () =>
        refuse(
          "bad-request",
          `no request line came within ${requestLimit} seconds`,
          "something in ~/.profile or /etc/profile of this qube may read stdin: it runs before this service",
        ),
    }),
  );
  return sent ?? (yield* refuse("bad-request", "no request line came"));
});

/** What ssh is asked to do, and what it reads meanwhile. */
interface Errand {
  readonly command: string;
  readonly input?: SshInput;
}

/**
 * What ssh reads for a verb that says no more than its request: nothing, up to the end of stdin, which
 * means that the caller is gone, or will only listen from now on.
 */
const noMore = (stdin: Source): Source => ({
  received: stdin.received,
  read: () =>
    Effect.gen(function* () {
      const rest = new Uint8Array(4096);
      while ((yield* stdin.read(rest)) > 0);
      return 0;
    }),
});

/** `qubes.BackupCarrier+VERB`: the request line holds the verb's parameters. */
const request = Effect.fnUntraced(function* (
  verb: string,
): Effect.fn.Return<Errand, Refused, Invocation> {
  if (!isVerb(verb)) {
    return yield* refuse("unsupported", `this carrier has no service ${printable(verb, 40)}`);
  }
  const parsed = parseLine(verb, yield* requestLine);
  if ("refusal" in parsed) return yield* refuse(parsed.refusal.code, parsed.refusal.message);
  const { stdin } = yield* Invocation;
  const command = toCommand(parsed.request);
  // An upload is all that is large on its way there: ssh itself reads it.
  if (verb === "put") return { command };
  return { command, input: { from: verb === "read" ? stdin : noMore(stdin) } };
});

/** Without an argument: one line, the archive's name, and the bytes are those of a disk. */
const wholeDisk = Effect.gen(function* () {
  const name = yield* requestLine;
  if (!isName(name)) return yield* refuse("bad-name", "the line is not a name for an archive");
  return { command: name, input: { disk: (yield* setting("DISK_PATH")) ?? defaultDisk } };
});

/** For whoever looks at the file in its qube; a caller through qrexec gets no such answer. */
const help = `qubes.BackupCarrier ${version}: hands what dom0 sends over to ssh. It is called through qrexec.

In its qube, SSH_CONN=account@server says where to; in the environment or in ~/.bash_profile,
~/.bashrc or ~/.profile. Without a service argument it sends the disk DISK_PATH (${defaultDisk}).
`;

const handOver = Effect.gen(function* () {
  const { args, env, stdout } = yield* Invocation;
  const caller = env["QREXEC_REMOTE_DOMAIN"];
  const about =
    caller !== undefined || args.length !== 1
      ? undefined
      : args[0] === "--version"
        ? `qubes.BackupCarrier ${version}\n`
        : args[0] === "--help" || args[0] === "-h"
          ? help
          : undefined;
  if (about !== undefined) {
    yield* Effect.ignore(stdout.write(new TextEncoder().encode(about)));
    return exitCode("done");
  }
  if (caller !== undefined && caller !== "dom0") {
    return yield* refuse("not-permitted", "only dom0 may call this service");
  }
  const verb = args[0] || env["QREXEC_SERVICE_ARGUMENT"] || "";
  const errand: Errand = yield* verb === "" ? wholeDisk : request(verb);
  const to = yield* destination;

  const ssh = yield* SshTransport;
  const ended = yield* ssh.handOver(to, errand.command, errand.input);
  if (ended.reason === "no-ssh") {
    const why = ended.said.at(-1) ?? "ssh cannot be run";
    const disk = errand.input?.disk;
    return yield* disk === undefined
      ? refuse("internal", `ssh was not started: ${why}`, "install openssh-client in the template")
      : refuse(
          "internal",
          `${printable(disk)} cannot be sent: ${why}`,
          "a disk belongs to root:disk: the qube's user needs sudo without a password, or the group disk",
        );
  }
  const reporter = yield* Reporter;
  // Marked as theirs: a server that says `error: ...` must not be taken for the carrier.
  yield* Effect.forEach(ended.said, (said) => reporter.say("info", line`| ${said}`));
  // A shell's own codes for a command that it does not find, or cannot run. Handed on, dom0 would
  // take them for qrexec's: no such service in this qube.
  const noShell = ended.code === 126 || ended.code === 127;
  if (ended.reason === "done" && !noShell) return ended.code;
  const { error, exit, hint } = advice(
    ended.reason === "done" ? "no-shell" : ended.reason,
    to,
    ended.said,
  );
  yield* reporter.say("error", error);
  yield* reporter.say("hint", hint);
  return exitCode(exit);
});

/** The role. Its value is the exit status: ssh's own, which is the server's, unless ssh failed. */
export const carrier: Effect.Effect<
  number,
  never,
  Invocation | Reporter | Settings | SshTransport
> = handOver.pipe(
  Effect.catchTag("Refused", ({ code, reason, hint }) =>
    Effect.gen(function* () {
      const { stdout } = yield* Invocation;
      const reporter = yield* Reporter;
      yield* reporter.say("error", reason);
      if (hint !== undefined) yield* reporter.say("hint", hint);
      const reply: Failed = { type: "error", code, message: reason, from: "carrier" };
      // dom0 may be gone; stderr and the exit status have said it.
      yield* Effect.ignore(replier(stdout)(reply));
      return exitCode("usage");
    }),
  ),
);
