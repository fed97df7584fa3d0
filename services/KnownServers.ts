/** Which server is behind which qube: its key, pinned at the first proven contact. */
import { Context, type Effect } from "effect";
import type { LedgerError } from "#services/Ledger";
import type { PublicKey } from "#src/wire/names";

export class KnownServers extends Context.Service<
  KnownServers,
  {
    /** The key pinned for the server behind this qube. */
    readonly pinned: (destination: string) => Effect.Effect<PublicKey | undefined, LedgerError>;
    /** On disk when it returns. */
    readonly pin: (destination: string, server: PublicKey) => Effect.Effect<void, LedgerError>;
  }
>()("qbackup/services/KnownServers") {}
