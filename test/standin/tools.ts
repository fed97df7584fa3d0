/** The smaller tools of dom0: exit codes and output (docs/qubes.md, Tools). */
// @effect-diagnostics processEnv:off -- no Effect here, and tools live by their environment.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { type Arguments, Exit, parseArguments, usageError } from "./args.ts";
import { ask, listQubes, Refused, type Request, Unreachable } from "./client.ts";
import { appendLine, isRunning, readState, sleep } from "./state.ts";
import type { Qube } from "./state.ts";

type Tool = (dir: string, argv: ReadonlyArray<string>) => Promise<number>;

const python = (value: boolean): string => (value ? "True" : "False");

/** One column of qvm-ls; "-" for what is unset or unknown. */
const field = (qube: Qube, name: string): string => {
  switch (name.toLowerCase().replaceAll("-", "_")) {
    case "name":
      return qube.name;
    case "qid":
      return String(qube.qid);
    case "state":
      return qube.state;
    case "class":
    case "klass":
      return qube.class;
    case "include_in_backups":
      return python(qube.include_in_backups);
    case "backup_timestamp":
      return qube.backup_timestamp === null ? "-" : String(qube.backup_timestamp);
    case "label":
      return qube.label;
    case "template":
      return qube.template ?? "-";
    case "netvm":
      return qube.netvm ?? "-";
    case "provides_network":
      return python(qube.provides_network === true);
    case "uuid":
      return qube.uuid;
    default:
      return "-";
  }
};

/** In Python's print_error. */
const complain = (text: string): void => {
  process.stderr.write(`Error: ${text}\n`);
};

/** Python's logging: with -q nothing is set up, and only warnings come out, without a name. */
const logOf = (tool: string, quiet: boolean) => ({
  info: (text: string) => {
    if (!quiet) process.stderr.write(`${tool}: ${text}\n`);
  },
  warning: (text: string) => process.stderr.write(quiet ? `${text}\n` : `${tool}: ${text}\n`),
});

const pattern = (glob: string): RegExp =>
  new RegExp(
    `^${glob
      .replace(/[\\^$+(){}|.]/g, "\\$&")
      .replaceAll("*", ".*")
      .replaceAll("?", ".")
      .replaceAll("[!", "[^")}$`,
    "s",
  );

/**
 * Named qubes in their order, where globs are names, too; or all of them, by name. An unknown one is
 * exit 2, a glob that fits nothing is nothing.
 */
const select = (
  tool: string,
  qubes: ReadonlyArray<Qube>,
  args: Arguments,
  needed: boolean,
): Array<Qube> => {
  const sorted = [...qubes].sort((a, b) => (a.name < b.name ? -1 : 1));
  const excluded = args.values("--exclude");
  const all = args.has("--all");
  if (needed && !all && args.rest.length === 0) {
    throw usageError(tool, "one of the arguments --all VMNAME is required");
  }
  if (all && args.rest.length > 0) {
    throw usageError(tool, "argument VMNAME: not allowed with argument --all");
  }
  if (!all && excluded.length > 0) throw usageError(tool, "--exclude can only be used with --all");
  if (all) return sorted.filter(({ name, qid }) => qid !== 0 && !excluded.includes(name));
  if (args.rest.length === 0) return sorted;
  const chosen = new Set<Qube>();
  for (const word of args.rest) {
    const glob = /[*?[!\]]/.test(word) ? pattern(word) : undefined;
    const found = sorted.filter(({ name }) =>
      glob === undefined ? name === word : glob.test(name),
    );
    if (glob === undefined && found.length === 0) {
      throw usageError(tool, `no such domain: '${word}'`);
    }
    for (const qube of found) chosen.add(qube);
  }
  return [...chosen];
};

const everyQube = [{ names: ["--all"] }, { names: ["--exclude"], value: true }];

const powerStates = ["Running", "Transient", "Halted", "Paused", "Crashed", "Dying", "Halting"];

