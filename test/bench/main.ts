/**
 * `make bench`: qbackup beside the plain tools that would move the same bytes, in pairs, on the same
 * two cores and the same disk. Prints a Markdown table, and writes it to the file given.
 *
 *     node test/bench/main.ts [--quick] [--only a,b,...] [--rounds N] [--size MIB] [--dir DIR] [FILE]
 *
 * --quick proves that the bench runs, and nothing else: small sizes, one round.
 * DIR is where about 25 GiB go (default: the directory for temporary files).
 */
import { execFileSync } from "node:child_process";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { parseArgs } from "node:util";
import {
  aesGcm,
  type Bed,
  endChildren,
  generated,
  here,
  loopback,
  makeBed,
  programNode,
} from "./bed.ts";
import { frameFile, serverKey } from "./frames.ts";
import { longLink, type Shaped, shapedLink } from "./links.ts";
import { GiB, interleave, load, median, MiB, paired, type Usage } from "./measure.ts";
import { nights } from "./nights.ts";
import { human, lines, log, row, s, say, speed, timed } from "./table.ts";
import { isRoot } from "#test/support/server";

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: "boolean", default: false },
    only: { type: "string", default: "abcdefghijklmn" },
    rounds: { type: "string" },
    size: { type: "string" },
    dir: { type: "string", default: os.tmpdir() },
  },
});
const { quick } = given;
const rounds = Number(given.rounds ?? (quick ? 1 : 5));
const size = Number(given.size ?? (quick ? 16 : 1024)) * MiB;
/** For what is slow or only read off. */
const sizes = {
  memory: [size / 4, quick ? 2 * size : 4 * size],
  long: size / 4,
  audit: quick ? 4 * size : 10 * size,
};
const auditBlocks = quick ? 5 : 459;
const wanted = (item: string) => given.only.includes(item);

/** What each role used. */
type Used = { readonly [role: string]: Usage };

const dir = fs.mkdtempSync(path.join(path.resolve(given.dir), "qbackup-bench-"));
let bed: Bed | undefined;
let shaped: Shaped | undefined;
let tidied = false;
const tidy = () => {
  if (tidied) return;
  tidied = true;
  endChildren();
  bed?.stop();
  shaped?.stop();
  fs.rmSync(dir, { recursive: true, force: true });
};
for (const [signal, code] of Object.entries({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 })) {
  process.on(signal, () => {
    tidy();
    process.exit(code);
  });
}
process.on("exit", tidy);

/** Two cores for everything, sshd and all children included. */
const twoCores = () => {
  const cores = os.availableParallelism();
  if (cores <= 2) return cores;
  execFileSync("taskset", ["-a", "-c", "-p", "0,1", `${process.pid}`], { stdio: "ignore" });
  return 2;
};

const wholePath = async (b: Bed) => {
  const [ours, gcm, plain, all, allGcm] = [[], [], [], [], []] as Array<Array<number>>;
  await interleave(rounds, {
    qbackup: async () => {
      const job = await b.backUp();
      ours!.push(job.stored - job.ready);
      all!.push(job.exit);
      return 0;
    },
    gcm: async () => {
      const { ready, stored } = await b.plain(aesGcm);
      gcm!.push(stored - ready);
      allGcm!.push(stored);
      return 0;
    },
    plain: async () => {
      const { ready, stored } = await b.plain([]);
      plain!.push(stored - ready);
      return 0;
    },
  });
  const what = `(a) whole path, FIFO to receipt, ${human(b.size)}`;
  row(
    what,
    timed(b.size, ours!),
    `ssh, same cipher: ${timed(b.size, gcm!)}`,
    speed(ours!, gcm!),
    "0.6",
  );
  row(
    "(a) the same",
    timed(b.size, ours!),
    `ssh, its default cipher: ${timed(b.size, plain!)}`,
    speed(ours!, plain!),
    "1",
  );
  row(
    "(a) the same, from start to end of the command",
    timed(b.size, all!),
    `ssh, same cipher: ${timed(b.size, allGcm!)}`,
    speed(all!, allGcm!),
    "",
  );
};

