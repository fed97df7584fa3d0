/** `manifest NAME`: what dom0 and this server signed for an archive. */
import { Effect } from "effect";
import type { Request } from "#src/wire/request";
import { refuse } from "#src/store/failure";
import { archiveOf, isSigned } from "#src/store/record";
import type { Store } from "#src/store/store";
import type { Conversation } from "#src/shell/voice";

export const manifest = Effect.fnUntraced(function* (
  { name }: Request<"manifest">,
  { store, voice }: Conversation<Store>,
) {
  const { record } = yield* archiveOf(store, name);
  if (!isSigned(record)) {
    return yield* refuse("not-found", "nobody signed anything for that archive");
  }
  yield* voice.say({ type: "manifest", ...record });
});
