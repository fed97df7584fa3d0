/** Changes valid input, byte by byte and piece by piece, the same way for the same seed. */
import type { Rng } from "#test/support/random";

const tokens: ReadonlyArray<Buffer> = [
  ["\0", "\n", " ", "  ", "/", "..", "../", "//", ".", "-", "--", "-c", "$(id)", "`id`", ";id"],
  ["qbackup/1 ", "qbackup/2 ", "put", "list", "read", "__proto__", "constructor", "toString"],
  [".manifest.json", "0", "00", "-1", "1e3", "9007199254740992", "18446744073709551616", "null"],
  ['"', "{", "}", "[", "]", ":", ",", "\\u0000", "\ud800", "\u202e", "é", "true", "1.5", "\\"],
  ["ustar", "scrypt\0", "PaxHeader", "vm2/private.img.000.enc", "size=5\n", "path=x\n"],
]
  .flat()
  .map((text) => Buffer.from(text));
const numbers = [
  0, 1, 4, 0xfffff, 0x100000, 0x100001, 0x1000000, 0x1000001, 0x7fffffff, 0x80000000, 0xfffffffe,
  0xffffffff,
];

const join = (...parts: ReadonlyArray<Uint8Array>): Buffer => Buffer.concat(parts);

/** One change; `other` is another valid input, to be spliced with. */
const change = (input: Buffer, other: Buffer, r: Rng): Buffer => {
  const n = input.length;
  const at = r.int(0, n);
  const to = Math.min(n, at + r.pick([1, 1, 2, 4, 8, 64, 512, 10_240]));
  switch (r.int(0, 9)) {
    case 0: {
      if (n === 0) return input;
      const copy = Buffer.from(input);
      copy[r.int(0, n - 1)]! ^= 1 << r.int(0, 7);
      return copy;
    }
    case 1: {
      if (n === 0) return input;
      const copy = Buffer.from(input);
      copy[r.int(0, n - 1)] = r.pick([0, 10, 32, 47, 48, 127, 128, 255, r.int(0, 255)]);
      return copy;
    }
    case 2:
      return join(input.subarray(0, at), r.pick(tokens), input.subarray(at));
    case 3:
      return join(input.subarray(0, at), r.pick(tokens), input.subarray(to));
    case 4:
      return join(input.subarray(0, at), input.subarray(to));
    case 5:
      return join(input.subarray(0, to), input.subarray(at));
    case 6:
      return input.subarray(0, at);
    case 7:
      return join(input.subarray(0, at), other.subarray(r.int(0, other.length)));
    case 8: {
      if (n < 4) return input;
      const copy = Buffer.from(input);
      copy.writeUInt32BE(r.pick(numbers), r.pick([0, 0, r.int(0, n - 4)]));
      return copy;
    }
    default:
      return join(
        input.subarray(0, at),
        Buffer.alloc(r.pick([1, 3, 100, 600, 5000]), r.int(0, 255)),
        input.subarray(at),
      );
  }
};

/** Mostly a few changes; now and then none, or many, or nothing but noise. */
export const mutate = (corpus: ReadonlyArray<Buffer>, r: Rng): Buffer => {
  if (r.next() < 0.02) return r.bytes(r.int(0, 200));
  let input = r.pick(corpus);
  for (let n = r.pick([0, 1, 1, 1, 2, 2, 3, 8]); n > 0; n--)
    input = change(input, r.pick(corpus), r);
  return input;
};

/** `input` in pieces that say nothing about it. */
export const pieces = (input: Uint8Array, r: Rng): ReadonlyArray<Uint8Array> => {
  const found: Array<Uint8Array> = [];
  // A Buffer's subarray costs much more than that of a plain array.
  const plain = new Uint8Array(input.buffer, input.byteOffset, input.length);
  const most = r.pick([1, 7, 300, 5000, 70_000]);
  // Not so small pieces that a large input takes for ever.
  const least = Math.ceil(input.length / 30);
  for (let at = 0; at < input.length;) {
    const n = r.int(least, Math.max(least, most));
    found.push(plain.subarray(at, at + n));
    at += n;
  }
  return found;
};
