/** `about [SIGNER SERIES]`: what the server is. */
import { Clock, Effect } from "effect";
import { SafeFs } from "#services/SafeFs";
import { fingerprint } from "#src/proof/keys";
import { printable } from "#src/say/shown";
import { version } from "#src/say/version";
import { instantOf } from "#src/wire/names";
import type { Request } from "#src/wire/request";
import type { Conversation } from "#src/shell/voice";
import { expired } from "#src/store/clean";
import { readSigners } from "#src/store/signers";
import { keepKey, type WritableStore } from "#src/store/store";
import { highestTicket } from "#src/store/tickets";
import { gauge } from "#src/store/usage";

const unconfined = "unconfined";

/** The AppArmor profile of this process; null for none, and where the system has no AppArmor. */
const confinement = Effect.gen(function* () {
  const attributes = yield* (yield* SafeFs).root("/proc/self/attr/apparmor");
  const file = yield* attributes.open("current", "read");
  // Such a file has no size.
  const bytes = Buffer.alloc(200);
  const text = bytes.toString("latin1", 0, yield* file.read(bytes, 0)).trim();
  return text === "" || text === unconfined ? null : printable(text, 190);
}).pipe(
  Effect.scoped,
  Effect.orElseSucceed(() => null),
);

export const about = Effect.fnUntraced(function* (
  { of }: Request<"about">,
  { options, store, voice }: Conversation<WritableStore>,
) {
  const ticket = of === undefined ? undefined : yield* highestTicket(store, of.signer, of.series);
  // What a ticket that is short of room would have removed is in nobody's way.
  const room = yield* gauge(store, options.quota).room(yield* expired(store));
  // The key that is announced must not be lost by a power loss.
  yield* keepKey(store);
  yield* voice.say({
    type: "about",
    version,
    server: store.key.publicKey,
    signers: (yield* readSigners(store.own))?.map(fingerprint) ?? null,
    quota: options.quota ?? null,
    room: room.bytes,
    reserved: room.reserved,
    clock: instantOf(yield* Clock.currentTimeMillis),
    confined: yield* confinement,
    ticket: ticket === undefined ? null : { text: ticket.text, signature: ticket.signature },
  });
});
