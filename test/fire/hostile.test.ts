/**
 * A client with a key that is good, and wishes that are not: through the system's ssh and an sshd that
 * allows everything, with the product's own drop-in. What counts is what it finds done: a watched
 * tree around the store, listed with its hashes, is the same afterwards.
 */
import { execFileSync, spawn } from "node:child_process";
import { afterAll, afterEach, assert, describe, it } from "vitest";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { processesWith } from "#test/support/programs";
import { isRoot, type Server, type ServerOptions, startServer } from "#test/support/server";
import { notRoot, unless } from "#test/support/unless";
import { dist, execute } from "#test/support/whole";
import {
  archive,
  command,
  inTurns,
  keyIn,
  keyOf,
  type Parcel,
  put,
  removeScratch,
  scratch,
  serve,
  sessionOf,
  talk,
} from "./wire.ts";

afterAll(removeScratch);

/** Everything below a directory, links not followed, with what would show any change. */
const tree = (dir: string, inside = ""): ReadonlyArray<string> =>
  fs
    .readdirSync(path.join(dir, inside))
    .sort()
    .flatMap((base) => {
      const name = path.join(inside, base);
      const file = path.join(dir, name);
      const { gid, mode, mtimeMs, size, uid } = fs.lstatSync(file);
      const kind = mode & fs.constants.S_IFMT;
      const is = [name, mode.toString(8), uid, gid];
      if (kind === fs.constants.S_IFDIR) {
        // Uploads come and go below .qbackup, and before each one the commit is tried beside the archives.
        const when = /(^|\/)store(\/|$)|\.qbackup/.test(name) ? 0 : mtimeMs;
        return [[...is, when].join(" "), ...tree(dir, name)];
      }
      const content =
        kind === fs.constants.S_IFREG
          ? crypto.createHash("sha256").update(fs.readFileSync(file)).digest("hex")
          : kind === fs.constants.S_IFLNK
            ? fs.readlinkSync(file)
            : "";
      return [[...is, size, mtimeMs, content].join(" ")];
    });

const session = sessionOf(0xabc);
const names: ReadonlyArray<string> = [
  "..",
  ".",
  "../x",
  "../../x",
  "a/../../x",
  "a/..",
  "./x",
  "a/./x",
  "a//x",
  "/",
  "/tmp/x",
  "//tmp/x",
  "/etc/passwd",
  "x/",
  "/x/",
  ".x",
  ".ssh",
  ".ssh/authorized_keys",
  ".ssh/rc",
  ".profile",
  ".bashrc",
  ".qbackup",
  ".qbackup/identity",
  ".qbackup/incoming/x",
  "a/.qbackup/x",
  "a/.x",
  "-x",
  "--help",
  "--root",
  "--root=/tmp",
  "-rf",
  "a/-x",
  "+x",
  "_x",
  "~",
  "~root/x",
  "~/x",
  "$HOME/x",
  "${HOME}",
  "$(touch CANARY)",
  "`touch CANARY`",
  "x;touch",
  "x|y",
  "x&y",
  "x&&y",
  "x>y",
  "x<y",
  "x*",
  "x?",
  "[x]",
  "{a,b}",
  "x'y",
  'x"y',
  "x\\y",
  "x\\",
  "x!y",
  "x#y",
  "#x",
  "x%2e%2e",
  "%2e%2e%2fx",
  "x%00y",
  "x:y",
  "C:\\x",
  "\\\\host\\x",
  "x@y",
  "x=y",
  "x,y",
  "x^y",
  "x\ty",
  "x\ny",
  "x\r",
  "x\u000by",
  "x\u0007",
  "x\u001b[2J",
  "x\u007f",
  "x\u0080y",
  "\u202ex",
  "x\u200b",
  "\ufeffx",
  "x\u00a0y",
  "x\u2028y",
  "х.backup",
  "a\u0301",
  "ａ.backup",
  "．．／x",
  "..\u2215x",
  "‥/x",
  "\u2024\u2024/x",
  "x\ud83d\udca9",
  "a.manifest.json",
  "a.backup.manifest.json",
  "link/x",
  "etc/passwd2",
  "own/identity",
  "dangling/x",
  "file/x",
  "fifo/x",
  "null/x",
  "link/../x",
  `${"a".repeat(129)}`,
  `${"a/".repeat(8)}a`,
  `${"a".repeat(100)}/`.repeat(5) + "a".repeat(100),
  "a".repeat(5000),
  "../".repeat(1600) + "etc/x",
];
/** Latin-1 here, bytes on the wire: overlong and broken UTF-8. */
const bytes: ReadonlyArray<string> = [
  "\xc0\xae\xc0\xae/x",
  "\xc0\xafx",
  "\xe0\x80\xae/x",
  "x\xff",
  "\xed\xa0\x80",
];

