/** Reading all of an archive through qvm-backup-restore, and walking it meanwhile. */
import { Effect } from "effect";
import { QvmBackup } from "#services/QvmBackup";
import { Reporter } from "#services/Reporter";
import { FullChunk } from "#src/archive/parameters";
import { ArchiveFault, Walk } from "#src/archive/walk";
import type { Manifest } from "#src/proof/manifest";
import { line } from "#src/say/shown";
import { type Archive, directoryName, extract, type Job } from "./extract.ts";
import { failed } from "#src/dom0/failure";
import type { Trusted } from "#src/dom0/far/fetch";

export const passphraseAt = Effect.fnUntraced(function* (file: string) {
  const { path, warning } = yield* (yield* QvmBackup)
    .checkPassphrase(file)
    .pipe(Effect.mapError((error) => failed("usage", error.message)));
  if (warning !== undefined) yield* (yield* Reporter).say("warning", line`${warning}`);
  return path;
});

/** A walk over the blocks of an archive as they come, and what it says of them at the end. */
export const walker = Effect.fnUntraced(function* (name: string, qubes?: Archive["qubes"]) {
  const walk = new Walk({
    fullChunk: yield* FullChunk,
    ...(qubes === undefined
      ? {}
      : { expected: new Set(qubes.map(({ qid }) => directoryName(qid))) }),
  });
  const broken = ({ message }: ArchiveFault) =>
    failed("integrity", `${name} is no whole archive: ${message}`);
  return {
    offset: () => walk.offset,
    push: (bytes: Uint8Array) =>
      Effect.suspend(() => {
        const fault = walk.push(bytes);
        return fault === undefined ? Effect.void : broken(fault);
      }),
    finish: Effect.suspend(() => {
      const members = walk.finish();
      return members instanceof ArchiveFault ? broken(members) : Effect.succeed(members);
    }),
  };
});

/** Extracts all of an archive, and walks it meanwhile: each block before a byte of it is used. */
export const extractAll = Effect.fnUntraced(function* (job: Job, qubes?: Archive["qubes"]) {
  const walk = yield* walker(job.archive.trusted.name, qubes);
  const left = yield* extract({ ...job, onBlock: walk.push });
  yield* walk.finish;
  return left;
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
    : failed("usage", "--compression-filter must name a program");

export interface DecryptAll {
  readonly trusted: Trusted;
  readonly manifest: Manifest;
  /** Which qubes must be in it, where that is known. */
  readonly qubes?: Archive["qubes"] | undefined;
  readonly passphraseFile: string;
  /** The program that unpacks it, where the tool does not know the header's. */
  readonly compressionFilter: string | undefined;
  /** Minutes in which qvm-backup-restore must read or say something. */
  readonly qubesTimeout: number;
}

/**
 * Feeds a whole archive to `qvm-backup-restore --verify-only`, each block read once, and adds what
 * that does not notice: that nothing is missing. The destination qube must run, and the lock be held.
 */
export const decryptAll = Effect.fnUntraced(function* (options: DecryptAll) {
  const { manifest, qubes, trusted } = options;
  const plan: Job["plan"] = {
    verifyOnly: true,
    qubes: [],
    passphraseFile: yield* passphraseAt(options.passphraseFile),
    options: [...forVerifying, ...unpackedBy(options.compressionFilter)],
  };
  const job: Job = {
    archive: { trusted, members: manifest.members, qubes: qubes ?? [] },
    plan,
    names: (qubes ?? []).map(({ name }) => name),
    maySkip: false,
    timeout: options.qubesTimeout,
  };
  yield* extractAll(job, qubes);
});
