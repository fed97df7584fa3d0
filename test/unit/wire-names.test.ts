/** The words of the wire: what each may be, to the sign and to the length. */
import { assert, describe, it } from "@effect/vitest";
import { Schema } from "effect";
import {
  Count,
  instantOf,
  isInstant,
  isName,
  isPrefix,
  isPublicKey,
  isSeries,
  isSession,
  isSignature,
  parseNumber,
  Sha256,
} from "#src/wire/names";

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
  const url = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  it.each([
    ["a session", isSession, "0123456789abcdef", 32],
    ["a SHA-256", Schema.is(Sha256), "0123456789abcdef", 64],
    ["a public key", isPublicKey, url, 43],
    ["a signature", isSignature, url, 86],
  ] as const)("%s has its length and its signs", (_, is, alphabet, length) => {
    const fill = alphabet[0]!;
    const text = (head: string, n: number = length) => `${head}${fill.repeat(n - head.length)}`;
    assert.isTrue(is(text("")));
    assert.isFalse(is(text("", length - 1)));
    assert.isFalse(is(text("", length + 1)));
    assert.isFalse(is(`${text("")}\n`));
    assert.isFalse(is(` ${text("", length - 1)}`));
    assert.isFalse(is(`${text("")}=`));
    for (let code = 0; code < 256; code++) {
      const sign = String.fromCharCode(code);
      assert.strictEqual(is(text(sign)), alphabet.includes(sign), JSON.stringify(sign));
    }
  });
  it("a key and a signature are canonical: the bits that are left over are zero", () => {
    // 43 characters have 258 bits, of which 256 are the key's; 86 have 516, of which 512.
    [...url].forEach((sign, i) => {
      assert.strictEqual(isPublicKey("A".repeat(42) + sign), i % 4 === 0, sign);
      assert.strictEqual(isSignature("A".repeat(85) + sign), i % 16 === 0, sign);
    });
  });
  it("a series has sixteen digits, and perhaps a prefix in front", () => {
    const digits = "0123456789abcdef";
    for (const text of [
      digits,
      `a-${digits}`,
      `a.b/c_d+e-f-${digits}`,
      `0-${digits}`,
      `${digits}-${digits}`,
    ]) {
      assert.isTrue(isSeries(text), text);
    }
    const upper = digits.toUpperCase();
    for (const text of [
      "",
      digits.slice(1),
      `a${digits}`,
      `-${digits}`,
      `a--${digits}`,
      `.a-${digits}`,
      `a.-${digits}`,
      `a/-${digits}`,
      upper,
      `a-${upper}`,
      `a b-${digits}`,
      `a-${digits}\n`,
      ` ${digits}`,
      `a-${digits}-`,
    ]) {
      assert.isFalse(isSeries(text), JSON.stringify(text));
    }
    assert.isTrue(isSeries(`${chars(512)}-${digits}`));
    assert.isFalse(isSeries(`${chars(513)}-${digits}`));
    for (let code = 0; code < 256; code++) {
      const sign = String.fromCharCode(code);
      const word = /[A-Za-z0-9]/.test(sign);
      const at = JSON.stringify(sign);
      assert.strictEqual(isSeries(`${sign}-${digits}`), word, at);
      assert.strictEqual(isSeries(`${sign}b-${digits}`), word, at);
      assert.strictEqual(isSeries(`b${sign}-${digits}`), word, at);
      assert.strictEqual(isSeries(`a${sign}b-${digits}`), word || "._+/-".includes(sign), at);
    }
  });
  it("a count is whole, exact, and not below zero", () => {
    const is = Schema.is(Count);
    for (const value of [0, 1, Number.MAX_SAFE_INTEGER]) assert.isTrue(is(value), String(value));
    for (const value of [-0, -1, 0.5, Number.MAX_SAFE_INTEGER + 1, Infinity, NaN, "1", null])
      assert.isFalse(is(value), Object.is(value, -0) ? "-0" : String(value));
  });
  it("an instant is UTC, to the second, and a time that there is", () => {
    const is = isInstant;
    for (const text of ["2026-01-31T04:05:06Z", "2024-02-29T23:59:59Z", "0000-01-01T00:00:00Z"]) {
      assert.isTrue(is(text), text);
    }
    for (const end of ["", "z", "+00:00", ".0Z", "+01:00", "Z ", "Z\n", "ZZ"]) {
      assert.isFalse(is(`2026-01-31T04:05:06${end}`), end);
    }
    for (const text of [
      "2026-13-31T04:05:06Z",
      "2026-02-30T04:05:06Z",
      "2026-04-31T04:05:06Z",
      "2023-02-29T04:05:06Z",
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
      "+012026-01-31T04:05Z",
      "-012026-01-31T04:05Z",
      "2026-01-31T24:00:00Z",
      "",
    ]) {
      assert.isFalse(is(text), text);
    }
  });
  it("a moment is written as an instant; what is below a second is cut off", () => {
    assert.strictEqual(instantOf(0), "1970-01-01T00:00:00Z");
    assert.strictEqual(instantOf(1_795_403_064_999), "2026-11-23T03:04:24Z");
    assert.isTrue(isInstant(instantOf(1_795_403_064_999)));
  });
  it("a number has 16 digits at most, of which one may do", () => {
    for (const text of ["0", "1", "9", "10", "1000000000000000"])
      assert.strictEqual(parseNumber(text), Number(text));
    for (const text of ["10000000000000000", "9007199254740993", "a1", "1a", "0 "])
      assert.isUndefined(parseNumber(text), text);
  });
});
