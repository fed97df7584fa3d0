/** What `qbackup -h` says. */
import { exitTable } from "#src/wire/exit";

export const version = "1.0.0";

export const help = `qbackup ${version}: sends a Qubes backup to a server through ssh, and proves that it arrived whole.

usage: qbackup [-hxo] [-f PREFIX] [-t VM] [-p FILE] [VMS...]
       qbackup run [the same]        for a qube that is called like a command
       qbackup list [-t VM] [--json] [PREFIX]

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

list shows what is on the server, and for each archive: proven (the ledger here has the server's
signed receipt for it), unknown, unverified, changed or missing.

exit codes:
${exitTable.map((line) => `  ${line}`).join("\n")}

example: qbackup -f laptop- -t backups-vm -p /etc/bkp-passphrase.txt vault work
the runs of cron and timers: journalctl -t qbackup
`;
