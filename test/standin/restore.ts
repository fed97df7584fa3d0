/**
 * qvm-backup-restore (docs/qubes.md, Restoring). It opens its location three times, takes of each reading the
 * members whose paths begin with what it looks for, and writes what it restores to DIR/restored:
 *
 *     restored/QUBE/VOLUME.img    images, with their holes; small files beside them
 *     restored/dom0/...           the home, unpacked
 *     restored/members.jsonl      every member that a reading showed: {reading, path, size, sha256}
 *
 * Faults, as in faults.ts: never-opens; worker (hears SIGINT, and waits for a worker that has not);
 * stop-after-header (code); stop-reading (after: bytes of the
 * data); die (after); other-user (the home in the backup is another user's). Logged, with exit 0:
 * fail-qube, fail-create, fail-setting, fail-firewall (vm); fail-home; extract-error (text). Known to
 * the exit code: fail-device (vm). In worlds with `raw` archives nothing can be decrypted, and nothing
 * is.
 */
import * as child_process from "node:child_process";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import * as zlib from "node:zlib";
import { type Arguments, Exit, parseArguments, usageError } from "./args.ts";
import { passphraseFrom } from "./backup.ts";
import { listQubes } from "./client.ts";
import { takeFault } from "./faults.ts";
import { BLOCK } from "./images.ts";
import { SCRYPT_HEAD, SCRYPT_TAIL } from "./scrypt.ts";
import { addQube, appendLine, changeQube, hang, type Qube, readState } from "./state.ts";

