/**
 * A stand-in for Qubes, as far as a backup needs it: one program with many names. It behaves as
 * docs/qubes.md says that the real tools do, in what is awkward of them too; what was compared with
 * them is in docs/stand-in.md.
 *
 *     standin init DIR [--qube NAME[:SIZE[:CLASS[:DATA]]]]... [--set KEY=JSON]...
 *     PATH=DIR/bin:$PATH
 *     standin fault DIR JSON          adds a fault (faults.ts has the table); without JSON: none
 *     standin service DIR QUBE NAME PROGRAM
 *     standin stop DIR
 */
// @effect-diagnostics processEnv:off -- no Effect here, and tools live by their environment.
import * as fs from "node:fs";
import * as path from "node:path";
import { Exit, parseArguments } from "./args.ts";
import { qvmBackup } from "./backup.ts";
import { loseQubesd, Refused, Unreachable, unreachable } from "./client.ts";
import { takeFaults, writeFaults } from "./faults.ts";
import type { Fault } from "./faults.ts";
import { qrexecClient, qvmRun } from "./qrexec.ts";
import { serve } from "./qubesd.ts";
import { qvmBackupRestore } from "./restore.ts";
import { send } from "./sender.ts";
import type { Sending } from "./sender.ts";
import { hang, recordCall } from "./state.ts";
import { tools } from "./tools.ts";
import { addFault, initWorld, installService, parseQube, stopWorld } from "./world.ts";

/** What goes wrong with every tool alike, before it does anything. */
const commonFaults = async (dir: string, tool: string, argv: ReadonlyArray<string>) => {
  const faults = takeFaults(
    dir,
    tool,
    ({ kind, vm }) =>
      (kind === "hang" ||
        kind === "delay" ||
        kind === "no-qubesd" ||
        (kind === "fail" && tool !== "qvm-backup" && tool !== "qvm-start")) &&
      (vm === undefined || argv.includes(vm)),
  );
  for (const fault of faults) {
    if (fault.kind === "no-qubesd") {
      loseQubesd();
      continue;
    }
    if (fault.kind === "fail") throw new Exit(fault.code ?? 1, fault.text ?? `${tool}: failed`);
    await hang(dir, fault.ms ?? (fault.kind === "hang" ? Number.POSITIVE_INFINITY : 1000));
  }
};

const runTool = async (
  dir: string,
  tool: string,
  argv: ReadonlyArray<string>,
): Promise<number | undefined> => {
  // Parts of the stand-in, not tools that anybody calls.
  if (tool === "qubesd") {
    serve(dir);
    return undefined;
  }
  if (tool === "qrexec-client") return qrexecClient(dir, argv);
  if (tool === "tar") return send(dir, JSON.parse(argv[0] ?? "") as Sending);

  recordCall(dir, tool, argv, process.env);
  await commonFaults(dir, tool, argv);
  if (tool === "qvm-backup") return qvmBackup(dir, argv);
  if (tool === "qvm-backup-restore") return qvmBackupRestore(dir, argv);
  if (tool === "qvm-run") return qvmRun(dir, argv);
  const known = tools[tool];
  if (known === undefined) throw new Exit(127, `the stand-in has no ${tool}`);
  return known(dir, argv);
};

const manage = (self: string, argv: ReadonlyArray<string>): number => {
  const args = parseArguments("standin", argv, [
    { names: ["--qube"], value: true },
    { names: ["--set"], value: true },
  ]);
  const [verb, dir, ...rest] = args.rest;
  if (verb === undefined || dir === undefined) {
    throw new Exit(2, "usage: standin init|fault|service|stop DIR ...");
  }
  if (verb === "init") {
    const settings = Object.fromEntries(
      args.values("--set").map((text) => {
        const equals = text.indexOf("=");
        return [text.slice(0, equals), JSON.parse(text.slice(equals + 1)) as unknown];
      }),
    );
    initWorld({ dir, qubes: args.values("--qube").map(parseQube), settings, program: self });
  } else if (verb === "stop") stopWorld(fs.realpathSync(dir));
  else if (verb === "fault") {
    if (rest[0] === undefined) writeFaults(dir, []);
    else addFault(dir, JSON.parse(rest[0]) as Fault);
  } else if (verb === "service") {
    const [qube = "", name = "", link = ""] = rest;
    installService(dir, qube, name, { link });
  } else throw new Exit(2, `standin: no such verb: ${verb}`);
  return 0;
};

const toolName = (): string => {
  const [, self = "", option, tool = ""] = process.argv;
  return option === "--tool" ? tool : path.basename(self);
};

/** By option, as the wrappers in DIR/bin call it; or by name, as a link in DIR/bin would. */
const main = async (): Promise<number | undefined> => {
  const [, self = "", ...argv] = process.argv;
  if (argv[0] === "--tool" && argv[2] === "--world") {
    return runTool(argv[3] ?? "", argv[1] ?? "", argv.slice(4));
  }
  const name = path.basename(self);
  if (name.startsWith("standin")) return manage(self, argv);
  const dir = process.env["QUBES_STANDIN"] ?? path.dirname(path.dirname(self));
  return runTool(fs.realpathSync(dir), name, argv);
};

main().then(
  (code) => {
    if (code !== undefined) process.exit(code);
  },
  (error: unknown) => {
    if (error instanceof Exit) {
      if (error.message !== "") process.stderr.write(`${error.message}\n`);
      process.exit(error.code);
    }
    if (error instanceof Unreachable) {
      process.stderr.write(`${unreachable(toolName())}\n`);
      process.exit(1);
    }
    if (error instanceof Refused) {
      process.stderr.write(`${error.message}\n`);
      process.exit(1);
    }
    process.stderr.write(`${String(error instanceof Error ? error.stack : error)}\n`);
    process.exit(70);
  },
);
