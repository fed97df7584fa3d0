/** The smaller tools of dom0: exit codes and output (docs/qubes.md, Tools). */
// @effect-diagnostics processEnv:off -- no Effect here, and tools live by their environment.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { Exit, parseArguments, usageError } from "./args.ts";
import { ask, listQubes, Refused } from "./client.ts";
import { appendLine, readState, sleep } from "./state.ts";
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
    case "uuid":
      return qube.uuid;
    default:
      return "-";
  }
};

const noSuch = (tool: string, name: string): Exit => usageError(tool, `no such domain: '${name}'`);

/** Named qubes, or all of them, by name. An unknown one is exit 2. */
const select = (
  tool: string,
  qubes: ReadonlyArray<Qube>,
  names: ReadonlyArray<string>,
): Array<Qube> => {
  const unknown = names.find((name) => !qubes.some((qube) => qube.name === name));
  if (unknown !== undefined) throw noSuch(tool, unknown);
  return qubes
    .filter(({ name }) => names.length === 0 || names.includes(name))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
};

const qvmLs: Tool = async (dir, argv) => {
  const tool = "qvm-ls";
  const args = parseArguments(tool, argv, [
    { names: ["--raw-data"] },
    { names: ["--raw-list"] },
    { names: ["--fields", "-o", "-O"], value: true },
    { names: ["--running"] },
    { names: ["--halted"] },
    { names: ["--tags"], value: true },
    { names: ["--exclude-tags"], value: true },
    { names: ["--all"] },
  ]);
  const tags = args.values("--tags");
  const excluded = args.values("--exclude-tags");
  const qubes = select(tool, await listQubes(dir), args.rest).filter(
    (qube) =>
      (!args.has("--running") || qube.state === "Running") &&
      (!args.has("--halted") || qube.state === "Halted") &&
      (tags.length === 0 || tags.some((tag) => qube.tags.includes(tag))) &&
      !excluded.some((tag) => qube.tags.includes(tag)),
  );
  const fields = (args.value("--fields") ?? "name,state,class,label,template").split(",");
  const rows = qubes.map((qube) => fields.map((name) => field(qube, name)));
  let text = "";
  if (args.has("--raw-list")) text = qubes.map(({ name }) => `${name}\n`).join("");
  else if (args.has("--raw-data")) text = rows.map((row) => `${row.join("|")}\n`).join("");
  else {
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
  const args = parseArguments("qvm-check", argv, [
    { names: ["--running"] },
    { names: ["--paused"] },
    { names: ["--template"] },
    { names: ["--networked"] },
    { names: ["--all"] },
  ]);
  if (args.rest.length === 0)
    throw usageError("qvm-check", "one of the arguments VMNAME is required");
  const qubes = await listQubes(dir);
  const say = (text: string) => {
    if (!args.has("--quiet")) process.stderr.write(`${text}\n`);
  };
  const good = args.rest.filter((name) => {
    const qube = qubes.find((each) => each.name === name);
    if (qube === undefined) return false;
    if (args.has("--running")) return qube.state === "Running";
    if (args.has("--paused")) return qube.state === "Paused";
    if (args.has("--template")) return qube.class === "TemplateVM";
    return true;
  });
  const what =
    ["running", "paused", "template"].find((name) => args.has(`--${name}`)) ?? "existing";
  if (good.length === 0) {
    say(`None of given VM is ${what}`);
    return 1;
  }
  say(`VM ${good.join(", ")} is ${what}`);
  return good.length === args.rest.length ? 0 : 3;
};

const qvmStart: Tool = async (dir, argv) => {
  const tool = "qvm-start";
  const args = parseArguments(tool, argv, [{ names: ["--skip-if-running"] }, { names: ["--all"] }]);
  if (args.rest.length === 0) throw usageError(tool, "one of the arguments VMNAME is required");
  select(tool, await listQubes(dir), args.rest);
  let code = 0;
  for (const vm of args.rest) {
    try {
      await ask(dir, { op: "start", vm, skipIfRunning: args.has("--skip-if-running") });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      process.stderr.write(`${vm}: ${error.message}\n`);
      code = 1;
    }
  }
  return code;
};

const qvmShutdown: Tool = async (dir, argv) => {
  const tool = "qvm-shutdown";
  const args = parseArguments(tool, argv, [
    { names: ["--wait"] },
    { names: ["--timeout"], value: true },
    { names: ["--force"] },
    { names: ["--all"] },
    { names: ["--exclude"], value: true },
  ]);
  if (args.rest.length === 0) throw usageError(tool, "one of the arguments VMNAME is required");
  select(tool, await listQubes(dir), args.rest);
  const timeout = Number(args.value("--timeout") ?? "60");
  let failed = 0;
  for (const vm of args.rest) {
    try {
      await ask(dir, { op: "shutdown", vm });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      process.stderr.write(`${vm}: ${error.message}\n`);
      failed++;
    }
  }
  if (!args.has("--wait")) return failed;
  const end = Date.now() + timeout * 1000;
  for (;;) {
    const qubes = await listQubes(dir);
    const up = args.rest.filter((vm) =>
      qubes.some(({ name, state }) => name === vm && state !== "Halted"),
    );
    if (up.length === 0) return failed;
    if (Date.now() >= end) {
      process.stderr.write(`Killing the (apparently hanging) VM '${up.join("', '")}'...\n`);
      for (const vm of up) await ask(dir, { op: "kill", vm });
      return failed;
    }
    await sleep(50);
  }
};

const qvmPrefs: Tool = async (dir, argv) => {
  const tool = "qvm-prefs";
  const args = parseArguments(tool, argv, [
    { names: ["--get", "-g"] },
    { names: ["--list", "-l"] },
  ]);
  const [vm, name, ...more] = args.rest;
  if (vm === undefined) throw usageError(tool, "the following arguments are required: VMNAME");
  const qube = select(tool, await listQubes(dir), [vm])[0];
  if (qube === undefined) throw noSuch(tool, vm);
  if (more.length > 0) throw new Exit(1, "the stand-in's qvm-prefs only reads");
  const names = ["class", "include_in_backups", "label", "name", "qid", "template", "uuid"];
  if (name === undefined) {
    for (const each of [...names, "backup_timestamp"].sort()) {
      process.stdout.write(`${each.padEnd(20)}  -  ${field(qube, each)}\n`);
    }
    return 0;
  }
  if (name === "backup_timestamp" && qube.backup_timestamp === null) {
    // The client tool of 4.3 (docs/qubes.md, Tools).
    throw new Exit(1, "Traceback (most recent call last):\nAttributeError: backup_timestamp");
  }
  if (!names.includes(name) && name !== "backup_timestamp") {
    throw new Exit(1, `qvm-prefs: error: no such property: '${name}'`);
  }
  process.stdout.write(`${field(qube, name)}\n`);
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
  "qubesd-query": qubesdQuery,
  "notify-send": notifySend,
  logger,
  systemctl,
};
