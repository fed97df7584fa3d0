/** What a passphrase file means to qvm-backup, and what speaks against it. */
import { assert, describe, it } from "vitest";
import { execFileSync } from "node:child_process";
import { passphraseIn, readPassphrase } from "#layers/files/Passphrase";
import { unless, without } from "#test/support/unless";

const read = (text: string | Buffer) => readPassphrase(Buffer.from(text), true);
const good = "correct horse battery staple";

describe("a passphrase file", () => {
  it("that is as it should be raises no doubt", () => {
    for (const text of [good, `${good}\n`, `${good}\r\n`, `${good}\n\n`]) {
      assert.deepStrictEqual(read(text), { characters: 28, unfit: undefined, doubts: [] });
    }
  });

  it.each([
    ["a byte order mark", `\ufeff${good}\n`, 29, /byte order mark/],
    ["a leading blank", ` ${good}\n`, 29, /begins with a blank/],
    ["a leading blank that is no ASCII", `\u00a0${good}\n`, 29, /begins with a blank/],
    ["a blank at its end", `${good} \n`, 28, /end of the passphrase are not part/],
    ["a no-break space at its end", `${good}\u00a0\n`, 28, /end of the passphrase are not part/],
    ["a tab at its end", `${good}\t\n`, 28, /end of the passphrase are not part/],
    ["more lines", `${good}\nanother\n`, 28, /more than one line/],
    ["more lines of an old Mac", `${good}\ranother`, 28, /more than one line/],
    ["a letter beyond ASCII", "körrect horse battery staple", 28, /beyond ASCII/],
    ["the same letter in two signs", "ko\u0308rrect horse battery staple", 29, /beyond ASCII/],
    ["a comment first", "# the passphrase of the backups\nsecret\n", 31, /looks like a comment/],
    ["another comment first", "// passphrase for the backups", 29, /looks like a comment/],
    ["a setting", `PASSPHRASE=${good}`, 39, /looks like a setting/],
    ["a word before it", `passphrase: ${good}`, 40, /looks like a setting/],
    ["quotes", `"${good}"`, 30, /quotes/],
  ] as const)("with %s raises a doubt", (_, text, characters, doubt) => {
    const found = read(text);
    assert.strictEqual(found.characters, characters);
    assert.isUndefined(found.unfit);
    assert.isTrue(
      found.doubts.some((it) => doubt.test(it)),
      found.doubts.join("\n"),
    );
  });

  it.each([
    "secret",
    "Passw0rd",
    "password123!",
    "hunter2",
    "aaaaaaaaaaaaaaaaaaaa",
    "1234567890123",
  ])("%s is easy to guess", (text) => assert.match(read(text).doubts.join("\n"), /easy to guess/));
  it.each(["kT8#vR2$mL9!", "correct horse battery staple", "zufällig genug gewürfelt"])(
    "%s is not",
    (text) => assert.notMatch(read(text).doubts.join("\n"), /easy to guess/),
  );

  it.each([
    ["^D", "correct\x04horse battery"],
    ["^U", "correct\x15horse battery"],
    ["a tab inside", "correct\thorse battery"],
    ["an escape", "correct\x1b[0mhorse"],
    ["DEL", "correct\x7fhorse battery"],
    ["NUL", "correct\x00horse battery"],
    ["a control character of ISO 8859", "correct\x85horse battery"],
    ["too much for the terminal", "correct horse ".repeat(150)],
    ["too many bytes, if not characters", "ö".repeat(1000)],
  ])("with %s is unfit", (_, text) => assert.isDefined(read(text).unfit));
  it("with a good thousand bytes is fit", () => {
    assert.isUndefined(read("correct horse ".repeat(100)).unfit);
  });

  it("gives it, too, to who encrypts with it: what Python would take, in UTF-8", () => {
    for (const [text, taken] of [
      [`${good}\n`, good],
      [`${good} \t\r\nmore`, good],
      [` \ufeffgr\u00fc\u00dfe\n`, ` \ufeffgr\u00fc\u00dfe`],
    ] as const) {
      assert.strictEqual(Buffer.from(passphraseIn(Buffer.from(text), true)).toString(), taken);
    }
    for (const bad of ["", " \n", "\nsecret"])
      assert.throws(() => passphraseIn(Buffer.from(bad), true), /is blank/);
    assert.throws(() => passphraseIn(Buffer.from("x"), false), /has no end/);
  });

  it("never shows a word of it", () => {
    for (const text of ["# sesame\x04", "PASS=sesame\n", `"sesame"`]) {
      assert.notInclude(JSON.stringify(read(text)), "sesame");
    }
  });
});

it("counts what Python takes", unless(without("python3")), () => {
  const script =
    "import io,json,sys\nfor t in json.load(sys.stdin):\n" +
    " print(len(io.TextIOWrapper(io.BytesIO(t.encode()),encoding='utf-8').readline().rstrip()))";
  const blanks = [
    ..."\t\v\f\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000",
  ];
  const texts = [...blanks, "\u200b", "\u180e", "\ufeff", "\r", "\r\nx"].map(
    (end) => `${good}${end}`,
  );
  const counted = execFileSync("python3", ["-c", script], { input: JSON.stringify(texts) });
  assert.deepStrictEqual(
    texts.map((text) => read(text).characters),
    counted.toString().trim().split("\n").map(Number),
  );
});
