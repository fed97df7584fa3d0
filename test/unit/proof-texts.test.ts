/** The texts that are signed: their fields, their one form, their limits, and what differs between them. */
import { assert, describe, it } from "@effect/vitest";
import * as texts from "#src/proof/texts";
import { memberLimit } from "#src/proof/table";
import type { Name, PublicKey } from "#src/wire/names";
import { vectors } from "#test/support/vectors";

const vector = (what: string) => vectors.texts.find((one) => one.what === what)!.text;
type Values = { readonly [key: string]: unknown };
const kinds = [
  {
    what: "manifest",
    read: texts.parseManifest,
    write: texts.manifestText,
    limit: 2048,
  },
  {
    what: "receipt",
    read: texts.parseReceipt,
    write: texts.receiptText,
    limit: 1024,
  },
  {
    what: "tombstone",
    read: texts.parseTombstone,
    write: texts.tombstoneText,
    limit: 2048,
  },
].map((kind) => ({
  ...kind,
  write: kind.write as unknown as (values: Values) => string,
  text: vector(kind.what),
  whole: JSON.parse(vector(kind.what)) as Values,
}));

describe.each(kinds)("a $what", ({ limit, read, text, what, whole, write }) => {
  const takes = (more: Values) => read(write({ ...whole, ...more })) !== undefined;
  it("is read and written as it is published", () => {
    assert.deepStrictEqual<unknown>(read(text), whole);
    assert.strictEqual(write(whole), text);
    const turned = Object.fromEntries(Object.entries(whole).toReversed());
    assert.strictEqual(write({ ...turned, other: 1 }), text);
  });
  it("has one form: what means the same is refused", () => {
    const turned = JSON.stringify(Object.fromEntries(Object.entries(whole).toReversed()));
    for (const other of [
      ` ${text}`,
      `${text} `,
      `${text}\n`,
      text.replace(",", ", "),
      text.replace(":", ": "),
      text.replace('"name"', '"\\u006eame"'),
      text.replace("laptop", "\\u006captop"),
      text.replace("}", ',"other":1}'),
      text.replace("{", '{"type":"x",'),
      text.replace('"version":1', '"version":1.0'),
      text.replace('"version":1', '"version":1e0'),
      turned,
      "",
      "{}",
      "null",
      "[]",
      "nonsense",
    ]) {
      assert.isUndefined(read(other), other);
    }
  });
  it("has all of its fields, each of its kind", () => {
    for (const key of Object.keys(whole)) {
      for (const value of [undefined, {}, [], -1, 0.5, true, "", "+", 2 ** 53]) {
        // A rule of a tombstone is any text.
        if (key === "rule" && value === "+") continue;
        assert.isFalse(takes({ [key]: value }), `${key} ${JSON.stringify(value)}`);
      }
      if (key !== "next") assert.isFalse(takes({ [key]: null }), key);
    }
    assert.isFalse(takes({ version: 2 }));
    assert.isFalse(takes({ version: 0 }));
    for (const other of kinds.filter((kind) => kind.what !== what)) {
      assert.isUndefined(read(other.text), other.what);
      assert.isFalse(takes({ type: `qbackup ${other.what}` }));
    }
  });
  it("numbers are as exact as a double has them", () => {
    for (const key of ["size", "run"].filter((one) => one in whole)) {
      assert.isTrue(takes({ [key]: 0 }));
      assert.isTrue(takes({ [key]: 2 ** 53 - 1 }), key);
      assert.isUndefined(read(text.replace(new RegExp(`"${key}":\\d+`), `"${key}":-0`)));
    }
    if (!("members" in whole)) return;
    assert.isFalse(takes({ members: 0 }));
    assert.isTrue(takes({ members: 1 }));
    assert.isTrue(takes({ members: memberLimit }));
    assert.isFalse(takes({ members: memberLimit + 1 }));
  });
  it("is no longer than its limit", () => {
    // The longest words that there are, in every field: what can be written, can be read.
    const longest = Object.fromEntries(
      Object.entries(whole).map(([key, value]) => [
        key,
        key === "name"
          ? Array.from({ length: 4 }, () => "a".repeat(127)).join("/")
          : key === "series"
            ? `${"a".repeat(512)}-0123456789abcdef`
            : key === "rule"
              ? "r".repeat(200)
              : key === "members"
                ? memberLimit
                : typeof value === "number" && value !== 1
                  ? 2 ** 53 - 1
                  : value,
      ]),
    );
    const long = write(longest);
    assert.isDefined(read(long));
    assert.isAtMost(long.length, limit);
  });
});

it("the limits are these", () =>
  assert.deepStrictEqual([texts.manifestLimit, texts.tombstoneLimit], [2048, 2048]));

describe("a manifest", () => {
  const whole = JSON.parse(vector("manifest")) as texts.Manifest;
  const takes = (more: Values) =>
    texts.parseManifest(texts.manifestText({ ...whole, ...more })) !== undefined;
  it("may promise the next one, and has one of two formats", () => {
    assert.isTrue(takes({ next: null }));
    assert.isTrue(takes({ next: "2026-12-01T00:00:00Z" }));
    assert.isFalse(takes({ next: "soon" }));
    for (const format of ["qvm-backup", "slots"]) assert.isTrue(takes({ format }));
    for (const format of ["pack", "Slots", ""]) assert.isFalse(takes({ format }));
  });
});

