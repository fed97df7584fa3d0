/**
 * `known_servers`: `QUBE KEY` lines as in ssh's known_hosts, with blank lines and comments as a person
 * may have put them there; the first match wins.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import * as Schema from "effect/Schema";
import { Refusal, type StateDirectory } from "#layers/files/StateDirectory";
import { KnownServers } from "#services/KnownServers";
import { Qube } from "#services/Qubes";
import { printable } from "#src/say/shown";
import { isPublicKey } from "#src/wire/names";

const isQube = Schema.is(Qube.fields.name);

export const fileKnownServers = (state: StateDirectory): Layer.Layer<KnownServers> => {
  const pins = async () => {
    const text = (await state.read("known_servers"))?.toString("utf8") ?? "";
    const lines = text === "" ? [] : text.replace(/\n$/, "").split("\n");
    return lines.map((line, i) => {
      if (/^\s*(#.*)?$/.test(line)) return { line };
      const [qube, key, ...more] = line.trim().split(/\s+/);
      if (more.length === 0 && isQube(qube) && isPublicKey(key)) return { line, qube, key };
      throw new Refusal(
        `${printable(state.file("known_servers"))}:${i + 1}: expected a qube's name and a server's key`,
        "mend that line, or remove it: the qube's next first contact pins the key anew",
      );
    });
  };
  return Layer.succeed(KnownServers, {
    pinned: (destination) =>
      state.attempt(
        "read the known servers",
        async () => (await pins()).find(({ qube }) => qube === destination)?.key,
      ),
    pin: (destination, server) =>
      Effect.asVoid(
        state.attempt("remember the server's key", async () => {
          if (!isQube(destination)) throw new Refusal("no qube has such a name");
          const lines = await pins();
          const line = `${destination} ${server}`;
          const at = lines.findIndex(({ qube }) => qube === destination);
          const text = lines.map((old, i) => (i === at ? line : old.line));
          const all = `${(at < 0 ? [...text, line] : text).join("\n")}\n`;
          return state.atLast(() => state.replaceText("known_servers", all));
        }),
      ),
  });
};
