/**
 * The stand-in's qvm-backup-restore, against what the genuine one was seen to do with damaged archives,
 * with names that are taken, and with qubes that need others.
 */
import * as child_process from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { buildStandin } from "#test/standin/build";
import { imageOf, makeWorld, temporaryDirectory, writeImage } from "#test/standin/world";
import type { Fault, QubeSpec, World } from "#test/standin/world";
import { unless, without } from "#test/support/unless";

const top = temporaryDirectory();
const program = path.join(top, "standin");
const passphraseFile = path.join(top, "passphrase");
const worlds: Array<World> = [];

beforeAll(async () => {
  fs.writeFileSync(passphraseFile, "correct horse\n");
  await buildStandin(program);
});
afterEach(() => {
  for (const world of worlds.splice(0)) world.stop();
});
afterAll(() => fs.rmSync(top, { recursive: true, force: true }));

const KiB = 1024;
const long = "a-name-of-thirty-and-some-characters";
const network: QubeSpec = { name: "net", size: 8 * KiB, providesNetwork: true };
const work: QubeSpec = { name: "work", size: 256 * KiB, netvm: "net" };

let count = 0;
const world = (...qubes: ReadonlyArray<QubeSpec>): World => {
  const dir = path.join(top, `world-${count++}`);
  const made = makeWorld({ dir, qubes, program, settings: { chunkSize: 64 * KiB } });
  worlds.push(made);
  return made;
};

const run = (of: World, tool: string, ...args: ReadonlyArray<string>) => {
  const options = { env: of.env, encoding: "utf8" as const };
  const ran = child_process.spawnSync(path.join(of.bin, tool), args, options);
  return { code: ran.status, stdout: ran.stdout, stderr: ran.stderr };
};

/** Backs up all qubes but templates. */
const backup = (of: World, ...faults: ReadonlyArray<Omit<Fault, "tool">>): string => {
  of.faults(...faults.map((fault) => ({ ...fault, tool: "qvm-backup" })));
  const to = path.join(of.dir, "archive");
  const args = ["-y", "--no-compress", "-x", "dom0", "-p", passphraseFile, to];
  expect(run(of, "qvm-backup", ...args).code).toBe(0);
  return to;
};
const restore = (of: World, archive: string, ...args: ReadonlyArray<string>) =>
  run(of, "qvm-backup-restore", "-p", passphraseFile, ...args, archive);

/** Whether a volume came back, byte for byte. */
const cameBack = (of: World, to: World, name: string, as = name): boolean => {
  const file = path.join(to.dir, "restored", as, "private.img");
  if (!fs.existsSync(file)) return false;
  const image = path.join(top, "image");
  writeImage(imageOf({ name }, "private", of.qube(name).volumes["private"]!), image);
  return fs.readFileSync(file).equals(fs.readFileSync(image));
};