describe("a tombstone", () => {
  const whole = JSON.parse(vector("tombstone")) as texts.Tombstone;
  it("names its rule in 1 to 200 printable characters", () => {
    const takes = (rule: string) =>
      texts.parseTombstone(texts.tombstoneText({ ...whole, rule })) !== undefined;
    assert.isTrue(takes("r"));
    assert.isTrue(takes("r".repeat(200)));
    assert.isFalse(takes("r".repeat(201)));
    assert.isFalse(takes(""));
    for (let code = 0; code < 256; code++) {
      assert.strictEqual(
        takes(String.fromCharCode(code)),
        code >= 0x20 && code <= 0x7e,
        String(code),
      );
    }
  });
});

describe("a receipt", () => {
  const [manifest, receipt] = [vector("manifest"), texts.parseReceipt(vector("receipt"))!];
  it("is for one manifest's text, byte for byte", () => {
    assert.isUndefined(texts.receiptDiffers(receipt, manifest));
    assert.strictEqual(texts.receiptDiffers(receipt, ` ${manifest}`), "manifest");
    assert.strictEqual(
      texts.receiptDiffers({ ...receipt, manifest: texts.sha256("x") }, manifest),
      "manifest",
    );
    for (const none of ["", "{}", ` ${manifest}`]) {
      const said = { ...receipt, manifest: texts.sha256(none) };
      assert.strictEqual(texts.receiptDiffers(said, none), "manifest", none);
    }
  });
  it("what differs is named", () => {
    const others: Partial<texts.Receipt> = {
      name: "other" as Name,
      session: "f".repeat(32) as texts.Receipt["session"],
      members: 7,
      root: texts.sha256("y"),
      size: 1,
    };
    for (const [field, value] of Object.entries(others)) {
      assert.strictEqual(texts.receiptDiffers({ ...receipt, [field]: value }, manifest), field);
    }
    // When it was stored, only the server can say.
    assert.isUndefined(
      texts.receiptDiffers({ ...receipt, stored: "2027-01-01T00:00:00Z" }, manifest),
    );
  });
});

describe("a ticket", () => {
  const text = vector("ticket");
  const words = text.split(" ");
  const server = words.at(-1) as PublicKey;
  it("is read and written as it is published", () => {
    const read = texts.parseTicket(text)!;
    assert.deepStrictEqual<unknown>(read, {
      ticket: {
        name: words[1],
        session: words[2],
        base: "-",
        series: words[4],
        run: 58,
        bytes: 200_000,
        time: words[7],
        signer: words[8],
      },
      server,
    });
    assert.strictEqual(texts.ticketText(read.ticket, server), text);
    assert.deepStrictEqual(texts.ticketWords(read.ticket), words.slice(1, -1));
    assert.deepStrictEqual(texts.parseTicketWords(words.slice(1, -1)), read.ticket);
  });
  it("may build on another session", () => {
    const base = "ab".repeat(16);
    const based = text.replace(" - ", ` ${base} `);
    assert.strictEqual(texts.parseTicket(based)?.ticket.base, base);
    for (const none of ["--", "", base.slice(1)]) {
      assert.isUndefined(texts.parseTicket(text.replace(" - ", ` ${none} `)), none);
    }
  });
  it("has these words and no others, each of its kind", () => {
    words.forEach((_, i) => {
      for (const word of ["", "-1", "+0", words[i]!.slice(1), `${words[i]!}\n`, `${words[i]!}\0`]) {
        // A name, and a number, may begin later.
        if (word === words[i]!.slice(1) && [1, 4, 5, 6].includes(i)) continue;
        const other = words.map((one, j) => (i === j ? word : one)).join(" ");
        assert.isUndefined(texts.parseTicket(other), other);
      }
      assert.isUndefined(texts.parseTicket(words.filter((__, j) => i !== j).join(" ")), String(i));
      const twice = words.flatMap((one, j) => (i === j ? [one, one] : [one]));
      assert.isUndefined(texts.parseTicket(twice.join(" ")), String(i));
    });
    for (const other of [` ${text}`, `${text} `, `${text}\n`, text.replace(" ", "  "), ""]) {
      assert.isUndefined(texts.parseTicket(other));
    }
    assert.isUndefined(texts.parseTicketWords([]));
    assert.isUndefined(texts.parseTicketWords(words.slice(1)));
    assert.isUndefined(texts.parseTicketWords(words.slice(1, -2)));
  });
  it("counts as far as a double does", () => {
    const most = `${2 ** 53 - 1}`;
    for (const [old, more] of [
      [" 58 ", "9007199254740992"],
      [" 200000 ", "9007199254740992"],
    ] as const) {
      assert.isDefined(texts.parseTicket(text.replace(old, ` ${most} `)));
      assert.isUndefined(texts.parseTicket(text.replace(old, ` ${more} `)));
      assert.isUndefined(texts.parseTicket(text.replace(old, " 058 ")));
    }
  });
});

it("a SHA-256 is of the UTF-8, in hex", () => {
  const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  assert.strictEqual(texts.sha256("abc"), abc);
  assert.strictEqual(texts.sha256("é"), texts.sha256("\u00e9"));
});
