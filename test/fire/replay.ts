/**
 * What a disk has of a program's work when the power fails: the program's own system calls, as strace
 * logged them, replayed up to any point, with what may be lost by then lost. Nothing here knows what
 * the program means by them.
 *
 * What an fsync or fdatasync of a file returned for is there: its bytes, and after an fsync its mode;
 * never its names. An fsync of a directory keeps the names in it, and nothing of what they stand for.
 * Of the rest, a file system decides what is there. Two are modelled, each as the weaker of what its
 * documents promise and what it does:
 *
 * - `ext4` (data=ordered, which is the default): names, modes and sizes go through one journal, so that
 *   of them, in all directories together, the first so many are there. As many at least as it takes to
 *   have those that were synced, because a sync writes the journal up to them.
 * - `btrfs`: a sync puts what was synced, alone, into a log tree. Of all else, in whatever directory,
 *   each name may be there or not, a later one without an earlier one. (What ext4 may leave is among
 *   that; but there is more of it than can be tried where much is unsynced, and so it is sampled there.)
 *
 * The bytes of a file that were not synced, on both: none, all, zeros in their place, or some of their
 * pages, at random. For btrfs that is more than it does; ext4 leaves zeros where a length went into the
 * journal and its bytes waited.
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { rng } from "#test/support/random";

/** Calls that change a file system or make a change last, and what is said on stdout. */
const traced =
  "openat,mkdir,link,unlink,rename,rmdir,write,pwrite64,ftruncate,fchmod,fsync,fdatasync";
export const recording = (log: string): ReadonlyArray<string> => [
  "strace",
  "-f",
  "--seccomp-bpf",
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
  readonly id: number;
  /** As it was made, which no loss separates from its name. */
  readonly mode: number;
  readonly changes: Array<FileChange & Made>;
}
interface Folder {
  readonly kind: "folder";
  readonly changes: Array<NameChange & Made>;
}
type Node = FileNode | Folder;
interface Bytes {
  readonly at: number;
  readonly bytes: Buffer;
}
type FileChange = Bytes | { readonly size: number } | { readonly mode: number };
/** What a name stands for from then on. */
interface NameChange {
  readonly name: string;
  readonly node: Node | undefined;
}
interface Made {
  /** By which call; those of one call come together. */
  readonly nth: number;
  /** It is on disk, whatever happens. */
  synced: boolean;
}

/** What a crash leaves. Two of the same key are the same to the last byte. */
export type Picture = { readonly key: string } & (
  | { readonly kind: "folder"; readonly names: ReadonlyMap<string, Picture> }
  | { readonly kind: "file"; readonly mode: number; readonly changes: ReadonlyArray<FileChange> }
);

const page = 4096;
/** What becomes of bytes that were not synced: the same for the same bytes, so that it is tried once. */
const fates = {
  none: () => [],
  all: (change) => [change],
  zeros: ({ at, bytes }) => [{ at, bytes: Buffer.alloc(bytes.length) }],
  torn: ({ at, bytes }, seed) => {
    const random = rng(seed);
    return Array.from({ length: Math.ceil(bytes.length / page) }, (_, i) => ({
      at: at + i * page,
      bytes: bytes.subarray(i * page, (i + 1) * page),
    })).filter(() => random.next() < 0.5);
  },
} satisfies Record<string, (change: Bytes, seed: number) => ReadonlyArray<Bytes>>;

type Fate = keyof typeof fates;

/** Is it there after the crash? Of names, modes and sizes, if they were not synced. */
type Kept = (change: Made) => boolean;

/** Up to so many names are lost in every combination; of more, some combinations. */
const combined = 4;
const sampled = 4;

/**
 * What each file system may leave of names, modes and sizes: `pending` are those that were not synced,
 * in their order, and `floor` is the last call of which one was.
 */
const models = {
  ext4: function* (pending, floor) {
    const cuts = new Set([floor, ...pending.map(({ nth }) => nth).filter((nth) => nth > floor)]);
    for (const cut of cuts) yield ({ nth }) => nth <= cut;
  },
  btrfs: function* (pending, floor, seed) {
    const random = rng(seed + floor);
    const n = pending.length;
    const sets =
      n <= combined
        ? Array.from({ length: 2 ** n }, (_, bits) => pending.filter((_, i) => (bits >> i) & 1))
        : [
            [],
            pending,
            ...pending.map((one) => [one]),
            ...pending.map((one) => pending.filter((other) => other !== one)),
            ...Array.from({ length: sampled }, () => pending.filter(() => random.next() < 0.5)),
          ];
    for (const set of sets) yield (change) => set.includes(change);
  },
} satisfies Record<
  string,
  (pending: ReadonlyArray<Made>, floor: number, seed: number) => Generator<Kept>
>;
export type Model = keyof typeof models;
export const modelNames = Object.keys(models) as ReadonlyArray<Model>;

/** One call: its text, for messages, and its effect on the disk, or on who was told. */
export interface Step {
  readonly text: string;
  readonly said?: string;
  readonly apply: () => void;
}

const decoded = (text: string): Buffer => Buffer.from(text.replaceAll("\\x", ""), "hex");
const octal = (text: string | undefined): number => Number.parseInt(text ?? "0", 8);

