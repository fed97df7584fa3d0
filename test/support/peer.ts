/**
 * The far side of the wire, as a peer that a test scripts: honest unless told to lie. It is written
 * against the description of the wire, not with the server's code.
 */
import { Effect } from "effect";
import * as crypto from "node:crypto";
import type { Invocation } from "#services/Invocation";
import { privateKeyPem, readPrivateKey, type SigningKey } from "#src/proof/keys";

export const keyOf = (seed: string): SigningKey =>
  readPrivateKey(privateKeyPem(crypto.createHash("sha256").update(seed).digest()))!;

const sha = (...parts: ReadonlyArray<Uint8Array>) =>
  crypto.createHash("sha256").update(Buffer.concat(parts)).digest();

const treeOf = (bytes: Uint8Array): ReadonlyArray<ReadonlyArray<Buffer>> => {
  let level: Array<Buffer> = [];
  for (let at = 0; at < bytes.length; at += 1_048_576)
    level.push(sha(bytes.subarray(at, at + 1_048_576)));
  const levels = [level];
  while (level.length > 1) {
    const up: Array<Buffer> = [];
    for (let i = 0; i < level.length; i += 2) {
      up.push(i + 1 < level.length ? sha(level[i]!, level[i + 1]!) : level[i]!);
    }
    levels.push((level = up));
  }
  return levels;
};

/** The tree hash, level by level, of what is in memory. */
export const treeHash = (bytes: Uint8Array): string => treeOf(bytes).at(-1)![0]!.toString("hex");

/** A shelf's archives do not change in place, but for a test's own doing: each is hashed once. */
const trees = new WeakMap<Uint8Array, ReturnType<typeof treeOf>>();
const keptTree = (bytes: Uint8Array) => {
  const levels = trees.get(bytes) ?? treeOf(bytes);
  trees.set(bytes, levels);
  return levels;
};
const keptHash = (bytes: Uint8Array) => keptTree(bytes).at(-1)![0]!.toString("hex");
const proofIn = (levels: ReturnType<typeof treeOf>, index: number) =>
  Buffer.concat(
    levels.slice(0, -1).flatMap((level, i) => {
      const sibling = level[(index >> i) ^ 1];
      return sibling === undefined ? [] : [sibling];
    }),
  );

/** What the peer keeps from call to call. */
export interface Shelf {
  bytes: Buffer;
  readonly committed: Map<
    string,
    {
      readonly session: string;
      readonly bytes: Buffer;
      readonly reply: object;
      /** As it came in the trailer. */
      readonly manifest?: string;
      /** Digests that the server kept when it came; made of the bytes where there are none. */
      readonly digestsOf?: Buffer;
    }
  >;
  calls: number;
  gaveUp: number;
  trailer: string | undefined;
}
export const shelf = (): Shelf => ({
  bytes: Buffer.alloc(0),
  committed: new Map(),
  calls: 0,
  gaveUp: 0,
  trailer: undefined,
});

/** Where the peer may lie; each gets what would be said and gives what is said instead. */
export interface Lies {
  readonly key?: SigningKey;
  readonly before?: string;
  readonly ready?: (
    reply: { type: string; offset: number; server: string },
    call: number,
  ) => unknown;
  readonly ack?: (offset: number) => unknown;
  readonly stored?: (
    reply: { type: string; receipt: string; signature: string },
    key: SigningKey,
  ) => unknown;
  /** Called for each block that came; what it gives is said at once. */
  readonly onBlock?: (count: number) => unknown;
  /** Ends the call after so many blocks of this call, without a word. */
  readonly dropAfter?: (call: number) => number | undefined;
  /** Says nothing more from then on. */
  readonly mute?: "at-once" | "after-ready" | "after-trailer";