const TOOL = "qvm-backup-restore";
/** Where it unpacks. */
const EXTRACTED = "/home/user/QubesIncoming/.backup#restore-k3xw81_q";
const error = (text: string): Exit => new Exit(1, `${TOOL}: error: ${text}`);
/** Where it says what it does: in a disposable to a log, which comes out on stdout. */
let voice = 2;
/** Waits for the reader, as Python does; process.stderr would put it off, and then lose it. */
const say = (text: string, to = voice): void => {
  const bytes = Buffer.from(`${text}\n`);
  for (let at = 0; at < bytes.length;) {
    try {
      at += fs.writeSync(to, bytes, at);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EAGAIN") throw cause;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
};
/** What was printed; Python keeps it until it starts a worker, or ends. */
let printed = "";
const flush = (): void => {
  if (printed !== "") say(printed, 1);
  printed = "";
};
const log = (text: string): void => say(`qubesadmin.backup: ${text}`);
const app = (text: string): void => say(`app: ${text}`);
/** What a handler that catches everything makes of an exception. */
const trace = (exception: string): void => {
  say("Traceback (most recent call last):");
  say('  File "/usr/lib/python3.13/site-packages/qubesadmin/backup/restore.py", line 1, in x');
  say(exception);
};

/** What scrypt(1) sealed; undefined when the passphrase or a byte is wrong. */
export const decrypted = (sealed: Buffer, passphrase: string): Buffer | undefined => {
  if (sealed.length < SCRYPT_HEAD + SCRYPT_TAIL || sealed.toString("latin1", 0, 7) !== "scrypt\0")
    return undefined;
  const N = 2 ** sealed.readUInt8(7);
  const r = sealed.readUInt32BE(8);
  const keys = crypto.scryptSync(Buffer.from(passphrase), sealed.subarray(16, 48), 64, {
    N,
    r,
    p: sealed.readUInt32BE(12),
    maxmem: 256 * N * r + 1024 * 1024,
  });
  const mac = (bytes: Buffer) =>
    crypto.createHmac("sha256", keys.subarray(32)).update(bytes).digest();
  const end = sealed.length - SCRYPT_TAIL;
  if (
    !mac(sealed.subarray(0, 64)).equals(sealed.subarray(64, 96)) ||
    !mac(sealed.subarray(0, end)).equals(sealed.subarray(end))
  )
    return undefined;
  const cipher = crypto.createDecipheriv("aes-256-ctr", keys.subarray(0, 32), Buffer.alloc(16));
  return cipher.update(sealed.subarray(SCRYPT_HEAD, end));
};

interface Source {
  /** Fewer bytes only at the end. */
  readonly read: (size: number) => Buffer;
  readonly close: () => void;
}

/** Opened as Python does it: that waits for a writer, and nothing else happens meanwhile. */
const fromPath = (location: string): Source => {
  const fd = fs.openSync(location, "r");
  return {
    read: (size) => {
      const bytes = Buffer.alloc(size);
      let got = 0;
      while (got < size) {
        const n = fs.readSync(fd, bytes, got, size - got, null);
        if (n === 0) break;
        got += n;
      }
      return bytes.subarray(0, got);
    },
    close: () => fs.closeSync(fd),
  };
};

/** In a disposable: a command in the storage qube prints the archive, all of it, each time. */
const fromCommand = (dir: string, vm: string, command: string, isData: boolean): Source => {
  const qvmRun = path.join(dir, "bin", "qvm-run");
  const ran = child_process.spawnSync(qvmRun, ["--no-gui", "--pass-io", vm, command], {
    maxBuffer: 2 ** 31,
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (ran.status !== 0)
    throw error(
      isData
        ? `Backup completed, but VM sending it reported an error (exit code ${ran.status})`
        : `Backup header retrieval failed (exit code ${ran.status}): Starting Restorecopy`,
    );
  let at = 0;
  return {
    read: (size) => ran.stdout.subarray(at, (at += size)),
    close: () => {},
  };
};

interface Found {
  readonly path: string;
  readonly data: Buffer;
}

/** The members of a run of tar archives; zero blocks are passed over, as with tar -i. */
function* membersOf(source: Source): Generator<Found> {
  for (;;) {
    const header = source.read(512);
    if (header.length === 0) return;
    if (header.length < 512) throw error("tar: Unexpected EOF in archive");
    if (header.every((byte) => byte === 0)) continue;
    const size = Number.parseInt(header.toString("latin1", 124, 135), 8);
    const data = source.read(Math.ceil(size / 512) * 512);
    if (data.length < size) throw error("tar: Unexpected EOF in archive");
    if (header.toString("latin1", 156, 157) === "x") continue;
    const name = header.toString("latin1", 0, 100).replace(/\0+$/, "");
    yield { path: name, data: data.subarray(0, size) };
  }
}

/** An image in the form 1.0 of pax, of which the map stands at the head of the data. */
const paxImage = (size: number, data: Buffer): Buffer => {
  const image = Buffer.alloc(size);
  let at = 0;
  const number = (): number => {
    const end = data.indexOf(10, at);
    const text = data.toString("latin1", at, end);
    at = end + 1;
    return Number(text);
  };
  const pieces = Array.from({ length: number() }, () => ({ offset: number(), length: number() }));
  at = Math.ceil(at / 512) * 512;
  for (const { length, offset } of pieces) {
    data.copy(image, offset, at, at + length);
    at += length;
  }
  return image;
};

/** With its holes, so that an image takes the room of its data. */
const writeFile = (file: string, data: Buffer): void => {
  const zeros = Buffer.alloc(BLOCK);
  const fd = fs.openSync(file, "w");
  try {
    for (let at = 0; at < data.length; at += BLOCK) {
      const block = data.subarray(at, at + BLOCK);
      if (!zeros.subarray(0, block.length).equals(block)) {
        fs.writeSync(fd, block, 0, block.length, at);
      }
    }
    fs.ftruncateSync(fd, data.length);
  } finally {
    fs.closeSync(fd);
  }
};

/** Everything that is in an inner archive: files, and images with holes in the old GNU form, or of pax. */
export const unpacked = (tar: Buffer): Map<string, Buffer> => {
  const files = new Map<string, Buffer>();
  const number = (at: number): number =>
    (tar[at]! & 0x80) === 0
      ? Number.parseInt(tar.toString("latin1", at, at + 11), 8)
      : Number(tar.readBigUInt64BE(at + 4));
  let longName: string | undefined;
  let records = new Map<string, string>();
  for (let at = 0; at + 512 <= tar.length;) {
    if (tar[at] === 0) {
      at += 512;
      continue;
    }
    const type = tar.toString("latin1", at + 156, at + 157);
    const size = Number(records.get("size") ?? number(at + 124));
    const sparse = records.get("GNU.sparse.realsize");
    const name =
      records.get("GNU.sparse.name") ??
      longName ??
      tar.toString("latin1", at, at + 100).replace(/\0.*$/s, "");
    longName = undefined;
    records = new Map();
    let data = at + 512;
    if (type === "x") {
      const text = tar.toString("utf8", data, data + size);
      records = new Map([...text.matchAll(/^[0-9]+ ([^=]+)=(.*)$/gm)].map(([, k, v]) => [k!, v!]));
    } else if (type === "L") longName = tar.toString("utf8", data, data + size - 1);
    else if (type === "S") {
      const extents: Array<{ offset: number; length: number }> = [];
      const take = (from: number, count: number) => {
        for (let i = 0; i < count; i++) {
          if (tar[from + 24 * i] === 0) break;
          extents.push({ offset: number(from + 24 * i), length: number(from + 24 * i + 12) });
        }
      };
      take(at + 386, 4);
      for (let more = tar[at + 482] === 1; more; data += 512) {
        take(data, 21);
        more = tar[data + 504] === 1;
      }
      const image = Buffer.alloc(number(at + 483));
      let from = data;
      for (const { offset, length } of extents) {
        tar.copy(image, offset, from, from + length);
        from += length;
      }
      files.set(name, image);
    } else if (type === "0" && sparse !== undefined) {
      files.set(name, paxImage(Number(sparse), tar.subarray(data, data + size)));
    } else if (type === "0") files.set(name, tar.subarray(data, data + size));
    if (data + size > tar.length) throw new Error("Unexpected EOF in archive");
    at = data + Math.ceil(size / 512) * 512;
  }
  return files;
};

/** What it takes from a header; the genuine one also looks whether the last six are installed. */
const knownFilters = new Set("gzip bzip2 xz lzma pbzip2 pigz zstd zstdmt".split(" "));
const decompressed = (filter: string | undefined, bytes: Buffer): Buffer => {
  if (filter === undefined) return bytes;
  if (filter === "gzip") return zlib.gunzipSync(bytes);
  return child_process.spawnSync(filter, ["-d", "-c"], { input: bytes, maxBuffer: 2 ** 31 }).stdout;
};

interface Domain {
  readonly name: string;
  readonly qid: number;
  readonly class: string;
  readonly label: string;
  readonly providesNetwork: boolean;
  readonly included: boolean;
  readonly tags: ReadonlyArray<string>;
  readonly directory: string;
  /** The template in the backup. */
  readonly from: string | undefined;
  template: string | undefined;
  /** Undefined: the default one. Null: none. */
  netvm: string | null | undefined;
  /** As it is called here. */
  as: string;
  readonly problems: Set<"excluded" | "conflict" | "template" | "netvm" | "user">;
}

const domainsOf = (xml: string): Array<Domain> =>
  [...xml.matchAll(/<domain id="domain-(\d+)"([^>]*)>(.*?)<\/domain>/gs)].flatMap((match) => {
    const text = match[3]!;
    const value = (pattern: string) => new RegExp(`<${pattern}>([^<]*)<`).exec(text)?.[1];
    const directory = value('feature name="backup-path"');
    if (directory === undefined) return [];
    const qid = Number(match[1]);
    const name = qid === 0 ? "dom0" : value('property name="name"')!;
    const template = value('property name="template"');
    const netvm = value('property name="netvm"');
    return [
      {
        name,
        qid,
        class: /class="([^"]*)"/.exec(match[2]!)?.[1] ?? "AppVM",
        label: value('property name="label"') ?? "red",
        providesNetwork: value('property name="provides_network"') === "True",
        included: value('property name="include_in_backups"') !== "False",
        tags: [...text.matchAll(/<tag name="([^"]*)"/g)].map(([, tag]) => tag!),
        directory,
        from: template,
        template,
        netvm: netvm === "" ? null : netvm,
        as: name,
        problems: new Set<never>(),
      },
    ];
  });

type Here = ReadonlyArray<Pick<Qube, "name" | "class" | "provides_network">>;

/**
 * Looks whether each qube of the backup, chosen or not, can be made here, and under which name. It is
 * called again and again, as the genuine tool does; what it changed stays.
 */
const verifyDomains = (
  args: Arguments,
  domains: ReadonlyArray<Domain>,
  here: Here,
  excluded: ReadonlyArray<string>,
): void => {
  const qubes = domains.filter(({ qid }) => qid !== 0);
  const named = (name: string | null) => here.find((qube) => qube.name === name);
  const inBackup = (name: string) =>
    qubes.find((other) => other.name === name && other.problems.size === 0);
  /** Longer names are cut, and then may do as they are. */
  const another = (name: string): string | undefined => {
    const cut = name.slice(0, 29);
    const taken = (text: string) =>
      named(text) !== undefined || qubes.some((other) => other.name === text || other.as === text);
    let next = cut;
    for (let number = 1; taken(next); number++) {
      if (number === 99) return undefined;
      next = `${cut}-${number}`;
    }
    return next;
  };
  for (const domain of qubes) {
    const { problems } = domain;
    problems.clear();
    if (excluded.includes(domain.name)) problems.add("excluded");
    if (!args.has("--verify-only") && named(domain.as) !== undefined) {
      const next = args.has("--rename-conflicting") ? another(domain.name) : undefined;
      if (next === undefined) problems.add("conflict");
      else domain.as = next;
    }
    const { netvm, template } = domain;
    if (
      template !== undefined &&
      named(template)?.class !== "TemplateVM" &&
      inBackup(template)?.class !== "TemplateVM"
    ) {
      // The first template here stands for the default one.
      const other = here.find((qube) => qube.class === "TemplateVM")?.name;
      if (args.has("--ignore-missing") && other !== undefined) domain.template = other;
      else problems.add("template");
    }
    if (netvm == null || named(netvm)?.provides_network === true) continue;
    if (inBackup(netvm)?.providesNetwork === true) continue;
    if (args.has("--ignore-missing")) domain.netvm = undefined;
    else problems.add("netvm");
  }
};

const remarks = {
  excluded: "Excluded from restore",
  conflict: "A VM with the same name already exists on the host!",
  template: "No matching template on the host or in the backup found!",
  netvm: "No matching netvm on the host or in the backup found!",
  user: "username in backup and dom0 mismatch",
} as const;

const tableOf = (domains: ReadonlyArray<Domain>): string => {
  const columns: ReadonlyArray<readonly [string, (domain: Domain) => string]> = [
    ["name", ({ name }) => name],
    ["type", (domain) => domain.class],
    ["template", ({ from }) => from ?? "n/a"],
    ["netvm", ({ netvm }) => (netvm === undefined ? "(default)" : (netvm ?? "-"))],
    ["label", ({ label }) => label],
  ];
  const widths = columns.map(([head, cell]) =>
    Math.max(head.length, ...domains.map((domain) => cell(domain).length)),
  );
  const row = (cells: ReadonlyArray<string>) =>
    cells.map((cell, at) => `${cell.padStart(widths[at]! + 1)} |`).join("");
  const line = widths.map((width) => `${"-".repeat(width + 1)}-+`).join("");
  const rows = domains.map((domain) => {
    const worst = (["excluded", "conflict", "template", "netvm", "user"] as const).find((each) =>
      domain.problems.has(each),
    );
    const notes =
      worst !== undefined
        ? [remarks[worst]]
        : [
            ...(domain.template === domain.from
              ? []
              : [`Template change to '${domain.template ?? ""}'`]),
            ...(domain.as === domain.name ? [] : [`Will be renamed to '${domain.as}'`]),
          ];
    const cells = row(columns.map(([, cell]) => cell(domain)));
    return `${cells}${notes.map((note) => ` <-- ${note}`).join("")}\n`;
  });
  const heads = row(columns.map(([head]) => head));
  return `The following VMs are included in the backup:\n\n${line}\n${heads}\n${line}\n${rows.join("")}`;
};

/** Decides what comes back, and under which names; says it as the genuine tool does. */
const choose = (
  args: Arguments,
  domains: ReadonlyArray<Domain>,
  here: Here,
  otherUser: boolean,
): ReadonlyArray<Domain> => {
  const named = args.rest.slice(1);
  const verify = args.has("--verify-only");
  const shown = domains.filter(({ qid }) => qid !== 0 || !args.has("--skip-dom0-home"));
  const home = shown.find(({ qid }) => qid === 0);
  const excluded = args.values("--exclude");
  verifyDomains(args, domains, here, excluded);
  if (named.length > 0) {
    const rest = domains.map(({ name }) => name).filter((name) => !named.includes(name));
    verifyDomains(args, domains, here, [...excluded, ...rest]);
  }
  // A home is never excluded by naming qubes.
  if (otherUser && !args.has("--ignore-username-mismatch")) home?.problems.add("user");
  process.once("exit", flush);
  printed = `${tableOf(shown)}\n`;
  const found = new Set(
    shown.flatMap(({ problems }) => (problems.has("excluded") ? [] : [...problems])),
  );
  if (found.has("conflict")) {
    app("*** There are VMs with conflicting names on the host! ***");
    if (!args.has("--skip-conflicting"))
      throw error(
        "Remove VMs with conflicting names from the host before proceeding.\nOr use --skip-conflicting to restore only those VMs that do not exist on the host.\nOr use --rename-conflicting to restore those VMs under modified names (with numbers at the end).",
      );
    app("Those VMs will not be restored. The host VMs will NOT be overwritten.");
  }
  if (verify) {
    app("The above VM archive(s) will be verified.");
    app("Existing VMs will NOT be removed or altered.");
  } else {
    app("The above VMs will be copied and added to your system.");
    app("Existing VMs will NOT be removed.");
  }
  for (const [problem, what] of [
    ["template", "TemplateVMs"],
    ["netvm", "NetVMs"],
  ] as const) {
    if (!found.has(problem)) continue;
    app(`*** One or more ${what} are missing on the host! ***`);
    if (args.has("--skip-broken")) {
      app(`Skipping broken entries: VMs that depend on missing ${what} will NOT be restored.`);
    } else if (args.has("--ignore-missing")) {
      app(
        `Ignoring missing entries: VMs that depend on missing ${what} will have default value assigned.`,
      );
    } else {
      throw error(
        "Install them before proceeding with the restore.Or pass: --skip-broken or --ignore-missing.",
      );
    }
  }
  if (home !== undefined && !verify) {
    if (found.has("user")) {
      app("*** Dom0 username mismatch! This can break some settings! ***");
      throw error(
        "Skip restoring the dom0 home directory (--skip-dom0-home), or pass --ignore-username-mismatch to continue anyway.",
      );
    }
    app(
      "NOTE: The archived dom0 home directory will be restored to a new directory 'home-restore-<current-time>' created inside the dom0 home directory. Restored files should be copied or moved out of the new directory before using them.",
    );
  }
  const last = ({ class: kind }: Domain) => (kind === "TemplateVM" ? 0 : 1);
  return shown
    .filter(({ problems }) => problems.size === 0)
    .sort((one, other) => last(one) - last(other));
};

/** What is said when a qube that this one needs cannot be set, though it may exist under its old name. */
const dependencies = (
  domains: ReadonlyArray<Domain>,
  chosen: ReadonlyArray<Domain>,
  here: Here,
): void => {
  for (const { name, netvm } of chosen) {
    if (netvm == null) continue;
    // Of a qube in the backup it takes the new name, be it restored or not.
    const value = domains.find((other) => other.name === netvm)?.as ?? netvm;
    const exists =
      here.some((qube) => qube.name === value) || chosen.some((other) => other.as === value);
    if (exists) continue;
    log(`Error setting ${name}.netvm to ${value}: Can't set netvm to non-existing qube ${value}`);
  }
};

export const qvmBackupRestore = async (
  dir: string,
  argv: ReadonlyArray<string>,
): Promise<number> => {
  if (!argv.includes("--paranoid-mode")) return restore(dir, argv);
  app("Starting restore process in a DisposableVM...");
  app("When operation completes, close its window manually.");
  voice = 1;
  const code = await restore(dir, [...argv, "--skip-dom0-home"]).catch((cause: unknown) => {
    if (!(cause instanceof Exit)) throw cause;
    say(cause.message);
    return cause.code;
  });
  say(`exit code: ${code}`);
  voice = 2;
  if (code !== 0) throw error(`qvm-backup-restore failed with ${code}`);
  return 0;
};

const restore = async (dir: string, argv: ReadonlyArray<string>): Promise<number> => {
  const args = parseArguments(TOOL, argv, [
    { names: ["--verify-only"] },
    { names: ["--skip-broken"] },
    { names: ["--ignore-missing"] },
    { names: ["--skip-conflicting"] },
    { names: ["--rename-conflicting"] },
    { names: ["--exclude", "-x"], value: true },
    { names: ["--skip-dom0-home"] },
    { names: ["--ignore-username-mismatch"] },
    { names: ["--ignore-size-limit"] },
    { names: ["--compression-filter", "-Z"], value: true },
    { names: ["--dest-vm", "-d"], value: true },
    { names: ["--passphrase-file", "-p"], value: true },
    { names: ["--auto-close"] },
    { names: ["--paranoid-mode", "--plan-b"] },
  ]);
  const [location] = args.rest;
  if (location === undefined)
    throw usageError(TOOL, "the following arguments are required: backup_location");
  const passphrase = passphraseFrom(args.value("--passphrase-file") ?? "/dev/null");
  const { settings } = readState(dir);
  const verify = args.has("--verify-only");
  const place = path.join(dir, "restored");
  fs.mkdirSync(place, { recursive: true });
  const fault = (kind: string) => takeFault(dir, TOOL, kind);

  app("Checking backup content...");
  if (fault("never-opens") !== undefined) await hang(dir);
  if (fault("worker") !== undefined) {
    process.on("SIGINT", () => {});
    child_process.spawnSync("sleep", ["600"], { stdio: "ignore" });
    return 130;
  }
  let readings = 0;
  /** One reading: all that begins with one of these, until `enough` of them were seen. */
  const retrieve = (
    wanted: ReadonlyArray<string>,
    enough: number,
    see: (found: Found, total: number) => void | "stop",
  ): number => {
    const reading = readings++;
    const source = args.has("--dest-vm")
      ? fromCommand(dir, args.value("--dest-vm")!, location, reading === 2)
      : fromPath(location);
    let seen = 0;
    let total = 0;
    const met = new Set<string>();
    try {
      for (const found of membersOf(source)) {
        const { data } = found;
        const sha256 = crypto.createHash("sha256").update(data).digest("hex");
        const record = { reading, path: found.path, size: data.length, sha256 };
        appendLine(path.join(place, "members.jsonl"), JSON.stringify(record));
        total += data.length;
        const fits = wanted.find((prefix) => found.path.startsWith(prefix));
        // When all was found and something else comes, tar has seen enough.
        if (fits === undefined && met.size === wanted.length) break;
        if (fits === undefined) continue;
        met.add(fits);
        seen += 1;
        if (see(found, total) === "stop" || seen === enough) break;
      }
    } finally {
      source.close();
    }
    return seen;
  };

  const heads = new Map<string, Buffer>();
  const keep = ({ data, path: name }: Found) => void heads.set(name, data);
  retrieve(["backup-header"], 2, keep);
  const header = heads.get("backup-header") ?? Buffer.alloc(0);
  const sealed = heads.get("backup-header.hmac") ?? Buffer.alloc(0);
  if (header.length === 0 || !decrypted(sealed, `backup-header!${passphrase}`)?.equals(header)) {
    throw error("Corrupted backup header (hmac verification failed). Is the password correct?");
  }
  const early = fault("stop-after-header");
  if (early !== undefined) return early.code ?? 0;
  const fields = new Map(
    header
      .toString()
      .split("\n")
      .map((line) => [line.split("=")[0]!, line.slice(line.indexOf("=") + 1)] as const),
  );
  const id = fields.get("backup-id") ?? "";
  const named = fields.get("compression-filter") ?? "gzip";
  const forced = args.value("--compression-filter");
  if (forced === undefined && !knownFilters.has(named)) {
    throw error(
      `Unusual compression filter '${named}' found. Use --compression-filter=${named} to use it anyway.`,
    );
  }
  const filter = fields.get("compressed") === "True" ? (forced ?? named) : undefined;
  const open = ({ data, path: name }: Found): Buffer => {
    const origin = name.replace(/\.enc$/, "");
    const plain = decrypted(data, `${id}!${origin}!${passphrase}`);
    if (plain !== undefined) return plain;
    const full = `${EXTRACTED}/${name}`;
    throw error(
      `failed to decrypt ${full}: b'scrypt: Input is not valid scrypt-encrypted block\\n'`,
    );
  };

  retrieve(["qubes.xml.000.enc"], 1, keep);
  const xml = heads.get("qubes.xml.000.enc");
  if (xml === undefined)
    throw error("unexpected files in archive: got [], expected ['qubes.xml.000.enc']");
  const text = decompressed(filter, open({ path: "qubes.xml.000.enc", data: xml }));
  const domains = domainsOf(unpacked(text).get("qubes.xml")!.toString());
  const here = await listQubes(dir);
  const all = choose(args, domains, here, fault("other-user") !== undefined);
  const hit = (kind: string, { name }: Domain) =>
    !verify && takeFault(dir, TOOL, kind, name)?.vm === name;
  const chosen: Array<Domain> = [];
  for (const domain of all) {
    log(`-> ${verify ? "Verifying" : "Restoring"} ${domain.name}...`);
    if (hit("fail-create", domain)) {
      log(`Error restoring VM ${domain.name}, skipping: Got empty response from qubesd.`);
    } else chosen.push(domain);
  }
  for (const domain of chosen) {
    if (hit("fail-setting", domain))
      log(`Error setting ${domain.as}.kernel to 6.1: No such kernel`);
    if (hit("fail-device", domain)) {
      trace("KeyError: 'sys-usb'");
      return 1;
    }
  }

  // qubesd alone sets these, and the policy does not let a disposable see that they are there.
  for (const { name, tags } of verify || !args.has("--paranoid-mode") ? [] : chosen) {
    for (const tag of tags.filter((tag) => tag.startsWith("created-by-"))) {
      log(
        `Error adding tag ${tag} to ${name}: Got empty response from qubesd. See journalctl in dom0 for details.`,
      );
    }
  }
  if (!verify) dependencies(domains, chosen, here);
  const kept = settings.keepsRestored && !verify;
  for (const { as, class: kind, included, label, netvm, qid, tags, template } of chosen) {
    if (!kept || qid === 0) continue;
    addQube(dir, {
      name: as,
      class: kind,
      label,
      tags,
      template: template ?? null,
      ...(netvm === undefined ? {} : { netvm }),
      state: "Halted",
      include_in_backups: included,
      backup_timestamp: null,
      volumes: {},
      files: {},
    });
  }

  log("Extracting data: some MiB to restore");
  flush();
  const wanted = chosen.map(({ directory, qid }) => (qid === 0 ? "dom0-home/" : directory));
  /** The file that its tar is fed with; undefined between two, and behind a chunk out of turn. */
  let file: { readonly name: string; readonly parts: Array<Buffer>; last: string } | undefined;
  const unfinished = (chunk: string, output = "") => {
    say(`qubesadmin.backup.extract: ERROR: unable to extract files for ${chunk}, tar output:`);
    say(`  ${output}`);
  };
  const finish = () => {
    if (file === undefined || verify) return;
    const { last, name: begun, parts } = file;
    file = undefined;
    const domain = chosen.find(({ directory }) => begun.startsWith(directory))!;
    let files: ReadonlyMap<string, Buffer>;
    try {
      files = unpacked(decompressed(filter, Buffer.concat(parts)));
    } catch {
      // An archive that ends early: the volume keeps what came, which is too little.
      const volume = path.basename(begun, ".img");
      log(
        `Failed to restore volume ${volume} (size 262144) of VM ${domain.as}: Data import failed: `,
      );
      unfinished(last, filter === undefined ? "" : `${filter}: stdin: unexpected end of file`);
      return;
    }
    for (const [name, data] of files) {
      const inside = path.relative(domain.qid === 0 ? "dom0-home" : domain.directory, name);
      const target = path.join(place, domain.as, inside);
      fs.mkdirSync(path.dirname(target), { recursive: true });
      writeFile(target, data);
      const volume = path.basename(target, ".img");
      if (!kept || volume !== "private") continue;
      changeQube(dir, domain.as, { volumes: { private: { size: data.length, file: target } } });
    }
  };
  const stops = fault("stop-reading");
  const dies = fault("die");
  try {
    const broken = fault("extract-error");
    if (wanted.length === 0) {
      fromPath(location).close();
      throw error(
        `unable to read the qubes backup file ${location} (2): b"tar: --occurrence is meaningless without a file list\\n"`,
      );
    } else {
      const missing = new Set(wanted);
      retrieve(wanted, Number.POSITIVE_INFINITY, (found, total) => {
        if (dies !== undefined && total > (dies.after ?? 0)) process.kill(process.pid, "SIGKILL");
        if (stops !== undefined && total > (stops.after ?? 0)) return "stop";
        for (const prefix of wanted) if (found.path.startsWith(prefix)) missing.delete(prefix);
        if (settings.raw) return;
        const [, name, number] = /^(.*)\.(\d+)\.enc$/.exec(found.path) ?? [];
        if (name === undefined || number === undefined)
          throw error(`Invalid file extension found in archive: ${found.path}`);
        // When it cannot be decrypted, the file before it is broken off, too.
        const plain = open(found);
        if (verify) return;
        const chunk = `${EXTRACTED}/${name}.${number}`;
        if (number === "000") {
          finish();
          file = { name, parts: [plain], last: chunk };
          return;
        }
        if (file === undefined) return;
        const before = Number(/\d+$/.exec(file.last)?.[0]);
        const expected = `${EXTRACTED}/${file.name}.${String(before + 1).padStart(3, "0")}`;
        if (chunk !== expected) {
          unfinished(file.last);
          file = undefined;
          say(
            `qubesadmin.backup.extract: Unexpected file in archive: ${chunk}, expected ${expected}`,
          );
          return;
        }
        file.parts.push(plain);
        file.last = chunk;
        return;
      });
      // A command in a qube sends what there is; tar here wants all that it was asked for.
      if (missing.size > 0 && !args.has("--dest-vm") && stops === undefined) {
        finish();
        const lines = [...missing].map(
          (prefix) => `tar: ${prefix.replace(/\/$/, "")}: Not found in archive\\n`,
        );
        throw error(
          `unable to read the qubes backup file ${location} (2): b'${lines.join("")}tar: Exiting with failure status due to previous errors\\n'`,
        );
      }
    }
    finish();
    if (broken !== undefined) throw error(broken.text ?? "out of luck");
  } catch (cause) {
    if (!(cause instanceof Exit) || verify) throw cause;
    log(`Error extracting data: ${cause.message.replace(`${TOOL}: error: `, "")}`);
  }
  for (const domain of chosen) {
    if (hit("fail-qube", domain)) {
      // The worker's tar has nobody to write to any more, and says so in its own way.
      const chunk = `${EXTRACTED}/${domain.directory}private.img.000`;
      say(`qubesadmin.backup.extract: Error while processing '${chunk}': `);
      say(
        `qubesadmin.backup.extract: ERROR: unable to extract files for ${chunk}, tar output:\n  `,
      );
      // Said by the new name, where it has one.
      log(
        `Failed to restore volume private (size 262144) of VM ${domain.as}: Got empty response from qubesd.`,
      );
    }
    if (hit("fail-firewall", domain)) {
      say(`${domain.as}: Failed to set firewall`);
      trace("ValueError: invalid rule");
    }
    if (domain.qid === 0 && !verify) {
      log("Restoring home of user 'user' to 'home-restore-2026-01-31-040000' directory...");
      if (fault("fail-home") !== undefined) {
        say("Process Process-7:");
        trace("qubesadmin.exc.QubesException: Inner tar error for dom0-home");
      }
    }
  }
  log("-> Done.");
  if (!verify) log("-> Please install updates for all the restored templates.");
  return 0;
};
