import { assert, describe, it } from "@effect/vitest";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as Effect from "effect/Effect";
import * as Schema from "effect/Schema";
import { afterAll } from "vitest";
import { memorySettings } from "#layers/MemorySettings";
import { shellSettings } from "#layers/ShellSettings";
import { Settings } from "#services/Settings";
import { settingsContract } from "#test/contracts/settings";

const home = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-settings-"));
afterAll(() => fs.rmSync(home, { recursive: true }));

type Files = Partial<Record<".bash_profile" | ".bashrc" | ".profile", string>>;

const write = (files: Files) => {
  for (const file of fs.readdirSync(home)) fs.rmSync(path.join(home, file), { recursive: true });
  for (const [file, text] of Object.entries(files)) fs.writeFileSync(path.join(home, file), text);
};
const get = (name: string, env: Record<string, string> = {}) =>
  Settings.use((settings) => settings.get(name)).pipe(Effect.provide(shellSettings(home, env)));
const read = (files: Files, name = "N") => Effect.suspend(() => (write(files), get(name)));

settingsContract("memory", memorySettings);
settingsContract("the environment", (values) => (write({}), shellSettings(home, values)));
settingsContract("a shell file", (values) => {
  const lines = Object.entries(values).map(([name, value]) => `${name}='${value}'\n`);
  write({ ".bashrc": lines.join("") });
  return shellSettings(home, {});
});

describe("where a setting is looked for", () => {
  it.effect("the environment, then the first file that has it", () =>
    Effect.gen(function* () {
      write({ ".bash_profile": "A=1\n", ".bashrc": "A=2\nB=2\n", ".profile": "A=3\nB=3\nC=3\n" });
      assert.strictEqual(yield* get("A", { A: "0" }), "0");
      assert.strictEqual(yield* get("A"), "1");
      assert.strictEqual(yield* get("B"), "2");
      assert.strictEqual(yield* get("C"), "3");
    }),
  );

  it.effect("a later file is not asked when an earlier one sets it to nothing", () =>
    Effect.gen(function* () {
      assert.isUndefined(yield* read({ ".bashrc": "N=\n", ".profile": "N=1\n" }));
    }),
  );

  it.effect("a file that cannot be read is an error that names it", () =>
    Effect.gen(function* () {
      write({});
      fs.mkdirSync(path.join(home, ".bashrc"));
      const error = yield* Effect.flip(get("N"));
      assert.deepInclude(error, {
        file: path.join(home, ".bashrc"),
        reason: "it is not a regular file",
      });
    }),
  );
});

const literals: ReadonlyArray<readonly [text: string, value: string | undefined]> = [
  ["N=a@b", "a@b"],
  ["N='a b'", "a b"],
  [`N="a \\"b\\" \\\\ \\x"`, 'a "b" \\ \\x'],
  [`N=a'b'"c"\\d`, "abcd"],
  ["export N=a", "a"],
  ["export A=1 N=a B=2", "a"],
  ["declare -x N=a", "a"],
  ["readonly N=a; export N", "a"],
  ["  N=a;", "a"],
  ["N=a # not=this", "a"],
  ["N=a#b", "a#b"],
  ["A=1 N=a", "a"],
  ["M=1; N=a; O=3", "a"],
  ["N=a\nN=b\n# N=c\necho N=d\nN=e true", "b"],
  ["N=a true; N=b", "b"],
  ["export A=1 \\\n  N=a", "a"],
  ["N=a\\\nb", "ab"],
  ["echo \\\nN=a", undefined],
  ["PATH=$PATH:/x N=a", "a"],
  ['export PATH="${HOME}/bin:$PATH" N=a', "a"],
  ["if true; then\n  N=a\nfi", "a"],
  ["fi; N=a", "a"],
  ["NN=a; N_=b; xN=c", undefined],
  ["alias x='N=a'", undefined],
  [`eval "$(ssh-agent)"\nN=a`, "a"],
  ["A=(1 2)\nN=a", "a"],
  ["N=$(x)\nN=a", "a"],
  ["case $- in *i*) ;; *) return;; esac\nN=a", "a"],
  ["N=~/a", `${home}/a`],
  ["N=~", home],
  ["N='~/a'", "~/a"],
  ["N=\\~/a", "~/a"],
  ["N=a~/b", "a~/b"],
  ["N=*?[a]!", "*?[a]!"],
];

