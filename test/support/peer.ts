/**
 * The far side of `put` and `list`, as a peer that a test scripts: honest unless told to lie. It is
 * written against the description of the wire, not with the server's code.
 */
import { Effect } from "effect";
import * as crypto from "node:crypto";
import type { Invocation } from "#services/Invocation";
import { privateKeyPem, readPrivateKey, type SigningKey } from "#src/wire/keys";

export const keyOf = (seed: string): SigningKey =>
  readPrivateKey(privateKeyPem(crypto.createHash("sha256").update(seed).digest()))!;

const sha = (...parts: ReadonlyArray<Uint8Array>) =>
  crypto.createHash("sha256").update(Buffer.concat(parts)).digest();

/** The tree hash, level by level, of what is in memory. */
export const treeHash = (bytes: Uint8Array): string => {
  let level: Array<Buffer> = [];
  for (let at = 0; at < bytes.length; at += 1_048_576)
    level.push(sha(bytes.subarray(at, at + 1_048_576)));
  while (level.length > 1) {
    const up: Array<Buffer> = [];
    for (let i = 0; i < level.length; i += 2) {
      up.push(i + 1 < level.length ? sha(level[i]!, level[i + 1]!) : level[i]!);
    }
    level = up;
  }
  return level[0]!.toString("hex");
};

/** What the peer keeps from call to call. */
export interface Shelf {
  bytes: Buffer;
  readonly committed: Map<
    string,
    { readonly session: string; readonly bytes: Buffer; readonly reply: object }
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
}

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
      const request = JSON.parse(line) as { name: string; session: string };
      if (lies.before !== undefined) yield* text(lies.before);
      if (lies.mute === "at-once") return yield* Effect.never;
      if (service.endsWith("+list")) {
        yield* text("\n");
        for (const [name, { bytes }] of shelf.committed) {
          yield* say({
            type: "archive",
            name,
            size: bytes.length,
            treehash: treeHash(bytes),
            stored: "2026-01-31T04:00:00Z",
            verified: true,
          });
        }
        yield* say({ type: "end", count: shelf.committed.size });
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
      });
      shelf.bytes = Buffer.alloc(0);
      yield* say(reply);
      return 0;
    },
    Effect.catch(() => Effect.succeed(4)),
  );
