/** `list [PREFIX [AFTER]]`: the archives in order of name, said as they are found. */
import { Effect } from "effect";
import { listPage } from "#src/wire/limits";
import type { Request } from "#src/wire/request";
import { listing } from "#src/store/list";
import type { Store } from "#src/store/store";
import type { Conversation } from "#src/shell/voice";

export const list = Effect.fnUntraced(function* (
  { after, prefix }: Request<"list">,
  { store, voice }: Conversation<Store>,
) {
  const all = listing(store, { prefix, after, limit: listPage }, (some) =>
    voice.say(
      ...some.map((one) => {
        if (one.type === "pruned") return one;
        const { format: _, ...said } = one.said;
        return { type: one.type, name: one.name, ...said, damaged: one.damaged };
      }),
    ),
  );
  const more = yield* Effect.raceFirst(all, voice.watch);
  yield* voice.say({ type: "end", more });
});
