/** The verbs that give an archive back, as a client that shares no code with the server sees them. */
import { assert, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import {
  commandOf,
  framesIn,
  holds,
  leavesOf,
  linesOf,
  mebi,
  membersOf,
  memberIn,
  rootOf,
  rootOfBlock,
  sha256,
  spread,
  tableOf,
  textIn,
  treeHash,
} from "#test/support/reference";
import { execute, type Whole, whole } from "#test/support/whole";

/** Runs a request and gives what came back as bytes, and behind the first reply, which a newline precedes. */
const ask = async (w: Whole, command: string, input = "") => {
  const out = path.join(w.dir, "answer");
  const ran = await execute(
    [
      "sh",
      "-c",
      `exec /usr/bin/ssh "$@" > ${out}`,
      "sh",
      ...w.server.ssh,
      "--",
      w.server.destination,
      command,
    ],
    { input: Buffer.from(input) },
  ).ended;
  const bytes = fs.readFileSync(out);
  assert.strictEqual(bytes[0], 10);
  const end = bytes.indexOf(10, 1);
  const reply = JSON.parse(bytes.toString("utf8", 1, end));
  return { code: ran.code, reply, rest: bytes.subarray(end + 1) };
};
/** A text in frames, and that nothing but `end` follows it. */
const text = async (w: Whole, command: string) => {
  const { code, reply, rest } = await ask(w, command);
  assert.strictEqual(code, 0);
  assert.deepStrictEqual(reply, { type: "ready" });
  const end = Buffer.from('\0\0\0\0{"type":"end"}\n');
  assert.isTrue(rest.subarray(-end.length).equals(end));
  const frames = framesIn(rest.subarray(0, 4 - end.length), 2 ** 20).slice(0, -2);
  return Buffer.concat(frames as ReadonlyArray<Buffer>).toString();
};

it("read gives every block with a proof, manifest what was signed, check what is there", async () => {
  const w = await whole({
    qubes: [
      { name: "work", size: 9_000_000 },
      { name: "vault", size: 9_000_000 },
      { name: "net", size: 0, include: false },
    ],
    settings: { raw: true },
  });
  try {
    const backup = await w.run("work", "vault");
    assert.strictEqual(backup.code, 0, backup.stderr);
    const [entry] = w.ledger();
    const { name } = entry!;
    const file = path.join(w.server.store, name);
    const archive = fs.readFileSync(file);
    const members = membersOf(archive);

    // What was signed, and by whom.
    const record = (await ask(w, commandOf({ verb: "manifest", parameters: { name } }))).reply;
    assert.sameMembers(Object.keys(record), [
      "type",
      "manifest",
      "signature",
      "receipt",
      "receiptSignature",
    ]);
    assert.strictEqual(record.manifest, entry!.manifest);
    const manifest = textIn("manifest", record.manifest)!;
    const receipt = textIn("receipt", record.receipt)!;
    assert.isTrue(
      holds(manifest["signer"] as string, "manifest", record.manifest, record.signature),
    );
    assert.isTrue(
      holds(manifest["server"] as string, "receipt", record.receipt, record.receiptSignature),
    );
    assert.strictEqual(receipt["manifest"], sha256(record.manifest).toString("hex"));

    // Recipe and table, and the root that they lead to.
    const session = manifest["session"] as string;
    const recipe = spread(await text(w, commandOf({ verb: "recipe", parameters: { name } })));
    const table = await text(w, commandOf({ verb: "table", parameters: { session } }));
    assert.strictEqual(table, tableOf(archive));
    assert.deepStrictEqual(
      recipe,
      members.map((_, index) => [session, index] as const),
    );
    const lines = linesOf(table);
    assert.strictEqual(rootOf(lines), manifest["root"]);

    // Every block, and what proves it; also one, some, and one that is not there.
    const blocksOf = (index: number) => Math.ceil(members[index]!.length / mebi);
    const large = members.findIndex(({ length }) => length > 4 * mebi);
    const read = commandOf({ verb: "read", parameters: {} });
    const all = members.map((_, index) => [index, 0, blocksOf(index)] as const);
    for (const asked of [
      all,
      [
        [large, blocksOf(large) - 1, 1],
        [large, 2, 2],
      ],
      [],
    ] as const) {
      const written = asked.map((numbers) => `${session} ${numbers.join(" ")}\n`).join("");
      const { code, reply, rest } = await ask(w, read, `${written}.\n\n`);
      assert.strictEqual(code, 0);
      assert.deepStrictEqual(reply, { type: "ready" });
      const frames = framesIn(rest, mebi + 1024);
      let next = 0;
      for (const [index, first, count] of asked) {
        const { bytes, length } = members[index]!;
        const { digest } = memberIn(lines[index]!.trimEnd())!;
        assert.strictEqual(treeHash(bytes), digest);
        for (let block = first; block < first + count; block++) {
          const frame = frames[next++] as Buffer;
          const wanted = bytes.subarray(block * mebi, Math.min(length, (block + 1) * mebi));
          assert.isTrue(frame.subarray(0, wanted.length).equals(wanted), `${index}, ${block}`);
          const proof = frame.subarray(wanted.length);
          assert.strictEqual(proof.length % 32, 0);
          const siblings = Array.from({ length: proof.length / 32 }, (_, i) =>
            proof.subarray(i * 32, (i + 1) * 32),
          );
          assert.strictEqual(rootOfBlock(wanted, block, blocksOf(index), siblings), digest);
        }
      }
      // Behind the last frame there is nothing.
      assert.deepStrictEqual(frames.slice(next), ["cut"]);
    }

    // The script that needs neither Qubes nor qbackup, over a link that breaks all the time.
    const bin = path.join(w.dir, "cut");
    fs.mkdirSync(bin);
    const words = w.server.ssh.map((word) => `'${word}'`).join(" ");
    const env = { PATH: `${bin}:/usr/bin:/bin` };
    fs.writeFileSync(
      path.join(bin, "ssh"),
      `#!/bin/sh\necho "$*" >> ${bin}/calls
/usr/bin/ssh ${words} "$@" | dd bs=4096 count=3000 status=none\n`,
      { mode: 0o755 },
    );
    const got = path.join(w.dir, "got");
    const script = path.resolve("install/qbackup-recover");
    const fetch = (shell: string, from: string, what: string) =>
      execute(["sh", "-c", `exec ${shell} "$@"`, "sh", script, "fetch", from, what, got], { env })
        .ended;
    for (const shell of fs.existsSync("/usr/bin/busybox") ? ["busybox sh", "sh"] : ["sh"]) {
      const fetched = await fetch(shell, w.server.destination, name);
      assert.strictEqual(fetched.code, 0, fetched.stderr);
      assert.include(fetched.stderr, `root ${manifest["root"] as string}, computed here`);
      assert.isTrue(fs.readFileSync(got).equals(archive));
      fs.rmSync(got);
    }
    const calls = fs.readFileSync(path.join(bin, "calls"), "utf8");
    assert.isAtLeast(calls.match(/qbackup\/1 read$/gm)?.length ?? 0, 4, calls);
    const none = await fetch("sh", w.server.destination, "none.backup");
    assert.strictEqual(none.code, 1);
    assert.include(none.stderr, "no archive of that name");
    assert.isFalse(fs.existsSync(got));

    const check = commandOf({ verb: "check", parameters: { name } });
    assert.containsSubset((await ask(w, check)).reply, {
      type: "checked",
      size: archive.length,
      members: members.length,
      root: manifest["root"],
    });

    for (const [command, code] of [
      ["manifest missing", "not-found"],
      ["recipe missing", "not-found"],
      ["check missing", "not-found"],
      ["manifest missing/x", "not-found"],
      [`table ${"0".repeat(32)}`, "not-found"],
      ["table missing", "bad-request"],
      [`read ${name}`, "bad-request"],
    ] as const) {
      const refused = await ask(w, `qbackup/1 ${command}`);
      assert.notStrictEqual(refused.code, 0);
      assert.strictEqual(refused.reply.code, code, command);
    }
    /** What stands in place of each block that is not given; then the conversation goes on. */
    const refusals = async (...asked: ReadonlyArray<string>) => {
      const { code, rest } = await ask(w, read, `${asked.join("\n")}\n${session} 0 0 1\n\n`);
      assert.strictEqual(code, 0);
      const head = members[0]!.bytes;
      assert.isTrue(rest.subarray(-head.length).equals(head));
      const errors = rest.subarray(0, -head.length - 4);
      return errors
        .toString("latin1")
        .split("\xff\xff\xff\xff")
        .slice(1)
        .map((line) => JSON.parse(line).code as string);
    };
    assert.deepStrictEqual(
      await refusals(
        `${session} ${large} ${blocksOf(large)} 1`,
        `${session} ${members.length} 0 1`,
        `${"0".repeat(32)} 0 0 2`,
      ),
      ["not-found", "not-found", "not-found", "not-found"],
    );

    // Kept digests that are not what they were do no harm: the bytes are hashed anew.
    const kept = path.join(w.server.store, ".qbackup/digests", session);
    const digests = fs.readFileSync(kept);
    assert.isTrue(digests.equals(Buffer.concat(members.flatMap(({ bytes }) => leavesOf(bytes)))));
    for (const bytes of [
      Buffer.from(digests.map((byte, i) => (i % 32 === 8 ? byte ^ 1 : byte))),
      digests.subarray(32),
      Buffer.alloc(0),
    ]) {
      fs.writeFileSync(kept, bytes);
      const { rest } = await ask(w, read, `${session} ${large} 0 1\n\n`);
      assert.isTrue(rest.subarray(4, 4 + mebi).equals(members[large]!.bytes.subarray(0, mebi)));
    }
    fs.writeFileSync(kept, digests);

    // A byte changes on the server's disk: check sees it, and read gives that block to nobody.
    const start = members.slice(0, large).reduce((sum, { length }) => sum + length, 0);
    const fd = fs.openSync(file, "r+");
    fs.writeSync(fd, Buffer.from([archive[start + mebi + 9]! ^ 1]), 0, 1, start + mebi + 9);
    const bad = await ask(w, check);
    assert.strictEqual(bad.code, 6);
    assert.strictEqual(bad.reply.code, "damaged");
    assert.deepStrictEqual(await refusals(`${session} ${large} 1 1`), ["damaged"]);
    // With digests that are those of the changed bytes, too.
    const changed = membersOf(fs.readFileSync(file));
    fs.writeFileSync(kept, Buffer.concat(changed.flatMap(({ bytes }) => leavesOf(bytes))));
    assert.deepStrictEqual(await refusals(`${session} ${large} 1 1`), ["damaged"]);
    assert.strictEqual((await ask(w, check)).reply.code, "damaged");
    fs.ftruncateSync(fd, start);
    fs.closeSync(fd);
    assert.deepStrictEqual(await refusals(`${session} ${large} 0 1`), ["damaged"]);
    assert.strictEqual((await ask(w, check)).reply.code, "damaged");
  } finally {
    w.stop();
  }
});

it("a store moves to another place with its key, and nothing is sent again", async () => {
  const w = await whole();
  try {
    const { store } = w.server;
    assert.strictEqual((await w.run("work", "vault")).code, 0);
    const { name } = w.ledger()[0]!;
    const before = (await ask(w, "qbackup/1 about")).reply.server as string;
    const away = path.join(w.dir, "old");
    for (const copy of [
      "cp -a OLD NEW",
      "mkdir -m 700 NEW; tar -C OLD -cf - . | tar -C NEW -xpf -",
      // As rsync -a does without -H: what had two names is two files.
      "cp -rp OLD NEW",
    ]) {
      fs.renameSync(store, away);
      const script = copy.replaceAll("OLD", away).replaceAll("NEW", store);
      assert.strictEqual((await execute(["sh", "-ec", script]).ended).code, 0);
      fs.rmSync(away, { recursive: true });
      assert.strictEqual((await ask(w, "qbackup/1 about")).reply.server, before);
      const check = commandOf({ verb: "check", parameters: { name } });
      assert.strictEqual((await ask(w, check)).reply.type, "checked", copy);
      const verify = await w.start("verify", "-t", "net", name).ended;
      assert.strictEqual(verify.code, 0, copy + verify.stderr);
      const next = await w.run("work");
      assert.strictEqual(next.code, 0, copy + next.stderr);
      const list = await w.start("list", "-t", "net").ended;
      assert.strictEqual(list.code, 0, copy + list.stdout + list.stderr);
    }
  } finally {
    w.stop();
  }
});
