/** What every layer of dom0's books does. Each test gets layers over a place of its own. */
import { assert, it } from "@effect/vitest";
import { Effect, type Layer, Schema } from "effect";
import { Chains } from "#services/Chains";
import { KnownServers } from "#services/KnownServers";
import { type Entry, Ledger, type Submission } from "#services/Ledger";
import { ReadBacks } from "#services/ReadBacks";
import { RunMark, Unfinished } from "#services/RunMark";
import { Signer } from "#services/Signer";
import { cellsOf, type Chain, type Journal, memberAt, type Remembered } from "#src/archive/chain";
import { seriesOf } from "#src/proof/series";
import { lineOf, rootHasher } from "#src/proof/table";
import { signatureHolds } from "#src/proof/keys";
import { Name, PublicKey, Series, Session, Signature } from "#src/wire/names";

export type Books = Chains | Ledger | KnownServers | ReadBacks | RunMark | Signer;

export const key = (letter: string): PublicKey => PublicKey.make(`${letter.repeat(42)}A`);
const signature = Signature.make(`${"B".repeat(85)}A`);

export const submission = (name: string, letter = "A"): Submission => ({
  name: Name.make(name),
  session: Session.make("0123456789abcdef0123456789abcdef"),
  destination: "sys-backup",
  server: key(letter),
  asked: { qubes: ["work"], includeDom0: false, prefix: "" },
  qubes: [{ name: "work", qid: 2 }],
  manifest: `{"version":1,"name":"${name}","odd":"\\u2028 é \\n"}`,
  signature,
});

export const entry = (name: string): Omit<Entry, "version" | "previous"> => ({
  ...submission(name),
  finished: "2026-01-02T03:04:05Z",
  receipt: '{"version":1}',
  receiptSignature: signature,
});

export const unfinished: Unfinished = {
  session: submission("a").session,
  destination: "sys-backup",
  started: true,
};

const same = Schema.toEquivalence(Unfinished);
const vault = { prefix: "", qubes: ["vault"], includeDom0: false };
const [one, two] = [Series.make("0123456789abcdef"), Series.make("work-0123456789abcdef")];

