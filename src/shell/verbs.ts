/** The verbs: one table, and what is not in it is refused. A verb is a file and a line here. */
import type { Effect, Scope } from "effect";
import type { Invocation } from "#services/Invocation";
import type { Locks } from "#services/Locks";
import type { SafeFs } from "#services/SafeFs";
import type { Request, Verb } from "#src/wire/request";
import { check } from "#src/shell/verbs/check";
import type { Failure } from "#src/store/failure";
import { list } from "#src/shell/verbs/list";
import { manifest } from "#src/shell/verbs/manifest";
import { put } from "#src/shell/verbs/put";
import { read } from "#src/shell/verbs/read";
import type { Store, WritableStore } from "#src/store/store";
import type { Voice } from "./voice.ts";

/** What a verb has to work with. */
export interface Conversation<S extends Store> {
  readonly store: S;
  readonly voice: Voice;
  /** In bytes. */
  readonly quota: number | undefined;
}

export type Done = Effect.Effect<void, Failure, Invocation | SafeFs | Locks | Scope.Scope>;

/** A verb that writes gets a store that is made where it is missing. */
type Handler<V extends Verb> =
  | {
      readonly writes: true;
      readonly run: (
        request: Extract<Request, { verb: V }>,
        conversation: Conversation<WritableStore>,
      ) => Done;
    }
  | {
      readonly writes: false;
      readonly run: (
        request: Extract<Request, { verb: V }>,
        conversation: Conversation<Store>,
      ) => Done;
    };

const verbs: { readonly [V in Verb]: Handler<V> } = {
  put: { writes: true, run: put },
  list: { writes: false, run: list },
  manifest: { writes: false, run: manifest },
  read: { writes: false, run: read },
  check: { writes: false, run: check },
};

export const handlerOf = (verb: Verb): Handler<Verb> => verbs[verb] as unknown as Handler<Verb>;
