/** The bytes of all members beside the list that says what they are, and beside what their header seals. */
import { assert, describe, it } from "@effect/vitest";
import { backupHeader } from "#src/archive/compose";
import { listedWalk } from "#src/archive/listed";
import { fullChunk } from "#src/archive/walk";
import { archiveMembers, type Members } from "#src/proof/members";
import { archiveOf, scryptOf, slotOf } from "#test/support/archive";
import { linesOf, rootOf, tableOf } from "#test/support/reference";

const session = "a".repeat(32);
const salt = Buffer.alloc(32, 7);
const options = { format: "slots", fullChunk } as const;

/** What a list says that was made of these bytes; `change`d, it is of others. */
const listOf = (bytes: Buffer, change = (table: string) => table): Members => {
  const table = change(tableOf(bytes));
  const members = archiveMembers(linesOf(table).length);
  const recipe = members.recipe();
  assert.isTrue(recipe.push(Buffer.from(`${session} 0 ${members.count}\n`)) && recipe.finish());
  const reader = members.table(members.sessionOf(0));
  assert.isTrue(reader.push(Buffer.from(table)) && reader.finish());
  return members;
};
const paths = ["qubes.xml.000.enc", "vm2/private.img.000.enc", "vm2/private.img.001.enc"];
/** A night of slots, sealed over `over`, which is what it has if nothing is said. */
const night = (run: number, over?: ReadonlyArray<Buffer>): ReadonlyArray<Buffer> => {
  const behind = paths.map((path, i) => slotOf(path, scryptOf(Buffer.alloc(100 + i, run), salt)));
  const seal = rootOf(linesOf(tableOf(Buffer.concat(over ?? behind))));
  const header = backupHeader("20261123T030424-14807", seal, run);
  return [
    slotOf("backup-header", Buffer.from(header)),
    slotOf("backup-header.hmac", scryptOf(Buffer.alloc(119, run), salt)),
    ...behind,
  ];
};
const end = (bytes: Buffer) =>
  Buffer.alloc(Math.ceil((bytes.length + 1024) / 10_240) * 10_240 - bytes.length);

describe.each([1, 7, 512, 4096, 1e9])("in pieces of %d bytes", (size) => {
  /** The first fault, and how many bytes had been given when it was told. */
  const walked = (bytes: Buffer, list: Members) => {
    const walk = listedWalk(options, list);
    for (let at = 0; at < bytes.length; at += size) {
      const wrong = walk.push(bytes.subarray(at, at + size));
      if (wrong !== undefined) return { wrong, walk };
    }
    return { wrong: undefined, walk };
  };

  it("members that are what the list and the seal say", () => {
    const bytes = Buffer.concat(night(7));
    const { walk, wrong } = walked(bytes, listOf(bytes));
    assert.isUndefined(wrong);
    assert.strictEqual(walk.offset(), bytes.length);
    assert.strictEqual(walk.run(), 7);
    assert.isUndefined(walk.push(end(bytes)));
    assert.isUndefined(walk.finish());
  });

  it("a member that the list calls something else, or does not have", () => {
    const right = night(7);
    const list = listOf(Buffer.concat(right));
    const other = slotOf("vm3/private.img.001.enc", scryptOf(Buffer.alloc(102, 7), salt));
    const smaller = slotOf(paths[2]!, scryptOf(Buffer.alloc(101, 7), salt));
    const longer = slotOf(paths[2]!, scryptOf(Buffer.alloc(1000, 7), salt));
    for (const [last, path] of [
      [other, "vm3/private.img.001.enc"],
      [smaller, paths[2]],
      [longer, paths[2]],
    ] as const) {
      const { walk, wrong } = walked(Buffer.concat([...right.slice(0, 4), last]), list);
      assert.include(wrong, `${path} is not what the list of members has there`);
      assert.strictEqual(walk.finish(), wrong);
    }
    const more = slotOf("vm2/private.img.002.enc", scryptOf(Buffer.alloc(9, 7), salt));
    assert.include(
      walked(Buffer.concat([...right, more]), list).wrong,
      "vm2/private.img.002.enc is not what the list of members has there",
    );
  });

  it("a list that is not what the header seals, which is told before anything behind the header", () => {
    const bytes = Buffer.concat(night(7, night(8).slice(2)));
    const { walk, wrong } = walked(bytes, listOf(bytes));
    assert.strictEqual(
      wrong,
      "its members are not those that it was sealed with: some are missing, changed, or of another night",
    );
    if (size < 512) assert.isBelow(walk.offset(), 2048);
    // Nor is it believed later.
    assert.strictEqual(walk.push(Buffer.alloc(0)), wrong);
  });
});

it("all have come by with the last byte of the last one, and not before", () => {
  const bytes = Buffer.concat(night(7));
  const walk = listedWalk(options, listOf(bytes));
  assert.isFalse(walk.through());
  assert.isUndefined(walk.push(bytes.subarray(0, -1)));
  assert.isFalse(walk.through());
  assert.isUndefined(walk.push(bytes.subarray(-1)));
  assert.isTrue(walk.through());
});

it("the root is worked out once", () => {
  const bytes = Buffer.concat(night(7));
  const list = listOf(bytes);
  const asked: Array<number | undefined> = [];
  const walk = listedWalk(options, {
    ...list,
    root: (from) => {
      asked.push(from);
      return list.root(from);
    },
  });
  for (let at = 0; at < bytes.length; at += 100) walk.push(bytes.subarray(at, at + 100));
  assert.deepStrictEqual(asked, [2]);
});

it("says where the fault is, and that the bytes ended too early", () => {
  const right = night(7);
  const bytes = Buffer.concat(right);
  const other = slotOf("vm3/private.img.001.enc", scryptOf(Buffer.alloc(102, 7), salt));
  const before = Buffer.concat(right.slice(0, 4));
  const walk = listedWalk(options, listOf(bytes));
  assert.strictEqual(
    walk.push(Buffer.concat([before, other])),
    `vm3/private.img.001.enc is not what the list of members has there (at byte ${before.length + 512})`,
  );
  const cut = listedWalk(options, listOf(bytes));
  assert.isUndefined(cut.push(bytes.subarray(0, -600)));
  assert.isDefined(cut.finish());
});

it("an archive of qvm-backup's has no seal", () => {
  const bytes = archiveOf({ seed: 3, files: [{ path: "vm2/private.img", size: 9 }] });
  const walk = listedWalk({ ...options, format: "qvm-backup" }, listOf(bytes));
  assert.isUndefined(walk.push(bytes));
  assert.isUndefined(walk.run());
  assert.isTrue(walk.through());
  assert.isUndefined(walk.finish());
});

it("a member that has another length, in all, than the list says", () => {
  const bytes = archiveOf({ seed: 3, files: [{ path: "vm2/private.img", size: 9 }] });
  const longer = (table: string) =>
    table.replace(/ (\d+)( [0-9a-f]{64}\n)$/, (_, length, rest) => ` ${+length + 10_240}${rest}`);
  const walk = listedWalk({ ...options, format: "qvm-backup" }, listOf(bytes, longer));
  assert.include(walk.push(bytes), "vm2/private.img.000.enc is not what the list of members has");
});
