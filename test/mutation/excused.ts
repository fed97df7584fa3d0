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
    "src/archive/walk.ts",
    "three digits without a zero in front fit the first form, too; seven are more chunks than members may be",
    [
      "/^(?:(vm[1-9][0-9]{0,9})\\/(?:private\\.img|root\\.img|firewall\\.xml|notes\\.txt|whitelisted-appmenus\\.list|empty)|(dom0-home)\\/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})\\.([0-9]{3}|[1-9][0-9]{3,5})\\.enc$/;",
      "pattern: {3,5} -> {2,5}",
    ],
    [
      "/^(?:(vm[1-9][0-9]{0,9})\\/(?:private\\.img|root\\.img|firewall\\.xml|notes\\.txt|whitelisted-appmenus\\.list|empty)|(dom0-home)\\/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})\\.([0-9]{3}|[1-9][0-9]{3,5})\\.enc$/;",
      "pattern: {3,5} -> {3,6}",
    ],
  ),
  ...of(
    "src/archive/walk.ts",
    "a line without a sign of equality has a key that is none, whatever is cut off it",
    ["return [line.slice(0, Math.max(at, 0)), line.slice(at + 1)];", "0 -> 1 #2"],
  ),
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
    ["return;", "return; -> ; #5"],
    ["return;", "return; -> ; #6"],
    ["return;", "return; -> ; #7"],
    ["if (fault !== undefined) return;", "fault !== undefined -> false"],
  ),
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
  ...of(
    "src/wire/names.ts",
    "what Date.parse then does not take: the second condition refuses it",
    [
      "Schema.isPattern(/^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}(?:\\.\\d{1,9})?(?:Z|\\+00:00)$/),",
      "pattern: {1,9} -> {0,9}",
    ],
    [
      "Schema.isPattern(/^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}(?:\\.\\d{1,9})?(?:Z|\\+00:00)$/),",
      "pattern: $ -> (nothing)",
    ],
  ),
  ...of("src/wire/lines.ts", "what is not UTF-8 is no reply either way: undefined is no JSON", [
    "const reply = line.length < lineLimit && text !== undefined ? parseReply(text) : undefined;",
    "line.length < lineLimit && text !== undefined -> line.length < lineLimit",
  ]),
  ...of(
    "src/wire/lines.ts",
    "costs time alone: bytes that were looked at are looked at again, or moved onto themselves",
    ["scanned = end;", "scanned = end; -> ;"],
    ["if (start > 0) {", "start > 0 -> true"],
    ["if (start > 0) {", "start > 0 -> start >= 0"],
  ),
  ...of("src/wire/frames.ts", "costs memory alone: the buffer has a byte more than it needs", [
    "buffer ??= new Uint8Array(size + 4);",
    "4 -> 5",
  ]),
  ...of(
    "src/wire/request.ts",
    "a word that is missing is no number, and no verb, either way",
    ['const first = parseNumber(from ?? "");', 'from ?? "" -> from'],
    ['const first = parseNumber(from ?? "");', '"" -> "?"'],
    ['const count = parseNumber(number ?? "");', 'number ?? "" -> number'],
    ['const count = parseNumber(number ?? "");', '"" -> "?"'],
    [
      'if (verb === undefined || !isVerb(verb)) return refuse("bad-request", "no such verb");',
      "verb === undefined || !isVerb(verb) -> !isVerb(verb)",
    ],
  ),
  ...of("src/proof/manifest.ts", "their numbers are the same by then, so each has another one", [
    "other !== undefined &&",
    "other !== undefined && member.path === other.path -> member.path === other.path",
  ]),
  ...of("src/wire/lines.ts", "a function that ends without it gives undefined, too", [
    "return undefined;",
    "return undefined; -> ;",
  ]),
  ...of("src/proof/manifest.ts", "behind the end is no bracket: its code is NaN", [
    "for (let i = 0; i < text.length; i++) {",
    "i < text.length -> i <= text.length",
  ]),
  ...of("src/carrier/destination.ts", "a bracket that closes nothing stands for itself", [
    "const uri = new RegExp(`^ssh://(?:${user}@)?(?:${host}|\\\\[${ipv6}\\\\])(?::${port})?$`);",
    "pattern: \\\\ -> (nothing)",
  ]),
];
