/** Members in the order of a recipe, read out of tables that are longer than what is held of them. */
import { assert, describe, it } from "@effect/vitest";
import { Effect } from "effect";
import { Disk, memorySafeFs } from "#layers/memory/MemorySafeFs";
import { type Directory, SafeFs, type SafeFsError } from "#services/SafeFs";
import { parseRun } from "#src/proof/recipe";
import type { Refused } from "#src/store/failure";
import { members, recipeOf } from "#src/store/tables";
import { Session } from "#src/wire/names";
import { rng } from "#test/support/random";
import { sha256, spread, tableLine } from "#test/support/reference";
import { sessionOf } from "#test/support/shell";
import { ontoDisk } from "#test/support/stores";

/** More tables than are held open, of more lines than are held of one. */
const packs = 40;
const lengths = Array.from({ length: packs }, (_, n) => (n % 4 === 0 ? 3000 : 1 + n));
const lines = lengths.map((length, n) =>
  Array.from({ length }, (_, i) =>
    tableLine(
      { path: `vm${n + 1}/${"x".repeat((i * 7) % 60)}.${i}`, size: i, length: 512 * (i + 1) },
      sha256(`${n} ${i}`).toString("hex"),
    ),
  ),
);
interface Place {
  readonly root: Directory;
  readonly disk: Disk;
}
const inStore = <A, E>(work: (at: Place) => Effect.Effect<A, E>) => {
  const disk = new Disk();
  const write = ontoDisk(disk);
  lines.forEach((table, n) =>
    write(`.qbackup/tables/${sessionOf(n)}`, Buffer.from(table.join(""))),
  );
  return Effect.gen(function* () {
    const root = yield* (yield* SafeFs).root(undefined);
    return yield* work({ root, disk });
  }).pipe(Effect.scoped, Effect.provide(memorySafeFs(disk)));
};
const runsOf = (text: string) =>
  text
    .split("\n")
    .slice(0, -1)
    .map((line) => parseRun(line)!);
const codeOf = (error: Refused | SafeFsError | undefined) =>
  error?._tag === "Refused" ? error.code : undefined;

describe("members", () => {
  it.effect("come in the order of the recipe, wherever they lie", () =>
    inStore((at) =>
      Effect.gen(function* () {
        const random = rng(1);
        const below = (n: number) => Math.floor(random.next() * n);
        for (let times = 0; times < 20; times++) {
          const recipe = Array.from({ length: 100 }, () => {
            const n = below(packs);
            const first = below(lengths[n]!);
            return `${sessionOf(n)} ${first} ${1 + below(Math.min(200, lengths[n]! - first))}\n`;
          }).join("");
          const found: Array<string> = [];
          const places: Array<readonly [string, number]> = [];
          yield* members(at, runsOf(recipe), (member, line, session, index) => {
            assert.isTrue(line.startsWith(`${member.path} ${member.size} ${member.length} `));
            found.push(`${line}\n`);
            places.push([session, index]);
            return undefined;
          });
          const wanted = spread(recipe);
          assert.deepStrictEqual(places, wanted);
          const right = wanted.map(
            ([session, index]) => lines[Number.parseInt(session, 16)]![index],
          );
          assert.deepStrictEqual(found, right);
        }
      }),
    ),
  );

  it.effect("end where what is given them says so", () =>
    inStore((at) =>
      Effect.gen(function* () {
        let seen = 0;
        const ended = yield* Effect.flip(
          members(at, runsOf(`${sessionOf(0)} 0 100\n`), () =>
            ++seen === 3 ? "enough" : undefined,
          ),
        );
        assert.deepStrictEqual([ended, seen], ["enough", 3]);
      }),
    ),
  );

  it.effect("that a table has not, and tables that are none or not there, are told apart", () =>
    inStore((at) =>
      Effect.gen(function* () {
        const write = ontoDisk(at.disk);
        const failure = (text: string) =>
          Effect.map(Effect.flip(members(at, runsOf(text), () => undefined)), codeOf);
        assert.strictEqual(yield* failure(`${sessionOf(0)} 2999 2\n`), "damaged");
        assert.strictEqual(yield* failure(`${sessionOf(99)} 0 1\n`), "not-found");
        for (const text of [
          "",
          "x\n",
          "x".repeat(200),
          lines[0]!.slice(0, 9).join("").slice(0, -1),
        ]) {
          write(`.qbackup/tables/${sessionOf(50)}`, Buffer.from(text));
          assert.strictEqual(yield* failure(`${sessionOf(50)} 0 1\n`), "damaged", text);
        }
      }),
    ),
  );

  it.effect("are named by a recipe, which is whole or none", () =>
    inStore((at) =>
      Effect.gen(function* () {
        const write = ontoDisk(at.disk);
        const session = Session.make(sessionOf(1));
        const failure = Effect.map(Effect.flip(recipeOf(at, session)), codeOf);
        assert.strictEqual(yield* failure, "not-found");
        const long = Array.from({ length: 5000 }, (_, i) => `${sessionOf(i % 7)} ${i} ${1 + i}\n`);
        // More members than an archive can have.
        const much = `${sessionOf(1)} 0 1048576\n${sessionOf(1)} 0 1\n`;
        for (const text of ["", "\n", "x 0 1\n", `${sessionOf(1)} 0 1`, `${long[0]}\n`, much]) {
          write(`.qbackup/recipes/${session}`, Buffer.from(text));
          assert.strictEqual(yield* failure, "damaged", JSON.stringify(text));
        }
        write(`.qbackup/recipes/${session}`, Buffer.from(long.slice(0, 1400).join("")));
        assert.deepStrictEqual(
          [...(yield* recipeOf(at, session))],
          runsOf(long.slice(0, 1400).join("")),
        );
      }),
    ),
  );
});
