/** Settings by name, from the environment or from assignments in the user's shell files. */
import { Context, type Effect, Schema } from "effect";

/** An assignment that is not a literal, so cannot be read without running the file; or a file that cannot be read. */
export class SettingsError extends Schema.TaggedError<SettingsError>()("SettingsError", {
  name: Schema.String,
  file: Schema.String,
  /** 0: it is the file itself. */
  line: Schema.Int,
  reason: Schema.String,
}) {
  override get message(): string {
    const place = this.line > 0 ? `${this.file}:${this.line}` : this.file;
    return `${place}: cannot read ${this.name}: ${this.reason}`;
  }
}

export class Settings extends Context.Service<
  Settings,
  {
    /**
     * The environment first, then `~/.bash_profile`, `~/.bashrc`, `~/.profile`: the first file that
     * assigns it, its last assignment. Undefined when nobody sets it, or sets it to nothing.
     */
    readonly get: (name: string) => Effect.Effect<string | undefined, SettingsError>;
  }
>()("qbackup/services/Settings") {}
