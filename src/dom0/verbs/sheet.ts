/** One page for the bad day: what a restore needs, for a drawer far from this machine. */
import { Clock, Effect } from "effect";
import { KnownServers } from "#services/KnownServers";
import type { Entry } from "#services/Ledger";
import { ReadBacks } from "#services/ReadBacks";
import { Reporter } from "#services/Reporter";
import { Signer } from "#services/Signer";
import { fingerprint } from "#src/proof/keys";
import { parseManifest } from "#src/proof/texts";
import { line, printable } from "#src/say/shown";
import { instantOf } from "#src/wire/names";
import { command } from "#src/dom0/cli/command";
import { isOfTest } from "#src/dom0/qube/throwaway";
import { destinationFor } from "#src/dom0/qube/destination";
import { to } from "#src/dom0/cli/flags";
import { onPaper } from "#src/dom0/books/head";
import { looked } from "#src/dom0/books/known";
import { counts } from "#src/dom0/books/noted";
import { inLedger } from "#src/dom0/books/unusable";
import { underAnother } from "#src/dom0/tool/passphrase";
import { print } from "#src/dom0/cli/print";

/** As many as fit on the page. */
const most = 7;

const minute = (instant: string): string => instant.slice(0, 16).replace("T", " ");

/** `old`: until when its passphrase was in use, where it is not that of today. */
const archiveLines = (entry: Entry, old: string | undefined): ReadonlyArray<string> => {
  const manifest = parseManifest(entry.manifest);
  if (manifest === undefined) return [];
  // By the number in its header whoever has only the passphrase tells it from an older one.
  const sealed = manifest.format === "slots" ? `, run ${manifest.run}` : "";
  const qubes = entry.qubes.map(({ name }) => name).join(" ");
  return [
    `   ${entry.name}`,
    `      ${minute(entry.finished)} UTC, ${manifest.size} bytes, ${manifest.members} members, ${manifest.format}${sealed}${entry.rebuilt === true ? ", rebuilt" : ""}`,
    `      root ${manifest.root}`,
    `      ${printable(qubes, 70)}`,
    ...(old === undefined
      ? []
      : [`      needs the old passphrase, in use until ${minute(old)} UTC`]),
  ];
};

export const recoverySheet = Effect.fnUntraced(function* (options: {
  readonly to: string | undefined;
}) {
  const destination = yield* destinationFor(options.to);
  const { lines } = yield* looked;
  const server = yield* inLedger((yield* KnownServers).pinned(destination));
  const own = yield* inLedger((yield* Signer).existing);
  const audits = yield* inLedger((yield* ReadBacks).all);
  // Newest first, as they were stored: a rebuilt line comes late, whatever it is about. Each that has a
  // qube, or a prefix, which no newer one has.
  const seen = new Set<string>();
  const latest: Array<Entry> = [];
  const ordered = lines
    .map(({ entry }) => entry)
    .reverse()
    .sort((a, b) => Date.parse(b.finished) - Date.parse(a.finished));
  for (const entry of ordered) {
    if (entry.destination !== destination || isOfTest(entry)) continue;
    if (!counts(audits.get(entry.session))) continue;
    const news = entry.qubes.map(({ name }) => `qube ${name}`);
    if (entry.rebuilt === true || news.length === 0) news.push(`prefix ${entry.asked.prefix}`);
    if (news.every((one) => seen.has(one))) continue;
    for (const one of news) seen.add(one);
    latest.push(entry);
  }
  if (latest.length === 0) {
    const { say } = yield* Reporter;
    yield* say("warning", line`the ledger has no archive that went through ${destination}`);
    yield* say("hint", "is it the right qube? Else the first backup is still to come");
  }
  const last = lines.at(-1);
  const known = ordered.filter(({ passphrase }) => passphrase !== undefined);
  const old = underAnother(known, known[0]?.passphrase);
  /** The last of those that were made with the same one. */
  const usedUntil = (entry: Entry) =>
    old.includes(entry)
      ? old.find(({ passphrase }) => passphrase === entry.passphrase)!.finished
      : undefined;
  const shown = latest.slice(0, most);
  const [name = "NAME"] = shown.map((entry) => entry.name as string);
  const now = instantOf(yield* Clock.currentTimeMillis);
  yield* print(
    [
      `RECOVERY SHEET of qbackup                                   ${minute(now)} UTC`,
      "",
      "1  The passphrase of the backups. Without it nothing below helps. It is kept:",
      "",
      "   ______________________________________________________________________",
      "",
      "2  The server: account and address as SSH_CONN has them, in ~/.bashrc of the",
      `   qube ${destination}:`,
      "",
      "   ______________________________________________________________________",
      "",
      "   its owner, who can let a new ssh key in:",
      "",
      "   ______________________________________________________________________",
      "",
      `   its key ${server === undefined ? "was not seen yet" : fingerprint(server)}`,
      "",
      "3  The key of this dom0, which signs the backups: on paper, qbackup key export",
      `   ${own === undefined ? "none yet" : fingerprint(own)}`,
      `   the ledger's head: ${last === undefined ? "no run yet" : onPaper(last.number, last.hash)}`,
      "",
      latest.length > most
        ? `4  The newest archives of ${most}, and ${latest.length - most} more that hold the newest of some qube:`
        : "4  The newest archive of each qube:",
      "",
      ...(shown.length === 0
        ? ["   none yet"]
        : shown.flatMap((one) => archiveLines(one, usedUntil(one)))),
      "",
      "5  With Qubes: install qbackup in dom0 and in a qube with network, as its",
      "   README says; give that qube an ssh key that the server lets in, and SSH_CONN;",
      "   write the passphrase into a file that only you can read. Then, in dom0:",
      "",
      "      qbackup key import",
      `      qbackup ledger rebuild -t ${destination} --expect-server FINGERPRINT`,
      "         (or copy the old ledger back, then: qbackup ledger check HEAD)",
      `      qbackup list -t ${destination}`,
      `      qbackup restore -t ${destination} -p FILE ${name}`,
      "",
      "   Compare the fingerprints, and each root, with this sheet.",
      "",
      "6  Without Qubes: on any Linux with ssh, GNU tar and scrypt, and an ssh key that",
      "   the server lets in: install/qbackup-recover from the sources of qbackup;",
      "   docs/recovery.md there tells all, also by hand.",
      "",
      `      sh qbackup-recover fetch ACCOUNT@HOST ${name} archive \\`,
      "         ROOT",
      "      sh qbackup-recover list archive",
      "      sh qbackup-recover extract archive all out",
      "",
    ].join("\n"),
  );
});

export const sheetCommand = command({
  name: "recovery-sheet",
  summary: "one page for a drawer elsewhere: what a restore needs",
  about: `Prints one page for a drawer far from this machine: what a restore needs, and
how it is done. The passphrase is not on it, only a line to write where it is
kept. Print it anew now and then.`,
  flags: { to },
  args: {},
  exits: {},
  run: recoverySheet,
});
