/** What every SafeFs promises. */
import { assert, describe, it } from "@effect/vitest";
import { Effect, type Layer } from "effect";
import { type Directory, SafeFs, type SafeFsError } from "#services/SafeFs";

/** A root with nothing in it, and a hand that can put there what SafeFs cannot. */
export interface Ground {
  readonly layer: Layer.Layer<SafeFs>;
  readonly root: string;
  /** Makes a symbolic link to whatever exists, a FIFO, a directory, a file with these bytes. */
  readonly plant: (path: string, what: "link" | "fifo" | "directory" | Uint8Array) => void;
}

const text = (s: string) => new TextEncoder().encode(s);
/** Why it failed; "nothing" when it did not. */
const reason = <A, R>(effect: Effect.Effect<A, SafeFsError, R>) =>
  Effect.match(effect, {
    onFailure: (error) => error.reason as string,
    onSuccess: () => "nothing",
  });

export const safeFsContract = (name: string, ground: () => Ground): void => {
  const test = (
    what: string,
    body: (root: Directory, ground: Ground) => Effect.Effect<void, SafeFsError, never>,
  ) =>
    it.live(what, () =>
      Effect.gen(function* () {
        const g = ground();
        yield* Effect.scoped(
          Effect.gen(function* () {
            const root = yield* (yield* SafeFs).root(g.root);
            yield* body(root, g);
          }),
        ).pipe(Effect.provide(g.layer));
      }),
    );

  describe(`SafeFs: ${name}`, () => {
    test("writes, reads, grows, shrinks", (root) =>
      Effect.gen(function* () {
        const file = yield* root.create("a", 0o600);
        yield* file.write(text("hello world"), 0);
        yield* file.write(text("there"), 20);
        yield* file.sync;
        yield* file.syncAll;
        const into = new Uint8Array(30);
        assert.strictEqual(yield* file.read(into, 0), 25);
        assert.strictEqual(
          Buffer.from(into.subarray(0, 25)).toString(),
          "hello world\0\0\0\0\0\0\0\0\0there",
        );
        assert.strictEqual(yield* file.read(into, 25), 0);
        yield* file.truncate(5);
        assert.strictEqual((yield* file.stat).size, 5);
        yield* file.truncate(7);
        assert.strictEqual(yield* file.read(into, 0), 7);
        assert.strictEqual(Buffer.from(into.subarray(0, 7)).toString(), "hello\0\0");
        const { inode } = yield* file.stat;
        assert.deepInclude(yield* root.stat("a"), { kind: "file", size: 7, inode, mode: 0o600 });
      }).pipe(Effect.scoped));

    test("creates only what is not there, whatever is", (root, { plant }) =>
      Effect.gen(function* () {
        plant("file", text("x"));
        plant("link", "link");
        plant("fifo", "fifo");
        plant("directory", "directory");
        for (const there of ["file", "link", "fifo", "directory"]) {
          assert.strictEqual(yield* reason(root.create(there, 0o600)), "exists", there);
        }
      }).pipe(Effect.scoped));

    test("opens no links, FIFOs or directories as files, and never waits", (root, { plant }) =>
      Effect.gen(function* () {
        plant("link", "link");
        plant("fifo", "fifo");
        plant("directory", "directory");
        for (const there of ["link", "fifo", "directory"]) {
          for (const access of ["read", "write"] as const) {
            const why = yield* reason(root.open(there, access));
            assert.strictEqual(why, "not-plain", `${there} ${access}`);
          }
        }
        assert.strictEqual(yield* reason(root.open("none", "read")), "not-found");
      }).pipe(Effect.scoped));

    test("opens no links and no files as directories", (root, { plant }) =>
      Effect.gen(function* () {
        plant("link", "link");
        plant("file", text("x"));
        plant("real", "directory");
        assert.strictEqual(yield* reason(root.directory("link")), "not-plain");
        assert.strictEqual(yield* reason(root.ensure("link", 0o700)), "not-plain");
        assert.strictEqual(yield* reason(root.directory("file")), "not-plain");
        assert.strictEqual(yield* reason(root.directory("none")), "not-found");
        yield* root.directory("real");
        const inner = yield* root.ensure("real", 0o700);
        yield* inner.ensure("made", 0o700);
        assert.deepInclude(yield* inner.stat("made"), { kind: "directory" });
        assert.strictEqual((yield* inner.self).device, (yield* root.self).device);
      }).pipe(Effect.scoped));

    test("says what things are without following them", (root, { plant }) =>
      Effect.gen(function* () {
        plant("link", "link");
        plant("fifo", "fifo");
        assert.strictEqual((yield* root.stat("link")).kind, "other");
        assert.strictEqual((yield* root.stat("fifo")).kind, "other");
        assert.strictEqual(yield* reason(root.stat("none")), "not-found");
        assert.deepStrictEqual((yield* root.names).toSorted(), ["fifo", "link"]);
      }));

    test("links never replace, and name the same file", (root, { plant }) =>
      Effect.gen(function* () {
        plant("target", "link");
        const inner = yield* root.ensure("inner", 0o700);
        const file = yield* root.create("a", 0o600);
        yield* file.write(text("a"), 0);
        yield* root.link("a", inner, "b");
        const { inode } = yield* file.stat;
        assert.strictEqual((yield* inner.stat("b")).inode, inode);
        assert.strictEqual(yield* reason(root.link("a", inner, "b")), "exists");
        assert.strictEqual(yield* reason(root.link("a", root, "target")), "exists");
        assert.strictEqual(yield* reason(root.link("none", inner, "c")), "not-found");
        yield* root.remove("a");
        yield* inner.sync;
        yield* root.sync;
        const again = yield* inner.open("b", "read");
        const into = new Uint8Array(4);
        assert.strictEqual(yield* again.read(into, 0), 1);
      }).pipe(Effect.scoped));

    test("replaces a file by another one, links too, and nothing else", (root, g) =>
      Effect.gen(function* () {
        g.plant("old", text("old"));
        g.plant("link", "link");
        g.plant("directory", "directory");
        const read = (name: string) =>
          Effect.scoped(
            Effect.flatMap(root.open(name, "read"), (file) => {
              const into = new Uint8Array(10);
              return Effect.map(file.read(into, 0), (n) =>
                Buffer.from(into.subarray(0, n)).toString(),
              );
            }),
          );
        for (const as of ["old", "link", "none"]) {
          const file = yield* root.create("new", 0o600);
          yield* file.write(text(`for ${as}`), 0);
          yield* root.replace("new", as);
          assert.strictEqual((yield* root.stat(as)).inode, (yield* file.stat).inode);
          assert.strictEqual(yield* read(as), `for ${as}`);
          assert.strictEqual(yield* reason(root.stat("new")), "not-found");
        }
        assert.strictEqual(yield* reason(root.replace("old", "directory")), "not-plain");
        assert.strictEqual(yield* reason(root.replace("nothing", "old")), "not-found");
        assert.strictEqual(yield* read("old"), "for old");
      }).pipe(Effect.scoped));

    test("a file under the name of one that is gone is another one", (root) =>
      Effect.gen(function* () {
        const first = yield* root.create("a", 0o600);
        yield* root.remove("a");
        const second = yield* root.create("a", 0o600);
        assert.notStrictEqual((yield* first.stat).inode, (yield* second.stat).inode);
      }).pipe(Effect.scoped));

    test("knows what a file takes on the disk", (root) =>
      Effect.gen(function* () {
        const file = yield* root.create("a", 0o600);
        yield* file.write(new Uint8Array(65_536).fill(1), 0);
        yield* file.syncAll;
        const { allocated, size } = yield* file.stat;
        assert.isAtLeast(allocated, size);
      }).pipe(Effect.scoped));

    test("removes files, and links instead of what they lead to; no directories", (root, g) =>
      Effect.gen(function* () {
        g.plant("link", "link");
        g.plant("directory", "directory");
        yield* root.remove("link");
        assert.strictEqual(yield* reason(root.stat("link")), "not-found");
        assert.strictEqual(yield* reason(root.remove("link")), "not-found");
        assert.include(["not-plain", "not-permitted"], yield* reason(root.remove("directory")));
      }));

    test("reads a small file at once, and no link, no directory, nothing that is longer", (root, g) =>
      Effect.gen(function* () {
        g.plant("link", "link");
        g.plant("directory", "directory");
        for (const [name, written] of [
          ["empty", ""],
          ["small", "what is in it"],
        ] as const) {
          yield* Effect.scoped(
            Effect.flatMap(root.create(name, 0o600), (file) => file.write(text(written), 0)),
          );
          const bytes = yield* root.bytes(name, written.length);
          assert.strictEqual(Buffer.from(bytes!).toString(), written);
        }
        assert.isUndefined(yield* root.bytes("small", 12));
        assert.strictEqual(yield* reason(root.bytes("link", 100)), "not-plain");
        assert.strictEqual(yield* reason(root.bytes("directory", 100)), "not-plain");
        assert.strictEqual(yield* reason(root.bytes("none", 100)), "not-found");
      }));

    test("tells all that lies in a directory, as each for itself", (root, g) =>
      Effect.gen(function* () {
        assert.strictEqual((yield* root.entries).size, 0);
        g.plant("link", "link");
        g.plant("directory", "directory");
        g.plant("file", text("so many"));
        const all = yield* root.entries;
        assert.deepStrictEqual([...all.keys()].toSorted(), ["directory", "file", "link"]);
        assert.strictEqual(all.get("file")!.size, 7);
        for (const [name, entry] of all) {
          assert.deepStrictEqual(entry, yield* root.stat(name));
        }
      }));

    test("a mode holds for whoever opens it later", (root) =>
      Effect.gen(function* () {
        const file = yield* root.create("a", 0o600);
        yield* file.protect(0o440);
        yield* file.write(text("the handle of before"), 0);
        const reader = yield* root.open("a", "read");
        yield* reader.protect(0o600);
        yield* (yield* root.open("a", "write")).write(text("again"), 0);
      }).pipe(Effect.scoped));

    test("knows its room and its rights", (root) =>
      Effect.gen(function* () {
        assert.isTrue(yield* root.writable);
        assert.isAbove(yield* root.free, 0);
      }));

    it.live.each(["", ".", "..", "a/b", "/", "/etc", "a\0b", "../x"])(
      "dies of a name that is no component: %j",
      (bad) =>
        Effect.gen(function* () {
          const g = ground();
          const died = (effect: (root: Directory) => Effect.Effect<unknown, SafeFsError, never>) =>
            Effect.scoped(
              Effect.flatMap(SafeFs, (fs) => fs.root(g.root)).pipe(Effect.flatMap(effect)),
            ).pipe(
              Effect.provide(g.layer),
              Effect.catchDefect(() => Effect.succeed("died")),
            );
          const calls: ReadonlyArray<(root: Directory) => Effect.Effect<unknown, SafeFsError>> = [
            (root) => Effect.scoped(root.create(bad, 0o600)),
            (root) => Effect.scoped(root.open(bad, "read")),
            (root) => Effect.scoped(root.directory(bad)),
            (root) => Effect.scoped(root.ensure(bad, 0o700)),
            (root) => root.stat(bad),
            (root) => root.bytes(bad, 1),
            (root) => root.remove(bad),
            (root) => root.link(bad, root, "x"),
            (root) => root.replace(bad, "x"),
            (root) =>
              Effect.scoped(Effect.andThen(root.create("z", 0o600), root.replace("z", bad))),
            (root) =>
              Effect.scoped(Effect.andThen(root.create("y", 0o600), root.link("y", root, bad))),
          ];
          for (const [i, call] of calls.entries()) {
            assert.strictEqual(yield* died(call), "died", `call ${i}`);
          }
        }),
    );
  });
};