const python = ((): string | undefined => {
  try {
    const ask = ["-c", "import sys; print(sys.executable)"];
    return execFileSync("python3", ask, { encoding: "utf8" }).trim();
  } catch {
    return undefined;
  }
})();
const copying = "shutil.copyfileobj(sys.stdin.buffer, f, 1 << 20)";
const hashing = `while block := sys.stdin.buffer.read(1 << 20):
        hashlib.sha256(block).digest()
        f.write(block)`;
/** The least that a server could do with the archive: seconds, and those of the processor. */
const byPython = async (b: Bed, how: string) => {
  const [script, file] = [path.join(dir, "copy.py"), path.join(dir, "copied")];
  const used = `${file}.cpu`;
  fs.writeFileSync(
    script,
    `import hashlib, os, shutil, sys
with open(sys.argv[1], "wb") as f:
    ${how}
    f.flush()
    os.fsync(f.fileno())
with open(sys.argv[2], "w") as f:
    f.write(str(sum(os.times()[:2])))
`,
  );
  const took = await b.shell(`cat ${b.source} | ${python} ${script} ${file} ${used}`);
  const cpu = Number(fs.readFileSync(used, "utf8"));
  fs.rmSync(file);
  return { took, cpu };
};

const serverAlone = async (b: Bed) => {
  if (python === undefined) {
    row("(b) the server's part alone", "skipped", "there is no python3", "", "1.0");
    return;
  }
  const store = path.join(dir, "alone");
  const shell = b.program("qbackup-shell");
  const framed = frameFile(b.source, path.join(dir, "frames"));
  const times = await interleave(rounds, {
    shell: async () => {
      fs.mkdirSync(store, { mode: 0o700 });
      const session = crypto.randomBytes(16).toString("hex");
      const { command, trailer } = framed.upload("alone", session, serverKey(shell, store));
      const end = path.join(dir, "trailer");
      fs.writeFileSync(end, trailer);
      const took = await b.shell(
        `cat ${framed.file} ${end} | SSH_ORIGINAL_COMMAND='${command}' ${shell} --root ${store}`,
      );
      fs.rmSync(store, { recursive: true });
      return took;
    },
    python: async () => (await byPython(b, copying)).took,
    hashing: async () => (await byPython(b, hashing)).took,
  });
  fs.rmSync(framed.file);
  for (const [what, theirs] of [
    ["copies stdin and fsyncs", times.python],
    ["does that and hashes each MiB", times.hashing],
  ] as const) {
    row(
      `(b) the server's part alone, ${human(b.size)}`,
      timed(b.size, times.shell),
      `python3 that ${what}: ${timed(b.size, theirs)}`,
      speed(times.shell, theirs),
      theirs === times.python ? "1.0" : "",
    );
  }
};

/** One SHA-256 pass of the programs' node, in processor seconds a GiB. */
const hashPass = () =>
  Number(
    execFileSync(
      programNode,
      [
        "-e",
        `const c=require("crypto"),b=c.randomBytes(1<<20),u=process.cpuUsage();
for(let i=0;i<1024;i++)c.hash?c.hash("sha256",b,"buffer"):c.createHash("sha256").update(b).digest();
const {user,system}=process.cpuUsage(u);console.log((user+system)/1e6)`,
      ],
      { encoding: "utf8" },
    ),
  );

const programs = [
  ["dom0", "qbackup", "192 MiB"],
  ["carrier", "qubes.BackupCarrier", "128 MiB"],
  ["server", "qbackup-shell", "128 MiB"],
] as const;