const programs: ReadonlyArray<string> = [
  "id",
  "ls",
  "sh",
  "bash",
  "reboot",
  "env",
  "true",
  "touch CANARY",
  "/usr/bin/touch CANARY",
  "exec touch CANARY",
  "sh -c 'touch CANARY'",
  "bash -i",
  'python3 -c \'open("CANARY","w")\'',
  'node -e \'require("fs").writeFileSync("CANARY","")\'',
  "; touch CANARY",
  "&& touch CANARY",
  "|| touch CANARY",
  "| touch CANARY",
  "$(touch CANARY)",
  "`touch CANARY`",
  "qbackup/1 list; touch CANARY",
  "qbackup/1 list && touch CANARY",
  "qbackup/1 list $(touch CANARY)",
  "qbackup/1 list `touch CANARY`",
  "qbackup/1 list | tee CANARY",
  "qbackup/1 list > CANARY",
  "qbackup/1 list\ntouch CANARY",
  "\ntouch CANARY",
  "list; touch CANARY",
  "cat /etc/passwd",
  "cat .qbackup/identity",
  "rm -rf .",
  "rm -rf /",
  "dd of=CANARY",
  "tee CANARY",
  "cat > CANARY",
  "chsh -s /bin/sh",
  "sudo -n touch CANARY",
  "su -c 'touch CANARY'",
  "crontab -",
  "at now",
  "scp -t .",
  "scp -f /etc/passwd",
  "scp -t ../",
  "scp -r -p -t -- .ssh",
  "rsync --server -logDtpre.iLsfxC . .",
  "rsync --server --sender -logDtpre.iLsfxC . /etc",
  "rsync --daemon --server .",
  "git-upload-pack 'x'",
  "git-receive-pack 'x'",
  "git upload-pack x",
  "git-upload-archive x",
  "git-shell -c x",
  "svnserve -t",
  "cvs server",
  "borg serve",
  "restic",
  "sftp-server",
  "internal-sftp",
  "/usr/lib/openssh/sftp-server",
  "internal-sftp -d /etc",
  "-c id",
  "-c",
  "--",
  "--help",
  "--version",
  "--root /etc",
  "--root /tmp qbackup/1 list",
  "identity",
  "identity --root /etc",
  "qbackup-shell",
  "qbackup-shell --root /tmp",
  "/usr/bin/qbackup-shell --root /tmp qbackup/1 list",
  "qbackup/1",
  "qbackup/1 ",
  "qbackup/1  list",
  " qbackup/1 list",
  "qbackup/1 list ",
  "qbackup/1 LIST",
  "QBACKUP/1 list",
  "qbackup/0 list",
  "qbackup/2 list",
  "qbackup/11 list",
  "qbackup/1.0 list",
  "qbackup/1 shell",
  "qbackup/1 exec touch CANARY",
  "qbackup/1 constructor",
  "qbackup/1 constructor a b",
  "qbackup/1 __proto__",
  "qbackup/1 toString x",
  "qbackup/1 hasOwnProperty",
  "qbackup/1 valueOf a",
  "qbackup/1 prototype",
  "constructor",
  "__proto__",
  "toString",
  "hasOwnProperty",
  "qbackup/1 put",
  "qbackup/1 put a",
  "qbackup/1 put a b",
  `qbackup/1 put a ${session} more`,
  `qbackup/1 put a ${session.slice(1)}`,
  `qbackup/1 put a ${session}0`,
  `qbackup/1 put a ${session.toUpperCase()}`,
  `qbackup/1 put a ../../../../x`,
  `qbackup/1 put a ${"g".repeat(32)}`,
  `qbackup/1 put a ${"/".repeat(32)}`,
  "qbackup/1 read old.backup",
  "qbackup/1 about x",
  "qbackup/1 about x y",
  "qbackup/1 table",
  "qbackup/1 table ../x",
  `qbackup/1 table ../../${session}`,
  `qbackup/1 table ${session}`,
  "qbackup/1 recipe old.backup x",
  "qbackup/1 manifest",
  "qbackup/1 list - ../x",
  "qbackup/1 list ../",
  "qbackup/1 delete old.backup",
  "qbackup/1 rm old.backup",
  "old.backup",
  "x".repeat(100_000),
];

