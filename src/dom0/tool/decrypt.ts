/** Reading all of an archive through qvm-backup-restore, and walking it meanwhile. */
import { Effect } from "effect";
import { Reporter } from "#services/Reporter";
import { line } from "#src/say/shown";
import { type Archive, extract, type Job, type Supply } from "./extract.ts";
import { failed } from "#src/dom0/failure";
import type { Trusted } from "#src/dom0/far/fetch";
import { checkPassphrase } from "./passphrase.ts";
import { memberWalk } from "./structure.ts";

export const passphraseAt = Effect.fnUntraced(function* (file: string) {
  const { path, warning } = yield* checkPassphrase(file);
  if (warning !== undefined) yield* (yield* Reporter).say("warning", line`${warning}`);
  return path;
});

/** Extracts all of an archive, and walks it meanwhile: each block before a byte of it is used. */
export const extractAll = Effect.fnUntraced(function* (job: Job, { far, list }: Supply) {
  const walk = yield* memberWalk(job.archive.trusted, list);
  const outcome = yield* extract(job, { far, list, onBlock: walk.push });
  // Of qubes that it was told to leave out, and of those alone, the tool need not read the data.
  if (!job.maySkip || walk.through()) yield* walk.finish;
  const run = walk.run();
  if (job.proven === false && run !== undefined) {
    yield* (yield* Reporter).say(
      "info",
      line`its seal holds: whole, and of run ${run}; whether there is a later one, it cannot say`,
    );
  }
  return outcome;
});

/**
 * Verifying needs no template, and no user of the same name, but the tool asks for them all the same;
 * for want of the user it would leave out dom0's home in silence.
 */
export const forVerifying = ["--ignore-missing", "--ignore-username-mismatch"];

/** What has the tool take an archive whose filter it does not know. */
export const unpackedBy = (program: string | undefined): ReadonlyArray<string> =>
  program === undefined ? [] : [`--compression-filter=${program}`];

export const checkUnpacker = (program: string | undefined) =>
  /^[A-Za-z0-9._+-]{1,64}$/.test(program ?? "gzip")
    ? Effect.void
    : failed(
        "usage",
        "--compression-filter must name a program, without a path or options",
        "the one that the backup was made with: --compress-filter of that run",
      );

export interface DecryptAll {
  readonly trusted: Trusted;
  readonly supply: Supply;
  /** Its qubes, where they are known. */
  readonly qubes?: Archive["qubes"] | undefined;
  readonly passphraseFile: string;
  /** The program that unpacks it, where the tool does not know the header's. */
  readonly compressionFilter: string | undefined;
  /** Minutes in which qvm-backup-restore must read or say something. */
  readonly qubesTimeout: number;
}

/**
 * Feeds a whole archive to `qvm-backup-restore --verify-only`, each block read once, and adds what
 * that does not notice: that nothing is missing. The lock must be held.
 */
export const decryptAll = Effect.fnUntraced(function* (options: DecryptAll) {
  const { qubes = [], supply, trusted } = options;
  const plan: Job["plan"] = {
    verifyOnly: true,
    qubes: [],
    passphraseFile: yield* passphraseAt(options.passphraseFile),
    options: [...forVerifying, ...unpackedBy(options.compressionFilter)],
  };
  const job: Job = {
    archive: { trusted, qubes, list: supply.list },
    plan,
    names: qubes.map(({ name }) => name),
    maySkip: false,
    timeout: options.qubesTimeout,
  };
  yield* extractAll(job, supply);
});