const memory = async (b: Bed) => {
  const usages: Array<{ readonly [role: string]: ReadonlyArray<Usage> }> = [];
  for (const each of sizes.memory) {
    const seen: Array<Used> = [];
    for (let round = 0; round < Math.min(rounds, 3); round++) {
      seen.push((await b.backUp(generated(each), { watched: true, bytes: each })).usage);
    }
    const roles = ["dom0", "carrier", "server"];
    usages.push(
      Object.fromEntries(roles.map((role) => [role, seen.flatMap((usage) => usage[role] ?? [])])),
    );
  }
  const [small, large] = usages as [(typeof usages)[number], (typeof usages)[number]];
  const [littleText, muchText] = sizes.memory.map(human) as [string, string];
  const peak = (of: ReadonlyArray<Usage> | undefined) =>
    Math.max(...(of ?? []).map((usage) => usage.peak));
  for (const [role, program, aim] of programs) {
    const [at, then] = [peak(small[role]), peak(large[role])];
    row(
      `(c) peak memory of ${program}`,
      `${at.toFixed(0)} MiB at ${littleText}, ${then.toFixed(0)} MiB at ${muchText}`,
      "",
      (then / at).toFixed(2),
      `${aim}, the same at both`,
    );
  }
};

/** Start and end included, at a size for which memory that is in use already can be had. */
const processorTime = async (b: Bed) => {
  const seen: Array<Used> = [];
  const copies: Array<number> = [];
  for (let round = 0; round < rounds; round++) {
    seen.push((await b.backUp(undefined, { watched: true })).usage);
    if (python !== undefined) copies.push((await byPython(b, copying)).cpu);
  }
  const a = b.size / GiB;
  const hash = median([hashPass(), hashPass(), hashPass()]);
  const pass = `one SHA-256 pass in the same node: ${hash.toFixed(2)} s a GiB`;
  const copy = `; python3 that copies stdin and fsyncs: ${(median(copies) / a).toFixed(2)} s a GiB`;
  for (const [role, program] of programs) {
    const cpu = median(seen.flatMap((usage) => usage[role]?.cpu ?? [])) / a;
    row(
      `(f) processor time of ${program}`,
      `${cpu.toFixed(2)} s a GiB`,
      role === "server" && copies.length > 0 ? pass + copy : pass,
      (cpu / hash).toFixed(2),
      role === "carrier" ? "" : "1.5 s",
    );
  }
};

const startUp = async (b: Bed) => {
  const times = await interleave(rounds === 1 ? 1 : 2 * rounds, {
    qbackup: async () => (await b.backUp(generated(64 * 1024), { bytes: 0 })).ready,
    ssh: () => b.shell('"$SSH" "$TO" true', 0),
  });
  const above = times.qbackup.map((time, round) => time - times.ssh[round]!);
  row(
    "(d) from start to `ready`",
    s(median(times.qbackup)),
    `\`ssh host true\`: ${s(median(times.ssh))}`,
    `${s(median(above))} above`,
    "0.5 s above",
  );
};

const overLinks = async (b: Bed, fast: Shaped | string) => {
  const pair = async (bytes: number, source?: string) => {
    const times = await interleave(rounds, {
      qbackup: async () => {
        const { ready, stored } = await b.backUp(source);
        return stored - ready;
      },
      ssh: async () => {
        const { ready, stored } = await b.plain(aesGcm, source);
        return stored - ready;
      },
    });
    return [
      timed(bytes, times.qbackup),
      `ssh, same cipher: ${timed(bytes, times.ssh)}`,
      speed(times.qbackup, times.ssh),
      "0.97",
      times.ssh,
    ] as const;
  };
  let linkRate = 0;
  const gigabit = `(e) as (a) over 1 Gbit/s, ${human(b.size)}`;
  if (typeof fast === "string") row(gigabit, "skipped", fast, "", "0.97");
  else {
    b.use(fast.link(b.server.port));
    const [ours, theirs, ratio, aim, times] = await pair(b.size);
    linkRate = b.size / median(times);
    row(gigabit, ours, theirs, ratio, aim);
  }
  b.use(await longLink(b.server.port, 50));
  const part = path.join(dir, "part");
  execFileSync(process.execPath, [path.join(here, "archive.ts"), `${sizes.long}`], {
    stdio: ["ignore", fs.openSync(part, "w"), "inherit"],
  });
  const [ours, theirs, ratio, aim] = await pair(sizes.long, `exec cat ${part}`);
  row(`(e) as (a) with 50 ms there and back, ${human(sizes.long)}`, ours, theirs, ratio, aim);
  b.use(loopback);
  return linkRate;
};

