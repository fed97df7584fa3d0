/** Where ssh may connect to, to the sign and to the length. */
import { assert, describe, it } from "@effect/vitest";
import { isDestination } from "#src/carrier/destination";

const a = (n: number) => "a".repeat(n);
/** Every sign of Latin 1, and whether a pattern has it. */
const signs = (pattern: RegExp) =>
  Array.from({ length: 256 }, (_, code) => String.fromCharCode(code)).map(
    (sign) => [sign, pattern.test(sign)] as const,
  );

describe.each([
  ["[user@]host", ""],
  ["ssh://[user@]host[:port]", "ssh://"],
])("%s", (_, scheme) => {
  const is = (text: string) => isDestination(`${scheme}${text}`);
  it("a user has 64 characters at most, a host 253", () => {
    assert.isTrue(is(a(253)));
    assert.isFalse(is(a(254)));
    assert.isTrue(is(`${a(64)}@h`));
    assert.isFalse(is(`${a(65)}@h`));
    assert.isTrue(is("u@h"));
    for (const text of ["", "@h", "u@", "u@@h", "u@v@h", " h", "h ", "h\n"])
      assert.isFalse(is(text));
  });
  it("the signs of both", () => {
    for (const [sign, first] of signs(/[A-Za-z0-9_]/)) {
      assert.strictEqual(is(sign), first, JSON.stringify(sign));
      assert.strictEqual(is(`${sign}@h`), first, JSON.stringify(sign));
    }
    for (const [sign, later] of signs(/[A-Za-z0-9._-]/)) {
      assert.strictEqual(is(`a${sign}@h`), later, JSON.stringify(sign));
      // What stands between two of them may also be the sign of a user or of a port.
      if (!/[@:]/.test(sign)) assert.strictEqual(is(`a${sign}b`), later, JSON.stringify(sign));
    }
  });
});

it("an IPv6 address stands for itself, or in brackets where a port may follow", () => {
  for (const address of ["::", "::1", "fe80::1", "2001:DB8::a", "::ffff:192.0.2.1"]) {
    assert.isTrue(isDestination(address), address);
    assert.isTrue(isDestination(`u@${address}`), address);
    assert.isTrue(isDestination(`ssh://[${address}]`), address);
    assert.isTrue(isDestination(`ssh://u@[${address}]:22`), address);
    assert.isFalse(isDestination(`[${address}]`), address);
    assert.isFalse(isDestination(`ssh://${address}`), address);
  }
  assert.isTrue(isDestination(`${":".repeat(45)}`));
  assert.isFalse(isDestination(`${":".repeat(46)}`));
  assert.isFalse(isDestination(":"));
  for (const [sign, good] of signs(/[0-9A-Fa-f:.]/)) {
    assert.strictEqual(isDestination(`:${sign}`), good, JSON.stringify(sign));
    assert.strictEqual(isDestination(`ssh://[${sign}:]`), good, JSON.stringify(sign));
  }
  // Without a colon it is none.
  for (const text of ["ssh://[1.2]", "ssh://[abc]", "ssh://[::1", "ssh://::1]"])
    assert.isFalse(isDestination(text), text);
});

it("a port has one to five digits, and only behind ssh://", () => {
  for (const port of ["1", "9", "22", "65535", "99999"])
    assert.isTrue(isDestination(`ssh://h:${port}`), port);
  for (const port of ["", "0", "022", "123456", "a", "2a", "22 ", "-1"])
    assert.isFalse(isDestination(`ssh://h:${port}`), port);
  assert.isFalse(isDestination("h:22"));
  for (const text of ["sssh://h", "ssh//h", "ssh:/h", "SSH://h", "xssh://h", "ssh://ssh://h"])
    assert.isFalse(isDestination(text), text);
});
