/** Links that are slower or longer than loopback. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import { here, type Link, start } from "./bed.ts";
import { until } from "#test/support/until";

export interface Shaped {
  /** The address of this side, for sshd to listen on. */
  readonly address: string;
  /** Bytes that came in from there so far, and that went there. */
  readonly carried: () => { readonly up: number; readonly down: number };
  readonly link: (port: number) => Link;
  /** Another rate from now on. */
  readonly pace: (rate: string) => void;
  readonly stop: () => void;
}

/** HostKeyAlias, because known_hosts has the server under the address of loopback. */
const hostKey = (port: number) => ["-o", `HostKeyAlias=[127.0.0.1]:${port}`];

/** A network namespace for the client at the end of a link of `rate` (as tc writes it). */
export const shapedLink = (rate: string): Shaped => {
  const id = process.pid % 100_000;
  const namespace = `qbench${id}`;
  const [ours, theirs] = [`qb${id}a`, `qb${id}b`];
  // 198.18.0.0/15 is set aside for benchmarks.
  const net = `198.18.${id % 256}`;
  const run = (...words: ReadonlyArray<string>) =>
    execFileSync(words[0]!, words.slice(1), { stdio: "pipe" });
  const inside = (...words: ReadonlyArray<string>) =>
    run("ip", "netns", "exec", namespace, ...words);
  const pace = (to: string) => {
    const shape = ["root", "tbf", "rate", to, "burst", "256kb", "latency", "20ms"];
    run("tc", "qdisc", "replace", "dev", ours, ...shape);
    inside("tc", "qdisc", "replace", "dev", theirs, ...shape);
  };
  const stop = () => {
    // Its end of the pair goes with it, and with that ours.
    for (const words of [
      ["link", "del", ours],
      ["netns", "del", namespace],
    ]) {
      try {
        run("ip", ...words);
      } catch {
        // It was not made, or is gone with the other.
      }
    }
  };
  try {
    run("ip", "netns", "add", namespace);
    run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", namespace);
    run("ip", "addr", "add", `${net}.1/30`, "dev", ours);
    run("ip", "link", "set", ours, "up");
    inside("ip", "addr", "add", `${net}.2/30`, "dev", theirs);
    inside("ip", "link", "set", theirs, "up");
    pace(rate);
  } catch (error) {
    stop();
    throw error;
  }
  const counter = (name: string) => Number(run("cat", `/sys/class/net/${ours}/statistics/${name}`));
  return {
    address: `${net}.1`,
    carried: () => ({ up: counter("rx_bytes"), down: counter("tx_bytes") }),
    link: (port) => ({
      before: ["ip", "netns", "exec", namespace],
      options: ["-o", `HostName=${net}.1`, ...hostKey(port)],
    }),
    pace,
    stop,
  };
};

/** `link`, of which ssh itself counts what it carries: bytes, its own signs and keys among them. */
export const counting = (file: string, link: Link) => ({
  link: {
    ...link,
    options: ["-o", "LogLevel=VERBOSE", "-E", file, ...link.options],
  } satisfies Link,
  /** Of all connections since it was last asked. Some programs end before their ssh does. */
  sent: async (): Promise<number> => {
    const said = () => fs.readFileSync(file, "latin1");
    const count = (what: RegExp) => [...said().matchAll(what)].length;
    await until("ssh has ended", () => count(/^Transferred: /gm) === count(/^Authenticated to /gm));
    const sent = said().matchAll(/^Transferred: sent ([0-9]+)/gm);
    fs.rmSync(file);
    return [...sent].reduce((sum, [, bytes]) => sum + Number(bytes), 0);
  },
});

/** A proxy in a process of its own that is `milliseconds` away, there and back. */
export const longLink = async (port: number, milliseconds: number): Promise<Link> => {
  const argv = [process.execPath, path.join(here, "delay.ts"), `${port}`, `${milliseconds}`];
  const proxy = start(argv, ["ignore", "pipe", "inherit", "ipc"]);
  const [said] = (await once(proxy.stdout!, "data")) as [Buffer];
  return { before: [], options: ["-p", said.toString().trim(), ...hostKey(port)] };
};
