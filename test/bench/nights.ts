/**
 * Nights in slots. What qubesd does for them is little: GNU tar of each file through the tap, and then an
 * archive that lists the files. So it is a few lines here, and what is measured is qbackup.
 */
import { execFileSync, spawnSync } from "node:child_process";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { type Bed, generated, type Job, type Link, loopback } from "./bed.ts";
import { counting, type Shaped } from "./links.ts";
import { GiB, interleave, MiB } from "./measure.ts";
import { human, row, s, speed, timed } from "./table.ts";
import { archiveOf } from "#test/support/archive";
import { rng } from "#test/support/random";
import { isRoot } from "#test/support/server";

/** Bytes that nothing can compress, the same for the same seed. */
const noise = (seed: string) => {
  const key = crypto.createHash("sha256").update(seed).digest().subarray(0, 16);
  const stream = crypto.createCipheriv("aes-128-ctr", key, Buffer.alloc(16));
  return (bytes: number): Buffer => stream.update(Buffer.alloc(bytes));
};

const xml = (time: number) => `<?xml version="1.0"?>
<qubes><domains><domain id="domain-7" class="AppVM"><properties><property name="qid">7</property>
<property name="name">work</property><property name="backup_timestamp">${time}</property></properties>
<features><feature name="backup-content">True</feature><feature name="backup-path">vm7</feature>
<feature name="backup-size">1</feature></features></domain></domains></qubes>
`;

/** Bytes of all files below a directory; those of one with several names once. */
const stored = (directory: string): number => {
  const seen = new Map<number, number>();
  for (const name of fs.readdirSync(directory, { recursive: true, encoding: "utf8" })) {
    const file = fs.lstatSync(path.join(directory, name));
    if (file.isFile()) seen.set(file.ino, file.size);
  }
  return [...seen.values()].reduce((sum, size) => sum + size, 0);
};

/** What a person has: programs, libraries, texts. Directories by name, files of some KiB to some MiB. */
function* ordinaryFiles(directory: string): Generator<string> {
  const entries = fs.readdirSync(directory, { withFileTypes: true });
  for (const entry of entries.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
    const file = path.join(directory, entry.name);
    if (entry.isDirectory()) yield* ordinaryFiles(file);
    else if (entry.isFile() && Math.abs(fs.statSync(file).size - 4 * MiB) < 4 * MiB) yield file;
  }
}

/** How much of a file is not what it was: bytes of blocks of 4 KiB, and slots of 4 MiB. */
const difference = (before: string, after: string) => {
  const [was, is] = [before, after].map((file) => fs.openSync(file, "r")) as [number, number];
  const [a, c] = [Buffer.alloc(4 * MiB), Buffer.alloc(4 * MiB)];
  let bytes = 0;
  let slots = 0;
  for (let n = fs.readSync(is, c); n > 0; n = fs.readSync(is, c)) {
    fs.readSync(was, a);
    if (a.equals(c)) continue;
    slots += 1;
    for (let at = 0; at < n; at += 4096) {
      if (a.compare(c, at, at + 4096, at, at + 4096) !== 0) bytes += 4096;
    }
  }
  fs.closeSync(was);
  fs.closeSync(is);
  return { bytes, slots };
};

const installed = (program: string): boolean =>
  spawnSync("sh", ["-c", `command -v ${program}`]).status === 0;

/** What one night cost: seconds from the start of the command to its end, and bytes. */
interface Cost {
  readonly exit: number;
  readonly sent: number;
  /** On the server, of all nights so far. */
  readonly kept: number;
}
const cost = (of: Cost) => `sent ${human(of.sent)}, stored ${human(of.kept)}, ${s(of.exit)}`;
const share = (part: number, of: number) => `${((100 * part) / of).toFixed(2)} %`;

