/**
 * The server's log: journald, over the stream socket that systemd-cat(1) uses too, because node has no
 * unix datagrams; or, where nobody listens there, `.qbackup/log` in the store. It is opened for
 * appending, so two sessions never write over each other.
 */
import * as Clock from "effect/Clock";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as fs from "node:fs";
import { connect } from "node:net";
import { homedir } from "node:os";
import { type Entry, Journal } from "#services/Journal";

const socket = "/run/systemd/journal/stdout";
/** How long journald may take. In milliseconds. */
const patience = 2000;
/** Bytes of one generation of the file. Two are kept. */
const generation = 8 * 2 ** 20;
/** Lines that strangers may bring about in a minute: else they could push out what they did before. */
const perMinute = 60;

/** journald's own header: identifier, unit, priority (6 is info), and four switches that are off. */
const header = (identifier: string): string => `${identifier}\n\n6\n0\n0\n0\n0\n`;

/** True once the line was handed over. */
const toJournald = (path: string, identifier: string, text: string): Effect.Effect<boolean> =>
  Effect.callback<boolean>((resume) => {
    const stream = connect(path);
    const done = (handed: boolean) => {
      stream.destroy();
      resume(Effect.succeed(handed));
    };
    stream.on("error", () => done(false));
    stream.on("connect", () => stream.end(`${header(identifier)}${text}\n`, () => done(true)));
    return Effect.sync(() => stream.destroy());
  }).pipe(Effect.timeoutOrElse({ duration: patience, orElse: () => Effect.succeed(false) }));

const { O_APPEND, O_CREAT, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } = fs.constants;

/** How many lines of this minute stand at the end of the file already. */
const linesOf = (fd: number, size: number, minute: string): number => {
  const tail = Buffer.alloc(Math.min(size, 65_536));
  const n = fs.readSync(fd, tail, 0, tail.length, size - tail.length);
  return tail.toString("latin1", 0, n).match(new RegExp(`^${minute}`, "gm"))?.length ?? 0;
};

/** Appends the line to the log of a store, if that is this account's; never makes the store itself. */
const toFile = (root: string, { text, weighty }: Entry, now: string): void => {
  const opened: Array<number> = [];
  const open = (path: string, flags: number) => {
    const fd = fs.openSync(path, flags | O_NOFOLLOW, 0o600);
    opened.push(fd);
    return fd;
  };
  try {
    const own = open(`${root}/.qbackup`, O_RDONLY | O_DIRECTORY);
    // What root wrote here, the account could not append to.
    if (fs.fstatSync(own).uid !== process.getuid!()) return;
    const path = `/proc/self/fd/${own}/log`;
    const appending = O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK;
    let fd = open(path, appending);
    const stat = fs.fstatSync(fd);
    if (!stat.isFile()) return;
    const minute = now.slice(0, 16);
    const lines = linesOf(fd, stat.size, minute);
    if (weighty !== true && lines >= perMinute) return;
    if (stat.size >= generation) {
      // Another session may have done it just now.
      if (fs.lstatSync(path).ino === stat.ino) fs.renameSync(path, `${path}.1`);
      fd = open(path, appending);
    }
    const rest =
      weighty !== true && lines === perMinute - 1
        ? `${now} more lines of this minute are left out\n`
        : "";
    fs.writeSync(fd, `${now} ${text}\n${rest}`);
  } catch {
    // No store, no room, not permitted: the log must not fail what it tells of.
  } finally {
    for (const fd of opened) fs.closeSync(fd);
  }
};

export const serverJournal = (identifier: string, path = socket): Layer.Layer<Journal> =>
  Layer.succeed(Journal, {
    write: (entry) =>
      Effect.gen(function* () {
        if (yield* toJournald(path, identifier, entry.text)) return;
        const now = new Date(yield* Clock.currentTimeMillis).toISOString();
        const root = entry.store ?? (process.env["HOME"] || homedir());
        yield* Effect.sync(() => toFile(root, entry, now));
      }),
  });
