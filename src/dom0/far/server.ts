/**
 * Who the server is, and the ticket with which it takes an upload: dom0 learns the key before its first
 * ticket, and numbers its runs above every one that the server was ever shown.
 */
import { Clock, Effect } from "effect";
import { KnownServers } from "#services/KnownServers";
import { Ledger } from "#services/Ledger";
import { Reporter } from "#services/Reporter";
import { type Keys, Signer } from "#services/Signer";
import { fingerprint, signatureHolds } from "#src/proof/keys";
import { parseTicket, type SignedTicket, type Ticket, ticketText } from "#src/proof/texts";
import { line } from "#src/say/shown";
import { instantOf, type PublicKey, type Series } from "#src/wire/names";
import { inLedger } from "#src/dom0/books/unusable";
import { failed, type RunFailed } from "#src/dom0/failure";
import { isOfTest } from "#src/dom0/qube/throwaway";
import { isFailed, orNoServer, reach, refusal, signersAdd } from "./call.ts";
import { persist } from "./retry.ts";

/** What `--expect-server` was given. */
export const checkFingerprint = (text: string | undefined) =>
  text === undefined || /^[0-9A-Fa-f]{64}$/.test(text)
    ? Effect.void
    : failed(
        "usage",
        "--expect-server takes a fingerprint of 64 hex digits",
        "on the server `make server` printed it, and qbackup-shell identity prints it",
      );

/** What prints the server's fingerprint, where its owner can be asked. */
const askTheOwner = "`runuser -u ACCOUNT -- /usr/bin/qbackup-shell identity --root STORE`";

/** The server behind `destination` is no other than the pinned one; gives whether one is pinned. */
const compareServer = Effect.fnUntraced(function* (destination: string, server: PublicKey) {
  const servers = yield* KnownServers;
  const pinned = yield* inLedger(servers.pinned(destination));
  if (pinned === undefined || pinned === server) return pinned !== undefined;
  const { place } = yield* Ledger;
  return yield* failed(
    "integrity",
    `the server's key changed: its fingerprint was ${fingerprint(pinned)}, now it is ${fingerprint(server)}`,
    `ask the server's owner what ${askTheOwner} prints there, as root; only if it is the new key, remove the line of ${destination} from ${place}/known_servers`,
  );
});

/**
 * The server behind `destination` is the one that it was the first time; pinned then. The caller has
 * something that was signed with this key: one that was only shown may be what a forger or a bad link
 * made of the server's, and would lock the true server out.
 */
export const checkServer = Effect.fnUntraced(function* (destination: string, server: PublicKey) {
  if (yield* compareServer(destination, server)) return;
  yield* inLedger((yield* KnownServers).pin(destination, server));
  const { say } = yield* Reporter;
  yield* say(
    "info",
    line`first contact: pinned the server behind ${destination}, key fingerprint ${fingerprint(server)}`,
  );
  yield* say(
    "hint",
    line`compare it with what \`make server\` printed, or ${askTheOwner} prints there, as root`,
  );
});

/** Where a key was only just made, though the ledger has backups of another one: what follows from that. */
export const warnOfOld = Effect.fnUntraced(function* (signer: PublicKey) {
  const { entries } = yield* inLedger((yield* Ledger).entries);
  const count = entries.filter((entry) => !isOfTest(entry)).length;
  if (count === 0) return;
  const { say } = yield* Reporter;
  yield* say(
    "warning",
    line`the ledger has ${count} ${count === 1 ? "backup" : "backups"} of another key, which is not here any more: they can be read and restored as before, but a server that has them takes none of this key until its owner says, as root there: ${signersAdd(signer)}`,
  );
  yield* say(
    "hint",
    "if the old key is on paper, qbackup key import brings it back; without it the next backup sends everything once more, as a rule",
  );
});

/** The keys, made where there are none; their fingerprint is shown then. */
export const ownKeys = Effect.gen(function* () {
  const keys = yield* inLedger((yield* Signer).keys);
  if (keys.fresh) {
    const { say } = yield* Reporter;
    yield* say(
      "info",
      line`made the key that signs backups: key fingerprint ${fingerprint(keys.signer)}`,
    );
    yield* warnOfOld(keys.signer);
    yield* say("hint", "write it on paper, so that it outlives this machine: qbackup key export");
  }
  return keys;
});

/** An upload before it has a ticket. */
export interface Wanted {
  readonly destination: string;
  readonly keys: Keys;
  readonly series: Series;
  /** Minutes in which signs of life alone are taken for an answer that is to come. */
  readonly linkTimeout: number;
}

/**
 * A ticket that the server shows as the highest: the number of its run. Only dom0 can have signed it,
 * so what was not signed here is a lie, and no number is taken from it.
 */
