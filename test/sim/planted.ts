/**
 * Faults that somebody could make one day, planted to see that the simulation finds them. Each is a
 * change of the source text, made in a copy of it: the programs themselves have no hooks for tests.
 */
import { execFile } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";

interface Change {
  readonly file: string;
  readonly from: string;
  readonly to: string;
}
export interface Planted {
  readonly name: string;
  readonly changes: ReadonlyArray<Change>;
  /** Stories within which it is found. */
  readonly within: number;
}

const one = (name: string, within: number, file: string, from: string, to = ""): Planted => ({
  name,
  within,
  changes: [{ file, from, to }],
});

export const planted: ReadonlyArray<Planted> = [
  one(
    "acknowledged before the data is flushed",
    1200,
    "src/store/upload.ts",
    "yield* data.sync;\n        yield* digests.write",
    "yield* digests.write",
  ),
  one(
    "acknowledged before the digests are flushed",
    1200,
    "src/store/upload.ts",
    "yield* digests.sync;\n        if (!rooted)",
    "if (!rooted)",
  ),
  one(
    "acknowledged before the upload has a name on disk",
    400,
    "src/store/upload.ts",
    "for (const directory of [incoming, own, root]) yield* directory.sync;\n          rooted",
    "rooted",
  ),
  {
    name: "linked before the data is flushed",
    within: 50,
    changes: [
      { file: "src/store/commit.ts", from: "yield* data.syncAll;", to: "" },
      {
        file: "src/shell/verbs/put.ts",
        from: "yield* upload.flush;\n  const said",
        to: "const said",
      },
    ],
  },
  one(
    "stored before the archive's name is on disk",
    50,
    "src/store/commit.ts",
    "yield* directory.sync.pipe(Effect.tapError(() => Effect.ignore(clear(directory, base))));",
  ),
  one("stored before the record is on disk", 50, "src/store/commit.ts", "yield* file.syncAll;"),
  one(
    "the server believes the manifest",
    50,
    "src/shell/verbs/put.ts",
    "if (difference !== undefined) {",
    'if (difference === "created") {',
  ),
  one(
    "two writers for one session",
    100,
    "src/shell/verbs/put.ts",
    "const { asked } = yield* hold(store, `session:${session}`);",
    "const asked = Effect.never;",
  ),
  one(
    "the receipt is not checked",
    50,
    "src/dom0/verbs/run.ts",
    "yield* checkReceipt(stored, server, manifest);",
  ),
  one(
    "the server's offset is believed",
    300,
    "src/dom0/far/upload.ts",
    "if (offset % blockSize !== 0 || offset < acked || offset > sent) {",
    "if (offset < 0) {",
  ),
  one(
    "the server's key may change",
    300,
    "src/dom0/far/upload.ts",
    "else if (server !== first.server) {",
    "else if (first.server === undefined) {",
  ),
  one(
    "the exit code of qvm-backup is not looked at",
    300,
    "src/dom0/verbs/run.ts",
    "if (ended.code !== 0) {",
    "if (ended.code < 0) {",
  ),
  one(
    "a block leaves the window when it is sent",
    50,
    "src/dom0/far/upload.ts",
    "cursor += block.size;",
    "cursor += block.size;\n        blocks.shift();",
  ),
  one(
    "nothing is noted before the trailer is sent",
    300,
    "src/dom0/verbs/run.ts",
    "remark((mark) => ({ ...mark, submission, backedUp }))",
    "remark((mark) => ({ ...mark, backedUp }))",
  ),
  one(
    "a receipt is not fetched later",
    300,
    "src/dom0/verbs/run.ts",
    "yield* settle(destination, options.startTimeout).pipe(",
    "yield* Effect.void.pipe(",
  ),
  one(
    "the destination qube is left running",
    50,
    "src/dom0/qube/destination.ts",
    "if (started && !options.keepRunning) yield* fromQubes(qubes.shutdown(destination));",
  ),
  one(
    "the server may be silent for ever",
    600,
    "src/shell/voice.ts",
    "} else if (now - since >= silenceLimit) {",
    "} else if (now - since >= 1e15) {",
  ),
  one(
    "a server that is long about it is given up",
    300,
    "src/dom0/far/call.ts",
    'reply?.type === "alive" }',
    'reply?.type === "archive" }',
  ),
];

const root = path.resolve(import.meta.dirname, "../..");

/** A seed whose story finds it, or undefined when none of the first `count` does. */
export const find = async (
  { changes, name }: Planted,
  count: number,
): Promise<{ readonly seed: number; readonly violation: string } | undefined> => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "planted-"));
  try {
    for (const part of ["src", "services", "layers", "test/sim", "test/support", "test/fixtures"]) {
      fs.cpSync(path.join(root, part), path.join(dir, part), { recursive: true });
    }
    fs.copyFileSync(path.join(root, "package.json"), path.join(dir, "package.json"));
    fs.symlinkSync(path.join(root, "node_modules"), path.join(dir, "node_modules"));
    for (const { file, from, to } of changes) {
      const text = fs.readFileSync(path.join(dir, file), "utf8");
      if (text.split(from).length !== 2) {
        throw new Error(`${name}: ${file} does not have once: ${from}`);
      }
      fs.writeFileSync(
        path.join(dir, file),
        text.replace(from, () => to),
      );
    }
    const env = { ...process.env, COUNT: `${count}`, ENOUGH: "1", WORKERS: "1", FROM: "1" };
    delete (env as NodeJS.ProcessEnv)["SEED"];
    const said = await new Promise<string>((done) => {
      // It exits with 1 when it has found something.
      execFile(process.execPath, ["test/sim/main.ts"], { cwd: dir, env }, (_error, out, err) =>
        done(`${out}${err}`),
      );
    });
    const match = /broken with seed (\d+);.*\n {2}(.*)/.exec(said);
    if (match === null && !/stories in/.test(said)) throw new Error(`${name}: ${said}`);
    return match === null ? undefined : { seed: Number(match[1]), violation: match[2]! };
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
};
