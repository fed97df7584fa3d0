/** The verbs that give an archive back, as a client that shares no code with the server sees them. */
import { assert, it } from "vitest";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { treeHash } from "#test/support/peer";
import { execute, type Whole, whole } from "#test/support/whole";

const sha = (...parts: ReadonlyArray<Uint8Array>) =>
  crypto.createHash("sha256").update(Buffer.concat(parts)).digest();

/** Runs a request and gives what came back as bytes. */
const ask = async (w: Whole, command: string) => {
  const out = path.join(w.dir, "answer");
  const shell = `exec /usr/bin/ssh "$@" > ${out}`;
  const ran = await execute([
    "sh",
    "-c",
    shell,
    "sh",
    ...w.server.ssh,
    "--",
    w.server.destination,
    command,
  ]).ended;
  return { code: ran.code, bytes: fs.readFileSync(out) };
};
/** Skips the newline before the first reply, and takes it. */
const firstLine = (bytes: Buffer) => {
  assert.strictEqual(bytes[0], 10);
  const end = bytes.indexOf(10, 1);
  return { reply: JSON.parse(bytes.toString("utf8", 1, end)), rest: bytes.subarray(end + 1) };
};

it("read gives every block with a proof, manifest what was signed, check what is there", async () => {
  const w = await whole({
    qubes: [
      { name: "work", size: 9_000_000 },
      { name: "net", size: 0, include: false },
    ],
    settings: { raw: true },
  });
  try {
    const backup = await w.run("work");
    assert.strictEqual(backup.code, 0, backup.stderr);
    const { name } = w.ledger()[0]!;
    const file = path.join(w.server.store, name);
    const archive = fs.readFileSync(file);
    const root = treeHash(archive);
    const blocks = Math.ceil(archive.length / 1_048_576);
    assert.isAbove(blocks, 4);

    for (const [first, count] of [
      [0, blocks],
      [blocks - 1, 1],
      [2, 2],
      [0, 0],
    ] as const) {
      const { bytes, code } = await ask(w, `qbackup/1 read ${name} ${first} ${count}`);
      assert.strictEqual(code, 0);
      const { reply, rest } = firstLine(bytes);
      assert.deepStrictEqual(reply, { type: "ready", size: archive.length, treehash: root });
      let at = 0;
      for (let index = first; index < first + count; index++) {
        const length = rest.readUInt32BE(at);
        const data = archive.subarray(index * 1_048_576, (index + 1) * 1_048_576);
        assert.isTrue(rest.subarray(at + 4, at + 4 + data.length).equals(data), `block ${index}`);
        let digest = sha(data);
        let proof = rest.subarray(at + 4 + data.length, at + 4 + length);
        for (let i = index, width = blocks; width > 1; i >>= 1, width = (width + 1) >> 1) {
          if ((i ^ 1) >= width) continue;
          digest = i & 1 ? sha(proof.subarray(0, 32), digest) : sha(digest, proof.subarray(0, 32));
          proof = proof.subarray(32);
        }
        assert.strictEqual(proof.length, 0);
        assert.strictEqual(digest.toString("hex"), root);
        at += 4 + length;
      }
      assert.strictEqual(rest.readUInt32BE(at), 0);
      assert.strictEqual(rest.toString("utf8", at + 4), '{"type":"end"}\n');
    }

    // So does the script that needs neither Qubes nor this, over a link that breaks all the time.
    const bin = path.join(w.dir, "cut");
    fs.mkdirSync(bin);
    const words = w.server.ssh.map((word) => `'${word}'`).join(" ");
    fs.writeFileSync(
      path.join(bin, "ssh"),
      `#!/bin/sh\n/usr/bin/ssh ${words} "$@" | dd bs=4096 count=1100 iflag=fullblock status=none\n`,
      { mode: 0o755 },
    );
    const got = path.join(w.dir, "got");
    const script = path.resolve("install/qbackup-recover");
    for (const shell of fs.existsSync("/usr/bin/busybox") ? ["busybox sh", "sh"] : ["sh"]) {
      const fetched = await execute(
        ["sh", "-c", `exec ${shell} "$@"`, "sh", script, "fetch", w.server.destination, name, got],
        { env: { PATH: `${bin}:/usr/bin:/bin` } },
      ).ended;
      assert.strictEqual(fetched.code, 0, fetched.stderr);
      assert.include(fetched.stderr, `tree hash ${root}, computed here`);
      assert.isTrue(fs.readFileSync(got).equals(archive));
      fs.rmSync(got);
    }
    const none = await execute(["sh", script, "fetch", w.server.destination, "none.backup", got], {
      env: { PATH: `${bin}:/usr/bin:/bin` },
    }).ended;
    assert.strictEqual(none.code, 1);
    assert.include(none.stderr, "there is no archive of that name");
    assert.isFalse(fs.existsSync(got));

    const { reply, rest } = firstLine((await ask(w, `qbackup/1 manifest ${name}`)).bytes);
    assert.strictEqual(rest.readUInt32BE(0), reply.size);
    const record = JSON.parse(rest.toString("utf8", 4));
    assert.strictEqual(record.manifest, w.ledger()[0]!.manifest);
    assert.deepStrictEqual(Object.keys(record), [
      "manifest",
      "signature",
      "receipt",
      "receiptSignature",
    ]);

    const checked = firstLine((await ask(w, `qbackup/1 check ${name}`)).bytes).reply;
    assert.containsSubset(checked, { type: "checked", size: archive.length, treehash: root });

    for (const [command, code] of [
      ["read missing 0 1", "not-found"],
      ["manifest missing", "not-found"],
      ["check missing", "not-found"],
      ["manifest missing/x", "not-found"],
      [`read ${name} 0 ${blocks + 1}`, "bad-request"],
      [`read ${name} ${blocks} 1`, "bad-request"],
    ] as const) {
      const refused = await ask(w, `qbackup/1 ${command}`);
      assert.notStrictEqual(refused.code, 0);
      assert.strictEqual(firstLine(refused.bytes).reply.code, code, command);
    }

    // Kept digests that are not what they were do no harm: the bytes are hashed anew.
    const kept = path.join(w.server.store, ".qbackup/digests");
    const [session] = fs.readdirSync(kept);
    const digests = fs.readFileSync(path.join(kept, session!));
    for (const bytes of [
      Buffer.from(digests.map((byte, i) => (i === 40 ? byte ^ 1 : byte))),
      digests.subarray(32),
      Buffer.alloc(0),
    ]) {
      fs.writeFileSync(path.join(kept, session!), bytes);
      const { rest } = firstLine((await ask(w, `qbackup/1 read ${name} 0 ${blocks}`)).bytes);
      assert.isTrue(rest.subarray(4, 4 + 1_048_576).equals(archive.subarray(0, 1_048_576)));
      const again = firstLine((await ask(w, `qbackup/1 read ${name} 0 1`)).bytes).reply;
      assert.strictEqual(again.treehash, root);
    }
    fs.writeFileSync(path.join(kept, session!), digests);

    // A byte changes on the server's disk: check sees it; read still answers, and no proof holds.
    fs.chmodSync(file, 0o640);
    const fd = fs.openSync(file, "r+");
    fs.writeSync(fd, Buffer.from([archive[3_000_000]! ^ 1]), 0, 1, 3_000_000);
    fs.closeSync(fd);
    const bad = await ask(w, `qbackup/1 check ${name}`);
    assert.strictEqual(bad.code, 6);
    assert.strictEqual(firstLine(bad.bytes).reply.code, "digest-mismatch");

    // Without its digests it is hashed anew, and the tree is another one.
    fs.rmSync(path.join(w.server.store, ".qbackup/digests"), { recursive: true });
    const other = firstLine((await ask(w, `qbackup/1 read ${name} 0 1`)).bytes).reply;
    assert.notStrictEqual(other.treehash, root);
    fs.truncateSync(file, 0);
    const empty = firstLine((await ask(w, `qbackup/1 read ${name} 0 1`)).bytes).reply;
    assert.strictEqual(empty.code, "incomplete");
  } finally {
    w.stop();
  }
});
