/** The two ways in which a request ends without being done, and their exit codes. */
import { Data, Effect, Predicate } from "effect";
import type { SafeFsError } from "#services/SafeFs";
import { exitCode } from "#src/say/exit";
import type { Code, Failed } from "#src/wire/reply";

/** The server will not do it. `message` is a sentence of ours, with nothing of the client's in it. */
export class Refused extends Data.TaggedError("Refused")<{
  readonly code: Code;
  readonly message: string;
  /** What the reply says besides. */
  readonly more?: Pick<Failed, "ticket" | "signature" | "since" | "why">;
}> {}

/** What a client is told. */
export const failed = ({ code, message, more }: Refused): Failed => ({
  type: "error",
  code,
  message,
  ...more,
});

/** Nobody is there any more to answer to. `stepDown`: another connection took the upload over. */
export class LinkLost extends Data.TaggedError("LinkLost")<{
  readonly why: string;
  readonly stepDown?: boolean;
}> {}

export type Failure = Refused | LinkLost | SafeFsError;

export const refuse = (
  code: Code,
  message: string,
  more?: Refused["more"],
): Effect.Effect<never, Refused> =>
  Effect.fail(new Refused({ code, message, ...(more === undefined ? {} : { more }) }));

/** Which limit leaves no room. */
export const noRoom = (short: "quota" | "no-space"): Effect.Effect<never, Refused> =>
  short === "quota"
    ? refuse("quota", "the store has no room left for this account")
    : refuse("no-space", "the server's disk is nearly full");

/** What the system calls it, as `: EIO`: for its owner, who can look it up. */
const errno = (cause: unknown): string => {
  const code = Predicate.hasProperty(cause, "code") ? cause.code : undefined;
  return typeof code === "string" && /^E[A-Z0-9]+$/.test(code) ? `: ${code}` : "";
};

/** What a client is told of a file error that no caller had something better to say about. */
export const refusalOf = ({ cause, operation, reason }: SafeFsError): Refused => {
  switch (reason) {
    case "no-space":
      return new Refused({ code: "no-space", message: "the server's disk is full" });
    case "not-permitted":
      return new Refused({
        code: "not-permitted",
        message: `the server's account may not do that in the store (${operation})`,
      });
    case "read-only":
      return new Refused({ code: "internal", message: "the server's disk is mounted read-only" });
    case "too-many-files":
      return new Refused({
        code: "internal",
        message: "the server has too many files open (see ulimit -n of the account)",
      });
    case "unsupported":
      return new Refused({
        code: "unsupported",
        message:
          operation === "root"
            ? "the server has no /proc, without which it cannot open files safely"
            : "the server's file system cannot do it (hard links are needed)",
      });
    case "too-large":
      return new Refused({
        code: "no-space",
        message:
          "the archive is larger than the server's file system, or its limit for files, allows",
      });
    case "exists":
    case "not-found":
    case "not-plain":
      if (operation === "root") {
        return new Refused({
          code: "internal",
          message: "the store's directory is not there: is its disk mounted?",
        });
      }
      return new Refused({
        code: "internal",
        message: `the store is not as it should be (${operation}: ${reason})`,
      });
    case "io":
      return new Refused({
        code: "internal",
        message: `the server's disk failed (${operation}${errno(cause)})`,
      });
  }
};

export const exitOf = (code: Code): number => {
  switch (code) {
    case "bad-request":
    case "bad-name":
      return exitCode("usage");
    case "incomplete":
    case "damaged":
    case "digest-mismatch":
    case "signature":
      return exitCode("integrity");
    default:
      return exitCode("refused");
  }
};
