/** `audits.json`: what came back of which archive, and when, by its session. */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Option from "effect/Option";
import * as Schema from "effect/Schema";
import { Refusal, type StateDirectory } from "#layers/files/StateDirectory";
import { Audit, ReadBacks } from "#services/ReadBacks";
import { printable } from "#src/say/shown";
import { Session } from "#src/wire/names";

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Record(Session, Audit)));

export const fileReadBacks = (state: StateDirectory): Layer.Layer<ReadBacks> => {
  const all = async (): Promise<ReadonlyMap<string, Audit>> => {
    const bytes = await state.read("audits.json");
    if (bytes === undefined) return new Map();
    const known = Option.getOrUndefined(decode(bytes.toString("utf8")));
    if (known !== undefined) return new Map(Object.entries(known));
    throw new Refusal(
      `${printable(state.file("audits.json"))} is damaged`,
      "look at it, then remove it; nothing in it is needed for a restore",
    );
  };
  return Layer.succeed(ReadBacks, {
    all: state.attempt("read what was audited", all),
    change: (sessions, change) =>
      Effect.asVoid(
        state.attempt("note what was audited", async () => {
          const known = new Map(await all());
          for (const session of sessions) {
            known.set(session, change(known.get(session) ?? {}, session));
          }
          return state.replaceText("audits.json", `${JSON.stringify(Object.fromEntries(known))}\n`);
        }),
      ),
  });
};