  /** The lines of `list`, the end included. */
  readonly listed?: (lines: ReadonlyArray<object>) => ReadonlyArray<unknown>;
  /** What `manifest` answers: its record (a text is sent as it is), and the first line. */
  readonly record?: (record: Kept, name: string) => Kept | string;
  readonly recordReady?: (reply: { type: string; size: number }) => unknown;
  /** The first line of `read`. */
  readonly read?: (
    reply: { type: string; size: number; treehash: string },
    call: number,
    name: string,
  ) => unknown;
  /** A frame of `read`, with its length; "cut" ends the call, "mute" says nothing more. */
  readonly frame?: (frame: Buffer, index: number, call: number) => Buffer | "cut" | "mute";
  readonly checked?: (reply: object) => unknown;
}

/** What lies beside an archive. */
export interface Kept {
  readonly manifest: string | null;
  readonly signature: string | null;
  readonly receipt: string | null;
  readonly receiptSignature: string | null;
}

/** A frame: its length and its bytes. */
export const framed = (...parts: ReadonlyArray<Uint8Array>): Buffer => {
  const bytes = Buffer.concat(parts);
  const head = Buffer.alloc(4);
  head.writeUInt32BE(bytes.length);
  return Buffer.concat([head, bytes]);
};

export const peer = (shelf: Shelf, lies: Lies = {}) =>
  Effect.fnUntraced(
    function* (invocation: Invocation["Service"], service: string) {
      const { stdin, stdout } = invocation;
      const key = lies.key ?? keyOf("server");
      const call = (shelf.calls += 1);
      const text = (data: string) => stdout.write(Buffer.from(data));
      const say = (reply: unknown) =>
        reply === undefined
          ? Effect.void
          : text(typeof reply === "string" ? reply : `${JSON.stringify(reply)}\n`);

      let line = "";
      const byte = new Uint8Array(1);
      while ((yield* stdin.read(byte, 1)) === 1 && byte[0] !== 10)
        line += String.fromCharCode(byte[0]!);
      const request = JSON.parse(line) as {
        name: string;
        session: string;
        prefix?: string;
        first: number;
        count: number;
      };
      if (lies.before !== undefined) yield* text(lies.before);
      if (lies.mute === "at-once") return yield* Effect.never;
      if (service.endsWith("+list")) {
        yield* text("\n");
        const lines: Array<object> = [];
        for (const [name, { bytes, reply }] of shelf.committed) {
          if (!name.startsWith(request.prefix ?? "")) continue;
          const receipt = JSON.parse((reply as { receipt: string }).receipt) as {
            name: string;
            size: number;
            treehash: string;
            stored: string;
          };
          // As a server does that has not read the bytes again: it says what its receipt says.
          const fits = receipt.name === name && receipt.size === bytes.length;
          const { stored, treehash } = receipt;
          lines.push({
            type: "archive",
            name,
            size: bytes.length,
            treehash,
            stored,
            verified: fits,
          });
        }
        lines.push({ type: "end", count: lines.length });
        for (const reply of lies.listed?.(lines) ?? lines) yield* say(reply);
        return 0;
      }
      if (!service.endsWith("+put")) {
        yield* text("\n");
        const kept = shelf.committed.get(request.name);
        if (kept === undefined) {
          yield* say({ type: "error", code: "not-found", message: "there is none" });
          return 5;
        }
        const { bytes, reply } = kept;
        const treehash = keptHash(kept.digestsOf ?? bytes);
        if (service.endsWith("+manifest")) {
          const { receipt, signature } = reply as { receipt: string; signature: string };
          const record: Kept = {
            manifest: kept.manifest ?? null,
            signature: null,
            receipt,
            receiptSignature: signature,
          };
          const told = lies.record === undefined ? record : lies.record(record, request.name);
          const data = Buffer.from(typeof told === "string" ? told : JSON.stringify(told));
          const ready = { type: "ready", size: data.length };
          yield* say(lies.recordReady === undefined ? ready : lies.recordReady(ready));
          yield* stdout.write(framed(data));
          return 0;
        }
        if (service.endsWith("+check")) {
          yield* say({ type: "alive" });
          const real = treeHash(bytes);
          const whole = real === treehash;
          const members = JSON.parse(kept.manifest ?? '{"members":[]}').members.length as number;
          const answer = whole
            ? { type: "checked", size: bytes.length, treehash: real, members }
            : { type: "error", code: "digest-mismatch", message: "not what it was" };
          yield* say(lies.checked === undefined ? answer : lies.checked(answer));
          return whole ? 0 : 6;
        }
        if (request.first + request.count > Math.ceil(bytes.length / 1_048_576)) {
          yield* say({ type: "error", code: "bad-request", message: "it has no such block" });
          return 2;
        }
        const ready = { type: "ready", size: bytes.length, treehash };
        yield* say(lies.read === undefined ? ready : lies.read(ready, call, request.name));
        const levels = keptTree(kept.digestsOf ?? bytes);
        for (let index = request.first; index < request.first + request.count; index++) {
          const block = bytes.subarray(index * 1_048_576, (index + 1) * 1_048_576);
          const honest = framed(block, proofIn(levels, index));
          const frame = lies.frame === undefined ? honest : lies.frame(honest, index, call);
          if (frame === "cut") return 4;
          if (frame === "mute") return yield* Effect.never;
          yield* stdout.write(frame);
        }
        yield* stdout.write(Buffer.alloc(4));
        yield* say({ type: "end" });
        return 0;
      }
      const there = shelf.committed.get(request.name);
      if (there !== undefined) {
        yield* text("\n");
        yield* say(
          there.session === request.session
            ? there.reply
            : { type: "error", code: "exists", message: "taken" },
        );
        return there.session === request.session ? 0 : 5;
      }
      const from = Math.floor(shelf.bytes.length / 1_048_576) * 1_048_576;
      shelf.bytes = shelf.bytes.subarray(0, from);
      const ready = { type: "ready", offset: from, server: key.server };
      yield* text("\n");
      yield* say(lies.ready === undefined ? ready : lies.ready(ready, call));
      if (lies.mute === "after-ready") return yield* Effect.never;

      const head = new Uint8Array(4);
      const block = new Uint8Array(1_048_576);
      for (let blocks = 0; ;) {
        if ((yield* stdin.read(head, 4)) < 4) return 4;
        const length = Buffer.from(head).readUInt32BE(0);
        if (length === 0x80000000) yield* say({ type: "alive" });
        else if (length === 0xffffffff) {
          shelf.gaveUp += 1;
          shelf.bytes = Buffer.alloc(0);
          return 0;
        } else if (length === 0) break;
        else {
          if ((yield* stdin.read(block.subarray(0, length), length)) < length) return 4;
          shelf.bytes = Buffer.concat([shelf.bytes, block.subarray(0, length)]);
          blocks += 1;
          yield* say(lies.onBlock?.(blocks));
          if (length === block.length) {
            const offset = shelf.bytes.length;
            yield* say(lies.ack === undefined ? { type: "ack", offset } : lies.ack(offset));
          }
          if (blocks === lies.dropAfter?.(call)) return 4;
        }
      }
      if ((yield* stdin.read(head, 4)) < 4) return 4;
      const trailer = new Uint8Array(Buffer.from(head).readUInt32BE(0));
      if ((yield* stdin.read(trailer, trailer.length)) < trailer.length) return 4;
      shelf.trailer = Buffer.from(trailer).toString();
      if (lies.mute === "after-trailer") return yield* Effect.never;
      const { manifest } = JSON.parse(shelf.trailer) as { manifest: string };
      const receipt = JSON.stringify({
        version: 1,
        name: request.name,
        session: request.session,
        size: shelf.bytes.length,
        treehash: treeHash(shelf.bytes),
        manifest: sha(Buffer.from(manifest)).toString("hex"),
        stored: "2026-01-31T04:00:00Z",
      });
      const stored = { type: "stored", receipt, signature: key.sign(receipt) };
      const reply = lies.stored === undefined ? stored : lies.stored(stored, key);
      shelf.committed.set(request.name, {
        session: request.session,
        bytes: shelf.bytes,
        reply: stored,
        manifest,
      });
      shelf.bytes = Buffer.alloc(0);
      yield* say(reply);
      return 0;
    },
    Effect.catch(() => Effect.succeed(4)),
  );
