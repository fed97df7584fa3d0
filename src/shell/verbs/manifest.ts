/** `manifest NAME`: what lies beside an archive, as it was signed, in one frame. */
import { Effect } from "effect";
import { lengthPrefix } from "#src/wire/frames";
import type { Request } from "#src/wire/request";
import { refuse } from "#src/store/failure";
import type { Store } from "#src/store/store";
import { openStored } from "#src/store/stored";
import type { Conversation } from "#src/shell/verbs";

export const manifest = Effect.fnUntraced(function* (
  { name }: Extract<Request, { verb: "manifest" }>,
  { store, voice }: Conversation<Store>,
) {
  const { record } = yield* openStored(store, name);
  if (record === undefined) {
    return yield* refuse("not-found", "that archive has no manifest: it did not come through here");
  }
  const { manifest, signature, receipt, receiptSignature } = record;
  const bytes = Buffer.from(
    JSON.stringify({ manifest, signature, receipt, receiptSignature } satisfies typeof record),
  );
  yield* voice.say({ type: "ready", size: bytes.length });
  yield* voice.send(Buffer.concat([lengthPrefix(bytes.length), bytes]));
});
