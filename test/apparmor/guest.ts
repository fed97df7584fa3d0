/**
 * Runs in the guest, as root and unconfined: real ssh sessions with the real program, then hostile
 * programs in its place, and the table of what happened. Ends with 0 when all of it is as it should be.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import * as crypto from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import * as net from "node:net";
import * as os from "node:os";
import { isDeepStrictEqual } from "node:util";
import { thinNights } from "#test/apparmor/thin";
import { archiveOf } from "#test/support/archive";
import {
  commandOf,
  framed,
  giveUp,
  linesOf,
  mebi,
  membersOf,
  pairOf,
  rootOf,
  tableOf,
  textOf,
  type Ticket,
  ticketText,
} from "#test/support/reference";

const shell = "/usr/bin/qbackup-shell";
/** No single step takes longer, in milliseconds. */
const limit = 200_000;

// The table ------------------------------------------------------------------------------------------

interface Row {
  readonly name: string;
  readonly columns: ReadonlyArray<string>;
  readonly right: boolean;
}
const rows: Array<Row> = [];
const row = (name: string, right: boolean, ...columns: ReadonlyArray<string>) =>
  rows.push({ name, columns, right });
const say = (text: string) => fs.writeSync(1, text);

const table = (title: string, heads: ReadonlyArray<string>) => {
  const lines = [heads, ...rows.map(({ columns, name }) => [name, ...columns])];
  const widths = heads.map((_, i) => Math.max(...lines.map((line) => (line[i] ?? "").length)));
  const draw = (line: ReadonlyArray<string>, mark: string) =>
    `${mark} ${line.map((text, i) => text.padEnd(widths[i]!)).join(" | ")}`.trimEnd();
  say(`\n${title}\n${draw(heads, " ")}\n`);
  for (const { columns, name, right } of rows)
    say(`${draw([name, ...columns], right ? " " : "!")}\n`);
  const wrong = rows.filter(({ right }) => !right).length;
  rows.length = 0;
  return wrong;
};

/** A step of which only the outcome counts. */
const step = async (name: string, attempt: () => Promise<string | void>): Promise<void> => {
  try {
    row(name, true, "-", (await attempt()) ?? "works");
  } catch (error) {
    row(name, false, "-", `FAILS: ${(error as Error).message.replaceAll("\n", " ").slice(0, 300)}`);
  }
};
const must = (condition: boolean, message: string) => {
  if (!condition) throw new Error(message);
};

// The real program -----------------------------------------------------------------------------------

interface Reply {
  readonly type: string;
  readonly [field: string]: unknown;
}

const sshOptions = ["-F", "none", "-T", "-i", "/test/key", "-o", "BatchMode=yes"].concat(
  ["-o", "UserKnownHostsFile=/test/known_hosts", "-o", "IdentityAgent=none"],
  // The emulated processor takes seconds for the key exchange that ssh prefers.
  ["-o", "LogLevel=ERROR", "-o", "KexAlgorithms=curve25519-sha256"],
);

/** The connection that the sessions of an account share, for the time that it saves. */
const connect = (account: string) => {
  const args = [...sshOptions, "-f", "-N", "-M", "-o", `ControlPath=/test/connection-${account}`];
  // Not "pipe": ssh goes into the background with its descriptors.
  spawnSync("/usr/bin/ssh", [...args, `${account}@127.0.0.1`], { stdio: "ignore", timeout: limit });
};

/** One ssh session. */
class Session {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  stderr = "";
  stdout = "";
  private readonly found: Array<Reply> = [];
  private wake = () => {};
  private open = true;

  /** `alone`: on a connection of its own, which can be cut. */
  constructor(account: string, command: string, alone = false) {
    const path = alone ? "none" : `/test/connection-${account}`;
    const args = [
      ...sshOptions,
      "-o",
      `ControlPath=${path}`,
      "--",
      `${account}@127.0.0.1`,
      command,
    ];
    this.child = spawn("/usr/bin/ssh", args, { stdio: "pipe" });
    const timer = setTimeout(() => this.child.kill("SIGKILL"), limit);
    this.child.stdin!.on("error", () => {});
    this.child.stderr!.on("data", (bytes: Buffer) => (this.stderr += bytes.toString()));
    let rest = "";
    this.child.stdout!.on("data", (bytes: Buffer) => {
      this.stdout += bytes.toString();
      const lines = (rest + bytes.toString()).split("\n");
      rest = lines.pop()!;
      for (const line of lines.filter((text) => text.startsWith("{"))) {
        try {
          this.found.push(JSON.parse(line) as Reply);
        } catch {
          // A block of an archive may begin like a reply.
        }
      }
      this.wake();
    });
    this.ended = once(this.child, "close").then(([code]) => {
      clearTimeout(timer);
      this.open = false;
      this.wake();
      return code as number | null;
    });
  }

