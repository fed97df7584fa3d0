/** `recipe`: one archive's, behind a first line and before a last one. */
import { it } from "@effect/vitest";
import { answers, needs, refuses, writes } from "#test/support/form";

it("is asked for by name", () => {
  writes("recipe", { name: "a/b.backup" }, "a/b.backup");
  needs("recipe", { name: "a.backup" });
  refuses("recipe", "bad-name", " ", " ../x", " .a", " a.manifest.json");
  refuses("recipe", "bad-request", "", " a.backup x", " a.backup ");
});
it("is answered with ready and end", () => answers("recipe", [{ type: "ready" }, { type: "end" }]));
