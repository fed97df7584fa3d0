/** qbackup-shell in this process: a world to run it in, a client to talk to it, archives to send. */
import { assert } from "@effect/vitest";
import { Clock, Effect, Fiber, Layer, type Scope } from "effect";
import * as crypto from "node:crypto";
import { memoryJournal } from "#layers/memory/MemoryJournal";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { Disk, memorySafeFs } from "#layers/memory/MemorySafeFs";
import { BytesError, type Sink, type Source } from "#services/Bytes";
import { Invocation } from "#services/Invocation";
import type { Entry } from "#services/Journal";
import type { Locks } from "#services/Locks";
import type { SafeFs } from "#services/SafeFs";
import { FullChunk } from "#src/archive/parameters";
import { shell } from "#src/shell/main";
import { replies } from "#src/wire/lines";
import { instantOf } from "#src/wire/names";
import { parseReply, type Reply, type Verb } from "#src/wire/request";
import { archiveOf } from "#test/support/archive";
import {
  commandOf,
  framed,
  linesOf,
  membersOf,
  type Pair,
  pairOf,
  rootOf,
  running,
  tableOf,
  textOf,
  type Ticket,
  ticketText,
  topOf,
  leavesOf,
} from "#test/support/reference";

/** Bytes from one side to the other. `cut` makes both fail, as a dead link does. */
export const pipe = (capacity = Number.POSITIVE_INFINITY) => {
  const queue: Array<Buffer> = [];
  let held = 0;
  let received = 0;
  let ended = false;
  let dead = false;
  const waiting = new Set<() => void>();
  const wake = () => {
    const woken = [...waiting]; // who is woken may wait again at once
    waiting.clear();
    for (const ring of woken) ring();
  };
  const change = Effect.callback<void>((done) => {
    const ring = () => {
      waiting.delete(ring);
      done(Effect.void);
    };
    waiting.add(ring);
    return Effect.sync(() => waiting.delete(ring));
  });
  const source: Source = {
    received: () => received,
    read: Effect.fnUntraced(function* (into: Uint8Array, atLeast = 1) {
      let got = 0;
      for (;;) {
        while (queue.length > 0 && got < into.length) {
          const first = queue[0]!;
          const n = Math.min(first.length, into.length - got);
          into.set(first.subarray(0, n), got);
          got += n;
          held -= n;
          received += n;
          if (n === first.length) queue.shift();
          else queue[0] = first.subarray(n);
        }
        if (got > 0) wake();
        if (got >= atLeast || ended) return got;
        if (dead) return yield* new BytesError({ cause: new Error("cut") });
        yield* change;
      }
    }),
  };
  const sink: Sink = {
    write: Effect.fnUntraced(function* (bytes: Uint8Array) {
      while (held > 0 && held + bytes.length > capacity && !dead) yield* change;
      if (dead || ended) return yield* new BytesError({ cause: new Error("EPIPE") });
      queue.push(Buffer.from(bytes));
      held += bytes.length;
      wake();
    }),
    end: Effect.sync(() => {
      ended = true;
      wake();
    }),
  };
  const cut = Effect.sync(() => {
    dead = true;
    queue.length = 0;
    wake();
  });
  return { source, sink, cut };
};

export interface World {
  readonly layer: Layer.Layer<SafeFs | Locks>;
  /** What the shell said on stderr, and in the server's log. */
  readonly said: Said;
  readonly journal: Array<Entry>;
  /** Bytes of a full chunk. */
  readonly fullChunk: number;
}
/** What the archives here are made with: small chunks, so that small archives have many. */
export const smallChunk = 65_536;

export const worldOf = (layer: Layer.Layer<SafeFs | Locks>): World => ({
  layer,
  said: { lines: [], progress: [] },
  journal: [],
  fullChunk: smallChunk + 128,
});
export const memoryWorld = (disk = new Disk(), locks = memoryLocks()): World =>
  worldOf(Layer.mergeAll(memorySafeFs(disk), locks));

export interface Call {
  readonly args?: ReadonlyArray<string>;
  /** SSH_ORIGINAL_COMMAND. */
  readonly command?: string | undefined;
  readonly env?: Readonly<Record<string, string>>;
  /** Who runs it; unknown if not given. */
  readonly uid?: number;
  /** Bytes of stdout that may wait for the client to read them; any number if not given. */
  readonly room?: number;
}
export interface Client<V extends Verb = Verb> {
  readonly stdin: Sink;
  /** The connection breaks, in both directions. */
  readonly cut: Effect.Effect<void>;
  readonly next: Effect.Effect<Reply<V> | undefined>;
  /** What is left to be said, to the end. */
  readonly rest: Effect.Effect<ReadonlyArray<Reply<V>>>;
  /** The bytes behind the last reply. */
  readonly bytes: Source;
  /** All of stdout so far, for what is no reply. */
  readonly output: () => Buffer;
  readonly text: () => string;
  readonly ended: () => boolean;
  readonly exit: Effect.Effect<number>;
  readonly kill: Effect.Effect<void>;
}