const qvmLs: Tool = async (dir, argv) => {
  const tool = "qvm-ls";
  const args = parseArguments(tool, argv, [
    { names: ["--raw-data"] },
    { names: ["--raw-list"] },
    { names: ["--fields", "-O"], value: true },
    { names: ["--format", "-o"], value: true },
    { names: ["--spinner"] },
    { names: ["--no-spinner"] },
    { names: ["--class"], many: true },
    { names: ["--tags"], many: true },
    { names: ["--exclude-tags"], many: true },
    ...powerStates.map((state) => ({ names: [`--${state.toLowerCase()}`] })),
    ...everyQube,
  ]);
  const format = args.value("--format") ?? "simple";
  if (format !== "simple")
    throw usageError(tool, `argument --format/-o: invalid choice: '${format}'`);
  const [tags, excluded, classes] = ["--tags", "--exclude-tags", "--class"].map(args.values);
  const wanted = powerStates.filter((state) => args.has(`--${state.toLowerCase()}`));
  let listed: ReadonlyArray<Qube>;
  try {
    listed = await listQubes(dir);
  } catch (error) {
    // Only where a name has to be looked up is this caught.
    if (!(error instanceof Unreachable) || args.rest.length === 0) throw error;
    complain(error.message);
    return 1;
  }
  const qubes = select(tool, listed, args, false).filter(
    (qube) =>
      (wanted.length === 0 || wanted.includes(qube.state)) &&
      (classes!.length === 0 || classes!.includes(qube.class)) &&
      (tags!.length === 0 || tags!.some((tag) => qube.tags.includes(tag))) &&
      !excluded!.some((tag) => qube.tags.includes(tag)),
  );
  const raw = args.has("--raw-data") || args.has("--raw-list");
  const chosen = args.has("--raw-list") ? "name" : args.value("--fields");
  const fields = (chosen ?? "name,state,class,label,template,netvm").split(",");
  const rows = qubes
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map((qube) => fields.map((name) => field(qube, name.trim())));
  let text = "";
  if (raw) text = rows.map((row) => `${row.join("|")}\n`).join("");
  else {
    if (!args.has("--no-spinner")) process.stderr.write("please wait... ...\n");
    const table = [fields.map((name) => name.toUpperCase()), ...rows];
    const widths = fields.map((_, at) => Math.max(...table.map((row) => row[at]?.length ?? 0)));
    for (const row of table) {
      text += `${row
        .map((cell, at) => cell.padEnd(widths[at] ?? 0))
        .join("  ")
        .trimEnd()}\n`;
    }
  }
  process.stdout.write(text);
  return 0;
};

const qvmCheck: Tool = async (dir, argv) => {
  const tool = "qvm-check";
  const args = parseArguments(tool, argv, [
    { names: ["--running"] },
    { names: ["--paused"] },
    { names: ["--template"] },
    { names: ["--networked"] },
    ...everyQube,
  ]);
  const log = logOf(tool, args.has("--quiet"));
  const qubes = await listQubes(dir);
  // Unknown names are its business, and globs are not.
  const known = args.rest.filter((name) => qubes.some((qube) => qube.name === name));
  const unknown = args.rest.filter((name) => !known.includes(name));
  const none = known.length === 0 && unknown.length > 0;
  const of = none ? [] : select(tool, qubes, { ...args, rest: known }, true);
  const filters: ReadonlyArray<readonly [string, (qube: Qube) => boolean]> = [
    ["running", isRunning],
    ["paused", ({ state }) => state === "Paused"],
    ["template", (qube) => qube.class === "TemplateVM"],
    ["networked", (qube) => qube.provides_network === true || qube.netvm != null],
  ];
  const asked = filters.filter(([name]) => args.has(`--${name}`));
  const good = of.filter((qube) => asked.every(([, fits]) => fits(qube)));
  let code = 0;
  if (asked.length > 0) {
    if (good.length < of.length) code = good.length === 0 ? 1 : 3;
    const status = asked.map(([name]) => name).join(", ");
    if (good.length === 0) log.info(`None of qubes: ${status}`);
    for (const { name } of good) log.info(`${name}: ${status}`);
  } else if (of.length === 0) code = 1;
  else for (const { name } of of) log.info(`${name}: exists`);
  for (const name of unknown) log.warning(`${name}: non-existent!`);
  return unknown.length > 0 ? 1 : code;
};

/** Asks qubesd; false when it refused, which has been said. */
const tried = async (dir: string, request: Request): Promise<boolean> => {
  try {
    await ask(dir, request);
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    complain(error.message);
    return false;
  }
};

