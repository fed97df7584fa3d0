/** `about`: with a series or without, and what the server says of itself. */
import { assert, it } from "@effect/vitest";
import { signerLimit } from "#src/wire/limits";
import { parseReply } from "#src/wire/request";
import { answers, needs, refuses, writes } from "#test/support/form";
import { vectors } from "#test/support/vectors";

const [signer, server] = vectors.keys.map((key) => key.public) as [string, string];
const series = "laptop-6656ed44406d8895";
const { signature, text } = vectors.texts[0]!;
const whole = {
  type: "about",
  version: "1.0.0",
  server,
  signers: ["ab".repeat(32)],
  quota: 5,
  room: 4,
  reserved: 5,
  clock: "2026-11-28T03:00:00Z",
  confined: "qbackup-shell",
  ticket: { text, signature },
};
const read = (more: object) => parseReply("about", JSON.stringify({ ...whole, ...more }));

it("asks for nothing, or for the highest ticket of a signer and series", () => {
  writes("about", {});
  writes("about", { of: { signer, series } }, signer, series);
  needs("about", { of: { signer, series } }, ["of"]);
  for (const of of [{ signer }, { series }, { signer: series, series }, { signer, series: signer }])
    assert.throws(() => needs("about", { of }, ["of"]));
  refuses(
    "about",
    "bad-request",
    " ",
    ` ${signer}`,
    ` ${signer} ${series} x`,
    ` ${series} ${signer}`,
  );
  refuses("about", "bad-request", ` ${signer} `, ` ${signer} x`, ` x ${series}`);
});

it("the server says all of it, or null where there is nothing to say", () => {
  answers("about", [whole]);
  for (const field of ["signers", "quota", "confined", "ticket"])
    assert.isDefined(read({ [field]: null }), field);
  for (const field of ["version", "server", "room", "reserved", "clock"])
    assert.isUndefined(read({ [field]: null }), field);
  for (const ticket of [{ text }, { signature }, { text: 1, signature }, { text, signature: text }])
    assert.isUndefined(read({ ticket }));
  assert.isUndefined(read({ signers: ["AB".repeat(32)] }));
  assert.isUndefined(read({ clock: "yesterday" }));
});

it("as long as it may be, and no longer", () => {
  const chars = (n: number) => "x".repeat(n);
  for (const [most, more] of [
    [64, (n: number) => ({ version: chars(n) })],
    [200, (n: number) => ({ confined: chars(n) })],
    [2048, (n: number) => ({ ticket: { text: chars(n), signature } })],
    [signerLimit, (n: number) => ({ signers: Array.from({ length: n }, () => "ab".repeat(32)) })],
  ] as const) {
    assert.isDefined(read(more(most)));
    assert.isUndefined(read(more(most + 1)), String(most));
  }
  assert.isDefined(read({ signers: [] }));
});
