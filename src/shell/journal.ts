/** What the server's log says of a session: who, from where, what, how much, and how it ended. */
import { Effect } from "effect";
import { Invocation } from "#services/Invocation";
import { Journal } from "#services/Journal";
import { line } from "#src/say/shown";
import type { Call } from "./invocation.ts";

/** What a verb adds to what its request says. */
export interface Facts {
  readonly name?: string;
  readonly session?: string;
  /** Of an archive that was stored: bytes of members. */
  readonly bytes?: number;
  /** With the last verdict: bytes that came and bytes that went, frames and lines with all that is in them. */
  readonly through?: { readonly received: number; readonly sent: number };
}
/**
 * Writes a line with this verdict: `begun`, `committed`, or the last one, which is `done`, `link`,
 * `interrupted` or the code of a refusal.
 */
export type Log = (verdict: string, facts?: Facts) => Effect.Effect<void>;

/** The account as sshd, or who else made the session, calls it. */
const accountOf = (env: Readonly<Record<string, string | undefined>>, uid?: number): string => {
  const name = env["LOGNAME"] ?? env["USER"] ?? "";
  return /^[a-z_][a-z0-9_-]{0,31}$/.test(name) ? name : `uid-${uid ?? "?"}`;
};
/** Address and port of the client, as sshd says them. */
const peerOf = (connection: string | undefined): string => {
  const [, address, port] = /^([0-9A-Za-z.:%-]{1,64}) ([0-9]{1,5}) /.exec(connection ?? "") ?? [];
  return address === undefined ? "-" : `${address}/${port}`;
};
const ofCall = (call: Call): { readonly verb: string } & Facts => {
  switch (call.kind) {
    case "request": {
      const { request } = call;
      return {
        verb: request.verb,
        ...("name" in request ? { name: request.name } : {}),
        ...("session" in request ? { session: request.session } : {}),
      };
    }
    case "bare":
      return { verb: "bare", name: call.name };
    case "signers":
      return { verb: `signers-${call.wish.do}` };
    case "refused":
      return call.asked === undefined ? { verb: "-" } : ofCall(call.asked);
    default:
      return { verb: call.kind };
  }
};

/** The log of one session. */
export const makeLog = (call: Call): Effect.Effect<Log, never, Invocation | Journal> =>
  Effect.gen(function* () {
    const { env, uid } = yield* Invocation;
    const journal = yield* Journal;
    const [account, peer] = [accountOf(env, uid), peerOf(env["SSH_CONNECTION"])];
    const { verb, ...asked } = ofCall(call);
    const store = "options" in call ? call.options?.root : undefined;
    return (verdict, facts = {}) => {
      const { name = "-", session = "-" } = { ...asked, ...facts };
      const { bytes, through } = facts;
      const much = through === undefined ? (bytes ?? "-") : `${through.received}/${through.sent}`;
      const text = line`account=${account} peer=${peer} verb=${verb} name=${name} session=${session} bytes=${much} verdict=${verdict}`;
      return journal.write({
        text,
        store,
        // Only a ticket of a known signer leads to it.
        ...(verdict === "committed" ? { weighty: true } : {}),
      });
    };
  });
