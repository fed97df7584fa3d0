/**
 * A small client of the wire in plain node, for tests that kill, starve or cut what it talks to: the
 * built qbackup-shell as a child, or ssh to one.
 */
// @effect-diagnostics processEnv:off -- no Effect here.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as crypto from "node:crypto";
import { archiveOf } from "#test/support/archive";
import { linesOf, rootOf, tableOf } from "#test/support/reference";
import {
  commandFor,
  framesOf,
  manifestFor,
  tableFor,
  ticketFor,
  trailerOf,
} from "#test/support/shell";
import { dist, type Ran } from "#test/support/whole";

/** Of what happens at random; the same again with the same number. */
export const seed = Number(process.env["QBACKUP_SEED"] ?? 1);

/** A reply as it came; which fields it has its type says. */
export interface Said {
  readonly type: string;
  readonly [field: string]: unknown;
}

export interface Talk {
  readonly child: ChildProcess;
  /** The next reply; undefined when there are no more. */
  readonly next: () => Promise<Said | undefined>;
  /** Whether all of it went out. Gives up quietly when nobody is there to take it. */
  readonly send: (bytes: Uint8Array) => Promise<boolean>;
  readonly end: () => void;
  readonly ended: Promise<Ran>;
  /** The largest offset that was acknowledged, by `ready` or by `ack`. */
  readonly acked: () => number;
}

/** Talks to whatever `argv` runs. A call that hangs is killed, so that a test ends. */
export const talk = (
  argv: ReadonlyArray<string>,
  options: { readonly env?: NodeJS.ProcessEnv; readonly limit?: number } = {},
): Talk => {
  const child = spawn(argv[0]!, argv.slice(1), {
    stdio: "pipe",
    env: { ...process.env, ...options.env },
  });
  const queue: Array<Said> = [];
  const err: Array<Buffer> = [];
  let text = "";
  let all = "";
  let acked = 0;
  let over = false;
  let wake = () => {};
  child.stdout.on("data", (bytes: Buffer) => {
    text += bytes.toString();
    if (all.length < 1_000_000) all += bytes.toString();
    const lines = text.split("\n");
    text = lines.pop()!;
    for (const line of lines.filter((each) => each.startsWith("{"))) {
      const said = JSON.parse(line) as Said;
      if (said.type === "ack" || said.type === "ready")
        acked = Math.max(acked, Number(said["offset"] ?? 0));
      if (said.type !== "ack" && said.type !== "alive") queue.push(said);
    }
    wake();
  });
  child.stderr.on("data", (bytes: Buffer) => err.push(bytes));
  for (const each of [child.stdin, child.stdout, child.stderr]) each.on("error", () => {});
  const timer = setTimeout(() => child.kill("SIGKILL"), options.limit ?? 60_000);
  const ended = once(child, "close").then(([code, signal]): Ran => {
    clearTimeout(timer);
    over = true;
    wake();
    return {
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
      stdout: all,
      stderr: Buffer.concat(err).toString(),
    };
  });
  return {
    child,
    ended,
    acked: () => acked,
    end: () => child.stdin.end(),
    next: async () => {
      while (queue.length === 0 && !over) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      return queue.shift();
    },
    send: (bytes) =>
      new Promise((resolve) => {
        const done = (sent: boolean) => {
          child.off("close", gone);
          resolve(sent);
        };
        const gone = () => done(false);
        child.once("close", gone);
        child.stdin.write(bytes, (error) => done(error === null || error === undefined));
      }),
  };
};

/** `program` with an account's store, as a forced command would run it; `tracer` stands in front. */
export const serve = (
  store: string,
  command: string,
  tracer: ReadonlyArray<string> = [],
  limit?: number,
): Talk =>
  talk([...tracer, dist("qbackup-shell"), "--root", store], {
    env: {
      SSH_ORIGINAL_COMMAND: command,
      // One thread for all files, and no other way to the disk: so that calls can be counted.
      ...(tracer.length > 0 ? { UV_THREADPOOL_SIZE: "1", UV_USE_IO_URING: "0" } : {}),
    },
    ...(limit === undefined ? {} : { limit }),
  });

export interface Put {
  /** The first reply; undefined where none came. */
  readonly first: Said | undefined;
  readonly stored: Said | undefined;
  readonly error: Said | undefined;
  /** Nothing below this may be lost. */
  readonly acked: number;
  readonly ran: Ran;
}

export interface Parcel {
  readonly name: string;
  readonly session: string;
  readonly archive: Buffer;
  /** 1 if not given. Each session is of a series of its own. */
  readonly run?: number;
}

/** All tickets are of this moment: the same one may come again. */
const time = Date.now();
export const ticketOf = ({ archive, name, run = 1, session }: Parcel) => ({
  name,
  run,
  session,
  series: session.slice(16),
  bytes: archive.length,
  time,
});
export const command = (parcel: Parcel, server: string): string =>
  commandFor(ticketOf(parcel), server, time);

/** All that is sent behind `ready`, from `offset` on. */
export const streamOf = (parcel: Parcel, server: string, offset = 0): Buffer => {
  const { archive } = parcel;
  const lines = tableFor(archive);
  const manifest = manifestFor(ticketFor(ticketOf(parcel), time), server, lines);
  const trailer = trailerOf(manifest, `new 0 ${lines.length}\n`);
  return Buffer.concat([framesOf(archive, offset), trailer]);
};