/** Another program with a repository on the same server, through the same ssh. */
interface Peer {
  readonly name: string;
  readonly repository: string;
  /** For a shell that has $SSH and $TO; undefined where it is not installed. */
  readonly words: { readonly first: string; readonly next: string } | undefined;
}
/** Both do what they do when nothing is said. */
const peersOf = (b: Bed, image: string): ReadonlyArray<Peer> => {
  const own = path.join(b.dir, "peers");
  fs.mkdirSync(own);
  const password = path.join(own, "password");
  fs.writeFileSync(password, "a passphrase for nothing\n");
  const sftp = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"].find((file) =>
    fs.existsSync(file),
  );
  const peer = (name: string, init: string, create: string, may = true): Peer => ({
    name,
    repository: path.join(b.plainDirectory, name),
    words: may && installed(name) ? { first: `${init} && ${create}`, next: create } : undefined,
  });
  const restic = `restic --repo sftp:none:${b.plainDirectory}/restic -o "sftp.command=$SSH $TO ${sftp}" --password-file ${password} --cache-dir ${own}/restic`;
  const borg = `BORG_RSH="$SSH" BORG_REPO="$TO:${b.plainDirectory}/borg" BORG_BASE_DIR=${own} BORG_PASSCOMMAND="cat ${password}" borg --error`;
  return [
    peer("restic", `${restic} -q init`, `${restic} backup ${image}`, sftp !== undefined),
    peer("borg", `${borg} init -e repokey`, `${borg} create ::{now} ${image}`),
  ];
};

/** A qube with one volume, and the series of its nights. */
const qubeOf = (b: Bed, series: string) => {
  const world = path.join(b.dir, series);
  const image = path.join(world, "vm7/private.img");
  fs.mkdirSync(path.dirname(image), { recursive: true });
  const files = [{ path: "vm7/private.img", size: 0 }];
  fs.writeFileSync(path.join(world, "listed"), archiveOf({ seed: 1, files, filter: "/tap" }));
  const source = `cd ${world}
for file in qubes.xml vm7/private.img; do
  tar -cS -f - --use-compress-program="$tap" $file || exit
done
exec cat listed`;
  const names: Array<string> = [];
  /** Writes through `change`, which is given the size. */
  const open = (change: (fd: number) => void) => {
    const fd = fs.openSync(image, "r+");
    change(fd);
    fs.closeSync(fd);
  };
  return {
    image,
    night: async (link: Link = loopback): Promise<Job & Cost> => {
      const counter = counting(path.join(b.dir, "ssh.log"), link);
      b.use(counter.link);
      // qubesd writes there when the qube was backed up before, so no two nights have the same.
      fs.writeFileSync(path.join(world, "qubes.xml"), xml(1_795_000_000 + names.length));
      const job = await b.backUp(source, { series: `${series}-`, watched: true, bytes: 0 });
      b.use(loopback);
      names.push(job.name);
      return { ...job, sent: await counter.sent(), kept: stored(b.server.store) };
    },
    /** The volume becomes one of zeros. */
    empty: (bytes: number) => {
      fs.writeFileSync(image, "");
      fs.truncateSync(image, bytes);
    },
    /** All of it becomes something else. */
    fill: () =>
      open((fd) => {
        const next = noise(series);
        const { size } = fs.fstatSync(fd);
        for (let at = 0; at < size; at += MiB) fs.writeSync(fd, next(Math.min(MiB, size - at)));
      }),
    /** Writes to so many places, each in a part of the volume of its own. */
    scatter: (clusters: number, bytes: number, seed: number) =>
      open((fd) => {
        const random = rng(seed);
        const next = noise(`${series} ${seed}`);
        const part = Math.floor(fs.fstatSync(fd).size / clusters);
        for (let n = 0; n < clusters; n++) {
          const at = n * part + Math.floor(random.next() * (part - bytes));
          fs.writeSync(fd, next(bytes), 0, bytes, at - (at % 4096));
        }
      }),
    /** Bytes of members that were made, by the ledger. */
    made: (): number => {
      const lines = fs.readFileSync(path.join(b.dir, "state/qbackup/ledger.jsonl"), "utf8").trim();
      return lines
        .split("\n")
        .map((line) => JSON.parse(line) as { name: string; bytes?: { sent: number } })
        .filter(({ name }) => names.includes(name))
        .reduce((sum, { bytes }) => sum + (bytes?.sent ?? 0), 0);
    },
    /** Nothing of it is left, here or on the server. */
    end: () => {
      for (const name of names.splice(0)) b.forget(name);
      fs.rmSync(world, { recursive: true });
    },
  };
};

