/** Small executables on a PATH of their own, for layers that run programs. */
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";

export interface Programs {
  readonly dir: string;
  /** PATH has these and the system's own; of Qubes, only what was added is in it, in a dom0 too. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Writes an executable; one that begins with `#!` is taken as it is, others are for sh. */
  readonly add: (name: string, text: string) => void;
  readonly read: (name: string) => string;
  readonly remove: () => void;
}

/** What must not be found, nor called, where a test has not made it. */
const ofQubes = /^(qvm-|qubesd-|qrexec-|notify-send$)/;
const system = ["/usr/bin", "/bin"];

/** Where the system's programs are found without those of Qubes: links, where it has any of them. */
const withoutQubes = (dir: string): string => {
  const names = new Map(
    system.flatMap((folder) => fs.readdirSync(folder).map((name) => [name, folder] as const)),
  );
  if (![...names.keys()].some((name) => ofQubes.test(name))) return system.join(":");
  fs.mkdirSync(dir);
  for (const [name, folder] of names) {
    if (!ofQubes.test(name)) fs.symlinkSync(path.join(folder, name), path.join(dir, name));
  }
  return dir;
};

export const programs = (env: Record<string, string> = {}): Programs => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-test-"));
  const links = `${dir}.system`;
  return {
    dir,
    env: { ...process.env, PATH: `${dir}:${withoutQubes(links)}`, DIR: dir, ...env },
    add: (name, text) => {
      const script = text.startsWith("#!") ? text : `#!/bin/sh\n${text}\n`;
      fs.writeFileSync(path.join(dir, name), script, { mode: 0o755 });
    },
    read: (name) => {
      const file = path.join(dir, name);
      return fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
    },
    remove: () => {
      for (const each of [dir, links]) fs.rmSync(each, { recursive: true, force: true });
    },
  };
};

/** The processes whose argv mentions `text`: what a test must not leave behind. Zombies are gone. */
export const processesWith = (text: string): ReadonlyArray<number> =>
  fs
    .readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name) && Number(name) !== process.pid)
    .filter((name) => {
      try {
        return fs.readFileSync(`/proc/${name}/cmdline`, "utf8").includes(text);
      } catch {
        return false;
      }
    })
    .map(Number);
