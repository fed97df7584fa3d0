/**
 * Faults that no test has to notice, with the reason. By the line's text, so that lines may move; an
 * entry whose fault is not there any more makes the suite red.
 */
import type { Excused } from "#test/mutation/pure";

const of = (
  file: string,
  why: string,
  ...faults: ReadonlyArray<readonly [line: string, fault: string]>
): ReadonlyArray<Excused> => faults.map(([line, fault]) => ({ file, line, fault, why }));

const treehash = "src/proof/treehash.ts";

export const excused: ReadonlyArray<Excused> = [
  ...of(
    treehash,
    "both ways give the same digest; which one there is depends on the version of node",
    ['typeof crypto.hash === "function"', 'typeof crypto.hash === "function" -> true'],
    ['typeof crypto.hash === "function"', 'typeof crypto.hash === "function" -> false'],
    [
      'typeof crypto.hash === "function"',
      'typeof crypto.hash === "function" -> typeof crypto.hash !== "function"',
    ],
    ['typeof crypto.hash === "function"', '"function" -> ""'],
    [': (block) => crypto.createHash("sha256").update(block).digest();', '"sha256" -> ""'],
  ),
  ...of(
    treehash,
    "levels are only compared with each other: where they begin and by how much they grow is all one",
    ["let level = 0;", "0 -> 1"],
    ["level += 1;", "level += 1 -> level -= 1"],
    ["level += 1;", "1 -> 2"],
  ),
  ...of(
    treehash,
    "one step more takes an empty piece, and adds nothing",
    ["for (let i = 0; i < width; i += 2) {", "i < width -> i <= width"],
    [
      "for (let at = index, level = 0; level < levels.length - 1; at >>>= 1, level++) {",
      "level < levels.length - 1 -> level <= levels.length - 1",
    ],
    ["for (let at = index, level = 0; level < levels.length - 1; at >>>= 1, level++) {", "1 -> 0"],
    ["if (sibling.length > 0) parts.push(sibling);", "sibling.length > 0 -> true"],
    ["if (sibling.length > 0) parts.push(sibling);", "sibling.length > 0 -> sibling.length >= 0"],
    ["if (sibling.length > 0) parts.push(sibling);", "0 -> 1"],
  ),
  ...of(
    "src/archive/slots.ts",
    "all slots with data are counted alike, and only a share of them is asked for",
    ["for (let rest = present; rest !== 0; rest &= rest - 1) bits += 1;", "1 -> 2 #2"],
  ),
  ...of(
    "src/archive/walk.ts",
    "three digits without a zero in front fit the first form, too; eight are more chunks than members may be",
    [
      "/^(?:(vm[1-9][0-9]{0,9})\\/(?:private\\.img|root\\.img|firewall\\.xml|notes\\.txt|whitelisted-appmenus\\.list|empty)|(dom0-home)\\/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})\\.([0-9]{3}|[1-9][0-9]{3,6})\\.enc$/;",
      "pattern: {3,6} -> {2,6}",
    ],
    [
      "/^(?:(vm[1-9][0-9]{0,9})\\/(?:private\\.img|root\\.img|firewall\\.xml|notes\\.txt|whitelisted-appmenus\\.list|empty)|(dom0-home)\\/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})\\.([0-9]{3}|[1-9][0-9]{3,6})\\.enc$/;",
      "pattern: {3,6} -> {3,7}",
    ],
  ),
  ...of(
    "src/archive/walk.ts",
    "a line without a sign of equality has a key that is none, whatever is cut off it",
    ["return [line.slice(0, Math.max(at, 0)), line.slice(at + 1)];", "0 -> 1 #2"],
  ),
  ...of("src/archive/walk.ts", "the header was looked at before: neither of the two is empty", [
    "const said = (key: string) => new RegExp(`${key}=(.*)`).exec(header)![1]!;",
    "pattern: * -> +",
  ]),
  ...of("src/archive/walk.ts", "no sum is undefined, so the comparison says as much", [
    'if (sum === undefined || sum !== total) return "checksum";',
    "sum === undefined || sum !== total -> sum !== total",
  ]),
  ...of(
    "src/archive/walk.ts",
    "written before it is read",
    ["#left = 0;", "0 -> 1"],
    ["#after = 0;", "0 -> 1"],
  ),
  ...of(
    "src/archive/walk.ts",
    "the fault is kept, and ends the walk whatever else is noted behind it",
    ["return;", "return; -> ;"],
    ["return;", "return; -> ; #2"],
    ["return;", "return; -> ; #3"],
    ["return;", "return; -> ; #4"],
  ),
  ...of(
    "src/archive/walk.ts",
    "only the memory is another: how much of it, and by which steps it grows",
    ["#free = 32;", "32 -> 33"],
    ["#free = 32;", "32 -> 31"],
    ["this.#free -= 1;", "1 -> 2"],
    ["if (this.#free === 0) {", "0 -> 1"],
    ["this.#slots = new BigUint64Array(2 * held.length);", "2 -> 3"],
    ["this.#free = held.length / 2;", "2 -> 1"],
  ),
  ...of(
    "src/archive/walk.ts",
    "only the time is another: at which slot the search begins, or which of them it passes over",
    ["for (const each of held) if (each !== 0n) this.#put(each);", "each !== 0n -> true"],
    [
      "let at = Number(hash % BigInt(this.#slots.length));",
      "hash % BigInt(this.#slots.length) -> hash * BigInt(this.#slots.length)",
    ],
    ["at = (at + 1) % this.#slots.length;", "1 -> 2"],
  ),
  ...of("src/archive/walk.ts", "a head that is asked for has 64 bytes, or none", [
    "} else if (bytes.length > 0) {",
    "0 -> 1",
  ]),
  ...of("src/archive/walk.ts", "no member has a single byte", [
    "return this.#offset > 0 && this.#offset === this.#start && this.#fault === undefined;",
    "0 -> 1",
  ]),
  ...of("src/archive/walk.ts", "the rule for the devices refuses that byte before", [
    'if (!isZero(header.subarray(345, block))) return "prefix";',
    "345 -> 344",
  ]),
  ...of(
    "src/wire/names.ts",
    "a brand is for the types alone",
    [').pipe(Schema.brand("Name"));', '"Name" -> ""'],
    [').pipe(Schema.brand("Prefix"));', '"Prefix" -> ""'],
    ['Schema.brand("Session"),', '"Session" -> ""'],
    [').pipe(Schema.brand("Series"));', '"Series" -> ""'],
    [
      'export const PublicKey = base64url(32).pipe(Schema.brand("PublicKey"));',
      '"PublicKey" -> ""',
    ],
    [
      'export const Signature = base64url(64).pipe(Schema.brand("Signature"));',
      '"Signature" -> ""',
    ],
  ),
  ...of("src/say/shown.ts", "a brand is for the types alone", [
    'export const Line = Schema.String.pipe(Schema.brand("Line"));',
    '"Line" -> ""',
  ]),
  ...of(
    "src/wire/names.ts",
    "no number of 17 digits is exact, so the second condition refuses them",
    ["if (!/^(?:0|[1-9][0-9]{0,15})$/.test(text)) return undefined;", "pattern: {0,15} -> {0,16}"],
  ),
  ...of("src/wire/lines.ts", "a billionth of a second more in each", [
    "return count <= aliveMost + Number(now - began) / 1e9",
    "1e9 -> 999999999",
  ]),
  ...of("src/wire/lines.ts", "what is not UTF-8 is no reply either way: undefined is no JSON", [
    "const reply = line.length < lineLimit && text !== undefined ? parse(text) : undefined;",
    "line.length < lineLimit && text !== undefined -> line.length < lineLimit",
  ]),
  ...of(
    "src/wire/lines.ts",
    "costs time alone: bytes that were looked at are looked at again, or moved onto themselves",
    ["scanned = end;", "scanned = end; -> ;"],
    ["if (start > 0) {", "start > 0 -> true"],
    ["if (start > 0) {", "start > 0 -> start >= 0"],
  ),
  ...of(
    "src/wire/frames.ts",
    "it is too small for any frame either way, and grows with the first",
    ["let buffer = new Uint8Array(0);", "0 -> 1"],
  ),
  ...of("src/wire/request.ts", "a word that is missing is no verb either way", [
    'if (verb === undefined || !isVerb(verb)) return refuse("bad-request", "no such verb");',
    "verb === undefined || !isVerb(verb) -> !isVerb(verb)",
  ]),
  ...of("src/wire/lines.ts", "a function that ends without it gives undefined, too", [
    "return undefined;",
    "return undefined; -> ;",
  ]),
  ...of(
    "src/archive/walk.ts",
    "a function that ends without it gives undefined, too",
    ["return undefined;", "return undefined; -> ;"],
    ["return undefined;", "return undefined; -> ; #2"],
    ["return undefined;", "return undefined; -> ; #3"],
  ),
  ...of("src/proof/keys.ts", "a function that ends without it gives undefined, too", [
    "return undefined;",
    "return undefined; -> ;",
  ]),
  ...of(
    "src/proof/keys.ts",
    "OpenSSL of today takes any 32 bytes for a key, and says no; that it throws is only feared",
    ["return false;", "return false; -> ;"],
    ["return false;", "false -> true"],
  ),
  ...of(
    "src/proof/lines.ts",
    "one turn more takes nothing; and what is not sound stays so, only later",
    ["while (sound && at < text.length) {", "at < text.length -> at <= text.length"],
    ["while (sound && at < text.length) {", "sound && at < text.length -> at < text.length"],
  ),
  ...of(
    "src/proof/members.ts",
    "only the memory is another: how much of it, and by which steps it grows",
    [
      "if (runs.at(-1) === member) runs[runs.length - 1] = member + 1;",
      "runs.at(-1) === member -> false",
    ],
    ["if (runs.at(-1) === member) runs[runs.length - 1] = member + 1;", "-1 -> 1"],
    ["if (runs.at(-1) === member) runs[runs.length - 1] = member + 1;", "1 -> 2"],
    ["if (runs.at(-1) === member) runs[runs.length - 1] = member + 1;", "1 -> 0"],
    ["if (used + path.length > piece) {", "used + path.length > piece -> true"],
    ["used = 0;", "0 -> 1"],
    ["const piece = 65_536;", "65_536 -> 65537"],
    ["const piece = 65_536;", "65_536 -> 65535"],
    [
      "if (pathLength[at]! < path.length) {",
      "pathLength[at]! < path.length -> pathLength[at]! <= path.length",
    ],
    ["if (pathLength[at]! < path.length) {", "pathLength[at]! < path.length -> true"],
    [
      "if (used + path.length > piece) {",
      "used + path.length > piece -> used + path.length >= piece",
    ],
  ),
  ...of(
    "src/proof/recipe.ts",
    "the search begins, or halves, a little later: behind the last run begins nothing",
    ["let high = base.length - 1;", "base.length - 1 -> base.length + 1"],
    ["let high = base.length - 1;", "1 -> 0"],
    ["const middle = (low + high + 1) >>> 1;", "1 -> 2"],
  ),
  ...of("src/proof/members.ts", "written before it is read", ["let listed = 0;", "0 -> 1"]),
  ...of(
    "src/proof/members.ts",
    "two that are the same are neighbours, whichever is looked at first",
    ["const before = order[i - 1];", "i - 1 -> i + 1"],
  ),
  ...of("src/proof/members.ts", "what stands before the first is of no session", [
    "before === undefined ||",
    "before === undefined || sessionOf[before] !== sessionOf[index] -> sessionOf[before] !== sessionOf[index]",
  ]),
  ...of(
    "src/proof/recipe.ts",
    "only the memory is another: how much of it there is before it grows",
    ["let columns = new Uint32Array(3 * 16);", "16 -> 17"],
    ["let columns = new Uint32Array(3 * 16);", "16 -> 15"],
    ["if (3 * length === columns.length) {", "3 -> 4"],
    ["const grown = new Uint32Array(2 * columns.length);", "2 -> 3"],
    ["const starts = new Float64Array(base.length + 1);", "1 -> 2"],
  ),
  ...of(
    "src/proof/table.ts",
    "no length is a multiple of no block, so the next condition says as much",
    [
      "if (size === undefined || length === undefined) return undefined;",
      "size === undefined || length === undefined -> size === undefined",
    ],
  ),
  ...of("src/proof/members.ts", "what is written is ASCII, in any encoding", [
    'pathLength[at] = of.write(path, start, "latin1");',
    '"latin1" -> ""',
  ]),
  ...of(
    "src/archive/inner.ts",
    "nobody notices a byte more or less of what is only there to bound memory",
    ["const mapLimit = 67_108_864;", "67_108_864 -> 67108865"],
    ["const mapLimit = 67_108_864;", "67_108_864 -> 67108863"],
    ["if (used + 14 > bytes.length) {", "used + 14 > bytes.length -> used + 14 >= bytes.length"],
    ["if (used + 14 > bytes.length) {", "14 -> 15"],
    ["if (used + 14 > bytes.length) {", "14 -> 13"],
  ),
  ...of(
    "src/archive/inner.ts",
    "a record without a length has nothing in it, which is none, either",
    [
      "if (length === undefined || length > bytes.length - at) return undefined;",
      "length === undefined || length > bytes.length - at -> length > bytes.length - at",
    ],
  ),
  ...of("src/archive/inner.ts", "a piece of no bytes behind the last one is nothing to read", [
    "for (let from = 0; at < used;) {",
    "at < used -> at <= used",
  ]),
  ...of(
    "src/archive/inner.ts",
    "where a message cuts a name that no backup has is a matter of taste",
    ["throw refused(`${printable(tidy, 120)} is no file that a Qubes backup has`);", "120 -> 121"],
    ["throw refused(`${printable(tidy, 120)} is no file that a Qubes backup has`);", "120 -> 119"],
  ),
  ...of(
    "src/archive/inner.ts",
    "what is not there is no number, whatever stands for it",
    [
      'const whole = parseNumber(records.get("GNU.sparse.realsize") ?? "");',
      'records.get("GNU.sparse.realsize") ?? "" -> records.get("GNU.sparse.realsize")',
    ],
    ['const whole = parseNumber(records.get("GNU.sparse.realsize") ?? "");', '"" -> "?"'],
  ),
  ...of(
    "src/archive/inner.ts",
    "the end of a generator has no value; only its type does not say so",
    [
      "return steps.next().value ?? undefined;",
      "steps.next().value ?? undefined -> steps.next().value",
    ],
  ),
  ...of(
    "src/archive/inner.ts",
    "nothing else is thrown; what is wrong here must not pass for a fault there",
    ["if (!(error instanceof InnerFault)) throw error;", "!(error instanceof InnerFault) -> false"],
  ),
  ...of(
    "src/archive/inner.ts",
    "no slot was begun, so whichever it is has nothing in it",
    ["let open = 0;", "0 -> 1"],
    ["let held = 0;", "0 -> 1"],
  ),
  ...of("src/archive/inner.ts", "a zero more at the end of a number means the same", [
    "for (; rest >= 128; rest = Math.floor(rest / 128)) bytes[used++] = 128 + (rest % 128);",
    "128 -> 127",
  ]),
  ...of(
    "src/archive/ustar.ts",
    "in how many pieces zeros are looked for is all the same",
    ["const zeros = new Uint8Array(65_536);", "65_536 -> 65537"],
    ["const zeros = new Uint8Array(65_536);", "65_536 -> 65535"],
    [
      "for (let at = 0; at < bytes.length; at += zeros.length) {",
      "at < bytes.length -> at <= bytes.length",
    ],
  ),
  ...of("src/archive/compose.ts", "no directory is the key of nothing, either", [
    "if (directory === undefined) return features;",
    "directory === undefined -> false",
  ]),
  ...of("src/carrier/destination.ts", "a bracket that closes nothing stands for itself", [
    "const uri = new RegExp(`^ssh://(?:${user}@)?(?:${host}|\\\\[${ipv6}\\\\])(?::${port})?$`);",
    "pattern: \\\\ -> (nothing)",
  ]),
  ...of(
    "src/store/signers.ts",
    "there are two words, says the type, and the other one is not this",
    ['Effect.flatMap(own.open(name, "read"), (file) =>', '"read" -> ""'],
  ),
  ...of(
    "src/store/tickets.ts",
    "there are two words, says the type, and the other one is not this",
    ['Effect.flatMap(incoming.open(`${session}.ticket`, "read"), (file) =>', '"read" -> ""'],
  ),
  ...of("src/store/signers.ts", "with a byte more a line, a line more has still no room", [
    "const lineLength = 44;",
    "44 -> 45",
  ]),
  ...of(
    "src/store/tickets.ts",
    "no ticket is half as long: what is as long as that is none, whether it is read or not",
    ["const fileLimit = 4096;", "4096 -> 4097"],
    ["const fileLimit = 4096;", "4096 -> 4095"],
  ),
  ...of(
    "src/store/tickets.ts",
    "a question mark is no ticket either",
    ['const [text = "", signature] = file?.split("\\n") ?? [];', '"" -> "?"'],
    [': readText(file, fileLimit).pipe(Effect.map((read) => read ?? "")),', '"" -> "?"'],
  ),
  ...of("src/archive/walk.ts", "what is none of the other states is this one", [
    'this.#state = { at: "head", path, want: path === heads[0] ? size : head };',
    '"head" -> ""',
  ]),
];
