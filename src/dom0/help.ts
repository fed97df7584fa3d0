/** What `qbackup -h` says. */
import { exitTable } from "#src/wire/exit";

export const version = "1.0.0";

export const help = `qbackup ${version}: sends a Qubes backup to a server through ssh, and proves that it arrived whole.

usage: qbackup [-hxo] [-f PREFIX] [-t VM] [-p FILE] [VMS...]
       qbackup run [the same]        for a qube that is called like a command
       qbackup list [-t VM] [--json] [--receipts] [PREFIX]
       qbackup verify [-t VM] [--on-server | --decrypt] [--force] NAME
       qbackup audit [-t VM] [--blocks N | --budget MIB] [NAME...]
       qbackup ledger head | check HEAD | rebuild | forget NAME...
       qbackup restore [-x] [-t VM] [-p FILE] [--verify-only] NAME [VMS...]
       qbackup recovery-sheet [-t VM]
       qbackup VERB -h               more about one of them

VMS are the qubes to back up; without any, those that qvm-backup includes by default.

  -f, --prefix PREFIX         before the name, which is the local time: PREFIX2026-01-31T0400.backup
                              it may contain a directory that the server has: appvms/my-
  -t, --to VM                 the destination qube, which holds the ssh key   [QBKP_DEST_VM]
  -p, --passphrase-file FILE  its first line is the passphrase of the backup  [QBKP_PASS_FILE]
  -x, --keep-running          leave the destination qube running
  -o, --terminal              log to the terminal instead of the journal
      --include-dom0          back up the home directory of dom0 as well
      --window MIB            how much may be under way, unacknowledged: 16 or more (64)
      --link-timeout MIN      give up after so long without progress on the link (30)
      --qubes-timeout MIN     give up after so long without a sign of qvm-backup (60)
  -h, --help                  this text
      --version               the version

Settings in brackets come from the environment, or from an assignment in ~/.bash_profile, ~/.bashrc
or ~/.profile.

exit codes:
${exitTable.map((line) => `  ${line}`).join("\n")}

example: qbackup -f laptop- -t backups-vm -p /etc/bkp-passphrase.txt vault work
the runs of cron and timers: journalctl -t qbackup
`;

const sections: Readonly<Record<string, string>> = {
  list: `usage: qbackup list [-t VM] [-x] [--json] [--receipts] [PREFIX]

Shows what the server says it has, held against the ledger in dom0. PROOF is one of:

  proven      the ledger has the server's signed receipt for this content
  rebuilt     so it has, but it took it from the server after a loss: the server's word
  unknown     the server calls it verified, but this ledger has never heard of it
  unverified  nobody vouches for it: an archive of the old scripts
  changed     the ledger has this name with something else
  damaged     something else came back when it was last read (verify, audit)
  missing     the ledger has it, the server does not

READ BACK is when all of it last came back and was proven, or so many of its blocks. The last three
end with exit code 6. What the server says it has, it may have lost all the same: verify and audit
find that.

  --receipts  fetch every receipt too, and hold it against the ledger's (a call for each archive)
  --json      for programs
`,
  restore: `usage: qbackup restore [-x] [-t VM] [-p FILE] [--verify-only] [OPTIONS] NAME [VMS...]

Brings qubes of the archive NAME back through qvm-backup-restore; without VMS, all that are in it. Each
block is proven against the ledger before a byte of it is used. A qube that exists is never
overwritten. Exit code 3, with the qubes' names, when one of them did not come back whole, or not with
all of its settings.

  --verify-only         decrypt everything, restore nothing
  --exclude VM          not this one; may be repeated
  --skip-dom0-home      not the home directory of dom0
  --rename-conflicting  qubes that exist here come back under other names
  --skip-conflicting    qubes that exist here are left out; otherwise nothing at all is restored
  --ignore-missing      take the defaults for templates and netvms that are not here
  --skip-broken         leave out qubes whose template or netvm is not here
  --ignore-username-mismatch, --ignore-size-limit, -Z PROGRAM   as in qvm-backup-restore
  --force               an archive that the ledger does not know, on the server's word
  --paranoid            extract in a disposable, which fetches the archive by itself: dom0 parses
                        nothing of it, and proves nothing of it; never the home of dom0
  --qubes-timeout MIN   give up after so long without a sign of qvm-backup-restore (60)
`,
  verify: `usage: qbackup verify [-t VM] [-x] [--json] [--on-server | --decrypt] [--force] NAME

Reads the archive back, proves each block against the tree hash in the ledger, and checks that it is
complete: every qube that was asked for, every member. So is what the server would need to replace a
lost ledger: its record of the archive. Nothing is stored. A link that breaks is made again. Exit
code 0 only when all is proven, 6 when something else came back.

  --on-server  the server reads it instead: quick, finds decay on its disk, proves nothing against a
               server that lies
  --decrypt    decrypt it too, with qvm-backup-restore --verify-only and the passphrase of -p FILE
  --force      for an archive that the ledger does not know: hold it against the server's receipt
  --json       for programs
`,
  audit: `usage: qbackup audit [-t VM] [-x] [--json] [--blocks N | --budget MIB] [NAME...]

Fetches blocks of 1 MiB, chosen at random here, and proves each against the ledger. 459 of them find
a loss of 1 % with a certainty of 99 %, whatever the size. NAMEs are archives; without any, all of
the ledger share the budget, those first that were not read for longest.

  --budget MIB  blocks in all (459), spread by size, one at least of each archive
  --blocks N    blocks of each archive, instead
  --json        for programs
`,
  ledger: `usage: qbackup ledger head
       qbackup ledger check HEAD
       qbackup ledger rebuild [-t VM] [-x]
       qbackup ledger forget [-t VM] NAME...

head     the ledger's last line in a few letters, to be written on paper
check    is the line on paper still where it was, and everything before it?
rebuild  adds what the server has receipts for and the ledger does not: after a loss of the ledger.
         Such lines are marked; they say what the server says. Of a damaged ledger it keeps what can
         be read
forget   these archives were removed from the server on purpose: list and audit do not miss them
`,
  "recovery-sheet": `usage: qbackup recovery-sheet [-t VM]

Prints one page for a drawer far from this machine: what a restore needs, and how it is done. The
passphrase is not on it, only a line to write where it is kept. Print it anew now and then.
`,
};

/** What belongs to these arguments: `qbackup VERB -h`, `qbackup help VERB`, or the whole. */
export const helpFor = ([first, second]: ReadonlyArray<string>): string =>
  new Map(Object.entries(sections)).get((first === "help" ? second : first) ?? "") ?? help;
