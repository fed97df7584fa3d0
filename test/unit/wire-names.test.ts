/** The words of the wire: what each may be, to the sign and to the length. */
import { assert, describe, it } from "@effect/vitest";
import { Schema } from "effect";
import {
  Count,
  Instant,
  isName,
  isPrefix,
  isSession,
  parseNumber,
  PublicKey,
  Sha256,
  Signature,
} from "#src/wire/names";
import { rng } from "#test/support/random";

const session = "0123456789abcdef0123456789abcdef";

describe("names", () => {
  const long = "a".repeat(128);
  it.each([
    "a",
    "0",
    "a.b",
    "A_b+c-d.e",
    long,
    `${long}/${long}/${long}/${"b".repeat(125)}`,
    "1/2/3/4/5/6/7/8",
    "a.manifest.jso",
    "a.manifest.json/b",
  ])("%s is one", (text) => assert.isTrue(isName(text)));
  it.each([
    "",
    ".",
    "..",
    "/",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    "a/./b",
    ".a",
    "a/.b",
    "-a",
    "a/-b",
    "_a",
    "+a",
    "a b",
    "a\n",
    "\na",
    "a\0",
    "a\0b",
    "a\\b",
    "a;b",
    "a$b",
    "a`b`",
    "a|b",
    "a&b",
    "a>b",
    "a*",
    "a?",
    "a[b]",
    "a{b}",
    "a~",
    "~a",
    "a'b",
    'a"b',
    "a:b",
    "a@b",
    "a,b",
    "a=b",
    "a%2e",
    "a#b",
    "a!b",
    "é",
    "а",
    "a\u200b",
    "a\u2044b",
    "a\uff0fb",
    "\u202ea",
    `${long}a`,
    "1/2/3/4/5/6/7/8/9",
    `${long}/${long}/${long}/${long}`,
    "a.manifest.json",
    "a/b.manifest.json",
    ".ssh/authorized_keys",
    ".qbackup/identity",
    "a".repeat(5000),
  ])("%j is none", (text) => assert.isFalse(isName(text)));
  it("nor is anything that is not a text", () => {
    for (const value of [undefined, null, 1, ["a"], { toString: () => "a" }])
      assert.isFalse(isName(value));
  });
  it("prefixes stop anywhere, also after a slash", () => {
    for (const text of ["a", "a/", "a/b", "a/b/"]) assert.isTrue(isPrefix(text), text);
    for (const text of ["", "/", "a//", ".a", "a/.", "../"]) assert.isFalse(isPrefix(text), text);
  });
  it("sessions and numbers have one spelling", () => {
    assert.isTrue(isSession(session));
    for (const text of ["", session.toUpperCase(), session.slice(1), `${session}0`, `${session}\n`])
      assert.isFalse(isSession(text));
    assert.strictEqual(parseNumber("0"), 0);
    assert.strictEqual(parseNumber("9007199254740991"), Number.MAX_SAFE_INTEGER);
    for (const text of [
      "",
      "00",
      "01",
      "+1",
      "-1",
      "1.0",
      "1e3",
      " 1",
      "1 ",
      "0x1",
      "9007199254740992",
      "99999999999999999999",
    ]) {
      assert.isUndefined(parseNumber(text), text);
    }
  });
});

