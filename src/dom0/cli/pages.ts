/** Files made from the commands, which are installed beside the program: `npm run docs` writes them. */
import { exitTable } from "#src/say/exit";
import { version } from "#src/say/version";
import { everywhere } from "./argv.ts";
import { type Command, type Flag, type Flags, flagName } from "./command.ts";
import { exitNames, exitsOf, limitsOf, synopsis, valueOf } from "./help.ts";

/** Text as roff reads it. A hyphen is a minus, so that what is copied from the page can be typed. */
const roff = (text: string): string =>
  text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll(/^([.'])/gm, "\\&$1");

/** Paragraphs; one whose lines are all indented stays as it is. */
const paragraphs = (text: string): ReadonlyArray<string> =>
  text.split("\n\n").flatMap((paragraph, i) => {
    const lines = paragraph.split("\n");
    return [
      ...(i === 0 ? [] : [".PP"]),
      ...(lines.every((line) => line.startsWith("  "))
        ? [".nf", ...lines.map(roff), ".fi"]
        : [roff(lines.join(" "))]),
    ];
  });

const term = (words: string, text: string): ReadonlyArray<string> => [
  ".TP",
  `.B ${roff(words)}`,
  roff(text),
];

const flagTerms = (flags: Flags): ReadonlyArray<string> =>
  Object.entries(flags).flatMap(([key, flag]) => {
    const letter = flag.short === undefined ? "" : `-${flag.short}, `;
    return term(`${letter}--${flagName(key)}${valueOf(flag)}`, flag.help + limitsOf(flag));
  });

const settingTerms = (commands: ReadonlyArray<Command>): ReadonlyArray<string> => {
  const settings = new Map<string, string>();
  for (const { flags } of commands) {
    for (const [key, { setting }] of Object.entries(flags)) {
      if (setting !== undefined) settings.set(setting, `Stands for --${flagName(key)}.`);
    }
  }
  return [...settings].flatMap(([setting, text]) => term(setting, text));
};

/** qbackup(1). */
export const manual = (commands: ReadonlyArray<Command>): string =>
  [
    '.\\" Made from the commands of qbackup by "npm run docs".',
    `.TH QBACKUP 1 "" "qbackup ${version}"`,
    // What is copied from the page must be as it is: no hyphenation.
    ".nh",
    ".ad l",
    ".SH NAME",
    "qbackup \\- send a Qubes backup to a server through ssh, and prove that it arrived whole",
    ".SH SYNOPSIS",
    ".nf",
    roff("qbackup [-hxo] [-f PREFIX] [-t VM] [-p FILE] [VMS...]"),
    roff("qbackup COMMAND [FLAGS] [ARGUMENTS]"),
    ".fi",
    ".SH DESCRIPTION",
    roff(
      'Without a command, qbackup does what "qbackup run" does. The first argument alone decides: a qube with the same name as a command is backed up with "qbackup run VMS...".',
    ),
    ".SH COMMANDS",
    ...commands.flatMap((command) => [
      `.SS ${roff(`qbackup ${command.name}`)}`,
      roff(`qbackup ${command.name} ${synopsis(command).join(" ")}`),
      ".PP",
      ...paragraphs(command.about),
      ...Object.entries(command.actions).flatMap(([name, { help, words }]) =>
        term(`${name} ${words}`.trimEnd(), help),
      ),
      ...flagTerms(command.flags),
      ".PP",
      "Exit status:",
      ...exitsOf(command).flatMap(([code, meaning]) => term(String(code), meaning)),
    ]),
    ".SS Every command",
    ...flagTerms(everywhere),
    ".SH ENVIRONMENT",
    roff(
      "From the environment, or from an assignment in ~/.bash_profile, ~/.bashrc or ~/.profile, whose value stands there as it is:",
    ),
    ...settingTerms(commands),
    ".SH EXIT STATUS",
    ...exitTable(exitNames).flatMap((line) => {
      const [code = "", text = ""] = line.split("  ");
      return term(code, text);
    }),
    ".SH FILES",
    ...term(
      "~/.local/state/qbackup, $XDG_STATE_HOME/qbackup",
      "The ledger of the backups that were proven, and the keys of the servers.",
    ),
    ".SH EXAMPLES",
    ".nf",
    roff("qbackup -o -f laptop- -t backups-vm -p /etc/bkp-passphrase.txt vault work"),
    roff("qbackup list"),
    roff("qbackup restore --verify-only laptop-2026-01-31T0400.backup"),
    ".fi",
    ".SH SEE ALSO",
    ".BR qvm\\-backup (1),",
    ".BR qvm\\-backup\\-restore (1),",
    ".BR journalctl (1)",
    "",
  ].join("\n");

/** What a word can be completed with, by what stands for it in the help. */
const kinds = { VM: "qubes", VMS: "qubes", FILE: "files" } as const;
const kindOf = (label: string): string =>
  Object.hasOwn(kinds, label) ? kinds[label as keyof typeof kinds] : "nothing";

const forms = ([key, { short }]: readonly [string, Flag]): ReadonlyArray<string> => [
  ...(short === undefined ? [] : [`-${short}`]),
  `--${flagName(key)}`,
];

/** Every flag that takes a value, by what it takes; a letter means the same wherever it is. */
const valueCases = (commands: ReadonlyArray<Command>): ReadonlyArray<string> => {
  const by = new Map<string, Set<string>>();
  for (const flag of commands.flatMap(({ flags }) => Object.entries(flags))) {
    if (flag[1].type === "switch") continue;
    const kind = kindOf(flag[1].value);
    by.set(kind, new Set([...(by.get(kind) ?? []), ...forms(flag)]));
  }
  return [...by].map(([kind, words]) => `    ${[...words].join("|")}) _qbackup_${kind}; return ;;`);
};

/** For bash-completion, which loads it by the name of the program. */
export const completion = (commands: ReadonlyArray<Command>): string => {
  const names = commands.map(({ name }) => name);
  return [
    '# bash completion of qbackup; made from its commands by "npm run docs".',
    "_qbackup_nothing() { COMPREPLY=(); }",
    // compgen expands its list once more: so it gets the name of a variable, and no words.
    "_qbackup_words() { local list=$*; mapfile -t COMPREPLY < <(compgen -W '$list' -- \"$word\"); }",
    '_qbackup_qubes() { _qbackup_words "$@" "$(qvm-ls --raw-list 2>/dev/null)"; }',
    '_qbackup_files() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); }',
    "_qbackup() {",
    '  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=" "',
    '  [ "$COMP_CWORD" -eq 1 ] || command=${COMP_WORDS[1]}',
    // As bash splits --to=VM.
    '  [ "$word" != = ] || word=',
    '  [ "$before" != = ] || before=${COMP_WORDS[COMP_CWORD - 2]}',
    '  case "$before" in',
    ...valueCases(commands),
    "  esac",
    '  case "$command:$word" in',
    ...[...commands.slice(1), commands[0]!].map((command, i) => {
      const words = Object.entries<Flag>({ ...command.flags, ...everywhere }).flatMap(forms);
      // Without a command it is the first one.
      const pattern = i === names.length - 1 ? "*:-*" : `${command.name}:-*`;
      return `    ${pattern}) _qbackup_words ${words.join(" ")} ;;`;
    }),
    `    " :"*) _qbackup_qubes ${names.join(" ")} help ;;`,
    `    help:*) _qbackup_words ${names.join(" ")} ;;`,
    ...commands.slice(1).map((command) => {
      const actions = Object.keys(command.actions);
      const kind = kindOf(Object.values(command.args).at(-1)?.label ?? "");
      const what = actions.length > 0 ? `words ${actions.join(" ")}` : kind;
      return `    ${command.name}:*) _qbackup_${what} ;;`;
    }),
    "    *) _qbackup_qubes ;;",
    "  esac",
    "}",
    "complete -F _qbackup qbackup",
    "",
  ].join("\n");
};
