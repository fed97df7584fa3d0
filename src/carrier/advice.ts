/** What a person is told when ssh did not do it: the line, and what to do next. */
import type { SshReason } from "#services/SshTransport";

export interface Advice {
  readonly error: string;
  readonly hint: string;
}

/**
 * `destination` has passed isDestination, so it can be shown inside a command to type. dom0 cuts
 * lines of other qubes at 200 characters, the program's name in front included.
 */
export const advice = (
  reason: Exclude<SshReason, "done" | "no-ssh"> | "no-shell",
  destination: string,
): Advice => {
  switch (reason) {
    case "host-key-unknown":
      return {
        error: `ssh does not know the host key of ${destination}, so nothing was sent`,
        hint: `run "ssh ${destination}" in this qube, compare the fingerprint with the server owner's, answer yes`,
      };
    case "host-key-changed":
      return {
        error: `the host key of ${destination} is not the one that ssh knows, so nothing was sent`,
        hint: "somebody may be in between. Ask the server's owner; only for a new key, ssh-keygen -R the old one in this qube",
      };
    case "refused-key":
      return {
        error: `${destination} does not accept this qube's ssh key`,
        hint: "the public key belongs into ~/.ssh/authorized_keys of the account; the private one, without a passphrase, into ~/.ssh here",
      };
    case "unreachable":
      return {
        error: `ssh could not connect to ${destination}`,
        hint: `check SSH_CONN and the network of this qube; "ssh ${destination}" here shows the same failure`,
      };
    case "no-shell":
      return {
        error: `${destination} does not run qbackup-shell`,
        hint: "on the server: make server user=ACCOUNT, and see what it says of an account that was there before",
      };
    case "lost":
      return {
        error: `the connection to ${destination} broke off`,
        hint: "an upload is not lost by that: dom0 connects again and goes on from what the server has on disk",
      };
  }
};
