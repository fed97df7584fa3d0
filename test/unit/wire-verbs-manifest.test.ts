/** `manifest`: what was signed for one archive. */
import { it } from "@effect/vitest";
import { answers, needs, refuses, writes } from "#test/support/form";
import { vectors } from "#test/support/vectors";

const { signature } = vectors.texts[1]!;

it("is asked for by name", () => {
  writes("manifest", { name: "a/b.backup" }, "a/b.backup");
  needs("manifest", { name: "a.backup" });
  refuses("manifest", "bad-name", " ", " ../x", " .a", " a.manifest.json");
  refuses("manifest", "bad-request", "", " a.backup x", " a.backup ");
});
it("is answered with both texts and both signatures", () =>
  answers("manifest", [
    { type: "manifest", manifest: "m", signature, receipt: "r", receiptSignature: signature },
  ]));