const qvmStart: Tool = async (dir, argv) => {
  const tool = "qvm-start";
  const args = parseArguments(tool, argv, [{ names: ["--skip-if-running"] }, ...everyQube]);
  let code = 0;
  for (const qube of select(tool, await listQubes(dir), args, true)) {
    if (isRunning(qube)) {
      if (args.has("--skip-if-running")) continue;
      complain(`domain ${qube.name} is already running`);
      return 1;
    }
    if (!(await tried(dir, { op: "start", vm: qube.name }))) code = 1;
  }
  return code;
};

const pausing =
  (op: "pause" | "unpause"): Tool =>
  async (dir, argv) => {
    const tool = `qvm-${op}`;
    const args = parseArguments(tool, argv, everyQube);
    let code = 0;
    for (const { name } of select(tool, await listQubes(dir), args, true)) {
      if (!(await tried(dir, { op, vm: name }))) code = 1;
    }
    return code;
  };

const qvmShutdown: Tool = async (dir, argv) => {
  const tool = "qvm-shutdown";
  const args = parseArguments(tool, argv, [
    { names: ["--wait"] },
    { names: ["--timeout"], value: true },
    { names: ["--force"] },
    { names: ["--dry-run"] },
    ...everyQube,
  ]);
  const timeout = Number(args.value("--timeout") ?? 60);
  if (Number.isNaN(timeout)) {
    throw usageError(tool, `argument --timeout: invalid float value: '${args.value("--timeout")}'`);
  }
  const names = select(tool, await listQubes(dir), args, true).map(({ name }) => name);
  const refused: Array<string> = [];
  for (const vm of names) {
    try {
      await ask(dir, { op: "shutdown", vm });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      // Of a paused qube it takes this for a halted one.
      if (/^QubesVMNot(Started|Running)Error$/.test(error.kind ?? "")) continue;
      if (args.has("--wait")) refused.push(vm);
      else process.stderr.write(`${vm}: Shutdown error: ${error.message}\n`);
    }
  }
  if (!args.has("--wait")) return 0;
  const up = async (of: ReadonlyArray<string>) => {
    const qubes = await listQubes(dir);
    return of.filter((vm) => qubes.some(({ name, state }) => name === vm && state !== "Halted"));
  };
  const asked = names.filter((vm) => !refused.includes(vm));
  const end = Date.now() + timeout * 1000;
  let left = await up(asked);
  while (left.length > 0 && Date.now() < end) {
    await sleep(50);
    left = await up(asked);
  }
  // Without a word.
  for (const vm of left) await ask(dir, { op: "kill", vm });
  const failed = await up(names);
  if (failed.length === 0) return 0;
  throw new Exit(failed.length, `${tool}: error: Failed to shut down: ${failed.join(", ")}`);
};

const properties = [
  "backup_timestamp",
  "include_in_backups",
  "klass",
  "label",
  "name",
  "netvm",
  "provides_network",
  "qid",
  "template",
  "uuid",
];

const qvmPrefs: Tool = async (dir, argv) => {
  const tool = "qvm-prefs";
  const args = parseArguments(tool, argv, [
    { names: ["--get", "-g"] },
    { names: ["--set", "-s"] },
    { names: ["--default", "-D"] },
    { names: ["--hide-default"] },
  ]);
  const [vm, given, value, ...more] = args.rest;
  if (vm === undefined) throw usageError(tool, "the following arguments are required: VMNAME");
  if (more.length > 0) throw usageError(tool, `unrecognized arguments: ${more.join(" ")}`);
  const qube = select(tool, await listQubes(dir), { ...args, rest: [vm] }, true).pop();
  // pop() from a list that a glob left empty.
  if (qube === undefined)
    throw new Exit(1, "Traceback (most recent call last):\nIndexError: pop from empty list");
  if (given === undefined) {
    for (const each of properties) {
      const set = each === "backup_timestamp" ? qube.backup_timestamp !== null : true;
      const shown = each === "klass" ? "class" : each;
      process.stdout.write(
        set ? `${each.padEnd(18)}  -  ${field(qube, shown)}\n` : `${each.padEnd(18)}  U\n`,
      );
    }
    return 0;
  }
  const name = given.replaceAll("-", "_");
  if (!properties.includes(name)) throw usageError(tool, `no such property: '${name}'`);
  if (value !== undefined || args.has("--default")) {
    const none = name === "netvm" && value?.toLowerCase() === "none";
    try {
      await ask(dir, { op: "set", vm: qube.name, name, value: none ? "" : (value ?? null) });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      throw new Exit(1, `${tool}: error: ${error.message}`);
    }
    return 0;
  }
  if (name === "backup_timestamp" && qube.backup_timestamp === null) {
    throw new Exit(1, "Traceback (most recent call last):\nAttributeError: backup_timestamp");
  }
  const text = field(qube, name === "klass" ? "class" : name);
  // What is None is not printed.
  if (text !== "-") process.stdout.write(`${text}\n`);
  return 0;
};

