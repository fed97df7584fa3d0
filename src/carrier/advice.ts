/** What a person is told when ssh did not do it: the line, what to do next, and what it is a matter of. */
import type { SshReason } from "#services/SshTransport";
import { type Line, line, printable } from "#src/say/shown";

export interface Advice {
  /** usage: no second try mends it; integrity: somebody may be in between; link: it may go better. */
  readonly exit: "usage" | "integrity" | "link";
  readonly error: Line;
  /** Says "this qube", in whose place dom0 puts its name. */
  readonly hint: Line;
}

/** Of ssh's own last line: dom0 cuts lines of other qubes at 200 characters, its prefix included. */
const quoted = 90;
const last = (said: ReadonlyArray<string>): string =>
  said.length === 0 ? "" : `: ${printable(said.at(-1)!.replace(/^ssh: /, ""), quoted)}`;

/** `destination` has passed isDestination, so it can be shown inside a command to type. */
export const advice = (
  reason: Exclude<SshReason, "done" | "no-ssh"> | "no-shell",
  destination: string,
  said: ReadonlyArray<string> = [],
): Advice => {
  switch (reason) {
    case "host-key-unknown":
      return {
        exit: "usage",
        error: line`ssh does not know the host key of ${destination}, so nothing was sent`,
        hint: line`in this qube run "ssh ${destination}", compare the fingerprint with the server owner's, answer yes`,
      };
    case "host-key-changed":
      return {
        exit: "integrity",
        error: line`the host key of ${destination} is not the one that ssh knows, so nothing was sent`,
        hint: line`somebody may be in between. Ask the server's owner; only for a new key, ssh-keygen -R the old one in this qube`,
      };
    case "refused-key":
      return {
        exit: "usage",
        error: line`${destination} does not accept the ssh key of this qube`,
        hint: line`add the public key to ~/.ssh/authorized_keys of the account; the private one, without a passphrase, is in ~/.ssh of this qube`,
      };
    case "misconfigured":
      return {
        exit: "usage",
        error: line`ssh cannot work as it is set up${last(said)}`,
        hint: line`in this qube run "ssh ${destination}": it shows the same failure; see ~/.ssh/config and its permissions`,
      };
    case "unreachable":
      return {
        exit: "link",
        error: line`ssh could not connect to ${destination}${last(said)}`,
        hint: line`check SSH_CONN and the network of this qube; "ssh ${destination}" there shows the same failure`,
      };
    case "no-shell":
      return {
        exit: "usage",
        error: line`${destination} does not run qbackup-shell${last(said)}`,
        hint: line`on the server: make server user=ACCOUNT, and see what it says of an account that was there before`,
      };
    case "lost":
      return {
        exit: "link",
        error: line`the connection to ${destination} broke off`,
        hint: line`an upload is not lost by that: dom0 connects again and goes on from what the server has on disk`,
      };
  }
};
