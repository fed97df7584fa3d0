/** How the tools talk with the stand-in's qubesd: a line of JSON there, lines of JSON back. */
import * as child_process from "node:child_process";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { Exit } from "./args.ts";
import { sha256, sleep } from "./state.ts";
import type { Qube } from "./state.ts";

export type Request =
  | { readonly op: "list" }
  | { readonly op: "start"; readonly vm: string }
  | { readonly op: "shutdown" | "kill" | "pause" | "unpause"; readonly vm: string }
  | {
      readonly op: "set";
      readonly vm: string;
      readonly name: string;
      /** Null: back to what it is by default. */
      readonly value: string | null;
    }
  | { readonly op: "create"; readonly vm: string; readonly label: string; readonly class: string }
  | { readonly op: "remove"; readonly vm: string }
  | { readonly op: "tag"; readonly vm: string; readonly tag: string }
  /** The image lies in a file that is this volume's from now on. */
  | { readonly op: "import"; readonly vm: string; readonly volume: string; readonly file: string }
  | { readonly op: "info" | "execute" | "cancel"; readonly profile: string };

export type Reply =
  | { readonly progress: number }
  | { readonly ok: string | ReadonlyArray<Qube> }
  /** An error that can be shown to the user, and its class. */
  | { readonly error: string; readonly kind?: string }
  /** What a fault asks for: an exception inside of the tool itself. */
  | { readonly traceback: string };

/** qubesd answered, and the answer is no. `kind` is the exception's class, where it matters. */
export class Refused extends Error {
  readonly kind: string | undefined;
  constructor(message: string, kind?: string) {
    super(message);
    this.kind = kind;
  }
}

/** Nobody listens at qubesd's socket. Most tools do not catch that. */
export class Unreachable extends Refused {
  constructor() {
    super("Failed to connect to qubesd service: [Errno 111] Connection refused");
  }
}

/**
 * What Python 3.13 says of it: two exceptions, of which the last line of the second is of use. The
 * frames are those of the genuine tools.
 */
export const unreachable = (tool: string): string => {
  const site = "/usr/lib/python3.13/site-packages/qubesadmin";
  const frame = (file: string, line: number, name: string) =>
    `  File "${file}", line ${line}, in ${name}`;
  return [
    "Traceback (most recent call last):",
    frame(`${site}/app.py`, 862, "qubesd_call"),
    "    ~~~~~~~~~~~~~~~~~~~~~^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
    "ConnectionRefusedError: [Errno 111] Connection refused",
    "",
    "During handling of the above exception, another exception occurred:",
    "",
    "Traceback (most recent call last):",
    frame(`/usr/bin/${tool}`, 8, "<module>"),
    "    ~~~~^^",
    frame(`${site}/tools/${tool.replaceAll("-", "_")}.py`, 114, "main"),
    frame(`${site}/tools/__init__.py`, 430, "parse_args"),
    "    ~~~~~~~~~~~~~~~~~~~~~~^^^^^^^^^^^^^^^^^",
    frame(`${site}/tools/__init__.py`, 195, "parse_qubes_app"),
    "                          ~~~~~~~~~~~^^^^^^^^^",
    frame(`${site}/app.py`, 107, "__getitem__"),
    frame(`${site}/app.py`, 143, "__contains__"),
    frame(`${site}/app.py`, 73, "refresh_cache"),
    "    ~~~~~~~~~~~~~~~~~~~~^^^^^^^^^^^^^^^^^^^^^^^^^",
    frame(`${site}/app.py`, 864, "qubesd_call"),
    "    ...<2 lines>...",
    `qubesadmin.exc.QubesDaemonCommunicationError: ${new Unreachable().message}`,
  ].join("\n");
};

let gone = false;
/** This tool finds no qubesd, though there is one. */
export const loseQubesd = (): void => {
  gone = true;
};

/** The tool itself is to die of an exception. */
export class Crashed extends Error {}

/**
 * In the abstract namespace: it disappears with the process, two can never have it, and the length
 * of DIR does not matter.
 */
export const socketName = (dir: string): string =>
  `\0qubes-standin-${sha256(fs.realpathSync(dir)).toString("hex").slice(0, 40)}`;

/**
 * qubesd and services are started by tools, but are not their children in Qubes: they must not
 * inherit more than stdin, stdout and stderr, least of all an end of somebody's FIFO.
 */
export const CLOSE_OTHERS = [
  "for f in /proc/self/fd/*; do",
  '  n=${f##*/}; if [ "$n" -gt 2 ]; then eval "exec $n>&-"; fi',
  "done",
  'exec "$@"',
].join("\n");

export const selfCommand = (dir: string, node: string, tool: string): Array<string> => [
  node,
  path.join(dir, "lib", "standin.cjs"),
  "--tool",
  tool,
  "--world",
  dir,
];

/** Starts qubesd, which may turn out to run already. */
export const startQubesd = (dir: string, node: string): void => {
  const log = fs.openSync(path.join(dir, "log", "qubesd.log"), "a");
  const command = selfCommand(dir, node, "qubesd");
  child_process
    .spawn("/bin/bash", ["-c", CLOSE_OTHERS, "close-others", ...command], {
      cwd: "/",
      detached: true,
      env: { PATH: "/usr/local/bin:/usr/bin:/bin", HOME: "/root", LANG: "C.UTF-8" },
      stdio: ["ignore", log, log],
    })
    .unref();
  fs.closeSync(log);
};

const connectOnce = (dir: string): Promise<net.Socket | undefined> =>
  new Promise((resolve) => {
    const socket = net.connect({ path: socketName(dir), allowHalfOpen: true });
    socket.once("connect", () => {
      socket.removeAllListeners("error");
      resolve(socket);
    });
    socket.once("error", () => resolve(undefined));
  });

const connect = async (dir: string): Promise<net.Socket> => {
  for (let tries = 0; !gone && tries < 500; tries++) {
    const socket = await connectOnce(dir);
    if (socket !== undefined) return socket;
    if (fs.existsSync(path.join(dir, "stopped"))) break;
    if (tries % 100 === 0) startQubesd(dir, process.execPath);
    await sleep(20);
  }
  throw new Unreachable();
};

export const ask = async (
  dir: string,
  request: Request,
  onProgress: (percent: number) => void = () => {},
): Promise<string | ReadonlyArray<Qube>> => {
  const socket = await connect(dir);
  socket.end(`${JSON.stringify(request)}\n`);
  socket.setEncoding("utf8");
  return new Promise((resolve, reject) => {
    let text = "";
    socket.on("data", (data: string) => {
      const lines = (text + data).split("\n");
      text = lines.pop() ?? "";
      for (const line of lines) {
        const reply = JSON.parse(line) as Reply;
        if ("progress" in reply) onProgress(reply.progress);
        else if ("ok" in reply) resolve(reply.ok);
        else if ("error" in reply) reject(new Refused(reply.error, reply.kind));
        else reject(new Crashed(reply.traceback));
      }
    });
    socket.on("error", () => {});
    socket.on("close", () =>
      reject(new Refused("Got empty response from qubesd. See journalctl in dom0 for details.")),
    );
  });
};

export const listQubes = async (dir: string): Promise<ReadonlyArray<Qube>> => {
  const qubes = await ask(dir, { op: "list" });
  if (typeof qubes === "string") throw new Exit(1, "qubesd said something else");
  return qubes;
};
