/**
 * A machine of its own for a test that installs things: this one's root below a layer that is thrown
 * away, with its own mounts, processes and network (loopback alone). What is done in there is not seen
 * outside, and all of it ends with `stop`. Needs root. QBACKUP_ROOT names another root to take, as that
 * of a fresh Debian.
 */
// @effect-diagnostics processEnv:off -- it is about where this process runs.
import { execFileSync, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { notRoot, without } from "#test/support/unless";
import { execute, type Ran } from "#test/support/whole";

export interface Login {
  readonly user: string;
  readonly home: string;
}

export interface Machine {
  /** A path of the machine, as seen from here. */
  readonly at: (file: string) => string;
  /** Runs a line of bash, as a login of that account would, with nothing in its environment besides. */
  readonly run: (
    login: Login,
    script: string,
    options?: { readonly env?: Readonly<Record<string, string>>; readonly input?: string },
  ) => Promise<Ran>;
  readonly stop: () => void;
}

export const root: Login = { user: "root", home: "/root" };

/** What the layer hides: others' files, and what is of this moment. */
const empty = ["/home", "/root", "/run", "/srv", "/tmp"];

const below = process.env["QBACKUP_ROOT"] ?? "/";

const setUp = (dir: string) => `set -e
mount -t tmpfs -o mode=755 layer ${dir}/layer
mkdir ${dir}/layer/up ${dir}/layer/work
mount -t overlay -o lowerdir=${below},upperdir=${dir}/layer/up,workdir=${dir}/layer/work machine ${dir}/root
mount -t proc proc ${dir}/root/proc
mount --rbind /dev ${dir}/root/dev
for each in ${empty.join(" ")}; do mount -t tmpfs -o mode=755 empty ${dir}/root$each; done
chmod 1777 ${dir}/root/tmp
ip link set lo up
echo ready
`;

/** Why there can be none here. */
export const noMachine = (): string | undefined => {
  const missing = notRoot ?? without("unshare") ?? without("nsenter") ?? without("ip");
  if (missing !== undefined) return missing;
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-machine-"));
  for (const name of ["layer", "root"]) fs.mkdirSync(path.join(dir, name));
  try {
    execFileSync("unshare", ["--mount", "--pid", "--net", "--fork", "sh", "-c", setUp(dir)], {
      stdio: "ignore",
    });
    return undefined;
  } catch {
    return "no namespaces and overlays can be made here";
  } finally {
    fs.rmSync(dir, { recursive: true });
  }
};

export const machine = async (): Promise<Machine> => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "qbackup-machine-"));
  for (const name of ["layer", "root"]) fs.mkdirSync(path.join(dir, name));
  // The first process of the machine waits for others, as an init does; its end is theirs.
  const holder = spawn(
    "unshare",
    ["--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c"].concat(
      `${setUp(dir)}exec perl -e 'while (1) { 1 while waitpid(-1, 1) > 0; sleep 1 }'`,
    ),
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  const stop = () => {
    holder.kill("SIGKILL");
    fs.rmSync(dir, { recursive: true, force: true });
  };
  await new Promise<void>((resolve, reject) => {
    holder.stdout.once("data", () => resolve());
    holder.once("exit", (code) => reject(new Error(`no machine: ${code}`)));
  });
  const children = fs.readFileSync(`/proc/${holder.pid}/task/${holder.pid}/children`, "utf8");
  const pid = children.trim();
  return {
    at: (file) => path.join(`/proc/${pid}/root${dir}/root`, file),
    run: ({ home, user }, script, { env = {}, input } = {}) =>
      execute(
        [
          "nsenter",
          ...`-t ${pid} -m -p -n -- chroot ${dir}/root runuser -u ${user} -- env -i`.split(" "),
          ...Object.entries({
            HOME: home,
            USER: user,
            LOGNAME: user,
            LANG: "C.UTF-8",
            SHELL: "/bin/bash",
            PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ...env,
          }).map(([name, value]) => `${name}=${value}`),
          "bash",
          "-c",
          'cd || exit; eval "$0"',
          script,
        ],
        input === undefined ? {} : { input: Buffer.from(input) },
      ).ended,
    stop,
  };
};
