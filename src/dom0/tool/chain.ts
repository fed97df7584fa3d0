/**
 * The chain that an archive of slots is the next link of: what is known of the archive before it, of which
 * members are kept, and of an upload that broke off, with which this run goes on.
 */
import { Clock, Effect, type Redacted, Result } from "effect";
import { Chains, type Which } from "#services/Chains";
import { Invocation } from "#services/Invocation";
import type { Qrexec } from "#services/Qrexec";
import { type Entry, Ledger } from "#services/Ledger";
import { ReadBacks } from "#services/ReadBacks";
import { Reporter } from "#services/Reporter";
import {
  type Chain,
  cellAt,
  cellsOf,
  type Identity,
  identityOf,
  type Journal,
  memberAt,
  type Remembered,
  countOf,
} from "#src/archive/chain";
import type { Chosen } from "#src/archive/compose";
import { chunkPath, stayingChunks } from "#src/archive/slots";
import { type Manifest, parseManifest, type Ticket } from "#src/proof/texts";
import { instantOf, type PublicKey, type Series, type Session } from "#src/wire/names";
import { humanSize, roughly } from "#src/say/format";
import { line } from "#src/say/shown";
import { faultOf, isVague } from "#src/dom0/books/noted";
import { inLedger } from "#src/dom0/books/unusable";
import { failed, type RunFailed } from "#src/dom0/failure";
import { openFar, trustedBy } from "#src/dom0/far/fetch";
import {
  type Archive,
  checkThere,
  fetchRecord,
  listArchives,
  unlessLink,
} from "#src/dom0/far/remote";
import type { Room } from "#src/dom0/far/server";
import { type Beginning, newSession } from "#src/dom0/far/upload";
import { checkerFor } from "./passphrase.ts";

/** A member of the archive that is made, and by what it is known again. */
export interface Link {
  readonly chosen: Chosen;
  readonly cell: Remembered;
}

/** A file of that archive: its members by their numbers. */
export interface Linked {
  readonly name: string;
  readonly links: ReadonlyArray<Link>;
}

/** A backup-id in qvm-backup's form: the time, and a number in place of a process'. */
const newBackupId = Effect.gen(function* () {
  const { entropy } = yield* Invocation;
  const time = instantOf(yield* Clock.currentTimeMillis).replace(/[-:Z]/g, "");
  return `${time}-${Buffer.from(entropy(4)).readUInt32BE(0)}`;
});

/** Why nothing of the archives before can be used, in a sentence; and what a person should know besides. */
interface Anew {
  readonly why: string;
  readonly warning?: string;
}

/** Bytes a second of the last run that had a good deal to send to this server; undefined: there was none. */
const lastRate = (entries: ReadonlyArray<Entry>, server: PublicKey): number | undefined => {
  const last = entries.findLast(
    (one) =>
      one.server === server && (one.bytes?.sent ?? 0) >= 67_108_864 && one.bytes!.seconds > 0,
  );
  return last && last.bytes!.sent / last.bytes!.seconds;
};

/**
 * The newest archive of a series that the server has, signed by this dom0, and which of its members has
 * which digest; undefined where there is none, or it is not what was signed for.
 */
const newestThere = Effect.fnUntraced(
  function* (destination: string, { series, server }: Which, signer: PublicKey) {
    let newest: Archive | undefined;
    yield* listArchives(destination, undefined, (page) =>
      Effect.sync(() => {
        for (const { archive } of page) {
          if (archive?.series !== series || archive.signer !== signer || archive.damaged) continue;
          if (archive.run! > (newest?.run ?? 0)) newest = archive;
        }
      }),
    );
    const signed = newest && (yield* fetchRecord(destination, newest.name));
    const { manifest } = signed ?? {};
    if (
      manifest?.format !== "slots" ||
      manifest.signer !== signer ||
      manifest.series !== series ||
      manifest.server !== server
    ) {
      return undefined;
    }
    const list = yield* (yield* openFar(destination)).members(
      trustedBy(manifest, destination),
      false,
    );
    const places = new Map<string, number>();
    for (let i = 0; i < list.count; i++) places.set(list.at(i).digest, i);
    return { name: manifest.name, session: manifest.session, places };
  },
  Effect.scoped,
  (it) => unlessLink(it),
);