/** What lies in a directory, all of it on disk. */
const loaded = (dir: string, nextId: () => number): Folder => {
  const made = { nth: 0, synced: true };
  const changes = fs.readdirSync(dir, { withFileTypes: true }).map((entry) => {
    const at = path.join(dir, entry.name);
    if (entry.isDirectory()) return { name: entry.name, node: loaded(at, nextId), ...made };
    const node: FileNode = {
      kind: "file",
      id: nextId(),
      mode: fs.statSync(at).mode & 0o777,
      changes: [{ at: 0, bytes: fs.readFileSync(at), ...made }],
    };
    return { name: entry.name, node, ...made };
  });
  return { kind: "folder", changes };
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
  let ids = 0;
  const nextId = () => (ids += 1);
  const top = loaded(before, nextId);
  const entries = (folder: Folder): Map<string, Node> => {
    const found = new Map<string, Node>();
    for (const { name, node } of folder.changes) {
      if (node === undefined) found.delete(name);
      else found.set(name, node);
    }
    return found;
  };
  /** Grows with each call, and `version` with each that changes the disk, or makes a change last. */
  let nth = 0;
  let version = 0;
  const change = (node: Node | undefined, what: FileChange): void => {
    if (node?.kind !== "file") return;
    node.changes.push({ ...what, nth, synced: false });
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
    at.folder.changes.push({ name: at.name, node, nth, synced: false });
    version += 1;
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
      steps.push({
        text: `${call}(${text}`,
        apply: () => {
          nth += 1;
          apply();
        },
        ...(said === undefined ? {} : { said }),
      });
    switch (call) {
      case "openat":
        step(paths[0]!, () => {
          open.delete(Number(result));
          let node = find(paths[0]!);
          if (node === undefined && args.includes("O_CREAT") && where(paths[0]!) !== undefined) {
            const mode = octal(/, (0\d+)$/.exec(args)?.[1]);
            node = { kind: "file", id: nextId(), mode, changes: [] };
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
          enter(paths[0]!, { kind: "folder", changes: [] });
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
          for (const one of open.get(fd)?.changes ?? []) {
            // fdatasync leaves out what is not needed to find the bytes again.
            if (one.synced || (call === "fdatasync" && "mode" in one)) continue;
            one.synced = true;
            version += 1;
          }
        });
    }
  }

  /** All that a crash now may leave on that file system. */
  const pictures = function* (model: Model, seed: number): Generator<Picture> {
    const nodes = new Set<Node>();
    const visit = (node: Node | undefined): void => {
      if (node === undefined || nodes.has(node)) return;
      nodes.add(node);
      if (node.kind === "folder") for (const one of node.changes) visit(one.node);
    };
    visit(top);
    const journaled: ReadonlyArray<Made> = [...nodes]
      .flatMap(({ changes }): ReadonlyArray<(FileChange | NameChange) & Made> => changes)
      .filter((one) => !("bytes" in one))
      .toSorted((a, b) => a.nth - b.nth);
    const floor = Math.max(0, ...journaled.map((one) => (one.synced ? one.nth : 0)));
    const pending = journaled.filter(({ synced }) => !synced);
    const all = Object.keys(fates) as ReadonlyArray<Fate>;
    const sets = [...models[model](pending, floor, seed)];
    // Of many sets each is tried with one fate of the bytes.
    for (const [i, kept] of sets.entries()) {
      for (const fate of sets.length > 8 ? [all[i % all.length]!] : all) {
        yield taken(kept, fate, seed);
      }
    }
  };
  const taken = (kept: Kept, fate: Fate, seed: number): Picture => {
    const made = new Map<Node, Picture>();
    const take = (node: Node): Picture => {
      const before = made.get(node);
      if (before !== undefined) return before;
      const picture = node.kind === "folder" ? ofFolder(node) : ofFile(node);
      made.set(node, picture);
      return picture;
    };
    const ofFolder = (folder: Folder): Picture => {
      const names = new Map<string, Picture>();
      for (const one of folder.changes) {
        if (!one.synced && !kept(one)) continue;
        if (one.node === undefined) names.delete(one.name);
        else names.set(one.name, take(one.node));
      }
      const keys = [...names].map(([name, { key }]) => `${name}=${key}`);
      return { kind: "folder", key: `{${keys.toSorted().join(",")}}`, names };
    };
    const ofFile = ({ changes, id, mode }: FileNode): Picture => {
      const keys: Array<string> = [];
      const there: Array<FileChange> = [];
      for (const one of changes) {
        if (one.synced || (!("bytes" in one) && kept(one))) {
          there.push(one);
          keys.push(`${one.nth}`);
        } else if ("bytes" in one) {
          there.push(...fates[fate](one, seed + one.nth));
          keys.push(`${one.nth}${fate}`);
        }
      }
      return { kind: "file", key: `${id}:${keys.join("+")}`, mode, changes: there };
    };
    return take(top);
  };
  return {
    steps,
    pictures,
    nothingLost: () => taken(() => true, "all", 0),
    version: () => version,
  };
};

/** Makes what a crash left in an empty directory. */
export const develop = (picture: Picture, into: string): void => {
  const made = new Map<Picture, string>();
  const write = (one: Picture, to: string): void => {
    const before = made.get(one);
    if (before !== undefined) return fs.linkSync(before, to);
    made.set(one, to);
    if (one.kind === "folder") {
      if (to !== into) fs.mkdirSync(to, { mode: 0o700 });
      for (const [name, child] of one.names) write(child, path.join(to, name));
      return;
    }
    const file = fs.openSync(to, "wx", 0o600);
    let { mode } = one;
    for (const change of one.changes) {
      if ("bytes" in change) fs.writeSync(file, change.bytes, 0, change.bytes.length, change.at);
      else if ("size" in change) fs.ftruncateSync(file, change.size);
      else mode = change.mode;
    }
    fs.fchmodSync(file, mode);
    fs.closeSync(file);
  };
  write(picture, into);
};