  async next(): Promise<Reply | undefined> {
    while (this.found.length === 0 && this.open) {
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
    return this.found.shift();
  }
  /** The next reply of that type; acknowledgements before it are read over. */
  async expect(type: string): Promise<Reply> {
    for (;;) {
      const reply = await this.next();
      if (reply?.type === type) return reply;
      if (reply?.type === "ack" || reply?.type === "alive") continue;
      throw new Error(`${type} expected, got ${JSON.stringify(reply)} ${this.stderr}`);
    }
  }
  async acknowledged(offset: number): Promise<void> {
    while (Number((await this.expect("ack"))["offset"]) < offset);
  }
  send(bytes: Uint8Array): void {
    this.child.stdin!.write(bytes);
  }
  async finish(): Promise<number | null> {
    this.child.stdin!.end();
    return this.ended;
  }
}

/** The blocks of a pack, each of one member. */
const blocksOf = (pack: Buffer): ReadonlyArray<Buffer> =>
  membersOf(pack).flatMap(({ bytes }) =>
    Array.from({ length: Math.ceil(bytes.length / mebi) }, (_, i) =>
      bytes.subarray(i * mebi, (i + 1) * mebi),
    ),
  );
/** The frames of these blocks of a pack. */
const frames = (pack: Buffer, from = 0, to?: number) =>
  Buffer.concat(
    blocksOf(pack)
      .slice(from, to)
      .map((block) => framed(block)),
  );
/** Bytes of the first blocks. */
const offsetOf = (pack: Buffer, blocks: number) =>
  blocksOf(pack)
    .slice(0, blocks)
    .reduce((sum, { length }) => sum + length, 0);

const dom0 = pairOf(crypto.randomBytes(32));
let runs = 0;
/** The key of an account's server. */
const serverOf = async (account: string): Promise<string> => {
  const call = new Session(account, "qbackup/1 about");
  const { server } = await call.expect("about");
  await call.finish();
  return String(server);
};
const newSession = () => crypto.randomBytes(16).toString("hex");
const ticketFor = (name: string, pack: Buffer): Ticket => ({
  name,
  session: newSession(),
  base: "-",
  series: "0123456789abcdef",
  run: ++runs,
  bytes: pack.length,
  time: `${new Date().toISOString().slice(0, 19)}Z`,
  signer: dom0.publicKey,
});
const putOf = (ticket: Ticket, server: string): string =>
  commandOf({
    verb: "put",
    parameters: { ...ticket, signature: dom0.sign("ticket", ticketText(ticket, server)) },
  });

/** The end of the members, and the trailer. */
const ending = (pack: Buffer, ticket: Ticket, server: string) => {
  const lines = linesOf(tableOf(pack));
  const { name, run, series, session, signer } = ticket;
  const manifest = textOf("manifest", {
    name,
    session,
    server,
    signer,
    series,
    run,
    created: ticket.time,
    size: pack.length,
    members: lines.length,
    root: rootOf(lines),
    format: "qvm-backup",
    next: null,
  });
  const signature = Buffer.from(dom0.sign("manifest", manifest), "base64url");
  const recipe = `new 0 ${lines.length}\n`;
  const texts = [Buffer.from(manifest), signature, Buffer.from(recipe)];
  return Buffer.concat([framed(), ...texts.map((text) => framed(text)), framed()]);
};

const sample = (seed: number, size: number) =>
  archiveOf({ seed, files: [{ path: "vm7/private.img", size }] });

const upload = async (account: string, name: string, archive: Buffer) => {
  const server = await serverOf(account);
  const ticket = ticketFor(name, archive);
  const call = new Session(account, putOf(ticket, server));
  await call.expect("ready");
  call.send(Buffer.concat([frames(archive), ending(archive, ticket, server)]));
  await call.expect("stored");
  must((await call.finish()) === 0, `exit ${await call.ended}: ${call.stderr}`);
  must(fs.readFileSync(`/home/${account}/${name}`).equals(archive), "other bytes were stored");
};

const listed = async (account: string) => {
  const call = new Session(account, "qbackup/1 list");
  const found: Array<Reply> = [];
  for (let reply = await call.next(); reply !== undefined; reply = await call.next()) {
    found.push(reply);
  }
  must((await call.finish()) === 0, `exit ${await call.ended}: ${call.stderr}`);
  must(found.at(-1)?.type === "end", `no end in ${call.stdout}`);
  return found;
};
/** The archives, and whether they are signed. */
const isListed = async (account: string, wanted: Readonly<Record<string, boolean>>) => {
  const found = (await listed(account)).filter(({ type }) => type === "archive");
  const said = Object.fromEntries(
    found.map((reply) => [reply["name"], reply["signer"] === dom0.publicKey]),
  );
  must(isDeepStrictEqual(said, wanted), `listed: ${JSON.stringify(said)}`);
};
const bare = async (account: string) => {
  const bytes = sample(4, 100_000);
  const call = new Session(account, "bare.backup");
  call.send(bytes);
  must((await call.finish()) === 0, call.stderr);
  must(fs.readFileSync(`/home/${account}/bare.backup`).equals(bytes), "other bytes were stored");
};
const otherWords = async (account: string) => {
  const call = new Session(account, "sh -c id");
  must((await call.finish()) !== 0, "exit 0");
  must(!call.stdout.includes("uid="), call.stdout);
};

const refused = async (account: string, command: string, code: string) => {
  const call = new Session(account, command);
  const reply = await call.next();
  must(reply?.["code"] === code, `${code} expected, got ${JSON.stringify(reply)} ${call.stderr}`);
  must((await call.finish()) !== 0, "exit 0");
};

/** How the kernel has the running shells: all of them must be under the profile. */
const labels = () =>
  fs
    .readdirSync("/proc")
    .filter((pid) => /^\d+$/.test(pid))
    .flatMap((pid) => {
      try {
        // The interpreter first, then the script; sshd's own processes only mention it.
        const [program, script] = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
        return program === "/usr/bin/node" && script === shell
          ? [fs.readFileSync(`/proc/${pid}/attr/current`, "utf8").trim()]
          : [];
      } catch {
        return []; // it ended meanwhile
      }
    });

const wellBehavedAlice = async () => {
  // Small, because an emulated processor hashes it four times over.
  const archive = sample(1, 3.5 * mebi);
  const ticket = ticketFor("a.backup", archive);
  connect("alice");

  for (const [account, uid] of [
    ["alice", 1001],
    ["carol", 1003],
  ] as const) {
    await step(`${account}: init and identity, as "make server" asks for them`, async () => {
      const home = `/home/${account}`;
      const options = { uid, gid: uid, env: { HOME: home }, timeout: limit };
      const made = execFileSync(shell, ["init", "--root", home], options).toString();
      must(/^fingerprint [0-9a-f]{64}\n/.test(made), made);
      const shown = execFileSync(shell, ["identity", "--root", home], options).toString();
      must(shown === made, shown);
    });
  }
  await step("alice: a bare path", () => bare("alice"));
  const server = await serverOf("alice");
  const put = putOf(ticket, server);
  await step("alice: about, which says the profile", async () => {
    const call = new Session("alice", `qbackup/1 about ${dom0.publicKey} ${ticket.series}`);
    const { confined } = await call.expect("about");
    must((await call.finish()) === 0, call.stderr);
    must(confined === "qbackup-shell (enforce)", `confined: ${String(confined)}`);
  });
  await step("alice: two connections for one upload, the first steps down", async () => {
    const first = new Session("alice", put, true);
    must((await first.expect("ready"))["offset"] === 0, "something was there already");
    first.send(frames(archive, 0, 4));
    await first.acknowledged(offsetOf(archive, 4));
    const running = labels();
    must(
      running.length > 0 && running.every((text) => text === "qbackup-shell (enforce)"),
      `labels ${running.join()}`,
    );
    const second = new Session("alice", put, true);
    const { offset } = await second.expect("ready");
    must(offset === offsetOf(archive, 4), `the second begins at ${String(offset)}`);
    must((await first.ended) !== 0, "the first ended with 0");
    must(first.stderr.includes("took over"), first.stderr);
    second.send(frames(archive, 4, 5));
    await second.acknowledged(offsetOf(archive, 5));
    second.child.kill("SIGKILL");
    await second.ended;
  });
  await step("alice: put, resumed after a cut", async () => {
    const third = new Session("alice", put);
    const { offset } = await third.expect("ready");
    must(offset === offsetOf(archive, 5), `resumed at ${String(offset)}`);
    third.send(Buffer.concat([frames(archive, 5), ending(archive, ticket, server)]));
    await third.expect("stored");
    must((await third.finish()) === 0, third.stderr);
    must(fs.readFileSync("/home/alice/a.backup").equals(archive), "other bytes were stored");
    must(fs.readdirSync("/home/alice/.qbackup/incoming").length === 0, "the upload is left");
    const owner = fs.readFileSync("/home/alice/.qbackup/owner", "utf8");
    must(/^[0-9a-f-]{36} net:\[[0-9]+\] /.test(owner), `the store is claimed by "${owner}"`);
  });
  await step("alice: put again, by the same session and by another", async () => {
    const again = new Session("alice", put);
    await again.expect("stored");
    must((await again.finish()) === 0, again.stderr);
    await refused("alice", putOf(ticketFor("a.backup", archive), server), "exists");
  });
  await step("alice: put below; an abandoned upload goes", async () => {
    fs.mkdirSync("/home/alice/laptop");
    fs.chownSync("/home/alice/laptop", 1001, 1001);
    const old = `/home/alice/.qbackup/incoming/${newSession()}`;
    fs.writeFileSync(old, "{}");
    fs.chownSync(old, 1001, 1001);
    fs.utimesSync(old, 1e9, 1e9);
    await upload("alice", "laptop/b.backup", sample(2, 100_000));
    must(!fs.existsSync(old), "the abandoned upload is left");
  });
  await step("alice: put, given up", async () => {
    const call = new Session("alice", putOf(ticketFor("c.backup", archive), server));
    await call.expect("ready");
    call.send(Buffer.concat([frames(archive, 0, 4), giveUp]));
    must((await call.finish()) === 0, call.stderr);
    must(fs.readdirSync("/home/alice/.qbackup/incoming").length === 0, "the upload is left");
  });
  await step("alice: put, refused by its trailer, and stored by the next run", async () => {
    const small = sample(5, 1000);
    const first = ticketFor("d.backup", small);
    const call = new Session("alice", putOf(first, server));
    await call.expect("ready");
    call.send(Buffer.concat([frames(small), ending(small, { ...first, name: "x" }, server)]));
    await call.expect("error");
    await call.finish();
    const next = { ...ticketFor("d.backup", small), session: first.session };
    const again = new Session("alice", putOf(next, server));
    must((await again.expect("ready"))["offset"] === small.length, "it was not kept");
    again.send(ending(small, next, server));
    await again.expect("stored");
    must((await again.finish()) === 0, again.stderr);
  });
  await step("alice: list", () =>
    isListed("alice", {
      "a.backup": true,
      "bare.backup": false,
      "d.backup": true,
      "laptop/b.backup": true,
    }),
  );
  for (const [request, input] of [
    ["manifest a.backup", ""],
    ["recipe a.backup", ""],
    [`table ${ticket.session}`, ""],
    ["read", `${ticket.session} 0 0 1\n\n`],
    ["check a.backup", ""],
  ] as const) {
    await step(`alice: ${request.replace(ticket.session, "SESSION")}`, async () => {
      const call = new Session("alice", `qbackup/1 ${request}`);
      call.send(Buffer.from(input));
      const code = await call.finish();
      must(code === 0 && !call.stdout.includes('"type":"error"'), `exit ${code}: ${call.stderr}`);
    });
  }
};

const wellBehavedOthers = async () => {
  for (const [account, how] of [
    ["bob", "forced command, with a quota"],
    ["carol", 'login shell, "make server"'],
  ] as const) {
    connect(account);
    await step(`${account}: a bare path`, () => bare(account));
    await step(`${account} (${how}): put`, () => upload(account, "a.backup", sample(3, 100_000)));
    await step(`${account}: list`, () =>
      isListed(account, { "a.backup": true, "bare.backup": false }),
    );
  }
  await step("carol: other words are refused", () => otherWords("carol"));
};

// Other layouts of node ------------------------------------------------------------------------------

const layouts = () => {
  for (const [name, title, works] of [
    ["debian13", "node as Debian has it: libnode.so in /usr/lib/x86_64-linux-gnu", true],
    ["debian-nodejs", "node as a link to nodejs", true],
    ["fedora", "node as Fedora has it: a link to node-22, libraries in /usr/lib64", true],
    // The control: this shows that the ones before it could have failed.
    ["elsewhere", "libraries in /opt/node/lib: no rule of the profile", false],
  ] as const) {
    const run = (how: string) => {
      const args = ["-m", "/test/layout.sh", name, how, "--version"];
      const done = spawnSync("/usr/bin/unshare", args, { timeout: limit, encoding: "utf8" });
      // A library that could not be preloaded does not stop anything, but the loader says so.
      const works = done.stdout.startsWith("qbackup-shell ") && !done.stderr.includes("LD_PRELOAD");
      return works
        ? "works"
        : `fails${done.status === null ? ` (${done.signal})` : ` (exit ${done.status}) ${done.stderr.split("\n")[0]!.slice(0, 40)}`}`;
    };
    const [control, confined] = [run("unconfined"), run("confined")];
    const right = control === "works" && (confined === "works") === works;
    row(title, right, control.trim(), confined.trim().replaceAll("\n", " "));
  }
};

// Hostile programs -----------------------------------------------------------------------------------

/** The scene, new for each run: `uid` is who runs, and owns what is its own. */
const scene = (uid: number) => {
  const own = "/home/alice";
  for (const dir of ["/home/alice", "/home/bob", "/srv/other"])
    fs.rmSync(dir, { recursive: true, force: true });
  for (const file of [
    "/tmp/hostile",
    "/tmp/hostile.socket",
    "/etc/hostile",
    "/usr/bin/hostile",
    "/dev/shm/hostile",
  ]) {
    fs.rmSync(file, { force: true });
  }
  // Open to everybody, so that permissions refuse nothing.
  const directory = (path: string, owner: number) => {
    fs.mkdirSync(path, { recursive: true });
    fs.chownSync(path, owner, owner);
    fs.chmodSync(path, 0o777);
  };
  const file = (path: string, owner: number, from?: string) => {
    if (from === undefined) fs.writeFileSync(path, "secret\n");
    else fs.copyFileSync(from, path);
    fs.chownSync(path, owner, owner);
    fs.chmodSync(path, from === undefined ? 0o666 : 0o777);
  };
  const books = ["packs", "records", "tombstones"].map((name) => `/.qbackup/${name}`);
  for (const path of ["", "/.ssh", "/.qbackup", ...books, "/.Private", "/sub", "/sub/.ssh"])
    directory(own + path, uid);
  for (const name of [
    "old.backup",
    "b.backup",
    "c.backup",
    ".hidden",
    ".ssh/authorized_keys",
    ".qbackup/moved",
    ".qbackup/packs/old",
    ".qbackup/tombstones/old",
    "old.backup.manifest.json",
  ]) {
    file(`${own}/${name}`, uid);
  }
  for (const folder of ["", "/.qbackup", "/.Private"]) {
    file(`${own}${folder}/busybox`, uid, "/usr/bin/busybox");
    file(`${own}${folder}/evil.so`, uid, "/usr/lib/x86_64-linux-gnu/libm.so.6");
  }
  const stranger = uid === 1002 ? 1003 : 1002;
  for (const path of ["/home/bob", "/home/bob/.ssh", "/home/bob/.books"]) directory(path, stranger);
  for (const name of ["file", "file2", ".books/identity"]) file(`/home/bob/${name}`, stranger);
  directory("/srv/other", uid);
  file("/srv/other/file", uid);
  for (const path of ["/etc", "/usr/bin", "/dev/shm"]) directory(path, 0);
  for (const path of ["/etc/shadow", "/etc/passwd"]) fs.chmodSync(path, 0o666);
  const victim = spawn("/usr/bin/sleep", ["1000"], { stdio: "ignore", uid, gid: uid });
  fs.writeFileSync(`${own}/victim`, String(victim.pid));
  fs.chownSync(`${own}/victim`, uid, uid);
  return victim;
};

/** Case by case, in the order of the cases. */
type Outcome = Map<string, { readonly should: string; readonly was: string }>;
const outcome = (text: string): Outcome =>
  new Map(
    text
      .split("\n")
      .map((line) => line.split("\t"))
      .filter((fields) => fields.length === 3)
      .map(([name, should, was]) => [name!, { should: should!, was: was! }]),
  );

const judge = (control: Outcome, ...confined: ReadonlyArray<Outcome>) => {
  for (const [name, { should, was }] of control) {
    const columns = confined.map((run) => run.get(name)?.was ?? "NO ANSWER");
    const right = columns.every((text) =>
      should === "told" ? text !== "NO ANSWER" : text.startsWith(should),
    );
    const note = should === "told" ? " (told only)" : "";
    row(`${name}${note}`, was === "granted" && right, was, ...columns);
  }
};

const hostile = async () => {
  const server = net.createServer((socket) => socket.destroy());
  const abstract = net.createServer((socket) => socket.destroy());
  await once(server.listen("/run/victim"), "listening");
  fs.chmodSync("/run/victim", 0o777);
  await once(abstract.listen("\0victim"), "listening");
  fs.mkdirSync("/dev/shm", { recursive: true });
  // The copy at another path is not confined: the script's path is what the profile goes by.
  fs.renameSync(shell, "/test/real");
  fs.copyFileSync("/test/hostile", shell);
  fs.chmodSync(shell, 0o755);
  const control = runAsync(0, "/test/hostile");
  const outcomes = [await control, await runAsync(0, shell)];
  const victim = scene(1001);
  const call = new Session("alice", "anything");
  const code = await call.finish();
  victim.kill("SIGKILL");
  if (code !== 0) say(`hostile session: exit ${code} ${call.stderr}\n`);
  judge(outcomes[0]!, outcomes[1]!, outcome(call.stdout));
  server.close();
  abstract.close();
};

/** Not spawnSync: this process has to answer those who connect to it. */
const runAsync = async (uid: number, program: string): Promise<Outcome> => {
  const victim = scene(uid);
  const child = spawn(program, { stdio: ["ignore", "pipe", "inherit"], cwd: "/", timeout: limit });
  let text = "";
  child.stdout.on("data", (bytes: Buffer) => (text += bytes.toString()));
  await once(child, "close");
  victim.kill("SIGKILL");
  return outcome(text);
};

/**
 * System calls that node does not make, by a process that was put under the profile by hand: what
 * machine code could do. Numbers are those of x86_64.
 */
const calls: ReadonlyArray<readonly [name: string, should: string, perl: string]> = [
  ["mount", "refused", "mount()"],
  ["mount in a user namespace", "refused", "syscall(272, 0x10020000) == 0 && mount()"],
  ["user namespace", "told", "syscall(272, 0x10000000) == 0"],
  ["ptrace, attach to another process", "refused", "syscall(101, 16, VICTIM, 0, 0) == 0"],
  ["signal to another process", "refused", "kill('CONT', VICTIM) == 1"],
  ["chroot", "refused", "chroot('/mnt')"],
  ["become another user", "refused", "syscall(105, 1003) == 0"],
  ["set the host's name", "refused", "syscall(170, my $name = 'evil', 4) == 0"],
  ["raw socket", "refused", "socket(S, 2, 3, 1)"],
  ["packet socket", "refused", "socket(S, 17, 3, 0)"],
  ["netlink socket", "refused", "socket(S, 16, 3, 0)"],
  ["TCP socket", "refused", "socket(S, 2, 1, 0)"],
  ["unix datagram socket", "refused", "socket(S, 1, 2, 0)"],
  ["unix sequenced packet socket", "refused", "socket(S, 1, 5, 0)"],
  ["unix stream socket", "granted", "socket(S, 1, 1, 0)"],
  ["exec /bin/sh", "refused", "exec('/bin/sh', '-c', 'echo granted')"],
  ["exec from memory", "refused", "memory()"],
  ["map a file of the store as code", "refused", "code()"],
];
const subroutines = String.raw`
sub mount { my ($n, $d, $t) = ("none", "/mnt", "tmpfs"); return syscall(165, $n, $d, $t, 0, 0) == 0 }
sub memory {
  open(my $from, "<", "/home/alice/busybox") or return 0;
  local $/;
  my $program = <$from>;
  my ($name, $empty) = ("m", "");
  my $fd = syscall(319, $name, 0);
  $fd >= 0 && syscall(1, $fd, $program, length $program) > 0 or return 0;
  my @words = ("sh\0", "-c\0", "echo granted\0");
  my $argv = pack("P P P J", @words, 0);
  my $env = pack("J", 0);
  return syscall(322, $fd, $empty, $argv, $env, 0x1000) == 0;
}
sub code {
  open(my $from, "<", "/home/alice/evil.so") or return 0;
  return syscall(9, 0, 4096, 5, 2, fileno($from), 0) != -1;
}
`;
/** Each in a child: some of them change the process for good. */
const perl = (victim: number) =>
  `$| = 1;\n${subroutines}${calls
    .map(([name, should, code]) => {
      const attempt = code.replaceAll("VICTIM", String(victim));
      return `$! = 0; print "${name}\\t${should}\\t"; if (my $p = fork) { waitpid($p, 0); } else { my $ok = ${attempt}; print $ok ? "granted" : "refused (" . ($! + 0) . ")"; exit 0 }\nprint "\\n";`;
    })
    .join("\n")}`;

const machineCode = () => {
  const run = (uid: number, confined: boolean) => {
    const victim = scene(uid);
    const enter = confined ? "echo 'exec qbackup-shell' > /proc/self/attr/exec && " : "";
    const command = `${enter}exec /usr/lib/perl.so -e "$0"`;
    const done = spawnSync("/bin/sh", ["-c", command, perl(victim.pid!)], {
      uid,
      gid: uid,
      timeout: limit,
      encoding: "utf8",
      cwd: "/",
    });
    victim.kill("SIGKILL");
    if (done.stderr !== "") say(`perl: ${done.stderr}\n`);
    return outcome(done.stdout);
  };
  judge(run(0, false), run(0, true), run(1001, true));
};

// What the kernel's log says -------------------------------------------------------------------------

/** Different refusals, without what changes from run to run. */
const denials = () =>
  new Set(
    execFileSync("/usr/bin/dmesg", { encoding: "utf8", maxBuffer: 1e8 })
      .split("\n")
      .filter((line) => line.includes('apparmor="DENIED"'))
      .map((line) =>
        line.replace(/^.*apparmor="DENIED" /, "").replace(/ (pid|fsuid|ouid)=\d+/g, ""),
      )
      .map((line) => line.replace(/[0-9a-f]{32}/g, "ID").replace(/\/proc\/\d+/g, "/proc/PID")),
  );

const started = Date.now();
const seconds = () => `${Math.round((Date.now() - started) / 1000)} s`;
const main = async () => {
  let wrong = 0;
  const phases = (process.argv[2] ?? "").split(",");
  if (phases.includes("program")) {
    await Promise.all([wellBehavedAlice(), wellBehavedOthers()]);
    rows.sort((a, b) => (a.name.split(/[ :]/)[0]! < b.name.split(/[ :]/)[0]! ? -1 : 1));
    wrong += table("The program itself, over ssh", ["case", "unconfined", "confined"]);
  }
  if (phases.includes("thin")) {
    const began = seconds();
    connect("dave");
    await thinNights("dave", [...sshOptions, "-o", "ControlPath=/test/connection-dave"], step);
    row("how long it took", true, "-", `from ${began} to ${seconds()} in the guest`);
    wrong += table("Nights of a thin volume, the server confined", ["case", "", "outcome"]);
  }
  const noise = denials();
  if (noise.size > 0) say(`\nRefused while it did what it should:\n${[...noise].join("\n")}\n`);
  if (phases.includes("layouts")) {
    layouts();
    wrong += table("Where node and its libraries may lie", ["case", "unconfined", "confined"]);
  }
  if (phases.includes("hostile")) {
    await hostile();
    machineCode();
    // Else "refused while it did what it should" would say nothing by being empty.
    const logged = denials().size;
    row("refusals are in the log", logged > 20, "-", `${logged} kinds`, "");
    // Where it does not, any process that may have a unix stream at all may connect it anywhere.
    const features = "/sys/kernel/security/apparmor/features";
    const looks = ["network", "network_v9"].some((of) =>
      fs.existsSync(`${features}/${of}/af_unix`),
    );
    row(
      `kernel ${os.release()} looks at addresses of unix sockets`,
      true,
      looks ? "yes" : "no",
      "",
      "",
    );
    const who = ["unconfined, root", "confined, root", "confined, the account"];
    wrong += table("A hostile program in its place", ["case", ...who]);
  }
  const verdict = wrong === 0 ? "all as it should be" : `${wrong} not as it should be (marked !)`;
  say(`\n${verdict}; ${seconds()} in the guest\n`);
  process.exit(wrong === 0 ? 0 : 1);
};
void main();
