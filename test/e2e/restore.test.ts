/** There and back again: the built programs, the stand-in Qubes, a real sshd, real FIFOs. */
import { assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import {
  backup,
  big,
  cameBack,
  forget,
  notRestored,
  paths,
  qbackup,
  restore,
  seen,
  setUp,
  tidyRestore,
} from "#test/support/runs";
import { processesWith } from "#test/support/programs";
import { dist } from "#test/support/whole";
import { until } from "#test/support/until";

describe("a restore", () => {
  it("of many small qubes", async () => {
    const many = Array.from({ length: 150 }, (_, i) => ({
      name: `q${i}`,
      size: 4096,
      files: { "firewall.xml": `<rules n="${i}"/>\n`, "notes.txt": `note ${i}\n` },
    }));
    const w = await setUp({
      qubes: [...many, { name: "net", size: 0, include: false }],
      settings: { logN: 4 },
    });
    const { members, name } = await backup(w);
    assert.isAbove(members.length, 450);
    const ran = await restore(w, "--rename-conflicting", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.lengthOf(paths(w)[2]!, members.length - 3);
    for (const i of [0, 77, 149]) {
      cameBack(w, `q${i}`, `q${i}-1`);
      const note = path.join(w.world.dir, "restored", `q${i}-1`, "notes.txt");
      assert.strictEqual(fs.readFileSync(note, "utf8"), `note ${i}\n`);
    }
    forget(w);
    const few = await restore(w, "--rename-conflicting", name, "q7", "q8", "q120");
    assert.strictEqual(few.code, 0, few.stderr);
    assert.lengthOf(paths(w)[2]!, 9);
    cameBack(w, "q120", "q120-1");
    await tidyRestore(w);
  });

  it("goes on where the link was cut, again and again", async () => {
    const w = await setUp({
      ...big(),
      // Every connection carries some 5 to 15 MB back and no more.
      sshScript: `eval "/usr/bin/ssh $OPTIONS \\"\\$@\\"" | dd bs=65536 count=250 status=none`,
    });
    const { members, name } = await backup(w, "work", "vault");
    const ran = await restore(w, "--rename-conflicting", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.isAtLeast(ran.stderr.match(/the link broke/g)?.length ?? 0, 2, ran.stderr);
    assert.deepStrictEqual(
      paths(w)[2],
      members.slice(3).map((member) => member.path),
    );
    await tidyRestore(w);
  });

  it("moves less than 4 MiB for the header and qubes.xml", async () => {
    const w = await setUp({
      ...big(),
      sshScript: `/usr/bin/ssh $(eval echo $OPTIONS) "$@" | tee -a $(dirname $0)/moved`,
    });
    const { name } = await backup(w, "work", "vault");
    const moved = path.join(w.dir, "bin/moved");
    fs.rmSync(moved);
    w.world.faults({ tool: "qvm-backup-restore", kind: "stop-after-header" });
    await notRestored(w, await restore(w, name), 3, /exited 0, but|left it out|not restored whole/);
    assert.isBelow(fs.statSync(moved).size, 4_194_304);
  });
});

describe("what is refused", () => {
  it("names that are not there, an archive that the ledger does not know, a qube that exists", async () => {
    const w = await setUp();
    const { name } = await backup(w, "work", "vault");
    const calls = () => w.world.calls("qvm-backup-restore").length;
    for (const [args, code, text] of [
      [[name, "wrok"], 2, /not in .*: wrok\n.*hint: it has /],
      [[name, "--exclude", "nobody"], 2, /not in .*: nobody/],
      [[name, "work", "--exclude", "work"], 2, /no qube to restore/],
      [["no-such.backup"], 2, /the ledger here has nothing of no-such.backup/],
      [["../etc/passwd"], 2, /not the name of an archive/],
      [[name, "-Z", "rm -rf"], 2, /must name a program/],
      [["no-such.backup", "--force"], 5, /the server has no archive no-such.backup/],
    ] as const) {
      await notRestored(w, await restore(w, ...args), code, text);
      assert.strictEqual(calls(), 0);
    }
    await notRestored(
      w,
      await restore(w, name),
      3,
      /conflicting names[^]*hint: .*--rename-conflicting/,
    );
    assert.deepStrictEqual(fs.readdirSync(path.join(w.world.dir, "restored")), ["members.jsonl"]);
    const wrong = path.join(w.dir, "wrong");
    fs.writeFileSync(wrong, "another\n", { mode: 0o600 });
    await notRestored(
      w,
      await w.start("restore", "-t", "net", "-p", wrong, name).ended,
      3,
      /Is the password correct[^]*hint: is the passphrase/,
    );
  });

  it("skips what exists when asked to, and says so", async () => {
    const w = await setUp();
    const { name } = await backup(w, "work", "vault");
    const ran = await restore(w, "--skip-conflicting", name);
    assert.match(ran.stderr, /left out, as asked for: .*work/);
    assert.match(ran.stderr, /restored nothing from /);
    assert.strictEqual(ran.code, 0, ran.stderr);
    await tidyRestore(w);
  });
  it("verifies the home of another user, which it would not restore", async () => {
    const w = await setUp();
    const { name } = await backup(w, "--include-dom0", "work");
    w.world.faults({ tool: "qvm-backup-restore", kind: "other-user" });
    const ran = await restore(w, "--verify-only", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.match(ran.stderr, /-> Verifying dom0/);
    const one = await restore(w, "--rename-conflicting", name);
    await notRestored(w, one, 3, /hint: --skip-dom0-home/);
  });
});

describe("an archive without a record here", () => {
  it("is restored with --force on the server's word, which is said", async () => {
    const w = await setUp();
    const { name } = await backup(w, "work", "vault");
    fs.rmSync(w.state, { recursive: true });
    const ran = await restore(w, "--force", "--rename-conflicting", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.match(ran.stderr, /not proven: /);
    assert.match(ran.stderr, /first contact: pinned the server/);
    cameBack(w, "work", "work-1");
    // From now on the server is known, and another one's signature is not taken.
    const servers = path.join(w.state, "known_servers");
    const text = fs.readFileSync(servers, "utf8");
    fs.writeFileSync(servers, text.replace(/[A-Za-z0-9_-]{43}$/m, "A".repeat(43)));
    await notRestored(w, await restore(w, "--force", name), 6, /the server's key changed/);
  });
  it("of the old form is taken with --force, too", async () => {
    const w = await setUp({ serverOptions: "--allow-unsigned" });
    const { name } = await backup(w, "work");
    const bytes = fs.readFileSync(path.join(w.server.store, name));
    assert.strictEqual((await w.ssh("seed.backup", bytes)).code, 0);
    await notRestored(w, await restore(w, "seed.backup"), 2, /the ledger here has nothing/);
    const ran = await restore(w, "--force", "--rename-conflicting", "seed.backup");
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.match(ran.stderr, /it has no manifest: it came without qbackup in dom0/);
    cameBack(w, "work", "work-1");
  });
});

it("a store that changed: nothing of it reaches the tool", async () => {
  const w = await setUp();
  const { members, name } = await backup(w, "work", "vault");
  assert.strictEqual((await restore(w, "--verify-only", name)).code, 0);
  const good = new Set(
    seen(w)
      .flat()
      .map(({ sha256 }) => sha256),
  );
  const file = path.join(w.server.store, name);
  const bytes = fs.readFileSync(file);
  const [a, b] = [members[3]!.start, members[4]!.start];
  const flipped = Buffer.from(bytes);
  flipped[a + 5000]! ^= 1;
  fs.chmodSync(file, 0o640);
  for (const changed of [
    flipped,
    bytes.subarray(0, members.at(-1)!.start),
    Buffer.concat([bytes.subarray(0, a), bytes.subarray(b), bytes.subarray(a, b)]),
  ]) {
    forget(w);
    fs.writeFileSync(file, changed);
    await notRestored(w, await restore(w, "--rename-conflicting", name), 6, /error: /);
    assert.isTrue(
      seen(w)
        .flat()
        .every(({ sha256 }) => good.has(sha256)),
    );
    assert.isFalse(fs.existsSync(path.join(w.world.dir, "restored/work-1")));
  }
});

it("what breaks a restore off names the qubes that were made by then", async () => {
  const w = await setUp(big());
  const { members, name } = await backup(w, "work", "vault");
  const file = path.join(w.server.store, name);
  const bytes = fs.readFileSync(file);
  bytes[members[3]!.start + 5_000_000]! ^= 1;
  fs.chmodSync(file, 0o640);
  fs.writeFileSync(file, bytes);
  await notRestored(
    w,
    await restore(w, "--rename-conflicting", name),
    6,
    /warning: not restored whole: .*work \(here: work-1\).*remove[^]*error: block \d+ of/,
  );
  const verified = await restore(w, "--verify-only", name);
  await notRestored(w, verified, 6, /error: block \d+ of/);
  assert.notInclude(verified.stderr, "not restored whole");
});

describe("a tool that fails", () => {
  it("exits 3, and the qubes are named", async () => {
    const w = await setUp();
    const { name } = await backup(w, "work", "vault");
    const lost = "failed to decrypt /x/vm3/private.img.000.enc: b''";
    const space = "qvm-backup-restore: error: Too little space in /home/user";
    for (const [fault, text] of [
      [{ kind: "stop-after-header" }, /not restored whole: /],
      [{ kind: "die", after: 100_000 }, /failed with exit code 137/],
      [{ kind: "stop-reading", after: 100 }, /not restored whole|stopped reading/],
      [
        { kind: "fail-qube", vm: "vault" },
        /not restored whole: vault \(here: vault-1\); .*Failed to restore volume/,
      ],
      [{ kind: "fail-create", vm: "vault" }, /not restored whole: vault .*Error restoring VM/],
      [{ kind: "fail-device", vm: "vault" }, /exit code 1: KeyError: 'sys-usb'; .*vault .*work/],
      [{ kind: "fail-setting", vm: "vault" }, /not all of its settings: vault .*kernel/],
      [{ kind: "fail-firewall", vm: "vault" }, /not all of its settings: vault .*set firewall/],
      [{ kind: "extract-error", text: lost }, /not restored whole: .*(work|vault)/],
      [{ kind: "fail", code: 1, text: space }, /exit code 1: .*Too little[^]*hint: .*1 GiB/],
    ] as const) {
      w.world.faults({ tool: "qvm-backup-restore", ...fault });
      await notRestored(w, await restore(w, "--rename-conflicting", name), 3, text);
    }
  });

  it("exits 3 for dom0's home", async () => {
    const w = await setUp();
    const { name } = await backup(w, "--include-dom0", "work");
    w.world.faults({ tool: "qvm-backup-restore", kind: "fail-home" });
    await notRestored(
      w,
      await restore(w, "--rename-conflicting", name),
      3,
      /not restored whole: dom0; .*Inner tar error/,
    );
  });

  it("never opens its archive: a signal ends it, and nothing is left", async () => {
    const w = await setUp();
    const { name } = await backup(w, "work");
    w.world.faults({ tool: "qvm-backup-restore", kind: "never-opens" });
    const { child, ended } = w.start("restore", "-t", "net", "-p", w.passphraseFile, name);
    await until("it hangs", () => w.world.calls("qvm-backup-restore").length > 0);
    await new Promise((resolve) => setTimeout(resolve, 300));
    child.kill("SIGINT");
    assert.strictEqual((await ended).code, 130);
    await tidyRestore(w);
  });

  it.each(["never-opens", "worker"])(
    "does not outlive a killed qbackup, and the next restore clears up: %s",
    async (kind) => {
      const w = await setUp();
      const { name } = await backup(w, "work");
      w.world.faults({ tool: "qvm-backup-restore", kind, times: 1 });
      const { child, ended } = w.start("restore", "-t", "net", "-p", w.passphraseFile, name);
      await until("it hangs", () => w.world.calls("qvm-backup-restore").length > 0);
      await new Promise((resolve) => setTimeout(resolve, 300));
      child.kill("SIGKILL");
      await ended;
      await until("it ends", () => processesWith(path.join(w.state, "restore")).length === 0);
      const ran = await restore(w, "--rename-conflicting", name);
      assert.strictEqual(ran.code, 0, ran.stderr);
      cameBack(w, "work", "work-1");
      await tidyRestore(w);
    },
  );
});

describe("--paranoid", () => {
  const setUpCarrier = async () => {
    const w = await setUp();
    const { members, name } = await backup(w, "--include-dom0", "work", "vault");
    // In the storage qube it lies among the services; here on the PATH that services have.
    fs.symlinkSync(dist("qubes.BackupCarrier"), path.join(w.dir, "bin/qubes.BackupCarrier"));
    return { w, members, name };
  };
  it("has the storage qube fetch the archive, and print it", async () => {
    const { w, members, name } = await setUpCarrier();
    const ran = await restore(w, "--paranoid", "--rename-conflicting", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    assert.match(ran.stderr, /nothing of the archive passes through here/);
    cameBack(w, "work", "work-1");
    cameBack(w, "vault", "vault-1");
    assert.lengthOf(paths(w)[2]!, members.length);
    await tidyRestore(w);
  });
  it("does so of slots, each of whose members the tool counts as a file", async () => {
    const w = await setUp({
      format: "slots",
      qubes: [
        { name: "work", size: 400_000_000, data: 30_000_000 },
        { name: "net", size: 0, include: false },
      ],
    });
    const backedUp = await w.run("work");
    assert.strictEqual(backedUp.code, 0, backedUp.stderr);
    const { manifest, name } = w.ledger().at(-1)!;
    assert.include(manifest, '"format":"slots"');
    fs.symlinkSync(dist("qubes.BackupCarrier"), path.join(w.dir, "bin/qubes.BackupCarrier"));
    const ran = await restore(w, "--paranoid", "--rename-conflicting", name);
    assert.strictEqual(ran.code, 0, ran.stderr);
    cameBack(w, "work", "work-1");
    assert.lengthOf(paths(w)[2]!, JSON.parse(manifest).members);
    await tidyRestore(w);
  });
  it("prints no block that is not the one that dom0 knows", async () => {
    const { w, members, name } = await setUpCarrier();
    const file = path.join(w.server.store, name);
    const bytes = fs.readFileSync(file);
    bytes[members[3]!.start + 5000]! ^= 1;
    fs.chmodSync(file, 0o640);
    fs.writeFileSync(file, bytes);
    await notRestored(w, await restore(w, "--paranoid", "--rename-conflicting", name), 3, /failed/);
    assert.isEmpty(seen(w).flat());
  });
});

it("verify --decrypt reads all of it back and decrypts it", async () => {
  const w = await setUp();
  const { members, name } = await backup(w, "work", "vault");
  const ran = await w.start("verify", "--decrypt", "-t", "net", "-p", w.passphraseFile, name).ended;
  assert.strictEqual(ran.code, 0, ran.stderr);
  assert.match(ran.stdout, /all of it decrypts/);
  assert.lengthOf(paths(w).flat(), members.length);
  await tidyRestore(w);
});

it("a chunk that qubesd cut short without a word is found by decrypting, and stays found", async () => {
  const w = await setUp();
  // As where the kernel kills a scrypt of qubesd's: well formed, exit 0.
  w.world.faults({ tool: "qvm-backup", kind: "temp-full", member: "vm2/private.img.000.enc" });
  const { name } = await backup(w, "work", "vault");
  assert.strictEqual((await qbackup(w, "verify", name)).code, 0);
  assert.strictEqual((await qbackup(w, "list")).code, 0);
  const ran = await w.start("verify", "--decrypt", "-t", "net", "-p", w.passphraseFile, name).ended;
  assert.strictEqual(ran.code, 6, ran.stderr);
  assert.match(ran.stderr, /error: not verified: .* does not decrypt, although the header did/);
  assert.match(ran.stderr, /hint: back up again now/);
  assert.isTrue(w.world.notifications().some(({ argv }) => argv.includes("Backups are damaged")));
  // Its bytes are as they were, which is no comfort.
  assert.strictEqual((await qbackup(w, "verify", name)).code, 0);
  const list = await qbackup(w, "list");
  assert.strictEqual(list.code, 6);
  assert.match(list.stdout, / damaged /);
  assert.match(list.stderr, /a member did not decrypt on .*: back up again/);
  await notRestored(
    w,
    await restore(w, "--rename-conflicting", name),
    6,
    /hint: back up again now/,
  );
});