/** Starts the shell; it ends with the scope. What it says is read as replies to `verb`. */
export const start = Effect.fnUntraced(function* <V extends Verb = "put">(
  world: World,
  { args = [], command, env = {}, room, uid }: Call,
  verb = "put" as V,
): Effect.fn.Return<Client<V>, never, Scope.Scope> {
  const up = pipe();
  const down = pipe(room);
  const written: Array<Buffer> = [];
  const output = () => Buffer.concat(written);
  const stdout: Sink = {
    write: (bytes) =>
      Effect.tap(down.sink.write(bytes), () => {
        written.push(Buffer.from(bytes));
        return Effect.void;
      }),
    end: down.sink.end,
  };
  const fiber = yield* shell.pipe(
    Effect.ensuring(down.sink.end),
    Effect.provide(
      Layer.mergeAll(
        world.layer,
        memoryReporter(world.said),
        memoryJournal(world.journal),
        Layer.succeed(Invocation, {
          args,
          env: { ...env, SSH_ORIGINAL_COMMAND: command },
          ...(uid === undefined ? {} : { uid }),
          stdin: up.source,
          stdout,
          entropy: (n) => crypto.randomBytes(n),
        }),
      ),
      { local: true },
    ),
    Effect.provideService(FullChunk, world.fullChunk),
    Effect.forkScoped,
  );
  const reader = replies(
    down.source,
    (line) => parseReply(verb, line),
    () => Effect.void,
  );
  const next = Effect.orDie(reader.next);
  return {
    stdin: up.sink,
    cut: Effect.andThen(up.cut, down.cut),
    next,
    rest: Effect.gen(function* () {
      const found: Array<Reply<V>> = [];
      for (;;) {
        const reply = yield* next;
        if (reply === undefined) return found;
        found.push(reply);
      }
    }),
    bytes: reader.rest,
    output,
    text: () => output().toString(),
    ended: () => fiber.pollUnsafe() !== undefined,
    exit: Fiber.join(fiber),
    kill: Effect.asVoid(Fiber.interrupt(fiber)),
  };
});

/** The shell with standard input at its end from the beginning, or with these bytes in it. */
export const run = (world: World, call: Call, stdin: Uint8Array = new Uint8Array(0)) =>
  Effect.scoped(
    Effect.gen(function* () {
      const client = yield* start(world, call);
      yield* client.stdin.write(stdin);
      yield* client.stdin.end;
      const code = yield* client.exit;
      return { code, text: client.text(), output: client.output() };
    }),
  );

/** All that the shell says to a request, and its exit code. */
export const ask = <V extends Verb>(
  world: World,
  verb: V,
  words: ReadonlyArray<string> = [],
  args: ReadonlyArray<string> = [],
) =>
  Effect.scoped(
    Effect.gen(function* () {
      const command = ["qbackup/1", verb, ...words].join(" ");
      const client = yield* start(world, { args, command }, verb);
      yield* client.stdin.end;
      const said: ReadonlyArray<Reply<V>> = yield* client.rest;
      return { code: yield* client.exit, replies: said };
    }),
  );

/** The server's key, which it makes for that where there is none. */
export const serverKey = (world: World, args: ReadonlyArray<string> = []) =>
  Effect.map(ask(world, "about", [], args), ({ replies: [first] }) => {
    if (first?.type !== "about") throw new Error(`no key: ${JSON.stringify(first)}`);
    return first.server as string;
  });

export const sessionOf = (n: number): string => n.toString(16).padStart(32, "0");
/** The keys of a dom0, and of another one. */
export const dom0 = pairOf(Buffer.alloc(32, 1));
export const otherDom0 = pairOf(Buffer.alloc(32, 2));
export const series = "0123456789abcdef";

const tables = new WeakMap<Uint8Array, string>();
/** The lines of a pack's table; each pack is looked at once. */
export const tableFor = (pack: Buffer): ReadonlyArray<string> => {
  const table = tables.get(pack) ?? tableOf(pack);
  tables.set(pack, table);
  return linesOf(table);
};

/** The blocks of a pack, in order: each of one member. */
export const blocksOf = (pack: Buffer): ReadonlyArray<Buffer> =>
  membersOf(pack).flatMap(({ bytes }) =>
    Array.from({ length: Math.ceil(bytes.length / 2 ** 20) }, (_, i) =>
      bytes.subarray(i * 2 ** 20, (i + 1) * 2 ** 20),
    ),
  );

