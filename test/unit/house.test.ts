/** The house rules, as text: who may import whom, and who may touch the world. */
import { assert, it } from "@effect/vitest";
import * as fs from "node:fs";
import * as path from "node:path";

/** The first line whose pattern matches the file decides. Entrypoints are the files directly in src/. */
const rules: ReadonlyArray<readonly [files: RegExp, mayImport: RegExp]> = [
  [
    /^src\/(wire|archive)\//,
    /^(effect$|node:crypto$|#services\/Bytes$|#src\/(wire|archive)\/|\.\/)/,
  ],
  [/^services\//, /^(effect$|#src\/(wire|archive)\/|#services\/|\.\/)/],
  [/^src\/[^/]+\//, /^(effect(?!\/(process|testing))|node:util$|#services\/|#src\/|\.\/)/],
  [
    /^(layers\/|src\/[^/]+\.ts$)/,
    /^(effect|@effect\/platform-node|node:|#services\/|#src\/(wire|archive)\/|#layers\/|\.\/)/,
  ],
  [/^test\//, /./],
];
/** Besides that, an entrypoint imports the program that it assembles. */
const entrypoint = /^src\/([^/]+)\.ts$/;
const imports = /^(?:import|export)\s+(?:[\w\s*{},$]+?\s+from\s+)?"([^"]+)"/gm;
const worldly =
  /\bprocess\.|\bDate\.now|Math\.random|set(Timeout|Immediate|Interval)\(|\bconsole\./;

const files = ["src", "services", "layers"]
  .flatMap((dir) =>
    fs.readdirSync(dir, { recursive: true, encoding: "utf8" }).map((f) => path.join(dir, f)),
  )
  .filter((file) => file.endsWith(".ts"));

it.each(files)("%s keeps the house rules", (file) => {
  const text = fs.readFileSync(file, "utf8");
  const rule = rules.find(([pattern]) => pattern.test(file));
  assert.isDefined(rule, `${file} lies where no rule is`);
  const own = entrypoint.exec(file)?.[1];
  for (const [, to] of text.matchAll(imports)) {
    if (own !== undefined && to!.startsWith(`#src/${own}/`)) continue;
    assert.match(to!, rule![1], `${file} imports ${to}`);
  }
  if (!file.startsWith("layers/") && own === undefined) assert.notMatch(text, worldly);
});

it("an entrypoint is layers and the run of a program, no more", () => {
  for (const file of files.filter((f) => entrypoint.test(f))) {
    assert.isAtMost(fs.readFileSync(file, "utf8").trimEnd().split("\n").length, 30, file);
  }
});
