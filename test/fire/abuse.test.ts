/** Clients that lie about lengths, talk without end, or do not listen; over the real ssh. */
import { spawn } from "node:child_process";
import { afterAll, afterEach, assert, describe, it, vi } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { lengthPrefix } from "#src/wire/frames";
import { processesWith } from "#test/support/programs";
import { isRoot, type Server, startServer } from "#test/support/server";
import { dist, whole, type Whole } from "#test/support/whole";
import {
  archive,
  below,
  command,
  full,
  type Parcel,
  pause,
  put,
  removeScratch,
  scratch,
  sessionOf,
  talk,
  type Talk,
} from "./wire.ts";

vi.setConfig({ testTimeout: 180_000, hookTimeout: 60_000 });
afterAll(removeScratch);

let server: Server | undefined;
let shell = "";
afterEach(() => {
  server?.stop();
  server = undefined;
});

const setUp = async (): Promise<(command: string, limit?: number) => Talk> => {
  const dir = scratch();
  fs.chmodSync(dir, 0o755);
  shell = path.join(dir, "qbackup-shell");
  fs.copyFileSync(dist("qbackup-shell"), shell);
  fs.chmodSync(shell, 0o755);
  const started = (server = await startServer({
    dir: path.join(dir, "server"),
    shell,
    as: isRoot ? "both" : "forced-command",
  }));
  return (text, limit = 120_000) =>
    talk(["/usr/bin/ssh", ...started.ssh, "--", started.destination, text], { limit });
};

/** The most that a program with `word` in its arguments ever had in memory, in MiB, until `stop`. */
const memory = (word: () => string) => {
  let most = 0;
  const look = () => {
    for (const pid of processesWith(word())) {
      try {
        const kb = /^VmHWM:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
        most = Math.max(most, Number(kb ?? 0) / 1024);
      } catch {
        // It ended between the look and the other look.
      }
    }
  };
  const timer = setInterval(look, 20);
  return () => {
    look();
    clearInterval(timer);
    return most;
  };
};
/** MiB; an idle server takes some 60, one at work has blocks and buffers besides. */
const bound = 320;

const session = sessionOf(1);
const nothingStored = (): void => {
  const { store } = server!;
  assert.deepStrictEqual(
    below(store).filter((name) => !/^\.qbackup(\/(digests|incoming|identity))?$/.test(name)),
    [],
  );
};

/** Sends the same piece again and again, until so many bytes went or nobody takes them. */
const pour = async (call: Talk, bytes: number, piece = Buffer.alloc(1_048_576, 0x78)) => {
  let sent = 0;
  while (sent < bytes && (await call.send(piece))) sent += piece.length;
  return sent;
};

