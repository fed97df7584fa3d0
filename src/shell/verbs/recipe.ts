/** `recipe NAME`: the runs over packs that an archive is, as they are kept. */
import { Effect } from "effect";
import type { Request } from "#src/wire/request";
import { refuse } from "#src/store/failure";
import { archiveOf } from "#src/store/record";
import type { Store } from "#src/store/store";
import { ownFile } from "#src/store/tables";
import { type Conversation, sendText } from "#src/shell/voice";

export const recipe = Effect.fnUntraced(function* (
  { name }: Request<"recipe">,
  { store, voice }: Conversation<Store>,
) {
  const { said } = yield* archiveOf(store, name);
  const file = yield* ownFile(store, "recipes", said.session);
  if (file === undefined) return yield* refuse("damaged", "the archive's recipe is away");
  yield* Effect.raceFirst(sendText(voice, file.read), voice.watch);
});