const unclear: ReadonlyArray<readonly [text: string, line: number, reason: RegExp]> = [
  ["N=$HOME/a", 1, /a \$ that/],
  [`N="$HOME"`, 1, /a \$ that/],
  ["\n\nN=$(hostname)", 3, /a \$ that/],
  ["N=`hostname`", 1, /a ` that/],
  [`N=$'a'`, 1, /a \$ that/],
  ["N=(a b)", 1, /array/],
  ["N[0]=a", 1, /array/],
  ["N+=a", 1, /\+=/],
  ["N='a", 1, /quote does not end/],
  [`A=1\nN="a\nb"`, 2, /quote does not end/],
  ["N=~user/a", 1, /a ~ that/],
  ["N={a,b}", 1, /a \{ that/],
  ["[ -f x ] && N=a", 1, /only a shell/],
  ["if true; then N=a; fi", 1, /may run or not/],
  ["(N=a)", 1, /only a shell/],
  ["declare -u N=a", 1, /-u changes/],
  ["A=$(x y) N=a", 1, /only a shell/],
];

describe("what counts as an assignment", () => {
  it.effect.each(literals)("%j", ([text, value]) =>
    Effect.gen(function* () {
      assert.strictEqual(yield* read({ ".bashrc": text }), value);
    }),
  );

  it.effect.each(unclear)("%j is refused", ([text, line, reason]) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(read({ ".bashrc": text }));
      assert.strictEqual(error.line, line);
      assert.match(error.reason, reason);
      assert.include(error.message, `${home}/.bashrc:${line}: cannot read N`);
    }),
  );
});

const bash = (file: string): string =>
  execFileSync("/bin/bash", ["--norc", "-c", '. "$1" >/dev/null 2>&1; printf %s "$N"', "-", file], {
    env: { HOME: home },
    encoding: "utf8",
  });

it.effect.each(literals.filter(([text]) => !/case|agent|^fi/.test(text)))(
  "bash agrees: %j",
  ([text, value]) =>
    Effect.sync(() => {
      write({ ".bashrc": text });
      assert.strictEqual(bash(path.join(home, ".bashrc")), value ?? "");
    }),
);

/** A value as pieces, each written in its own way of quoting. */
const Piece = Schema.Struct({
  quoting: Schema.Literals(["single", "double", "backslash"]),
  codes: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 32, maximum: 126 }))),
});
const Line = Schema.Struct({
  form: Schema.Literals([
    "V",
    "export V",
    "export A=1 V B='2 3'",
    "declare -x V;",
    "typeset -rx M=1; V # N=x",
    "  V ; M=1",
    "A=1 \\\n V",
    "V true",
    "# V",
    ": V",
    "true; V",
    "echo 'x; '\\''; ' V",
  ]),
  pieces: Schema.Array(Piece),
});

const plain = (codes: ReadonlyArray<number>) => String.fromCharCode(...codes).replaceAll("'", "");
const quoted = ({ codes, quoting }: typeof Piece.Type): string => {
  const text = plain(codes);
  if (quoting === "single") return `'${text}'`;
  if (quoting === "double") return `"${text.replace(/[$`"\\]/g, "\\$&")}"`;
  return text.replace(/./g, "\\$&");
};

it.effect.prop(
  "reads every literal file as bash does",
  { lines: Schema.Array(Line) },
  ({ lines }) =>
    Effect.gen(function* () {
      const text = lines.map(({ form, pieces }) =>
        form.replace("V", () => `N=${pieces.map(quoted).join("")}`),
      );
      assert.strictEqual(
        (yield* read({ ".bashrc": text.join("\n") })) ?? "",
        bash(path.join(home, ".bashrc")),
      );
    }),
  { timeout: 60_000, arbitrary: { runs: 300 } },
);