/** A command for ssh, with what goes into it. */
interface Attempt {
  readonly command: string | Buffer;
  readonly input: "archive" | "junk";
}
const attempts = (canary: string, key: string): ReadonlyArray<Attempt> => {
  const filled = (text: string) => text.replaceAll("CANARY", canary);
  const signed = (name: string) => command({ ...good, name, session }, key);
  return [
    { command: signed("old.backup"), input: "archive" as const },
    ...programs.map((text) => ({ command: filled(text), input: "junk" as const })),
    ...names.flatMap((name) => {
      const word = filled(name);
      return [
        { command: word, input: "archive" as const },
        { command: signed(word), input: "archive" as const },
        { command: `qbackup/1 manifest ${word}`, input: "junk" as const },
      ];
    }),
    ...bytes.flatMap((name) => [
      { command: Buffer.from(name, "latin1"), input: "archive" as const },
      {
        command: Buffer.from(signed(name), "latin1"),
        input: "archive" as const,
      },
    ]),
  ];
};

const good: Parcel = { name: "old.backup", session: sessionOf(1), archive: archive(20_000) };

interface Stage {
  readonly dir: string;
  readonly server: Server;
  readonly canary: string;
  /** The server's key. */
  readonly key: string;
  /** ssh with these words behind the destination's options, one session on one connection. */
  readonly ssh: ReadonlyArray<string>;
  readonly snapshot: () => ReadonlyArray<string>;
}

let servers: Array<Server> = [];
let masters: Array<() => void> = [];
afterEach(() => {
  for (const stop of masters) stop();
  for (const server of servers) server.stop();
  masters = [];
  servers = [];
});

const repository = path.resolve(import.meta.dirname, "../..");

