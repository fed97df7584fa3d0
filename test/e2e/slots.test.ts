/** Backups in slots by the built programs, and what is killed under them. */
import { assert, describe, it } from "vitest";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { imageOf, writeImage } from "#test/standin/world";
import {
  cameBack,
  kill,
  listed,
  membersIn,
  qbackup,
  restore,
  setUp,
  stored as whole,
  tidy,
  tidyRestore,
} from "#test/support/runs";
import { processesWith } from "#test/support/programs";
import { noMount, noScrypt, noSshd, unless, without } from "#test/support/unless";
import { execute, type Ran, type Whole, type WholeOptions } from "#test/support/whole";
import { until } from "#test/support/until";

/** Little of it can be made smaller: an upload of some thirty blocks. */
const large: WholeOptions = {
  format: "slots",
  qubes: [
    { name: "work", size: 40_000_000, data: 24_000_000 },
    { name: "vault", size: 9_000_000 },
    { name: "net", size: 0, include: false },
  ],
};
/** So much that a tap is at work yet when some of it has arrived, whatever is under way: some 30 MB. */
const larger: WholeOptions = {
  format: "slots",
  qubes: [
    { name: "work", size: 160_000_000, data: 120_000_000 },
    { name: "vault", size: 200_000 },
    { name: "net", size: 0, include: false },
  ],
};
const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");
const start = (w: Whole) =>
  w.start("-t", "net", "-p", w.passphraseFile, "--window", "16", "-o", "work", "vault");

/** The archive is stored, proven by what comes back of it, and nothing of the run is left. */
const stored = async (w: Whole, ran: Ran) => {
  assert.strictEqual(ran.code, 0, ran.stderr);
  await tidy(w);
  const { manifest, name } = w.ledger().at(-1)!;
  const { format, root } = JSON.parse(manifest);
  assert.strictEqual(format, "slots");
  assert.containsSubset(await listed(w), [{ name, root }]);
  const verified = await qbackup(w, "verify", name);
  assert.strictEqual(verified.code, 0, verified.stderr);
  return name;
};
/** qvm-backup has the tap's path among its words, and so has the shell that starts it. */
const tapsOf = (w: Whole) =>
  processesWith(`${w.state}/run/tap`).filter((pid) => {
    try {
      return fs.readFileSync(`/proc/${pid}/comm`, "utf8") === "tap\n";
    } catch {
      return false;
    }
  });

/** Nothing waits in the tap, and qubesd is not stuck. */
const released = async (w: Whole) => {
  await until("the tap ends", () => processesWith(`${w.state}/run/tap`).length === 0);
  const asked = await execute(["qvm-ls", "--raw-list"], { env: w.world.env }).ended;
  assert.strictEqual(asked.code, 0, asked.stderr);
};

