/**
 * Desktop notifications through notify-send, also from cron and from root's timers, which know
 * neither a session bus nor a display.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { existsSync, lstatSync, readdirSync, statSync } from "node:fs";
import { type Argv, type Env, run } from "#layers/process/Child";
import { Notifier } from "#services/Notifier";
import { printable } from "#src/say/shown";

/** The first user with a session bus: /run/user/UID belongs to them, and bus in it is a socket. */
const someUser = (runUser: string): { readonly uid: number; readonly gid: number } | undefined => {
  const names = existsSync(runUser) ? readdirSync(runUser) : [];
  const uids = names
    .filter((name) => /^[1-9][0-9]{3,8}$/.test(name))
    .map(Number)
    .sort((a, b) => a - b);
  for (const uid of uids) {
    try {
      const { gid, uid: owner } = statSync(`${runUser}/${uid}`);
      if (owner === uid && lstatSync(`${runUser}/${uid}/bus`).isSocket()) return { uid, gid };
    } catch {
      // Gone again, or no bus.
    }
  }
  return undefined;
};

/** What to run, and with what environment. */
export const command = (
  words: readonly [urgency: string, summary: string, body: string],
  options: { readonly env: Env; readonly uid: number; readonly runUser?: string },
): { readonly argv: Argv; readonly env: Env } => {
  const [urgency, summary, body] = words;
  const runUser = options.runUser ?? "/run/user";
  const send: Argv = [
    "notify-send",
    "--app-name=qbackup",
    `--urgency=${urgency}`,
    "--",
    printable(summary),
    printable(body, 1000),
  ];
  const env: Env = { ...options.env, DISPLAY: options.env["DISPLAY"] ?? ":0" };
  const bus = (uid: number) => ({
    ...env,
    XDG_RUNTIME_DIR: `${runUser}/${uid}`,
    DBUS_SESSION_BUS_ADDRESS: `unix:path=${runUser}/${uid}/bus`,
  });
  if (env["DBUS_SESSION_BUS_ADDRESS"] !== undefined) return { argv: send, env };
  if (options.uid !== 0) return { argv: send, env: bus(options.uid) };
  // root has no desktop, and a session bus refuses root: be the one whose desktop it is.
  const user = someUser(runUser);
  if (user === undefined) return { argv: send, env: bus(options.uid) };
  const as = ["--reuid", `${user.uid}`, "--regid", `${user.gid}`, "--clear-groups", "--"];
  return { argv: ["setpriv", ...as, ...send], env: bus(user.uid) };
};

/** Never fails, and takes 5 s at most. */
export const notifySend = (env?: Env): Layer.Layer<Notifier> =>
  Layer.succeed(Notifier, {
    notify: (...words) =>
      Effect.try(() => command(words, { env: env ?? process.env, uid: process.getuid!() })).pipe(
        Effect.flatMap(({ argv, env }) => run(argv, { limit: "5 seconds", env })),
        Effect.ignore,
      ),
  });
