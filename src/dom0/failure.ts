/** How a run fails: an exit code's name, a line for a person, and what to do about it. */
import { Schema } from "effect";
import type { Failure } from "#src/say/exit";
import { Line, line } from "#src/say/shown";

export class RunFailed extends Schema.TaggedError<RunFailed>()("RunFailed", {
  exit: Schema.Literals(["bug", "usage", "qubes", "link", "refused", "integrity", "locked"]),
  /** No stop at its end. */
  message: Line,
  hint: Schema.optionalKey(Line),
  /**
   * carrier: it, or the way to the server, does not work at all, which says nothing of an archive.
   * decryption: what lies there is what was backed up, but that was broken when it was made.
   * refusal: the server has said no, so that there is nothing left to ask it.
   * tap: qubesd hands over no files, so that only qvm-backup itself can make an archive of them.
   */
  about: Schema.optionalKey(Schema.Literals(["carrier", "decryption", "refusal", "tap"])),
  /**
   * Of a refusal: it is of what was sent, which no other time makes better. It may be `other` than dom0 had
   * it, so that it may be right if it is sent anew; or `wrong`.
   */
  content: Schema.optionalKey(Schema.Literals(["other", "wrong"])),
  /** Where it is only that members of an archive did not come back as they were: their digests. */
  members: Schema.optionalKey(Schema.Array(Schema.String)),
}) {}

/** Whatever other programs said in these texts is cleaned here. */
const cleaned = (message: string, hint: string | undefined) => ({
  message: line`${message}`,
  ...(hint === undefined ? {} : { hint: line`${hint}` }),
});

/** For what somebody asked for wrongly there is always a word on how it is right. */
export function failed(exit: Failure, message: string, hint: string): RunFailed;
export function failed(exit: Exclude<Failure, "usage">, message: string, hint?: string): RunFailed;
export function failed(exit: Failure, message: string, hint?: string): RunFailed {
  return new RunFailed({ exit, ...cleaned(message, hint) });
}

/** As `failed`, where the carrier cannot do anything for anybody. */
export const unable = (exit: Failure, message: string, hint?: string): RunFailed =>
  new RunFailed({ exit, ...cleaned(message, hint), about: "carrier" });

/** As `failed`, where the server has decided. */
export const rejected = (
  exit: Failure,
  message: string,
  hint?: string,
  content?: RunFailed["content"],
): RunFailed =>
  new RunFailed({
    exit,
    ...cleaned(message, hint),
    about: "refusal",
    ...(content === undefined ? {} : { content }),
  });

/** As it was, but that the server may decide otherwise yet. */
export const undecidedYet = ({ exit, hint, message }: RunFailed): RunFailed =>
  new RunFailed({ exit, message, ...(hint === undefined ? {} : { hint }) });

/** A member does not decrypt with the passphrase that its header was opened with. */
export const undecryptable = (message: string, hint: string): RunFailed =>
  new RunFailed({ exit: "integrity", ...cleaned(message, hint), about: "decryption" });

/** Nothing of the first file came, and qvm-backup is past it, or has failed there. */
export const untapped = (): RunFailed =>
  new RunFailed({
    exit: "qubes",
    ...cleaned(
      "qubesd hands over no files here",
      "--format qvm-backup needs none; journalctl -u qubesd may say why",
    ),
    about: "tap",
  });

/** Members of an archive, by their digests, did not come back as they were; all else may have. */
export const spoiled = (message: string, members: ReadonlyArray<string>): RunFailed =>
  new RunFailed({ exit: "integrity", ...cleaned(message, undefined), members });

/** The later one, with the members of both where it is only of those. */
export const together = (before: RunFailed | undefined, failure: RunFailed): RunFailed =>
  before?.members === undefined || failure.members === undefined
    ? failure
    : spoiled(failure.message, [...new Set([...before.members, ...failure.members])]);

/** What to do next where the failure itself has nothing better to say. */
const lastResort = {
  // Of the carrier's set-up: what was asked for wrongly here has a word of its own.
  usage: "mend what it says in the carrier qube, and run again",
  bug: "report it with this line; what is on the server is not touched by it",
  qubes: "mend what Qubes says, there or in journalctl -b, and run again",
  link: "see whether the carrier qube has a network and the server answers; then run again",
  refused: "the server's owner can see why",
  integrity: "do not rely on it: look at the carrier qube, ask the server's owner, and run again",
  locked: "wait until the other run is over",
} as const satisfies { readonly [F in Failure]: string };

/** What is said to do next about a failure. */
export const nextStep = ({ exit, hint, message }: Omit<RunFailed, "about" | "members">): Line =>
  hint ??
  (message.endsWith(" is not installed, or not in PATH")
    ? line`qbackup is for dom0, where Qubes' own tools are: see PATH, of cron's too`
    : line`${lastResort[exit]}`);

/** What is said to do about a defect of the program. */
export const aboutBug = line`${lastResort.bug}`;
