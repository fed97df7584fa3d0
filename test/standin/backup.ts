/** qvm-backup, the client (docs/qubes.md, Who does the work). The work is done by qubesd. */
import * as fs from "node:fs";
import * as path from "node:path";
import { Exit, parseArguments, usageError } from "./args.ts";
import { ask, Crashed, listQubes, Refused } from "./client.ts";
import { type Fault, takeFault, takeFaults } from "./faults.ts";
import { profileFile, writeProfile } from "./profile.ts";
import type { Profile } from "./profile.ts";
import { removeQube } from "./state.ts";

const TOOL = "qvm-backup";

/** What Python says when nobody caught the exception. */
export const traceback = (message: string): string =>
  [
    "Traceback (most recent call last):",
    '  File "/usr/bin/qvm-backup", line 5, in <module>',
    "    sys.exit(main())",
    "             ^^^^^^",
    '  File "/usr/lib/python3.13/site-packages/qubesadmin/tools/qvm_backup.py", line 250, in main',
    message,
  ].join("\n");

const stdinLine = (): string | undefined => {
  const bytes: Array<number> = [];
  const one = Buffer.alloc(1);
  for (;;) {
    let read: number;
    try {
      read = fs.readSync(0, one, 0, 1, null);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EAGAIN") continue;
      read = 0;
    }
    if (read === 0) return bytes.length === 0 ? undefined : Buffer.from(bytes).toString();
    if (one[0] === 10) return Buffer.from(bytes).toString();
    bytes.push(one[0] ?? 0);
  }
};

/**
 * What Python's readline and rstrip leave: a carriage return ends a line, too, a byte order mark is no
 * blank, and four control characters are.
 */
const firstLine = (text: string): string =>
  // oxlint-disable-next-line no-control-regex -- Python's blanks
  (text.split(/\r\n|\r|\n/)[0] ?? "").replace(/(?:(?!\ufeff)[\s\x1c-\x1f\x85])+$/u, "");

export const passphraseFrom = (file: string | undefined): string => {
  if (file === undefined || file === "-") {
    // Without a file the real one asks on the terminal; here the first line of stdin has to do.
    return firstLine(stdinLine() ?? "");
  }
  let bytes: Buffer;
  try {
    bytes = fs.readFileSync(file);
  } catch {
    throw new Exit(
      1,
      traceback(`FileNotFoundError: [Errno 2] No such file or directory: '${file}'`),
    );
  }
  try {
    return firstLine(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    throw new Exit(1, traceback("UnicodeDecodeError: 'utf-8' codec can't decode byte"));
  }
};

const message = (error: unknown): string => {
  if (error instanceof Refused) return error.message;
  if (error instanceof Crashed) throw new Exit(1, traceback(error.message));
  throw error;
};

export const qvmBackup = async (dir: string, argv: ReadonlyArray<string>): Promise<number> => {
  const args = parseArguments(TOOL, argv, [
    { names: ["--yes", "-y"] },
    { names: ["--profile"], value: true },
    { names: ["--exclude", "-x"], value: true },
    { names: ["--dest-vm", "-d"], value: true },
    { names: ["--encrypt", "-e"] },
    { names: ["--passphrase-file", "-p"], value: true },
    { names: ["--compress", "-z"] },
    { names: ["--no-compress"] },
    { names: ["--compress-filter", "-Z"], value: true },
    { names: ["--save-profile"], value: true },
  ]);
  const named = args.value("--profile");
  const saved = args.value("--save-profile");
  const [place, ...qubes] = args.rest;
  if (named !== undefined) {
    const other = [
      ["--exclude", "exclude-list"],
      ["--passphrase-file", "passphrase-file"],
      ["--compress", "compression"],
      ["--compress-filter", "compression"],
      ["--save-profile", "save-profile"],
    ].find(([name = ""]) => args.has(name))?.[1];
    if (other !== undefined) {
      const text = `--${other} option could not be used together with --profile`;
      throw usageError(TOOL, text);
    }
  } else if (place === undefined) {
    throw usageError(TOOL, "either --profile or 'backup_location' is required");
  }
  if (args.has("--dest-vm")) throw new Exit(1, "the stand-in knows no --dest-vm: use a FIFO");
  /** Somebody removes qubes while this runs. */
  const remove = (before: Fault["stage"]) => {
    for (const { vm } of takeFaults(
      dir,
      TOOL,
      ({ kind, stage }) => kind === "removed" && stage === before,
    ))
      removeQube(dir, vm ?? "");
  };
  remove(undefined);
  // Without names there is nothing to look up.
  const known = qubes.length === 0 ? [] : (await listQubes(dir)).map(({ name }) => name);
  // A glob passes here and selects nothing later (docs/qubes.md, Names and the default set).
  const unknown = qubes.find((name) => !known.includes(name) && !/[*?[]/.test(name));
  if (unknown !== undefined) throw usageError(TOOL, `no such domain: '${unknown}'`);

  const name = named ?? saved ?? `backup-run-${process.pid}`;
  const passing = named === undefined && saved === undefined;
  const profile: Profile = {
    include: qubes.length === 0 ? null : qubes,
    exclude: args.values("--exclude"),
    compression: args.value("--compress-filter") ?? !args.has("--no-compress"),
    destinationPath: path.resolve(place ?? "."),
    passphrase: null,
  };
  // The first time without the passphrase, for the summary.
  if (named === undefined) writeProfile(dir, name, profile);
  remove("info");
  try {
    process.stdout.write(`${String(await ask(dir, { op: "info", profile: name }))}\n`);
  } catch (error) {
    // The profile stays behind.
    throw new Exit(1, `\nBackup preparation error: ${message(error)}`);
  }
  if (!args.has("--yes")) {
    process.stdout.write("Do you want to proceed? [y/N] ");
    const answer = stdinLine();
    if (answer === undefined) throw new Exit(1, traceback("EOFError: EOF when reading a line"));
    if (answer.toUpperCase() !== "Y") {
      if (passing) fs.rmSync(profileFile(dir, name), { force: true });
      return 0;
    }
  }
  if (named === undefined) {
    const passphrase = passphraseFrom(args.value("--passphrase-file"));
    writeProfile(dir, name, { ...profile, passphrase });
  }

  // Only SIGINT cancels. Of SIGTERM and SIGHUP the client dies: the backup goes on inside qubesd,
  // and the profile stays behind (docs/qubes.md, Cancelling).
  const deaf = takeFault(dir, TOOL, "ignore-sigint") !== undefined;
  process.on("SIGINT", () => {
    if (!deaf) ask(dir, { op: "cancel", profile: name }).catch(() => {});
  });
  remove("execute");
  try {
    await ask(dir, { op: "execute", profile: name }, (percent) => {
      process.stderr.write(`\rMaking a backup... ${percent.toFixed(2)}%`);
    });
  } catch (error) {
    throw new Exit(1, `\nBackup error: ${message(error)}`);
  } finally {
    if (passing) fs.rmSync(profileFile(dir, name), { force: true });
    process.stdout.write("\n\n");
  }
  return 0;
};
