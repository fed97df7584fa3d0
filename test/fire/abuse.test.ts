/** Clients that lie about lengths, talk without end, or do not listen; over the real ssh. */
import { spawn } from "node:child_process";
import { afterAll, afterEach, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { memberLimit } from "#src/proof/table";
import { lengthPrefix } from "#src/wire/frames";
import { scryptOf, slotOf } from "#test/support/archive";
import { cell, header, slot } from "#test/support/nights";
import { framed, memberAt, pairOf, sha256, tableLine } from "#test/support/reference";
import { commandFor, framesOf, manifestFor, nth, ticketFor, trailerOf } from "#test/support/shell";
import { processesWith } from "#test/support/programs";
import { isRoot, type Server, startServer } from "#test/support/server";
import { dist, whole, type Whole } from "#test/support/whole";
import {
  archive,
  command,
  contents,
  inTurns,
  keyIn,
  keyOf,
  type Parcel,
  pause,
  put,
  removeScratch,
  scratch,
  serve,
  sessionOf,
  talk,
  type Talk,
} from "./wire.ts";

afterAll(removeScratch);

let server: Server | undefined;
let shell = "";
afterEach(() => {
  server?.stop();
  server = undefined;
});

interface Stage {
  /** Runs a command on the server. */
  readonly ssh: (command: string, limit?: number) => Talk;
  /** The server's key. */
  readonly key: string;
  /** The command of a put that is admitted, of a session of its own. */
  readonly open: () => string;
}
const setUp = async (): Promise<Stage> => {
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
  const ssh = (text: string, limit = 120_000) =>
    talk(["/usr/bin/ssh", ...started.ssh, "--", started.destination, text], { limit });
  const key = await keyOf(ssh);
  let sessions = 1;
  const open = () => command({ ...parcel, session: sessionOf(++sessions) }, key);
  return { ssh, key, open };
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
  const timer = setInterval(look, 50);
  return () => {
    look();
    clearInterval(timer);
    return most;
  };
};
/** MiB; the most that a program may ever take, whoever talks to it. */
const bound = 192;

/** More than any of these clients sends. */
const parcel: Parcel = { name: "a.backup", session: sessionOf(1), archive: archive(60_000_000) };
const nothingStored = (): void => assert.deepStrictEqual(contents(server!.store), []);

/** Sends the same piece again and again, until so many bytes went or nobody takes them. */
const pour = async (
  call: Talk,
  bytes: number,
  piece: Uint8Array = Buffer.alloc(1_048_576, 0x78),
) => {
  let sent = 0;
  while (sent < bytes && (await call.send(piece))) sent += piece.length;
  return sent;
};

describe("a client of the server", () => {
  it("announces a frame of 4 GiB", async () => {
    const { open, ssh } = await setUp();
    for (const length of [0xfffffffe, 0x80000001, 0x7fffffff, 1_048_577]) {
      const used = memory(() => shell);
      const call = ssh(open());
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

  it("sends a manifest that is none, and one that is longer", async () => {
    const { open, ssh } = await setUp();
    const frames = framesOf(archive(20_000));
    for (const length of [2048, 2049, 1_048_576, 1_048_577, 0xfffffffe]) {
      for (const junk of ["x", "[", '{"":', '{"a":0},', '"\\u0000', "\xff"]) {
        const used = memory(() => shell);
        const call = ssh(open());
        assert.strictEqual((await call.next())?.type, "ready");
        await call.send(Buffer.concat([frames, lengthPrefix(length)]));
        void call.send(Buffer.alloc(Math.min(length, 1_048_577), junk, "latin1"));
        // A frame of a right length is only looked at with all that follows it.
        void call.send(Buffer.concat([framed(Buffer.alloc(64)), framed(Buffer.from("new 0 4\n"))]));
        void call.send(framed());
        const said = await call.next();
        assert.strictEqual(said?.["code"], "bad-request", JSON.stringify(said));
        call.end();
        assert.strictEqual((await call.ended).code, 2);
        assert.isBelow(used(), bound, junk);
        // What was refused by its trailer alone may come again, as a whole.
        assert.deepStrictEqual(
          contents(server!.store).filter((name) => !name.startsWith(".qbackup/incoming/")),
          [],
        );
      }
    }
  });

  it("sends a recipe without end, and one that leads outside", async () => {
    const { open, ssh } = await setUp();
    const trailer = [framed(Buffer.alloc(100, 0x20)), framed(Buffer.alloc(64))];
    const begin = Buffer.concat([framesOf(archive(20_000)), ...trailer]);
    for (const line of ["new 0 4\n", "new 0 5\n", "base 0 1\n", "new 0 0\n", "x", "\n"]) {
      const used = memory(() => shell);
      const call = ssh(open());
      assert.strictEqual((await call.next())?.type, "ready");
      await call.send(begin);
      const piece = framed(Buffer.alloc(1_048_576 - (1_048_576 % line.length), line));
      void pour(call, 1_073_741_824, piece);
      const said = await call.next();
      assert.strictEqual(said?.["code"], "bad-request", `${line}: ${JSON.stringify(said)}`);
      call.end();
      assert.strictEqual((await call.ended).code, 2);
      assert.isBelow(used(), bound, line);
    }
  });

  it("sends a gigabyte where nobody asked for a byte, and where an archive should be", async () => {
    const { open, ssh } = await setUp();
    const size = 1_073_741_824;
    for (const [text, code] of [
      ["qbackup/1 list", 0],
      ["a.backup", 6],
      ["ls", 6],
      [open(), 2],
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
    const { key, ssh } = await setUp();
    assert.isDefined((await put(ssh(command(parcel, key)), parcel, key)).stored);
    const used = memory(() => shell);
    const reader = spawn(
      "/usr/bin/ssh",
      [...server!.ssh, "--", server!.destination, "qbackup/1 read"],
      { stdio: ["pipe", "pipe", "ignore"] },
    );
    reader.stdout.pause();
    // All blocks of the largest member.
    reader.stdin.write(`${parcel.session} 3 0 57\n`);
    await pause(75_000);
    assert.isBelow(used(), bound);
    // In a minute without a byte taken it has given up by itself.
    assert.deepStrictEqual(processesWith(shell), []);
    reader.kill("SIGKILL");
  });

  it("sends a byte now and then: that is silence, and ends in a minute", async () => {
    const { open, ssh } = await setUp();
    const call = ssh(open());
    assert.strictEqual((await call.next())?.type, "ready");
    const started = Date.now();
    const timer = setInterval(() => void call.send(Buffer.from([0])), 20_000);
    const { code } = await call.ended;
    clearInterval(timer);
    assert.strictEqual(code, 4);
    assert.isBelow(Date.now() - started, 80_000);
    assert.isAbove(Date.now() - started, 55_000);
    assert.deepStrictEqual(
      contents(server!.store).filter((name) => !name.startsWith(".qbackup/incoming/")),
      [],
    );
  });
});

describe("a client with as many members as there may be", () => {
  const data = scryptOf(Buffer.alloc(0), Buffer.alloc(32, 7));
  const line = (member: Buffer) => tableLine(memberAt(member), sha256(member).toString("hex"));
  const heads = (night: number) => [header(night), slot("backup-header.hmac", 100)];
  /** The same member under another path: a million headers are not summed up byte for byte. */
  const like = slotOf(cell(0), data);
  const sumOf = (bytes: Uint8Array) => bytes.reduce((sum, byte) => sum + byte, 0);
  const field = (bytes: Buffer) => bytes.subarray(0, 100);
  const rest = Number.parseInt(like.toString("latin1", 148, 154), 8) - sumOf(field(like));
  const named = (name: string): Buffer => {
    const member = Buffer.from(like);
    field(member).fill(0).write(name, "latin1");
    const sum = rest + sumOf(member.subarray(0, name.length));
    member.write(sum.toString(8).padStart(6, "0"), 148, "latin1");
    return member;
  };
  const prefix = lengthPrefix(like.length);
  const served = (store: string, command: string) => {
    const call = serve(store, command, [], 600_000);
    return { ...call, used: memory(() => `--root\0${store}`) };
  };

  it("and no two of them beside each other: all of it in bounded memory", async () => {
    const store = path.join(scratch(), "store");
    fs.mkdirSync(store, { mode: 0o700 });
    const server = keyIn(store);
    const now = Date.now();
    /** Of the members behind the heads. */
    const lines = Array.from({ length: memberLimit - 2 }, () => "");
    const last = lines.length - 1;
    assert.deepStrictEqual(named(cell(12_345)), slotOf(cell(12_345), data));
    /** The pack has them the other way round, so a recipe needs a line for each. */
    const backwards = function* () {
      for (let i = last; i >= 0; i--) {
        const member = named(i === 0 ? "qubes.xml.000.enc" : cell(i - 1));
        lines[i] = line(member);
        yield prefix;
        yield member;
      }
    };
    const send = async (
      night: number,
      frames: Iterable<Uint8Array>,
      recipe: string,
      base?: string,
    ) => {
      const own = heads(night);
      const put = {
        ...nth(night),
        ...(base === undefined ? {} : { base }),
        bytes: 2 ** 31,
      };
      const call = served(store, commandFor(put, server, now));
      assert.strictEqual((await call.next())?.type, "ready");
      let some: Array<Uint8Array> = [];
      for (const part of frames) {
        some.push(part);
        if (some.length < 2048) continue;
        // oxlint-disable-next-line no-await-in-loop
        await call.send(Buffer.concat(some));
        some = [];
      }
      await call.send(Buffer.concat([...some, ...own.map((member) => framed(member))]));
      const archive = [...own.map(line), ...lines];
      const manifest = manifestFor(ticketFor(put, now), server, archive, "slots");
      await call.send(Buffer.concat([framed(), trailerOf(manifest, recipe)]));
      const said = await call.next();
      call.end();
      assert.strictEqual(said?.type, "stored", JSON.stringify(said));
      assert.isBelow(call.used(), bound, `night ${night}`);
    };
    const each = (of: string, number: (i: number) => number) =>
      lines.map((_, i) => `${of} ${number(i)} 1\n`).join("");
    await send(1, backwards(), `new ${last + 1} 2\n${each("new", (i) => last - i)}`);
    await send(2, [], `new 0 2\n${each("base", (i) => i + 2)}`, sessionOf(1));
    // As many packs of that kind as would not fit, were all of them held.
    const packs = Array.from({ length: 12 }, (_, i) => sessionOf(i === 0 ? 1 : 100 + i));
    for (const session of packs.slice(1)) {
      for (const part of ["packs", "digests", "tables"]) {
        const of = path.join(store, ".qbackup", part);
        fs.linkSync(path.join(of, sessionOf(1)), path.join(of, session));
      }
    }
    const asks = packs.map((session, i) => `${session} ${i} 0 1\n`).join("");
    for (const [command, lines = ""] of [
      [`check ${nth(2).name}`],
      ["list"],
      ["about"],
      ["read", `${asks}\n`],
    ] as const) {
      const call = served(store, `qbackup/1 ${command}`);
      // oxlint-disable-next-line no-await-in-loop
      await call.send(Buffer.from(lines));
      call.end();
      // oxlint-disable-next-line no-await-in-loop
      const { code, stderr, stdout } = await call.ended;
      assert.strictEqual(code, 0, stderr);
      assert.isBelow(call.used(), bound, command);
      const blocks = stdout.split("\0ustar\0").length - 1;
      assert.strictEqual(blocks, command === "read" ? packs.length : 0, command);
    }
  });
});

/** A far side of dom0: what it does once it was called, in sh, and what that must come to. */
interface Liar {
  readonly name: string;
  readonly script: string;
  readonly codes: ReadonlyArray<number>;
  /** Only time ends it. */
  readonly slow?: boolean;
}
const key = pairOf(Buffer.alloc(32, 7)).publicKey;
const nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const say = (reply: object | string): string =>
  `echo '${typeof reply === "string" ? reply : JSON.stringify(reply)}'\n`;
const about = {
  type: "about",
  version: "1",
  server: key,
  signers: [],
  quota: null,
  room: 2 ** 40,
  reserved: 0,
  clock: "2026-11-23T05:00:00Z",
  confined: null,
  ticket: null,
};
/** Says who it is when it is asked; what follows is for the upload. */
const met = `case "$*" in *about*) echo; ${say(about)} exit 0;; esac\n`;
const ready = (offset: number | string): string =>
  `${met}echo\n${say(`{"type":"ready","offset":${offset},"running":"${nothing}"}`)}`;
const ack = (offset: number): string => say({ type: "ack", offset, running: nothing });
const stored = say({ type: "stored", receipt: "{}", signature: "A".repeat(86) });
const liars: ReadonlyArray<Liar> = [
  { name: "a gigabyte without a line", script: "head -c 1073741824 /dev/zero", codes: [4] },
  { name: "lines without end", script: "yes", codes: [4] },
  { name: "one line without end", script: "tr '\\0' x </dev/zero", codes: [4] },
  {
    name: "a line of a gigabyte after ready",
    script: `${ready(0)}head -c 1073741824 /dev/zero | tr '\\0' x`,
    codes: [6],
  },
  {
    name: "more lines before the first reply than are read over",
    script: `seq 65; ${ready(0)}cat >/dev/null`,
    codes: [4],
  },
  {
    name: "escapes before the first reply, and in a refusal",
    script: `printf '\\033]0;x\\007\\033[2J\\n'; printf '\\033[2J' >&2; echo\n${say('{"type":"error","code":"quota","message":"\\u001b[2J\\u202e\\u0007gone"}')}`,
    codes: [5],
  },
  { name: "an offset ahead", script: `${ready(1_048_576)}cat >/dev/null`, codes: [6] },
  { name: "an odd offset", script: `${ready(5)}cat >/dev/null`, codes: [6] },
  {
    name: "an offset below nothing",
    script: `${ready(-1_048_576)}cat >/dev/null`,
    codes: [4],
    // Read over, as what a login shell printed; then there is nothing.
    slow: true,
  },
  {
    name: "an offset that is no number",
    script: `${ready("1e999")}cat >/dev/null`,
    codes: [4],
    // Read over, as what a login shell printed; then there is nothing.
    slow: true,
  },
  {
    name: "other bytes than were sent",
    script: `${ready(0)}head -c 100000 >/dev/null\n${ack(30_720)}cat >/dev/null`,
    codes: [6],
  },
  {
    name: "a ticket that dom0 did not sign",
    script: `echo\n${say({ ...about, ticket: { text: "put x", signature: "A".repeat(86) } })}`,
    codes: [6],
  },
  {
    name: "no room at all",
    script: `${met.replace("1099511627776", "0")}echo\n${say({ type: "error", code: "quota", message: "full" })}`,
    codes: [5],
  },
  {
    name: "an acknowledgement of what was not sent",
    script: `${ready(0)}head -c 100000 >/dev/null\n${ack(1_073_741_824)}cat >/dev/null`,
    codes: [6],
  },
  {
    name: "stored at once",
    script: `${met}echo\n${stored}cat >/dev/null`,
    codes: [6],
  },
  {
    name: "stored in the middle",
    script: `${ready(0)}${stored}cat >/dev/null`,
    codes: [6],
  },
  { name: "ready twice", script: `${ready(0)}${ready(0)}cat >/dev/null`, codes: [6] },
  {
    name: "brackets as deep as a line allows",
    script: `echo; head -c 4000 /dev/zero | tr '\\0' '['; echo; cat >/dev/null`,
    codes: [4],
    // Read over, as what a login shell printed; then there is nothing.
    slow: true,
  },
  {
    name: "brackets later",
    script: `${ready(0)}head -c 4000 /dev/zero | tr '\\0' '['; echo; cat >/dev/null`,
    codes: [6],
  },
  {
    name: "no space, after it took a part",
    script: `${ready(0)}head -c 500000 >/dev/null\n${say('{"type":"error","code":"no-space","message":"full"}')}`,
    codes: [5],
  },
  {
    name: "digest-mismatch, after it took a part",
    script: `${ready(0)}head -c 500000 >/dev/null\n${say('{"type":"error","code":"digest-mismatch","message":"bad"}')}`,
    codes: [6],
  },
  { name: "the end, at once", script: "exit 0", codes: [4] },
  { name: "silence", script: "exec sleep 900", codes: [4], slow: true },
  {
    name: "a byte a minute",
    script: "while :; do printf x; sleep 60; done",
    codes: [4],
    slow: true,
  },
  {
    name: "a good line, a byte in two seconds",
    script: `printf '\\n{"type":"ready",'; while :; do printf ' '; sleep 2; done`,
    codes: [4],
    slow: true,
  },
  { name: "silence after ready", script: `${ready(0)}exec sleep 900`, codes: [4], slow: true },
  {
    name: "a byte now and then after ready",
    script: `${ready(0)}while :; do printf ' '; sleep 5; done`,
    codes: [4],
    slow: true,
  },
  {
    name: "signs of life without end",
    script: `echo; yes '{"type":"alive"}'`,
    codes: [4],
  },
  {
    name: "signs of life without end after ready",
    script: `${ready(0)}yes '{"type":"alive"}'`,
    codes: [6],
  },
  {
    name: "acknowledgements of nothing without end",
    script: `${ready(0)}yes '${JSON.stringify({ type: "ack", offset: 0, running: nothing })}'`,
    codes: [6],
  },
  { name: "diagnostics without end", script: "yes >&2", codes: [4], slow: true },
  {
    name: "busy without end",
    script: `echo\n${say('{"type":"error","code":"busy","message":"busy"}')}`,
    codes: [4],
    slow: true,
  },
];

/** In its place, and what it says when: before it was asked, too. */
const places = {
  "as the carrier": (script: string) => `read -r line\n${script}`,
  "as the carrier, before the request": (script: string) => script,
  "as the server, behind the real carrier": (script: string) => script,
} as const;

describe("what answers dom0", () => {
  const lieTo = async (
    place: keyof typeof places,
    { codes, name, script, slow }: Liar,
  ): Promise<string | undefined> => {
    const text = `${places[place](script)}\n`;
    const carrier = place.startsWith("as the carrier");
    const w: Whole = await whole({
      qubes: [
        { name: "work", size: 3_000_000 },
        { name: "net", size: 0, include: false },
      ],
      settings: { raw: true },
      limit: 600_000,
      ...(carrier ? {} : { sshScript: text }),
    });
    try {
      if (carrier) w.world.service("net", "qubes.BackupCarrier", { text: `#!/bin/sh\n${text}` });
      const argv = ["-o", "-t", "net", "-p", w.passphraseFile];
      const used = memory(() => [dist("qbackup"), ...argv].join("\0"));
      const carried = memory(() => path.join(w.dir, "qubes", "root/net"));
      const started = Date.now();
      // A minute is the least that it can be told to be patient.
      const { child, ended } = w.start(
        ...argv,
        "--link-timeout",
        "1",
        "--start-timeout",
        "1",
        "work",
      );
      // Far above what it takes: what would never end is told from what a busy machine makes slow.
      const limit = slow === true ? 500_000 : 200_000;
      const timer = setTimeout(() => child.kill("SIGINT"), limit);
      const ran = await ended;
      clearTimeout(timer);
      const wrong = (what: string) => `${place}: ${name}: ${what}: ${ran.stderr.slice(-600)}`;
      if (!codes.includes(ran.code ?? -1)) return wrong(`exit ${ran.code}`);
      if (Date.now() - started > limit) return wrong("it took too long");
      const most = Math.max(used(), carried());
      if (most > bound) return wrong(`${most} MiB`);
      if (ran.stderr.length > 40_000) return wrong(`${ran.stderr.length} bytes of words`);
      if (!/^[\x20-\x7e\n\r]*$/.test(ran.stderr)) return wrong("unprintable words");
      if (w.ledger().length > 0) return wrong("a line in the ledger");
      if (fs.existsSync(path.join(w.state, "known_servers"))) return wrong("a pinned key");
      if (w.world.qube("net").state !== "Halted") return wrong("the destination qube runs");
      if (w.world.profiles().length > 0) return wrong("qvm-backup left its profile");
      return undefined;
    } finally {
      w.stop();
    }
  };
  const cases = (Object.keys(places) as ReadonlyArray<keyof typeof places>).flatMap((place) =>
    liars.map((liar) => [place, liar] as const),
  );
  it("lies: exit 4, 5 or 6, in bounded memory, and nothing is proven", async () => {
    const chosen = cases.filter(([, { slow }]) => slow !== true);
    assert.deepStrictEqual(await inTurns(chosen, ([place, liar]) => lieTo(place, liar), 3), []);
  });
  it("does not come to an end: exit 4, in bounded time and memory", async () => {
    const chosen = cases.filter(([, { slow }]) => slow === true);
    // They wait, most of them: many at once.
    assert.deepStrictEqual(await inTurns(chosen, ([place, liar]) => lieTo(place, liar), 21), []);
  });
});

describe("what answers a look back", () => {
  /** Frames of this text, without end. */
  const endless = (line: string): string =>
    `echo\n${say({ type: "ready" })}yes '${line}' | head -c 1048576 >"$0.text"\nwhile printf '\\000\\020\\000\\000'; do cat "$0.text" || exit; done`;
  const session = "0".repeat(32);
  const digest = "0".repeat(64);
  /** Archives in order of their names, far more than a page has. */
  const archives = `echo; seq 1000000000 1100000000 | sed 's/.*/${JSON.stringify({
    type: "archive",
    name: "a&.backup",
    session,
    signer: null,
    series: null,
    run: null,
    size: 1,
    members: 1,
    root: digest,
    stored: "2026-11-23T05:00:00Z",
    damaged: false,
  })}/'`;
  /** What it says to which verb; to the others, the truth. */
  const lies: ReadonlyArray<{ readonly verb: string; readonly script: string }> = [
    { verb: "list", script: archives },
    { verb: "list", script: "yes" },
    { verb: "recipe", script: endless(`${session} 0 1`) },
    { verb: "recipe", script: endless("x") },
    { verb: "table", script: endless(`vm1/private.img.000.enc 10 10240 ${digest}`) },
    { verb: "table", script: endless("") },
    { verb: "read", script: endless("junk") },
    { verb: "read", script: `echo\n${say({ type: "ready" })}yes` },
    { verb: "manifest", script: `echo; head -c 1073741824 /dev/zero | tr '\\0' x` },
  ];
  it("lies without end: exit 4 or 6, in bounded memory, and nothing is proven", async () => {
    const w = await whole({ settings: { raw: true }, limit: 600_000 });
    try {
      const ran = await w.run("work");
      assert.strictEqual(ran.code, 0, ran.stderr);
      const { name } = w.ledger()[0]!;
      const real = dist("qubes.BackupCarrier");
      for (const { script, verb } of lies) {
        w.world.service("net", "qubes.BackupCarrier", {
          text: `#!/bin/sh\n[ "$1" = ${verb} ] || exec ${real} "$@"\nread -r line\n${script}\n`,
        });
        for (const args of [["list"], ["verify", name], ["audit"]]) {
          if ((args[0] === "list") !== (verb === "list")) continue;
          // An audit does not ask for it.
          if (verb === "manifest" && args[0] === "audit") continue;
          const argv = [args[0]!, "-t", "net", ...args.slice(1)];
          const used = memory(() => [dist("qbackup"), ...argv].join("\0"));
          // One after the other: they share a world.
          // oxlint-disable-next-line no-await-in-loop
          const { code, stderr, stdout } = await w.start(...argv).ended;
          const what = `${args[0]} of ${verb}: ${script.slice(-60)}: ${stdout}${stderr}`.slice(
            0,
            600,
          );
          assert.include([4, 6], code, what);
          assert.notMatch(stdout, /verified|came back proven/, what);
          assert.isBelow(used(), bound, what);
          assert.match(stderr, /^[\x20-\x7e\n\r]*$/, what);
        }
      }
    } finally {
      w.stop();
    }
  });
});