export const booksContract = (name: string, make: () => Layer.Layer<Books>) => {
  const test = (title: string, what: Effect.Effect<void, unknown, Books>) =>
    it.live(`${name}: ${title}`, () => Effect.provide(what, make()));

  test(
    "is empty at first",
    Effect.gen(function* () {
      const ledger = yield* Ledger;
      assert.deepStrictEqual(yield* ledger.entries, { entries: [], damaged: [] });
      const nothing = { lines: [], damaged: [], unlinked: [] };
      assert.deepStrictEqual(yield* ledger.chain, nothing);
      assert.isUndefined(yield* (yield* RunMark).read);
      assert.isUndefined(yield* (yield* KnownServers).pinned("sys-backup"));
      assert.strictEqual((yield* (yield* ReadBacks).all).size, 0);
      assert.isUndefined(yield* (yield* Signer).existing);
      assert.isUndefined(yield* (yield* Signer).secrets);
      yield* (yield* RunMark).write(undefined);
    }),
  );
  test(
    "keeps runs in order, each linked to the one before",
    Effect.gen(function* () {
      const ledger = yield* Ledger;
      for (const each of ["a", "b", "c"]) yield* ledger.append(entry(each));
      const { damaged, entries } = yield* ledger.entries;
      assert.deepStrictEqual(damaged, []);
      assert.deepStrictEqual(
        entries.map((each) => each.name as string),
        ["a", "b", "c"],
      );
      const chain = yield* ledger.chain;
      assert.deepStrictEqual([chain.damaged, chain.unlinked], [[], []]);
      assert.deepStrictEqual(
        chain.lines.map(({ number }) => number),
        [1, 2, 3],
      );
      const [first, second, third] = chain.lines;
      assert.isNull(first!.entry.previous);
      assert.match(first!.hash, /^[0-9a-f]{64}$/);
      assert.strictEqual(second!.entry.previous, first!.hash);
      assert.strictEqual(third!.entry.previous, second!.hash);
      const { previous: _p, version: _v, ...rest } = entries[2]!;
      assert.deepStrictEqual(rest, entry("c"));
    }),
  );
  test(
    "keeps every run that is added at the same time",
    Effect.gen(function* () {
      const ledger = yield* Ledger;
      const names = Array.from({ length: 8 }, (_, i) => `n${i}`);
      yield* Effect.forEach(names, (each) => ledger.append(entry(each)), { concurrency: 8 });
      const { entries } = yield* ledger.entries;
      assert.deepStrictEqual(entries.map((each) => each.name as string).sort(), names);
      assert.strictEqual(new Set(entries.map(({ previous }) => previous)).size, 8);
    }),
  );
  test(
    "keeps whether a line was rebuilt",
    Effect.gen(function* () {
      const ledger = yield* Ledger;
      yield* ledger.append(entry("a"));
      yield* ledger.append({ ...entry("b"), rebuilt: true });
      const { entries } = yield* ledger.entries;
      assert.deepStrictEqual(
        entries.map(({ rebuilt }) => rebuilt),
        [undefined, true],
      );
    }),
  );
  test(
    "remembers the run under way until it is told otherwise",
    Effect.gen(function* () {
      const mark = yield* RunMark;
      yield* mark.write(unfinished);
      assert.deepStrictEqual(yield* mark.read, unfinished);
      const { manifest: _m, ...about } = submission("a");
      const more: Unfinished = {
        ...unfinished,
        submission: submission("a"),
        ticket: {
          name: about.name,
          session: about.session,
          base: "-",
          series: one,
          run: 7,
          bytes: 200_000,
          time: "2026-01-02T03:04:05Z",
          signer: about.server,
          signature: about.signature,
        },
        backedUp: [{ name: "work", at: 1 }, { name: "new" }],
      };
      yield* mark.write(more);
      assert.isTrue(same((yield* mark.read)!, more));
      const others = ["b", "c"].map((name) => ({
        submission: submission(name),
        ticket: more.ticket!,
      }));
      const most = { ...more, earlier: [...others, { ...others[0]!, backedUp: more.backedUp! }] };
      yield* mark.write(most);
      assert.isTrue(same((yield* mark.read)!, most));
      yield* mark.write(undefined);
      assert.isUndefined(yield* mark.read);
    }),
  );
  test(
    "remembers what was audited, each archive for itself",
    Effect.gen(function* () {
      const books = yield* ReadBacks;
      const [a, b] = ["1", "2"].map((digit) => Session.make(digit.repeat(32)));
      const sampled = { at: "2026-01-02T03:04:05Z", blocks: 7, of: 9 };
      yield* books.change([a!, b!], (before) => ({ ...before, sampled }));
      yield* books.change([b!], (before) => ({ ...before, failed: "2026-01-03T00:00:00Z" }));
      yield* books.change([], () => ({}));
      assert.deepStrictEqual(
        yield* books.all,
        new Map([
          [a as string, { sampled }],
          [b as string, { sampled, failed: "2026-01-03T00:00:00Z" }],
        ]),
      );
    }),
  );
  test(
    "keeps every audit that is noted at the same time",
    Effect.gen(function* () {
      const books = yield* ReadBacks;
      const sessions = Array.from({ length: 8 }, (_, i) => Session.make(String(i).repeat(32)));
      const whole = "2026-01-02T03:04:05Z";
      yield* Effect.forEach(sessions, (each) => books.change([each], () => ({ whole })), {
        concurrency: 8,
      });
      assert.strictEqual((yield* books.all).size, 8);
    }),
  );
  test(
    "pins one key for each qube",
    Effect.gen(function* () {
      const servers = yield* KnownServers;
      yield* servers.pin("sys-backup", key("A"));
      yield* servers.pin("other", key("B"));
      assert.strictEqual(yield* servers.pinned("sys-backup"), key("A"));
      yield* servers.pin("sys-backup", key("C"));
      assert.strictEqual(yield* servers.pinned("sys-backup"), key("C"));
      assert.strictEqual(yield* servers.pinned("other"), key("B"));
      assert.isUndefined(yield* servers.pinned("nobody"));
    }),
  );
  test(
    "makes dom0's keys once, and signs with them",
    Effect.gen(function* () {
      const books = yield* Signer;
      const first = yield* books.keys;
      assert.isTrue(first.fresh);
      const again = yield* books.keys;
      assert.isFalse(again.fresh);
      assert.strictEqual(again.signer, first.signer);
      assert.strictEqual(yield* books.existing, first.signer);
      assert.strictEqual(again.seriesOf(vault), first.seriesOf(vault));
      const signed = again.sign("manifest", "text");
      assert.isTrue(signatureHolds(first.signer, "manifest", "text", signed));
      const { series, signing } = (yield* books.secrets)!;
      assert.deepStrictEqual([signing.length, series.length], [32, 32]);
      assert.notDeepEqual(signing, series);
      assert.strictEqual(seriesOf(series, vault), first.seriesOf(vault));
    }),
  );
  test(
    "makes one key where two are asked for at once",
    Effect.gen(function* () {
      const { keys } = yield* Signer;
      const made = yield* Effect.all([keys, keys, keys], { concurrency: 3 });
      assert.strictEqual(new Set(made.map(({ signer }) => signer)).size, 1);
      assert.strictEqual(made.filter(({ fresh }) => fresh).length, 1);
    }),
  );
  test(
    "numbers the runs of a series, above what anyone says",
    Effect.gen(function* () {
      const { nextRun } = yield* Signer;
      assert.strictEqual(yield* nextRun(key("A"), one, 0), 1);
      assert.strictEqual(yield* nextRun(key("A"), one, 0), 2);
      assert.strictEqual(yield* nextRun(key("A"), two, 0), 1);
      assert.strictEqual(yield* nextRun(key("B"), one, 0), 1);
      assert.strictEqual(yield* nextRun(key("A"), one, 57), 58);
      assert.strictEqual(yield* nextRun(key("A"), one, 3), 59);
      const given = Effect.forEach([1, 2, 3, 4], () => nextRun(key("B"), two, 0), {
        concurrency: 4,
      });
      assert.deepStrictEqual([...(yield* given)].sort(), [1, 2, 3, 4]);
    }),
  );
  test(
    "takes keys from paper",
    Effect.gen(function* () {
      const books = yield* Signer;
      const before = yield* books.keys;
      const secrets = { signing: new Uint8Array(32).fill(1), series: new Uint8Array(32).fill(2) };
      yield* books.take(secrets);
      const after = yield* books.keys;
      assert.isFalse(after.fresh);
      assert.notStrictEqual(after.signer, before.signer);
      assert.strictEqual(after.seriesOf(vault), seriesOf(secrets.series, vault));
      const kept = (yield* books.secrets)!;
      assert.deepStrictEqual(
        [kept.signing, kept.series].map((bytes) => [...bytes]),
        [[...secrets.signing], [...secrets.series]],
      );
    }),
  );
  test(
    "takes keys where there are none",
    Effect.gen(function* () {
      const books = yield* Signer;
      yield* books.take({ signing: new Uint8Array(32), series: new Uint8Array(32) });
      assert.isFalse((yield* books.keys).fresh);
    }),
  );

  const none = { newest: undefined, proposed: undefined, journal: undefined, damaged: false };
  const which = { server: key("A"), series: one };
  test(
    "knows nothing of a chain at first, and forgets what is not there",
    Effect.gen(function* () {
      const chains = yield* Chains;
      assert.deepStrictEqual(yield* chains.read(which), none);
      yield* chains.forget(which);
      assert.deepStrictEqual(yield* chains.read(which), none);
    }),
  );
  test(
    "keeps by what passphrases are known, in their order",
    Effect.gen(function* () {
      const chains = yield* Chains;
      const mark = (n: number) => ({ salt: `${n}`.repeat(64), check: "a".repeat(64) });
      assert.deepStrictEqual(yield* chains.passphrases, []);
      yield* chains.addPassphrase(mark(1));
      yield* chains.addPassphrase({ ...mark(2), number: 7 });
      assert.deepStrictEqual(yield* chains.passphrases, [mark(1), { ...mark(2), number: 7 }]);
    }),
  );
  test(
    "keeps an archive of slots beside the one before, until it is one",
    Effect.gen(function* () {
      const chains = yield* Chains;
      yield* chains.propose(which, chainOf(1));
      assert.deepStrictEqual(yield* chains.read(which), { ...none, proposed: chainOf(1) });
      yield* chains.adopt(which);
      assert.deepStrictEqual(yield* chains.read(which), { ...none, newest: chainOf(1) });
      yield* chains.propose(which, chainOf(2));
      yield* chains.propose(which, chainOf(3));
      const both = { ...none, newest: chainOf(1), proposed: chainOf(3) };
      assert.deepStrictEqual(yield* chains.read(which), both);
      // Of another series, or server, nothing is known.
      for (const other of [
        { ...which, series: two },
        { ...which, server: key("B") },
      ]) {
        assert.deepStrictEqual(yield* chains.read(other), none);
      }
      yield* chains.forget(which);
      assert.deepStrictEqual(yield* chains.read(which), none);
    }),
  );
  test(
    "notes the members of an upload, which is over with its archive",
    Effect.gen(function* () {
      const chains = yield* Chains;
      const { cells: _cells, files: _files, root: _root, ...identity } = chainOf(1);
      const first = [["a.000.enc", cellOf(1)]] as const;
      const journal: Journal = { ...identity, signer: key("A"), base: "-", members: first };
      yield* chains.begin(which, journal);
      yield* chains.note(which, "a.001.enc", cellOf(2));
      yield* chains.note(which, "a.001.enc", cellOf(3));
      const members: Journal["members"] = [
        ["a.000.enc", cellOf(1)],
        ["a.001.enc", cellOf(2)],
        ["a.001.enc", cellOf(3)],
      ];
      const noted = { ...none, journal: { ...journal, members } };
      assert.deepStrictEqual(yield* chains.read(which), noted);
      yield* chains.begin(which, { ...journal, members: [] });
      yield* chains.propose(which, chainOf(1));
      const begun = { ...none, proposed: chainOf(1), journal: { ...journal, members: [] } };
      assert.deepStrictEqual(yield* chains.read(which), begun);
      yield* chains.adopt(which);
      assert.deepStrictEqual(yield* chains.read(which), { ...none, newest: chainOf(1) });
    }),
  );
};

export const cellOf = (n: number): Remembered => ({
  mac: `${n}`.repeat(32),
  span: n,
  present: n,
  size: 1000,
  digest: `${n}`.repeat(64),
});
/** One of a single member, which is enough of it. */
export const chainOf = (n: number): Chain => {
  const root = rootHasher();
  root.push(lineOf(memberAt("a.000.enc", cellOf(n))));
  return {
    id: "20261128T030000-7",
    key: "a".repeat(64),
    check: "b".repeat(64),
    began: n,
    session: Session.make("c".repeat(32)),
    root: root.root()!,
    files: [{ name: "a", chunks: 1 }],
    cells: cellsOf([cellOf(n)]),
  };
};
