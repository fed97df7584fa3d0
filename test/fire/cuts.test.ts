/**
 * A network that swallows everything for a while, as a closed lid or a lost access point does: no
 * side is told, and the old connection is still there when the new one comes.
 *
 * The client's ssh runs in a network namespace of its own, behind a veth pair. To cut, both ends
 * address their frames to a machine that is not there: no packet arrives, and nobody gets an error.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { afterEach, assert, describe, it, type TestContext } from "vitest";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { parseManifest } from "#src/proof/texts";
import { processesWith } from "#test/support/programs";
import { linesOf, rootOf, tableOf } from "#test/support/reference";
import { notRoot, unless } from "#test/support/unless";
import { type Ran, type Whole, whole, type WholeOptions } from "#test/support/whole";
import { pause } from "./wire.ts";
import { until } from "#test/support/until";

const ip = (...args: ReadonlyArray<string>): void => {
  execFileSync("ip", args, { stdio: "pipe" });
};
/** Names that nobody else has, nor had before it was killed; short enough for the kernel. */
const own = randomBytes(4).toString("hex");
const namespace = `qbf${own}`;
const [outer, inner] = [`qa${own}`, `qi${own}`];
const [here, there] = [1, 2].map((n) => `10.231.${process.pid % 256}.${n}`) as [string, string];
const nowhere = "02:00:00:00:00:01";

const connect = (): void => {
  ip("netns", "add", namespace);
  ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace);
  ip("addr", "add", `${here}/30`, "dev", outer);
  ip("link", "set", outer, "up");
  ip("-n", namespace, "addr", "add", `${there}/30`, "dev", inner);
  ip("-n", namespace, "link", "set", inner, "up");
};
const disconnect = (): void => {
  spawnSync("ip", ["link", "del", outer]);
  spawnSync("ip", ["netns", "del", namespace]);
};
const swallow = (): void => {
  const wrong = ["lladdr", nowhere, "nud", "permanent"];
  ip("neigh", "replace", there, "dev", outer, ...wrong);
  ip("-n", namespace, "neigh", "replace", here, "dev", inner, ...wrong);
};
const heal = (): void => {
  ip("neigh", "del", there, "dev", outer);
  ip("-n", namespace, "neigh", "del", here, "dev", inner);
};

const noNetwork: string | undefined = (() => {
  if (notRoot !== undefined) return notRoot;
  try {
    connect();
    return undefined;
  } catch (error) {
    return `no network namespaces here: ${String((error as Error).message)}`;
  } finally {
    disconnect();
  }
})();

const large: WholeOptions = {
  qubes: [
    { name: "work", size: 30_000_000 },
    { name: "net", size: 0, include: false },
  ],
  settings: { raw: true },
  limit: 170_000,
};
const incoming = (each: Whole) => path.join(each.server.store, ".qbackup/incoming");
const arrived = (each: Whole): number =>
  fs.existsSync(incoming(each))
    ? Math.max(
        0,
        ...fs.readdirSync(incoming(each)).map((name) => {
          const file = path.join(incoming(each), name);
          return fs.statSync(file, { throwIfNoEntry: false })?.size ?? 0;
        }),
      )
    : 0;
/** Processes that have the upload's bytes open for writing. */
const writing = (each: Whole): ReadonlyArray<number> =>
  processesWith("qbackup-shell").filter((pid) => {
    try {
      return fs.readdirSync(`/proc/${pid}/fd`).some((fd) => {
        const to = fs.readlinkSync(`/proc/${pid}/fd/${fd}`);
        return path.dirname(to) === incoming(each) && /\/[0-9a-f]{32}$/.test(to);
      });
    } catch {
      return false; // it ended between the look and the other look
    }
  });
const stored = (each: Whole, ran: Ran): void => {
  assert.strictEqual(ran.code, 0, ran.stderr);
  const entry = each.ledger().at(-1)!;
  const manifest = parseManifest(entry.manifest)!;
  const bytes = fs.readFileSync(path.join(each.server.store, entry.name));
  assert.strictEqual(bytes.length, manifest.size);
  assert.strictEqual(rootOf(linesOf(tableOf(bytes))), manifest.root);
  assert.deepStrictEqual(fs.readdirSync(incoming(each)), []);
};
/** Watches, all the time, that there are never two writers; gives what it saw. */
const watching = (each: Whole) => {
  let most = 0;
  const timer = setInterval(() => (most = Math.max(most, writing(each).length)), 100);
  return () => {
    clearInterval(timer);
    return most;
  };
};

