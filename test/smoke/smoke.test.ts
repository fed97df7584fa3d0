/**
 * The built programs, all three, with a real FIFO, a real sshd and real kills: one run of each kind.
 * What can go wrong in each is in test/e2e.
 */
import { assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import {
  backup,
  big,
  cameBack,
  change,
  forget,
  kill,
  paths,
  proofs,
  qbackup,
  restore,
  setUp,
  stored,
  tidy,
  tidyRestore,
} from "#test/support/runs";
import { noScrypt, noSshd, unless } from "#test/support/unless";
import { execute, passphrase, type Whole } from "#test/support/whole";
import { until } from "#test/support/until";

/**
 * A carrier that throws the data away and answers as a server would: under a key of its own, or under
 * the key that dom0 knows, for which it can sign nothing.
 */
const forge = (w: Whole, shown?: string) => {
  const reference = path.resolve(import.meta.dirname, "../support/reference.ts");
  w.world.service("net", "qubes.BackupCarrier", {
    text: `#!${process.execPath}
(async () => {
const { leavesOf, mebi, memberAt, pairOf, running, sha256, textOf, topOf } = await import(${JSON.stringify(reference)});
const own = pairOf(sha256("the carrier's")), say = (o) => process.stdout.write(JSON.stringify(o) + "\\n");
let seen = Buffer.alloc(0), request, offset = 0, at = 0, parts = [], manifest;
const whole = [], leaves = [];
const block = (bytes) => {
  if (parts.length === 0) at = memberAt(bytes).length;
  parts.push(bytes); leaves.push(...leavesOf(bytes)); offset += bytes.length; at -= bytes.length;
  if (at === 0) { whole.push(topOf(leavesOf(Buffer.concat(parts)))); parts = []; leaves.length = 0; }
};
let ended = false;
for await (const some of process.stdin) {
  seen = Buffer.concat([seen, some]);
  if (request === undefined) {
    const end = seen.indexOf(10); if (end < 0) continue;
    request = JSON.parse(seen.subarray(0, end)); seen = seen.subarray(end + 1);
    process.stdout.write("\\n");
    if (process.argv[2] === "about") {
      say({ type: "about", version: "1", server: ${JSON.stringify(shown)} ?? own.publicKey, signers: [], quota: null, room: 2 ** 40, reserved: 0, clock: new Date().toISOString().slice(0, 19) + "Z", confined: null, ticket: null });
      return;
    }
    say({ type: "ready", offset: 0, running: running([]) });
  }
  while (seen.length >= 4) {
    const length = seen.readUInt32BE(0);
    if (length === 0 && !ended) { ended = true; seen = seen.subarray(4); continue; }
    if (length > mebi) { say({ type: "alive" }); seen = seen.subarray(4); continue; }
    if (seen.length < 4 + length) break;
    const frame = seen.subarray(4, 4 + length);
    seen = seen.subarray(4 + length);
    if (!ended) { block(frame); say({ type: "ack", offset, running: running(whole, leaves) }); }
    else if (length === 0) {
      const m = JSON.parse(manifest);
      const receipt = textOf("receipt", { ...m, type: "qbackup receipt", manifest: sha256(manifest).toString("hex"), stored: m.created });
      say({ type: "stored", receipt, signature: own.sign("receipt", receipt) });
      return;
    } else manifest ??= frame.toString();
  }
}
})();
`,
  });
};
describe("a backup", unless(noSshd), () => {
  it(
    "of two qubes arrives, decrypts with scrypt and unpacks with tar",
    unless(noScrypt),
    async () => {
      const w = await setUp();
      const { bytes, manifest, members } = await stored(
        w,
        await w.run("-f", "laptop-", "work", "vault"),
      );
      assert.match(manifest.name, /^laptop-\d{4}-\d\d-\d\dT\d{4}\.backup$/);
      assert.strictEqual(w.world.journal().filter((line) => line.includes("error")).length, 0);
      assert.match(w.world.journal().join("\n"), /^qbackup user\.info stored laptop-/m);
      // As a person without Qubes would: the header pair first, then a member by its place.
      const at = (name: string) => {
        const member = members.find((m) => m.path === name)!;
        const tar = path.join(w.dir, "member.tar");
        fs.writeFileSync(tar, bytes.subarray(member.start, member.start + member.length));
        return execute(["tar", "-xOf", tar, name]);
      };
      const header = (await at("backup-header").ended).stdout;
      const id = /^backup-id=(.*)$/m.exec(header)![1]!;
      const qid = w.world.qube("work").qid;
      const name = `vm${qid}/private.img.000`;
      const tar = path.join(w.dir, "m.tar");
      const member = members.find((m) => m.path === `${name}.enc`)!;
      fs.writeFileSync(tar, bytes.subarray(member.start, member.start + member.length));
      const plain = await execute([
        "sh",
        "-c",
        `tar -xOf ${tar} ${name}.enc > ${tar}.enc && PASS='${id}!${name}!${passphrase}' scrypt dec --passphrase env:PASS ${tar}.enc | gzip -d | tar -tf -`,
      ]).ended;
      assert.strictEqual(plain.code, 0, plain.stderr);
      assert.include(plain.stdout, "private.img");
    },
  );

  it("killed again and again: the archive is the same", async () => {
    const w = await setUp(big());
    w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 9_000_000 });
    const { ended } = w.start("-o", "-t", "net", "-p", w.passphraseFile, "work", "vault");
    for (const mebibytes of [2, 6, 10]) {
      await until(
        `ssh is killed after ${mebibytes} MiB`,
        () => w.arrived() > mebibytes * 2 ** 20 && kill(w.server.knownHosts) > 0,
      );
    }
    const ran = await ended;
    await stored(w, ran);
    assert.isAtLeast(ran.stderr.match(/the link broke/g)?.length ?? 0, 2, ran.stderr);
  });

  it("kill -9 of qbackup-shell, and so of ssh on the server's side", async () => {
    const w = await setUp(big());
    w.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 9_000_000 });
    const { ended } = w.start("-t", "net", "-p", w.passphraseFile, "work", "vault");
    for (const mebibytes of [2, 6, 10]) {
      await until(
        `the shell is killed after ${mebibytes} MiB`,
        () => w.arrived() > mebibytes * 2 ** 20 && kill(path.join(w.dir, "bin/qbackup-shell")) > 0,
      );
    }
    await stored(w, await ended);
  });

  it("forges every reply: exit 6, with what to do, and nothing in the ledger for it", async () => {
    const w = await setUp();
    await stored(w, await w.run("work"));
    const { server } = JSON.parse(w.ledger()[0]!.manifest) as { readonly server: string };
    // Under a key of its own, or as if it were the server's.
    for (const key of [undefined, server]) {
      forge(w, key);
      const ran = await w.run("vault");
      assert.strictEqual(ran.code, 6, ran.stderr);
      assert.match(ran.stderr, /error: the receipt is not signed by the pinned server/);
      assert.match(ran.stderr, /^qbackup: hint: /m);
    }
    assert.lengthOf(w.ledger(), 1);
    await tidy(w);
  });
});

