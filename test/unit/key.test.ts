/** What dom0 makes for paper. A passphrase; and its own keys: shown, on paper and back, changed; and what a slip of the pen comes to. */
import { NodeServices } from "@effect/platform-node";
import { wordlist } from "@scure/bip39/wordlists/english.js";
import { assert, describe, it } from "@effect/vitest";
import { Effect, Layer, Schema } from "effect";
import { type BooksDisk, booksDisk, memoryBooks } from "#layers/memory/MemoryBooks";
import { memoryLocks } from "#layers/memory/MemoryLocks";
import { memoryNotifier } from "#layers/memory/MemoryNotifier";
import { Itself } from "#services/Itself";
import { memorySealing } from "#layers/memory/MemorySealing";
import { memoryPipe } from "#layers/memory/MemoryPipe";
import { memoryReporter, type Said } from "#layers/memory/MemoryReporter";
import { memorySettings } from "#layers/memory/MemorySettings";
import { Invocation } from "#services/Invocation";
import { Qrexec } from "#services/Qrexec";
import { Qubes } from "#services/Qubes";
import { QvmBackup } from "#services/QvmBackup";
import { QvmRestore } from "#services/QvmRestore";
import { dom0 } from "#src/dom0/cli/main";
import { secretFromPaper, secretOnPaper } from "#src/dom0/books/paper";
import { fingerprint, signingKeyOf } from "#src/proof/keys";

const secrets = { signing: Buffer.alloc(32, 1), series: Buffer.alloc(32, 2) };
const publicOf = (seed: Uint8Array) => signingKeyOf(seed).publicKey;
const aDisk = (): BooksDisk => ({ ...booksDisk(), secrets: { ...secrets } });

/** `qbackup WORDS` with these lines on its stdin. */
const qbackup = Effect.fnUntraced(function* (
  disk: BooksDisk,
  args: ReadonlyArray<string>,
  typed = "",
  entropy = (n: number) => new Uint8Array(n).fill(7),
) {
  const said: Said = { lines: [], progress: [] };
  const stdin = memoryPipe();
  yield* stdin.sink.write(Buffer.from(typed));
  yield* stdin.sink.end;
  let out = "";
  const code = yield* dom0.pipe(
    Effect.provide(
      Layer.mergeAll(
        Layer.succeed(Invocation, {
          args,
          env: {},
          watched: true,
          stdin: stdin.source,
          stdout: {
            write: (bytes) => Effect.sync(() => void (out += Buffer.from(bytes).toString())),
            end: Effect.void,
          },
          entropy,
        }),
        memoryReporter(said),
        memoryNotifier([]),
        memoryBooks(disk),
        memoryLocks(),
        memorySettings({}),
        Layer.mock(Qubes, {}),
        Layer.mock(Qrexec, {}),
        Layer.mock(QvmBackup, {}),
        Layer.mock(QvmRestore, {}),
        memorySealing,
        Layer.mock(Itself, { runtime: "" }),
        NodeServices.layer,
      ),
    ),
  );
  const text = said.lines.map(({ level, text }) => `${level}: ${text}`).join("\n");
  return { code, out, text };
});
const key = (disk: BooksDisk, word: string, typed?: string) => qbackup(disk, ["key", word], typed);

describe("qbackup passphrase", () => {
  it.effect("new: seven words of a list, each as its two bytes say, and nothing is kept", () =>
    Effect.gen(function* () {
      const numbers = [0, 1, 2047, 2048, 65_535, 1024, 4095];
      const entropy = (n: number) => {
        assert.strictEqual(n, 14);
        return Buffer.from(numbers.flatMap((one) => [one >> 8, one & 255]));
      };
      const disk = booksDisk();
      const { code, out, text } = yield* qbackup(disk, ["passphrase", "new"], "", entropy);
      assert.strictEqual(code, 0, text);
      assert.strictEqual(out, "abandon ability zoo abandon zoo length zoo\n");
      assert.match(text, /hint: write it on paper/);
      assert.notInclude(text, "abandon");
      assert.strictEqual(disk.text, "");
      assert.isUndefined(disk.secrets);
    }),
  );
  it("no two of the words begin with the same four letters", () => {
    assert.lengthOf(wordlist, 2048);
    assert.strictEqual(new Set(wordlist.map((word) => word.slice(0, 4))).size, 2048);
    for (const word of wordlist) assert.match(word, /^[a-z]{3,8}$/);
  });
});