/** The public key of a store; of a new one, made here: for what is about other things. */
export const keyIn = (store: string): string => {
  const file = path.join(store, ".qbackup/identity");
  if (!fs.existsSync(file)) {
    fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
    const { privateKey } = crypto.generateKeyPairSync("ed25519");
    fs.writeFileSync(file, privateKey.export({ format: "pem", type: "pkcs8" }), { mode: 0o600 });
  }
  return crypto.createPublicKey(fs.readFileSync(file)).export({ format: "jwk" }).x!;
};
/** The public key of what `ask` talks to. */
export const keyOf = async (ask: (command: string) => Talk): Promise<string> => {
  const call = ask("qbackup/1 about");
  call.end();
  const said = await call.next();
  const { code, stderr } = await call.ended;
  if (said?.type !== "about") throw new Error(`about: exit ${code}: ${stderr}`);
  return String(said["server"]);
};

export interface PutOptions {
  /** Bytes of the stream after which the link ends. */
  readonly cutAt?: number;
  readonly ready?: () => Promise<unknown> | void;
}
/** One call of `put`, to its end. */
export const put = async (
  call: Talk,
  parcel: Parcel,
  server: string,
  options: PutOptions = {},
): Promise<Put> => {
  const first = await call.next();
  let last = first;
  if (first?.type === "ready") {
    await options.ready?.();
    const bytes = streamOf(parcel, server, Number(first["offset"]));
    await call.send(options.cutAt === undefined ? bytes : bytes.subarray(0, options.cutAt));
    if (options.cutAt !== undefined) call.end();
    last = await call.next();
  }
  call.end();
  const ran = await call.ended;
  return {
    first,
    stored: last?.type === "stored" ? last : undefined,
    error: last?.type === "error" ? last : undefined,
    acked: call.acked(),
    ran,
  };
};
/** The same, into a store. */
export const upload = (
  store: string,
  parcel: Parcel,
  options: PutOptions = {},
  tracer: ReadonlyArray<string> = [],
): Promise<Put> => {
  const server = keyIn(store);
  return put(serve(store, command(parcel, server), tracer), parcel, server, options);
};

/** About `size` bytes with the structure of a backup. */
export const archive = (size: number, seed = 1): Buffer =>
  archiveOf({ seed, files: [{ path: "vm3/private.img", size }] });

export const sessionOf = (n: number): string => n.toString(16).padStart(32, "0");

export interface Listed {
  readonly name: string;
  readonly session: string;
  readonly size: number;
  readonly root: string;
  readonly damaged: boolean;
}
/** What is listed must be what its line says: it is read and hashed. */
export const isWhole = (store: string, { damaged, name, root, session, size }: Listed): void => {
  if (damaged) throw new Error(`${name} is listed as damaged`);
  // Its own name comes behind the record, and is made again where a crash took it.
  const [file, pack] = [name, `.qbackup/packs/${session}`].map((each) => path.join(store, each));
  const bytes = fs.readFileSync(fs.existsSync(file!) ? file! : pack!);
  if (bytes.length !== size || rootOf(linesOf(tableOf(bytes))) !== root) {
    throw new Error(`${name} is listed, and is something else`);
  }
};
/** What the server lists; each is read and hashed, and must be what it says. */
export const listed = async (store: string): Promise<ReadonlyArray<Listed>> => {
  const call = serve(store, "qbackup/1 list");
  call.end();
  const found: Array<Listed> = [];
  for (let said = await call.next(); said !== undefined; said = await call.next()) {
    if (said.type === "archive") found.push(said as unknown as Listed);
  }
  const { code, stderr } = await call.ended;
  if (code !== 0) throw new Error(`list: exit ${code}: ${stderr}`);
  for (const each of found) isWhole(store, each);
  return found;
};

/** Names below a directory, sorted. */
export const below = (dir: string): ReadonlyArray<string> =>
  fs.readdirSync(dir, { recursive: true, encoding: "utf8" }).sort();

/** What every store has, whatever is in it: keys, directories, the log, and what is known of tickets. */
const furniture = /^\.qbackup(?:\/(?:[a-z]+|log\.1|runs\/[0-9a-f]{64}|gone\/[0-9a-f]{32}))?$/;
/** What is in a store besides. */
export const contents = (store: string): ReadonlyArray<string> =>
  below(store).filter((name) => !furniture.test(name));

/** The store holds these archives with what belongs to them, and nothing else at all. */
export const holdsOnly = (store: string, parcels: ReadonlyArray<Parcel>): string | undefined => {
  const wanted = parcels
    .flatMap(({ name, session }) => [
      ...["digests", "packs", "recipes", "tables"].map((of) => `.qbackup/${of}/${session}`),
      `.qbackup/records/${session}.manifest.json`,
      name,
      `${name}.manifest.json`,
    ])
    .sort();
  const there = contents(store);
  return there.join("\n") === wanted.join("\n") ? undefined : `the store has ${there.join(", ")}`;
};

const made: Array<string> = [];
/** A directory that `removeScratch` takes away. */
export const scratch = (below = os.tmpdir()): string => {
  const dir = fs.mkdtempSync(path.join(below, "qbackup-fire-"));
  made.push(dir);
  return dir;
};
export const removeScratch = (): void => {
  for (const dir of made.splice(0)) fs.rmSync(dir, { recursive: true, force: true });
};

/** Runs all of it, so many at a time, and gives what went wrong: all of it, not the first only. */
export const inTurns = async <A>(
  items: ReadonlyArray<A>,
  run: (item: A, index: number) => Promise<string | undefined>,
  atOnce = 2,
): Promise<ReadonlyArray<string>> => {
  const wrong: Array<string> = [];
  const entries = items.entries();
  const worker = async () => {
    for (const [index, item] of entries) {
      const said = await run(item, index).catch((error: unknown) => String(error));
      if (said !== undefined) wrong.push(said);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return wrong;
};

export const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms));
