/**
 * `signing_key` (PKCS #8 as PEM) and `series_key` (32 bytes), readable for nobody else; and
 * `series_runs`, a line `SERVER SERIES RUN` for each series and server, with the highest run given.
 */
import * as Effect from "effect/Effect";
import * as Layer from "effect/Layer";
import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import * as fs from "node:fs/promises";
import { Refusal, type StateDirectory } from "#layers/files/StateDirectory";
import { type Keys, type Secrets, Signer } from "#services/Signer";
import { privateKeyPem, seedOf, signingKeyOf } from "#src/proof/keys";
import { seriesOf } from "#src/proof/series";
import { printable } from "#src/say/shown";
import { isPublicKey, isSeries, parseNumber } from "#src/wire/names";

const { O_CREAT, O_EXCL, O_WRONLY } = constants;
const size = 32;

/** What the two secrets are good for. */
export const keysOf = ({ series, signing }: Secrets, fresh: boolean): Keys => {
  const { publicKey, sign } = signingKeyOf(signing);
  return { signer: publicKey, fresh, sign, seriesOf: (asked) => seriesOf(series, asked) };
};

/** Above what was given before, and above `least`. */
export const runAfter = (before: number | undefined, least: number): number => {
  const next = Math.max(before ?? 0, least) + 1;
  if (!Number.isSafeInteger(next)) throw new Refusal("there is no number left for a run of it");
  return next;
};

export const fileSigner = (state: StateDirectory): Layer.Layer<Signer> => {
  const damaged = (name: string) =>
    new Refusal(
      `${printable(state.file(name))} is damaged`,
      "bring back its copy, or from paper: qbackup key import",
    );

  const signing = async () => {
    const bytes = await state.read("signing_key", true);
    if (bytes === undefined) return undefined;
    return seedOf(bytes.toString("latin1")) ?? Promise.reject(damaged("signing_key"));
  };
  const series = async () => {
    const bytes = await state.read("series_key", true);
    if (bytes !== undefined && bytes.length !== size) throw damaged("series_key");
    return bytes;
  };

  /** Puts a file there unless there is one: of two programs that make a key, both then use the first. */
  const make = (name: string, content: string | Uint8Array) =>
    state.withDirectory(true, async (dir) => {
      const own = `${name}.${randomBytes(8).toString("hex")}.new`;
      try {
        await state.withFile(own, O_WRONLY | O_CREAT | O_EXCL, async (handle) => {
          await state.writeAll(handle, Buffer.from(content));
          await handle.sync();
        });
        await fs.link(state.file(own), state.file(name)).catch((cause: unknown) => {
          if ((cause as NodeJS.ErrnoException).code !== "EEXIST") throw cause;
        });
      } finally {
        await fs.rm(state.file(own), { force: true });
      }
      await dir.sync();
    });

  const runs = async () => {
    const text = (await state.read("series_runs"))?.toString("utf8") ?? "";
    const known = new Map<string, number>();
    for (const line of text.split("\n").slice(0, -1)) {
      const [server, of, number = "", ...more] = line.split(" ");
      const run = parseNumber(number);
      if (!isPublicKey(server) || !isSeries(of) || run === undefined || more.length > 0) {
        throw new Refusal(
          `${printable(state.file("series_runs"))} is damaged`,
          "remove it; the server knows the highest run",
        );
      }
      known.set(`${server} ${of}`, run);
    }
    return known;
  };

  return Layer.succeed(Signer, {
    keys: state.attempt("read dom0's own keys", async () => {
      const fresh = (await signing()) === undefined;
      if ((await series()) === undefined) await make("series_key", randomBytes(size));
      if (fresh) await make("signing_key", privateKeyPem(randomBytes(size)));
      return keysOf({ signing: (await signing())!, series: (await series())! }, fresh);
    }),
    existing: state.attempt("read dom0's own keys", async () => {
      const seed = await signing();
      return seed && signingKeyOf(seed).publicKey;
    }),
    nextRun: (server, of, least) =>
      state.attempt("number the run", async () => {
        const known = await runs();
        const key = `${server} ${of}`;
        const run = runAfter(known.get(key), least);
        const lines = [...known.set(key, run)].map(([what, number]) => `${what} ${number}\n`);
        await state.replaceText("series_runs", lines.join(""));
        return run;
      }),
    secrets: state.attempt("read dom0's own keys", async () => {
      const own = { signing: await signing(), series: await series() };
      return own.signing && own.series && { signing: own.signing, series: own.series };
    }),
    take: (secrets) =>
      Effect.asVoid(
        state.attempt("take the keys", async () => {
          if (secrets.signing.length !== size || secrets.series.length !== size) {
            throw new Refusal("a key has 32 bytes");
          }
          // Kept first, whatever they are: a damaged one too is the owner's to throw away.
          for (const name of ["signing_key", "series_key"]) {
            await state.keep(name, "old");
          }
          await state.replaceText("series_key", secrets.series);
          await state.replaceText("signing_key", privateKeyPem(secrets.signing));
        }),
      ),
  });
};
