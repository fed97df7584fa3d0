/** `table`: one pack's, behind a first line and before a last one. */
import { it } from "@effect/vitest";
import { answers, needs, refuses, writes } from "#test/support/form";

const session = "0123456789abcdef0123456789abcdef";

it("is asked for by session", () => {
  writes("table", { session }, session);
  needs("table", { session });
  refuses("table", "bad-request", "", " ", ` ${session} x`, ` ${session} `, ` ${session.slice(1)}`);
  refuses("table", "bad-request", " a.backup", ` ${session.toUpperCase()}`);
});
it("is answered with ready and end", () => answers("table", [{ type: "ready" }, { type: "end" }]));
