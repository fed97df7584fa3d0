/**
 * A qubesd and a qvm-backup that have what matters of the genuine ones for whoever makes the FIFO:
 * qubesd opens it blocking in its only thread, the writing is done by processes of its own that go
 * on when qvm-backup is cancelled, and qvm-backup cancels on SIGINT only.
 */
import { type ChildProcess, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import type { Programs } from "#test/support/programs";

/** What qvm-backup is to do. Times in milliseconds, sizes in bytes. */
export interface Orders {
  /** One writer after another, each opening the FIFO anew. */
  readonly writers?: ReadonlyArray<{ readonly size: number; readonly after?: number }>;
  /** How long qubesd works before it opens the FIFO. */
  readonly thinks?: number;
  /** The last writer keeps the FIFO open for this long after qvm-backup was told that all is done. */
  readonly lingers?: number;
  readonly deaf?: boolean;
}

const qubesd = `
const fs = require("node:fs"), net = require("node:net"), { spawn } = require("node:child_process");
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));
const say = (text) => fs.appendFileSync(process.env.DIR + "/qubesd.log", text + "\\n");
let cancelled = false;
const execute = async (fifo, { writers = [], thinks = 0, lingers = 0 }, reply) => {
  cancelled = false;
  await sleep(thinks);
  let from = 0;
  for (const { size, after = 0 } of writers) {
    await sleep(after);
    if (cancelled) return;
    say("opening");
    let fd;
    try { fd = fs.openSync(fifo, fs.constants.O_WRONLY | fs.constants.O_CREAT); } catch (e) { say("no FIFO: " + e.code); return reply("error"); }
    say("opened");
    if (!fs.fstatSync(fd).isFIFO()) say("NOT A FIFO");
    const last = size + from === writers.reduce((n, w) => n + w.size, 0) && lingers > 0;
    const tar = spawn(process.execPath, ["-e", \`
      const fs = require("node:fs");
      const [from, size, lingers] = process.argv.slice(1).map(Number);
      const b = Buffer.from(Uint8Array.from({ length: size }, (_, k) => { const i = k + from; return (i * 7 + (i >> 8) * 3 + (i >> 16)) & 255; }));
      try { for (let at = 0; at < size;) at += fs.writeSync(1, b, at); } catch (e) { process.exit(1); }
      setTimeout(() => {}, lingers);
    \`, from, size, lingers], { stdio: ["ignore", fd, "inherit"] });
    const done = new Promise((r) => tar.on("exit", (code, signal) => { say("tar " + (code ?? signal)); r(); }));
    fs.closeSync(fd);
    from += size;
    if (last) await sleep(200); else await done;
  }
  reply("done");
};
net.createServer((c) => {
  c.on("error", () => {});
  c.on("data", (d) => {
    const [what, fifo, orders] = JSON.parse(String(d));
    if (what === "ping") c.end("pong");
    if (what === "cancel") { cancelled = true; say("cancelled"); c.end("cancelled"); }
    if (what === "execute") execute(fifo, orders, (t) => c.end(t));
  });
}).listen(process.env.DIR + "/qubesd.sock", () => say("ready"));
`;

const qvmBackup = (node: string) => `#!${node}
const fs = require("node:fs"), net = require("node:net");
const orders = JSON.parse(fs.readFileSync(process.env.DIR + "/orders.json", "utf8"));
const fifo = process.argv.find((a) => a.endsWith("/archive"));
fs.appendFileSync(process.env.DIR + "/argv", JSON.stringify(process.argv.slice(2)) + "\\n");
const ask = (what) => new Promise((r) => {
  const c = net.connect(process.env.DIR + "/qubesd.sock", () => c.write(JSON.stringify(what)));
  let said = ""; c.on("data", (d) => said += d); c.on("close", () => r(said)); c.on("error", () => r("gone"));
});
process.on("SIGINT", async () => {
  fs.appendFileSync(process.env.DIR + "/qubesd.log", "SIGINT\\n");
  if (orders.deaf) return;
  await ask(["cancel"]);
  process.stderr.write("\\nBackup error: Backup cancelled\\n");
  process.exit(1);
});
process.stderr.write("\\rMaking a backup... 0.00%");
ask(["execute", fifo, orders]).then((said) => { process.stderr.write("\\rMaking a backup... 100.06%"); process.exit(said === "done" ? 0 : 1); });
`;

export interface FakeQubes {
  readonly orders: (orders: Orders) => void;
  readonly log: () => ReadonlyArray<string>;
  /** Whether qubesd still answers. Where it hangs in an open, it does not. */
  readonly answers: (withinMs?: number) => Promise<boolean>;
  readonly stop: () => void;
}

export const fakeQubes = async (it: Programs): Promise<FakeQubes> => {
  it.add("qvm-backup", qvmBackup(process.execPath));
  fs.writeFileSync(path.join(it.dir, "qubesd.cjs"), qubesd);
  const orders = (what: Orders) =>
    fs.writeFileSync(path.join(it.dir, "orders.json"), JSON.stringify(what));
  const daemon: ChildProcess = spawn(process.execPath, [path.join(it.dir, "qubesd.cjs")], {
    env: it.env,
    stdio: ["ignore", "ignore", "inherit"],
  });
  const answers = (withinMs = 60_000) =>
    new Promise<boolean>((resolve) => {
      const socket = net.connect(path.join(it.dir, "qubesd.sock"), () => {
        socket.write(JSON.stringify(["ping"]));
      });
      const done = (yes: boolean) => {
        clearTimeout(timer);
        socket.destroy();
        resolve(yes);
      };
      const timer = setTimeout(done, withinMs, false);
      socket.on("data", () => done(true));
      socket.on("error", () => done(false));
    });
  while (!(await answers())) await new Promise((resolve) => setTimeout(resolve, 20));
  return {
    orders,
    log: () => it.read("qubesd.log").trim().split("\n"),
    answers,
    stop: () => daemon.kill("SIGKILL"),
  };
};