const wholeJob = async (b: Bed, fast: Shaped | string, measured: number) => {
  const what = "(g) the whole job, qvm-backup as fast as the link of 1 Gbit/s";
  if (typeof fast === "string") {
    row(what, "skipped", fast, "", "0.55");
    return;
  }
  b.use(fast.link(b.server.port));
  const linkRate = measured || 117_000_000;
  const slow = [process.execPath, path.join(here, "pace.ts"), b.source, linkRate.toFixed(0)].join(
    " ",
  );
  const [staged, far] = [path.join(dir, "staged"), path.join(b.plainDirectory, "staged")];
  const times = await interleave(rounds, {
    qbackup: async () => (await b.backUp(`exec ${slow}`)).exit,
    scripts: async () => {
      const took = await b.shell(
        `${slow} > ${staged} && "$SSH" "$TO" 'cat > ${far} && sync ${far}' < ${staged}`,
      );
      for (const file of [staged, far]) fs.rmSync(file);
      return took;
    },
  });
  b.use(loopback);
  const { least, most, ratio } = paired(times.qbackup, times.scripts);
  row(
    `${what}, ${human(b.size)}`,
    s(median(times.qbackup)),
    `the scripts' way, a file and then ssh: ${s(median(times.scripts))}`,
    `${ratio.toFixed(2)} of its time (${least.toFixed(2)} to ${most.toFixed(2)})`,
    "0.55",
  );
};

/** Peaks of all three programs while dom0 reads back; 1 is a small archive, 2 a large one. */
const flatness = (small: number, one: Used, large: number, two: Used) => {
  const roles = ["dom0", "carrier", "server"];
  const peaks = (used: Used) => roles.map((role) => (used[role]?.peak ?? Number.NaN).toFixed(0));
  const growth = roles.map((role) => (two[role]?.peak ?? 0) / (one[role]?.peak ?? 0));
  return [
    `${peaks(one).join(", ")} MiB at ${human(small)}; ${peaks(two).join(", ")} MiB at ${human(large)}`,
    "dom0, carrier, server",
    Math.max(...growth).toFixed(2),
    "the same at both",
  ] as const;
};

const verifying = async (b: Bed) => {
  const { name } = await b.backUp(undefined, { keep: true });
  const file = path.join(b.server.store, name);
  const cipher = aesGcm.join(" ");
  const times = await interleave(rounds, {
    qbackup: async () => (await b.qbackup(["verify", "-t", "net", name])).exit,
    same: () => b.shell(`"$SSH" ${cipher} "$TO" 'cat ${file}' | sha256sum`),
    plain: () => b.shell(`"$SSH" "$TO" 'cat ${file}' | sha256sum`),
  });
  b.forget(name);
  for (const [cipherName, theirs] of [
    ["same", times.same],
    ["default", times.plain],
  ] as const) {
    row(
      `(h) verify, ${human(b.size)}`,
      timed(b.size, times.qbackup),
      `\`ssh host 'cat f' \\| sha256sum\`, ${cipherName} cipher: ${timed(b.size, theirs)}`,
      speed(times.qbackup, theirs),
      "0.9",
    );
  }
  const used: Array<Used> = [];
  for (const each of sizes.memory) {
    const job = await b.backUp(generated(each), { keep: true });
    const ran = await b.qbackup(["verify", "-t", "net", job.name], { watched: true });
    used.push(ran.usage);
    b.forget(job.name);
  }
  const [small, large] = sizes.memory as [number, number];
  row("(h) peak memory of verify", ...flatness(small, used[0]!, large, used[1]!));
};