describe("the network", unless(noNetwork), () => {
  let w: Whole | undefined;
  let gate: net.Server | undefined;
  afterEach(() => {
    gate?.close();
    gate = undefined;
    w?.stop();
    w = undefined;
    disconnect();
  });

  /** From the far side's network to the sshd on loopback. */
  const relay = (to: number): Promise<net.Server> =>
    new Promise((resolve) => {
      const server = net.createServer({ allowHalfOpen: true }, (client) => {
        const onward = net.connect({ port: to, host: "127.0.0.1", allowHalfOpen: true });
        for (const [from, into] of [
          [client, onward],
          [onward, client],
        ] as const) {
          from.pipe(into);
          from.on("error", () => into.destroy());
        }
      });
      server.listen(0, here, () => resolve(server));
    });
  /** `alive`: how long ssh stands silence, in seconds. */
  const setUp = async (alive: number): Promise<Whole> => {
    connect();
    const each = (w = await whole(large));
    const { port, ssh } = each.server;
    gate = await relay(port);
    const way = [
      `-p ${(gate.address() as net.AddressInfo).port}`,
      `-o HostName=${here}`,
      `-o "HostKeyAlias=[127.0.0.1]:${port}"`,
      `-o ServerAliveInterval=1 -o ServerAliveCountMax=${alive}`,
    ].join(" ");
    fs.writeFileSync(
      path.join(each.dir, "bin/ssh"),
      `#!/bin/sh\nexec ip netns exec ${namespace} /usr/bin/ssh ${way} ${ssh.join(" ")} "$@"\n`,
      { mode: 0o755 },
    );
    return each;
  };
  it("swallows everything for longer than ssh waits: half-open, then one writer again", async () => {
    const each = await setUp(3);
    each.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 5_000_000 });
    const seen = watching(each);
    const { ended } = each.start("-o", "-t", "net", "-p", each.passphraseFile, "work");
    await until("some of it is there", () => arrived(each) > 3_000_000);
    swallow();
    await pause(6000);
    // The old one does not know that nobody is there any more.
    assert.strictEqual(writing(each).length, 1);
    heal();
    const ran = await ended;
    stored(each, ran);
    assert.match(ran.stderr, /the link broke/);
    assert.strictEqual(seen(), 1, "two processes had the upload open at once");
  });

  it("swallows everything for a moment only: nothing has to be made again", async () => {
    const each = await setUp(20);
    each.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 5_000_000 });
    const { ended } = each.start("-o", "-t", "net", "-p", each.passphraseFile, "work");
    await until("some of it is there", () => arrived(each) > 3_000_000);
    swallow();
    await pause(2500);
    heal();
    const ran = await ended;
    stored(each, ran);
    assert.notMatch(ran.stderr, /the link broke/);
  });
});

/** One of its own for each test: they wait side by side. */
const ofTest = async (test: TestContext, options: WholeOptions = large): Promise<Whole> => {
  const each = await whole(options);
  test.onTestFinished(each.stop);
  return each;
};

describe.concurrent("the far side", () => {
  /** The first connection of an upload goes through `filter`, all others are as they should be. */
  const firstThrough = (filter: string): string =>
    `case "$*" in *"qbackup/1 put "*) ;; *) exec /usr/bin/ssh $(eval echo $OPTIONS) "$@" ;; esac
count=$(dirname $0)/count; n=$(cat $count 2>/dev/null || echo 0); echo $((n+1)) > $count
[ $n -gt 0 ] && exec /usr/bin/ssh $(eval echo $OPTIONS) "$@"
/usr/bin/ssh $(eval echo $OPTIONS) "$@" ${filter}`;

  it("commits, and its last word is lost: asked again, it says so again", async (test) => {
    const w = await ofTest(test, {
      sshScript: firstThrough(`| grep -v --line-buffered '"stored"'`),
    });
    const ran = await w.run("-o", "work");
    stored(w, ran);
    assert.match(ran.stderr, /the link broke/);
    assert.lengthOf(w.ledger(), 1);
    assert.strictEqual(fs.readFileSync(path.join(w.dir, "bin/count"), "utf8"), "2\n");
    assert.lengthOf(w.world.calls("qvm-backup"), 1);
  });

  /** Stops whatever has the upload open for so long, and lets it go on. */
  const stopped = async (test: TestContext, ms: number): Promise<Ran> => {
    const each = await ofTest(test);
    each.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 5_000_000 });
    const seen = watching(each);
    const { ended } = each.start("-o", "-t", "net", "-p", each.passphraseFile, "work");
    await until("some of it is there", () => arrived(each) > 3_000_000);
    const pids = writing(each);
    for (const pid of pids) process.kill(pid, "SIGSTOP");
    await pause(ms);
    assert.strictEqual(seen(), 1);
    for (const pid of pids) process.kill(pid, "SIGCONT");
    const ran = await ended;
    stored(each, ran);
    return ran;
  };
  it("is suspended for a while: the same connection goes on", async (test) => {
    assert.notMatch((await stopped(test, 4000)).stderr, /the link broke/);
  });
  it("is suspended for longer than dom0 waits: never two writers", async (test) => {
    assert.match((await stopped(test, 80_000)).stderr, /the link broke/);
  });
});

describe.concurrent("the near side", () => {
  it("is suspended for longer than the server waits: it goes on where it was", async (test) => {
    const each = await ofTest(test);
    each.world.faults({ tool: "qvm-backup", kind: "slow", bytesPerSecond: 5_000_000 });
    const { ended } = each.start("-o", "-t", "net", "-p", each.passphraseFile, "work");
    await until("some of it is there", () => arrived(each) > 9_000_000);
    const server = new Set([each.dir + "/bin/qbackup-shell", "sshd"].flatMap(processesWith));
    const machine = processesWith(each.dir).filter((pid) => !server.has(pid));
    assert.isAbove(machine.length, 4);
    const signal = (name: NodeJS.Signals) => {
      for (const pid of machine) {
        try {
          process.kill(pid, name);
        } catch {
          // A program that was ending when it was found.
        }
      }
    };
    signal("SIGSTOP");
    await pause(75_000);
    assert.deepStrictEqual(writing(each), [], "the server still waits for it");
    assert.isAtLeast(arrived(each), 8 * 1_048_576);
    signal("SIGCONT");
    const ran = await ended;
    stored(each, ran);
    assert.match(ran.stderr, /the link broke after [1-9]/);
    assert.lengthOf(each.world.calls("qvm-backup"), 1);
  });
});
