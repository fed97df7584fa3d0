/** How a run fails: an exit code's name, a line for a person, and what to do about it. */
import { Schema } from "effect";
import type { Failure } from "#src/wire/exit";

export class RunFailed extends Schema.TaggedError<RunFailed>()("RunFailed", {
  exit: Schema.Literals(["bug", "usage", "qubes", "link", "refused", "integrity", "locked"]),
  /** One line, printable, no stop. */
  message: Schema.String,
  hint: Schema.optionalKey(Schema.String),
}) {}

export const failed = (exit: Failure, message: string, hint?: string): RunFailed =>
  new RunFailed({ exit, message, ...(hint === undefined ? {} : { hint }) });