const auditing = async (b: Bed, fast: Shaped | string) => {
  const audit = (name: string) =>
    b.qbackup(["audit", "-t", "net", "--blocks", `${auditBlocks}`, name], { watched: true });
  const little = await b.backUp(undefined, { keep: true });
  const { usage } = await audit(little.name);
  b.forget(little.name);

  const { name } = await b.backUp(generated(sizes.audit), { keep: true });
  const file = path.join(b.server.store, name);
  if (typeof fast !== "string") b.use(fast.link(b.server.port));
  const carried = () => (typeof fast === "string" ? Number.NaN : fast.carried().down);
  const before = carried();
  const audited = await audit(name);
  const between = carried();
  const download = await b.shell(`"$SSH" ${aesGcm.join(" ")} "$TO" 'cat ${file}' | sha256sum`);
  const after = carried();
  b.use(loopback);
  b.forget(name);
  const bytes = (n: number) => (Number.isNaN(n) ? "" : `, ${human(n)}`);
  row(
    `(h) audit, ${auditBlocks} blocks of ${human(sizes.audit)}${typeof fast === "string" ? "" : " over 1 Gbit/s"}`,
    `${s(audited.exit)}${bytes(between - before)}`,
    `the whole of it through ssh: ${s(download)}${bytes(after - between)}`,
    `${(audited.exit / download).toFixed(2)} of its time`,
    "",
  );
  row("(h) peak memory of audit", ...flatness(b.size, usage, sizes.audit, audited.usage));
};

const wayBack = async (b: Bed, fast: Shaped | string) => {
  const help = (await b.qbackup(["--help"])).stdout;
  const has = (verb: string) => new RegExp(`^\\s+(qbackup )?${verb}\\b`, "m").test(help);
  if (has("verify")) await verifying(b);
  else row("(h) verify", "skipped", "this qbackup has no verify", "", "0.9");
  if (has("audit")) await auditing(b, fast);
  else row("(h) audit", "skipped", "this qbackup has no audit", "", "");
};

const main = async () => {
  const cores = twoCores();
  let fast: Shaped | string = "network namespaces need root";
  if (isRoot) {
    try {
      fast = shaped = shapedLink("1gbit");
    } catch (error) {
      fast = `no such link can be made here: ${String(error).split("\n")[0]}`;
    }
  }
  const before = load();
  log(`load ${before}; ${dir}`);
  const b = (bed = await makeBed(
    dir,
    size,
    typeof fast === "string" ? "" : `ListenAddress ${fast.address}`,
  ));
  const version = execFileSync(programNode, ["--version"], { encoding: "utf8" }).trim();
  const processor = /^model name\s*: (.*)$/m.exec(fs.readFileSync("/proc/cpuinfo", "latin1"))?.[1];
  say(
    `Medians of ${rounds}, paired and interleaved; ratios are the median of the pairs, with their range. ${processor ?? "unknown processor"}, ${cores} cores, node ${version}, Linux ${os.release()}, ${new Date().toISOString().slice(0, 10)}; load before: ${before}${before > 1 ? ", so these figures are rough" : ""}.${quick ? " Quick: these figures mean nothing." : ""}`,
  );
  say("");
  row("what", "qbackup", "compared with", "ratio", "aim");
  row("---", "---", "---", "---", "---");
  let linkRate = 0;
  const parts = {
    a: () => wholePath(b),
    b: () => serverAlone(b),
    c: () => memory(b),
    f: () => processorTime(b),
    d: () => startUp(b),
    e: async () => void (linkRate = await overLinks(b, fast)),
    g: () => wholeJob(b, fast, linkRate),
    h: () => wayBack(b, fast),
    ...nights(b, quick, rounds, fast),
  };
  for (const [item, run] of Object.entries(parts)) {
    if (!wanted(item)) continue;
    log(`(${item}) load ${load()}`);
    await run();
  }
  const [file] = positionals;
  if (file !== undefined) fs.writeFileSync(file, `${lines.join("\n")}\n`);
};

try {
  await main();
} catch (error) {
  process.stderr.write(`${String(error instanceof Error ? error.stack : error)}\n`);
  process.exitCode = 1;
} finally {
  tidy();
}
process.exit();
