/** The verbs: one table, and what is not in it is refused. A verb is a file and a line here. */
import type { Effect, Scope } from "effect";
import type { Invocation } from "#services/Invocation";
import type { Locks } from "#services/Locks";
import type { SafeFs } from "#services/SafeFs";
import type { Request, Verb } from "#src/wire/request";
import { check } from "./check.ts";
import type { Failure } from "./failure.ts";
import { list } from "./list.ts";
import { manifest } from "./manifest.ts";
import { put } from "./put.ts";
import { read } from "./read.ts";
import type { Store, WritableStore } from "./store.ts";
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
