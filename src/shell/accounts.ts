/** The accounts of this machine that "make server" has set up, as their sshd drop-ins say. */
import { Effect } from "effect";
import { SafeFs } from "#services/SafeFs";
import { type Line, line } from "#src/say/shown";
import { onServer } from "./invocation.ts";
import { readText } from "#src/store/store";

const folder = "/etc/ssh/sshd_config.d";
/** In bytes; a drop-in has some 2,000. */
const limit = 16_384;
const dropIn = /^00-qbackup-([a-z_][a-z0-9_-]{0,31})\.conf$/;
const forced = /^\s*ForceCommand (\/[A-Za-z0-9._+@/-]+) --root (\/[A-Za-z0-9._+@/-]+)(?: |$)/m;

/** What to run, as root, in place of these words of qbackup-shell: a command for each backup account that there is. */
export const commands = (words: string): Effect.Effect<Line, never, SafeFs> =>
  Effect.gen(function* () {
    const directory = yield* (yield* SafeFs).root(folder);
    const found: Array<string> = [];
    for (const name of (yield* directory.names).toSorted()) {
      const account = dropIn.exec(name)?.[1];
      if (account === undefined) continue;
      const text = yield* Effect.flatMap(directory.open(name, "read"), (file) =>
        readText(file, limit),
      ).pipe(Effect.orElseSucceed(() => undefined));
      const [, program, store] = forced.exec(text ?? "") ?? [];
      if (program !== undefined) {
        found.push(`runuser -u ${account} -- ${program} ${words} --root ${store}`);
      }
    }
    return found;
  }).pipe(
    Effect.scoped,
    // No such directory, or it may not be read: then its owner has to fill in the names.
    Effect.orElseSucceed((): Array<string> => []),
    Effect.map(
      (found) => line`as root: ${found.length > 0 ? found.join("; or: ") : onServer(words)}`,
    ),
  );
