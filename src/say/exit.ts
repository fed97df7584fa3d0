/** Exit codes: an interface to scripts and timers. This is the one table; the help prints it. */
export const exitCodes = {
  done: [0, "done and proven"],
  bug: [1, "a bug in qbackup"],
  usage: [2, "usage or configuration"],
  qubes: [3, "Qubes failed (qvm-backup, the carrier), or left out a qube"],
  link: [4, "the link failed and could not be resumed"],
  refused: [5, "the server refused"],
  integrity: [6, "integrity: incomplete, or digest, receipt or key differs"],
  locked: [7, "another run holds the lock"],
} as const;

export type Failure = Exclude<keyof typeof exitCodes, "done">;
export const exitCode = (name: keyof typeof exitCodes): number => exitCodes[name][0];

/** The table as a person reads it, of the codes that a program has. */
export const exitTable = (names: ReadonlyArray<keyof typeof exitCodes>): ReadonlyArray<string> => [
  ...names.map((name) => `${exitCodes[name][0]}  ${exitCodes[name][1]}`),
  "129, 130, 143  interrupted by SIGHUP, SIGINT, SIGTERM",
];
