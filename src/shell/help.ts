import { exitTable } from "#src/say/exit";
import { version } from "#src/say/version";

export const help = `qbackup-shell ${version}: keeps Qubes backups that come through ssh, and runs nothing.

sshd must force it on the account (ForceCommand, or command="..." in authorized_keys); "make server"
sees to that. As a login shell alone it serves nothing.
  qbackup-shell [--root DIR] [--quota SIZE] [--no-init]
      --root DIR    the directory to store into, absolute; the account's home if not given
      --quota SIZE  bytes that it may hold; K, M, G, T are powers of 1024
      --no-init     refuse a store that has no identity (its disk may not be mounted), make none
On the server itself, as root:
  runuser -u ACCOUNT -- qbackup-shell identity --root DIR
      shows the fingerprint to compare with what qbackup shows in dom0; makes none
  runuser -u ACCOUNT -- qbackup-shell init --root DIR
      makes the identity of a new store, and shows it

exit codes:
${exitTable(["done", "bug", "usage", "link", "refused", "integrity"])
  .map((line) => `  ${line}`)
  .join("\n")}
`;
