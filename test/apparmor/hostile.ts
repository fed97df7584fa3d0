/**
 * What somebody does who has taken qbackup-shell over: everything that it must not, one thing after
 * another, and some that it may, so that refusing everything is noticed. Installed in its place.
 *
 * Each line of the output: case, what it should be, what it was; separated by tabs.
 */
import { spawnSync } from "node:child_process";
import * as dgram from "node:dgram";
import { once } from "node:events";
import * as fs from "node:fs";
import * as net from "node:net";

/**
 * Refused, granted, or told: what the profile cannot refuse (yet). Kernels before 6.17 do not look at
 * the addresses of unix sockets, and "owner" does not apply to what does not exist before.
 */
type Should = "refused" | "granted" | "told";

const [own, other] = ["/home/alice", "/home/bob"];
const books = `${own}/.qbackup`;
const archive = `${own}/old.backup`;
/** A process of the same account that is not confined. */
const victim = Number(fs.readFileSync(`${own}/victim`, "utf8"));

const create = (file: string) => () => fs.writeFileSync(file, "x", { flag: "wx" });
const append = (file: string) => () => fs.closeSync(fs.openSync(file, "a"));
const read = (file: string) => () => fs.readFileSync(file).subarray(0, 1);
/** Opened only: what writing there would do is nothing to be tried, even unconfined. */
const openForWriting = (file: string) => () => fs.closeSync(fs.openSync(file, "r+"));
const execute = (program: string, ...args: ReadonlyArray<string>) => {
  return () => {
    const { error, status } = spawnSync(program, args, { timeout: 10_000 });
    if (error !== undefined) throw error;
    if (status !== 0) throw new Error(`exit ${status}`);
  };
};
const load = (file: string) => () => {
  try {
    process.dlopen({ exports: {} }, file);
  } catch (error) {
    // It is no module of node's; but its code is in the process, and its constructors have run.
    if (!String(error).includes("did not self-register")) throw error;
  }
};
const connect = (where: net.NetConnectOpts) => async () => {
  const socket = net.connect(where);
  try {
    await once(socket, "connect");
  } finally {
    socket.destroy();
  }
};
const listen = (where: net.ListenOptions) => async () => {
  const server = net.createServer();
  try {
    await once(server.listen({ exclusive: true, ...where }), "listening");
  } finally {
    server.close();
  }
};
const datagram = (type: "udp4" | "udp6") => async () => {
  const socket = dgram.createSocket(type);
  try {
    socket.bind(0);
    await once(socket, "listening");
  } finally {
    socket.close();
  }
};