describe("a backup in slots", unless(noSshd, without("python3")), () => {
  it("goes on where the link broke, again and again", async () => {
    const w = await setUp(large);
    const { ended } = start(w);
    for (const mebibytes of [2, 6, 10]) {
      await until(
        `ssh is killed after ${mebibytes} MiB`,
        () => w.arrived() > mebibytes * 2 ** 20 && kill(w.server.knownHosts) > 0,
      );
    }
    const ran = await ended;
    const name = await stored(w, ran);
    assert.match(ran.stderr, /the link broke/);
    const back = await restore(w, "--rename-conflicting", name);
    assert.strictEqual(back.code, 0, back.stderr);
    cameBack(w, "work", "work-1");
    cameBack(w, "vault", "vault-1");
  });

  it("sends anew what went bad on the server, and no more", async () => {
    const w = await setUp(large);
    const name = await stored(w, await start(w).ended);
    const packs = path.join(w.server.store, ".qbackup/packs");
    const [pack] = fs.readdirSync(packs);
    const file = fs.openSync(path.join(packs, pack!), "r+");
    const { size } = fs.fstatSync(file);
    const byte = Buffer.alloc(1);
    fs.readSync(file, byte, 0, 1, size >> 1);
    fs.writeSync(
      file,
      byte.map((is) => is ^ 1),
      0,
      1,
      size >> 1,
    );
    fs.closeSync(file);
    const verified = await qbackup(w, "verify", name);
    assert.strictEqual(verified.code, 6, verified.stderr);
    const ran = await start(w).ended;
    assert.match(ran.stderr, /1 member of the archives before did not come back as they were/);
    const later = await stored(w, ran);
    const { bytes } = w.ledger().at(-1) as { bytes?: { sent: number } };
    assert.isBelow(bytes!.sent, 5 * 2 ** 20);
    const back = await restore(w, "--rename-conflicting", later);
    assert.strictEqual(back.code, 0, back.stderr);
    cameBack(w, "work", "work-1");
  });

  it(
    "is one of qvm-backup's own archive, and told, where nothing may be run that lies with the books",
    unless(noMount()),
    async () => {
      const w = await setUp(large);
      fs.mkdirSync(w.state, { recursive: true, mode: 0o700 });
      execFileSync("mount", ["-t", "tmpfs", "-o", "noexec,mode=700", "none", w.state]);
      try {
        const ran = await start(w).ended;
        assert.match(ran.stderr, /warning: qubesd hands over no files here; so qvm-backup makes/);
        const { manifest } = await whole(w, ran);
        assert.strictEqual(manifest.format, "qvm-backup");
      } finally {
        execFileSync("umount", ["-l", w.state]);
      }
    },
  );

  it("loses nothing by a scrypt of qubesd's that is killed", async () => {
    const w = await setUp(large);
    w.world.faults({ tool: "qvm-backup", kind: "temp-full" });
    const name = await stored(w, await start(w).ended);
    const back = await restore(w, "--rename-conflicting", name);
    assert.strictEqual(back.code, 0, back.stderr);
    cameBack(w, "work", "work-1");
    cameBack(w, "vault", "vault-1");
  });

  it.each([false, true])(
    "comes back with dom0's home, of block devices: %s",
    async (blockDevices) => {
      const w = await setUp({
        format: "slots",
        settings: { blockDevices },
        qubes: [
          { name: "work", size: 150_000_000, data: 9_000_000, files: { "firewall.xml": "<x/>\n" } },
          { name: "vault", size: 200_000 },
          { name: "net", size: 0, include: false },
        ],
      });
      fs.writeFileSync(path.join(w.world.home("dom0"), "notes"), "of dom0\n");
      const ran = await w.run("--include-dom0", "work", "vault");
      assert.strictEqual(ran.code, 0, ran.stderr);
      await tidy(w);
      const { name, manifest } = w.ledger().at(-1)!;
      assert.include(manifest, '"format":"slots"');
      const verify = await qbackup(w, "verify", name);
      assert.strictEqual(verify.code, 0, verify.stderr);
      const back = await restore(w, "--rename-conflicting", name);
      assert.strictEqual(back.code, 0, back.stderr);
      cameBack(w, "work", "work-1");
      cameBack(w, "vault", "vault-1");
      const place = path.join(w.world.dir, "restored");
      assert.strictEqual(
        fs.readFileSync(path.join(place, "work-1/firewall.xml"), "utf8"),
        "<x/>\n",
      );
      assert.strictEqual(fs.readFileSync(path.join(place, "dom0/user/notes"), "utf8"), "of dom0\n");
      await tidyRestore(w);
    },
  );

  it.each([false, true])(
    "sends of a later night what changed, and each night comes back, of block devices: %s",
    unless(noScrypt),
    async (blockDevices) => {
      const w = await setUp({ ...large, settings: { blockDevices } });
      const file = path.join(w.dir, "work.img");
      const bytes = Buffer.concat([randomBytes(24_000_000), Buffer.alloc(16_000_000)]);
      const image = (change: (bytes: Buffer) => void) => {
        change(bytes);
        fs.writeFileSync(file, bytes);
        w.world.change("work", { volumes: { private: { size: bytes.length, file } } });
        return sha256(bytes);
      };
      const night = async () => {
        const name = await stored(w, await start(w).ended);
        const cost = (w.ledger().at(-1) as { bytes?: { read: number; sent: number } }).bytes!;
        return { name, ...cost };
      };
      const nights = [];
      for (const change of [
        () => {},
        () => {},
        // Two of its ten slots.
        () => bytes.write("in place", 5_000_000) && bytes.fill("new", 30_000_000, 30_100_000),
      ]) {
        const whole = image(change);
        nights.push({ whole, ...(await night()) });
      }
      const [first, same, day] = nights;
      assert.isAbove(first!.sent, 30_000_000);
      assert.isBelow(same!.sent, 40_960);
      assert.isAbove(same!.read, 30_000_000);
      assert.isAbove(day!.sent, 4_000_000);
      assert.isBelow(day!.sent, 4_500_000);
      // The server has no byte twice.
      const packs = fs.readdirSync(path.join(w.server.store, ".qbackup/packs"));
      const sizes = packs.map(
        (one) => fs.statSync(path.join(w.server.store, ".qbackup/packs", one)).size,
      );
      assert.strictEqual(
        sizes.reduce((sum, size) => sum + size, 0),
        nights.reduce((sum, { sent }) => sum + sent, 0),
      );
      const { qid } = w.world.qube("work");
      for (const { name, whole } of nights) {
        const entry = w.ledger().find((one) => one.name === name)!;
        const plain = path.join(w.dir, `${name}.plain`);
        const to = path.join(w.dir, `${name}.unpacked`);
        for (const words of [
          ["fetch", w.server.store, name, plain, JSON.parse(entry.manifest).root],
          ["extract", plain, "all", to],
        ]) {
          const ran = await execute(["sh", "install/qbackup-recover", ...words], {
            env: { ...process.env, PASSPHRASE_FILE: w.passphraseFile },
          }).ended;
          assert.strictEqual(ran.code, 0, ran.stderr);
        }
        const found = fs
          .readdirSync(to, { recursive: true, encoding: "utf8" })
          .find((one) => one.endsWith(`vm${qid}/private.img`))!;
        assert.strictEqual(sha256(fs.readFileSync(path.join(to, found))), whole, name);
      }
      const back = await restore(w, "--rename-conflicting", day!.name);
      assert.strictEqual(back.code, 0, back.stderr);
      cameBack(w, "work", "work-1");
    },
  );

  it(
    "comes back by the script that needs neither Qubes nor qbackup",
    unless(noScrypt),
    async () => {
      const w = await setUp({
        format: "slots",
        qubes: [
          { name: "work", size: 150_000_000, data: 9_000_000, files: { "notes.txt": "a note\n" } },
          { name: "vault", size: 200_000 },
          { name: "net", size: 0, include: false },
        ],
      });
      const name = await stored(w, await start(w).ended);
      const { root } = JSON.parse(w.ledger().at(-1)!.manifest);
      const tried = (...args: ReadonlyArray<string>) =>
        execute(["sh", "install/qbackup-recover", ...args], {
          env: { ...process.env, PASSPHRASE_FILE: w.passphraseFile },
        }).ended;
      const recover = async (...args: ReadonlyArray<string>) => {
        const ran = await tried(...args);
        assert.strictEqual(ran.code, 0, ran.stderr);
        return ran.stdout + ran.stderr;
      };
      const file = path.join(w.dir, "archive");
      await recover("fetch", w.server.store, name, file, root);
      assert.include(await recover("root", file), root);
      await recover("check", file);
      const to = path.join(w.dir, "unpacked");
      assert.match(await recover("extract", file, "all", to), /its seal holds: .* of run [0-9]+;/);
      const found = fs.readdirSync(to, { recursive: true, encoding: "utf8" });
      for (const qube of ["work", "vault"]) {
        const { qid, volumes } = w.world.qube(qube);
        const wanted = path.join(w.dir, "wanted.img");
        writeImage(imageOf({ name: qube }, "private", volumes["private"]!), wanted);
        const got = found.find((one) => one.endsWith(`vm${qid}/private.img`))!;
        assert.isTrue(fs.readFileSync(path.join(to, got)).equals(fs.readFileSync(wanted)), qube);
      }
      const note = found.find((one) => one.endsWith("notes.txt"))!;
      assert.strictEqual(fs.readFileSync(path.join(to, note), "utf8"), "a note\n");

      // A member that is whole, and well formed, but another one than this night's.
      const bytes = fs.readFileSync(file);
      const [one, two] = membersIn(bytes).filter(({ size }) => size === 128);
      bytes.copy(bytes, one!.start + 512, two!.start + 512, two!.start + two!.length);
      fs.writeFileSync(file, bytes);
      for (const args of [
        ["check", file],
        ["extract", file, "all", path.join(w.dir, "other")],
      ]) {
        const ran = await tried(...args);
        assert.strictEqual(ran.code, 1);
        assert.match(ran.stderr, /its members are not those that it was sealed with/);
      }
    },
  );

  it("kill -9 of qbackup in the middle: the tap ends, and the next run goes on", async () => {
    const w = await setUp(larger);
    for (const mebibytes of [0, 3, 12]) {
      const { child, ended } = start(w);
      // Of the run before something may still arrive, so a tap of this one says that it is under way.
      await until(
        `${mebibytes} MiB arrived`,
        () =>
          (tapsOf(w).length > 0 && w.arrived() > mebibytes * 2 ** 20) || child.exitCode !== null,
      );
      child.kill("SIGKILL");
      await ended;
      await released(w);
    }
    const ran = await start(w).ended;
    await stored(w, ran);
    assert.match(ran.stderr, /an earlier run has sent a part of it: this one goes on with that/);
    const { bytes } = w.ledger().at(-1) as { bytes?: { sent: number } };
    const [pack] = fs.readdirSync(path.join(w.server.store, ".qbackup/packs"));
    const { size } = fs.statSync(path.join(w.server.store, ".qbackup/packs", pack!));
    assert.isBelow(bytes!.sent, size - 8 * 2 ** 20);
  });

  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    it(`a person sends ${signal} in the middle: nothing is stored, nothing left`, async () => {
      const w = await setUp(large);
      const { child, ended } = start(w);
      await until("something arrived", () => w.arrived() > 0 || child.exitCode !== null);
      child.kill(signal);
      const ran = await ended;
      assert.strictEqual(ran.code, code, ran.stderr);
      assert.deepStrictEqual(await listed(w), []);
      await released(w);
      await tidy(w);
    });
  }

  it.each([false, true])(
    "a tap that is killed: nothing is stored, which is said, of block devices: %s",
    async (blockDevices) => {
      const w = await setUp({ ...larger, settings: { blockDevices } });
      const { child, ended } = start(w);
      await until("something arrived", () => w.arrived() > 0 || child.exitCode !== null);
      await until("a tap is killed", () => {
        const taps = tapsOf(w);
        for (const pid of taps) process.kill(pid, "SIGKILL");
        return taps.length > 0;
      });
      const ran = await ended;
      // Between two files it is qvm-backup that tells, and inside of one what is missing of it.
      if (ran.code === 3) assert.match(ran.stderr, /error: .*qvm-backup.* failed/);
      else {
        assert.strictEqual(ran.code, 6, ran.stderr);
        assert.match(
          ran.stderr,
          /error: \S+(?: file of the backup)? did not come whole from qubesd/,
        );
      }
      assert.deepStrictEqual(await listed(w), []);
      await tidy(w);
    },
  );
});