/** Of the genuine one dd copies what it is given, and holds it against the size that it was told. */
const importVolume = async (
  dir: string,
  vm: string,
  volume: string,
  input: string,
  size: number | undefined,
): Promise<number> => {
  const bytes = fs.readFileSync(input === "-" ? 0 : input);
  const wanted = size ?? bytes.length;
  const wrong =
    bytes.length < wanted
      ? `not enough data (copied ${bytes.length} bytes, expected ${wanted} bytes)`
      : bytes.length > wanted
        ? `too much data (expected ${wanted} bytes)`
        : undefined;
  const file = path.join(dir, "volumes", `${vm}-${volume}.img`);
  if (wrong === undefined) {
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, bytes);
  } else {
    complain(`Data import failed: ${wrong}`);
    return 1;
  }
  return (await tried(dir, { op: "import", vm, volume, file })) ? 0 : 1;
};

/** `qvm-volume info VM:VOLUME PROPERTY`, of what there is here, and `qvm-volume import VM:VOLUME FILE`. */
const qvmVolume: Tool = async (dir, argv) => {
  const tool = "qvm-volume";
  const args = parseArguments(tool, argv, [{ names: ["--size"], value: true }]);
  const [verb = "", which = "", property] = args.rest;
  if (!["info", "i", "import"].includes(verb))
    throw new Exit(1, `the stand-in's ${tool} only knows: info, import`);
  const [vm = "", name, ...more] = which.split(":");
  if (name === undefined || more.length > 0) {
    throw usageError(tool, "expected a vm & volume combination like foo:bar");
  }
  const qube = (await listQubes(dir)).find((each) => each.name === vm);
  if (qube === undefined) throw new Exit(1, `${tool}: error: no vm '${vm}'`);
  // A volume that is not saved is there all the same.
  const volume = qube.volumes[name];
  if (volume === undefined && !["root", "private", "volatile", "kernel"].includes(name)) {
    throw new Exit(1, `${tool}: error: vm '${vm}' has no volume '${name}'`);
  }
  const size = args.value("--size");
  if (verb === "import") {
    if (property === undefined)
      throw usageError(tool, "the following arguments are required: PATH");
    if (size !== undefined && !/^\d+$/.test(size))
      throw usageError(tool, `argument --size: invalid int value: '${size}'`);
    return importVolume(dir, vm, name, property, size === undefined ? undefined : Number(size));
  }
  if (size !== undefined) throw usageError(tool, `unrecognized arguments: --size=${size}`);
  const values: { readonly [name: string]: string } = {
    pool: "varlib",
    vid: `appvms/${vm}/${name}`,
    rw: "True",
    source: "",
    save_on_stop: python(volume !== undefined),
    snap_on_start: python(volume === undefined && name === "root"),
    size: String(volume?.size ?? 0),
    usage: String(volume?.data ?? volume?.size ?? 0),
    revisions_to_keep: String(volume?.revisions_to_keep ?? 2),
    ephemeral: "False",
  };
  if (property === undefined) {
    const shown = { ...values, is_outdated: "False" };
    for (const [key, value] of Object.entries(shown)) {
      process.stdout.write(
        `${key.padEnd(17)}  ${value === "-1" ? "-1 (snapshot disabled)" : value}\n`,
      );
    }
    process.stdout.write("List of available revisions (for revert): none\n");
  } else if (property === "revisions") return 0;
  else if (property === "is_outdated") process.stdout.write("False\n");
  else {
    const value = values[property];
    if (value === undefined) {
      complain(`No such property: ${property}`);
      return 1;
    }
    process.stdout.write(`${value}\n`);
  }
  return 0;
};

const labels = ["red", "orange", "yellow", "green", "gray", "blue", "purple", "black"];