describe("to the sign and to the length", () => {
  const chars = (n: number) => "a".repeat(n);
  /** `n` characters in components that are none too long. */
  const path = (n: number) => `${chars(128)}/${chars(128)}/${chars(128)}/${chars(n - 387)}`;
  it("a component has 128 characters, a name 8 components and 512 characters; no more", () => {
    for (const is of [isName, isPrefix]) {
      assert.isTrue(is(chars(128)));
      assert.isFalse(is(chars(129)));
      assert.isTrue(is(`a/${chars(128)}`));
      assert.isFalse(is(`a/${chars(129)}`));
      assert.isTrue(is("1/2/3/4/5/6/7/8"));
      assert.isFalse(is("1/2/3/4/5/6/7/8/9"));
      assert.lengthOf(path(512), 512);
      assert.isTrue(is(path(512)));
      assert.isFalse(is(path(513)));
    }
    assert.isTrue(isPrefix("1/2/3/4/5/6/7/8/"));
    assert.isTrue(isPrefix(`${path(511)}/`));
    assert.isFalse(isPrefix(`${path(512)}/`));
    assert.isFalse(isPrefix("a//"));
  });
  it("every letter, digit and sign that a name may have, at the start and behind it", () => {
    for (let code = 0; code < 256; code++) {
      const sign = String.fromCharCode(code);
      const word = /[A-Za-z0-9]/.test(sign);
      assert.strictEqual(isName(sign), word, JSON.stringify(sign));
      assert.strictEqual(isName(`a${sign}`), word || "._+-".includes(sign), JSON.stringify(sign));
      assert.strictEqual(isName(`a/${sign}b`), word, JSON.stringify(sign));
    }
  });
  it("a manifest's name is nobody's, but a prefix may end there", () => {
    assert.isFalse(isName("a.manifest.json"));
    assert.isTrue(isName("a.manifest.json.b"));
    assert.isTrue(isName("a.manifest.jsom"));
    assert.isTrue(isPrefix("a.manifest.json"));
  });
  it.each([
    ["a session", isSession, "0123456789abcdef", 32, ""],
    ["a SHA-256", Schema.is(Sha256), "0123456789abcdef", 64, ""],
    [
      "a public key",
      Schema.is(PublicKey),
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
      43,
      "=",
    ],
    [
      "a signature",
      Schema.is(Signature),
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
      86,
      "==",
    ],
  ] as const)("%s has its length and its signs", (_, is, alphabet, length, end) => {
    const fill = alphabet[0]!;
    const text = (head: string, n: number = length) =>
      `${head}${fill.repeat(n - head.length)}${end}`;
    assert.isTrue(is(text("")));
    assert.isFalse(is(text("", length - 1)));
    assert.isFalse(is(text("", length + 1)));
    assert.isFalse(is(`${text("")}\n`));
    assert.isFalse(is(` ${text("")}`));
    assert.isFalse(is(text("", length).slice(0, length)) && end !== "");
    assert.isFalse(is(`${text("")}=`));
    for (let code = 0; code < 256; code++) {
      const sign = String.fromCharCode(code);
      assert.strictEqual(is(text(sign)), alphabet.includes(sign), JSON.stringify(sign));
    }
  });
  it("a count is whole, exact, and not below zero", () => {
    const is = Schema.is(Count);
    for (const value of [0, 1, Number.MAX_SAFE_INTEGER]) assert.isTrue(is(value), String(value));
    for (const value of [-0, -1, 0.5, Number.MAX_SAFE_INTEGER + 1, Infinity, NaN, "1", null])
      assert.isFalse(is(value), Object.is(value, -0) ? "-0" : String(value));
  });
  it("an instant is UTC, to the second or finer, and a time that there is", () => {
    const is = Schema.is(Instant);
    for (const end of ["Z", "+00:00", ".1Z", ".123456789Z", ".123+00:00"]) {
      assert.isTrue(is(`2026-01-31T04:05:06${end}`), end);
    }
    for (const end of ["", "z", "-00:00", "+01:00", ".Z", ".1234567890Z", "Z ", "Z\n", "ZZ"]) {
      assert.isFalse(is(`2026-01-31T04:05:06${end}`), end);
    }
    for (const text of [
      "2026-13-31T04:05:06Z",
      "2026-01-32T04:05:06Z",
      "2026-01-31T25:05:06Z",
      "2026-01-31T04:60:06Z",
      "2026-01-31T04:05:60Z",
      " 2026-01-31T04:05:06Z",
      "2026-01-31 04:05:06Z",
      "2026-01-31T04:05Z",
      "2026-1-31T04:05:06Z",
      "2026-01-1T04:05:06Z",
      "+002026-01-31T04:05:06Z",
      "",
    ]) {
      assert.isFalse(is(text), text);
    }
  });
  it("the days of an instant are those of the calendar, whatever else is in it", () => {
    const is = Schema.is(Instant);
    const { int } = rng(4);
    const two = (n: number) => String(n).padStart(2, "0");
    /** By the rule of the calendar, not by what Date makes of it. */
    const days = (year: number, month: number) =>
      month !== 2
        ? [4, 6, 9, 11].includes(month)
          ? 30
          : 31
        : year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0)
          ? 29
          : 28;
    for (let i = 0; i < 5000; i++) {
      const [year, month, day] = [int(0, 9999), int(0, 13), int(0, 32)];
      const [hour, minute, second] = [int(0, 25), int(0, 61), int(0, 61)];
      const date = `${String(year).padStart(4, "0")}-${two(month)}-${two(day)}`;
      const text = `${date}T${two(hour)}:${two(minute)}:${two(second)}Z`;
      const there = month >= 1 && month <= 12 && day >= 1 && day <= days(year, month);
      assert.strictEqual(is(text), there && hour < 24 && minute < 60 && second < 60, text);
      assert.strictEqual(is(`${date}T23:59:59.999999999+00:00`), there, date);
    }
    for (const year of [1900, 2000, 2024, 2026, 2100])
      for (let month = 1; month <= 12; month++)
        for (let day = 28; day <= 31; day++) {
          const text = `${year}-${two(month)}-${day}T00:00:00Z`;
          assert.strictEqual(is(text), day <= days(year, month), text);
        }
    assert.isFalse(is("2026-01-31T24:00:00Z"));
  });
  it("a number has 16 digits at most, of which one may do", () => {
    for (const text of ["0", "1", "9", "10", "1000000000000000"])
      assert.strictEqual(parseNumber(text), Number(text));
    for (const text of ["10000000000000000", "9007199254740993", "a1", "1a", "0 "])
      assert.isUndefined(parseNumber(text), text);
  });
});
