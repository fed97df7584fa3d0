/** The house rules: who may import whom, who may touch the world, and that what is cited is there. */
import { assert, describe, it } from "@effect/vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { faults, rules, verb } from "#test/support/house";

const below = (...directories: ReadonlyArray<string>) =>
  directories.flatMap((dir) =>
    fs
      .readdirSync(dir, { recursive: true, encoding: "utf8" })
      .map((file) => path.join(dir, file))
      .filter((file) => !file.startsWith("test/fixtures/") && fs.statSync(file).isFile()),
  );
const files = [
  ...below("src", "services", "layers", "test", "install", "apparmor", "docs"),
  "Makefile",
  "README.md",
  "rolldown.config.mjs",
  "vitest.config.ts",
];
const textOf = (file: string) => fs.readFileSync(file, "utf8");
const shown = (file: string, text: string) =>
  faults(file, text).map(({ line, rule, what }) => `${file}:${line}: ${rule}: ${what}`);

it.each(files)("%s keeps the house rules", (file) => {
  assert.deepStrictEqual(shown(file, textOf(file)), []);
});

it("no test is skipped without a word: test/support/unless.ts has the reasons", () => {
  for (const file of files.filter((one) => /^test\/.*\.test\.ts$/.test(one))) {
    assert.notMatch(
      textOf(file),
      /\.(skipIf|runIf|todo|only)\(|\b(it|test|describe)\.skip\(/,
      file,
    );
  }
});

it("no test is tried a second time", () => {
  assert.match(textOf("vitest.config.ts"), /\n {4}retry: 0,\n/);
  for (const file of [...files, "package.json"]) {
    if (/^test\/.*\.test\.ts$|^package\.json$/.test(file) && file !== "test/unit/house.test.ts") {
      assert.notMatch(textOf(file), /--retry|\bretry: [1-9]/, file);
    }
  }
});

it("an entrypoint is layers and the run of a program, no more", () => {
  for (const file of files.filter((one) => /^src\/[^/]+\.ts$/.test(one))) {
    assert.isAtMost(textOf(file).trimEnd().split("\n").length, 30, file);
  }
});

it("the verbs of each program are where they are looked for", () => {
  const found = files.filter((file) => verb.test(`/${file.replace(/\.ts$/, "")}`));
  for (const one of ["dom0/verbs/run", "shell/verbs/put", "carrier/carrier", "carrier/fetch"])
    assert.include(found, `src/${one}.ts`);
});

/** A file in each room. */
const dom0 = "src/dom0/far/upload.ts";
const run = "src/dom0/verbs/run.ts";
const wire = "src/wire/names.ts";
const service = "services/Qubes.ts";
const layer = "layers/process/Child.ts";
const entrypoint = "src/dom0.ts";

/** Each must be found, by the rule that is named. */
const planted: ReadonlyArray<readonly [rule: (typeof rules)[number], file: string, text: string]> =
  [
    ["room", "lib/helper.ts", "export const a = 1;"],

    // Programs and rooms, in every form of an import.
    ["import", dom0, 'import { carrier } from "#src/carrier/carrier";'],
    ["import", dom0, 'import carrier from "#src/carrier/carrier";'],
    ["import", dom0, 'import * as carrier from "#src/carrier/carrier";'],
    ["import", dom0, 'import type { Needs } from "#src/carrier/carrier";'],
    ["import", dom0, 'import { type Needs } from "#src/carrier/carrier";'],
    ["import", dom0, 'import "#src/carrier/carrier";'],
    ["import", dom0, 'import {\n  a,\n  b,\n} from\n  "#src/carrier/carrier";'],
    ["import", dom0, 'import a, { b } from "#src/store/store";'],
    ["import", dom0, 'export { carrier } from "#src/carrier/carrier";'],
    ["import", dom0, 'export * from "#src/carrier/carrier";'],
    ["import", dom0, 'export * as carrier from "#src/carrier/carrier";'],
    ["import", dom0, 'export type { Needs } from "#src/carrier/carrier";'],
    ["import", dom0, 'const carrier = await import("#src/carrier/carrier");'],
    ["import", dom0, "const carrier = await import(`#src/carrier/carrier`);"],
    ["import", dom0, 'const name = "x"; const carrier = await import(`#src/carrier/${name}`);'],
    ["import", dom0, "const load = (name: string) => import(name);"],
    ["import", dom0, 'const carrier = require("#src/carrier/carrier");'],
    ["import", dom0, 'import carrier = require("#src/carrier/carrier");'],
    ["import", dom0, "import p = globalThis.process;"],
    ["import", dom0, 'type Needs = import("#src/carrier/carrier").Needs;'],
    ["import", dom0, 'type All = typeof import("#src/carrier/carrier");'],
    ["import", dom0, 'import { carrier } from "../../carrier/carrier.ts";'],
    ["import", dom0, 'import { carrier } from "./../../carrier/carrier.ts";'],
    ["import", dom0, 'import { carrier } from "#src/dom0/../carrier/carrier";'],
    ["import", dom0, 'import { child } from "#layers/process/Child";'],
    ["import", dom0, 'import { rng } from "#test/support/random";'],
    ["import", dom0, 'import * as fs from "node:fs";'],
    ["import", dom0, 'import fs from "fs";'],
    ["import", dom0, 'import * as all from "effect";'],
    ["import", dom0, 'import { TestClock } from "effect/testing";'],
    ["import", dom0, 'import { NodeRuntime } from "@effect/platform-node";'],
    ["import", dom0, 'import { x } from "effectual";'],
    ["import", "src/vault/main.ts", 'import { run } from "#src/dom0/verbs/run";'],
    ["import", wire, 'import { run } from "#src/dom0/verbs/run";'],
    ["import", wire, 'import { Qubes } from "#services/Qubes";'],
    ["import", service, 'import { run } from "#src/dom0/verbs/run";'],
    ["import", layer, 'import { run } from "#src/dom0/verbs/run";'],
    ["import", entrypoint, 'import { carrier } from "#src/carrier/carrier";'],
    ["import", "test/standin/tar.ts", 'import { Walk } from "#src/archive/walk";'],
    ["import", "test/standin/tar.ts", 'import walk = require("#src/archive/walk");'],

    ["verb", run, 'import { list } from "./list.ts";'],
    ["verb", "src/dom0/verbs/audit.ts", 'import { knownArchives } from "./list.ts";'],
    ["verb", run, 'import type { Listed } from "#src/dom0/verbs/list";'],
    ["verb", "src/shell/verbs/read.ts", 'export { put } from "./put.ts";'],
    ["verb", "src/dom0/cli/commands.ts", 'import { statusCommand } from "./status.ts";'],

    ["clock", dom0, "const now = Date.now();"],
    ["clock", dom0, "const now = Date?.now();"],
    ["clock", dom0, 'const now = Date["now"]();'],
    ["clock", dom0, 'const key = "now"; const now = Date[key]();'],
    ["clock", dom0, "const now = new Date();"],
    ["clock", dom0, "const now = new Date;"],
    ["clock", dom0, "const none = []; const now = new Date(...none);"],
    ["clock", dom0, "const now = Date();"],
    ["clock", dom0, "const { now } = Date;"],
    ["clock", dom0, "const D = Date; const now = D.now();"],
    ["clock", dom0, "const now = (Date as DateConstructor).now();"],
    ["clock", dom0, "export { Date as Clock };"],
    ["clock", dom0, "const now = performance.now();"],
    ["clock", dom0, "const text = `it is ${Date.now()}`;"],
    ["clock", dom0, "const text = `it is ${`${new Date()}`}`;"],
    ["clock", dom0, 'const a = "/*"; const now = Date.now(); const b = "*/";'],
    ["clock", dom0, "const a = /\\/*/; const now = Date.now(); // */"],
    ["clock", dom0, "declare const performance: { now(): number }; const now = performance.now();"],
    ["clock", dom0, 'import { DateTime } from "effect"; const now = DateTime.nowUnsafe();'],
    ["clock", dom0, 'import * as D from "effect/DateTime"; const now = D.nowUnsafe();'],
    ["clock", dom0, 'import { nowUnsafe } from "effect/DateTime";'],
    ["clock", wire, "const now = Date.now();"],
    ["clock", service, "const now = Date.now();"],

    ["world", dom0, "const home = process.env.HOME;"],
    ["world", dom0, 'const home = process["env"].HOME;'],
    ["world", dom0, "const { env } = process;"],
    ["world", dom0, "const start = process.hrtime.bigint();"],
    ["world", dom0, "const home = globalThis.process.env.HOME;"],
    ["world", dom0, "const now = new globalThis.Date();"],
    ["world", dom0, "const { console } = globalThis;"],
    ["world", dom0, "const now = global.Date.now();"],
    ["world", dom0, "const env = typeof process === `object` ? 1 : 2;"],
    ["world", dom0, "const it = { process };"],
    ["world", dom0, "const it = { [process.platform]: 1 };"],
    ["world", dom0, "class It { place = process.cwd(); }"],
    ["world", dom0, "class It { [process] = 1; }"],
    ["world", dom0, "const a = [1]; const b = a[process];"],
    ["world", dom0, "const here = import.meta.url;"],
    ["import", dom0, 'import process from "node:process";'],
    ["import", dom0, 'import { env } from "node:process";'],
    ["import", dom0, 'import { env } from "process";'],

    ["timer", dom0, "setTimeout(() => {}, 1);"],
    ["timer", dom0, "const later = setTimeout;"],
    ["timer", dom0, "setInterval(() => {}, 1);"],
    ["timer", dom0, "setImmediate(() => {});"],
    ["timer", dom0, "queueMicrotask(() => {});"],
    ["timer", dom0, "const signal = AbortSignal.timeout(1);"],
    ["import", dom0, 'import { setTimeout as later } from "node:timers";'],
    ["import", dom0, 'import { setTimeout } from "node:timers/promises";'],

    ["random", dom0, "const n = Math.random();"],
    ["random", dom0, 'const n = Math["random"]();'],
    ["random", dom0, "const { random } = Math;"],
    ["random", dom0, "const M = Math;"],
    ["random", dom0, "const id = crypto.randomUUID();"],
    ["random", wire, 'import { randomBytes } from "node:crypto";'],
    ["random", wire, 'import { randomBytes as bytes } from "node:crypto";'],
    ["random", wire, 'import * as c from "node:crypto"; const b = c.randomBytes(16);'],
    ["random", wire, 'import * as c from "node:crypto"; const { randomBytes } = c;'],
    ["random", wire, 'import c from "node:crypto";'],
    ["random", wire, 'import { default as c } from "node:crypto";'],
    ["random", wire, 'import { generateKeyPairSync } from "node:crypto";'],
    ["import", dom0, 'import { randomBytes } from "node:crypto";'],

    ["console", dom0, 'console.log("x");'],
    ["console", dom0, 'console["log"]("x");'],
    ["console", dom0, "const { log } = console;"],
    ["console", dom0, "const say = console.error;"],
    ["console", dom0, 'import { Console } from "effect"; const say = Console.log("x");'],
    ["world", dom0, 'globalThis.console.log("x");'],
    ["import", dom0, 'import { log } from "node:console";'],

    ["network", dom0, 'const got = await fetch("http://x");'],
    ["network", dom0, 'const socket = new WebSocket("ws://x");'],

    ["code", dom0, 'eval("1");'],
    ["code", dom0, 'const f = new Function("return 1");'],
    ["code", dom0, 'const f = Function("return 1");'],
    ["code", layer, 'const f = new Function("return 1");'],
    ["code", entrypoint, 'const e = eval; e("1");'],

    ["run", dom0, 'import { Effect } from "effect"; Effect.runSync(Effect.void);'],
    ["run", dom0, 'import * as Effect from "effect/Effect"; const f = Effect.runPromise;'],
    ["run", dom0, 'import { Effect } from "effect"; const said = Effect.logInfo("x");'],

    ["citation", dom0, "// As the manual has it (docs/nothing.md)."],
    ["citation", dom0, "// A place that is not there (docs/qubes.md, Fifteen)."],
    ["citation", dom0, "// Half of a heading's word (docs/qubes.md, FIFOs)."],
    ["citation", dom0, "/**\n * Broken over lines (docs/qubes.md,\n * No such\n * place).\n */"],
    ["citation", dom0, "// Broken over lines (docs/qubes.md,\n// No such place)."],
    ["citation", dom0, "// See NOTHING.md for it."],
    ["citation", dom0, '// See "No such chapter" in README.md.'],
    ["citation", dom0, "// It hangs (trap 3)."],
    ["citation", dom0, "// As it hangs (traps 2 to 6)."],
    ["citation", dom0, "// So says the contract."],
    ["citation", dom0, "// So it says (contract, 1b)."],
    ["citation", dom0, "// So it is said (Qubes facts, section 3)."],
    ["citation", dom0, "/* What the\n * seed did. */"],
    ["citation", dom0, "// See design, 4."],
    ["citation", dom0, "// Mended for issue 8."],
    ["citation", "Makefile", "# It hangs (trap 3)."],
    ["citation", "install/server.sh", "# See docs/nothing.md."],
    ["citation", "docs/recovery.md", "See [the other page](docs/nothing.md)."],
  ];

/** Nothing of these must be found. */
const innocent: ReadonlyArray<readonly [file: string, text: string]> = [
  [dom0, 'import { isName } from "#src/wire/names";\nimport { failed } from "./failure.ts";'],
  [dom0, 'import { Effect } from "effect";\nimport { parseArgs } from "node:util";'],
  [dom0, 'import { Argument } from "effect/cli";\nimport type { Qube } from "#services/Qubes";'],
  [
    dom0,
    '// import "#src/carrier/carrier";\n/* import "node:fs" */ const a = \'import "node:fs"\';',
  ],
  [
    "src/dom0/cli/main.ts",
    'import { list } from "./list.ts";\nimport { failed } from "./failure.ts";',
  ],
  ["src/dom0/far/fetch.ts", 'import { answer } from "./upload.ts";'],
  [entrypoint, 'import { main } from "#src/dom0/cli/main";\nconst { argv } = process;'],
  [layer, 'import * as fs from "node:fs";\nsetTimeout(() => {}, Date.now());'],
  ["test/unit/x.test.ts", 'import { run } from "#src/dom0/verbs/run";\nconsole.log(new Date());'],
  [dom0, "// Date.now(), process.env and setTimeout() are for layers.\nconst a = 1;"],
  [dom0, "/** `console.log` too, and eval. */ const a = 1;"],
  [dom0, 'const a = "Date.now() process.env // setTimeout()"; const b = \'console.log("x")\';'],
  [dom0, "const a = `Date.now() ${1} process.env`;"],
  [dom0, "const a = /Date.now()|process.env/;"],
  [dom0, "const at = new Date(0).getTime() + Date.UTC(2026, 1) + Date.parse(`2026-01-01`);"],
  [dom0, "const is = (a: unknown): a is Date => a instanceof Date;"],
  [dom0, "const a = (at: Date, run: NodeJS.Process, end: AbortSignal, how: Function) => at;"],
  [dom0, "type Process = typeof process;"],
  [dom0, "const a = Math.max(1, Math.floor(2));"],
  [dom0, 'const it = { process: 1, console() {}, fetch: 2 }; it.process; it["console"]();'],
  [dom0, "class It { process = 1; console() {} get performance() { return 1; } }"],
  [dom0, "interface It { readonly process: number; fetch(): void }"],
  [dom0, 'import { fetch } from "./fetch.ts";\nconst a = fetch(1);\nexport { fetch };'],
  [dom0, "const fetch = () => 1;\nexport const a = fetch();"],
  [dom0, "const Math = { random: () => 4 };\nconst a = Math.random();"],
  [dom0, "process: for (;;) { if (1) continue process; break process; }"],
  [dom0, 'export { process } from "./record.ts";\nexport * as console from "./failure.ts";'],
  [
    dom0,
    'import { Clock, DateTime, Effect } from "effect";\nconst a = [Clock.currentTimeMillis, DateTime.now, Effect.sync(() => 1)];',
  ],
  [wire, 'import { createHash } from "node:crypto";\nconst a = createHash("sha256");'],
  [wire, 'import * as crypto from "node:crypto";\nconst a = crypto.createHash("sha256");'],
  [dom0, "// So it must have a reader (docs/qubes.md, FIFO), always."],
  [dom0, "/**\n * It cannot be told (docs/qubes.md, What it does not\n * notice).\n */"],
  [dom0, "// It cannot be told (docs/qubes.md, What it\n// does not notice)."],
  [dom0, "// Both are in docs/qubes.md: see there. The same in README.md."],
  [dom0, '// See "Schedule" in README.md, and RFC 8032, section 7.1.'],
  [dom0, "// A contract of services; the story's seed; trapped; designed; a section."],
  [dom0, 'const a = "trap 3, the contract, section 1";'],
  ["Makefile", "# See README.md.\nall:\n\ttrap 'exit 1' INT"],
];

describe("the rules themselves", () => {
  it.each(planted)("%s: %s: %s", (rule, file, text) => {
    assert.include(
      faults(file, text).map((fault) => fault.rule),
      rule,
    );
  });

  it.each(innocent)("%s may say: %s", (file, text) => {
    assert.deepStrictEqual(shown(file, text), []);
  });

  it("each is planted", () => {
    assert.sameMembers([...new Set(planted.map(([rule]) => rule))], [...rules]);
  });

  it("a fault is told with its line", () => {
    assert.deepStrictEqual(faults(dom0, "/* one\n */\nconst now =\n  Date.now();\n"), [
      { rule: "clock", line: 4, what: "Date as it is used here" },
    ]);
  });
});