describe("a client of the server", () => {
  it("announces a frame of 4 GiB", async () => {
    const ssh = await setUp();
    for (const length of [0xfffffffe, 0x80000001, 0x7fffffff, 1_048_577]) {
      const used = memory(() => shell);
      const call = ssh(`qbackup/1 put a.backup ${session}`);
      assert.strictEqual((await call.next())?.type, "ready");
      await call.send(lengthPrefix(length));
      void pour(call, 64 * 1_048_576);
      const said = await call.next();
      assert.strictEqual(said?.["code"], "bad-request", JSON.stringify(said));
      call.end();
      assert.strictEqual((await call.ended).code, 2);
      assert.isBelow(used(), bound);
      nothingStored();
    }
  });

  it("sends a trailer of 16 MiB that is none, and one that is longer", async () => {
    const ssh = await setUp();
    const bytes = archive(20_000);
    for (const [length, code] of [
      [16 * 1_048_576, "bad-request"],
      [16 * 1_048_576 + 1, "bad-request"],
      [0xffffffff, "bad-request"],
    ] as const) {
      for (const junk of [
        "x",
        "[",
        "[],",
        '{"":',
        '{"a":0},',
        '"\\u0000',
        '{"manifest":"',
        "\xff",
      ]) {
        if (!full && (length > 16 * 1_048_576 ? junk !== "x" : !"[x\xff".includes(junk))) continue;
        const used = memory(() => shell);
        const call = ssh(`qbackup/1 put a.backup ${session}`);
        assert.strictEqual((await call.next())?.type, "ready");
        await call.send(Buffer.concat([lengthPrefix(bytes.length), bytes, lengthPrefix(0)]));
        await call.send(lengthPrefix(length));
        void call.send(Buffer.alloc(Math.min(length, 16 * 1_048_576), junk, "latin1"));
        const said = await call.next();
        assert.strictEqual(said?.["code"], code, JSON.stringify(said));
        call.end();
        assert.strictEqual((await call.ended).code, 2);
        assert.isBelow(used(), bound + 100, junk);
        nothingStored();
      }
    }
  });

  it("sends a gigabyte where nobody asked for a byte, and where an archive should be", async () => {
    const ssh = await setUp();
    const size = full ? 1_073_741_824 : 268_435_456;
    for (const [text, code] of [
      ["qbackup/1 list", 0],
      ["a.backup", 6],
      [`qbackup/1 put a.backup ${session}`, 2],
      ["ls", 6],
    ] as const) {
      const used = memory(() => shell);
      const call = ssh(text);
      void pour(call, size);
      assert.strictEqual((await call.ended).code, code, text);
      assert.isBelow(used(), bound);
      nothingStored();
    }
  });

  it("does not listen: a server that cannot speak does not pile up what it would say", async () => {
    const ssh = await setUp();
    const parcel: Parcel = { name: "a.backup", session, archive: archive(60_000_000) };
    assert.isDefined((await put(ssh(command(parcel)), parcel)).stored);
    const used = memory(() => shell);
    const reader = spawn(
      "/usr/bin/ssh",
      [...server!.ssh, "--", server!.destination, "qbackup/1 read a.backup 0 57"],
      { stdio: ["pipe", "pipe", "ignore"] },
    );
    reader.stdout.pause();
    await pause(full ? 75_000 : 4000);
    assert.isBelow(used(), bound);
    // In a minute without a byte taken it has given up by itself.
    if (full) assert.deepStrictEqual(processesWith(shell), []);
    reader.kill("SIGKILL");
  });

  it.runIf(full)("sends a byte now and then: that is silence, and ends in a minute", async () => {
    const ssh = await setUp();
    const call = ssh(`qbackup/1 put a.backup ${session}`);
    assert.strictEqual((await call.next())?.type, "ready");
    const started = Date.now();
    const timer = setInterval(() => void call.send(Buffer.from([0])), 20_000);
    const { code } = await call.ended;
    clearInterval(timer);
    assert.strictEqual(code, 4);
    assert.isBelow(Date.now() - started, 80_000);
    assert.isAbove(Date.now() - started, 55_000);
    nothingStored();
  });
});

describe("what answers dom0", () => {
  let w: Whole | undefined;
  afterEach(() => {
    w?.stop();
    w = undefined;
  });
  it.each([
    ["a gigabyte without a line", "head -c 1073741824 /dev/zero"],
    ["lines without end", "yes"],
    ["one line without end", "tr '\\0' x < /dev/zero"],
    ["replies without end", `echo; yes '{"type":"alive"}'`],
    [
      "acknowledgements without end",
      `echo; echo '{"type":"ready","offset":0,"server":"'$(head -c 32 /dev/zero | base64)'"}'; yes '{"type":"ack","offset":0}'`,
    ],
  ])("talks without end: %s", async (_, script) => {
    w = await whole();
    w.world.service("net", "qubes.BackupCarrier", {
      text: `#!/bin/sh\nread -r line\n${script}\n`,
    });
    const used = memory(() => dist("qbackup"));
    const { child, ended } = w.start("-o", "-t", "net", "-p", w.passphraseFile, "work");
    // A peer that keeps saying that it lives is only stopped by a person.
    const timer = setTimeout(() => child.kill("SIGINT"), 5000);
    const ran = await ended;
    clearTimeout(timer);
    assert.include([4, 6, 130], ran.code, ran.stderr);
    assert.isBelow(used(), 400);
    assert.isBelow(ran.stderr.length, 20_000);
    assert.lengthOf(w.ledger(), 0);
    assert.strictEqual(w.world.qube("net").state, "Halted");
  });
});
