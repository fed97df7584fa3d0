/** Members that cost next to nothing: keys that are a hash, and gzip at once. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { Sealing } from "#services/Sealing";

/** As long as those of scrypt. */
export const cheapKeys = (passphrase: Uint8Array, salt: Uint8Array): Buffer =>
  createHash("sha512").update(passphrase).update(salt).digest();

export const memorySealing: Layer.Layer<Sealing> = Layer.succeed(Sealing, {
  keys: (passphrase, salt) => Effect.sync(() => cheapKeys(passphrase, salt)),
  gzip: (parts, stored = false) =>
    Effect.sync(() => [gzipSync(Buffer.concat(parts.splice(0)), { level: stored ? 0 : 1 })]),
});