const qvmCreate: Tool = async (dir, argv) => {
  const tool = "qvm-create";
  const args = parseArguments(tool, argv, [
    { names: ["--class", "-C"], value: true },
    { names: ["--label", "-l"], value: true },
    { names: ["--property", "--prop"], value: true },
  ]);
  const [vm, ...more] = args.rest;
  if (more.length > 0) throw usageError(tool, `unrecognized arguments: ${more.join(" ")}`);
  const set = args.values("--property").map((token) => {
    const equals = token.indexOf("=");
    if (equals < 0) throw usageError(tool, `invalid property token: '${token}'`);
    return [token.slice(0, equals), token.slice(equals + 1)] as const;
  });
  const label = args.value("--label");
  if (label === undefined) throw usageError(tool, "--label option is mandatory");
  if (vm === undefined) throw usageError(tool, "VMNAME is mandatory");
  if (!labels.includes(label)) {
    throw usageError(tool, `no such label: '${label}'; available: ${labels.join(", ")}`);
  }
  const kind = args.value("--class") ?? "AppVM";
  if (kind !== "AppVM") throw new Exit(1, `the stand-in's ${tool} only knows: AppVM`);
  try {
    await ask(dir, { op: "create", vm, label, class: kind });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    process.stderr.write(`app: Error creating VM: ${error.message}\n`);
    return 1;
  }
  let code = 0;
  for (const [name, value] of set) {
    try {
      await ask(dir, { op: "set", vm, name, value });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      process.stderr.write(
        `app: Error setting property ${name} (but VM created): ${error.message}\n`,
      );
      code = 2;
    }
  }
  return code;
};

const qvmRemove: Tool = async (dir, argv) => {
  const tool = "qvm-remove";
  const args = parseArguments(tool, argv, [{ names: ["--force", "-f"] }, ...everyQube]);
  const qubes = select(tool, await listQubes(dir), args, true);
  if (qubes.some(({ name }) => name === "dom0")) {
    process.stderr.write("Domain 'dom0' cannot be removed.\n");
    return 1;
  }
  if (!args.has("--force")) {
    process.stderr.write("This will completely remove the selected VM(s)...\n");
    throw new Exit(1, "Traceback (most recent call last):\nEOFError: EOF when reading a line");
  }
  for (const { name } of qubes) {
    try {
      await ask(dir, { op: "remove", vm: name });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      throw new Exit(1, `${tool}: error: ${error.message}`);
    }
  }
  return 0;
};

/** `qvm-tags VM add TAG...` and `qvm-tags VM list [TAG]`. */
const qvmTags: Tool = async (dir, argv) => {
  const tool = "qvm-tags";
  const args = parseArguments(tool, argv, []);
  const [vm = "", verb = "list", ...words] = args.rest;
  const [qube] = select(tool, await listQubes(dir), { ...args, rest: [vm] }, true);
  if (["list", "ls", "l"].includes(verb)) {
    const [tag] = words;
    const tags = [...(qube?.tags ?? [])].sort();
    if (tag !== undefined && !tags.includes(tag)) return 1;
    for (const each of tag === undefined ? tags : [tag]) process.stdout.write(`${each}\n`);
    return 0;
  }
  if (!["add", "a", "set"].includes(verb))
    throw new Exit(1, `the stand-in's ${tool} only knows: list, add`);
  if (words.length === 0) throw usageError(tool, "the following arguments are required: tag");
  for (const tag of words) {
    try {
      await ask(dir, { op: "tag", vm, tag });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      throw new Exit(1, `${tool}: error: ${error.message}`);
    }
  }
  return 0;
};

/** admin.backup.Cancel only: for a backup whose client was killed (docs/qubes.md, Cancelling). */
const qubesdQuery: Tool = async (dir, argv) => {
  const args = parseArguments("qubesd-query", argv, [
    { names: ["-e", "--empty"] },
    { names: ["-c", "--connect"], value: true },
    { names: ["--fail"] },
    { names: ["--single-line"] },
  ]);
  const [source, method, destination, argument] = args.rest;
  if (source === undefined || method === undefined || destination === undefined) {
    throw usageError("qubesd-query", "the following arguments are required: SRC, METHOD, DEST");
  }
  if (method !== "admin.backup.Cancel") throw new Exit(1, `the stand-in has no ${method}`);
  try {
    await ask(dir, { op: "cancel", profile: argument ?? "" });
    process.stdout.write("0\0");
    return 0;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    process.stdout.write(`2\0QubesException\0\0${error.message}\0`);
    return args.has("--fail") ? 1 : 0;
  }
};

