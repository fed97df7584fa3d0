/** What vitest prints last: each test and each group that was skipped, by its reason. */
import "./unless.ts";
import type { Reporter, TestCase, TestModule, TestSuite, Vitest } from "vitest/node";

interface Skipped {
  /** Undefined where the test says none. */
  readonly reason: string | undefined;
  readonly name: string;
}

/** A group is one entry, if it says why itself; all others are told test by test. */
const within = (
  parent: TestModule | TestSuite,
  above: string,
  asked: (test: TestCase) => boolean,
): ReadonlyArray<Skipped> =>
  [...parent.children].flatMap((task: TestCase | TestSuite): ReadonlyArray<Skipped> => {
    const name = `${above} > ${task.name}`;
    const reason = task.meta().skipped;
    if (task.type === "test") {
      const result = task.result();
      // Those of a group whose preparation failed count as skipped too, but that is a failure.
      const told = result.state === "skipped" ? (reason ?? result.note) : undefined;
      const skipped = told !== undefined || task.options.mode === "skip";
      return skipped && asked(task) ? [{ reason: told, name }] : [];
    }
    if (reason === undefined || task.options.mode !== "skip") return within(task, name, asked);
    const tests = [...task.children.allTests()].filter(asked).length;
    if (tests === 0) return [];
    return [{ reason, name: `${name} (${tests === 1 ? "1 test" : `${tests} tests`})` }];
  });

const grouped = <Key, Item>(
  items: Iterable<Item>,
  keyOf: (item: Item) => Key,
): Map<Key, Array<Item>> => {
  const groups = new Map<Key, Array<Item>>();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return groups;
};
// vitest runs on the system's node 20 too (`npm test` brings a later one), but cannot show there what
// failed: this is all that it lacks.
if (!("groupBy" in Map)) Object.assign(Map, { groupBy: grouped });

export class SkippedReporter implements Reporter {
  #vitest: Vitest | undefined;

  onInit(vitest: Vitest): void {
    this.#vitest = vitest;
  }

  onTestRunEnd(modules: ReadonlyArray<TestModule>): void {
    // With -t, vitest calls all skipped that was not asked for, and that is no news.
    const pattern = this.#vitest?.config.testNamePattern;
    const asked = ({ fullName }: TestCase) =>
      pattern?.test(fullName.replaceAll(" > ", " ")) ?? true;
    const skipped = modules.flatMap((each) => within(each, each.relativeModuleId, asked));
    const lines = [...grouped(skipped, ({ reason }) => reason ?? "no reason is given")]
      .sort(([one], [other]) => (one < other ? -1 : 1))
      .flatMap(([reason, all]) => [`  ${reason}:`, ...all.map(({ name }) => `    ${name}`)]);
    const text = lines.length === 0 ? "Skipped: nothing" : `Skipped:\n${lines.join("\n")}`;
    this.#vitest?.logger.log(`${text}\n`);
  }
}