const cases: ReadonlyArray<readonly [string, Should, () => unknown]> = [
  ["write into its own books", "granted", create(`${books}/probe`)],
  ["add an archive by a link", "granted", () => fs.linkSync(`${books}/probe`, `${own}/new.backup`)],
  ["add a pack by a link", "granted", () => fs.linkSync(`${books}/probe`, `${books}/packs/new`)],
  ["read an archive of its own", "granted", read(archive)],
  ["read a pack", "granted", read(`${books}/packs/old`)],
  ["read a tombstone", "granted", read(`${books}/tombstones/old`)],
  ["list its store", "granted", () => fs.readdirSync(own)],
  ["listen under a lock's name", "granted", listen({ path: "\0qbackup/probe" })],

  ["overwrite an archive", "refused", openForWriting(archive)],
  ["append to an archive", "refused", append(archive)],
  ["truncate an archive", "refused", () => fs.truncateSync(archive, 1)],
  ["make an archive writable", "refused", () => fs.chmodSync(archive, 0o666)],
  ["link an archive into its books", "refused", () => fs.linkSync(archive, `${books}/alias`)],
  ["rename an archive", "refused", () => fs.renameSync(archive, `${books}/taken`)],
  ["rename onto an archive", "refused", () => fs.renameSync(`${books}/moved`, `${own}/b.backup`)],
  ["remove an archive", "refused", () => fs.unlinkSync(`${own}/c.backup`)],
  ["overwrite a record", "refused", openForWriting(`${archive}.manifest.json`)],
  ["remove a record", "refused", () => fs.unlinkSync(`${archive}.manifest.json`)],
  ["overwrite a pack", "refused", openForWriting(`${books}/packs/old`)],
  ["remove a pack", "refused", () => fs.unlinkSync(`${books}/packs/old`)],
  ["write a file of its own among the packs", "refused", create(`${books}/packs/file`)],
  ["write a tombstone", "refused", create(`${books}/tombstones/file`)],
  ["write a file of its own into the store", "refused", create(`${own}/file`)],
  ["make a directory in the store", "refused", () => fs.mkdirSync(`${own}/directory`)],
  ["make a symbolic link in the store", "refused", () => fs.symlinkSync("/etc", `${own}/link`)],
  ["append to ~/.ssh/authorized_keys", "refused", append(`${own}/.ssh/authorized_keys`)],
  ["create a file in ~/.ssh", "refused", create(`${own}/.ssh/rc`)],
  ["link a file into ~/.ssh", "refused", () => fs.linkSync(`${books}/probe`, `${own}/.ssh/x`)],
  ["create ~/.bashrc", "refused", create(`${own}/.bashrc`)],
  ["create a hidden file further down", "refused", create(`${own}/sub/.ssh/authorized_keys`)],
  [
    "link a hidden file further down",
    "refused",
    () => fs.linkSync(`${books}/probe`, `${own}/sub/.x`),
  ],
  ["create a file in ~/.Private", "refused", create(`${own}/.Private/x`)],
  ["write into another's world-writable home", "refused", create(`${other}/x`)],
  [
    "link into another's world-writable home",
    "told",
    () => fs.linkSync(`${books}/probe`, `${other}/l`),
  ],
  [
    "make .qbackup in another's world-writable home",
    "told",
    () => fs.mkdirSync(`${other}/.qbackup`),
  ],
  ["write to another's world-writable file", "refused", append(`${other}/file`)],
  ["remove another's file", "refused", () => fs.unlinkSync(`${other}/file2`)],
  ["write another's .ssh/authorized_keys", "refused", create(`${other}/.ssh/authorized_keys`)],
  ["write into a store elsewhere", "refused", create("/srv/other/x")],
  ["write /tmp", "refused", create("/tmp/hostile")],
  ["write /etc", "refused", create("/etc/hostile")],
  ["append to /etc/passwd", "refused", append("/etc/passwd")],
  ["write /usr/bin", "refused", create("/usr/bin/hostile")],
  ["write /dev/shm", "refused", create("/dev/shm/hostile")],
  ["write the kernel's log", "refused", append("/dev/kmsg")],

  ["read /etc/shadow", "refused", read("/etc/shadow")],
  ["read /etc/passwd", "refused", read("/etc/passwd")],
  ["read the host's ssh key", "refused", read("/etc/ssh/host_key")],
  ["read ~/.ssh/authorized_keys", "refused", read(`${own}/.ssh/authorized_keys`)],
  ["read a hidden file of the account", "refused", read(`${own}/.hidden`)],
  ["read another account's archive", "refused", read(`${other}/file`)],
  ["read another account's identity", "refused", read(`${other}/.books/identity`)],
  ["list another account's store", "refused", () => fs.readdirSync(other)],
  ["read a store elsewhere", "refused", read("/srv/other/file")],
  ["list /", "refused", () => fs.readdirSync("/")],
  ["list /home", "refused", () => fs.readdirSync("/home")],
  [
    "bring /etc/shadow in by a link",
    "refused",
    () => fs.linkSync("/etc/shadow", `${books}/shadow`),
  ],
  ["read another process's environment", "refused", read(`/proc/${victim}/environ`)],
  ["read its own environment from /proc", "refused", read("/proc/self/environ")],

  ["run /bin/sh", "refused", execute("/bin/sh", "-c", ":")],
  ["run node", "refused", execute("/usr/bin/node", "--version")],
  ["run itself", "refused", execute("/usr/bin/qbackup-shell", "--nothing")],
  ["run a program from its books", "refused", execute(`${books}/busybox`, "true")],
  ["run a program from the store", "refused", execute(`${own}/busybox`, "true")],
  ["run a program from ~/.Private", "refused", execute(`${own}/.Private/busybox`, "true")],
  ["load a library from its books", "refused", load(`${books}/evil.so`)],
  ["load a library from the store", "refused", load(`${own}/evil.so`)],
  ["load a library from ~/.Private", "refused", load(`${own}/.Private/evil.so`)],
  ["write its own memory", "refused", openForWriting("/proc/self/mem")],
  ["leave the profile", "refused", openForWriting("/proc/self/attr/current")],
  [
    "unload the profile",
    "refused",
    () => fs.closeSync(fs.openSync("/sys/kernel/security/apparmor/.remove", "w")),
  ],
  ["change what core dumps run", "refused", openForWriting("/proc/sys/kernel/core_pattern")],
  ["signal another process", "refused", () => process.kill(victim, "SIGCONT")],

  ["TCP, connect", "refused", connect({ host: "127.0.0.1", port: 22 })],
  ["TCP, listen", "refused", listen({ host: "127.0.0.1", port: 2001 })],
  ["TCP over IPv6, connect", "refused", connect({ host: "::1", port: 22 })],
  ["TCP over IPv6, listen", "refused", listen({ host: "::1", port: 2001 })],
  ["UDP", "refused", datagram("udp4")],
  ["UDP over IPv6", "refused", datagram("udp6")],
  ["unix socket with a path, connect", "told", connect({ path: "/run/victim" })],
  ["unix socket with a path, listen", "refused", listen({ path: "/tmp/hostile.socket" })],
  ["abstract unix socket of another name, connect", "told", connect({ path: "\0victim" })],
  ["abstract unix socket of another name, listen", "told", listen({ path: "\0other" })],
];

const main = async () => {
  for (const [name, should, attempt] of cases) {
    let was = "granted";
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise((_, fail) => {
      timer = setTimeout(() => fail(new Error("did not come back")), 5000);
    });
    try {
      // One after another: each finds what the one before it left.
      // oxlint-disable-next-line no-await-in-loop
      await Promise.race([attempt(), late]);
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      was = `refused (${code ?? message.slice(0, 60)})`;
    }
    clearTimeout(timer);
    fs.writeSync(1, `${name}\t${should}\t${was}\n`);
  }
  process.exit(0);
};
void main();