describe("qvm-backup-restore", { timeout: 20_000 }, () => {
  it("renames to NAME-1, cuts long names, and then looks for a netvm of the new name", () => {
    const w = world(network, work, { name: long, size: 8 * KiB });
    const archive = backup(w);
    const all = restore(w, archive, "--rename-conflicting");
    expect(all.code).toBe(0);
    const cut = long.slice(0, 29);
    const table = all.stdout.split("\n");
    for (const [name, as] of [
      ["work", "work-1"],
      ["net", "net-1"],
      [long, cut],
    ] as const) {
      const row = table.find((each) => each.includes(` ${name} |`));
      expect(row).toMatch(new RegExp(` <-- Will be renamed to '${as}'$`));
      expect(cameBack(w, w, name, as), as).toBe(true);
    }
    expect(all.stderr).not.toContain("netvm");
    // The netvm is in the backup and here, but what is looked for is neither.
    const one = child_process.spawnSync(
      path.join(w.bin, "qvm-backup-restore"),
      ["-p", passphraseFile, "--rename-conflicting", archive, "work"],
      { env: w.env, encoding: "utf8" },
    );
    expect(one.status).toBe(0);
    expect(one.stderr).toContain(
      "qubesadmin.backup: Error setting work.netvm to net-1: Can't set netvm to non-existing qube net-1\n",
    );
  });

  it("makes qubes with their tags and data, where the world keeps what is restored", () => {
    const w = world(network, { ...work, tags: ["mine"] });
    const archive = backup(w);
    const { settings } = w.state();
    const file = path.join(w.dir, "qubes.json");
    const state = JSON.parse(fs.readFileSync(file, "utf8"));
    fs.writeFileSync(
      file,
      JSON.stringify({ ...state, settings: { ...settings, keepsRestored: true } }),
    );
    expect(restore(w, archive, "--verify-only").code).toBe(0);
    expect(w.state().qubes.some(({ name }) => name === "work-1")).toBe(false);
    expect(restore(w, archive, "--rename-conflicting").code).toBe(0);
    const { tags, volumes } = w.qube("work-1");
    expect(tags).toEqual(w.qube("work").tags.toSorted());
    const image = path.join(w.dir, "image");
    writeImage(imageOf({ name: "work" }, "private", w.qube("work").volumes["private"]!), image);
    expect(fs.readFileSync(volumes["private"]!.file!).equals(fs.readFileSync(image))).toBe(true);
    // The next one finds that name taken.
    expect(restore(w, archive, "--rename-conflicting").stdout).toContain("renamed to 'work-2'");
  });

  it("wants to be told of a filter that it does not know", unless(without("pzstd")), () => {
    const w = world(network, work);
    const archive = path.join(w.dir, "archive");
    const args = ["-y", "-Z", "pzstd", "-x", "dom0", "-p", passphraseFile, archive];
    expect(run(w, "qvm-backup", ...args).code).toBe(0);
    const refused = restore(w, archive, "--verify-only");
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(
      "Unusual compression filter 'pzstd' found. Use --compression-filter=pzstd to use it anyway.\n",
    );
    expect(restore(w, archive, "--verify-only", "-Z", "pzstd").code).toBe(0);
  });

  it("finds a netvm that is here, wants one that is missing, or does without it", () => {
    const w = world(network, work);
    const archive = backup(w);
    const other = world({ ...network, providesNetwork: false });
    const missing = restore(other, archive, "--skip-conflicting", "-x", "net");
    expect(missing.code).toBe(1);
    expect(missing.stderr).toContain("*** One or more NetVMs are missing on the host! ***");
    const ignored = restore(other, archive, "--ignore-missing", "-x", "net");
    expect([ignored.code, ignored.stdout]).toEqual([0, expect.stringContaining("(default)")]);
    const there = world(network);
    expect(restore(there, archive, "-x", "net").stderr).not.toContain("netvm");
  });

  it("does not find a qube that is wholly missing: an error to --verify-only, else a line of its log", () => {
    const w = world(network, work);
    const archive = backup(w, { kind: "missing-qube", vm: "work" });
    const fresh = world({ name: "other" });
    const text =
      "unable to read the qubes backup file " +
      `${archive} (2): b'tar: QUBE: Not found in archive\\ntar: Exiting with failure status due to previous errors\\n'`;
    const qid = w.qube("work").qid;
    const verified = restore(fresh, archive, "--verify-only");
    expect(verified.code).toBe(1);
    expect(verified.stderr).toContain(
      `qvm-backup-restore: error: ${text.replace("QUBE", `vm${qid}`)}\n`,
    );
    const restored = restore(fresh, archive);
    expect(restored.code).toBe(0);
    expect(restored.stderr).toContain(
      `qubesadmin.backup: Error extracting data: ${text.replace("QUBE", `vm${qid}`)}\n`,
    );
    expect(cameBack(w, fresh, "net")).toBe(true);
  });

  it.each([
    ["gap", /Unexpected file in archive: .*private\.img\.002, expected .*private\.img\.001\n/],
    ["missing-member", /unable to extract files for .*private\.img\.003, tar output:\n/],
  ] as const)("%s: verified without a word, and restored with exit 0 and a log", (kind, text) => {
    const w = world(work, network);
    const qid = w.qube("work").qid;
    const member = kind === "gap" ? "001" : "004";
    const archive = backup(w, { kind, member: `vm${qid}/private.img.${member}.enc` });
    const fresh = world({ name: "other" });
    expect(restore(fresh, archive, "--verify-only").code).toBe(0);
    const restored = restore(fresh, archive);
    expect(restored.code).toBe(0);
    expect(restored.stderr).toMatch(text);
    expect(cameBack(w, fresh, "work")).toBe(false);
    expect(cameBack(w, fresh, "net")).toBe(true);
  });
});