describe("the way back", unless(noSshd), () => {
  it("brings back what was sent, and shows each pass what it reads", async () => {
    const w = await setUp({
      qubes: [
        { name: "work", size: 3_000_000, data: 400_000, files: { "firewall.xml": "<x/>\n" } },
        { name: "vault", size: 200_000 },
        { name: "net", size: 0, include: false },
      ],
    });
    fs.writeFileSync(path.join(w.world.home("dom0"), "notes"), "of dom0\n");
    const { members, name } = await backup(w, "--include-dom0", "work", "vault");
    const ran = await restore(w, "--rename-conflicting", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.match(ran.stderr, /restored from .*: .*work/);
    cameBack(w, "work", "work-1");
    cameBack(w, "vault", "vault-1");
    const place = path.join(w.world.dir, "restored");
    assert.strictEqual(fs.readFileSync(path.join(place, "work-1/firewall.xml"), "utf8"), "<x/>\n");
    assert.strictEqual(fs.readFileSync(path.join(place, "dom0/user/notes"), "utf8"), "of dom0\n");
    assert.deepStrictEqual(paths(w), [
      ["backup-header", "backup-header.hmac"],
      ["qubes.xml.000.enc"],
      members.slice(3).map((member) => member.path),
    ]);
    const [call] = w.world.calls("qvm-backup-restore");
    assert.strictEqual(call!.umask, 0o077);
    assert.notInclude(JSON.stringify(call), passphrase);
    await tidyRestore(w);

    forget(w);
    const one = await restore(w, "--rename-conflicting", name, "vault");
    assert.strictEqual(one.code, 0, one.stderr);
    const { qid } = w.world.qube("vault");
    assert.deepStrictEqual(paths(w)[2], [`vm${qid}/private.img.000.enc`]);
    assert.deepStrictEqual(fs.readdirSync(place).sort(), ["members.jsonl", "vault-1"]);

    forget(w);
    const rest = await restore(
      w,
      "--rename-conflicting",
      "--exclude",
      "vault",
      "--exclude=dom0",
      name,
    );
    assert.strictEqual(rest.code, 0, rest.stderr);
    assert.deepStrictEqual(fs.readdirSync(place).sort(), ["members.jsonl", "work-1"]);

    forget(w);
    const only = await restore(w, "--verify-only", name);
    assert.strictEqual(only.code, 0, only.stderr);
    assert.deepStrictEqual(fs.readdirSync(place), ["members.jsonl"]);
    assert.lengthOf(paths(w).flat(), members.length);
    await tidyRestore(w);
  });

  it("proves what is there, and finds a block that changed", async () => {
    const w = await setUp(big(9_000_000, 3_000_000));
    const one = (await backup(w, "-f", "one-", "work", "vault")).name;
    await backup(w, "-f", "two-", "vault");
    const before = (await qbackup(w, "list", "--receipts", "--json")).stdout;
    assert.deepStrictEqual([...proofs(before).values()], ["receipt", "receipt"]);

    const verify = await qbackup(w, "verify", one);
    assert.strictEqual(verify.code, 0, verify.stderr);
    assert.match(verify.stdout, new RegExp(`^${one}: verified\n.* members in .* blocks, root`));
    const word = await qbackup(w, "verify", "--on-server", one);
    assert.strictEqual(word.code, 0, word.stderr);
    assert.match(word.stdout, /the server says/);
    const audit = await qbackup(w, "audit", "--budget", "5");
    assert.strictEqual(audit.code, 0, audit.stderr);
    assert.match(audit.stdout, /blocks .* chosen at random, came back proven/);
    const list = await qbackup(w, "list");
    assert.match(
      list.stdout,
      new RegExp(`^${one} .* proven +20\\d\\d-\\S+.* work`, "m"),
      list.stdout,
    );
    const paper = (await qbackup(w, "ledger", "head")).stdout.split("\n")[0]!;
    const sheet = await qbackup(w, "recovery-sheet");
    assert.include(sheet.stdout, paper);
    assert.include(sheet.stdout, one);

    change(w, one, (bytes) => ((bytes[5_000_000]! ^= 1), bytes));
    for (const args of [
      ["verify", one],
      ["audit", "--blocks", "99"],
    ]) {
      const ran = await qbackup(w, ...args);
      assert.strictEqual(ran.code, 6, ran.stdout + ran.stderr);
      assert.match(ran.stderr, /^qbackup: error: /m);
      assert.notMatch(ran.stdout, new RegExp(`${one}.*(verified|proven)`));
    }
  });
});
