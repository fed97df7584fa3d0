/**
 * Tickets: who may open an upload. Of each signer and series the highest that was ever admitted is
 * kept, so that what dom0 once signed is of no use again to whoever kept a copy.
 */
import { Clock, Effect } from "effect";
import type { Directory, SafeFsError } from "#services/SafeFs";
import { fingerprint, signatureHolds } from "#src/proof/keys";
import { parseTicket, sha256, type SignedTicket, type Ticket, ticketText } from "#src/proof/texts";
import { ticketAge } from "#src/wire/limits";
import {
  instantOf,
  isSignature,
  type PublicKey,
  type Series,
  type Signature,
} from "#src/wire/names";
import { Refused, refuse } from "./failure.ts";
import { readSigners, writeSigners } from "./signers.ts";
import { readText, whereFound, type WritableStore, writeText } from "./store.ts";
import { ownFile } from "./tables.ts";

/** Bytes of the file of a ticket: its text, a newline, its signature. */
const fileLimit = 4096;
const hour = 60 * 60 * 1000;

/** A ticket as it is kept. */
export interface Admitted {
  readonly text: string;
  readonly signature: Signature;
  readonly ticket: Ticket;
}

const parse = (file: string | undefined): Admitted | undefined => {
  const [text = "", signature] = file?.split("\n") ?? [];
  const ticket = parseTicket(text)?.ticket;
  return ticket !== undefined && isSignature(signature) ? { text, signature, ticket } : undefined;
};
const fileOf = ({ signature, text }: Pick<Admitted, "text" | "signature">): string =>
  `${text}\n${signature}`;
const seriesFile = (signer: PublicKey, series: Series): string => sha256(`${signer} ${series}`);

/**
 * The highest ticket of a series that was admitted; undefined where none was under the store's key: what is
 * signed for the one that it had before is admitted no more.
 */
export const highestTicket = Effect.fnUntraced(function* (
  store: Pick<WritableStore, "root" | "key">,
  signer: PublicKey,
  series: Series,
): Effect.fn.Return<Admitted | undefined, Refused | SafeFsError> {
  const text = yield* Effect.scoped(
    Effect.flatMap(ownFile(store, "runs", seriesFile(signer, series)), (file) =>
      file === undefined
        ? Effect.undefined
        : readText(file, fileLimit).pipe(Effect.map((read) => read ?? "")),
    ),
  );
  const found = parse(text);
  // Without it an old ticket would pass for a new one.
  if (text !== undefined && found === undefined) {
    return yield* refuse("internal", "a file in .qbackup/runs of the store is damaged");
  }
  return found?.text === (found && ticketText(found.ticket, store.key.publicKey))
    ? found
    : undefined;
});

/** The ticket that opened an upload last; undefined where there is none. */
export const ticketOf = (
  incoming: Directory,
  session: string,
): Effect.Effect<Admitted | undefined, SafeFsError> =>
  Effect.scoped(
    whereFound(
      Effect.flatMap(incoming.open(`${session}.ticket`, "read"), (file) =>
        readText(file, fileLimit),
      ),
    ),
  ).pipe(Effect.map(parse));

/** Is it a key whose tickets this store takes? Undefined where there are none: the first one reserves it. */
const known = Effect.fnUntraced(function* (store: WritableStore, signer: PublicKey) {
  const signers = yield* readSigners(store.own);
  if (signers === undefined || signers.includes(signer)) return signers;
  const [first, ...others] = signers.map(fingerprint);
  const taken =
    first === undefined
      ? "it takes none"
      : `it takes ${first}${others.length > 0 ? ` (and ${others.length} more)` : ""}`;
  // dom0 shows no more than 200 characters of it.
  return yield* refuse(
    "not-permitted",
    `this store does not take the key ${fingerprint(signer)}; ${taken}`,
  );
});

/** Why a ticket's time is none to be admitted at; undefined where it is. */
const untimely = (time: string, now: number): Refused | undefined => {
  const at = Date.parse(time);
  const from = now - ticketAge.days * 24 * hour;
  const to = now + ticketAge.hours * hour;
  return at >= from && at <= to
    ? undefined
    : new Refused({
        code: "not-permitted",
        message: `the clocks differ too much: dom0 wrote ${time}, and here it is ${instantOf(now)}`,
      });
};

/** A ticket of a known signer, and what is wrong with its time. */
export interface Vouched extends Admitted {
  readonly untimely: Refused | undefined;
}

/** Looks at signer, signature and time, in this order; of the time it only says what is wrong. */
export const vouch = Effect.fnUntraced(function* (
  store: WritableStore,
  { signature, ...ticket }: SignedTicket,
): Effect.fn.Return<Vouched, Refused | SafeFsError> {
  yield* known(store, ticket.signer);
  const text = ticketText(ticket, store.key.publicKey);
  if (!signatureHolds(ticket.signer, "ticket", text, signature)) {
    return yield* refuse("signature", "the ticket is not signed for this server by that key");
  }
  return {
    text,
    signature,
    ticket,
    untimely: untimely(ticket.time, yield* Clock.currentTimeMillis),
  };
});

/** Refuses a ticket that is not above the highest, nor that one itself. */
export const fresh = Effect.fnUntraced(function* (
  store: WritableStore,
  { text, ticket }: Admitted,
): Effect.fn.Return<void, Refused | SafeFsError> {
  const highest = yield* highestTicket(store, ticket.signer, ticket.series);
  if (highest === undefined || highest.ticket.run < ticket.run || highest.text === text) return;
  return yield* refuse("stale", "a newer ticket of that series was admitted already", {
    ticket: highest.text,
    signature: highest.signature,
  });
});

/**
 * From now on this ticket is the highest of its series, and opened its session. The caller holds the
 * locks on the session and on the store.
 */
export const enter = Effect.fnUntraced(function* (
  store: WritableStore,
  admitted: Admitted,
): Effect.fn.Return<void, Refused | SafeFsError> {
  const { series, session, signer } = admitted.ticket;
  const signers = yield* known(store, signer);
  yield* fresh(store, admitted);
  if (signers === undefined) yield* writeSigners(store.own, [signer]);
  yield* writeText(store.runs, seriesFile(signer, series), fileOf(admitted));
  yield* writeText(store.incoming, `${session}.ticket`, fileOf(admitted));
});

/** What held at admission still holds: signer and run. The caller holds the store's lock. */
export const stillHolds = Effect.fnUntraced(function* (
  store: WritableStore,
  admitted: Admitted,
): Effect.fn.Return<void, Refused | SafeFsError> {
  yield* known(store, admitted.ticket.signer);
  yield* fresh(store, admitted);
});
