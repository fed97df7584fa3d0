/** Manifest, receipt, trailer and record: their fields, their limits, and what differs between them. */
import { assert, describe, it } from "@effect/vitest";
import { privateKeyPem, readPrivateKey } from "#src/proof/keys";
import {
  type Manifest,
  manifestDiffers,
  memberLimit,
  parseManifest,
  parseReceipt,
  parseRecord,
  parseTrailer,
  type Receipt,
  receiptDiffers,
  sha256,
} from "#src/proof/manifest";
import type { Name, Session } from "#src/wire/names";

const session = "0123456789abcdef0123456789abcdef" as Session;
const name = "appvms/my-prefix-2026-01-31T0400.backup" as Name;
const key = readPrivateKey(privateKeyPem(new Uint8Array(32)))!;
const { server } = key;

describe("manifest and receipt", () => {
  const manifest = {
    version: 1 as const,
    name,
    session,
    server,
    size: 30_720,
    treehash: sha256("x"),
    created: "2026-01-31T04:00:00.000Z",
    members: [
      { path: "backup-header", start: 0, length: 10_240, size: 119 },
      { path: "backup-header.hmac", start: 10_240, length: 20_480, size: 247 },
    ],
  };
  it("what differs in a manifest is named", () => {
    assert.isUndefined(manifestDiffers(manifest, manifest));
    assert.strictEqual(manifestDiffers(manifest, { ...manifest, size: 1 }), "size");
    assert.strictEqual(
      manifestDiffers(manifest, { ...manifest, treehash: sha256("y") }),
      "treehash",
    );
    assert.strictEqual(
      manifestDiffers(manifest, { ...manifest, members: manifest.members.slice(1) }),
      "members",
    );
    assert.strictEqual(
      manifestDiffers(manifest, {
        ...manifest,
        members: manifest.members.map((m) => ({ ...m, size: 1 })),
      }),
      "members",
    );
  });
  it("a receipt is for one manifest's text, byte for byte", () => {
    const text = JSON.stringify(manifest);
    const receipt = {
      version: 1 as const,
      name,
      session,
      size: 30_720,
      treehash: manifest.treehash,
      manifest: sha256(text),
      stored: "2026-01-31T04:01:00.000Z",
    };
    assert.isUndefined(receiptDiffers(receipt, text));
    assert.strictEqual(receiptDiffers(receipt, ` ${text}`), "manifest");
    for (const field of ["size", "treehash", "session", "name"] as const) {
      assert.strictEqual(receiptDiffers({ ...receipt, [field]: "other" }, text), field);
    }
    for (const bad of [
      "",
      "{}",
      JSON.stringify({ ...manifest, version: 2 }),
      JSON.stringify({ ...manifest, members: [{}] }),
      JSON.stringify({ ...manifest, created: "2026-13-45T04:00:00Z" }),
      JSON.stringify({ ...manifest, created: "2026-01-31T04:00:00+02:00" }),
    ]) {
      assert.isUndefined(parseManifest(bad), bad);
    }
  });
  it("a trailer's text has bytes", () => {
    const trailer = (manifest: string) =>
      parseTrailer(JSON.stringify({ manifest, signature: null }));
    for (const text of ["", "a \u{1f600} b"]) assert.strictEqual(trailer(text)?.manifest, text);
    for (const half of ["\ud83d", "\ude00", "\ude00\ud83d"]) {
      assert.isUndefined(trailer(`a ${half} b`));
    }
  });

  const receipt: Receipt = {
    version: 1,
    name,
    session,
    size: 30_720,
    treehash: manifest.treehash,
    manifest: sha256("x"),
    stored: "2026-01-31T04:01:00.000Z",
  };
  const parseMember = (text: string) =>
    parseManifest(JSON.stringify(manifest).replace(/"members":.*$/, `"members":[${text}]}`));
  it("a SHA-256 is of the UTF-8, in hex", () => {
    assert.strictEqual(
      sha256("abc"),
      "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    );
    assert.strictEqual(sha256("é"), sha256("\u00e9"));
  });
  it.each([
    ["a manifest", parseManifest, manifest],
    ["a receipt", parseReceipt, receipt],
    ["a trailer", parseTrailer, { manifest: "{}", signature: null }],
    [
      "a record",
      parseRecord,
      {
        manifest: "{}",
        signature: "x",
        receipt: "{}",
        receiptSignature: key.sign("{}"),
      },
    ],
    ["a member", parseMember, manifest.members[0]!],
  ] as const)("%s has all of its fields, each of its kind", (_, parse, whole) => {
    assert.isDefined(parse(JSON.stringify(whole)));
    for (const field of Object.keys(whole)) {
      for (const value of [undefined, {}, -1, true]) {
        assert.isUndefined(parse(JSON.stringify({ ...whole, [field]: value })), field);
      }
    }
    assert.isUndefined(parse("nonsense"));
    assert.isUndefined(parse("null"));
  });
  it("a form of another version is none", () => {
    for (const version of [0, 2]) {
      assert.isUndefined(parseManifest(JSON.stringify({ ...manifest, version })));
      assert.isUndefined(parseReceipt(JSON.stringify({ ...receipt, version })));
    }
    assert.deepStrictEqual(parseManifest(JSON.stringify(manifest)), manifest);
    assert.deepStrictEqual(parseReceipt(JSON.stringify(receipt)), receipt);
  });
  it("a record of an archive that nobody vouched for says what the server counted", () => {
    const bare = { manifest: null, signature: null, receipt: null, receiptSignature: null };
    const read = (more: object) => parseRecord(JSON.stringify({ ...bare, ...more }));
    assert.deepStrictEqual(read({}), bare);
    const counted = { size: 5, treehash: sha256("x"), stored: "2026-01-31T04:01:00Z" };
    assert.deepStrictEqual(read(counted), { ...bare, ...counted });
    for (const field of Object.keys(counted)) {
      for (const value of [null, -1, "x"]) {
        assert.isUndefined(read({ ...counted, [field]: value }), field);
      }
    }
    assert.isUndefined(read({ receiptSignature: "x" }));
  });
  it("every difference of a manifest is named: each field, each member's", () => {
    const others: Partial<Manifest> = {
      name: "other" as Name,
      session: "f".repeat(32) as Session,
      server: key.sign("x"),
      size: 1,
      treehash: sha256("y"),
    };
    for (const [field, value] of Object.entries(others)) {
      assert.strictEqual(manifestDiffers(manifest, { ...manifest, [field]: value }), field);
    }
    // When it was made is what only its writer can say.
    assert.isUndefined(manifestDiffers(manifest, Object.assign({ ...manifest }, { created: "" })));
    for (const i of [0, 1]) {
      for (const [field, value] of Object.entries({ path: "x", start: 7, length: 7, size: 7 })) {
        const members = manifest.members.map((m, j) => (i === j ? { ...m, [field]: value } : m));
        assert.strictEqual(manifestDiffers(manifest, { ...manifest, members }), "members", field);
      }
    }
    for (const members of [
      [],
      manifest.members.slice(1),
      manifest.members.slice(0, 1),
      [...manifest.members, manifest.members[0]!],
    ]) {
      assert.strictEqual(manifestDiffers(manifest, { ...manifest, members }), "members");
    }
  });
  it("a receipt for a text that is no manifest is for none", () => {
    assert.strictEqual(receiptDiffers({ ...receipt, manifest: sha256("{}") }, "{}"), "manifest");
  });
  it("a path has 256 characters, a manifest 65,536 members", () => {
    const path = (n: number) =>
      parseManifest(
        JSON.stringify({ ...manifest, members: [{ ...manifest.members[0], path: "p".repeat(n) }] }),
      );
    assert.isDefined(path(256));
    assert.isUndefined(path(257));
    assert.strictEqual(memberLimit, 65_536);
    const many = (n: number) =>
      parseManifest(
        JSON.stringify({
          ...manifest,
          members: Array.from({ length: n }, () => manifest.members[0]),
        }),
      );
    assert.lengthOf(many(65_536)!.members, 65_536);
    assert.isUndefined(many(65_537));
  });
  it("so many brackets are not even looked at, whatever they stand in", () => {
    const most = memberLimit + 64;
    for (const bracket of ["[", "{"]) {
      // The trailer's own brace is one of them.
      const read = (n: number) =>
        parseTrailer(JSON.stringify({ manifest: bracket.repeat(n), signature: null }));
      assert.isDefined(read(most - 1), bracket);
      assert.isUndefined(read(most), bracket);
    }
    const others = "]}()<>".repeat(most);
    assert.isDefined(parseTrailer(JSON.stringify({ manifest: others, signature: null })));
  });
});
