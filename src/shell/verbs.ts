/** The verbs: one table, and what is not in it is refused. A verb is a file and a line here. */
import type { Request, Verb } from "#src/wire/request";
import { about } from "#src/shell/verbs/about";
import { bare } from "#src/shell/verbs/bare";
import { check } from "#src/shell/verbs/check";
import { list } from "#src/shell/verbs/list";
import { manifest } from "#src/shell/verbs/manifest";
import { put } from "#src/shell/verbs/put";
import { read } from "#src/shell/verbs/read";
import { recipe } from "#src/shell/verbs/recipe";
import { table } from "#src/shell/verbs/table";
import type { Store, WritableStore } from "#src/store/store";
import type { Conversation, Done } from "./voice.ts";

/** The form without a verb. */
export { bare };

/** A verb that writes gets a store that is made where it is missing. */
type Handler<V extends Verb> =
  | {
      readonly writes: true;
      readonly run: (request: Request<V>, conversation: Conversation<WritableStore>) => Done;
    }
  | {
      readonly writes: false;
      readonly run: (request: Request<V>, conversation: Conversation<Store>) => Done;
    };

const verbs: { readonly [V in Verb]: Handler<V> } = {
  about: { writes: true, run: about },
  put: { writes: true, run: put },
  list: { writes: false, run: list },
  manifest: { writes: false, run: manifest },
  recipe: { writes: false, run: recipe },
  table: { writes: false, run: table },
  read: { writes: false, run: read },
  check: { writes: false, run: check },
};

export const handlerOf = (verb: Verb): Handler<Verb> => verbs[verb] as unknown as Handler<Verb>;
