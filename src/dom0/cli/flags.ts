/** Flags and arguments that mean the same to several commands. */

export const to = {
  type: "text",
  short: "t",
  value: "VM",
  help: "the destination qube, which holds the ssh key",
  setting: "QBKP_DEST_VM",
} as const;

export const passphraseFile = {
  type: "text",
  short: "p",
  value: "FILE",
  help: "its first line is the passphrase of the backup",
  setting: "QBKP_PASS_FILE",
} as const;

export const keepRunning = {
  type: "switch",
  short: "x",
  help: "leave the destination qube running",
} as const;

export const expectServer = {
  type: "text",
  value: "HEX",
  help: "take no server whose key has another fingerprint",
} as const;

export const expectEvery = {
  type: "text",
  value: "TIME",
  help: "promise the next archive of these qubes within this time: 36h, 8d",
  setting: "QBKP_EXPECT_EVERY",
} as const;

export const json = { type: "switch", help: "for programs" } as const;

/** Of an archive whose filter qvm-backup-restore does not know (docs/qubes.md, Restoring). */
export const compressionFilter = {
  type: "text",
  short: "Z",
  value: "PROGRAM",
  help: "what unpacks it, as in qvm-backup-restore",
} as const;

/** The archive that is meant. */
export const archive = {
  label: "NAME",
  least: 1,
  most: 1,
  hint: '"qbackup list" shows the names.',
} as const;

/** Minutes in a month: a limit beyond that is a slip. */
export const month = 43_200;

export const alarmAfter = {
  type: "count",
  value: "DAYS",
  least: 1,
  most: 3650,
  unit: "days",
  default: 30,
  setting: "QBKP_ALARM_AFTER",
  help: "an alarm when nothing was read back for so long",
} as const;

export const waitFor = {
  type: "count",
  value: "HOURS",
  least: 0,
  most: 168,
  unit: "hours",
  help: "how long to wait for another run to end; 12 where there is no terminal, else 0",
} as const;

/** How long `tool` may be silent. */
export const qubesTimeout = <const Tool extends string>(tool: Tool) =>
  ({
    type: "count",
    value: "MIN",
    least: 1,
    most: month,
    unit: "minutes",
    default: 60,
    help: `give up after so long without a sign of ${tool}`,
  }) as const;
