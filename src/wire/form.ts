/** How a verb is written down: its words on ssh, its parameters on qrexec, its replies. */
import { Schema } from "effect";
import { isName, Name } from "./names.ts";

export interface Form<Request, Reply> {
  /** The parameters, as qrexec's JSON line has them. */
  readonly schema: Schema.Codec<Request, unknown>;
  /** The words of the ssh command behind the verb. */
  readonly words: (request: Request) => ReadonlyArray<string>;
  /** Reads them back; undefined when they are not its words. */
  readonly parse: (words: ReadonlyArray<string>) => Request | undefined;
  /** All that the server may say to it, `alive` and errors included. */
  readonly reply: Schema.Codec<Reply, unknown>;
}

export type RequestOf<F> = F extends Form<infer Request, infer _> ? Request : never;
export type ReplyOf<F> = F extends Form<infer _, infer Reply> ? Reply : never;

/** What the verbs about one archive take. */
export const Named = Schema.Struct({ name: Name });
export type Named = typeof Named.Type;
export const named = {
  schema: Named,
  words: ({ name }: Named): ReadonlyArray<string> => [name],
  parse: ([name, ...rest]: ReadonlyArray<string>): Named | undefined =>
    rest.length === 0 && isName(name) ? { name } : undefined,
};
