/** The published vectors, test/vectors.json, and the bytes that they speak of. */
import * as fs from "node:fs";

interface Vectors {
  readonly digests: ReadonlyArray<{ readonly count: number; readonly digest: string }>;
  readonly proofs: ReadonlyArray<{
    readonly count: number;
    readonly block: number;
    readonly siblings: ReadonlyArray<string>;
  }>;
  readonly archives: ReadonlyArray<{
    readonly file: string;
    readonly table: string;
    readonly members: number;
    readonly root: string;
  }>;
  readonly roots: ReadonlyArray<{ readonly lines: number; readonly root: string }>;
  readonly keys: ReadonlyArray<{
    readonly seed: string;
    readonly public: string;
    readonly fingerprint: string;
  }>;
  readonly series_key: string;
  readonly series: ReadonlyArray<{
    readonly prefix: string;
    readonly qubes: ReadonlyArray<string>;
    readonly dom0: boolean;
    readonly series: string;
  }>;
  readonly texts: ReadonlyArray<{
    readonly what: "ticket" | "manifest" | "receipt" | "tombstone";
    readonly text: string;
    readonly signer: string;
    readonly signature: string;
  }>;
  readonly recipe: { readonly on_the_wire: string; readonly stored: string };
  readonly running: ReadonlyArray<{
    readonly archive?: string;
    readonly count?: number;
    readonly whole_members: number;
    readonly blocks?: number;
    readonly running: string;
  }>;
  readonly requests: ReadonlyArray<{
    readonly verb: string;
    readonly line: string;
    readonly command: string;
  }>;
}

export const vectors: Vectors = JSON.parse(
  fs.readFileSync(new URL("../vectors.json", import.meta.url), "utf8"),
);

/** The bytes that the vectors give by a rule. */
export const bytesOf = (count: number): Buffer => {
  const bytes = Buffer.alloc(count);
  for (let i = 0; i < count; i++) bytes[i] = (i * 7 + Math.floor(i / 251)) % 256;
  return bytes;
};

/** Line `i` of a root's vector, with its newline. */
export const lineOfRoot = (i: number, sha256: (text: string) => string): string =>
  `vm7/private.img.${`${i}`.padStart(3, "0")}.enc ${128 + i} 1024 ${sha256(`member ${i}`)}\n`;

export const sampleOf = (file: string): Buffer =>
  fs.readFileSync(new URL(`../fixtures/${file}`, import.meta.url));
