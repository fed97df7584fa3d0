/** What retention counts together: the same qubes asked for, under the same prefix, by the same dom0. */
import { createHmac } from "node:crypto";
import { Series } from "#src/wire/names";

/** What a run was asked for: no qubes mean the default set. */
export interface Asked {
  readonly prefix: string;
  readonly qubes: ReadonlyArray<string>;
  readonly includeDom0: boolean;
}

/**
 * `[PREFIX-]HEX16`. The digits come from an HMAC, under a key that never leaves dom0, of the qubes'
 * names: the server learns which runs belong together, and not what is in them.
 */
export const seriesOf = (key: Uint8Array, { includeDom0, prefix, qubes }: Asked): Series => {
  const mac = createHmac("sha256", key);
  const names = [...new Set(qubes)].map((name) => Buffer.from(name)).sort(Buffer.compare);
  for (const name of names) mac.update(name).update("\n");
  if (includeDom0) mac.update("@dom0\n");
  const digits = mac.digest("hex").slice(0, 16);
  const before = prefix.replace(/[^A-Za-z0-9]+$/, "");
  return Series.make(before === "" ? digits : `${before}-${digits}`);
};
