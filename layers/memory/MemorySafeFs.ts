/**
 * A disk in memory that forgets, at a crash, what was not synced: bytes, modes and directory entries
 * each for itself, as a real one may. The disk outlives the layers and the programs that use it.
 */
import * as Clock from "effect/Clock";
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import type * as Scope from "effect/Scope";
import { type Directory, type Entry, type File, SafeFs, SafeFsError } from "#services/SafeFs";

type Reason = SafeFsError["reason"];

/** One call on the disk. `name` is the path of what it works on, below the root. */
export interface Operation {
  readonly operation:
    | "make"
    | "create"
    | "open"
    | "read"
    | "write"
    | "truncate"
    | "protect"
    | "sync"
    | "link"
    | "replace"
    | "remove"
    | "sync-directory";
  readonly name: string;
  /** Where a read or write begins, and its bytes. */
  readonly at?: number;
  readonly bytes?: number;
}

type Pending = { readonly at: number; readonly bytes: Buffer } | { readonly size: number };

class Bytes {
  #buffer = Buffer.alloc(0);
  size = 0;
  view(): Buffer {
    return this.#buffer.subarray(0, this.size);
  }
  apply(change: Pending): void {
    const end = "size" in change ? change.size : change.at + change.bytes.length;
    if (end > this.#buffer.length) {
      const grown = Buffer.alloc(Math.max(end, this.#buffer.length * 2));
      grown.set(this.view());
      this.#buffer = grown;
    }
    if ("size" in change) {
      this.#buffer.fill(0, change.size, this.size);
      this.size = change.size;
    } else {
      this.#buffer.set(change.bytes, change.at);
      this.size = Math.max(this.size, end);
    }
  }
}

/** Each has a number of its own, as inodes have. */
let nodesMade = 0;

class FileNode {
  readonly kind = "file";
  readonly inode = ++nodesMade;
  now = new Bytes();
  stable = new Bytes();
  /** Changes since the last sync, in order. */
  pending: Array<Pending> = [];
  #settled = 0;
  /** Bytes of it that a test has punched out. */
  holes = 0;
  mode: number;
  stableMode: number;
  modified: number;
  constructor(mode: number, modified: number) {
    this.mode = this.stableMode = mode;
    this.modified = modified;
  }
  change(change: Pending): void {
    this.now.apply(change);
    this.pending.push(change);
  }
  /** Changes up to `mark` (as counted by `mark`) are on disk; another sync may have been faster. */
  settle(mark: number): void {
    for (const change of this.pending.splice(0, Math.max(0, mark - this.#settled))) {
      this.stable.apply(change);
      this.#settled += 1;
    }
  }
  mark(): number {
    return this.#settled + this.pending.length;
  }
}

class DirectoryNode {
  readonly kind = "directory";
  readonly inode = ++nodesMade;
  readonly entries = new Map<string, Node>();
  stable = new Map<string, Node>();
  pending: Array<{ readonly name: string; readonly node: Node | undefined }> = [];
  #settled = 0;
  mode: number;
  modified: number;
  constructor(mode: number, modified: number) {
    this.mode = mode;
    this.modified = modified;
  }
  change(name: string, node: Node | undefined): void {
    if (node === undefined) this.entries.delete(name);
    else this.entries.set(name, node);
    this.pending.push({ name, node });
  }
  settle(mark: number): void {
    for (const { name, node } of this.pending.splice(0, Math.max(0, mark - this.#settled))) {
      if (node === undefined) this.stable.delete(name);
      else this.stable.set(name, node);
      this.#settled += 1;
    }
  }
  mark(): number {
    return this.#settled + this.pending.length;
  }
}

/** A link, a FIFO, a device: something that only stands in the way. */
class OtherNode {
  readonly kind = "other";
  readonly inode = ++nodesMade;
  readonly mode = 0o777;
  readonly modified = 0;
}
type Node = FileNode | DirectoryNode | OtherNode;

const below = (path: string, name: string): string => (path === "" ? name : `${path}/${name}`);

export class Disk {
  root = new DirectoryNode(0o700, 0);
  /** Every call that was made, in order; those that failed too. */
  readonly log: Array<Operation> = [];
  /** Says before a call whether it fails; "off" is the power: nothing works until `crash`. */
  fault: (operation: Operation) => Reason | "off" | undefined = () => undefined;
  /** Runs inside every sync, before it takes effect: what a disk's slowness is. */
  syncing: Effect.Effect<void> = Effect.void;
  /** In bytes. */
  capacity = Number.MAX_SAFE_INTEGER;
  /** Does it know hard links? */
  links = true;
  /** How many files and directories may be open at once, of all programs. */
  descriptors = Number.MAX_SAFE_INTEGER;
  #open = 0;
  /** The uid that owns all of it. */
  owner = 1000;
  #off = false;
  /** Handles of before a crash are of no use after it. */
  generation = 0;

  /** What `path` is, or undefined. */
  find(path: string): Node | undefined {
    let node: Node | undefined = this.root;
    for (const name of path.split("/").filter((part) => part !== "")) {
      node = node?.kind === "directory" ? node.entries.get(name) : undefined;
    }
    return node;
  }
  /** The bytes of a file, as a program would read them. */
  bytes(path: string): Buffer | undefined {
    const node = this.find(path);
    return node?.kind === "file" ? Buffer.from(node.now.view()) : undefined;
  }
  /** The paths of all files, sorted. */
  files(): ReadonlyArray<string> {
    const found: Array<string> = [];
    const visit = (directory: DirectoryNode, path: string): void => {
      for (const [name, node] of directory.entries) {
        if (node.kind === "directory") visit(node, below(path, name));
        else found.push(below(path, name));
      }
    };
    visit(this.root, "");
    return found.toSorted();
  }
  /** Puts something there, synced, as if it had always been: a file's bytes, a directory, or else. */
  plant(path: string, what: Uint8Array | "directory" | "other", mode?: number): void {
    const at = path.lastIndexOf("/");
    const parent = this.find(path.slice(0, Math.max(at, 0)));
    if (parent?.kind !== "directory") throw new Error(`nowhere to put ${path}`);
    let node: Node;
    if (what === "directory") node = new DirectoryNode(mode ?? 0o700, 0);
    else if (what === "other") node = new OtherNode();
    else {
      node = new FileNode(mode ?? 0o600, 0);
      node.change({ at: 0, bytes: Buffer.from(what) });
      node.settle(node.mark());
    }
    const name = path.slice(at + 1);
    parent.entries.set(name, node);
    parent.stable.set(name, node);
  }
  /** Makes a hole in a file, as fallocate does: zeros that take no room. */
  punch(path: string, at: number, bytes: number): void {
    const node = this.find(path);
    if (node?.kind !== "file") throw new Error(`no file ${path}`);
    node.change({ at, bytes: Buffer.alloc(bytes) });
    node.settle(node.mark());
    node.holes += bytes;
  }
  /** In bytes. */
  get used(): number {
    const seen = new Set<Node>();
    const visit = (directory: DirectoryNode): number =>
      [...directory.entries.values()].reduce((sum, node) => {
        if (seen.has(node)) return sum;
        seen.add(node);
        return (
          sum + (node.kind === "directory" ? visit(node) : node.kind === "file" ? node.now.size : 0)
        );
      }, 0);
    return visit(this.root);
  }

  /**
   * The power fails and comes back. Of what was not synced nothing is left; with `random` (numbers
   * from 0 to 1) any part of it may be, in any order, and blocks of which only the length arrived.
   */
  crash(random?: () => number): void {
    const visited = new Set<Node>();
    const visit = (directory: DirectoryNode): void => {
      const kept = new Map(directory.stable);
      if (random !== undefined) {
        const histories = new Map<string, Array<Node | undefined>>();
        for (const { name, node } of directory.pending) {
          histories.set(name, [...(histories.get(name) ?? [kept.get(name)]), node]);
        }
        for (const [name, states] of histories) {
          const state = states[Math.floor(random() * states.length)];
          if (state === undefined) kept.delete(name);
          else kept.set(name, state);
        }
      }
      directory.pending = [];
      directory.stable = kept;
      directory.entries.clear();
      for (const [name, node] of kept) {
        directory.entries.set(name, node);
        if (visited.has(node)) continue;
        visited.add(node);
        if (node.kind === "directory") visit(node);
        else if (node.kind === "file") {
          if (random !== undefined) {
            for (const change of node.pending) {
              const fate = random();
              if (fate < 1 / 3) continue;
              const torn = fate < 1 / 2 && "bytes" in change;
              node.stable.apply(
                torn ? { at: change.at, bytes: Buffer.alloc(change.bytes.length) } : change,
              );
            }
            if (random() < 0.5) node.stableMode = node.mode;
          }
          node.pending = [];
          node.now = new Bytes();
          node.now.apply({ at: 0, bytes: Buffer.from(node.stable.view()) });
          node.mode = node.stableMode;
        }
      }
    };
    visit(this.root);
    this.#off = false;
    this.generation += 1;
  }

  /** A descriptor, until the scope closes. */
  readonly descriptor: Effect.Effect<void, SafeFsError, Scope.Scope> = Effect.acquireRelease(
    Effect.suspend(() => {
      if (this.#open >= this.descriptors) {
        return this.fail("too-many-files", "open", "EMFILE");
      }
      this.#open += 1;
      return Effect.void;
    }),
    () => Effect.sync(() => (this.#open -= 1)),
  );

  /** Takes note of a call, and fails it where it should. */
  enter(call: Operation, generation: number): Effect.Effect<void, SafeFsError> {
    return Effect.suspend(() => {
      if (this.#off || generation !== this.generation) {
        return this.fail("io", call.operation, "the machine is off");
      }
      this.log.push(call);
      const reason = this.fault(call);
      if (reason === "off") this.#off = true;
      return reason === undefined
        ? Effect.void
        : this.fail(reason === "off" ? "io" : reason, call.operation, "injected");
    });
  }
  fail(reason: Reason, operation: string, cause: string): Effect.Effect<never, SafeFsError> {
    return Effect.fail(new SafeFsError({ reason, operation, cause: new Error(cause) }));
  }
}

const entry = (disk: Disk, node: Node): Entry => ({
  kind: node.kind,
  size: node.kind === "file" ? node.now.size : 0,
  allocated: node.kind === "file" ? Math.max(0, node.now.size - node.holes) : 0,
  inode: node.inode,
  mode: node.mode,
  modified: node.modified,
  owner: disk.owner,
  device: 1,
});

const component = (name: string): string => {
  if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) {
    throw new Error("a name that is not a single component");
  }
  return name;
};

/** The node behind a handle, for `link`, which takes two directories. */
const nodes = new WeakMap<Directory, DirectoryNode>();

const file = (disk: Disk, node: FileNode, name: string, writes: boolean): File => {
  const generation = disk.generation;
  const enter = (operation: Operation["operation"], rest: Partial<Operation> = {}) =>
    disk.enter({ operation, name, ...rest }, generation);
  const touch = Effect.map(Clock.currentTimeMillis, (now) => {
    node.modified = now;
  });
  const mayWrite = Effect.suspend(() =>
    writes ? Effect.void : disk.fail("io", "write", "opened for reading"),
  );
  const sync = (mode: boolean) =>
    Effect.uninterruptible(
      Effect.gen(function* () {
        yield* enter("sync");
        const mark = node.mark();
        yield* disk.syncing;
        node.settle(mark);
        if (mode) node.stableMode = node.mode;
      }),
    );
  return {
    stat: Effect.sync(() => entry(disk, node)),
    read: (into, at) =>
      Effect.map(enter("read", { at, bytes: into.length }), () => {
        const bytes = node.now.view().subarray(at, at + into.length);
        into.set(bytes);
        return bytes.length;
      }),
    write: Effect.fnUntraced(function* (bytes: Uint8Array, at: number) {
      yield* mayWrite;
      yield* enter("write", { at, bytes: bytes.length });
      const grown = Math.max(0, at + bytes.length - node.now.size);
      if (disk.used + grown > disk.capacity) return yield* disk.fail("no-space", "write", "full");
      node.change({ at, bytes: Buffer.from(bytes) });
      yield* touch;
    }),
    truncate: Effect.fnUntraced(function* (size: number) {
      yield* mayWrite;
      yield* enter("truncate", { at: size });
      node.change({ size });
      yield* touch;
    }),
    sync: sync(false),
    syncAll: sync(true),
    protect: (mode) =>
      Effect.map(enter("protect"), () => {
        node.mode = mode;
      }),
  };
};

const directory = (disk: Disk, node: DirectoryNode, path: string): Directory => {
  const generation = disk.generation;
  const enter = (operation: Operation["operation"], name: string) =>
    disk.enter({ operation, name: below(path, name) }, generation);
  const alive = Effect.suspend(() =>
    generation === disk.generation ? Effect.void : disk.fail("io", "stat", "the machine is off"),
  );
  const mayChange = Effect.suspend(() =>
    (node.mode & 0o200) === 0 ? disk.fail("not-permitted", "write", "read-only") : Effect.void,
  );
  const lookup = (name: string) =>
    Effect.suspend(() => {
      const found = node.entries.get(component(name));
      return found === undefined
        ? disk.fail("not-found", "open", "not there")
        : Effect.succeed(found);
    });
  const openDirectory = Effect.fnUntraced(function* (name: string) {
    yield* enter("open", name);
    const found = yield* lookup(name);
    if (found.kind !== "directory") return yield* disk.fail("not-plain", "open", "no directory");
    if ((found.mode & 0o500) !== 0o500) return yield* disk.fail("not-permitted", "open", "mode");
    yield* disk.descriptor;
    return directory(disk, found, below(path, name));
  });
  const here: Directory = {
    self: Effect.as(alive, entry(disk, node)),
    directory: openDirectory,
    ensure: Effect.fnUntraced(function* (name: string, mode: number) {
      if (!node.entries.has(component(name))) {
        yield* enter("make", name);
        yield* mayChange;
        node.change(name, new DirectoryNode(mode, yield* Clock.currentTimeMillis));
      }
      return yield* openDirectory(name);
    }),
    create: Effect.fnUntraced(function* (name: string, mode: number) {
      component(name);
      yield* enter("create", name);
      yield* mayChange;
      if (node.entries.has(name)) return yield* disk.fail("exists", "create", "there already");
      const made = new FileNode(mode, yield* Clock.currentTimeMillis);
      node.change(name, made);
      yield* disk.descriptor;
      return file(disk, made, below(path, name), true);
    }),
    open: Effect.fnUntraced(function* (name: string, access: "read" | "write") {
      yield* enter("open", name);
      const found = yield* lookup(name);
      if (found.kind !== "file") return yield* disk.fail("not-plain", "open", "no regular file");
      if (
        (found.mode & (access === "read" ? 0o400 : 0o600)) !==
        (access === "read" ? 0o400 : 0o600)
      ) {
        return yield* disk.fail("not-permitted", "open", "mode");
      }
      yield* disk.descriptor;
      return file(disk, found, below(path, name), access === "write");
    }),
    bytes: (name, limit) =>
      Effect.scoped(
        Effect.gen(function* () {
          const opened = yield* here.open(name, "read");
          const { size } = yield* opened.stat;
          if (size > limit) return undefined;
          const into = new Uint8Array(size);
          yield* opened.read(into, 0);
          return into;
        }),
      ),
    stat: (name) =>
      Effect.andThen(
        alive,
        Effect.map(lookup(name), (found) => entry(disk, found)),
      ),
    names: Effect.andThen(
      alive,
      Effect.sync(() => [...node.entries.keys()]),
    ),
    entries: Effect.andThen(
      alive,
      Effect.sync(
        () => new Map([...node.entries].map(([name, found]) => [name, entry(disk, found)])),
      ),
    ),
    link: Effect.fnUntraced(function* (name: string, to: Directory, as: string) {
      component(as);
      const target = nodes.get(to);
      if (target === undefined) throw new Error("a directory of another layer");
      yield* enter("link", name);
      const found = yield* lookup(name);
      if (found.kind !== "file" || !disk.links) {
        return yield* disk.fail("unsupported", "link", "no hard links");
      }
      if ((target.mode & 0o200) === 0)
        return yield* disk.fail("not-permitted", "link", "read-only");
      if (target.entries.has(as)) return yield* disk.fail("exists", "link", "there already");
      target.change(as, found);
    }),
    replace: Effect.fnUntraced(function* (name: string, as: string) {
      component(as);
      yield* enter("replace", as);
      yield* mayChange;
      const found = yield* lookup(name);
      const other = node.entries.get(as);
      if (found.kind !== "file" || (other !== undefined && other.kind === "directory")) {
        return yield* disk.fail("not-plain", "replace", "no file");
      }
      node.change(as, found);
      node.change(name, undefined);
    }),
    remove: Effect.fnUntraced(function* (name: string) {
      yield* enter("remove", name);
      yield* mayChange;
      const found = yield* lookup(name);
      if (found.kind === "directory") {
        return yield* disk.fail("not-plain", "remove", "a directory");
      }
      node.change(name, undefined);
    }),
    writable: Effect.map(alive, () => (node.mode & 0o200) !== 0),
    sync: Effect.uninterruptible(
      Effect.gen(function* () {
        yield* enter("sync-directory", "");
        const mark = node.mark();
        yield* disk.syncing;
        node.settle(mark);
      }),
    ),
    free: Effect.map(alive, () => Math.max(0, disk.capacity - disk.used)),
  };
  nodes.set(here, node);
  return here;
};

/** `root` is always the disk's own root, whatever path is asked for. */
export const memorySafeFs = (disk: Disk = new Disk()): Layer.Layer<SafeFs> =>
  Layer.succeed(SafeFs, {
    root: () =>
      Effect.map(disk.enter({ operation: "open", name: "" }, disk.generation), () =>
        directory(disk, disk.root, ""),
      ),
  });
