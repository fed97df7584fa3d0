/** What `make test` and `npm test` say before they begin, and that nothing is installed without a yes. */
import { spawnSync } from "node:child_process";
import { afterEach, assert, describe, it } from "vitest";
import * as fs from "node:fs";
import * as path from "node:path";
import { env } from "node:process";
import { type Programs, programs } from "#test/support/programs";

let here: Programs;
afterEach(() => here.remove());

/** A user's machine with next to nothing in PATH; sudo and apt-get write down how they are called. */
const machine = (...without: ReadonlyArray<string>) => {
  here = programs();
  for (const name of ["sh", "cat", "sed", "sort", "tr", "script"])
    fs.symlinkSync(path.join("/usr/bin", name), path.join(here.dir, name));
  here.add("id", "echo 1000");
  here.add("npm", "exit 9");
  here.add("apt-get", `echo "apt-get $*" >> "$DIR/calls"; echo "Inst scrypt (1 Debian)"`);
  here.add("sudo", `for last; do :; done; echo "sudo $1 ... $last" >> "$DIR/calls"`);
  for (const name of without) fs.rmSync(path.join(here.dir, name));
};
const need = (suite: string, env: Record<string, string> = {}) => {
  const ran = spawnSync("/bin/sh", ["test/need.sh", suite], {
    encoding: "utf8",
    env: { PATH: here.dir, DIR: here.dir, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  return { code: ran.status, stdout: ran.stdout, stderr: ran.stderr, calls: here.read("calls") };
};
/** On a terminal where this is typed. */
const typed = (answer: string) => {
  const ran = spawnSync("/usr/bin/script", ["-qec", "sh test/need.sh test", "/dev/null"], {
    encoding: "utf8",
    env: { PATH: here.dir, DIR: here.dir, SHELL: "/bin/sh" },
    input: answer,
  });
  return { code: ran.status, stdout: ran.stdout, calls: here.read("calls") };
};
const listed =
  /\n {2}scrypt \(needed\): [a-z].*\n(.*\n)* {2}all that would be installed: scrypt \n/;

describe("what is missing", () => {
  it("is named with what it is for, and nothing is done without a yes", () => {
    machine();
    const { calls, code, stderr, stdout } = need("test");
    assert.match(stdout, /^qbackup test: .* about 4 minutes on two cores\n/);
    assert.match(stdout, listed);
    assert.match(
      stderr,
      /^qbackup: error: install these first:.* scrypt\nqbackup: hint: make test YES=1 installs them, with sudo\n$/,
    );
    assert.strictEqual(code, 1);
    assert.notInclude(calls, "sudo");
    assert.match(calls, /^apt-get -s [^\n]*\n$/);
  });

  it("is installed with YES=1", () => {
    machine();
    const { calls, code, stderr } = need("test", { YES: "1" });
    assert.deepStrictEqual([code, stderr], [0, ""]);
    assert.match(calls, /\nsudo -n \.\.\. (scrypt|zstd|apparmor)\n$/);
  });

  it("is told where it cannot be installed, and npm test goes on without", () => {
    for (const lacks of ["sudo", "apt-get"]) {
      machine(lacks);
      const { code, stderr } = need("test", { YES: "1" });
      assert.match(stderr, /^qbackup: error: .* scrypt\nqbackup: hint: npm test goes on without/);
      assert.strictEqual(code, 1);
      here.remove();
    }
  });

  it.each(["n\n", "\n", "yessir\n"])("is not installed when %j is the answer", (answer) => {
    machine();
    const { calls, code, stdout } = typed(answer);
    assert.include(stdout, "with sudo apt-get? No service of theirs is started. [y/N] ");
    assert.strictEqual(code, 1);
    assert.notInclude(calls, "sudo");
  });

  it.each(["y\n", "YES\n"])("is installed when %j is the answer", (answer) => {
    machine();
    const { calls, code } = typed(answer);
    assert.strictEqual(code, 0);
    assert.match(calls, /\nsudo sh \.\.\. /);
  });

  it("says so when the installation fails", () => {
    machine();
    here.add("sudo", "exit 1");
    const { code, stderr } = need("test", { YES: "1" });
    assert.match(stderr, /^qbackup: error: could not install .*scrypt/);
    assert.strictEqual(code, 1);
  });
});

describe("what only some tests need", () => {
  it("is named, and the tests go on without it", () => {
    machine();
    for (const name of ["ssh", "sshd", "scrypt"]) here.add(name, "exit 9");
    const { calls, code, stderr, stdout } = need("test");
    assert.deepStrictEqual([code, stderr], [0, ""]);
    assert.include(stdout, "  zstd (optional): ");
    assert.match(
      stdout,
      /\nGoing on without them\. What is skipped for it is named at the end\.\n$/,
    );
    assert.notInclude(calls, "sudo");
  });

  it("may fail to be installed, and the tests go on without it", () => {
    machine();
    for (const name of ["ssh", "sshd", "scrypt"]) here.add(name, "exit 9");
    here.add("sudo", "exit 1");
    const { code, stderr, stdout } = need("test", { YES: "1" });
    assert.deepStrictEqual([code, stderr], [0, ""]);
    assert.match(stdout, /\nGoing on without them\. /);
  });

  it("is not asked for by a suite that never needs it", () => {
    machine();
    for (const name of ["ssh", "sshd", "python3"]) here.add(name, "exit 9");
    const { code, stdout } = need("demo");
    assert.strictEqual(code, 0);
    assert.strictEqual(stdout.split("\n").length, 2, stdout);
  });
});

describe("a node that reads TypeScript", () => {
  const run = (options: string) =>
    spawnSync("sh", ["test/node.sh", "test/support/until.ts"], {
      encoding: "utf8",
      env: { ...env, NODE_OPTIONS: options },
    });
  it("runs the file", () => {
    const { status, stderr } = run("");
    assert.deepStrictEqual([status, stderr], [0, ""]);
  });
  it("is asked for in one line, which says what to do, where there is none", () => {
    const { status, stderr } = run("--no-experimental-strip-types");
    assert.match(
      stderr,
      /^qbackup: error: node v\S+ reads no TypeScript, and npm left out the package node-linux-\w+: run "npm install --no-save", or install node 22\.18 or later\n$/,
    );
    assert.strictEqual(status, 1);
  });
});
