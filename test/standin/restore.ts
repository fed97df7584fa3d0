/**
 * qvm-backup-restore (contract, 3). It opens its location three times, takes of each reading the
 * members whose paths begin with what it looks for, and writes what it restores to DIR/restored:
 *
 *     restored/QUBE/VOLUME.img    images, with their holes; small files beside them
 *     restored/dom0/...           the home, unpacked
 *     restored/members.jsonl      every member that a reading showed: {reading, path, size, sha256}
 *
 * Faults, as in faults.ts: never-opens; stop-after-header (code); stop-reading (after: bytes of the
 * data); die (after); fail-qube (vm: logged, exit 0); extract-error (text: logged, exit 0). In worlds
 * with `raw` archives nothing can be decrypted, and nothing is.
 */
import * as child_process from "node:child_process";
import * as crypto from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import * as zlib from "node:zlib";
import { type Arguments, Exit, parseArguments, usageError } from "./args.ts";
import { listQubes } from "./client.ts";
import { takeFault } from "./faults.ts";
import { SCRYPT_HEAD, SCRYPT_TAIL } from "./scrypt.ts";
import { appendLine, hang, readState } from "./state.ts";

const TOOL = "qvm-backup-restore";
const error = (text: string): Exit => new Exit(1, `${TOOL}: error: ${text}`);
/** Waits for the reader, as Python does; process.stderr would put it off, and then lose it. */
const say = (text: string): void => {
  const bytes = Buffer.from(`${text}\n`);
  for (let at = 0; at < bytes.length;) {
    try {
      at += fs.writeSync(2, bytes, at);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EAGAIN") throw cause;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
};
const log = (text: string): void => say(`qubesadmin.backup: ${text}`);

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
const fromCommand = (dir: string, vm: string, command: string): Source => {
  const qvmRun = path.join(dir, "bin", "qvm-run");
  const ran = child_process.spawnSync(qvmRun, ["--no-gui", "--pass-io", vm, command], {
    maxBuffer: 2 ** 31,
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (ran.status !== 0) throw error(`Backup header retrieval failed (exit code ${ran.status})`);
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

/** Everything that is in an inner archive: files, and images with holes in the old GNU form. */
export const unpacked = (tar: Buffer): Map<string, Buffer> => {
  const files = new Map<string, Buffer>();
  const number = (at: number): number =>
    (tar[at]! & 0x80) === 0
      ? Number.parseInt(tar.toString("latin1", at, at + 11), 8)
      : Number(tar.readBigUInt64BE(at + 4));
  let longName: string | undefined;
  for (let at = 0; at + 512 <= tar.length;) {
    if (tar[at] === 0) {
      at += 512;
      continue;
    }
    const type = tar.toString("latin1", at + 156, at + 157);
    const size = number(at + 124);
    const name = longName ?? tar.toString("latin1", at, at + 100).replace(/\0.*$/s, "");
    longName = undefined;
    let data = at + 512;
    if (type === "L") longName = tar.toString("utf8", data, data + size - 1);
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
    } else if (type === "0") files.set(name, tar.subarray(data, data + size));
    at = data + Math.ceil(size / 512) * 512;
  }
  return files;
};

const decompressed = (filter: string | undefined, bytes: Buffer): Buffer => {
  if (filter === undefined) return bytes;
  if (filter === "gzip") return zlib.gunzipSync(bytes);
  return child_process.spawnSync(filter, ["-d", "-c"], { input: bytes, maxBuffer: 2 ** 31 }).stdout;
};

interface Domain {
  readonly name: string;
  readonly qid: number;
  readonly template: string | undefined;
  readonly directory: string;
  /** As it is called here; undefined when it is left out. */
  as: string | undefined;
}

const domainsOf = (xml: string): Array<Domain> =>
  [...xml.matchAll(/<domain id="domain-(\d+)"[^>]*>(.*?)<\/domain>/gs)].flatMap((match) => {
    const text = match[2]!;
    const value = (pattern: string) => new RegExp(`<${pattern}>([^<]*)<`).exec(text)?.[1];
    const directory = value('feature name="backup-path"');
    if (directory === undefined) return [];
    const qid = Number(match[1]);
    const name = qid === 0 ? "dom0" : value('property name="name"')!;
    return [{ name, qid, template: value('property name="template"'), directory, as: name }];
  });

/** Decides what comes back, and under which names; says it as the genuine tool does. */
const choose = (
  args: Arguments,
  domains: ReadonlyArray<Domain>,
  here: ReadonlyArray<{ readonly name: string; readonly class: string }>,
): ReadonlyArray<Domain> => {
  const named = args.rest.slice(1);
  const problems: Array<string> = [];
  for (const domain of domains) {
    const { name } = domain;
    // dom0's home is never excluded by naming qubes.
    const out =
      args.values("--exclude").includes(name) || (named.length > 0 && !named.includes(name));
    if (name === "dom0" ? args.has("--skip-dom0-home") : out) {
      domain.as = undefined;
      continue;
    }
    if (name === "dom0") continue;
    const taken = (word: string) => here.some((qube) => qube.name === word);
    if (!args.has("--verify-only") && taken(name)) {
      if (args.has("--rename-conflicting")) {
        let n = 1;
        while (taken(`${name}${n}`)) n++;
        domain.as = `${name}${n}`;
      } else {
        domain.as = undefined;
        if (!args.has("--skip-conflicting")) problems.push("conflict");
      }
    }
    const template = domain.template;
    const known =
      template === undefined ||
      here.some((qube) => qube.name === template && qube.class === "TemplateVM") ||
      domains.some((other) => other.name === template);
    if (!known && !args.has("--ignore-missing")) {
      if (args.has("--skip-broken")) domain.as = undefined;
      else problems.push("template");
    }
  }
  process.stdout.write("The following VMs are included in the backup:\n\n");
  for (const { as, name } of domains) {
    const note =
      as === undefined
        ? " <-- Excluded from restore"
        : as === name
          ? ""
          : ` <-- Will be renamed to '${as}'`;
    process.stdout.write(` ${name.padStart(12)} |${note}\n`);
  }
  if (problems.includes("conflict")) {
    say("app: *** There are VMs with conflicting names on the host! ***");
    throw error(
      "Remove VMs with conflicting names from the host before proceeding.\nOr use --skip-conflicting to restore only those VMs that do not exist on the host.\nOr use --rename-conflicting to restore those VMs under modified names (with numbers at the end).",
    );
  }
  if (problems.includes("template")) {
    say("app: *** One or more TemplateVMs are missing on the host! ***");
    throw error(
      "Install them before proceeding with the restore.Or pass: --skip-broken or --ignore-missing.",
    );
  }
  return domains.filter((domain) => domain.as !== undefined);
};

export const qvmBackupRestore = async (
  dir: string,
  argv: ReadonlyArray<string>,
): Promise<number> => {
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
  const passphrase = (
    fs.readFileSync(args.value("--passphrase-file") ?? "/dev/null", "utf8").split("\n")[0] ?? ""
  ).trimEnd();
  const { settings } = readState(dir);
  const verify = args.has("--verify-only");
  const place = path.join(dir, "restored");
  fs.mkdirSync(place, { recursive: true });
  const fault = (kind: string) => takeFault(dir, TOOL, kind);

  say("app: Checking backup content...");
  if (fault("never-opens") !== undefined) await hang(dir);
  let readings = 0;
  /** One reading: all that begins with one of these, until `enough` of them were seen. */
  const retrieve = (
    wanted: ReadonlyArray<string>,
    enough: number,
    see: (found: Found, total: number) => void | "stop",
  ): number => {
    const reading = readings++;
    const source = args.has("--dest-vm")
      ? fromCommand(dir, args.value("--dest-vm")!, location)
      : fromPath(location);
    let seen = 0;
    let total = 0;
    try {
      for (const found of membersOf(source)) {
        const { data } = found;
        const sha256 = crypto.createHash("sha256").update(data).digest("hex");
        const record = { reading, path: found.path, size: data.length, sha256 };
        appendLine(path.join(place, "members.jsonl"), JSON.stringify(record));
        total += data.length;
        if (!wanted.some((prefix) => found.path.startsWith(prefix))) continue;
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
  const filter =
    fields.get("compressed") === "True" ? (fields.get("compression-filter") ?? "gzip") : undefined;
  const open = ({ data, path: name }: Found): Buffer => {
    const origin = name.replace(/\.enc$/, "");
    const plain = decrypted(data, `${id}!${origin}!${passphrase}`);
    if (plain !== undefined) return plain;
    const full = `/home/user/QubesIncoming/backup#restore/tmp1/${name}`;
    throw error(`failed to decrypt ${full}: b'scrypt: Input is not valid scrypt-encrypted block'`);
  };

  retrieve(["qubes.xml.000.enc"], 1, keep);
  const xml = heads.get("qubes.xml.000.enc");
  if (xml === undefined)
    throw error("unexpected files in archive: got [], expected ['qubes.xml.000.enc']");
  const text = decompressed(filter, open({ path: "qubes.xml.000.enc", data: xml }));
  const domains = domainsOf(unpacked(text).get("qubes.xml")!.toString());
  const chosen = choose(args, domains, await listQubes(dir));
  for (const { name } of chosen) log(`-> ${verify ? "Verifying" : "Restoring"} ${name}...`);

  log("Extracting data: some MiB to restore");
  const wanted = chosen.map(({ directory, qid }) => (qid === 0 ? "dom0-home/" : directory));
  let file: { readonly name: string; readonly parts: Array<Buffer> } | undefined;
  const finish = () => {
    if (file === undefined || verify) return;
    const domain = chosen.find(({ directory }) => file!.name.startsWith(directory))!;
    const plain = decompressed(filter, Buffer.concat(file.parts));
    for (const [name, data] of unpacked(plain)) {
      const inside = path.relative(domain.qid === 0 ? "dom0-home" : domain.directory, name);
      const target = path.join(place, domain.as!, inside);
      fs.mkdirSync(path.dirname(target), { recursive: true });
      fs.writeFileSync(target, data);
    }
    file = undefined;
  };
  const stops = fault("stop-reading");
  const dies = fault("die");
  try {
    const broken = fault("extract-error");
    if (wanted.length > 0) {
      const seen = retrieve(wanted, Number.POSITIVE_INFINITY, (found, total) => {
        if (dies !== undefined && total > (dies.after ?? 0)) process.kill(process.pid, "SIGKILL");
        if (stops !== undefined && total > (stops.after ?? 0)) return "stop";
        if (settings.raw) return;
        const match = /^(.*)\.(\d+)\.enc$/.exec(found.path)!;
        if (match[2] === "000") {
          finish();
          file = { name: match[1]!, parts: [] };
        }
        file?.parts.push(open(found));
        return;
      });
      if (seen === 0) {
        throw error(
          `unable to read the qubes backup file ${location} (2): ${wanted[0]}: Not found in archive`,
        );
      }
    }
    finish();
    if (broken !== undefined) throw error(broken.text ?? "out of luck");
  } catch (cause) {
    if (!(cause instanceof Exit) || verify) throw cause;
    log(`Error extracting data: ${cause.message.replace(`${TOOL}: error: `, "")}`);
  }
  for (const { name } of chosen) {
    if (takeFault(dir, TOOL, "fail-qube", name)?.vm === name)
      log(
        `Failed to restore volume private (size 262144) of VM ${name}: Got empty response from qubesd.`,
      );
  }
  log("-> Done.");
  if (!verify) log("-> Please install updates for all the restored templates.");
  return 0;
};