const notifySend: Tool = async (dir, argv) => {
  const display = process.env["DISPLAY"] ?? null;
  const bus = process.env["DBUS_SESSION_BUS_ADDRESS"] ?? null;
  const delivered = bus !== null && bus !== "";
  const record = { argv, display, bus, delivered };
  appendLine(path.join(dir, "notifications.jsonl"), JSON.stringify(record));
  // From cron there is no bus, and nothing to start one with.
  if (!delivered) throw new Exit(1, "Cannot autolaunch D-Bus without X11 $DISPLAY");
  return 0;
};

const severities = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

const logger: Tool = async (dir, argv) => {
  const args = parseArguments("logger", argv, [
    { names: ["--tag", "-t"], value: true },
    { names: ["--priority", "-p"], value: true },
    { names: ["--id"] },
    { names: ["-i"] },
    { names: ["--stderr", "-s"] },
    { names: ["--skip-empty", "-e"] },
    { names: ["--size", "-S"], value: true },
    { names: ["--journald"] },
    { names: ["--file", "-f"], value: true },
  ]);
  const log = (tag: string, priority: string, message: string) => {
    // One line is one entry here; the real journal keeps what was in it.
    const line = `${tag} ${priority} ${message.replaceAll("\n", " ")}`;
    appendLine(path.join(dir, "journal.log"), line);
    if (args.has("--stderr")) process.stderr.write(`${tag}: ${message}\n`);
  };
  const tag = args.value("--tag") ?? os.userInfo().username;
  const priority = args.value("--priority") ?? "user.notice";
  const [facility, severity] = priority.includes(".") ? priority.split(".") : ["user", priority];
  const known = [...severities, "error", "warn", "panic"];
  if (!known.includes(severity ?? "") && !/^[0-7]$/.test(severity ?? "")) {
    throw new Exit(1, `logger: unknown priority name: ${priority}`);
  }
  const written = `${facility}.${severity}`;
  if (args.has("--journald")) {
    const entry = new Map(
      fs
        .readFileSync(0, "utf8")
        .split("\n")
        .map((line) => [line.split("=")[0] ?? "", line.slice(line.indexOf("=") + 1)] as const),
    );
    const level = severities[Number(entry.get("PRIORITY") ?? "5")] ?? "notice";
    log(entry.get("SYSLOG_IDENTIFIER") ?? tag, `user.${level}`, entry.get("MESSAGE") ?? "");
    return 0;
  }
  if (args.rest.length > 0) {
    log(tag, written, args.rest.join(" "));
    return 0;
  }
  // Line by line as they come: it may be the end of a long pipe.
  let rest = "";
  for await (const data of process.stdin.setEncoding("utf8")) {
    const lines = `${rest}${String(data)}`.split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line !== "" || !args.has("--skip-empty")) log(tag, written, line);
  }
  if (rest !== "") log(tag, written, rest);
  return 0;
};

/** Only what a drop-in for qubesd.service sets. */
const systemctl: Tool = async (dir, argv) => {
  const args = parseArguments("systemctl", argv, [
    { names: ["--property", "-p"], value: true },
    { names: ["--value"] },
    { names: ["--user"] },
    { names: ["--system"] },
    { names: ["--no-pager"] },
  ]);
  const [verb, unit] = args.rest;
  const asked = args.values("--property").flatMap((names) => names.split(","));
  if (
    verb !== "show" ||
    !/^qubesd(\.service)?$/.test(unit ?? "") ||
    !asked.includes("Environment")
  ) {
    throw new Exit(1, "the stand-in's systemctl only knows: show -p Environment qubesd.service");
  }
  const { tmpdir } = readState(dir).settings;
  const value = tmpdir === null ? "" : `TMPDIR=${tmpdir}`;
  process.stdout.write(`${args.has("--value") ? "" : "Environment="}${value}\n`);
  return 0;
};

export const tools: { readonly [name: string]: Tool } = {
  "qvm-ls": qvmLs,
  "qvm-check": qvmCheck,
  "qvm-start": qvmStart,
  "qvm-shutdown": qvmShutdown,
  "qvm-prefs": qvmPrefs,
  "qvm-pause": pausing("pause"),
  "qvm-unpause": pausing("unpause"),
  "qvm-volume": qvmVolume,
  "qvm-create": qvmCreate,
  "qvm-remove": qvmRemove,
  "qvm-tags": qvmTags,
  "qubesd-query": qubesdQuery,
  "notify-send": notifySend,
  logger,
  systemctl,
};