/** A volume with an ext4 as a person has it; its first night; and its days. */
const homeOf = async (b: Bed, size: number) => {
  const qube = qubeOf(b, "home");
  const scale = size / (2 * GiB);
  const place = path.join(b.dir, "mounted");
  fs.mkdirSync(place);
  // All of it without a pause, so nothing can end this process while it is mounted.
  const mounted = (change: () => void) => {
    execFileSync("mount", ["-o", "loop", qube.image, place]);
    try {
      change();
    } finally {
      execFileSync("umount", [place]);
    }
  };
  qube.empty(size);
  execFileSync("mkfs.ext4", ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", qube.image]);
  const at = (name: string) => path.join(place, name);
  const photo = Math.round(2.5 * MiB);
  const old = Math.round(280 * scale);
  let programs = 0;
  mounted(() => {
    for (const name of ["programs", "photos", "databases"]) fs.mkdirSync(at(name));
    const next = noise("home");
    let bytes = 0;
    for (const file of ordinaryFiles("/usr/lib")) {
      if (bytes > 700 * MiB * scale) break;
      fs.copyFileSync(file, at(`programs/${programs++}`));
      bytes += fs.statSync(file).size;
    }
    for (let n = 0; n < old; n++) fs.writeFileSync(at(`photos/${n}`), next(photo));
    for (let n = 0; n < 4; n++) {
      fs.writeFileSync(at(`databases/${n}`), next(Math.round(16 * MiB * scale)).toString("hex"));
    }
  });
  const first = await qube.night();
  let days = 0;
  /** Photographs come and go, programs become newer, databases are written here and there. */
  const day = (part = 1) =>
    mounted(() => {
      days += 1;
      const random = rng(days);
      const next = noise(`day ${days}`);
      const count = (of: number) => Math.max(1, Math.round(of * part * scale));
      for (let n = 0; n < count(16); n++) {
        fs.writeFileSync(at(`photos/${days}-${n}`), next(photo));
      }
      for (let n = 0; n < count(3); n++) {
        fs.rmSync(at(`photos/${random.int(0, old - 1)}`), { force: true });
      }
      for (let n = 0; n < count(130); n++) {
        const other = fs.readFileSync(at(`programs/${random.int(0, programs - 1)}`));
        fs.writeFileSync(at("programs/new"), Buffer.concat([other, next(64)]));
        fs.renameSync(at("programs/new"), at(`programs/${random.int(0, programs - 1)}`));
      }
      for (let n = 0; n < count(64); n++) {
        const fd = fs.openSync(at(`databases/${random.int(0, 3)}`), "r+");
        const pages = Math.floor(fs.fstatSync(fd).size / 4096);
        fs.writeSync(fd, next(8192).toString("hex"), 4096 * random.int(0, pages - 4));
        fs.closeSync(fd);
      }
    });
  return { ...qube, day, first, data: 512 * fs.statSync(qube.image).blocks };
};

export const nights = (b: Bed, quick: boolean, rounds: number, fast: Shaped | string) => {
  let made: ReturnType<typeof homeOf> | undefined;
  const home = () => (made ??= homeOf(b, quick ? 96 * MiB : 2 * GiB));

  /** Beside what else sends what changed of a file. */
  const peers = async () => {
    const it = await home();
    const others = peersOf(b, it.image);
    const through = async (words: string, repository: string): Promise<Cost> => {
      const counter = counting(path.join(b.dir, "ssh.log"), loopback);
      b.use(counter.link);
      const exit = await b.shell(words, 0);
      b.use(loopback);
      return { exit, sent: await counter.sent(), kept: stored(repository) };
    };
    const beside = async (ours: Cost, how: "first" | "next") => {
      const costs: Array<string> = [];
      const ratios: Array<string> = [];
      for (const { name, repository, words } of others) {
        if (words === undefined) costs.push(`${name}: not installed`);
        else {
          const theirs = await through(words[how], repository);
          costs.push(`${name}: ${cost(theirs)}`);
          ratios.push(`${share(ours.sent, theirs.sent)} of what ${name} sent`);
        }
      }
      return [cost(ours), costs.join("; "), ratios.join(", ")] as const;
    };
    const size = human(fs.statSync(it.image).size);
    row(`(i) an ext4 of ${size}, the first night`, ...(await beside(it.first, "first")), "");

    // The others look at a file's times first, and in a snapshot of a running qube they are new.
    fs.utimesSync(it.image, new Date(), new Date());
    const same = await beside(await it.night(), "next");
    row("(i) the same, nothing changed", ...same, "40 KiB");

    const changing = () => {
      const before = path.join(b.dir, "before");
      execFileSync("cp", ["--sparse=always", it.image, before]);
      it.day();
      const { bytes, slots } = difference(before, it.image);
      fs.rmSync(before);
      return `changed ${human(bytes)} in ${slots} slots`;
    };
    const what = `(i) after a day that ${changing()}`;
    row(what, ...(await beside(await it.night(), "next")), "155 MiB");

    const days = quick ? 2 : 7;
    for (let n = 2; n <= days; n++) {
      const day = changing();
      const costs = await beside(await it.night(), "next");
      if (n === days) row(`(i) after ${days} such days, the last of which ${day}`, ...costs, "");
    }
    for (const { repository } of others) fs.rmSync(repository, { recursive: true, force: true });
  };

  const little = async () => {
    const size = quick ? 64 * MiB : 10 * GiB;
    const clusters = quick ? 1 : 20;
    const it = qubeOf(b, "little");
    it.empty(size);
    it.fill();
    const first = await it.night();
    const same = await it.night();
    it.scatter(clusters, Math.round(size / 100 / clusters), 1);
    const day = await it.night();
    it.end();
    const compared = `the first night: ${human(first.sent)}, ${s(first.exit)}`;
    const full = `${human(size)} that nothing compresses`;
    row(
      `(j) ${full}, of which nothing changed`,
      `sent ${human(same.sent)}, ${s(same.exit)}`,
      compared,
      share(same.sent, first.sent),
      "40 KiB",
    );
    row(
      `(j) ${full}, of which 1 % changed, in ${clusters} places`,
      `sent ${human(day.sent)}, ${s(day.exit)}`,
      compared,
      share(day.sent, size),
      "2.2 %",
    );
    row(
      `(j) ${full}: peak memory of qbackup`,
      `${first.usage["dom0"]?.peak.toFixed(0)} MiB`,
      "",
      "",
      "350 MiB",
    );
  };
  /** A hundredth of 200 GB of qubes, of which 2 GB changed, over a line of 20 Mbit/s. */
  const slowLine = async () => {
    const what = "(k) over 20 Mbit/s, a night of about 20 MB changed in 2 GB";
    if (typeof fast === "string") return row(what, "skipped", fast, "", "");
    const it = await home();
    it.day(0.5);
    const { packed } = await chunks();
    // A part of the whole, which says how long the whole would take.
    const parts = 16;
    const link = fast.link(b.server.port);
    fast.pace("20mbit");
    const night = await it.night(link);
    b.use(link);
    const { exit, ready } = await b.backUp(generated(packed / parts), { bytes: 0 });
    b.use(loopback);
    fast.pace("1gbit");
    const whole = ready + parts * (exit - ready);
    row(
      what,
      `sent ${human(night.sent)}, ${s(night.exit)}`,
      `all of it in qvm-backup's format, ${human(packed)}: ${s(whole)} (${s(exit)} for 1/${parts}, times ${parts})`,
      share(night.exit, whole),
      "",
    );
  };

  /** qvm-backup's way with the same image: chunks of 100 MiB, each with a scrypt of its own. */
  let cut: Promise<{ readonly took: number; readonly packed: number }> | undefined;
  const chunks = () =>
    (cut ??= (async () => {
      const { image } = await home();
      const [password, sizes] = ["passphrase", "sizes"].map((name) => path.join(b.dir, name));
      const scrypt = `scrypt enc --passphrase file:${password} - | wc -c >> ${sizes}`;
      const took = await b.shell(
        `tar -PcS -f - ${image} | gzip | split -b 100M --filter="${scrypt}" -`,
        0,
      );
      const packed = fs.readFileSync(sizes!, "utf8").trim().split("\n").map(Number);
      return { took, packed: packed.reduce((sum, bytes) => sum + bytes, 0) };
    })());

  /** With what stands around it in a run left out, as in (a); what is left of that, a large image hides. */
  const reading = async () => {
    const size = quick ? 64 * MiB : 6 * GiB;
    const it = qubeOf(b, "steady");
    it.empty(size);
    it.fill();
    await it.night();
    const times = await interleave(rounds, {
      qbackup: async () => {
        const job = await it.night();
        return job.stored - job.ready;
      },
      tar: () => b.shell(`tar -PcS -f - ${it.image} | cat > /dev/null`, 0),
    });
    row(
      `(l) reading ${human(size)} of data that did not change`,
      timed(size, times.qbackup),
      `\`tar --sparse \\| cat\`: ${timed(size, times.tar)}`,
      speed(times.qbackup, times.tar),
      "0.9",
    );
    it.end();
  };
  /** As qvm-backup makes its chunks, of the same image. */
  const making = async () => {
    const it = await home();
    const first = [it.first.stored - it.first.ready];
    const what = `(l) making members of ${human(it.data)} of data, the first night`;
    if (!installed("scrypt")) {
      return row(what, timed(it.data, first), "scrypt: not installed", "", "4");
    }
    const { took } = await chunks();
    row(
      what,
      timed(it.data, first),
      `\`tar --sparse \\| gzip \\| scrypt enc\` by 100 MiB: ${timed(it.data, [took])}`,
      speed(first, [took]),
      "4",
    );
  };

  const memory = async () => {
    const sizes = quick ? [8 * MiB, 64 * MiB] : [GiB, 10 * GiB, 50 * GiB];
    const data = quick ? 4 * MiB : 256 * MiB;
    const peaks: Array<number> = [];
    for (const size of sizes) {
      const it = qubeOf(b, "sparse");
      it.empty(size);
      it.scatter(quick ? 2 : 64, data / (quick ? 2 : 64), 1);
      peaks.push((await it.night()).usage["dom0"]!.peak);
      it.end();
    }
    row(
      `(m) peak memory of qbackup, ${human(data)} of data in a sparse volume`,
      peaks.map((peak, n) => `${peak.toFixed(0)} MiB at ${human(sizes[n]!)}`).join(", "),
      "",
      (Math.max(...peaks) / peaks[0]!).toFixed(2),
      "350 MiB, the same at all",
    );
    const size = quick ? 160 * MiB : GiB;
    const it = qubeOf(b, "filled");
    it.empty(size);
    await it.night();
    it.fill();
    // All of it is in cells of 16 slots; then it is cut anew.
    const [wide, single] = [await it.night(), await it.night()];
    it.end();
    row(
      `(m) peak memory of qbackup, a volume of ${human(size)} that was zeros and is filled with what nothing compresses`,
      `${wide.usage["dom0"]!.peak.toFixed(0)} MiB, ${single.usage["dom0"]!.peak.toFixed(0)} MiB the night after`,
      "",
      "",
      "350 MiB",
    );
  };

  /** What the server has besides the members that were made. */
  const month = async () => {
    const count = quick ? 2 : 30;
    const it = qubeOf(b, "month");
    const before = stored(b.server.store);
    it.empty(quick ? 16 * MiB : 256 * MiB);
    it.fill();
    await it.night();
    for (let n = 1; n <= count; n++) {
      it.scatter(4, 65_536, n);
      await it.night();
    }
    const all = stored(b.server.store) - before;
    const made = it.made();
    it.end();
    row(
      `(n) the server's disk after the first night and ${count} more`,
      human(all),
      `the members that were made in them: ${human(made)}`,
      (all / made).toFixed(3),
      "1.05",
    );
  };
  /** Those with a file system in a file need root. */
  const mounting = (item: string, run: () => Promise<void>) => async () =>
    isRoot
      ? run()
      : row(`(${item}) an ext4`, "skipped", "a file can be mounted by root alone", "", "");
  return {
    i: mounting("i", peers),
    l: async () => {
      await reading();
      await mounting("l", making)();
    },
    k: mounting("k", slowLine),
    j: little,
    m: memory,
    n: month,
  };
};
