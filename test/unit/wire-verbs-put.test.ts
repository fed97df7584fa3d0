/** `put`: a ticket's words and its signature; what is said until the archive is stored. */
import { assert, it } from "@effect/vitest";
import { parseCommand } from "#src/wire/request";
import { answers, needs, refuses, writes } from "#test/support/form";
import { vectors } from "#test/support/vectors";

const { command, line } = vectors.requests.find(({ verb }) => verb === "put")!;
const words = command.split(" ").slice(2);
const parameters = JSON.parse(line) as { readonly [key: string]: unknown };
const [name, session] = words as [string, string];

it("is asked for with the words of a ticket, and its signature behind them", () => {
  writes("put", parameters, ...words);
  const based = [...words.slice(0, 2), "ab".repeat(16), ...words.slice(3)];
  writes("put", { ...parameters, base: "ab".repeat(16) }, ...based);
  needs("put", parameters);
  needs("put", { ...parameters, base: "ab".repeat(16) });
  words.forEach((_, i) => {
    const code = i === 0 ? "bad-name" : "bad-request";
    for (const bad of ["", "../x", "-1", "+0", ".", ...(i === 0 ? [] : ["00"])]) {
      const others = words.map((word, j) => ` ${i === j ? bad : word}`);
      refuses("put", code, others.join(""));
    }
    const less = words.filter((__, j) => i !== j).map((word) => ` ${word}`);
    refuses("put", "bad-request", less.join(""));
  });
  refuses("put", "bad-request", "", ` ${words.join(" ")} x`, ` ${words.join(" ")} `);
  refuses("put", "bad-name", " ", " .ssh/authorized_keys", ` "${name}" ${session}`);
});
it("the seed's words are none of it", () => {
  const parsed = parseCommand(`qbackup/1 put ${name} ${session}`);
  assert.isTrue(
    "refusal" in parsed && parsed.refusal.message === "the words after put are not what it takes",
  );
});
it("is answered with where to go on, with what is safe, and with the receipt", () => {
  const running = "ab".repeat(32);
  const { signature } = vectors.texts[2]!;
  answers("put", [
    { type: "ready", offset: 0, running },
    { type: "ack", offset: 2 ** 53 - 1, running },
    { type: "stored", receipt: "r", signature },
  ]);
});
