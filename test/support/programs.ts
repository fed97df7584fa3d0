/** Small executables on a PATH of their own, for layers that run programs. */
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";

export interface Programs {
  readonly dir: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Writes an executable; one that begins with `#!` is taken as it is, others are for sh. */
  readonly add: (name: string, text: string) => void;
  readonly read: (name: string) => string;
  readonly remove: () => void;
}

export const programs = (env: Record<string, string> = {}): Programs => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-test-"));
  return {
    dir,
    env: { ...process.env, PATH: `${dir}:/usr/bin:/bin`, DIR: dir, ...env },
    add: (name, text) => {
      const script = text.startsWith("#!") ? text : `#!/bin/sh\n${text}\n`;
      fs.writeFileSync(path.join(dir, name), script, { mode: 0o755 });
    },
    read: (name) => {
      const file = path.join(dir, name);
      return fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
    },
    remove: () => fs.rmSync(dir, { recursive: true, force: true }),
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
