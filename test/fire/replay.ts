/**
 * What a disk has of a program's work when the power fails: the program's own system calls, as strace
 * logged them, replayed up to any point, with what was not synced by then lost, or kept, or some of it.
 * Nothing here knows what the program means by them, nor what it takes a disk to be.
 */
import * as fs from "node:fs";
import * as path from "node:path";

/** Calls that change a file system or make a change last, and what is said on stdout. */
const traced =
  "openat,mkdir,link,unlink,rename,rmdir,write,pwrite64,ftruncate,fchmod,fsync,fdatasync";
export const recording = (log: string): ReadonlyArray<string> => [
  "strace",
  "-f",
  "-qq",
  "-xx",
  "-s",
  "1200000",
  "-o",
  log,
  "-e",
  `trace=${traced}`,
];

interface FileNode {
  readonly kind: "file";
  readonly changes: Array<Change>;
  /** How many of its changes are on disk. */
  synced: number;
}
interface Folder {
  readonly kind: "folder";
  readonly changes: Array<Change>;
  synced: number;
}
type Node = FileNode | Folder;
/** Of a file: bytes, a size, a mode. Of a folder: a name, and what it stands for from then on. */
type Change =
  | { readonly at: number; readonly bytes: Buffer }
  | { readonly size: number }
  | { readonly mode: number }
  | { readonly name: string; readonly node: Node | undefined };

/** One call: its text, for messages, and its effect on the disk, or on who was told. */
export interface Step {
  readonly text: string;
  readonly said?: string;
  readonly apply: () => void;
}

const decoded = (text: string): Buffer => Buffer.from(text.replaceAll("\\x", ""), "hex");
const octal = (text: string | undefined): number => Number.parseInt(text ?? "0", 8);

/** What lies in a directory, all of it on disk. */
const loaded = (dir: string): Folder => {
  const changes = fs.readdirSync(dir, { withFileTypes: true }).map((entry): Change => {
    const at = path.join(dir, entry.name);
    if (entry.isDirectory()) return { name: entry.name, node: loaded(at) };
    const bytes: Change = { at: 0, bytes: fs.readFileSync(at) };
    const mode: Change = { mode: fs.statSync(at).mode & 0o777 };
    return { name: entry.name, node: { kind: "file", changes: [bytes, mode], synced: 2 } };
  });
  return { kind: "folder", changes, synced: changes.length };
};
/** Bytes of a file, if all of it stays. */
const sizeOf = ({ changes }: FileNode): number =>
  changes.reduce((size, change) => {
    if ("size" in change) return change.size;
    return "bytes" in change ? Math.max(size, change.at + change.bytes.length) : size;
  }, 0);

/**
 * The calls of a log, in their order; with the disk that they work on. `before` is a copy of what it
 * had at their beginning.
 */