/** A server whose store lies among things that the account could change, and links to them. */
const stage = async (as: ServerOptions["as"]): Promise<Stage> => {
  const dir = scratch();
  fs.chmodSync(dir, 0o755);
  const shell = path.join(dir, "bin/qbackup-shell");
  fs.mkdirSync(path.dirname(shell));
  fs.copyFileSync(dist("qbackup-shell"), shell);
  fs.chmodSync(shell, 0o755);
  const watched = path.join(dir, "watched");
  const outside = path.join(watched, "outside");
  const canary = path.join(outside, "canary");
  fs.mkdirSync(outside, { recursive: true });
  const server = await startServer({
    dir: watched,
    shell,
    as,
    config: (account) => {
      // As trusting as an sshd can be; only the drop-in, as make fills it in, says otherwise.
      const trusting = [
        "AcceptEnv *",
        "MaxSessions 100",
        "PermitTTY yes",
        "AllowTcpForwarding yes",
        "AllowStreamLocalForwarding yes",
        "AllowAgentForwarding yes",
        "X11Forwarding yes",
        "PermitTunnel yes",
        "GatewayPorts yes",
        "PermitUserRC yes",
        "PermitUserEnvironment yes",
      ];
      const stageDir = path.join(dir, "stage");
      execFileSync(
        "make",
        [
          "-s",
          "server-sshd",
          `DESTDIR=${stageDir}`,
          `PREFIX=${dir}`,
          `user=${account}`,
          `store=${path.join(watched, "store")}`,
        ],
        { cwd: repository, stdio: "pipe" },
      );
      const dropIn = path.join(stageDir, `etc/ssh/sshd_config.d/00-qbackup-${account}.conf`);
      return [...trusting, fs.readFileSync(dropIn, "utf8")].join("\n");
    },
  });
  servers.push(server);
  const { store } = server;
  // As "make server" does it; the drop-in lets no upload make an identity.
  const init = [shell, "init", "--root", store];
  if (isRoot) execFileSync("runuser", ["-u", server.account, "--", ...init], { stdio: "pipe" });
  else execFileSync(shell, init.slice(1), { stdio: "pipe" });
  const ask = (text: string) =>
    talk(["/usr/bin/ssh", ...server.ssh, "--", server.destination, text]);
  const key = await keyOf(ask);
  const first = await put(ask(command(good, key)), good, key);
  assert.isDefined(first.stored, `${first.ran.stderr}${server.log()}`);

  // What would be hit: a home with its keys, and files that anybody may change.
  fs.mkdirSync(path.join(store, ".ssh"), { mode: 0o700 });
  fs.writeFileSync(path.join(store, ".ssh/authorized_keys"), "# nobody\n");
  fs.mkdirSync(path.join(store, "a"));
  fs.writeFileSync(path.join(outside, "victim"), "victim\n");
  fs.symlinkSync(outside, path.join(store, "link"));
  fs.symlinkSync(path.join(outside, "victim"), path.join(store, "file"));
  fs.symlinkSync(path.join(outside, "new"), path.join(store, "dangling"));
  fs.symlinkSync("/etc", path.join(store, "etc"));
  fs.symlinkSync(".qbackup", path.join(store, "own"));
  fs.symlinkSync(path.join(outside, "new2"), path.join(store, "m.backup.manifest.json"));
  fs.mkdirSync(path.join(store, "directory"));
  execFileSync("mkfifo", [path.join(store, "fifo"), path.join(store, "n.backup.manifest.json")]);
  if (isRoot) execFileSync("mknod", [path.join(store, "null"), "c", "1", "3"]);
  if (isRoot) execFileSync("chown", ["-Rh", `${server.account}:`, store, outside]);
  if (isRoot) fs.chmodSync(outside, 0o777);

  const socket = path.join(dir, "control");
  const words = [...server.ssh, "-o", `ControlPath=${socket}`];
  const master = spawn("/usr/bin/ssh", [...words, "-M", "-N", "--", server.destination], {
    stdio: "ignore",
  });
  masters.push(() => master.kill("SIGKILL"));
  while (!fs.existsSync(socket)) {
    if (master.exitCode !== null) throw new Error(server.log());
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return {
    dir,
    server,
    canary,
    key,
    ssh: ["/usr/bin/ssh", ...words, "-o", "ControlMaster=no"],
    // Of whatever a session does, the log tells, and the file that says where the store is used from.
    snapshot: () =>
      tree(watched).filter((line) => !/^(?:sshd\.log|store\/\.qbackup\/(?:log|owner)) /.test(line)),
  };
};

/** All of these, and the links and nodes that lie in the store as names of archives. */
const planted = [
  "link",
  "file",
  "dangling",
  "etc",
  "own",
  "fifo",
  "directory",
  "m.backup",
  "n.backup",
];

const attacks = (as: "both" | "forced-command") => () => {
  it("hostile names and commands change nothing, run nothing, and are refused", async () => {
    const { canary, key, server, snapshot, ssh } = await stage(as);
    const table: ReadonlyArray<Attempt> = [
      ...attempts(canary, key),
      ...[...planted, ...(isRoot ? ["null"] : [])].flatMap((name) => [
        { command: name, input: "archive" as const },
        { command: command({ ...good, name, session }, key), input: "archive" as const },
        { command: `qbackup/1 recipe ${name}`, input: "junk" as const },
        { command: `qbackup/1 check ${name}`, input: "junk" as const },
        { command: `qbackup/1 manifest ${name}`, input: "junk" as const },
      ]),
    ];
    assert.isAtLeast(table.length, 300);
    const before = snapshot();
    // Without root the outside cannot be told apart from the store by its owner; its bytes can.
    const wrong = await inTurns(
      table,
      async (attempt) => {
        const input = attempt.input === "archive" ? good.archive : Buffer.from("junk\n");
        const text = attempt.command.toString("latin1");
        const once = (words: ReadonlyArray<string>) => {
          // A buffer cannot be an argument; printf in a shell makes one of it.
          const argv: [string, ...Array<string>] =
            typeof attempt.command === "string"
              ? [words[0]!, ...words.slice(1), "--", server.destination, attempt.command]
              : [
                  "bash",
                  "-c",
                  'LC_ALL=C; exec "${@:2}" "$(printf "$1")"',
                  "-",
                  [...attempt.command].map((b) => `\\x${b.toString(16).padStart(2, "0")}`).join(""),
                  ...words,
                  "--",
                  server.destination,
                ];
          return execute(argv, { input }).ended;
        };
        let ran = await once(ssh);
        // ssh's own code: a session on a busy connection that got no answer. Then on one of its own.
        if (ran.code === 255) ran = await once(["/usr/bin/ssh", ...server.ssh]);
        // What qbackup-shell ends with; 255 would be ssh's own, and prove nothing about it.
        if (![2, 5, 6].includes(ran.code ?? 0)) {
          return `${text.slice(0, 80)}: exit ${ran.code}: ${ran.stderr.slice(0, 200)}`;
        }
        if (/uid=|root:x|PRIVATE KEY|a bug/.test(ran.stdout + ran.stderr)) {
          return `${text.slice(0, 80)}: ${ran.stdout}${ran.stderr}`;
        }
        return undefined;
      },
      6,
    );
    assert.deepStrictEqual(wrong, []);
    assert.deepStrictEqual(snapshot(), before);
    assert.isFalse(fs.existsSync(canary));
  });

  it("other programs of ssh get nothing through", async () => {
    const { canary, dir, server, snapshot, ssh } = await stage(as);
    const before = snapshot();
    const file = path.join(dir, "file");
    fs.writeFileSync(file, "x");
    const options = ssh.slice(1);
    const [user, host] = server.destination.split("@");
    const scpOptions = options.map((word) => (word === "-p" ? "-P" : word));
    const sub = path.join(dir, "sub.sock");
    const hits: Array<string> = [];
    const listener = net.createServer((socket) => {
      hits.push("hit");
      socket.end("hit\n");
    });
    await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
    const { port } = listener.address() as net.AddressInfo;
    const target = `127.0.0.1:${port}`;
    const there = server.destination;
    // Only a forced command stands in front of a subsystem that sshd itself runs.
    const subsystem: Array<[string, ...Array<string>]> = [
      ["scp", ...scpOptions, file, `${there}:x.backup`],
      ["scp", ...scpOptions, `${there}:old.backup`, path.join(dir, "got")],
      ["sftp", ...scpOptions, "-b", "/dev/null", there],
      ["ssh", ...options, "-s", there, "sftp"],
      ["ssh", ...options, "-s", there, "internal-sftp"],
      ["ssh", ...options, "-W", target, there],
      ["ssh", ...options, "-o", "ExitOnForwardFailure=yes", "-N", "-R", `0:${target}`, there],
      ["ssh", ...options, "-o", "ExitOnForwardFailure=yes", "-N", "-R", `${sub}:${target}`, there],
    ];
    const calls: Array<[string, ...Array<string>]> = [
      ...subsystem,
      ["scp", "-O", ...scpOptions, file, `${there}:x.backup`],
      ["scp", "-O", ...scpOptions, file, `${there}:../x`],
      ["scp", "-O", "-r", ...scpOptions, `${there}:.`, path.join(dir, "got")],
      ["ssh", ...options, there],
      ["ssh", ...options, "-tt", there],
      ["ssh", ...options, "-tt", there, `touch ${canary}`],
      ["ssh", ...options, "-X", there, `touch ${canary}`],
      ["ssh", ...options, "-A", there, `touch ${canary}`],
      ["ssh", ...options, "-s", there, "nothing"],
      ["git", "ls-remote", `ssh://${user}@${host}:${server.port}/x`],
    ];
    const wrong = await inTurns(
      calls,
      async (argv) => {
        const ran = await execute(argv, {
          input: Buffer.from(`touch ${canary}\n`),
          limit: 30_000,
          env: {
            ...process.env,
            GIT_SSH_COMMAND: `ssh ${server.ssh.join(" ")}`,
            DISPLAY: ":99",
            GIT_TERMINAL_PROMPT: "0",
          },
        }).ended;
        const what = `${argv[0]} ${argv.slice(-3).join(" ")}`;
        if (ran.code === null) return `${what}: it hangs`;
        return ran.code === 0 ? `${what}: exit 0: ${ran.stdout}${ran.stderr}` : undefined;
      },
      4,
    );
    assert.deepStrictEqual(wrong, []);

    {
      // -L and -D open their port here; it is the channel behind it that must not come about.
      const local = path.join(dir, "local.sock");
      const forward = spawn(
        "ssh",
        [...server.ssh, "-N", "-L", `${local}:${target}`, "-L", `${local}2:${sub}`, "--", there],
        { stdio: "ignore" },
      );
      masters.push(() => forward.kill("SIGKILL"));
      while (!fs.existsSync(`${local}2`)) await new Promise((done) => setTimeout(done, 20));
      for (const each of [local, `${local}2`]) {
        const got = await new Promise<string>((resolve) => {
          let text = "";
          const socket = net.connect(each);
          socket.on("data", (data) => (text += data.toString()));
          socket.on("error", () => {});
          socket.on("close", () => resolve(text));
        });
        assert.strictEqual(got, "");
      }
      assert.deepStrictEqual(hits, []);
    }
    listener.close();
    assert.deepStrictEqual(snapshot(), before);
    assert.isFalse(fs.existsSync(canary));
    assert.isFalse(fs.existsSync(path.join(dir, "got")), "something was copied out");
  });

  it("no variable, agent, display or terminal of the client's reaches the program", async () => {
    const { canary, dir, key, server, snapshot } = await stage(as);
    const before = snapshot();
    const hook = path.join(dir, "hook.cjs");
    fs.writeFileSync(hook, `require("fs").writeFileSync(${JSON.stringify(canary)}, "")\n`);
    const hostile: Record<string, string> = {
      NODE_OPTIONS: `--require ${hook}`,
      NODE_PATH: dir,
      NODE_V8_COVERAGE: path.join(dir, "watched/outside/coverage"),
      NODE_COMPILE_CACHE: path.join(dir, "watched/outside/cache"),
      NODE_REDIRECT_WARNINGS: path.join(dir, "watched/outside/warnings"),
      NODE_EXTRA_CA_CERTS: hook,
      LD_PRELOAD: path.join(dir, "x.so"),
      LD_LIBRARY_PATH: dir,
      LD_AUDIT: path.join(dir, "x.so"),
      LD_DEBUG: "all",
      GCONV_PATH: dir,
      GLIBC_TUNABLES: "glibc.malloc.check=3",
      OPENSSL_CONF: hook,
      MALLOC_TRACE: path.join(dir, "watched/outside/trace"),
      BASH_ENV: hook,
      ENV: hook,
      UV_THREADPOOL_SIZE: "1",
    };
    const call = talk([
      "/usr/bin/ssh",
      ...server.ssh,
      "-A",
      "-X",
      // Not from ssh's own environment, where they would hit ssh. It heeds one SetEnv only.
      "-o",
      `SetEnv=${Object.entries(hostile)
        .map(([name, value]) => `"${name}=${value}"`)
        .join(" ")}`,
      "--",
      server.destination,
      command({ ...good, name: "env.backup", session }, key),
    ]);
    const first = await call.next();
    if (first === undefined) assert.fail(`${JSON.stringify(await call.ended)}${server.log()}`);
    assert.strictEqual(first.type, "ready");
    if (isRoot) {
      const pids = processesWith(path.join(dir, "bin/qbackup-shell")).filter((pid) =>
        fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("node"),
      );
      assert.isAtLeast(pids.length, 1);
      for (const pid of pids) {
        const environment = fs.readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
        for (const name of [...Object.keys(hostile), "SSH_AUTH_SOCK", "DISPLAY", "SSH_TTY"]) {
          const line = environment.find((each) => each.startsWith(`${name}=`));
          assert.include([undefined, `${name}=`], line);
        }
      }
    }
    call.child.kill("SIGKILL");
    await call.ended;
    assert.isFalse(fs.existsSync(canary));
    const outside = (lines: ReadonlyArray<string>) =>
      lines.filter((line) => !/\/\.qbackup\/(?:incoming|runs)\//.test(line));
    assert.deepStrictEqual(outside(snapshot()), outside(before));
  });
};
describe("as both", unless(notRoot), attacks("both"));
describe("as forced-command", attacks("forced-command"));

describe("links in the place of the store's own directories and files", () => {
  type Plant = (store: string, outside: string) => void;
  /** A link at a place that the store has, or will have, for its own; `behind` is outside. */
  const link =
    (at: string, behind: string): Plant =>
    (store, outside) => {
      const own = path.join(store, ".qbackup");
      fs.mkdirSync(path.dirname(path.join(own, at)), { recursive: true });
      fs.symlinkSync(path.join(outside, behind), path.join(own, at));
    };
  const directories = [
    "incoming",
    "packs",
    "digests",
    "tables",
    "recipes",
    "records",
    "runs",
    "gone",
  ];
  const plant: Record<string, Plant> = {
    ".qbackup": (store, outside) => {
      fs.rmSync(path.join(store, ".qbackup"), { recursive: true });
      fs.symlinkSync(outside, path.join(store, ".qbackup"));
    },
    "its identity": (store, outside) => {
      fs.rmSync(path.join(store, ".qbackup/identity"));
      link("identity", "new")(store, outside);
    },
    "its signers": link("signers", "victim"),
    "its owner": link("owner", "victim"),
    "its log": link("log", "victim"),
    ...Object.fromEntries(directories.map((name) => [`its ${name}`, link(name, "")])),
    "the upload": link(`incoming/${session}`, "victim"),
    ...Object.fromEntries(
      ["table", "recipe", "record", "ticket"].map((kind) => [
        `its ${kind}`,
        link(`incoming/${session}.${kind}`, "victim"),
      ]),
    ),
    "its digest list": (store, outside) => {
      link(`incoming/${session}.digests`, "victim")(store, outside);
      fs.writeFileSync(path.join(store, ".qbackup/incoming", session), Buffer.alloc(1_048_576));
    },
    "the kept digests": link(`digests/${session}`, "victim"),
    "the kept pack": link(`packs/${session}`, "victim"),
  };
  it.each(Object.entries(plant))("%s: nothing outside is touched", async (_, set) => {
    const dir = scratch();
    const outside = path.join(dir, "outside");
    const store = path.join(dir, "store");
    fs.mkdirSync(outside);
    fs.mkdirSync(store);
    fs.writeFileSync(path.join(outside, "victim"), "victim\n");
    const server = keyIn(store);
    set(store, outside);
    const before = tree(outside);
    const parcel = { ...good, session };
    const { error, ran, stored } = await put(serve(store, command(parcel, server)), parcel, server);
    assert.deepStrictEqual(tree(outside), before);
    // A link among its own uploads may be thrown away; one it has no business with is refused.
    if (stored === undefined) assert.notStrictEqual(ran.code, 0, JSON.stringify(error));
    else assert.isTrue(fs.readFileSync(path.join(store, parcel.name)).equals(parcel.archive));
  });
});
