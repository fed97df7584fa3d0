/** What `qbackup -h` and `qbackup COMMAND -h` say: made from the commands, in 80 columns. */
import { exitCodes, exitTable } from "#src/say/exit";
import { version } from "#src/say/version";
import { everywhere } from "./argv.ts";
import { type Command, type Flag, type Flags, flagName } from "./command.ts";

export const columns = 80;

/** Lines of at most `width`; a word that is longer than that stands alone. */
const wrap = (text: string, width: number): ReadonlyArray<string> => {
  const lines: Array<string> = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) {
      lines[lines.length - 1] = `${last} ${word}`;
    } else lines.push(word);
  }
  return lines;
};

/** `left`, and `right` beside it from column `at` on; below it where `left` is too wide. */
const row = (left: string, right: string, at: number): ReadonlyArray<string> => {
  const texts = wrap(right, columns - at).map((line) => " ".repeat(at) + line);
  return left.length >= at
    ? [left, ...texts]
    : [left.padEnd(at) + texts[0]!.slice(at), ...texts.slice(1)];
};

/** ` VM`, or nothing. */
export const valueOf = (flag: Flag): string => (flag.type === "switch" ? "" : ` ${flag.value}`);

/** Limits and default, in brackets the setting. */
export const limitsOf = (flag: Flag): string => {
  const count =
    flag.type !== "count"
      ? ""
      : ` (${flag.unit}, ${flag.least} to ${flag.most}${flag.default === undefined ? "" : `; default ${flag.default}`})`;
  return `${count}${flag.setting === undefined ? "" : ` [${flag.setting}]`}`;
};

const flagRows = (flags: Flags): ReadonlyArray<string> =>
  Object.entries(flags).flatMap(([key, flag]) =>
    row(
      `  ${flag.short === undefined ? "   " : `-${flag.short},`} --${flagName(key)}${valueOf(flag)}`,
      flag.help + limitsOf(flag),
      30,
    ),
  );

/** The parts of a usage line: `[-hx] [-t VM] [--budget MIB | --blocks N] ... NAME`. */
export const synopsis = ({ actions, args, either = [], flags }: Command): ReadonlyArray<string> => {
  const all: Flags = { help: everywhere.help, ...flags };
  const entries = Object.entries(all);
  const letters = entries.flatMap(([, { short, type }]) =>
    type === "switch" && short !== undefined ? [short] : [],
  );
  const form = (key: string, flag: Flag) =>
    flag.short === undefined
      ? `--${flagName(key)}${valueOf(flag)}`
      : `-${flag.short}${valueOf(flag)}`;
  const others = entries.flatMap(([key, flag]) => {
    if (flag.type === "switch" && flag.short !== undefined) return [];
    const group = either.find((keys) => keys.includes(key));
    if (group === undefined) return [`[${form(key, flag)}]`];
    return group[0] === key ? [`[${group.map((one) => form(one, all[one]!)).join(" | ")}]`] : [];
  });
  const words = Object.values(args).map(({ label, least, most }) => {
    const shown = most > 1 ? `${label}...` : label;
    return least > 0 ? shown : `[${shown}]`;
  });
  return [
    `[-${letters.join("")}]`,
    ...others,
    ...(Object.keys(actions).length > 0 ? ["ACTION"] : words),
  ];
};

const usageRows = (command: Command): ReadonlyArray<string> => {
  const left = `usage: qbackup ${command.name}`;
  // What a bracket holds stays together.
  const parts = synopsis(command).map((part) => part.replaceAll(" ", "\0"));
  return row(left, parts.join(" "), left.length + 1).map((line) => line.replaceAll("\0", " "));
};

const settingRows = (flags: Flags): ReadonlyArray<string> =>
  Object.values(flags).every(({ setting }) => setting === undefined)
    ? []
    : [
        "",
        "Names in brackets are settings that stand for the flag: in the environment, or",
        "assigned in ~/.bash_profile, ~/.bashrc or ~/.profile.",
      ];

/** Any command may end with these. */
const always: ReadonlySet<string> = new Set(["done", "bug", "usage"]);
export const exitNames = Object.keys(exitCodes) as ReadonlyArray<keyof typeof exitCodes>;

/** A command's exit codes, and what they mean in it. */
export const exitsOf = ({ exits }: Command): ReadonlyArray<readonly [number, string]> =>
  exitNames.flatMap((name) => {
    const meaning = exits[name] ?? (always.has(name) ? exitCodes[name][1] : undefined);
    return meaning === undefined ? [] : [[exitCodes[name][0], meaning] as const];
  });

/** `qbackup COMMAND -h`. */
export const commandHelp = (command: Command): string =>
  [
    ...usageRows(command),
    "",
    command.about,
    ...(Object.keys(command.actions).length === 0
      ? []
      : [
          "",
          ...Object.entries(command.actions).flatMap(([name, { help, words }]) =>
            row(`  ${name} ${words}`.trimEnd(), help, 18),
          ),
        ]),
    "",
    ...flagRows({ ...command.flags, help: everywhere.help }),
    ...settingRows(command.flags),
    "",
    "exit codes:",
    ...exitsOf(command).flatMap(([code, meaning]) => row(`  ${code}`, meaning, 5)),
    "",
  ].join("\n");

/** `qbackup -h`. Without a command the first one is meant, so its flags are here. */
export const programHelp = (commands: ReadonlyArray<Command>): string =>
  [
    ...wrap(
      `qbackup ${version}: sends a Qubes backup to a server, and proves it whole there.`,
      columns,
    ),
    "",
    "usage: qbackup [-hxo] [-f PREFIX] [-t VM] [-p FILE] [VMS...]",
    "       qbackup COMMAND [FLAGS] [ARGUMENTS]",
    "       qbackup COMMAND -h",
    "",
    "commands:",
    ...commands.flatMap(({ name, summary }) => row(`  ${name}`, summary, 18)),
    "",
    "VMS are the qubes to back up; without any, those that qvm-backup includes by",
    "default. One with the same name as a command: qbackup run VMS...",
    "",
    ...flagRows({ ...commands[0]!.flags, ...everywhere }),
    ...settingRows(commands[0]!.flags),
    "",
    "exit codes:",
    ...exitTable(exitNames).map((line) => `  ${line}`),
    "",
    "example: qbackup -f laptop- -t backups-vm -p /etc/bkp-passphrase.txt vault work",
    "the runs of cron and timers: journalctl -t qbackup",
    "",
  ].join("\n");
