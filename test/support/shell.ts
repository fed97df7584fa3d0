/** qbackup-shell in this process: a world to run it in, a client to talk to it, archives to send. */
import { Effect, Fiber, Layer, type Scope } from "effect";
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
import { ArchiveFault, Walk } from "#src/archive/walk";
import { shell } from "#src/shell/main";
import { lengthPrefix } from "#src/wire/frames";
import { blockSize } from "#src/wire/limits";
import { replies } from "#src/wire/lines";
import { isVerb, parseReply, type Reply } from "#src/wire/request";
import { treeHash } from "#test/support/reference";
import { archiveOf } from "#test/support/archive";

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
  /** What the shell said on stderr. */
  readonly said: Said;
  /** What it wrote into the server's log. */
  readonly journal: Array<Entry>;
  /** Bytes of a full chunk. */
  readonly fullChunk: number;
}
/** What the archives here are made with: small chunks, so that small archives have many. */
export const smallChunk = 65_536;
const said = (): Said => ({ lines: [], progress: [] });

export const memoryWorld = (disk = new Disk(), locks = memoryLocks()): World => ({
  layer: Layer.mergeAll(memorySafeFs(disk), locks),
  said: said(),
  journal: [],
  fullChunk: smallChunk + 128,
});
export const worldOf = (layer: Layer.Layer<SafeFs | Locks>): World => ({
  layer,
  said: said(),
  journal: [],
  fullChunk: smallChunk + 128,
});

export interface Call {
  readonly args?: ReadonlyArray<string>;
  /** SSH_ORIGINAL_COMMAND. */
  readonly command?: string | undefined;
  /** Who runs it; unknown if not given. */
  readonly uid?: number;
  /** More of the environment. */
  readonly env?: Readonly<Record<string, string>>;
}
export interface Client {
  readonly stdin: Sink;
  /** The connection breaks, in both directions. */
  readonly cut: Effect.Effect<void>;
  readonly next: Effect.Effect<Reply | undefined>;
  /** What is left to be said, to the end. */
  readonly rest: Effect.Effect<ReadonlyArray<Reply>>;
  /** All of stdout so far, for what is no reply. */
  readonly output: () => Buffer;
  readonly text: () => string;
  readonly exit: Effect.Effect<number>;
  readonly kill: Effect.Effect<void>;
}

/** Starts the shell; it ends with the scope. */
export const start = Effect.fnUntraced(function* (
  world: World,
  { args = [], command, env = {}, uid }: Call,
): Effect.fn.Return<Client, never, Scope.Scope> {
  const up = pipe();
  const down = pipe();
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
  const verb = command?.split(" ")[1] ?? "";
  const reader = replies(
    down.source,
    (said) => (isVerb(verb) ? parseReply(verb, said) : undefined),
    () => Effect.void,
  );
  const next = Effect.orDie(reader.next);
  return {
    stdin: up.sink,
    cut: Effect.andThen(up.cut, down.cut),
    next,
    rest: Effect.gen(function* () {
      const found: Array<Reply> = [];
      for (;;) {
        const reply = yield* next;
        if (reply === undefined) return found;
        found.push(reply);
      }
    }),
    output,
    text: () => output().toString(),
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

export const sessionOf = (n: number): string => n.toString(16).padStart(32, "0");

/** The members of an archive as dom0 would put them into its manifest. */
export const membersOf = (archive: Uint8Array, fullChunk: number) => {
  const walk = new Walk({ fullChunk });
  walk.push(archive);
  const members = walk.finish();
  if (members instanceof ArchiveFault) throw members;
  return members;
};

export const manifestOf = (
  archive: Uint8Array,
  to: { readonly name: string; readonly session: string; readonly server: string },
  fullChunk = smallChunk + 128,
) => ({
  version: 1,
  ...to,
  size: archive.length,
  treehash: treeHash(archive),
  created: "2026-11-23T05:00:00Z",
  members: membersOf(archive, fullChunk),
});

export const trailerOf = (manifest: object | string, signature: string | null = null): Buffer =>
  Buffer.from(
    JSON.stringify({
      manifest: typeof manifest === "string" ? manifest : JSON.stringify(manifest),
      signature,
    }),
  );

/** What a client sends for `archive` from `offset` on: frames, the end, the trailer. */
export const stream = (archive: Uint8Array, offset: number, trailer: Uint8Array): Buffer => {
  const parts: Array<Uint8Array> = [];
  for (let at = offset; at < archive.length; at += blockSize) {
    const block = archive.subarray(at, at + blockSize);
    parts.push(lengthPrefix(block.length), block);
  }
  return Buffer.concat([...parts, lengthPrefix(0), lengthPrefix(trailer.length), trailer]);
};

/** Is this the `ready` of a put? */
export const isReady = (
  reply: Reply | undefined,
): reply is Extract<Reply, { readonly server: string }> =>
  reply?.type === "ready" && "server" in reply;

export interface Upload {
  readonly name?: string;
  readonly session?: string;
  readonly archive: Uint8Array;
  /** Bytes of the stream after which the connection ends. */
  readonly cutAt?: number;
  /** Instead of the right trailer. */
  readonly trailer?: (manifest: ReturnType<typeof manifestOf>) => Uint8Array;
  readonly args?: ReadonlyArray<string>;
}

/** One `put` from its request to its exit, without waiting for acknowledgements. */
export const upload = (world: World, options: Upload) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { archive, args = [], cutAt, name = "a.backup", session = sessionOf(1) } = options;
      const client = yield* start(world, { args, command: `qbackup/1 put ${name} ${session}` });
      const first = yield* client.next;
      if (!isReady(first)) {
        yield* client.stdin.end;
        const replies = [...(first === undefined ? [] : [first]), ...(yield* client.rest)];
        return { code: yield* client.exit, offset: undefined, replies };
      }
      const { server } = first;
      const manifest = manifestOf(archive, { name, session, server }, world.fullChunk);
      const trailer = options.trailer?.(manifest) ?? trailerOf(manifest);
      const bytes = stream(archive, first.offset, trailer);
      yield* Effect.ignore(client.stdin.write(bytes.subarray(0, cutAt)));
      if (cutAt !== undefined && cutAt < bytes.length) yield* client.stdin.end;
      const code = yield* client.exit;
      return { code, offset: first.offset, replies: [first, ...(yield* client.rest)] };
    }),
  );

/** What `list` says. */
export const listed = (world: World, prefix = "", args: ReadonlyArray<string> = []) =>
  Effect.scoped(
    Effect.gen(function* () {
      const client = yield* start(world, {
        args,
        command: `qbackup/1 list${prefix === "" ? "" : ` ${prefix}`}`,
      });
      const replies = yield* client.rest;
      const code = yield* client.exit;
      const archives = replies.flatMap((reply) => (reply.type === "archive" ? [reply] : []));
      return { code, archives, end: replies.at(-1) };
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
export const codeOf = (replies: ReadonlyArray<{ readonly type: string }>) => {
  const last = replies.at(-1) as { readonly type: string; readonly code?: string } | undefined;
  return last?.type === "error" ? last.code : last?.type;
};