/** Of `count` members of an archive, from the `first`th on; one after the other, for there may be very many. */
function* cellsIn(chain: Chain, first: number, count: number) {
  for (let index = first; index < first + count; index++) yield cellAt(chain, index);
}

/**
 * The chain of a series, whose tickets have this signer. `most` is what one archive can have at most, in bytes,
 * where that is known; `asked`: its owner wants a new one.
 */
export const openChain = Effect.fnUntraced(function* (
  destination: string,
  series: Series,
  signer: PublicKey,
  passphrase: Redacted.Redacted<Uint8Array>,
  most: number | undefined,
  asked: boolean,
) {
  const chains = yield* Chains;
  const ledger = yield* Ledger;
  const readBacks = yield* ReadBacks;
  const checkOf = yield* checkerFor(passphrase);
  const { say } = yield* Reporter;
  const invocation = yield* Invocation;
  const session = Effect.provideService(newSession, Invocation, invocation);
  const around = yield* Effect.context<Qrexec | Reporter | Ledger>();

  let which: Which | undefined;
  let identity: Identity | undefined;
  let newest: Chain | undefined;
  /** The archive that this one builds on: that, or another one that has members of it. */
  let base: Session | "-" = "-";
  /** Of such another one: which of its members has which digest. */
  let places: ReadonlyMap<string, number> | undefined;
  /** Which member of that archive the first one of a file is, and how many of its members can be kept. */
  let files = new Map<string, { readonly first: number; readonly chunks: number }>();
  let upload: Session | undefined;
  /** The members of the pack, in its order; found again by their path, of two the later one. */
  let pack: Array<readonly [string, Remembered]> = [];
  let packed = new Map<string, { readonly at: number; readonly cell: Remembered }>();
  let started = false;
  /** The chain begins with this run. */
  let fresh = false;
  /** It begins anew though what is noted could be built on: a run that goes on with this one must know. */
  let anew: true | undefined;
  let proposed = false;
  /** The archive before was found to be other than it was here. */
  let refused: true | undefined;
  /** Digests of members that are not kept: they did not come back as they were. */
  let bad: ReadonlySet<string> = new Set();
  /** Nothing more is noted: what was lost once would be missing in the middle. */
  let deaf = false;

  const begin = Effect.gen(function* () {
    const key = Buffer.from(invocation.entropy(32)).toString("hex");
    const id = yield* Effect.provideService(newBackupId, Invocation, invocation);
    identity = { id, key, check: yield* checkOf(key), began: 0 };
    fresh = true;
    refused = undefined;
  });

  /** The archive that the next one can build on, if there is one. */
  const found = Effect.fnUntraced(function* (of: Which) {
    const links = yield* inLedger(chains.read(of));
    const { entries } = yield* inLedger(ledger.entries);
    const proposed = links.proposed;
    const taken =
      proposed !== undefined &&
      entries.some(
        ({ manifest, session }) =>
          session === proposed.session && parseManifest(manifest)?.root === proposed.root,
      );
    if (taken) yield* inLedger(chains.adopt(of));
    return { ...links, newest: taken ? proposed : links.newest, entries };
  });

  /** What speaks against building on it. */
  const unfit = Effect.fnUntraced(function* (
    of: Which,
    chain: Chain,
    entries: Effect.Success<ReturnType<typeof found>>["entries"],
  ) {
    if ((yield* checkOf(chain.key)) !== chain.check) {
      return { why: "the passphrase is another one" } satisfies Anew;
    }
    const audits = yield* inLedger(readBacks.all);
    const ofChain = ({ run, server }: Pick<Manifest, "run" | "server">) =>
      server === of.server || chain.moved?.some((one) => one.server === server && run <= one.run);
    /** What was looked at of this chain. */
    const seen = entries.flatMap(({ manifest: text, name, session }) => {
      const audit = audits.get(session);
      const manifest = audit && parseManifest(text);
      return manifest?.format === "slots" &&
        ofChain(manifest) === true &&
        manifest.series === of.series &&
        manifest.run >= chain.began
        ? [{ name, session, run: manifest.run, audit: audit! }]
        : [];
    });
    const members = new Set<string>();
    const doubted: Array<string> = [];
    for (const { audit, name, run, session } of seen) {
      const { failed, forgotten, many, spoiled, undecryptable } = audit;
      if (faultOf(audit) === undefined) continue;
      const unknown = isVague(audit) && forgotten === undefined;
      if (undecryptable !== undefined || many === true || (unknown && session === chain.session)) {
        return { why: `${name} did not come back as it was` } satisfies Anew;
      }
      for (const digest of spoiled ?? []) members.add(digest);
      // What later ones have of it came back since, where all of one of them did.
      const allays = (later: (typeof seen)[number]) =>
        later.run > run && (later.audit.whole ?? "") > failed!;
      if (unknown && !seen.some(allays)) doubted.push(name);
    }
    if (doubted.length > 0) {
      const others = doubted.length === 1 ? "" : ` and ${doubted.length - 1} more`;
      yield* say(
        "warning",
        line`${doubted[0]!}${others} did not come back as it was, and of which members is not known: this archive may have some of them, too`,
      );
      yield* say(
        "hint",
        "qbackup verify, of the newest archive, tells; what was removed on purpose, qbackup ledger forget takes off the books",
      );
    }
    bad = members;
    const count = members.size === 0 ? 0 : countOf(chain, members);
    if (count === 0) return;
    yield* say(
      "info",
      line`${count} ${count === 1 ? "member" : "members"} of the archives before did not come back as they were: what is in them is sent anew`,
    );
    return;
  });

  /**
   * The chain that these qubes have with another server, where this one has the newest archive of it: a store
   * that was moved. Otherwise what speaks against it; undefined where there is none.
   */
  const moved = Effect.fnUntraced(function* (of: Which, entries: ReadonlyArray<Entry>) {
    const seen = new Set<PublicKey>([of.server]);
    let against: Anew | undefined;
    for (const { manifest: text } of entries.toReversed()) {
      const last = parseManifest(text);
      if (last?.format !== "slots" || last.series !== of.series || seen.has(last.server)) continue;
      seen.add(last.server);
      const { newest: there } = yield* found({ server: last.server, series: of.series });
      if (there?.session !== last.session || there.root !== last.root) continue;
      const record = yield* unlessLink(fetchRecord(destination, last.name));
      if (record?.manifestText !== text) {
        against ??= { why: `this server has not ${last.name}, the newest archive of these qubes` };
        continue;
      }
      const chain: Chain = {
        ...there,
        moved: [...(there.moved ?? []), { server: last.server, run: last.run }],
      };
      const wrong = yield* unfit(of, chain, entries);
      if (wrong !== undefined) return wrong;
      yield* say(
        "info",
        line`the server is another one than before, and has ${last.name}: it reads all of that once, before anything is built on it`,
      );
      const missing = failed("refused", "it has none of that name any more");
      const sound = yield* Effect.result(checkThere(destination, last, missing));
      if (Result.isFailure(sound)) {
        if (sound.failure.exit === "link") return yield* sound.failure;
        return { why: `this server did not find ${last.name} as it was: ${sound.failure.message}` };
      }
      if (!sound.success) return { why: `this server has another ${last.name} than was backed up` };
      yield* inLedger(chains.propose(of, chain));
      yield* inLedger(chains.adopt(of));
      return { chain };
    }
    return against;
  });

  const use = (chain: Chain | undefined) => {
    newest = chain;
    base = chain?.session ?? "-";
    places = undefined;
    files = new Map();
    let first = 0;
    for (const { chunks, name } of chain?.files ?? []) {
      files.set(name, { first, chunks: stayingChunks(cellsIn(chain!, first, chunks)) });
      first += chunks;
    }
  };
  const usePack = (members: Journal["members"]) => {
    pack = [...members];
    packed = new Map();
    pack.forEach(([path, cell], at) => packed.set(path, { at, cell }));
  };
  const beginningOf = (of: Session, noted?: Journal["members"]): Beginning => ({
    session: of,
    base,
    // The numbers of a chain grow, whoever keeps it.
    above: Math.max(0, ...(identity?.moved ?? []).map(({ run }) => run)),
    noted: noted?.map(([path, cell]) => memberAt(path, cell)),
  });
  const sayAnew = ({ warning, why }: Anew, there: Room, rate: number | undefined) =>
    Effect.gen(function* () {
      const room = yield* there;
      if (warning !== undefined) yield* say("warning", line`${warning}`);
      const lasts =
        most === undefined || rate === undefined
          ? ""
          : `, some ${roughly(most / rate)} at the rate of the last one`;
      const upTo = most === undefined ? "" : `, ${humanSize(most)} at most${lasts}`;
      yield* say(
        "info",
        line`${why}: all of it is sent${upTo}, and the next archives keep what did not change; the server has room for ${humanSize(room)}`,
      );
    });

  /** Asked for by the upload once it knows the server. */
  const beginning = Effect.fnUntraced(function* (server: PublicKey, room: Room) {
    const of: Which = { server, series };
    which = of;
    const { damaged, entries, journal, newest: own } = yield* found(of);
    anew = asked ? true : journal?.anew;
    const elsewhere =
      own === undefined && journal === undefined && !damaged && !asked
        ? yield* Effect.provide(moved(of, entries), around)
        : undefined;
    const [taken, against] =
      elsewhere !== undefined && "chain" in elsewhere
        ? [elsewhere.chain, undefined]
        : [undefined, elsewhere];
    const last = own ?? taken;
    const wrong: Anew | undefined =
      own === undefined
        ? against
        : anew === undefined
          ? yield* unfit(of, own, entries)
          : { why: asked ? "a new chain was asked for" : "a new chain was begun" };
    use(wrong === undefined ? last : undefined);
    // Of a chain that has no archive yet this goes on, whoever asked: otherwise it might never have one.
    const goesOn =
      journal !== undefined &&
      journal.signer === signer &&
      journal.base === base &&
      // What stands there of an archive that nothing can be built on is of its chain, or of the next one.
      (journal.key === last?.key) === (newest !== undefined) &&
      journal.check === (yield* checkOf(journal.key));
    if (goesOn) {
      identity = identityOf(journal);
      usePack(journal.members);
      refused = journal.refused;
      if (journal.members.length > 0) {
        yield* say("info", line`an earlier run has sent a part of it: this one goes on with that`);
      }
      return beginningOf(journal.session, journal.members);
    }
    if (journal !== undefined && journal.signer !== signer) {
      yield* say(
        "info",
        line`what an earlier run has sent of it was signed with another key of this dom0: it begins anew`,
      );
    }
    usePack([]);
    if (newest === undefined) {
      yield* sayAnew(
        wrong ??
          (damaged
            ? {
                why: "what was known here of the archives before is damaged",
                warning: "look at the disk of dom0's home",
              }
            : { why: "nothing is known here of an archive of these qubes in slots" }),
        room,
        lastRate(entries, server),
      );
      yield* begin;
    } else identity = identityOf(newest);
    return beginningOf(yield* session);
  });

  /** The journal as it now must be. */
  const journal = Effect.suspend(() =>
    chains.begin(which!, {
      ...identity!,
      session: upload!,
      signer,
      base,
      refused,
      anew,
      members: pack,
    }),
  );
  const unnoted = (error: { readonly message: string }) => {
    deaf = true;
    return say("warning", line`${error.message}; if this run breaks off, the next one begins anew`);
  };

  const another = Effect.fnUntraced(function* (missing: "base" | "session") {
    if (missing === "base") {
      const there =
        places === undefined
          ? yield* Effect.provide(newestThere(destination, which!, signer), around)
          : undefined;
      if (there !== undefined) {
        yield* say(
          "warning",
          line`the archive that this one was to build on is not on the server any more; it builds on ${there.name}, and keeps what that has of it`,
        );
        base = there.session;
        places = there.places;
      } else {
        yield* say(
          "warning",
          "the server has not the archive that this one was to build on: all of it is sent",
        );
        use(undefined);
        yield* begin;
        anew = true;
      }
    }
    const of = yield* session;
    // What this run has made is still to be sent, in the same order.
    if (started) {
      upload = of;
      yield* Effect.catch(journal, unnoted);
    } else usePack([]);
    return beginningOf(of);
  });

  const orWarning = (what: Effect.Effect<void, { readonly message: string }>) =>
    Effect.catch(what, ({ message }) => say("warning", line`${message}`));

  return {
    beginning,
    another,
    /** The server is ready: it has `there` members of the pack, and this is run `run`. */
    start: Effect.fnUntraced(function* (ticket: Pick<Ticket, "session" | "run">, there: number) {
      started = true;
      upload = ticket.session;
      usePack(pack.slice(0, there));
      if (fresh) identity = { ...identity!, began: ticket.run };
      yield* Effect.catch(journal, unnoted);
    }),
    /** The backup-id, and the key of the MACs. */
    backupId: () => identity!.id,
    macKey: () => Buffer.from(identity!.key, "hex"),
    /**
     * The spans of the cells that a volume has already. Of one that is cut anew the rest of them are all
     * made anew, so what an earlier run has made of them stands in its pack, none missing.
     */
    *layoutOf(name: string) {
      const known = files.get(name);
      let chunk = 1;
      for (; known !== undefined && chunk < known.chunks; chunk++) {
        yield cellAt(newest!, known.first + chunk).span;
      }
      for (; ; chunk++) {
        const sent = packed.get(chunkPath(name, chunk));
        if (sent === undefined) return;
        yield sent.cell.span;
      }
    },
    /** A member for the same chunk with the same in it. */
    find: (
      name: string,
      chunk: number,
      of: Pick<Remembered, "mac" | "span" | "present">,
    ): Link | undefined => {
      const path = chunkPath(name, chunk);
      const link = (cell: Remembered, at: number, where: Chosen["of"]): Link => ({
        chosen: { member: memberAt(path, cell), of: where, at },
        cell: { ...cell, ...of },
      });
      const known = files.get(name);
      if (known !== undefined && chunk < known.chunks) {
        const cell = cellAt(newest!, known.first + chunk);
        const at = places === undefined ? known.first + chunk : places.get(cell.digest);
        if (cell.mac === of.mac && !bad.has(cell.digest) && at !== undefined)
          return link(cell, at, "base");
      }
      const sent = packed.get(path);
      return sent?.cell.mac === of.mac ? link(sent.cell, sent.at, "new") : undefined;
    },
    /** The members of the pack that are there already. */
    there: () => pack.map(([, cell]) => cell.digest),
    /** Notes a member, the next one of the pack, before the last of it is sent. */
    note: (path: string, cell: Remembered) =>
      Effect.suspend(() => {
        pack.push([path, cell]);
        return deaf ? Effect.void : Effect.catch(chains.note(which!, path, cell), unnoted);
      }),
    /** Notes what the archive is made of, before it is one. */
    propose: (archive: ReadonlyArray<Linked>, root: string) =>
      Effect.gen(function* () {
        yield* chains.propose(which!, {
          ...identity!,
          session: upload!,
          root,
          files: archive.map(({ links, name }) => ({ name, chunks: links.length })),
          cells: cellsOf(archive.flatMap(({ links }) => links.map(({ cell }) => cell))),
        });
        proposed = true;
      }).pipe(orWarning),
    /** It is one. What could not be noted of it is of the archive before still. */
    adopt: Effect.suspend(() => (proposed ? orWarning(chains.adopt(which!)) : Effect.void)),
    /** The server refused what was sent. */
    refused: Effect.fnUntraced(function* (why: NonNullable<RunFailed["content"]>) {
      // Built on what was found on the server alone, the next run would not come back to it.
      if (why === "other" && refused === undefined && places === undefined) {
        yield* say(
          "warning",
          "what the server has is not what was sent: the next run sends that anew, and if it is refused, too, the one after that all of it",
        );
        refused = true;
        upload = yield* session;
        usePack([]);
        return yield* orWarning(journal);
      }
      yield* say(
        "warning",
        "what is noted here is not what the server has: the next run sends all of it",
      );
      yield* orWarning(chains.forget(which!));
    }),
  };
});
export type OpenChain = Effect.Success<ReturnType<typeof openChain>>;
