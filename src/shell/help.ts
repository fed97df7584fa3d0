import { exitTable } from "#src/say/exit";
import { version } from "#src/say/version";
import { verbs } from "#src/wire/request";

export const help = `qbackup-shell ${version}: keeps Qubes backups that come through ssh, and runs nothing.

sshd must force it on the account (ForceCommand, or command="..." in authorized_keys); "make server"
sees to that. As a login shell alone it serves nothing.
  qbackup-shell [--root DIR] [--quota SIZE] [--no-init] [--allow VERB,VERB...] [--floor SIZE]
                [--allow-unsigned]
      --root DIR        the directory to store into, absolute; the account's home if not given
      --quota SIZE      bytes that it may hold; K, M, G, T are powers of 1024
      --no-init         refuse a store that has no identity (its disk may not be mounted), make none
      --allow VERB,...  what a client may ask for: ${verbs.filter((verb) => verb !== "about").join(", ")}; all of it if
                        not given. about is answered in any case
      --floor SIZE      bytes a second, over an hour, below which a link is given up: 8K if not given
      --allow-unsigned  take archives that nobody signed, too, where the store has signers
On the server itself, as root:
  runuser -u ACCOUNT -- qbackup-shell identity --root DIR
      shows the fingerprint to compare with what qbackup shows in dom0; makes none
  runuser -u ACCOUNT -- qbackup-shell init --root DIR
      makes the identity of a new store, and shows it
  runuser -u ACCOUNT -- qbackup-shell signers [add KEY|remove KEY] --root DIR
      shows the fingerprints and keys whose uploads the store takes, or changes them: KEY is what
      "qbackup key show" prints in dom0. Without any, the first dom0 that comes reserves the store; where
      the last one was removed, it takes no upload

exit codes:
${exitTable(["done", "bug", "usage", "link", "refused", "integrity"])
  .map((line) => `  ${line}`)
  .join("\n")}
`;
