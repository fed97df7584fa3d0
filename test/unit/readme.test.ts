/** What the README asks of the person who installs this, and that what it points to is there. */
import { assert, describe, it } from "@effect/vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { blocksOf, commandsOf, otherBlocksOf } from "#test/support/readme";

const readme = fs.readFileSync("README.md", "utf8");
const pages = ["README.md", ...fs.readdirSync("docs").map((name) => `docs/${name}`)];

it("from nothing to a proven, scheduled backup: at most 20 commands", () => {
  const commands = blocksOf(readme).flatMap(({ text }) => commandsOf(text));
  const shown = commands.map((words) => words.join(" ")).join("\n");
  assert.isAtMost(commands.length, 20, shown);
  // It is these steps that were counted.
  for (const step of ["make -C qbackup server", "appvm", "dom0", "qbackup -o", "systemctl enable"])
    assert.include(shown, step);
  assert.deepStrictEqual(new Set(blocksOf(readme).map(({ place }) => place)), places);
});
const places = new Set(["template", "build", "carrier", "server", "dom0"]);

it("no step is an editor's, and no step hides in a block that is not counted", () => {
  for (const [program, ...words] of blocksOf(readme).flatMap(({ text }) => commandsOf(text))) {
    const all = [program!, ...words].join(" ");
    assert.notMatch(all, /\b(vi|vim|nano|emacs|sensible-editor|visudo|crontab)\b|sed -i|\bedit\b/);
  }
  const [, steps] = /^## Installation\n(.*?)^## Restore$/ms.exec(readme)!;
  for (const text of otherBlocksOf(steps!)) {
    // Parts of files: a unit, a crontab.
    for (const line of text.trim().split("\n"))
      assert.match(line, /^(\[[A-Z][a-z]+\]|[A-Z][A-Za-z]+=.*|[0-9*]+( [0-9*]+){4} .*)$/);
  }
});

it("the README is short", () => assert.isAtMost(readme.split("\n").length, 200));

it("every message of the troubleshooting is one that the programs have", () => {
  const source = ["src", "layers", "services"]
    .flatMap((dir) =>
      fs
        .readdirSync(dir, { recursive: true, encoding: "utf8" })
        .filter((file) => file.endsWith(".ts"))
        .map((file) => fs.readFileSync(path.join(dir, file), "utf8")),
    )
    .join("\n");
  let seen = 0;
  for (const [, cell] of fs
    .readFileSync("docs/troubleshooting.md", "utf8")
    .matchAll(/^\| (`.*?) \|/gm)) {
    for (const [, message] of cell!.matchAll(/`([^`]+)`/g)) {
      // Dots and capitals stand for what differs from case to case.
      const parts = message!.split(/\.\.\.|\b[A-Z][A-Z_]{3,}\b|[()]/).map((part) => part.trim());
      for (const part of source.includes(message!) ? [] : parts) {
        assert.isTrue(part.length < 4 || source.includes(part), `${message}: ${part}`);
      }
      seen++;
    }
  }
  assert.isAtLeast(seen, 20);
});

/** As GitHub makes the name of a heading. */
const anchors = (file: string): ReadonlyArray<string> =>
  [...fs.readFileSync(file, "utf8").matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
    title!
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N}_ -]/gu, "")
      .replaceAll(" ", "-"),
  );

it.each(pages)("every link of %s leads somewhere", (page) => {
  let links = 0;
  for (const [, target] of fs.readFileSync(page, "utf8").matchAll(/\]\(([^)\s]+)\)/g)) {
    if (/^https?:/.test(target!)) continue;
    links++;
    const [file, anchor] = target!.split("#");
    const there = file === "" ? page : path.join(path.dirname(page), file!);
    assert.isTrue(fs.existsSync(there), `${page}: ${target}`);
    if (anchor !== undefined) assert.include(anchors(there), anchor, `${page}: ${target}`);
  }
  if (page === "README.md") assert.isAtLeast(links, 10);
});

it("every test that the threat model names is there", () => {
  const text = fs.readFileSync("docs/threat-model.md", "utf8").replaceAll(/\s+/g, " ");
  const named = [...text.matchAll(/`(test\/[^`]+)`: ("[^"]+"(?:; "[^"]+")*)/g)];
  assert.isAtLeast(named.length, 40);
  for (const [, file, titles] of named) {
    const source = fs.readFileSync(file!, "utf8");
    for (const [, title] of titles!.matchAll(/"([^"]+)"/g)) assert.include(source, title!, file);
  }
});

it("every page in docs/ can be found from the README", () => {
  for (const page of pages.slice(1)) assert.include(readme, `](${page}`);
});

describe("commandsOf", () => {
  it.each([
    ["a", 1],
    ["a b c\n\n# no command: x && y\nd # e", 2],
    ["a && b || c; d | e & f", 6],
    ["sudo a", 1],
    ["X=1 a", 1],
    ["X=1", 1],
    ["X=$(a | b)", 3],
    ['a "$(b; c)" `d`', 4],
    ["a 'b; c' \"d && e\"", 1],
    ["a $((1 + 2))", 1],
    ["(umask 077; cat > x)", 2],
    ["a > b 2>&1 < c && d &> e", 2],
    ["diff <(a) <(b; c)", 4],
    ["a <<X\nb; c\nX\nd", 2],
    ["a \\\n  b", 1],
    ["if a; then b; else c; fi", 3],
    ["for x in 1 2; do a; done", 1],
    ["while a; do b; done < c", 2],
    ["{ a; b; }", 2],
    ["! a", 1],
    ["a b{,-c}@d", 1],
    ["qvm-run --pass-io build 'cat x | gzip' > y", 3],
    ["ssh host", 1],
    ["ssh -p 22 host tar -x", 2],
    ["sudo sh -c 'a; b'", 3],
    ["", 0],
  ])("%j: %j", (text, count) => {
    const found = commandsOf(text);
    assert.lengthOf(found, count, JSON.stringify(found));
  });
  it.each(["a 'b", 'a "b', "a $(b", "a `b"])("%j does not end", (text) => {
    assert.throws(() => commandsOf(text), /no end/);
  });
  it("gives the words without quotes", () => {
    assert.deepStrictEqual(commandsOf("make key='ssh-ed25519 AAAA' \"x y\" >> ~/f"), [
      ["make", "key=ssh-ed25519 AAAA", "x y"],
    ]);
  });
});