/** The running hash over the first bytes of a pack, up to the end of a block. */
export const runningAt = (pack: Buffer, offset: number): string => {
  const whole: Array<Buffer> = [];
  let at = 0;
  for (const { bytes } of membersOf(pack)) {
    if (at + bytes.length > offset)
      return running(whole, leavesOf(bytes.subarray(0, offset - at)).slice());
    whole.push(topOf(leavesOf(bytes)));
    at += bytes.length;
  }
  return running(whole);
};

/** What is signed of an archive, in the fields of its manifest. */
export type ManifestFields = { readonly [key: string]: unknown };

export interface Put {
  readonly name?: string;
  readonly session?: string;
  readonly base?: string;
  readonly series?: string;
  readonly run?: number;
  /** What the pack may have; 16 MiB if not given. */
  readonly bytes?: number;
  /** In milliseconds since 1970; now if not given. */
  readonly time?: number;
  /** dom0's key. */
  readonly signer?: Pair;
  readonly args?: ReadonlyArray<string>;
  /** The server's key, where it need not be asked for. */
  readonly server?: string;
}

/** A ticket as a client of this server would sign it. */
export const ticketFor = (put: Put, now: number): Ticket => ({
  name: put.name ?? "a.backup",
  session: put.session ?? sessionOf(1),
  base: put.base ?? "-",
  series: put.series ?? series,
  run: put.run ?? 1,
  bytes: put.bytes ?? 16 * 2 ** 20,
  time: instantOf(put.time ?? now),
  signer: (put.signer ?? dom0).publicKey,
});

/** The command of a ticket and a signature. */
export const putCommand = (ticket: Ticket, signature: string): string =>
  commandOf({ verb: "put", parameters: { ...ticket, signature } });

/** The command of a put, signed for this server. */
export const commandFor = (put: Put, server: string, now: number): string => {
  const ticket = ticketFor(put, now);
  const signature = (put.signer ?? dom0).sign("ticket", ticketText(ticket, server));
  return putCommand(ticket, signature);
};

/** Asks for a put, with a ticket that this server takes. */
export const open = Effect.fnUntraced(function* (
  world: World,
  put: Put = {},
): Effect.fn.Return<Client<"put"> & { readonly server: string }, never, Scope.Scope> {
  const args = put.args ?? [];
  const server = put.server ?? (yield* serverKey(world, args));
  const now = yield* Clock.currentTimeMillis;
  const client = yield* start(world, { args, command: commandFor(put, server, now) });
  return { ...client, server };
});

