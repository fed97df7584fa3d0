/**
 * What may be shown to a person. Text from another machine or another program may hold anything: an
 * escape sequence that rewrites a terminal, a line end that forges a line of the log. So what shows
 * text takes no plain string, but a `Line`, and a Line is made here alone: by cleaning.
 */
import { Schema } from "effect";

/** Printable ASCII, on one line. As a schema it is for the fields of errors. */
export const Line = Schema.String.pipe(Schema.brand("Line"));
export type Line = typeof Line.Type;

/** Longer than any message of ours; a cut keeps a journal from being filled by one call. */
const most = 4000;

const clean = (text: string): string => text.replace(/[^\x20-\x7e]+/g, "?");

/** One line that is safe to show or log, whoever wrote it: at most `limit` characters of it. */
export const printable = (text: string, limit = 200): Line => {
  const some = clean(text.slice(0, limit * 4));
  return (some.length > limit ? `${some.slice(0, limit)}...` : some) as Line;
};

/** A tag for templates: what is put into them is cleaned, and the whole may be shown. */
export const line = (parts: TemplateStringsArray, ...values: ReadonlyArray<string | number>) =>
  printable(String.raw({ raw: parts }, ...values), most);

/**
 * What a parameter that is shown takes: a Line, or a text that stands in the code word for word. A
 * template with anything in it has no such type, nor has `string`.
 */
export type Shown<T extends string> = T extends Line ? T : {} extends Record<T, 1> ? Line : T;