export const replay = (log: string, root: string, before: string) => {
  const top = loaded(before);
  const entries = (folder: Folder): Map<string, Node> => {
    const found = new Map<string, Node>();
    for (const change of folder.changes) {
      if (!("name" in change)) continue;
      if (change.node === undefined) found.delete(change.name);
      else found.set(change.name, change.node);
    }
    return found;
  };
  /** Grows with each change of the disk, and with each that is made to last. */
  let version = 0;
  const change = (node: Node | undefined, what: Change): void => {
    if (node === undefined) return;
    node.changes.push(what);
    version += 1;
  };
  const open = new Map<number, Node>();
  const appending = new Set<number>();
  const offsets = new Map<number, number>();
  /** The folder and the name that a path means; undefined for what is not of this disk. */
  const where = (given: string): { folder: Folder; name: string } | undefined => {
    const below = /^\/proc\/self\/fd\/(\d+)\/([^/]+)$/.exec(given);
    const folder = below === null ? undefined : open.get(Number(below[1]));
    return folder?.kind === "folder" ? { folder, name: below![2]! } : undefined;
  };
  const find = (given: string): Node | undefined => {
    if (given === root) return top;
    if (given.startsWith(`${root}/`)) {
      let node: Node | undefined = top;
      for (const name of given.slice(root.length + 1).split("/")) {
        node = node?.kind === "folder" ? entries(node).get(name) : undefined;
      }
      return node;
    }
    const self = /^\/proc\/self\/fd\/(\d+)$/.exec(given);
    if (self !== null) return open.get(Number(self[1]));
    const at = where(given);
    return at === undefined ? undefined : entries(at.folder).get(at.name);
  };
  const enter = (given: string, node: Node | undefined) => {
    const at = where(given);
    if (at === undefined) throw new Error(`not below the root: ${given}`);
    change(at.folder, { name: at.name, node });
  };

  const steps: Array<Step> = [];
  const began = new Map<string, string>();
  for (const raw of fs.readFileSync(log, "latin1").split("\n")) {
    const [, thread, rest] = /^(\d+) +([^]*)$/.exec(raw) ?? [];
    if (thread === undefined || rest === undefined) continue;
    if (rest.endsWith(" <unfinished ...>")) {
      began.set(thread, rest.slice(0, -" <unfinished ...>".length));
      continue;
    }
    const resumed = /^<\.\.\. \w+ resumed>/.exec(rest)?.[0];
    const line = resumed === undefined ? rest : `${began.get(thread)}${rest.slice(resumed.length)}`;
    const match = /^(\w+)\(([^]*)\) += (-?\d+)/.exec(line);
    if (match === null || match[3]!.startsWith("-")) continue;
    const [, call, args, result] = match as unknown as [string, string, string, string];
    const texts = [...args.matchAll(/"((?:\\x[0-9a-f]{2})*)"/g)].map((found) => decoded(found[1]!));
    const paths = texts.map((bytes) => bytes.toString());
    const fd = Number(/^\d+/.exec(args)?.[0] ?? -1);
    const step = (text: string, apply: () => void, said?: string) =>
      steps.push({ text: `${call}(${text}`, apply, ...(said === undefined ? {} : { said }) });
    switch (call) {
      case "openat":
        step(paths[0]!, () => {
          open.delete(Number(result));
          let node = find(paths[0]!);
          if (node === undefined && args.includes("O_CREAT") && where(paths[0]!) !== undefined) {
            const mode = octal(/, (0\d+)$/.exec(args)?.[1]);
            node = { kind: "file", changes: [{ mode }], synced: 0 };
            enter(paths[0]!, node);
          }
          if (node !== undefined) open.set(Number(result), node);
          offsets.set(Number(result), 0);
          if (args.includes("O_APPEND")) appending.add(Number(result));
          else appending.delete(Number(result));
        });
        break;
      case "mkdir":
        step(paths[0]!, () => {
          if (where(paths[0]!) === undefined) return;
          enter(paths[0]!, { kind: "folder", changes: [], synced: 0 });
        });
        break;
      case "link":
        step(paths.join(", "), () => {
          const node = find(paths[0]!);
          if (node === undefined) throw new Error(`linked from nowhere: ${paths[0]}`);
          enter(paths[1]!, node);
        });
        break;
      case "rename":
        step(paths.join(", "), () => {
          const node = find(paths[0]!);
          enter(paths[0]!, undefined);
          enter(paths[1]!, node);
        });
        break;
      case "unlink":
      case "rmdir":
        step(paths[0]!, () => enter(paths[0]!, undefined));
        break;
      case "write":
      case "pwrite64": {
        const bytes = texts[0]!;
        const said = fd === 1 ? bytes.toString() : undefined;
        const last = /, (\d+)$/.exec(args)?.[1];
        step(
          `${fd}, ${bytes.length} bytes`,
          () => {
            const node = open.get(fd);
            if (node?.kind !== "file") return;
            const next = appending.has(fd) ? sizeOf(node) : (offsets.get(fd) ?? 0);
            const at = call === "pwrite64" ? Number(last) : next;
            if (bytes.length !== Number(result)) throw new Error("the log has not all bytes");
            change(node, { at, bytes });
            offsets.set(fd, at + bytes.length);
          },
          said,
        );
        break;
      }
      case "ftruncate":
        step(args, () => change(open.get(fd), { size: Number(args.split(", ")[1]) }));
        break;
      case "fchmod":
        step(args, () => change(open.get(fd), { mode: octal(args.split(", ")[1]) }));
        break;
      default:
        step(args, () => {
          const node = open.get(fd);
          if (node === undefined || node.synced === node.changes.length) return;
          node.synced = node.changes.length;
          version += 1;
        });
    }
  }

  /** Writes what a crash now would leave into an empty directory; `lost` says it of each change. */
  const crash = (into: string, lost: () => boolean): void => {
    const made = new Map<Node, string>();
    const write = (node: Node, to: string): void => {
      const kept = node.changes.filter((_, i) => i < node.synced || !lost());
      const before = made.get(node);
      if (before !== undefined) return fs.linkSync(before, to);
      made.set(node, to);
      if (node.kind === "folder") {
        if (to !== into) fs.mkdirSync(to, { mode: 0o700 });
        const names = new Map<string, Node>();
        for (const change of kept) {
          if (!("name" in change)) continue;
          if (change.node === undefined) names.delete(change.name);
          else names.set(change.name, change.node);
        }
        for (const [name, child] of names) write(child, path.join(to, name));
        return;
      }
      const file = fs.openSync(to, "wx", 0o600);
      let mode = 0o600;
      for (const change of kept) {
        if ("bytes" in change) fs.writeSync(file, change.bytes, 0, change.bytes.length, change.at);
        else if ("size" in change) fs.ftruncateSync(file, change.size);
        else if ("mode" in change) mode = change.mode;
      }
      fs.fchmodSync(file, mode);
      fs.closeSync(file);
    };
    write(top, into);
  };
  return { steps, crash, version: () => version };
};
