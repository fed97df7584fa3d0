/** `check`: one archive, and what the server counted of it. */
import { it } from "@effect/vitest";
import { answers, needs, refuses, writes } from "#test/support/form";

it("is asked for by name", () => {
  writes("check", { name: "a/b.backup" }, "a/b.backup");
  needs("check", { name: "a.backup" });
  refuses("check", "bad-name", " ", " ../x", " .a", " a.manifest.json");
  refuses("check", "bad-request", "", " a.backup x", " a.backup ");
});
it("is answered with size, members and root", () =>
  answers("check", [{ type: "checked", size: 5, members: 3, root: "ab".repeat(32) }]));