const runOf = (
  { keys, series }: Wanted,
  server: PublicKey,
  text: string,
  signature: string,
): Effect.Effect<number, RunFailed> => {
  const shown = parseTicket(text);
  return shown !== undefined &&
    signatureHolds(keys.signer, "ticket", text, signature) &&
    shown.server === server &&
    shown.ticket.signer === keys.signer &&
    shown.ticket.series === series
    ? Effect.succeed(shown.ticket.run)
    : Effect.fail(
        failed("integrity", "the server shows a ticket that was not signed here for these backups"),
      );
};

/** Bytes that an upload may have now. */
export type Room = Effect.Effect<number, RunFailed>;
/** What is known of the server before it is asked for an upload. */
export interface Met {
  readonly server: PublicKey;
  readonly room: Room;
  /** The highest run that it showed; 0 for none. */
  readonly highest: number;
}

/** What the server says of itself; `startTimeout` is for how many minutes a network is waited for. */
const aboutIt = ({ destination, keys, linkTimeout, series }: Wanted, startTimeout: number) =>
  persist(
    Effect.gen(function* () {
      const of = { signer: keys.signer, series };
      const { first } = yield* reach(destination, { verb: "about", of }, { minutes: linkTimeout });
      return isFailed(first) ? yield* refusal(first) : first;
    }).pipe(orNoServer),
    { startTimeout },
  );

/** What room the server has now. */
export const roomNow = (wanted: Wanted) => aboutIt(wanted, 0);

/** Whom an upload is for. */
export interface Meeting extends Wanted {
  /** A fingerprint in hex. */
  readonly expectServer: string | undefined;
  /** Minutes. */
  readonly startTimeout: number;
}

/** Asks who the server is: the pinned one, or the one that was expected. */
export const askWho = Effect.fnUntraced(function* (wanted: Meeting) {
  const { destination, expectServer } = wanted;
  const { room, server, ticket } = yield* aboutIt(wanted, wanted.startTimeout);
  const shown = fingerprint(server);
  if (expectServer !== undefined && expectServer !== shown) {
    return yield* failed(
      "integrity",
      `the server's key fingerprint is ${shown}, and ${expectServer} was expected`,
      `ask the server's owner what ${askTheOwner} prints there, as root`,
    );
  }
  if (!(yield* compareServer(destination, server)) && expectServer === undefined) {
    const { say } = yield* Reporter;
    yield* say(
      "info",
      line`a server that is new here has the key fingerprint ${shown}; it is pinned with its first receipt`,
    );
  }
  const highest = ticket === null ? 0 : yield* runOf(wanted, server, ticket.text, ticket.signature);
  const met: Met = { server, room: Effect.succeed(room), highest };
  return met;
});

/**
 * Whom an upload is for. The pinned server is not asked: a ticket that is not for it, or too low, it
 * refuses, and what room it has only some uploads need to know. A connection costs as much as the rest
 * of the way to its `ready`.
 */
export const meet = Effect.fnUntraced(function* (wanted: Meeting) {
  const { destination, expectServer } = wanted;
  const server = yield* inLedger((yield* KnownServers).pinned(destination));
  const expected = server === undefined || [undefined, fingerprint(server)].includes(expectServer);
  if (server === undefined || !expected) return yield* askWho(wanted);
  const asked = Effect.flatMap(askWho(wanted), ({ room }) => room);
  const room = Effect.provide(asked, yield* Effect.context<Effect.Services<typeof asked>>());
  const met: Met = { server, room, highest: 0 };
  return met;
});

/** Signs a ticket for a run above `least`, whose number is on disk before. */
export const newTicket = Effect.fnUntraced(function* (
  { keys, series }: Pick<Wanted, "keys" | "series">,
  server: PublicKey,
  least: number,
  words: Pick<Ticket, "name" | "session" | "base" | "bytes">,
) {
  const run = yield* inLedger((yield* Signer).nextRun(server, series, least));
  const time = instantOf(yield* Clock.currentTimeMillis);
  const { base, bytes, name, session } = words;
  const ticket: Ticket = {
    name,
    session,
    base,
    series,
    run,
    bytes,
    time,
    signer: keys.signer,
  };
  const signed: SignedTicket = {
    ...ticket,
    signature: keys.sign("ticket", ticketText(ticket, server)),
  };
  return signed;
});

/** The number to go above where the server has refused a ticket as stale, and shown the highest. */
export const staleRun = (
  wanted: Wanted,
  server: PublicKey,
  {
    signature,
    ticket,
  }: { readonly ticket?: string | undefined; readonly signature?: string | undefined },
): Effect.Effect<number, RunFailed> =>
  ticket === undefined || signature === undefined
    ? Effect.fail(failed("integrity", "the server calls a ticket stale and shows no newer one"))
    : runOf(wanted, server, ticket, signature);
