/**
 * What a test or a group of tests needs of the machine. Where it is not there, they are skipped, and the
 * end of the run says so, with the reason (skipped.ts).
 */
// @effect-diagnostics processEnv:off -- it is about this process and where it runs.
import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import type { TestOptions } from "vitest";

declare module "vitest" {
  interface TaskMeta {
    /** Why it is skipped. */
    skipped?: string;
  }
}

/** Options of a test or group: it is skipped where there is a reason. The first reason counts. */
export const unless = (...reasons: ReadonlyArray<string | undefined>): TestOptions => {
  const skipped = reasons.find((reason) => reason !== undefined);
  return skipped === undefined ? {} : { skip: true, meta: { skipped } };
};

/** Where programs are, in PATH or in the folders for root that a user's PATH may not have. */
const folders = [...(process.env["PATH"] ?? "").split(":"), "/usr/sbin", "/sbin"];
/** Why what needs this program cannot be tried; undefined where it is installed. */
export const without = (program: string): string | undefined =>
  folders.some((folder) => folder !== "" && fs.existsSync(path.join(folder, program)))
    ? undefined
    : `${program} is not installed`;

export const noSshd = without("sshd");
export const noScrypt = without("scrypt");
export const notRoot = process.getuid!() === 0 ? undefined : "only root can make what it needs";
/** A process with mounts of its own: not in a chroot, nor in most containers. */
export const noOwnMounts = (): string | undefined =>
  notRoot ??
  (spawnSync("unshare", ["-m", "true"]).status === 0
    ? undefined
    : "a process cannot have mounts of its own here");

/** Root may mount nothing in most containers. */
export const noMount = (): string | undefined => {
  if (notRoot !== undefined) return notRoot;
  const at = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-mount-"));
  try {
    execFileSync("mount", ["-t", "tmpfs", "none", at], { stdio: "ignore" });
    execFileSync("umount", [at]);
    return undefined;
  } catch {
    return "file systems cannot be mounted here";
  } finally {
    fs.rmdirSync(at);
  }
};
