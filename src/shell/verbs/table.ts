/** `table SESSION`: the members of a committed pack, as they are kept. */
import { Effect } from "effect";
import type { Request } from "#src/wire/request";
import { refuse } from "#src/store/failure";
import { isCommitted, missingPack } from "#src/store/packs";
import type { Store } from "#src/store/store";
import { ownFile } from "#src/store/tables";
import { type Conversation, sendText } from "#src/shell/voice";

export const table = Effect.fnUntraced(function* (
  { session }: Request<"table">,
  { store, voice }: Conversation<Store>,
) {
  if (!(yield* isCommitted(store, session))) return yield* missingPack(store, session);
  const file = yield* ownFile(store, "tables", session);
  if (file === undefined) return yield* refuse("damaged", "the table of that pack is away");
  yield* Effect.raceFirst(sendText(voice, file.read), voice.watch);
});
