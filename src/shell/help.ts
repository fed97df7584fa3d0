import { exitTable } from "#src/wire/exit";
import { version } from "#src/wire/version";

export const help = `qbackup-shell ${version}: keeps Qubes backups that come through ssh, and runs nothing.

As the login shell of an account it stores into the account's home. As a forced command
(ForceCommand, or command="..." in authorized_keys):
  qbackup-shell [--root DIR] [--quota SIZE]
      --root DIR    the directory to store into; absolute
      --quota SIZE  bytes that it may hold; K, M, G, T are powers of 1024
On the server itself, as the account:
  qbackup-shell identity [--root DIR]
      shows the fingerprint to compare with what qbackup shows in dom0

exit codes:
${exitTable(["done", "bug", "usage", "link", "refused", "integrity"])
  .map((line) => `  ${line}`)
  .join("\n")}
`;
