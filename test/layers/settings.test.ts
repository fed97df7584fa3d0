import { assert, describe, it } from "@effect/vitest";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as Effect from "effect/Effect";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import { afterAll } from "vitest";
import { memorySettings } from "#layers/memory/MemorySettings";
import { shellSettings } from "#layers/settings/ShellSettings";
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
      assert.strictEqual(
        error.message,
        `${path.join(home, ".bashrc")}: cannot read N: it is not a regular file`,
      );
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
  ["N=b\n# N=c\necho N=d\nN=e true\nN=b", "b"],
  ["N=a true; N=b", "b"],
  ["export A=1 \\\n  N=a", "a"],
  ["N=a\\\nb", "ab"],
  ["echo \\\nN=a", undefined],
  ["PATH=$PATH:/x N=a", "a"],
  ['export PATH="${HOME}/bin:$PATH" N=a', "a"],
  ["if true; then\n  A=a\nfi\nN=a", "a"],
  ["fi; N=a", "a"],
  ["NN=a; N_=b; xN=c", undefined],
  ["alias x='N=a'", undefined],
  [`eval "$(ssh-agent)"\nN=a`, "a"],
  ["A=(1 2)\nN=a", "a"],
  ["A=$(x)\nN=a", "a"],
  ["case $- in *i*) ;; *) return;; esac\nN=a", "a"],
  ["N=~/a", `${home}/a`],
  ["N=~", home],
  ["N='~/a'", "~/a"],
  ["N=\\~/a", "~/a"],
  ["N=a~/b", "a~/b"],
  ["N=*?[a]!", "*?[a]!"],
  ["N=$HOME/a", `${home}/a`],
  ['N="${HOME}/a b"', `${home}/a b`],
  ["export N=x:$HOME", `x:${home}`],
  ["N='$HOME'", "$HOME"],
  ["f() {\n  local A=1\n}\nN=a", "a"],
  ["function f {\n  A=1\n}\nN=a", "a"],
  ["for i in 1 2; do\n  A=$i\ndone\nN=a", "a"],
  ["while false\ndo A=1\ndone\nN=a", "a"],
  ['case "$TERM" in\n  xterm*|rxvt*) A="\\e]0;x)"\n    ;;\n  (b) ;;\n  *)\n  ;;\nesac\nN=a', "a"],
  ["cat <<EOF >/dev/null\nM=1 ' \" $( `\nEOF\nN=a", "a"],
  ["cat <<-'E F' >/dev/null\n\tif\n\tE F\nN=a", "a"],
  ['A="one\ntwo $(echo ")" # if\n) three"\nN=a', "a"],
  ["A='if\n{ ('\nN=a # '", "a"],
  ["A=$((1 << 2)) B=${C#(} D=`echo if`\nN=a", "a"],
  ["(\n  A=1\n)\nN=a", "a"],
  ["A=(1\n if 2\n)\nN=a", "a"],
  ['[ -z "$X" ] && {\n  A=1\n}\nN=a', "a"],
  ["if [[ $A =~ ^(x|y)$ ]]; then\n  A=1\nelif ((A < 2)); then\n  A=2\nfi\nN=a", "a"],
  ["echo if then; echo {\nN=a", "a"],
  ["A=#x\nN=a", "a"],
];

const unclear: ReadonlyArray<readonly [text: string, line: number, reason: RegExp]> = [
  ["N=$HOMER/a", 1, /a \$ that/],
  [`N="\${HOME:-x}"`, 1, /a \$ that/],
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
  ["N=a\nN=b", 2, /^line 1 sets it too, to another value$/],
  ["N=a; N=b", 1, /^line 1 sets it too, to another value$/],
  ["N=a\nN=b\nN=a", 3, /^line 2 sets it too, to another value$/],
  ["N=a\nN=$(x)", 2, /a \$ that.*; line 1 sets it too$/],
  ["N=$(x)\n\nN=a", 1, /a \$ that.*; line 3 sets it too$/],
  ["N=a\nf() {\n  N=b\n}", 3, /inside a function or a block, .*; line 1 sets it too$/],
  ["N=a\nf ()\n{\n  export N=b\n}", 4, /inside a function or a block/],
  ["function f {\nN=b\n}", 2, /inside a function or a block/],
  ["N=a\nif false; then\n  N=b\nfi", 3, /inside an if, which may run or not; line 1 sets it too$/],
  ["if true; then\n  N=a\nfi", 2, /inside an if/],
  ["if true; then\n  A=a\nelse\n  N=a\nfi", 4, /inside an if/],
  ["for i in 1 2\ndo\n  N=a\ndone", 3, /inside a loop/],
  ["while false; do\n N=a\ndone", 2, /inside a loop/],
  ["until true; do\n N=a\ndone", 2, /inside a loop/],
  ["(\nN=a\n)", 2, /inside a subshell/],
  ["A=$(\nN=a\n)", 2, /inside a subshell/],
  ["{\nN=a\n}", 2, /inside a function or a block/],
  ["[ -f x ] && {\n N=a\n}", 2, /inside a function or a block/],
  ["case $A in\nx)\n  N=a\n  ;;\nesac", 3, /inside a case/],
  ["case $A in\n  x) N=a ;;\nesac", 2, /inside a case/],
  ["cat <<EOF\nN=a\nEOF", 2, /inside a here-document/],
  ["A='\nN=a\n'", 2, /inside quotes/],
  ['A="\nN=a\n"', 2, /inside quotes/],
  ["N=a\nunset N", 2, /unset changes it; line 1/],
  ["read -r N", 1, /read changes it/],
  ["read -r N < file", 1, /only a shell/],
  [": ${N:=a}", 1, /an expansion sets it/],
  [': "${N=a}"', 1, /an expansion sets it/],
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
      // Two that differ are refused; otherwise it is the value that bash has.
      const got = yield* Effect.option(read({ ".bashrc": text.join("\n") }));
      if (Option.isSome(got)) {
        assert.strictEqual(got.value ?? "", bash(path.join(home, ".bashrc")));
      } else assert.isAbove(lines.length, 1);
    }),
  { arbitrary: { runs: 300 } },
);