describe("qbackup key", () => {
  it.effect("show: the fingerprint, and the key for the server's owner; none is made for it", () =>
    Effect.gen(function* () {
      const { code, out, text } = yield* key(aDisk(), "show");
      const signer = publicOf(secrets.signing);
      assert.strictEqual(code, 0, text);
      assert.strictEqual(
        out,
        `key fingerprint  ${fingerprint(signer)}\npublic key       ${signer}\n`,
      );
      for (const word of ["show", "export", "rotate"]) {
        const empty = booksDisk();
        const none = yield* key(empty, word);
        assert.strictEqual(none.code, 2, none.text);
        assert.match(
          none.text,
          /there is no key here yet\nhint: .*qbackup key new makes one; .*qbackup key import/,
        );
        assert.isUndefined(empty.secrets);
        const foreign = aDisk();
        foreign.fails = (call) =>
          call === "take" ? undefined : ["/s belongs to user 1000", "run qbackup as its owner"];
        const refused = yield* key(foreign, word);
        assert.strictEqual(refused.code, 2, refused.text);
        assert.match(
          refused.text,
          /^error: .*belongs to user 1000\nhint: run qbackup as its owner$/,
        );
      }
    }),
  );
  it.effect("new: before anything can connect, once, and told as the server's owner needs it", () =>
    Effect.gen(function* () {
      const disk = booksDisk();
      const { code, out, text } = yield* key(disk, "new");
      assert.strictEqual(code, 0, text);
      const { series, signing } = disk.secrets!;
      assert.notDeepEqual(Buffer.from(signing), Buffer.from(series));
      const made = publicOf(signing);
      assert.strictEqual(out, `key fingerprint  ${fingerprint(made)}\npublic key       ${made}\n`);
      assert.deepStrictEqual((yield* key(disk, "show")).out, out);
      assert.match(text, new RegExp(`^hint: .*make server user=\\S+ signer=${made}`, "m"));
      assert.match(text, /^hint: .*qbackup key export/m);

      // One that is there is not given up for another one.
      const again = yield* key(disk, "new");
      assert.strictEqual(again.code, 2, again.text);
      assert.strictEqual(again.out, "");
      assert.match(again.text, /there is a key here already\nhint: qbackup key show prints it; /);
      assert.deepStrictEqual(disk.secrets, { series, signing });
      assert.lengthOf(disk.old, 0);
      const foreign = booksDisk();
      foreign.fails = () => ["/s belongs to user 1000", "run qbackup as its owner"];
      const refused = yield* key(foreign, "new");
      assert.strictEqual(refused.code, 2, refused.text);
      assert.isUndefined(foreign.secrets);
    }),
  );
  it.effect("export and import: from one dom0 to another one, through paper", () =>
    Effect.gen(function* () {
      const paper = yield* key(aDisk(), "export");
      assert.strictEqual(paper.code, 0, paper.text);
      const lines = paper.out.split("\n").slice(0, 2);
      for (const line of lines) {
        assert.match(line, /^(?:signing|series ) {1,2}[0-9A-Z]{4}(?:-[0-9A-Z]{4}){13}$/);
        assert.isAtMost(line.length, 80);
      }
      const disk = booksDisk();
      const typed = `${lines.join("\n").toLowerCase().replaceAll("-", " ").replaceAll("0", "o")}\n`;
      const { code, out, text } = yield* key(disk, "import", typed);
      assert.strictEqual(code, 0, text);
      assert.deepStrictEqual(Buffer.from(disk.secrets!.signing), secrets.signing);
      assert.deepStrictEqual(Buffer.from(disk.secrets!.series), secrets.series);
      assert.include(out, fingerprint(publicOf(secrets.signing)));
      const add = `qbackup-shell signers add ${publicOf(secrets.signing)} --root STORE`;
      assert.include(text, `runuser -u ACCOUNT -- /usr/bin/${add}`);
    }),
  );
  it.effect(
    "import asks again for a line with a slip in it, and changes nothing before both are right",
    () =>
      Effect.gen(function* () {
        const signing = secretOnPaper("signing", secrets.signing);
        const series = secretOnPaper("series", secrets.series);
        const slip = signing.replace(/[0-9A-Z]/, (letter) => (letter === "0" ? "1" : "0"));
        const disk = booksDisk();
        const { code, text } = yield* key(
          disk,
          "import",
          `\n${slip}\n${series}\n${signing}\n${series}\n`,
        );
        assert.strictEqual(code, 0, text);
        assert.strictEqual(text.match(/that is not the signing line/g)?.length, 2);
        for (const typed of [
          "",
          `${signing}\n`,
          `${signing}\n${"x\n".repeat(20)}`,
          "x".repeat(9000),
        ]) {
          const kept = aDisk();
          const failed = yield* key(kept, "import", typed);
          assert.strictEqual(failed.code, 2, failed.text);
          assert.match(
            failed.text,
            /the (?:signing|series) line did not come, and nothing was changed/,
          );
          assert.notInclude(kept.calls, "take");
        }
      }),
  );
  it.effect("rotate: another key of the same series; the old one is kept beside it", () =>
    Effect.gen(function* () {
      const disk = aDisk();
      const { code, out, text } = yield* key(disk, "rotate");
      assert.strictEqual(code, 0, text);
      assert.deepStrictEqual(Buffer.from(disk.secrets!.series), secrets.series);
      assert.include(out, publicOf(Buffer.alloc(32, 7)));
      assert.deepStrictEqual(Buffer.from(disk.old[0]!.signing), secrets.signing);
    }),
  );
});

it.prop(
  "a secret on paper is read back, and no letter of it can be another",
  { at: Schema.Int },
  ({ at }) => {
    const index = Math.abs(at);
    const secret = Buffer.alloc(32, index % 251);
    const text = secretOnPaper("signing", secret);
    assert.deepStrictEqual(secretFromPaper("signing", text), secret);
    assert.isUndefined(secretFromPaper("series", text));
    assert.isUndefined(secretFromPaper("signing", text.slice(0, -1)));
    const place = index % text.length;
    if (text[place] === "-") return;
    const other = text[place] === "Z" ? "Y" : "Z";
    assert.isUndefined(
      secretFromPaper("signing", text.slice(0, place) + other + text.slice(place + 1)),
    );
  },
);