/** As few bytes as an archive can have, for what is tried very often. */
export const tiny = archiveOf({
  seed: 6,
  chunk: smallChunk,
  files: [{ path: "vm7/root.img", size: 9 }],
});
/** The n-th upload into a store: session, run and name of its own. */
export const nth = (n: number): Put => ({ session: sessionOf(n), run: n, name: `a${n}.backup` });
/** What is left of uploads in a store. */
export const leftovers = (disk: Disk) =>
  disk.files().filter((file) => /^\.qbackup\/(incoming|held|gone)\//.test(file));
/** What packs, records and archives there are. */
export const kept = (disk: Disk) =>
  disk
    .files()
    .filter(
      (file) =>
        /^\.qbackup\/(packs|digests|tables|recipes|records)\//.test(file) ||
        !file.startsWith(".qbackup/"),
    );

/** What an archive is that these lines make, as its manifest says it. */
export const wholeOf = (lines: ReadonlyArray<string>, format: "qvm-backup" | "slots") => {
  const bytes = lines.reduce((sum, line) => sum + Number(line.split(" ")[2]), 0);
  return {
    size: format === "slots" ? Math.ceil((bytes + 1024) / 10_240) * 10_240 : bytes,
    members: lines.length,
    root: rootOf(lines),
  };
};

/** A manifest for a ticket. */
export const manifestFor = (
  ticket: Ticket,
  server: string,
  lines: ReadonlyArray<string>,
  format: "qvm-backup" | "slots" = "qvm-backup",
): ManifestFields => ({
  name: ticket.name,
  session: ticket.session,
  server,
  signer: ticket.signer,
  series: ticket.series,
  run: ticket.run,
  created: "2026-11-23T05:00:00Z",
  ...wholeOf(lines, format),
  format,
  next: null,
});

/** A text in frames, each as long as one may be but for the last. */
const framesOfText = (text: string): ReadonlyArray<Buffer> => {
  const bytes = Buffer.from(text);
  return Array.from({ length: Math.ceil(bytes.length / 2 ** 20) }, (_, i) =>
    framed(bytes.subarray(i * 2 ** 20, (i + 1) * 2 ** 20)),
  );
};

/** What stands behind the members. */
export const trailerOf = (
  manifest: ManifestFields | string,
  recipe: string,
  signer: Pair = dom0,
): Buffer => {
  const text = typeof manifest === "string" ? manifest : textOf("manifest", manifest);
  const signature = Buffer.from(signer.sign("manifest", text), "base64url");
  return Buffer.concat([
    framed(Buffer.from(text)),
    framed(signature),
    ...framesOfText(recipe),
    framed(),
  ]);
};

const framesMade = new WeakMap<Buffer, { readonly all: Buffer; readonly starts: Array<number> }>();
/** The frames of a pack from `offset` on, and the end of the members. The bytes are everybody's. */
export const framesOf = (pack: Buffer, offset = 0): Buffer => {
  let made = framesMade.get(pack);
  if (made === undefined) {
    const blocks = blocksOf(pack);
    const starts = [0];
    for (const { length } of blocks) starts.push(starts.at(-1)! + length);
    made = { all: Buffer.concat([...blocks.map((block) => framed(block)), framed()]), starts };
    framesMade.set(pack, made);
  }
  const before = made.starts.findIndex((start) => start >= offset);
  return made.all.subarray(made.starts[before]! + 4 * before);
};

export interface Upload extends Put {
  /** The pack. */
  readonly archive: Buffer;
  /** Bytes of the stream after which the connection ends. */
  readonly cutAt?: number;
  readonly format?: "qvm-backup" | "slots";
  /** What the client says that the archive is; all of its pack if not given. */
  readonly recipe?: string;
  /** The lines of the members that the recipe makes. */
  readonly lines?: ReadonlyArray<string>;
  /** Instead of the right manifest. */
  readonly manifest?: (right: ManifestFields) => ManifestFields | string;
  /** Instead of the right trailer. */
  readonly trailer?: (right: Buffer) => Buffer;
}

/** All that a client sends behind `ready`. */
export const streamOf = (options: Upload, server: string, now: number, offset = 0): Buffer => {
  const { archive, format = "qvm-backup", signer } = options;
  const lines = options.lines ?? tableFor(archive);
  const right = manifestFor(ticketFor(options, now), server, lines, format);
  const manifest = options.manifest?.(right) ?? right;
  const recipe = options.recipe ?? `new 0 ${tableFor(archive).length}\n`;
  const trailer = trailerOf(manifest, recipe, signer);
  return Buffer.concat([framesOf(archive, offset), options.trailer?.(trailer) ?? trailer]);
};

/** One `put` from its request to its exit, without waiting for acknowledgements. */
export const upload = (world: World, options: Upload) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { archive, cutAt } = options;
      const client = yield* open(world, options);
      const first = yield* client.next;
      if (first?.type !== "ready") {
        yield* client.stdin.end;
        const said = [...(first === undefined ? [] : [first]), ...(yield* client.rest)];
        return { code: yield* client.exit, offset: undefined, replies: said };
      }
      const now = yield* Clock.currentTimeMillis;
      const bytes = streamOf(options, client.server, now, first.offset);
      yield* Effect.ignore(client.stdin.write(bytes.subarray(0, cutAt)));
      if (cutAt !== undefined && cutAt < bytes.length) yield* client.stdin.end;
      const code = yield* client.exit;
      const said = [first, ...(yield* client.rest)];
      for (const reply of said) {
        if (reply.type !== "ready" && reply.type !== "ack") continue;
        assert.strictEqual(reply.running, runningAt(archive, reply.offset), "the running hash");
      }
      return { code, offset: first.offset, replies: said };
    }),
  );

/** What `list` says. */
export const listed = (world: World, prefix = "", args: ReadonlyArray<string> = []) =>
  Effect.map(
    ask(world, "list", prefix === "" ? [] : [prefix], args),
    ({ code, replies: said }) => ({
      code,
      archives: said.flatMap((reply) => (reply.type === "archive" ? [reply] : [])),
      end: said.at(-1),
    }),
  );

/** Several blocks: some 3.4 MiB. */
export const medium = archiveOf({
  seed: 2,
  chunk: smallChunk,
  files: [
    { path: "vm1/private.img", size: 2_000_000 },
    { path: "vm7/private.img", size: 1_000_000 },
  ],
});

/** How a put ended: the code of its error, or the last reply's type. */
export const codeOf = (said: ReadonlyArray<{ readonly type: string }>) => {
  const last = said.at(-1) as { readonly type: string; readonly code?: string } | undefined;
  return last?.type === "error" ? last.code : last?.type;
};

/** The text of a receipt, read. */
export const receiptOf = (
  said: ReadonlyArray<Reply<"put">>,
): Record<string, unknown> | undefined => {
  const last = said.at(-1);
  return last?.type === "stored" ? JSON.parse(last.receipt) : undefined;
};
